package ops

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// testRoot is a command line with the commands of this package.
func testRoot() *cobra.Command {
	worker := &cobra.Command{Use: "worker"}
	worker.AddCommand(WorkerVerbs()...)
	return cli.NewRoot("", "test", append(Commands(), worker)...)
}

// site is a broker with the streams that gateways create, and a stand-in for a gateway.
type site struct {
	t   *testing.T
	url string
	nc  *nats.Conn
	js  jetstream.JetStream

	mu      sync.Mutex
	workers []subjects.Heartbeat
	held    []subjects.RequestDetail
	orders  []string // the commands that the gateway has received
}

// newSite starts a broker with the streams of Pulley, but without a gateway.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t}
	s.url, _ = clitest.Broker(t, broker.Config{})
	var err error
	if s.nc, err = nats.Connect(s.url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.nc.Close)
	if s.js, err = jetstream.New(s.nc); err != nil {
		t.Fatal(err)
	}
	if err := subjects.EnsureStreams(t.Context(), s.js, policy.DefaultTiers(), 1); err != nil {
		t.Fatal(err)
	}
	return s
}

func respondJSON(m *nats.Msg, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	m.Respond(b)
}

// step is a command line with its expected exit code and output.
type step struct {
	args string
	code int
	want string // of both outputs, a regular expression for the whole
}

// die stores a dead letter.
func (s *site) die(tier, pool, body string) {
	s.t.Helper()
	r := subjects.Request{ID: subjects.NewID(), Gateway: "gw", Tier: tier, Model: "chat", Pool: pool, Tenant: "acme", Method: "POST",
		Path: "/v1/chat/completions", BodySize: int64(len(body)), Header: map[string][]string{"X-Api-Key": {"sk-secret"}, "Accept": {"*/*"}}}
	m, err := r.Msg(subjects.Shared, []byte(body), time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	m = &nats.Msg{Subject: subjects.Dead(tier, pool), Header: nats.Header{
		subjects.HeaderRequest: m.Header[subjects.HeaderRequest], subjects.HeaderReason: {"crashed \x1b[2J worker gpu-1 twice"}}, Data: []byte(body)}
	if _, err := s.js.PublishMsg(s.t.Context(), m); err != nil {
		s.t.Fatal(err)
	}
}

// keys returns the stored keys.
func (s *site) keys() map[string]policy.Key {
	s.t.Helper()
	store, err := policystore.Open(s.t.Context(), s.nc)
	if err != nil {
		s.t.Fatal(err)
	}
	keys, err := store.Keys(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return keys
}

// serve creates pools as if workers had served them, with their queues.
func (s *site) serve(pools ...string) {
	s.t.Helper()
	kv, err := s.js.KeyValue(s.t.Context(), subjects.PoolsBucket)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, pool := range pools {
		if _, err := kv.PutString(s.t.Context(), subjects.Token(pool), pool); err != nil {
			s.t.Fatal(err)
		}
		for _, t := range policy.DefaultTiers() {
			if err := subjects.EnsureConsumer(s.t.Context(), s.js, t.Name, pool, subjects.Shared); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// answer answers commands as a gateway does.
func (s *site) answer() {
	s.t.Helper()
	handle := func(subject string, do func(m *nats.Msg)) {
		sub, err := s.nc.Subscribe(subject, do)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { sub.Unsubscribe() })
	}
	handle(subjects.AskWorkers, func(m *nats.Msg) {
		s.mu.Lock()
		defer s.mu.Unlock()
		respondJSON(m, s.workers)
		m.Respond(nil)
	})
	handle(subjects.AskRequests, func(m *nats.Msg) {
		s.mu.Lock()
		defer s.mu.Unlock()
		var list []subjects.RequestInfo
		for _, r := range s.held {
			list = append(list, r.RequestInfo)
		}
		respondJSON(m, list)
		m.Respond(nil)
	})
	find := func(m *nats.Msg) (subjects.RequestDetail, subjects.RequestQuery, bool) {
		var q subjects.RequestQuery
		json.Unmarshal(m.Data, &q)
		s.mu.Lock()
		defer s.mu.Unlock()
		i := slices.IndexFunc(s.held, func(r subjects.RequestDetail) bool { return r.ID == q.ID })
		if i < 0 {
			return subjects.RequestDetail{}, q, false
		}
		return s.held[i], q, true
	}
	handle(subjects.AskRequest, func(m *nats.Msg) {
		if r, q, ok := find(m); ok {
			if !q.Body {
				r.Body = nil
			}
			respondJSON(m, r)
		}
	})
	handle(subjects.DoCancel, func(m *nats.Msg) {
		if r, q, ok := find(m); ok {
			s.ordered("cancel " + r.ID + " by " + q.By)
			respondJSON(m, subjects.Outcome{From: "gw", Count: 1})
		}
	})
	handle(subjects.DoPurge, func(m *nats.Msg) {
		var o subjects.PurgeOrder
		json.Unmarshal(m.Data, &o)
		s.ordered("purge " + o.Pool + " " + o.Tier)
		respondJSON(m, subjects.Outcome{From: "gw", Count: 3})
	})
	handle(subjects.DoRetry, func(m *nats.Msg) {
		var o subjects.RetryOrder
		json.Unmarshal(m.Data, &o)
		stream, err := fleet.DeadStream(s.t.Context(), s.js)
		if err == nil {
			_, err = stream.GetMsg(s.t.Context(), o.Sequence)
		}
		switch {
		case err != nil:
			respondJSON(m, subjects.RetryResult{Error: fmt.Sprintf("dead letter %d: %v", o.Sequence, err)})
			return
		case o.Sequence == 2:
			respondJSON(m, subjects.RetryResult{Status: 500})
			return
		}
		respondJSON(m, subjects.RetryResult{Status: 200, Body: []byte("the answer")})
	})
	handle(subjects.GatewayThere("gw"), func(m *nats.Msg) { m.Respond(nil) })
	if err := s.nc.Flush(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) ordered(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders = append(s.orders, what)
}

// takeOrders returns the commands that the gateway has received since the last call.
func (s *site) takeOrders() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := strings.Join(s.orders, "; ")
	s.orders = nil
	return text
}

// run runs a command line; its words have no spaces.
func (s *site) run(args string) (code int, stdout, stderr string) {
	s.t.Helper()
	return clitest.Run(testRoot(), append(strings.Fields(args), "--nats", s.url)...)
}

// ok runs a command line that must succeed, and returns its output.
func (s *site) ok(args string) string {
	s.t.Helper()
	code, stdout, stderr := s.run(args)
	if code != 0 {
		s.t.Fatalf("pulley %s: exit code %d, %s", args, code, stderr)
	}
	return stdout
}

func (s *site) story(steps ...step) {
	s.t.Helper()
	for _, st := range steps {
		code, stdout, stderr := s.run(st.args)
		got := stdout + stderr
		if code != st.code || !regexp.MustCompile(`(?s)^`+st.want+`$`).MatchString(got) {
			s.t.Fatalf("pulley %s: exit code %d\n%s\nwant %d\n%s", st.args, code, got, st.code, st.want)
		}
	}
}

// policy returns the current policy.
func (s *site) policy() *policy.Policy {
	s.t.Helper()
	store, err := policystore.Open(s.t.Context(), s.nc)
	if err != nil {
		s.t.Fatal(err)
	}
	v, err := store.Load(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return v.Policy
}

// put stores a request in a queue, and returns its id.
func (s *site) put(tier, pool, gateway, body string) string {
	s.t.Helper()
	r := subjects.Request{ID: subjects.NewID(), Gateway: gateway, Tier: tier, Model: pool, Pool: pool, Tenant: "acme", Method: "POST",
		Path: "/v1/chat/completions", Deadline: time.Now().Add(time.Hour).UnixMilli(), InputTokens: 7, BodySize: int64(len(body))}
	m, err := r.Msg(subjects.Shared, []byte(body), time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.js.PublishMsg(s.t.Context(), m); err != nil {
		s.t.Fatal(err)
	}
	if c, err := s.js.Consumer(s.t.Context(), subjects.ReqStream(tier), subjects.ReqConsumer(pool, subjects.Shared)); err == nil { // it counts the message a little later
		for c.CachedInfo().NumPending == 0 {
			if _, err := c.Info(s.t.Context()); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	return r.ID.String()
}

// held is a request as a gateway reports it. Its id ends with end.
func held(end, pool, tier, state string, old time.Duration) subjects.RequestDetail {
	r := subjects.RequestDetail{RequestInfo: subjects.RequestInfo{
		ID: "0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a9" + end, Gateway: "gw", Model: "chat", Pool: pool, Tier: tier, Tenant: "acme", State: state,
		Path: "/v1/chat/completions", AgeMS: old.Milliseconds(), QueueMS: old.Milliseconds(), Arrived: time.Now().Add(-old),
	}}
	if state != "queued" {
		r.Worker, r.Attempt = "gpu-1", 1
	}
	return r
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// atTerminal makes commands ask for confirmations.
func atTerminal(t *testing.T) {
	t.Helper()
	before := cli.Interactive
	cli.Interactive = func(io.Reader) bool { return true }
	t.Cleanup(func() { cli.Interactive = before })
}
