package scenarios

import (
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/worker"
)

// An engine is called once for each attempt that the gateway grants, however fast engines fail: a worker that failed a
// request before does not call its engine until the gateway wants that.
func TestOneCallForEachAttempt(t *testing.T) {
	for about, fails := range map[string]http.HandlerFunc{
		"500": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"error":{"message":"broken"}}`, http.StatusInternalServerError)
		},
		"an empty answer": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Type", "application/json") },
		"HTML": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, "<html>")
		},
		"a full engine": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"error":{"message":"full"}}`, http.StatusServiceUnavailable)
		},
		"no such path": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"detail":"Not Found"}`, http.StatusNotFound)
		},
		"a closed connection": func(http.ResponseWriter, *http.Request) {
			panic(http.ErrAbortHandler)
		},
	} {
		for _, workers := range []int{1, 2, 3} {
			t.Run(about+", workers "+strconv.Itoa(workers), func(t *testing.T) {
				if raceEnabled && workers != 2 {
					t.Skip("concurrent as with two workers")
				}
				runBoth(t, func(t *testing.T, env *Env) {
					var calls atomic.Int64
					g := env.Gateway(gateway.Config{RetryBudget: 100})
					env.Worker(env.Handler("full", engineOf(func(w http.ResponseWriter, r *http.Request) {
						calls.Add(1)
						w.Header().Set("Retry-After", "4") // its worker has free slots, and does not bid
						http.Error(w, "full", http.StatusTooManyRequests)
					}, "m")), worker.Config{Name: "full", Slots: 2})
					for i := range workers {
						name := "bad-" + strconv.Itoa(i)
						w := env.Worker(env.Handler(name, engineOf(func(w http.ResponseWriter, r *http.Request) {
							io.Copy(io.Discard, r.Body)
							calls.Add(1)
							fails(w, r)
						}, "m")), worker.Config{Name: name, Slots: 2})
						w.Link.Delay(2 * time.Millisecond) // engines fail sooner than an answer of the gateway can come
					}
					g.Serves(t, "m")
					for i := range 6 {
						calls.Store(0)
						r := ask(t, g, chat("m", false, 3+i), "")
						attempts, err := strconv.ParseInt(r.header.Get("X-Pulley-Attempts"), 10, 64)
						if err != nil || r.status < 400 {
							t.Fatalf("request %d: got %d %q, attempts %q", i, r.status, r.body, r.header.Get("X-Pulley-Attempts"))
						}
						if n := calls.Load(); n != attempts {
							t.Errorf("request %d: %d calls in %d attempts", i, n, attempts)
						}
					}
				})
			})
		}
	}
}

// An engine that tells not to retry its error is believed.
func TestErrorNotToBeRetried(t *testing.T) {
	for about, c := range map[string]struct {
		status int
		told   string
		calls  int64
	}{
		"500, not to be retried": {http.StatusInternalServerError, "false", 1},
		"504, not to be retried": {http.StatusGatewayTimeout, "false", 1},
		"500, to be retried":     {http.StatusInternalServerError, "true", 3},
		"500":                    {http.StatusInternalServerError, "", 3},
		"529, not to be retried": {529, "false", 1},
		"400":                    {http.StatusBadRequest, "", 1},
	} {
		t.Run(about, func(t *testing.T) {
			runBoth(t, func(t *testing.T, env *Env) {
				var calls atomic.Int64
				g := env.Gateway(gateway.Config{})
				for _, name := range []string{"a", "b"} {
					env.Worker(env.Handler(name, engineOf(func(w http.ResponseWriter, r *http.Request) {
						io.Copy(io.Discard, r.Body)
						calls.Add(1)
						if c.told != "" {
							w.Header().Set("X-Should-Retry", c.told)
						}
						http.Error(w, `{"error":{"message":"broken"}}`, c.status)
					}, "m")), worker.Config{Name: name, Slots: 2})
				}
				g.Serves(t, "m")
				r := ask(t, g, chat("m", false, 3), "")
				if n := calls.Load(); r.status != c.status || n != c.calls {
					t.Errorf("got %d after %d calls, want %d after %d", r.status, n, c.status, c.calls)
				}
				if c.status >= 500 && r.header.Get("X-Should-Retry") != "false" {
					t.Errorf("x-should-retry is %q", r.header.Get("X-Should-Retry"))
				}
			})
		})
	}
}

// A request that a cheap worker has failed reaches the one that is free, though that one is dear.
func TestFailedRequestReachesTheDearWorker(t *testing.T) {
	for _, latency := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond} {
		t.Run(latency.String(), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				var fails atomic.Bool
				g := env.Gateway(gateway.Config{RetryBudget: 100})
				answers := func(takes time.Duration, broken *atomic.Bool) http.HandlerFunc {
					return func(w http.ResponseWriter, r *http.Request) {
						io.Copy(io.Discard, r.Body)
						if broken != nil && broken.Load() {
							http.Error(w, `{"error":{"message":"broken"}}`, http.StatusInternalServerError)
							return
						}
						time.Sleep(takes)
						w.Header().Set("Content-Type", "application/json")
						io.WriteString(w, `{"choices":[{"index":0,"message":{"role":"assistant","content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":4,"completion_tokens":4}}`)
					}
				}
				cheap := env.Worker(env.Handler("cheap", engineOf(answers(10*time.Millisecond, &fails), "m")), worker.Config{Name: "cheap", Slots: 8})
				dear := env.Worker(env.Handler("dear", engineOf(answers(4*time.Second, nil), "m")), worker.Config{Name: "dear", Slots: 8})
				cheap.Link.Delay(latency)
				dear.Link.Delay(latency)
				g.Serves(t, "m")
				for range 3 { // so that prices are known
					var all sync.WaitGroup
					for i := range 12 {
						all.Go(func() { ask(t, g, chat("m", false, 3+i), "") })
					}
					all.Wait()
				}
				fails.Store(true)
				for i := range 5 {
					r := ask(t, g, chat("m", false, 20), "")
					if r.status != http.StatusOK || r.took > 5*time.Second {
						t.Errorf("request %d: got %d after %v", i, r.status, r.took)
					}
				}
			})
		})
	}
}
