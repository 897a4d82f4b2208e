package scenarios

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

// A gateway that starts does not report that workers have joined that were there before; those that join later it does.
func TestAGatewayThatStartsReportsNoOldWorkers(t *testing.T) {
	for about, c := range map[string]struct {
		after time.Duration // the start of the worker, that a second gateway starts
		want  int           // events of it that the worker has joined
	}{
		"long after": {time.Minute, 0}, "at once": {0, 1},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				nc, _ := env.Connect("operator")
				events := make(chan *nats.Msg, 100)
				if _, err := nc.ChanSubscribe(subjects.AllEvents, events); err != nil {
					t.Fatal(err)
				}
				first := env.Gateway(gateway.Config{})
				env.Worker(env.Engine(slow("a")), worker.Config{Name: "a"})
				first.Serves(t, "m")
				time.Sleep(c.after)
				second := env.Gateway(gateway.Config{})
				second.Serves(t, "m")
				time.Sleep(3 * time.Second)
				env.Worker(env.Engine(slow("b")), worker.Config{Name: "b"})
				time.Sleep(3 * time.Second)
				joined := make(map[string]int)
				for len(events) > 0 {
					var e subjects.Event
					if err := json.Unmarshal((<-events).Data, &e); err != nil {
						t.Fatal(err)
					}
					if e.Kind == subjects.EventWorkerJoined {
						joined[e.From+" "+e.Worker]++
					}
				}
				one, two := "gateway "+first.ID(), "gateway "+second.ID()
				if joined[one+" a"] != 1 || joined[two+" a"] != c.want || joined[one+" b"] != 1 || joined[two+" b"] != 1 {
					t.Errorf("%v", joined)
				}
			})
		})
	}
}

// Gateways report a queue that is full in the same words, however many requests each sees there: those who read events tell their
// repeats by that.
func TestAFullQueueIsReportedInTheSameWords(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		nc, _ := env.Connect("operator")
		events := make(chan *nats.Msg, 100)
		if _, err := nc.ChanSubscribe(subjects.EventSubject(subjects.EventFull), events); err != nil {
			t.Fatal(err)
		}
		gs := []*Gateway{env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{})}
		env.Worker(env.Handler("e", engineOf(using(1, 1, func(ctx context.Context) { <-ctx.Done() }), "m")), worker.Config{Name: "e", Slots: 4})
		for _, g := range gs {
			g.Serves(t, "m")
		}
		for _, most := range []int{3, 5, 7} { // and so each gateway sees another number
			env.SetPolicy(func(p *policy.Policy) { p.Tiers[1].MaxQueue = most })
			time.Sleep(time.Minute)
			ctx, leave := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for i, g := range gs {
				for range most + 20 + 5*i {
					wg.Go(func() { drain(post(ctx, g, "/v1/chat/completions", chat("m", false, 1), "")) })
				}
			}
			time.Sleep(5 * time.Second)
			leave()
			wg.Wait()
			time.Sleep(5 * time.Second)
		}
		texts, from := make(map[string]bool), make(map[string]bool)
		for len(events) > 0 {
			var e subjects.Event
			if err := json.Unmarshal((<-events).Data, &e); err != nil {
				t.Fatal(err)
			}
			texts[e.Text], from[e.From] = true, true
		}
		if len(texts) != 1 || len(from) != len(gs) {
			t.Errorf("%v by %v", texts, from)
		}
	})
}
