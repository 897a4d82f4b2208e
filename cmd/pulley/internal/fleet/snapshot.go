package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// Snapshot is the state of a fleet at one moment. Its JSON is what pulley top -o json prints.
type Snapshot struct {
	At     time.Time `json:"at"`
	Server string    `json:"server,omitempty"` // "" without a connection
	Since  time.Time `json:"since"`            // when the connection was made, or lost

	// Received and read by a Watcher.
	Gateways []string               `json:"gateways"`          // ids
	Trouble  map[string]string      `json:"trouble,omitempty"` // why gateways cannot queue requests, by id
	Workers  []WorkerStatus         `json:"workers"`
	Lanes    []Lane                 `json:"queues"`
	Requests []subjects.RequestInfo `json:"requests"`         // the oldest first
	Results  []subjects.PoolResults `json:"-"`                // of each gateway; it is not changed
	Policy   *policystore.Version   `json:"-"`                // nil until it was read
	Unread   map[string]string      `json:"unread,omitempty"` // what could not be read, and why
	Events   []subjects.Event       `json:"events"`           // the oldest first
	Held     map[PoolTier]int       `json:"-"`                // requests that gateways hold back from the broker's queue
	// SilentBrokers are the members of the brokers' cluster that the others do not hear, and for how long.
	SilentBrokers map[string]time.Duration `json:"-"`
	// Unclaimed is how many deliveries of the last minute no worker has claimed in time, by pool.
	Unclaimed map[string]int `json:"-"`

	heard bool // every part was asked, and has answered

	// Computed by Complete.
	Totals   Totals         `json:"totals"`
	Pools    []PoolStatus   `json:"pools"`
	Tiers    []TierStatus   `json:"tiers"`
	Revision PolicyRevision `json:"policy"`
	Findings []Finding      `json:"wrong"` // problems and warnings, the worst first
}

// Settled says whether every part has had time to report.
func (s *Snapshot) Settled() bool {
	return s.Server != "" && (s.heard || s.At.Sub(s.Since) >= settledAfter)
}

// Complete sorts what was read, and computes the rest of the snapshot from it.
func (s *Snapshot) Complete() {
	slices.Sort(s.Gateways)
	slices.SortFunc(s.Workers, func(a, b WorkerStatus) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Worker, b.Worker))
	})
	slices.SortFunc(s.Lanes, compareLanes)
	slices.SortFunc(s.Requests, func(a, b subjects.RequestInfo) int {
		return cmp.Or(cmp.Compare(b.AgeMS, a.AgeMS), strings.Compare(a.ID, b.ID))
	})
	if s.Policy != nil {
		s.Revision = PolicyRevision{s.Policy.Revision, s.Policy.At, s.Policy.By, s.Policy.Why}
	}
	loads := s.loads()
	s.completePools(loads)
	s.completeTiers(loads)
	s.Totals = Totals{}
	for _, w := range s.Workers {
		if w.Live() {
			s.Totals.Live++
			s.Totals.Slots += w.Slots
		}
		if w.Lost == 0 {
			s.Totals.InFlight += w.InFlight
		}
		s.Totals.DonePerSecond += w.DonePerSecond
		s.Totals.TokensPerSecond += w.TokensPerSecond
	}
	for _, p := range s.Pools {
		s.Totals.Waiting += p.Waiting
	}
	s.Findings = s.findAll()
	s.Gateways, s.Workers, s.Lanes, s.Requests, s.Events = orEmpty(s.Gateways), orEmpty(s.Workers), orEmpty(s.Lanes), orEmpty(s.Requests), orEmpty(s.Events)
	s.Pools, s.Tiers, s.Findings = orEmpty(s.Pools), orEmpty(s.Tiers), orEmpty(s.Findings)
}

// loads adds up the requests of each pool in each tier. The waiting requests are those in the broker's queues and those
// that gateways hold back, or those that gateways list if these are more: they were read at another moment.
func (s *Snapshot) loads() map[PoolTier]*Load {
	loads, listed := make(map[PoolTier]*Load), make(map[PoolTier]*Load)
	of := func(loads map[PoolTier]*Load, pool, tier string) *Load {
		k := PoolTier{pool, tier}
		if loads[k] == nil {
			loads[k] = &Load{}
		}
		return loads[k]
	}
	for _, l := range s.Lanes {
		of(loads, l.Pool, l.Tier).add(Load{Waiting: l.Waiting, InFlight: l.Delivered, TakenPerSecond: l.TakenPerSecond})
	}
	for k, n := range s.Held {
		of(loads, k.Pool, k.Tier).Waiting += n
	}
	for _, r := range s.Requests {
		one := Load{InFlight: 1}
		if r.State == "queued" {
			one = Load{Waiting: 1, OldestMS: r.AgeMS}
		}
		of(listed, r.Pool, r.Tier).add(one)
	}
	for k, l := range listed {
		sum := of(loads, k.Pool, k.Tier)
		sum.Waiting, sum.OldestMS = max(sum.Waiting, l.Waiting), l.OldestMS
	}
	if len(s.Gateways) > 0 { // a delivered message may be on its way back to the queue
		for k, sum := range loads {
			sum.InFlight = of(listed, k.Pool, k.Tier).InFlight
		}
	}
	return loads
}

// completePools lists the pools that workers serve, that have requests, or that the policy names.
func (s *Snapshot) completePools(loads map[PoolTier]*Load) {
	pools := make(map[string]*PoolStatus)
	pool := func(name string) *PoolStatus {
		if pools[name] == nil {
			pools[name] = &PoolStatus{Pool: name, Tiers: make(map[string]Load)}
		}
		return pools[name]
	}
	for _, w := range s.Workers {
		for _, p := range w.Pools {
			pool(p.Pool)
		}
	}
	for k, l := range loads {
		p := pool(k.Pool)
		p.Tiers[k.Tier] = *l
		p.add(*l)
	}
	times := make(map[string]*policy.Side)
	for i := range s.Results {
		r := &s.Results[i]
		p := pool(r.Pool)
		p.Answered, p.Failed, p.Refused, p.Cancelled = p.Answered+r.Answered, p.Failed+r.Failed, p.Refused+r.Refused, p.Cancelled+r.Cancelled
		if times[r.Pool] == nil {
			times[r.Pool] = new(policy.Side)
		}
		times[r.Pool].Merge(r.Times)
	}
	for name, side := range times {
		pool(name).TTFT, pool(name).E2E = PercentilesOf(*side)
	}
	var spill map[string]policy.Pool
	if s.Policy != nil {
		spill = s.Policy.Policy.Pools
		for name, set := range spill {
			pool(name).Paused = set.Paused
		}
	}
	s.Pools = nil
	for _, name := range slices.Sorted(maps.Keys(pools)) {
		p := pools[name]
		for _, w := range s.Workers {
			if !w.Serves(name) && !slices.ContainsFunc(spill[name].Spill, func(other policy.Spill) bool { return w.Serves(other.Pool) }) {
				continue
			}
			p.Workers++
			if w.Live() {
				p.Live++
				p.Slots += w.Slots
				p.Busy += w.InFlight
			}
		}
		s.Pools = append(s.Pools, *p)
	}
}

// completeTiers lists the tiers of the policy in its order, then tiers that have a queue or requests without being in
// the policy.
func (s *Snapshot) completeTiers(loads map[PoolTier]*Load) {
	s.Tiers = nil
	if s.Policy != nil {
		for _, t := range s.Policy.Policy.Tiers {
			s.Tiers = append(s.Tiers, TierStatus{Tier: t})
		}
	}
	unknown := make(map[string]bool)
	for k := range loads {
		if !slices.ContainsFunc(s.Tiers, func(t TierStatus) bool { return t.Name == k.Tier }) {
			unknown[k.Tier] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(unknown)) {
		s.Tiers = append(s.Tiers, TierStatus{Tier: policy.Tier{Name: name}, Unknown: s.Policy != nil})
	}
	for i := range s.Tiers {
		t := &s.Tiers[i]
		t.Pools = make(map[string]Load)
		for k, l := range loads {
			if k.Tier == t.Name {
				t.Pools[k.Pool] = *l
				t.add(*l)
			}
		}
	}
}

// WorkerName returns the name of the worker with an id, or the id if it is unknown.
func (s *Snapshot) WorkerName(id string) string {
	for _, w := range s.Workers {
		if w.Worker == id {
			return w.Name
		}
	}
	return id
}

// Totals are sums over the whole fleet.
type Totals struct {
	Live            int     `json:"workers"`   // workers that accept requests
	Slots           int     `json:"slots"`     // of the live workers
	InFlight        int     `json:"in_flight"` // on all workers
	Waiting         int     `json:"waiting"`
	DonePerSecond   float64 `json:"done_per_second"`
	TokensPerSecond float64 `json:"tokens_per_second"`
}

// WorkerStatus is a worker's last heartbeat, and rates computed from its heartbeats.
type WorkerStatus struct {
	subjects.Heartbeat
	Lost            time.Duration `json:"lost_ns,omitempty"` // how long it has been silent; 0 if it is not lost
	DonePerSecond   float64       `json:"done_per_second"`
	FailedPerSecond float64       `json:"failed_per_second"`
	TokensPerSecond float64       `json:"tokens_per_second"` // by the inter-token time that it has measured; 0: unknown
}

// Live says whether the worker accepts requests.
func (w *WorkerStatus) Live() bool { return w.Lost == 0 && w.Heartbeat.Live() }

// StateText returns the worker's state, which may also be "lost".
func (w *WorkerStatus) StateText() string {
	if w.Lost > 0 {
		return "lost"
	}
	return string(w.State)
}

// tokensPerSecond estimates how many tokens a worker produces now, from the inter-token time that it has measured; 0 if
// it has measured none.
func tokensPerSecond(h *subjects.Heartbeat) float64 {
	n := float64(h.InFlight - h.Prefills)
	for i := range h.Pools {
		if c := h.Pools[i].Curve; n > 0 && c != nil && c.ITL != nil && c.ITL.At(n) > 0 {
			return n / c.ITL.At(n)
		}
	}
	return 0
}

// Load is the requests of a pool, of a tier, or of a pool in a tier.
type Load struct {
	Waiting        int     `json:"waiting"`
	InFlight       int     `json:"in_flight"`
	OldestMS       int64   `json:"oldest_ms"` // how long the oldest has waited
	TakenPerSecond float64 `json:"taken_per_second"`
}

func (l Load) String() string {
	text := fmt.Sprintf("%d waiting, %d in flight", l.Waiting, l.InFlight)
	if l.OldestMS > 0 {
		text += fmt.Sprintf(", oldest %s", term.Age(Millis(l.OldestMS)))
	}
	return text
}

func (l *Load) add(m Load) {
	l.Waiting += m.Waiting
	l.InFlight += m.InFlight
	l.OldestMS = max(l.OldestMS, m.OldestMS)
	l.TakenPerSecond += m.TakenPerSecond
}

// PoolStatus is the state of a pool. Its workers are those that serve it, and those of the pools that it spills to.
type PoolStatus struct {
	Pool    string `json:"pool"`
	Paused  bool   `json:"paused,omitempty"`
	Live    int    `json:"live"` // workers that accept requests
	Workers int    `json:"workers"`
	Slots   int    `json:"slots"` // of the live workers
	Busy    int    `json:"busy"`  // of these slots, by requests of any pool
	Load
	Tiers map[string]Load `json:"tiers"`

	// What became of the requests that ended within the last five minutes.
	Answered  int          `json:"answered"`
	Failed    int          `json:"failed"`
	Refused   int          `json:"refused"`
	Cancelled int          `json:"cancelled"`
	TTFT      *Percentiles `json:"ttft_ms,omitempty"` // nil without an answer
	E2E       *Percentiles `json:"e2e_ms,omitempty"`
}

// Percentiles are times in milliseconds.
type Percentiles struct {
	P50 int64 `json:"p50"`
	P95 int64 `json:"p95"`
	P99 int64 `json:"p99"`
}

// PercentilesOf returns the times to the first and to the last byte of a side; nil if it has no answer.
func PercentilesOf(side policy.Side) (ttft, e2e *Percentiles) {
	of := func(m policy.Metric) *Percentiles {
		p := new(Percentiles)
		for q, to := range map[float64]*int64{0.5: &p.P50, 0.95: &p.P95, 0.99: &p.P99} {
			d, ok := side.Quantile(m, q)
			if !ok {
				return nil
			}
			*to = d.Milliseconds()
		}
		return p
	}
	return of(policy.TTFT), of(policy.E2E)
}

// TierStatus is the state of a tier.
type TierStatus struct {
	policy.Tier
	Unknown bool `json:"unknown,omitempty"` // it is not in the policy, but has a queue or requests
	Load
	Pools map[string]Load `json:"pools"`
}

// PolicyRevision says which revision of the policy is current, and who made it.
type PolicyRevision struct {
	Revision uint64    `json:"revision"`
	At       time.Time `json:"at,omitzero"`
	By       string    `json:"by,omitempty"`
	Why      string    `json:"why,omitempty"`
}

// Text describes the revision and its age.
func (v PolicyRevision) Text(now time.Time) string {
	if v.Revision == 0 {
		return "default"
	}
	return fmt.Sprintf("revision %d, %s old: %s", v.Revision, term.Age(max(0, now.Sub(v.At))), v.Why)
}

// PoolTier names a pool in a tier.
type PoolTier struct{ Pool, Tier string }

// orEmpty returns list, or an empty list for nil, which is [] in JSON and not null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
