package scenarios

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// load is a set of clients that keep asking. end stops them and checks the results.
type load struct {
	stop    context.CancelFunc
	clients sync.WaitGroup
	mu      sync.Mutex
	n       int
	bad     []string
}

// underLoad starts clients that repeatedly request 10 tokens, half of them as a stream, with the
// tiers alternating.
func underLoad(t *testing.T, g *Gateway, clients int, tiers ...string) *load {
	ctx, stop := context.WithCancel(t.Context())
	l := &load{stop: stop}
	for i := range clients {
		l.clients.Go(func() {
			for k := i; ctx.Err() == nil; k++ {
				r := ask(t, g, chat("m", i%2 == 0, 10, fmt.Sprintf(`"service_tier":%q`, tiers[k%len(tiers)])), "")
				l.mu.Lock()
				l.n++
				if r.status != 200 || r.err != nil || words(content(t, r.body)) != 10 {
					l.bad = append(l.bad, fmt.Sprintf("%d %q %v", r.status, r.body, r.err))
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

// end fails the test for every failed answer, and if there were too few answers.
func (l *load) end(t *testing.T, least int) {
	t.Helper()
	l.stop()
	l.clients.Wait()
	t.Logf("%d requests", l.n)
	if len(l.bad) > 0 {
		t.Errorf("%d of %d failed, first %s", len(l.bad), l.n, l.bad[0])
	}
	if l.n < least {
		t.Errorf("%d requests, want at least %d: it was no load", l.n, least)
	}
}

// beats records the last heartbeat of each worker, by name.
type beats struct {
	mu   sync.Mutex
	last map[string]subjects.Heartbeat
}

func recordBeats(t *testing.T, env *Env) *beats {
	t.Helper()
	b := &beats{last: make(map[string]subjects.Heartbeat)}
	onHeartbeats(t, env, func(h *subjects.Heartbeat) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.last[h.Name] = *h
	})
	return b
}

// onHeartbeats calls do with every heartbeat, one at a time.
func onHeartbeats(t *testing.T, env *Env, do func(h *subjects.Heartbeat)) {
	t.Helper()
	nc, _ := env.Connect("beats")
	_, err := nc.Subscribe(subjects.AllHeartbeats, func(m *nats.Msg) {
		h := new(subjects.Heartbeat)
		if err := json.Unmarshal(m.Data, h); err != nil {
			t.Error(err)
			return
		}
		do(h)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (b *beats) of(name string) subjects.Heartbeat {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last[name]
}

// setWorker changes the policy for a worker.
func setWorker(env *Env, name string, w policy.Worker) {
	env.SetPolicy(func(p *policy.Policy) {
		if p.Workers == nil {
			p.Workers = make(map[string]policy.Worker)
		}
		p.Workers[name] = w
	})
}

// setPool changes the policy for a pool.
func setPool(env *Env, name string, pool policy.Pool) {
	env.SetPolicy(func(p *policy.Policy) {
		if p.Pools == nil {
			p.Pools = make(map[string]policy.Pool)
		}
		p.Pools[name] = pool
	})
}

// order sends a worker a drain command.
func order(t *testing.T, env *Env, worker string) subjects.Outcome {
	t.Helper()
	nc, _ := env.Connect("operator")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, subjects.WorkerDrain(worker), nil)
	if err != nil {
		t.Fatal(err)
	}
	var o subjects.Outcome
	if err := json.Unmarshal(m.Data, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// parked is how many bids wait on a lane.
func parked(t *testing.T, env *Env, tier, pool, lane string) int {
	t.Helper()
	c, err := env.JetStream().Consumer(t.Context(), subjects.ReqStream(tier), subjects.ReqConsumer(pool, lane))
	if err != nil {
		t.Fatalf("lane %s of pool %s in %s: %v", lane, pool, tier, err)
	}
	return c.CachedInfo().NumWaiting
}

func TestCordonedWorkerTakesNothingNew(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"), slow("b"), slow("c"))
		last := recordBeats(t, env)
		l := underLoad(t, g, 9, "standard", "priority", "batch")
		time.Sleep(5 * time.Second)
		setWorker(env, "a", policy.Worker{Cordoned: true})
		if h := last.of("a"); h.State != subjects.Cordoned || h.Live() {
			t.Errorf("a says it is %q after a second, want %q", h.State, subjects.Cordoned)
		}
		idle(t, es[0], 2*time.Second) // its running requests
		before := es[0].Stats()
		time.Sleep(10 * time.Second)
		if got := es[0].Stats(); got.Received != before.Received || got.Aborted != 0 {
			t.Errorf("cordoned, it took %d requests and left %d", got.Received-before.Received, got.Aborted)
		}
		es[0].Kill()
		testenv.Eventually(t, "a's engine shown as down", 10*time.Second, func() bool { return last.of("a").State == subjects.Down })
		setWorker(env, "b", policy.Worker{Cordoned: true})
		before = es[1].Stats()
		time.Sleep(5 * time.Second)
		setWorker(env, "b", policy.Worker{})
		if h := last.of("b"); h.State != subjects.Ready {
			t.Errorf("b says it is %q after it was uncordoned", h.State)
		}
		time.Sleep(5 * time.Second)
		if got := es[1].Stats(); got.Received < before.Received+5 {
			t.Errorf("uncordoned, b took %d requests", got.Received-before.Received)
		}
		l.end(t, 100)
		emptyQueues(t, env)
	})
}

func TestWorkerLeavesAsOrdered(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, ws := pair(t, env, slow("a"), slow("b"), slow("c"))
		last := recordBeats(t, env)
		l := underLoad(t, g, 9, "standard", "priority", "batch")
		time.Sleep(5 * time.Second)
		o := order(t, env, ws[0].ID())
		if o.From != ws[0].ID() || o.Error != "" || o.Count == 0 || o.Count > 4 {
			t.Errorf("it answered %+v", o)
		}
		time.Sleep(100 * time.Millisecond)
		if h := last.of("a"); h.State != subjects.Draining {
			t.Errorf("it says it is %q", h.State)
		}
		order(t, env, ws[0].ID()) // a second drain changes nothing
		testenv.Eventually(t, "a has left", 5*time.Second, func() bool { return last.of("a").State == subjects.Left })
		if err := ws[0].Stop(); !errors.Is(err, worker.ErrDrained) {
			t.Errorf("Run returned %v, want %v", err, worker.ErrDrained)
		}
		kv, err := env.JetStream().KeyValue(t.Context(), subjects.WorkersBucket)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := kv.Get(t.Context(), ws[0].ID()); err == nil {
			t.Errorf("it is a member still: %s", e.Value())
		}
		before := es[0].Stats()
		time.Sleep(10 * time.Second)
		if got := es[0].Stats(); got.Received != before.Received || got.Aborted != 0 {
			t.Errorf("after it left, its engine got %d requests, and %d were aborted", got.Received-before.Received, got.Aborted)
		}
		l.end(t, 100)
		emptyQueues(t, env)
	})
}

func TestPausedPoolHoldsItsRequests(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"), slow("b"))
		var begun sync.WaitGroup
		begun.Go(func() {
			if r := ask(t, g, chat("m", true, 20), ""); r.status != 200 || words(content(t, r.body)) != 20 {
				t.Errorf("what ran already: %d %q", r.status, r.body)
			}
		})
		time.Sleep(500 * time.Millisecond)
		setPool(env, "m", policy.Pool{Paused: true})
		received := func() int64 { return es[0].Stats().Received + es[1].Stats().Received }
		before := received()
		var held sync.WaitGroup
		for i := range 6 {
			held.Go(func() {
				if r := ask(t, g, chat("m", i%2 == 0, 5), ""); r.status != 200 || words(content(t, r.body)) != 5 {
					t.Errorf("held: %d %q", r.status, r.body)
				}
			})
		}
		time.Sleep(20 * time.Second)
		if got := received(); got != before {
			t.Errorf("%d requests ran while the pool was paused", got-before)
		}
		begun.Wait()
		setPool(env, "m", policy.Pool{})
		resumed := time.Now()
		held.Wait()
		if d := time.Since(resumed); d > time.Second {
			t.Errorf("answered %v after a second in which it was in effect again", d)
		}
		emptyQueues(t, env)
	})
}

// A policy that changes ten times a second, in everything that a worker follows, fails no request.
func TestPolicyChangesTenTimesASecondUnderLoad(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"), slow("b"), slow("c"))
		l := underLoad(t, g, 9, "standard", "priority", "batch")
		nc, _ := env.Connect("operator")
		store, err := policystore.Open(t.Context(), nc)
		if err != nil {
			t.Fatal(err)
		}
		last := 0
		for n := range 200 {
			if _, err := store.Update(t.Context(), "test", "test", func(p *policy.Policy) error {
				extra := p.Tiers[0]
				p.Tiers = policy.DefaultTiers()
				if n/10%2 == 1 { // a new first tier moves the others
					extra.Name = "urgent"
					p.Tiers = append([]policy.Tier{extra}, p.Tiers...)
				}
				p.Tiers[0].Reserve, p.Tiers[len(p.Tiers)-1].Share = n%50, 1+n%7
				p.Workers = map[string]policy.Worker{
					fmt.Sprintf("%c", 'a'+n%3):     {Cordoned: true},
					fmt.Sprintf("%c", 'a'+(n+1)%3): {Weight: float64(1 + n%4)},
				}
				pool := policy.Pool{Balance: policy.Balances[n%len(policy.Balances)], Paused: n%9 == 0}
				if n%4 == 0 {
					pool.Affinity = policy.AffinityOff
				}
				p.Pools = map[string]policy.Pool{"m": pool, "other": {Spill: []policy.Spill{{Pool: "m", Penalty: n % 3}}}}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			last = n
			time.Sleep(100 * time.Millisecond)
		}
		env.SetPolicy(func(p *policy.Policy) { *p = *policy.Default() })
		before := es[0].Stats().Finished + es[1].Stats().Finished + es[2].Stats().Finished
		time.Sleep(5 * time.Second)
		after := es[0].Stats().Finished + es[1].Stats().Finished + es[2].Stats().Finished
		if after < before+30 {
			t.Errorf("%d answers in 5 s after %d changes, want at least 30", after-before, last+1)
		}
		l.end(t, 100)
		for _, e := range es {
			if s := e.Stats(); s.Aborted > 0 {
				t.Errorf("%s: %d aborted", s.Name, s.Aborted)
			}
		}
		emptyQueues(t, env)
	})
}

func TestTiersComeAndGo(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, _ := pair(t, env, slow("a"))
		env.SetPolicy(func(p *policy.Policy) {
			urgent := p.Tiers[0]
			urgent.Name = "urgent"
			p.Tiers = append([]policy.Tier{urgent}, p.Tiers...)
		})
		r := ask(t, g, chat("m", true, 1, `"service_tier":"urgent"`), "")
		if r.status != 200 || r.took > 500*time.Millisecond {
			t.Errorf("a tier that is a second old: %d %s after %v", r.status, r.body, r.took)
		}
		if n := parked(t, env, "urgent", "m", subjects.Shared); n == 0 {
			t.Error("no bid is parked for it")
		}
		env.SetPolicy(func(p *policy.Policy) { p.Tiers = p.Tiers[1:] })
		time.Sleep(10 * time.Second) // until the parked bids expire
		js := env.JetStream()
		if c, err := js.Consumer(t.Context(), subjects.ReqStream("urgent"), subjects.ReqConsumer("m", subjects.Shared)); err == nil && c.CachedInfo().NumWaiting > 0 {
			t.Errorf("%d bids are parked for a removed tier", c.CachedInfo().NumWaiting)
		}
		if r := ask(t, g, chat("m", true, 1, `"service_tier":"priority"`), ""); r.status != 200 {
			t.Errorf("a tier that stayed: %d %s", r.status, r.body)
		}
	})
}

// The slots that a tier has in reserve stay free with any backlog below it.
func TestReserve(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		cfg := slow("a")
		cfg.Slots, cfg.PrefillRate = 10, 0
		g, es, _ := pair(t, env, cfg)
		set := func(reserve int) {
			env.SetPolicy(func(p *policy.Policy) { p.Tiers[0].Reserve, p.Tiers[1].Reserve = reserve, 0 })
		}
		set(40)
		l := underLoad(t, g, 30, "batch")
		for _, c := range []struct{ reserve, want int }{{40, 6}, {0, 10}, {80, 2}} {
			set(c.reserve)
			time.Sleep(5 * time.Second)
			most := 0
			for range 200 {
				most = max(most, es[0].Stats().Running)
				time.Sleep(10 * time.Millisecond)
			}
			if most != c.want {
				t.Errorf("reserve %d %%: batch has up to %d of 10 slots, want %d", c.reserve, most, c.want)
			}
			if c.reserve == 0 {
				continue
			}
			if r := ask(t, g, chat("m", true, 1, `"service_tier":"priority"`), ""); r.status != 200 || r.took > 50*time.Millisecond {
				t.Errorf("reserve %d %%: priority has its first token after %v", c.reserve, r.took)
			}
		}
		l.end(t, 50)
	})
}

// While a tier above is in use, prompts of the tiers below are prefilled one at a time. Otherwise
// they are prefilled as they come.
func TestPrefillGate(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		// Four at once, each one second to its first and only token.
		g, _, _ := pair(t, env, sim.Config{Name: "a", Models: []string{"m"}, Slots: 8, TTFT: time.Second})
		setPool(env, "m", policy.Pool{Affinity: policy.AffinityOff})
		burst := func(stream bool) (took time.Duration) {
			begun := time.Now()
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					if r := ask(t, g, chat("m", stream, 1, `"service_tier":"batch"`), ""); r.status != 200 {
						t.Errorf("%d %s", r.status, r.body)
					}
				})
			}
			wg.Wait()
			return time.Since(begun)
		}
		about := func(what string, got, want time.Duration) {
			t.Helper()
			if got < want || got > want+want/10 {
				t.Errorf("%s: four of batch took %v, want %v", what, got, want)
			}
		}
		about("batch alone", burst(true), time.Second)
		if r := ask(t, g, chat("m", true, 1, `"service_tier":"priority"`), ""); r.status != 200 {
			t.Fatal(r.status)
		}
		about("just after priority", burst(true), 4*time.Second)
		about("and where no first token shows", burst(false), 4*time.Second)
		time.Sleep(time.Minute)
		about("a minute after priority", burst(true), time.Second)
	})
}

func TestWeightChangesLive(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"), slow("b"))
		last := recordBeats(t, env)
		setPool(env, "m", policy.Pool{Balance: policy.Weighted, Affinity: policy.AffinityOff})
		share := func() float64 {
			a, b := es[0].Stats().Received, es[1].Stats().Received
			l := underLoad(t, g, 4, "standard")
			time.Sleep(20 * time.Second)
			l.end(t, 40)
			a, b = es[0].Stats().Received-a, es[1].Stats().Received-b
			return float64(a) / float64(a+b)
		}
		if got := share(); got < 0.4 || got > 0.6 {
			t.Errorf("of equal weight: a gets %.2f", got)
		}
		setWorker(env, "a", policy.Worker{Weight: 3})
		if h := last.of("a"); h.Weight != 3 {
			t.Errorf("its heartbeat says weight %v", h.Weight)
		}
		if got := share(); got < 0.65 || got > 0.85 {
			t.Errorf("of three times the weight: a gets %.2f, want about 0.75", got)
		}
	})
}

// A worker bids on its own home lane, and on those of others unless the pool's sessions stick to
// their workers.
func TestHomeLanesAreBidOn(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		_, _, ws := pair(t, env, slow("a"), slow("b"), slow("c"))
		time.Sleep(2 * time.Second)
		for _, w := range ws {
			// two of its own, and one on each of the others
			if n := parked(t, env, "standard", "m", subjects.StableID(w.ID())); n < 3 || n > 6 {
				t.Errorf("%d bids on the home lane of %s, want about 4", n, w.ID())
			}
		}
		setPool(env, "m", policy.Pool{StickFor: policy.Duration(time.Minute)})
		time.Sleep(10 * time.Second) // until the bids of others expire
		for _, w := range ws {
			if n := parked(t, env, "standard", "m", subjects.StableID(w.ID())); n < 1 || n > 2 {
				t.Errorf("sticky: %d bids on the home lane of %s, want its own alone", n, w.ID())
			}
		}
		setPool(env, "m", policy.Pool{Affinity: policy.AffinityOff})
		time.Sleep(10 * time.Second)
		for _, w := range ws {
			if n := parked(t, env, "standard", "m", subjects.StableID(w.ID())); n != 0 {
				t.Errorf("affinity off: %d bids on the home lane of %s", n, w.ID())
			}
		}
	})
}

// A home lane outlives a long time in which its worker takes nothing.
func TestHomeLaneOfACordonedWorkerStays(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, ws := pair(t, env, slow("a"))
		setWorker(env, "a", policy.Worker{Cordoned: true})
		time.Sleep(10 * time.Minute)
		setWorker(env, "a", policy.Worker{})
		time.Sleep(time.Second)
		if n := parked(t, env, "standard", "m", subjects.StableID(ws[0].ID())); n == 0 {
			t.Error("no bid is parked on it")
		}
		for range 3 { // all except the first are follow-ups
			if r := ask(t, g, chat("m", true, 1, `"prompt_cache_key":"x"`), ""); r.status != 200 || r.took > time.Second {
				t.Errorf("%d after %v", r.status, r.took)
			}
		}
		if got := es[0].Stats().Finished; got != 3 {
			t.Errorf("its engine answered %d", got)
		}
	})
}

// Workers of another pool help if the policy says so, when the pool's own workers are more
// expensive, full or gone. They use their own name for the model.
func TestSpill(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		small, big := slow("small"), slow("big")
		small.Models, small.Slots, big.Models = []string{"q"}, 1, []string{"p"}
		es, eb := env.Engine(small), env.Engine(big)
		ws := env.Worker(es, worker.Config{Name: "small", Slots: 1})
		env.Worker(eb, worker.Config{Name: "big", Slots: 4})
		g.Serves(t, "q")
		g.Serves(t, "p")
		last := recordBeats(t, env)
		setPool(env, "q", policy.Pool{Spill: []policy.Spill{{Pool: "p", Penalty: 3}}})
		time.Sleep(time.Second)
		by := func(r reply) string {
			if r.status != 200 || words(content(t, r.body)) != 10 {
				t.Errorf("%d %q", r.status, r.body)
			}
			return r.header.Get("x-sim-name")
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if got := by(ask(t, g, chat("q", true, 10), "")); got != "small" {
				t.Errorf("answered by %s: its own is less expensive", got)
			}
		})
		time.Sleep(100 * time.Millisecond)
		r := ask(t, g, chat("q", true, 10), "")
		if got := by(r); got != "big" || r.took > 1200*time.Millisecond {
			t.Errorf("its own is full: answered by %s after %v", got, r.took)
		}
		wg.Wait()
		if h := last.of("big"); h.Serves("q") {
			t.Errorf("it claims to serve what only spills over: %+v", h.Pools)
		}
		setPool(env, "q", policy.Pool{})
		time.Sleep(10 * time.Second)
		if n := parked(t, env, "standard", "q", subjects.Shared); n > 2 {
			t.Errorf("%d bids after the spill ended", n)
		}
		ws.Stop()
	})
}

// A worker can join a pool whose name differs from the engine's name for the model: the engine gets
// its own name, and no other byte differs.
func TestPoolOfAnotherName(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var mu sync.Mutex
		var got []string
		e := env.Handler("engine", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/models" {
				io.WriteString(w, `{"data":[{"id":"meta/Llama \"3\""}]}`)
				return
			}
			b, _ := io.ReadAll(r.Body)
			mu.Lock()
			got = append(got, fmt.Sprintf("%s %d %s", r.URL.EscapedPath(), r.ContentLength, b))
			mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"choices":[{"message":{"content":"yes"}}]}`)
		}))
		g := env.Gateway(gateway.Config{})
		last := recordBeats(t, env)
		env.Worker(e, worker.Config{Name: "a", Pool: "canary"})
		g.Serves(t, "canary")
		if h := last.of("a"); len(h.Pools) != 1 || h.Pools[0].Pool != "canary" || h.Pools[0].Model != `meta/Llama "3"` {
			t.Errorf("it says it serves %+v", h.Pools)
		}
		const want = `{ "messages":[{"content":"canary"}], "model":%s,"x":1.00 }`
		form := strings.ReplaceAll("--b\nContent-Disposition: form-data; name=\"model\"\n\n%s\n--b--\n", "\n", "\r\n")
		for _, c := range []struct{ path, body, name, contentType, wantPath, wantName string }{
			{"/v1/chat/completions", want, `"canary"`, "application/json", "/v1/chat/completions", `"meta/Llama \"3\""`},
			{"/v1/audio/transcriptions", form, "canary", "multipart/form-data; boundary=b", "/v1/audio/transcriptions", `meta/Llama "3"`},
			{"/v2/models/canary/infer", `{"inputs":[]}%.0s`, "", "application/json", "/v2/models/meta%2FLlama%20%223%22/infer", ""},
		} {
			r := askAt(t, g, c.path, fmt.Sprintf(c.body, c.name), "", "Content-Type", c.contentType)
			if r.status != 200 {
				t.Errorf("%s: %d %s", c.path, r.status, r.body)
				continue
			}
			body := fmt.Sprintf(c.body, c.wantName)
			mu.Lock()
			if last := got[len(got)-1]; last != fmt.Sprintf("%s %d %s", c.wantPath, len(body), body) {
				t.Errorf("%s: the engine got\n%s, want\n%s %d %s", c.path, last, c.wantPath, len(body), body)
			}
			mu.Unlock()
		}
	})
}

func TestPoolOfAnotherNameNeedsOneModel(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		last := recordBeats(t, env)
		cfg := slow("a")
		cfg.Models = []string{"x", "y"}
		e := env.Engine(cfg)
		env.Worker(e, worker.Config{Name: "a", Pool: "canary"})
		time.Sleep(2 * time.Second)
		if h := last.of("a"); h.State != subjects.Down || !strings.Contains(h.Reason, "2 models") || !strings.Contains(h.Reason, "model=NAME") {
			t.Errorf("it says %s: %s", h.State, h.Reason)
		}
		env.Worker(e, worker.Config{Name: "b", Pool: "canary", Models: []string{"y"}})
		g.Serves(t, "canary")
		if r := ask(t, g, chat("canary", true, 1), ""); r.status != 200 || !strings.Contains(r.body, `"model":"y"`) {
			t.Errorf("%d %s", r.status, cmp.Or(r.body, fmt.Sprint(r.err)))
		}
	})
}
