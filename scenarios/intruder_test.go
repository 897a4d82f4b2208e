package scenarios

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/subjects"
)

// intruder is a program that speaks the protocol of workers, as an attacker would write one. The broker allows it
// everything: these tests are about what gateways refuse. What the broker refuses is tested with the configuration that
// pulley nats-config writes.
type intruder struct {
	t  testing.TB
	nc *nats.Conn
	id string
	in *nats.Subscription
}

func (e *Env) intruder(id string) *intruder {
	e.t.Helper()
	nc, _ := e.Connect("intruder")
	in, err := nc.SubscribeSync(subjects.Worker(id) + ".>")
	if err != nil {
		e.t.Fatal(err)
	}
	return &intruder{e.t, nc, id, in}
}

// beat sends a heartbeat that announces pools.
func (i *intruder) beat(pools ...string) {
	h := subjects.Heartbeat{Worker: i.id, Name: i.id, State: subjects.Ready, Slots: 100, Weight: 1}
	for _, p := range pools {
		h.Pools = append(h.Pools, subjects.PoolStatus{Pool: p})
	}
	i.nc.Publish(subjects.Heartbeats(i.id), subjects.MustMarshal(h))
	i.nc.Flush()
	time.Sleep(100 * time.Millisecond)
}

// bid asks for a request of a lane, at the lowest price, to be delivered to a subject. It returns when the bids that workers
// had placed before have expired, so that it is the first.
func (i *intruder) bid(pool, lane, to string) {
	i.nc.PublishRequest(subjects.BidSubject("standard", pool, lane), to,
		subjects.MustMarshal(subjects.Bid{Batch: 1, Expires: int64(time.Minute), Group: subjects.PriorityGroup}))
	i.nc.Flush()
	time.Sleep(10 * time.Second)
}

// next is the next delivery, or nil if none comes within a second.
func (i *intruder) next() *nats.Msg {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for {
		m, err := i.in.NextMsgWithContext(ctx)
		if err != nil {
			return nil
		}
		if strings.HasPrefix(m.Subject, "pulley.req.") {
			return m
		}
	}
}

// forge claims a delivery under an ack subject, and answers it with a body of its own.
func (i *intruder) forge(m *nats.Msg, ack string) {
	req, err := subjects.ParseRequest(m)
	if err != nil {
		i.t.Fatal(err)
	}
	const mark = 42
	claim, err := (&subjects.Claim{ID: req.ID, Attempt: mark, Worker: i.id, Name: i.id, Ack: ack}).Bytes()
	if err != nil {
		i.t.Fatal(err)
	}
	w := subjects.NewWriter(req.ID, mark)
	body := `{"choices":[{"message":{"role":"assistant","content":"forged"}}]}`
	w.Head(&subjects.Head{Status: 200, Header: map[string][]string{"Content-Type": {"application/json"}}, Length: int64(len(body))})
	w.Commit(copy(w.Grow(len(body)), body))
	w.End(&subjects.End{OutputTokens: 1})
	msg := make([]byte, subjects.LinkHeader)
	msg = subjects.AppendItem(msg, subjects.ItemClaim, claim)
	msg = subjects.AppendItem(msg, subjects.ItemFrames, w.Take())
	n := uint64(time.Now().UnixNano())
	subjects.PutLinkHeader(msg, n, n)
	i.nc.Publish(subjects.GatewayLink(req.Gateway, i.id), msg)
	i.nc.Flush()
}

// A claim counts if heartbeats say that its worker serves the pool, and if it is of a delivery of the request's message.
// The gateway publishes nowhere because a claim says so. A request that an intruder took is answered by a worker.
func TestClaimsOfAnIntruder(t *testing.T) {
	for about, c := range map[string]struct {
		pools []string // that it announces; nil: it sends no heartbeat
		ack   func(delivery, victim string) string
	}{
		"without a heartbeat":       {nil, func(d, _ string) string { return d }},
		"of another pool":           {[]string{"x"}, func(d, _ string) string { return d }},
		"of no pool":                {[]string{}, func(d, _ string) string { return d }},
		"an order to a worker":      {[]string{"m"}, func(_, victim string) string { return subjects.WorkerDrain(victim) }},
		"the policy":                {[]string{"m"}, func(string, string) string { return "$KV.PULLEY_POLICY.policy" }},
		"an API of the broker":      {[]string{"m"}, func(string, string) string { return "$JS.API.STREAM.DELETE.PULLEY_DEAD" }},
		"a delivery of a bucket":    {[]string{"m"}, func(string, string) string { return "$JS.ACK.KV_PULLEY_POLICY.c.1.1.1.1.0" }},
		"a delivery of another one": {[]string{"m"}, func(d, _ string) string { return strings.Replace(d, "PULLEY_REQ_STANDARD", "PULLEY_REQ_BATCH", 1) }},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g, _, ws := pair(t, env, sim.Config{Name: "a", Models: []string{"m"}, Slots: 4, ITLBase: time.Millisecond})
				js := env.JetStream()
				i := env.intruder("intruder")
				var policy, victim int
				for subject, n := range map[string]*int{"$KV.PULLEY_POLICY.>": &policy, subjects.WorkerDrain(ws[0].ID()): &victim} {
					if _, err := i.nc.Subscribe(subject, func(*nats.Msg) { *n++ }); err != nil {
						t.Fatal(err)
					}
				}
				stop := make(chan struct{})
				defer close(stop)
				if c.pools != nil {
					go func() {
						for {
							i.beat(c.pools...)
							select {
							case <-stop:
								return
							case <-time.After(subjects.HeartbeatEvery):
							}
						}
					}()
				}
				time.Sleep(time.Second)
				i.bid("m", subjects.Shared, subjects.Worker(i.id)+".bid.1")
				answer := make(chan reply, 1)
				go func() { answer <- ask(t, g, chat("m", false, 3), "") }()
				m := i.next()
				if m == nil {
					t.Fatal("the intruder got no delivery")
				}
				i.forge(m, c.ack(m.Reply, ws[0].ID()))
				r := <-answer
				if r.status != 200 || strings.Contains(r.body, "forged") {
					t.Errorf("got %d %s", r.status, r.body)
				}
				if r.took > 2100*time.Millisecond {
					t.Errorf("the delivery that an intruder kept cost %v", r.took)
				}
				time.Sleep(time.Second)
				if policy+victim > 0 {
					t.Errorf("the gateway published %d records of the policy and %d orders to a worker", policy, victim)
				}
				if _, err := js.Stream(t.Context(), subjects.DeadStream); err != nil {
					t.Errorf("dead letters: %v", err)
				}
				if r := ask(t, g, chat("m", false, 3), ""); r.status != 200 || r.took > time.Second {
					t.Errorf("afterwards: %d after %v", r.status, r.took)
				}
			})
		})
	}
}

// What takes requests and keeps silent costs at most 2 s for each delivery, and is noticed.
func TestDeliveriesThatNobodyClaims(t *testing.T) {
	for _, holes := range []int{1, 2, 5} {
		run(t, func(t *testing.T, env *Env) {
			g, _, _ := pair(t, env, sim.Config{Name: "a", Models: []string{"m"}, Slots: 4, ITLBase: time.Millisecond})
			i := env.intruder("intruder")
			for range holes - 1 {
				i.nc.PublishRequest(subjects.BidSubject("standard", "m", subjects.Shared), subjects.Worker(i.id)+".bid.1",
					subjects.MustMarshal(subjects.Bid{Batch: 1, Expires: int64(time.Minute), Group: subjects.PriorityGroup}))
			}
			i.bid("m", subjects.Shared, subjects.Worker(i.id)+".bid.1")
			r := ask(t, g, chat("m", false, 3), "")
			if most := time.Duration(holes)*2*time.Second + 200*time.Millisecond; r.status != 200 || r.took > most {
				t.Errorf("%d deliveries without a claim: %d after %v, want at most %v", holes, r.status, r.took, most)
			}
			reports := 0
			nc, _ := env.Connect("operator")
			sub, err := nc.SubscribeSync(subjects.GatewayRef(g.ID()))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			for reports < holes {
				m, err := sub.NextMsgWithContext(ctx)
				if err != nil {
					t.Fatalf("the gateway reports %d deliveries without a claim, want %d", reports, holes)
				}
				var ref subjects.Reference
				if err := subjects.Unmarshal(m.Data, &ref); err != nil {
					t.Fatal(err)
				}
				reports = ref.Pools["m"].Unclaimed
			}
			wantMetrics(t, g, fmt.Sprintf(`pulley_deliveries_unclaimed_total{pool="m"} %d`, holes))
		})
	}
}

// What a worker pulls is delivered to the subject that it names, past the broker's permissions. Its content is the client's,
// and so may be a message of the protocol. It counts for nothing.
func TestRequestInPlaceOfAHeartbeat(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, ws := pair(t, env, slow("a"))
		home := subjects.StableID(ws[0].ID())
		ask(t, g, chat("m", false, 1), "", "X-Session-Id", "s") // makes it the home of the session
		i := env.intruder("intruder")
		i.bid("m", home, subjects.Heartbeats(ws[0].ID()))
		begun := time.Now()
		left := fmt.Sprintf(`"worker":%q,"name":"a","state":"left","pools":[{"pool":"m"}]`, home)
		running := make(chan reply, 1)
		go func() { running <- ask(t, g, chat("m", false, 60), "") }()
		time.Sleep(time.Second)
		first := ask(t, g, chat("m", false, 1, left), "", "X-Session-Id", "s")
		if first.status != 200 || first.took > 2200*time.Millisecond {
			t.Errorf("the request that was taken: %d after %v", first.status, first.took)
		}
		if r := <-running; r.status != 200 || r.header.Get("X-Pulley-Attempts") != "" || time.Since(begun) > 8*time.Second {
			t.Errorf("the request that ran meanwhile: %d after %v, header %v", r.status, r.took, r.header)
		}
	})
}

// A gateway answers a question nowhere but in an inbox: else whoever may ask it anything could have it publish to the APIs
// of the broker, for which gateways have permission.
func TestQuestionWithAForeignReply(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, ws := pair(t, env, slow("a"))
		js := env.JetStream()
		i := env.intruder("intruder")
		got := 0
		if _, err := i.nc.Subscribe("$KV.>", func(m *nats.Msg) {
			if !strings.HasPrefix(m.Subject, "$KV.PULLEY_WORKERS.") && !strings.HasPrefix(m.Subject, "$KV.PULLEY_LEARNED.") {
				got++
			}
		}); err != nil {
			t.Fatal(err)
		}
		questions := []string{
			subjects.GatewayBody(g.ID(), i.id), subjects.GatewayThere(g.ID()), subjects.AskRequests, subjects.AskWorkers, subjects.AskResults,
			subjects.DoPurge, subjects.DoRetry,
		}
		for _, q := range questions {
			for _, reply := range []string{
				"$JS.API.STREAM.DELETE.PULLEY_DEAD", "$KV.PULLEY_POLICY.policy", "$KV.PULLEY_KEYS.key.x", subjects.WorkerDrain(ws[0].ID()),
				subjects.Heartbeats(ws[0].ID()),
			} {
				i.nc.PublishRequest(q, reply, []byte("{}"))
			}
		}
		i.nc.Flush()
		time.Sleep(3 * time.Second)
		if _, err := js.Stream(t.Context(), subjects.DeadStream); err != nil {
			t.Errorf("dead letters: %v", err)
		}
		if got > 0 {
			t.Errorf("%d records were written", got)
		}
		if r := ask(t, g, chat("m", false, 1), ""); r.status != 200 || r.took > time.Second {
			t.Errorf("afterwards: %d after %v", r.status, r.took)
		}
	})
}

// One heartbeat with many pools makes a bounded number of consumers, and the same worker cannot have more made by
// announcing others.
func TestHeartbeatWithManyPools(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, _ := pair(t, env, slow("a"))
		js := env.JetStream()
		consumers := func() (n int) {
			for _, tier := range []string{"priority", "standard", "batch"} {
				s, err := js.Stream(t.Context(), subjects.ReqStream(tier))
				if err != nil {
					t.Fatal(err)
				}
				n += s.CachedInfo().State.Consumers
			}
			return n
		}
		before := consumers()
		i := env.intruder("intruder")
		for round := range 5 {
			var pools []string
			for n := range 300 {
				pools = append(pools, fmt.Sprintf("p%d-%d", round, n))
			}
			for range 3 {
				i.beat(pools...)
				time.Sleep(time.Second)
			}
		}
		time.Sleep(10 * time.Second)
		if n, most := consumers()-before, subjects.MaxPools*3*2; n > most { // the shared lane and the home lane, in three tiers
			t.Errorf("%d consumers were made, want at most %d", n, most)
		}
		kv, err := js.KeyValue(t.Context(), subjects.PoolsBucket)
		if err != nil {
			t.Fatal(err)
		}
		keys, err := kv.Keys(t.Context())
		if err != nil && err != jetstream.ErrNoKeysFound {
			t.Fatal(err)
		}
		if len(keys) > subjects.MaxPools+1 {
			t.Errorf("%d pools are stored, want at most %d", len(keys), subjects.MaxPools+1)
		}
		if r := ask(t, g, chat("m", false, 1), ""); r.status != 200 || r.took > time.Second {
			t.Errorf("afterwards: %d after %v", r.status, r.took)
		}
	})
}

// A body that travels by reference is sent to the worker that runs the request, to nobody else.
func TestBodyOfAnotherWorker(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, _ := pair(t, env, slow("a"))
		i := env.intruder("intruder")
		long := strings.Repeat("secret ", 60_000)
		answer := make(chan reply, 1)
		go func() {
			body, _ := json.Marshal(map[string]any{"model": "m", "max_tokens": 30, "messages": []map[string]string{{"role": "user", "content": long}}})
			answer <- ask(t, g, string(body), "")
		}()
		time.Sleep(500 * time.Millisecond)
		reqs := strings.Split(running(t, env), " ")
		if len(reqs) != 1 || reqs[0] == "" {
			t.Fatalf("running: %q", reqs)
		}
		id, err := subjects.ParseID(reqs[0])
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		m, err := i.nc.RequestWithContext(ctx, subjects.GatewayBody(g.ID(), i.id), subjects.MustMarshal(subjects.BodyRequest{ID: id}))
		if err != nil || len(m.Data) > 0 {
			t.Errorf("the intruder got %v, %v", m, err)
		}
		if r := <-answer; r.status != 200 {
			t.Errorf("got %d %s", r.status, r.body)
		}
	})
}

// running returns the ids of the requests that run.
func running(t *testing.T, env *Env) string {
	t.Helper()
	nc, _ := env.Connect("operator")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, subjects.AskRequests, nil)
	if err != nil {
		t.Fatal(err)
	}
	var list []subjects.RequestInfo
	if len(m.Data) > 0 {
		if err := subjects.Unmarshal(m.Data, &list); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for _, r := range list {
		ids = append(ids, r.ID)
	}
	return strings.Join(ids, " ")
}
