package worker

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
)

const (
	// prefillUnknown is how long a request that does not stream counts as waiting for
	// its first token while nothing is measured.
	prefillUnknown = time.Second

	// itlPerPrefill is how many input tokens an engine prefills in the time of one inter-token interval, where only
	// that interval is measured. Engines prefill more (110 to 200 on an L4, an A100 and an H100), so that the prefill
	// gate opens late rather than early.
	itlPerPrefill = 100

	// mostWeight bounds how many samples a long answer counts as.
	mostWeight = 4

	// longestKept is the part of the longest answer that remains after another one: half after 70 answers.
	longestKept = 0.99

	// together is within which time requests begin that may come to the engine in any order. If the first of them is not the
	// one whose prompt is read first, the time for that one would be lost, and so for a prompt that the others then find cached.
	together = 50 * time.Millisecond

	// curveEvery is how often a curve is computed again without a new sample, to see whether it has faded.
	curveEvery = time.Second
)

// estimator measures how long the engine takes for prompts and for tokens, and keeps
// the requests that wait for their first token. Bids are priced by it.
type estimator struct {
	begun      atomic.Uint64 // number of requests so far
	prefilling atomic.Int32  // length of waiting

	mu        sync.Mutex
	pools     map[string]*poolEstimate
	served    []*poolEstimate // those in pools, in the order of serve
	waiting   []*timing       // requests that wait for their first token, the oldest first
	lastFirst time.Time       // when a request last stopped waiting
	decoding  meter
	counted   *prefixCount  // what the engine last reported; nil: nothing
	prefilled *prefillCount // the same
	tokens    tokenCount
}

// prefixCount are an engine's counters of its prefix cache.
type prefixCount struct{ queries, hits int64 }

// prefillCount are an engine's counters of the prompt tokens that it has computed, and of the time for these.
type prefillCount struct {
	tokens int64
	took   time.Duration
}

// tokenCount is the time for tokens by the engine's counter of them.
type tokenCount struct {
	last   *int64  // as last reported; nil: it was not
	area   float64 // of estimator.decoding at that time
	tokens float64 // since decoding began to be counted, or fewer: see keptTokens
	took   float64 // seconds of requests that decode, for these
}

const (
	// fewTokens is how many have to be counted before their time is known, and keptTokens how many count at most.
	fewTokens  = 16
	keptTokens = 1000
)

// poolEstimate is what was measured with the requests of one pool. All fields but curve are guarded by estimator.mu.
type poolEstimate struct {
	name    string
	prefill policy.Regression
	itl     policy.Regression
	mean    policy.Mean
	first   policy.Regression // seconds to the first byte over input tokens, whatever else the engine had to do
	pace    policy.PromptPace // of prompts, by the first tokens of streams
	whole   policy.PromptPace // the same by whole answers, which took longer than their prompts
	longest float64           // tokens of the longest answer; older ones count less
	slowest policy.Worst      // first bytes of streams
	wholes  policy.Worst      // whole answers
	heard   time.Time         // when an answer last began or ended
	fitted  time.Time         // when curve was computed; zero: there are newer samples

	// curve is nil while nothing is measured. The bidder reads it without a lock.
	curve atomic.Pointer[policy.Curve]
}

// timing is the part of an attempt that the estimator owns.
type timing struct {
	// Fixed when the attempt begins.
	pool    *poolEstimate // of the pool whose model answers it
	spilled bool          // the request belongs to another pool, which spills over to this one
	input   float64       // tokens of the prompt
	streams bool          // the client asked for a stream, so its first token can be seen
	started time.Time
	beside  int // other requests in flight when it began
	most    int // tokens that the client allows; 0: any number
	load    coldLoad

	// Guarded by estimator.mu.
	alone       bool          // no other request waited for its first token when it began
	expectFirst time.Duration // expected time to the first token; 0: unknown
	firstBy     time.Time     // until when it counts as waiting for its first token, if it does not stream
	firstByte   time.Time
	prefillTook time.Duration // time that the engine spent on its prompt; 0: unknown
	readTook    time.Duration // the same, also if it may have come to the engine before an older one; 0: unknown
	fresh       float64       // tokens of the prompt that were not cached, by its answer; 0: unknown
	decodes     bool          // it counts in estimator.decoding
	areaAtFirst float64       // area of estimator.decoding at its first byte
	ahead       time.Duration // what the engine needed for those that waited for their first token when it began, as far as known
}

// coldLoad is the load of a model that an attempt waits for. The zero value is an attempt whose model is loaded.
type coldLoad struct {
	waits bool
	first bool          // no other request waited for the load when it began
	left  time.Duration // expected time until the load ends

	unseen bool // the engine may have to load the model, and does not report it
}

func newEstimator() *estimator { return &estimator{pools: make(map[string]*poolEstimate)} }

// serve sets the pools that the worker serves, and returns their curves. The measurements of pools that stay are kept.
func (e *estimator) serve(names []string) []*atomic.Pointer[policy.Curve] {
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.pools
	e.pools, e.served = make(map[string]*poolEstimate, len(names)), nil
	curves := make([]*atomic.Pointer[policy.Curve], 0, len(names))
	for _, name := range names {
		p := was[name]
		if p == nil {
			p = &poolEstimate{name: name}
		}
		e.pools[name] = p
		e.served = append(e.served, p)
		curves = append(curves, &p.curve)
	}
	return curves
}

// pool returns the estimate of a served pool. For a pool that was served only when the
// bid was placed, it returns a new one that is not kept.
func (e *estimator) pool(name string) *poolEstimate {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.pools[name]; p != nil {
		return p
	}
	return &poolEstimate{name: name}
}

// begin adds an attempt to those that wait for their first token. It returns how long that should take: see policy.Await and
// policy.DueOf.
func (e *estimator) begin(t *timing) (awaited policy.Awaited, due policy.Due) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.prefillsLocked(t.started)
	t.alone, t.ahead = before.n == 0, time.Duration(before.work*float64(time.Second))
	curve := t.pool.curveLocked(t.started)
	t.expect(curve)
	if awaited.Loads = t.load.waits; !t.load.waits && curve != nil {
		p := t.prompt(curve, t.ahead)
		awaited, due = policy.Await(p), policy.DueOf(p)
	}
	e.waiting = append(e.waiting, t)
	e.begun.Add(1)
	e.countLocked()
	if !t.streams { // its first token cannot be seen: it counts as decoding from the start
		e.decodesLocked(t, t.started)
	}
	return awaited, due
}

func (t *timing) prompt(c *policy.Curve, before time.Duration) policy.Prompt {
	p := policy.Prompt{
		Input: int(t.input), Took: t.expectFirst, Read: t.expectFirst, Before: before, Pace: t.pool.pace.Reading(),
		Whole: !t.streams, Most: t.most, Seen: t.pool.longest, MayLoad: t.load.unseen,
	}
	if p.Pace == (policy.Reading{}) {
		p.Pace = t.pool.whole.Reading().AtMost()
	}
	p.Worst, p.Usual = t.pool.wholes.Of(t.beside+1, t.started), t.pool.mean.Input
	if t.streams {
		p.Slowest, p.Worst = t.pool.slowest.With(t.beside+1, t.started), t.pool.slowest.Of(t.beside+1, t.started)
	}
	if first := t.pool.first.Line(); first != nil && t.streams {
		p.Took = max(p.Took, time.Duration(first.At(t.input)*float64(time.Second)))
	}
	if c.ITL != nil {
		p.Token = time.Duration(c.ITL.At(float64(t.beside+1)) * float64(time.Second))
	}
	return p
}

// expect sets when the attempt should have its first token. If several attempts wait
// for the same load, only the first counts it as work of the engine.
func (t *timing) expect(c *policy.Curve) {
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	first := prefillUnknown
	switch {
	case c != nil && c.Prefill != nil:
		t.expectFirst = max(seconds(c.Prefill.At(t.input)), time.Microsecond)
		first = t.expectFirst
	case c != nil && c.ITL != nil:
		first = min(first, seconds(c.ITL.At(1)*t.input/itlPerPrefill))
	}
	t.firstBy = t.started.Add(first + t.load.left)
	if t.load.first {
		t.expectFirst += t.load.left
	}
}

// firstByte records an attempt's first byte. After a load the time until then says nothing about the prompt.
func (e *estimator) firstByte(t *timing, afterLoad bool, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t.firstByte, t.pool.heard = now, now
	if len(e.waiting) > 0 && !afterLoad {
		// An engine prefills one prompt after the other, this one since the last was done. Requests that come to an
		// idle engine would show the time more exactly, but under load there are none, and then a faded estimate would
		// make the worker too cheap.
		took, first := now.Sub(later(t.started, e.lastFirst)), e.waiting[0]
		if first == t {
			t.prefillTook = took
		}
		if t.started.Sub(first.started) <= together {
			t.readTook = took
		}
	}
	e.prefilledLocked(t, now)
	e.decodesLocked(t, now)
	t.areaAtFirst = e.decoding.until(now)
}

// learn adds the measurements of an attempt whose answer is whole. If it was disturbed,
// because the worker was fenced or the engine down meanwhile, its times do not count.
func (e *estimator) learn(t *timing, output int, streamed, disturbed bool, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := t.pool
	p.heard = now
	p.longest = max(p.longest*longestKept, float64(output))
	if !t.spilled {
		p.mean.Add(t.input, float64(output))
	}
	if disturbed {
		return
	}
	p.fitted = time.Time{}
	if !streamed && !t.streams && !t.load.waits {
		p.wholes.Add(t.beside+1, now.Sub(t.started), now)
	}
	add := func(pace *policy.PromptPace, took time.Duration) {
		if t.fresh > 0 {
			pace.AddFresh(t.input, t.fresh, took, now)
		} else {
			pace.Add(t.input, took, now)
		}
	}
	switch {
	case streamed && !t.firstByte.IsZero():
		if !t.load.waits {
			p.first.Add(t.input, t.firstByte.Sub(t.started).Seconds(), now)
			p.slowest.Add(t.beside+1, t.firstByte.Sub(t.started), now)
		}
		if t.prefillTook > 0 {
			p.prefill.Add(t.input, t.prefillTook.Seconds(), now)
		}
		add(&p.pace, t.readTook)
		if d := now.Sub(t.firstByte).Seconds(); output > 4 && d > 0 {
			p.itl.AddOf((e.decoding.until(now)-t.areaAtFirst)/d, d/float64(output-1), p.weightOf(output), now)
		}
	case t.load.waits: // its time contains the load
	case output > 0:
		add(&p.whole, now.Sub(t.started))
		if d := now.Sub(t.started) - t.ahead - t.expectFirst; d > 0 {
			p.itl.AddOf(float64(t.beside+1), d.Seconds()/float64(output), p.weightOf(output), now)
		}
	case t.alone: // embeddings and the like: all of it is prefill
		p.prefill.Add(t.input, now.Sub(t.started).Seconds(), now)
		p.pace.Add(t.input, now.Sub(t.started), now)
	}
}

// weightOf is how much the time of an answer says about a token: as much as it has tokens, relative to the mean.
func (p *poolEstimate) weightOf(output int) float64 {
	return min(float64(output)/max(p.mean.Output, 1), mostWeight)
}

// onGenerated takes in the engine's counter of tokens; nil: it has none. While a request decodes, the counter tells how long a
// token takes before any answer has ended.
func (e *estimator) onGenerated(n *int64, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, area := &e.tokens, e.decoding.until(now)
	was, before := c.last, c.area
	c.last, c.area = n, area
	if n == nil || was == nil || *n < *was || area <= before {
		return
	}
	c.tokens += float64(*n - *was)
	c.took += area - before
	if over := c.tokens / keptTokens; over > 1 {
		c.tokens, c.took = c.tokens/over, c.took/over
	}
}

// countedToken returns the mean time for a token of one request by the engine's counter; 0: unknown.
func (e *estimator) countedToken() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.tokens.tokens < fewTokens {
		return 0
	}
	return time.Duration(e.tokens.took / e.tokens.tokens * float64(time.Second))
}

// onCache takes in the engine's counters of tokens that it looked up in its prefix cache, and found there; nil: it has none.
func (e *estimator) onCache(queries, hits *int64, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if queries == nil || hits == nil {
		e.counted = nil
		return
	}
	was := e.counted
	e.counted = &prefixCount{*queries, *hits}
	if was == nil { // what it did before is of other requests
		return
	}
	for _, p := range e.served {
		for _, pace := range []*policy.PromptPace{&p.pace, &p.whole} {
			pace.Count(*queries-was.queries, *hits-was.hits, now)
		}
	}
}

// onPrefilled takes in the engine's counters of prompt tokens that it has computed, and of the time for these; nil: it has none.
func (e *estimator) onPrefilled(tokens *int64, took *time.Duration, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.prefilled
	if e.prefilled = nil; tokens == nil || took == nil {
		return
	}
	e.prefilled = &prefillCount{*tokens, *took}
	if was == nil { // what it did before is of other requests
		return
	}
	for _, p := range e.served {
		p.computed(*tokens-was.tokens, *took-was.took, now)
	}
}

func (p *poolEstimate) computed(tokens int64, took time.Duration, now time.Time) {
	p.pace.Computed(tokens, took, now)
	p.whole.Computed(tokens, took, now)
}

// onPrompt takes in what the answer to an attempt says of its prompt, before learn.
func (e *estimator) onPrompt(t *timing, said api.PromptReport, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if said.Counted && said.Tokens > 0 {
		t.fresh = max(t.input*(1-float64(said.Cached)/float64(said.Tokens)), 1)
	}
	if e.prefilled == nil { // else it is counted with the others
		t.pool.computed(int64(said.Computed), said.Took, now)
	}
}

// lastHeard returns when an answer last began or ended, by served pool.
func (e *estimator) lastHeard() map[string]time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	heard := make(map[string]time.Time, len(e.served))
	for _, p := range e.served {
		heard[p.name] = p.heard
	}
	return heard
}

// gap returns the expected time between two tokens of a stream with n requests in flight, the longest of all pools; 0:
// unknown.
func (e *estimator) gap(n int) (gap time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.served {
		if c := p.curve.Load(); c != nil && c.ITL != nil {
			gap = max(gap, time.Duration(c.ITL.At(float64(n))*float64(time.Second)))
		}
	}
	return gap
}

func (e *estimator) end(t *timing, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t.decodes {
		t.decodes = false
		e.decoding.add(-1, now)
	}
	e.prefilledLocked(t, now)
}

func (e *estimator) prefilledLocked(t *timing, now time.Time) {
	if i := slices.Index(e.waiting, t); i >= 0 {
		e.waiting = slices.Delete(e.waiting, i, i+1)
		e.lastFirst = now
		e.countLocked()
	}
}

func (e *estimator) decodesLocked(t *timing, now time.Time) {
	if !t.decodes {
		t.decodes = true
		e.decoding.add(1, now)
	}
}

func (e *estimator) countLocked() { e.prefilling.Store(int32(len(e.waiting))) }

// prefills are the requests in flight that wait for their first token. The first token
// of one that does not stream cannot be seen; it counts until it should have had it.
type prefills struct {
	n     int
	until time.Time // when n becomes less with time alone; zero: it does not
	work  float64   // seconds that the engine needs for all of them
	known bool      // work contains every one of them
}

// holdBack reports whether so many prompts wait that a request of a tier with such a longest wait should not join them, behind
// more mean ones.
func (p *prefills) holdBack(maxWait time.Duration, more int) bool {
	return p.known && p.n > 0 && policy.HoldsBack(maxWait, p.work*(1+float64(more)/float64(p.n)))
}

// load returns the requests that wait for their first token, and updates the curves.
func (e *estimator) load(now time.Time) prefills {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.served {
		p.curveLocked(now)
	}
	return e.prefillsLocked(now)
}

func (e *estimator) prefillsLocked(now time.Time) prefills {
	was := len(e.waiting)
	e.waiting = slices.DeleteFunc(e.waiting, func(t *timing) bool {
		over := !t.streams && !now.Before(t.firstBy)
		if over { // from then on the engine was free for the next one
			e.lastFirst = later(e.lastFirst, t.firstBy)
		}
		return over
	})
	if len(e.waiting) < was {
		e.countLocked()
	}
	p := prefills{known: true, n: len(e.waiting)}
	for _, t := range e.waiting {
		if !t.streams && (p.until.IsZero() || t.firstBy.Before(p.until)) {
			p.until = t.firstBy
		}
		p.known = p.known && t.expectFirst > 0
		p.work += t.expectFirst.Seconds()
	}
	// The engine has worked on the first of them since the one before was done.
	if p.n > 0 {
		first := e.waiting[0]
		p.work -= min(now.Sub(later(first.started, e.lastFirst)), first.expectFirst).Seconds()
	}
	return p
}

// prefillMark is taken at each read of a stream. Two equal and quiet marks show that no
// prompt was prefilled between them.
type prefillMark struct {
	begun uint64 // number of requests so far
	quiet bool   // none waits for its first token
}

// mark takes no lock, since each read of each stream calls it.
func (e *estimator) mark() prefillMark {
	return prefillMark{begun: e.begun.Load(), quiet: e.prefilling.Load() == 0}
}

// workload describes the requests of all served pools.
type workload struct {
	tokens   float64       // prompt and output of a mean request; 0: unknown
	prompt   time.Duration // time that the engine needs for the prompt of a mean request; 0: unknown
	prefills int           // requests that wait for their first token
}

func (e *estimator) workload(now time.Time) workload {
	e.mu.Lock()
	defer e.mu.Unlock()
	means := make([]policy.Mean, 0, len(e.served))
	var took, samples float64
	for _, p := range e.served {
		means = append(means, p.mean)
		if c := p.curveLocked(now); c != nil && c.Prefill != nil {
			took += p.mean.Samples * c.Prefill.At(p.mean.Input)
			samples += p.mean.Samples
		}
	}
	mean := policy.MeanOf(means)
	return workload{
		tokens:   mean.Input + mean.Output,
		prompt:   time.Duration(took / max(samples, 1) * float64(time.Second)),
		prefills: e.prefillsLocked(now).n,
	}
}

// answerTime estimates how long an attempt takes from the end of the load of its model to its first byte: the time for
// its prompt, or for the whole answer if it does not stream. exact is false if the time for a whole answer is unknown.
func (e *estimator) answerTime(t *timing, streamed bool, now time.Time) (took time.Duration, exact bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, answer := t.pool.curveLocked(now), 0.0
	exact = true
	switch {
	case !streamed:
		answer, exact = c.Price(t.pool.mean, 1, 0)
	case c != nil && c.Prefill != nil:
		answer = c.Prefill.At(t.input)
	}
	return time.Duration(answer * float64(time.Second)), exact
}

// measured is what the estimator contributes to a heartbeat for one pool.
type measured struct {
	curve *policy.Curve
	mean  policy.Mean
}

// measurements returns those of all served pools, by name.
func (e *estimator) measurements(now time.Time) map[string]measured {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make(map[string]measured, len(e.served))
	for _, p := range e.served {
		all[p.name] = measured{p.curveLocked(now), p.mean}
	}
	return all
}

// curveLocked returns the curve, nil if nothing is measured. Since every bid is priced
// by it, it is computed again only after a sample, or after curveEvery.
func (p *poolEstimate) curveLocked(now time.Time) *policy.Curve {
	if now.Sub(p.fitted) < curveEvery {
		return p.curve.Load()
	}
	p.fitted = now
	c := &policy.Curve{Prefill: p.prefill.Line(), ITL: p.itl.Line(), Faded: p.itl.Faded(now)}
	if c.ITL == nil { // embeddings and the like
		c.Faded = p.prefill.Faded(now)
	}
	if c.Prefill == nil && c.ITL == nil {
		c = nil
	}
	p.curve.Store(c)
	return c
}

// meter integrates the number of decoding sequences over time, so that its mean over any interval can be computed.
type meter struct {
	level int
	area  float64 // level × seconds
	at    time.Time
}

func (m *meter) add(n int, now time.Time) {
	m.area = m.until(now)
	m.at = now
	m.level += n
}

func (m *meter) until(now time.Time) float64 {
	if m.at.IsZero() {
		return 0
	}
	return m.area + float64(m.level)*now.Sub(m.at).Seconds()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
