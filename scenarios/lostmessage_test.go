package scenarios

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

// Messages that the broker loses, as a cluster does with streams in memory when all of its nodes restart at once, are published
// again as soon as that shows. The stream is the same as before, so that its creation does not.
func TestBrokerLosesMessages(t *testing.T) {
	purge := func(t *testing.T, js jetstream.JetStream, stream string) {
		s, err := js.Stream(t.Context(), stream)
		if err == nil {
			err = s.Purge(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tier := range []string{"standard", "batch"} {
		for about, c := range map[string]struct {
			lose   func(t *testing.T, js jetstream.JetStream, stream string)
			others int // requests that come afterwards
		}{
			"all of them":                     {purge, 0},
			"all of them, before others come": {purge, 4},
			"all of them, and what the consumer knew": {func(t *testing.T, js jetstream.JetStream, stream string) {
				purge(t, js, stream)
				if err := js.DeleteConsumer(t.Context(), stream, subjects.ReqConsumer("m", subjects.Shared)); err != nil {
					t.Fatal(err)
				}
				if err := subjects.EnsureConsumer(t.Context(), js, tier, "m", subjects.Shared); err != nil {
					t.Fatal(err)
				}
			}, 2},
		} {
			if raceEnabled && tier != "standard" {
				continue
			}
			t.Run(tier+", "+about, func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					g1, g2 := env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{})
					cfg := slow("a")
					cfg.Slots = 2
					e := env.Engine(cfg)
					env.Worker(e, worker.Config{Name: "a", Slots: cfg.Slots})
					g1.Serves(t, "m")
					g2.Serves(t, "m")
					var wg sync.WaitGroup
					busy, free := context.WithCancel(t.Context())
					defer free()
					send := func(i int, ctx context.Context, tokens int) {
						wg.Go(func() {
							resp, err := post(ctx, []*Gateway{g1, g2}[i%2], "/v1/chat/completions", chat("m", false, tokens, fmt.Sprintf(`"service_tier":%q`, tier)), "")
							body, err := drain(resp, err)
							if ctx == busy {
								return
							}
							if err != nil || resp.StatusCode != 200 || words(content(t, body)) != tokens {
								t.Errorf("%v %q", err, body)
							}
						})
					}
					for i := range cfg.Slots {
						send(i, busy, 10_000)
					}
					time.Sleep(time.Second)
					for i := range 4 {
						send(i, t.Context(), 5)
					}
					time.Sleep(2 * time.Second)
					c.lose(t, env.JetStream(), subjects.ReqStream(tier))
					for i := range c.others {
						send(i, t.Context(), 5)
					}
					time.Sleep(2500 * time.Millisecond)
					free() // now the slots are free
					begun := time.Now()
					wg.Wait()
					// Three or four rounds of 0.5 s.
					if d := time.Since(begun); d > 2500*time.Millisecond {
						t.Errorf("the last answer came after %v", d)
					}
					if n := int(e.Stats().Received); n != cfg.Slots+4+c.others {
						t.Errorf("the engine was asked %d times for %d requests", n, cfg.Slots+4+c.others)
					}
					emptyQueues(t, env)
				})
			})
		}
	}
}
