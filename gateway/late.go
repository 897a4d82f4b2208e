package gateway

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// late moves requests of whose answer nothing has come to other workers: those of an engine that hangs, and a few whose
// first byte takes too long though their engine works. It moves a request only if another attempt is allowed. One whose engine
// works moves only if another worker has room for it, and counts as a retry of the pool. Those of an engine that hangs wait in
// front of the queue if there is no room, or newer requests would overtake them: they are bounded by what the other workers run
// at once, as those of an engine that crashed.
type late struct {
	cfg     *Config
	fleet   *fleet
	retries *retries
}

// move is called with all requests, from time to time, and when an engine was found to hang.
func (l *late) move(requests []*request, now time.Time) {
	hanging := l.fleet.hanging()
	room, places := make(map[string]int), make(map[string]int) // left by what was moved, by pool
	running, moving := 0, 0
	var stuck, overdue []*request
	again := make(map[string]int) // requests that wait after a failure, by pool
	for _, r := range requests {
		p := r.progress()
		if p.attempt != nil {
			running++
		}
		if p.wasLate && !p.answered {
			moving++
		}
		pool := r.target.Load().queue.pool
		if p.again {
			again[pool]++
		}
		if p.attempt == nil || p.answered || p.last {
			continue
		}
		if _, hangs := hanging[placed{p.attempt.worker, pool}]; hangs {
			stuck = append(stuck, r)
		} else if !p.wasLate && l.overdue(r, p, now) {
			overdue = append(overdue, r)
		}
	}
	slices.SortFunc(stuck, func(a, b *request) int { return a.arrived.Compare(b.arrived) })
	var turn *turn
	for _, r := range stuck {
		a, pool := r.current(), r.target.Load().queue.pool
		if a == nil {
			continue
		}
		if _, known := places[pool]; !known {
			places[pool] = l.fleet.places(pool, r.shunned(a)) - again[pool]
		}
		next := turn.after()
		if why, hangs := hanging[placed{a.worker, pool}]; hangs && places[pool] > 0 && r.giveUp(a, why, false, next) {
			turn = next
			places[pool]--
			again[pool]++
		}
	}
	for _, r := range overdue {
		a := r.current()
		if a == nil || !policy.MayMove(moving, running) || !l.hasRoom(room, again, r, a) || !l.retries.take(r.target.Load().queue.pool, now) {
			continue
		}
		if r.giveUp(a, fmt.Sprintf("worker %s: no first byte within %v", a.name, now.Sub(a.began).Round(100*time.Millisecond)), true, nil) {
			moving++
		}
	}
}

// overdue says whether a stream's first byte is late: by what the operator allows, and only else by the worker's measure.
func (l *late) overdue(r *request, p progress, now time.Time) bool {
	limit := time.Duration(cmp.Or(r.target.Load().tier.FirstByteWithin, policy.Duration(l.cfg.FirstByteWithin)))
	if limit == 0 {
		return p.late
	}
	return r.wire.Stream && now.Sub(p.attempt.began) > limit
}

// hasRoom takes a free slot of a worker other than that of the attempt, if there is one. What the requests of a pool avoid may
// differ: the first one's count for all, until the next call of move. Those that wait again come first.
func (l *late) hasRoom(room, again map[string]int, r *request, a *attempt) bool {
	pool := r.target.Load().queue.pool
	if _, known := room[pool]; !known {
		room[pool] = l.fleet.room(pool, r.shunned(a)) - again[pool]
	}
	room[pool]--
	return room[pool] >= 0
}
