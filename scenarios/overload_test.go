package scenarios

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
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

// overloaded is what became of traffic at some load.
type overloaded struct {
	good    float64 // requests per second that met their SLO, over the last three quarters of the time
	refused float64 // part of the requests
	late    float64 // part of the refused requests that learned it only after lateRefusal
}

// lateRefusal is how long a refusal takes that is not immediate.
const lateRefusal = 100 * time.Millisecond

// refusals counts the answers with status 429.
type refusals struct {
	http.RoundTripper
	mu         sync.Mutex
	n, late    int
	noTime     int // without a retry-after
	retryAfter int // the longest, in seconds
}

func (r *refusals) RoundTrip(req *http.Request) (*http.Response, error) {
	begun := time.Now()
	resp, err := r.RoundTripper.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusTooManyRequests {
		return resp, err
	}
	after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	r.retryAfter = max(r.retryAfter, after)
	if time.Since(begun) > lateRefusal {
		r.late++
	}
	if after <= 0 {
		r.noTime++
	}
	return resp, nil
}

// overload sends traffic that may wait a second for a worker, half of what its SLO leaves a short prompt.
func overload(t *testing.T, trace []traced, engines []sim.Config) (o overloaded, r *refusals) {
	t.Helper()
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		for _, cfg := range engines {
			env.Worker(env.Engine(cfg), worker.Config{Name: cfg.Name, Slots: cfg.Slots})
		}
		g.Serves(t, "m")
		env.SetPolicy(func(p *policy.Policy) {
			p.Tiers[1].MaxWait = policy.Duration(time.Second)
			p.Pools = map[string]policy.Pool{"m": {Affinity: policy.AffinityOff}}
		})
		g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
		r = &refusals{RoundTripper: g.Client.Transport}
		client := &http.Client{Transport: r}
		begun, from := time.Now(), trace[len(trace)-1].at/4
		var mu sync.Mutex
		good := 0
		var wg sync.WaitGroup
		for _, q := range trace {
			time.Sleep(time.Until(begun.Add(seconds(q.at))))
			wg.Go(func() {
				l, err := stream(client, "http://gateway", q)
				bound := sloOf(&turn{traced: q})
				if err != nil && !strings.HasPrefix(err.Error(), "429") {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if err == nil && q.at >= from && l.ttft <= bound.ttft && l.e2e <= bound.e2e {
					good++
				}
			})
		}
		wg.Wait()
		o.good = float64(good) / (trace[len(trace)-1].at - from)
		o.refused, o.late = float64(r.n)/float64(len(trace)), float64(r.late)/float64(max(r.n, 1))
	})
	return o, r
}

// TestOverloadTable prints the goodput of families at loads up to 200 % for docs/balance.md; see
// TestBalanceTable for what chooses families and seeds.
func TestOverloadTable(t *testing.T) {
	asked := newAsked(t)
	var table strings.Builder
	table.WriteString("| traffic | load | within SLO, per second | refused | of these late | longest retry-after, s |\n|---|---|---|---|---|---|\n")
	for f := range asked.families() {
		for load := range asked.words("LOADS", "80,110,150,200") {
			percent, err := strconv.ParseFloat(load, 64)
			if err != nil {
				t.Fatal(err)
			}
			type outcome struct {
				overloaded
				most float64
			}
			var runs []outcome
			for seed := range asked.seeds() {
				engines := unlikeCoarse()
				trace := flatAtLoad(f, seed, percent/100, int(percent/100*float64(asked.number("REQUESTS", 1000))), engines)
				o, r := overload(t, trace, engines)
				t.Logf("%s, seed %d, %s %%: %d requests in %.0f s: %+v, longest retry-after %d s, %d without", f.Name, seed, load,
					len(trace), trace[len(trace)-1].at, o, r.retryAfter, r.noTime)
				runs = append(runs, outcome{o, float64(r.retryAfter)})
			}
			fmt.Fprintf(&table, "| %s | %s %% %s|\n", f.Name, load, medians(runs,
				func(o outcome) float64 { return o.good }, func(o outcome) float64 { return o.refused },
				func(o outcome) float64 { return o.late }, func(o outcome) float64 { return o.most }))
		}
	}
	t.Logf("\n%s", &table)
}

// TestSlowdownTable prints how the latency develops after one of five unlike engines, a fast one, has
// dropped to a quarter of its speed, in spans of 20 s; at 60 % of what the engines can do then.
func TestSlowdownTable(t *testing.T) {
	asked := newAsked(t)
	var table strings.Builder
	table.WriteString("| traffic, seed | E2E p90 from 0 s | 20 s | 40 s | 60 s | 80 s | 100 s | 120 to 240 s |\n|---|---|---|---|---|---|---|---|\n")
	for f := range asked.families() {
		for seed := range asked.seeds() {
			engines := unlikeCoarse()
			slowed := slices.Clone(engines)
			slowed[0].PrefillRate /= 4
			slowed[0].ITLBase, slowed[0].ITLPerRequest = 4*slowed[0].ITLBase, 4*slowed[0].ITLPerRequest
			const lasts, at = 330.0, 90.0
			perSecond := 0.0
			pilot := flatAtLoad(f, seed, 0.6, 500, slowed)
			for _, e := range slowed {
				perSecond += 0.6 * capacity(e, pilot)
			}
			trace := flatAtLoad(f, seed, 0.6, int(perSecond*lasts), slowed)
			var ls []latency
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				var es []*testenv.Engine
				for _, cfg := range engines {
					e := env.Engine(cfg)
					es = append(es, e)
					env.Worker(e, worker.Config{Name: cfg.Name, Slots: cfg.Slots})
				}
				g.Serves(t, "m")
				env.SetPolicy(func(p *policy.Policy) { p.Pools = map[string]policy.Pool{"m": {Affinity: policy.AffinityOff}} })
				g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
				time.AfterFunc(seconds(at), func() {
					if err := es[0].SetClock(0.25); err != nil {
						t.Error(err)
					}
				})
				ls = replayHTTP(t, trace, g.Client, "http://gateway")
			})
			within := func(from, to float64) float64 {
				var vs []float64
				for i, q := range trace {
					if q.at >= at+from && q.at < at+to {
						vs = append(vs, ls[i].e2e)
					}
				}
				slices.Sort(vs)
				return vs[len(vs)*9/10]
			}
			fmt.Fprintf(&table, "| %s, %d ", f.Name, seed)
			for k := range 6 {
				fmt.Fprintf(&table, "| %.2f ", within(float64(20*k), float64(20*k+20)))
			}
			fmt.Fprintf(&table, "| %.2f |\n", within(120, 240))
		}
	}
	t.Logf("\n%s", &table)
}

// goodput sends prompts of 200 tokens, of which the engines read 20 a second, at some rate for a while. It returns the parts of
// the last three quarters that were refused, late, or had their first token within 2.5 s.
func goodput(t *testing.T, g *Gateway, r *refusals, rnd *rand.Rand, perSecond float64, lasts time.Duration) (good float64) {
	t.Helper()
	client := &http.Client{Transport: r}
	var mu sync.Mutex
	var wg sync.WaitGroup
	begun := time.Now()
	for at := time.Duration(0); at < lasts; at += seconds(rnd.ExpFloat64() / perSecond) {
		time.Sleep(time.Until(begun.Add(at)))
		counts := at >= lasts/4
		wg.Go(func() {
			l, err := stream(client, "http://gateway", traced{input: 200, output: 20})
			if err != nil && !strings.HasPrefix(err.Error(), "429") {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if counts && err == nil && l.ttft <= 2.5 {
				good++
			}
		})
	}
	wg.Wait()
	return good / (lasts * 3 / 4).Seconds()
}

// obedient is a client that comes again when it is told to.
type obedient struct {
	http.RoundTripper
	tries int
}

func (o *obedient) RoundTrip(req *http.Request) (*http.Response, error) {
	for {
		o.tries++
		again := req.Clone(req.Context())
		again.Body, _ = req.GetBody()
		resp, err := o.RoundTripper.RoundTrip(again)
		if err != nil || resp.StatusCode != http.StatusTooManyRequests {
			return resp, err
		}
		resp.Body.Close()
		after, err := strconv.ParseFloat(resp.Header.Get("Retry-After-Ms"), 64)
		if err != nil {
			after, _ = strconv.ParseFloat(resp.Header.Get("Retry-After"), 64)
			after *= 1000
		}
		time.Sleep(seconds(after / 1000))
	}
}

// At twice what engines can do that are bound by their prompts, as many requests are answered within their SLO as at the peak.
// The others learn at once that they are refused, and when to come again: then they get in.
func TestOverload(t *testing.T) {
	inMostRuns(t, func() (claims []claim) {
		seed := rand.Uint64()
		rnd := rand.New(rand.NewPCG(seed, 1))
		t.Logf("seed %d", seed)
		run(t, func(t *testing.T, env *Env) {
			g := env.Gateway(gateway.Config{})
			for _, name := range []string{"a", "b"} {
				env.Worker(env.Engine(sim.Config{Name: name, Models: []string{"m"}, Slots: 64, PrefillRate: 2000, ITLBase: 10 * time.Millisecond}),
					worker.Config{Name: name, Slots: 64})
			}
			g.Serves(t, "m")
			env.SetPolicy(func(p *policy.Policy) {
				p.Tiers[1].MaxWait = policy.Duration(time.Second)
				p.Pools = map[string]policy.Pool{"m": {Affinity: policy.AffinityOff}}
			})
			g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
			r := &refusals{RoundTripper: g.Client.Transport}
			goodput(t, g, r, rnd, 10, 20*time.Second)
			atHalf := r.n
			peak := goodput(t, g, r, rnd, 20, 20*time.Second)
			n, late := r.n, r.late // of the peak
			over := goodput(t, g, r, rnd, 40, 20*time.Second)
			n, late = r.n-n, r.late-late

			time.Sleep(3 * time.Second)
			clients := make([]obedient, 300)
			var wg sync.WaitGroup
			for i := range clients {
				o := &clients[i]
				o.RoundTripper = g.Client.Transport
				wg.Go(func() {
					if _, err := stream(&http.Client{Transport: o}, "http://gateway", traced{input: 200, output: 20}); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			slices.SortFunc(clients, func(a, b obedient) int { return a.tries - b.tries })
			claims = []claim{
				atMost("refusals at half of the load", float64(atHalf), 0),
				atLeast("requests within their SLO at twice the load, of those at the peak", over/peak, 0.9),
				atMost("part of the refusals that came late", float64(late)/float64(max(n, 1)), 0.15),
				atMost("tries until nine of ten clients got in that come again when they are told to", float64(clients[len(clients)*9/10].tries), 3),
				atMost("tries until the last one did", float64(clients[len(clients)-1].tries), 5),
			}
			t.Logf("within SLO %.1f a second at the peak, then %.1f; %d refusals, %d late; tries p50 %d p90 %d most %d", peak, over, n, late,
				clients[len(clients)/2].tries, clients[len(clients)*9/10].tries, clients[len(clients)-1].tries)
		})
		return claims
	})
}

// Under more load than the engines can take, those of the tiers and tenants are refused that ask for more than their shares:
// of two tenants the one that floods, and no other tier.
func TestOverloadByTierAndTenant(t *testing.T) {
	inMostRuns(t, func() (claims []claim) {
		run(t, func(t *testing.T, env *Env) {
			g := env.Gateway(gateway.Config{})
			env.Worker(env.Engine(sim.Config{Name: "a", Models: []string{"m"}, Slots: 64, PrefillRate: 2000, ITLBase: 10 * time.Millisecond}),
				worker.Config{Name: "a", Slots: 64})
			g.Serves(t, "m")
			flood, light := env.AddKey("flood"), env.AddKey("light", func(k *policy.Key) { k.Tiers = []string{"standard", "priority"} })
			env.SetPolicy(func(p *policy.Policy) {
				p.Tiers[0].MaxWait, p.Tiers[1].MaxWait = policy.Duration(time.Second), policy.Duration(time.Second)
				p.Pools = map[string]policy.Pool{"m": {Affinity: policy.AffinityOff}}
			})
			g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
			var mu sync.Mutex
			var wg sync.WaitGroup
			const lasts = 40 * time.Second
			part := func(secret, tier string, perSecond float64) func() float64 {
				sent, refused := 0, 0
				wg.Go(func() {
					for begun := time.Now(); time.Since(begun) < lasts; time.Sleep(seconds(rand.ExpFloat64() / perSecond)) {
						counts := time.Since(begun) > lasts/4
						wg.Go(func() {
							body := fmt.Sprintf(`{"model":"m","stream":true,"max_tokens":20,"service_tier":%q,"messages":[{"role":"user","content":"%s"}]}`, tier, prompts[:800])
							r := ask(t, g, body, "", "Authorization", "Bearer "+secret)
							if r.status != 200 && r.status != 429 {
								t.Errorf("%v %d %s", r.err, r.status, r.body)
							}
							mu.Lock()
							defer mu.Unlock()
							if counts {
								sent++
								if r.status == 429 {
									refused++
								}
							}
						})
					}
				})
				return func() float64 { return float64(refused) / float64(max(sent, 1)) }
			}
			above, standard, flooding := part(light, "priority", 4), part(light, "standard", 1.5), part(flood, "standard", 14)
			wg.Wait()
			claims = []claim{
				atMost("part of the tier above that is refused", above(), 0.1),
				atMost("part of the light tenant", standard(), 0.25),
				atLeast("part of the tenant that floods", flooding(), 0.4),
			}
			t.Logf("refused: %.3f of priority, %.3f of the light tenant, %.3f of the flood", above(), standard(), flooding())
		})
		return claims
	})
}
