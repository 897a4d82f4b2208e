package gateway

import (
	"cmp"
	"fmt"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// late moves requests of whose answer nothing has come to other workers: all those of an engine that hangs, and a few whose
// first byte takes too long though their engine works. It moves a request only if another worker has room for it, and if
// another attempt is allowed. Moves of the second kind count as retries of the pool; those of the first are bounded by the
// room, as those of an engine that crashed.
type late struct {
	cfg     *Config
	fleet   *fleet
	retries *retries
}

// move is called with all requests, from time to time.
func (l *late) move(requests []*request, now time.Time) {
	hanging := l.fleet.hanging()
	room := make(map[string]int) // left by what was moved, by pool
	running, moving := 0, 0
	var overdue []*request
	for _, r := range requests {
		p := r.progress()
		if p.attempt != nil {
			running++
		}
		if p.wasLate && !p.answered {
			moving++
		}
		if p.attempt == nil || p.answered || p.last {
			continue
		}
		if why, hangs := hanging[placed{p.attempt.worker, r.target.Load().queue.pool}]; hangs {
			if l.hasRoom(room, r, p.attempt) {
				r.giveUp(p.attempt, why, false)
			}
		} else if !p.wasLate && l.overdue(r, p, now) {
			overdue = append(overdue, r)
		}
	}
	for _, r := range overdue {
		a := r.current()
		if a == nil || !policy.MayMove(moving, running) || !l.hasRoom(room, r, a) || !l.retries.take(r.target.Load().queue.pool, now) {
			continue
		}
		if r.giveUp(a, fmt.Sprintf("worker %s: no first byte within %v", a.name, now.Sub(a.began).Round(100*time.Millisecond)), true) {
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

// hasRoom takes a place on a worker other than that of the attempt, if there is one. What the requests of a pool avoid may
// differ: the first one's count for all, until the next call of move.
func (l *late) hasRoom(room map[string]int, r *request, a *attempt) bool {
	pool := r.target.Load().queue.pool
	if _, known := room[pool]; !known {
		room[pool] = l.fleet.room(pool, r.shunned(a))
	}
	room[pool]--
	return room[pool] >= 0
}
