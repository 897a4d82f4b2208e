package engine

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"
)

// A sequence is one request in the batch.
type sequence struct {
	// Fixed before submit.
	in     int           // prompt tokens
	caches bool          // looks in the prefix cache, and leaves its prompt there
	blocks []uint64      // of the prompt, for the cache
	limit  int           // tokens to make
	step   int           // wake the waiter at the first token and every so many after it; 0: only at the limit
	extra  time.Duration // between the prefill and the first token
	sticks bool          // keeps its slot at the limit, and never ends by itself

	wake chan struct{} // holds one; made or ended has changed

	// Guarded by batch.mu.
	cached int // prompt tokens that the cache had when the prefill began
	made   int
	ended  bool
	first  time.Time // of its first token, while it rests
	join   float64   // progress at its first token
	due    float64   // progress at which it wakes its waiter next
}

// next is how many tokens there are when the waiter is woken next.
func (q *sequence) next(made int) int {
	switch {
	case q.step == 0:
		return q.limit
	case made == 0:
		return min(1, q.limit)
	}
	return min(made+q.step, q.limit)
}

// A batch is the model of time of the package documentation. Its clock is progress: the tokens that a sequence which
// decodes all the time would have made. Token k of a sequence is there when progress has grown by k-1 since its first
// one, so the pace may change without touching any sequence. Events are worked off in their order and at their own time,
// however late the timer fires.
type batch struct {
	// Fixed after newBatch.
	slots         int
	maxQueue      int
	prefillRate   float64
	itlBase       time.Duration
	itlPerRequest time.Duration

	mu         sync.Mutex  // guards all below
	waiting    []*sequence // for a slot, first come first
	prefilling []*sequence // the first one is being prefilled
	prefillEnd time.Time   // of the first one
	resting    []*sequence // prefilled, by the time of their first token
	decoding   []*sequence // by due
	progress   float64     // at the time at
	at         time.Time
	running    int // sequences that hold a slot, those that stick included
	maxRunning int
	started    int64
	cache      *prefixCache // nil: none
	queried    int64        // prompt tokens that were looked for in the cache
	cached     int64        // and found
	timer      *time.Timer  // nil while nothing is to come
}

func newBatch(cfg SimConfig) *batch {
	return &batch{
		slots: cfg.Slots, maxQueue: cfg.MaxQueue, prefillRate: cfg.PrefillRate,
		itlBase: cfg.ITLBase, itlPerRequest: cfg.ITLPerRequest, cache: newPrefixCache(cfg.PrefixCache),
	}
}

// submit takes the sequence in, or reports that the queue is full. Whoever submits must leave.
func (b *batch) submit(q *sequence) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.advanceLocked(now)
	if b.maxQueue > 0 && b.running == b.slots && len(b.waiting) >= b.maxQueue {
		return false
	}
	b.waiting = append(b.waiting, q)
	b.advanceLocked(now)
	b.armLocked(now)
	return true
}

// await returns when the sequence has made more tokens than seen or has ended, or else when ctx ends.
func (b *batch) await(ctx context.Context, q *sequence, seen int) (made int, ended bool, err error) {
	for {
		b.mu.Lock()
		made, ended = q.made, q.ended
		b.mu.Unlock()
		if made > seen || ended {
			return made, ended, nil
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return seen, false, context.Cause(ctx)
		}
	}
}

// leave takes out a sequence that has not ended, whatever its phase, and gives its slot to the next.
func (b *batch) leave(q *sequence) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.ended {
		return
	}
	now := time.Now()
	b.advanceLocked(now)
	if !q.ended {
		b.removeLocked(q)
		b.advanceLocked(now)
	}
	b.armLocked(now)
}

func (b *batch) removeLocked(q *sequence) {
	q.ended = true
	if drop(&b.waiting, q) {
		return
	}
	b.running--
	if len(b.prefilling) > 0 && b.prefilling[0] == q {
		b.prefilling = b.prefilling[1:]
		b.prefillLocked()
		return
	}
	_ = drop(&b.prefilling, q) || drop(&b.resting, q) || drop(&b.decoding, q)
}

func (b *batch) stats() SimStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advanceLocked(time.Now())
	return SimStats{
		Running: b.running, Waiting: len(b.waiting), MaxRunning: b.maxRunning, Started: b.started,
		Queried: b.queried, Cached: b.cached,
	}
}

func (b *batch) tick() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.advanceLocked(now)
	b.armLocked(now)
}

// armLocked sets the timer to the next event.
func (b *batch) armLocked(now time.Time) {
	t, event := b.nextLocked()
	switch {
	case event == nil && b.timer == nil:
	case event == nil:
		b.timer.Stop()
		b.timer = nil // a later one may belong to another test's clock
	case b.timer == nil:
		b.timer = time.AfterFunc(t.Sub(now), b.tick)
	default:
		b.timer.Reset(t.Sub(now))
	}
}

// advanceLocked works off everything that is due until now.
func (b *batch) advanceLocked(now time.Time) {
	for {
		b.admitLocked()
		t, event := b.nextLocked()
		if event == nil || t.After(now) {
			break
		}
		b.moveLocked(t)
		event(b)
	}
	b.moveLocked(now)
}

// nextLocked is the next event and its time.
func (b *batch) nextLocked() (t time.Time, event func(*batch)) {
	if len(b.prefilling) > 0 {
		t, event = b.prefillEnd, (*batch).prefilledLocked
	}
	if len(b.resting) > 0 && (event == nil || b.resting[0].first.Before(t)) {
		t, event = b.resting[0].first, (*batch).restedLocked
	}
	if len(b.decoding) > 0 {
		left := (b.decoding[0].due - b.progress) * float64(b.itlLocked())
		if d := b.at.Add(time.Duration(math.Round(max(0, left)))); event == nil || d.Before(t) {
			t, event = d, (*batch).decodedLocked
		}
	}
	return t, event
}

func (b *batch) itlLocked() time.Duration {
	return b.itlBase + b.itlPerRequest*time.Duration(len(b.decoding))
}

func (b *batch) moveLocked(t time.Time) {
	if len(b.decoding) == 0 {
		b.progress = 0 // small numbers are exact
	} else if itl := b.itlLocked(); itl > 0 {
		b.progress += float64(t.Sub(b.at)) / float64(itl)
	}
	b.at = t
}

func (b *batch) admitLocked() {
	for b.running < b.slots && len(b.waiting) > 0 {
		q := b.waiting[0]
		b.waiting = b.waiting[1:]
		b.running++
		b.started++
		b.maxRunning = max(b.maxRunning, b.running)
		b.prefilling = append(b.prefilling, q)
		if len(b.prefilling) == 1 {
			b.prefillLocked()
		}
	}
}

// prefillLocked begins the first prefill, if there is one.
func (b *batch) prefillLocked() {
	b.prefillEnd = b.at
	if len(b.prefilling) == 0 {
		return
	}
	q := b.prefilling[0]
	if q.caches {
		// The last token is always computed: the first one of the answer comes of it.
		q.cached = min(b.cache.hits(q.blocks), (q.in-1)/cacheBlock) * cacheBlock
		b.queried += int64(q.in)
		b.cached += int64(q.cached)
	}
	if b.prefillRate > 0 {
		seconds := float64(q.in-q.cached) / b.prefillRate
		b.prefillEnd = b.at.Add(time.Duration(math.Round(seconds * float64(time.Second))))
	}
}

func (b *batch) prefilledLocked() {
	q := b.prefilling[0]
	if q.caches {
		b.cache.use(q.blocks)
	}
	b.prefilling = b.prefilling[1:]
	b.prefillLocked()
	if q.extra == 0 {
		b.joinLocked(q)
		return
	}
	q.first = b.at.Add(q.extra)
	b.resting = insert(b.resting, q, func(x *sequence) bool { return x.first.After(q.first) })
}

func (b *batch) restedLocked() {
	q := b.resting[0]
	b.resting = b.resting[1:]
	b.joinLocked(q)
}

func (b *batch) joinLocked(q *sequence) {
	q.join = b.progress
	b.decodeLocked(q)
}

// decodeLocked puts the sequence where its next wake-up is due.
func (b *batch) decodeLocked(q *sequence) {
	q.due = q.join + float64(max(0, q.next(q.made)-1))
	b.decoding = insert(b.decoding, q, func(x *sequence) bool { return x.due > q.due })
}

func (b *batch) decodedLocked() {
	q := b.decoding[0]
	if b.itlLocked() == 0 {
		q.made = q.limit
	} else {
		b.progress = max(b.progress, q.due) // the event's time is rounded
		q.made = q.next(q.made)
	}
	b.decoding = b.decoding[1:]
	switch {
	case q.made < q.limit:
		b.decodeLocked(q)
	case !q.sticks:
		q.ended = true
		b.running--
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// insert keeps a list ordered: q comes before the first that is after it.
func insert(list []*sequence, q *sequence, after func(*sequence) bool) []*sequence {
	if n := len(list); n == 0 || !after(list[n-1]) {
		return append(list, q)
	}
	return slices.Insert(list, slices.IndexFunc(list, after), q)
}

func drop(list *[]*sequence, q *sequence) bool {
	i := slices.Index(*list, q)
	if i < 0 {
		return false
	}
	*list = slices.Delete(*list, i, i+1)
	return true
}
