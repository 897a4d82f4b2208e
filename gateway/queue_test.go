package gateway

import (
	"fmt"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// enqueued lets n requests of a tenant join a queue, and returns the tickets of those that are held.
func enqueued(q *queue, lane, tenant string, n int, now time.Time) (held []*ticket) {
	for range n {
		q.join(now)
		if t := q.enqueue(lane, tenant, 100, now); t != nil {
			held = append(held, t)
		}
	}
	return held
}

func granted(tickets ...*ticket) (n int) {
	for _, t := range tickets {
		select {
		case <-t.granted:
			n++
		default:
		}
	}
	return n
}

// The broker gets as many requests as there are free slots, and the next one when a worker claims.
func TestQueueHoldsWhatTheBrokerNeedNotHave(t *testing.T) {
	q, now := new(queue), noon
	q.resize(4, 2, 1, now)
	held := enqueued(q, subjects.Shared, "a", 5, now)
	if len(held) != 3 || q.heldCount() != 3 {
		t.Fatalf("%d of 5 requests held with 2 free slots, want 3", len(held))
	}
	q.claimed(subjects.Shared, 0, now)
	if granted(held...) != 0 {
		t.Error("a ticket was granted while one request is in the broker for the one slot that is left")
	}
	q.claimed(subjects.Shared, 0, now)
	if granted(held[0]) != 1 || granted(held[1:]...) != 0 {
		t.Error("a full pool keeps one request in the broker: the first ticket is to be granted, and no other")
	}
	q.resize(4, 3, 1, now)
	if granted(held...) != 3 || q.heldCount() != 0 {
		t.Errorf("%d tickets granted with 3 free slots, want 3", granted(held...))
	}
}

// A home lane has a window of its own: it does not delay the shared lane, nor does that delay it.
func TestQueueLanesDoNotDelayEachOther(t *testing.T) {
	q, now := new(queue), noon
	q.resize(1, 1, 1, now)
	home := enqueued(q, "w-1", "a", homeWindow+2, now)
	if len(home) != 2 {
		t.Fatalf("%d held on a home lane, want 2", len(home))
	}
	if held := enqueued(q, subjects.Shared, "a", 1, now); held != nil {
		t.Error("a full home lane holds back a request on the shared lane")
	}
	q.claimed("w-1", 0, now)
	if granted(home...) != 1 {
		t.Error("a claim on a home lane grants the next ticket there")
	}
	for range homeWindow {
		q.withdraw("w-1")
	}
	q.withdraw("w-1")
	if q.lanes["w-1"] != nil {
		t.Error("an empty home lane is kept")
	}
}

// A tenant that floods waits behind itself, not in front of others.
func TestQueueSharesAmongTenants(t *testing.T) {
	q, now := new(queue), noon
	q.resize(1, 1, 1, now)
	flood := enqueued(q, subjects.Shared, "flood", 100, now)
	quiet := enqueued(q, subjects.Shared, "quiet", 1, now)
	q.claimed(subjects.Shared, 0, now)
	q.claimed(subjects.Shared, 0, now)
	if granted(quiet...) != 1 || granted(flood...) > 1 {
		t.Errorf("after two claims: granted %d of the tenant with one request and %d of the tenant with 100", granted(quiet...), granted(flood...))
	}
}

// Requests that are given up leave room for the next, whether they were held, just granted or published.
func TestQueueGivenUp(t *testing.T) {
	q, now := new(queue), noon
	q.resize(1, 1, 1, now)
	held := enqueued(q, subjects.Shared, "a", 4, now)
	q.cancel(held[1])
	if q.heldCount() != 2 {
		t.Errorf("%d held, want 2", q.heldCount())
	}
	q.withdraw(subjects.Shared)
	if granted(held[0]) != 1 || granted(held[2]) != 0 {
		t.Fatal("a withdrawn request makes room for the next")
	}
	q.cancel(held[0]) // granted, and given up before it was published
	if granted(held[2]) != 1 {
		t.Error("a granted ticket that is cancelled makes room for the next")
	}
	q.claimed(subjects.Shared, 0, now)
	q.requeue(subjects.Shared) // its attempt failed
	if got := q.position(q.join(now), now); got != 2 {
		t.Errorf("position %d behind a request that waits again, want 2", got)
	}
}

// ended lets a queue see requests that occupied their slots for so long, as many as it takes to know that.
func ended(q *queue, d time.Duration, now time.Time) {
	for range leastServices {
		q.observeService(d, now)
	}
}

func TestQueueAdmits(t *testing.T) {
	tier := policy.Tier{Name: "standard", MaxQueue: 20}
	now := noon
	for about, c := range map[string]struct {
		prepare func(*queue)
		c       candidate
		want    policy.Admission
	}{
		"an empty queue":               {func(q *queue) {}, candidate{left: time.Minute}, policy.Admitted},
		"as many as may wait":          {func(q *queue) { enqueued(q, subjects.Shared, "b", 20, now) }, candidate{left: time.Minute}, policy.Full},
		"as many in the broker":        {func(q *queue) { q.delivered(20, now) }, candidate{left: time.Minute}, policy.Full},
		"its tenant has its share":     {func(q *queue) { enqueued(q, subjects.Shared, "a", 6, now) }, candidate{share: 5, left: time.Minute}, policy.ShareFull},
		"another tenant has its share": {func(q *queue) { enqueued(q, subjects.Shared, "b", 6, now) }, candidate{share: 5, left: time.Minute}, policy.Admitted},
		"it would be served too late":  {func(q *queue) { ended(q, 10*time.Second, now); enqueued(q, subjects.Shared, "a", 18, now) }, candidate{slots: 1, left: time.Minute}, policy.TooLate},
		"its tenant is served before":  {func(q *queue) { ended(q, 10*time.Second, now); enqueued(q, subjects.Shared, "b", 18, now) }, candidate{slots: 1, left: time.Minute}, policy.Admitted},
		"half of those that ended waited for a model": {func(q *queue) {
			for range leastServices / 2 {
				q.observeService(time.Minute, now)
				q.observeService(time.Second, now)
			}
			enqueued(q, subjects.Shared, "a", 18, now)
		}, candidate{slots: 1, left: time.Minute}, policy.Admitted},
		"too few have ended": {func(q *queue) {
			q.observeService(10*time.Second, now)
			enqueued(q, subjects.Shared, "a", 18, now)
		}, candidate{slots: 1, left: time.Minute}, policy.Admitted},
		"no worker is there": {func(q *queue) { ended(q, 10*time.Second, now); enqueued(q, subjects.Shared, "a", 18, now) }, candidate{left: time.Second}, policy.Admitted},
		"nothing has ended for an hour": {func(q *queue) {
			ended(q, 10*time.Second, now.Add(-time.Hour))
			enqueued(q, subjects.Shared, "a", 18, now)
		}, candidate{slots: 1, left: time.Second}, policy.Admitted},
		"it would be served just in time": {func(q *queue) { ended(q, 10*time.Second, now); enqueued(q, subjects.Shared, "b", 18, now) }, candidate{slots: 3, left: time.Minute}, policy.Admitted},
	} {
		t.Run(about, func(t *testing.T) {
			q := new(queue)
			q.resize(1, 1, 1, now)
			c.prepare(q)
			c.c.tier, c.c.tenant = tier, "a"
			if c.c.share == 0 {
				c.c.share = tier.MaxQueue
			}
			before := q.waiting
			_, view, got := q.admit(c.c, now)
			if got != c.want {
				t.Errorf("got %v with %+v, want %v", got, view, c.want)
			}
			if joined := q.waiting - before; (got == policy.Admitted) != (joined == 1) {
				t.Errorf("%v, and %d joined", got, joined)
			}
		})
	}
}

// Where requests have to wait though slots are free, what counts is the rate at which workers have taken them since.
func TestQueueRefusesByTheRateOfWhatIsTaken(t *testing.T) {
	tier := policy.Tier{Name: "standard", MaxQueue: 1000}
	of := func(tenant string) candidate {
		return candidate{tier: tier, tenant: tenant, share: tier.MaxQueue, left: time.Second, slots: 100, free: 60}
	}
	flow := func(waited time.Duration, lane string) (*queue, time.Time) {
		q, now := new(queue), noon
		q.resize(100, 60, 1, now)
		ended(q, time.Second, now)
		enqueued(q, lane, "a", 1, now) // there is always one that waits
		for range 100 {                // ten a second
			now = now.Add(100 * time.Millisecond)
			enqueued(q, lane, "a", 1, now)
			q.claimed(lane, waited, now)
		}
		q.resize(100, 60, 1, now)
		return q, now
	}
	q, now := flow(500*time.Millisecond, subjects.Shared)
	if held := enqueued(q, subjects.Shared, "a", 4, now); len(held) != 4 {
		t.Errorf("%d of 4 requests are held, want all behind the one that waits: the free slots are not taken", len(held))
	}
	if _, view, a := q.admit(of("a"), now); a != policy.Admitted {
		t.Errorf("half a second of others is before it: %v with %+v", a, view)
	}
	enqueued(q, subjects.Shared, "a", 10, now)
	_, view, a := q.admit(of("a"), now)
	if a != policy.TooLate {
		t.Errorf("1.6 s of others are before it: %v with %+v", a, view)
	}
	if _, view, a := q.admit(of("b"), now); a != policy.Admitted {
		t.Errorf("another tenant, which is served before those: %v with %+v", a, view)
	}
	var last time.Duration
	for i := range 30 {
		retry := q.refuse(view, time.Second, now)
		if retry < last || retry > time.Second+time.Duration(i)*100*time.Millisecond {
			t.Errorf("refusal %d: again after %v, the one before after %v", i, retry, last)
		}
		last = retry
	}
	if last < 3*time.Second {
		t.Errorf("the last of 30 comes again after %v, at ten a second", last)
	}
	if _, view, a := q.admit(of("a"), now.Add(5*time.Second)); a != policy.Admitted {
		t.Errorf("nothing is known of the rate any more: %v with %+v", a, view)
	}
	for about, c := range map[string]struct {
		waited time.Duration
		lane   string
	}{"slots that are free are taken": {5 * time.Millisecond, subjects.Shared}, "all wait for one worker": {500 * time.Millisecond, "w-1"}} {
		q, now := flow(c.waited, c.lane)
		enqueued(q, c.lane, "a", 40, now)
		if _, view, a := q.admit(of("a"), now); a != policy.Admitted {
			t.Errorf("%s: %v with %+v", about, a, view)
		}
	}
}

// A client that keeps coming to a full queue makes one event in ten seconds.
func TestQueueFullEvents(t *testing.T) {
	q, events := new(queue), 0
	for i := range 60 {
		now := noon.Add(time.Duration(i) * 500 * time.Millisecond)
		if q.fullEventDue(now) {
			events++
		}
		if retry := q.refuse(policy.Queue{}, 0, now); retry != 5*time.Second {
			t.Fatalf("retry after %v where the rate is unknown, want 5 s", retry)
		}
	}
	if events != 3 {
		t.Errorf("%d events in 30 s, want 3", events)
	}
}

// The position of a request falls as others leave.
func TestQueuePosition(t *testing.T) {
	q, now := new(queue), noon
	q.resize(1, 1, 1, now)
	enqueued(q, subjects.Shared, "a", 3, now)
	at := q.join(now)
	q.enqueue(subjects.Shared, "a", 100, now)
	for want := 4; want > 1; want-- {
		if got := q.position(at, now); got != want {
			t.Fatalf("position %d, want %d", got, want)
		}
		q.claimed(subjects.Shared, 0, now)
	}
}

// BenchmarkQueue is a request's way through the queue when nothing is held.
func BenchmarkQueue(b *testing.B) {
	q, now := new(queue), noon
	q.resize(8, 8, 1, now)
	c := candidate{tier: policy.Tier{MaxQueue: 100}, share: 100, left: time.Minute, slots: 8}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%1000 == 0 {
			q.resize(8, 8, 1, now)
		}
		if _, _, a := q.admit(c, now); a != policy.Admitted {
			b.Fatal(fmt.Sprint(a, q.waiting))
		}
		q.enqueue(subjects.Shared, "", 100, now)
		q.delivered(0, now)
		q.claimed(subjects.Shared, 0, now)
	}
}
