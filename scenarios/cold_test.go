package scenarios

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// cold is an engine that has not loaded its models. A token takes 20 ms.
func cold(name string, dialect engine.Dialect, slots int, load time.Duration, models ...string) sim.Config {
	return sim.Config{Name: name, Models: models, Slots: slots, Cold: true, Loaded: len(models), LoadTime: load, Dialect: dialect,
		PrefillRate: 10_000, ITLBase: 20 * time.Millisecond}
}

// coldEnv is a gateway, and a worker for each engine.
func coldEnv(t *testing.T, env *Env, engines ...sim.Config) (*Gateway, []*testenv.Engine, []*Worker) {
	t.Helper()
	g := env.Gateway(gateway.Config{})
	var es []*testenv.Engine
	var ws []*Worker
	for _, cfg := range engines {
		e := env.Engine(cfg)
		es, ws = append(es, e), append(ws, env.Worker(e, worker.Config{Name: cfg.Name, Slots: cfg.Slots}))
	}
	for _, cfg := range engines {
		for _, m := range cfg.Models {
			g.Serves(t, m)
		}
	}
	g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 100
	return g, es, ws
}

// loadsModel has an engine load a model, as another client of it does.
func loadsModel(t *testing.T, e *testenv.Engine, dialect engine.Dialect, model string) {
	t.Helper()
	client := &http.Client{Transport: e.Transport}
	var resp *http.Response
	var err error
	if dialect == engine.DialectOllama {
		resp, err = client.Post(e.URL+"/api/generate", "application/json", strings.NewReader(fmt.Sprintf(`{"model":%q}`, model)))
	} else {
		resp, err = client.Get(e.URL + "/upstream/" + model + "/health")
	}
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

func unloadsModel(t *testing.T, e *testenv.Engine, model string) {
	t.Helper()
	client := &http.Client{Transport: e.Transport}
	resp, err := client.Post(e.URL+"/api/generate", "application/json", strings.NewReader(fmt.Sprintf(`{"model":%q,"keep_alive":0}`, model)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// firstLoad returns when an engine has begun its next load, after begun; it fails after most.
func firstLoad(t *testing.T, e *testenv.Engine, begun time.Time, most time.Duration) time.Duration {
	t.Helper()
	loads := e.Stats().Loads
	for e.Stats().Loads == loads {
		if time.Since(begun) > most {
			t.Fatalf("no load within %v", most)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(begun)
}

// A pool whose model is loaded on one worker only is short of slots, and stays so: other workers load it, soon and
// without a request that waits for the load, and then take their share.
func TestColdWorkersHelp(t *testing.T) {
	for what, test := range map[string]struct {
		dialect  engine.Dialect
		engines  int
		slots    int
		load     time.Duration
		clients  int
		gateways int
	}{
		"two Ollamas":                        {engine.DialectOllama, 2, 1, 8 * time.Second, 6, 1},
		"two Ollamas, of which one is short": {engine.DialectOllama, 2, 1, 8 * time.Second, 2, 1},
		"four Ollamas, long loads":           {engine.DialectOllama, 4, 1, 25 * time.Second, 12, 1},
		"two Ollamas with four slots":        {engine.DialectOllama, 2, 4, 3 * time.Second, 16, 1},
		"three llama-swaps":                  {engine.DialectLlamaSwap, 3, 2, 5 * time.Second, 12, 1},
		"two Ollamas, two gateways":          {engine.DialectOllama, 2, 1, 8 * time.Second, 6, 2},
	} {
		t.Run(what, func(t *testing.T) {
			if raceEnabled && test.gateways == 1 {
				t.Skip("concurrent as the one with two gateways")
			}
			run(t, func(t *testing.T, env *Env) {
				var engines []sim.Config
				for i := range test.engines {
					engines = append(engines, cold(fmt.Sprintf("e%d", i), test.dialect, test.slots, test.load, "m"))
				}
				g, es, _ := coldEnv(t, env, engines...)
				gs := []*Gateway{g}
				for len(gs) < test.gateways {
					gs = append(gs, env.Gateway(gateway.Config{}))
					gs[len(gs)-1].Serves(t, "m")
				}
				loadsModel(t, es[0], test.dialect, "m")
				time.Sleep(3 * time.Second)

				tr := newTraffic(t)
				begun := time.Now()
				for i, g := range gs {
					n := test.clients / len(gs)
					if i < test.clients%len(gs) {
						n++
					}
					tr.clients(t, g, n, "m", 5, 0)
				}
				// The clients start one after the other, until there is a backlog.
				backlog := time.Duration(test.slots+1) * 170 * time.Millisecond
				for _, e := range es[1:] {
					if e.Stats().Loads == 0 {
						firstLoad(t, e, begun, backlog+2*time.Second)
					}
				}
				time.Sleep(test.load + 2*time.Second)
				was := make([]int64, len(es))
				for i, e := range es {
					was[i] = e.Stats().Finished
				}
				time.Sleep(30 * time.Second)
				total, least := int64(0), int64(1<<60)
				for i, e := range es {
					n := e.Stats().Finished - was[i]
					total, least = total+n, min(least, n)
				}
				tr.end()
				if fair := total / int64(len(es)); least < fair*8/10 {
					t.Errorf("one engine answered %d of %d, want at least 80%% of %d", least, total, fair)
				}
				// The longest wait is that for the one engine that was loaded.
				if n, worst := tr.look("m"); worst > time.Duration(test.clients/test.slots+2)*200*time.Millisecond {
					t.Errorf("%d answers, one after %v: it has waited for a load", n, worst)
				}
				for i, e := range es {
					if loads := e.Stats().Loads; loads != 1 {
						t.Errorf("engine %d: %d loads, want 1", i, loads)
					}
				}
			})
		})
	}
}

// Without standing demand nothing is loaded: neither for a client alone, nor for a burst.
func TestColdWorkersRest(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := coldEnv(t, env, cold("e0", engine.DialectOllama, 2, 8*time.Second, "m"), cold("e1", engine.DialectOllama, 2, 8*time.Second, "m"))
		loadsModel(t, es[0], engine.DialectOllama, "m")
		time.Sleep(3 * time.Second)
		tr := newTraffic(t)
		tr.clients(t, g, 2, "m", 20, 0)
		time.Sleep(time.Minute)
		tr.end()
		for range 5 {
			var wg sync.WaitGroup
			for range 10 { // 0.1 s each, two at a time
				wg.Go(func() {
					if r := ask(t, g, chat("m", true, 5), ""); r.status != 200 {
						t.Error(r)
					}
				})
			}
			wg.Wait()
			time.Sleep(5 * time.Second)
		}
		if loads := es[1].Stats().Loads; loads != 0 {
			t.Errorf("%d loads, want none", loads)
		}
	})
}

// As many workers load a model as are needed, those with the shortest load first. Load times are learned, and known after
// a restart of all workers.
func TestColdWorkersLoadTheFastest(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		loads := []time.Duration{5 * time.Second, 20 * time.Second, 12 * time.Second, 4 * time.Second, 9 * time.Second}
		g := env.Gateway(gateway.Config{})
		var es []*testenv.Engine
		var ws []*Worker
		for i, load := range loads {
			e := env.Engine(cold(fmt.Sprintf("e%d", i), engine.DialectOllama, 4, load, "m"))
			es, ws = append(es, e), append(ws, env.Worker(e, worker.Config{Name: fmt.Sprintf("e%d", i), Slots: 4, Preload: []string{"m"}}))
		}
		g.Serves(t, "m")
		g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 100
		time.Sleep(30 * time.Second)
		for i, e := range es {
			if n := e.Stats().Loads; n != 1 {
				t.Fatalf("engine %d: %d loads at its start, want 1", i, n)
			}
			if i > 0 {
				unloadsModel(t, e, "m")
			}
		}
		time.Sleep(4 * time.Second)
		for i, w := range ws { // they start anew, and remember
			if err := w.Stop(); err != nil {
				t.Fatal(err)
			}
			ws[i] = env.Worker(es[i], worker.Config{Name: fmt.Sprintf("e%d", i), Slots: 4})
		}
		time.Sleep(4 * time.Second)
		beats := recordBeats(t, env)
		time.Sleep(time.Second)
		for i, load := range loads {
			p := beats.of(fmt.Sprintf("e%d", i)).Pools[0]
			if time.Duration(p.LoadMS)*time.Millisecond != load || p.Cold != (i > 0) {
				t.Errorf("engine %d: %+v, want a load of %v", i, p, load)
			}
		}

		tr := newTraffic(t)
		tr.clients(t, g, 10, "m", 20, 0) // six more than the first one runs: two more are needed
		time.Sleep(30 * time.Second)
		tr.end()
		for i, e := range es {
			want := int64(1)
			if i == 3 || i == 4 {
				want = 2
			}
			if n := e.Stats().Loads; n != want {
				t.Errorf("engine %d, whose load takes %v: %d loads, want %d", i, loads[i], n, want)
			}
		}
	})
}

// Engines of which each holds one model, with standing demand for both: nothing is pushed out that is in use.
func TestColdWorkersDoNotThrash(t *testing.T) {
	for _, dialect := range []engine.Dialect{engine.DialectOllama, engine.DialectLlamaSwap} {
		t.Run(string(dialect), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				var engines []sim.Config
				for i := range 3 {
					cfg := cold(fmt.Sprintf("e%d", i), dialect, 2, loadTime, "a", "b", "c")
					cfg.Loaded = 1
					engines = append(engines, cfg)
				}
				g, es, _ := coldEnv(t, env, engines...)
				for i, model := range []string{"a", "b", "c"} {
					loadsModel(t, es[i], dialect, model)
				}
				time.Sleep(3 * time.Second)
				tr := newTraffic(t)
				begun := time.Now()
				tr.clients(t, g, 4, "a", 10, 0)
				tr.clients(t, g, 5, "b", 10, 0)
				// c is not in use: its engine helps with one of the two.
				firstLoad(t, es[2], begun, 4*time.Second)
				steady := 3 * time.Minute
				if raceEnabled {
					steady = 30 * time.Second
				}
				time.Sleep(steady)
				tr.end()
				if n := []int64{es[0].Stats().Loads, es[1].Stats().Loads, es[2].Stats().Loads}; !slices.Equal(n, []int64{1, 1, 2}) {
					t.Errorf("loads %v, want 1, 1 and 2", n)
				}
				for _, m := range []string{"a", "b"} {
					if n, worst := tr.look(m); worst > 2*time.Second {
						t.Errorf("%s: %d answers, one after %v", m, n, worst)
					}
				}
			})
		})
	}
}

// An engine that fails to load is asked again after a while, and its failures are nobody's.
func TestColdWorkerCannotLoad(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := coldEnv(t, env, cold("e0", engine.DialectOllama, 1, 8*time.Second, "m"))
		broken, err := sim.New(cold("e1", engine.DialectOllama, 1, 8*time.Second, "m"))
		if err != nil {
			t.Fatal(err)
		}
		var tries []time.Time
		var mu sync.Mutex
		e1 := env.Handler("e1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/api/generate" {
				broken.ServeHTTP(w, r)
				return
			}
			mu.Lock()
			tries = append(tries, time.Now())
			mu.Unlock()
			http.Error(w, `{"error":"model requires more system memory (9.9 GiB) than is available (1.1 GiB)"}`, http.StatusInternalServerError)
		}))
		env.Worker(e1, worker.Config{Name: "e1", Slots: 1})
		beats := recordBeats(t, env)
		loadsModel(t, es[0], engine.DialectOllama, "m")
		time.Sleep(3 * time.Second)
		tr := newTraffic(t)
		tr.clients(t, g, 4, "m", 5, 0)
		time.Sleep(time.Minute)
		h := beats.of("e1")
		tr.end()
		mu.Lock()
		defer mu.Unlock()
		if len(tries) < 2 || len(tries) > 5 || tries[1].Sub(tries[0]) < 5*time.Second {
			t.Errorf("%d tries: %v", len(tries), tries)
		}
		if !slices.ContainsFunc(h.Capacity.Decisions, func(d subjects.Decision) bool { return strings.Contains(d.Text, "more system memory") }) {
			t.Errorf("it does not say why: %+v", h.Capacity.Decisions)
		}
		if n, worst := tr.look("m"); n < 300 || worst > time.Second {
			t.Errorf("%d answers, one after %v", n, worst)
		}
		if n := broken.Stats().Received; n != 0 {
			t.Errorf("%d requests at the engine that has not loaded the model", n)
		}
	})
}

// Models are loaded at the start, if asked: those that are named, or as many as fit.
func TestColdWorkerPreloads(t *testing.T) {
	for what, test := range map[string]struct {
		dialect engine.Dialect
		preload []string
		holds   int
		loads   int64
		loaded  []string
	}{
		"not asked":               {engine.DialectOllama, nil, 3, 0, nil},
		"one":                     {engine.DialectOllama, []string{"b"}, 3, 1, []string{"b"}},
		"one by its tag":          {engine.DialectOllama, []string{"b:latest"}, 1, 1, []string{"b"}},
		"two":                     {engine.DialectLlamaSwap, []string{"c", "a"}, 3, 2, []string{"a", "c"}},
		"all":                     {engine.DialectOllama, []string{worker.AllModels}, 3, 3, []string{"a", "b", "c"}},
		"all, of which one fits":  {engine.DialectLlamaSwap, []string{worker.AllModels}, 1, 2, []string{"b"}},
		"one that it has not got": {engine.DialectOllama, []string{"x"}, 3, 0, nil},
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				cfg := cold("e", test.dialect, 2, 4*time.Second, "a", "b", "c")
				cfg.Loaded = test.holds
				e := env.Engine(cfg)
				beats := recordBeats(t, env)
				env.Worker(e, worker.Config{Name: "e", Slots: 2, Preload: test.preload})
				g.Serves(t, "a")
				if h := beats.of("e"); test.loads > 0 && !slices.ContainsFunc(h.Pools, func(p subjects.PoolStatus) bool { return !p.Loading.IsZero() }) {
					t.Errorf("no model is being loaded: %+v", h.Pools)
				}
				time.Sleep(20 * time.Second)
				var loaded []string
				for _, p := range beats.of("e").Pools {
					if p.Loaded() {
						loaded = append(loaded, p.Pool)
					}
				}
				if n := e.Stats().Loads; n != test.loads || !slices.Equal(loaded, test.loaded) {
					t.Errorf("%d loads, %q loaded; want %d and %q", n, loaded, test.loads, test.loaded)
				}
				if n := e.Stats().Received; n != 0 {
					t.Errorf("%d requests for it", n)
				}
			})
		})
	}
	t.Run("an engine that does not tell", func(t *testing.T) {
		run(t, func(t *testing.T, env *Env) {
			g := env.Gateway(gateway.Config{})
			e := env.Engine(sim.Config{Name: "e", Models: []string{"a", "b"}, Dialect: engine.DialectOpenAI})
			env.Worker(e, worker.Config{Name: "e", Preload: []string{"b"}})
			g.Serves(t, "a")
			if s := e.Stats(); s.Received != 1 || s.Finished != 1 {
				t.Errorf("%+v", s)
			}
		})
	})
}

// Operators see what is loaded when.
func TestColdWorkerEvents(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := coldEnv(t, env, cold("e0", engine.DialectOllama, 1, 8*time.Second, "m"), cold("e1", engine.DialectOllama, 1, 5*time.Second, "m"))
		loadsModel(t, es[0], engine.DialectOllama, "m")
		time.Sleep(3 * time.Second)
		nc, _ := env.Connect("events")
		var mu sync.Mutex
		var seen []string
		if _, err := nc.Subscribe(subjects.AllEvents, func(m *nats.Msg) {
			var e subjects.Event
			if subjects.Unmarshal(m.Data, &e) == nil && strings.HasPrefix(string(e.Kind), "model-") {
				mu.Lock()
				seen = append(seen, fmt.Sprintf("%s %s %s", e.Kind, e.Worker, e.Model))
				mu.Unlock()
			}
		}); err != nil {
			t.Fatal(err)
		}
		tr := newTraffic(t)
		tr.clients(t, g, 4, "m", 5, 0)
		time.Sleep(10 * time.Second)
		tr.end()
		time.Sleep(time.Second)
		unloadsModel(t, es[1], "m")
		time.Sleep(2 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if want := []string{"model-loading e1 m", "model-loaded e1 m", "model-evicted e1 m"}; !slices.Equal(seen, want) {
			t.Errorf("events %q, want %q", seen, want)
		}
	})
}

// While no worker has the model loaded, as many load it as there are requests for, those with the shortest load first. The
// requests wait for none of the loads in particular: they go to the worker that is ready first.
func TestColdWorkersAllAtFirst(t *testing.T) {
	for what, test := range map[string]struct {
		loads   []time.Duration
		clients int
		loaded  []int64       // loads of each engine
		worst   time.Duration // of a first token
	}{
		"one request":                     {[]time.Duration{8 * time.Second, 8 * time.Second}, 1, []int64{1, 0}, 8 * time.Second},
		"two requests, and unlike loads":  {[]time.Duration{25 * time.Second, 3 * time.Second, 40 * time.Second}, 2, nil, 4 * time.Second},
		"many requests, and unlike loads": {[]time.Duration{25 * time.Second, 3 * time.Second}, 6, []int64{1, 1}, 4 * time.Second},
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				var engines []sim.Config
				for i, load := range test.loads {
					engines = append(engines, cold(fmt.Sprintf("e%d", i), engine.DialectOllama, 1, load, "m"))
				}
				g, es, _ := coldEnv(t, env, engines...)
				tr := newTraffic(t)
				tr.clients(t, g, test.clients, "m", 5, 0)
				time.Sleep(50 * time.Second)
				tr.end()
				var loads []int64
				for _, e := range es {
					loads = append(loads, e.Stats().Loads)
				}
				slices.Sort(loads)
				slices.Reverse(loads)
				if test.loaded != nil && !slices.Equal(loads, test.loaded) {
					t.Errorf("loads %v, want %v", loads, test.loaded)
				}
				if n, worst := tr.look("m"); n < 300 || worst > test.worst+300*time.Millisecond {
					t.Errorf("%d answers, one after %v, want at most %v", n, worst, test.worst)
				}
			})
		})
	}
}

// If no worker can load the model, the clients get the engine's own words.
func TestColdWorkersCannotLoad(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		for _, name := range []string{"e0", "e1"} {
			eng, err := sim.New(cold(name, engine.DialectOllama, 1, 8*time.Second, "m"))
			if err != nil {
				t.Fatal(err)
			}
			e := env.Handler(name, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPost {
					eng.ServeHTTP(w, r)
					return
				}
				http.Error(w, `{"error":"model requires more system memory"}`, http.StatusInternalServerError)
			}))
			env.Worker(e, worker.Config{Name: name, Slots: 1})
		}
		g.Serves(t, "m")
		r := ask(t, g, chat("m", false, 5), "")
		if r.status < 500 || r.took > 20*time.Second {
			t.Errorf("%d after %v: %s", r.status, r.took, r.body)
		}
	})
}
