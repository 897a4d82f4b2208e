package scenarios

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

// kept is what the broker has of a pool: its consumers, and its entry in the list of pools.
func kept(t *testing.T, js jetstream.JetStream, pool string) (list []string) {
	t.Helper()
	for _, tier := range []string{"priority", "standard", "batch"} {
		s, err := js.Stream(t.Context(), subjects.ReqStream(tier))
		if err != nil {
			t.Fatal(err)
		}
		names := s.ConsumerNames(t.Context())
		for name := range names.Name() {
			if strings.HasPrefix(name, subjects.Token(pool)+"=") {
				list = append(list, tier+" "+name)
			}
		}
		if names.Err() != nil {
			t.Fatal(names.Err())
		}
	}
	kv, err := js.KeyValue(t.Context(), subjects.PoolsBucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Get(t.Context(), subjects.Token(pool)); err == nil {
		list = append(list, "entry")
	} else if !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// Pools that no worker has served for long go away by themselves, and come back with a worker.
func TestStalePools(t *testing.T) {
	const after = time.Minute // twice that is longer than the broker keeps home lanes
	for about, c := range map[string]struct {
		policy func(*policy.Policy)
		waits  bool // a request waits for the pool
		stays  bool // its worker stays, with an engine that is down
		kept   bool
	}{
		"nobody needs it": {},
		"it has settings": {policy: func(p *policy.Policy) { p.Pools = map[string]policy.Pool{"org/n:7b": {Balance: policy.RoundRobin}} }, kept: true},
		"a route leads there": {policy: func(p *policy.Policy) {
			p.Routes = map[string]policy.Route{"alias": {To: []policy.Target{{Pool: "org/n:7b", Weight: 1}}}}
		}, kept: true},
		"a request waits":           {waits: true, kept: true},
		"its engine is only down":   {stays: true, kept: true},
		"another pool has settings": {policy: func(p *policy.Policy) { p.Pools = map[string]policy.Pool{"m": {Balance: policy.RoundRobin}} }},
	} {
		if raceEnabled && !c.waits {
			continue
		}
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				cfg := gateway.Config{ForgetPools: after, NoWorkerWait: time.Hour}
				g := env.Gateway(cfg)
				other := env.Gateway(cfg)
				em, en := env.Engine(slow("a")), env.Engine(slowOf("b", "org/n:7b"))
				env.Worker(em, worker.Config{Name: "a", Slots: 4})
				w := env.Worker(en, worker.Config{Name: "b", Slots: 4})
				g.Serves(t, "m")
				g.Serves(t, "org/n:7b")
				if c.policy != nil {
					env.SetPolicy(c.policy)
				}
				js := env.JetStream()
				if n := len(kept(t, js, "org/n:7b")); n < 4 {
					t.Fatalf("a served pool has %v", kept(t, js, "org/n:7b"))
				}
				if c.stays {
					en.Kill()
				} else {
					w.Stop()
				}
				ctx, leave := context.WithCancel(t.Context())
				var asking sync.WaitGroup
				defer asking.Wait()
				defer leave()
				if c.waits {
					asking.Go(func() {
						drain(post(ctx, g, "/v1/chat/completions", chat("org/n:7b", false, 5), "", "x-request-timeout", "3600"))
					})
				}
				time.Sleep(after - 10*time.Second)
				if n := len(kept(t, js, "org/n:7b")); n < 4 {
					t.Errorf("too soon: %v", kept(t, js, "org/n:7b"))
				}
				time.Sleep(after + 20*time.Second)
				if list := kept(t, js, "org/n:7b"); c.kept != (len(list) >= 4) || !c.kept && len(list) > 0 {
					t.Errorf("after %v the broker has %v", 2*after+10*time.Second, list)
				}
				if n := len(kept(t, js, "m")); n < 4 {
					t.Errorf("of the pool that is served it has %v", kept(t, js, "m"))
				}
				if !c.kept {
					if r := ask(t, g, chat("org/n:7b", false, 5), ""); r.status != 404 {
						t.Errorf("a pool that is forgotten: %d %q", r.status, r.body)
					}
				}
				leave()
				asking.Wait()
				if c.stays {
					return
				}
				env.Worker(en, worker.Config{Name: "b", Slots: 4})
				for _, g := range []*Gateway{g, other} {
					g.Serves(t, "org/n:7b")
					if r := ask(t, g, chat("org/n:7b", false, 5), ""); r.status != 200 {
						t.Errorf("a worker is back: %d %q", r.status, r.body)
					}
				}
				if n := len(kept(t, js, "org/n:7b")); n < 4 {
					t.Errorf("a worker is back, and the broker has %v", kept(t, js, "org/n:7b"))
				}
			})
		})
	}
}

// A worker that comes while its pool is forgotten, by one gateway or another, is served all the same.
func TestStalePoolComesBack(t *testing.T) {
	const after = 30 * time.Second
	for _, later := range []time.Duration{after - 500*time.Millisecond, after, after + 29*time.Second, after + 30*time.Second, after + 30100*time.Millisecond, after + 40*time.Second} {
		if raceEnabled && later != after {
			continue
		}
		t.Run(fmt.Sprint(later), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{ForgetPools: after})
				e := env.Engine(slow("a"))
				w := env.Worker(e, worker.Config{Name: "a", Slots: 4})
				g.Serves(t, "m")
				w.Stop()
				time.Sleep(10 * time.Second)
				late := env.Gateway(gateway.Config{ForgetPools: after})
				time.Sleep(later - 10*time.Second)
				env.Worker(e, worker.Config{Name: "a", Slots: 4})
				for _, g := range []*Gateway{g, late} {
					g.Serves(t, "m")
					if r := ask(t, g, chat("m", false, 5), ""); r.status != 200 || r.took > 2*time.Second {
						t.Errorf("got %d after %v: %q", r.status, r.took, r.body)
					}
				}
			})
		})
	}
}
