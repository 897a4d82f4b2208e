package scenarios

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

const loadTime = 8 * time.Second

// swapping is an engine that holds one of its models. A token takes 100 ms.
func swapping(name string, dialect engine.Dialect, models ...string) sim.Config {
	return sim.Config{Name: name, Models: models, Slots: 4, Loaded: 1, LoadTime: loadTime, Dialect: dialect,
		PrefillRate: 1000, ITLBase: 100 * time.Millisecond}
}

// swapEnv is a gateway, and a worker for each engine.
func swapEnv(t *testing.T, env *Env, engines ...sim.Config) (*Gateway, []*testenv.Engine, []*Worker) {
	t.Helper()
	g := env.Gateway(gateway.Config{})
	var es []*testenv.Engine
	var ws []*Worker
	for _, cfg := range engines {
		e := env.Engine(cfg)
		es = append(es, e)
		ws = append(ws, env.Worker(e, worker.Config{Name: cfg.Name, Slots: cfg.Slots}))
	}
	for _, m := range engines[0].Models {
		g.Serves(t, m)
	}
	g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 100
	return g, es, ws
}

// swapClients are clients that each send one request after the other.
type swapClients struct {
	mu   sync.Mutex
	took map[string][]time.Duration // until the first byte, by model
	wg   sync.WaitGroup
	stop context.CancelFunc
	ctx  context.Context
}

func newTraffic(t *testing.T) *swapClients {
	ctx, stop := context.WithCancel(t.Context())
	tr := &swapClients{took: make(map[string][]time.Duration), ctx: ctx, stop: stop}
	t.Cleanup(tr.end)
	return tr
}

// end stops the clients and waits for their running requests.
func (tr *swapClients) end() {
	tr.stop()
	tr.wg.Wait()
}

// clients starts n clients for a model, with a pause between requests.
func (tr *swapClients) clients(t *testing.T, g *Gateway, n int, model string, tokens int, pause time.Duration) {
	for i := range n {
		tr.wg.Go(func() {
			time.Sleep(time.Duration(i) * 170 * time.Millisecond)
			for tr.ctx.Err() == nil {
				begun := time.Now()
				first, err := firstByte(t.Context(), g, model, tokens)
				if err != nil {
					t.Errorf("%s: %v", model, err)
					return
				}
				tr.mu.Lock()
				tr.took[model] = append(tr.took[model], first.Sub(begun))
				tr.mu.Unlock()
				select {
				case <-time.After(pause):
				case <-tr.ctx.Done():
				}
			}
		})
	}
}

// firstByte streams an answer to its end and returns when it started.
func firstByte(ctx context.Context, g *Gateway, model string, tokens int) (time.Time, error) {
	resp, err := post(ctx, g, "/v1/chat/completions", chat(model, true, tokens), "")
	if err != nil {
		return time.Time{}, err
	}
	defer resp.Body.Close()
	body := bufio.NewReader(resp.Body)
	for {
		line, err := body.ReadString('\n')
		if err != nil {
			return time.Time{}, err
		}
		if line != "\n" && line[0] != ':' { // comments keep the connection open while it waits
			break
		}
	}
	first := time.Now()
	rest, err := io.ReadAll(body)
	if err == nil && (resp.StatusCode != http.StatusOK || !strings.Contains(string(rest), "[DONE]")) {
		err = fmt.Errorf("%d: %s", resp.StatusCode, rest)
	}
	return first, err
}

// look returns the number of answers and the longest wait so far.
func (tr *swapClients) look(model string) (n int, worst time.Duration) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if n = len(tr.took[model]); n > 0 {
		worst = slices.Max(tr.took[model])
	}
	return n, worst
}

func within(t *testing.T, what string, got, least, most time.Duration) {
	t.Helper()
	if got < least || got > most {
		t.Errorf("%s: %v, want %v to %v", what, got, least, most)
	}
}

func TestSwapIdleWorkerLoadsAtOnce(t *testing.T) {
	for _, dialect := range []engine.Dialect{engine.DialectOllama, engine.DialectLlamaSwap} {
		run(t, func(t *testing.T, env *Env) {
			g, es, _ := swapEnv(t, env, swapping("e", dialect, "a", "b", "c"))
			for i, model := range []string{"a", "b", "a", "c"} {
				for _, stream := range []bool{true, false} {
					r := ask(t, g, chat(model, stream, 1), "")
					want := loadTime
					if !stream { // the same model again
						want = 0
					}
					if r.status != 200 || r.err != nil {
						t.Fatalf("%s: %d %v %s", model, r.status, r.err, r.body)
					}
					within(t, fmt.Sprintf("%s, request %d for %s", dialect, i, model), r.took, want, want+200*time.Millisecond)
				}
				time.Sleep(2 * time.Second)
			}
			if loads := es[0].Stats().Loads; loads != 4 {
				t.Errorf("%s: %d loads, want 4", dialect, loads)
			}
		})
	}
}

func TestSwapWaitsForWhatIsLoaded(t *testing.T) {
	for _, dialect := range []engine.Dialect{engine.DialectOllama, engine.DialectLlamaSwap} {
		run(t, func(t *testing.T, env *Env) {
			g, es, _ := swapEnv(t, env, swapping("e", dialect, "a", "b", "c"))
			tr := newTraffic(t)
			tr.clients(t, g, 3, "a", 20, 0)
			time.Sleep(30 * time.Second)

			// The engine is always busy: b waits for its time, at most 2 s for running requests,
			// and its load.
			begun := time.Now()
			first, err := firstByte(t.Context(), g, "b", 5)
			if err != nil {
				t.Fatal(err)
			}
			within(t, "b, while a has work", first.Sub(begun), 10*time.Second+loadTime, 13*time.Second+loadTime)
			if _, worst := tr.look("a"); worst > loadTime+time.Second { // except during the first load
				t.Errorf("a waited %v before b was loaded", worst)
			}

			// b is idle: a comes back after a moment, and c does not come in between.
			time.Sleep(2*loadTime + 5*time.Second)
			if _, worst := tr.look("a"); worst > 2*loadTime+6*time.Second {
				t.Errorf("a waited %v for b to be over", worst)
			}
			if loads := es[0].Stats().Loads; loads != 3 {
				t.Errorf("%d loads, want 3", loads)
			}
			tr.end()
		})
	}
}

// Both models always have requests.
func TestSwapDoesNotThrash(t *testing.T) {
	if testing.Short() {
		t.Skip("keeps an engine busy for half an hour")
	}
	const minutes = 5
	type result struct {
		loads  int64
		served map[string]int
		worst  map[string]time.Duration
	}
	run := func(dialect engine.Dialect, models ...string) (res result) {
		run(t, func(t *testing.T, env *Env) {
			g, es, _ := swapEnv(t, env, swapping("e", dialect, models...))
			tr := newTraffic(t)
			for _, m := range models {
				tr.clients(t, g, 3, m, 20, time.Second)
			}
			time.Sleep(minutes * time.Minute)
			res = result{es[0].Stats().Loads, map[string]int{}, map[string]time.Duration{}}
			tr.end()
			for _, m := range models {
				res.served[m], res.worst[m] = tr.look(m)
				res.worst[m] = res.worst[m].Round(100 * time.Millisecond)
			}
		})
		return res
	}
	show := func(what string, r result) {
		total := 0
		for _, n := range r.served {
			total += n
		}
		t.Logf("%-42s %4.1f swaps/min, %4d served, longest wait of each %v", what, float64(r.loads)/minutes, total, r.worst)
	}
	sets := [][]string{{"a", "b"}, {"a", "b", "c", "d", "e"}}
	if raceEnabled {
		sets = sets[:1]
	}
	for _, models := range sets {
		for _, dialect := range []engine.Dialect{engine.DialectOllama, engine.DialectLlamaSwap} {
			r := run(dialect, models...)
			show(fmt.Sprintf("%d models, %s, by the rule", len(models), dialect), r)
			// A turn is a load, a stay of two load times, and the requests that run then.
			const turn = 3 * loadTime
			if most := int64(minutes*time.Minute/turn) + 2; r.loads > most {
				t.Errorf("%s: %d loads in %d min, want at most %d", dialect, r.loads, minutes, most)
			}
			for _, m := range models {
				// The others' turns, with 2 s each for running requests, and its own load.
				if most := time.Duration(len(models)-1)*(turn+4*time.Second) + loadTime + 4*time.Second; r.worst[m] > most || r.served[m] == 0 {
					t.Errorf("%s: %s: %d served, longest wait %v, want at most %v", dialect, m, r.served[m], r.worst[m], most)
				}
			}
		}
		show(fmt.Sprintf("%d models, engine without reports", len(models)), run(engine.DialectOpenAI, models...))
	}
}

func TestSwapWorkersSplitByModel(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := swapEnv(t, env, swapping("e1", engine.DialectOllama, "a", "b"), swapping("e2", engine.DialectOllama, "a", "b"))
		if r := ask(t, g, chat("a", true, 5), ""); r.status != 200 {
			t.Fatal(r)
		}
		time.Sleep(3 * time.Second)
		if r := ask(t, g, chat("b", true, 5), ""); r.status != 200 {
			t.Fatal(r)
		}
		time.Sleep(3 * time.Second)
		if one, two := es[0].Stats().Loads, es[1].Stats().Loads; one != 1 || two != 1 {
			t.Fatalf("%d and %d loads, want the second model where nothing was loaded", one, two)
		}
		tr := newTraffic(t)
		tr.clients(t, g, 3, "a", 20, 700*time.Millisecond)
		tr.clients(t, g, 3, "b", 20, 700*time.Millisecond)
		time.Sleep(3 * time.Minute)
		tr.end()
		if one, two := es[0].Stats().Loads, es[1].Stats().Loads; one != 1 || two != 1 {
			t.Errorf("%d and %d loads, want 1 each", one, two)
		}
		for _, m := range []string{"a", "b"} {
			n, worst := tr.look(m)
			t.Logf("%s: %d served, longest wait %v", m, n, worst)
			if worst > time.Second {
				t.Errorf("%s waited %v", m, worst)
			}
		}
		// Suddenly all clients want a: the other worker helps once that is quicker than waiting.
		tr = newTraffic(t)
		tr.clients(t, g, 12, "a", 60, 0)
		time.Sleep(time.Minute)
		tr.end()
		if one, two := es[0].Stats().Loads, es[1].Stats().Loads; one+two != 3 {
			t.Errorf("%d and %d loads, want one more", one, two)
		}
	})
}

func TestSwapBothFit(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		cfg := swapping("e", engine.DialectOllama, "a", "b", "c")
		cfg.Loaded = 2
		g, es, _ := swapEnv(t, env, cfg)
		for _, m := range []string{"a", "b"} {
			if r := ask(t, g, chat(m, true, 5), ""); r.status != 200 {
				t.Fatal(r)
			}
			time.Sleep(3 * time.Second)
		}
		tr := newTraffic(t)
		tr.clients(t, g, 2, "a", 20, 100*time.Millisecond)
		tr.clients(t, g, 1, "b", 20, 100*time.Millisecond)
		time.Sleep(time.Minute)
		if loads := es[0].Stats().Loads; loads != 2 {
			t.Errorf("%d loads of two models that fit", loads)
		}
		for _, m := range []string{"a", "b"} {
			if n, worst := tr.look(m); n < 25 || worst > time.Second {
				t.Errorf("%s: %d served, longest wait %v", m, n, worst)
			}
		}
		tr.end()
	})
}

// A request that is cancelled before its model is loaded changes nothing. One that is cancelled
// during the load leaves the others of its model alone.
func TestSwapForAClientThatLeaves(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := swapEnv(t, env, swapping("e", engine.DialectLlamaSwap, "a", "b"))
		tr := newTraffic(t)
		tr.clients(t, g, 1, "a", 50, 0)
		time.Sleep(loadTime + 3*time.Second)
		for _, after := range []time.Duration{9 * time.Second, 11 * time.Second} { // waiting for its turn; a has started to make room
			ctx, cancel := context.WithTimeout(t.Context(), after)
			if _, err := firstByte(ctx, g, "b", 5); ctx.Err() == nil {
				t.Errorf("b was answered, or failed: %v", err)
			}
			cancel()
		}
		time.Sleep(10 * time.Second)
		if loads := es[0].Stats().Loads; loads != 1 {
			t.Errorf("%d loads, want none for those who left", loads)
		}
		if n, worst := tr.look("a"); n < 5 || worst > loadTime+time.Second {
			t.Errorf("a: %d served, longest wait %v", n, worst)
		}
		// It is cancelled in the middle of the load.
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var others sync.WaitGroup
		others.Go(func() { firstByte(ctx, g, "b", 5) })
		others.Go(func() {
			time.Sleep(time.Second)
			begun := time.Now()
			first, err := firstByte(t.Context(), g, "b", 5)
			if err != nil {
				t.Error(err)
			}
			within(t, "the request that stayed", first.Sub(begun), 10*time.Second, 9*time.Second+5*time.Second+loadTime+time.Second)
		})
		others.Wait()
		tr.end()
		if es[0].Stats().Loads < 2 {
			t.Error("b was never loaded")
		}
	})
}

// A worker that drains in the middle of a load serves the requests that wait for it.
func TestSwapDrain(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, ws := swapEnv(t, env, swapping("e", engine.DialectOllama, "a", "b"))
		var asked sync.WaitGroup
		asked.Go(func() {
			if r := ask(t, g, chat("b", true, 5), ""); r.status != 200 || words(content(t, r.body)) != 5 {
				t.Errorf("%d %s", r.status, r.body)
			}
		})
		time.Sleep(loadTime / 2)
		if err := ws[0].Stop(); err != nil {
			t.Error(err)
		}
		asked.Wait()
		if s := es[0].Stats(); s.Finished != 1 || s.Loads != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// Batch waits for its share of the turns while others have work, and is served in the end.
func TestSwapTiers(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, _ := swapEnv(t, env, swapping("e", engine.DialectOllama, "a", "b"))
		tr := newTraffic(t)
		tr.clients(t, g, 3, "a", 20, 0)
		time.Sleep(loadTime + 20*time.Second)
		r := ask(t, g, chat("b", true, 5, `"service_tier":"flex"`), "")
		if r.status != 200 {
			t.Fatal(r)
		}
		within(t, "batch, with standard at four times its share", r.took, 40*time.Second+loadTime, 44*time.Second+loadTime)
		tr.end()
	})
}

// A conversation whose model was evicted continues: on the same worker after a swap, or where its
// model is loaded.
func TestSwapConversation(t *testing.T) {
	const first = `{"model":"a","stream":true,"max_tokens":5,"prompt_cache_key":"k","messages":[{"role":"user","content":"one two three"}]}`
	for name, two := range map[string]bool{"one worker": false, "another has it loaded": true} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				engines := []sim.Config{swapping("e1", engine.DialectOllama, "a", "b")}
				if two {
					engines = append(engines, sim.Config{Name: "e2", Models: []string{"a"}, Slots: 4, PrefillRate: 1000, ITLBase: time.Second})
				}
				g, _, _ := swapEnv(t, env, engines[:1]...)
				if r := ask(t, g, first, ""); r.status != 200 {
					t.Fatal(r)
				}
				if two {
					e := env.Engine(engines[1])
					env.Worker(e, worker.Config{Name: "e2", Slots: 4})
					time.Sleep(3 * time.Second)
				}
				tr := newTraffic(t)
				tr.clients(t, g, 2, "b", 20, 0)
				time.Sleep(loadTime + 20*time.Second)
				r := ask(t, g, first, "")
				if r.status != 200 {
					t.Fatal(r)
				}
				if two {
					within(t, "its next turn", r.took, 0, 8*time.Second)
				} else {
					within(t, "its next turn", r.took, 10*time.Second+loadTime, 14*time.Second+loadTime)
				}
				tr.end()
			})
		})
	}
}

// An engine that fails to load a model does not block the others.
func TestSwapLoadFails(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := swapEnv(t, env, swapping("e", engine.DialectOllama, "a", "b"))
		tr := newTraffic(t)
		tr.clients(t, g, 2, "a", 20, 0)
		time.Sleep(loadTime + 5*time.Second)
		r := ask(t, g, chat("b", false, 5), "fail=500")
		if r.status < 500 {
			t.Errorf("status %d", r.status)
		}
		within(t, "the failure", r.took, 10*time.Second, 30*time.Second)
		n, _ := tr.look("a")
		time.Sleep(20 * time.Second)
		if more, worst := tr.look("a"); more < n+10 || worst > 20*time.Second {
			t.Errorf("a: %d served before and %d after, longest wait %v", n, more, worst)
		}
		if loads := es[0].Stats().Loads; loads != 1 {
			t.Errorf("%d loads", loads)
		}
		tr.end()
	})
}

// Of several workers that could swap, one does.
func TestSwapOneOfSeveral(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := swapEnv(t, env, swapping("e1", engine.DialectOllama, "a", "b"), swapping("e2", engine.DialectOllama, "a", "b"),
			swapping("e3", engine.DialectOllama, "a", "b"))
		loads := func() (n int64) {
			for _, e := range es {
				n += e.Stats().Loads
			}
			return n
		}
		for _, e := range es { // other clients have used them
			client := &http.Client{Transport: e.Transport}
			resp, err := client.Post(e.URL+"/v1/chat/completions", "application/json", strings.NewReader(chat("a", false, 1)))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		time.Sleep(3 * time.Second)
		tr := newTraffic(t)
		tr.clients(t, g, 6, "a", 20, 0)
		time.Sleep(20 * time.Second)
		begun := time.Now()
		first, err := firstByte(t.Context(), g, "b", 20)
		if err != nil {
			t.Fatal(err)
		}
		within(t, "b", first.Sub(begun), 10*time.Second+loadTime, 17*time.Second+loadTime)
		if n := loads(); n != 4 {
			t.Errorf("%d loads, want one more than the three", n)
		}
		tr.clients(t, g, 2, "b", 20, 0)
		time.Sleep(time.Minute)
		tr.end()
		if n := loads(); n != 4 {
			t.Errorf("%d loads in the end, want one more than the three", n)
		}
		if n, worst := tr.look("a"); worst > 3*time.Second {
			t.Errorf("a: %d served, longest wait %v", n, worst)
		}
	})
}
