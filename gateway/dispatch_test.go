package gateway

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// claims is a dispatcher without a broker, with one request that waits in the pool m.
type claims struct {
	*dispatcher
	r *request
}

func newClaims() claims {
	d := &dispatcher{bus: new(bus), requests: newRequests(), fleet: newFleet(), exchange: new(exchange), metrics: newMetrics("g", "dev")}
	q := newQueues().get("m", "standard")
	q.resize(8, 8, 1, time.Now())
	r := newRequest(&spec{
		wire: &subjects.Request{ID: subjects.NewID()}, arrived: time.Now(), deadline: time.Now().Add(time.Minute),
		admitted: target{queue: q, tier: policy.Tier{Name: "standard", Retries: 2}, lane: subjects.Shared, join: q.join(time.Now())},
	}, nil)
	q.enqueue(subjects.Shared, "", 1, time.Now())
	d.requests.add(r)
	return claims{d, r}
}

// by claims the request for a worker, as the delivery of message seq, and returns the verdict and its delay.
func (c claims) by(worker string, seq int) string {
	refusal := c.Claim(subjects.Claim{ID: c.r.wire.ID, Attempt: uint64(seq), Worker: worker, Name: worker,
		Ack: fmt.Sprintf("$JS.ACK.PULLEY_REQ_STANDARD.m=shared.1.%d.1.0.0", seq)})
	if refusal == nil {
		return "granted"
	}
	if refusal.DelayMS > 0 {
		return fmt.Sprint(refusal.Verdict, " ", refusal.DelayMS, " ms")
	}
	return string(refusal.Verdict)
}

// fails fails the attempt of a worker, after which the request waits again.
func (c claims) fails(class subjects.FailClass) {
	c.r.fail(c.r.current(), class, false)
	c.r.retry(false)
	c.r.target.Load().queue.requeue(subjects.Shared)
}

func TestOneClaimIsGranted(t *testing.T) {
	c := newClaims()
	c.fleet.onHeartbeat(beatOf("a", subjects.Ready, 4, 0, "m"), time.Now())
	if got := c.by("a", 1); got != "granted" {
		t.Errorf("the first claim: %s", got)
	}
	if got := c.by("b", 1); got != "elsewhere" {
		t.Errorf("another claim while an attempt runs: %s", got)
	}
	if q := c.r.target.Load().queue; q.waiting != 0 || q.lanes[subjects.Shared].published != 0 {
		t.Errorf("%d wait, %d published, after the claim", q.waiting, q.lanes[subjects.Shared].published)
	}
	if seq, waits := c.r.waiting(); seq != 1 || waits {
		t.Errorf("sequence %d, waits %t: the claim says which message it is", seq, waits)
	}
	c.r.end()
	if got := c.by("b", 1); got != "gone" {
		t.Errorf("a claim after the end: %s", got)
	}
	c.requests.remove(c.r)
	if got := c.by("b", 1); got != "gone" {
		t.Errorf("a claim of an unknown request: %s", got)
	}
}

// A worker that failed a request gets it again only if there is no other.
func TestClaimOfAWorkerThatFailed(t *testing.T) {
	for about, c := range map[string]struct {
		other *subjects.Heartbeat
		want  string
	}{
		"another is free":             {beatOf("b", subjects.Ready, 4, 0, "m"), "not-you"},
		"another is busy":             {beatOf("b", subjects.Ready, 4, 4, "m"), "not-you 100 ms"},
		"another drains":              {beatOf("b", subjects.Draining, 4, 0, "m"), "granted"},
		"another serves another pool": {beatOf("b", subjects.Ready, 4, 0, "n"), "granted"},
		"there is no other":           {beatOf("a", subjects.Ready, 4, 0, "m"), "granted"},
	} {
		for _, class := range []subjects.FailClass{subjects.FailEngine, subjects.FailRefused, subjects.FailDraining} {
			cl := newClaims()
			cl.fleet.onHeartbeat(beatOf("a", subjects.Ready, 4, 0, "m"), time.Now())
			cl.fleet.onHeartbeat(c.other, time.Now())
			cl.by("a", 1)
			cl.fails(class)
			if got := cl.by("a", 1); got != c.want {
				t.Errorf("%s, after %s: %s, want %s", about, class, got, c.want)
			}
		}
	}
}

// What a request left behind in another queue, and what an operator has cancelled, is not granted.
func TestClaimOfWhatIsNotWanted(t *testing.T) {
	c := newClaims()
	c.by("a", 5)
	c.fails(subjects.FailEngine)
	p := newPublisher(new(bus))
	if left, moves := p.leaveBehind(c.r, true); !moves || left != (leftover{"PULLEY_REQ_STANDARD", 5}) {
		t.Fatalf("left %+v, moves %t", left, moves)
	}
	for i, want := range []string{"gone", "gone", "granted"} {
		if got := c.by("b", 4+i); got != want {
			t.Errorf("delivery of message %d: %s, want %s", 4+i, got, want)
		}
	}
	if _, moves := p.leaveBehind(c.r, true); moves {
		t.Error("a request moves that a worker has claimed")
	}
	c.r.retry(false)
	if !c.r.cancelWaiting(errors.New("purged")) {
		t.Error("a waiting request cannot be cancelled")
	}
	if got := c.by("b", 7); got != "gone" {
		t.Errorf("a claim of a cancelled request: %s", got)
	}
}

// A gap in the messages, too many bytes, a list without the attempt and a worker that is gone fail the attempt, once.
func TestAttemptFails(t *testing.T) {
	data := func(n int) []subjects.Frame {
		return []subjects.Frame{{Kind: subjects.KindData, Data: make([]byte, n)}}
	}
	now := time.Now()
	for about, c := range map[string]struct {
		happens func(r *request)
		reason  string
		crashed bool
	}{
		"a gap":          {func(r *request) { r.onFrames(subjects.Prefix{Attempt: 1, Seq: 2}, data(1)) }, "frames lost between 0 and 2", false},
		"too many bytes": {func(r *request) { r.onFrames(subjects.Prefix{Attempt: 1, Seq: 1}, data(maxBuffered+1)) }, "exceeded its flow-control window", false},
		"unlisted":       {func(r *request) { r.checkListed(now.Add(listDeadline+time.Second), false) }, "lost the request", false},
		"lost at the end": {func(r *request) {
			r.onListed(subjects.AliveAttempt{Attempt: 1, Sent: 3}, now)
			r.onListed(subjects.AliveAttempt{Attempt: 1, Sent: 3}, now.Add(lostAfter+1))
		}, "frames lost after 0", false},
		"worker gone": {func(r *request) { r.onWorkerGone("a", "worker a left") }, "worker a left", true},
	} {
		cl := newClaims()
		cl.by("a", 1)
		c.happens(cl.r)
		c.happens(cl.r)
		cl.r.onWorkerGone("a", "again")
		cl.r.onFrames(subjects.Prefix{Attempt: 1, Seq: 1}, data(1))
		events := cl.r.take()
		if len(events) != 1 || events[0].Fail == nil || !strings.Contains(events[0].Fail.Reason, c.reason) || events[0].crashed != c.crashed {
			t.Errorf("%s: %+v", about, events)
		}
	}
	cl := newClaims()
	cl.by("a", 1)
	cl.r.checkListed(now.Add(time.Hour), true) // the gateway was stopped
	cl.r.onListed(subjects.AliveAttempt{Attempt: 1, Sent: 1}, now.Add(time.Hour))
	cl.r.onListed(subjects.AliveAttempt{Attempt: 1, Sent: 1}, now.Add(time.Hour+lostAfter)) // the link sends it again
	cl.r.onFrames(subjects.Prefix{Attempt: 2, Seq: 1}, data(1))
	cl.r.onWorkerGone("b", "worker b left")
	if events := cl.r.take(); len(events) != 0 {
		t.Errorf("nothing concerns the attempt, and %+v came of it", events)
	}
}
