package policy

import (
	"container/heap"
	"math"
	"time"
)

// MaxRetryAfter bounds the Retry-After that a client is sent: beyond two minutes the OpenAI SDKs do not retry at all.
const MaxRetryAfter = 120 * time.Second

// Queue is a gateway's view of one queue.
type Queue struct {
	Waiting  int     // requests ahead of a new one
	Free     int     // slots that some of these are about to take, so that they have not to wait
	Max      int     // the largest number that may have to wait
	Drain    float64 // requests per second that leave the queue; 0 if unknown
	Measured bool    // requests wait whatever slots are free, and Drain is the rate at which they have left since: see Flow
	Taken    bool    // of a Measured one: those that wait came a moment ago, and free slots are about to be taken all the same
}

// Wait is the expected wait of a new request; 0 if unknown.
func (q Queue) Wait() time.Duration {
	if q.Drain <= 0 {
		return 0
	}
	n := q.behind()
	if q.Measured && !q.Taken {
		n = q.Waiting
	}
	return time.Duration(min(float64(n)/q.Drain, 1e6) * float64(time.Second))
}

// Room is how long it takes until the queue accepts another request that may wait for limit; 0 if unknown.
func (q Queue) Room(limit time.Duration) time.Duration {
	if q.Drain <= 0 {
		return 0
	}
	full := time.Duration(min(float64(q.Waiting-q.Free-q.Max+1)/q.Drain, 1e6) * float64(time.Second))
	return max(full, q.Wait()-limit, 0)
}

// behind is how many requests have to wait for others to end.
func (q Queue) behind() int { return max(q.Waiting-q.Free, 0) }

// Admission says whether a request may join a queue, and if not, why.
type Admission int

const (
	Admitted  Admission = iota
	Full                // the queue has reached its maximum
	TooLate             // the request would be served after its deadline
	ShareFull           // the tenant has reached its share of the queue
)

// minQueueForTooLate keeps a short queue from refusing requests because of a drain rate that was
// measured while there was little to drain.
const minQueueForTooLate = 16

// Admit decides about a request with this much time left until its deadline.
func (q Queue) Admit(left time.Duration) Admission {
	switch {
	case q.Waiting-q.Free >= q.Max:
		return Full
	case (q.Measured || q.behind() >= minQueueForTooLate) && q.Wait() > left:
		return TooLate
	}
	return Admitted
}

// Rate measures events per second over about the last rateWindow. The zero value is ready to use.
type Rate struct {
	rate float64
	n    int
	from time.Time
}

const rateWindow = 2 * time.Second

// Add counts an event.
func (r *Rate) Add(now time.Time) {
	r.roll(now)
	r.n++
}

// Per returns the rate in events per second.
func (r *Rate) Per(now time.Time) float64 {
	r.roll(now)
	if d := now.Sub(r.from).Seconds(); r.rate == 0 && d > 0 {
		return float64(r.n) / max(d, 0.5)
	}
	return r.rate
}

func (r *Rate) roll(now time.Time) {
	if r.from.IsZero() {
		r.from = now
		return
	}
	d := now.Sub(r.from)
	if d < rateWindow {
		return
	}
	fresh := float64(r.n) / d.Seconds()
	if r.rate == 0 {
		r.rate = fresh
	} else {
		keep := math.Exp(-d.Seconds() / (2 * rateWindow.Seconds()))
		r.rate = r.rate*keep + fresh*(1-keep)
	}
	r.n, r.from = 0, now
}

// Fair is a queue of requests by tenant. The tenant that was served the fewest tokens is next, and
// within a tenant the oldest request, so a flooding tenant waits behind itself. The zero value is
// ready to use. It is not safe for concurrent use. Push, Pop and Remove take O(log tenants).
//
// While two tenants both have requests waiting, they are served the same number of tokens, to within the largest
// request and the burst. A tenant that had nothing waiting for a while comes back with a burst of fairBurst mean
// requests: until it is used up, the tenant goes ahead of those that always have requests waiting; among tenants with a
// burst the oldest request is first. After that it is served in turn. Without the burst, every request of an occasional
// tenant would wait for one request of each of the others. With a larger one, a tenant that starts to flood would stop
// the others for longer. What a tenant was served beyond its share is remembered while the others wait: otherwise a
// tenant that sends its next request when the last one has left would get one request for each of the others', however
// large its own are.
//
// This is the virtual token counter of Sheng et al., Fairness in Serving Large Language Models, 2024, with the burst
// added. Deficit round robin needs a quantum, and no quantum suits requests whose sizes differ a thousandfold: with the
// size of the largest, one round is a thousand small requests long and a returning tenant waits for all of them; with
// the size of the small ones, a large request takes a thousand rounds.
type Fair[T any] struct {
	tenants map[string]*tenantQueue[T]
	ahead   tenantHeap[T] // tenants with waiting requests and a burst, by oldest request
	waiting tenantHeap[T] // other tenants with waiting requests, least served first
	idle    tenantHeap[T] // tenants without waiting requests, kept for what they were served
	level   uint64        // the most that a tenant had been served when it was next
	order   uint64        // of the last request
	mean    uint64        // moving average of the cost of a request
	n       int           // waiting requests
	base    uint64        // the level at the last reset
	kept    bool          // set by Keep
	raised  bool          // the level has been raised to that of the other gateways
}

// fairBurst is about how many requests a person or a program that does not flood has under way.
const fairBurst = 16

// minBurst is the smallest burst, in mean requests, with which a tenant goes ahead. The reports
// between gateways about a tenant that always has requests waiting lag by less.
const minBurst = fairBurst / 4

// tenantQueue holds one tenant's requests.
type tenantQueue[T any] struct {
	tenant string
	// served is the number of tokens since the queue was created, starting at the floor.
	served      uint64
	burst       bool           // the tenant came back with a burst
	in          *tenantHeap[T] // the heap that the queue is in
	index       int            // its index there
	first, last *Ticket[T]
	n           int
}

// Ticket is a request's place in a Fair.
type Ticket[T any] struct {
	item       T
	cost       uint64
	order      uint64
	queue      *tenantQueue[T] // nil when the request no longer waits
	prev, next *Ticket[T]
}

// Push adds a request behind its tenant's others. The cost is in tokens; below 1 it counts as 1.
func (f *Fair[T]) Push(tenant string, cost int, item T) *Ticket[T] {
	f.order++
	t := &Ticket[T]{item: item, cost: uint64(max(cost, 1)), order: f.order}
	if f.mean == 0 {
		f.mean = t.cost
	}
	f.mean = max((15*f.mean+t.cost)/16, 1)
	q := f.queue(tenant)
	t.queue, t.prev = q, q.last
	if q.last != nil {
		q.last.next = t
	} else {
		q.first = t
	}
	q.last = t
	f.n++
	if q.n++; q.n == 1 {
		q.burst = q.served+minBurst*f.mean <= f.level
		f.place(q)
	}
	return t
}

// Pop removes and returns the next request, or false if none waits.
func (f *Fair[T]) Pop() (item T, ok bool) {
	if f.n == 0 {
		return item, false
	}
	q := f.next()
	t := q.first
	item = t.item
	f.level = max(f.level, q.served)
	q.served += t.cost
	f.unlink(t)
	f.prune()
	return item, true
}

func (f *Fair[T]) next() *tenantQueue[T] {
	if len(f.ahead.queues) > 0 {
		return f.ahead.queues[0]
	}
	return f.waiting.queues[0]
}

// Ahead reports whether the next request belongs to a tenant with a burst.
func (f *Fair[T]) Ahead() bool { return len(f.ahead.queues) > 0 }

// Next returns the next request, the tokens that its tenant has been served, and by how much that
// grows with each release while no tenant comes or goes; false if no request waits.
func (f *Fair[T]) Next() (item T, served, step uint64, ok bool) {
	if f.n == 0 {
		return item, 0, 0, false
	}
	q, tenants := f.next(), uint64(len(f.ahead.queues)+len(f.waiting.queues))
	return q.first.item, q.served, max(f.mean/tenants, 1), true
}

// Keep says whether other gateways have requests waiting in the same queue. Each gateway's Fair
// then holds a part of the requests, and receives what the others served. While there are others, what was served is
// remembered even when no request waits here.
func (f *Fair[T]) Keep(kept bool) {
	if f.kept = kept; !kept && f.n == 0 {
		f.reset()
	}
}

// Charge adds tokens that a tenant was served through another gateway or without waiting here.
func (f *Fair[T]) Charge(tenant string, tokens uint64) {
	q := f.queue(tenant)
	q.served += tokens
	f.place(q)
	f.prune()
}

// Level is how far service has come, in tokens per tenant.
func (f *Fair[T]) Level() uint64 { return f.level }

// Raise adopts the level of another gateway. A tenant that waits here falls behind by the difference, except on the
// first call after a reset: what was served before the reset does not count.
func (f *Fair[T]) Raise(level uint64) {
	by := level - min(f.level, level)
	if !f.raised {
		for _, q := range f.tenants {
			q.served += by
		}
		f.base += by
	}
	f.level += by
	f.raised = true
}

// prune forgets idle tenants that would start at the floor anyway.
func (f *Fair[T]) prune() {
	for len(f.idle.queues) > 0 && f.idle.queues[0].served <= f.floor() {
		delete(f.tenants, heap.Pop(&f.idle).(*tenantQueue[T]).tenant)
	}
}

// reset forgets what all tenants were served.
func (f *Fair[T]) reset() {
	*f = Fair[T]{mean: f.mean, level: f.level, base: f.level, kept: f.kept}
}

// floor is where a tenant without waiting requests starts.
func (f *Fair[T]) floor() uint64 { return f.level - min(f.level-f.base, fairBurst*f.mean) }

// Remove removes a request that is no longer wanted, at no cost for its tenant. It returns false if
// the request does not wait.
func (f *Fair[T]) Remove(t *Ticket[T]) bool {
	if t.queue == nil {
		return false
	}
	f.unlink(t)
	return true
}

// After is how many waiting requests come after a new one of that tenant: each other tenant is served as many before it as the
// tenant has itself. It looks at all tenants.
func (f *Fair[T]) After(tenant string) (n int) {
	before := f.Waiting(tenant) + 1
	for name, q := range f.tenants {
		if name != tenant {
			n += max(q.n-before, 0)
		}
	}
	return n
}

// Len is the number of waiting requests.
func (f *Fair[T]) Len() int { return f.n }

// Waiting is the number of a tenant's waiting requests.
func (f *Fair[T]) Waiting(tenant string) int {
	if q := f.tenants[tenant]; q != nil {
		return q.n
	}
	return 0
}

// queue returns a tenant's queue. A queue without waiting requests starts no lower than the floor.
func (f *Fair[T]) queue(tenant string) *tenantQueue[T] {
	q := f.tenants[tenant]
	if q == nil {
		if f.tenants == nil {
			f.tenants = make(map[string]*tenantQueue[T])
			f.ahead.byArrival = true
		}
		q = &tenantQueue[T]{tenant: tenant}
		f.tenants[tenant] = q
	}
	if q.n == 0 {
		q.served = max(q.served, f.floor())
	}
	return q
}

// place moves a queue to the heap that it belongs in now.
func (f *Fair[T]) place(q *tenantQueue[T]) {
	if q.in != nil {
		heap.Remove(q.in, q.index)
	}
	switch {
	case q.n == 0:
		q.in = &f.idle
	case q.burst && q.served < f.level:
		q.in = &f.ahead
	default:
		q.in = &f.waiting
	}
	heap.Push(q.in, q)
}

func (f *Fair[T]) unlink(t *Ticket[T]) {
	q := t.queue
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		q.first = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	} else {
		q.last = t.prev
	}
	*t = Ticket[T]{} // a ticket that the caller keeps must not keep the rest alive
	q.n--
	if f.n--; f.n == 0 && !f.kept { // no request waits, so no tenant is owed anything
		f.reset()
		return
	}
	f.place(q)
}

// tenantHeap implements container/heap.
type tenantHeap[T any] struct {
	queues    []*tenantQueue[T]
	byArrival bool // by oldest request, otherwise by tokens served
}

func (h *tenantHeap[T]) Len() int { return len(h.queues) }
func (h *tenantHeap[T]) Less(i, j int) bool {
	a, b := h.queues[i], h.queues[j]
	if h.byArrival || a.served == b.served && a.n > 0 && b.n > 0 {
		return a.first.order < b.first.order
	}
	return a.served < b.served
}
func (h *tenantHeap[T]) Swap(i, j int) {
	h.queues[i], h.queues[j] = h.queues[j], h.queues[i]
	h.queues[i].index, h.queues[j].index = i, j
}
func (h *tenantHeap[T]) Push(q any) {
	q.(*tenantQueue[T]).index = len(h.queues)
	h.queues = append(h.queues, q.(*tenantQueue[T]))
}
func (h *tenantHeap[T]) Pop() any {
	last := len(h.queues) - 1
	q := h.queues[last]
	h.queues[last] = nil
	h.queues = h.queues[:last]
	return q
}

const (
	// windowTime is longer than the time from a claim until the next request that is released for it can be delivered.
	windowTime = 10 * time.Millisecond

	// minWindow is for a full pool: its next free slot must find a request waiting in the broker too.
	minWindow = 1
)

// Window is how many unclaimed requests a gateway keeps in the broker's queue for a tier and a pool: its part of the
// pool's free slots, and at least as many as are claimed, at perSecond claims of its requests, while the next one is on
// its way to the broker, so that a freed slot finds one waiting. The rest wait in the gateway, by tenant: the broker's
// queue is first in, first out, and a request in it waits for a flood that came before.
func Window(free, gateways int, perSecond float64) int {
	part := math.Ceil(float64(free) / float64(max(gateways, 1)))
	leaves := math.Ceil(perSecond * windowTime.Seconds())
	return int(min(max(part, leaves, minWindow), 1e6))
}
