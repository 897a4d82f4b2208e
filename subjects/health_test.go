package subjects_test

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func TestParseHeartbeat(t *testing.T) {
	good := func() *subjects.Heartbeat {
		return &subjects.Heartbeat{Worker: "w-1", Name: "w", State: subjects.Ready, Slots: 4, InFlight: 5, Weight: 0.5, Pools: []subjects.PoolStatus{
			{Pool: "new"}, {Pool: "m", Mean: policy.Mean{Input: 100, Output: 20, Samples: 3}, Curve: &policy.Curve{Prefill: &policy.Line{A: 0.1, B: 1e-4}}},
		}}
	}
	parse := func(h *subjects.Heartbeat) (*subjects.Heartbeat, error) {
		b, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		return subjects.ParseHeartbeat(&nats.Msg{Subject: subjects.Heartbeats("w-1"), Data: b})
	}
	if h, err := parse(good()); err != nil || h.Slots != 4 || len(h.Pools) != 2 {
		t.Fatalf("got %+v, %v", h, err)
	}
	for want, spoil := range map[string]func(*subjects.Heartbeat){
		`worker "w-2"`:        func(h *subjects.Heartbeat) { h.Worker = "w-2" },
		"slots -1":            func(h *subjects.Heartbeat) { h.Slots = -1 },
		"slots 1":             func(h *subjects.Heartbeat) { h.Slots = 1 << 40 },
		"in_flight -3":        func(h *subjects.Heartbeat) { h.InFlight = -3 },
		"prefills -1":         func(h *subjects.Heartbeat) { h.Prefills = -1 },
		"weight -0.5":         func(h *subjects.Heartbeat) { h.Weight = -0.5 },
		"without a name":      func(h *subjects.Heartbeat) { h.Pools[0].Pool = "" },
		`pool "m": out -7`:    func(h *subjects.Heartbeat) { h.Pools[1].Mean.Output = -7 },
		`pool "m": b -0.0001`: func(h *subjects.Heartbeat) { h.Pools[1].Curve.Prefill.B = -1e-4 },
	} {
		h := good()
		spoil(h)
		if _, err := parse(h); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "pulley.hb.w-1") {
			t.Errorf("got %v, want an error that says %s and the subject", err, want)
		}
	}
	body, _ := json.Marshal(good())
	for _, subject := range []string{"pulley.req.standard.m.w-1", "pulley.hb.x.w-1", "pulley.hb.w-1.x", "w-1", "pulley.wk.w-1"} {
		if _, err := subjects.ParseHeartbeat(&nats.Msg{Subject: subject, Data: body}); err == nil {
			t.Errorf("a heartbeat on %s was accepted", subject)
		}
	}
	if _, err := subjects.ParseHeartbeat(&nats.Msg{Subject: subjects.Heartbeats("w-1"), Data: []byte("{")}); err == nil {
		t.Error("half a heartbeat was accepted")
	}
}
