package subjects

import (
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// Release tells a gateway to publish one request that it holds back. Gateways share the places in
// the broker's queue: the gateway that learns of a delivery which leaves the queue short sends the
// Release to the gateway whose next tenant was served least.
type Release struct {
	Pool    string `json:"pool"`
	Tier    string `json:"tier"`
	Pending int    `json:"pending"`        // requests in the broker's queue
	Hops    int    `json:"hops,omitempty"` // gateways that had nothing to publish
}

// HeldReport tells the other gateways, a few times a second, about the queues in which requests are held back.
type HeldReport struct {
	Gateway string      `json:"gw"`
	Queues  []HeldQueue `json:"queues"`
}

// HeldQueue is the shared lane of one queue.
type HeldQueue struct {
	Pool string `json:"pool"`
	Tier string `json:"tier"`
	Held int    `json:"held"` // requests that wait in the gateway
	Out  int    `json:"out"`  // requests of the gateway that wait in the broker
	// Level is how far service has come, in tokens per tenant. Next is what the gateway's next tenant was served, Step
	// by how much that grows with each release, and WaitsMS how long the tenant's request has waited. See policy.Fair.
	Level   uint64  `json:"level"`
	Next    uint64  `json:"next"`
	Step    uint64  `json:"step"`
	WaitsMS float64 `json:"waits_ms"`
	// Served are the tokens that tenants were served through this gateway since its last report.
	Served map[string]uint64 `json:"served,omitempty"`
}

// The subjects of the soft state that gateways share. It is never stored.
const (
	AffinityReports = "pulley.homes"  // AffinityReport, every AffinityEvery while there are new entries
	UsageReports    = "pulley.usage"  // UsageReport, every UsageEvery
	ShiftReports    = "pulley.sides"  // ShiftReport, every ShiftEvery while a shift runs
	DemandReports   = "pulley.demand" // DemandReport, every second while there is demand, and when pools begin or cease to have some
)

const (
	AffinityEvery = 50 * time.Millisecond
	UsageEvery    = 100 * time.Millisecond
	ShiftEvery    = time.Second
)

// AffinityReport says which workers have answered conversations at a gateway.
type AffinityReport struct {
	Gateway string          `json:"gw"`
	Entries []AffinityEntry `json:"homes"`
}

// AffinityEntry says which worker has the start of a conversation cached.
type AffinityEntry struct {
	Prefix uint64 `json:"p,string"` // hash of tenant, model and the messages so far, or of the session's name
	Pool   string `json:"o"`
	Worker string `json:"w"` // worker id
}

// UsageReport is what a gateway's requests have used of each key's limits since the gateway started. The numbers are
// totals, so a lost message has no effect. Requests only grow; tokens shrink when an estimate was too high.
type UsageReport struct {
	Gateway string              `json:"gw"`
	Keys    map[string]KeyUsage `json:"keys"` // by key id; the keys that changed since the last report, and all keys every 5 s

	// Ask is the number of a question: each other gateway answers at once with a report of the same keys, which has that number in
	// Answers under the id of the gateway that asked. 0: it is none. An older gateway does not answer.
	Ask     uint64            `json:"ask,omitzero"`
	Answers map[string]uint64 `json:"answers,omitempty"`
}

// KeyUsage is what one gateway has used of one key's limits.
type KeyUsage struct {
	Requests uint64 `json:"r"`
	Tokens   uint64 `json:"t"`
	Running  int    `json:"c"`

	// Claims wait until the other gateways have answered a question: see policy.KeyLimits. Older gateways do not know them.
	Claims      int   `json:"w,omitzero"`
	ClaimTokens int64 `json:"wt,omitzero"`
}

// ShiftReport is how the sides of each shifting route did at a gateway since the present step started.
type ShiftReport struct {
	Gateway string                            `json:"gw"`
	Routes  map[string]map[string]policy.Side `json:"routes"` // by route and pool
	Since   map[string]time.Time              `json:"since"`  // start of each route's step
}

// DemandReport is the work that is outstanding at a gateway: see policy.Demand.
type DemandReport struct {
	Gateway string                `json:"gw"`
	Pools   map[string]PoolDemand `json:"pools,omitempty"` // only those with a request
}

// PoolDemand is the demand of a pool's requests at one gateway.
type PoolDemand struct {
	Requests int     `json:"requests"` // that wait or run
	Seconds  float64 `json:"seconds"`  // that all workers of the pool take for them
	Measured bool    `json:"measured"` // false: no worker has measured how long they take
}
