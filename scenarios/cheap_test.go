package scenarios

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// cheapPaths are those of calls that need no slot, each with a body.
var cheapPaths = map[string]string{
	"/tokenize": `{"model":"m","prompt":"a b c"}`, "/detokenize": `{"model":"m","tokens":[1,2]}`,
	"/v1/tokenize": `{"model":"m","prompt":"a"}`, "/v1/detokenize": `{"model":"m","tokens":[[1]]}`,
	"/v1/messages/count_tokens":           `{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}`,
	"/v1/messages/count_tokens?beta=true": `{"model":"m","messages":[]}`,
	"/v1/responses/input_tokens":          `{"model":"m","input":"hi"}`,
	"/apply-template":                     `{"model":"m","messages":[]}`, "/chat_tokenize": `{"model":"m","messages":[]}`,
	"/v1/chat/completions/render": `{"model":"m","messages":[]}`,
}

// stuck is an engine of model m whose generations last until the test's end, and which answers everything else with cheap.
type stuck struct {
	generating atomic.Int64
	cheap      http.HandlerFunc
}

func (s *stuck) serve(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	if strings.HasSuffix(r.URL.Path, "/chat/completions") {
		s.generating.Add(1)
		defer s.generating.Add(-1)
		<-r.Context().Done()
		return
	}
	if s.cheap != nil {
		s.cheap(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"count":%d}`, len(b))
}

// full starts a worker with two slots for an engine that generates without end, and fills the slots and a queue behind them.
func full(t *testing.T, env *Env, g *Gateway, name string, cheap http.HandlerFunc) (*stuck, *Worker) {
	t.Helper()
	s := &stuck{cheap: cheap}
	w := env.Worker(env.Handler(name, engineOf(s.serve, "m")), worker.Config{Name: name, Slots: 2})
	g.Serves(t, "m")
	return s, w
}

// fill sends requests that generate until the test ends.
func fill(t *testing.T, g *Gateway, n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() { drain(post(ctx, g, "/v1/chat/completions", chat("m", false, 10), "")) })
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	time.Sleep(time.Second)
}

// Cheap calls are answered at once while every slot generates and requests wait: of all kinds, at every gateway.
func TestCheapCallsNeedNoSlot(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, other := env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{})
		last := recordBeats(t, env)
		a, _ := full(t, env, g, "a", nil)
		b, _ := full(t, env, g, "b", nil)
		other.Serves(t, "m")
		fill(t, g, 10)
		if a.generating.Load() != 2 || b.generating.Load() != 2 {
			t.Fatalf("generating: %d and %d, want 2 each", a.generating.Load(), b.generating.Load())
		}
		before := []subjects.Heartbeat{last.of("a"), last.of("b")}
		for path, body := range cheapPaths {
			for i, at := range []*Gateway{g, other} {
				r := do(t, at, "POST", path, body)
				if want := fmt.Sprintf(`{"count":%d}`, len(body)); r.status != 200 || r.body != want || r.took > 50*time.Millisecond {
					t.Errorf("%s at gateway %d: %d %q after %v, want 200 %s at once", path, i, r.status, r.body, r.took, want)
				}
			}
		}
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				if r := do(t, g, "POST", "/tokenize", cheapPaths["/tokenize"]); r.status != 200 {
					t.Errorf("in a burst: %d %q", r.status, r.body)
				}
			})
		}
		wg.Wait()
		time.Sleep(time.Second)
		for _, was := range before { // nothing that bids depend on has changed
			h := last.of(was.Name)
			if h.InFlight != 2 || h.Done != was.Done || h.Failed != was.Failed || h.Slots != was.Slots ||
				h.Pools[0].Mean != was.Pools[0].Mean || h.Pools[0].Rung != was.Pools[0].Rung || (h.Pools[0].Curve == nil) != (was.Pools[0].Curve == nil) {
				t.Errorf("worker %s says %+v, before the cheap calls %+v", h.Name, h, was)
			}
		}
		if a.generating.Load() != 2 || b.generating.Load() != 2 {
			t.Errorf("generating afterwards: %d and %d, want 2 each", a.generating.Load(), b.generating.Load())
		}
	})
}

// What runs the model is no cheap call: it waits for a slot.
func TestRerankNeedsASlot(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		full(t, env, g, "a", nil)
		fill(t, g, 2)
		for _, path := range []string{"/v1/rerank", "/v1/embeddings", "/score", "/classify", "/tokenize/x", "/v1/messages"} {
			r := do(t, g, "POST", path, `{"model":"m"}`, "X-Request-Timeout", "2")
			if path == "/tokenize/x" {
				wantError(t, r, 404, "path_not_allowed")
			} else {
				wantError(t, r, 504, "deadline_exceeded")
			}
		}
	})
}

// A call that a worker takes away with it is answered by another one, or by the same when it is back.
func TestCheapCallsOutliveWorkers(t *testing.T) {
	for about, end := range map[string]func(t *testing.T, w *Worker, e *testenv.Engine){
		"the worker is killed":     func(t *testing.T, w *Worker, e *testenv.Engine) { w.Kill(e) },
		"the worker freezes":       func(t *testing.T, w *Worker, e *testenv.Engine) { w.Link.Freeze() },
		"the engine is killed":     func(t *testing.T, w *Worker, e *testenv.Engine) { e.Kill() },
		"the worker stops in time": func(t *testing.T, w *Worker, e *testenv.Engine) { w.Stop() },
	} {
		for _, others := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, others %t", about, others), func(t *testing.T) {
				runBoth(t, func(t *testing.T, env *Env) {
					g := env.Gateway(gateway.Config{})
					hangs := make(chan struct{}, 10)
					e := env.Handler("dies", engineOf(func(w http.ResponseWriter, r *http.Request) {
						io.Copy(io.Discard, r.Body)
						hangs <- struct{}{}
						select {
						case <-r.Context().Done():
						case <-time.After(15 * time.Second):
						}
						io.WriteString(w, `{"count":1}`)
					}, "m"))
					w := env.Worker(e, worker.Config{Name: "dies", Slots: 1})
					g.Serves(t, "m")
					got := make(chan reply, 1)
					go func() { got <- do(t, g, "POST", "/tokenize", `{"model":"m","prompt":"a"}`) }()
					<-hangs
					healthy := func() { full(t, env, g, "healthy", nil) }
					if others {
						healthy()
					}
					go end(t, w, e)
					if !others {
						time.Sleep(8 * time.Second)
						healthy()
					}
					if r := <-got; r.status != 200 || !strings.HasPrefix(r.body, `{"count":`) {
						t.Errorf("got %d %q, %v, want an answer", r.status, r.body, r.err)
					}
					emptyQueues(t, env)
				})
			})
		}
	}
}

// So many run at a worker, so many wait at a gateway, and the others are refused.
func TestCheapCallsAreBounded(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		var now, most atomic.Int64
		release := make(chan struct{})
		full(t, env, g, "a", func(w http.ResponseWriter, r *http.Request) {
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-release
			now.Add(-1)
			io.WriteString(w, `{"count":1}`)
		})
		var wg sync.WaitGroup
		var refused, answered atomic.Int64
		for range 32 + 1024 + 10 {
			wg.Go(func() {
				switch r := do(t, g, "POST", "/tokenize", `{"model":"m","prompt":"a"}`); r.status {
				case 200:
					answered.Add(1)
				case 429:
					refused.Add(1)
					wantError(t, r, 429, "queue_full")
					if r.header.Get("Retry-After") != "1" {
						t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
					}
				default:
					t.Errorf("got %d %q %v", r.status, r.body, r.err)
				}
			})
		}
		time.Sleep(2 * time.Second)
		if most.Load() != 32 || refused.Load() != 10 {
			t.Errorf("%d run, %d were refused, want 32 and 10", most.Load(), refused.Load())
		}
		if r := do(t, g, "POST", "/v1/chat/completions", chat("m", false, 1), "X-Request-Timeout", "1"); r.status != 504 {
			t.Errorf("a generation meanwhile: %d %q, want one that began", r.status, r.body)
		}
		close(release)
		wg.Wait()
		if answered.Load() != 32+1024 || most.Load() != 32 {
			t.Errorf("%d answered, %d at once, want %d and 32", answered.Load(), most.Load(), 32+1024)
		}
	})
}

// With several gateways a worker still runs no more; each gateway has a part.
func TestGatewaysShareCheapCalls(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var now, most atomic.Int64
		gs := []*Gateway{env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{})}
		full(t, env, gs[0], "a", func(w http.ResponseWriter, r *http.Request) {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			time.Sleep(10 * time.Millisecond)
			now.Add(-1)
			io.WriteString(w, `{"count":1}`)
		})
		var wg sync.WaitGroup
		for _, g := range gs {
			g.Serves(t, "m")
		}
		for _, g := range gs {
			for range 300 {
				wg.Go(func() {
					if r := do(t, g, "POST", "/tokenize", `{"model":"m","prompt":"a"}`); r.status != 200 {
						t.Errorf("got %d %q %v", r.status, r.body, r.err)
					}
				})
			}
		}
		wg.Wait()
		if most.Load() > 32 || most.Load() < 20 {
			t.Errorf("%d ran at once, want at most 32, and 10 of each gateway", most.Load())
		}
	})
}

// Keys hold for cheap calls: who may call, which models, how many requests. They use up no tokens.
func TestCheapCallsAndKeys(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{Auth: gateway.AuthRequired})
		key := env.AddKey("acme", func(k *policy.Key) { k.RPM, k.TPM = 3, 1000 })
		elsewhere := env.AddKey("other", func(k *policy.Key) { k.Models = []string{"n"} })
		one := env.AddKey("one", func(k *policy.Key) { k.Concurrency = 1 })
		hold := make(chan struct{})
		env.Worker(env.Handler("a", engineOf((&stuck{cheap: func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Hold") != "" {
				<-hold
			}
			io.WriteString(w, `{"count":1}`)
		}}).serve, "m")), worker.Config{Name: "a", Slots: 1})
		testenv.Eventually(t, "worker", 10*time.Second, func() bool { return len(g.Models()) > 0 })
		time.Sleep(2 * time.Second)
		const path = "/v1/messages/count_tokens"
		body := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("a ", 5000) + `"}]}`
		as := func(key string) []string { return []string{"X-Api-Key", key} }
		wantError(t, do(t, g, "POST", path, body), 401, "invalid_api_key")
		wantError(t, do(t, g, "POST", path, body, as(elsewhere)...), 403, "model_not_allowed")
		for i := range 3 {
			r := do(t, g, "POST", path, body, as(key)...)
			if r.status != 200 || r.header.Get("X-Ratelimit-Remaining-Tokens") != "1000" {
				t.Errorf("call %d: %d %q, tokens left %q, want all", i, r.status, r.body, r.header.Get("X-Ratelimit-Remaining-Tokens"))
			}
		}
		wantError(t, do(t, g, "POST", path, body, as(key)...), 429, "rate_limit_exceeded")
		got := make(chan reply, 1)
		go func() { got <- do(t, g, "POST", path, body, "X-Api-Key", one, "X-Hold", "1") }()
		time.Sleep(time.Second)
		wantError(t, do(t, g, "POST", path, body, as(one)...), 429, "rate_limit_exceeded")
		close(hold)
		<-got
		if r := do(t, g, "POST", path, body, as(one)...); r.status != 200 {
			t.Errorf("after the call: %d %q", r.status, r.body)
		}
	})
}

// A tier's limits are those of its queue, which cheap calls do not enter.
func TestCheapCallsAndTiers(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		env.SetPolicy(func(p *policy.Policy) {
			for i := range p.Tiers {
				p.Tiers[i].MaxQueue, p.Tiers[i].MaxWait = 1, policy.Duration(100*time.Millisecond)
			}
		})
		full(t, env, g, "a", nil)
		fill(t, g, 2)
		var wg sync.WaitGroup
		defer wg.Wait()
		for range 5 {
			wg.Go(func() { do(t, g, "POST", "/v1/chat/completions", chat("m", false, 1)) })
			if r := do(t, g, "POST", "/tokenize", `{"model":"m","service_tier":"priority"}`); r.status != 200 || r.header.Get("X-Service-Tier") != "priority" {
				t.Errorf("got %d %q of tier %s", r.status, r.body, r.header.Get("X-Service-Tier"))
			}
		}
		if r := do(t, g, "POST", "/tokenize", `{"model":"m","service_tier":"gold"}`); r.status != 400 {
			t.Errorf("an unknown tier: %d %q", r.status, r.body)
		}
	})
}

// A worker that accepts no requests gets no cheap calls either: another one does, or they wait as requests do.
func TestCheapCallsAvoidWorkersThatAcceptNothing(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{Explain: gateway.ExplainAlways})
		full(t, env, g, "a", nil)
		full(t, env, g, "b", nil)
		by := func() string {
			r := do(t, g, "POST", "/detokenize", cheapPaths["/detokenize"])
			if r.status != 200 {
				t.Errorf("got %d %q", r.status, r.body)
			}
			return r.header.Get("X-Pulley-Worker")
		}
		setWorker(env, "a", policy.Worker{Cordoned: true})
		for range 20 {
			if w := by(); w != "b" {
				t.Fatalf("served by %q, want b", w)
			}
		}
		setWorker(env, "b", policy.Worker{Cordoned: true})
		got := make(chan string, 1)
		go func() { got <- by() }()
		time.Sleep(5 * time.Second)
		select {
		case w := <-got:
			t.Fatalf("answered by %q, which is cordoned", w)
		default:
		}
		setWorker(env, "a", policy.Worker{})
		if w := <-got; w != "a" {
			t.Errorf("served by %q, want a", w)
		}
		env.SetPolicy(func(p *policy.Policy) { p.Pools = map[string]policy.Pool{"m": {Paused: true}} })
		go func() { got <- by() }()
		time.Sleep(5 * time.Second)
		select {
		case w := <-got:
			t.Fatalf("answered by %q though the pool is paused", w)
		default:
		}
		env.SetPolicy(func(p *policy.Policy) { p.Pools = nil })
		if w := <-got; w != "a" {
			t.Errorf("served by %q, want a", w)
		}
	})
}

// Bodies and answers of any size pass, and an aborted call is aborted at the engine.
func TestLargeAndAbortedCheapCalls(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		aborted := make(chan struct{}, 1)
		full(t, env, g, "a", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Hold") != "" {
				<-r.Context().Done()
				aborted <- struct{}{}
				return
			}
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"tokens":[`+strings.Repeat("100000,", 500_000)+`1]}`)
		})
		fill(t, g, 3)
		if r := do(t, g, "POST", "/tokenize", `{"model":"m","prompt":"`+strings.Repeat("a ", 1<<20)+`"}`); r.status != 200 || len(r.body) != 11+7*500_000+3 {
			t.Errorf("got %d, %d bytes, %v", r.status, len(r.body), r.err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		req, _ := http.NewRequestWithContext(ctx, "POST", "http://gateway/tokenize", strings.NewReader(`{"model":"m"}`))
		req.Header.Set("X-Hold", "1")
		if resp, err := g.Client.Do(req); err == nil {
			t.Errorf("got %d", resp.StatusCode)
		}
		begun := time.Now()
		<-aborted
		if took := time.Since(begun); took > 100*time.Millisecond {
			t.Errorf("the engine's call was aborted after %v", took)
		}
	})
}

// What an engine says of a cheap call reaches the client; only where another engine may know better is that asked, once.
func TestEngineErrorsOfCheapCalls(t *testing.T) {
	for _, c := range []struct {
		status, calls int // calls of the two engines together
		body          string
	}{
		{400, 1, `{"error":{"message":"prompt is missing","type":"invalid_request_error","param":"prompt","code":null}}`},
		{422, 1, `{"detail":[{"loc":["body","prompt"],"msg":"field required"}]}`},
		{501, 1, `{"error":{"message":"not implemented"}}`},
		{404, 2, `{"detail":"Not Found"}`},
		{500, 2, `{"error":{"message":"tokenizer died"}}`},
		{429, 2, `{"error":{"message":"slow down"}}`},
		{503, 2, `{"error":{"message":"loading"}}`},
		{529, 2, `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`},
		{200, 2, "<html>"},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				last := recordBeats(t, env)
				var calls atomic.Int64
				for _, name := range []string{"a", "b"} {
					ct := "application/json"
					if c.body == "<html>" {
						ct = "text/html"
					}
					full(t, env, g, name, says(c.status, ct, c.body, &calls))
				}
				for i := range 6 {
					r := do(t, g, "POST", "/tokenize", `{"model":"m"}`)
					if c.status == 200 { // no answer at all
						wantError(t, r, 502, "upstream_error")
					} else if r.status != c.status || r.body != c.body {
						t.Errorf("got %d %q, want %d %q", r.status, r.body, c.status, c.body)
					}
					if n := int(calls.Swap(0)); n != c.calls {
						t.Errorf("call %d: the engines saw %d, want %d", i, n, c.calls)
					}
				}
				time.Sleep(time.Second)
				for _, name := range []string{"a", "b"} { // generations go on there
					if h := last.of(name); h.State != subjects.Ready || h.Failing() != "" || h.Failed != 0 {
						t.Errorf("worker %s: %s %q, %d failed", name, h.State, h.Failing(), h.Failed)
					}
				}
			})
		})
	}
}
