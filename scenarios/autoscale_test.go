package scenarios

import (
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// Requests for a pool without workers, which the policy names or which had workers before, wait; all gateways report them as the
// pool's demand within a second, and they are served when a worker comes.
func TestScaleFromZero(t *testing.T) {
	for about, c := range map[string]struct {
		before  bool // the pool had a worker, which is gone
		inOther bool // the requests are at another gateway than the one that is asked
		after   time.Duration
	}{
		"named by the policy":         {false, false, time.Minute},
		"had a worker":                {true, false, time.Minute},
		"at another gateway":          {false, true, 20 * time.Second},
		"had a worker, other gateway": {true, true, 2 * time.Minute},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				asked := env.Gateway(gateway.Config{NoWorkerWait: 5 * time.Minute})
				at := asked
				if c.inOther {
					at = env.Gateway(gateway.Config{NoWorkerWait: 5 * time.Minute})
				}
				if c.before {
					w := env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
					at.Serves(t, "m")
					w.Stop()
				} else {
					env.SetPolicy(func(p *policy.Policy) {
						p.Pools = map[string]policy.Pool{"m": {StickFor: policy.Duration(time.Second)}}
					})
				}
				time.Sleep(5 * time.Second)
				if d := asked.Demand("m"); d.Requests != 0 || !d.Measured || d.Workers != 0 {
					t.Errorf("before: %+v", d)
				}
				var wg sync.WaitGroup
				for range 6 {
					wg.Go(func() {
						if r := ask(t, at, chat("m", false, 5), ""); r.status != 200 {
							t.Errorf("%d %s", r.status, r.body)
						}
					})
				}
				time.Sleep(time.Second)
				if d := asked.Demand("m"); d.Requests != 6 || d.Measured || d.Workers != 0 {
					t.Errorf("a second later: %+v", d)
				}
				time.Sleep(c.after)
				if d := asked.Demand("m"); d.Requests != 6 {
					t.Errorf("while they wait: %+v", d)
				}
				env.Worker(env.Engine(slow("b")), worker.Config{Name: "b", Slots: 4})
				wg.Wait()
				time.Sleep(time.Second)
				if d := asked.Demand("m"); d.Requests != 0 || d.Workers != 1 || d.Slots != 4 {
					t.Errorf("after: %+v", d)
				}
			})
		})
	}
}

// What a gateway reported that is gone is forgotten.
func TestDemandOfAGatewayThatIsGone(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		a, b := env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{})
		env.Worker(env.Engine(sim.Config{Name: "a", Models: []string{"m"}, ITLBase: time.Second}), worker.Config{Name: "a", Slots: 4})
		a.Serves(t, "m")
		b.Serves(t, "m")
		var wg sync.WaitGroup
		defer wg.Wait()
		for range 3 {
			wg.Go(func() { drain(post(t.Context(), b, "/v1/chat/completions", chat("m", true, 30), "")) })
		}
		time.Sleep(2 * time.Second)
		if d := a.Demand("m"); d.Requests != 3 {
			t.Errorf("%+v", d)
		}
		b.Link.Cut(true)
		testenv.Eventually(t, "its demand is forgotten", 5*time.Second, func() bool { return a.Demand("m").Requests == 0 })
		b.Link.Mend()
	})
}
