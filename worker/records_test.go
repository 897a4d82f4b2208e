package worker

import (
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// FuzzMessages hands a worker messages of parts that are damaged or foreign. Whatever they say, it goes on: it bids on the
// rungs that there are, and its heartbeat is one that gateways take.
func FuzzMessages(f *testing.F) {
	for _, seed := range [][]byte{
		{}, []byte(`{`), []byte(`null`), []byte(`[]`), []byte(`{"gw":"g","pools":{"m":null}}`),
		subjects.MustMarshal(subjects.Reference{Gateway: "g", Pools: map[string]subjects.PoolReference{"m": {Price: 0.5, Mean: policy.Mean{Input: 100, Output: 10, Samples: 3}, Workers: 2, Slots: 8, Weight: 2}}}),
		[]byte(`{"gw":"g","pools":{"m":{"price":-1e308,"mean":{"in":-1,"out":1e308},"workers":-5,"slots":-1,"weight":-0.0,"homes":["","a.b","*",">"],"lengths":[-1,0,9223372036854775807]}}}`),
		[]byte(`{"gw":"g","pools":{"m":{"held":{"standard":-3},"waits_ms":{"standard":-9223372036854775808},"loaded":-2,"shortage":{"waiting":-1,"free":-1,"for_ms":-1,"loaders":["x"]}}}}`),
		[]byte(`{"id":"0190a5f2-1234-7abc-8def-0123456789ab","attempt":"1","taken":-1}`),
		[]byte(`{"next":"18446744073709551615","again":true}`),
		[]byte(`{"loads":{"m":-1,"":9223372036854775807},"parallel":-7}`),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		w, err := New(Config{Engine: "http://e", Name: "w", Models: []string{"m"}, Slots: 4, Logger: slog.New(slog.DiscardHandler)}, new(nats.Conn))
		if err != nil {
			t.Fatal(err)
		}
		w.plans.gate = time.NewTimer(time.Hour)
		defer w.plans.gate.Stop()
		w.plans.due.Store(1) // nothing is published
		w.presence.onListing(nil, false)
		w.onReference(&nats.Msg{Subject: subjects.GatewayRef("g"), Data: data})
		for _, what := range []string{"refused.ff", "got.g", "cancel", "credit", "blame", "gone.g", "bid.1.0.1"} {
			w.receive(&nats.Msg{Subject: subjects.Worker(w.id) + "." + what, Data: data})
		}
		now := time.Now()
		bids, _ := w.bidder.plan(w.load(now), now)
		if len(bids) > 10_000 {
			t.Errorf("%d bids", len(bids))
		}
		for _, b := range bids {
			if b.rung < 0 || b.rung >= policy.Rungs {
				t.Errorf("a bid on rung %d", b.rung)
			}
		}
		body, err := subjects.Marshal(w.heartbeat(now))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := subjects.ParseHeartbeat(&nats.Msg{Subject: subjects.Heartbeats(w.id), Data: body}); err != nil {
			t.Error(err)
		}
	})
}
