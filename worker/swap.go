package worker

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/policy"
)

// swaps is how the worker shares out an engine that answers for more models than
// it holds at once: which of them may be bid for now, policy.Swap decides. It is
// off while all that is served is loaded. Guarded by Worker.mu.
type swaps struct {
	on       bool // the engine would have to load some of what is served
	state    policy.Swapping
	load     time.Duration // what loads took, of late; 0: none was seen
	loaded   []string      // models, as the engine last told
	together [][]string    // those that were seen loaded at once
}

// modelSwap is what a worker knows of a model that it serves, as far as swaps go.
type modelSwap struct {
	missing  bool // it has to be loaded first
	shut     bool // no requests of it now
	evicts   bool // its load would push out another one
	inFlight int
	used     time.Time     // when the last one ended
	began    time.Time     // when the first request came that waits for its load; zero: none does
	answered time.Time     // when it was last seen to be there
	left     time.Time     // when it made room for another one
	load     time.Duration // what its loads took; 0: none was seen
}

// cold says that a request of it would begin a load.
func (m *modelSwap) cold() bool { return m.missing && m.inFlight == 0 }

// manyTogether bounds how many sets of models are remembered that fit.
const manyTogether = 64

// toldLate is how old llama.cpp's word may be of what it has loaded: it is asked
// for that more seldom than for its load.
const toldLate = 12 * time.Second

// hearLoadedLocked takes in which models the engine holds. One that it does not
// name counts as loaded: it may be there by another name.
func (w *Worker) hearLoadedLocked(tells engine.Status, now time.Time) {
	if tells.Models == nil || !loadsOnDemand(tells.Dialect) {
		return
	}
	s := &w.swaps
	at := tells.At
	if tells.Dialect == engine.DialectLlamaCpp {
		at = at.Add(-toldLate)
	}
	s.on = false
	for _, p := range w.servedLocked() {
		m := &p.swap
		loaded := saysLoaded(tells, p.model)
		switch {
		case loaded && m.left.After(at), !loaded && m.answered.After(at): // since then it was otherwise
			loaded = !loaded
		case loaded && m.missing && m.inFlight > 0 && tells.Dialect == engine.DialectOllama:
			// It lists what it has only begun to load. An answer that comes all at once
			// does not say when that was over.
			loaded = !m.began.IsZero() && now.Sub(m.began) > 2*w.loadLocked(p)
		}
		m.missing = !loaded
		s.on = s.on || m.missing
	}
	s.fitLoaded(tells)
	if !s.on {
		s.state = policy.Swapping{}
		for _, p := range w.servedLocked() {
			p.swap.shut = false
		}
	}
}

// loadsOnDemand says whether an engine loads what it is asked for, and tells what
// it has loaded.
func loadsOnDemand(d engine.Dialect) bool {
	switch d {
	case engine.DialectOllama, engine.DialectLlamaSwap, engine.DialectLMStudio, engine.DialectLlamaCpp:
		return true
	}
	return false
}

// saysLoaded is the engine's word of a model.
func saysLoaded(tells engine.Status, model string) bool {
	i := slices.IndexFunc(tells.Models, func(m engine.Model) bool { return plainModel(m.Name) == plainModel(model) })
	return i < 0 || tells.Models[i].Loaded
}

// plainModel is a model's name without the tag that Ollama adds where there is none.
func plainModel(name string) string { return strings.TrimSuffix(name, ":latest") }

// fitLoaded learns which models fit beside each other. Where one came and another
// went at the same time, those two do not, whatever was seen before.
func (s *swaps) fitLoaded(tells engine.Status) {
	loaded := tells.Loaded()
	for i := range loaded {
		loaded[i] = plainModel(loaded[i])
	}
	slices.Sort(loaded)
	if slices.Equal(loaded, s.loaded) {
		return
	}
	came, went := without(loaded, s.loaded), without(s.loaded, loaded)
	s.together = slices.DeleteFunc(s.together, func(set []string) bool {
		return len(without(came, set)) < len(came) && len(without(went, set)) < len(went)
	})
	if len(loaded) > 1 && !slices.ContainsFunc(s.together, func(set []string) bool { return len(without(loaded, set)) == 0 }) {
		s.together = append(s.together, loaded)
		s.together = s.together[max(len(s.together)-manyTogether, 0):]
	}
	s.loaded = loaded
}

// without are those of a list that are not in another.
func without(list, other []string) []string {
	var rest []string
	for _, x := range list {
		if !slices.Contains(other, x) {
			rest = append(rest, x)
		}
	}
	return rest
}

// fits says whether a model was seen loaded together with all that are now.
func (s *swaps) fits(model string) bool {
	return slices.ContainsFunc(s.together, func(set []string) bool {
		return slices.Contains(set, plainModel(model)) && len(without(s.loaded, set)) == 0
	})
}

// swapLocked works out of which models requests may be taken now.
func (w *Worker) swapLocked(now time.Time) {
	s := &w.swaps
	rule := policy.Swap{After: w.cfg.SwapAfter, Load: cmp.Or(s.load, policy.FirstLoad), Tiers: make([]policy.SwapTier, len(w.tiers))}
	for i := range w.tiers {
		rule.Tiers[i] = policy.SwapTier{Share: w.tiers[i].Share, Active: now.Sub(w.tiers[i].seen) < activeFor}
	}
	pools := w.servedLocked()
	models := make([]policy.SwapModel, len(pools))
	for i, p := range pools {
		m := &p.swap
		models[i] = policy.SwapModel{
			Name: p.name, Loaded: !m.missing, Fits: m.missing && s.fits(p.model), Elsewhere: m.missing && p.ref.Loaded > 0 && s.state.To != p.name,
			Later: w.laterLocked(p), InFlight: m.inFlight, Used: m.used, Waits: make([]time.Duration, len(w.tiers)),
		}
		m.evicts = m.missing && len(s.loaded) > 0 && !models[i].Fits
		for t := range w.tiers {
			if m.missing && !p.paused {
				models[i].Waits[t] = p.waits(w.tiers[t].Name, now)
			}
		}
	}
	was := s.state
	var open []bool
	s.state, open = rule.Next(was, models, now)
	for i, p := range pools {
		p.swap.shut = !open[i]
	}
	if to := s.state.To; to != "" && to != was.To {
		text := fmt.Sprintf("swap: %q is to be loaded", to)
		if s.state.From != "" {
			text += fmt.Sprintf(", %q makes room", s.state.From)
		}
		w.decideLocked(now, text)
	}
}

// laterEach is longer than it takes others to hear that a worker loads a model.
const laterEach = 2 * time.Second

// laterLocked is how long other workers of a pool come first in considering to
// load its model. Who is the first differs from pool to pool. Two of a pool
// without home lanes may come at once: nobody tells them of each other.
func (w *Worker) laterLocked(p *pool) time.Duration {
	mine, ok := slices.BinarySearch(p.homes, w.id)
	n := len(p.homes)
	if !ok {
		mine, n = hashOf(w.id), p.ref.Workers
	}
	if n < 2 {
		return 0
	}
	return laterEach * time.Duration((mine+hashOf(p.name))%n)
}

func hashOf(s string) int {
	h := fnv.New32a()
	h.Write([]byte(s))
	return int(h.Sum32() >> 1)
}

// waits is how long a request of a tier has waited, of those that gateways know of.
func (p *pool) waits(tier string, now time.Time) time.Duration {
	var longest time.Duration
	for _, r := range p.heard {
		if ms := r.WaitsMS[tier]; ms > 0 && now.Sub(r.at) <= referenceHolds {
			longest = max(longest, time.Duration(ms)*time.Millisecond+now.Sub(r.at))
		}
	}
	return longest
}

// loadLocked is what a load of a pool's model is thought to take.
func (w *Worker) loadLocked(p *pool) time.Duration {
	return cmp.Or(p.swap.load, w.swaps.load, policy.FirstLoad)
}

// coldRungLocked is the rung of a request whose model has to be loaded first.
func (w *Worker) coldRungLocked(p *pool, rung int) int {
	reference := p.ref.Price
	if p.balance != policy.Price { // the others know no seconds
		reference = 0
	}
	return policy.ColdRung(rung, reference, w.loadLocked(p.by), p.by.swap.evicts)
}

// enterModelLocked notes that a request goes to its model.
func (w *Worker) enterModelLocked(a *attempt, now time.Time) {
	m := &a.served.swap
	a.cold = m.missing
	if a.loads = m.cold(); a.loads {
		m.began = now
	}
	m.inFlight++
}

func (w *Worker) leaveModelLocked(a *attempt, now time.Time) {
	a.served.swap.inFlight--
	a.served.swap.used = now
}

// awaitLoadLocked adds what is left of a load to what an attempt expects. Of
// several that wait for the same load one counts it.
func (w *Worker) awaitLoadLocked(a *attempt) {
	left := max(w.loadLocked(a.served)-a.started.Sub(a.served.swap.began), 0)
	a.firstBy = a.firstBy.Add(left)
	if a.loads {
		a.expectFirst += left
	}
}

// loadedLocked notes that a model answers that had to be loaded, and measures the
// load.
func (w *Worker) loadedLocked(a *attempt, now time.Time) {
	s, p := &w.swaps, a.served
	m := &p.swap
	m.answered = now
	if m.began.IsZero() {
		return
	}
	a.behindLoad = true
	if from := w.pools[s.state.From]; from != nil && s.state.To == p.name { // the engine's word of it comes later
		from.swap.missing, from.swap.left = true, now
	}
	took, exact := w.tookLocked(a, now)
	m.missing, m.began = false, time.Time{}
	if exact || took < w.loadLocked(p) {
		m.load, s.load = halfway(m.load, took), halfway(s.load, took)
		w.log.Info("model loaded", "model", p.model, "took", took.Round(10*time.Millisecond))
	}
}

// tookLocked is how long a load took: the time until the first byte that waited
// for it, but for what that takes by itself. An answer that does not stream comes
// all at once: while the engine's pace is not known, it is the most that the load
// can have taken.
func (w *Worker) tookLocked(a *attempt, now time.Time) (took time.Duration, exact bool) {
	c := a.served.curve(now)
	answer, exact := 0.0, true
	switch {
	case !a.streamed:
		answer, exact = c.Price(a.served.mean, 1, 0)
	case c != nil && c.Prefill != nil:
		answer = c.Prefill.At(float64(a.req.InputTokens))
	}
	took = now.Sub(a.served.swap.began) - time.Duration(answer*float64(time.Second))
	return max(took, 10*time.Millisecond), exact
}

func halfway(was, is time.Duration) time.Duration {
	if was == 0 {
		return is
	}
	return (was + is) / 2
}

// loadsModelLocked says that a request waits for the load of its model.
func (w *Worker) loadsModelLocked() bool {
	if !w.swaps.on {
		return false
	}
	for _, p := range w.servedLocked() {
		if p.swap.missing && p.swap.inFlight > 0 {
			return true
		}
	}
	return false
}
