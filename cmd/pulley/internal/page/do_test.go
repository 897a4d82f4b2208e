package page

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
)

const secret = "0123456789abcdef"

// fleetOf is a gateway with its page, and a worker that only says that it is there.
type fleetOf struct {
	client *http.Client
	nc     *nats.Conn
	store  *policystore.Store
	drains chan string
}

func startFleet(t *testing.T, env *testenv.Env, token func() string) *fleetOf {
	t.Helper()
	nc, _ := env.Connect("gateway")
	live, err := New(nc, "v1", token != nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	gw, err := gateway.New(gateway.Config{AdminToken: token, Page: live.Admin()}, nc)
	if err != nil {
		t.Fatal(err)
	}
	ingress, admin := testenv.NewListener(), testenv.NewListener()
	f := &fleetOf{drains: make(chan string, 1)}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "admin") {
			return admin.DialContext(ctx, network, addr)
		}
		return ingress.DialContext(ctx, network, addr)
	}}
	f.client = &http.Client{Transport: transport}
	run := testenv.Start(func(ctx context.Context) error { return gw.Run(ctx, ingress, admin) })
	page := testenv.Start(func(ctx context.Context) error { return live.Run(ctx, Source{View: gw.View, Hour: gw.Hour}) })
	f.nc, _ = env.Connect("worker")
	beat := subjects.Heartbeat{Worker: "gpu-1.aa", Name: "gpu-1", State: subjects.Ready, Slots: 4, Weight: 1, Pools: []subjects.PoolStatus{{Pool: "m"}}}
	drain, err := f.nc.Subscribe(subjects.WorkerDrain(beat.Worker), func(m *nats.Msg) {
		f.drains <- m.Subject
		m.Respond(subjects.MustMarshal(subjects.Outcome{From: beat.Worker, Count: 1}))
	})
	if err != nil {
		t.Fatal(err)
	}
	beats := testenv.Start(func(ctx context.Context) error {
		for ctx.Err() == nil {
			f.nc.Publish(subjects.Heartbeats(beat.Worker), subjects.MustMarshal(beat))
			select {
			case <-ctx.Done():
			case <-time.After(subjects.HeartbeatEvery):
			}
		}
		return nil
	})
	t.Cleanup(func() {
		drain.Unsubscribe()
		beats.Stop()
		transport.CloseIdleConnections()
		time.Sleep(time.Second) // the server waits so long with a connection whose body it did not read
		for _, p := range []*testenv.Process{run, page} {
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
		}
	})
	testenv.Eventually(t, "the gateway is ready", 30*time.Second, func() bool { return gw.NotReady() == "" && len(gw.Models()) > 0 })
	if f.store, err = policystore.Open(t.Context(), f.nc); err != nil {
		t.Fatal(err)
	}
	return f
}

// do sends an order as it is, and returns the answer.
func (f *fleetOf) do(t *testing.T, token, kind, body string) (status int, text string) {
	t.Helper()
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://admin/page/do", strings.NewReader(body))
	r.Header.Set("Content-Type", kind)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := f.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	var answer map[string]string
	if json.Unmarshal(b, &answer) == nil {
		return resp.StatusCode, answer["text"] + answer["error"]
	}
	return resp.StatusCode, string(b)
}

// last returns the newest revision of the policy.
func (f *fleetOf) last(t *testing.T) policystore.Version {
	t.Helper()
	list, err := f.store.History(t.Context())
	if err != nil || len(list) == 0 {
		return policystore.Version{Policy: policy.Default()}
	}
	return list[0]
}

func TestActionsNeedTheToken(t *testing.T) {
	const cordon = `{"do":"cordon","name":"gpu-1","by":"anna"}`
	for about, c := range map[string]struct {
		token  func() string
		sent   string
		status int
	}{
		"no token is set":      {nil, "", http.StatusForbidden},
		"no token is set, one": {nil, secret, http.StatusForbidden},
		"none is sent":         {func() string { return secret }, "", http.StatusUnauthorized},
		"a wrong one":          {func() string { return secret }, secret + "x", http.StatusUnauthorized},
		"an empty one is set":  {func() string { return "" }, "", http.StatusUnauthorized},
		"the right one":        {func() string { return secret }, secret, http.StatusOK},
	} {
		t.Run(about, func(t *testing.T) {
			testenv.Run(t, func(t *testing.T, env *testenv.Env) {
				f := startFleet(t, env, c.token)
				status, text := f.do(t, c.sent, "application/json", cordon)
				if done := f.last(t).Policy.Workers["gpu-1"].Cordoned; status != c.status || done != (status == http.StatusOK) {
					t.Errorf("got %d %s, cordoned %v", status, text, done)
				}
			})
		})
	}
}

func TestActions(t *testing.T) {
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		f := startFleet(t, env, func() string { return secret })
		events, err := f.nc.SubscribeSync(subjects.AllEvents)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			order  string
			status int
			text   string
			why    string // in the policy's history; empty: no revision is new
			holds  func(p *policy.Policy) bool
		}{
			{`{"do":"cordon","name":"gpu-1"`, 200, "worker gpu-1 cordoned", "worker cordon gpu-1", func(p *policy.Policy) bool { return p.Workers["gpu-1"].Cordoned }},
			{`{"do":"cordon","name":"gpu-1"`, 200, "worker gpu-1 cordoned", "", func(p *policy.Policy) bool { return p.Workers["gpu-1"].Cordoned }},
			{`{"do":"uncordon","name":"gpu-1"`, 200, "worker gpu-1 uncordoned", "worker uncordon gpu-1", func(p *policy.Policy) bool { return len(p.Workers) == 0 }},
			{`{"do":"cordon","name":"gpu-9"`, 404, "no worker gpu-9: it may have just left", "", nil},
			{`{"do":"weight","name":"gpu-1","weight":2.5`, 200, "worker gpu-1 has weight 2.5", "worker weight gpu-1 2.5", func(p *policy.Policy) bool { return p.Workers["gpu-1"].Weight == 2.5 }},
			{`{"do":"weight","name":"gpu-1","weight":-1`, 422, "workers.gpu-1.weight", "", func(p *policy.Policy) bool { return p.Workers["gpu-1"].Weight == 2.5 }},
			{`{"do":"pause","name":"m"`, 200, "pool m paused", "pool pause m", func(p *policy.Policy) bool { return p.Pools["m"].Paused }},
			{`{"do":"resume","name":"m"`, 200, "pool m resumed", "pool resume m", func(p *policy.Policy) bool { return len(p.Pools) == 0 }},
			{`{"do":"pause","name":"none"`, 404, "no pool none", "", nil},
			{`{"do":"shift","name":"m","to":"n","percent":20,"seconds":60,"abort":["error_rate>1%"]`, 200, "shift of m to n started", "route shift m --to n --by 20% --every 1m0s --abort-if 'error_rate>1%'",
				func(p *policy.Policy) bool {
					s := p.Routes["m"].Shift
					return s != nil && s.To == "n" && s.By == 20 && s.Every == policy.Duration(time.Minute) && len(s.Abort) == 1
				}},
			{`{"do":"shift","name":"m","to":"o","percent":20,"seconds":60`, 409, "a shift is running", "", nil},
			{`{"do":"shift","name":"x","to":"o","percent":20,"seconds":60,"abort":["slow"]`, 422, "slow", "", nil},
			{`{"do":"shift","name":"x","to":"o","percent":0,"seconds":60`, 422, "by", "", nil},
			{`{"do":"shift","name":"x","percent":5,"seconds":60`, 400, "needs the pool", "", nil},
			{`{"do":"step","name":"m"`, 200, "shift of m ", "route shift m --now", func(p *policy.Policy) bool { return p.Routes["m"].ShiftShare() >= 20 }},
			{`{"do":"abort","name":"m","reason":"slow"`, 200, "aborted at", "route abort m", func(p *policy.Policy) bool {
				s := p.Routes["m"].Shift
				return s.State == policy.ShiftAborted && s.Reason == "slow"
			}},
			{`{"do":"abort","name":"m"`, 409, "no shift is running", "", nil},
			{`{"do":"shift","name":"m","to":"n","percent":20,"seconds":60`, 200, "started", "route shift m --to n --by 20% --every 1m0s", nil},
			{`{"do":"promote","name":"m"`, 200, "promoted", "route promote m", func(p *policy.Policy) bool { return p.Routes["m"].Shift.State == policy.ShiftDone }},
			{`{"do":"promote","name":"other"`, 404, "no route other", "", nil},
			{`{"do":"drain","name":"gpu-1.aa"`, 200, "worker gpu-1 is draining", "worker drain gpu-1", func(*policy.Policy) bool { return <-f.drains != "" }},
			{`{"do":"drain","name":"gpu-9"`, 404, "no worker gpu-9", "", nil},
			{`{"do":"cancel","name":"0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a901"`, 404, "no request", "request cancel 0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a901", nil},
			{`{"do":"cancel","name":"x"`, 400, "no id of a request", "", nil},
			{`{"do":"format","name":"x"`, 400, "no action", "", nil},
			{`{"do":"pause","name":""`, 400, "of what", "", nil},
			{`{"do":"pause","name":"m","also":1`, 400, "cannot be read", "", nil},
		} {
			time.Sleep(2 * time.Second) // the gateway may take a step of the shift
			before := f.last(t).Revision
			status, text := f.do(t, secret, "application/json; charset=utf-8", c.order+`,"by":"Anna Ö"}`)
			if status != c.status || !strings.Contains(text, c.text) {
				t.Errorf("%s: got %d %s", c.order, status, text)
			}
			switch v := f.last(t); {
			case c.why == "" && v.Revision != before:
				t.Errorf("%s: revision %d is new: %s", c.order, v.Revision, v.Why)
			case c.why != "" && (v.Revision != before+1 || v.Why != c.why || v.By != "Anna Ö"):
				t.Errorf("%s: the newest revision is %d, of %d before: %q by %q", c.order, v.Revision, before, v.Why, v.By)
			case c.holds != nil && !c.holds(v.Policy):
				t.Errorf("%s: it was not done", c.order)
			}
		}
		found := 0
		for {
			m, err := events.NextMsgWithContext(expired(t))
			if err != nil {
				break
			}
			var e subjects.Event
			if subjects.Unmarshal(m.Data, &e) == nil && e.From == "page Anna Ö" && e.Kind == subjects.EventPolicy {
				found++
			}
		}
		if found != 12 {
			t.Errorf("%d events of the policy", found)
		}
	})
}

// expired is a context for what has already come.
func expired(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestOrdersAreChecked(t *testing.T) {
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		f := startFleet(t, env, func() string { return secret })
		for about, c := range map[string]struct {
			kind, body string
			status     int
		}{
			"a form":              {"application/x-www-form-urlencoded", `{"do":"pause","name":"m","by":"a"}`, 415},
			"text":                {"text/plain", `{"do":"pause","name":"m","by":"a"}`, 415},
			"no JSON":             {"application/json", `pause m`, 400},
			"too long":            {"application/json", `{"do":"pause","name":"` + strings.Repeat("m", orderSize) + `","by":"a"}`, 400},
			"no name":             {"application/json", `{"do":"pause","name":"m"}`, 400},
			"spaces":              {"application/json", `{"do":"pause","name":"m","by":"  "}`, 400},
			"a long name":         {"application/json", `{"do":"pause","name":"m","by":"` + strings.Repeat("é", nameLength+1) + `"}`, 400},
			"a name with control": {"application/json", `{"do":"pause","name":"m","by":"a\nb"}`, 400},
			"the longest name":    {"application/json", `{"do":"pause","name":"m","by":"` + strings.Repeat("é", nameLength) + `"}`, 200},
		} {
			if status, text := f.do(t, secret, c.kind, c.body); status != c.status {
				t.Errorf("%s: got %d %s", about, status, text)
			}
		}
	})
}
