package gateway

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// lengths finds the lanes of requests that are too long for some of a pool's workers. It estimates how many tokens prompts
// have, by what engines reported of earlier ones.
type lengths struct {
	fleet *fleet
	lanes *lanes

	mu    sync.Mutex
	pools map[string]*policy.Tokens
}

// need is how much of a context a request needs. The zero value is not known.
type need struct {
	text    policy.Text // of its body
	answer  int         // most tokens of its answer; 0: not limited by the request
	atLeast int64       // tokens, since an engine with fewer has refused it
}

// of returns what a request needs. It looks at the body only if the workers of the pool differ.
func (l *lengths) of(pool string, body []byte, answer int) need {
	if len(l.fleet.lengthsOf(pool)) < 2 {
		return need{}
	}
	return need{text: policy.TextOf(body), answer: answer}
}

// lane returns the lane of a pool for a request, if not all workers of the pool can serve it; else an empty name. Estimates
// exceed what a request needs: it goes where no live worker bids only after every engine was too short for it.
func (l *lengths) lane(pool string, n need) string {
	all := l.fleet.lengthsOf(pool)
	if n.atLeast > 0 && (len(all) == 0 || all[len(all)-1] < n.atLeast) {
		all = l.fleet.lengthsKnown(pool, time.Now())
	}
	if len(all) < 2 || n == (need{}) {
		return ""
	}
	length, least := policy.LengthFor(all, max(l.tokens(pool, n), n.atLeast))
	if lane := subjects.LongLane(length); !least && l.lanes.exists(pool, lane) {
		return lane
	}
	return ""
}

// stale reports whether a lane is one for long requests that no worker bids on any more, unless it is the one for what the
// request needs.
func (l *lengths) stale(pool, lane string, n need) bool {
	if !subjects.IsLongLane(lane) || n.atLeast > 0 && l.lane(pool, n) == lane {
		return false
	}
	all := l.fleet.lengthsOf(pool)
	return len(all) < 2 || !slices.ContainsFunc(all[1:], func(n int64) bool { return subjects.LongLane(n) == lane })
}

func (l *lengths) tokens(pool string, n need) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(l.poolLocked(pool).Most(n.text) + max(n.answer, 1))
}

// learn takes in how many tokens the prompt of a request had; 0: not known.
func (l *lengths) learn(pool string, n need, tokens int) {
	if n.text == (policy.Text{}) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.poolLocked(pool).Add(n.text, tokens)
}

// onMisfit takes in that the engine of a worker has refused a request that it cannot serve. If its context is too short,
// onMisfit returns what the request needs, whether any worker that has not refused it has a longer one, and whether one has
// that is away.
func (l *lengths) onMisfit(pool, worker string, fail *subjects.Fail, n need, refused map[string]bool) (now need, longer, away bool) {
	length := l.fleet.length(pool, worker)
	if length == 0 || length == policy.AnyLength || fail.Answer == nil {
		return n, true, false
	}
	switch fail.Answer.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
	default:
		return n, true, false
	}
	if n.text != (policy.Text{}) {
		l.mu.Lock()
		l.poolLocked(pool).AddOver(n.text, int(length)-max(n.answer, 1))
		l.mu.Unlock()
	}
	n.atLeast = max(n.atLeast, length+1)
	longer = l.fleet.longer(pool, length, refused)
	if !longer {
		all := l.fleet.lengthsKnown(pool, time.Now())
		away = len(all) > 0 && all[len(all)-1] > max(length, l.longest(pool))
	}
	return n, longer, away
}

// longest is the longest context of a pool's live workers; 0: none is known.
func (l *lengths) longest(pool string) int64 {
	if all := l.fleet.lengthsOf(pool); len(all) > 0 {
		return all[len(all)-1]
	}
	return 0
}

// lastFor returns when a live worker last bid on a lane for long requests; now if one does, or it is none.
func (l *lengths) lastFor(pool, lane string, now time.Time) time.Time {
	if !subjects.IsLongLane(lane) {
		return now
	}
	return l.fleet.lastBid(pool, lane, now)
}

func (l *lengths) poolLocked(pool string) *policy.Tokens {
	t := l.pools[pool]
	if t == nil {
		t = new(policy.Tokens)
		l.pools[pool] = t
	}
	return t
}

// lengthKept is for how long the length of a context is known after the last heartbeat of its worker: a machine that starts
// again, or an engine that loads a large model, takes minutes.
const lengthKept = 10 * time.Minute

// lengthsSeen are the lengths of contexts in a pool.
type lengthsSeen map[int64]lengthSeen

type lengthSeen struct {
	known time.Time // when a worker last said so, whatever its state
	live  time.Time // when that worker was live; zero: it never was
}

// seeLengthsLocked takes in the lengths of contexts that a worker has.
func (f *fleet) seeLengthsLocked(h *subjects.Heartbeat, now time.Time) {
	for i := range h.Pools {
		p := &h.Pools[i]
		if p.Length <= 0 || p.Length >= policy.AnyLength {
			continue
		}
		all := f.away[p.Pool]
		if all == nil {
			all = make(lengthsSeen)
			f.away[p.Pool] = all
		}
		seen, known := all[p.Length]
		if !known && len(all) >= maxLengths {
			maps.DeleteFunc(all, func(_ int64, s lengthSeen) bool { return now.Sub(s.known) > lengthKept })
			if len(all) >= maxLengths {
				continue
			}
		}
		seen.known = now
		if h.Live() {
			seen.live = now
		}
		all[p.Length] = seen
	}
}

// lengthsKnown returns the lengths of the contexts of a pool's workers, of those too that are not live now and were known
// lately, each once, in ascending order.
func (f *fleet) lengthsKnown(pool string, now time.Time) []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := slices.Clone(f.lengths[pool])
	for n, s := range f.away[pool] {
		if now.Sub(s.known) <= lengthKept {
			all = append(all, n)
		}
	}
	return mostLengths(all)
}

// lastBid returns when a live worker last had the context that a lane for long requests is for, or a longer one; the zero time:
// never.
func (f *fleet) lastBid(pool, lane string, now time.Time) (last time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.away[pool]
	for n := range all {
		if subjects.LongLane(n) != lane {
			continue
		}
		if live := f.lengths[pool]; len(live) > 0 && live[len(live)-1] >= n {
			return now
		}
		for longer, s := range all {
			if longer >= n && s.live.After(last) {
				last = s.live
			}
		}
		return last
	}
	return now
}

// length returns the length of a worker's context in a pool; 0 if that is not known.
func (f *fleet) length(pool, worker string) int64 {
	w := f.worker(worker)
	if w == nil {
		return 0
	}
	for i := range w.Pools {
		if w.Pools[i].Pool == pool {
			return w.Pools[i].Length
		}
	}
	return 0
}

// longer reports whether a live worker that is not to be avoided has a longer context than that, or one of unknown length.
func (f *fleet) longer(pool string, length int64, avoid map[string]bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, m := range f.workers {
		if avoid[id] || !m.beat.Live() {
			continue
		}
		for i := range m.beat.Pools {
			if p := &m.beat.Pools[i]; p.Pool == pool && cmp.Or(p.Length, policy.AnyLength) > length {
				return true
			}
		}
	}
	return false
}
