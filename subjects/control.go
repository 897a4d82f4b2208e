package subjects

import (
	"net/http"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// The subjects on which the operator's commands reach gateways and workers, on core NATS. Each
// message is a request with a reply subject.
const (
	AskRequest = "pulley.ask.request" // a RequestQuery; the gateway that holds the request answers with a RequestDetail, no other gateway answers
	DoCancel   = "pulley.do.cancel"   // a RequestQuery; the gateway that holds the request answers with an Outcome
	DoPurge    = "pulley.do.purge"    // a PurgeOrder; each gateway answers with an Outcome
	DoRetry    = "pulley.do.retry"    // a RetryOrder; one gateway (queue group "pulley") answers with a RetryResult when the retry has ended
)

// WorkerDrain is the subject on which a worker receives the order to drain and leave; it answers with an Outcome. It is none of the subjects Worker(w) + ".>": those a broker with accounts passes to the worker without the way back of an answer.
func WorkerDrain(w string) string { return "pulley.drain." + w }

// Started is what a worker publishes on WorkerStarted when it has started, and when it has connected again, and what another
// one with the same stable id answers on WorkerRival.
type Started struct {
	Worker  string    `json:"worker"` // its id
	Host    string    `json:"host"`
	Process int       `json:"pid"`
	At      time.Time `json:"at"`    // when it started
	Given   bool      `json:"given"` // the stable id is configured
}

// GatewayGroup is the queue group for work that exactly one gateway has to do.
const GatewayGroup = "pulley"

// RequestQuery selects a request.
type RequestQuery struct {
	ID   string `json:"id"`
	By   string `json:"by,omitempty"`   // who asks
	Body bool   `json:"body,omitempty"` // include the body
}

// RequestDetail is everything that a gateway knows of one request.
type RequestDetail struct {
	RequestInfo
	Deadline    time.Time   `json:"deadline"`
	InputTokens int         `json:"input_tokens"` // estimated
	BodySize    int64       `json:"body_size"`
	Header      http.Header `json:"header,omitempty"` // as sent to the engine
	Failures    int         `json:"failures"`
	Refusals    int         `json:"refusals"`
	Lane        string      `json:"lane"`
	Body        []byte      `json:"body,omitempty"` // as much as fits into a message
}

// PurgeOrder empties queues. The clients get a 503.
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

// RetryResult is the result of a RetryOrder. On success the dead letter is removed.
type RetryResult struct {
	Error  string `json:"error,omitempty"` // why it was not run
	Status int    `json:"status"`
	Body   []byte `json:"body,omitempty"` // as much as fits into a message
}

// Outcome is the answer to an order.
type Outcome struct {
	From  string `json:"from"` // id of the gateway or worker
	Count int    `json:"count"`
	Error string `json:"error,omitempty"`
}

// Event reports something that an operator may want to know. It is published on EventSubject(Kind)
// when it happens, and is not stored.
type Event struct {
	At   time.Time `json:"at"`
	Kind EventKind `json:"kind"`
	From string    `json:"from"` // gateway, worker or cli, and its name
	Text string    `json:"text"` // a sentence, without figures that gateways see differently: by it readers tell one event from its repeats
	// The objects that the event is about, as far as they apply.
	Worker  string `json:"worker,omitempty"`
	Pool    string `json:"pool,omitempty"`
	Tier    string `json:"tier,omitempty"`
	Model   string `json:"model,omitempty"` // or a route's pattern
	Tenant  string `json:"tenant,omitempty"`
	Request string `json:"request,omitempty"`
}

// EventKind is the kind of an event.
type EventKind string

const (
	EventWorkerJoined   EventKind = "worker-joined"
	EventWorkerLeft     EventKind = "worker-left"
	EventWorkerLost     EventKind = "worker-lost"
	EventWorkerState    EventKind = "worker-state"    // the engine's state has changed: down, ready, cordoned, …
	EventWorkerFenced   EventKind = "worker-fenced"   // the engine or a GPU is unhealthy
	EventWorkerUnfenced EventKind = "worker-unfenced" // the worker accepts requests again
	EventWorkerFailing  EventKind = "worker-failing"  // requests of a pool fail at a worker, or no longer do
	EventWorkerSuspect  EventKind = "worker-suspect"  // an engine shows no progress with requests of a pool, or no longer is suspect
	EventWorkerNote     EventKind = "worker-note"     // a worker is much slower or smaller than is usual in a pool, or no longer is
	EventModelLoading   EventKind = "model-loading"   // an engine has begun to load a model
	EventModelLoaded    EventKind = "model-loaded"    // it has loaded one
	EventModelEvicted   EventKind = "model-evicted"   // it no longer has one loaded
	EventPolicy         EventKind = "policy"          // changed, or out of date
	EventShift          EventKind = "shift"           // a step of a shift, or its end
	EventDead           EventKind = "dead"            // a request became a dead letter
	EventFull           EventKind = "full"            // a queue is full; at most once in 10 s per queue
	EventKey            EventKind = "key"             // added, rotated, removed
	EventCancel         EventKind = "cancel"          // an operator has cancelled a request, or those that waited in a queue
	EventBroker         EventKind = "broker"          // a member of the brokers' cluster is silent, or is heard again
)

// AllEvents matches every event.
const AllEvents = "pulley.ev.>"

// EventSubject is the subject of events of a kind.
func EventSubject(k EventKind) string { return "pulley.ev." + string(k) }

// RequestInfo is one line of `pulley request ls`.
type RequestInfo struct {
	ID       string    `json:"id"`
	ClientID string    `json:"client_id,omitempty"` // the client's own x-request-id; empty if it sent none
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

// PoolResults is what became of a pool's requests that ended at a gateway within the last five minutes. Times are those of the
// answered ones.
type PoolResults struct {
	Pool      string      `json:"pool"`
	Answered  int         `json:"answered"`
	Failed    int         `json:"failed"`  // with a 5xx, or broken off
	Refused   int         `json:"refused"` // with any other error of the gateway's own
	Cancelled int         `json:"cancelled"`
	Times     policy.Side `json:"times"`
}

// PolicyChanged announces a stored change on the subject PolicyChanges. A part that misses it finds
// the change by polling the bucket.
type PolicyChanged struct {
	Key      string `json:"key"` // key of the bucket
	Revision uint64 `json:"revision"`
}
