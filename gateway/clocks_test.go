package gateway

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// The time to live of a message is what is left of its client's patience, whatever the clock shows since it was set.
func TestClockIsSetWhileARequestWaits(t *testing.T) {
	for _, by := range []time.Duration{0, time.Hour, -time.Hour} {
		b := startBroker(t)
		g, err := New(Config{}, b.connect())
		if err != nil {
			t.Fatal(err)
		}
		nc := b.connect()
		sent, err := nc.SubscribeSync("pulley.req.>")
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		q := newQueues().get("m", "standard")
		r := newRequest(&spec{
			wire:    &subjects.Request{ID: subjects.NewID(), Pool: "m", Tier: "standard", Deadline: now.Add(time.Minute - by).UnixMilli()}, // stamped before it was set
			arrived: now, deadline: now.Add(time.Minute),
			admitted: target{queue: q, tier: policy.Tier{Name: "standard"}, lane: subjects.Shared, join: q.join(now)},
		}, nil)
		if err := g.dispatcher.publisher.publish(r); err != nil {
			t.Fatal(err)
		}
		m, err := sent.NextMsg(time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		ttl, err := strconv.Atoi(strings.TrimSuffix(m.Header.Get("Nats-TTL"), "s"))
		if err != nil || ttl < 10 || ttl > 61 {
			t.Errorf("set by %v: time to live %q, want a minute", by, m.Header.Get("Nats-TTL"))
		}
	}
}

// The step of a shift lasts as long here, whatever the clock of the gateway or command that took it shows.
func TestShiftsWithOtherClocks(t *testing.T) {
	start := time.Now()
	running := func(stamped time.Time) policy.Route {
		return policy.Route{To: []policy.Target{{Pool: "a", Weight: 90}, {Pool: "b", Weight: 10}}, Shift: &policy.Shift{To: "b", By: 10, Every: policy.Duration(10 * time.Minute), MinSample: 1, Since: stamped}}
	}
	one := policy.Side{}
	one.Observe(true, time.Millisecond, time.Millisecond)
	steps := func(s *shifts, r policy.Route, now time.Time) bool {
		_, what := since(r, s.began("r", r, now)).Step(one, one, now)
		return what != ""
	}
	for _, apart := range []time.Duration{0, time.Second, -time.Second, time.Hour, -time.Hour} {
		s := newShifts(&bus{})
		steps(s, running(start.Add(-2*time.Hour)), start.Add(-time.Minute)) // the step before
		r := running(start.Add(apart))
		for _, after := range []time.Duration{0, time.Second, 9 * time.Minute} {
			if steps(s, r, start.Add(after)) {
				t.Errorf("clocks %v apart: a step after %v, want after 10 minutes", apart, after)
			}
		}
		if !steps(s, r, start.Add(10*time.Minute+2*time.Second)) {
			t.Errorf("clocks %v apart: no step after 10 minutes", apart)
		}
	}
	// A gateway that has just started knows the stamp alone.
	s := newShifts(&bus{})
	if !steps(s, running(start.Add(-11*time.Minute)), start) {
		t.Error("a step of 11 minutes ago does not end after a restart")
	}
	s = newShifts(&bus{})
	r := running(start.Add(time.Hour))
	if steps(s, r, start) || !steps(s, r, start.Add(11*time.Minute)) {
		t.Error("a step that is stamped in the future begins when it is first seen")
	}
}
