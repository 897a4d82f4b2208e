package scenarios

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

// outcomes counts what became of requests.
type outcomes struct {
	mu          sync.Mutex
	wg          sync.WaitGroup
	sent        int
	answered    int
	early, late int           // refused at once, and after max_wait
	longest     time.Duration // of those that were answered
	first       string        // the first refusal
}

// send sends a request that takes about a second on the engines of slowSlots.
func (o *outcomes) send(t *testing.T, g *Gateway, header ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sent++
	o.wg.Go(func() {
		r := ask(t, g, chat("m", false, 10), "", header...)
		o.mu.Lock()
		defer o.mu.Unlock()
		switch {
		case r.status == 200:
			o.answered++
			o.longest = max(o.longest, r.took)
			return
		case r.status == 429 && strings.Contains(r.body, "deadline_unreachable"):
			o.early++
		case r.status == 429 && strings.Contains(r.body, "queue_timeout"):
			o.late++
		default:
			t.Errorf("%v %d %s", r.err, r.status, r.body)
		}
		if o.first == "" {
			o.first = r.body
		}
	})
}

// offer sends requests at random times until the time is over, and does not wait for their answers.
func (o *outcomes) offer(t *testing.T, g *Gateway, perSecond float64, lasts time.Duration, header ...string) {
	for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(seconds(rand.ExpFloat64() / perSecond)) {
		o.send(t, g, header...)
	}
}

func (o *outcomes) String() string {
	o.wg.Wait()
	return fmt.Sprintf("%d sent, %d answered, the longest after %v, %d refused at once, %d after max_wait %s",
		o.sent, o.answered, o.longest, o.early, o.late, o.first)
}

// maxWait sets the longest wait of requests that ask for no tier.
func maxWait(env *Env, d time.Duration) {
	env.SetPolicy(func(p *policy.Policy) {
		p.Tiers[1].MaxWait = policy.Duration(d)
		p.Pools = map[string]policy.Pool{"m": {Affinity: policy.AffinityOff}}
	})
}

// slots adds a worker whose engine answers so many requests at once, each in about a second.
func slots(env *Env, name string, n int) *Worker {
	cfg := slow(name)
	cfg.Slots, cfg.PrefillRate = n, 0
	return env.Worker(env.Engine(cfg), worker.Config{Name: name, Slots: n})
}

// roomy lets a gateway's client have many requests under way.
func roomy(t *testing.T, g *Gateway) *Gateway {
	t.Helper()
	g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
	return g
}

// A burst that the workers can serve in time is served, whatever the rate was before.
func TestMaxWaitOfABurst(t *testing.T) {
	for about, c := range map[string]struct {
		before func(t *testing.T, env *Env, g *Gateway, w *Worker)
		n      int
	}{
		"first of all":               {func(*testing.T, *Env, *Gateway, *Worker) {}, 12},
		"a minute after an overload": {func(t *testing.T, env *Env, g *Gateway, w *Worker) { time.Sleep(time.Minute) }, 12},
		"after a few single requests": {func(t *testing.T, env *Env, g *Gateway, w *Worker) {
			time.Sleep(30 * time.Second)
			for range 6 {
				ask(t, g, chat("m", false, 10), "")
				time.Sleep(5 * time.Second)
			}
		}, 12},
		"while the pool has no workers": {func(t *testing.T, env *Env, g *Gateway, w *Worker) {
			time.Sleep(10 * time.Second)
			w.Stop()
			time.Sleep(20 * time.Second)
			time.AfterFunc(20*time.Second, func() { slots(env, "next", 4) })
		}, 30},
		"an hour after it had some": {func(t *testing.T, env *Env, g *Gateway, w *Worker) {
			w.Stop()
			time.Sleep(time.Hour)
			time.AfterFunc(20*time.Second, func() { slots(env, "next", 4) })
		}, 30},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := roomy(t, env.Gateway(gateway.Config{NoWorkerWait: 5 * time.Minute}))
				w := slots(env, "engine", 2)
				g.Serves(t, "m")
				maxWait(env, time.Duration(c.n)*time.Second)
				var before, burst outcomes
				if about != "first of all" {
					before.offer(t, g, 6, 40*time.Second)
				}
				c.before(t, env, g, w)
				for range c.n {
					burst.send(t, g)
				}
				t.Logf("before: %v\nburst: %v", &before, &burst)
				if burst.answered != c.n {
					t.Errorf("%d of the burst were answered, want %d", burst.answered, c.n)
				}
			})
		})
	}
}

// While a model is loaded nothing is taken, and that is no rate: not of those that wait for it, and not of those that come after.
func TestMaxWaitWhileAModelLoads(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := swapEnv(t, env, swapping("a", engine.DialectOllama, "m", "n"))
		roomy(t, g)
		maxWait(env, 20*time.Second)
		var before, burst, then outcomes
		before.offer(t, g, 8, 30*time.Second)
		t.Logf("while it loads for the first time, and then: %v", &before)
		if float64(before.answered) < 0.95*20*4/1.1 {
			t.Errorf("%d were answered, want about %.0f", before.answered, 20*4/1.1)
		}
		for range 3 {
			if r := ask(t, g, chat("n", false, 10), ""); r.status != 200 {
				t.Errorf("the other model: %d %s", r.status, r.body)
			}
		}
		loads := es[0].Stats().Loads
		for range 12 {
			burst.send(t, g)
		}
		time.Sleep(loadTime + time.Second)
		for range 12 {
			then.send(t, g)
		}
		t.Logf("while it loads: %v", &burst)
		t.Logf("after it: %v", &then)
		if n := es[0].Stats().Loads - loads; n != 1 {
			t.Errorf("%d loads, want 1", n)
		}
		if burst.answered != burst.sent || then.answered != then.sent {
			t.Errorf("%d of %d that waited for the model were answered, and %d of %d after them",
				burst.answered, burst.sent, then.answered, then.sent)
		}
	})
}

// At half of what workers can do nothing is refused. At twice of it, as many are answered as can be, in time, and the others
// learn it at once.
func TestMaxWaitUnderLoad(t *testing.T) {
	inMostRuns(t, func() (claims []claim) {
		run(t, func(t *testing.T, env *Env) {
			g := roomy(t, env.Gateway(gateway.Config{}))
			slots(env, "engine", 4)
			g.Serves(t, "m")
			maxWait(env, 3*time.Second)
			var half, twice, after outcomes
			half.offer(t, g, 2, time.Minute)
			twice.offer(t, g, 8, time.Minute)
			t.Logf("half: %v", &half)
			t.Logf("twice: %v", &twice)
			after.offer(t, g, 2, time.Minute)
			t.Logf("half again: %v", &after)
			perSecond := 4 / 1.1 // an answer takes 1.0 to 1.1 s
			claims = []claim{
				atMost("refused at half of the load", float64(half.early+half.late), 0),
				atMost("refused at half of the load, after an overload", float64(after.early+after.late), 0),
				atLeast("answers at twice the load", float64(twice.answered), 60*perSecond),
				atMost("seconds until the last of them", twice.longest.Seconds(), 3+1.2),
				atMost("part of the refusals that came late", float64(twice.late)/float64(twice.early+twice.late), 0.1),
			}
		})
		return claims
	})
}

// Requests of a gateway with little traffic are not refused because others are: its own rate is not that of the workers.
func TestMaxWaitAtAGatewayWithLittleTraffic(t *testing.T) {
	for about, tenants := range map[string]bool{"of another tenant": true, "of the same tenant": false} {
		t.Run(about, func(t *testing.T) {
			inMostRuns(t, func() (claims []claim) {
				run(t, func(t *testing.T, env *Env) {
					busy, quiet := roomy(t, env.Gateway(gateway.Config{})), env.Gateway(gateway.Config{})
					slots(env, "engine", 4)
					busy.Serves(t, "m")
					quiet.Serves(t, "m")
					maxWait(env, 3*time.Second)
					var header [2][]string
					if tenants {
						header[0] = []string{"Authorization", "Bearer " + env.AddKey("flood")}
						header[1] = []string{"Authorization", "Bearer " + env.AddKey("light")}
					}
					var flood, light outcomes
					flood.wg.Go(func() { flood.offer(t, busy, 8, 100*time.Second, header[0]...) })
					time.Sleep(20 * time.Second)
					light.offer(t, quiet, 0.5, 80*time.Second, header[1]...)
					t.Logf("busy: %v", &flood)
					t.Logf("quiet: %v", &light)
					claims = []claim{
						atLeast("part of the requests of the quiet gateway that are answered", float64(light.answered)/float64(light.sent), 0.85),
						atLeast("answers at the busy one", float64(flood.answered), 250),
					}
				})
				return claims
			})
		})
	}
}

// Once workers have joined, nothing is refused by the rate of those before.
func TestMaxWaitWhenWorkersJoin(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := roomy(t, env.Gateway(gateway.Config{}))
		slots(env, "a", 4)
		g.Serves(t, "m")
		maxWait(env, 3*time.Second)
		var over, joining, joined outcomes
		over.offer(t, g, 8, 40*time.Second)
		for _, name := range []string{"b", "c", "d", "e"} {
			slots(env, name, 4)
		}
		joining.offer(t, g, 8, 5*time.Second)
		joined.offer(t, g, 8, 30*time.Second)
		t.Logf("one worker: %v", &over)
		t.Logf("five, in the first seconds: %v", &joining)
		t.Logf("then: %v", &joined)
		if joined.answered != joined.sent {
			t.Errorf("%d of %d were answered at 40 %% of the load", joined.answered, joined.sent)
		}
	})
}

// A longest wait that is changed holds at once, and within a second for requests that wait already.
func TestMaxWaitChanges(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		slots(env, "a", 1)
		g.Serves(t, "m")
		waits := func(from, to time.Duration) reply {
			maxWait(env, from)
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() { ask(t, g, chat("m", false, 100), "") }) // 10 s
			time.Sleep(time.Second)
			time.AfterFunc(time.Second, func() { maxWait(env, to) })
			return ask(t, g, chat("m", false, 1), "")
		}
		if r := waits(2*time.Second, time.Minute); r.status != 200 || r.took < 8*time.Second {
			t.Errorf("raised to a minute: %d %s after %v", r.status, r.body, r.took)
		}
		r := waits(time.Minute, 4*time.Second)
		if r.status != 429 || !strings.Contains(r.body, "queue_timeout") || r.took > 5100*time.Millisecond {
			t.Errorf("lowered to 4 s: %d %s after %v", r.status, r.body, r.took)
		}
		if r := waits(0, 3*time.Second); r.status != 429 || r.took > 4100*time.Millisecond {
			t.Errorf("set to 3 s: %d %s after %v", r.status, r.body, r.took)
		}
		if r := waits(4*time.Second, 0); r.status != 200 {
			t.Errorf("taken away: %d %s after %v", r.status, r.body, r.took)
		}
	})
}
