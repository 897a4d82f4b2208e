package subjects

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/gpu"
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
	Fenced   State = "fenced"   // its engine or a GPU is ill: it finishes what it can
	Draining State = "draining" // it finishes what it has
	Cordoned State = "cordoned" // an operator lets it take nothing new
	Left     State = "left"     // its last word
)

// Heartbeat is what a worker says every HeartbeatEvery, and, less often, puts
// into the WorkersBucket.
type Heartbeat struct {
	Worker       string         `json:"worker"` // id, unique
	Name         string         `json:"name"`   // for people
	Engine       string         `json:"engine"` // kind: vllm, ollama, …
	URL          string         `json:"url"`
	Host         string         `json:"host"`
	Version      string         `json:"version"`
	Started      time.Time      `json:"started"`
	State        State          `json:"state"`
	Reason       string         `json:"reason,omitempty"`
	FenceClass   gpu.FenceClass `json:"fence_class,omitempty"` // the kind of Reason, if State is Fenced
	Slots        int            `json:"slots"`                 // that it may fill now
	InFlight     int            `json:"in_flight"`
	Prefills     int            `json:"prefills"` // requests in flight without a first token
	Weight       float64        `json:"weight"`
	Done         uint64         `json:"done"`   // attempts ended well
	Failed       uint64         `json:"failed"` // attempts ended otherwise
	Pools        []PoolStatus   `json:"pools"`
	Capacity     *Capacity      `json:"room,omitempty"`
	EngineStatus *EngineStatus  `json:"tells,omitempty"` // nil: nothing was read yet
	NVML         *NVML          `json:"nvml,omitempty"`  // nil: it is off
}

// maxCount bounds the numbers of a heartbeat: far above what any worker has,
// and small enough that sums over all of them stay right.
const maxCount = 1 << 24

// ParseHeartbeat reads a heartbeat, as hostile input: whose it is stands in its
// subject too, its pools have names, and its counts, weight and prices are
// numbers to count with. What a worker may call its state, or an engine, is open.
func ParseHeartbeat(m *nats.Msg) (*Heartbeat, error) {
	h := new(Heartbeat)
	if err := Unmarshal(m.Data, h); err != nil {
		return nil, fmt.Errorf("heartbeat on %s: %w", m.Subject, err)
	}
	if h.Worker != LastToken(m.Subject) {
		return nil, fmt.Errorf("heartbeat on %s: it is of worker %q", m.Subject, h.Worker)
	}
	err := cmp.Or(
		bounded("slots", float64(h.Slots)), bounded("in_flight", float64(h.InFlight)),
		bounded("prefills", float64(h.Prefills)), bounded("weight", h.Weight),
	)
	for i := range h.Pools {
		err = cmp.Or(err, h.Pools[i].check())
	}
	if err != nil {
		return nil, fmt.Errorf("heartbeat on %s: %w", m.Subject, err)
	}
	return h, nil
}

func (p *PoolStatus) check() error {
	if p.Pool == "" {
		return errors.New("a pool without a name")
	}
	err := cmp.Or(bounded("in", p.Mean.Input), bounded("out", p.Mean.Output), bounded("n", p.Mean.Samples))
	if p.Curve != nil {
		for _, l := range []*policy.Line{p.Curve.Prefill, p.Curve.ITL} {
			if l != nil {
				err = cmp.Or(err, bounded("a", l.A), bounded("b", l.B))
			}
		}
	}
	if err != nil {
		return fmt.Errorf("pool %q: %w", p.Pool, err)
	}
	return nil
}

func bounded(name string, n float64) error {
	if n >= 0 && n <= maxCount {
		return nil
	}
	return fmt.Errorf("%s %v: want 0 to %d", name, n, maxCount)
}

// Capacity is how many requests a worker may have, and why not more.
type Capacity struct {
	Profile  string       `json:"profile"`
	Total    int          `json:"total"` // in flight at once
	Bound    policy.Bound `json:"bound"`
	Why      string       `json:"why,omitempty"`
	Headroom float64      `json:"headroom"`
	Factor   float64      `json:"factor"` // what a strained GPU leaves, 0 to 1
	// Engine and GPU say how far what they tell is believed: fresh, stale, missing.
	Engine string `json:"engine"`
	GPU    string `json:"gpu"`
	// Terms are the bounds that bind at all, by name.
	Terms map[policy.Bound]float64 `json:"terms,omitempty"`
	// Limit is the adaptive one, 0 for a fixed profile; the times are between two
	// tokens, in milliseconds, 0 while unknown.
	Limit      float64 `json:"limit,omitempty"`
	AloneMS    float64 `json:"alone_ms,omitempty"`
	PaceMS     float64 `json:"pace_ms,omitempty"`
	TargetMS   float64 `json:"target_ms,omitempty"`
	Infeasible bool    `json:"infeasible,omitempty"` // the objective is, with any number of requests
	// Decisions are the last ones, the newest last.
	Decisions []Decision `json:"decisions,omitempty"`
}

// Decision is a change of a worker's room that people ask about.
type Decision struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// EngineStatus is what an engine says of itself. What it does not say is nil.
type EngineStatus struct {
	Dialect     string    `json:"dialect"`
	At          time.Time `json:"at,omitzero"` // when its load was read
	Slots       *int      `json:"slots,omitempty"`
	Running     *int      `json:"running,omitempty"`
	Waiting     *int      `json:"waiting,omitempty"`
	KVTokens    *int64    `json:"kv_tokens,omitempty"`
	KVUsage     *float64  `json:"kv_usage,omitempty"`
	Preemptions *int64    `json:"preemptions,omitempty"`
	// Loaded are the models that answer without a load, of an engine that swaps.
	Loaded []string `json:"loaded,omitempty"`
}

// NVML is what it says of the GPUs of a worker's engine.
type NVML struct {
	Mode   string `json:"mode"` // auto or required
	Driver string `json:"driver,omitempty"`
	// Failure is why there is nothing newer, or nothing at all.
	Failure *gpu.Failure `json:"failure,omitempty"`
	GPUs    []GPU        `json:"gpus,omitempty"`
}

// GPU is one of them, as it was last seen.
type GPU struct {
	gpu.Snapshot
	// Fenced is why nothing may run on it, FenceClass the kind of that; Strain what
	// holds it back. Else empty.
	Fenced     string         `json:"fenced,omitempty"`
	FenceClass gpu.FenceClass `json:"fence_class,omitempty"`
	Since      time.Time      `json:"since,omitzero"` // when it was fenced
	Strain     string         `json:"strain,omitempty"`
}

// PoolStatus is what a worker knows of one pool that it serves.
type PoolStatus struct {
	Pool  string        `json:"pool"`
	Model string        `json:"model,omitempty"` // the engine's name for it, if another
	Curve *policy.Curve `json:"curve,omitempty"` // nil until measured
	Mean  policy.Mean   `json:"mean"`
	Rung  int           `json:"rung"` // of its next bid
	// Cold says that a request of it begins with the load of its model.
	Cold bool `json:"cold,omitempty"`
	// WillLoad says that the worker is about to load it nevertheless.
	WillLoad bool `json:"loads,omitempty"`
}

// Kinds of reason for which a worker is fenced, beside those of its GPUs.
const (
	FenceStalled gpu.FenceClass = "stalled" // its engine
	FenceNVML    gpu.FenceClass = "nvml"    // it is required, and tells nothing
)

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
	// HomeLanes are the home lanes that exist: ids of workers.
	HomeLanes []string `json:"homes,omitempty"`
	// Loaded is how many live workers have its model loaded, or soon, and WaitsMS how long
	// the request of this gateway has waited that has waited the longest, by tier:
	// where a worker would have to load it.
	Loaded  int              `json:"loaded,omitempty"`
	WaitsMS map[string]int64 `json:"waits_ms,omitempty"`
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
