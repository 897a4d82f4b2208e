package scenarios

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

// pulling gives a request to the cheapest of the engines whose workers park bids; of several, to the one that has waited
// longest. Rationed, which ones park is decided once a second by their prices then, and at once if many more requests run. If one
// has waited for a tenth of a second, all park.
func pulling(mean policy.Mean, rationed bool) route {
	var parks []bool
	refAt, running, now, rate, last := -1.0, 0, 0.0, 0.0, (*job)(nil)
	return func(engines []*modelEngine, j *job) *modelEngine {
		rungs, free, runs := make([]int, len(engines)), [policy.Rungs]int{}, 0
		reference := 0.0
		for _, e := range engines {
			if alone := mean.Input/e.PrefillRate + mean.Output*e.itl(1); reference == 0 || alone < reference {
				reference = alone
			}
			now = max(now, e.at)
		}
		if now = max(now, j.at); j != last {
			last = j
			rate++
		}
		for i, e := range engines {
			price := mean.Input/e.PrefillRate*float64(1+len(e.prefilling)) + mean.Output*e.itl(e.running()+1)
			rungs[i] = policy.Rung(price, reference)
			if runs += e.running(); e.running() < e.Slots {
				free[rungs[i]]++
			}
		}
		if now-refAt >= 1 || now-refAt >= 0.1 && runs-running >= policy.ParkTarget/2 || parks == nil {
			ration, limits := policy.RationOf(free, rate/max(now-refAt, 0.1))
			refAt, running, rate, parks = now, runs, 0, make([]bool, len(engines))
			for i := range engines {
				parks[i] = !rationed || !limits || ration.Parks(rungs[i], policy.Draw(fmt.Sprint(i), "m"))
			}
		}
		var best *modelEngine
		cheapest := policy.Rungs
		for i, e := range engines {
			if e.running() == e.Slots || !parks[i] && now-j.at < 0.1 {
				continue
			}
			if rungs[i] < cheapest || rungs[i] == cheapest && e.took < best.took {
				best, cheapest = e, rungs[i]
			}
		}
		return best
	}
}

// TestRationedBalance replays a production trace over 400 engines of three unlike kinds, in the model, at loads at which a
// part of them suffices: if only the cheapest park bids, clients wait as long as if all did.
func TestRationedBalance(t *testing.T) {
	var engines []sim.Config
	for range 80 {
		engines = append(engines, unlike()...)
	}
	slice := readTrace(t, "testdata/azure_conv_slice.csv")
	input, output := means(slice)
	var trace []traced
	for range 3 {
		begin := 0.0
		if n := len(trace); n > 0 {
			begin = trace[n-1].at + 0.01 - slice[0].at
		}
		for _, r := range slice {
			r.at += begin
			trace = append(trace, r)
		}
	}
	for _, load := range []float64{0.05, 0.1, 0.2} {
		scaled := atLoad(load, trace, engines)
		all := figuresOf(replayModel(scaled, engines, pulling(policy.Mean{Input: input, Output: output}, false)))
		rationed := figuresOf(replayModel(scaled, engines, pulling(policy.Mean{Input: input, Output: output}, true)))
		t.Logf("%.0f requests/s, %.0f %% of capacity; seconds  TTFT p50     p95     p99   E2E p50     p95     p99\nall park   %v\nrationed   %v", float64(len(scaled))/scaled[len(scaled)-1].at, 100*load, all, rationed)
		const p99 = 2
		if rationed.e2e[p99] > 1.05*all.e2e[p99] || rationed.ttft[p99] > 1.2*all.ttft[p99]+0.01 {
			t.Errorf("at %.0f %%: E2E p99 %.2f s and TTFT p99 %.2f s, and %.2f s and %.2f s if all park", 100*load, rationed.e2e[p99], rationed.ttft[p99], all.e2e[p99], all.ttft[p99])
		}
	}
}

// TestLargePoolParksFewBids runs a pool with more workers than park bids: few bids are parked at rest, and a burst that needs
// most workers is taken by most of them, at once.
func TestLargePoolParksFewBids(t *testing.T) {
	if testing.Short() {
		t.Skip("runs many workers")
	}
	const workers, slots = 100, 2
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		engines := make([]func() sim.Stats, workers)
		for i := range workers {
			name := fmt.Sprintf("w%d", i)
			e := env.Engine(sim.Config{Name: name, Models: []string{"m"}, Slots: slots, ITLBase: 50 * time.Millisecond})
			engines[i] = e.Stats
			env.Worker(e, worker.Config{Name: name, Slots: slots})
		}
		g.Serves(t, "m")
		env.SetPolicy(func(p *policy.Policy) {
			p.Pools = map[string]policy.Pool{"m": {Affinity: policy.AffinityOff}}
		})
		time.Sleep(12 * time.Second) // what was parked before the first reference has expired
		js := env.JetStream()
		parked := func() int {
			c, err := js.Consumer(t.Context(), subjects.ReqStream("standard"), subjects.ReqConsumer("m", subjects.Shared))
			if err != nil {
				t.Fatal(err)
			}
			return c.CachedInfo().NumWaiting
		}
		if n := parked(); n < policy.ParkTarget/2 || n > policy.ParkTarget*3/2 {
			t.Errorf("%d of %d workers park a bid, want about %d", n, workers, policy.ParkTarget)
		}
		for _, burst := range []int{1, 60, workers * slots} {
			var mu sync.Mutex
			var took []time.Duration
			var clients sync.WaitGroup
			for range burst {
				clients.Go(func() {
					r := ask(t, g, chat("m", false, 20), "") // a second
					mu.Lock()
					defer mu.Unlock()
					if took = append(took, r.took); r.status != 200 {
						t.Errorf("burst of %d: %d %s", burst, r.status, r.body)
					}
				})
			}
			clients.Wait()
			if slowest := slices.Max(took); slowest > 1500*time.Millisecond {
				t.Errorf("the slowest of a burst of %d took %v, want 1 s and a moment", burst, slowest)
			}
			time.Sleep(2 * time.Second)
		}
		used := 0
		for _, stats := range engines {
			if stats().MaxRunning > 0 {
				used++
			}
		}
		if used < workers*9/10 {
			t.Errorf("%d of %d workers had a request of a burst that needs all slots", used, workers)
		}
	})
}
