package worker

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// bidExpires is how long a bid stays parked. It is never cancelled: taking a
	// bid back races with a delivery and strands it.
	bidExpires = 8 * time.Second

	// briefExpires is that of a tier with an active one above it: what comes while
	// the gate is closed is handed back, so few such bids should be about.
	briefExpires = 2 * time.Second

	// dealtExpires is how long a slot that was dealt to a backlog waits for its
	// request: longer than a gateway takes to publish what it holds.
	dealtExpires = 20 * time.Millisecond

	// minDepth and bidDepth bound how many bids are parked on one lane, the k-th
	// at the price of the k-th next request. As many are parked as were answered
	// in depthFor: with too few, the round trip to the broker bounds the rate at
	// which a worker is served; each one too many costs the broker a look at
	// every delivery.
	minDepth = 2
	bidDepth = 16
	depthFor = 4 * time.Millisecond

	// bidNumbers is how many numbers bids have in turn: more than are open at once,
	// since a broker that replicates the consumer tells bids apart by them, and few,
	// since it remembers who listens to a subject.
	bidNumbers = 64

	// parkedPerLane bounds what all workers of a pool park on a lane together:
	// every parked bid costs the broker work at each delivery.
	parkedPerLane = 64

	// backlogHolds is how long the word of a backlog is believed. A bid that is
	// dealt to it finds out sooner.
	backlogHolds = time.Minute

	// activeFor is how long a tier counts as active after a request of it began
	// here.
	activeFor = time.Minute

	// homeTouch is after how long without a bid a home lane is touched, so that
	// the broker keeps its consumer.
	homeTouch = 45 * time.Second

	// answerLate is how long after it has expired the word of it is awaited.
	answerLate = 500 * time.Millisecond

	// mostBounces is how often a request is handed back for a bid that was too
	// cheap by then. Each time costs 0.05 ms.
	mostBounces = 2

	// gateSlack is in how long a gate is looked at that is about to open, at the
	// earliest: an engine that takes no time for prompts opens it again and again.
	gateSlack = 5 * time.Millisecond

	retryBid  = 250 * time.Millisecond // after an answer that says "not now"
	standBack = 25 * time.Millisecond  // after handing a request back for another worker
	bidTick   = 100 * time.Millisecond
	awayAgain = 10 * time.Millisecond // between looks at the lanes away from home, while slots become free
)

// bidKind is how long a bid waits, and what for.
type bidKind int

const (
	parked bidKind = iota
	brief          // parked, for a tier with an active one above it
	dealt          // a slot that a backlog has a right to
	touch          // it does not wait
	bidKinds
)

// expires is zero for a bid that does not wait.
func (k bidKind) expires() time.Duration {
	return [bidKinds]time.Duration{bidExpires, briefExpires, dealtExpires, 0}[k]
}

// bidBodies are all bids that there are.
var bidBodies = func() (bodies [bidKinds][policy.Rungs][]byte) {
	for kind := range bidKinds {
		for rung := range policy.Rungs {
			bodies[kind][rung] = subjects.MustMarshal(subjects.Bid{
				Batch: 1, Expires: int64(kind.expires()), NoWait: kind.expires() == 0,
				Group: subjects.PriorityGroup, Priority: rung,
			})
		}
	}
	return bodies
}()

// bidLoop bids when time alone changes something: a pause ends, a price fades,
// an answer got lost.
func (w *Worker) bidLoop(ctx context.Context) {
	status := w.nc.StatusChanged(nats.CONNECTED)
	defer w.nc.RemoveStatusListener(status)
	tick := time.NewTicker(bidTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-status:
			w.reconnected()
		case <-w.gateOpens.C:
			w.mu.Lock()
			w.bidLocked()
			w.mu.Unlock()
		case <-tick.C:
			w.mu.Lock()
			w.tickLocked(time.Now())
			w.mu.Unlock()
		}
	}
}

func (w *Worker) tickLocked(now time.Time) {
	for _, l := range w.lanes {
		l.rate, l.served = (l.rate+float64(l.served))/2, 0
		l.findLate(now)
		if l.home != "" && now.Sub(l.last) > homeTouch {
			w.bidOnLocked(l, bid{rung: policy.Rungs - 1, kind: touch}, now)
		}
	}
	for _, l := range w.away {
		l.findLate(now)
	}
	if len(w.byQueue) > len(w.lanes)+len(w.away) {
		w.forgetRetiredLocked(now)
	}
	w.busyLocked(now)
	w.bidLocked()
	w.bidAwayLocked(now)
}

// reconnected bids anew: the broker may have lost what was parked.
func (w *Worker) reconnected() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.connected = time.Now()
	for _, l := range w.byQueue {
		l.noBids()
	}
	w.bidLocked()
}

// takesLocked says whether the worker takes new requests at all.
func (w *Worker) takesLocked() bool {
	return w.state == subjects.Ready && !w.cordoned && w.room.fence == ""
}

// bidLocked parks the bids that the free slots allow. Where several tiers have
// a backlog, the slots are dealt to them by their shares; else every lane gets
// bids, which may overlap by one for each lane.
func (w *Worker) bidLocked() {
	now := time.Now()
	if w.state == subjects.Paused && !now.Before(w.pausedTo) {
		w.setStateLocked(subjects.Ready, "")
	}
	if w.swaps.on {
		w.swapLocked(now)
	}
	free := w.fitLocked()
	if free <= 0 || !w.takesLocked() {
		return
	}
	wait := w.prefillsLocked(now)
	if first, contended := w.lookLocked(now); contended {
		w.dealLocked(first, free, wait, now)
	} else {
		w.parkLocked(free, wait, now)
	}
	if lowest := &w.tiers[len(w.tiers)-1]; lowest.below && !wait.until.IsZero() && !wait.until.Equal(w.gateAt) {
		w.gateAt = wait.until
		w.gateOpens.Reset(max(wait.until.Sub(now), gateSlack))
	}
	if free == 1 && now.Sub(w.lookedAway) > awayAgain { // it was full: there was no looking until now
		w.bidAwayLocked(now)
	}
}

// tier is a service class as this worker sees it.
type tier struct {
	policy.Tier
	ceiling int       // slots that it may fill
	seen    time.Time // when a request of it last began here
	load    tierLoad

	// As of the last lookLocked.
	below bool // a tier above it is active
	lanes int  // that have a backlog
}

// lookLocked looks at which tiers are active and which have a backlog. It says
// whether the slots have to be dealt, and which is the first that has one.
func (w *Worker) lookLocked(now time.Time) (first int, contended bool) {
	active := false
	for i := range w.tiers {
		t := &w.tiers[i]
		t.below, t.lanes = active && !w.cfg.Ungated, 0
		active = active || now.Sub(t.seen) < activeFor
	}
	for _, l := range w.lanes {
		if l.backlogged(now) && !l.shut(now) {
			w.tiers[l.tier].lanes++
		}
	}
	first, backlogs := -1, 0
	for i := range w.tiers {
		if w.tiers[i].lanes > 0 {
			backlogs++
			if first < 0 {
				first = i
			}
		}
	}
	// The gate lets one request through at a time: the lanes take turns.
	return first, backlogs > 1 || backlogs == 1 && w.tiers[first].below && w.tiers[first].lanes > 1
}

// opensLocked says whether there may be a bid for the k-th next request, of a
// tier.
func (w *Worker) opensLocked(tier, k int, wait prefills) bool {
	t := &w.tiers[tier]
	return policy.Opens(t.ceiling, w.inFlight+k-1, wait.n+k-1, t.below)
}

// parkLocked parks bids on every lane.
func (w *Worker) parkLocked(free int, wait prefills, now time.Time) {
	open := 0
	for _, l := range w.lanes {
		open += len(l.open)
		if l.home != "" && len(l.open) > 0 {
			open-- // that of the shared lane is the one that overlaps for its tier
		}
		l.most = 0
		if !l.shut(now) {
			l.most = max(l.depth(), 1)
		}
	}
	for k := 1; k <= bidDepth; k++ {
		var priced *pool // the lanes of a pool follow each other and cost the same
		rung, some := 0, false
		for _, l := range w.lanes {
			if k > l.most || k > 1 && open >= free || !w.opensLocked(l.tier, k, wait) {
				continue
			}
			some = true
			if l.pool != priced {
				priced, rung = l.pool, w.rungOf(l.pool, w.inFlight+k, wait, k-1, now)
			}
			// A bid that is as cheap is parked already; dearer ones stay beside, but
			// never keep the cheapest out: it is at most one for each rung.
			if len(l.open) >= k && l.open[k-1].rung <= rung || k > 1 && len(l.open) >= 2*l.most {
				continue
			}
			w.bidOnLocked(l, bid{rung: rung, kind: w.kindLocked(l)}, now)
			open++
		}
		if !some {
			return
		}
	}
}

// dealLocked deals the free slots to the tiers that have a backlog. What the
// first of them may bid for is dealt to all of them by their shares: what one
// after it would leave alone, for the gate or the reserve, the first would take.
// But the word of a backlog may be old, so of several slots, the others keep to
// their own limits for all but the last.
func (w *Worker) dealLocked(first, free int, wait prefills, now time.Time) {
	out := 0
	for _, l := range w.lanes {
		for _, b := range l.open {
			if b.kind == dealt {
				out++
			}
		}
	}
	for _, l := range w.lanes { // the others stay open to what may come
		if len(l.open) == 0 && !l.backlogged(now) && !l.shut(now) && w.opensLocked(l.tier, 1, wait) {
			w.bidOnLocked(l, bid{rung: w.rungOf(l.pool, w.inFlight+1, wait, 0, now), kind: w.kindLocked(l)}, now)
		}
	}
	for ; out < free && w.opensLocked(first, out+1, wait); out++ {
		last := out == free-1 || !w.opensLocked(first, out+2, wait)
		for i := range w.tiers {
			w.shares[i] = 0
			if w.tiers[i].lanes > 0 && (last || w.opensLocked(i, out+1, wait)) {
				w.shares[i] = w.tiers[i].Share
			}
		}
		l := w.nextOfLocked(w.wheel.Next(w.shares), now)
		if l == nil { // there is no connection to bid on
			return
		}
		w.turns++
		l.turn = w.turns
		rung := w.rungOf(l.pool, w.inFlight+out+1, wait, out, now)
		w.bidOnLocked(l, bid{rung: rung, kind: dealt, ceiling: w.tiers[first].ceiling}, now)
	}
}

// nextOfLocked is the backlogged lane of a tier whose last turn is longest ago.
func (w *Worker) nextOfLocked(tier int, now time.Time) *lane {
	var next *lane
	for _, l := range w.lanes {
		if l.tier == tier && l.backlogged(now) && !l.shut(now) && (next == nil || l.turn < next.turn) {
			next = l
		}
	}
	return next
}

// bidAwayLocked parks a bid on each home lane of others: dearer, so that theirs
// are first. What it brings is taken only if the price still holds.
func (w *Worker) bidAwayLocked(now time.Time) {
	w.lookedAway = now
	if len(w.away) == 0 {
		return
	}
	wait := w.prefillsLocked(now)
	for _, l := range w.away {
		w.bidAwayOnLocked(l, wait, now)
	}
}

func (w *Worker) bidAwayOnLocked(l *lane, wait prefills, now time.Time) {
	if !w.takesLocked() || w.fitLocked() <= 0 || l.shut(now) || !w.opensLocked(l.tier, 1, wait) {
		return
	}
	if rung := w.awayRungLocked(l, wait, now); len(l.open) == 0 || rung < l.open[0].rung {
		w.bidOnLocked(l, bid{rung: rung, kind: parked}, now)
	}
}

func (w *Worker) awayRungLocked(l *lane, wait prefills, now time.Time) int {
	return policy.Dearer(w.rungOf(l.pool, w.inFlight+1, wait, 0, now), policy.AwayPenalty)
}

// depth is how many bids are parked on the lane; all workers of its pool
// together stay near parkedPerLane.
func (l *lane) depth() int {
	if l.pool.balance == policy.RoundRobin {
		return policy.RoundRobinDepth
	}
	if l.pool.by.swap.cold() { // after the first of them all is different
		return 1
	}
	need := minDepth + int(l.rate*float64(depthFor)/float64(bidTick))
	if l.home != "" { // there are many, and most have little to do
		need--
	}
	return min(need, bidDepth, max(parkedPerLane/max(l.pool.ref.Workers, 1), 1))
}

// kindLocked is how a bid that is not dealt waits on a lane.
func (w *Worker) kindLocked(l *lane) bidKind {
	if w.tiers[l.tier].below || l.pool.by.swap.cold() {
		return brief
	}
	return parked
}

// rungOf is the rung of a request that would be the n-th in flight, behind what
// waits for its first token and more mean requests. A pool that spills over to here is
// priced by what this engine was measured to do, with what its own requests are
// like: that is what one of them would cost here.
func (w *Worker) rungOf(p *pool, n int, wait prefills, more int, now time.Time) int {
	var rung int
	switch p.balance {
	case policy.RoundRobin:
	case policy.LeastLoaded:
		rung = policy.LeastLoadedRung(n, w.room.slots)
	case policy.Weighted:
		rung = policy.WeightedRung(n, w.weightLocked(), p.ref.Slots, p.ref.Weight)
	default:
		curve, behind := p.by.curve(now), float64(wait.n+more)
		if curve != nil && curve.Prefill != nil && wait.known {
			if one := curve.Prefill.At(p.ref.Mean.Input); one > 0 {
				behind = wait.work/one + float64(more)
			}
		}
		weight := cmp.Or(w.weight, 1)
		if curve == nil {
			weight = w.weightLocked()
		}
		rung = policy.PriceRung(curve, p.ref.Mean, p.ref.Price, n, behind, max(w.room.slots, 1), weight*w.speedLocked())
	}
	if p.by.swap.cold() {
		rung = w.coldRungLocked(p, rung)
	}
	return policy.Dearer(rung, p.penalty)
}

func (w *Worker) bidOnLocked(l *lane, b bid, now time.Time) {
	l.bids++
	inbox := l.inboxes[b.kind] + strconv.Itoa(l.bids%bidNumbers)
	if err := w.nc.PublishRequest(l.subject, inbox, bidBodies[b.kind][b.rung]); err != nil {
		l.bids--
		l.notTill, l.most = now.Add(retryBid), 0
		return
	}
	l.last, b.number, b.expires = now, l.bids, now.Add(b.kind.expires())
	at, _ := slices.BinarySearchFunc(l.open, b.rung+1, func(b bid, rung int) int { return cmp.Compare(b.rung, rung) })
	l.open = slices.Insert(l.open, at, b)
}

// bidStatus hears that a bid ended without a request. It is named by its lane, its
// kind and its number.
func (w *Worker) bidStatus(which, code, description string) {
	var names [3]int
	for i, name := range strings.SplitN(which, ".", len(names)) {
		names[i], _ = strconv.Atoi(name) // lanes count from 1
	}
	lane, kind, number := names[0], bidKind(names[1]), names[2]
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.byNumber[lane]
	if l == nil {
		return
	}
	now := time.Now()
	switch code {
	case "404", "408": // expired
		l.ended()
		if kind == dealt { // nothing was there
			l.waiting, l.held = 0, 0
		}
	case "409":
		if strings.Contains(description, "Consumer Deleted") {
			l.goneTo(number)
		} else {
			l.ended()
		}
		if !strings.Contains(description, "Leadership Change") {
			l.notTill = now.Add(retryBid)
		}
	case "503": // no such consumer: a gateway creates it when it hears of the pool
		l.goneTo(number)
		l.notTill = now.Add(retryBid)
	default:
		l.ended()
		w.log.Warn("bid refused", "lane", l.subject, "code", code, "reason", description)
		l.notTill = now.Add(retryBid)
	}
	if !l.away {
		w.bidLocked()
	}
}

// deliver takes a request that answered a bid, or hands it back at once if
// there is no room for it any more.
func (w *Worker) deliver(m *nats.Msg) {
	d, err := subjects.ParseAck(m.Reply)
	if err != nil {
		w.log.Warn("delivery without an ack subject", "subject", m.Subject, "err", err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.byQueue[queueName{d.Stream, d.Consumer}]
	if l == nil {
		w.nc.Publish(m.Reply, subjects.Nak)
		return
	}
	b := l.answered()
	l.served++
	now := time.Now()
	l.waiting, l.heard = d.Pending, now
	if !w.hasRoomLocked(l, b, now, d.Delivered) {
		w.nc.Publish(m.Reply, subjects.Nak)
		l.waiting++
		w.bidLocked()
		if l.away {
			w.bidAwayOnLocked(l, w.prefillsLocked(now), now)
		}
		return
	}
	a := w.beginLocked(m, l, now)
	w.bidLocked()
	if l.away && l.waiting > 0 {
		w.bidAwayOnLocked(l, w.prefillsLocked(now), now)
	}
	w.start(a)
}

// hasRoomLocked says whether a delivery finds what its bid promised: time has
// passed since.
func (w *Worker) hasRoomLocked(l *lane, b bid, now time.Time, delivered uint64) bool {
	switch {
	case !w.takesLocked() || l.pool.paused || l.pool.by.swap.shut || l.retired || w.fitLocked() <= 0:
		return false
	case b.kind == dealt:
		return w.inFlight < b.ceiling
	}
	w.lookLocked(now)
	wait := w.prefillsLocked(now)
	if !w.opensLocked(l.tier, 1, wait) {
		return false
	}
	if l.away {
		return w.awayRungLocked(l, wait, now) <= b.rung
	}
	// Bids are never taken back, and what came by another lane has made this one
	// too cheap. A request that has been handed back by others is taken, and so is
	// one with others behind it: there is no time to be choosy.
	return delivered > mostBounces || l.waiting > 0 || w.rungOf(l.pool, w.inFlight+1, wait, 0, now) <= b.rung
}
