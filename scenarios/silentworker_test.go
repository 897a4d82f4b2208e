package scenarios

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/worker"
)

// A worker that stands still has bids that the broker still serves, for as long as they are parked. None of them holds up a
// request for longer than it takes to see that the worker is silent, and once that is known for an instant.
func TestBidsOfASilentWorker(t *testing.T) {
	for _, c := range []struct {
		gateways, workers int
		every             time.Duration // between two requests
		tier              string
	}{
		{1, 2, 300 * time.Millisecond, "standard"},
		{2, 3, 300 * time.Millisecond, "priority"},
		{2, 4, 50 * time.Millisecond, "standard"},
		{3, 2, 700 * time.Millisecond, "batch"},
	} {
		if raceEnabled && c.gateways != 1 {
			continue
		}
		t.Run(fmt.Sprintf("%d gateways, %d workers, a request each %v", c.gateways, c.workers, c.every), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				var gs []*Gateway
				for range c.gateways {
					gs = append(gs, env.Gateway(gateway.Config{}))
				}
				var first *Worker
				for i := range c.workers {
					cfg := slow(fmt.Sprint("engine-", i))
					if cfg.Slots = 12; i == 0 { // the fastest, which gets most
						cfg.ITLBase /= 2
					}
					w := env.Worker(env.Engine(cfg), worker.Config{Name: cfg.Name, Slots: cfg.Slots})
					if i == 0 {
						first = w
					}
				}
				for _, g := range gs {
					g.Serves(t, "m")
				}
				var wg sync.WaitGroup
				var mu sync.Mutex
				begun, took := time.Now(), make(map[time.Duration]time.Duration)
				ask1 := func(i int) {
					at := time.Since(begun)
					r := ask(t, gs[i%len(gs)], chat("m", i%2 == 0, 2, fmt.Sprintf(`"service_tier":%q`, c.tier)), "")
					if r.status != 200 || words(content(t, r.body)) != 2 {
						t.Errorf("%d %q", r.status, r.body)
					}
					mu.Lock()
					defer mu.Unlock()
					took[at] = r.took
				}
				const warm, lasts = 5 * time.Second, 17 * time.Second
				time.AfterFunc(warm, first.Link.Freeze)
				for i := 0; time.Since(begun) < lasts; i++ {
					wg.Go(func() { ask1(i) })
					time.Sleep(c.every)
				}
				wg.Wait()
				var known, unknown time.Duration
				for at, d := range took {
					switch since := at - warm; {
					case since < -time.Second:
					case since < 700*time.Millisecond:
						unknown = max(unknown, d)
					default:
						known = max(known, d)
					}
				}
				t.Logf("%d requests: at most %v while the worker is not known to be silent, %v afterwards", len(took), unknown, known)
				// An answer takes 0.3 s.
				if unknown > 2*time.Second {
					t.Errorf("a request took %v when the worker had just fallen silent, want at most 2s", unknown)
				}
				if known > 600*time.Millisecond {
					t.Errorf("a request took %v though the worker is known to be silent, want at most 600ms", known)
				}
			})
		})
	}
}
