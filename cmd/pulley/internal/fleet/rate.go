package fleet

import (
	"slices"
	"time"
)

// rate is how fast a counter has grown over the last rateOver. The zero value
// is ready.
type rate struct{ samples []sample }

func (r *rate) add(at time.Time, n uint64) {
	if len(r.samples) > 0 && n < r.samples[len(r.samples)-1].n { // counted anew
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

type sample struct {
	at time.Time
	n  uint64
}
