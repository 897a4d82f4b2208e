package gateway

import (
	"sync"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// queue is what this gateway knows of the queue of one pool and tier.
type queue struct {
	mu      sync.Mutex
	own     int       // requests of this gateway that wait
	told    int       // waiting for everybody, as the last delivery's ack subject told, kept up since
	heard   time.Time // when
	drain   policy.Rate
	service float64 // mean seconds that a slot is busy with a request
	served  float64 // how many stand behind it, at most policy.MeanMemory
}

// toldHolds is how long the word of a depth is believed.
const toldHolds = 5 * time.Second

func (q *queue) waitingLocked(now time.Time) int {
	if now.Sub(q.heard) > toldHolds {
		return q.own
	}
	return max(q.own, q.told)
}

// enter lets a request in or says why not.
func (q *queue) enter(t policy.Tier, left time.Duration, slots int, now time.Time) (policy.Queue, policy.Admission) {
	q.mu.Lock()
	defer q.mu.Unlock()
	view := policy.Queue{Waiting: q.waitingLocked(now), Max: t.MaxQueue, Drain: q.drain.Per(now)}
	if q.own > 0 && view.Waiting > q.own { // the rate is this gateway's share
		view.Drain *= float64(view.Waiting) / float64(q.own)
	}
	if q.service > 0 {
		view.Drain = max(view.Drain, float64(slots)/q.service)
	}
	a := view.Admit(left)
	if a == policy.Admitted {
		q.own++
		q.told++
	}
	return view, a
}

// leave notes that a request of this gateway waits no more: claimed, or given up.
func (q *queue) leave(claimed bool, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.own--
	q.told = max(q.told-1, 0)
	if claimed {
		q.drain.Add(now)
	}
}

// back notes that a request waits again.
func (q *queue) back() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.own++
	q.told++
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
