package scenarios

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// idle waits until an engine runs nothing.
func idle(t testing.TB, e *testenv.Engine, within time.Duration) {
	t.Helper()
	testenv.Eventually(t, "engine idle", within, func() bool { s := e.Stats(); return s.Running == 0 && s.Waiting == 0 })
}

// emptyQueues checks that nothing is left in the streams. A broker that has just
// restarted without its data has none until a gateway has made them again.
func emptyQueues(t testing.TB, env *Env) {
	t.Helper()
	js := env.JetStream()
	for _, tier := range []string{"priority", "standard", "batch"} {
		var n uint64
		testenv.Eventually(t, "queue of "+tier+" empty", 5*time.Second, func() bool {
			s, err := js.Stream(t.Context(), subjects.ReqStream(tier))
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				return false
			}
			if err != nil {
				t.Fatal(err)
			}
			n = s.CachedInfo().State.Msgs
			return n == 0
		})
	}
}

func TestClientGone(t *testing.T) {
	for _, stream := range []bool{true, false} {
		for _, when := range []string{"queued", "before the first token", "answering"} {
			t.Run(fmt.Sprintf("%s, stream %t", when, stream), func(t *testing.T) {
				runBoth(t, func(t *testing.T, env *Env) {
					cfg := slow("a")
					cfg.Slots = 1
					g, es, _ := pair(t, env, cfg)
					e := es[0]
					ctx, cancel := context.WithCancel(t.Context())
					var wg sync.WaitGroup
					defer wg.Wait()
					actx, ahead := context.WithCancel(t.Context())
					defer ahead()
					if when == "queued" { // another one has the only slot
						wg.Go(func() { drain(post(actx, g, "/v1/chat/completions", chat("m", true, 1000), "")) })
						time.Sleep(time.Second)
					}
					orders := ""
					if when == "before the first token" {
						orders = "ttft=1m"
					}
					wg.Go(func() { drain(post(ctx, g, "/v1/chat/completions", chat("m", stream, 1000), orders)) })
					time.Sleep(3 * time.Second)
					before := e.Stats()
					cancel()
					if when == "queued" {
						time.Sleep(100 * time.Millisecond)
						if got := e.Stats(); got.Received != before.Received || got.Running != 1 {
							t.Errorf("engine saw the queued request: %+v", got)
						}
						ahead()
						idle(t, e, 100*time.Millisecond)
						time.Sleep(time.Minute)
						if got := e.Stats(); got.Received != before.Received {
							t.Errorf("the engine was called for a client that had disconnected: %+v", got)
						}
					} else {
						if before.Running != 1 {
							t.Fatalf("running %d before, want 1", before.Running)
						}
						idle(t, e, 100*time.Millisecond)
					}
					emptyQueues(t, env)
				})
			})
		}
	}
}

// drain reads a response to its end, complete or not.
func drain(resp *http.Response, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// onA is an x-sim order for engine a only.
func onA(order string) string { return order + ", on=a" }

func TestRetryBeforeTheFirstByte(t *testing.T) {
	type fault struct {
		orders string
		strike func(t *testing.T, e *testenv.Engine, w *Worker) // called one second into the request
	}
	for name, f := range map[string]fault{
		"worker killed":               {onA("ttft=1h"), func(t *testing.T, e *testenv.Engine, w *Worker) { w.Kill(e) }},
		"worker stopped":              {onA("ttft=1h"), func(t *testing.T, e *testenv.Engine, w *Worker) { w.Link.Freeze() }},
		"engine dies":                 {onA("ttft=1h"), func(t *testing.T, e *testenv.Engine, w *Worker) { e.Kill() }},
		"engine answers 500":          {onA("fail"), nil},
		"engine answers 502":          {onA("fail=502"), nil},
		"engine closes":               {onA("close"), nil},
		"engine has no slot":          {onA("refuse"), nil},
		"engine is unavailable":       {onA("refuse=503"), nil},
		"head, then cut":              {onA("early-header, cut-after=0"), nil},
		"worker loses its connection": {onA("ttft=1h"), func(t *testing.T, e *testenv.Engine, w *Worker) { w.Link.Cut(true) }},
	} {
		for _, stream := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, stream %t", name, stream), func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					a, b := slow("a"), slow("b")
					a.ITLBase = 10 * time.Millisecond
					g := env.Gateway(gateway.Config{})
					ea, eb := env.Engine(a), env.Engine(b)
					wa := env.Worker(ea, worker.Config{Name: "a", Slots: 4})
					g.Serves(t, "m")
					var wg sync.WaitGroup
					var got reply
					if f.strike != nil { // only a is there when the request arrives; b joins before the fault
						wg.Go(func() { got = ask(t, g, chat("m", stream, 5), f.orders) })
						time.Sleep(time.Second)
					}
					env.Worker(eb, worker.Config{Name: "b", Slots: 4})
					time.Sleep(3 * time.Second)
					if f.strike != nil {
						f.strike(t, ea, wa)
					} else { // repeated until a is tried first
						wg.Go(func() {
							for range 10 {
								if got = ask(t, g, chat("m", stream, 5), f.orders); got.status != 200 || ea.Stats().Received > 0 {
									return
								}
							}
							t.Error("a was never asked")
						})
					}
					struck := time.Now()
					wg.Wait()
					// b needs 0.5 s for the answer itself.
					if d := time.Since(struck); f.strike != nil && d > 2*time.Second+600*time.Millisecond {
						t.Errorf("answered %v after the fault", d)
					} else if got.took > 2*time.Second+600*time.Millisecond && f.strike == nil {
						t.Errorf("answered after %v", got.took)
					}
					if got.status != 200 || got.err != nil || words(content(t, got.body)) != 5 {
						t.Fatalf("got %d %q %v, want one good answer", got.status, got.body, got.err)
					}
					if by := got.header.Get("x-sim-name"); by != "b" {
						t.Errorf("answered by %q, want b", by)
					}
					if stream && strings.Count(got.body, "[DONE]") != 1 {
						t.Errorf("stream ends %d times", strings.Count(got.body, "[DONE]"))
					}
					if f.strike == nil {
						emptyQueues(t, env)
					}
				})
			})
		}
	}
}

// A stopped worker has bids that the broker still serves: requests that are delivered to it must
// not wait for the ack wait.
func TestDeliveredToAStoppedWorker(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, ws := pair(t, env, slow("a"), slow("b"))
		ws[0].Link.Freeze()
		frozen := time.Now()
		var wg sync.WaitGroup
		replies := make([]reply, 6)
		for i := range replies {
			wg.Go(func() { replies[i] = ask(t, g, chat("m", true, 1), "") })
		}
		wg.Wait()
		if d := time.Since(frozen); d > 3*time.Second {
			t.Errorf("all answered %v after one of two workers stopped, want at most 3s", d)
		}
		for i, r := range replies {
			if r.status != 200 || words(content(t, r.body)) != 1 {
				t.Errorf("reply %d: %d %q", i, r.status, r.body)
			}
		}
	})
}

// The woken worker continues where it was stopped; none of its frames may reach the client.
func TestStoppedWorkerWakes(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		ea, eb := env.Engine(slow("a")), env.Engine(slow("b"))
		wa := env.Worker(ea, worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		var got reply
		var wg sync.WaitGroup
		wg.Go(func() { got = ask(t, g, chat("m", true, 100), onA("ttft=3s")) })
		time.Sleep(time.Second)
		env.Worker(eb, worker.Config{Name: "b", Slots: 4})
		time.Sleep(time.Second)
		wa.Link.Freeze()
		time.Sleep(5 * time.Second)
		if s := eb.Stats(); s.Running != 1 {
			t.Errorf("b runs %d, want the request that a lost", s.Running)
		}
		wa.Link.Thaw()
		idle(t, ea, time.Second) // it is cancelled
		wg.Wait()
		if got.status != 200 || words(content(t, got.body)) != 100 || strings.Contains(got.body, `"system_fingerprint":"a"`) {
			t.Errorf("got %d, %d words, by a: %t", got.status, words(content(t, got.body)), strings.Contains(got.body, `"system_fingerprint":"a"`))
		}
	})
}

func TestErrorsOfTheClientPass(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"), slow("b"))
		for _, status := range []int{400, 404, 408, 409, 413, 422, 501} {
			r := ask(t, g, chat("m", false, 5), fmt.Sprintf("fail=%d", status))
			if r.status != status || !strings.Contains(r.body, `"error"`) {
				t.Errorf("engine's %d came as %d %q", status, r.status, r.body)
			}
		}
		if n := es[0].Stats().Received + es[1].Stats().Received; n != 7 {
			t.Errorf("engines were asked %d times for 7 requests", n)
		}
	})
}

func TestAllEnginesRefuse(t *testing.T) {
	for _, order := range []string{"refuse", "refuse=503"} {
		runBoth(t, func(t *testing.T, env *Env) {
			g, es, _ := pair(t, env, slow("a"), slow("b"), slow("c"))
			r := ask(t, g, chat("m", true, 5), order)
			want := 429
			if order == "refuse=503" {
				want = 503
			}
			if r.status != want || r.header.Get("Retry-After") != "1" || r.header.Get("x-sim-name") == "" {
				t.Errorf("%s: got %d %v %q, want the engine's own answer", order, r.status, r.header, r.body)
			}
			if r.took > 3*time.Second {
				t.Errorf("%s: took %v", order, r.took)
			}
			for _, e := range es {
				if n := e.Stats().Received; n != 1 {
					t.Errorf("%s: engine %s was asked %d times, want once", order, e.Stats().Name, n)
				}
			}
			emptyQueues(t, env)
			// The workers pause for as long as the engine asked, and no longer.
			if r := ask(t, g, chat("m", false, 5), ""); r.status != 200 || r.took > 3*time.Second {
				t.Errorf("%s: afterwards got %d after %v", order, r.status, r.took)
			}
		})
	}
}

// A request that failed on one worker waits for the other, which is full. Meanwhile the first
// worker's engine is not called for it again and again.
func TestFailedWorkerLeavesARequestToOthers(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		b := env.Engine(slow("b"))
		env.Worker(b, worker.Config{Name: "b", Slots: 1})
		g.Serves(t, "m")
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { ask(t, g, chat("m", false, 100), "") }) // 10 s
		time.Sleep(time.Second)
		a := env.Engine(slow("a"))
		env.Worker(a, worker.Config{Name: "a", Slots: 1})
		time.Sleep(3 * time.Second)
		r := ask(t, g, chat("m", false, 5), onA("cut-after=1"))
		if r.status != 200 || r.took < 5*time.Second || r.took > 9*time.Second {
			t.Errorf("got %d after %v, want b's answer once b is free", r.status, r.took)
		}
		if n := a.Stats().Received; n > 15 { // twice per second
			t.Errorf("a was asked %d times", n)
		}
		t.Logf("a was asked %d times in %v", a.Stats().Received, r.took)
	})
}

func TestPausedWorkerLetsOthers(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"), slow("b"))
		if r := ask(t, g, chat("m", false, 5), onA("refuse")); r.status != 200 {
			t.Fatalf("got %d %s", r.status, r.body)
		}
		before := es[0].Stats().Received
		for range 3 {
			if r := ask(t, g, chat("m", false, 1), ""); r.status != 200 {
				t.Errorf("got %d", r.status)
			}
		}
		if before == 1 && es[0].Stats().Received != before {
			t.Errorf("a was asked while it pauses")
		}
	})
}

func TestBrokenAfterTheFirstByte(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/chat/completions": `data: {"error":{`,
		"/v1/completions":      `data: {"error":{`,
		"/v1/messages":         "event: error\ndata: {\"error\":{",
		"/v1/responses":        "event: response.failed\ndata: {",
	} {
		t.Run(path, func(t *testing.T) {
			runBoth(t, func(t *testing.T, env *Env) {
				g, es, _ := pair(t, env, slow("a"), slow("b"))
				body := `{"model":"m","stream":true,"max_tokens":20,"max_output_tokens":20,"prompt":"x","input":"x","messages":[{"role":"user","content":"x"}]}`
				r := askAt(t, g, path, body, "cut-after=5")
				if r.status != 200 || r.err != nil {
					t.Fatalf("got %d, %v", r.status, r.err)
				}
				events := strings.Split(strings.TrimSuffix(r.body, "\n\n"), "\n\n")
				last := events[len(events)-1]
				if !strings.HasPrefix(last, want) || !strings.Contains(last, "upstream_lost") {
					t.Errorf("last event %q, want an error that starts with %q", last, want)
				}
				if path == "/v1/responses" && (api.ResponseID([]byte(last), true) == "" || api.ResponseID([]byte(last), true) != api.ResponseID([]byte(r.body), true)) {
					t.Errorf("the last event is of the response %q, the first of %q", api.ResponseID([]byte(last), true), api.ResponseID([]byte(r.body), true))
				}
				for _, end := range []string{"[DONE]", "message_stop", "response.completed"} {
					if strings.Contains(r.body, end) {
						t.Errorf("a broken stream says %s", end)
					}
				}
				if n := es[0].Stats().Received + es[1].Stats().Received; n != 1 {
					t.Errorf("tried %d times after the first byte", n)
				}
				emptyQueues(t, env)
			})
		})
	}
}

// Whatever fails in the middle of a stream, the stream ends with an error and does not look
// complete.
func TestFaultMidStream(t *testing.T) {
	for name, strike := range map[string]func(g *Gateway, e *testenv.Engine, w *Worker){
		"worker killed":  func(g *Gateway, e *testenv.Engine, w *Worker) { w.Kill(e) },
		"worker stopped": func(g *Gateway, e *testenv.Engine, w *Worker) { w.Link.Freeze() },
		"engine dies":    func(g *Gateway, e *testenv.Engine, w *Worker) { e.Kill() },
		"frames lost":    func(g *Gateway, e *testenv.Engine, w *Worker) { g.Link.Cut(false) },
	} {
		t.Run(name, func(t *testing.T) {
			runBoth(t, func(t *testing.T, env *Env) {
				g, es, ws := pair(t, env, slow("a"))
				var got reply
				var wg sync.WaitGroup
				wg.Go(func() { got = ask(t, g, chat("m", true, 100), "") })
				time.Sleep(2 * time.Second)
				struck := time.Now()
				strike(g, es[0], ws[0])
				wg.Wait()
				if d := time.Since(struck); d > 5*time.Second && !strings.Contains(got.body, "[DONE]") {
					t.Errorf("broken off %v after the fault", d)
				}
				switch {
				case got.err != nil:
					t.Errorf("connection broke: %v", got.err)
				case strings.Contains(got.body, "[DONE]"):
					if n := words(content(t, got.body)); n != 100 {
						t.Errorf("a stream of %d words of 100 ends as if it were whole", n)
					}
				case !strings.Contains(got.body, `"upstream_lost"`):
					t.Errorf("no error event in %q", got.body)
				}
				idle(t, es[0], 15*time.Second)
			})
		})
	}
}

func TestPlainAnswerIsNeverTruncated(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"), slow("b"))
		r := ask(t, g, chat("m", false, 20), onA("cut-after=5"))
		if r.status != 200 || r.err != nil || words(content(t, r.body)) != 20 {
			t.Errorf("got %d %q %v", r.status, r.body, r.err)
		}
		if es[0].Stats().Received > 0 && r.header.Get("x-sim-name") != "b" {
			t.Errorf("answered by %s", r.header.Get("x-sim-name"))
		}
		// On every engine: an error, not a partial answer.
		r = ask(t, g, chat("m", false, 20), "cut-after=5")
		if r.status != 502 || !strings.Contains(r.body, "dead_lettered") {
			t.Errorf("got %d %q, want 502", r.status, r.body)
		}
		emptyQueues(t, env)
	})
}

func TestDeadLetter(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"), slow("b"), slow("c"), slow("d"))
		r := ask(t, g, chat("m", false, 5), "fail")
		if r.status != 500 || !strings.Contains(r.body, "this failure was requested") {
			t.Errorf("got %d %q, want the engine's own answer", r.status, r.body)
		}
		if n, retry := r.header.Get("X-Pulley-Attempts"), r.header.Get("X-Should-Retry"); n != "3" || retry != "false" {
			t.Errorf("%q attempts, x-should-retry %q", n, retry)
		}
		n := 0
		for _, e := range es {
			n += int(e.Stats().Received)
			if e.Stats().Received > 1 {
				t.Errorf("%s tried twice while others were there", e.Stats().Name)
			}
		}
		if n != 3 {
			t.Errorf("%d attempts, want 3", n)
		}
		js := env.JetStream()
		s, err := js.Stream(t.Context(), subjects.DeadStream)
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.GetLastMsgForSubject(t.Context(), subjects.Dead("standard", "m"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(m.Header.Get(subjects.HeaderReason), "every attempt failed") || string(m.Data) != chat("m", false, 5) {
			t.Errorf("dead letter: %v %q", m.Header, m.Data)
		}
	})
}

// A request that crashes two workers is not given a third.
func TestPoison(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		var ws [4]*Worker
		var es [4]*testenv.Engine
		for i := range ws {
			name := fmt.Sprint(i)
			es[i] = env.Engine(slow(name))
			ws[i] = env.Worker(es[i], worker.Config{Name: name, Slots: 4})
		}
		g.Serves(t, "m")
		var got reply
		var wg sync.WaitGroup
		wg.Go(func() { got = ask(t, g, chat("m", true, 5), "ttft=10m") })
		dead := map[int]bool{}
		for range 2 {
			time.Sleep(3 * time.Second)
			for i, e := range es {
				if e.Stats().Running > 0 && !dead[i] {
					dead[i] = true
					ws[i].Kill(e)
				}
			}
		}
		wg.Wait()
		if got.status != 502 || !strings.Contains(got.body, "two workers crashed") {
			t.Errorf("got %d %q", got.status, got.body)
		}
		if got.header.Get("x-should-retry") != "false" {
			t.Errorf("the client is not told not to retry")
		}
		if len(dead) != 2 {
			t.Errorf("killed %d workers", len(dead))
		}
	})
}

func TestGatewayKilled(t *testing.T) {
	for name, strike := range map[string]func(g *Gateway){
		"killed":  func(g *Gateway) { g.Link.Cut(true) },
		"stopped": func(g *Gateway) { g.Link.Freeze() },
	} {
		for _, stream := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, stream %t", name, stream), func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					e := env.Engine(slow("a"))
					g1, g2 := env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{})
					env.Worker(e, worker.Config{Name: "a", Slots: 4})
					g1.Serves(t, "m")
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					var wg sync.WaitGroup
					for range 6 { // two wait
						wg.Go(func() { drain(post(ctx, g1, "/v1/chat/completions", chat("m", stream, 10_000), "")) })
					}
					time.Sleep(2 * time.Second)
					if n := e.Stats().Running; n != 4 {
						t.Fatalf("%d running", n)
					}
					strike(g1)
					within := 2 * time.Second
					if name == "stopped" {
						within = subjects.GatewayGone + 2*time.Second
					}
					idle(t, e, within)
					// Nothing is left that affects other requests.
					if r := ask(t, g2, chat("m", true, 5), ""); r.status != 200 || r.took > 2*time.Second {
						t.Errorf("another gateway: %d after %v", r.status, r.took)
					}
					cancel()
					g1.Link.Thaw()
					wg.Wait()
				})
			})
		}
	}
}

// One engine's token must be sent before the next one is produced.
func TestTokensAreNotHeldBack(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, _, _ := pair(t, env, slow("a"))
		resp, err := post(t.Context(), g, "/v1/chat/completions", chat("m", true, 10), "")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		buf := make([]byte, 64<<10)
		var at []time.Duration
		begun := time.Now()
		for {
			n, err := resp.Body.Read(buf)
			if n > 0 && strings.Contains(string(buf[:n]), `"content":" `) {
				at = append(at, time.Since(begun))
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				break
			}
		}
		if len(at) != 9 { // the first word has no space before it
			t.Fatalf("tokens came in %d pieces: %v", len(at), at)
		}
		for i := 1; i < len(at); i++ {
			if d := at[i] - at[i-1]; d < 99*time.Millisecond || d > 101*time.Millisecond {
				t.Errorf("token %d came %v after the one before, want 100ms", i, d)
			}
		}
	})
}

// A hanging engine is detected by its silence.
func TestEngineHangs(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		ea, eb := env.Engine(slow("a")), env.Engine(slow("b"))
		env.Worker(ea, worker.Config{Name: "a", Slots: 4, StallTimeout: 20 * time.Second})
		g.Serves(t, "m")
		var got reply
		var wg sync.WaitGroup
		wg.Go(func() { got = ask(t, g, chat("m", true, 5), onA("hang")) })
		time.Sleep(time.Second)
		env.Worker(eb, worker.Config{Name: "b", Slots: 4, StallTimeout: 20 * time.Second})
		wg.Wait()
		if got.status != 200 || !strings.Contains(got.body, "[DONE]") || got.took > 25*time.Second {
			t.Errorf("got %d after %v", got.status, got.took)
		}
		idle(t, ea, time.Second)
	})
}

// An engine's status line may contain invalid UTF-8.
func TestOddStatusLine(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 500 Erreur de pr\xe9diction\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
		})
		r := ask(t, g, chat("m", false, 5), "")
		if r.status != 500 || r.body != "no" {
			t.Fatalf("got %d %q, want the engine's answer", r.status, r.body)
		}
	})
}

// A delivery that never arrives, as when the connection of the worker breaks under it, holds up neither its own request for
// long nor any other: with several gateways these are released by deliveries, and none comes.
func TestLostDelivery(t *testing.T) {
	for _, gateways := range []int{1, 2, 3} {
		for _, lost := range []int{1, 4} {
			t.Run(fmt.Sprintf("%d gateways, %d lost", gateways, lost), func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					var gs []*Gateway
					for range gateways {
						gs = append(gs, env.Gateway(gateway.Config{}))
					}
					e := env.Engine(sim.Config{Name: "e", Models: []string{"m"}, Slots: 8, PrefillRate: 1e6, ITLBase: 10 * time.Millisecond})
					env.Worker(e, worker.Config{Name: "w", Slots: 8})
					for _, g := range gs {
						g.Serves(t, "m")
					}
					nc, _ := env.Connect("a connection that breaks")
					sub, err := nc.SubscribeSync("hole")
					if err != nil {
						t.Fatal(err)
					}
					nc.Flush()

					var mu sync.Mutex
					var ended []time.Time
					var slowest time.Duration
					stop := make(chan struct{})
					var wg sync.WaitGroup
					for i := range 8 + 4 {
						wg.Go(func() {
							for {
								select {
								case <-stop:
									return
								default:
								}
								r := ask(t, gs[i%gateways], chat("m", false, 20), "")
								if r.status != 200 {
									t.Errorf("%d %q", r.status, r.body)
								}
								mu.Lock()
								ended, slowest = append(ended, time.Now()), max(slowest, r.took)
								mu.Unlock()
							}
						})
					}
					time.Sleep(time.Second)
					for range lost {
						nc.PublishRequest(subjects.BidSubject("standard", "m", subjects.Shared), "hole",
							subjects.MustMarshal(subjects.Bid{Batch: 1, Expires: int64(time.Minute), Group: subjects.PriorityGroup}))
					}
					for range lost {
						if _, err := sub.NextMsg(10 * time.Second); err != nil {
							t.Fatal(err)
						}
					}
					time.Sleep(6 * time.Second)
					close(stop)
					wg.Wait()
					gap := time.Duration(0)
					for i := range ended[1:] {
						gap = max(gap, ended[i+1].Sub(ended[i]))
					}
					t.Logf("%d answers, the slowest after %v, %v at most without one", len(ended), slowest, gap)
					if gap > time.Second {
						t.Errorf("no answer for %v, though slots are free", gap)
					}
					if slowest > 4500*time.Millisecond {
						t.Errorf("an answer took %v", slowest)
					}
				})
			})
		}
	}
}
