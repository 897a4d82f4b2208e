package worker

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// ollama is what an Ollama reports that has these models, those with a + loaded.
func ollama(at time.Time, models ...string) engine.Status {
	st := engine.Status{Dialect: engine.DialectOllama, Healthy: true, At: at, Models: []engine.Model{}}
	for _, m := range models {
		name := strings.TrimSuffix(m, "+")
		st.Models = append(st.Models, engine.Model{Name: name, Loaded: name != m})
	}
	return st
}

func TestWhichModelsAreMissing(t *testing.T) {
	now := time.Now()
	for what, test := range map[string]struct {
		was    func(*model) // of a
		status engine.Status
		want   string // that are missing
	}{
		"it says nothing of models":         {nil, engine.Status{Healthy: true, At: now}, ""},
		"as it says":                        {nil, ollama(now, "a", "b+"), "a"},
		"with the tag that goes without":    {nil, ollama(now, "a:latest+", "b:latest"), "b"},
		"one that it has by another name":   {nil, ollama(now, "b"), "b"},
		"it answered since":                 {func(m *model) { m.answered = now.Add(time.Second) }, ollama(now, "a", "b+"), ""},
		"it made room since":                {func(m *model) { m.left = now.Add(time.Second) }, ollama(now, "a+", "b+"), "a"},
		"it is listed, and only being read": {func(m *model) { m.missing, m.inFlight, m.began = true, 1, now }, ollama(now, "a+", "b"), "a b"},
		"as long ago as no load takes":      {func(m *model) { m.missing, m.inFlight, m.began = true, 1, now.Add(-time.Minute) }, ollama(now, "a+", "b"), "b"},
	} {
		t.Run(what, func(t *testing.T) {
			var ms models
			ms.serve([]servedPool{{"a", "a"}, {"b", "b"}})
			if test.was != nil {
				test.was(ms.byPool["a"])
			}
			ms.onStatus(test.status, now)
			var missing []string
			for _, m := range ms.served {
				if m.missing {
					missing = append(missing, m.pool)
				}
			}
			if got := strings.Join(missing, " "); got != test.want || ms.swaps != (test.want != "") {
				t.Errorf("missing %q, swaps %v, want %q", got, ms.swaps, test.want)
			}
		})
	}
}

func TestWhichModelsFitTogether(t *testing.T) {
	now := time.Now()
	var ms models
	for _, step := range []struct {
		status engine.Status
		fit    []string // beside what is loaded
	}{
		{ollama(now, "a+", "b", "c"), nil},
		{ollama(now, "a+", "b+", "c"), nil},
		{ollama(now, "a", "b", "c"), []string{"a", "b"}},
		{ollama(now, "a", "b+", "c"), []string{"a"}},
		{ollama(now, "a", "b+", "c+"), nil},
		{ollama(now, "a", "b", "c+"), []string{"b"}},
		{ollama(now, "a", "b+", "c"), []string{"a"}}, // b came and c went: these two do not
	} {
		ms.learnTogether(step.status)
		var fit []string
		for _, m := range step.status.Models {
			if !m.Loaded && ms.fits(m.Name) {
				fit = append(fit, m.Name)
			}
		}
		if !slices.Equal(fit, step.fit) {
			t.Errorf("beside %q: %q fit, want %q", step.status.Loaded(), fit, step.fit)
		}
	}
}

// Of workers that would all have to load a model, no two consider it at once.
func TestWhoLoadsFirst(t *testing.T) {
	const id = "worker-3"
	homes := []string{"w1", "w2", id, "w4"}
	slices.Sort(homes)
	seen := make(map[time.Duration]bool)
	for _, id := range homes {
		b := newBidder(id, false)
		b.serve([]servedPool{{"a", "a"}}, newEstimator().serve([]string{"a"}))
		b.onReference(&subjects.Reference{Gateway: "gw", Pools: map[string]subjects.PoolReference{"a": {HomeLanes: homes}}}, time.Now())
		later := b.demand(time.Now()).pools["a"].Delay
		if seen[later] || later%laterEach != 0 || later >= time.Duration(len(homes))*laterEach {
			t.Errorf("%s comes %v later, as another does", id, later)
		}
		seen[later] = true
	}
}

// A model that is not loaded comes in for a request that has waited long enough.
// The first request for it starts the load, the others wait for the same one, and
// its first byte measures it.
func TestAModelIsLoaded(t *testing.T) {
	now := time.Now()
	c := newCapacity(Config{Slots: 4, Profile: policy.GivenSlots, SwapAfter: policy.SwapAfter})
	c.serve([]servedPool{{"a", "a"}, {"b", "b"}}, now)
	c.onStatus(ollama(now, "a+", "b"), workload{}, now)
	if !c.models.swaps {
		t.Fatal("a model is missing, and nothing is chosen")
	}
	waits := func(b time.Duration) demand {
		return demand{tiers: []policy.SwapTier{{Share: 1}}, pools: map[string]policy.SwapModel{"b": {Waits: []time.Duration{b}}}}
	}
	var busy slot
	c.begin(&busy, "a", true, now)
	c.chooseModels(waits(time.Second), now)
	if s := c.load().models; s["a"].blocked || !s["b"].blocked || !s["b"].cold || !s["b"].evicts || s["b"].load != policy.FirstLoad {
		t.Errorf("while a has work: %+v", s)
	}
	c.chooseModels(waits(policy.SwapAfter), now)
	if s := c.load().models; !s["a"].blocked || !s["b"].blocked {
		t.Errorf("b is overdue, and a request of a runs: %+v", s)
	}
	now = now.Add(time.Second)
	c.end(&busy, now)
	c.chooseModels(waits(policy.SwapAfter+time.Second), now)
	if s := c.load().models; !s["a"].blocked || s["b"].blocked || !s["b"].next {
		t.Errorf("a is idle: %+v", s)
	}
	var h subjects.Heartbeat
	c.report(&h)
	if d := h.Capacity.Decisions; len(d) != 1 || d[0].Text != `load model "b" in place of "a"` {
		t.Errorf("decided %v", d)
	}

	var first, second slot
	if load, _ := c.begin(&first, "b", true, now); load != (coldLoad{true, true, policy.FirstLoad, false}) {
		t.Errorf("the first request of b: %+v", load)
	}
	now = now.Add(4 * time.Second)
	if load, _ := c.begin(&second, "b", true, now); load != (coldLoad{true, false, policy.FirstLoad - 4*time.Second, false}) {
		t.Errorf("the second request of b: %+v", load)
	}
	now = now.Add(2 * time.Second)
	after, took := c.onLoaded(&first, time.Second, true, now)
	if !after || took != 5*time.Second { // six, one of which is its prompt
		t.Errorf("after a load %v of %v, want 5s", after, took)
	}
	if after, took := c.onLoaded(&second, time.Second, true, now); after || took != 0 {
		t.Errorf("the second request measured the load again: %v", took)
	}
	if s := c.load().models; s["b"].cold || !s["a"].cold || s["a"].load != 5*time.Second {
		t.Errorf("b is loaded: %+v", s)
	}
}

// A model that others have loaded and that is short of slots is loaded without a request, and takes none before it is.
func TestAModelIsWarmedUp(t *testing.T) {
	now := time.Now()
	c := newCapacity(Config{Slots: 4, Profile: policy.GivenSlots, SwapAfter: policy.SwapAfter})
	c.serve([]servedPool{{"a", "a"}, {"b", "b"}}, now)
	c.onStatus(ollama(now, "a", "b"), workload{}, now)
	short := demand{tiers: []policy.SwapTier{{Share: 1}}, informed: map[string]bool{"b": true}, pools: map[string]policy.SwapModel{
		"b": {Elsewhere: true, Shortage: policy.Shortage{Requests: 2, For: policy.ShortAfter}}}}

	c.chooseModels(short, now)
	if s := c.load().models["b"]; !s.blocked || !s.spare {
		t.Errorf("a cordoned worker: %+v", s)
	}
	if _, ok := c.warmingUp(); ok {
		t.Error("a cordoned worker loads a model")
	}
	short.open = true
	c.chooseModels(short, now)
	if model, ok := c.warmingUp(); !ok || model != "b" || len(c.warmUps) != 1 {
		t.Fatalf("loads %q", model)
	}
	now = now.Add(3 * time.Second)
	c.onStatus(ollama(now, "a", "b+"), workload{}, now) // listed from the start of its load
	c.chooseModels(short, now)
	if s := c.load().models["b"]; !s.blocked || !s.cold || !s.next || !now.Add(-3*time.Second).Equal(s.loading) {
		t.Errorf("during the load: %+v", s)
	}
	if took := c.onWarmedUp(nil, now); took != 3*time.Second {
		t.Errorf("took %v", took)
	}
	c.chooseModels(short, now)
	if s := c.load().models["b"]; s.blocked || s.cold || s.next || !s.loading.IsZero() || s.load != 3*time.Second {
		t.Errorf("after the load: %+v", s)
	}
	if byPool, byModel := c.loadTimes(), c.learned().loads; byPool["b"] != 3*time.Second || byModel["b"] != 3*time.Second || byPool["a"] != 0 {
		t.Errorf("load times %v, %v", byPool, byModel)
	}
}

func TestAWarmUpFails(t *testing.T) {
	now := time.Now()
	c := newCapacity(Config{Slots: 4, Profile: policy.GivenSlots, SwapAfter: policy.SwapAfter})
	c.serve([]servedPool{{"b", "b"}}, now)
	c.onStatus(ollama(now, "b"), workload{}, now)
	short := demand{tiers: []policy.SwapTier{{Share: 1}}, open: true, informed: map[string]bool{"b": true}, pools: map[string]policy.SwapModel{
		"b": {Elsewhere: true, Shortage: policy.Shortage{Requests: 2, For: time.Hour}}}}
	for _, pause := range []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second} {
		c.chooseModels(short, now)
		if _, ok := c.warmingUp(); !ok {
			t.Fatal("not tried again")
		}
		c.onWarmedUp(errors.New("no memory"), now)
		now = now.Add(pause - 1)
		c.chooseModels(short, now)
		if _, ok := c.warmingUp(); ok || !c.load().models["b"].blocked {
			t.Errorf("tried again before %v, or open for requests: %+v", pause, c.load().models)
		}
		now = now.Add(1)
	}
	elsewhere := short.pools["b"]
	elsewhere.Elsewhere = false // nobody else has it: a request comes, and its client gets the engine's words
	short.pools["b"] = elsewhere
	now = now.Add(time.Minute)
	c.chooseModels(short, now)
	if c.load().models["b"].blocked {
		t.Error("no request may come")
	}
}

func TestLoadTimesAreRecalled(t *testing.T) {
	now := time.Now()
	c := newCapacity(Config{Slots: 1})
	c.serve([]servedPool{{"a", "a"}, {"b", "b"}}, now)
	c.onStatus(ollama(now, "a", "b"), workload{}, now)
	c.recall(learned{loads: map[string]time.Duration{"a": 4 * time.Second, "c": 6 * time.Second}}, now)
	if s := c.load().models; s["a"].load != 4*time.Second || s["b"].load != 5*time.Second {
		t.Errorf("%+v, want its own load time for a and the mean for b", s)
	}
	c.serve([]servedPool{{"a", "a"}, {"c", "c"}}, now)
	c.onStatus(ollama(now, "a", "c"), workload{}, now)
	if s := c.load().models; s["a"].load != 4*time.Second || s["c"].load != 6*time.Second {
		t.Errorf("%+v, after c has come", s)
	}
}

// An engine that unloads a model at once, such as Ollama with OLLAMA_KEEP_ALIVE=0, gets requests for it as before.
func TestAModelDoesNotStay(t *testing.T) {
	now := time.Now()
	c := newCapacity(Config{Slots: 4, Profile: policy.GivenSlots, SwapAfter: policy.SwapAfter})
	c.serve([]servedPool{{"b", "b"}}, now)
	c.onStatus(ollama(now, "b"), workload{}, now)
	waits := demand{tiers: []policy.SwapTier{{Share: 1}}, open: true, informed: map[string]bool{"b": true}, pools: map[string]policy.SwapModel{
		"b": {Shared: true, Shortage: policy.Shortage{Requests: 1, Listed: true}}}}
	c.chooseModels(waits, now)
	if _, ok := c.warmingUp(); !ok || !c.load().models["b"].blocked {
		t.Fatalf("no worker has it, and it is not loaded: %+v", c.load().models)
	}
	now = now.Add(3 * time.Second)
	c.onWarmedUp(nil, now)
	now = now.Add(time.Second)
	c.onStatus(ollama(now, "b"), workload{}, now)
	c.chooseModels(waits, now)
	if _, ok := c.warmingUp(); ok || c.load().models["b"].blocked {
		t.Errorf("loaded again, or closed for requests: %+v", c.load().models)
	}
}

// Who is to load a model, by the reports of several gateways.
func TestShortageOfAPool(t *testing.T) {
	now := time.Now()
	p := &pool{name: "m"}
	if s := p.shortage("w2", now); s != (policy.Shortage{}) {
		t.Errorf("%+v, and no gateway has reported one", s)
	}
	loaders := []subjects.Loader{{Worker: "w1", Slots: 4}, {Worker: "w2", Slots: 2}, {Worker: "w3", Slots: 1}}
	p.onReference("old", subjects.PoolReference{Loaded: 1}, now)
	p.onReference("gone", subjects.PoolReference{Shortage: &subjects.Shortage{Waiting: 100, ForMS: 9000}}, now.Add(-time.Minute))
	p.onReference("g1", subjects.PoolReference{Shortage: &subjects.Shortage{Waiting: 5, Free: 9, ForMS: 700}}, now)
	p.onReference("g2", subjects.PoolReference{Shortage: &subjects.Shortage{Waiting: 3, Free: 9, ForMS: 1300, Loaders: loaders}}, now)
	p.onReference("g3", subjects.PoolReference{Shortage: &subjects.Shortage{Free: 1}}, now.Add(time.Millisecond))
	now = now.Add(time.Second)
	for worker, want := range map[string]policy.Shortage{
		"w1": {Requests: 7, For: 1300 * time.Millisecond, Listed: true},
		"w2": {Requests: 7, For: 1300 * time.Millisecond, Rank: 1, Before: 4, Listed: true},
		"w9": {Requests: 7, For: 1300 * time.Millisecond, Rank: 3, Before: 7},
	} {
		if got := p.shortage(worker, now); got != want {
			t.Errorf("%s: %+v, want %+v", worker, got, want)
		}
	}
}
