package scenarios

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
)

// received is how many requests the engines have got.
func received(es []*testenv.Engine) (n int64) {
	for _, e := range es {
		n += e.Stats().Received
	}
	return n
}

// A broker that forgets which deliveries it has made, or does not take in that they are settled, has no request run again.
func TestDeliveriesAreSettledOnce(t *testing.T) {
	const runs = 3 * time.Second // how long a request runs
	for _, tier := range []string{"standard", "batch"} {
		for about, c := range map[string]struct{ gone, back time.Duration }{ // of the consumer, after the start of the requests
			"forgotten while they run":                 {time.Second, 1010 * time.Millisecond},
			"forgotten for long while they run":        {1500 * time.Millisecond, runs - time.Second},
			"away at their end":                        {runs - 100*time.Millisecond, runs + 500*time.Millisecond},
			"away at their end, and for some seconds":  {runs - 100*time.Millisecond, runs + 4*time.Second},
			"away at their end, for half a minute":     {runs - 100*time.Millisecond, runs + 30*time.Second},
			"forgotten just before they end":           {runs - 20*time.Millisecond, runs - 10*time.Millisecond},
			"forgotten again, when all should be over": {runs + 5*time.Second, runs + 5*time.Second},
		} {
			if raceEnabled && (tier != "standard" || c.back-c.gone < 100*time.Millisecond || c.back-c.gone > time.Second) { // nothing new for the race detector
				continue
			}
			t.Run(tier+", "+about, func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					g, es, _ := pair(t, env, slow("a"), slow("b"))
					js := env.JetStream()
					stream, consumer := subjects.ReqStream(tier), subjects.ReqConsumer("m", subjects.Shared)
					begun := time.Now()
					var asking sync.WaitGroup
					for range 6 {
						asking.Go(func() {
							r := ask(t, g, chat("m", false, int(runs/(100*time.Millisecond)), fmt.Sprintf(`"service_tier":%q`, tier)), "")
							if r.status != 200 {
								t.Errorf("got %d %q", r.status, r.body)
							}
						})
					}
					time.Sleep(c.gone)
					if err := js.DeleteConsumer(t.Context(), stream, consumer); err != nil {
						t.Fatal(err)
					}
					asking.Go(func() {
						time.Sleep(c.back - c.gone)
						if err := subjects.EnsureConsumer(t.Context(), js, tier, "m", subjects.Shared); err != nil {
							t.Error(err)
						}
					})
					time.Sleep(time.Until(begun.Add(runs + 3*time.Second)))
					if s, err := js.Stream(t.Context(), stream); err != nil || s.CachedInfo().State.Msgs > 0 {
						t.Errorf("3 s after the end the queue has %d messages, %v", s.CachedInfo().State.Msgs, err)
					}
					asking.Wait()
					time.Sleep(subjects.AckWait + 2*time.Second)
					if n := received(es); n != 6 {
						t.Errorf("6 requests were run %d times", n)
					}
				})
			})
		}
	}
}

// What ends while the broker is away is settled when it is back: of a stream on file nothing is left to be run again.
func TestEndsWhileTheBrokerIsAway(t *testing.T) {
	for _, away := range []time.Duration{2 * time.Second, 9 * time.Second} {
		for about, tokens := range map[string]int{"they end": 15, "their clients leave": 1000} {
			if raceEnabled && away > 2*time.Second {
				continue
			}
			t.Run(fmt.Sprint(about, ", away ", away), func(t *testing.T) {
				testenv.Run(t, func(t *testing.T, inner *testenv.Env) {
					env := &Env{Env: inner, t: t, local: new(subjects.Local)} // answers come without the broker
					g, es, _ := pair(t, env, slow("a"), slow("b"))
					ctx, leave := context.WithCancel(t.Context())
					defer leave()
					var asking sync.WaitGroup
					for range 6 {
						asking.Go(func() {
							drain(post(ctx, g, "/v1/chat/completions", chat("m", false, tokens, `"service_tier":"batch"`), ""))
						})
					}
					time.Sleep(time.Second)
					env.StopBroker()
					time.Sleep(time.Second)
					leave()
					asking.Wait()
					time.Sleep(away)
					env.StartBroker()
					time.Sleep(5 * time.Second)
					emptyQueues(t, env)
					time.Sleep(subjects.AckWait + 2*time.Second)
					if n := received(es); n != 6 {
						t.Errorf("6 requests were run %d times", n)
					}
				})
			})
		}
	}
}

// A worker does not call its engine for what a broker delivers again that is over or runs elsewhere.
func TestDeliveredAgainIsNotRun(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"), slow("b"))
		var asking sync.WaitGroup
		for range 6 {
			asking.Go(func() { ask(t, g, chat("m", false, 100), "") }) // 10 s
		}
		time.Sleep(2 * time.Second)
		js := env.JetStream()
		for range 3 { // a new leader that knows of no delivery
			if err := js.DeleteConsumer(t.Context(), subjects.ReqStream("standard"), subjects.ReqConsumer("m", subjects.Shared)); err != nil {
				t.Fatal(err)
			}
			if err := subjects.EnsureConsumer(t.Context(), js, "standard", "m", subjects.Shared); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
		}
		asking.Wait()
		if n := received(es); n != 6 {
			t.Errorf("6 requests were run %d times", n)
		}
		emptyQueues(t, env)
		info, err := js.Consumer(t.Context(), subjects.ReqStream("standard"), subjects.ReqConsumer("m", subjects.Shared))
		if err != nil {
			t.Fatal(err)
		}
		if d := info.CachedInfo().Delivered.Consumer; d == 0 {
			t.Error("the new consumers delivered nothing: the test shows nothing")
		}
		if r := ask(t, g, chat("m", false, 1), ""); r.status != 200 || r.took > time.Second {
			t.Errorf("afterwards: %d after %v", r.status, r.took)
		}
	})
}

// What was settled just before a connection broke may be lost. That the broker has what was settled after it says nothing about that:
// it is looked for.
func TestSettledWithALostConnection(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"), slow("b"))
		js := env.JetStream()
		const rounds = 4 // the gateway asks four times a second
		for i := range rounds {
			time.Sleep(5*time.Second + time.Duration(i)*70*time.Millisecond)
			first, leave := context.WithCancel(t.Context())
			second, leaveToo := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for _, ctx := range []context.Context{first, second} {
				wg.Go(func() { drain(post(ctx, g, "/v1/chat/completions", chat("m", true, 1000), "")) })
			}
			time.Sleep(time.Second)
			g.Link.Freeze()
			leave()
			time.Sleep(time.Millisecond)
			g.Link.Cut(true)
			g.Link.Thaw()
			g.Link.Mend()
			time.Sleep(110 * time.Millisecond) // it connects again after 100 ms
			leaveToo()
			wg.Wait()
			time.Sleep(3 * time.Second)
			s, err := js.Stream(t.Context(), subjects.ReqStream("standard"))
			if err != nil {
				t.Fatal(err)
			}
			if n := s.CachedInfo().State.Msgs; n > 0 {
				t.Errorf("3 s after the end the queue has %d messages", n)
			}
		}
		if n := received(es); n != 2*rounds {
			t.Errorf("%d requests were run %d times", 2*rounds, n)
		}
	})
}
