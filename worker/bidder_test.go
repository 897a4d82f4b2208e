package worker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// BenchmarkBid measures one plan of the bids, which is made at each delivery and
// each end of a request: on a worker with 32 requests in flight, in a pool of 8
// workers with a home lane each, with three tiers.
func BenchmarkBid(b *testing.B) {
	for _, homes := range []int{0, 8} {
		b.Run(fmt.Sprintf("%d home lanes/nothing to do", homes), func(b *testing.B) {
			w := busyWorker(b, homes)
			b.ReportAllocs()
			for b.Loop() {
				w.bid()
			}
		})
		b.Run(fmt.Sprintf("%d home lanes/a request comes and goes", homes), func(b *testing.B) {
			w := busyWorker(b, homes)
			b.ReportAllocs()
			out := w.nc.Stats().OutMsgs
			for b.Loop() {
				w.bidder.mu.Lock()
				w.bidder.lanes[0].answered()
				w.bidder.mu.Unlock()
				w.capacity.mu.Lock()
				w.capacity.inFlight++
				w.capacity.mu.Unlock()
				w.bid()
				w.capacity.mu.Lock()
				w.capacity.inFlight--
				w.capacity.mu.Unlock()
				w.bid()
			}
			b.ReportMetric(float64(w.nc.Stats().OutMsgs-out)/float64(b.N), "bids/op")
		})
		b.Run(fmt.Sprintf("%d home lanes/tick", homes), func(b *testing.B) {
			w := busyWorker(b, homes)
			b.ReportAllocs()
			out := w.nc.Stats().OutMsgs
			for b.Loop() {
				w.bidder.tick(w.attempts.byTier(), time.Now())
				w.bid()
			}
			b.ReportMetric(float64(w.nc.Stats().OutMsgs-out)/float64(b.N), "bids/op")
		})
	}
}

// idle is the load of a worker that has so many slots, all of them free.
func idle(slots int) load {
	return load{
		open: true, free: slots, total: slots, slots: slots,
		prefills: prefills{known: true}, weight: 1, assumed: 1, speed: 1,
	}
}

// with is the load with more requests in flight.
func (ld load) with(n int) load {
	ld.inFlight += n
	ld.free -= n
	return ld
}

// bidderOf is a bidder for one model, whose pool a gateway has reported.
func bidderOf(now time.Time, ref subjects.PoolReference) *bidder {
	b := newBidder("worker-3", false)
	e := newEstimator()
	b.serve([]servedPool{{"m", "m"}}, e.serve([]string{"m"}))
	b.onReference(&subjects.Reference{Gateway: "gw", Pools: map[string]subjects.PoolReference{"m": ref}}, now)
	return b
}

// workers are the ids of a pool's workers.
func workers(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("worker-%d", i))
	}
	return ids
}

// measured gives a pool's estimate a curve.
func (p *poolEstimate) measured(now time.Time) {
	for i := range 20 {
		p.prefill.Add(float64(100*i+10), 0.01*float64(i), now)
		p.itl.Add(float64(i+1), 0.01+0.0002*float64(i), now)
	}
	p.fitted = time.Time{}
	p.curveLocked(now)
}

// poolOf8 is what a gateway reports of a pool of 8 workers.
func poolOf8(homes int) subjects.PoolReference {
	return subjects.PoolReference{
		Price: 2.1, Mean: policy.Mean{Input: 1000, Output: 200, Samples: 100}, Workers: 8, HomeLanes: workers(homes),
	}
}

// busyBidder is that of a worker with half of its 64 slots taken and its bids
// parked.
func busyBidder(now time.Time, homes int) (*bidder, load) {
	e := newEstimator()
	b := newBidder("worker-3", false)
	b.serve([]servedPool{{"m", "m"}}, e.serve([]string{"m"}))
	e.pools["m"].measured(now)
	b.onReference(&subjects.Reference{Gateway: "gw", Pools: map[string]subjects.PoolReference{"m": poolOf8(homes)}}, now)
	ld := idle(64).with(32)
	b.plan(ld, now)
	return b, ld
}

// busyWorker is a worker like that.
func busyWorker(t testing.TB, homes int) *Worker {
	t.Helper()
	w := connected(t, Config{Slots: 64})
	w.id = "worker-3"
	w.bidder = newBidder(w.id, false)
	now := time.Now()
	w.serve([]string{"m"})
	w.presence.state = subjects.Ready
	w.bidder.onReference(&subjects.Reference{Gateway: "gw", Pools: map[string]subjects.PoolReference{"m": poolOf8(homes)}}, now)
	w.estimates.pools["m"].measured(now)
	for range 32 {
		a := newAttempt(nil, &subjects.Request{Stream: true}, task{pool: "m", source: "m", model: "m", tier: w.bidder.tiers[0].Name}, now)
		w.attempts.begin(a)
		w.begin(a)
		w.onFirstByte(a, true, now)
	}
	w.bidder.tiers[0].seen = now
	w.publishHeartbeat(now) // without one it does not bid
	w.bid()
	return w
}

// connected is a worker on a broker that has none of its queues.
func connected(t testing.TB, cfg Config) *Worker {
	t.Helper()
	br, err := broker.New(broker.Config{StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { br.Run(ctx); close(done) }() // Cleanup waits for it
	<-br.Ready()
	nc, err := nats.Connect("", nats.InProcessServer(br))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close(); stop(); <-done })
	cfg.Engine = "http://engine"
	w, err := New(cfg, nc)
	if err != nil {
		t.Fatal(err)
	}
	w.plans.gate = time.NewTimer(time.Hour)
	return w
}

// placed writes the bids of a plan: the tier, the lane, the rung and the kind of
// each.
func placed(b *bidder, bids []plannedBid) string {
	var all []string
	for _, m := range bids {
		l := m.lane
		i := slices.IndexFunc(l.open, func(b bid) bool { return b.number == m.number })
		name := l.pool.name
		if l.home != "" {
			name += "@" + l.home
		}
		all = append(all, fmt.Sprintf("%s/%s:%d%s", b.tiers[l.tier].Name, name, l.open[i].rung, []string{"", " brief", " dealt", " touch", " resting"}[l.open[i].kind]))
	}
	return strings.Join(all, ", ")
}

// deliveryOf is what an ack subject says of a delivery on a lane of pool m.
func deliveryOf(tier, lane string, pending uint64) subjects.Delivery {
	return subjects.Delivery{Stream: subjects.ReqStream(tier), Consumer: subjects.ReqConsumer("m", lane), Delivered: 1, Pending: pending}
}

// A worker with four slots takes requests and gives them back.
func TestBidderFollowsTheSlots(t *testing.T) {
	now := time.Now()
	b := bidderOf(now, subjects.PoolReference{})
	plan := func(what string, ld load, want string) {
		t.Helper()
		bids, _ := b.plan(ld, now)
		if got := placed(b, bids); got != want {
			t.Errorf("%s: placed %q, want %q", what, got, want)
		}
	}
	take := func(tier string, ld load, want bool) {
		t.Helper()
		if _, got := b.onDelivery(deliveryOf(tier, subjects.Shared, 0), ld, now); got != want {
			t.Errorf("a request of %s with %d in flight: taken %v", tier, ld.inFlight, got)
		}
	}
	free := idle(4)
	plan("idle", free, "priority/m:0, standard/m:0, batch/m:0, priority/m:2")
	plan("nothing has changed", free, "")
	take("standard", free, true)
	plan("one in flight", free.with(1), "standard/m:2")
	take("priority", free.with(1), false) // by the bid at rung 0: the price has risen
	take("priority", free.with(1), true)  // by the one at rung 2
	plan("two in flight, and batch is below active tiers", free.with(2), "priority/m:5")
	plan("the worker is paused", load{total: 4, slots: 4, free: 2, inFlight: 2}, "")
	take("standard", free.with(4), false)
	plan("full", free.with(4), "")
	plan("one has ended, and a request of standard waits", free.with(3), "standard/m:7 brief")
	plan("all have ended", free, "priority/m:0, standard/m:0 brief")
}

// A slot is dealt to the tiers that have a backlog, by their shares.
func TestBidderDealsSlotsToBacklogs(t *testing.T) {
	now := time.Now()
	held := map[string]int{"priority": 9, "standard": 9, "batch": 9}
	b := bidderOf(now, subjects.PoolReference{Held: held})
	dealtTo := make(map[string]int)
	for range 100 {
		bids, _ := b.plan(idle(100).with(99), now)
		for _, m := range bids {
			dealtTo[b.tiers[m.lane.tier].Name]++
			b.onStatus(strings.TrimPrefix(m.reply(), subjects.WorkerBids("worker-3")+"."), "503", "", now) // it is answered
			m.lane.restsTill, m.lane.held = time.Time{}, 9
		}
	}
	shares := make(map[string]int)
	sum := 0
	for _, tier := range b.tiers {
		shares[tier.Name] = tier.Share
		sum += tier.Share
	}
	for name, share := range shares {
		if got, want := dealtTo[name], 100*share/sum; got < want-1 || got > want+1 {
			t.Errorf("%s was dealt %d of 100 slots, want %d by its share of %d in %d", name, got, want, share, sum)
		}
	}
}

// A lane that starves is dealt one slot in spite of reserve and gate, each time that a gateway says so. One of which requests only
// stand is not.
func TestBidderFeedsALaneThatStarves(t *testing.T) {
	for lane, refs := range map[string]subjects.PoolReference{
		subjects.Shared: {},
		"worker-3":      {HomeLanes: []string{"worker-3"}},
	} {
		start := time.Now()
		b := bidderOf(start, refs)
		b.plan(idle(8), start)
		if _, ok := b.onDelivery(deliveryOf("standard", subjects.Shared, 0), idle(8), start); !ok { // it is active
			t.Fatal("an idle worker hands a request back")
		}
		ld := idle(8).with(7)
		ld.prefills = prefills{n: 1, known: true}
		dealtAfter := func(at time.Duration) (n int) {
			b.onReference(&subjects.Reference{Gateway: "gw", Pools: map[string]subjects.PoolReference{"m": refs}}, start.Add(at))
			for i := range time.Duration(10) {
				now := start.Add(at + i*bidTick)
				b.tick(map[string]int{"standard": 7}, now)
				bids, _ := b.plan(ld, now)
				for _, bid := range bids {
					if bid.kind != dealt {
						continue
					}
					if n++; b.tiers[bid.lane.tier].Name != "batch" {
						t.Errorf("lane %s: a slot is dealt to %s", lane, b.tiers[bid.lane.tier].Name)
					}
					if _, ok := b.onDelivery(deliveryOf("batch", lane, 0), ld, now); !ok {
						t.Errorf("lane %s: what the bid brings is handed back", lane)
					}
				}
			}
			return n
		}
		refs.Standing = map[string]map[string]int{"batch": {lane: 1}}
		if n := dealtAfter(10 * time.Second); n != 0 {
			t.Errorf("lane %s: %d slots are dealt to a request that only stands", lane, n)
		}
		refs.Starving = map[string][]string{"batch": {lane}}
		for _, at := range []time.Duration{20, 21} {
			if n := dealtAfter(at * time.Second); n != 1 {
				t.Errorf("lane %s: %d slots are dealt, want 1", lane, n)
			}
		}
	}
}

// A tier below an active one waits for the prefill gate, which time alone may
// open.
func TestBidderPlansForTheGate(t *testing.T) {
	now := time.Now()
	b := bidderOf(now, subjects.PoolReference{})
	b.plan(idle(4), now)
	if _, ok := b.onDelivery(deliveryOf("priority", subjects.Shared, 0), idle(4), now); !ok {
		t.Fatal("an idle worker hands a request back")
	}
	ld := idle(4).with(1)
	ld.prefills = prefills{n: 1, until: now.Add(300 * time.Millisecond), known: true}
	bids, gate := b.plan(ld, now)
	if got := placed(b, bids); got != "" || !gate.Equal(ld.prefills.until) {
		t.Errorf("placed %q, and the gate opens at %v", got, gate)
	}
	if _, gate := b.plan(ld, now); !gate.IsZero() {
		t.Error("the same gate is reported twice")
	}
	if _, ok := b.onDelivery(deliveryOf("standard", subjects.Shared, 0), ld, now); ok {
		t.Error("a request is taken through a closed gate")
	}
	ld.prefills = prefills{known: true}
	if bids, _ := b.plan(ld, now); !strings.Contains(placed(b, bids), "standard/m:2 brief") {
		t.Errorf("the gate is open: placed %q", placed(b, bids))
	}
}

// What an operator pauses is not bid on, and what comes by a bid from before is
// handed back.
func TestBidderOfAPausedPool(t *testing.T) {
	now := time.Now()
	b := bidderOf(now, subjects.PoolReference{})
	b.plan(idle(4), now)
	p := policy.Default()
	p.Pools = map[string]policy.Pool{"m": {Paused: true}}
	b.follow(p)
	if _, ok := b.onDelivery(deliveryOf("standard", subjects.Shared, 0), idle(4), now); ok {
		t.Error("a request of a paused pool is taken")
	}
	if bids, _ := b.plan(idle(4), now); len(bids) > 0 {
		t.Errorf("placed %q", placed(b, bids))
	}
	b.follow(policy.Default())
	if bids, _ := b.plan(idle(4), now); placed(b, bids) != "standard/m:0" { // the others are still parked
		t.Errorf("resumed, it placed %q", placed(b, bids))
	}
}

// A model that has to be loaded gets one brief bid, at the price of the load; one
// that is blocked gets none.
func TestBidderOfModelsThatAreNotLoaded(t *testing.T) {
	now := time.Now()
	b := newBidder("worker-3", false)
	names := []servedPool{{"cold", "cold"}, {"blocked", "blocked"}, {"warm", "warm"}}
	b.serve(names, newEstimator().serve([]string{"cold", "blocked", "warm"}))
	ld := idle(2)
	ld.models = map[string]modelState{
		"cold": {cold: true, load: 10 * time.Second, evicts: true}, "blocked": {blocked: true, cold: true, load: 10 * time.Second}, "warm": {},
	}
	bids, _ := b.plan(ld, now)
	want := "priority/cold:9 brief, standard/cold:9 brief, batch/cold:9 brief, priority/warm:0, standard/warm:0, batch/warm:0"
	if got := placed(b, bids); got != want {
		t.Errorf("placed %q, want %q", got, want)
	}
}

// A bid that could not be published is not open, and its lane rests.
func TestBidderTakesBackWhatWasNotSent(t *testing.T) {
	now := time.Now()
	b := bidderOf(now, subjects.PoolReference{})
	bids, _ := b.plan(idle(4), now)
	unsent := slices.Clone(bids)
	b.unsent(unsent, now)
	for _, l := range b.lanes {
		if len(l.open) != 0 || l.bids != 0 {
			t.Errorf("%s: %d open, %d counted", l.subject, len(l.open), l.bids)
		}
	}
	if bids, _ := b.plan(idle(4), now); len(bids) > 0 {
		t.Errorf("at once it placed %q again", placed(b, bids))
	}
	if bids, _ := b.plan(idle(4), now.Add(retryBid)); len(bids) != len(unsent) {
		t.Errorf("after a moment it placed %q, want %d bids", placed(b, bids), len(unsent))
	}
}

// After a new connection the broker has none of the bids from before.
func TestBidderBidsAnewAfterAReconnect(t *testing.T) {
	now := time.Now()
	b := bidderOf(now, subjects.PoolReference{})
	first, _ := b.plan(idle(4), now)
	n := len(first)
	b.onReconnect()
	if again, _ := b.plan(idle(4), now); len(again) != n {
		t.Errorf("placed %d bids, and %d after the reconnect", n, len(again))
	}
}

// Workers come and go, each with an id of its own: nothing of those that are gone
// may stay.
func TestBidderForgetsWorkersThatAreGone(t *testing.T) {
	b := newBidder("worker", false)
	b.serve([]servedPool{{"m", "m"}, {"n", "n"}}, newEstimator().serve([]string{"m", "n"}))
	now := time.Now()
	for i := range 300 {
		homes := []string{b.worker}
		for j := range 8 {
			homes = append(homes, fmt.Sprintf("worker-%d", i+j))
		}
		ref := subjects.PoolReference{Workers: 9, HomeLanes: homes}
		b.onReference(&subjects.Reference{Gateway: "gw", Pools: map[string]subjects.PoolReference{"m": ref, "n": ref}}, now)
		b.tick(nil, now)
		b.plan(idle(64), now)
	}
	for _, later := range []time.Duration{10 * time.Second, 20 * time.Second} { // their bids expire, and are not answered
		b.forgetRetired(now.Add(later))
	}
	const tiers, pools = 3, 2
	if got, want := len(b.lanes), pools*tiers*2; got != want {
		t.Errorf("%d lanes, want %d: shared and its own", got, want)
	}
	if got, want := len(b.away), pools*tiers*8; got != want {
		t.Errorf("%d home lanes of others, want %d", got, want)
	}
	if all := len(b.lanes) + len(b.away); len(b.byQueue) != all || len(b.byNumber) != all {
		t.Errorf("%d lanes by queue, %d by number, want %d", len(b.byQueue), len(b.byNumber), all)
	}
	if n := len(b.pools["m"].refs); n != 1 {
		t.Errorf("%d gateways remembered, want 1", n)
	}
}

// A bid on another's home lane was parked while the worker was idle, and lives
// on while it gets busy: what it brings then is cheaper at home.
func TestOnlyAPriceThatHoldsIsTaken(t *testing.T) {
	now := time.Now()
	b, ld := busyBidder(now, 8)
	b.tick(nil, now)
	b.plan(ld, now)
	l := b.away[0]
	if len(l.open) != 1 || l.open[0].rung < policy.HomePenalty {
		t.Fatalf("parked there: %+v", l.open)
	}
	away := l.open[0]
	if !b.holdsLocked(l, away, 1, &ld, now) {
		t.Error("nothing has changed, and it is handed back")
	}
	busier := ld.with(28)
	if b.holdsLocked(l, away, 1, &busier, now) {
		t.Error("with twice as many in flight, it is taken at the old price")
	}
	own := b.lanes[0]
	if b.holdsLocked(own, own.open[0], 1, &busier, now) {
		t.Error("on the shared lane, it is taken at the old price")
	}
	if !b.holdsLocked(own, own.open[0], mostBounces+1, &busier, now) {
		t.Error("others have handed it back, and it is handed back again")
	}
	if own.waiting = 3; !b.holdsLocked(own, own.open[0], 1, &busier, now) {
		t.Error("others wait behind it, and it is handed back")
	}
}

// While prompts wait in the engine, a worker bids on its own home lane alone, and takes what that brings.
func TestFollowUpsWaitAtHome(t *testing.T) {
	now := time.Now()
	queued := func(change func(*load)) (*bidder, load) {
		b, ld := busyBidder(now, 8)
		for _, l := range b.byQueue {
			l.noBids()
		}
		b.tiers[1].seen = now
		ld.free, ld.total, ld.behind = 0, ld.inFlight, 32
		ld.prefills = prefills{n: 4, work: 3, known: true}
		change(&ld)
		return b, ld
	}
	for what, change := range map[string]func(*load){
		"":                          func(*load) {},
		"no slot is left":           func(ld *load) { ld.behind = 0 },
		"the prompts take too long": func(ld *load) { ld.prefills.work = 40 },
		"their time is not known":   func(ld *load) { ld.prefills.known = false },
		"nothing may start":         func(ld *load) { ld.open = false },
	} {
		b, ld := queued(change)
		bids, _ := b.plan(ld, now)
		for _, p := range bids {
			if !p.lane.own() || what != "" {
				t.Errorf("%s: %s", what, placed(b, bids))
			}
		}
		if _, accept := b.onDelivery(deliveryOf("standard", "worker-3", 0), ld, now); (what == "") != accept {
			t.Errorf("%s: accept %v", what, accept)
		}
		if _, accept := b.onDelivery(deliveryOf("standard", subjects.Shared, 0), ld, now); accept {
			t.Errorf("%s: a request of the shared lane is taken", what)
		}
	}
	b, ld := queued(func(*load) {})
	if _, accept := b.onDelivery(deliveryOf("batch", "worker-3", 0), ld, now); accept {
		t.Error("a request below an active tier is taken")
	}
	for n := range 20 {
		shared := b.byQueue[queueName{subjects.ReqStream("standard"), subjects.ReqConsumer("m", subjects.Shared)}]
		shared.held = 1
		b.plan(ld, now)
		if _, accept := b.onDelivery(deliveryOf("standard", "worker-3", 0), ld, now); accept != (n < 8) {
			t.Errorf("with others that wait, follow-up %d: accept %v", n, accept)
		}
	}
}

// A worker leaves requests that may not wait for long in the queue while its engine has more prompts to read than that: it
// neither bids for them nor takes what older bids bring. Other tiers are not concerned.
func TestBidderHoldsBack(t *testing.T) {
	now := time.Now()
	for what, c := range map[string]struct {
		maxWait  time.Duration
		prefills prefills
		holds    bool
	}{
		"any wait is allowed":        {0, prefills{n: 8, work: 20, known: true}, false},
		"the prompts are read soon":  {2 * time.Second, prefills{n: 8, work: 1.5, known: true}, false},
		"they take too long":         {2 * time.Second, prefills{n: 8, work: 2.5, known: true}, true},
		"their time is not known":    {2 * time.Second, prefills{n: 8, work: 2.5}, false},
		"no prompt waits any longer": {2 * time.Second, prefills{known: true}, false},
	} {
		b, ld := busyBidder(now, 8)
		for _, l := range b.byQueue {
			l.noBids()
		}
		for i := range b.tiers {
			if b.tiers[i].Name == "standard" {
				b.tiers[i].MaxWait = policy.Duration(c.maxWait)
			}
		}
		ld.prefills = c.prefills
		bids, _ := b.plan(ld, now)
		bid := map[string]bool{}
		for _, p := range bids {
			bid[b.tiers[p.lane.tier].Name] = true
		}
		if bid["standard"] == c.holds || !bid["priority"] {
			t.Errorf("%s: bids %s", what, placed(b, bids))
		}
		for _, lane := range []string{subjects.Shared, "worker-3"} { // the second is its own
			if _, accept := b.onDelivery(deliveryOf("standard", lane, 3), ld, now); accept == c.holds {
				t.Errorf("%s: a delivery on lane %s is accepted: %v", what, lane, accept)
			}
		}
	}
}

// A worker whose price has risen bids on its own home lane at the price of now, beside the cheaper bids that it has there. What
// these bring it takes nevertheless, as long as no other worker can be cheaper.
func TestOwnHomeLaneHasABidAtThePriceOfNow(t *testing.T) {
	now := time.Now()
	b, ld := busyBidder(now, 8)
	i := slices.IndexFunc(b.lanes, func(l *lane) bool { return l.own() && b.tiers[l.tier].Name == "standard" })
	home := b.lanes[i]
	was := home.open[0].rung
	for n := range 28 {
		b.plan(ld.with(n), now)
	}
	busier := ld.with(28)
	price := b.homeRungLocked(home, &busier)
	if price <= was || !slices.ContainsFunc(home.open, func(o bid) bool { return o.rung == price }) {
		t.Errorf("the price rose from %d to %d, and the bids are %+v", was, price, home.open)
	}
	for _, rung := range []int{0, price - 1, price} {
		if got, want := b.holdsLocked(home, bid{rung: rung}, 1, &busier, now), price <= max(rung, policy.HomePenalty); got != want {
			t.Errorf("a bid of rung %d at a price of %d: accept %v", rung, price, got)
		}
	}
}

// However many goroutines have bids published, they reach the broker in the order
// in which they were recorded.
func TestBidsArePublishedInTheirOrder(t *testing.T) {
	w := busyWorker(t, 0)
	type placed struct{ lane, number int }
	var mu sync.Mutex
	var seen []placed
	sub, err := w.nc.Subscribe("$JS.API.CONSUMER.MSG.NEXT.>", func(m *nats.Msg) {
		names := strings.Split(m.Reply, ".")
		lane, _ := strconv.Atoi(names[len(names)-3])
		number, _ := strconv.Atoi(names[len(names)-1])
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, placed{lane, number})
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				w.bidder.mu.Lock()
				w.bidder.lanes[rand.IntN(len(w.bidder.lanes))].answered()
				w.bidder.mu.Unlock()
				w.bid()
			}
		})
	}
	wg.Wait()
	if w.plans.due.Load() != 0 {
		t.Fatalf("%d plans are due", w.plans.due.Load())
	}
	want := make(map[int]int)
	for _, l := range w.bidder.byQueue {
		want[l.number] = l.bids
	}
	w.nc.Flush()
	end := time.Now().Add(10 * time.Second)
	last := make(map[int]int)
	for n := 0; time.Now().Before(end); {
		mu.Lock()
		for ; n < len(seen); n++ {
			p := seen[n]
			if before, ok := last[p.lane]; ok && p.number != (before+1)%bidNumbers {
				t.Errorf("lane %d: bid %d after %d", p.lane, p.number, before)
			}
			last[p.lane] = p.number
		}
		mu.Unlock()
		whole := true
		for lane, bids := range want {
			whole = whole && last[lane] == bids%bidNumbers
		}
		if whole {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for lane, bids := range want {
		if last[lane] != bids%bidNumbers {
			t.Errorf("lane %d: the last bid has number %d, want %d", lane, last[lane], bids%bidNumbers)
		}
	}
	sub.Unsubscribe()
}

// Without a connection no bid is open.
func TestBidsWithoutAConnection(t *testing.T) {
	w := busyWorker(t, 0)
	w.bidder.onReconnect()
	w.nc.Close()
	w.bid()
	for _, l := range w.bidder.lanes {
		if len(l.open) != 0 || l.restsTill.IsZero() {
			t.Errorf("%s: %d bids are open", l.subject, len(l.open))
		}
	}
}

// While the engine is suspect for a pool, bids on it are few and at the highest price, so that others come first.
func TestBidderInDoubt(t *testing.T) {
	now := time.Now()
	b := bidderOf(now, subjects.PoolReference{Workers: 2, Price: 1})
	ld := idle(8).with(2)
	ld.doubted = map[string]doubt{"m": {"nothing comes", 4}}
	bids, _ := b.plan(ld, now)
	if len(bids) == 0 {
		t.Fatal("no bids")
	}
	perLane := make(map[*lane]int)
	for _, p := range bids {
		if perLane[p.lane]++; p.rung != policy.Rungs-1 || perLane[p.lane] > 1 {
			t.Errorf("bid %d of a lane at rung %d", perLane[p.lane], p.rung)
		}
	}
	more, _ := b.plan(ld.with(2), now)
	if len(more) > 0 {
		t.Errorf("%d bids with as many in flight as a suspect may have", len(more))
	}
	ld.doubted = nil
	if bids, _ := b.plan(ld, now); len(bids) == 0 || bids[0].rung == policy.Rungs-1 {
		t.Errorf("no longer in doubt: %+v", bids)
	}
}

// Bids on home lanes that bring nothing wait longer than others: most lanes of an idle fleet are such.
func TestBidsOnQuietHomeLanesRest(t *testing.T) {
	begun := time.Now()
	b, ld := busyBidder(begun, 8)
	kinds := func(lanes []*lane, now time.Time) map[bidKind]int {
		for _, l := range lanes {
			l.noBids()
		}
		b.tick(nil, now)
		n := make(map[bidKind]int)
		bids, _ := b.plan(ld, now)
		for _, placed := range bids {
			if slices.Contains(lanes, placed.lane) {
				n[placed.kind]++
			}
		}
		return n
	}
	var own, shared []*lane
	for _, l := range b.lanes {
		if l.home != "" {
			own = append(own, l)
		} else {
			shared = append(shared, l)
		}
	}
	kinds(b.away, begun) // the first bids there
	for _, step := range []struct {
		what  string
		after time.Duration
		lanes []*lane
		rests bool
	}{
		{"another's home lane, at first", time.Second, b.away, false},
		{"its own, at first", time.Second, own, false},
		{"another's, after a while", restAfter + time.Second, b.away, true},
		{"its own, after a while", restAfter + time.Second, own, true},
		{"the shared lane, after a while", time.Minute, shared, false},
	} {
		n := kinds(step.lanes, begun.Add(step.after))
		if rests := n[resting] > 0; rests != step.rests || n[parked] > 0 == step.rests {
			t.Errorf("%s: %v, want resting %v", step.what, n, step.rests)
		}
	}
	later := begun.Add(time.Hour)
	if _, ok := b.onDelivery(deliveryOf(b.tiers[own[0].tier].Name, own[0].home, 0), ld, later); !ok {
		t.Fatal("a delivery on the home lane is refused")
	}
	if n := kinds(own[:1], later.Add(time.Second)); n[parked] == 0 || n[resting] > 0 {
		t.Errorf("after a delivery: %v, want none that rests", n)
	}
}

// A worker of a large pool parks bids on the shared lanes only as the ration says. It decides once for each reference; home lanes
// and a backlog are not rationed.
func TestBidsAreRationed(t *testing.T) {
	none, all := &policy.Ration{Rung: 0, Part: 0}, &policy.Ration{Rung: policy.Rungs - 1, Part: 1}
	begun := time.Now()
	for name, c := range map[string]struct {
		ration  *policy.Ration
		balance policy.Balance
		held    int
		after   time.Duration // the reference
		parks   bool
	}{
		"no ration":              {nil, policy.Price, 0, 0, true},
		"all may":                {all, policy.Price, 0, 0, true},
		"others do":              {none, policy.Price, 0, 0, false},
		"requests are held":      {none, policy.Price, 3, 0, true},
		"no gateway is heard":    {none, policy.Price, 0, time.Minute, true},
		"everybody has its turn": {none, policy.RoundRobin, 0, 0, true},
	} {
		b, ld := busyBidder(begun, 8)
		b.follow(&policy.Policy{Tiers: policy.Default().Tiers, Pools: map[string]policy.Pool{"m": {Balance: c.balance}}})
		ref := poolOf8(8)
		ref.Workers, ref.Ration = 500, c.ration
		if c.held > 0 {
			ref.Held = map[string]int{b.tiers[0].Name: c.held, b.tiers[1].Name: c.held, b.tiers[2].Name: c.held}
		}
		b.onReference(&subjects.Reference{Gateway: "gw", Pools: map[string]subjects.PoolReference{"m": ref}}, begun)
		b.onReconnect() // it starts without bids
		bids, _ := b.plan(ld, begun.Add(c.after))
		shared, home := 0, 0
		for _, p := range bids {
			switch {
			case p.lane.away:
			case p.lane.home != "":
				home++
			default:
				shared++
			}
		}
		if parks := shared > 0; parks != c.parks || home == 0 && c.held == 0 {
			t.Errorf("%s: %d bids on shared lanes, %d on home lanes, want %v", name, shared, home, c.parks)
		}
	}
}

// One that parks goes on while it takes requests and becomes dearer, until the next reference.
func TestARationHoldsUntilTheNextReference(t *testing.T) {
	now := time.Now()
	b, ld := busyBidder(now, 0)
	ref := poolOf8(0)
	ref.Workers = 500
	mine := b.rungLocked(b.pools["m"], ld.inFlight+1, 0, &ld)
	ref.Ration = &policy.Ration{Rung: mine + 1} // those at its rung park
	refer := func() {
		b.onReference(&subjects.Reference{Gateway: "gw", Pools: map[string]subjects.PoolReference{"m": ref}}, now)
	}
	shared := func(ld load) int {
		b.onReconnect()
		bids, _ := b.plan(ld, now)
		return len(bids)
	}
	refer()
	if shared(ld) == 0 {
		t.Fatal("it does not park at its price")
	}
	dearer := ld.with(30)
	if b.rungLocked(b.pools["m"], dearer.inFlight+1, 0, &dearer) <= mine {
		t.Fatal("30 more requests do not make it dearer")
	}
	if shared(dearer) == 0 {
		t.Error("it has taken requests, and does not park any longer before the next reference")
	}
	refer()
	if shared(dearer) != 0 {
		t.Error("it is dearer than those that park, and parks after the next reference")
	}
}
