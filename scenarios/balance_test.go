package scenarios

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// taken is one engine's part of a load.
type taken struct {
	slots   int
	served  int     // requests
	running float64 // mean number at once
}

// balance keeps a number of requests in flight over three unlike engines, and observes the engines
// for half a minute. All requests are alike.
func balance(t *testing.T, method policy.Balance, weights []float64, inFlight int) (es []taken, e2e float64) {
	t.Helper()
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		var engines []*testenv.Engine
		unlike := unlike()
		for _, cfg := range []sim.Config{unlike[0], unlike[2], unlike[3]} {
			e := env.Engine(cfg)
			engines = append(engines, e)
			env.Worker(e, worker.Config{Name: cfg.Name, Slots: cfg.Slots})
			es = append(es, taken{slots: cfg.Slots})
		}
		g.Serves(t, "m")
		env.SetPolicy(func(p *policy.Policy) {
			p.Pools = map[string]policy.Pool{"m": {Balance: method, Affinity: policy.AffinityOff}}
			for i, w := range weights {
				if p.Workers == nil {
					p.Workers = make(map[string]policy.Worker)
				}
				p.Workers[engines[i].Stats().Name] = policy.Worker{Weight: w}
			}
		})
		g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
		ctx, stop := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		var mu sync.Mutex
		answered, took := 0, 0.0
		begun := time.Now().Add(15 * time.Second) // by then the workers have measured their engines
		for i := range inFlight {
			clients.Go(func() {
				time.Sleep(time.Duration(i) * 37 * time.Millisecond) // spread over time
				for ctx.Err() == nil {
					sent := time.Now()
					l, err := stream(g.Client, "http://gateway", traced{input: 500, output: 100})
					if err != nil {
						t.Error(err)
						return
					}
					if sent.After(begun) {
						mu.Lock()
						answered++
						took += l.e2e
						mu.Unlock()
					}
				}
			})
		}
		time.Sleep(time.Until(begun))
		var was []int64
		for _, e := range engines {
			was = append(was, e.Stats().Finished)
		}
		const samples = 300
		for range samples {
			time.Sleep(100 * time.Millisecond)
			for i, e := range engines {
				es[i].running += float64(e.Stats().Running) / samples
			}
		}
		for i, e := range engines {
			es[i].served = int(e.Stats().Finished - was[i])
		}
		stop()
		clients.Wait()
		e2e = took / float64(answered)
	})
	return es, e2e
}

func TestBalanceMethods(t *testing.T) {
	if testing.Short() {
		t.Skip("keeps unlike engines busy for a while")
	}
	const slots = 112
	inFlight := map[policy.Balance]int{
		policy.Price: 40, policy.LeastLoaded: 40, policy.Weighted: 40,
		policy.RoundRobin: 18, // with more, the slow one would be full and skipped
	}
	weights := []float64{1, 4, 2}
	all := make(map[policy.Balance][]taken)
	latency := make(map[policy.Balance]float64)
	for _, m := range policy.Balances {
		if raceEnabled && m != policy.Price && m != policy.Weighted {
			continue // concurrent as the others
		}
		var ws []float64
		if m == policy.Weighted {
			ws = weights
		}
		all[m], latency[m] = balance(t, m, ws, inFlight[m])
	}
	var table strings.Builder
	for _, m := range policy.Balances {
		fmt.Fprintf(&table, "\n%-13s %2d in flight, E2E %5.2f s", m, inFlight[m], latency[m])
		for _, e := range all[m] {
			fmt.Fprintf(&table, "   %4d served, %4.1f of %d", e.served, e.running, e.slots)
		}
	}
	t.Logf("on a fast, a middle and a slow engine%s", &table)
	if raceEnabled {
		return
	}

	near := func(m policy.Balance, what string, got, want, within float64) {
		t.Helper()
		if math.Abs(got-want) > within {
			t.Errorf("%s: %s is %.2f, want %.2f ± %.2f", m, what, got, want, within)
		}
	}
	total := func(es []taken) (n float64) {
		for _, e := range es {
			n += float64(e.served)
		}
		return n
	}
	for i, e := range all[policy.RoundRobin] {
		third := total(all[policy.RoundRobin]) / 3
		near(policy.RoundRobin, fmt.Sprintf("what engine %d served", i), float64(e.served), third, 0.05*third)
	}
	for i, e := range all[policy.LeastLoaded] { // a rung is a tenth of the slots
		near(policy.LeastLoaded, fmt.Sprintf("the load of engine %d", i), e.running/float64(e.slots), float64(inFlight[policy.LeastLoaded])/slots, 0.1)
	}
	for i, e := range all[policy.Weighted] { // a rung is a tenth of 16 slots for each unit of weight
		want := float64(inFlight[policy.Weighted]) * weights[i] / 7
		near(policy.Weighted, fmt.Sprintf("what runs on engine %d", i), e.running, want, 0.25*want)
	}
	price := all[policy.Price]
	if !slices.IsSortedFunc(price, func(a, b taken) int { return b.served - a.served }) {
		t.Errorf("price: the faster did not serve more: %+v", price)
	}
	for _, m := range policy.Balances {
		if m != policy.Price && latency[m] < 1.05*latency[policy.Price] {
			t.Errorf("an answer takes %.2f s under %s and %.2f s under price: want it longer", latency[m], m, latency[policy.Price])
		}
	}
}
