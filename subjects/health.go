package subjects

import (
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// How often parts tell that they live, and after how long without a word they
// count as dead.
const (
	HeartbeatEvery = 500 * time.Millisecond
	WorkerDeadline = 3 * HeartbeatEvery
	ReferenceEvery = time.Second
	GatewayGone    = 10 * time.Second
	AliveEvery     = time.Second
)

// State of a worker.
type State string

const (
	Ready    State = "ready"
	Paused   State = "paused"   // its engine refused: it waits a moment
	Down     State = "down"     // its engine does not answer
	Draining State = "draining" // it finishes what it has
	Cordoned State = "cordoned" // an operator lets it take nothing new
	Left     State = "left"     // its last word
)

// Heartbeat is what a worker says every HeartbeatEvery, and, less often, puts
// into the WorkersBucket.
type Heartbeat struct {
	Worker   string       `json:"worker"` // id, unique
	Name     string       `json:"name"`   // for people
	Engine   string       `json:"engine"` // kind: vllm, ollama, …
	URL      string       `json:"url"`
	Host     string       `json:"host"`
	Version  string       `json:"version"`
	Started  time.Time    `json:"started"`
	State    State        `json:"state"`
	Reason   string       `json:"reason,omitempty"`
	Slots    int          `json:"slots"`
	InFlight int          `json:"in_flight"`
	Prefills int          `json:"prefills"` // requests in flight without a first token
	Weight   float64      `json:"weight"`
	Done     uint64       `json:"done"`   // attempts ended well
	Failed   uint64       `json:"failed"` // attempts ended otherwise
	Pools    []PoolStatus `json:"pools"`
}

// PoolStatus is what a worker knows of one pool that it serves.
type PoolStatus struct {
	Pool  string        `json:"pool"`
	Model string        `json:"model,omitempty"` // the engine's name for it, if another
	Curve *policy.Curve `json:"curve,omitempty"` // nil until measured
	Mean  policy.Mean   `json:"mean"`
	Rung  int           `json:"rung"` // of its next bid
}

// Serves says whether the worker may be sent requests of the pool.
func (h *Heartbeat) Serves(pool string) bool {
	for i := range h.Pools {
		if h.Pools[i].Pool == pool {
			return true
		}
	}
	return false
}

// Live says whether the worker takes new requests.
func (h *Heartbeat) Live() bool { return h.State == Ready || h.State == Paused }

// Reference is what a gateway publishes every ReferenceEvery and whenever a
// pool appears; it is also the gateway's sign of life for the workers.
type Reference struct {
	Gateway string                   `json:"gw"`
	Pools   map[string]PoolReference `json:"pools"`
}

// PoolReference lets workers that do not hear each other price alike.
type PoolReference struct {
	Price   float64     `json:"price"` // seconds: the lowest no-load price; 0 if none is known
	Mean    policy.Mean `json:"mean"`
	Workers int         `json:"workers"` // live ones
	// Slots and Weight are the sums over the live workers.
	Slots  int     `json:"slots"`
	Weight float64 `json:"weight"`
	// Held is how many requests wait in this gateway for their turn to be
	// published, by tier.
	Held map[string]int `json:"held,omitempty"`
	// Homes are the home lanes that exist: ids of workers.
	Homes []string `json:"homes,omitempty"`
}

// RequestInfo is one line of `pulley request ls`.
type RequestInfo struct {
	ID       string    `json:"id"`
	Gateway  string    `json:"gateway"`
	Tenant   string    `json:"tenant,omitempty"`
	Model    string    `json:"model"`
	Tier     string    `json:"tier"`
	Pool     string    `json:"pool"`
	Path     string    `json:"path"`
	Stream   bool      `json:"stream"`
	State    string    `json:"state"` // queued, running, answering
	Worker   string    `json:"worker,omitempty"`
	Attempt  int       `json:"attempt"`
	Arrived  time.Time `json:"arrived"`
	QueueMS  int64     `json:"queue_ms"`
	AgeMS    int64     `json:"age_ms"`
	BytesOut int64     `json:"bytes_out"`
}
