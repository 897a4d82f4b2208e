package subjects

import (
	"net/http"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// What an operator's verbs ask gateways and workers to do, on core NATS. Each is
// a request with a reply subject.
const (
	AskRequest = "pulley.ask.request" // a RequestQuery; who holds the request answers with a RequestDetail, nobody else answers
	DoCancel   = "pulley.do.cancel"   // a RequestQuery; who holds the request answers with an Outcome
	DoPurge    = "pulley.do.purge"    // a PurgeOrder; each gateway answers with an Outcome
	DoRetry    = "pulley.do.retry"    // a RetryOrder; one gateway (queue group "pulley") answers with a RetryResult when it is over
)

// WorkerDrain is where a worker is told to drain and leave; it answers with an
// Outcome.
func WorkerDrain(w string) string { return "pulley.wk." + w + ".drain" }

// GatewayGroup is the queue group of what one gateway, any, has to do.
const GatewayGroup = "pulley"

// RequestQuery names a request.
type RequestQuery struct {
	ID   string `json:"id"`
	By   string `json:"by,omitempty"`   // who asks
	Body bool   `json:"body,omitempty"` // send the body too
}

// RequestDetail is what a gateway tells of one request.
type RequestDetail struct {
	RequestInfo
	Deadline    time.Time   `json:"deadline"`
	InputTokens int         `json:"input_tokens"` // estimated
	BodySize    int64       `json:"body_size"`
	Header      http.Header `json:"header,omitempty"` // as the engine gets it
	Failures    int         `json:"failures"`
	Refusals    int         `json:"refusals"`
	Lane        string      `json:"lane"`
	Body        []byte      `json:"body,omitempty"` // as much as fits into a message
}

// PurgeOrder empties queues: the clients get a 503.
type PurgeOrder struct {
	Pool string `json:"pool"`
	Tier string `json:"tier,omitempty"` // empty: all
	By   string `json:"by,omitempty"`
}

// RetryOrder runs a dead letter again.
type RetryOrder struct {
	Sequence uint64 `json:"seq"` // in DeadStream
	By       string `json:"by,omitempty"`
}

// RetryResult is what came of it. On success the dead letter is removed.
type RetryResult struct {
	Error  string `json:"error,omitempty"` // it was not run
	Status int    `json:"status"`
	Body   []byte `json:"body,omitempty"` // as much as fits into a message
}

// Outcome is the answer to an order.
type Outcome struct {
	From  string `json:"from"` // id of the gateway or worker
	Count int    `json:"count"`
	Error string `json:"error,omitempty"`
}

// Event is something that an operator may want to know, published on
// EventSubject(Kind) when it happens and kept nowhere.
type Event struct {
	At   time.Time `json:"at"`
	Kind EventKind `json:"kind"`
	From string    `json:"from"` // gateway, worker or cli, and its name
	Text string    `json:"text"` // a sentence
	// What it is about, as far as it applies.
	Worker  string `json:"worker,omitempty"`
	Pool    string `json:"pool,omitempty"`
	Tier    string `json:"tier,omitempty"`
	Model   string `json:"model,omitempty"` // or a route's pattern
	Tenant  string `json:"tenant,omitempty"`
	Request string `json:"request,omitempty"`
}

// EventKind is what happened.
type EventKind string

const (
	EventWorkerJoined   EventKind = "worker-joined"
	EventWorkerLeft     EventKind = "worker-left"
	EventWorkerLost     EventKind = "worker-lost"
	EventWorkerState    EventKind = "worker-state"    // of the engine: down, ready, cordoned, …
	EventWorkerFenced   EventKind = "worker-fenced"   // its engine or a GPU is ill
	EventWorkerUnfenced EventKind = "worker-unfenced" // it takes requests again
	EventPolicy         EventKind = "policy"          // changed, or out of date
	EventShift          EventKind = "shift"           // a step of one, its end
	EventDead           EventKind = "dead"            // a request became a dead letter
	EventFull           EventKind = "full"            // a queue is full; at most once in 10 s for each
	EventKey            EventKind = "key"             // added, rotated, removed
)

// AllEvents is every event.
const AllEvents = "pulley.ev.>"

// EventSubject is where events of a kind go.
func EventSubject(k EventKind) string { return "pulley.ev." + string(k) }

// The soft state that gateways share, each on its own subject, never stored.
const (
	AffinityReports = "pulley.homes" // HomesTold, every HomesEvery while there is something new
	UsageReports    = "pulley.usage" // UsageTold, every UsageEvery
	ShiftReports    = "pulley.sides" // SidesTold, every SidesEvery while a shift runs
)

const (
	AffinityEvery = 50 * time.Millisecond
	UsageEvery    = 100 * time.Millisecond
	ShiftEvery    = time.Second
)

// AffinityReport is where a gateway has seen conversations go.
type AffinityReport struct {
	Gateway string          `json:"gw"`
	Entries []AffinityEntry `json:"homes"`
}

// AffinityEntry is which worker has the beginning of a conversation cached.
type AffinityEntry struct {
	Prefix uint64 `json:"p,string"` // hash of tenant, model and the messages so far, or the session's name
	Pool   string `json:"o"`
	Worker string `json:"w"` // id
}

// UsageReport is what a gateway's requests have used of each key's limits since
// the gateway started, so that a lost message costs nothing. Requests only grow;
// tokens shrink when an estimate was too high.
type UsageReport struct {
	Gateway string              `json:"gw"`
	Keys    map[string]KeyUsage `json:"keys"` // by the key's id; those that changed since the last one, all of them every 5 s
}

// KeyUsage is what one gateway has used of one key's limits.
type KeyUsage struct {
	Requests uint64 `json:"r"`
	Tokens   uint64 `json:"t"`
	Running  int    `json:"c"`
}

// ShiftReport is how the sides of each shifting route did at a gateway since the
// present step began.
type ShiftReport struct {
	Gateway string                            `json:"gw"`
	Routes  map[string]map[string]policy.Side `json:"routes"` // by route and pool
	Since   map[string]time.Time              `json:"since"`  // of each route's step
}
