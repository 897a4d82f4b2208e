package gateway

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// FuzzMessages hands the gateway messages of parts that are damaged or foreign. Whatever they say, it goes on, and its
// metrics and references can be read.
func FuzzMessages(f *testing.F) {
	handlers := map[string]func(*Gateway, *nats.Msg){
		subjects.Heartbeats("w"):     func(g *Gateway, m *nats.Msg) { g.watch.onHeartbeat(m) },
		subjects.GatewayRef("other"): func(g *Gateway, m *nats.Msg) { g.watch.onReference(m) },
		subjects.GatewayHeld("other"): func(g *Gateway, m *nats.Msg) {
			g.exchange.onHeld(m)
		},
		subjects.AffinityReports: func(g *Gateway, m *nats.Msg) { g.affinity.onReport(m) },
		subjects.ShiftReports:    func(g *Gateway, m *nats.Msg) { g.shifts.onReport(m) },
		subjects.UsageReports:    func(g *Gateway, m *nats.Msg) { g.keys.onReport(m.Data, time.Now()) },
		subjects.AskRequest:      func(g *Gateway, m *nats.Msg) { g.control.onAskRequest(m) },
		subjects.DoCancel:        func(g *Gateway, m *nats.Msg) { g.control.onCancel(m) },
		subjects.DoPurge:         func(g *Gateway, m *nats.Msg) { g.control.onPurge(m) },
	}
	own := []string{"link.w", "alive", "body", "stored.1", "settled.1", "left.w", "uncalled.x.1", "turn"}
	beat := subjects.MustMarshal(beatOf("w", subjects.Ready, 4, 1, "m", "org/n:7b"))
	claim := subjects.MustMarshal(subjects.Claim{ID: subjects.NewID(), Attempt: 1, Worker: "w", Ack: "$JS.ACK.PULLEY_REQ_STANDARD.m=shared.1.1.1.0.0"})
	link := subjects.AppendItem(make([]byte, subjects.LinkHeader), subjects.ItemClaim, claim)
	subjects.PutLinkHeader(link, 1, 1)
	for _, seed := range [][]byte{
		beat, link, []byte(`{`), []byte(`null`), []byte(`[]`), []byte(`{"w":"w","pools":null}`), {},
		[]byte(strings.Replace(string(beat), `"slots":4`, `"slots":-4`, 1)), []byte(strings.Replace(string(beat), `"slots":4`, `"slots":1e99`, 1)),
		[]byte(strings.Replace(string(beat), `"m"`, `"`+strings.Repeat("x", 1000)+`"`, 1)), []byte(strings.Replace(string(beat), `"m"`, `"\u0000\n"`, 1)),
		subjects.MustMarshal(subjects.Reference{Gateway: "other", Pools: map[string]subjects.PoolReference{"m": {Price: -1, Lengths: []int64{-1, 1 << 60}}}}),
		subjects.MustMarshal(subjects.Alive{Worker: "w", Attempts: []subjects.AliveAttempt{{ID: subjects.NewID(), Attempt: 1, Sent: 1 << 31, Taken: -1}}}),
		subjects.MustMarshal(subjects.BodyRequest{ID: subjects.NewID(), Offset: -1}),
		[]byte(`{"gw":"other","key":"m","tier":"standard","held":-1,"tenants":{"":-5}}`),
	} {
		f.Add(seed)
	}
	nc := startBroker(f).connect()
	f.Fuzz(func(t *testing.T, data []byte) {
		began := time.Now()
		defer func() {
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		}()
		g, err := New(Config{Logger: slog.New(slog.DiscardHandler)}, nc)
		if err != nil {
			t.Fatal(err)
		}
		q := g.admission.queues.get("m", "standard")
		r := newRequest(&spec{
			wire: &subjects.Request{ID: subjects.NewID()}, arrived: time.Now(), deadline: time.Now().Add(time.Minute),
			admitted: target{queue: q, tier: policy.Tier{Name: "standard", Retries: 2}, lane: subjects.Shared, join: q.join(time.Now())},
		}, []byte("body"))
		g.requests.add(r)
		for subject, handle := range handlers {
			handle(g, &nats.Msg{Subject: subject, Data: data})
		}
		for _, what := range own {
			g.dispatcher.onMessage(&nats.Msg{Subject: subjects.Gateway(g.bus.id) + "." + what, Data: data})
		}
		now := time.Now()
		g.watch.sweep(now)
		g.watch.publishReferences()
		if _, err := g.metrics.registry.Gather(); err != nil {
			t.Errorf("metrics: %v", err)
		}
		if refs, _ := g.fleet.references(g.lanes.homes()); len(subjects.MustMarshal(subjects.Reference{Gateway: "g", Pools: refs})) == 0 {
			t.Error("no reference")
		}
		for _, pool := range g.fleet.models() {
			if len(pool) > subjects.MaxName {
				t.Errorf("a pool of %d bytes", len(pool))
			}
			g.fleet.room(pool, nil)
			g.fleet.find(pool)
			g.fleet.hanging()
		}
		if fmt.Sprint(g.readiness()) == "" {
			t.Error("no readiness")
		}
	})
}
