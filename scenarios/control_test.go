package scenarios

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// command sends a command to the gateways, and reads the first answer.
func command[T any](t *testing.T, nc *nats.Conn, subject string, what any) (answer T) {
	t.Helper()
	body, err := json.Marshal(what)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		t.Fatalf("%s: %v", subject, err)
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		t.Fatalf("%s: %v in %s", subject, err, m.Data)
	}
	return answer
}

func TestPolicyChangesUnderLoad(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var gs []*Gateway
		for range 3 {
			gs = append(gs, env.Gateway(gateway.Config{}))
		}
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		env.Worker(env.Engine(slow("b")), worker.Config{Name: "b", Slots: 4})
		for _, g := range gs {
			g.Serves(t, "m")
		}
		setRoute(env, "gpt-4o", straight(policy.Target{Pool: "m", Weight: 1}))
		stop := make(chan struct{})
		var clients sync.WaitGroup
		var asked atomic.Int64
		for i := range 12 {
			clients.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					asked.Add(1)
					if r := ask(t, gs[i%3], chat([]string{"m", "gpt-4o"}[i%2], i%4 < 2, 3), ""); r.status != 200 || i%4 < 2 && !strings.HasSuffix(r.body, "[DONE]\n\n") {
						t.Errorf("%d %s %v", r.status, r.body, r.err)
					}
				}
			})
		}
		// readyz reports where each change is in effect.
		nc, _ := env.Connect("operator")
		store, err := policystore.Open(t.Context(), nc)
		if err != nil {
			t.Fatal(err)
		}
		var slowest time.Duration
		for n := range 100 {
			v, err := store.Update(t.Context(), "test", "test", func(p *policy.Policy) error {
				p.Tiers[1].Share = 1 + n
				p.Pools = map[string]policy.Pool{"m": {Balance: policy.Balances[n%4], Affinity: []policy.Affinity{policy.AffinityOff, policy.AffinityAuto}[n/3%2]}}
				p.Routes = map[string]policy.Route{"gpt-4o": {To: []policy.Target{{Pool: "m", Weight: float64(1 + n)}}}}
				if n%10 > 5 {
					p.Tiers = append(p.Tiers[:3], policy.Tier{Name: "extra", Share: 1, MaxQueue: 10, Deadline: policy.Duration(time.Minute), Storage: policy.Memory})
				} else {
					p.Tiers = p.Tiers[:3]
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			for _, g := range gs {
				testenv.Eventually(t, fmt.Sprint("revision ", v.Revision), time.Second, func() bool {
					resp, err := g.Client.Get("http://admin/readyz")
					if err != nil {
						t.Fatal(err)
					}
					defer resp.Body.Close()
					var r struct{ Policy string }
					if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
						t.Fatal(err)
					}
					return r.Policy == fmt.Sprint("revision ", v.Revision)
				})
			}
			slowest = max(slowest, time.Since(begun))
			time.Sleep(100 * time.Millisecond)
		}
		close(stop)
		clients.Wait()
		t.Logf("%d requests, 100 changes, the slowest took effect everywhere after %v", asked.Load(), slowest)
	})
}

func TestDamagedPolicy(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, _ := pair(t, env, slow("a"))
		env.SetPolicy(func(p *policy.Policy) {
			p.Routes = map[string]policy.Route{"alias": {To: []policy.Target{{Pool: "m", Weight: 1}}}}
		})
		js := env.JetStream()
		kv, err := js.KeyValue(t.Context(), subjects.PolicyBucket)
		if err != nil {
			t.Fatal(err)
		}
		says := func() string {
			resp, err := g.Client.Get("http://admin/readyz")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("readyz: %s", resp.Status)
			}
			var r struct{ Policy string }
			json.NewDecoder(resp.Body).Decode(&r)
			return r.Policy
		}
		for what, damage := range map[string]string{"no JSON": "}", "no tiers": `{"policy":{"tiers":[]}}`, "empty": ``} {
			if _, err := kv.Put(t.Context(), "policy", []byte(damage)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if s := says(); !strings.Contains(s, "out of date") || !strings.Contains(s, "damaged") {
				t.Errorf("%s: readyz says %q", what, s)
			}
			if r := ask(t, g, chat("alias", false, 1), ""); r.status != 200 {
				t.Errorf("%s: %d %s", what, r.status, r.body)
			}
		}
		if err := js.DeleteKeyValue(t.Context(), subjects.PolicyBucket); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if r := ask(t, g, chat("alias", false, 1), ""); r.status != 200 {
			t.Errorf("without the bucket: %d %s", r.status, r.body)
		}
	})
}

func TestRemovedTier(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		cfg := slow("a")
		cfg.Slots = 1
		g, _, _ := pair(t, env, cfg)
		add := func(p *policy.Policy) {
			p.Tiers = append(p.Tiers, policy.Tier{Name: "gold", Share: 1, MaxQueue: 10, Deadline: policy.Duration(time.Hour), Storage: policy.Memory})
		}
		env.SetPolicy(add)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				r := ask(t, g, chat("m", false, 50, `"service_tier":"gold"`), "")
				if r.status != 200 {
					t.Errorf("%d %s", r.status, r.body)
				}
			})
		}
		time.Sleep(2 * time.Second)
		env.SetPolicy(func(p *policy.Policy) { p.Tiers = p.Tiers[:3] })
		if r := ask(t, g, chat("m", false, 1, `"service_tier":"gold"`), ""); r.status != 400 || !strings.Contains(r.body, "gold") {
			t.Errorf("a removed tier: %d %s", r.status, r.body)
		}
		wg.Wait()
	})
}

func TestMaxWait(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		cfg := slow("a")
		cfg.Slots = 1
		g, _, _ := pair(t, env, cfg)
		env.SetPolicy(func(p *policy.Policy) { p.Tiers[1].MaxWait = policy.Duration(300 * time.Millisecond) })
		var wg sync.WaitGroup
		wg.Go(func() { ask(t, g, chat("m", false, 100), "") })
		time.Sleep(time.Second)
		r := ask(t, g, chat("m", false, 1), "")
		if r.status != 429 || !strings.Contains(r.body, "queue_timeout") || r.took > 400*time.Millisecond {
			t.Errorf("%d %s after %v", r.status, r.body, r.took)
		}
		wg.Wait()
	})
}

func TestOrders(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		cfg := slow("a")
		cfg.Slots = 1
		g, es, _ := pair(t, env, cfg)
		nc, _ := env.Connect("operator")
		events, err := nc.SubscribeSync(subjects.EventSubject(subjects.EventCancel))
		if err != nil {
			t.Fatal(err)
		}
		told := func(t *testing.T) (e subjects.Event) {
			t.Helper()
			m, err := events.NextMsg(time.Second)
			if err != nil || subjects.Unmarshal(m.Data, &e) != nil {
				t.Errorf("no event: %v", err)
			}
			return e
		}
		var wg sync.WaitGroup
		running := make(chan reply, 1)
		wg.Go(func() { running <- ask(t, g, chat("m", false, 600), "") })
		time.Sleep(time.Second)
		queued := make(chan reply, 8)
		for range 5 {
			wg.Go(func() { queued <- ask(t, g, chat("m", false, 1), "") })
		}
		time.Sleep(time.Second)
		list := command[[]subjects.RequestInfo](t, nc, subjects.AskRequests, nil)
		if len(list) != 6 {
			t.Fatalf("%d requests are listed, want 6", len(list))
		}
		var one, waits string
		for _, r := range list {
			if r.State == "queued" {
				waits = r.ID
			} else {
				one = r.ID
			}
		}
		d := command[subjects.RequestDetail](t, nc, subjects.AskRequest, subjects.RequestQuery{ID: one, Body: true})
		if d.Worker != "a" || !strings.Contains(string(d.Body), `"max_tokens":600`) || d.Lane != subjects.Shared {
			t.Errorf("details of the request: %+v", d)
		}
		for _, id := range []string{one, waits} {
			if o := command[subjects.Outcome](t, nc, subjects.DoCancel, subjects.RequestQuery{ID: id, By: "ada@desk"}); o.Count != 1 {
				t.Errorf("cancel: %+v", o)
			}
			if e := told(t); e.Request != id || e.Pool != "m" || !strings.HasSuffix(e.Text, " in m (tier standard) was cancelled by ada@desk") {
				t.Errorf("event %+v", e)
			}
		}
		for _, r := range []reply{<-running, <-queued} {
			if r.status != 503 || !strings.Contains(r.body, "cancelled_by_operator") {
				t.Errorf("a cancelled request: %d %s", r.status, r.body)
			}
		}
		time.Sleep(200 * time.Millisecond)
		if s := es[0].Stats(); s.Aborted != 1 {
			t.Errorf("the engine saw %+v, want 1 aborted", s)
		}
		for range 4 {
			if r := <-queued; r.status != 200 {
				t.Errorf("the others: %d %s", r.status, r.body)
			}
		}

		wg.Go(func() { running <- ask(t, g, chat("m", false, 100), "") })
		time.Sleep(time.Second)
		for range 5 {
			wg.Go(func() { queued <- ask(t, g, chat("m", false, 1), "") })
		}
		time.Sleep(time.Second)
		if o := command[subjects.Outcome](t, nc, subjects.DoPurge, subjects.PurgeOrder{Pool: "m", Tier: "standard"}); o.Count != 5 {
			t.Errorf("purge: %+v", o)
		}
		if e := told(t); e.Text != "the requests that waited in m (tier standard) were cancelled by an operator" {
			t.Errorf("event %+v", e)
		}
		for range 5 {
			if r := <-queued; r.status != 503 || !strings.Contains(r.body, "purged") {
				t.Errorf("a purged request: %d %s", r.status, r.body)
			}
		}
		if r := <-running; r.status != 200 {
			t.Errorf("the one that ran: %d %s", r.status, r.body)
		}
		wg.Wait()
	})
}

func TestRetryADeadLetter(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var broken atomic.Bool
		broken.Store(true)
		g := env.Gateway(gateway.Config{})
		e := env.Handler("e", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/v1/models":
				fmt.Fprint(w, `{"data":[{"id":"m"}]}`)
			case broken.Load():
				w.WriteHeader(500)
			default:
				fmt.Fprint(w, `{"choices":[{"text":"42"}]}`)
			}
		}))
		env.Worker(e, worker.Config{Name: "w"})
		g.Serves(t, "m")
		if r := ask(t, g, chat("m", false, 1), ""); r.status != 500 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		js := env.JetStream()
		dead, err := js.Stream(t.Context(), subjects.DeadStream)
		if err != nil {
			t.Fatal(err)
		}
		nc, _ := env.Connect("operator")
		seq := dead.CachedInfo().State.FirstSeq
		if r := command[subjects.RetryResult](t, nc, subjects.DoRetry, subjects.RetryOrder{Sequence: seq}); r.Status != 500 || r.Error == "" {
			t.Errorf("while it is broken: %+v", r)
		}
		if dead, err := js.Stream(t.Context(), subjects.DeadStream); err != nil || dead.CachedInfo().State.Msgs != 1 {
			t.Errorf("a retry that failed left %+v, %v: want the one dead letter", dead.CachedInfo().State, err)
		}
		broken.Store(false)
		time.Sleep(10 * time.Second)
		if r := command[subjects.RetryResult](t, nc, subjects.DoRetry, subjects.RetryOrder{Sequence: seq}); r.Status != 200 || string(r.Body) != `{"choices":[{"text":"42"}]}` {
			t.Errorf("retried: %+v %s", r, r.Body)
		}
		if _, err := dead.GetMsg(t.Context(), seq); err == nil {
			t.Error("the dead letter is still there")
		}
		if r := command[subjects.RetryResult](t, nc, subjects.DoRetry, subjects.RetryOrder{Sequence: 999}); r.Error == "" {
			t.Errorf("one that is not there: %+v", r)
		}
	})
}

// Operators see the id that a client gave its request, and only that.
func TestClientsIDInTheList(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		cfg := slow("a")
		g, _, _ := pair(t, env, cfg)
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		defer func() { cancel(); wg.Wait() }()
		for _, id := range []string{"order-7", "with a space", ""} {
			wg.Go(func() {
				r, _ := http.NewRequestWithContext(ctx, "POST", "http://gateway/v1/chat/completions", strings.NewReader(chat("m", false, 1000)))
				r.Header["X-Request-Id"] = []string{id}
				if resp, err := g.Client.Do(r); err == nil {
					resp.Body.Close()
				}
			})
		}
		time.Sleep(time.Second)
		nc, _ := env.Connect("operator")
		var own []string
		for _, r := range command[[]subjects.RequestInfo](t, nc, subjects.AskRequests, nil) {
			if _, err := subjects.ParseID(r.ID); err != nil {
				t.Errorf("id %q: %v", r.ID, err)
			}
			own = append(own, r.ClientID)
		}
		slices.Sort(own)
		if !slices.Equal(own, []string{"", "", "order-7"}) {
			t.Errorf("the clients' ids are %q, want one order-7", own)
		}
	})
}
