package worker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/policy"
)

// models follows which models the engine has loaded. If the engine would have to load some of those that are served,
// models decides for which ones requests may be accepted now: see policy.Swap. Capacity owns it.
type models struct {
	served   []*model // in the order of serve
	byPool   map[string]*model
	swaps    bool // some served model is not loaded
	swap     policy.Swapping
	load     time.Duration // mean time of the last loads; 0: none was measured
	loaded   []string      // names of the loaded models, by the engine's last report
	together [][]string    // sets of models that were seen loaded at the same time
}

// model is a model that the worker serves in a pool.
type model struct {
	pool string
	name string // as the engine calls it

	missing  bool // it is not loaded
	blocked  bool // no requests for it are accepted now
	evicts   bool // its load would evict another model
	inFlight int
	used     time.Time     // when the last request for it ended
	began    time.Time     // when the first request began that waits for its load; zero: none waits
	answered time.Time     // when an answer last showed that it is loaded
	left     time.Time     // when it was evicted
	load     time.Duration // mean time of its loads; 0: none was measured
}

// cold reports whether a request for it would start a load.
func (m *model) cold() bool { return m.missing && m.inFlight == 0 }

const (
	// mostTogether bounds models.together.
	mostTogether = 64

	// listLate is how old llama.cpp's list of loaded models may be: it is read less
	// often than the metrics, whose time the status has.
	listLate = 12 * time.Second
)

// serve sets the models that the worker serves. What is known of those that stay is kept.
func (ms *models) serve(pools []servedPool) {
	was := ms.byPool
	ms.served, ms.byPool = nil, make(map[string]*model, len(pools))
	for _, s := range pools {
		m := was[s.pool]
		if m == nil {
			m = &model{pool: s.pool}
		}
		m.name = s.model
		ms.byPool[s.pool] = m
		ms.served = append(ms.served, m)
	}
}

// onStatus updates which models are loaded from the engine's report. A model that the
// report does not name counts as loaded: it may have another name there.
func (ms *models) onStatus(st engine.Status, now time.Time) {
	if st.Models == nil || !loadsOnDemand(st.Dialect) {
		return
	}
	at := st.At
	if st.Dialect == engine.DialectLlamaCpp {
		at = at.Add(-listLate)
	}
	ms.swaps = false
	for _, m := range ms.served {
		loaded := listsLoaded(st, m.name)
		switch {
		case loaded && m.left.After(at), !loaded && m.answered.After(at): // the report is older than what an answer showed
			loaded = !loaded
		case loaded && m.missing && m.inFlight > 0 && st.Dialect == engine.DialectOllama:
			// Ollama lists a model as soon as it begins to load it. If the answer that waits
			// for it does not stream, nothing shows when the load has ended.
			loaded = !m.began.IsZero() && now.Sub(m.began) > 2*ms.loadTime(m)
		}
		m.missing = !loaded
		ms.swaps = ms.swaps || m.missing
	}
	ms.learnTogether(st)
	if !ms.swaps {
		ms.swap = policy.Swapping{}
		for _, m := range ms.served {
			m.blocked = false
		}
	}
}

// loadsOnDemand reports whether an engine loads the model that a request names, and reports which ones it has loaded.
func loadsOnDemand(d engine.Dialect) bool {
	switch d {
	case engine.DialectOllama, engine.DialectLlamaSwap, engine.DialectLMStudio, engine.DialectLlamaCpp:
		return true
	}
	return false
}

func listsLoaded(st engine.Status, name string) bool {
	i := slices.IndexFunc(st.Models, func(m engine.Model) bool { return withoutTag(m.Name) == withoutTag(name) })
	return i < 0 || st.Models[i].Loaded
}

// withoutTag returns a model's name without the tag that Ollama adds to names without one.
func withoutTag(name string) string { return strings.TrimSuffix(name, ":latest") }

// learnTogether learns which models fit into memory together. If one was loaded and
// another evicted between two reports, those two do not, whatever was seen before.
func (ms *models) learnTogether(st engine.Status) {
	loaded := st.Loaded()
	for i := range loaded {
		loaded[i] = withoutTag(loaded[i])
	}
	slices.Sort(loaded)
	if slices.Equal(loaded, ms.loaded) {
		return
	}
	came, went := without(loaded, ms.loaded), without(ms.loaded, loaded)
	ms.together = slices.DeleteFunc(ms.together, func(set []string) bool {
		return len(without(came, set)) < len(came) && len(without(went, set)) < len(went)
	})
	if len(loaded) > 1 && !slices.ContainsFunc(ms.together, func(set []string) bool { return len(without(loaded, set)) == 0 }) {
		ms.together = append(ms.together, loaded)
		ms.together = ms.together[max(len(ms.together)-mostTogether, 0):]
	}
	ms.loaded = loaded
}

func without(list, other []string) []string {
	var rest []string
	for _, x := range list {
		if !slices.Contains(other, x) {
			rest = append(rest, x)
		}
	}
	return rest
}

// fits reports whether a model was seen loaded together with all that are now.
func (ms *models) fits(name string) bool {
	return slices.ContainsFunc(ms.together, func(set []string) bool {
		return slices.Contains(set, withoutTag(name)) && len(without(ms.loaded, set)) == 0
	})
}

// choose decides for which models requests may be accepted now. If it decides to load
// another model, it returns that as a text for people.
func (ms *models) choose(d demand, after time.Duration, now time.Time) (decision string) {
	rule := policy.Swap{After: after, Load: cmp.Or(ms.load, policy.FirstLoad), Tiers: d.tiers}
	asked := make([]policy.SwapModel, len(ms.served))
	for i, m := range ms.served {
		a := d.pools[m.pool]
		a.Name, a.Loaded, a.Fits, a.InFlight, a.Used = m.pool, !m.missing, m.missing && ms.fits(m.name), m.inFlight, m.used
		a.Elsewhere = a.Elsewhere && m.missing && ms.swap.To != m.pool
		if !m.missing {
			a.Waits = nil
		}
		asked[i] = a
		m.evicts = m.missing && len(ms.loaded) > 0 && !a.Fits
	}
	was := ms.swap
	var open []bool
	ms.swap, open = rule.Next(was, asked, now)
	for i, m := range ms.served {
		m.blocked = !open[i]
	}
	to := ms.swap.To
	switch {
	case to == "" || to == was.To:
		return ""
	case ms.swap.From != "":
		return fmt.Sprintf("load model %q in place of %q", to, ms.swap.From)
	}
	return fmt.Sprintf("load model %q", to)
}

// states returns the state of each model by pool; nil if all are loaded.
func (ms *models) states() map[string]modelState {
	if !ms.swaps {
		return nil
	}
	states := make(map[string]modelState, len(ms.served))
	for _, m := range ms.served {
		states[m.pool] = modelState{blocked: m.blocked, cold: m.cold(), load: ms.loadTime(m), evicts: m.evicts, next: ms.swap.To == m.pool}
	}
	return states
}

// loadTime returns how long a load of a model is expected to take.
func (ms *models) loadTime(m *model) time.Duration { return cmp.Or(m.load, ms.load, policy.FirstLoad) }

func (ms *models) begin(pool string, now time.Time) (m *model, load coldLoad) {
	if m = ms.byPool[pool]; m == nil { // it was served when the bid was placed
		m = &model{pool: pool}
	}
	load = coldLoad{waits: m.missing, first: m.cold()}
	if load.first {
		m.began = now
	}
	if load.waits {
		load.left = max(ms.loadTime(m)-now.Sub(m.began), 0)
	}
	m.inFlight++
	return m, load
}

func (m *model) end(now time.Time) {
	m.inFlight--
	m.used = now
}

// onAnswer handles the first byte of an answer whose model had to be loaded. afterLoad reports whether it is the first
// since the load. If so, the load took until then, less the time that the answer takes by itself. While that time is
// not exact, this is only an upper bound of the load time. took is 0 if nothing was measured.
func (ms *models) onAnswer(m *model, answer time.Duration, exact bool, now time.Time) (afterLoad bool, took time.Duration) {
	m.answered = now
	if m.began.IsZero() {
		return false, 0
	}
	if from := ms.byPool[ms.swap.From]; from != nil && ms.swap.To == m.pool { // the engine reports it later
		from.missing, from.left = true, now
	}
	took = max(now.Sub(m.began)-answer, 10*time.Millisecond)
	m.missing, m.began = false, time.Time{}
	if !exact && took >= ms.loadTime(m) {
		return true, 0
	}
	m.load, ms.load = meanOf(m.load, took), meanOf(ms.load, took)
	return true, took
}

// meanOf returns the mean of a new measurement and those before; was is 0 if there are none.
func meanOf(was, is time.Duration) time.Duration {
	if was == 0 {
		return is
	}
	return (was + is) / 2
}

// loading reports whether a request waits for the load of its model.
func (ms *models) loading() bool {
	return ms.swaps && slices.ContainsFunc(ms.served, func(m *model) bool { return m.missing && m.inFlight > 0 })
}
