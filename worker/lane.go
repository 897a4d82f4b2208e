package worker

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// bidExpires is how long a bid stays parked at the broker. A bid is never
	// cancelled: that would race with a delivery and strand it.
	bidExpires = 8 * time.Second

	// restExpires is the same on a home lane that brought nothing for restAfter. Most home lanes of an idle fleet are such, and
	// each worker bids on a few: it must be shorter than homeTouch, so that the broker keeps the consumers.
	restExpires = 24 * time.Second
	restAfter   = 10 * time.Second

	// briefExpires is the same for a tier below an active one. A request that arrives while the prefill gate is closed
	// is handed back, so few such bids should be parked.
	briefExpires = 2 * time.Second

	// dealtExpires is how long a bid for a slot that was dealt to a backlog waits.
	// A gateway takes less time to publish a request that it holds back.
	dealtExpires = 20 * time.Millisecond

	// minDepth and bidDepth bound how many bids are parked on one lane, the k-th at the price of the k-th next request.
	// In between, as many bids are parked as were answered in depthFor: with fewer, the round trip to the broker limits
	// the rate at which the worker gets requests; each one too many costs the broker time at every delivery.
	minDepth = 2
	bidDepth = 16
	depthFor = 4 * time.Millisecond

	// bidNumbers is how many numbers the bids of a lane use, one after the other and then again. A broker that
	// replicates the consumer identifies bids by them, so there are more numbers than open bids. The broker also keeps
	// an entry for each subject that it answers to, so there are not many more.
	bidNumbers = 64

	// parkedPerLane bounds the bids that all workers of a pool together park on a
	// lane: every parked bid costs the broker work at each delivery.
	parkedPerLane = 64

	// backlogHolds is how long the number of waiting requests that a delivery
	// reports is trusted. A bid that is dealt to that backlog corrects it sooner.
	backlogHolds = time.Minute

	// answerLate is how long after its expiry the answer to a bid counts as late and not as lost.
	answerLate = 500 * time.Millisecond

	// referenceHolds is how long a gateway's reference is trusted.
	referenceHolds = 3*subjects.ReferenceEvery + subjects.ReferenceEvery/2

	// laterEach is longer than it takes until other workers know that one of them loads a model.
	laterEach = 2 * time.Second
)

// bidKind is the purpose of a bid, which decides how long it waits.
type bidKind int

const (
	parked  bidKind = iota
	brief           // parked for a short time, for a tier below an active one
	dealt           // for a slot that was dealt to a backlog
	touch           // does not wait: keeps the consumer of a home lane alive
	resting         // parked for a long time, on a quiet home lane
	bidKinds
)

// expires is how long a bid waits; 0 if it does not.
func (k bidKind) expires() time.Duration {
	return [bidKinds]time.Duration{bidExpires, briefExpires, dealtExpires, 0, restExpires}[k]
}

// bidBodies are the messages of all possible bids.
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

// lane is one queue that the worker bids on: the part of a pool's queue that one
// tier has in the shared lane or in a worker's home lane. The bidder owns it.
type lane struct {
	// Fixed.
	number  int    // in the subjects of its bids; no other lane ever has it
	home    string // stable id of the worker whose home lane it is; empty for the shared lane
	owner   string // the last token of its subject: "shared", home, or a subjects.LongLane
	away    bool   // it is the home lane of another worker
	long    int64  // it is the lane for requests that fit into a context of this length; 0: it is not
	subject string
	inboxes [bidKinds]string // subjects of the answers, without the number of the bid

	pool    *pool
	tier    int  // index of bidder.tiers
	retired bool // the worker no longer bids on it; it is kept while it has open bids

	open      []bid     // the cheapest first, the oldest first within a rung
	late      int       // bids whose answer is overdue
	lateAt    time.Time // when late last grew
	waiting   uint64    // requests in the queue, by the last delivery
	waitingAt time.Time
	held      int       // requests that gateways hold back
	stands    int       // requests in the queue that no worker has taken for a while, by the gateways
	starves   bool      // no worker has taken any for much longer
	restsTill time.Time // no bids are placed before
	last      time.Time // when the last bid was placed
	busy      time.Time // when it last brought a request; at first when the first bid was placed
	bids      int       // number of bids so far
	most      int       // bids that may be open, in the present plan
	dealtTurn uint64    // bidder.turns when it was last dealt a slot
	served    int       // deliveries since the last tick
	rate      float64   // mean deliveries per tick
	again     bool      // the next plan bids on it, although it is another worker's home lane
}

// own reports whether it is the worker's own home lane.
func (l *lane) own() bool { return l.home != "" && !l.away }

// prices is at how many different prices bids are open.
func (l *lane) prices() (n int) {
	for i, b := range l.open {
		if i == 0 || b.rung != l.open[i-1].rung {
			n++
		}
	}
	return n
}

// bid is an open bid.
type bid struct {
	number  int // counts the bids of the lane
	rung    int
	kind    bidKind
	ceiling int // slots that may be taken when a dealt bid is answered
	expires time.Time

	doubtful bool // it may have ended already: see remove
}

// queueName identifies the queue that a delivery comes from.
type queueName struct{ stream, consumer string }

func (l *lane) add(b bid, now time.Time) (number int) {
	l.bids++
	l.last, b.number, b.expires = now, l.bids, now.Add(b.kind.expires())
	if l.busy.IsZero() {
		l.busy = now
	}
	at, _ := slices.BinarySearchFunc(l.open, b.rung+1, func(b bid, rung int) int { return cmp.Compare(b.rung, rung) })
	l.open = slices.Insert(l.open, at, b)
	return b.number
}

// unsent takes back a bid that could not be published. Of several, the last one is taken back first.
func (l *lane) unsent(number int, now time.Time) {
	if number == l.bids {
		l.bids--
	}
	l.open = slices.DeleteFunc(l.open, func(b bid) bool { return b.number == number })
	l.restsTill = now.Add(retryBid)
}

// rests reports whether the lane is a home lane that has brought nothing for a while.
func (l *lane) rests(now time.Time) bool {
	return l.home != "" && !l.busy.IsZero() && now.Sub(l.busy) > restAfter
}

// backlogged reports whether requests are known to wait here.
func (l *lane) backlogged(now time.Time) bool {
	return l.held > 0 || l.stands > 0 || l.waiting > 0 && now.Sub(l.waitingAt) < backlogHolds
}

// Which of several bids a delivery answers is a guess: the delivery does not say, and the cheapest bid may not have
// reached the queue when the delivery was sent. But the number of open bids must be right, or it would stay wrong for
// as long as requests keep coming. So each bid ends with one answer, and each answer removes one bid. A bid whose
// answer is overdue was most likely confused with another one that was answered, so the next answer removes no bid. If
// the overdue answer was lost, however, that next answer belonged to a bid which now stays in the list by mistake; it
// is marked as doubtful, and once overdue, its answer is not expected.

// answered removes the open bid that a delivery answers: the queue serves the cheapest first, and the oldest within a
// rung.
func (l *lane) answered() bid { return l.remove(0) }

// ended removes a bid that ended without a request: the one that expires first.
func (l *lane) ended() { l.remove(l.nextToExpire()) }

func (l *lane) nextToExpire() int {
	first := 0
	for i, b := range l.open {
		if b.expires.Before(l.open[first].expires) {
			first = i
		}
	}
	return first
}

// remove returns an answered bid, if there is one, and removes it unless the answer is one that was overdue.
func (l *lane) remove(i int) bid {
	if len(l.open) == 0 {
		l.late = max(l.late-1, 0)
		return bid{}
	}
	b := l.open[i]
	if l.late == 0 {
		l.open = slices.Delete(l.open, i, i+1)
		return b
	}
	l.late--
	for i < len(l.open)-1 && l.open[i].doubtful {
		i++
	}
	l.open[i].doubtful = true
	return b
}

// findLate removes the bids whose answer is overdue, so that others can be placed. The answer may still come; after
// bidExpires it is taken for lost, for example because the queue's consumer was deleted.
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

// noConsumer handles the answer that there was no consumer for the bid of a number. The broker has none of the bids up
// to that one. Bids that were sent later may have found a consumer; for each that did not, there is such an answer too.
func (l *lane) noConsumer(number int) {
	later := (l.bids%bidNumbers - number + bidNumbers) % bidNumbers
	l.open = slices.DeleteFunc(l.open, func(b bid) bool { return b.number <= l.bids-later })
	for len(l.open) > later { // the list is a guess, and later is certain
		i := l.nextToExpire()
		l.open = slices.Delete(l.open, i, i+1)
	}
	l.late = 0
}

func (l *lane) noBids() { l.open, l.late = l.open[:0], 0 }

// empty reports whether all bids have ended and no answer is overdue.
func (l *lane) empty() bool { return len(l.open)+l.late == 0 }

// laneSet is the set of lanes that the worker bids on, with what determines them: the pools that it serves, the policy,
// and the references of the gateways. The bidder owns it.
type laneSet struct {
	worker   string         // id, fixed
	policy   *policy.Policy // in force
	serves   []servedPool
	pools    map[string]*pool
	lanes    []*lane // shared lanes and the worker's own home lanes; every plan goes through all of them
	away     []*lane // home lanes of other workers
	byQueue  map[queueName]*lane
	byNumber map[int]*lane
	numbers  int // number of lanes so far
}

// servedPool is a pool that the worker serves, and the model that it serves there.
type servedPool struct{ pool, model string }

// arrange computes the lanes of these tiers. A lane that stays keeps its bids. One
// that does not is retired: requests that its bids still bring are handed back.
func (s *laneSet) arrange(tiers []tier) {
	own := subjects.StableID(s.worker)
	lanes, away := make([]*lane, 0, len(s.lanes)), make([]*lane, 0, len(s.away))
	byQueue := make(map[queueName]*lane, len(s.byQueue))
	of := func(p *pool, tier int, home string, long int64) *lane {
		queue, l := s.lane(p, tiers[tier].Name, home, long)
		l.pool, l.tier = p, tier
		byQueue[queue] = l
		return l
	}
	for _, p := range s.arrangePools() {
		spills := p.source != p
		if spills && len(p.refs) == 0 { // its queues may not exist: perhaps no worker ever served it
			continue
		}
		_, home := slices.BinarySearch(p.homes, own)
		for t := range tiers {
			lanes = append(lanes, of(p, t, "", 0))
			if home && p.affinity && !spills {
				lanes = append(lanes, of(p, t, own, 0))
			}
			for _, length := range p.lengths {
				if !spills && (p.length == 0 || p.length >= length) {
					lanes = append(lanes, of(p, t, "", length))
				}
			}
		}
		if !p.affinity || p.sticky || spills {
			continue
		}
		for _, home := range policy.OtherHomeLanes(own, p.homes) {
			for t := range tiers {
				away = append(away, of(p, t, home, 0))
			}
		}
	}
	for queue, l := range s.byQueue {
		if l.retired = byQueue[queue] == nil; l.retired && !l.empty() {
			byQueue[queue] = l
		}
	}
	s.lanes, s.away, s.byQueue = lanes, away, byQueue
	s.index()
}

// arrangePools returns the pools that the worker serves, and then those that spill over to it.
func (s *laneSet) arrangePools() (pools []*pool) {
	was := s.pools
	s.pools = make(map[string]*pool)
	add := func(name string) *pool {
		p := was[name]
		if p == nil {
			p = &pool{name: name, curve: new(atomic.Pointer[policy.Curve]), draw: policy.Draw(s.worker, name)}
		}
		rules := s.policy.Pools[name]
		p.balance, p.paused = s.policy.BalanceOf(name), rules.Paused
		p.affinity, p.sticky = s.policy.AffinityOf(name) != policy.AffinityOff, rules.StickFor > 0
		s.pools[name] = p
		pools = append(pools, p)
		return p
	}
	for _, sp := range s.serves {
		p := add(sp.pool)
		p.source, p.model, p.penalty = p, sp.model, 0
	}
	for _, name := range slices.Sorted(maps.Keys(s.policy.Pools)) {
		if s.pools[name] != nil {
			continue
		}
		for _, spill := range s.policy.Pools[name].Spill {
			if source := s.pools[spill.Pool]; source != nil && source.source == source {
				p := add(name)
				p.source, p.penalty = source, spill.Penalty
				break
			}
		}
	}
	return pools
}

// lane returns the lane of a pool and a tier; a new one if there is none yet.
func (s *laneSet) lane(p *pool, tier, home string, long int64) (queueName, *lane) {
	owner := cmp.Or(home, subjects.Shared)
	if long > 0 {
		owner = subjects.LongLane(long)
	}
	queue := queueName{subjects.ReqStream(tier), subjects.ReqConsumer(p.name, owner)}
	l := s.byQueue[queue]
	if l == nil {
		s.numbers++
		l = &lane{number: s.numbers, home: home, owner: owner, away: home != "" && home != subjects.StableID(s.worker), long: long, subject: subjects.BidSubject(tier, p.name, owner)}
		for kind := range l.inboxes {
			l.inboxes[kind] = fmt.Sprintf("%s.%d.%d.", subjects.WorkerBids(s.worker), l.number, kind)
		}
	}
	return queue, l
}

func (s *laneSet) index() {
	clear(s.byNumber)
	for _, l := range s.byQueue {
		s.byNumber[l.number] = l
	}
}

// forgetRetired forgets retired lanes whose last bid has ended.
func (s *laneSet) forgetRetired(now time.Time) {
	n := len(s.byQueue)
	maps.DeleteFunc(s.byQueue, func(_ queueName, l *lane) bool {
		if !l.retired {
			return false
		}
		l.findLate(now)
		return l.empty()
	})
	if len(s.byQueue) < n {
		s.index()
	}
}

// pool is a pool that the worker bids on.
type pool struct {
	name   string
	source *pool // the pool whose model answers its requests: itself, or a served pool that it spills over to

	// Of a source.
	model string                        // as the engine calls it
	curve *atomic.Pointer[policy.Curve] // measured by the estimator, which keeps it up to date

	// From the policy.
	penalty  int // rungs that a pool which spills over costs more
	balance  policy.Balance
	paused   bool
	affinity bool // it has home lanes
	sticky   bool // no worker bids on the home lane of another

	ref   subjects.PoolReference // the last one, of whichever gateway
	heard time.Time              // when it came
	refs  map[string]reference   // the last one of each gateway
	told  map[string]toldHomes   // the home lanes that each gateway has last listed
	homes []string               // home lanes in any of refs, sorted
	draw  float64                // see policy.Draw
	aside aside                  // whether the ration lets it park no bids
	// lengths are those of the lanes for long requests in any of refs, sorted.
	lengths []int64

	length int64 // most tokens of a request that the engine accepts; 0: unknown
	peers  policy.Comparison
}

// aside is whether a worker parks no bids on the shared lanes of a pool, because enough others do: see policy.Ration. It holds
// until the next reference, so that the workers that park take a burst.
type aside int

const (
	undecided aside = iota // there was a reference since the last plan
	parks
	stays
)

// toldHomes are the home lanes that a gateway has listed.
type toldHomes struct {
	lanes []string
	at    time.Time // of the last reference that had them, or stood for them
}

// homesOf returns the home lanes of a gateway's reference. One that leaves them out stands for those listed before.
func (p *pool) homesOf(gateway string, r *subjects.PoolReference, now time.Time) []string {
	lanes := r.HomeLanes
	if lanes == nil && r.HomesID != 0 {
		lanes = p.told[gateway].lanes
	}
	if p.told == nil {
		p.told = make(map[string]toldHomes)
	}
	p.told[gateway] = toldHomes{lanes, now}
	maps.DeleteFunc(p.told, func(_ string, t toldHomes) bool { return now.Sub(t.at) > gatewayForgotten })
	return lanes
}

// reference is a gateway's reference for a pool, with its time of arrival.
type reference struct {
	subjects.PoolReference
	at time.Time
}

// onReference stores a gateway's reference for the pool, and reports whether the lanes to bid on may have changed.
func (p *pool) onReference(gateway string, r subjects.PoolReference, now time.Time) (changed bool) {
	changed = len(p.refs) == 0
	p.aside, p.heard = undecided, now
	leftOut := r.HomeLanes == nil && r.HomesID != 0
	r.HomeLanes = p.homesOf(gateway, &r, now)
	p.ref = r
	was, known := p.refs[gateway]
	if p.refs == nil {
		p.refs = make(map[string]reference)
	}
	p.refs[gateway] = reference{r, now}
	if leftOut && known && now.Sub(was.at) <= referenceHolds && len(p.refs) == 1 && slices.Equal(was.Lengths, r.Lengths) {
		return false // a long list is not sorted again each second
	}
	var homes []string
	var lengths []int64
	for gw, r := range p.refs {
		if now.Sub(r.at) > referenceHolds {
			delete(p.refs, gw)
			continue
		}
		homes = append(homes, r.HomeLanes...)
		lengths = append(lengths, r.Lengths...)
	}
	slices.Sort(lengths)
	lengths = slices.Compact(lengths)
	slices.Sort(homes)
	homes = slices.Compact(homes)
	changed = changed || !slices.Equal(homes, p.homes) || !slices.Equal(lengths, p.lengths)
	p.homes, p.lengths = homes, lengths
	return changed
}

// held returns how many requests of a tier all gateways hold back.
func (p *pool) held(tier string) int {
	n := 0
	for _, r := range p.refs {
		n += r.Held[tier]
	}
	return n
}

// stands returns how many requests of a tier no worker has taken from a lane for a while, by the references of all gateways.
// starves says that none was taken from it for much longer, by any of the gateways.
func (p *pool) stands(tier, lane string, now time.Time) (n int, starves bool) {
	for _, r := range p.refs {
		if now.Sub(r.at) <= referenceHolds {
			n += r.Standing[tier][lane]
			starves = starves || slices.Contains(r.Starving[tier], lane)
		}
	}
	return n, starves
}

// longestWait returns the longest wait of a request of a tier, by the references of all gateways.
func (p *pool) longestWait(tier string, now time.Time) time.Duration {
	var longest time.Duration
	for _, r := range p.refs {
		if ms := r.WaitsMS[tier]; ms > 0 && now.Sub(r.at) <= referenceHolds {
			longest = max(longest, time.Duration(ms)*time.Millisecond+now.Sub(r.at))
		}
	}
	return longest
}

// shortage returns how far the pool's requests exceed what the workers do that have its model loaded, by the references of
// all gateways, and which other workers come first to load it.
func (p *pool) shortage(worker string, now time.Time) (s policy.Shortage) {
	last := p.ref.Shortage
	if last == nil {
		return s
	}
	var loaders []subjects.Loader
	var listedAt time.Time
	for _, r := range p.refs {
		of := r.Shortage
		if of == nil || now.Sub(r.at) > referenceHolds {
			continue
		}
		s.Requests += of.Waiting
		s.For = max(s.For, time.Duration(of.ForMS)*time.Millisecond)
		if len(of.Loaders) > 0 && r.at.After(listedAt) {
			loaders, listedAt = of.Loaders, r.at
		}
	}
	s.Requests -= last.Free
	for _, l := range loaders {
		if s.Listed = l.Worker == worker; s.Listed {
			break
		}
		s.Rank++
		s.Before += l.Slots
	}
	return s
}

// later returns how long this worker leaves it to other workers of the pool to load its model. Each waits for a
// different time, and the order differs from pool to pool. In a pool without home lanes two workers may wait for the
// same time, since they do not know of each other.
func (p *pool) later(worker string) time.Duration {
	mine, ok := slices.BinarySearch(p.homes, subjects.StableID(worker))
	n := len(p.homes)
	if !ok {
		mine, n = hashOf(worker), p.ref.Workers
	}
	if n < 2 {
		return 0
	}
	return laterEach * time.Duration((mine+hashOf(p.name))%n)
}

func hashOf(s string) int {
	h := fnv.New32a()
	h.Write([]byte(s))
	return int(h.Sum32() >> 1)
}
