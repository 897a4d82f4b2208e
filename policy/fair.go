package policy

import (
	"container/heap"
	"math"
	"time"
)

// Fair is where requests wait by tenant. The tenant that has been served the
// fewest tokens is next, and within a tenant the request that came first, so
// that a tenant that floods waits behind itself. The zero value is ready. It is
// not safe for concurrent use. Push, Pop and Remove take O(log tenants).
//
// While two tenants both have requests waiting, they are served the same number
// of tokens to within the largest request and the credit. A tenant that had
// nothing waiting for a while comes back with a credit of fairCredit mean
// requests: until that is spent it goes ahead of those that always have, and
// among those with a credit who came first is first. Then it takes turns.
// Without the credit every request of a tenant that asks now and then would wait
// for one of each of the others. With more, a tenant that begins to flood would
// stop the others for as long. What a tenant was served beyond its part is not
// forgotten while the others wait: otherwise one that sends its next request
// when the last is gone would get a request for each of the others', however
// large its own are.
//
// This is the virtual token counter of Sheng et al., Fairness in Serving Large
// Language Models, 2024, with that credit. Deficit round robin needs a quantum,
// and no quantum suits requests that differ a thousandfold: of the size of the
// largest, a turn is a thousand small requests long and whoever comes back waits
// for all of them; of the size of the small ones, a large one takes a thousand
// rounds.
type Fair[T any] struct {
	lines   map[string]*line[T]
	ahead   lineHeap[T] // lines with requests and a credit, by what came first
	waiting lineHeap[T] // the others with requests, the least served first
	idle    lineHeap[T] // lines without requests, kept for what they were served
	level   uint64      // the most that a tenant had been served when its turn came
	order   uint64      // of the last request
	mean    uint64      // cost of a request, of late
	n       int         // requests that wait
	base    uint64      // the level at which all began anew
	kept    bool        // see Keep
	joined  bool        // the level is that of the others too
}

// fairBurst is about how many requests a person or a program has under way that
// does not mean to flood.
const fairBurst = 16

// minBurst is the credit, in mean requests, with which a tenant goes ahead.
// What gateways tell each other of a tenant that always has requests waiting is
// late by less.
const minBurst = fairBurst / 4

// line is one tenant's requests.
type line[T any] struct {
	tenant      string
	served      uint64       // tokens, from where it began
	burst       bool         // it came back with one
	in          *lineHeap[T] // where it is
	index       int          // and at which place
	first, last *Ticket[T]
	n           int
}

// Ticket is a request's place in a Fair.
type Ticket[T any] struct {
	item       T
	cost       uint64
	order      uint64
	line       *line[T] // nil when it waits no more
	prev, next *Ticket[T]
}

// Push puts a request behind its tenant's others. The cost is in tokens; below
// 1 it counts as 1.
func (f *Fair[T]) Push(tenant string, cost int, item T) *Ticket[T] {
	f.order++
	t := &Ticket[T]{item: item, cost: uint64(max(cost, 1)), order: f.order}
	if f.mean == 0 {
		f.mean = t.cost
	}
	f.mean = max((15*f.mean+t.cost)/16, 1)
	l := f.line(tenant)
	t.line, t.prev = l, l.last
	if l.last != nil {
		l.last.next = t
	} else {
		l.first = t
	}
	l.last = t
	f.n++
	if l.n++; l.n == 1 {
		l.burst = l.served+minBurst*f.mean <= f.level
		f.place(l)
	}
	return t
}

// Pop takes out the request whose turn it is; false if none waits.
func (f *Fair[T]) Pop() (item T, ok bool) {
	if f.n == 0 {
		return item, false
	}
	l := f.next()
	t := l.first
	item = t.item
	f.level = max(f.level, l.served)
	l.served += t.cost
	f.unlink(t)
	f.prune()
	return item, true
}

func (f *Fair[T]) next() *line[T] {
	if len(f.ahead.lines) > 0 {
		return f.ahead.lines[0]
	}
	return f.waiting.lines[0]
}

// Ahead says whether the next request is of a tenant that has a credit.
func (f *Fair[T]) Ahead() bool { return len(f.ahead.lines) > 0 }

// Next is the request whose turn it is, what its tenant has been served, and by
// how much that grows with each turn while nobody comes or goes; false if none
// waits.
func (f *Fair[T]) Next() (item T, served, step uint64, ok bool) {
	if f.n == 0 {
		return item, 0, 0, false
	}
	l, tenants := f.next(), uint64(len(f.ahead.lines)+len(f.waiting.lines))
	return l.first.item, l.served, max(f.mean/tenants, 1), true
}

// Several Fairs may be one: each then has a part of the requests, and each is
// told what the others served. Keep says whether there are others where requests
// wait: until there are none, what was served is not forgotten when none waits
// here.
func (f *Fair[T]) Keep(kept bool) {
	if f.kept = kept; !kept && f.n == 0 {
		f.reset()
	}
}

// Charge counts tokens that a tenant was served without a turn here.
func (f *Fair[T]) Charge(tenant string, tokens uint64) {
	l := f.line(tenant)
	l.served += tokens
	f.place(l)
	f.prune()
}

// Level is how far service has come.
func (f *Fair[T]) Level() uint64 { return f.level }

// Raise takes the word of another Fair for how far service has come. Who waits
// is as far behind as that makes it; but what was served before all began anew
// here is no part of it.
func (f *Fair[T]) Raise(level uint64) {
	by := level - min(f.level, level)
	if !f.joined {
		for _, l := range f.lines {
			l.served += by
		}
		f.base += by
	}
	f.level += by
	f.joined = true
}

// prune forgets who would begin at the floor anyway.
func (f *Fair[T]) prune() {
	for len(f.idle.lines) > 0 && f.idle.lines[0].served <= f.floor() {
		delete(f.lines, heap.Pop(&f.idle).(*line[T]).tenant)
	}
}

// reset makes all begin anew.
func (f *Fair[T]) reset() {
	*f = Fair[T]{mean: f.mean, level: f.level, base: f.level, kept: f.kept}
}

// floor is where a tenant begins that had nothing waiting.
func (f *Fair[T]) floor() uint64 { return f.level - min(f.level-f.base, fairBurst*f.mean) }

// Remove takes a request out that is not wanted any more, at no cost for its
// tenant. It says false if the request does not wait.
func (f *Fair[T]) Remove(t *Ticket[T]) bool {
	if t.line == nil {
		return false
	}
	f.unlink(t)
	return true
}

// Len is how many requests wait.
func (f *Fair[T]) Len() int { return f.n }

// Waiting is how many requests of a tenant wait.
func (f *Fair[T]) Waiting(tenant string) int {
	if l := f.lines[tenant]; l != nil {
		return l.n
	}
	return 0
}

// line is the tenant's. One that had nothing waiting begins no lower than the
// floor.
func (f *Fair[T]) line(tenant string) *line[T] {
	l := f.lines[tenant]
	if l == nil {
		if f.lines == nil {
			f.lines = make(map[string]*line[T])
			f.ahead.first = true
		}
		l = &line[T]{tenant: tenant}
		f.lines[tenant] = l
	}
	if l.n == 0 {
		l.served = max(l.served, f.floor())
	}
	return l
}

// place puts a line where it belongs by now.
func (f *Fair[T]) place(l *line[T]) {
	if l.in != nil {
		heap.Remove(l.in, l.index)
	}
	switch {
	case l.n == 0:
		l.in = &f.idle
	case l.burst && l.served < f.level:
		l.in = &f.ahead
	default:
		l.in = &f.waiting
	}
	heap.Push(l.in, l)
}

func (f *Fair[T]) unlink(t *Ticket[T]) {
	l := t.line
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		l.first = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	} else {
		l.last = t.prev
	}
	*t = Ticket[T]{} // whoever keeps it keeps nothing else alive
	l.n--
	if f.n--; f.n == 0 && !f.kept { // nobody waits for anybody: all begin anew
		f.reset()
		return
	}
	f.place(l)
}

// lineHeap is a heap: see container/heap.
type lineHeap[T any] struct {
	lines []*line[T]
	first bool // by what came first, else by what was served
}

func (h *lineHeap[T]) Len() int { return len(h.lines) }
func (h *lineHeap[T]) Less(i, j int) bool {
	a, b := h.lines[i], h.lines[j]
	if h.first || a.served == b.served && a.n > 0 && b.n > 0 {
		return a.first.order < b.first.order
	}
	return a.served < b.served
}
func (h *lineHeap[T]) Swap(i, j int) {
	h.lines[i], h.lines[j] = h.lines[j], h.lines[i]
	h.lines[i].index, h.lines[j].index = i, j
}
func (h *lineHeap[T]) Push(l any) {
	l.(*line[T]).index = len(h.lines)
	h.lines = append(h.lines, l.(*line[T]))
}
func (h *lineHeap[T]) Pop() any {
	last := len(h.lines) - 1
	l := h.lines[last]
	h.lines[last] = nil
	h.lines = h.lines[:last]
	return l
}

const (
	// windowTime is longer than it takes from a claim until the next request that
	// is released for it can be delivered.
	windowTime = 10 * time.Millisecond

	// minWindow is for a pool that is full: its next free slot, too, finds a request
	// that waits in the broker.
	minWindow = 1
)

// Window is how many unclaimed requests a gateway keeps in the broker's queue
// for a tier and a pool: its part of the pool's free slots, but at least as many
// as are claimed, at perSecond claims of its requests, while the next one is on
// its way to the broker, so that a slot that becomes free finds one waiting. The
// rest waits in the gateway, by tenant: the broker's queue is first in, first
// out, and what is in it waits for a flood that came before.
func Window(free, gateways int, perSecond float64) int {
	part := math.Ceil(float64(free) / float64(max(gateways, 1)))
	leaves := math.Ceil(perSecond * windowTime.Seconds())
	return int(min(max(part, leaves, minWindow), 1e6))
}
