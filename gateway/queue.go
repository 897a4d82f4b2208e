package gateway

import (
	"sync"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// queue is what this gateway knows of the queue of one pool and tier, and what
// of it waits here: in the broker a queue is served in the order in which it
// came, whoever it came from. So only as much of it is there as workers are
// about to take (policy.Window), and what tenants with a credit ask for; the rest
// waits here by tenant.
type queue struct {
	meters meters // fixed

	mu      sync.Mutex
	own     int                  // requests of this gateway that wait
	window  int                  // how many of them the broker may have on the shared lane
	lanes   map[string]*lineHere // by lane; those where something waits
	held    int                  // requests that wait here, on all lanes
	told    int                  // waiting in the broker for everybody, as the last delivery's ack subject told, kept up since
	heard   time.Time            // when
	drain   policy.Rate
	service float64 // mean seconds that a slot is busy with a request
	served  float64 // how many stand behind it, at most policy.MeanMemory
	left    uint64  // requests of this gateway that wait no more

	// What the gateways deal together: see turns.go.
	gateways int                   // that there are, this one included
	short    int                   // with fewer requests in the broker, the next turn is due
	peers    map[string]*peerQueue // what others tell, by gateway
	unsaid   map[string]uint64     // tokens served to each tenant, that the others have not been told
	telling  bool                  // there is something that the others need to know
	said     bool                  // they have been told that requests wait here
}

// lineHere is one lane of a queue: a home lane that is full must not hold up the
// others.
type lineHere struct {
	out  int // requests that the broker has
	here policy.Fair[*turn]
}

// turn is a request's wait for its turn to go to the broker.
type turn struct {
	come   chan struct{} // closed when it is there
	lane   string
	tenant string
	cost   int
	since  time.Time
	place  *policy.Ticket[*turn]
}

// spot is where a request joined its queue.
type spot struct {
	ahead int     // requests before it
	share float64 // part of the queue that was this gateway's
	left  uint64  // requests of this gateway that had left the queue by then
}

// position is the place that a request has now, from 1. It is so in one gateway
// where a queue is served as it came; tenants that take turns, and other gateways
// whose part moves faster than this one's, make it a guess.
func (q *queue) position(s spot, now time.Time) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	before := s.ahead - int(float64(q.left-s.left)/s.share)
	return max(min(before+1, q.waitingLocked(now)), 1)
}

// toldHolds is how long the word of a depth is believed.
const toldHolds = 5 * time.Second

// leastWindow is what every gateway may have in the broker.
const leastWindow = 1

// homeWindow is what every gateway may have in the broker on each home lane: one
// worker serves it, and who does not find it free soon goes elsewhere.
const homeWindow = 4

func (q *queue) waitingLocked(now time.Time) int {
	if now.Sub(q.heard) > toldHolds {
		return q.own
	}
	return max(q.own, q.told+q.held)
}

// view is the queue as a new request finds it.
func (q *queue) viewLocked(t policy.Tier, slots int, now time.Time) policy.Queue {
	view := policy.Queue{Waiting: q.waitingLocked(now), Max: t.MaxQueue, Drain: q.drain.Per(now)}
	if q.own > 0 && view.Waiting > q.own { // the rate is this gateway's share
		view.Drain *= float64(view.Waiting) / float64(q.own)
	}
	if q.service > 0 {
		view.Drain = max(view.Drain, float64(slots)/q.service)
	}
	return view
}

// wait is how long a new request would wait, as far as is known.
func (q *queue) wait(t policy.Tier, slots int, now time.Time) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.viewLocked(t, slots, now).Wait()
}

// enter lets a request in, and says where, or says why not. Its tenant may have
// share requests waiting here for their turn.
func (q *queue) enter(t policy.Tier, tenant string, share int, left time.Duration, slots int, now time.Time) (spot, policy.Queue, policy.Admission) {
	q.mu.Lock()
	defer q.mu.Unlock()
	view := q.viewLocked(t, slots, now)
	a := view.Admit(left)
	if a == policy.Admitted && share < t.MaxQueue && q.waitingOf(tenant) >= share {
		a = policy.ShareFull
	}
	if a != policy.Admitted {
		return spot{}, view, a
	}
	return q.joinLocked(now), view, a
}

// join lets a request in that came from another queue.
func (q *queue) join(now time.Time) spot {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.joinLocked(now)
}

func (q *queue) joinLocked(now time.Time) spot {
	s := spot{ahead: q.waitingLocked(now), left: q.left}
	q.own++
	s.share = min(float64(q.own)/float64(s.ahead+1), 1)
	return s
}

// waitingOf is how many requests of a tenant wait here.
func (q *queue) waitingOf(tenant string) int {
	n := 0
	for _, l := range q.lanes {
		n += l.here.Waiting(tenant)
	}
	return n
}

func (q *queue) laneLocked(lane string) *lineHere {
	l := q.lanes[lane]
	if l == nil {
		if q.lanes == nil {
			q.lanes = make(map[string]*lineHere)
		}
		l = new(lineHere)
		q.lanes[lane] = l
	}
	return l
}

func (q *queue) windowLocked(lane string) int {
	if lane == subjects.Shared {
		return max(q.window, leastWindow)
	}
	return homeWindow
}

// ask asks for a turn to be published on a lane: nil if it is now.
func (q *queue) ask(lane, tenant string, cost int) *turn {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.laneLocked(lane)
	if l.here.Len() == 0 && q.openLocked(l, lane) {
		l.out++
		q.told++
		if lane == subjects.Shared && q.othersHold() {
			l.here.Charge(tenant, uint64(max(cost, 1)))
			q.chargeLocked(tenant, cost)
		}
		return nil
	}
	t := &turn{come: make(chan struct{}), lane: lane, tenant: tenant, cost: cost, since: time.Now()}
	t.place = l.here.Push(tenant, cost, t)
	q.held++
	q.dealLocked(lane)
	select {
	case <-t.come:
		return nil
	default:
		return t
	}
}

// openLocked says whether a lane has room for a request that nobody waits
// before.
func (q *queue) openLocked(l *lineHere, lane string) bool {
	if lane == subjects.Shared && q.othersHold() { // they may have a better right
		return l.out < leastWindow
	}
	return l.out < q.windowLocked(lane)
}

// dealLocked gives turns to those with a credit, at once: they go ahead in the
// order in which they came, and the broker keeps that. It gives turns to the
// others while the broker's part of a lane is not full. Where there are more
// gateways, these are dealt with each delivery.
func (q *queue) dealLocked(lane string) {
	l := q.laneLocked(lane)
	together := lane == subjects.Shared && q.gateways > 1
	for l.here.Ahead() || !together && l.out < q.windowLocked(lane) {
		if !q.popLocked(l) {
			break
		}
	}
	if lane != subjects.Shared && l.out == 0 && l.here.Len() == 0 {
		delete(q.lanes, lane)
	}
}

// popLocked gives the next turn; false if nobody waits for one.
func (q *queue) popLocked(l *lineHere) bool {
	t, ok := l.here.Pop()
	if !ok {
		return false
	}
	q.held--
	l.out++
	q.told++
	if t.lane == subjects.Shared {
		q.chargeLocked(t.tenant, t.cost)
	}
	close(t.come)
	return true
}

// leave notes that a published request waits no more: claimed, or given up.
func (q *queue) leave(lane string, claimed bool, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.own--
	q.left++
	q.laneLocked(lane).out--
	q.told = max(q.told-1, 0)
	if claimed {
		q.drain.Add(now)
		q.window-- // a slot less is free
	} else {
		q.stirLocked()
	}
	q.dealLocked(lane)
}

// giveUp notes that a request waits no more that had asked for a turn.
func (q *queue) giveUp(t *turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.own--
	q.left++
	l := q.laneLocked(t.lane)
	if l.here.Remove(t.place) {
		q.held--
	} else { // its turn had come
		l.out--
		q.told = max(q.told-1, 0)
		q.stirLocked()
	}
	q.dealLocked(t.lane)
}

// back notes that a request waits again, in the broker.
func (q *queue) back(lane string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.own++
	q.laneLocked(lane).out++
	q.told++
}

// resize sets how many requests the broker may have, by the slots of the pool
// and the number of gateways.
func (q *queue) resize(slots, free, gateways int, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gateways = gateways
	q.window = policy.Window(free, gateways, q.drain.Per(now))
	q.short = shortOf(slots, q.service, q.drain.Per(now))
	q.dealLocked(subjects.Shared)
	if now.Sub(q.heard) > stalled {
		q.stirLocked()
	}
}

// serve notes how long a request kept its slot.
func (q *queue) serve(d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.served = min(q.served+1, policy.MeanMemory)
	q.service += (d.Seconds() - q.service) / q.served
}

// here is how many requests wait here for their turn.
func (q *queue) here() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.held
}
