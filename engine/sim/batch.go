package sim

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
	started  bool
	fresh    int // tokens of the prompt that the cache had not when it was first in the queue; -1: not looked yet
	cached   int // prompt tokens that the cache had when the prefill first began
	made     int // that the waiter was woken for
	again    int // tokens that it had made when it was preempted: prefilled with its prompt
	ended    bool
	decoding bool
	first    time.Time // of its first token, while it rests
	join     float64   // progress at the first token since its prefill
	due      float64   // progress at which it wakes its waiter next
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

// held is how many tokens it keeps in memory, from its prefill on: those that the prefill reads, the one that comes of it,
// and what follows.
func (q *sequence) held(progress float64) int {
	return q.in + max(min(q.reached(progress), q.limit), min(q.again+1, q.limit))
}

// reached is how many tokens it has made, told or not.
func (q *sequence) reached(progress float64) int {
	if !q.decoding {
		return max(q.made, q.again)
	}
	const noise = 1e-9 // of floating point
	return max(q.made, q.again+1+int(math.Floor(progress-q.join+noise)))
}

// toRead is how many tokens its prefill is taken for.
func (q *sequence) toRead() int { return q.fresh + q.again }

// A batch is the model of time of the package documentation. Its clock is progress: the tokens that a sequence which
// decodes all the time would have made. Token k of a sequence is there when progress has grown by k-1 since its first
// one, so the pace may change without touching any sequence. Events are worked off in their order and at their own time,
// however late the timer fires.
type batch struct {
	// Fixed after newBatch.
	slots         int
	maxQueue      int
	memory        int // tokens
	prefillBatch  int // tokens
	prefillRate   float64
	itlBase       time.Duration
	itlPerRequest time.Duration

	mu         sync.Mutex  // guards all below
	clock      float64     // 1: as configured
	waiting    []*sequence // for a slot and memory, first come first
	admitted   []*sequence // those that hold a slot, those that stick included; the one that took it last is the last
	most       int         // tokens that they may come to hold
	prefilling []*sequence // the first one is being prefilled
	reading    int         // tokens of all of these
	prefillEnd time.Time   // of the first one
	resting    []*sequence // prefilled, by the time of their first token
	decoding   []*sequence // by due
	progress   float64     // at the time at
	at         time.Time
	maxRunning int
	started    int64
	preempted  int64
	cache      *prefixCache // nil: none
	queried    int64        // prompt tokens that were looked for in the cache
	cached     int64        // and found
	timer      *time.Timer  // nil while nothing is to come
}

func newBatch(cfg Config) *batch {
	return &batch{
		slots: cfg.Slots, maxQueue: cfg.MaxQueue, memory: cfg.KVTokens, prefillBatch: cfg.PrefillBatch,
		prefillRate: cfg.PrefillRate, itlBase: cfg.ITLBase, itlPerRequest: cfg.ITLPerRequest, clock: 1, cache: newPrefixCache(cfg.PrefixCache),
	}
}

// submit takes the sequence in, or reports that the queue is full. Whoever submits must leave.
func (b *batch) submit(q *sequence) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.advanceLocked(now)
	if b.maxQueue > 0 && len(b.waiting) >= b.maxQueue {
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
	b.releaseLocked(q)
}

// releaseLocked takes a sequence off its slot, whatever its phase.
func (b *batch) releaseLocked(q *sequence) {
	drop(&b.admitted, q)
	b.most -= q.in + q.limit
	q.decoding = false
	if len(b.prefilling) > 0 && b.prefilling[0] == q {
		b.prefilling = b.prefilling[1:]
		b.reading -= q.toRead()
		b.prefillLocked()
		return
	}
	if drop(&b.prefilling, q) {
		b.reading -= q.toRead()
		return
	}
	_ = drop(&b.resting, q) || drop(&b.decoding, q)
}

// preemptLocked takes memory and slot from a sequence, and puts it in front of all that wait. What it has made is read
// again, with its prompt, when there is room.
func (b *batch) preemptLocked(q *sequence) {
	made := q.reached(b.progress)
	b.releaseLocked(q)
	q.again = made
	b.waiting = slices.Insert(b.waiting, 0, q)
	b.preempted++
}

func (b *batch) stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advanceLocked(time.Now())
	return Stats{
		Running: len(b.admitted), Waiting: len(b.waiting), MaxRunning: b.maxRunning, Started: b.started,
		Preempted: b.preempted, Queried: b.queried, Cached: b.cached, Clock: b.clock,
	}
}

// held is how many tokens the cache holds of the requests in the batch.
func (b *batch) held() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advanceLocked(time.Now())
	return b.heldLocked()
}

func (b *batch) heldLocked() int {
	tokens := 0
	for _, q := range b.admitted {
		tokens += q.held(b.progress)
	}
	return tokens
}

// setClock makes everything that is computed so many times as fast, from now on.
func (b *batch) setClock(clock float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.advanceLocked(now)
	if len(b.prefilling) > 0 {
		b.prefillEnd = now.Add(scaled(b.prefillEnd.Sub(now), b.clock/clock))
	}
	b.clock = clock
	b.armLocked(now)
}

func scaled(d time.Duration, by float64) time.Duration {
	return time.Duration(math.Round(float64(d) * by))
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
	if left, runsOut := b.runsOutLocked(); runsOut {
		// What ends with the same token gives its memory back first: hence a time that is rounded up.
		if d := b.at.Add(time.Duration(math.Ceil(left * float64(b.itlLocked())))); d.Before(t) {
			t, event = d, (*batch).overflowLocked
		}
	}
	return t, event
}

// runsOutLocked is the progress until a token finds no memory, if that is before something else is due. All grow by a
// token in a progress of 1, each at its own moment.
func (b *batch) runsOutLocked() (left float64, runsOut bool) {
	n := len(b.decoding)
	if n == 0 || len(b.admitted) == 1 || b.most <= b.memory || b.itlLocked() == 0 {
		return 0, false
	}
	free := b.memory - b.heldLocked()
	if free < 0 {
		return 0, true
	}
	rounds := float64(free / n)
	if b.decoding[0].due <= b.progress+rounds {
		return 0, false
	}
	moments := make([]float64, n)
	for i, q := range b.decoding {
		moments[i] = q.join + float64(q.reached(b.progress)-q.again) - b.progress
	}
	slices.Sort(moments)
	return rounds + moments[free%n], true
}

// overflowLocked preempts as few as there must be, those that were admitted last. One alone may have more than there is.
func (b *batch) overflowLocked() {
	for len(b.admitted) > 1 && b.heldLocked() > b.memory {
		b.preemptLocked(b.admitted[len(b.admitted)-1])
	}
}

func (b *batch) itlLocked() time.Duration {
	return scaled(b.itlBase+b.itlPerRequest*time.Duration(len(b.decoding)), 1/b.clock)
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
	for len(b.admitted) < b.slots && len(b.waiting) > 0 {
		q := b.waiting[0]
		if len(b.admitted) > 0 && b.most+q.in+q.limit > b.memory && b.heldLocked()+q.held(0) > b.memory {
			break // those behind it wait too, however small they are
		}
		b.lookLocked(q)
		if len(b.prefilling) > 0 && b.reading+q.toRead() > b.prefillBatch {
			break
		}
		b.waiting = b.waiting[1:]
		b.admitted = append(b.admitted, q)
		b.most += q.in + q.limit
		b.maxRunning = max(b.maxRunning, len(b.admitted))
		if !q.started {
			q.started = true
			b.started++
		}
		b.prefilling = append(b.prefilling, q)
		b.reading += q.toRead()
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
	cached := b.hitsLocked(q)
	if q.caches && q.again == 0 {
		q.cached = cached
		b.queried += int64(q.in)
		b.cached += int64(cached)
	}
	if b.prefillRate > 0 {
		seconds := float64(q.in+q.again-cached) / b.prefillRate / b.clock
		b.prefillEnd = b.at.Add(time.Duration(math.Round(seconds * float64(time.Second))))
	}
}

// hitsLocked is how many tokens of the prompt the prefix cache has. The last one is always computed: the first one of the
// answer comes of it.
func (b *batch) hitsLocked(q *sequence) int {
	if !q.caches {
		return 0
	}
	return min(b.cache.hits(q.blocks), (q.in-1)/cacheBlock) * cacheBlock
}

// lookLocked finds once how much of a prompt is new, for its share of what is prefilled together.
func (b *batch) lookLocked(q *sequence) {
	if q.fresh < 0 {
		q.fresh = q.in - b.hitsLocked(q)
	}
}

func (b *batch) prefilledLocked() {
	q := b.prefilling[0]
	if q.caches {
		b.cache.use(q.blocks)
	}
	b.prefilling = b.prefilling[1:]
	b.reading -= q.toRead()
	b.prefillLocked()
	if q.extra == 0 || q.again > 0 {
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
	q.join, q.decoding = b.progress, true
	b.decodeLocked(q)
}

// decodeLocked puts the sequence where its next wake-up is due.
func (b *batch) decodeLocked(q *sequence) {
	q.due = q.join + float64(max(0, q.next(q.made)-q.again-1))
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
		b.releaseLocked(q)
	default:
		q.decoding = false
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
