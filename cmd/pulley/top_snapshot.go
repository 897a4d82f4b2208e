package main

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// snapshot is a fleet at one moment. Its JSON is what pulley top -o json prints.
type snapshot struct {
	At     time.Time `json:"at"`
	Server string    `json:"server,omitempty"` // empty: no connection
	Since  time.Time `json:"since"`            // of the connection, or of its loss

	// What was heard and read.
	Gateways []string               `json:"gateways"` // ids
	Workers  []workerSeen           `json:"workers"`
	Queues   []queueSeen            `json:"queues"`
	Requests []subjects.RequestInfo `json:"requests"` // the oldest first
	Policy   *policystore.Version   `json:"-"`        // nil: not read yet
	Unread   map[string]string      `json:"unread,omitempty"`
	Events   []subjects.Event       `json:"events"` // the oldest first
	held     map[poolTier]int       // requests that wait in gateways for their turn to be queued

	// What follows from that: see complete.
	Totals   totals      `json:"totals"`
	Pools    []poolSeen  `json:"pools"`
	Tiers    []tierSeen  `json:"tiers"`
	Revision policyAt    `json:"policy"`
	Wrong    []diagnosis `json:"wrong"` // problems and warnings, the worst first
}

type totals struct {
	Live            int     `json:"workers"`   // that take requests
	Slots           int     `json:"slots"`     // of these
	InFlight        int     `json:"in_flight"` // of all
	Waiting         int     `json:"waiting"`
	DonePerSecond   float64 `json:"done_per_second"`
	TokensPerSecond float64 `json:"tokens_per_second"`
}

// workerSeen is a worker's last word, and what its words add up to.
type workerSeen struct {
	subjects.Heartbeat
	Lost            time.Duration `json:"lost_ns,omitempty"` // silent for so long; 0: it lives
	DonePerSecond   float64       `json:"done_per_second"`
	FailedPerSecond float64       `json:"failed_per_second"`
	TokensPerSecond float64       `json:"tokens_per_second"` // by its own measured pace; 0: not known
}

func (w *workerSeen) live() bool { return w.Lost == 0 && w.Live() }

// state is the worker's, in a word.
func (w *workerSeen) state() string {
	if w.Lost > 0 {
		return "lost"
	}
	return string(w.State)
}

// rung is that of the worker's cheapest next bid.
func (w *workerSeen) rung() (int, bool) {
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

// queueSeen is one lane of a pool in a tier, as the broker has it.
type queueSeen struct {
	Pool           string  `json:"pool"`
	Tier           string  `json:"tier"`
	Lane           string  `json:"lane"`
	Waiting        int     `json:"waiting"`
	Delivered      int     `json:"delivered"` // and not settled yet
	Bids           int     `json:"bids"`      // parked
	TakenPerSecond float64 `json:"taken_per_second"`

	deliveries uint64 // since the consumer exists
}

// load is the requests of something.
type load struct {
	Waiting        int     `json:"waiting"`
	Running        int     `json:"running"`
	OldestMS       int64   `json:"oldest_ms"` // that waits
	TakenPerSecond float64 `json:"taken_per_second"`
}

func (l *load) add(m load) {
	l.Waiting += m.Waiting
	l.Running += m.Running
	l.OldestMS = max(l.OldestMS, m.OldestMS)
	l.TakenPerSecond += m.TakenPerSecond
}

type poolSeen struct {
	Pool    string `json:"pool"`
	Paused  bool   `json:"paused,omitempty"`
	Live    int    `json:"live"`    // workers that take its requests
	Workers int    `json:"workers"` // that serve it, live or not
	Slots   int    `json:"slots"`   // of the live ones
	Busy    int    `json:"busy"`    // of these
	load
	Tiers map[string]load `json:"tiers"`
}

type tierSeen struct {
	policy.Tier
	Unknown bool `json:"unknown,omitempty"` // it has requests or a queue, and is not in the policy
	load
	Pools map[string]load `json:"pools"`
}

type policyAt struct {
	Revision uint64    `json:"revision"`
	At       time.Time `json:"at,omitzero"`
	By       string    `json:"by,omitempty"`
	Why      string    `json:"why,omitempty"`
}

// settled says whether there was time enough to hear everybody.
func (s *snapshot) settled() bool { return s.Server != "" && s.At.Sub(s.Since) >= settledAfter }

// complete works out what follows from what was heard and read.
func (s *snapshot) complete() {
	slices.Sort(s.Gateways)
	slices.SortFunc(s.Workers, func(a, b workerSeen) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Worker, b.Worker))
	})
	slices.SortFunc(s.Queues, func(a, b queueSeen) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), strings.Compare(a.Tier, b.Tier), strings.Compare(a.Lane, b.Lane))
	})
	slices.SortFunc(s.Requests, func(a, b subjects.RequestInfo) int {
		return cmp.Or(cmp.Compare(b.AgeMS, a.AgeMS), strings.Compare(a.ID, b.ID))
	})
	if s.Policy != nil {
		s.Revision = policyAt{s.Policy.Revision, s.Policy.At, s.Policy.By, s.Policy.Why}
	}
	loads := s.loads()
	s.completePools(loads)
	s.completeTiers(loads)
	s.Totals = totals{}
	for i := range s.Workers {
		w := &s.Workers[i]
		if w.live() {
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
	s.Wrong = s.diagnose()
	s.Gateways, s.Workers, s.Queues, s.Requests, s.Events = some(s.Gateways), some(s.Workers), some(s.Queues), some(s.Requests), some(s.Events)
	s.Pools, s.Tiers, s.Wrong = some(s.Pools), some(s.Tiers), some(s.Wrong)
}

// some is a list that is [] in JSON if it is empty.
func some[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

type poolTier struct{ pool, tier string }

// loads are the requests of each pool in each tier. What waits is what gateways
// hold back and what queues have; or what gateways list, if that is more: it
// was read at another moment.
func (s *snapshot) loads() map[poolTier]load {
	loads, listed := make(map[poolTier]load), make(map[poolTier]load)
	for i := range s.Queues {
		q := &s.Queues[i]
		sum := loads[poolTier{q.Pool, q.Tier}]
		sum.add(load{Waiting: q.Waiting, Running: q.Delivered, TakenPerSecond: q.TakenPerSecond})
		loads[poolTier{q.Pool, q.Tier}] = sum
	}
	for k, n := range s.held {
		sum := loads[k]
		sum.Waiting += n
		loads[k] = sum
	}
	for i := range s.Requests {
		r := &s.Requests[i]
		one := load{Running: 1}
		if r.State == "queued" {
			one = load{Waiting: 1, OldestMS: r.AgeMS}
		}
		sum := listed[poolTier{r.Pool, r.Tier}]
		sum.add(one)
		listed[poolTier{r.Pool, r.Tier}] = sum
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

func (s *snapshot) completePools(loads map[poolTier]load) {
	pools := make(map[string]*poolSeen)
	pool := func(name string) *poolSeen {
		if pools[name] == nil {
			pools[name] = &poolSeen{Pool: name, Tiers: make(map[string]load)}
		}
		return pools[name]
	}
	for i := range s.Workers {
		for j := range s.Workers[i].Pools {
			pool(s.Workers[i].Pools[j].Pool)
		}
	}
	for k, l := range loads {
		p := pool(k.pool)
		p.Tiers[k.tier] = l
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
			if w.live() {
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
func (s *snapshot) completeTiers(loads map[poolTier]load) {
	s.Tiers = nil
	if s.Policy != nil {
		for _, t := range s.Policy.Policy.Tiers {
			s.Tiers = append(s.Tiers, tierSeen{Tier: t})
		}
	}
	unknown := make(map[string]bool)
	for k := range loads {
		if !slices.ContainsFunc(s.Tiers, func(t tierSeen) bool { return t.Name == k.tier }) {
			unknown[k.tier] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(unknown)) {
		s.Tiers = append(s.Tiers, tierSeen{Tier: policy.Tier{Name: name}, Unknown: s.Policy != nil})
	}
	for i := range s.Tiers {
		t := &s.Tiers[i]
		t.Pools = make(map[string]load)
		for k, l := range loads {
			if k.tier == t.Name {
				t.Pools[k.pool] = l
				t.add(l)
			}
		}
	}
}

// workerName is the name of the worker with an id, for people.
func (s *snapshot) workerName(id string) string {
	for i := range s.Workers {
		if s.Workers[i].Worker == id {
			return s.Workers[i].Name
		}
	}
	return id
}
