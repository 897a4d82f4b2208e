package worker

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// lane is one queue that the worker bids on.
type lane struct {
	number  int // in the subjects of its bids; never used again
	pool    *pool
	tier    int    // index of Worker.tiers
	home    string // the id of the worker whose home lane it is; empty for the shared one
	away    bool   // that is another worker
	retired bool   // it is no lane any more; it stays while it has bids
	subject string
	inboxes [bidKinds]string // but for the number of the bid

	open    []bid     // the cheapest first, the oldest first within a price
	late    int       // bids whose answer is overdue
	lateAt  time.Time // when the last of them was found
	waiting uint64
	heard   time.Time // when waiting was told
	held    int       // requests that gateways hold back until there is room
	notTill time.Time // no bids before
	last    time.Time // bid
	bids    int       // so far
	most    int       // of them that parkLocked may park
	turn    uint64    // when it was last dealt a slot
	served  int       // deliveries since the last tick
	rate    float64   // deliveries per tick, of late
}

type bid struct {
	number  int // how many the lane has had with it
	rung    int
	kind    bidKind
	ceiling int // slots that may be taken when a dealt one is answered
	expires time.Time

	doubtful bool // whether it is open: see takeOut
}

// queueName is where a delivery comes from.
type queueName struct{ stream, consumer string }

// shut says that there are to be no bids on the lane now.
func (l *lane) shut(now time.Time) bool {
	return l.pool.paused || l.pool.by.swap.shut || l.retired || now.Before(l.notTill)
}

// backlogged says whether requests are known to wait here.
func (l *lane) backlogged(now time.Time) bool {
	return l.held > 0 || l.waiting > 0 && now.Sub(l.heard) < backlogHolds
}

// Which of several bids was answered is a guess: a delivery does not tell, and
// the queue may not have had the cheapest yet when it was sent. What must hold is
// the number of bids, or it would be off for as long as requests keep coming:
// each bid ends with one answer, and each answer takes out one. A bid whose answer
// is overdue was most likely taken for another that was answered, so the next
// answer is that one's, and takes out none. But it may be lost, and then that
// next answer was of a bid that now stays in the list by mistake: if it becomes
// overdue too, it is not waited for again.

// answered takes out the open bid that a delivery answers: the queue serves the
// cheapest first, and the oldest within a price.
func (l *lane) answered() bid {
	if len(l.open) == 0 {
		l.late = max(l.late-1, 0)
		return bid{}
	}
	b := l.open[0]
	l.takeOut(0)
	return b
}

// ended takes out a bid that ended without a request: the one that is due first.
func (l *lane) ended() {
	if len(l.open) == 0 {
		l.late = max(l.late-1, 0)
		return
	}
	l.takeOut(l.dueFirst())
}

func (l *lane) dueFirst() int {
	first := 0
	for i, b := range l.open {
		if b.expires.Before(l.open[first].expires) {
			first = i
		}
	}
	return first
}

// takeOut takes out an answered bid, unless the answer is one that was overdue.
func (l *lane) takeOut(i int) {
	if l.late > 0 {
		l.late--
		for i < len(l.open)-1 && l.open[i].doubtful {
			i++
		}
		l.open[i].doubtful = true
		return
	}
	l.open = slices.Delete(l.open, i, i+1)
}

// findLate lets bids make room whose answer is overdue. It may be that of
// another bid that comes yet; after a while it is known to be lost, say because
// somebody deleted the queue's consumer.
func (l *lane) findLate(now time.Time) {
	l.open = slices.DeleteFunc(l.open, func(b bid) bool {
		overdue := now.Sub(b.expires) > answerLate
		if overdue && !b.doubtful {
			l.late++
			l.lateAt = now
		}
		return overdue
	})
	if now.Sub(l.lateAt) > bidExpires+answerLate {
		l.late = 0
	}
}

// goneTo hears that there was no consumer when a bid came, by what was told of its
// number: the broker has none of those up to it. Those sent later may have found one,
// and each of them that has not is heard of too.
func (l *lane) goneTo(number int) {
	later := (l.bids%bidNumbers - number + bidNumbers) % bidNumbers
	l.open = slices.DeleteFunc(l.open, func(b bid) bool { return b.number <= l.bids-later })
	for len(l.open) > later { // which ones are open is a guess
		i := l.dueFirst()
		l.open = slices.Delete(l.open, i, i+1)
	}
	l.late = 0
}

// noBids forgets all bids: the broker has none of them any more.
func (l *lane) noBids() { l.open, l.late = l.open[:0], 0 }

// pool is what the worker knows of one pool that it bids on. Guarded by
// Worker.mu.
type pool struct {
	name    string
	model   string // as the engine calls it
	by      *pool  // whose measurements price it: itself, or, for one that only spills over to here, a pool that is served
	penalty int    // rungs, of a spill

	// As the policy says.
	balance policy.Balance
	paused  bool
	homing  bool // it has home lanes
	staying bool // which nobody but their worker bids on

	ref   subjects.PoolReference // as a gateway last published it
	heard map[string]reference   // by gateway
	homes []string               // all of theirs, sorted

	swap    modelSwap
	prefill policy.Fit
	itl     policy.Fit
	mean    policy.Mean
	fit     *policy.Curve // as of fitted
	fitted  time.Time
}

// reference is what one gateway last said of a pool.
type reference struct {
	subjects.PoolReference
	at time.Time
}

// referenceHolds is how long a gateway's word is believed that home lanes exist.
const referenceHolds = 3*subjects.ReferenceEvery + subjects.ReferenceEvery/2

// hear takes a gateway's reference and says whether the lanes to bid on may be
// others now.
func (p *pool) hear(gateway string, r subjects.PoolReference, now time.Time) (changed bool) {
	changed = len(p.heard) == 0
	p.ref = r
	if p.heard == nil {
		p.heard = make(map[string]reference)
	}
	p.heard[gateway] = reference{r, now}
	var homes []string
	for gw, r := range p.heard {
		if now.Sub(r.at) > referenceHolds {
			delete(p.heard, gw)
			continue
		}
		homes = append(homes, r.HomeLanes...)
	}
	slices.Sort(homes)
	homes = slices.Compact(homes)
	changed = changed || !slices.Equal(homes, p.homes)
	p.homes = homes
	return changed
}

// held is how many requests of a tier all gateways hold back.
func (p *pool) held(tier string) int {
	n := 0
	for _, r := range p.heard {
		n += r.Held[tier]
	}
	return n
}

// served is a pool that the engine's model makes the worker a part of.
type served struct{ pool, model string }

// serve makes the worker serve these pools and no others.
func (w *Worker) serve(pools []served) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(pools, w.serves) {
		w.serves = pools
		w.arrangeLocked()
		w.hearLoadedLocked(w.room.tells, time.Now())
	}
}

// arrangeLocked works out anew which lanes there are to bid on, from what the
// engine serves, the policy and the references. What goes on being a lane keeps
// its bids; what their bids still bring to others is handed back.
func (w *Worker) arrangeLocked() {
	w.arrangeTiersLocked()
	was := w.pools
	w.pools = make(map[string]*pool)
	var order []*pool
	add := func(name string) *pool {
		p := was[name]
		if p == nil {
			p = &pool{name: name}
		}
		rules := w.policy.Pools[name]
		p.balance, p.paused = w.policy.BalanceOf(name), rules.Paused
		p.homing, p.staying = w.policy.AffinityOf(name) != policy.AffinityOff, rules.StickFor > 0
		w.pools[name] = p
		order = append(order, p)
		return p
	}
	for _, s := range w.serves {
		p := add(s.pool)
		p.by, p.model, p.penalty = p, s.model, 0
	}
	own := len(order)
	for _, name := range slices.Sorted(maps.Keys(w.policy.Pools)) {
		if w.pools[name] != nil {
			continue
		}
		for _, s := range w.policy.Pools[name].Spill {
			if by := w.pools[s.Pool]; by != nil && by.by == by {
				p := add(name)
				p.by, p.model, p.penalty = by, by.model, s.Penalty
				break
			}
		}
	}

	lanes, away := make([]*lane, 0, len(w.lanes)), make([]*lane, 0, len(w.away))
	byQueue := make(map[queueName]*lane, len(w.byQueue))
	for i, p := range order {
		if i >= own && len(p.heard) == 0 { // nobody may ever have served it
			continue
		}
		_, home := slices.BinarySearch(p.homes, w.id)
		for t := range w.tiers {
			lanes = append(lanes, w.laneLocked(p, t, "", byQueue))
			if home && p.homing && i < own {
				lanes = append(lanes, w.laneLocked(p, t, w.id, byQueue))
			}
		}
		if !p.homing || p.staying || i >= own {
			continue
		}
		for _, home := range policy.Away(w.id, p.homes) {
			for t := range w.tiers {
				away = append(away, w.laneLocked(p, t, home, byQueue))
			}
		}
	}
	for queue, l := range w.byQueue {
		if l.retired = byQueue[queue] == nil; l.retired && len(l.open)+l.late > 0 {
			byQueue[queue] = l
		}
	}
	w.lanes, w.away, w.byQueue = lanes, away, byQueue
	w.numberLocked()
}

// numberLocked makes the lanes known by their numbers.
func (w *Worker) numberLocked() {
	clear(w.byNumber)
	for _, l := range w.byQueue {
		w.byNumber[l.number] = l
	}
}

// forgetRetiredLocked forgets lanes that are none any more, when their last bid
// has ended.
func (w *Worker) forgetRetiredLocked(now time.Time) {
	n := len(w.byQueue)
	maps.DeleteFunc(w.byQueue, func(_ queueName, l *lane) bool {
		if !l.retired {
			return false
		}
		l.findLate(now)
		return len(l.open)+l.late == 0
	})
	if len(w.byQueue) < n {
		w.numberLocked()
	}
}

// arrangeTiersLocked takes the tiers from the policy.
func (w *Worker) arrangeTiersLocked() {
	was := w.tiers
	w.tiers = make([]tier, len(w.policy.Tiers))
	for i, t := range w.policy.Tiers {
		w.tiers[i] = tier{Tier: t}
		for j := range was {
			if was[j].Name == t.Name {
				w.tiers[i].seen, w.tiers[i].load = was[j].seen, was[j].load
			}
		}
	}
	w.ceilLocked()
	if !slices.EqualFunc(was, w.tiers, func(a, b tier) bool { return a.Name == b.Name }) {
		w.wheel = policy.Wheel{}
		w.shares = make([]int, len(w.tiers))
	}
}

// laneLocked is a lane of a pool and a tier, the one that there was if there was
// one.
func (w *Worker) laneLocked(p *pool, tier int, home string, byQueue map[queueName]*lane) *lane {
	name := home
	if home == "" {
		name = subjects.Shared
	}
	t := w.tiers[tier].Name
	queue := queueName{subjects.ReqStream(t), subjects.ReqConsumer(p.name, name)}
	l := w.byQueue[queue]
	if l == nil {
		w.numbers++
		l = &lane{number: w.numbers, home: home, away: home != "" && home != w.id, subject: subjects.BidSubject(t, p.name, name)}
		for kind := range l.inboxes {
			l.inboxes[kind] = fmt.Sprintf("%s.%d.%d.", subjects.WorkerBids(w.id), l.number, kind)
		}
	}
	l.pool, l.tier = p, tier
	byQueue[queue] = l
	return l
}

// servedLocked are the pools that the worker is a part of.
func (w *Worker) servedLocked() []*pool {
	pools := make([]*pool, 0, len(w.serves))
	for _, s := range w.serves {
		pools = append(pools, w.pools[s.pool])
	}
	return pools
}
