package gateway

import (
	"sync"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// queue is what this gateway knows of the queue of one pool and tier, and what
// of it waits here: in the broker a queue is served in the order in which it
// came, whoever it came from. So only as much of it is there as workers are
// about to take (policy.Window), and the rest waits here by tenant.
type queue struct {
	mu      sync.Mutex
	own     int                // requests of this gateway that wait
	out     int                // of these, those that the broker has
	window  int                // how many that may be
	here    policy.Fair[*turn] // the others
	told    int                // waiting in the broker for everybody, as the last delivery's ack subject told, kept up since
	heard   time.Time          // when
	drain   policy.Rate
	service float64 // mean seconds that a slot is busy with a request
	served  float64 // how many stand behind it, at most policy.MeanMemory
}

// turn is a request's wait for its turn to go to the broker.
type turn struct {
	come  chan struct{} // closed when it is there
	place *policy.Turn[*turn]
}

// toldHolds is how long the word of a depth is believed.
const toldHolds = 5 * time.Second

// leastWindow is what every gateway may have in the broker.
const leastWindow = 1

func (q *queue) waitingLocked(now time.Time) int {
	if now.Sub(q.heard) > toldHolds {
		return q.own
	}
	return max(q.own, q.told+q.here.Len())
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
	if a == policy.Admitted && share < t.MaxQueue && q.here.Waiting(tenant) >= share {
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

// ask asks for a turn to be published: nil if it is now.
func (q *queue) ask(tenant string, cost int) *turn {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.here.Len() == 0 && q.out < max(q.window, leastWindow) {
		q.out++
		q.told++
		return nil
	}
	t := &turn{come: make(chan struct{})}
	t.place = q.here.Push(tenant, cost, t)
	return t
}

// dealLocked gives turns while the broker's part is not full.
func (q *queue) dealLocked() {
	for q.out < max(q.window, leastWindow) {
		t, ok := q.here.Pop()
		if !ok {
			return
		}
		q.out++
		q.told++
		close(t.come)
	}
}

// leave notes that a published request waits no more: claimed, or given up.
func (q *queue) leave(claimed bool, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.own--
	q.out--
	q.told = max(q.told-1, 0)
	if claimed {
		q.drain.Add(now)
		q.window-- // a slot less is free
	}
	q.dealLocked()
}

// giveUp notes that a request waits no more that had asked for a turn.
func (q *queue) giveUp(t *turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.own--
	if !q.here.Remove(t.place) { // its turn had come
		q.out--
		q.told = max(q.told-1, 0)
		q.dealLocked()
	}
}

// back notes that a request waits again, in the broker.
func (q *queue) back() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.own++
	q.out++
	q.told++
}

// resize sets how many requests the broker may have, by the free slots of the
// pool and the number of gateways.
func (q *queue) resize(free, gateways int, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.window = policy.Window(free, gateways, q.drain.Per(now))
	q.dealLocked()
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

// held is how many requests wait here for their turn.
func (q *queue) held() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.here.Len()
}
