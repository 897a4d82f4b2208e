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
// about to take (policy.Window), and the rest waits here by tenant.
type queue struct {
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
}

// lineHere is one lane of a queue: a home lane that is full must not hold up the
// others.
type lineHere struct {
	out  int // requests that the broker has
	here policy.Fair[*turn]
}

// turn is a request's wait for its turn to go to the broker.
type turn struct {
	come  chan struct{} // closed when it is there
	lane  string
	place *policy.Turn[*turn]
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

// enter lets a request in or says why not. Its tenant may have share requests
// waiting here for their turn.
func (q *queue) enter(t policy.Tier, tenant string, share int, left time.Duration, slots int, now time.Time) (policy.Queue, policy.Admission) {
	q.mu.Lock()
	defer q.mu.Unlock()
	view := q.viewLocked(t, slots, now)
	a := view.Admit(left)
	if a == policy.Admitted && share < t.MaxQueue && q.waitingOf(tenant) >= share {
		a = policy.ShareFull
	}
	if a == policy.Admitted {
		q.own++
	}
	return view, a
}

// join notes that a request waits that came from another queue.
func (q *queue) join() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.own++
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
	if l.here.Len() == 0 && l.out < q.windowLocked(lane) {
		l.out++
		q.told++
		return nil
	}
	t := &turn{come: make(chan struct{}), lane: lane}
	t.place = l.here.Push(tenant, cost, t)
	q.held++
	return t
}

// dealLocked gives turns while the broker's part of a lane is not full.
func (q *queue) dealLocked(lane string) {
	l := q.laneLocked(lane)
	for l.out < q.windowLocked(lane) {
		t, ok := l.here.Pop()
		if !ok {
			break
		}
		q.held--
		l.out++
		q.told++
		close(t.come)
	}
	if lane != subjects.Shared && l.out == 0 && l.here.Len() == 0 {
		delete(q.lanes, lane)
	}
}

// leave notes that a published request waits no more: claimed, or given up.
func (q *queue) leave(lane string, claimed bool, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.own--
	q.laneLocked(lane).out--
	q.told = max(q.told-1, 0)
	if claimed {
		q.drain.Add(now)
		q.window-- // a slot less is free
	}
	q.dealLocked(lane)
}

// giveUp notes that a request waits no more that had asked for a turn.
func (q *queue) giveUp(t *turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.own--
	l := q.laneLocked(t.lane)
	if l.here.Remove(t.place) {
		q.held--
	} else { // its turn had come
		l.out--
		q.told = max(q.told-1, 0)
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

// resize sets how many requests the broker may have, by the free slots of the
// pool and the number of gateways.
func (q *queue) resize(free, gateways int, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.window = policy.Window(free, gateways, q.drain.Per(now))
	q.dealLocked(subjects.Shared)
}

// tell takes the depth from a delivery.
func (q *queue) tell(pending uint64, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.told, q.heard = int(min(pending, 1<<30)), now
}

// serve notes how long a request kept its slot.
func (q *queue) serve(d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.served = min(q.served+1, policy.MeanMemory)
	q.service += (d.Seconds() - q.service) / q.served
}

func (q *queue) waiting(now time.Time) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waitingLocked(now)
}

// here is how many requests wait here for their turn.
func (q *queue) here() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.held
}
