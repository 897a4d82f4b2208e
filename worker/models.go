package worker

import (
	"cmp"
	"fmt"
	"maps"
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
	reported time.Time     // when that was made
	together [][]string    // sets of models that were seen loaded at the same time

	warming *model                   // is being loaded without a request; nil: none
	preload preload                  // models to be loaded at the start
	learned map[string]time.Duration // load times by the engine's name of the model, also of models that are not served now
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
	spare    bool          // it could be loaded without pushing out anything that is in use
	rests    time.Time     // it is not warmed up before
	failures int           // warm-ups in a row that failed
	warmed   time.Time     // when the last warm-up ended that did not
}

// cold reports whether a request for it would start a load.
func (m *model) cold() bool { return m.missing && m.inFlight == 0 }

const (
	// mostTogether bounds models.together.
	mostTogether = 64

	// listLate is how old llama.cpp's list of loaded models may be: it is read less
	// often than the metrics, whose time the status has.
	listLate = 12 * time.Second

	// warmUpAgain is after how long a model that could not be loaded is tried again. It doubles with each failure, up to
	// warmUpAgainMost.
	warmUpAgain     = 5 * time.Second
	warmUpAgainMost = 5 * time.Minute

	// fleeting is for how long a model must stay loaded without a request for a warm-up to be of use.
	fleeting = 30 * time.Second
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
		if m.name != s.model {
			m.name, m.load = s.model, ms.learned[s.model]
		}
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
	ms.swaps, ms.reported = false, at
	for _, m := range ms.served {
		loaded := listsLoaded(st, m.name)
		switch {
		case m == ms.warming: // Ollama lists it as soon as it begins to load it
			loaded = loaded && !m.missing
		case loaded && m.left.After(at), !loaded && m.answered.After(at): // the report is older than what an answer showed
			loaded = !loaded
		case loaded && m.missing && m.inFlight > 0 && st.Dialect == engine.DialectOllama:
			// Ollama lists a model as soon as it begins to load it. If the answer that waits
			// for it does not stream, nothing shows when the load has ended.
			loaded = !m.began.IsZero() && now.Sub(m.began) > 2*ms.loadTime(m)
		}
		if !loaded && !m.missing && m.warmed.After(m.used) && now.Sub(m.warmed) < fleeting && len(st.Loaded()) == 0 { // nothing pushed it out
			m.failures++
			m.rests = now.Add(warmUpAgainMost)
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

// choose decides for which models requests may be accepted now, and which model is to be loaded without a request. If it
// decides to load another model, it returns that as a text for people.
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
		if m == ms.warming {
			a.InFlight++
		}
		if now.Before(m.rests) {
			a.Shortage = policy.Shortage{}
		}
		asked[i] = a
		m.evicts = m.missing && len(ms.loaded) > 0 && !a.Fits
	}
	was := ms.swap
	var may []bool
	ms.swap, may = rule.Next(was, asked, now)
	for i, m := range ms.served {
		// A request does not pay for the load of a model that is loaded without one: see policy.Swap.WarmUp. If no worker
		// has it and it cannot be loaded like that, a request comes, and its client gets the engine's own words.
		pays := d.informed[m.pool] && asked[i].Elsewhere ||
			asked[i].Shared && ms.swap.To != m.pool && m.failures == 0 && d.pools[m.pool].Shortage.For < after
		m.blocked = !may[i] || m.cold() && pays || m == ms.warming
		m.spare = m.cold() && ms.warming == nil && rule.Spare(ms.swap, asked, i, now)
	}
	if i := rule.WarmUp(ms.swap, asked, now); i >= 0 && d.open && ms.warming == nil {
		m := ms.served[i]
		ms.warmUp(m, now)
		s := asked[i].Shortage
		if !asked[i].Elsewhere {
			return fmt.Sprintf("load model %q: no worker has it loaded, and requests wait for it", m.name)
		}
		return fmt.Sprintf("load model %q: %d more requests than the workers that have it loaded can start have waited for %v",
			m.name, s.Requests, s.For.Round(100*time.Millisecond))
	}
	to := ms.swap.To
	switch {
	case to == "" || to == was.To || ms.warming != nil:
		return ""
	case ms.swap.From != "":
		return fmt.Sprintf("load model %q in place of %q", to, ms.swap.From)
	}
	return fmt.Sprintf("load model %q", to)
}

// warmUp begins to load a model without a request. onWarmedUp ends it.
func (ms *models) warmUp(m *model, now time.Time) {
	ms.warming, m.began, m.blocked = m, now, m.missing
}

// onWarmedUp ends a load without a request, and returns how long it took; 0 if that says nothing about its load.
func (ms *models) onWarmedUp(failed bool, now time.Time) (m *model, took time.Duration) {
	m, ms.warming = ms.warming, nil
	ms.preload.at = now
	took = max(now.Sub(m.began), 10*time.Millisecond)
	began := m.began
	m.began = time.Time{}
	if failed {
		m.failures++
		m.rests = now.Add(min(warmUpAgain<<min(m.failures-1, 10), warmUpAgainMost))
		if ms.swap.To == m.pool {
			ms.swap = policy.Swapping{Last: now}
		}
		return m, took
	}
	m.failures, m.warmed = 0, now
	if ms.preload.names != nil {
		ms.preload.loaded = append(ms.preload.loaded, m)
	}
	if !m.missing { // the engine does not report what is loaded, or it was loaded meanwhile
		return m, 0
	}
	if from := ms.byPool[ms.swap.From]; from != nil && ms.swap.To == m.pool {
		stayed := ms.reported.After(began) && slices.Contains(ms.loaded, withoutTag(from.name))
		if !stayed { // the engine reports it later
			from.missing, from.left = true, now
		}
	}
	m.missing, m.blocked, m.answered = false, false, now
	m.rests = now.Add(2 * took) // should the engine evict it again for other clients
	ms.learn(m, took)
	return m, took
}

// preload is what remains to be loaded at the start, one model after the other.
type preload struct {
	names  []string  // as configured; nil: nothing remains
	tried  []string  // engine's names of the models that were loaded, or that were loaded already
	loaded []*model  // those that were loaded
	at     time.Time // when the last load ended
}

// AllModels in Config.Preload stands for every model that the worker serves.
const AllModels = "all"

// nextPreload returns the next model to be loaded at the start; nil: none now. inFlight is how many requests the engine has.
// It ends with the last one, or when one that was loaded is gone: then no more of them fit beside each other.
func (ms *models) nextPreload(st engine.Status, inFlight int) *model {
	p, onDemand := &ms.preload, loadsOnDemand(st.Dialect)
	switch {
	case p.names == nil || ms.warming != nil || ms.swap.To != "" || inFlight > 0 || len(ms.served) == 0:
		return nil
	case !st.Healthy || onDemand && (st.Models == nil || !st.At.After(p.at)):
		return nil
	case slices.ContainsFunc(p.loaded, func(m *model) bool { return m.missing }):
		p.names = nil
		return nil
	}
	for _, m := range ms.served {
		wanted := slices.ContainsFunc(p.names, func(name string) bool {
			return name == AllModels || name == m.pool || withoutTag(name) == withoutTag(m.name)
		})
		if !wanted || slices.Contains(p.tried, m.name) {
			continue
		}
		p.tried = append(p.tried, m.name)
		if m.missing || !onDemand {
			return m
		}
	}
	p.names = nil
	return nil
}

// learn adds a measured load time of a model.
func (ms *models) learn(m *model, took time.Duration) {
	m.load, ms.load = meanOf(m.load, took), meanOf(ms.load, took)
	if ms.learned == nil {
		ms.learned = make(map[string]time.Duration)
	}
	ms.learned[m.name] = m.load
}

// recall takes in load times that were measured before the worker started. What was measured since counts more.
func (ms *models) recall(loads map[string]time.Duration) {
	merged, sum := maps.Clone(loads), time.Duration(0)
	maps.Copy(merged, ms.learned)
	ms.learned = merged
	for _, m := range ms.served {
		m.load = merged[m.name]
	}
	for _, took := range merged {
		sum += took
	}
	if ms.load == 0 && len(merged) > 0 {
		ms.load = sum / time.Duration(len(merged))
	}
}

// states returns the state of each model by pool; nil if all are loaded.
func (ms *models) states() map[string]modelState {
	if !ms.swaps {
		return nil
	}
	states := make(map[string]modelState, len(ms.served))
	for _, m := range ms.served {
		states[m.pool] = modelState{blocked: m.blocked, cold: m.cold(), load: ms.loadTime(m), evicts: m.evicts,
			next: ms.swap.To == m.pool || m == ms.warming, spare: m.spare, loading: ms.loadingSince(m)}
	}
	return states
}

// loadTime returns how long a load of a model is expected to take.
func (ms *models) loadTime(m *model) time.Duration { return cmp.Or(m.load, ms.load, policy.FirstLoad) }

// loadingSince returns since when a model is being loaded; zero: it is not.
func (ms *models) loadingSince(m *model) time.Time {
	if m.missing && (m == ms.warming || m.inFlight > 0) {
		return m.began
	}
	return time.Time{}
}

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
	ms.learn(m, took)
	return true, took
}

// meanOf returns the mean of a new measurement and those before; was is 0 if there are none.
func meanOf(was, is time.Duration) time.Duration {
	if was == 0 {
		return is
	}
	return (was + is) / 2
}

// loading reports whether the engine loads a model, as far as the worker knows.
func (ms *models) loading() bool {
	return ms.warming != nil || ms.swaps && slices.ContainsFunc(ms.served, func(m *model) bool { return m.missing && m.inFlight > 0 })
}
