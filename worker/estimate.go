package worker

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

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

	// longestKept is the part of the longest answer that remains after another one: half after 70 answers.
	longestKept = 0.99

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
}

// poolEstimate is what was measured with the requests of one pool. All fields but curve are guarded by estimator.mu.
type poolEstimate struct {
	name    string
	prefill policy.Regression
	itl     policy.Regression
	mean    policy.Mean
	first   policy.Regression // seconds to the first byte over input tokens, whatever else the engine had to do
	longest float64           // tokens of the longest answer; older ones count less
	slowest policy.Worst      // first bytes of streams
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
	decodes     bool          // it counts in estimator.decoding
	areaAtFirst float64       // area of estimator.decoding at its first byte
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

// begin adds an attempt to those that wait for their first token. It returns how long that should take.
func (e *estimator) begin(t *timing) (awaited policy.Awaited) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.prefillsLocked(t.started)
	t.alone = before.n == 0
	curve := t.pool.curveLocked(t.started)
	t.expect(curve)
	if awaited.Loads = t.load.waits; !t.load.waits && curve != nil {
		awaited = t.await(curve, time.Duration(before.work*float64(time.Second)))
	}
	e.waiting = append(e.waiting, t)
	e.begun.Add(1)
	e.countLocked()
	if !t.streams { // its first token cannot be seen: it counts as decoding from the start
		e.decodesLocked(t, t.started)
	}
	return awaited
}

func (t *timing) await(c *policy.Curve, before time.Duration) policy.Awaited {
	p := policy.Prompt{Input: int(t.input), Took: t.expectFirst, Before: before, Whole: !t.streams, Most: t.most, Seen: t.pool.longest, MayLoad: t.load.unseen}
	if t.streams {
		p.Slowest = t.pool.slowest.With(t.beside+1, t.started)
	}
	if first := t.pool.first.Line(); first != nil && t.streams {
		p.Took = max(p.Took, time.Duration(first.At(t.input)*float64(time.Second)))
	}
	if c.ITL != nil {
		p.Token = time.Duration(c.ITL.At(float64(t.beside+1)) * float64(time.Second))
	}
	return policy.Await(p)
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
	if len(e.waiting) > 0 && e.waiting[0] == t && !afterLoad {
		// An engine prefills one prompt after the other, this one since the last was done. Requests that come to an
		// idle engine would show the time more exactly, but under load there are none, and then a faded estimate would
		// make the worker too cheap.
		t.prefillTook = now.Sub(later(t.started, e.lastFirst))
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
	switch {
	case streamed && !t.firstByte.IsZero():
		if !t.load.waits {
			p.first.Add(t.input, t.firstByte.Sub(t.started).Seconds(), now)
			p.slowest.Add(t.beside+1, t.firstByte.Sub(t.started), now)
		}
		if t.prefillTook > 0 {
			p.prefill.Add(t.input, t.prefillTook.Seconds(), now)
		}
		if d := now.Sub(t.firstByte).Seconds(); output > 4 && d > 0 {
			p.itl.Add((e.decoding.until(now)-t.areaAtFirst)/d, d/float64(output-1), now)
		}
	case t.load.waits: // its time contains the load
	case output > 0:
		if d := now.Sub(t.started) - t.expectFirst; d > 0 {
			p.itl.Add(float64(t.beside+1), d.Seconds()/float64(output), now)
		}
	case t.alone: // embeddings and the like: all of it is prefill
		p.prefill.Add(t.input, now.Sub(t.started).Seconds(), now)
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
	e.waiting = slices.DeleteFunc(e.waiting, func(t *timing) bool { return !t.streams && !now.Before(t.firstBy) })
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
