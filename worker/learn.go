package worker

import (
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// pool is what the worker knows of one pool that it serves. Guarded by
// Worker.mu.
type pool struct {
	name    string
	ref     subjects.PoolReference // as the gateways last published it
	prefill policy.Fit
	itl     policy.Fit
	mean    policy.Mean
	fit     *policy.Curve // as of fitted
	fitted  time.Time
}

// curve is what was measured, nil if nothing was. Every bid asks for it, so it
// is worked out anew only after a sample, or when time may have made it stale.
func (p *pool) curve(now time.Time) *policy.Curve {
	if now.Sub(p.fitted) < time.Second {
		return p.fit
	}
	p.fitted = now
	p.fit = &policy.Curve{Prefill: p.prefill.Line(now), ITL: p.itl.Line(now)}
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

// prefillsLocked counts the requests in flight that still wait for their first
// token. A request that does not stream never shows its first token; it counts
// until it should have had it.
func (w *Worker) prefillsLocked(now time.Time) int {
	n := 0
	for _, a := range w.running {
		switch {
		case !a.firstByte.IsZero():
		case a.req == nil || a.req.Stream || a.expectFirst == 0:
			n++
		case now.Sub(a.started) < a.expectFirst:
			n++
		}
	}
	return n
}

// firstLocked notes an attempt's first byte.
func (w *Worker) firstLocked(a *attempt, now time.Time) {
	a.firstByte = now
	w.decodesLocked(a, now)
	a.areaAtFirst = w.decoding.until(now)
}

// decodesLocked counts an attempt among those that decode.
func (w *Worker) decodesLocked(a *attempt, now time.Time) {
	if !a.decodes {
		a.decodes = true
		w.decoding.add(1, now)
	}
}

// learnLocked measures an attempt whose answer is whole.
func (w *Worker) learnLocked(a *attempt, outputTokens int, now time.Time) {
	p := a.lane.pool
	input := float64(a.req.InputTokens)
	p.mean.Add(input, float64(outputTokens))
	p.fitted = time.Time{}
	switch {
	case a.streamed && !a.firstByte.IsZero():
		if a.alone {
			p.prefill.Add(input, a.firstByte.Sub(a.started).Seconds(), now)
		}
		if d := now.Sub(a.firstByte).Seconds(); outputTokens > 4 && d > 0 {
			p.itl.Add((w.decoding.until(now)-a.areaAtFirst)/d, d/float64(outputTokens-1), now)
		}
	case outputTokens > 0:
		d := now.Sub(a.started) - a.expectFirst
		if d > 0 {
			p.itl.Add(float64(a.besides+1), d.Seconds()/float64(outputTokens), now)
		}
	case a.alone: // embeddings and the like: all of it is prefill
		p.prefill.Add(input, now.Sub(a.started).Seconds(), now)
	}
}
