package gateway

import (
	"maps"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// Gateways together keep no more of a queue in the broker than one would, or a
// flood through many of them would be ahead of everybody. So a gateway that hears
// of a delivery and of how little is left behind it deals the next turns to
// itself and to the others, by what they tell of whom they hold back. No gateway
// is in charge, and what is told may be late or lost: then for a moment there is
// a request too many in the broker, or too few.

const (
	// peerHolds is how long a gateway's word of what it holds is believed.
	peerHolds = 5 * sweepEvery

	// stalled is after how long without a delivery, and with nothing in the broker
	// that anybody tells of, a gateway deals itself a turn.
	stalled = 3 * sweepEvery / 2

	// mostHops is how often a turn is handed on by gateways that have no use for it.
	mostHops = 2

	// mostTold bounds the tenants in a word to the others.
	mostTold = 1000
)

// peerQueue is what another gateway tells of a queue, with the turns that were
// given to it since.
type peerQueue struct {
	subjects.HeldQueue
	at    time.Time
	since time.Time // when the request came that is next there
}

// before says whether a tenant that was served so many tokens, and whose next
// request came then, is before another.
func before(served uint64, since time.Time, other uint64, otherSince time.Time) bool {
	return served < other || served == other && since.Before(otherSince)
}

// othersHold says whether another gateway holds requests back.
func (q *queue) othersHold() bool {
	for _, p := range q.peers {
		if p.Held > 0 {
			return true
		}
	}
	return false
}

// outLocked is how many requests of this gateway, and of those that tell, the
// broker has.
func (q *queue) outLocked() int {
	n := q.laneLocked(subjects.Shared).out
	for _, p := range q.peers {
		n += p.Out
	}
	return n
}

// delivered takes the depth that a delivery leaves behind, and says which
// gateways have the turns that are due by it.
func (q *queue) delivered(pending uint64, now time.Time) (turns []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.told, q.heard = int(min(pending, 1<<30)), now
	if q.gateways <= 1 {
		return nil
	}
	for q.told < max(q.short, 1) {
		gw, ok := q.nextLocked(now)
		if !ok {
			break
		}
		if gw != "" {
			turns = append(turns, gw)
		}
	}
	return turns
}

// turn is another gateway's word that a turn is due. It says who has it, if
// nobody waits here.
func (q *queue) turn(pending int, now time.Time) (gw string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.told, q.heard = pending, now
	if l := q.laneLocked(subjects.Shared); q.popLocked(l) {
		return ""
	}
	gw, _ = q.nextLocked(now)
	return gw
}

// nextLocked deals one turn to the tenant that was served the least, here ("")
// or at another gateway.
func (q *queue) nextLocked(now time.Time) (gw string, ok bool) {
	l := q.laneLocked(subjects.Shared)
	var since time.Time
	t, least, _, ok := l.here.Next()
	if ok {
		since = t.since
	}
	for id, p := range q.peers {
		if p.Held > 0 && (!ok || before(p.Next, p.since, least, since)) {
			gw, least, since, ok = id, p.Next, p.since, true
		}
	}
	switch {
	case !ok:
		return "", false
	case gw == "":
		q.popLocked(l)
	default:
		p := q.peers[gw]
		p.Held--
		p.Out++
		p.Next += p.Step
		p.since = now
		q.told++
	}
	return gw, true
}

// hear takes what another gateway tells of the queue.
func (q *queue) hear(gw string, t subjects.HeldQueue, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	fair := &q.laneLocked(subjects.Shared).here
	for tenant, tokens := range t.Served {
		fair.Charge(tenant, tokens)
	}
	fair.Raise(t.Level)
	if q.peers == nil {
		q.peers = make(map[string]*peerQueue)
	}
	q.peers[gw] = &peerQueue{HeldQueue: t, at: now, since: now.Add(-time.Duration(t.WaitsMS * float64(time.Millisecond)))}
	fair.Keep(q.othersHold())
}

// tellsLocked says whether the others need to know of this queue.
func (q *queue) tellsLocked() bool {
	return q.gateways > 1 && (q.laneLocked(subjects.Shared).here.Len() > 0 || q.othersHold())
}

// tell is what the others are told of the queue; false if there is nothing that
// they need to know.
func (q *queue) tell(now time.Time) (t subjects.HeldQueue, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for gw, p := range q.peers {
		if now.Sub(p.at) > peerHolds {
			delete(q.peers, gw)
		}
	}
	l := q.laneLocked(subjects.Shared)
	l.here.Keep(q.othersHold())
	if ok = q.tellsLocked(); !ok && !q.telling {
		clear(q.unsaid)
		return t, false
	}
	q.telling = ok
	q.said = l.here.Len() > 0
	t = subjects.HeldQueue{Held: l.here.Len(), Out: l.out, Level: l.here.Level(), Served: q.unsaid}
	if next, served, step, ok := l.here.Next(); ok {
		t.Next, t.Step, t.WaitsMS = served, step, float64(now.Sub(next.since).Microseconds())/1000
	}
	q.unsaid = nil
	return t, true
}

// news says that the others know wrongly whether requests wait here, and takes
// it that they are told now.
func (q *queue) news() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if waits := q.laneLocked(subjects.Shared).here.Len() > 0; q.gateways > 1 && waits != q.said {
		q.said = waits
		return true
	}
	return false
}

// chargeLocked notes what a tenant was served, for the others.
func (q *queue) chargeLocked(tenant string, cost int) {
	if q.gateways <= 1 {
		return
	}
	if q.unsaid == nil {
		q.unsaid = make(map[string]uint64)
	}
	if _, ok := q.unsaid[tenant]; !ok && len(q.unsaid) >= mostTold {
		return
	}
	q.unsaid[tenant] += uint64(max(cost, 1))
}

// stirLocked deals turns where no delivery will: the broker seems to have none
// of these requests.
func (q *queue) stirLocked() {
	l := q.laneLocked(subjects.Shared)
	if q.gateways <= 1 || l.here.Len() == 0 || q.outLocked() > 0 {
		return
	}
	for range max(q.window, leastWindow) {
		q.popLocked(l)
	}
}

// tellNews tells the other gateways at once that requests begin or cease to wait
// here.
func (g *Gateway) tellNews(pool, tier string, q *queue, now time.Time) {
	if q.news() {
		g.tellQueues(map[queueKey]*queue{{pool, tier}: q}, now)
	}
}

// tellQueues tells the other gateways what is held back here.
func (g *Gateway) tellQueues(queues map[queueKey]*queue, now time.Time) {
	var told []subjects.HeldQueue
	for k, q := range queues {
		if t, ok := q.tell(now); ok {
			t.Pool, t.Tier = k.pool, k.tier
			told = append(told, t)
		}
	}
	if len(told) > 0 {
		g.bus.publish(subjects.GatewayHeld(g.id), subjects.HeldReport{Gateway: g.id, Queues: told})
	}
}

// hearTold hears what the others tell.
func (g *Gateway) hearTold(m *nats.Msg) {
	var told subjects.HeldReport
	if subjects.Unmarshal(m.Data, &told) != nil || told.Gateway == g.id {
		return
	}
	g.fleet.hearPeer(m) // it lives
	now := time.Now()
	for _, t := range told.Queues {
		g.queue(t.Pool, t.Tier).hear(told.Gateway, t, now)
	}
}

// turned is told that it is a turn of this gateway's.
func (g *Gateway) turned(m *nats.Msg) {
	var t subjects.Release
	if subjects.Unmarshal(m.Data, &t) != nil {
		return
	}
	q, now := g.queue(t.Pool, t.Tier), time.Now()
	gw := q.turn(t.Pending, now)
	g.tellNews(t.Pool, t.Tier, q, now)
	if t.Hops++; gw != "" && t.Hops <= mostHops {
		g.bus.publish(subjects.GatewayRelease(gw), t)
	}
}

// depth notes a delivery's depth at its queue and passes on the turns that
// come of it.
func (g *Gateway) depth(at *place, pending uint64, now time.Time) {
	for i, gw := range at.queue.delivered(pending, now) {
		g.bus.publish(subjects.GatewayRelease(gw), subjects.Release{Pool: at.pool, Tier: at.tier.Name, Pending: int(min(pending, 1<<30)) + i})
	}
	g.tellNews(at.pool, at.tier.Name, at.queue, now)
}

// allQueues is a snapshot of the queues.
func (g *Gateway) allQueues() map[queueKey]*queue {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.queues)
}

// shortOf is how few requests in the broker are too few, for all gateways
// together.
func shortOf(slots int, service, perSecond float64) int {
	if service > 0 {
		perSecond = max(perSecond, float64(slots)/service)
	}
	return policy.Window(0, 1, perSecond)
}
