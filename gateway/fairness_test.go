package gateway

import (
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// peers are the same queue in several gateways, which exchange reports and releases without delay or loss.
type peers struct {
	t      *testing.T
	queues map[string]*queue
	now    time.Time
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newPeers(t *testing.T, ids ...string) *peers {
	p := &peers{t: t, queues: make(map[string]*queue), now: noon}
	for _, id := range ids {
		q := &queue{pool: "m", tier: "standard"}
		q.resize(1, 0, len(ids), p.now)
		p.queues[id] = q
	}
	return p
}

// report lets every gateway report to the others.
func (p *peers) report() {
	for id, q := range p.queues {
		r, ok := q.report(p.now)
		for other, to := range p.queues {
			if ok && other != id {
				to.onHeld(id, r, p.now)
			}
		}
	}
}

// deliver is a delivery of a request of a gateway that leaves pending requests in the broker. All releases that follow
// from it are carried out; it returns how many went to each gateway.
func (p *peers) deliver(id string, pending uint64) map[string]int {
	releases := make(map[string]int)
	p.now = p.now.Add(time.Millisecond)
	p.queues[id].claimed(subjects.Shared, 0, p.now)
	gateways, _ := p.queues[id].delivered(pending, p.now)
	for i, gw := range gateways {
		for hops := 0; gw != "" && hops <= maxHops; hops++ {
			releases[gw]++
			gw = p.queues[gw].onRelease(int(pending)+i, p.now)
		}
	}
	return releases
}

// A tenant that floods one gateway does not get ahead of one that asks at another: with each delivery the tenant that was
// served the least is next, wherever its request is held.
func TestPeersReleaseTheLeastServedTenant(t *testing.T) {
	p := newPeers(t, "a", "b")
	flood := enqueued(p.queues["a"], subjects.Shared, "flood", 21, p.now)
	p.report()
	quiet := enqueued(p.queues["b"], subjects.Shared, "quiet", 10, p.now)
	p.report()
	if len(flood) != 20 || len(quiet) != 9 {
		t.Fatalf("%d and %d held: each gateway may have one request in the broker", len(flood), len(quiet))
	}
	for range 8 { // workers take one request after the other, each of the gateway whose request was released last
		id := "a"
		if p.queues["b"].lanes[subjects.Shared].published > 0 {
			id = "b"
		}
		p.deliver(id, 0)
		p.report()
	}
	f, q := granted(flood...), granted(quiet...)
	if f+q < 7 || f-q > 2 || q-f > 2 {
		t.Errorf("8 deliveries released %d of the flood and %d of the other tenant, want about as many of each", f, q)
	}
}

// While the broker has enough requests of all gateways together, no more are released.
func TestPeersKeepTheQueueShort(t *testing.T) {
	p := newPeers(t, "a", "b")
	held := append(enqueued(p.queues["a"], subjects.Shared, "a", 10, p.now), enqueued(p.queues["b"], subjects.Shared, "b", 10, p.now)...)
	p.report()
	if p.deliver("a", 5); granted(held...) != 0 {
		t.Errorf("%d released though 5 are in the broker", granted(held...))
	}
	if p.deliver("b", 0); granted(held...) != 1 {
		t.Errorf("%d released when the broker was empty, want 1", granted(held...))
	}
}

// A release that finds nothing to publish is passed on to a gateway that holds a request.
func TestPeersPassAReleaseOn(t *testing.T) {
	p := newPeers(t, "a", "b", "c")
	gone := enqueued(p.queues["b"], subjects.Shared, "b", 2, p.now)
	held := enqueued(p.queues["c"], subjects.Shared, "c", 2, p.now.Add(time.Second))
	p.report()
	p.queues["b"].cancel(gone[0]) // its client goes away before the others know
	gw := p.queues["b"].onRelease(0, p.now)
	if gw != "c" {
		t.Fatalf("the release goes on to %q, want c", gw)
	}
	if gw := p.queues["c"].onRelease(0, p.now); gw != "" || granted(held...) != 1 {
		t.Errorf("c passes the release on to %q and grants %d, want one granted", gw, granted(held...))
	}
}

// A gateway whose requests no delivery releases, because the broker has none of any gateway, releases them itself.
func TestPeersUnblockAnEmptyBroker(t *testing.T) {
	p := newPeers(t, "a", "b")
	held := enqueued(p.queues["a"], subjects.Shared, "a", 3, p.now)
	p.report()
	p.queues["a"].withdraw(subjects.Shared) // its client is gone: no delivery
	if granted(held...) != 1 {
		t.Errorf("%d granted, want 1", granted(held...))
	}
	q := p.queues["b"]
	q.onHeld("a", subjects.HeldQueue{Held: 2, Out: 1}, p.now)
	enqueued(q, subjects.Shared, "b", 1, p.now)
	waits := enqueued(q, subjects.Shared, "b", 1, p.now)
	q.withdraw(subjects.Shared)
	if granted(waits...) != 0 {
		t.Error("b releases a request though a has one in the broker")
	}
	q.onHeld("a", subjects.HeldQueue{}, p.now)
	if q.resize(1, 0, 2, p.now.Add(2*stalled)); granted(waits...) != 1 {
		t.Error("b's request stays held though nobody has one in the broker")
	}
}

// The others learn at once that requests are held, and once more when none is any longer; then the reports end.
func TestPeersReportWhatTheyHold(t *testing.T) {
	q := newPeers(t, "a", "b").queues["a"]
	if _, ok := q.report(noon); ok || q.heldChanged() {
		t.Error("a queue that holds nothing reports")
	}
	held := enqueued(q, subjects.Shared, "x", 2, noon)
	if !q.heldChanged() || q.heldChanged() {
		t.Error("that requests are held is news once")
	}
	r, ok := q.report(noon.Add(time.Second))
	if want := (subjects.HeldQueue{Pool: "m", Tier: "standard", Held: 1, Out: 1, Step: r.Step, Level: r.Level, WaitsMS: 1000}); !ok || r.Held != want.Held || r.Out != want.Out || r.WaitsMS != want.WaitsMS || r.Pool != "m" {
		t.Errorf("got %+v, want %+v", r, want)
	}
	q.cancel(held[0])
	if r, ok := q.report(noon.Add(time.Second)); !ok || r.Held != 0 {
		t.Errorf("got %+v, %t: the last report says that none is held", r, ok)
	}
	if r, ok := q.report(noon.Add(time.Second)); ok {
		t.Errorf("got %+v after the last report", r)
	}
}

// What another gateway reported is believed for peerAge.
func TestPeersAreForgotten(t *testing.T) {
	q := newPeers(t, "a", "b").queues["a"]
	q.onHeld("b", subjects.HeldQueue{Held: 5, Out: 1}, noon)
	if enqueued(q, subjects.Shared, "x", 2, noon); q.lanes[subjects.Shared].published != minWindow {
		t.Errorf("%d published while b holds requests, want %d", q.lanes[subjects.Shared].published, minWindow)
	}
	q.report(noon.Add(peerAge + time.Millisecond))
	if len(q.peers) != 0 {
		t.Errorf("%d peers after %v of silence", len(q.peers), peerAge)
	}
}
