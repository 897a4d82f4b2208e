package bench

import (
	"fmt"
	"sync"
	"time"
)

// maxClasses bounds the error classes of a run, since servers choose the codes in them.
const maxClasses = 64

// recorder records the requests of a run as they end.
type recorder struct {
	cfg Config

	mu   sync.Mutex
	sum  Result    // guarded by mu
	last time.Time // guarded by mu; when the last measured request ended
}

func newRecorder(cfg Config) *recorder {
	return &recorder{cfg: cfg, sum: Result{
		Name:     cfg.Name,
		URL:      cfg.URL,
		Model:    cfg.Model,
		Endpoint: cfg.Endpoint,
		Stream:   cfg.Stream,
		Load:     cfg.describeLoad(),
		Seed:     cfg.Seed,
	}}
}

// record records a request that has ended.
func (r *recorder) record(x *exchange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case x.warmup:
		r.sum.Warmup++
	case x.failure.class == classCancelled:
		r.sum.Cancelled++
	case x.failure.class != "":
		r.failLocked(x.failure)
		r.endLocked(x)
	default:
		r.succeedLocked(x)
		r.endLocked(x)
	}
}

// refuse records a request that was due beyond the bound of requests in flight.
func (r *recorder) refuse(warmup bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !warmup {
		r.failLocked(failure{classMaxInFlight, fmt.Sprintf("%d were in flight already: not sent", r.cfg.MaxInFlight)})
	}
}

func (r *recorder) endLocked(x *exchange) {
	if x.end.After(r.last) {
		r.last = x.end
	}
	if !r.cfg.closed() {
		r.sum.Lag.record(x.sent.Sub(x.due))
	}
}

func (r *recorder) failLocked(f failure) {
	r.sum.Failed++
	r.sum.countError(f.class, f.detail, 1)
}

func (r *recorder) succeedLocked(x *exchange) {
	from := x.sent
	if !r.cfg.closed() {
		from = x.due
	}
	s := &r.sum
	s.Succeeded++
	s.InputTokens += int64(x.usage.input())
	s.OutputTokens += int64(x.outputTokens())
	e2e := x.end.Sub(from)
	s.E2E.record(e2e)
	ttft := e2e // an empty answer: its end is its first byte
	if !x.first.IsZero() {
		ttft = x.first.Sub(from)
	}
	s.TTFT.record(ttft)
	for _, gap := range x.gaps {
		s.Gap.record(gap)
	}
	if tokens := x.outputTokens(); r.cfg.Stream && tokens > 1 && x.contents > 1 {
		s.InterToken.record(x.last.Sub(x.first) / time.Duration(tokens-1))
	}
	if x.hasQueue {
		s.Queue.record(x.queue)
	}
	if (r.cfg.SLOTTFT == 0 || ttft <= r.cfg.SLOTTFT) && (r.cfg.SLOE2E == 0 || e2e <= r.cfg.SLOE2E) {
		s.within++
	}
}

// result returns the run's result. It is called once, after the last request has ended.
func (r *recorder) result(start, origin time.Time, interrupted bool) *Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.sum
	s.Started = start
	s.Interrupted = interrupted
	if !r.last.IsZero() {
		s.elapsed = r.last.Sub(origin)
	}
	if r.cfg.SLOTTFT > 0 || r.cfg.SLOE2E > 0 {
		s.SLO = &SLO{TTFT: milliseconds(r.cfg.SLOTTFT), E2E: milliseconds(r.cfg.SLOE2E)}
	}
	s.finish()
	return s
}
