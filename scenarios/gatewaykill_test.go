package scenarios

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

// Whenever a gateway is killed, engines stop working for it within 2 s, and do not begin with what it has in the queue: while
// prompts are read and while answers are streamed, and also if the worker has just had a new connection.
func TestGatewayKilledAtAnyTime(t *testing.T) {
	for _, c := range []struct {
		what    string
		stream  bool
		orders  string
		restart time.Duration // of the broker, before the kill; 0: it does not
	}{
		{"answers that are not streamed", false, "", 0},
		{"long prompts", true, "ttft=1m", 0},
		{"streams", true, "", 0},
		{"answers that are not streamed, soon after the broker's restart", false, "", 4 * time.Second},
		{"streams, soon after the broker's restart", true, "", 2 * time.Second},
	} {
		for phase := time.Duration(0); phase < time.Second; phase += 310 * time.Millisecond {
			if raceEnabled && phase > 0 { // nothing new for the race detector
				continue
			}
			t.Run(fmt.Sprintf("%s, %v", c.what, phase), func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					e := env.Engine(slow("a"))
					g1, g2 := env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{})
					env.Worker(e, worker.Config{Name: "a", Slots: 4})
					g1.Serves(t, "m")
					ctx, cancel := context.WithCancel(t.Context())
					var wg sync.WaitGroup
					defer wg.Wait()
					defer cancel()
					for range 10 { // six wait
						wg.Go(func() { drain(post(ctx, g1, "/v1/chat/completions", chat("m", c.stream, 10_000), c.orders)) })
					}
					time.Sleep(2*time.Second + phase)
					if c.restart > 0 {
						env.StopBroker()
						env.StartBroker()
						time.Sleep(c.restart)
					}
					s := e.Stats()
					if s.Running != 4 {
						t.Fatalf("%d running", s.Running)
					}
					g1.Link.Cut(true)
					killed := time.Now()
					idle(t, e, 1600*time.Millisecond) // a loaded machine needs some of the 2 s
					t.Logf("the engine is idle after %v", time.Since(killed))
					if r := ask(t, g2, chat("m", true, 5), ""); r.status != 200 || r.took > time.Second {
						t.Errorf("another gateway: %d after %v", r.status, r.took)
					}
					time.Sleep(5 * time.Second)
					if n := e.Stats().Received - s.Received - 1; n > 0 {
						t.Errorf("the engine got %d requests of a gateway that is gone", n)
					}
				})
			})
		}
	}
}

// What a gateway leaves in a queue on disk that is killed together with the broker is not run when the broker is back: for 10 s
// the workers cannot tell whether the gateway comes back too, and do not start without its word.
func TestGatewayAndBrokerKilled(t *testing.T) {
	for _, away := range []time.Duration{0, 2 * time.Second, 12 * time.Second} {
		if raceEnabled && away != 2*time.Second {
			continue
		}
		t.Run(away.String(), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				e := env.Engine(slow("a"))
				g1, g2 := env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{})
				env.Worker(e, worker.Config{Name: "a", Slots: 4})
				g1.Serves(t, "m")
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				defer wg.Wait()
				defer cancel()
				for range 8 { // four wait
					wg.Go(func() {
						drain(post(ctx, g1, "/v1/chat/completions", chat("m", false, 30, `"service_tier":"batch"`), ""))
					})
				}
				time.Sleep(2 * time.Second)
				before := e.Stats().Received
				if before != 4 {
					t.Fatalf("%d running", before)
				}
				g1.Link.Cut(true)
				env.StopBroker()
				time.Sleep(away)
				env.StartBroker()
				time.Sleep(3 * time.Second)
				if r := ask(t, g2, chat("m", true, 5), ""); r.status != 200 || r.took > 2*time.Second {
					t.Errorf("another gateway: %d after %v", r.status, r.took)
				}
				time.Sleep(20 * time.Second)
				if n := e.Stats().Received - before - 1; n > 0 {
					t.Errorf("the engine got %d requests of a gateway that is gone", n)
				}
				emptyQueues(t, env)
			})
		})
	}
}

// Answers that are complete when nobody knows yet that their gateway was killed leave nothing in the queue, and are not computed
// again.
func TestGatewayKilledJustBeforeTheEnd(t *testing.T) {
	for _, tier := range []string{"standard", "batch"} {
		run(t, func(t *testing.T, env *Env) {
			e := env.Engine(slow("a"))
			g1, g2 := env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{})
			env.Worker(e, worker.Config{Name: "a", Slots: 8})
			g1.Serves(t, "m")
			var wg sync.WaitGroup
			defer wg.Wait()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for i := range 8 { // they end 0.1 to 0.8 s after the kill
				wg.Go(func() {
					drain(post(ctx, g1, "/v1/chat/completions", chat("m", i%2 == 0, 11+i, fmt.Sprintf(`"service_tier":%q`, tier)), ""))
				})
			}
			time.Sleep(time.Second)
			n := e.Stats().Received
			g1.Link.Cut(true)
			time.Sleep(3 * time.Second)
			emptyQueues(t, env)
			time.Sleep(subjects.AckWait + 2*time.Second)
			if more := e.Stats().Received - n; more > 0 {
				t.Errorf("the engine got %d requests of a gateway that is gone", more)
			}
			if r := ask(t, g2, chat("m", true, 5), ""); r.status != 200 {
				t.Errorf("another gateway: %d", r.status)
			}
		})
	}
}
