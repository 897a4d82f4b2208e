package scenarios

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// quick is an engine that answers at once, with its own model.
func quick(name, model string, slots int) sim.Config {
	return sim.Config{Name: name, Models: []string{model}, Slots: slots}
}

// pools is a gateway with one worker for each engine, each in the pool of its model.
func pools(t *testing.T, env *Env, engines ...sim.Config) (*Gateway, map[string]*testenv.Engine, map[string]*Worker) {
	t.Helper()
	g := env.Gateway(gateway.Config{})
	es, ws := make(map[string]*testenv.Engine), make(map[string]*Worker)
	for _, cfg := range engines {
		e := env.Engine(cfg)
		es[cfg.Name] = e
		ws[cfg.Name] = env.Worker(e, worker.Config{Name: cfg.Name, Slots: cfg.Slots})
		g.Serves(t, cfg.Models[0])
	}
	return g, es, ws
}

func straight(to ...policy.Target) policy.Route { return policy.Route{To: to} }

func setRoute(env *Env, name string, r policy.Route) {
	env.SetPolicy(func(p *policy.Policy) {
		if p.Routes == nil {
			p.Routes = make(map[string]policy.Route)
		}
		p.Routes[name] = r
	})
}

func TestCanarySplit(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := pools(t, env, quick("old", "llama", 64), quick("new", "llama-new", 64))
		setRoute(env, "gpt-4o", straight(policy.Target{Pool: "llama", Weight: 90}, policy.Target{Pool: "llama-new", Weight: 10}))
		const n = 3000
		var wg sync.WaitGroup
		left := atomic.Int64{}
		left.Store(n)
		for range 32 {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					if r := ask(t, g, chat("gpt-4o", false, 1), ""); r.status != 200 {
						t.Errorf("%d %s", r.status, r.body)
					}
				}
			})
		}
		wg.Wait()
		if got := float64(es["new"].Stats().Finished) / n; math.Abs(got-0.1) > 0.01 {
			t.Errorf("the canary got %.4f of %d requests, want 0.1 ± 0.01", got, n)
		}
	})
}

func TestSessionsStayOnTheirSide(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, _ := pools(t, env, quick("old", "llama", 8), quick("new", "llama-new", 8))
		setRoute(env, "gpt-4o", straight(policy.Target{Pool: "llama", Weight: 50}, policy.Target{Pool: "llama-new", Weight: 50}))
		model := func(r reply) string { return strings.SplitN(strings.SplitN(r.body, `"model":"`, 2)[1], `"`, 2)[0] }
		seen := map[string]int{}
		for session := range 20 {
			want := ""
			for range 5 {
				r := ask(t, g, chat("gpt-4o", false, 1), "", "x-session-id", fmt.Sprint("session ", session))
				if got := model(r); want == "" {
					want = got
					seen[got]++
				} else if got != want {
					t.Errorf("session %d went to %s, and then to %s", session, want, got)
				}
			}
		}
		if len(seen) != 2 {
			t.Errorf("20 sessions went to %v, want both sides", seen)
		}
		// A conversation without a session name stays as well.
		for range 10 {
			body := chat("gpt-4o", false, 1)
			first := ask(t, g, body, "")
			turn := strings.Replace(body, `"one two three"}`, `"one two three"},{"role":"assistant","content":"x"},{"role":"user","content":"and"}`, 1)
			if got := model(ask(t, g, turn, "")); got != model(first) {
				t.Errorf("a conversation went from %s to %s", model(first), got)
			}
		}
	})
}

func TestRename(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var got atomic.Pointer[string]
		g := env.Gateway(gateway.Config{})
		e := env.Handler("echo", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/models" {
				io.WriteString(w, `{"data":[{"id":"org/llama \"70b\""}]}`)
				return
			}
			b, _ := io.ReadAll(r.Body)
			s := string(b)
			got.Store(&s)
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"id":"1", "model" : "org/llama \"70b\"","x":{"model":"inner"},"choices":[{}]}`)
		}))
		env.Worker(e, worker.Config{Name: "w"})
		time.Sleep(3 * time.Second)
		body := "{ \"x\":{\"model\":\"inner\"},\n\t\"mod\\u0065l\" : \"gpt-4o\" , \"messages\":[]}"
		for _, restore := range []bool{false, true} {
			setRoute(env, "gpt-*", policy.Route{To: []policy.Target{{Pool: `org/llama "70b"`, Weight: 1}}, RestoreModel: restore})
			r := ask(t, g, body, "")
			if r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			if want := strings.Replace(body, `"gpt-4o"`, `"org/llama \"70b\""`, 1); *got.Load() != want {
				t.Errorf("the engine got\n%s, want\n%s", *got.Load(), want)
			}
			want := `{"id":"1", "model" : "org/llama \"70b\"","x":{"model":"inner"},"choices":[{}]}`
			if restore {
				want = `{"id":"1", "model" : "gpt-4o","x":{"model":"inner"},"choices":[{}]}`
			}
			if r.body != want || r.header.Get("Content-Length") != fmt.Sprint(len(want)) {
				t.Errorf("the client got\n%s (%s bytes), want\n%s", r.body, r.header.Get("Content-Length"), want)
			}
		}
	})
}

func TestFallback(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, ws := pools(t, env, quick("main", "llama", 8), quick("spare", "small", 8))
		setRoute(env, "gpt-4o", policy.Route{To: []policy.Target{{Pool: "llama", Weight: 1}}, Fallback: []string{"nowhere", "small"}})
		if r := ask(t, g, chat("gpt-4o", false, 1), ""); r.status != 200 || es["main"].Stats().Finished != 1 {
			t.Fatalf("%d %s, served by the first pool: %d", r.status, r.body, es["main"].Stats().Finished)
		}
		ws["main"].Stop()
		time.Sleep(time.Second)
		if r := ask(t, g, chat("gpt-4o", false, 1), ""); r.status != 200 || es["spare"].Stats().Finished != 1 || r.took > time.Second {
			t.Errorf("without a worker: %d %s after %v, served by the fallback: %d", r.status, r.body, r.took, es["spare"].Stats().Finished)
		}
	})
}

// A waiting request goes to the fallback when its last worker dies, and when it has waited for too
// long.
func TestFallbackWhileItWaits(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		busy := quick("main", "llama", 1)
		busy.TTFT = time.Minute
		g, es, ws := pools(t, env, busy, quick("spare", "small", 8))
		setRoute(env, "gpt-4o", policy.Route{To: []policy.Target{{Pool: "llama", Weight: 1}}, Fallback: []string{"small"}})
		var wg sync.WaitGroup
		wg.Go(func() { ask(t, g, chat("llama", false, 1), "") }) // takes the only slot
		time.Sleep(time.Second)
		wg.Go(func() {
			if r := ask(t, g, chat("gpt-4o", false, 1), ""); r.status != 200 || r.took > 10*time.Second {
				t.Errorf("its worker died: %d %s after %v", r.status, r.body, r.took)
			}
		})
		time.Sleep(3 * time.Second)
		ws["main"].Kill(es["main"])
		time.Sleep(10 * time.Second)

		es["main"] = env.Engine(sim.Config{Name: "main-2", Models: []string{"llama"}, Slots: 1, TTFT: time.Minute})
		env.Worker(es["main"], worker.Config{Name: "main-2", Slots: 1})
		time.Sleep(5 * time.Second)
		setRoute(env, "gpt-4o", policy.Route{To: []policy.Target{{Pool: "llama", Weight: 1}}, Fallback: []string{"small"}, FallbackAfter: policy.Duration(4 * time.Second)})
		if r := ask(t, g, chat("gpt-4o", false, 1), ""); r.status != 200 || r.took < 4*time.Second || r.took > 6*time.Second {
			t.Errorf("it waited: %d %s after %v, want about 4 s", r.status, r.body, r.took)
		}
		wg.Wait()
	})
}

func TestMirror(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, ws := pools(t, env, quick("main", "llama", 8), slowOf("shadow", "next"))
		setRoute(env, "gpt-4o", policy.Route{To: []policy.Target{{Pool: "llama", Weight: 1}}, Mirror: []policy.Mirror{{Pool: "next", Percent: 50}, {Pool: "absent", Percent: 100}}})
		for range 20 {
			if r := ask(t, g, chat("gpt-4o", false, 3), ""); r.status != 200 || r.took > 50*time.Millisecond {
				t.Errorf("%d %s after %v", r.status, r.body, r.took)
			}
		}
		time.Sleep(10 * time.Second)
		if n := es["shadow"].Stats().Finished; n != 10 {
			t.Errorf("the mirror got %d of 20 requests, want 10", n)
		}
		es["shadow"].Kill()
		ws["shadow"].Kill(es["shadow"])
		for range 20 {
			if r := ask(t, g, chat("gpt-4o", true, 3), ""); r.status != 200 || r.took > 50*time.Millisecond {
				t.Errorf("with a dead mirror: %d %s after %v", r.status, r.body, r.took)
			}
		}
	})
}

func slowOf(name, model string) sim.Config {
	c := slow(name)
	c.Models = []string{model}
	return c
}

func TestShift(t *testing.T) {
	for _, c := range []struct {
		name   string
		fail   float64 // part of the canary's answers
		killed bool    // the gateway that started the shift is killed
		state  policy.ShiftState
	}{
		{name: "a good canary gets everything", state: policy.ShiftDone},
		{name: "a bad one gets nothing again", fail: 0.5, state: policy.ShiftAborted},
		{name: "the gateway that ran a step was killed", killed: true, state: policy.ShiftDone},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				canary := quick("new", "llama-new", 64)
				canary.Fail = c.fail
				g, _, _ := pools(t, env, quick("old", "llama", 64), canary)
				first := env.Gateway(gateway.Config{})
				before := straight(policy.Target{Pool: "llama", Weight: 100})
				setRoute(env, "gpt-4o", policy.NewShift(before, policy.Shift{
					To: "llama-new", By: 25, Every: policy.Duration(20 * time.Second),
					Abort: []policy.Condition{"error_rate>5%", "p95_ttft>3x"}, MinSample: 20,
				}, time.Now()))
				stop := make(chan struct{})
				var wg sync.WaitGroup
				for i := range 4 {
					wg.Go(func() {
						for n := 0; ; n++ {
							select {
							case <-stop:
								return
							case <-time.After(100 * time.Millisecond):
							}
							at := g
							if !c.killed && i%2 == 0 {
								at = first
							}
							ask(t, at, chat("gpt-4o", false, 1), "")
						}
					})
				}
				if c.killed {
					time.Sleep(30 * time.Second)
					first.Stop()
				}
				end := time.Now().Add(10 * time.Minute)
				var r policy.Route
				for {
					r = env.Policy().Routes["gpt-4o"]
					if r.Shift.State != policy.ShiftRunning || time.Now().After(end) {
						break
					}
					time.Sleep(time.Second)
				}
				close(stop)
				wg.Wait()
				want := 100.0
				if c.state == policy.ShiftAborted {
					want = 0
				}
				got := 0.0
				for _, to := range r.To {
					if to.Pool == "llama-new" {
						got = to.Weight
					}
				}
				if r.Shift.State != c.state || got != want {
					t.Errorf("the shift is %q (%s) at %v, want %q at %v", r.Shift.State, r.Shift.Reason, r.To, c.state, want)
				}
				t.Log(r.Shift.State, r.Shift.Reason)
			})
		})
	}
}
