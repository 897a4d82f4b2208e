package policy

import "time"

// Regression is an online least-squares line over exponentially weighted samples. The zero value is
// ready to use.
type Regression struct {
	n, sx, sy, sxx, sxy float64
	samples             int
	last                time.Time
}

// FadeAfter is how long an estimate is valid without a new sample. After that the worker is tried
// again, with one request that finds it idle; the price of the next ones is unchanged. If the
// estimate were dropped, a slow worker would take three to five requests until it was measured
// again, and those would be the pool's p99.
const FadeAfter = 3 * time.Minute

const (
	sampleDecay = 0.995 // weight of each older sample when a new one arrives: a memory of about 200
	minSamples  = 2     // a single sample may be an outlier; until the second the worker is on trial
	fadedWeight = 0.1   // total weight of faded samples relative to the next one
)

// Add adds a sample.
func (r *Regression) Add(x, y float64, now time.Time) {
	keep := sampleDecay
	if r.Faded(now) {
		keep = fadedWeight / r.n
	}
	r.n = r.n*keep + 1
	r.sx = r.sx*keep + x
	r.sy = r.sy*keep + y
	r.sxx = r.sxx*keep + x*x
	r.sxy = r.sxy*keep + x*y
	r.samples++
	r.last = now
}

// Faded reports whether the last sample is older than FadeAfter.
func (r *Regression) Faded(now time.Time) bool { return r.samples > 0 && now.Sub(r.last) > FadeAfter }

// Line is the fitted line, or nil with fewer than two samples. Neither slope nor intercept is
// negative: more work is never expected to take less time, and no work is never expected to take
// less than none.
func (r *Regression) Line() *Line {
	if r.samples < minSamples {
		return nil
	}
	mx, my := r.sx/r.n, r.sy/r.n
	varX := r.sxx/r.n - mx*mx
	var b float64
	// Without spread in x the slope would be noise.
	if varX > 0.25 && varX > 1e-4*mx*mx {
		b = max(0, (r.sxy/r.n-mx*my)/varX)
	}
	if a := my - b*mx; a >= 0 {
		return &Line{A: a, B: b}
	}
	return &Line{B: my / mx}
}

// Line is y = A + B·x.
type Line struct {
	A float64 `json:"a"`
	B float64 `json:"b"`
}

// At is the line's value at x.
func (l Line) At(x float64) float64 { return l.A + l.B*x }
