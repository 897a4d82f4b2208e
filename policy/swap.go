package policy

import (
	"math"
	"time"
)

const (
	// SwapAfter is the default of how long a request waits at most for a model that is not loaded
	// while the loaded ones have work: about as long as most loads take.
	SwapAfter = 10 * time.Second

	// FirstLoad is the assumed load time until one was measured.
	FirstLoad = 10 * time.Second

	// swapGiveUp is how long a model that is about to be loaded waits for the request that it is loaded for. That
	// request may wait where this worker must not take it, or may have been cancelled.
	swapGiveUp = 2 * time.Second
)

// Swap decides how a worker shares an engine that serves more models than it holds at once, and that loads a requested
// model in place of another: Ollama, llama-swap. A load takes seconds, and the engine starts it as soon as it is asked,
// so requests for several models taken in their order of arrival would cause a load for nearly each of them.
//
//   - Requests for a loaded model are taken at once. Those for another model are taken only when a
//     loaded model is idle and has been for a moment: a tenth of a load, at most a second; or a
//     quarter of a load, at most two seconds, if the model was loaded recently. Then the model
//     whose request has waited longest comes first; if none waits, any model may come.
//   - A request that has waited for After brings its model in although the engine has work; of several such models, the
//     one most overdue. The least recently used of the loaded models gets no new requests, and when its last one has
//     ended, the waiting requests for the other model are taken.
//   - A model that was loaded stays for After, and for at least twice the load time, before another may push it out. So
//     loads take at most a third of the time when all models always have work, and each model is served in turn.
//   - A tier below an active one waits longer by the ratio of their shares: it would have waited
//     for its share of the slots, too.
//   - A model that another worker has loaded is left to that worker until a request has waited for
//     a load time: only then would loading it here have been quicker. Swap.WarmUp loads it sooner
//     where nothing is in use.
//   - Where several workers would have to load a model, they consider it one after the other, so
//     that not all of them load it at once.
//   - Models that were seen loaded together do not push each other out, and may be loaded beside
//     each other at any time.
type Swap struct {
	After time.Duration
	Load  time.Duration // load time on this worker
	Tiers []SwapTier    // in order of priority
}

// SwapTier is what a Swap needs to know of a tier.
type SwapTier struct {
	Share  int
	Active bool // has requests on this worker
}

// SwapModel is one of the models that a worker serves.
type SwapModel struct {
	Name      string
	Loaded    bool            // answers without a load
	Fits      bool            // was seen loaded together with all models that are loaded now
	Elsewhere bool            // another worker has it loaded or is about to load it
	Shared    bool            // other workers serve it too, and the gateways say which of them comes first to load it
	Delay     time.Duration   // extra wait, during which other workers that would have to load it go first
	InFlight  int             // its requests at the engine, including those that wait for its load
	Used      time.Time       // when its last request ended
	Waits     []time.Duration // by tier, how long the oldest request has waited; 0: none waits
	Shortage  Shortage        // of slots where it is loaded; see Swap.WarmUp
}

// Swapping is the state of a worker's current swap. The zero value is the initial state.
type Swapping struct {
	To    string    // the model to be loaded; "": none
	From  string    // the model that is pushed out for it; "": none
	Clear time.Time // since when From has nothing in flight and To may start; zero: not yet
	Last  time.Time // when the last swap ended
}

// Next advances the swap and says, for each model, whether its requests may be taken.
func (s Swap) Next(st Swapping, models []SwapModel, now time.Time) (Swapping, []bool) {
	st = s.advance(st, models, now)
	idle, first := s.idle(st, models, now)
	if st.To == "" && !idle && now.Sub(st.Last) >= s.minStay() {
		if to := s.overdue(models); to != nil {
			st.To, st.From, st.Clear = to.Name, nameOf(evicted(models)), time.Time{}
			st = s.advance(st, models, now)
		}
	}
	open := make([]bool, len(models))
	for i := range models {
		m := &models[i]
		switch {
		case st.To == "":
			open[i] = m.Loaded || m.Fits || idle && s.mayLoad(m) && (first == nil || first == m)
		case m.Name == st.To:
			open[i] = !st.Clear.IsZero()
		default:
			open[i] = m.Loaded && m.Name != st.From
		}
	}
	return st, open
}

// advance updates a swap that is under way, or that a request for a model which was not loaded has started.
func (s Swap) advance(st Swapping, models []SwapModel, now time.Time) Swapping {
	to := find(models, st.To)
	switch {
	case to == nil:
		st.To, st.From = "", ""
	case to.Loaded:
		st = Swapping{Last: now}
	}
	for i := range models {
		if m := &models[i]; st.To == "" && !m.Loaded && m.InFlight > 0 {
			st.To = m.Name
			if !m.Fits {
				st.From = nameOf(evicted(models))
			}
		}
	}
	if st.To == "" {
		return st
	}
	to, from := find(models, st.To), find(models, st.From)
	switch {
	case to.InFlight > 0:
		st.Clear = now
	case to.longestWait() == 0: // its requests are gone
		return Swapping{Last: st.Last}
	case from != nil && from.Loaded && from.InFlight > 0:
		st.Clear = time.Time{}
	case st.Clear.IsZero():
		st.Clear = now
	case now.Sub(st.Clear) > swapGiveUp:
		return Swapping{Last: now}
	}
	return st
}

// minStay is how long a newly loaded model is safe from the next swap.
func (s Swap) minStay() time.Duration { return max(s.After, 2*s.Load) }

// mayLoad reports whether this worker may take a request for a model that another worker may have loaded.
func (s Swap) mayLoad(m *SwapModel) bool { return !m.Elsewhere || m.longestWait() >= s.Load }

// idle reports whether another model may come in because a loaded one is idle, and which one comes first; nil: any.
func (s Swap) idle(st Swapping, models []SwapModel, now time.Time) (idle bool, first *SwapModel) {
	moment := min(s.Load/10, time.Second)
	if now.Sub(st.Last) < s.minStay() {
		moment = min(s.Load/4, 2*time.Second)
	}
	if m := evicted(models); m != nil {
		if m.InFlight > 0 || now.Sub(m.Used) < moment {
			return false, nil
		}
		if now.Sub(m.Used) > moment+swapGiveUp { // the first model's request would have arrived by now
			return true, nil
		}
	}
	most := 0.0
	for i := range models {
		m := &models[i]
		if due := s.overdueRatio(m); !m.Loaded && due > most && s.mayLoad(m) {
			first, most = m, due
		}
	}
	return true, first
}

// overdue returns the model that is most overdue, or nil.
func (s Swap) overdue(models []SwapModel) *SwapModel {
	var to *SwapModel
	most := 1.0
	for i := range models {
		m := &models[i]
		if m.Loaded || m.Fits {
			continue
		}
		if due := s.overdueRatio(m); due >= most {
			to, most = m, due
		}
	}
	return to
}

// overdueRatio is the longest wait of a model's requests over the wait that they must accept: from 1 on a swap is due.
func (s Swap) overdueRatio(m *SwapModel) float64 {
	most, above := 0.0, 0
	for i, t := range s.Tiers {
		if i < len(m.Waits) && m.Waits[i] > 0 {
			patience := s.After + m.Delay
			if m.Elsewhere {
				patience += s.Load
			}
			most = max(most, float64(m.Waits[i])/float64(patience)/max(float64(above)/float64(max(t.Share, 1)), 1))
		}
		if t.Active {
			above = max(above, t.Share)
		}
	}
	return most
}

func (m *SwapModel) longestWait() time.Duration {
	var most time.Duration
	for _, w := range m.Waits {
		most = max(most, w)
	}
	return most
}

// evicted is the loaded model that is pushed out next, the least recently used; nil: none is loaded.
func evicted(models []SwapModel) *SwapModel {
	var least *SwapModel
	for i := range models {
		m := &models[i]
		if m.Loaded && (least == nil || least.InFlight > 0 && m.InFlight == 0 ||
			(least.InFlight > 0) == (m.InFlight > 0) && m.Used.Before(least.Used)) {
			least = m
		}
	}
	return least
}

func find(models []SwapModel, name string) *SwapModel {
	for i := range models {
		if name != "" && models[i].Name == name {
			return &models[i]
		}
	}
	return nil
}

func nameOf(m *SwapModel) string {
	if m == nil {
		return ""
	}
	return m.Name
}

// ColdRung is the rung of a request whose model has to be loaded first and which would be on the given rung if it were
// loaded: that of its price plus the load time, and one more if another model is pushed out for it. While no worker of
// the pool has measured anything, a load is more expensive than anything else.
func ColdRung(rung int, reference float64, load time.Duration, evicts bool) int {
	cold := Rungs - 1
	if reference > 0 {
		cold = max(rung, Rung(reference*math.Pow(rungRatio, float64(rung))+load.Seconds(), reference))
	}
	if evicts {
		return AddPenalty(cold, 1)
	}
	return min(cold, Rungs-2)
}
