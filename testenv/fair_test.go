package testenv_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// Nine tenants use three quarters of what there is. A tenth that floods the same
// tier lengthens their waits to no more than double. With more gateways it is a
// little more: each may have a request of the flood in the broker, in front.
func TestAFloodingTenantQueuesBehindItself(t *testing.T) {
	for gateways, most := range map[int]float64{1: 2, 3: 2.5} {
		t.Run(fmt.Sprint(gateways, " gateways"), func(t *testing.T) {
			var p99, mean [2]time.Duration
			for i, flood := range []int{0, 300} {
				waits := lightWaits(t, gateways, flood)
				p99[i] = waits[len(waits)*99/100]
				sum := time.Duration(0)
				for _, w := range waits {
					sum += w
				}
				mean[i] = sum / time.Duration(len(waits))
				t.Logf("flood of %d: %d waits, mean %v, p99 %v", flood, len(waits), mean[i], p99[i])
			}
			if ratio := p99[1].Seconds() / p99[0].Seconds(); ratio > most {
				t.Errorf("p99 of the light tenants' waits: %v, and %v without the flood: %.2f times, want at most %g", p99[1], p99[0], ratio, most)
			}
		})
	}
}

// queueTime is how long a request waited for a worker, as its answer says.
func queueTime(t testing.TB, r reply) time.Duration {
	t.Helper()
	var ms float64
	if _, err := fmt.Sscanf(r.header.Get("Server-Timing"), "queue;dur=%g", &ms); err != nil {
		t.Fatalf("server-timing %q: %v", r.header.Get("Server-Timing"), err)
	}
	return time.Duration(ms * float64(time.Millisecond))
}

// lightWaits is how long the requests of nine light tenants waited, sorted,
// beside one tenant that always has so many requests waiting or running.
func lightWaits(t *testing.T, gateways, flood int) []time.Duration {
	const slots, rate = 8, 54.0 // of about 73 per second
	var mu sync.Mutex
	var waits []time.Duration
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		var gs []*testenv.Gateway
		for range gateways {
			gs = append(gs, env.Gateway(gateway.Config{}))
		}
		e := env.Engine(engine.SimConfig{Name: "e", Models: []string{"m"}, Slots: slots, PrefillRate: 1e6, ITLBase: 10 * time.Millisecond})
		env.Worker(e, worker.Config{Name: "w", Slots: slots})
		for _, g := range gs {
			g.Serves(t, "m")
		}
		keys := make([]string, 10)
		for i := range keys {
			keys[i] = env.AddKey(fmt.Sprint("tenant-", i))
		}
		stop := make(chan struct{})
		var flooding, light sync.WaitGroup
		// Requests take 10 to 190 ms, 100 in the mean, so that the slots do not all
		// become free at the same moment.
		tokens := func(rng *rand.Rand) int { return 2 + rng.IntN(19) }
		for i := range flood {
			flooding.Go(func() {
				rng := rand.New(rand.NewPCG(3, uint64(i)))
				for {
					select {
					case <-stop:
						return
					default:
					}
					ask(t, gs[i%len(gs)], chat("m", false, tokens(rng)), "", "authorization", "Bearer "+keys[9])
				}
			})
		}
		time.Sleep(5 * time.Second)
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 2500 {
			time.Sleep(time.Duration(rng.ExpFloat64() / rate * float64(time.Second)))
			body := chat("m", false, tokens(rng))
			light.Go(func() {
				r := ask(t, gs[n%len(gs)], body, "", "authorization", "Bearer "+keys[n%9])
				if r.status != 200 {
					t.Errorf("%d %s", r.status, r.body)
					return
				}
				mu.Lock()
				waits = append(waits, queueTime(t, r))
				mu.Unlock()
			})
		}
		light.Wait()
		close(stop)
		flooding.Wait()
	})
	slices.Sort(waits)
	return waits
}
