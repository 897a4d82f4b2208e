package fleet

import (
	"slices"
	"time"
)

// rateOver is the time over which rates are measured.
const rateOver = 5 * time.Second

// rate measures how fast a counter grows. The zero value is ready.
type rate struct{ samples []sample }

type sample struct {
	at time.Time
	n  uint64
}

// add records the counter. A counter that has fallen has restarted: earlier samples are
// dropped.
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
