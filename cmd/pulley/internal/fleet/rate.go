package fleet

import (
	"slices"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// Rates measures workers by heartbeats that somebody else receives. The zero value is ready.
type Rates struct{ workers map[string]*measured }

type measured struct {
	workerRates
	at time.Time
}

// Status takes in the last heartbeat of a worker, and returns its status. lost is how long the worker has been silent; 0 if it
// is not lost.
func (r *Rates) Status(h *subjects.Heartbeat, lost time.Duration, now time.Time) WorkerStatus {
	m := r.workers[h.Worker]
	if m == nil {
		if r.workers == nil {
			r.workers = make(map[string]*measured)
		}
		m = &measured{}
		r.workers[h.Worker] = m
	}
	m.at = now
	m.add(now, h)
	return m.status(h, lost)
}

// Forget forgets the workers that no Status was asked of since a time.
func (r *Rates) Forget(since time.Time) {
	for id, m := range r.workers {
		if m.at.Before(since) {
			delete(r.workers, id)
		}
	}
}

// workerRates measure how fast a worker's counters grow. The zero value is ready.
type workerRates struct{ done, failed rate }

func (r *workerRates) add(now time.Time, h *subjects.Heartbeat) {
	r.done.add(now, h.Done)
	r.failed.add(now, h.Failed)
}

func (r *workerRates) status(h *subjects.Heartbeat, lost time.Duration) WorkerStatus {
	if lost > 0 {
		return WorkerStatus{Heartbeat: *h, Lost: lost}
	}
	return WorkerStatus{Heartbeat: *h, DonePerSecond: r.done.perSecond(), FailedPerSecond: r.failed.perSecond(), TokensPerSecond: tokensPerSecond(h)}
}

// rateOver is the time over which rates are measured.
const rateOver = 5 * time.Second

// rate measures how fast a counter grows. The zero value is ready.
type rate struct{ samples []sample }

type sample struct {
	at time.Time
	n  uint64
}

// add records the counter. A counter that has fallen has restarted: earlier samples are dropped.
func (r *rate) add(at time.Time, n uint64) {
	if len(r.samples) > 0 && n < r.samples[len(r.samples)-1].n {
		r.samples = r.samples[:0]
	}
	r.samples = append(r.samples, sample{at, n})
	for len(r.samples) > 2 && at.Sub(r.samples[1].at) >= rateOver {
		r.samples = slices.Delete(r.samples, 0, 1)
	}
}

func (r *rate) perSecond() float64 {
	if len(r.samples) < 2 {
		return 0
	}
	first, last := r.samples[0], r.samples[len(r.samples)-1]
	return float64(last.n-first.n) / last.at.Sub(first.at).Seconds()
}
