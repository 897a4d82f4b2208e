package gateway

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// depthAge is how long the depth that a delivery reported is believed.
	depthAge = 5 * time.Second

	// minWindow is how many requests every gateway may have in the broker on the shared lane.
	minWindow = 1

	// homeWindow is how many requests every gateway may have in the broker on each home lane: one worker serves it, and
	// a request that does not find that worker free soon goes elsewhere.
	homeWindow = 4

	// fullEventEvery is the least time between two events of one full queue.
	fullEventEvery = 10 * time.Second
)

// queue is this gateway's part of the queue of one pool and tier. The broker serves a queue in the order in which it
// came, whichever tenant it came from. So the broker gets only what workers are about to take (policy.Window) and what
// tenants with a burst left ask for; the gateway holds the rest by tenant. A held request has a ticket, which is granted
// when the request may be published.
//
// A queue takes values and returns decisions; the caller publishes.
type queue struct {
	// Fixed.
	pool, tier     string
	stream, shared string // names of its stream, and of the consumer of its shared lane

	mu        sync.Mutex
	waiting   int                     // requests of this gateway that wait, held here or in the broker
	held      int                     // how many of these are held here, on all lanes
	lanes     map[string]*laneQueue   // the shared lane, and the home lanes on which requests wait
	window    int                     // how many requests the broker may have on the shared lane
	depth     int                     // requests of all gateways in the broker: as a delivery reported it, updated since
	depthAt   time.Time               // when a delivery last reported the depth
	drain     policy.Rate             // claims of this gateway's requests
	flow      policy.Flow             // the same while they have to wait
	returns   policy.Returns          // of refused clients
	delayed   int                     // requests of this gateway that wait, and may be taken only after a while
	service   float64                 // mean seconds for which a request occupies a slot
	ended     int                     // how many were measured
	latest    [latestServices]float64 // the latest of which that is the mean
	servedAt  time.Time               // when that was last measured
	served    float64                 // how many requests that mean is of, at most policy.MeanMemory
	departed  uint64                  // how many requests of this gateway have ceased to wait
	fullEvent time.Time               // when an event last said that the queue is full

	// What the gateways decide together: see fairness.go.
	gateways     int                   // how many there are, this one included
	lowWater     int                   // with fewer requests in the broker, the next release is due
	peers        map[string]*peerQueue // what other gateways reported, by id
	unreported   map[string]uint64     // tokens by tenant that were served here since the last report
	reporting    bool                  // the last report had something that the others need to know
	reportedHeld bool                  // the others know that requests are held here
}

// laneQueue is one lane of a queue: a home lane that is full must not delay the others.
type laneQueue struct {
	published int       // requests in the broker
	claimed   time.Time // when one was last claimed
	tickets   policy.Fair[*ticket]
}

// ticket is the place of a held request.
type ticket struct {
	granted chan struct{} // closed when the request may be published
	lane    string
	tenant  string
	cost    int
	since   time.Time
	place   *policy.Ticket[*ticket]
}

// candidate is a request that asks to join a queue.
type candidate struct {
	tier   policy.Tier
	tenant string
	share  int           // how many requests of the tenant may be held
	left   time.Duration // the time until a worker must have taken the request
	slots  int           // the slots of the pool
	free   int           // those without a request
}

// joinPoint is where a request joined its queue.
type joinPoint struct {
	ahead    int     // how many requests were before it
	share    float64 // this gateway's share of the requests in the queue
	departed uint64  // queue.departed at that time
}

// admit lets a request join the queue, or returns why not. The view is the queue as the request found it.
func (q *queue) admit(c candidate, now time.Time) (at joinPoint, view policy.Queue, a policy.Admission) {
	q.mu.Lock()
	defer q.mu.Unlock()
	view = q.viewLocked(c.tier, c.slots, c.free, now)
	if a = view.Admit(c.left); a == policy.TooLate { // but its tenant may be served before others
		view.Waiting = max(view.Waiting-q.afterLocked(c.tenant), 0)
		a = view.Admit(c.left)
	}
	if a == policy.Admitted && c.share < c.tier.MaxQueue && q.heldOfLocked(c.tenant) >= c.share {
		a = policy.ShareFull
	}
	if a == policy.Admitted {
		at = q.joinLocked(now)
	}
	return at, view, a
}

// join lets a request join that was in another queue before.
func (q *queue) join(now time.Time) joinPoint {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.joinLocked(now)
}

func (q *queue) joinLocked(now time.Time) joinPoint {
	at := joinPoint{ahead: q.waitingLocked(now), departed: q.departed}
	q.waiting++
	at.share = min(float64(q.waiting)/float64(at.ahead+1), 1)
	q.noteWaitingLocked(now)
	return at
}

func (q *queue) waitingLocked(now time.Time) int {
	if now.Sub(q.depthAt) > depthAge {
		return q.waiting
	}
	return max(q.waiting, q.depth+q.held)
}

// noteWaitingLocked tells the flow whether requests wait that a worker could take.
func (q *queue) noteWaitingLocked(now time.Time) { q.flow.Waiting(q.waiting > q.delayed, now) }

// For how long requests occupy a slot is known from leastServices that have ended, until serviceHolds and four such times after
// the last of them.
const (
	latestServices = 16
	leastServices  = 8
	serviceHolds   = time.Minute
)

// drainBySlotsLocked is how many requests a second leave the queue, by how long half of the latest occupied slots; 0 if unknown.
// Of the other half some may have waited in their slots, as for a model that was loaded.
func (q *queue) drainBySlotsLocked(slots int, now time.Time) float64 {
	n := min(q.ended, latestServices)
	if slots == 0 || n < leastServices {
		return 0
	}
	latest := q.latest
	slices.Sort(latest[:n])
	half := max(latest[(n-1)/2], 1e-3)
	if now.Sub(q.servedAt) > max(serviceHolds, time.Duration(4*half*float64(time.Second))) {
		return 0
	}
	return max(float64(slots)/half, q.drain.Per(now))
}

func (q *queue) viewLocked(t policy.Tier, slots, free int, now time.Time) policy.Queue {
	view := policy.Queue{Waiting: q.waitingLocked(now), Free: free, Max: t.MaxQueue}
	if rate, ok := q.flow.PerSecond(now); ok && slots > 0 {
		view.Drain, view.Measured = rate, true
		if view.Waiting > q.waiting { // it is this gateway's share, also of the requests that wait
			view.Drain *= float64(view.Waiting+1) / float64(q.waiting+1)
		}
		view.Taken = q.flow.Starts(now)
	} else {
		view.Drain = q.drainBySlotsLocked(slots, now)
	}
	return view
}

// view is the queue as a new request would find it.
func (q *queue) view(t policy.Tier, slots, free int, now time.Time) policy.Queue {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.viewLocked(t, slots, free, now)
}

// refuse returns when a client whose request is refused may come again, by the queue as the request found it and how long it may
// wait.
func (q *queue) refuse(view policy.Queue, limit time.Duration, now time.Time) (retryAfter time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if latest := q.flow.Latest(now); latest > 0 && !view.Measured { // slots say little of what workers take when all come again
		view.Drain = min(view.Drain, latest)
	}
	return q.returns.Next(view.Room(limit), view.Drain, now)
}

// fullEventDue reports whether an event is due that says that the queue is full.
func (q *queue) fullEventDue(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	due := now.Sub(q.fullEvent) > fullEventEvery
	if due {
		q.fullEvent = now
	}
	return due
}

// afterLocked is how many held requests come after a new one of a tenant.
func (q *queue) afterLocked(tenant string) (n int) {
	for _, l := range q.lanes {
		n += l.tickets.After(tenant)
	}
	return n
}

func (q *queue) heldOfLocked(tenant string) int {
	n := 0
	for _, l := range q.lanes {
		n += l.tickets.Waiting(tenant)
	}
	return n
}

// enqueue puts a request that joined on a lane. If it returns nil the request is to be published now, else when the
// ticket is granted.
func (q *queue) enqueue(lane, tenant string, cost int, now time.Time) *ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.laneLocked(lane)
	if l.tickets.Len() == 0 && q.openLocked(l, lane) {
		l.published++
		q.depth++
		if lane == subjects.Shared && q.othersHoldLocked() {
			l.tickets.Charge(tenant, uint64(max(cost, 1)))
			q.chargeLocked(tenant, cost)
		}
		return nil
	}
	t := &ticket{granted: make(chan struct{}), lane: lane, tenant: tenant, cost: cost, since: now}
	t.place = l.tickets.Push(tenant, cost, t)
	q.held++
	q.grantLocked(lane)
	select {
	case <-t.granted:
		return nil
	default:
		return t
	}
}

func (q *queue) laneLocked(lane string) *laneQueue {
	l := q.lanes[lane]
	if l == nil {
		if q.lanes == nil {
			q.lanes = make(map[string]*laneQueue)
		}
		l = new(laneQueue)
		q.lanes[lane] = l
	}
	return l
}

// openLocked says whether the broker may have another request on a lane on which none is held.
func (q *queue) openLocked(l *laneQueue, lane string) bool {
	if lane == subjects.Shared && q.othersHoldLocked() { // theirs may come first
		return l.published < minWindow
	}
	return l.published < q.windowLocked(lane)
}

func (q *queue) windowLocked(lane string) int {
	if lane == subjects.Shared {
		return max(q.window, minWindow)
	}
	return homeWindow
}

// grantLocked grants the tickets of tenants with a burst left at once: they go ahead in the order in which they came, and
// the broker keeps that order. It grants others while the broker may have more requests on the lane. Where there are
// several gateways, the others are granted with each delivery instead: see fairness.go.
func (q *queue) grantLocked(lane string) {
	l := q.laneLocked(lane)
	together := lane == subjects.Shared && q.gateways > 1
	for l.tickets.Ahead() || !together && l.published < q.windowLocked(lane) {
		if !q.grantNextLocked(l) {
			break
		}
	}
	if lane != subjects.Shared && l.published == 0 && l.tickets.Len() == 0 {
		delete(q.lanes, lane)
	}
}

// grantNextLocked grants the next ticket of a lane. It returns false if there is none.
func (q *queue) grantNextLocked(l *laneQueue) bool {
	t, ok := l.tickets.Pop()
	if !ok {
		return false
	}
	q.held--
	l.published++
	q.depth++
	if t.lane == subjects.Shared {
		q.chargeLocked(t.tenant, t.cost)
	}
	close(t.granted)
	return true
}

// position is the place of a request in the queue, from 1. It is exact with one gateway and one tenant; with several it is
// an estimate.
func (q *queue) position(p joinPoint, now time.Time) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	before := p.ahead - int(float64(q.departed-p.departed)/p.share)
	return max(min(before+1, q.waitingLocked(now)), 1)
}

// claimed notes that a worker has claimed a published request, which had waited for so long; below 0: it was not the first to do
// so.
func (q *queue) claimed(lane string, waited time.Duration, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drain.Add(now)
	q.laneLocked(lane).claimed = now
	if lane != subjects.Shared && !subjects.IsLongLane(lane) { // who waits for one worker does not show that others are taken
		waited = -1
	}
	q.flow.Took(waited, now)
	q.leaveLocked(lane)
	q.noteWaitingLocked(now)
	q.window-- // one slot less is free
	q.grantLocked(lane)
}

// withdraw notes that a published request no longer waits, though no worker has claimed it.
func (q *queue) withdraw(lane string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leaveLocked(lane)
	q.unblockLocked()
	q.grantLocked(lane)
}

func (q *queue) leaveLocked(lane string) {
	q.waiting--
	q.departed++
	q.laneLocked(lane).published--
	q.depth = max(q.depth-1, 0)
}

// cancel notes that a request with a ticket no longer waits.
func (q *queue) cancel(t *ticket) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l := q.laneLocked(t.lane); l.tickets.Remove(t.place) {
		q.waiting--
		q.departed++
		q.held--
	} else { // it was granted meanwhile
		q.leaveLocked(t.lane)
		q.unblockLocked()
	}
	q.grantLocked(t.lane)
}

// requeue notes that a claimed request waits in the broker again.
func (q *queue) requeue(lane string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting++
	q.laneLocked(lane).published++
	q.depth++
}

// delay notes that a request that was requeued is due only after a while: until undelay, it takes no place in the window.
func (q *queue) delay(lane string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.laneLocked(lane).published--
	q.delayed++
	q.grantLocked(lane)
}

func (q *queue) undelay(lane string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.laneLocked(lane).published++
	q.delayed--
}

// delivered takes in the depth that a delivery on the shared lane leaves behind. It returns the gateways that may release
// a request by it, and whether the others have to know that requests are held here, or are no longer.
func (q *queue) delivered(pending uint64, now time.Time) (releases []string, changed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.depth, q.depthAt = int(min(pending, 1<<30)), now
	if q.gateways <= 1 {
		return nil, false
	}
	return q.releaseLocked(now), q.heldChangedLocked()
}

// observeService notes for how long a request occupied its slot.
func (q *queue) observeService(d time.Duration, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.servedAt = now
	q.latest[q.ended%latestServices] = d.Seconds()
	q.ended++
	q.served = min(q.served+1, policy.MeanMemory)
	q.service += (d.Seconds() - q.service) / q.served
	q.flow.Service(time.Duration(q.service * float64(time.Second)))
}

// resize sets how many requests the broker may have, by the slots of the pool and the number of gateways.
func (q *queue) resize(slots, free, gateways int, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gateways = gateways
	q.noteWaitingLocked(now)                      // some may have been given up
	if _, waits := q.flow.PerSecond(now); waits { // nobody takes the slots that are free
		free = 0
	}
	q.window = policy.Window(free, gateways, q.drain.Per(now))
	q.lowWater = lowWater(slots, q.service, q.drain.Per(now))
	q.grantLocked(subjects.Shared)
	if now.Sub(q.depthAt) > stalled {
		q.unblockLocked()
	}
}

// claimedAt is when a request of a lane on which some wait was last claimed.
func (q *queue) claimedAt(lane string) time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l := q.lanes[lane]; l != nil {
		return l.claimed
	}
	return time.Time{}
}

// claimsPerSecond is at which rate requests of this gateway are claimed.
func (q *queue) claimsPerSecond(now time.Time) float64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.drain.Per(now)
}

func (q *queue) heldCount() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.held
}

// queues are the queues of a gateway. One is made when it is first asked for, and stays.
type queues struct {
	mu    sync.Mutex
	byKey map[queueKey]*queue
}

type queueKey struct{ pool, tier string }

func newQueues() *queues { return &queues{byKey: make(map[queueKey]*queue)} }

func (qs *queues) get(pool, tier string) *queue {
	k := queueKey{pool, tier}
	qs.mu.Lock()
	defer qs.mu.Unlock()
	q := qs.byKey[k]
	if q == nil {
		q = &queue{pool: pool, tier: tier, stream: subjects.ReqStream(tier), shared: subjects.ReqConsumer(pool, subjects.Shared)}
		qs.byKey[k] = q
	}
	return q
}

func (qs *queues) all() []*queue {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	return slices.Collect(maps.Values(qs.byKey))
}
