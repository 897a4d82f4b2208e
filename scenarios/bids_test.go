package scenarios

import (
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/subjects"
)

// TestDeletedConsumer deletes the consumer of a lane, and with it the bids that are parked there,
// while a worker is busy: gateways recreate the consumer, and the worker knows which of its bids
// are lost.
func TestDeletedConsumer(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, _ := pair(t, env, sim.Config{Name: "a", Models: []string{"m"}, Slots: 64, ITLBase: 5 * time.Millisecond})
		js := env.JetStream()
		stream, consumer := subjects.ReqStream("standard"), subjects.ReqConsumer("m", subjects.Shared)
		parked := func() int {
			c, err := js.Consumer(t.Context(), stream, consumer)
			if err != nil {
				t.Fatal(err)
			}
			return c.CachedInfo().NumWaiting
		}
		usual := parked()
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				for range 50 {
					if r := ask(t, g, chat("m", false, 3), ""); r.status != 200 || r.took > 5*time.Second {
						t.Errorf("got %d %s after %v", r.status, r.body, r.took)
					}
				}
			})
		}
		time.Sleep(100 * time.Millisecond)
		if err := js.DeleteConsumer(t.Context(), stream, consumer); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		time.Sleep(20 * time.Second) // the bids that were parked for the load have expired
		if n := parked(); n != usual {
			t.Errorf("%d bids are parked at rest, want %d as before", n, usual)
		}
	})
}

// TestDeletedHomeLane deletes the consumers of the home lanes: the first follow-up detects it, and
// a second later all are served there again.
func TestDeletedHomeLane(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, ws := pair(t, env, slow("a"), slow("b"))
		follow := func() reply { return ask(t, g, chat("m", false, 1), "", "X-Session-Id", "s") }
		usual := follow().took
		js := env.JetStream()
		for _, w := range ws {
			if err := js.DeleteConsumer(t.Context(), subjects.ReqStream("standard"), subjects.ReqConsumer("m", subjects.StableID(w.ID()))); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			if r := follow(); r.status != 200 || r.took > usual+1500*time.Millisecond {
				t.Errorf("after the lanes were gone: %d after %v", r.status, r.took)
			}
		}
		time.Sleep(time.Second) // a bid that failed meanwhile is repeated
		for range 5 {
			if r := follow(); r.status != 200 || r.took > usual+100*time.Millisecond {
				t.Errorf("later: %d after %v, usually %v", r.status, r.took, usual)
			}
		}
	})
}
