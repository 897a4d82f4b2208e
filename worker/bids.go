package worker

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// bidExpires is how long a bid stays parked. It is never cancelled: taking a
	// bid back races with a delivery and strands it.
	bidExpires = 8 * time.Second

	// minDepth and bidDepth bound how many bids are parked on one lane, the k-th
	// at the price of the k-th next request. As many are parked as were answered
	// in depthFor: with too few, the round trip to the broker bounds the rate at
	// which a worker is served; each one too many costs the broker a look at
	// every delivery.
	minDepth = 2
	bidDepth = 16
	depthFor = 4 * time.Millisecond

	// parkedPerLane bounds what all workers of a pool park on a lane together:
	// every parked bid costs the broker work at each delivery.
	parkedPerLane = 64

	// backlogHolds is how long the word of a backlog is believed. A bid that does
	// not wait finds out sooner.
	backlogHolds = time.Minute

	retryBid  = 250 * time.Millisecond // after an answer that says "not now"
	standBack = 25 * time.Millisecond  // after handing a request back for another worker
	bidTick   = 100 * time.Millisecond
)

// lane is one queue that the worker bids on.
type lane struct {
	number  int
	pool    *pool
	tier    int // index of Config.Tiers
	subject string
	open    []bid // the cheapest first, the oldest first within a price
	waiting uint64
	heard   time.Time // when waiting was told
	notTill time.Time // no bids before
	served  int       // deliveries since the last tick
	rate    float64   // deliveries per tick, of late
	retired bool      // the engine no longer serves the pool
}

type bid struct {
	rung    int
	expires time.Time
}

// backlogged says whether requests are known to wait here.
func (l *lane) backlogged(now time.Time) bool {
	return l.waiting > 0 && now.Sub(l.heard) < backlogHolds
}

// drop forgets the first open bid at a rung, or the first of all for rung -1.
func (l *lane) drop(rung int) {
	for i, b := range l.open {
		if rung < 0 || b.rung == rung {
			l.open = slices.Delete(l.open, i, i+1)
			return
		}
	}
}

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
		case <-tick.C:
			w.mu.Lock()
			for _, l := range w.lanes {
				l.rate, l.served = (l.rate+float64(l.served))/2, 0
			}
			w.bidLocked()
			w.mu.Unlock()
		}
	}
}

// reconnected bids anew: the broker may have lost what was parked.
func (w *Worker) reconnected() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.connected = time.Now()
	for _, l := range w.lanes {
		l.open = l.open[:0]
	}
	w.bidLocked()
}

// bidLocked parks the bids that the free slots allow. Where several tiers have
// a backlog, the slots are dealt to them by their shares, with bids that do not
// wait; else every lane gets bids, which may overlap by one for each lane.
func (w *Worker) bidLocked() {
	now := time.Now()
	if w.state == subjects.Paused && !now.Before(w.pausedTo) {
		w.setStateLocked(subjects.Ready, "")
	}
	if w.state != subjects.Ready {
		return
	}
	free := w.cfg.Slots - w.inFlight
	if free <= 0 {
		return
	}
	open, lanes := 0, 0
	shares := make([]int, len(w.cfg.Tiers))
	contended := 0
	for _, l := range w.lanes {
		// An answer that never came, say because the broker restarted.
		l.open = slices.DeleteFunc(l.open, func(b bid) bool { return now.After(b.expires.Add(2 * time.Second)) })
		open += len(l.open)
		if l.retired || now.Before(l.notTill) {
			continue
		}
		lanes++
		if l.backlogged(now) && shares[l.tier] == 0 {
			shares[l.tier] = w.cfg.Tiers[l.tier].Share
			contended++
		}
	}
	if contended > 1 {
		for _, l := range w.lanes { // the others stay open to what may come
			if !l.retired && !now.Before(l.notTill) && shares[l.tier] == 0 && len(l.open) == 0 {
				w.bidOnLocked(l, w.rungLocked(l.pool, 1, now), now, false)
			}
		}
		for ; open < free; open++ {
			l := w.nextOfLocked(w.wheel.Next(shares), now)
			if l == nil {
				return
			}
			w.bidOnLocked(l, w.rungLocked(l.pool, len(l.open)+1, now), now, true)
		}
		return
	}
	prefills := w.prefillsLocked(now)
	for k := 1; k <= bidDepth; k++ {
		var priced *pool // the lanes of a pool follow each other and cost the same
		rung := 0
		for _, l := range w.lanes {
			if l.retired || now.Before(l.notTill) || (k > 1 && (open >= free || k > l.depth())) {
				continue
			}
			if l.pool != priced {
				priced, rung = l.pool, w.rungOf(l.pool, l.pool.curve(now), w.inFlight+k, prefills+k-1)
			}
			// A bid that is as cheap is parked already; dearer ones stay beside, but
			// never keep the cheapest out: it is at most one for each rung.
			if len(l.open) >= k && l.open[k-1].rung <= rung || k > 1 && len(l.open) >= 2*l.depth() {
				continue
			}
			w.bidOnLocked(l, rung, now, false)
			open++
		}
	}
}

// depth is how many bids are parked on the lane; all workers of its pool
// together stay near parkedPerLane.
func (l *lane) depth() int {
	need := minDepth + int(l.rate*float64(depthFor)/float64(bidTick))
	return min(need, bidDepth, max(parkedPerLane/max(l.pool.ref.Workers, 1), 1))
}

// nextOfLocked is the backlogged lane of a tier with the fewest open bids.
func (w *Worker) nextOfLocked(tier int, now time.Time) *lane {
	var next *lane
	for _, l := range w.lanes {
		if l.tier == tier && !l.retired && !now.Before(l.notTill) && l.backlogged(now) &&
			(next == nil || len(l.open) < len(next.open)) {
			next = l
		}
	}
	return next
}

// rungLocked is the rung of the k-th next request of a pool.
func (w *Worker) rungLocked(p *pool, k int, now time.Time) int {
	return w.rungOf(p, p.curve(now), w.inFlight+k, w.prefillsLocked(now)+k-1)
}

// rungOf is the rung of a request that would be the n-th in flight, behind
// prefills others.
func (w *Worker) rungOf(p *pool, c *policy.Curve, n, prefills int) int {
	price, known := c.Price(p.ref.Mean, n, prefills)
	switch {
	case p.ref.Price <= 0:
		return policy.LoadRung(n, w.cfg.Slots, w.cfg.Weight)
	case !known:
		return policy.TrialRung(n, w.cfg.Slots, w.cfg.Weight)
	}
	return policy.Rung(price/w.cfg.Weight, p.ref.Price)
}

func (w *Worker) bidOnLocked(l *lane, rung int, now time.Time, noWait bool) {
	b := subjects.Bid{Batch: 1, Expires: int64(bidExpires), Group: subjects.PriorityGroup, Priority: rung}
	if noWait {
		b.Expires, b.NoWait = 0, true
	}
	body, err := json.Marshal(b)
	if err != nil {
		panic(err) // a struct of numbers always encodes
	}
	inbox := fmt.Sprintf("%s.%d.%d", subjects.WorkerBids(w.id), l.number, rung)
	if err := w.nc.PublishRequest(l.subject, inbox, body); err != nil {
		l.notTill = now.Add(retryBid)
		return
	}
	at, _ := slices.BinarySearchFunc(l.open, rung+1, func(b bid, r int) int { return b.rung - r })
	l.open = slices.Insert(l.open, at, bid{rung: rung, expires: now.Add(bidExpires)})
}

// bidStatus hears that a bid ended without a request.
func (w *Worker) bidStatus(which, code, description string) {
	num, rung, _ := strings.Cut(which, ".")
	number, err1 := strconv.Atoi(num)
	r, err2 := strconv.Atoi(rung)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err1 != nil || err2 != nil || number >= len(w.lanes) {
		return
	}
	l := w.lanes[number]
	l.drop(r)
	now := time.Now()
	switch code {
	case "408": // expired
	case "404": // nothing there for a bid that does not wait
		l.waiting = 0
	case "409":
		if !strings.Contains(description, "Leadership Change") {
			l.notTill = now.Add(retryBid)
		}
	case "503": // no such consumer: a gateway creates it when it hears of the pool
		l.notTill = now.Add(retryBid)
		l.open = l.open[:0]
	default:
		w.log.Warn("bid refused", "pool", l.pool.name, "tier", w.cfg.Tiers[l.tier].Name, "code", code, "reason", description)
		l.notTill = now.Add(retryBid)
	}
	w.bidLocked()
}

// deliver takes a request that answered a bid, or hands it back at once if
// there is no slot for it any more.
func (w *Worker) deliver(m *nats.Msg) {
	d, err := subjects.ParseAck(m.Reply)
	if err != nil {
		w.log.Warn("delivery without an ack subject", "subject", m.Subject, "err", err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.byQueue[d.Stream+" "+d.Consumer]
	if l == nil {
		w.nc.Publish(m.Reply, subjects.Nak)
		return
	}
	l.drop(-1)
	l.served++
	now := time.Now()
	l.waiting, l.heard = d.Pending, now
	if w.state != subjects.Ready || w.inFlight >= w.cfg.Slots || l.retired {
		w.nc.Publish(m.Reply, subjects.Nak)
		l.waiting++
		w.bidLocked()
		return
	}
	a := w.beginLocked(m, l, now)
	w.bidLocked()
	w.attempts.Go(func() { w.run(a) })
}

// setModels makes the worker serve these pools and no others.
func (w *Worker) setModels(models []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range models {
		if w.pools[m] != nil {
			continue
		}
		p := &pool{name: m}
		w.pools[m] = p
		for i, t := range w.cfg.Tiers {
			l := &lane{number: len(w.lanes), pool: p, tier: i, subject: subjects.BidSubject(t.Name, m, subjects.Shared)}
			w.lanes = append(w.lanes, l)
			w.byQueue[subjects.ReqStream(t.Name)+" "+subjects.ReqConsumer(m, subjects.Shared)] = l
		}
	}
	for _, l := range w.lanes {
		l.retired = !slices.Contains(models, l.pool.name)
	}
}

func (w *Worker) servedLocked() []*pool {
	var served []*pool
	for _, l := range w.lanes {
		if l.tier == 0 && !l.retired {
			served = append(served, l.pool)
		}
	}
	return served
}
