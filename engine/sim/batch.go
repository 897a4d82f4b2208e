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
	caches bool          // uses the prefix cache
	blocks []uint64      // blocks of the prompt, for the cache
	limit  int           // tokens to produce
	step   int           // wake the waiter at the first token and every step tokens after it; 0: only at the limit
	extra  time.Duration // between the prefill and the first token
	sticks bool          // keeps its slot at the limit and never ends by itself

	wake chan struct{} // buffered, 1; signals that made or ended has changed

	// Guarded by batch.mu.
	started  bool
	fresh    int           // prompt tokens that were not cached when it first reached the head of the queue; -1: not looked up yet
	cached   int           // prompt tokens that were cached when the prefill first started
	computed int           // tokens that its last prefill computed
	read     time.Duration // how long that took
	made     int           // tokens for which the waiter was woken
	again    int           // tokens produced before it was preempted, to be prefilled with its prompt
	ended    bool
	decoding bool
	first    time.Time // time of its first token, while it is resting
	join     float64   // progress at the first token since its prefill
	due      float64   // progress at which it next wakes its waiter
}

// next is the number of tokens at the next wake-up.
func (q *sequence) next(made int) int {
	switch {
	case q.step == 0:
		return q.limit
	case made == 0:
		return min(1, q.limit)
	}
	return min(made+q.step, q.limit)
}

// held is how many tokens of memory it uses from its prefill on: those that the prefill reads, the
// one that the prefill produces, and the ones that follow.
func (q *sequence) held(progress float64) int {
	return q.in + max(min(q.reached(progress), q.limit), min(q.again+1, q.limit))
}

// reached is how many tokens it has produced, reported or not.
func (q *sequence) reached(progress float64) int {
	if !q.decoding {
		return max(q.made, q.again)
	}
	const noise = 1e-9 // of floating point
	return max(q.made, q.again+1+int(math.Floor(progress-q.join+noise)))
}

// toRead is how many tokens its prefill counts against PrefillBatch.
func (q *sequence) toRead() int { return q.fresh + q.again }

// A batch implements the timing of the package documentation. Its clock is progress: the number of
// tokens that a sequence which decodes all the time would have produced. Token k of a sequence is
// ready when progress has grown by k-1 since its first one, so the pace can change without touching
// any sequence. Events are processed in order and at their own time, however late the timer fires.
type batch struct {
	cfg Config // fixed

	mu         sync.Mutex  // guards all fields below
	clock      float64     // speed; 1: as configured
	waiting    []*sequence // waiting for a slot and memory, in order of arrival
	admitted   []*sequence // those with a slot, including those that keep it; in the order in which they got it
	most       int         // tokens that they may come to hold
	prefilling []*sequence // the first one is being prefilled
	reading    int         // tokens of all of these
	prefillAt  time.Time   // when that of the first one began
	prefillEnd time.Time   // of the first one
	resting    []*sequence // prefilled, ordered by the time of their first token
	decoding   []*sequence // ordered by due
	progress   float64     // at the time at
	at         time.Time
	maxRunning int
	started    int64
	preempted  int64
	cache      *prefixCache  // nil: none
	queried    int64         // prompt tokens that were looked up in the cache
	cached     int64         // prompt tokens that were found
	computed   int64         // prompt tokens that were prefilled
	read       time.Duration // how long that took
	timer      *time.Timer   // nil while no event is due
}

func newBatch(cfg Config) *batch {
	return &batch{cfg: cfg, clock: 1, cache: newPrefixCache(cfg.PrefixCache)}
}

// submit adds a sequence, or reports that the queue is full. After a successful submit, leave must be called.
func (b *batch) submit(q *sequence) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.advanceLocked(now)
	if b.cfg.MaxQueue > 0 && len(b.waiting) >= b.cfg.MaxQueue {
		return false
	}
	b.waiting = append(b.waiting, q)
	b.advanceLocked(now)
	b.armLocked(now)
	return true
}

// await returns when the sequence has produced more tokens than seen, when it has ended, or when ctx ends.
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

// leave removes a sequence that has not ended, in any phase, and frees its slot.
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

// releaseLocked takes a sequence off its slot, in any phase.
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

// preemptLocked takes memory and slot from a sequence and puts it at the front of the queue. What
// it has produced is prefilled again, with its prompt, when there is room.
func (b *batch) preemptLocked(q *sequence) {
	made := q.reached(b.progress)
	b.releaseLocked(q)
	q.again = made
	b.waiting = slices.Insert(b.waiting, 0, q)
	b.preempted++
}

// stats also returns how many tokens of memory the requests in the batch use.
func (b *batch) stats() (st Stats, held int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advanceLocked(time.Now())
	return Stats{
		Running: len(b.admitted), Waiting: len(b.waiting), MaxRunning: b.maxRunning, Started: b.started,
		Preempted: b.preempted, Queried: b.queried, Cached: b.cached, Computed: b.computed, PrefillTime: b.read, Clock: b.clock,
	}, b.heldLocked()
}

func (b *batch) heldLocked() int {
	tokens := 0
	for _, q := range b.admitted {
		tokens += q.held(b.progress)
	}
	return tokens
}

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
		b.timer = nil // a later timer may belong to another test's clock
	case b.timer == nil:
		b.timer = time.AfterFunc(t.Sub(now), b.tick)
	default:
		b.timer.Reset(t.Sub(now))
	}
}

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

// nextLocked returns the next event and its time.
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
		// The time is rounded up: a sequence that ends with the same token releases its memory first.
		if d := b.at.Add(time.Duration(math.Ceil(left * float64(b.itlLocked())))); d.Before(t) {
			t, event = d, (*batch).overflowLocked
		}
	}
	return t, event
}

// runsOutLocked returns the progress until a token finds no memory, if that happens before anything
// else is due. Every sequence grows by one token per progress of 1, each at its own moment.
func (b *batch) runsOutLocked() (left float64, runsOut bool) {
	n := len(b.decoding)
	if n == 0 || len(b.admitted) == 1 || b.most <= b.cfg.KVTokens || b.itlLocked() == 0 {
		return 0, false
	}
	free := b.cfg.KVTokens - b.heldLocked()
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

// overflowLocked preempts as few sequences as necessary, those admitted last. A single one may exceed the memory.
func (b *batch) overflowLocked() {
	for len(b.admitted) > 1 && b.heldLocked() > b.cfg.KVTokens {
		b.preemptLocked(b.admitted[len(b.admitted)-1])
	}
}

func (b *batch) itlLocked() time.Duration {
	return scaled(b.cfg.ITLBase+b.cfg.ITLPerRequest*time.Duration(len(b.decoding)), 1/b.clock)
}

func (b *batch) moveLocked(t time.Time) {
	if len(b.decoding) == 0 {
		b.progress = 0 // keeps the numbers small, and so exact
	} else if itl := b.itlLocked(); itl > 0 {
		b.progress += float64(t.Sub(b.at)) / float64(itl)
	}
	b.at = t
}

func (b *batch) admitLocked() {
	for len(b.admitted) < b.cfg.Slots && len(b.waiting) > 0 {
		q := b.waiting[0]
		if len(b.admitted) > 0 && b.most+q.in+q.limit > b.cfg.KVTokens && b.heldLocked()+q.held(0) > b.cfg.KVTokens {
			break // those behind it wait too, however small they are
		}
		b.lookLocked(q)
		if len(b.prefilling) > 0 && b.reading+q.toRead() > b.cfg.PrefillBatch {
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

// prefillLocked starts the first prefill, if there is one.
func (b *batch) prefillLocked() {
	b.prefillAt, b.prefillEnd = b.at, b.at
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
	q.computed = q.in + q.again - cached
	if b.cfg.PrefillRate > 0 {
		seconds := float64(q.computed) / b.cfg.PrefillRate / b.clock
		b.prefillEnd = b.at.Add(time.Duration(math.Round(seconds * float64(time.Second))))
	}
}

// hitsLocked is how many tokens of the prompt are in the prefix cache. The last token is always
// computed: it produces the first token of the answer.
func (b *batch) hitsLocked(q *sequence) int {
	if !q.caches {
		return 0
	}
	return min(b.cache.hits(q.blocks), (q.in-1)/cacheBlock) * cacheBlock
}

// lookLocked determines once how much of a prompt is new, for its part of PrefillBatch.
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
	q.read = b.at.Sub(b.prefillAt)
	b.computed += int64(q.computed)
	b.read += q.read
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

// decodeLocked inserts the sequence at its next wake-up.
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

// insert keeps a list ordered: q is inserted before the first element that comes after it.
func insert(list []*sequence, q *sequence, after func(*sequence) bool) []*sequence {
	if n := len(list); n == 0 || !after(list[n-1]) {
		return append(list, q)
	}
	return slices.Insert(list, slices.IndexFunc(list, after), q)
}

// drop removes x from a list, and reports whether it was there.
func drop[T comparable](list *[]T, x T) bool {
	i := slices.Index(*list, x)
	if i < 0 {
		return false
	}
	*list = slices.Delete(*list, i, i+1)
	return true
}
