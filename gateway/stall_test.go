package gateway

import (
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// What is to be delivered again only after a delay is handed back once more if that, or the delivery, was lost.
func TestDelayedDeliveryIsNotWaitedForForever(t *testing.T) {
	for _, delay := range []time.Duration{0, time.Second, 20 * time.Second} {
		c := newClaims()
		c.fleet.onHeartbeat(beatOf("a", subjects.Ready, 4, 0, "m"), time.Now())
		if got := c.by("a", 7); got != "granted" {
			t.Fatal(got)
		}
		c.r.fail(c.r.current(), subjects.FailEngine, false)
		now := time.Now()
		if ack, others := c.r.retry(delay, now); ack == "" || len(others) > 0 {
			t.Errorf("hands back %q, and settles %q", ack, others)
		}
		back := time.Duration(0)
		for at := time.Duration(0); at < time.Minute && back == 0; at += 100 * time.Millisecond {
			if c.r.unclaimed(100, claimWithin, now.Add(at)) == 7 {
				back = at
			}
		}
		if back < delay+claimWithin || back > delay+claimWithin+200*time.Millisecond {
			t.Errorf("delayed by %v: taken back after %v", delay, back)
		}
	}
}

// A request that runs and is delivered again settles the last delivery of each of its messages.
func TestSettlesTheLastDelivery(t *testing.T) {
	ack := func(seq, consumerSeq string) string {
		return "$JS.ACK.PULLEY_REQ_STANDARD.m=shared.1." + seq + "." + consumerSeq + ".0.0"
	}
	c := newClaims()
	c.fleet.onHeartbeat(beatOf("a", subjects.Ready, 4, 0, "m"), time.Now())
	claim := func(ack string) {
		c.Claim(subjects.Claim{ID: c.r.wire.ID, Attempt: 1, Worker: "a", Name: "a", Ack: ack})
	}
	claim(ack("5", "5"))
	for range 20 {
		claim(ack("5", "1"))
		claim(ack("9", "2"))
		claim("$JS.ACK.PULLEY_REQ_BATCH.m=shared.1.3.3.0.0") // of another stream
		claim("$KV.PULLEY_POLICY.policy")
	}
	a, others := c.r.end()
	if a.ack != ack("5", "1") {
		t.Errorf("settles %s, want the last delivery", a.ack)
	}
	if len(others) != 1 || others[0] != ack("9", "2") {
		t.Errorf("also settles %q", others)
	}
}
