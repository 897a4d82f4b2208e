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

// Snapshot is a fleet at one moment. Its JSON is what pulley top -o json prints.
type Snapshot struct {
	At     time.Time `json:"at"`
	Server string    `json:"server,omitempty"` // empty: no connection
	Since  time.Time `json:"since"`            // of the connection, or of its loss

	// What was heard and read.
	Gateways []string               `json:"gateways"` // ids
	Workers  []WorkerStatus         `json:"workers"`
	Queues   []Lane                 `json:"queues"`
	Requests []subjects.RequestInfo `json:"requests"` // the oldest first
	Policy   *policystore.Version   `json:"-"`        // nil: not read yet
	Unread   map[string]string      `json:"unread,omitempty"`
	Events   []subjects.Event       `json:"events"` // the oldest first
	Held     map[PoolTier]int       `json:"-"`      // requests that wait in gateways for their turn to be queued

	// What follows from that: see complete.
	Totals   Totals         `json:"totals"`
	Pools    []PoolStatus   `json:"pools"`
	Tiers    []TierStatus   `json:"tiers"`
	Revision PolicyRevision `json:"policy"`
	Findings []Finding      `json:"wrong"` // problems and warnings, the worst first
}

// Settled says whether there was time enough to hear everybody.
func (s *Snapshot) Settled() bool { return s.Server != "" && s.At.Sub(s.Since) >= settledAfter }

// Complete works out what follows from what was heard and read.
func (s *Snapshot) Complete() {
	slices.Sort(s.Gateways)
	slices.SortFunc(s.Workers, func(a, b WorkerStatus) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Worker, b.Worker))
	})
	slices.SortFunc(s.Queues, func(a, b Lane) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), strings.Compare(a.Tier, b.Tier), strings.Compare(a.Lane, b.Lane))
	})
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
	for i := range s.Workers {
		w := &s.Workers[i]
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
	s.Gateways, s.Workers, s.Queues, s.Requests, s.Events = orEmpty(s.Gateways), orEmpty(s.Workers), orEmpty(s.Queues), orEmpty(s.Requests), orEmpty(s.Events)
	s.Pools, s.Tiers, s.Findings = orEmpty(s.Pools), orEmpty(s.Tiers), orEmpty(s.Findings)
}

// loads are the requests of each pool in each tier. What waits is what gateways
// hold back and what queues have; or what gateways list, if that is more: it
// was read at another moment.
func (s *Snapshot) loads() map[PoolTier]Load {
	loads, listed := make(map[PoolTier]Load), make(map[PoolTier]Load)
	for i := range s.Queues {
		q := &s.Queues[i]
		sum := loads[PoolTier{q.Pool, q.Tier}]
		sum.add(Load{Waiting: q.Waiting, Running: q.Delivered, TakenPerSecond: q.TakenPerSecond})
		loads[PoolTier{q.Pool, q.Tier}] = sum
	}
	for k, n := range s.Held {
		sum := loads[k]
		sum.Waiting += n
		loads[k] = sum
	}
	for i := range s.Requests {
		r := &s.Requests[i]
		one := Load{Running: 1}
		if r.State == "queued" {
			one = Load{Waiting: 1, OldestMS: r.AgeMS}
		}
		sum := listed[PoolTier{r.Pool, r.Tier}]
		sum.add(one)
		listed[PoolTier{r.Pool, r.Tier}] = sum
	}
	for k, l := range listed {
		sum := loads[k]
		sum.Waiting, sum.OldestMS = max(sum.Waiting, l.Waiting), l.OldestMS
		loads[k] = sum
	}
	if len(s.Gateways) > 0 { // what is delivered may also be on its way back to the queue
		for k, sum := range loads {
			sum.Running = listed[k].Running
			loads[k] = sum
		}
	}
	return loads
}

func (s *Snapshot) completePools(loads map[PoolTier]Load) {
	pools := make(map[string]*PoolStatus)
	pool := func(name string) *PoolStatus {
		if pools[name] == nil {
			pools[name] = &PoolStatus{Pool: name, Tiers: make(map[string]Load)}
		}
		return pools[name]
	}
	for i := range s.Workers {
		for j := range s.Workers[i].Pools {
			pool(s.Workers[i].Pools[j].Pool)
		}
	}
	for k, l := range loads {
		p := pool(k.Pool)
		p.Tiers[k.Tier] = l
		p.add(l)
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
		for i := range s.Workers {
			w := &s.Workers[i]
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

// completeTiers lists the policy's tiers in its order, then those that exist
// without it.
func (s *Snapshot) completeTiers(loads map[PoolTier]Load) {
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
				t.Pools[k.Pool] = l
				t.add(l)
			}
		}
	}
}

// WorkerName is the name of the worker with an id, for people.
func (s *Snapshot) WorkerName(id string) string {
	for i := range s.Workers {
		if s.Workers[i].Worker == id {
			return s.Workers[i].Name
		}
	}
	return id
}

type Totals struct {
	Live            int     `json:"workers"`   // that take requests
	Slots           int     `json:"slots"`     // of these
	InFlight        int     `json:"in_flight"` // of all
	Waiting         int     `json:"waiting"`
	DonePerSecond   float64 `json:"done_per_second"`
	TokensPerSecond float64 `json:"tokens_per_second"`
}

// WorkerStatus is a worker's last word, and what its words add up to.
type WorkerStatus struct {
	subjects.Heartbeat
	Lost            time.Duration `json:"lost_ns,omitempty"` // silent for so long; 0: it lives
	DonePerSecond   float64       `json:"done_per_second"`
	FailedPerSecond float64       `json:"failed_per_second"`
	TokensPerSecond float64       `json:"tokens_per_second"` // by its own measured pace; 0: not known
}

func (w *WorkerStatus) Live() bool { return w.Lost == 0 && w.Heartbeat.Live() }

// StateText is the worker's, in a word.
func (w *WorkerStatus) StateText() string {
	if w.Lost > 0 {
		return "lost"
	}
	return string(w.State)
}

// Rung is that of the worker's cheapest next bid.
func (w *WorkerStatus) Rung() (int, bool) {
	if len(w.Pools) == 0 {
		return 0, false
	}
	best := w.Pools[0].Rung
	for i := range w.Pools {
		best = min(best, w.Pools[i].Rung)
	}
	return best, true
}

// decoding is how many tokens per second a worker makes now, by the pace that
// it has measured; 0 if it has not.
func decoding(h *subjects.Heartbeat) float64 {
	n := float64(h.InFlight - h.Prefills)
	for i := range h.Pools {
		if c := h.Pools[i].Curve; n > 0 && c != nil && c.ITL != nil && c.ITL.At(n) > 0 {
			return n / c.ITL.At(n)
		}
	}
	return 0
}

// Load is the requests of something.
type Load struct {
	Waiting        int     `json:"waiting"`
	Running        int     `json:"running"`
	OldestMS       int64   `json:"oldest_ms"` // that waits
	TakenPerSecond float64 `json:"taken_per_second"`
}

func (l Load) String() string {
	text := fmt.Sprintf("%d waiting, %d running", l.Waiting, l.Running)
	if l.OldestMS > 0 {
		text += fmt.Sprintf(", the oldest for %s", term.Age(Millis(l.OldestMS)))
	}
	return text
}

func (l *Load) add(m Load) {
	l.Waiting += m.Waiting
	l.Running += m.Running
	l.OldestMS = max(l.OldestMS, m.OldestMS)
	l.TakenPerSecond += m.TakenPerSecond
}

type PoolStatus struct {
	Pool    string `json:"pool"`
	Paused  bool   `json:"paused,omitempty"`
	Live    int    `json:"live"`    // workers that take its requests
	Workers int    `json:"workers"` // that serve it, live or not
	Slots   int    `json:"slots"`   // of the live ones
	Busy    int    `json:"busy"`    // of these
	Load
	Tiers map[string]Load `json:"tiers"`
}

type TierStatus struct {
	policy.Tier
	Unknown bool `json:"unknown,omitempty"` // it has requests or a queue, and is not in the policy
	Load
	Pools map[string]Load `json:"pools"`
}

type PolicyRevision struct {
	Revision uint64    `json:"revision"`
	At       time.Time `json:"at,omitzero"`
	By       string    `json:"by,omitempty"`
	Why      string    `json:"why,omitempty"`
}

// Text is the revision, and how old it is.
func (v PolicyRevision) Text(now time.Time) string {
	if v.Revision == 0 {
		return "is the default"
	}
	return fmt.Sprintf("revision %d, %s old: %s", v.Revision, term.Age(max(0, now.Sub(v.At))), v.Why)
}

type PoolTier struct{ Pool, Tier string }

// orEmpty is a list that is [] in JSON if it is empty.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
