package worker

import (
	"slices"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// curve is what was measured, nil if nothing was. Every bid asks for it, so it
// is worked out anew only after a sample, or when time may have made it stale.
func (p *pool) curve(now time.Time) *policy.Curve {
	if now.Sub(p.fitted) < time.Second {
		return p.fit
	}
	p.fitted = now
	p.fit = &policy.Curve{Prefill: p.prefill.Line(), ITL: p.itl.Line(), Faded: p.itl.Faded(now)}
	if p.fit.ITL == nil { // embeddings and the like
		p.fit.Faded = p.prefill.Faded(now)
	}
	if p.fit.Prefill == nil && p.fit.ITL == nil {
		p.fit = nil
	}
	return p.fit
}

// meter integrates how many sequences decode, over time, so that the mean over
// any interval can be told.
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

const (
	// prefillUnknown is how long a request that shows no first token counts as
	// waiting for it while nothing is measured.
	prefillUnknown = time.Second

	// itlPerPrefill is how many input tokens an engine prefills in the time of one
	// inter-token interval, where only that is measured: fewer than engines do
	// (110 to 200 on an L4, an A100 and an H100), so that the gate opens late
	// rather than early.
	itlPerPrefill = 100
)

// prefills are the requests in flight that wait for their first token. One that
// does not stream never shows it; it counts until it should have had it.
type prefills struct {
	n     int
	until time.Time // when time alone makes them fewer; zero: it does not
	work  float64   // seconds that they take together, if each is known
	known bool
}

func (w *Worker) prefillsLocked(now time.Time) prefills {
	p := prefills{known: true}
	for i := 0; i < len(w.prefilling); i++ {
		a := w.prefilling[i]
		switch {
		case a.req == nil || a.req.Stream:
		case !now.Before(a.firstBy):
			w.prefilling = slices.Delete(w.prefilling, i, i+1)
			i--
			continue
		case p.until.IsZero() || a.firstBy.Before(p.until):
			p.until = a.firstBy
		}
		p.n++
		if a.expectFirst == 0 {
			p.known = false
		}
		p.work += a.expectFirst.Seconds()
	}
	// The engine is at the first of them since it was done with the one before.
	if p.n > 0 {
		first := w.prefilling[0]
		p.work -= min(now.Sub(later(first.started, w.prefilledAt)), first.expectFirst).Seconds()
	}
	return p
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// prefilledLocked notes that an attempt waits for its first token no more.
func (w *Worker) prefilledLocked(a *attempt) {
	if i := slices.Index(w.prefilling, a); i >= 0 {
		w.prefilling = slices.Delete(w.prefilling, i, i+1)
		w.prefilledAt = time.Now()
	}
}

// expectLocked works out when an attempt should have its first token.
func (w *Worker) expectLocked(a *attempt) {
	input := float64(a.req.InputTokens)
	c := a.lane.pool.by.curve(a.started)
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	first := prefillUnknown
	switch {
	case c != nil && c.Prefill != nil:
		a.expectFirst = max(seconds(c.Prefill.At(input)), time.Microsecond)
		first = a.expectFirst
	case c != nil && c.ITL != nil:
		first = min(first, seconds(c.ITL.At(1)*input/itlPerPrefill))
	}
	a.firstBy = a.started.Add(first)
	if a.cold {
		w.awaitLoadLocked(a)
	}
}

// firstLocked notes an attempt's first byte.
func (w *Worker) firstLocked(a *attempt, now time.Time) {
	a.firstByte = now
	if a.req.Stream {
		w.waitsLocked(a, false)
		if !a.cold && !w.fencedSinceLocked(a.started) {
			w.room.window.First(now.Sub(a.started))
		}
	}
	if len(w.prefilling) > 0 && w.prefilling[0] == a && !a.behindLoad {
		// An engine prefills one prompt after the other: this one since the last was
		// done. Those that came to an idle engine alone would say it more exactly,
		// but under load there are none, and an estimate that fades makes a worker
		// too cheap just then.
		a.prefillTook = now.Sub(later(a.started, w.prefilledAt))
	}
	w.prefilledLocked(a)
	w.decodesLocked(a, now)
	a.areaAtFirst = w.decoding.until(now)
}

// waitsLocked counts an attempt among those that wait for their first token and
// will show it, or no more among them.
func (w *Worker) waitsLocked(a *attempt, waits bool) {
	if a.waits == waits {
		return
	}
	a.waits = waits
	if waits {
		w.room.firsts++
	} else {
		w.room.firsts--
	}
	w.room.window.Prefilling(w.room.firsts)
}

// decodesLocked counts an attempt among those that decode.
func (w *Worker) decodesLocked(a *attempt, now time.Time) {
	if !a.decodes {
		a.decodes = true
		w.decoding.add(1, now)
	}
}

// learnLocked measures an attempt whose answer is whole. One that was in flight
// while the engine or a GPU was ill says how long that lasted, and nothing of the
// price.
func (w *Worker) learnLocked(a *attempt, outputTokens int, now time.Time) {
	input := float64(a.req.InputTokens)
	a.lane.pool.mean.Add(input, float64(outputTokens))
	if w.fencedSinceLocked(a.started) {
		return
	}
	p := a.lane.pool.by // the engine is its
	p.fitted = time.Time{}
	switch {
	case a.streamed && !a.firstByte.IsZero():
		if a.prefillTook > 0 {
			p.prefill.Add(input, a.prefillTook.Seconds(), now)
		}
		if d := now.Sub(a.firstByte).Seconds(); outputTokens > 4 && d > 0 {
			p.itl.Add((w.decoding.until(now)-a.areaAtFirst)/d, d/float64(outputTokens-1), now)
		}
	case a.cold: // the load is in it
	case outputTokens > 0:
		d := now.Sub(a.started) - a.expectFirst
		if d > 0 {
			p.itl.Add(float64(a.besides+1), d.Seconds()/float64(outputTokens), now)
		}
	case a.alone: // embeddings and the like: all of it is prefill
		p.prefill.Add(input, now.Sub(a.started).Seconds(), now)
	}
}

// loadHolds is how long after its last request here a tier is reckoned with. To a
// slow worker come few, but they come when the fast ones are full.
const loadHolds = 10 * time.Minute

// tierLoad is how many requests of a tier are in flight here on the mean: since it
// was idle, at most of the last minute. Zero is a tier that is.
type tierLoad struct {
	mean    float64
	samples float64
}

func (l *tierLoad) add(n int) {
	l.samples = min(l.samples+1, float64(activeFor/bidTick))
	l.mean += (float64(n) - l.mean) / l.samples
}

// busyLocked takes a sample of each tier's load, and sets what they leave to
// each other by it.
func (w *Worker) busyLocked(now time.Time) {
	inFlight := make([]int, len(w.tiers))
	for _, a := range w.running {
		if t := a.lane.tier; t < len(inFlight) { // a retired lane's tier may be gone
			inFlight[t]++
		}
	}
	for i := range w.tiers {
		t := &w.tiers[i]
		if inFlight[i] == 0 && now.Sub(t.seen) > loadHolds {
			t.load = tierLoad{}
			continue
		}
		t.load.add(inFlight[i])
	}
	w.ceilLocked()
}
