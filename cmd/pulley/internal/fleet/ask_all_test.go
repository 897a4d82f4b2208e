package fleet_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// asked is a broker with gateways that answer questions, and say nothing by themselves. So what a snapshot has of them was asked.
func asked(t *testing.T, workers []subjects.Heartbeat, reports ...subjects.Report) *nats.Conn {
	t.Helper()
	url, _ := clitest.Broker(t, broker.Config{})
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := subjects.EnsureStreams(t.Context(), js, policy.DefaultTiers(), 1); err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), subjects.WorkersBucket)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range workers {
		if _, err := kv.Put(t.Context(), h.Worker, subjects.MustMarshal(h)); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range reports {
		for subject, list := range map[string]any{subjects.AskWorkers: workers, subjects.AskRequests: []subjects.RequestInfo{}} {
			end := nats.Header{}
			if r.Gateway != "" {
				end.Set(subjects.HeaderReport, string(subjects.MustMarshal(r)))
			}
			if _, err := nc.Subscribe(subject, func(m *nats.Msg) {
				m.Respond(subjects.MustMarshal(list))
				m.RespondMsg(&nats.Msg{Header: end})
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return nc
}

func TestSnapshotIsAskedFor(t *testing.T) {
	w1, w2 := clitest.Beat("w1", subjects.Ready, 1, "m"), clitest.Beat("w2", subjects.Fenced, 0, "m")
	lost := func(name string, silent time.Duration, started time.Time) subjects.LostWorker {
		return subjects.LostWorker{Worker: name + "-dead", Name: name, Host: w1.Host, Started: started, SilentMS: silent.Milliseconds()}
	}
	nc := asked(t, []subjects.Heartbeat{w1, w2},
		subjects.Report{Gateway: "gw1", Trouble: "no leader", Silent: map[string]int64{"b2": 3000}, Pools: map[string]subjects.PoolReport{"m": {Held: map[string]int{"batch": 3}}}},
		subjects.Report{Gateway: "gw2", Lost: []subjects.LostWorker{lost("w3", 5*time.Minute, w1.Started), lost("w1", time.Minute, w1.Started.Add(-time.Hour)), lost("w4", time.Hour, w1.Started)}})
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), subjects.WorkersBucket)
	if err != nil {
		t.Fatal(err)
	}
	w3 := clitest.Beat("w3", subjects.Ready, 1, "m")
	w3.Worker = "w3-dead"
	if _, err := kv.Put(t.Context(), w3.Worker, subjects.MustMarshal(w3)); err != nil { // its membership ends later
		t.Fatal(err)
	}
	s, err := fleet.ReadSnapshot(t.Context(), nc)
	if err != nil || !s.Settled() {
		t.Fatalf("%v, settled %v", err, s.Settled())
	}
	if len(s.Gateways) != 2 || s.Trouble["gw1"] != "no leader" || s.Held[fleet.PoolTier{Pool: "m", Tier: "batch"}] != 3 {
		t.Errorf("gateways %q, trouble %q, held %v", s.Gateways, s.Trouble, s.Held)
	}
	if s.SilentBrokers["b2"] != 3*time.Second || !slices.ContainsFunc(s.Findings, func(f fleet.Finding) bool { return strings.HasPrefix(f.Text, "broker b2 is silent") }) {
		t.Errorf("silent brokers %v, findings %v", s.SilentBrokers, s.Findings)
	}
	got := map[string]time.Duration{}
	for _, w := range s.Workers {
		got[w.Worker] = w.Lost.Round(time.Minute)
	}
	// The w1 that was lost was started again, and w4 was lost long ago.
	if len(got) != 3 || got[w1.Worker] != 0 || got[w2.Worker] != 0 || got["w3-dead"] != 5*time.Minute {
		t.Errorf("workers %v", got)
	}
}

// A gateway that does not report, or a worker that no gateway knows, is waited for.
func TestSnapshotListensWhereAskingIsNotEnough(t *testing.T) {
	h := clitest.Beat("w1", subjects.Ready, 1, "m")
	older := asked(t, []subjects.Heartbeat{h}, subjects.Report{Gateway: "gw1"}, subjects.Report{})
	alone := asked(t, []subjects.Heartbeat{h})
	for about, nc := range map[string]*nats.Conn{"an older gateway": older, "no gateway": alone} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		s, err := fleet.ReadSnapshot(ctx, nc)
		cancel()
		if err != nil || !s.Settled() || len(s.Gateways) != 0 || s.At.Sub(s.Since) < 2*subjects.ReferenceEvery {
			t.Errorf("%s: %v, settled %v after %v, gateways %q", about, err, s.Settled(), s.At.Sub(s.Since), s.Gateways)
		}
	}
}
