package scenarios

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// Of a burst, what the free slots take is taken, whatever max_queue says: it bounds what has to wait.
func TestBurst(t *testing.T) {
	const slots, queue = 150, 10
	for _, c := range []struct{ burst, least, most int }{
		{slots, slots, slots},
		{slots + queue, slots + queue, slots + queue},
		{2 * slots, slots + queue, slots + 2*queue}, // heartbeats tell of free slots twice a second
	} {
		t.Run(fmt.Sprintf("%d onto %d slots", c.burst, slots), func(t *testing.T) {
			runBoth(t, func(t *testing.T, env *Env) {
				cfg := slow("a")
				cfg.Slots, cfg.PrefillRate = slots, 0
				g, _, _ := pair(t, env, cfg)
				env.SetPolicy(func(p *policy.Policy) {
					for i := range p.Tiers {
						p.Tiers[i].MaxQueue, p.Tiers[i].Reserve = queue, 0
					}
				})
				time.Sleep(time.Second)
				var wg sync.WaitGroup
				var mu sync.Mutex
				answered := 0
				for range c.burst {
					wg.Go(func() {
						r := ask(t, g, chat("m", true, 30), "")
						mu.Lock()
						defer mu.Unlock()
						switch r.status {
						case 200:
							answered++
						case 429:
							wantError(t, r, 429, "queue_full")
						default:
							t.Errorf("%d %s", r.status, r.body)
						}
					})
				}
				wg.Wait()
				if answered < c.least || answered > c.most {
					t.Errorf("%d of %d were answered, want %d to %d", answered, c.burst, c.least, c.most)
				}
			})
		})
	}
}
