package policy

import (
	"math"
	"time"
)

const (
	// SwapAfter is how long a request waits at most, by default, for a model
	// that is not loaded, while those that are have work: about as long as most
	// loads take.
	SwapAfter = 10 * time.Second

	// FirstLoad is what a load is thought to take before one was measured.
	FirstLoad = 10 * time.Second

	// swapGiveUp is how long a model that is to come in waits for a request that
	// was said to wait for it. It may wait where this worker may not take it, or
	// have been given up.
	swapGiveUp = 2 * time.Second
)

// Swap is how a worker shares out an engine that answers for more models than it
// holds at once, and loads what is asked for in the place of another: Ollama,
// llama-swap. A load takes seconds, and whatever the engine is asked it does at
// once, so requests for several models in the order of their coming would have it
// load for nearly each of them.
//
//   - Requests for a loaded model are taken at once, those for another one only
//     when a loaded model has nothing to do and had nothing for a moment: a tenth
//     of a load, at most a second; a quarter of it, at most two, where the model
//     has come in just now. Then the one that has waited the longest comes first,
//     and where none waits, whoever comes.
//   - One that has waited for After brings the other model in although there is
//     work: that which is the longest overdue. The loaded model that was used
//     longest ago gets no new requests, and when the last of its own has ended,
//     those that wait for the other one are taken.
//   - A model that came in stays for After, and for twice as long as a load
//     takes, before another may push it out. So loads take at most a third of the
//     time where all of the models always have work, and each has its turn.
//   - A tier below one that is active waits longer by the ratio of their shares:
//     it would have waited for its share of the slots, too.
//   - What another worker has loaded is left to it until a request has waited for
//     as long as a load takes: only then would it have been quicker to load it
//     here.
//   - Where several workers would have to load it, one after the other considers
//     it, so that not all of them do at once.
//   - Models that were seen loaded together do not push each other out, and are
//     loaded beside each other at any time.
type Swap struct {
	After time.Duration
	Load  time.Duration // what a load takes here
	Tiers []SwapTier    // the first first
}

// SwapTier is a tier as far as swaps go.
type SwapTier struct {
	Share  int
	Active bool // it has requests on this worker
}

// SwapModel is one of the models that a worker serves.
type SwapModel struct {
	Name      string
	Loaded    bool            // it answers without a load
	Fits      bool            // it was seen loaded together with all that are loaded now
	Elsewhere bool            // another worker has it loaded, or is about to
	Delay     time.Duration   // that is left to others first, who would have to load it too
	InFlight  int             // requests of it that the engine has, and those that wait for its load
	Used      time.Time       // when the last one ended
	Waits     []time.Duration // of the request of each tier that waits the longest; 0: none does
}

// Swapping is how far a worker has come. The zero value is the beginning.
type Swapping struct {
	To    string    // the model that is to come in; "": none
	From  string    // the one that makes room for it; "": none has to
	Clear time.Time // since when From has nothing in flight and To may begin; zero: not yet
	Last  time.Time // when the last one was over
}

// Next says how far the swap is now, and of each model whether its requests may
// be taken.
func (s Swap) Next(st Swapping, models []SwapModel, now time.Time) (Swapping, []bool) {
	st = s.goOn(st, models, now)
	idle, first := s.idle(st, models, now)
	if st.To == "" && !idle && now.Sub(st.Last) >= s.stay() {
		if to := s.overdue(models); to != nil {
			st.To, st.From, st.Clear = to.Name, nameOf(leaves(models)), time.Time{}
			st = s.goOn(st, models, now)
		}
	}
	open := make([]bool, len(models))
	for i := range models {
		m := &models[i]
		switch {
		case st.To == "":
			open[i] = m.Loaded || m.Fits || idle && s.ours(m) && (first == nil || first == m)
		case m.Name == st.To:
			open[i] = !st.Clear.IsZero()
		default:
			open[i] = m.Loaded && m.Name != st.From
		}
	}
	return st, open
}

// goOn is what has become of a swap that was under way, or was begun by a request
// for a model that was not loaded.
func (s Swap) goOn(st Swapping, models []SwapModel, now time.Time) Swapping {
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
				st.From = nameOf(leaves(models))
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
	case to.longest() == 0: // nobody waits for it any more
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

// stay is how long a model that came in is safe from the next swap.
func (s Swap) stay() time.Duration { return max(s.After, 2*s.Load) }

// ours says whether a request for a model is to be taken here, as far as others
// are concerned.
func (s Swap) ours(m *SwapModel) bool { return !m.Elsewhere || m.longest() >= s.Load }

// idle says whether another model may come in because a loaded one has nothing to
// do, and which one is first: nil, any.
func (s Swap) idle(st Swapping, models []SwapModel, now time.Time) (idle bool, first *SwapModel) {
	moment := min(s.Load/10, time.Second)
	if now.Sub(st.Last) < s.stay() {
		moment = min(s.Load/4, 2*time.Second)
	}
	if m := leaves(models); m != nil {
		if m.InFlight > 0 || now.Sub(m.Used) < moment {
			return false, nil
		}
		if now.Sub(m.Used) > moment+swapGiveUp { // who is first would have come
			return true, nil
		}
	}
	most := 0.0
	for i := range models {
		m := &models[i]
		if due := s.due(m); !m.Loaded && due > most && s.ours(m) {
			first, most = m, due
		}
	}
	return true, first
}

// overdue is the model whose requests have waited the longest beyond what they
// must; nil: none.
func (s Swap) overdue(models []SwapModel) *SwapModel {
	var to *SwapModel
	most := 1.0
	for i := range models {
		m := &models[i]
		if m.Loaded || m.Fits {
			continue
		}
		if due := s.due(m); due >= most {
			to, most = m, due
		}
	}
	return to
}

// due is the longest of a model's waits over what the request has to wait: from 1
// on it is time.
func (s Swap) due(m *SwapModel) float64 {
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

func (m *SwapModel) longest() time.Duration {
	var most time.Duration
	for _, w := range m.Waits {
		most = max(most, w)
	}
	return most
}

// leaves is the loaded model that makes room for the next: the one that was used
// longest ago. nil: none is loaded.
func leaves(models []SwapModel) *SwapModel {
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

// ColdRung is the rung of a request whose model has to be loaded first, where it
// would be on this one if it were: that of its price and the load, and one more
// where another model has to go for it. While nobody has measured anything, a
// load is dearer than anything else.
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
