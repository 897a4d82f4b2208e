package scenarios

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/worker"
)

// Nine tenants use at least three quarters of the capacity. A tenth tenant that floods the same
// tier at most doubles their waits, through however many gateways it comes and whichever gateways
// the others use.
func TestAFloodingTenantQueuesBehindItself(t *testing.T) {
	all := []int{0, 1, 2}
	for name, c := range map[string]crowd{
		"1 gateway":                                {gateways: 1, rate: 54, lightOn: all[:1], floodOn: all[:1]},
		"3 gateways":                               {gateways: 3, rate: 54, lightOn: all, floodOn: all},
		"3 gateways near saturation":               {gateways: 3, rate: 64, lightOn: all, floodOn: all},
		"the flood through one, the others not":    {gateways: 3, rate: 54, lightOn: all[1:], floodOn: all[:1]},
		"the others through one of 3":              {gateways: 3, rate: 54, lightOn: all[:1], floodOn: all},
		"the others through one, the flood not":    {gateways: 3, rate: 54, lightOn: all[:1], floodOn: all[1:]},
		"3 gateways and requests ten times longer": {gateways: 3, rate: 5.4, longer: 10, lightOn: all, floodOn: all},
	} {
		t.Run(name, func(t *testing.T) {
			if raceEnabled && name != "3 gateways" {
				t.Skip("slow with the race detector, and concurrent as the one with 3 gateways")
			}
			inMostRuns(t, func() []claim {
				var p99 [2]time.Duration
				for i, flood := range []int{0, 300} {
					if raceEnabled && flood == 0 {
						continue // the comparison is of the full speed
					}
					waits := c.lightWaits(t, flood)
					p99[i] = waits[len(waits)*99/100]
					sum := time.Duration(0)
					for _, w := range waits {
						sum += w
					}
					t.Logf("flood of %d: %d waits, mean %v, p99 %v", flood, len(waits), sum/time.Duration(len(waits)), p99[i])
				}
				if raceEnabled {
					return nil
				}
				t.Logf("%.2f times", p99[1].Seconds()/p99[0].Seconds())
				return []claim{atMost("p99 of the light tenants' waits with the flood, in seconds", p99[1].Seconds(), 2*p99[0].Seconds())}
			})
		})
	}
}

// queueTime is how long a request waited for a worker, as reported in its answer.
func queueTime(t testing.TB, r reply) time.Duration {
	t.Helper()
	var ms float64
	if _, err := fmt.Sscanf(r.header.Get("Server-Timing"), "queue;dur=%g", &ms); err != nil {
		t.Fatalf("server-timing %q: %v", r.header.Get("Server-Timing"), err)
	}
	return time.Duration(ms * float64(time.Millisecond))
}

// crowd is nine light tenants and a tenth that floods, with the gateways that they use.
type crowd struct {
	gateways         int
	rate             float64 // requests per second of the light tenants together, of about 73 possible (a tenth of that if they are ten times longer)
	longer           int     // factor on the length of the requests; 0 is 1
	lightOn, floodOn []int
}

// crowdSlots is how many requests run at once.
const crowdSlots = 8

// start starts the gateways and a worker, and creates a key for each tenant.
func (c *crowd) start(t *testing.T, env *Env) (gs []*Gateway, keys []string) {
	for range c.gateways {
		gs = append(gs, env.Gateway(gateway.Config{}))
	}
	e := env.Engine(sim.Config{Name: "e", Models: []string{"m"}, Slots: crowdSlots, PrefillRate: 1e6, ITLBase: 10 * time.Millisecond})
	env.Worker(e, worker.Config{Name: "w", Slots: crowdSlots})
	for _, g := range gs {
		g.Serves(t, "m")
	}
	for i := range 10 {
		keys = append(keys, env.AddKey(fmt.Sprint("tenant-", i)))
	}
	return gs, keys
}

// keepAsking keeps n requests of a key waiting or running until stop is closed, and calls answered
// for each that was answered.
func keepAsking(t *testing.T, wg *sync.WaitGroup, stop chan struct{}, gs []*Gateway, n int, key string, tokens func(*rand.Rand) int, answered func(tokens int)) {
	for i := range n {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(i)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := tokens(rng)
				if r := ask(t, gs[i%len(gs)], chat("m", false, n), "", "authorization", "Bearer "+key); r.status == 200 {
					answered(n)
				}
			}
		})
	}
}

// lightWaits is how long the requests of the nine light tenants waited, sorted, while one tenant
// always has floods requests waiting or running.
func (c *crowd) lightWaits(t *testing.T, floods int) []time.Duration {
	var mu sync.Mutex
	var waits []time.Duration
	run(t, func(t *testing.T, env *Env) {
		gs, keys := c.start(t, env)
		var floodOn []*Gateway
		for _, i := range c.floodOn {
			floodOn = append(floodOn, gs[i])
		}
		stop := make(chan struct{})
		var flooding, light sync.WaitGroup
		// Requests take 10 to 190 ms, 100 on average, so that the slots do not all become free at
		// the same moment.
		tokens := func(rng *rand.Rand) int { return (2 + rng.IntN(19)) * max(c.longer, 1) }
		keepAsking(t, &flooding, stop, floodOn, floods, keys[9], tokens, func(int) {})
		time.Sleep(5 * time.Second)
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 2500 {
			time.Sleep(time.Duration(rng.ExpFloat64() / c.rate * float64(time.Second)))
			body := chat("m", false, tokens(rng))
			light.Go(func() {
				r := ask(t, gs[c.lightOn[n%len(c.lightOn)]], body, "", "authorization", "Bearer "+keys[n%9])
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

// Tenants that flood through different gateways are served the same number of tokens, however many
// gateways each uses and however large its requests are.
func TestFloodsThroughDifferentGatewaysShareByTokens(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		c := crowd{gateways: 3}
		gs, keys := c.start(t, env)
		var served [3]atomic.Int64
		stop := make(chan struct{})
		var flooding sync.WaitGroup
		for i, f := range []struct {
			gs     []*Gateway
			tokens int
		}{{gs[:1], 10}, {gs[1:2], 100}, {gs, 30}} {
			keepAsking(t, &flooding, stop, f.gs, 60, keys[i], func(*rand.Rand) int { return f.tokens }, func(n int) {
				served[i].Add(int64(n + len(chat("m", false, n))/4)) // as the gateway counts them
			})
		}
		time.Sleep(60 * time.Second)
		close(stop)
		small, large, both := served[0].Load(), served[1].Load(), served[2].Load()
		t.Logf("served %d, %d and %d tokens", small, large, both)
		if low, high := min(small, large, both), max(small, large, both); float64(high) > 1.1*float64(low) {
			t.Errorf("served %d, %d and %d tokens, want the same", small, large, both)
		}
		flooding.Wait()
	})
}

// When a gateway dies that holds a part of a flood, the slots are idle only for a moment.
func TestAFloodGoesOnWithoutADeadGateway(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		c := crowd{gateways: 3}
		gs, keys := c.start(t, env)
		var served atomic.Int64
		count := func(int) { served.Add(1) }
		stop, gone := make(chan struct{}), make(chan struct{})
		var flooding, lost sync.WaitGroup
		tokens := func(rng *rand.Rand) int { return 2 + rng.IntN(19) }
		keepAsking(t, &flooding, stop, gs[:2], 200, keys[0], tokens, count)
		keepAsking(t, &lost, gone, gs[2:], 100, keys[1], tokens, count)
		time.Sleep(5 * time.Second)
		close(gone)
		gs[2].Link.Cut(true)
		served.Store(0)
		time.Sleep(3 * time.Second)
		n := served.Load()
		t.Logf("%d requests were served in the 3 s after a gateway died", n)
		if n < 3*73*3/4 { // of 3×73
			t.Errorf("%d requests were served in the 3 s after a gateway died", n)
		}
		close(stop)
		flooding.Wait()
		gs[2].Link.Mend()
		lost.Wait()
	})
}
