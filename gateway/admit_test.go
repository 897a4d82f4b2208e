package gateway

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// BenchmarkAdmit is everything from a read body to the queue: key, scan, route,
// tier, limits and the queue's bounds, under a small policy and a large one.
func BenchmarkAdmit(b *testing.B) {
	for _, size := range []struct {
		name                       string
		routes, pools, tiers, keys int
	}{{"none", 0, 1, 0, 0}, {"1000 routes, 200 pools, 50 tiers, 10000 keys", 1000, 200, 50, 10000}} {
		b.Run(size.name, func(b *testing.B) {
			g := testGateway(b)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			p := policy.Default()
			for i := range size.tiers - len(p.Tiers) {
				p.Tiers = append(p.Tiers, policy.Tier{Name: fmt.Sprint("tier-", i), Share: 1, MaxQueue: 100, Deadline: policy.Duration(time.Minute), Storage: policy.Memory})
			}
			p.Pools = make(map[string]policy.Pool)
			for i := range size.pools {
				name := fmt.Sprint("pool-", i)
				p.Pools[name] = policy.Pool{Balance: policy.LeastLoaded}
				g.fleet.pools[name] = &poolState{slots: 8, free: 8}
			}
			p.Routes = make(map[string]policy.Route)
			for i := range size.routes {
				name := fmt.Sprint("model-", i)
				if i%2 == 0 {
					name += "-*"
				}
				p.Routes[name] = policy.Route{To: []policy.Target{{Pool: fmt.Sprint("pool-", i%size.pools), Weight: 9}, {Pool: fmt.Sprint("pool-", (i+1)%size.pools), Weight: 1}}, Fallback: []string{"pool-0"}}
			}
			if err := p.Check(); err != nil {
				b.Fatal(err)
			}
			g.bus.rules.Store(newRules(policystore.Version{Revision: 1, Policy: p}))
			keys := make(map[string]policy.Key)
			key := ""
			for i := range size.keys {
				id := fmt.Sprintf("key%07d", i)
				key = "sk-pulley-" + id + "-" + strings.Repeat("x", 43)
				keys[id] = policy.Key{ID: id, Tenant: fmt.Sprint("tenant-", i/3), Hash: policy.HashKey(key), RPM: 1e9, TPM: 1e9, Concurrency: 1e9, Tiers: []string{"standard", "batch"}, Models: []string{"model-*", "pool-*"}}
			}
			g.keys.set(keys)
			runtime.GC()
			runtime.ReadMemStats(&after)
			model := "pool-0"
			if size.routes > 0 {
				model = "model-500-turbo"
			}
			body := fmt.Appendf(nil, `{"model":%q,"stream":true,"max_tokens":20,"messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"Hello!"}]}`, model)
			r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", nil)
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Authorization", "Bearer "+key)
			ctx, stop := context.WithCancel(b.Context())
			var hearing sync.WaitGroup
			hearing.Go(func() { g.keys.run(ctx) })
			defer hearing.Wait()
			defer stop()
			for { // until it has heard what others used of the limits
				who, err := g.keys.authenticate(r.Header, time.Now())
				if err != nil {
					b.Fatal(err)
				}
				if err := g.keys.begin(who, 1, make(http.Header), time.Now()); err == nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			for b.Loop() {
				now := time.Now()
				who, err := g.keys.authenticate(r.Header, now)
				if err != nil {
					b.Fatal(err)
				}
				req, err := g.admission.admit(&arrival{id: subjects.NewID(), http: r, header: make(http.Header), caller: who, body: body, at: now})
				if err != nil {
					b.Fatal(err)
				}
				g.keys.end(who, 10, 10, now)
				q := req.target.Load().queue
				q.enqueue(subjects.Shared, "", 1, now)
				q.claimed(subjects.Shared, 0, now)
			}
			b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/(1<<20), "MiB-held")
			runtime.KeepAlive(keys)
		})
	}
}
