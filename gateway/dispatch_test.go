package gateway

import (
	"errors"
	"fmt"
	"log/slog"
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
	d := &dispatcher{bus: &bus{log: slog.New(slog.DiscardHandler)}, requests: newRequests(), fleet: newFleet(), exchange: new(exchange), metrics: newMetrics("g", "dev", Labels{})}
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
	c.r.retry(0, time.Now())
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

// The gateway publishes the acknowledgement where a claim says. A worker must not have it publish elsewhere.
func TestClaimNamesItsDelivery(t *testing.T) {
	for _, ack := range []string{
		"", "pulley.wk.victim.drain", "$KV.PULLEY_POLICY.policy", "$JS.ACK.", "$JS.ACK.PULLEY_REQ_STANDARD.m=shared", "$JS.API.STREAM.DELETE.PULLEY_REQ_STANDARD",
		"$JS.ACK.PULLEY_REQ_BATCH.m=shared.1.1.1.0.0", "$JS.ACK.PULLEY_DEAD.m=shared.1.1.1.0.0", "$JS.ACK.>", "$JS.ACK.PULLEY_REQ_STANDARD.m=shared.x.1.1.0.0",
		"x$JS.ACK.PULLEY_REQ_STANDARD.m=shared.1.1.1.0.0",
	} {
		c := newClaims()
		refusal := c.Claim(subjects.Claim{ID: c.r.wire.ID, Attempt: 1, Worker: "a", Name: "a", Ack: ack})
		if refusal == nil || refusal.Verdict != subjects.Gone || c.r.current() != nil {
			t.Errorf("%q: %+v, attempt %+v", ack, refusal, c.r.current())
		}
		if got := c.by("b", 1); got != "granted" {
			t.Errorf("%q: the next claim: %s", ack, got)
		}
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
	p := newPublisher(new(bus), nil)
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
	c.r.retry(0, time.Now())
	if !c.r.cancelWaiting(errors.New("purged")) {
		t.Error("a waiting request cannot be cancelled")
	}
	if got := c.by("b", 7); got != "gone" {
		t.Errorf("a claim of a cancelled request: %s", got)
	}
}

// An attempt's frames, list of attempts and body are those of the worker that was granted it. A claim is of a delivery of the
// request's own message.
func TestClaimOfAnotherDelivery(t *testing.T) {
	for about, c := range map[string]struct {
		ack  string
		want string
	}{
		"its message":             {"$JS.ACK.PULLEY_REQ_STANDARD.m=shared.1.7.1.0.0", "granted"},
		"with domain and account": {"$JS.ACK.d.ACCOUNT.PULLEY_REQ_STANDARD.m=shared.1.7.1.0.0.x", "granted"},
		"another message":         {"$JS.ACK.PULLEY_REQ_STANDARD.m=shared.1.8.1.0.0", "gone"},
		"another tier":            {"$JS.ACK.PULLEY_REQ_PRIORITY.m=shared.1.7.1.0.0", "gone"},
		"another pool":            {"$JS.ACK.PULLEY_REQ_STANDARD.n=shared.1.7.1.0.0", "gone"},
		"another lane":            {"$JS.ACK.PULLEY_REQ_STANDARD.m=a.1.7.1.0.0", "gone"},
		"a bucket":                {"$JS.ACK.KV_PULLEY_POLICY.m=shared.1.7.1.0.0", "gone"},
		"an order to a worker":    {"pulley.wk.victim.drain", "gone"},
		"a key":                   {"$KV.PULLEY_KEYS.key.x", "gone"},
		"an API of the broker":    {"$JS.API.STREAM.DELETE.PULLEY_DEAD", "gone"},
		"a second line":           {"$JS.ACK.PULLEY_REQ_STANDARD.m=shared.1.7.1.0.0\r\nPUB x 0\r\n", "gone"},
		"a wildcard":              {"$JS.ACK.PULLEY_REQ_STANDARD.m=shared.1.7.1.0.>", "gone"},
		"nothing":                 {"", "gone"},
	} {
		cl := newClaims()
		cl.r.message.seq = 7
		refusal := cl.Claim(subjects.Claim{ID: cl.r.wire.ID, Attempt: 1, Worker: "a", Name: "a", Ack: c.ack})
		got := "granted"
		if refusal != nil {
			got = string(refusal.Verdict)
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", about, got, c.want)
		}
		if a := cl.r.current(); (a != nil) != (c.want == "granted") {
			t.Errorf("%s: attempt %+v", about, a)
		}
	}
}

func TestOnlyItsWorkerSpeaksForAnAttempt(t *testing.T) {
	cl := newClaims()
	cl.r.body = []byte("the prompt")
	if got := cl.r.pieceFor("a", 0); got != nil {
		t.Errorf("before the claim its body is %q", got)
	}
	cl.by("a", 1)
	now := time.Now()
	frames := []byte("d\x00\x00\x00\x02hi")
	for _, worker := range []string{"b", "", "a.0"} {
		cl.r.onMessage(worker, subjects.Prefix{Attempt: 1, Seq: 1}, frames)
		if _, wanted := cl.r.onListed(worker, subjects.AliveAttempt{Attempt: 1, Sent: 1}, now); wanted {
			t.Errorf("worker %q lists the attempt of another", worker)
		}
		if got := cl.r.pieceFor(worker, 0); worker != "" && got != nil {
			t.Errorf("worker %q gets the body: %q", worker, got)
		}
	}
	if events := cl.r.take(); len(events) != 0 {
		t.Errorf("frames of others count: %+v", events)
	}
	cl.r.onMessage("a", subjects.Prefix{Attempt: 1, Seq: 1}, frames)
	if events := cl.r.take(); len(events) != 1 || string(events[0].Data) != "hi" {
		t.Errorf("events %+v", events)
	}
	if got := cl.r.pieceFor("a", 4); string(got) != "prompt" {
		t.Errorf("the body from 4 on is %q", got)
	}
}

// A worker may claim a request if heartbeats say that it is there and serves the pool, or one that spills over to it.
func TestWhoMayClaim(t *testing.T) {
	start := time.Now()
	now := start.Add(time.Minute)
	spill := []policy.Spill{{Pool: "other"}}
	for about, c := range map[string]struct {
		beat  *subjects.Heartbeat
		spill []policy.Spill
		want  bool
	}{
		"ready":                    {beatOf("w", subjects.Ready, 4, 0, "m"), nil, true},
		"of several pools":         {beatOf("w", subjects.Ready, 4, 0, "n", "m"), nil, true},
		"draining since":           {beatOf("w", subjects.Draining, 4, 0, "m"), nil, true},
		"fenced since":             {beatOf("w", subjects.Fenced, 4, 0, "m"), nil, true},
		"helps out":                {beatOf("w", subjects.Ready, 4, 0, "other"), spill, true},
		"of another pool":          {beatOf("w", subjects.Ready, 4, 0, "other"), nil, false},
		"of a third pool":          {beatOf("w", subjects.Ready, 4, 0, "third"), spill, false},
		"of none":                  {beatOf("w", subjects.Ready, 4, 0), nil, false},
		"never heard of":           {nil, nil, false},
		"only another is known":    {beatOf("v", subjects.Ready, 4, 0, "m"), nil, false},
		"another start of it only": {beatOf("w.1", subjects.Ready, 4, 0, "m"), nil, false},
	} {
		f := newFleet()
		f.onConnected(start)
		if c.beat != nil {
			f.onHeartbeat(c.beat, now)
		}
		if got := f.mayClaim("w", "m", c.spill, now); got != c.want {
			t.Errorf("%s: %t, want %t", about, got, c.want)
		}
	}
	f := newFleet()
	f.onConnected(start)
	if !f.mayClaim("w", "m", nil, start.Add(subjects.HeartbeatEvery)) {
		t.Error("a gateway that has just started refuses the workers whose heartbeats it has not received yet")
	}
	f.onHeartbeat(beatOf("w", subjects.Ready, 4, 0, "m"), now)
	stalled := now.Add(10 * time.Second) // the gateway's connection stalled, and heartbeats have yet to be handled
	if lost, _ := f.sweep(stalled, true); len(lost) != 1 || !f.mayClaim("w", "m", nil, stalled) || f.mayClaim("w", "n", nil, stalled) {
		t.Errorf("lost %+v, and its claim is not judged by its last heartbeat", lost)
	}
	if later := stalled.Add(2 * lostFor); true {
		f.sweep(later, true)
		if f.mayClaim("w", "m", nil, later) {
			t.Error("a worker that was lost long ago may claim")
		}
	}
	f.onHeartbeat(beatOf("w", subjects.Ready, 4, 0, "m"), now)
	f.onLastHeartbeat(beatOf("w", subjects.Left, 4, 0, "m"), now)
	if f.mayClaim("w", "m", nil, now) {
		t.Error("a worker that has left may claim")
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
			r.onListed("a", subjects.AliveAttempt{Attempt: 1, Sent: 3}, now)
			r.onListed("a", subjects.AliveAttempt{Attempt: 1, Sent: 3}, now.Add(lostAfter+1))
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
	cl.r.onListed("a", subjects.AliveAttempt{Attempt: 1, Sent: 1}, now.Add(time.Hour))
	cl.r.onListed("a", subjects.AliveAttempt{Attempt: 1, Sent: 1}, now.Add(time.Hour+lostAfter)) // the link sends it again
	cl.r.onFrames(subjects.Prefix{Attempt: 2, Seq: 1}, data(1))
	cl.r.onWorkerGone("b", "worker b left")
	if events := cl.r.take(); len(events) != 0 {
		t.Errorf("nothing concerns the attempt, and %+v came of it", events)
	}
}
