package scenarios

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// A worker that is killed while all are nearly full stops the others for no moment: as long as requests wait, no slots of
// theirs are free, and answers come all the time.
func TestWorkerKilledAtHighLoad(t *testing.T) {
	if raceEnabled {
		t.Skip("slow with the race detector, and concurrent as the others")
	}
	for _, c := range []struct {
		load     float64 // before the kill, of four workers
		gateways int
		tier     string
	}{{0.8, 1, "standard"}, {0.95, 2, "priority"}, {0.9, 3, "standard"}} {
		t.Run(fmt.Sprintf("%.0f %%, %d gateways, %s", 100*c.load, c.gateways, c.tier), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				var gs []*Gateway
				for range c.gateways {
					gs = append(gs, env.Gateway(gateway.Config{}))
				}
				const workers, slots, itl = 4, 12, 20 * time.Millisecond
				var es []*testenv.Engine
				var ws []*Worker
				start := func(i int) *Worker {
					e := env.Engine(sim.Config{Name: fmt.Sprint("e", i), Models: []string{"m"}, Slots: slots, PrefillRate: 1e6, ITLBase: itl})
					es = append(es, e)
					return env.Worker(e, worker.Config{Name: fmt.Sprint("w", i), Slots: slots})
				}
				for i := range workers {
					ws = append(ws, start(i))
				}
				for _, g := range gs {
					g.Serves(t, "m")
				}
				// 80 % of 20 tokens and 20 % of 150, as in make chaos: 0.92 s.
				mean := 0.8*20*itl.Seconds() + 0.2*150*itl.Seconds()
				every := time.Duration(mean / (c.load * workers * slots) * float64(time.Second))
				var mu sync.Mutex
				var ended []time.Time
				var failed, waiting int
				var slowest time.Duration
				var wg sync.WaitGroup
				rng := rand.New(rand.NewPCG(1, 1))
				begun, killed := time.Now(), time.Time{}
				send := func(i int) {
					tokens := 20
					if rng.Float64() < 0.2 {
						tokens = 150
					}
					wg.Go(func() {
						mu.Lock()
						waiting++
						mu.Unlock()
						r := ask(t, gs[i%len(gs)], chat("m", false, tokens, fmt.Sprintf(`"service_tier":%q`, c.tier)), "")
						mu.Lock()
						defer mu.Unlock()
						waiting--
						if r.status != 200 {
							failed++
							t.Logf("%d %.200q", r.status, r.body)
						}
						ended, slowest = append(ended, time.Now()), max(slowest, r.took-time.Duration(tokens)*itl)
					})
				}
				const kill, back, lasts = 10 * time.Second, 13 * time.Second, 25 * time.Second
				var idleFor, longest time.Duration
				watching := make(chan struct{})
				wg.Go(func() { // does a slot stay free while requests wait?
					const step = 10 * time.Millisecond
					for {
						select {
						case <-watching:
							return
						case <-time.After(step):
						}
						free, running := 0, 0
						for i, e := range es {
							if n := e.Stats().Running; i > 0 || killed.IsZero() {
								free, running = free+slots-n, running+n
							}
						}
						mu.Lock()
						switch {
						case !killed.IsZero() && time.Since(killed) < 1700*time.Millisecond: // some of them wait for that to be noticed
						case free > 1 && waiting-running > 4:
							idleFor += step
						default:
							idleFor = 0
						}
						longest = max(longest, idleFor)
						mu.Unlock()
					}
				})
				for i := 0; time.Since(begun) < lasts; i++ {
					if since := time.Since(begun); killed.IsZero() && since > kill {
						mu.Lock()
						killed = time.Now()
						mu.Unlock()
						ws[0].Kill(es[0])
					} else if len(ws) == workers && since > back {
						ws = append(ws, start(workers))
					}
					send(i)
					time.Sleep(every)
				}
				close(watching)
				wg.Wait()
				gap := time.Duration(0)
				for i := range ended[1:] {
					gap = max(gap, ended[i+1].Sub(ended[i]))
				}
				t.Logf("%d answers, %d failed, the longest waited for %v; %v at most without an answer; a slot was free for %v while requests waited", len(ended), failed, slowest, gap, longest)
				if failed > 0 || gap > 500*time.Millisecond || longest > 500*time.Millisecond {
					t.Errorf("%d failed, %v without an answer, %v with a free slot", failed, gap, longest)
				}
			})
		})
	}
}
