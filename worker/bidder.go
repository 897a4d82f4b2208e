package worker

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// activeFor is how long a tier counts as active after a request of it began here.
	activeFor = time.Minute

	// loadHolds is how long after its last request here the load of a tier counts.
	// A slow worker gets requests rarely, namely when the fast ones are full.
	loadHolds = 10 * time.Minute

	// starvesAgain is the time between two bids for a tier that starves.
	starvesAgain = time.Second

	// homeTouch is the time without a bid after which a home lane is touched, so that the broker keeps its consumer.
	homeTouch = 45 * time.Second

	// mostBounces is how often a request is handed back because the price has risen
	// since its bid. Each time costs 0.05 ms.
	mostBounces = 2

	// gateSlack is the shortest time until the plan for a prefill gate that is about
	// to open. An engine that takes no time for prompts opens it very often.
	gateSlack = 5 * time.Millisecond

	retryBid  = 250 * time.Millisecond // after an answer that means "not now"
	standBack = 25 * time.Millisecond  // after handing a request back for another worker
	bidTick   = 100 * time.Millisecond
	awayAgain = 10 * time.Millisecond // between plans for the home lanes of other workers, while slots become free
)

// bidder decides what the worker bids on, at which price, and which deliveries it accepts. It owns the lanes with their
// open bids, the tiers, and what the policy and the gateways say about pools. It publishes nothing itself: see plan.
type bidder struct {
	ungated bool // fixed; see Config.Ungated

	mu sync.Mutex
	laneSet
	tiers   []tier
	total   int // load.total, load.extra and load.whole that the ceilings of the tiers were computed for
	extra   int
	whole   bool
	wheel   policy.Wheel
	shares  []int        // of the tiers that the wheel chooses from
	turns   uint64       // of the wheel
	awayAt  time.Time    // when all home lanes of other workers were last planned for
	gateAt  time.Time    // when the prefill gate opens by time alone, as last planned
	lost    bool         // the broker may have lost the open bids: the next plan starts without any
	ticked  bool         // the next plan touches home lanes, and bids on those of other workers
	planned []plannedBid // by the last plan
	ages    ages
	atHome  int // follow-ups taken beyond load.free since another request was taken
}

// tier is a service class as the bidder sees it.
type tier struct {
	policy.Tier
	ceiling int       // requests in flight up to which it may bid
	leaves  int       // what it leaves free for the tiers above it
	seen    time.Time // when a request of it last began here
	tried   time.Time // when it was last dealt a slot because it starved
	load    tierLoad

	// As of the last survey.
	below   bool // a tier above it is active
	backlog int  // number of its lanes with waiting requests
}

// tierLoad is the mean of a tier's requests in flight on this worker since it was
// last idle, over the last minute at most. The zero value is an idle tier.
type tierLoad struct {
	mean    float64
	samples float64
}

func (l *tierLoad) add(n int) {
	l.samples = min(l.samples+1, float64(activeFor/bidTick))
	l.mean += (float64(n) - l.mean) / l.samples
}

// load is what bids depend on beside the lanes and the tiers. It comes from the other owners: see Worker.load.
type load struct {
	open     bool // the worker accepts new requests
	inFlight int
	free     int  // requests that may start now
	behind   int  // the same behind those that wait in the engine
	total    int  // requests that may be in flight now
	extra    int  // of these: beyond what the engine runs at once, so that no reserve is made of them
	whole    bool // the tiers below a reserve may fill it for now: see policy.Parallel.Whole
	slots    int  // requests that may be in flight while none waits in the engine
	prefills prefills
	models   map[string]modelState // by pool; nil: every model is loaded
	shut     map[string]bool       // pools that accept nothing now because their requests fail here; nil: none
	doubted  map[string]doubt      // pools for which the engine is suspect: bids are few, and at the highest price; nil: none

	// The price is divided by these.
	weight  float64 // set by an operator; 1 if not
	assumed float64 // used instead of weight while nothing is measured: set by an operator, else by the bandwidth of the GPUs
	speed   float64 // below 1 if a GPU is throttled or the KV cache is nearly full
}

// modelState is the state of a model of an engine that loads models on demand, as far as bids depend on it.
type modelState struct {
	blocked bool          // no requests for it are accepted now
	cold    bool          // a request for it would start a load
	load    time.Duration // expected time of a load
	evicts  bool          // a load would evict another model
	next    bool          // it is to be loaded next
	spare   bool          // a load would push out nothing that is in use
	loading time.Time     // since when it is being loaded; zero: it is not
}

type plannedBid struct {
	lane   *lane
	number int
	kind   bidKind
	rung   int
}

// reply is the subject on which the broker answers the bid.
func (p *plannedBid) reply() string {
	return p.lane.inboxes[p.kind] + strconv.Itoa(p.number%bidNumbers)
}

func newBidder(worker string, ungated bool) *bidder {
	b := &bidder{ungated: ungated, laneSet: laneSet{
		worker: worker, policy: policy.Default(),
		pools: make(map[string]*pool), byQueue: make(map[queueName]*lane), byNumber: make(map[int]*lane),
	}}
	b.arrangeLocked()
	return b
}

func (b *bidder) follow(p *policy.Policy) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.policy = p
	b.arrangeLocked()
}

func (b *bidder) serving() []servedPool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.serves
}

// serve sets the pools that the worker serves, and the curves that price them.
func (b *bidder) serve(pools []servedPool, curves []*atomic.Pointer[policy.Curve]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serves = pools
	b.arrangeLocked()
	for i, s := range pools {
		b.pools[s.pool].curve = curves[i]
	}
}

// onLengths takes in how long a request each served pool takes here. The lanes change with it.
func (b *bidder) onLengths(pools []subjects.PoolStatus) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed := false
	for i := range pools {
		if p := b.pools[pools[i].Pool]; p != nil && p.length != pools[i].Length {
			p.length, changed = pools[i].Length, true
		}
	}
	if changed {
		b.arrangeLocked()
	}
}

// compare adds to a heartbeat how the worker differs from what is usual in its pools.
func (b *bidder) compare(h *subjects.Heartbeat, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range h.Pools {
		s := &h.Pools[i]
		if p := b.pools[s.Pool]; p != nil {
			s.Notes = p.peers.Notes(h.Peer(s), p.ref.Usual, now)
		}
	}
}

func (b *bidder) onReference(ref *subjects.Reference, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed := false
	for name, p := range b.pools {
		if r, ok := ref.Pools[name]; ok {
			changed = p.onReference(ref.Gateway, r, now) || changed
		}
	}
	if changed {
		b.arrangeLocked()
	}
	for _, l := range b.byQueue {
		if _, ok := ref.Pools[l.pool.name]; !ok || l.retired {
			continue
		}
		l.restsTill = time.Time{} // its queues exist now
		if l.home == "" && l.long == 0 {
			l.held = l.pool.held(b.tiers[l.tier].Name)
		}
		if !l.away {
			l.stands, l.starves = l.pool.stands(b.tiers[l.tier].Name, l.owner, now)
		}
	}
}

// onReconnect makes the next plan place all bids again.
func (b *bidder) onReconnect() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lost = true
}

// tick updates what changes with time alone: overdue answers, the rates of the lanes, and the loads of the tiers, whose
// requests in flight are given by name. It is called every bidTick, before a plan.
func (b *bidder) tick(inFlight map[string]int, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ticked = true
	for _, l := range b.lanes {
		l.rate, l.served = (l.rate+float64(l.served))/2, 0
		l.findLate(now)
	}
	for _, l := range b.away {
		l.findLate(now)
	}
	if len(b.byQueue) > len(b.lanes)+len(b.away) {
		b.forgetRetired(now)
	}
	for i := range b.tiers {
		t := &b.tiers[i]
		n := inFlight[t.Name]
		if n == 0 && now.Sub(t.seen) > loadHolds {
			t.load = tierLoad{}
			continue
		}
		t.load.add(n)
	}
	b.ceilLocked()
}

// plan returns the bids that the worker should place now, and records them as open. They must be published in this
// order. The slice is valid until the next plan. gate is when to plan again because the prefill gate opens by time
// alone; it is zero if that is not so, or if the last plan has said the same.
//
// If several tiers have a backlog, the free slots are dealt to them by their shares. Otherwise every lane gets bids,
// and the free slots may be bid for once more on each lane.
func (b *bidder) plan(ld load, now time.Time) (bids []plannedBid, gate time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.planned = b.planned[:0]
	if b.lost {
		b.lost = false
		for _, l := range b.byQueue {
			l.noBids()
		}
	}
	b.useLocked(&ld)
	ticked := b.ticked
	b.ticked = false
	if ticked {
		for _, l := range b.lanes {
			if (l.home != "" || l.long > 0) && now.Sub(l.last) > homeTouch {
				b.placeLocked(l, bid{rung: policy.Rungs - 1, kind: touch}, now)
			}
		}
	}
	if ld.free > 0 && ld.open {
		first, contended := b.surveyLocked(&ld, now)
		b.feedLocked(&ld, now)
		if contended {
			b.dealLocked(first, &ld, now)
		} else {
			b.parkLocked(&ld, now)
		}
		if lowest := &b.tiers[len(b.tiers)-1]; lowest.below && !ld.prefills.until.IsZero() && !ld.prefills.until.Equal(b.gateAt) {
			b.gateAt = ld.prefills.until
			gate = b.gateAt
		}
	}
	if ld.free <= 0 {
		b.parkAtHomeLocked(&ld, now)
	}
	wasFull := ld.open && ld.free == 1 && now.Sub(b.awayAt) > awayAgain
	if ticked || wasFull { // no bids for them were placed while the worker was full
		b.awayAt = now
	}
	for _, l := range b.away {
		if ticked || wasFull || l.again {
			l.again = false
			b.parkAwayLocked(l, &ld, now)
		}
	}
	return b.planned, gate
}

// unsent takes back bids that could not be published. Their lanes rest for a moment.
func (b *bidder) unsent(bids []plannedBid, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range slices.Backward(bids) {
		p.lane.unsent(p.number, now)
	}
}

// onStatus handles the end of a bid that brought no request. which identifies the bid by its lane, kind and number, as
// in the subject of the answer. refused is the subject of the lane if the broker did not accept the bid. again says
// that the caller should plan again.
func (b *bidder) onStatus(which, code, description string, now time.Time) (refused string, again bool) {
	var names [3]int
	for i, name := range strings.SplitN(which, ".", len(names)) {
		names[i], _ = strconv.Atoi(name) // lanes count from 1
	}
	number, kind, nth := names[0], bidKind(names[1]), names[2]
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.byNumber[number]
	if l == nil {
		return "", false
	}
	switch code {
	case "404", "408": // expired
		l.ended()
		if kind == dealt { // there was no backlog
			l.waiting, l.held, l.stands, l.starves = 0, 0, 0, false
		}
	case "409":
		if strings.Contains(description, "Consumer Deleted") {
			l.noConsumer(nth)
		} else {
			l.ended()
		}
		if !strings.Contains(description, "Leadership Change") {
			l.restsTill = now.Add(retryBid)
		}
	case "503": // no such consumer: a gateway creates it after the worker's next heartbeat
		l.noConsumer(nth)
		l.restsTill = now.Add(retryBid)
	default:
		l.ended()
		l.restsTill = now.Add(retryBid)
		refused = l.subject
	}
	return refused, !l.away
}

// task is what the bidder knows about a delivered request.
type task struct {
	pool   string // the request's own
	source string // the served pool whose model answers it
	model  string // as the engine calls it
	tier   string
	rung   int           // of the bid that was answered
	waited time.Duration // in the stream
	again  bool          // it was delivered before
}

// onDelivery handles a request that answered a bid. It reports whether the worker
// should run it; if not, the caller hands it back to the queue.
func (b *bidder) onDelivery(d subjects.Delivery, ld load, now time.Time) (t task, accept bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.byQueue[queueName{d.Stream, d.Consumer}]
	if l == nil {
		return task{}, false
	}
	answered := l.answered()
	l.served++
	l.busy, l.waiting, l.waitingAt = now, d.Pending, now
	if d.Pending == 0 {
		l.stands = 0
	}
	l.starves = false
	b.useLocked(&ld)
	if !b.holdsLocked(l, answered, d.Delivered, &ld, now) {
		l.waiting++
		l.again = l.away
		return task{}, false
	}
	l.again = l.away && l.waiting > 0
	switch {
	case !l.own():
		b.atHome = 0
	case ld.free <= 0:
		b.atHome++
	}
	tr := &b.tiers[l.tier]
	tr.seen = now
	return task{waited: b.ages.of(d.Stored, now), again: d.Delivered > 1, pool: l.pool.name, source: l.pool.source.name, model: l.pool.source.model, tier: tr.Name, rung: answered.rung}, true
}

// holdsLocked reports whether the bid that a delivery answered would be placed now,
// at no higher price. It may be seconds old.
func (b *bidder) holdsLocked(l *lane, answered bid, delivered uint64, ld *load, now time.Time) bool {
	switch {
	case !ld.open || l.pool.paused || ld.models[l.pool.source.name].blocked || ld.closes(l.pool.source.name) || l.retired:
		return false
	case answered.kind == dealt:
		return ld.free > 0 && ld.inFlight < answered.ceiling
	}
	b.surveyLocked(ld, now)
	if ld.free > 0 && !b.opensLocked(l.tier, 1, ld) || ld.free <= 0 && !b.mayWaitLocked(l, ld, now) {
		return false
	}
	if l.away {
		return b.awayRungLocked(l, ld) <= answered.rung
	}
	// Requests that came by other lanes may have raised the price since the bid. A request that was handed back before
	// is accepted all the same, unless the engine is suspect, and so is one with others behind it: then every slot is needed.
	_, doubted := ld.doubted[l.pool.source.name]
	if delivered > mostBounces && !doubted || l.waiting > 0 {
		return true
	}
	if l.own() { // no other worker bids less than the penalty on it
		return b.homeRungLocked(l, ld) <= max(answered.rung, policy.HomePenalty)
	}
	return b.rungLocked(l.pool, ld.inFlight+1, 0, ld) <= answered.rung
}

// alone reports whether no other worker serves the pool of a delivery.
func (b *bidder) alone(d subjects.Delivery) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.byQueue[queueName{d.Stream, d.Consumer}]
	return l != nil && l.pool.ref.Workers == 1
}

// rest stops bids for a moment on the lane of a delivery that was handed back for another worker.
func (b *bidder) rest(d subjects.Delivery, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.byQueue[queueName{d.Stream, d.Consumer}]; l != nil {
		l.restsTill = now.Add(standBack)
	}
}

// statuses returns the served pools, each with the rung of its next bid.
func (b *bidder) statuses(ld load) []subjects.PoolStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.useLocked(&ld)
	all := make([]subjects.PoolStatus, 0, len(b.serves))
	for _, s := range b.serves {
		status := subjects.PoolStatus{Pool: s.pool, Rung: b.rungLocked(b.pools[s.pool], ld.inFlight+1, 0, &ld)}
		if s.model != s.pool {
			status.Model = s.model
		}
		all = append(all, status)
	}
	return all
}

// demand is the demand for the models of all served pools, which decides what the engine should have loaded.
type demand struct {
	tiers []policy.SwapTier
	pools map[string]policy.SwapModel // by name, with what does not depend on the engine: Elsewhere, Delay, Waits and Shortage
	open  bool                        // the worker accepts new requests

	informed map[string]bool // pools of which the gateways report how short of slots they are
}

func (b *bidder) demand(now time.Time) demand {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := demand{
		tiers: make([]policy.SwapTier, len(b.tiers)), pools: make(map[string]policy.SwapModel, len(b.serves)),
		informed: make(map[string]bool, len(b.serves)),
	}
	for i := range b.tiers {
		t := &b.tiers[i]
		d.tiers[i] = policy.SwapTier{Share: t.Share, Active: now.Sub(t.seen) < activeFor}
	}
	for _, s := range b.serves {
		p := b.pools[s.pool]
		waits := make([]time.Duration, len(b.tiers))
		for i := range b.tiers {
			if !p.paused {
				waits[i] = p.longestWait(b.tiers[i].Name, now)
			}
		}
		m := policy.SwapModel{Elsewhere: p.ref.Loaded > 0, Delay: p.later(b.worker), Waits: waits}
		if !p.paused {
			m.Shortage = p.shortage(b.worker, now)
		}
		d.informed[s.pool] = p.ref.Shortage != nil
		m.Shared = d.informed[s.pool] && p.ref.Workers > 1
		d.pools[s.pool] = m
	}
	return d
}

// useLocked updates what depends on the load.
func (b *bidder) useLocked(ld *load) {
	if ld.total != b.total || ld.extra != b.extra || ld.whole != b.whole {
		b.total, b.extra, b.whole = ld.total, ld.extra, ld.whole
		b.ceilLocked()
	}
}

func (b *bidder) ceilLocked() {
	loads := make([]float64, len(b.tiers))
	for i := range b.tiers {
		loads[i] = b.tiers[i].load.mean
	}
	for i := range b.tiers {
		ceiling := policy.Ceiling(b.policy.Tiers, loads, i, b.total-b.extra)
		b.tiers[i].leaves = b.total - b.extra - ceiling
		if b.whole || ceiling == b.total-b.extra { // nothing is in reserve above it
			ceiling = b.total
		}
		b.tiers[i].ceiling = ceiling
	}
}

// reserved returns how much of the capacity the lowest tier that had a request here of late leaves free for those above.
func (b *bidder) reserved(now time.Time) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range slices.Backward(b.tiers) {
		if t := &b.tiers[i]; now.Sub(t.seen) < activeFor {
			return max(t.leaves, 0)
		}
	}
	return 0
}

// surveyLocked finds which tiers are active and which have a backlog. It returns the
// first tier with a backlog, and whether the slots have to be dealt.
func (b *bidder) surveyLocked(ld *load, now time.Time) (first int, contended bool) {
	active := false
	for i := range b.tiers {
		t := &b.tiers[i]
		t.below, t.backlog = active && !b.ungated, 0
		active = active || now.Sub(t.seen) < activeFor
	}
	for _, l := range b.lanes {
		if l.backlogged(now) && !l.closed(ld, now) {
			b.tiers[l.tier].backlog++
		}
	}
	first, backlogs := -1, 0
	for i := range b.tiers {
		if b.tiers[i].backlog > 0 {
			backlogs++
			if first < 0 {
				first = i
			}
		}
	}
	// Below an active tier the gate lets one request through at a time, so several
	// lanes of one tier take turns as well.
	return first, backlogs > 1 || backlogs == 1 && b.tiers[first].below && b.tiers[first].backlog > 1
}

func (l *lane) closed(ld *load, now time.Time) bool {
	return l.pool.paused || ld.models[l.pool.source.name].blocked || ld.closes(l.pool.source.name) || l.retired || now.Before(l.restsTill)
}

// closes reports whether no request of a served pool may begin now, because the engine does not answer them.
func (ld *load) closes(pool string) bool {
	d, doubted := ld.doubted[pool]
	return ld.shut[pool] || doubted && ld.inFlight >= d.most
}

// opensLocked reports whether a tier may bid for the k-th next request.
func (b *bidder) opensLocked(tier, k int, ld *load) bool {
	t := &b.tiers[tier]
	if ld.prefills.holdBack(time.Duration(t.MaxWait), k-1) {
		return false
	}
	return policy.MayBid(t.ceiling, ld.inFlight+k-1, ld.prefills.n+k-1, t.below)
}

func (b *bidder) parkLocked(ld *load, now time.Time) {
	open := 0
	for _, l := range b.lanes {
		open += len(l.open)
		switch { // only one bid more than there are slots counts for each tier, that of its shared lane
		case l.own():
			open -= l.prices()
		case l.long > 0 && len(l.open) > 0:
			open--
		}
		l.most = 0
		if !l.closed(ld, now) && !b.asideLocked(l, ld, now) {
			l.most = max(l.depth(ld), 1)
		}
	}
	for k := 1; k <= bidDepth; k++ {
		var priced *pool // the lanes of a pool are in sequence and have one price
		rung, some := 0, false
		for _, l := range b.lanes {
			if k > l.most || k > 1 && open >= ld.free || !b.opensLocked(l.tier, k, ld) {
				continue
			}
			some = true
			if l.own() && k == 1 {
				b.parkOwnLocked(l, ld, now)
				continue
			}
			if l.pool != priced {
				priced, rung = l.pool, b.rungLocked(l.pool, ld.inFlight+k, k-1, ld)
			}
			// If a bid as cheap is parked already, no other is needed. Dearer ones stay parked beside it. Their number
			// limits new bids, but not the cheapest: there is at most one of those for each rung.
			if len(l.open) >= k && l.open[k-1].rung <= rung || k > 1 && len(l.open) >= 2*l.most {
				continue
			}
			b.placeLocked(l, bid{rung: rung, kind: b.kindLocked(l, ld, now)}, now)
			open++
		}
		if !some {
			return
		}
	}
}

// parkAtHomeLocked parks a bid on each of the worker's own home lanes while it bids on no other, because requests wait in the
// engine.
func (b *bidder) parkAtHomeLocked(ld *load, now time.Time) {
	if !ld.open || ld.behind <= 0 {
		return
	}
	b.surveyLocked(ld, now)
	for _, l := range b.lanes {
		if b.mayWaitLocked(l, ld, now) && !l.closed(ld, now) {
			b.parkOwnLocked(l, ld, now)
		}
	}
}

// parkOwnLocked parks a bid on an own home lane at the price of now, beside those at other prices. If one that was cheaper
// brings a request that the worker hands back, since it is dearer now, this one still comes before those of other workers.
func (b *bidder) parkOwnLocked(l *lane, ld *load, now time.Time) {
	rung := b.homeRungLocked(l, ld)
	if !slices.ContainsFunc(l.open, func(o bid) bool { return o.rung == rung }) {
		b.placeLocked(l, bid{rung: rung, kind: b.kindLocked(l, ld, now)}, now)
	}
}

func (b *bidder) homeRungLocked(l *lane, ld *load) int {
	rung := b.rungLocked(l.pool, ld.inFlight+1, 0, ld)
	if _, doubted := ld.doubted[l.pool.source.name]; doubted {
		return rung
	}
	return policy.HomeRung(rung)
}

// mayWaitLocked reports whether the worker takes a request of a lane behind those that wait in the engine.
func (b *bidder) mayWaitLocked(l *lane, ld *load, now time.Time) bool {
	t := &b.tiers[l.tier]
	if !l.own() || t.below || ld.behind <= t.leaves || !ld.prefills.known || ld.prefills.holdBack(time.Duration(t.MaxWait), 0) {
		return false
	}
	others := slices.ContainsFunc(b.lanes, func(o *lane) bool { return !o.own() && o.backlogged(now) })
	return policy.MayWaitAtHome(ld.prefills.work, b.atHome, others)
}

// dealLocked deals the free slots that the first tier with a backlog may bid for to all tiers with a backlog, by their
// shares: a slot that a lower tier left alone, for the gate or the reserve, would go to the first tier. But the report
// of a backlog may be old. So of several slots, the lower tiers keep to their own limits for all but the last.
func (b *bidder) dealLocked(first int, ld *load, now time.Time) {
	out := 0
	for _, l := range b.lanes {
		for _, bid := range l.open {
			if bid.kind == dealt {
				out++
			}
		}
	}
	for _, l := range b.lanes { // lanes without a backlog keep one bid each
		if len(l.open) == 0 && !l.backlogged(now) && !l.closed(ld, now) && !b.asideLocked(l, ld, now) && b.opensLocked(l.tier, 1, ld) {
			b.placeLocked(l, bid{rung: b.rungLocked(l.pool, ld.inFlight+1, 0, ld), kind: b.kindLocked(l, ld, now)}, now)
		}
	}
	for ; out < ld.free && b.opensLocked(first, out+1, ld); out++ {
		last := out == ld.free-1 || !b.opensLocked(first, out+2, ld)
		for i := range b.tiers {
			b.shares[i] = 0
			if b.tiers[i].backlog > 0 && (last || b.opensLocked(i, out+1, ld)) {
				b.shares[i] = b.tiers[i].Share
			}
		}
		l := b.nextOfLocked(b.wheel.Next(b.shares), ld, now)
		if l == nil {
			return
		}
		b.turns++
		l.dealtTurn = b.turns
		rung := b.rungLocked(l.pool, ld.inFlight+out+1, out, ld)
		b.placeLocked(l, bid{rung: rung, kind: dealt, ceiling: b.tiers[first].ceiling}, now)
	}
}

// feedLocked deals a slot to a lane that starves, in spite of the reserve and the gate, since the tiers above leave nothing over.
func (b *bidder) feedLocked(ld *load, now time.Time) {
	for _, l := range b.lanes {
		if !l.starves || l.closed(ld, now) {
			continue
		}
		t := &b.tiers[l.tier]
		if now.Sub(t.tried) < starvesAgain || b.opensLocked(l.tier, 1, ld) || ld.prefills.holdBack(time.Duration(t.MaxWait), 0) {
			continue
		}
		t.tried, l.starves = now, false
		b.turns++
		l.dealtTurn = b.turns
		b.placeLocked(l, bid{rung: b.rungLocked(l.pool, ld.inFlight+1, 0, ld), kind: dealt, ceiling: b.total}, now)
		return
	}
}

// nextOfLocked returns the lane of a tier that has a backlog and was dealt a slot the
// longest time ago; nil if there is none.
func (b *bidder) nextOfLocked(tier int, ld *load, now time.Time) *lane {
	var next *lane
	for _, l := range b.lanes {
		if l.tier == tier && l.backlogged(now) && !l.closed(ld, now) && (next == nil || l.dealtTurn < next.dealtTurn) {
			next = l
		}
	}
	return next
}

// parkAwayLocked parks a bid on the home lane of another worker: at a higher price, so that the other worker is served
// first. A request that the bid brings is accepted only if the price has not risen.
func (b *bidder) parkAwayLocked(l *lane, ld *load, now time.Time) {
	if !ld.open || ld.free <= 0 || l.closed(ld, now) || !b.opensLocked(l.tier, 1, ld) {
		return
	}
	if rung := b.awayRungLocked(l, ld); len(l.open) == 0 || rung < l.open[0].rung {
		kind := parked
		if l.rests(now) {
			kind = resting
		}
		b.placeLocked(l, bid{rung: rung, kind: kind}, now)
	}
}

func (b *bidder) awayRungLocked(l *lane, ld *load) int {
	return policy.AddPenalty(b.rungLocked(l.pool, ld.inFlight+1, 0, ld), policy.HomePenalty)
}

func (b *bidder) placeLocked(l *lane, placed bid, now time.Time) {
	b.planned = append(b.planned, plannedBid{l, l.add(placed, now), placed.kind, placed.rung})
}

// asideLocked reports whether the ration of a large pool leaves the lane's requests to other workers. A backlog that is known is
// everybody's, and so is everything while no gateway is heard. Under RoundRobin every worker has its turn.
func (b *bidder) asideLocked(l *lane, ld *load, now time.Time) bool {
	p := l.pool
	if p.ref.Ration == nil || p.balance == policy.RoundRobin || l.home != "" || l.long > 0 || l.backlogged(now) {
		return false
	}
	if p.aside == undecided {
		p.aside = stays
		if p.ref.Ration.Parks(b.rungLocked(p, ld.inFlight+1, 0, ld), p.draw) {
			p.aside = parks
		}
	}
	return p.aside == stays && now.Sub(p.heard) <= referenceHolds
}

// depth returns how many bids to park on the lane. All workers of its pool together stay near parkedPerLane.
func (l *lane) depth(ld *load) int {
	if l.pool.balance == policy.RoundRobin {
		return policy.RoundRobinDepth
	}
	if _, doubted := ld.doubted[l.pool.source.name]; doubted || ld.models[l.pool.source.name].cold { // the first request changes the price of the next
		return 1
	}
	need := minDepth + int(l.rate*float64(depthFor)/float64(bidTick))
	if l.home != "" || l.long > 0 { // there are many home lanes, most of them with few requests
		need--
	}
	return min(need, bidDepth, max(parkedPerLane/max(l.pool.ref.Workers, 1), 1))
}

func (b *bidder) kindLocked(l *lane, ld *load, now time.Time) bidKind {
	switch {
	case b.tiers[l.tier].below || ld.models[l.pool.source.name].cold:
		return brief
	case l.rests(now):
		return resting
	}
	return parked
}

// rungLocked returns the rung of a request that would be the n-th in flight, behind all that wait for their first token
// and more mean requests. A pool that spills over is priced by the measurements of the served pool and the mean of its
// own requests: that is what one of them costs here.
func (b *bidder) rungLocked(p *pool, n, more int, ld *load) int {
	var rung int
	if _, doubted := ld.doubted[p.source.name]; doubted {
		return policy.Rungs - 1
	}
	switch p.balance {
	case policy.RoundRobin:
	case policy.LeastLoaded:
		rung = policy.LeastLoadedRung(n, ld.slots)
	case policy.Weighted:
		rung = policy.WeightedRung(n, ld.assumed, p.ref.Slots, p.ref.Weight)
	default:
		rung = p.priceRung(n, more, ld)
	}
	if m := ld.models[p.source.name]; m.cold {
		reference := p.ref.Price
		if p.balance != policy.Price { // the rungs of the other methods are no prices
			reference = 0
		}
		rung = policy.ColdRung(rung, reference, m.load, m.evicts)
	}
	return policy.AddPenalty(rung, p.penalty)
}

func (p *pool) priceRung(n, more int, ld *load) int {
	curve, behind, weight := p.source.curve.Load(), float64(ld.prefills.n+more), ld.weight
	if curve == nil {
		weight = ld.assumed
	} else if curve.Prefill != nil && ld.prefills.known {
		if one := curve.Prefill.At(p.ref.Mean.Input); one > 0 {
			behind = ld.prefills.work/one + float64(more)
		}
	}
	return policy.PriceRung(curve, p.ref.Mean, p.ref.Price, n, behind, max(ld.slots, 1), weight*ld.speed)
}

// arrangeLocked sets the tiers and the lanes by the policy. The load of a tier that stays is kept.
func (b *bidder) arrangeLocked() {
	was := b.tiers
	b.tiers = make([]tier, len(b.policy.Tiers))
	for i, t := range b.policy.Tiers {
		b.tiers[i] = tier{Tier: t}
		for j := range was {
			if was[j].Name == t.Name {
				t, w := &b.tiers[i], &was[j]
				t.seen, t.tried, t.load = w.seen, w.tried, w.load
			}
		}
	}
	b.ceilLocked()
	if !slices.EqualFunc(was, b.tiers, func(a, b tier) bool { return a.Name == b.Name }) {
		b.wheel = policy.Wheel{}
		b.shares = make([]int, len(b.tiers))
	}
	b.arrange(b.tiers)
}

// bidLoop plans bids when time alone changes something: a pause ends, a measurement
// fades, the prefill gate opens, an answer is overdue.
func (w *Worker) bidLoop(ctx context.Context) {
	status := w.nc.StatusChanged(nats.CONNECTED)
	defer w.nc.RemoveStatusListener(status)
	tick := time.NewTicker(bidTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-status: // connected again: the broker may have lost the parked bids
			w.presence.onReconnect(time.Now())
			w.presence.beat()
			w.who.announce()
			w.links.resend(true, time.Now())
			signal(w.attempts.listing) // a cancel may be lost, and the list brings it again
			w.bidder.onReconnect()
		case <-w.plans.gate.C:
		case <-tick.C:
			w.bidder.tick(w.attempts.byTier(), time.Now())
		}
		w.bid()
	}
}

// plans says when bids are to be planned.
type plans struct {
	due  atomic.Int32 // calls of bid that no plan has answered yet
	gate *time.Timer  // fires when time alone opens the prefill gate
}

// bid plans and publishes the bids that the worker should place now. Any goroutine
// calls it after a change that bids depend on.
//
// Only one goroutine plans and publishes at a time, so that bids reach the broker in the order in which they were
// recorded. No lock is held for that: a call that comes meanwhile returns at once, and has the first one plan again.
func (w *Worker) bid() {
	if w.plans.due.Add(1) > 1 {
		return
	}
	for due := int32(1); due > 0; {
		due = w.plans.due.Load()
		w.publishBids()
		due = w.plans.due.Add(-due)
	}
}

func (w *Worker) publishBids() {
	if !w.presence.mayBid() {
		return
	}
	now := time.Now()
	ld := w.load(now)
	if ld.models != nil {
		demand := w.bidder.demand(now)
		demand.open = ld.open
		ld.models = w.capacity.chooseModels(demand, now)
	}
	bids, gate := w.bidder.plan(ld, now)
	var failed []plannedBid
	for _, p := range bids {
		if w.nc.PublishRequest(p.lane.subject, p.reply(), bidBodies[p.kind][p.rung]) != nil {
			failed = append(failed, p)
		}
	}
	if failed != nil {
		w.bidder.unsent(failed, now)
	}
	if !gate.IsZero() {
		w.plans.gate.Reset(max(gate.Sub(now), gateSlack))
	}
}

func (w *Worker) load(now time.Time) load {
	open, weight := w.presence.open(now)
	ld := w.capacity.load()
	ld.open, ld.shut = ld.open && open, w.presence.shut(now)
	ld.prefills = w.estimates.load(now)
	w.vitals.latest.Load().limit(&ld)
	ld.weight, ld.assumed = cmp.Or(weight, 1), cmp.Or(weight, ld.assumed, 1)
	return ld
}

// onBidStatus handles the broker's answer that a bid ended without a request.
func (w *Worker) onBidStatus(which string, m *nats.Msg) {
	code, description := m.Header.Get("Status"), m.Header.Get("Description")
	refused, again := w.bidder.onStatus(which, code, description, time.Now())
	if refused != "" {
		w.log.Warn("broker refused a bid", "lane", refused, "code", code, "reason", description)
	}
	if again {
		w.bid()
	}
}
