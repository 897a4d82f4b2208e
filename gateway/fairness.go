package gateway

import (
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// Several gateways together keep no more of a queue in the broker than one would: otherwise a tenant that floods several
// of them would be ahead of all others. So the gateway that learns of a delivery, and that the delivery leaves the queue
// short, decides which gateways release the next requests: itself or others, by what they report of the tenants whose
// requests they hold. No gateway is in charge, and reports may be late or lost: then the broker briefly has one
// request too many or too few.

const (
	// peerAge is how long the report of another gateway is believed.
	peerAge = 5 * sweepEvery

	// stalled is after how long without a delivery a gateway releases a request of its own, if no gateway reports one in
	// the broker.
	stalled = 3 * sweepEvery / 2

	// maxHops is how often a release is passed on by gateways that hold no request.
	maxHops = 2

	// maxReported bounds the tenants in a report.
	maxReported = 1000
)

// peerQueue is what another gateway reported of a queue, updated by the releases that it was sent since.
type peerQueue struct {
	subjects.HeldQueue
	at    time.Time
	since time.Time // when the request arrived that is next there, by this gateway's clock
}

// precedes says whether a tenant that was served so many tokens, and whose next request came at that time, comes before
// another.
func precedes(served uint64, since time.Time, other uint64, otherSince time.Time) bool {
	return served < other || served == other && since.Before(otherSince)
}

func (q *queue) othersHoldLocked() bool {
	for _, p := range q.peers {
		if p.Held > 0 {
			return true
		}
	}
	return false
}

// releaseLocked releases requests until the broker has enough: held ones of this gateway, whose tickets it grants, and
// those of the gateways that it returns.
func (q *queue) releaseLocked(now time.Time) (gateways []string) {
	for q.depth < max(q.lowWater, 1) {
		gw, ok := q.releaseNextLocked(now)
		if !ok {
			break
		}
		if gw != "" {
			gateways = append(gateways, gw)
		}
	}
	return gateways
}

// releaseNextLocked releases a request of the tenant that was served the least, here (gw is empty) or at another gateway.
func (q *queue) releaseNextLocked(now time.Time) (gw string, ok bool) {
	l := q.laneLocked(subjects.Shared)
	var since time.Time
	t, least, _, ok := l.tickets.Next()
	if ok {
		since = t.since
	}
	for id, p := range q.peers {
		if p.Held > 0 && (!ok || precedes(p.Next, p.since, least, since)) {
			gw, least, since, ok = id, p.Next, p.since, true
		}
	}
	switch {
	case !ok:
		return "", false
	case gw == "":
		q.grantNextLocked(l)
	default:
		p := q.peers[gw]
		p.Held--
		p.Out++
		p.Next += p.Step
		p.since = now
		q.depth++
	}
	return gw, true
}

// onRelease releases a request because another gateway says that one is due. It returns the gateway to pass that on to if
// none is held here.
func (q *queue) onRelease(pending int, now time.Time) (gw string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.depth, q.depthAt = pending, now
	if l := q.laneLocked(subjects.Shared); q.grantNextLocked(l) {
		return ""
	}
	gw, _ = q.releaseNextLocked(now)
	return gw
}

// unblockLocked releases requests that no delivery will release, because the broker seems to have none.
func (q *queue) unblockLocked() {
	l := q.laneLocked(subjects.Shared)
	if q.gateways <= 1 || l.tickets.Len() == 0 || q.publishedLocked() > 0 {
		return
	}
	for range max(q.window, minWindow) {
		q.grantNextLocked(l)
	}
}

// stands says that requests are held here for a delivery that does not come.
func (q *queue) stands(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.gateways > 1 && q.laneLocked(subjects.Shared).tickets.Len() > 0 && now.Sub(q.depthAt) > stalled
}

// onPending takes in how many requests the broker still has to deliver, and releases some if these are too few.
func (q *queue) onPending(pending uint64, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.depth, q.depthAt = int(min(pending, 1<<30)), now
	l := q.laneLocked(subjects.Shared)
	for q.depth < max(q.window, minWindow) && q.grantNextLocked(l) {
	}
}

// publishedLocked is how many requests of this gateway, and of those that report, the broker has.
func (q *queue) publishedLocked() int {
	n := q.laneLocked(subjects.Shared).published
	for _, p := range q.peers {
		n += p.Out
	}
	return n
}

func (q *queue) onHeld(gw string, r subjects.HeldQueue, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	fair := &q.laneLocked(subjects.Shared).tickets
	for tenant, tokens := range r.Served {
		fair.Charge(tenant, tokens)
	}
	fair.Raise(r.Level)
	if q.peers == nil {
		q.peers = make(map[string]*peerQueue)
	}
	q.peers[gw] = &peerQueue{HeldQueue: r, at: now, since: now.Add(-time.Duration(r.WaitsMS * float64(time.Millisecond)))}
	fair.Keep(q.othersHoldLocked())
}

// report returns what the other gateways have to know of the queue; false if there is nothing.
func (q *queue) report(now time.Time) (r subjects.HeldQueue, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for gw, p := range q.peers {
		if now.Sub(p.at) > peerAge {
			delete(q.peers, gw)
		}
	}
	l := q.laneLocked(subjects.Shared)
	others := q.othersHoldLocked()
	l.tickets.Keep(others)
	ok = q.gateways > 1 && (l.tickets.Len() > 0 || others)
	if !ok && !q.reporting { // the last report is sent once more when there is nothing any longer
		clear(q.unreported)
		return r, false
	}
	q.reporting = ok
	q.reportedHeld = l.tickets.Len() > 0
	r = subjects.HeldQueue{Pool: q.pool, Tier: q.tier, Held: l.tickets.Len(), Out: l.published, Level: l.tickets.Level(), Served: q.unreported}
	if next, served, step, ok := l.tickets.Next(); ok {
		r.Next, r.Step, r.WaitsMS = served, step, float64(now.Sub(next.since).Microseconds())/1000
	}
	q.unreported = nil
	return r, true
}

// heldChanged says whether what the others know is wrong: that requests are held here, or are not. It assumes that
// a report is published now.
func (q *queue) heldChanged() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.heldChangedLocked()
}

func (q *queue) heldChangedLocked() bool {
	if q.gateways <= 1 {
		return false
	}
	before := q.reportedHeld
	q.reportedHeld = q.laneLocked(subjects.Shared).tickets.Len() > 0
	return q.reportedHeld != before
}

// chargeLocked notes for the other gateways what a tenant was served.
func (q *queue) chargeLocked(tenant string, cost int) {
	if q.gateways <= 1 {
		return
	}
	if q.unreported == nil {
		q.unreported = make(map[string]uint64)
	}
	if _, ok := q.unreported[tenant]; !ok && len(q.unreported) >= maxReported {
		return
	}
	q.unreported[tenant] += uint64(max(cost, 1))
}

// lowWater is how many requests of all gateways the broker needs so that no slot waits for one.
func lowWater(slots int, service, perSecond float64) int {
	if service > 0 {
		perSecond = max(perSecond, float64(slots)/service)
	}
	return policy.Window(0, 1, perSecond)
}

// exchange carries the reports and releases between the queues of this gateway and those of the others.
type exchange struct {
	bus    *bus
	queues *queues
	fleet  *fleet
}

func (x *exchange) publish(now time.Time, queues ...*queue) {
	var reports []subjects.HeldQueue
	for _, q := range queues {
		if r, ok := q.report(now); ok {
			reports = append(reports, r)
		}
	}
	if len(reports) > 0 {
		x.bus.publish(subjects.GatewayHeld(x.bus.id), subjects.HeldReport{Gateway: x.bus.id, Queues: reports})
	}
}

// publishChange reports at once that a queue begins or ceases to hold requests.
func (x *exchange) publishChange(q *queue, now time.Time) {
	if q.heldChanged() {
		x.publish(now, q)
	}
}

// onDelivered publishes what queue.delivered has decided: releases, and a report if what is held here has changed.
func (x *exchange) onDelivered(q *queue, releases []string, pending uint64, changed bool, now time.Time) {
	for i, gw := range releases {
		x.bus.publish(subjects.GatewayRelease(gw), subjects.Release{Pool: q.pool, Tier: q.tier, Pending: int(min(pending, 1<<30)) + i})
	}
	if changed {
		x.publish(now, q)
	}
}

func (x *exchange) onHeld(m *nats.Msg) {
	var report subjects.HeldReport
	id, _ := subjects.GatewayOf(m.Subject)
	if subjects.Unmarshal(m.Data, &report) != nil || report.Gateway != id || id == x.bus.id {
		return
	}
	now := time.Now()
	x.fleet.onGateway(id, now)
	for _, r := range report.Queues {
		x.queues.get(r.Pool, r.Tier).onHeld(report.Gateway, r, now)
	}
}

// onRelease publishes a request that is held here, or passes the release on.
func (x *exchange) onRelease(m *nats.Msg) {
	var r subjects.Release
	if subjects.Unmarshal(m.Data, &r) != nil {
		return
	}
	q, now := x.queues.get(r.Pool, r.Tier), time.Now()
	gw := q.onRelease(r.Pending, now)
	x.publishChange(q, now)
	if r.Hops++; gw != "" && r.Hops <= maxHops {
		x.bus.publish(subjects.GatewayRelease(gw), r)
	}
}
