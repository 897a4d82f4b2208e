package subjects

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
)

// The intervals of signs of life, and how long a part may be silent before it counts as dead.
const (
	HeartbeatEvery = 500 * time.Millisecond
	WorkerDeadline = 3 * HeartbeatEvery
	ReferenceEvery = time.Second
	GatewayGone    = 10 * time.Second
	AliveEvery     = time.Second
)

// State is the state of a worker.
type State string

const (
	Ready    State = "ready"
	Paused   State = "paused"   // the engine refused a request; the worker pauses for a moment
	Busy     State = "busy"     // the engine has work and answers nothing else in time; the worker keeps its requests and takes no new ones
	Down     State = "down"     // the engine does not answer
	Fenced   State = "fenced"   // the engine or a GPU is unhealthy; the worker finishes what it can
	Draining State = "draining" // the worker finishes its requests and leaves
	Cordoned State = "cordoned" // an operator has stopped new requests
	Left     State = "left"     // the state of the last heartbeat
)

// Heartbeat is published by a worker every HeartbeatEvery, and written to the WorkersBucket less often.
type Heartbeat struct {
	Worker       string         `json:"worker"` // unique id
	Name         string         `json:"name"`   // the name that people use
	Engine       string         `json:"engine"` // dialect: vllm, ollama, …
	URL          string         `json:"url"`
	Host         string         `json:"host"`
	Version      string         `json:"version"`
	Started      time.Time      `json:"started"`
	State        State          `json:"state"`
	Reason       string         `json:"reason,omitempty"`
	FenceClass   gpu.FenceClass `json:"fence_class,omitempty"` // class of Reason, if State is Fenced
	DownClass    DownClass      `json:"down_class,omitempty"`  // class of Reason, if State is Down and someone has to remove an obstacle
	Slots        int            `json:"slots"`                 // requests that it may have now
	InFlight     int            `json:"in_flight"`
	Prefills     int            `json:"prefills"`        // requests in flight without a first token
	Calls        int            `json:"calls,omitempty"` // calls (WorkerCall) that it runs at once, beside its requests; 0: it takes none
	Weight       float64        `json:"weight"`
	Done         uint64         `json:"done"`   // attempts that succeeded
	Failed       uint64         `json:"failed"` // all other attempts that ended
	Pools        []PoolStatus   `json:"pools"`
	Capacity     *Capacity      `json:"room,omitempty"`
	EngineStatus *EngineStatus  `json:"tells,omitempty"` // nil until the engine was read
	Ranks        []Rank         `json:"ranks,omitempty"` // data-parallel ranks, if the worker chooses among them
	// KeepsHomes says that the worker keeps PoolReference.HomeLanes while References leave them out. An older one does not.
	KeepsHomes bool  `json:"keeps_homes,omitzero"`
	NVML       *NVML `json:"nvml,omitempty"` // nil if NVML is off
}

// maxCount bounds the numbers of a heartbeat: far above what any worker has, and small enough that
// sums over all workers stay exact.
const maxCount = 1 << 24

// ParseHeartbeat parses a heartbeat as untrusted input. The subject must be that of the worker, its pools must have
// names, and its counts, weight and prices must be finite numbers in range. Any state or engine name is accepted.
func ParseHeartbeat(m *nats.Msg) (*Heartbeat, error) {
	h := new(Heartbeat)
	if err := Unmarshal(m.Data, h); err != nil {
		return nil, fmt.Errorf("heartbeat on %s: %w", m.Subject, err)
	}
	if m.Subject != Heartbeats(h.Worker) {
		return nil, fmt.Errorf("heartbeat on %s: of worker %.80q", m.Subject, h.Worker)
	}
	err := cmp.Or(
		inRange("slots", float64(h.Slots)), inRange("in_flight", float64(h.InFlight)),
		inRange("prefills", float64(h.Prefills)), inRange("calls", float64(h.Calls)), inRange("weight", h.Weight),
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
	err := cmp.Or(inRange("in", p.Mean.Input), inRange("out", p.Mean.Output), inRange("n", p.Mean.Samples),
		inRange("load_ms", float64(p.LoadMS)))
	if p.Length < 0 || p.Length > policy.AnyLength {
		err = cmp.Or(err, fmt.Errorf("length %d: must be 0 to 2⁵³", p.Length))
	}
	if l := p.Listed; l != nil {
		for _, n := range append(l.lengths(), &l.Created) {
			if *n < 0 || *n > 1<<53 {
				err = cmp.Or(err, fmt.Errorf("listed %d: must be 0 to 2⁵³", *n))
			}
		}
		if len(l.OwnedBy) > 64 {
			err = cmp.Or(err, errors.New("an owner of more than 64 bytes"))
		}
		if len(l.Parent) > MaxName {
			err = cmp.Or(err, fmt.Errorf("a parent of more than %d bytes", MaxName))
		}
	}
	if p.Curve != nil {
		for _, l := range []*policy.Line{p.Curve.Prefill, p.Curve.ITL} {
			if l != nil {
				err = cmp.Or(err, inRange("a", l.A), inRange("b", l.B))
			}
		}
	}
	if err != nil {
		return fmt.Errorf("pool %q: %w", p.Pool, err)
	}
	return nil
}

func inRange(name string, n float64) error {
	if n >= 0 && n <= maxCount {
		return nil
	}
	return fmt.Errorf("%s %v: must be 0 to %d", name, n, maxCount)
}

// Capacity says how many requests a worker may have, and what limits it.
type Capacity struct {
	Profile  string       `json:"profile"`
	Total    int          `json:"total"` // requests in flight at once
	Bound    policy.Bound `json:"bound"`
	Why      string       `json:"why,omitempty"`
	Headroom float64      `json:"headroom"`
	Factor   float64      `json:"factor"` // part of the capacity that a strained GPU leaves, 0 to 1
	// Engine and GPU are the freshness of their signals: fresh, stale or missing.
	Engine string `json:"engine"`
	GPU    string `json:"gpu"`
	// Terms are the bounds that are not infinite, by name.
	Terms map[policy.Bound]float64 `json:"terms,omitempty"`
	// Limit is the adaptive limit; 0 for a fixed profile. The times are inter-token times in
	// milliseconds; 0 while unknown.
	Limit      float64 `json:"limit,omitempty"`
	AloneMS    float64 `json:"alone_ms,omitempty"`
	PaceMS     float64 `json:"pace_ms,omitempty"`
	TargetMS   float64 `json:"target_ms,omitempty"`
	Infeasible bool    `json:"infeasible,omitempty"` // no number of requests meets the objective
	// Decisions are the most recent ones, the newest last.
	Decisions []Decision `json:"decisions,omitempty"`
}

// Decision is a change of a worker's capacity that an operator may ask about.
type Decision struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// EngineStatus is what an engine reports about itself. A nil field is a signal that the engine does not give.
type EngineStatus struct {
	Dialect     string    `json:"dialect"`
	At          time.Time `json:"at,omitzero"` // when its load was read
	Slots       *int      `json:"slots,omitempty"`
	Running     *int      `json:"running,omitempty"`
	Waiting     *int      `json:"waiting,omitempty"`
	KVTokens    *int64    `json:"kv_tokens,omitempty"`
	KVUsage     *float64  `json:"kv_usage,omitempty"`
	Preemptions *int64    `json:"preemptions,omitempty"`
	// TokenMS is the mean time for a token of one of the worker's requests, by the engine's counter of tokens; 0: unknown.
	TokenMS float64 `json:"token_ms,omitempty"`
	// Loaded lists the models that answer without a load, for an engine that swaps models.
	Loaded []string `json:"loaded,omitempty"`
}

// Rank is a data-parallel rank of an engine. A nil field is a signal that the engine does not give.
type Rank struct {
	InFlight int      `json:"in_flight"` // the worker's own requests
	Running  *int     `json:"running,omitempty"`
	Waiting  *int     `json:"waiting,omitempty"`
	KVUsage  *float64 `json:"kv_usage,omitempty"`
}

// NVML is what NVML reports about the GPUs of a worker's engine.
type NVML struct {
	Mode   string `json:"mode"` // auto or required
	Driver string `json:"driver,omitempty"`
	// Failure is why there is no newer sample, or none at all.
	Failure *gpu.Failure `json:"failure,omitempty"`
	GPUs    []GPU        `json:"gpus,omitempty"`
}

// GPU is one of the GPUs, as last seen.
type GPU struct {
	gpu.Snapshot
	// Fenced is why no request may run on the GPU, FenceClass the class of that reason, and Strain
	// why it should take less. They are empty otherwise.
	Fenced     string         `json:"fenced,omitempty"`
	FenceClass gpu.FenceClass `json:"fence_class,omitempty"`
	Since      time.Time      `json:"since,omitzero"` // when it was fenced
	Strain     string         `json:"strain,omitempty"`
}

// PoolStatus is a worker's state in one pool that it serves.
type PoolStatus struct {
	Pool  string        `json:"pool"`
	Model string        `json:"model,omitempty"` // the engine's name for the model, if it differs
	Curve *policy.Curve `json:"curve,omitempty"` // nil until measured
	Mean  policy.Mean   `json:"mean"`
	Rung  int           `json:"rung"` // rung of the next bid
	// Cold says that a request would first have to load the model.
	Cold bool `json:"cold,omitempty"`
	// Failing is why requests fail here: the worker has paused for the pool, and tries one request at a time until one
	// succeeds. It is empty otherwise.
	Failing string `json:"failing,omitempty"`
	// Vitality is VitalitySuspect or VitalityHung if the engine shows no progress with requests of the pool; Doubt says why it
	// is suspect, and Failing why it hangs. Both are empty otherwise.
	Vitality string `json:"vitality,omitempty"`
	Doubt    string `json:"doubt,omitempty"`
	// Notes say how the worker differs from what is usual in the pool: see policy.Note.
	Notes []policy.Note `json:"notes,omitempty"`
	// WillLoad says that the model is cold and the worker is about to load it.
	WillLoad bool `json:"loads,omitempty"`
	// Spare says that the model is cold, and that loading it would push out nothing that is in use; Evicts that it may push
	// out another model.
	Spare  bool `json:"spare,omitempty"`
	Evicts bool `json:"evicts,omitempty"`
	// Loading is since when the engine has been loading the model; zero: it is not.
	Loading time.Time `json:"loading,omitzero"`
	// LoadMS is how long a load of the model takes, as measured; 0: no load was seen. Only for engines that load on demand.
	LoadMS int64 `json:"load_ms,omitempty"`
	// AnyCase says that the engine takes the name in any case, and without its tag if that is latest, as Ollama does.
	AnyCase bool `json:"any_case,omitzero"`
	// Adapters are the names of the adapters (LoRA) of the model that the engine has loaded beside it.
	Adapters []string `json:"adapters,omitempty"`
	// Length is the most tokens of a prompt with its answer that the engine accepts, or policy.AnyLength if that is unknown or
	// it cuts what is longer; 0 of an older worker.
	Length int64 `json:"length,omitzero"`
	// Listed is what the engine's list of models says of the model; nil if it does not list it.
	Listed *ListedModel `json:"listed,omitempty"`
}

// MaxPools is how many pools gateways take in from a worker: each has a consumer for each tier, and its home lane as many
// more. So nobody who may send heartbeats can have any number of consumers made.
const MaxPools = 100

// MaxAdapters is how many names of adapters a heartbeat has for each pool at most.
const MaxAdapters = 1024

// Values of PoolStatus.Vitality.
const (
	VitalitySuspect = "suspect" // the worker starts few requests of the pool
	VitalityHung    = "hung"    // it starts none, though the engine answers those of other pools
)

// Loaded reports whether requests for the pool's model are answered without a load.
func (p *PoolStatus) Loaded() bool { return !p.Cold && p.Loading.IsZero() }

// Learned is what a worker has measured of its engine and keeps in the LearnedBucket, for the next time that it starts.
type Learned struct {
	Loads    map[string]int64 `json:"loads,omitempty"`    // mean load times in milliseconds, by the engine's name of the model
	Parallel int              `json:"parallel,omitempty"` // requests that the engine was found to run at once; 0: unknown
}

// ListedModel is what an engine's list of models says of one of them, under the names that it has there. A value of zero was
// not given. Lengths are of a prompt with its answer, in tokens.
type ListedModel struct {
	Created          int64  `json:"created,omitzero"` // Unix seconds
	OwnedBy          string `json:"owned_by,omitzero"`
	Parent           string `json:"parent,omitzero"` // of an adapter: the model that it belongs to
	MaxModelLen      int64  `json:"max_model_len,omitzero"`
	ContextLength    int64  `json:"context_length,omitzero"`
	MaxContextLength int64  `json:"max_context_length,omitzero"`
	ContextWindow    int64  `json:"context_window,omitzero"`
	MetaContext      int64  `json:"n_ctx,omitzero"`       // in meta
	MetaTrained      int64  `json:"n_ctx_train,omitzero"` // in meta
}

// lengths are the numbers that bound a request.
func (m *ListedModel) lengths() []*int64 {
	return []*int64{&m.MaxModelLen, &m.ContextLength, &m.MaxContextLength, &m.ContextWindow, &m.MetaContext, &m.MetaTrained}
}

// Agree leaves of m what other says too: the least of each length, the earlier time of creation, and the owner if it is
// the same.
func (m *ListedModel) Agree(other *ListedModel) {
	theirs := other.lengths()
	for i, n := range m.lengths() {
		*n = min(*n, *theirs[i])
	}
	m.Created = min(m.Created, other.Created)
	if m.OwnedBy != other.OwnedBy {
		m.OwnedBy = ""
	}
	if m.Parent != other.Parent {
		m.Parent = ""
	}
}

// Classes of reasons for which a worker is fenced, besides those of its GPUs.
const (
	FenceStalled gpu.FenceClass = "stalled" // the engine has stalled
	FenceNVML    gpu.FenceClass = "nvml"    // NVML is required but reports nothing
	FenceHung    gpu.FenceClass = "hung"    // the engine's pages answer, its requests do not
	FenceFrozen  gpu.FenceClass = "frozen"  // neither the engine's pages nor its requests answer
)

// DownClass is the kind of obstacle between a worker and its engine. Others may be added.
type DownClass string

const (
	DownCredentials DownClass = "credentials" // the engine refuses the worker's API key or password, or wants one
	DownCertificate DownClass = "certificate" // the engine's certificate is not trusted, or it refuses the worker's
	DownPage        DownClass = "page"        // what answers at the URL is no engine: a web page, a redirection, no such path
)

// Serves reports whether the worker serves a pool.
func (h *Heartbeat) Serves(pool string) bool {
	for i := range h.Pools {
		if h.Pools[i].Pool == pool {
			return true
		}
	}
	return false
}

// Answers reports whether the worker serves a pool, and nothing is known to be wrong with its requests there.
func (h *Heartbeat) Answers(pool string) bool {
	for i := range h.Pools {
		if p := &h.Pools[i]; p.Pool == pool {
			return p.Failing == "" && p.Vitality == ""
		}
	}
	return false
}

// Failing returns the first of the pools whose requests fail here, and why; empty if there are none.
func (h *Heartbeat) Failing() string {
	for i := range h.Pools {
		if p := &h.Pools[i]; p.Failing != "" {
			return p.Pool + ": " + p.Failing
		}
	}
	return ""
}

// Doubt returns the first of the pools for which the engine is suspect, and why; empty if there are none.
func (h *Heartbeat) Doubt() string {
	for i := range h.Pools {
		if p := &h.Pools[i]; p.Doubt != "" {
			return p.Pool + ": " + p.Doubt
		}
	}
	return ""
}

// Notes returns how the worker differs from others, in one line for each of its pools; empty if it does not.
func (h *Heartbeat) Notes() string {
	var all []string
	for i := range h.Pools {
		p := &h.Pools[i]
		for _, n := range p.Notes {
			all = append(all, p.Pool+": "+n.String())
		}
	}
	return strings.Join(all, "; ")
}

// Peer returns what the worker is compared by with others of a pool that it serves.
func (h *Heartbeat) Peer(pool *PoolStatus) (p policy.Peer) {
	if c := h.Capacity; c != nil {
		p.Token, p.Slots = c.AloneMS/1000, c.Terms[policy.BoundSlots]
	}
	if s := h.EngineStatus; s != nil && p.Token == 0 {
		p.Token = s.TokenMS / 1000
	}
	if c := pool.Curve; c != nil && c.ITL != nil {
		p.Token = c.ITL.At(1)
	} else if c != nil && c.Prefill != nil && pool.Mean.Output < 1 && pool.Mean.Input >= 1 { // embeddings and the like
		p.Token = c.Prefill.At(pool.Mean.Input) / pool.Mean.Input
	}
	if s := h.EngineStatus; s != nil && s.KVTokens != nil {
		p.KV = float64(*s.KVTokens)
	}
	if s := h.EngineStatus; s != nil && s.Slots != nil && (p.Slots == 0 || float64(*s.Slots) < p.Slots) {
		p.Slots = float64(*s.Slots)
	}
	if pool.Length > 0 && pool.Length < policy.AnyLength {
		p.Context = float64(pool.Length)
	}
	return p
}

// Live reports whether the worker accepts new requests, now or after a moment.
func (h *Heartbeat) Live() bool { return h.State == Ready || h.State == Paused || h.State == Busy }

// Hangs reports whether the worker is fenced because its engine no longer answers requests.
func (h *Heartbeat) Hangs() bool {
	return h.State == Fenced && (h.FenceClass == FenceHung || h.FenceClass == FenceFrozen)
}
