package gateway

import (
	"cmp"
	"net/http"
	"slices"
	"sync"

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

// lane returns the lane of a pool for a request, if not all workers of the pool can serve it; else an empty name.
func (l *lengths) lane(pool string, n need) string {
	all := l.fleet.lengthsOf(pool)
	if len(all) < 2 || n == (need{}) {
		return ""
	}
	length, least := policy.LengthFor(all, max(l.tokens(pool, n), n.atLeast))
	if lane := subjects.LongLane(length); !least && l.lanes.exists(pool, lane) {
		return lane
	}
	return ""
}

// stale reports whether a lane is one for long requests that no worker bids on any more.
func (l *lengths) stale(pool, lane string) bool {
	if !subjects.IsLongLane(lane) {
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
// onMisfit returns what the request needs, and whether any worker that has not refused it has a longer one.
func (l *lengths) onMisfit(pool, worker string, fail *subjects.Fail, n need, refused map[string]bool) (now need, longer bool) {
	length := l.fleet.length(pool, worker)
	if length == 0 || length == policy.AnyLength || fail.Answer == nil {
		return n, true
	}
	switch fail.Answer.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
	default:
		return n, true
	}
	if n.text != (policy.Text{}) {
		l.mu.Lock()
		l.poolLocked(pool).AddOver(n.text, int(length)-max(n.answer, 1))
		l.mu.Unlock()
	}
	n.atLeast = max(n.atLeast, length+1)
	return n, l.fleet.longer(pool, length, refused)
}

func (l *lengths) poolLocked(pool string) *policy.Tokens {
	t := l.pools[pool]
	if t == nil {
		t = new(policy.Tokens)
		l.pools[pool] = t
	}
	return t
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
