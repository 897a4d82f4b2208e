package policy

import (
	"math"
	"time"
)

// Rungs is the number of price steps that the queue knows: priorities 0 to 9
// of a pull request.
const Rungs = 10

// rungRatio is the step from one rung to the next. Ten rungs of 1.3 span a
// factor of 10.6 between an idle fast worker and the dearest one.
const rungRatio = 1.3

// Line is y = A + B·x.
type Line struct {
	A float64 `json:"a"`
	B float64 `json:"b"`
}

// At is the line's value at x.
func (l Line) At(x float64) float64 { return l.A + l.B*x }

// Mean is what the requests of a pool are like.
type Mean struct {
	Input   float64 `json:"in"`  // tokens, as estimated by the gateway
	Output  float64 `json:"out"` // tokens
	Samples float64 `json:"n"`   // how many requests stand behind it, at most MeanMemory
}

// MeanMemory is after how many requests a Mean has forgotten most of the old.
const MeanMemory = 100

// Add counts one request in.
func (m *Mean) Add(input, output float64) {
	m.Samples = min(m.Samples+1, MeanMemory)
	m.Input += (input - m.Input) / m.Samples
	m.Output += (output - m.Output) / m.Samples
}

// MeanOf joins the means of several workers, each by its samples.
func MeanOf(means []Mean) Mean {
	var j Mean
	for _, m := range means {
		j.Input += m.Input * m.Samples
		j.Output += m.Output * m.Samples
		j.Samples += m.Samples
	}
	if j.Samples > 0 {
		j.Input /= j.Samples
		j.Output /= j.Samples
	}
	return j
}

// Curve is what a worker has measured of its engine for one pool.
type Curve struct {
	Prefill *Line `json:"prefill,omitempty"` // seconds to the first token over input tokens, nothing else waiting
	ITL     *Line `json:"itl,omitempty"`     // seconds per output token over requests decoding at once
	Faded   bool  `json:"faded,omitempty"`   // it is so old that the worker is to be tried again
}

// Price is the latency in seconds that a worker expects to give a mean request
// when it takes it as the n-th in flight, behind as much prefill as that of so
// many mean requests:
//
//	prefill(mean input) · (1 + behind) + mean output · itl(n)
//
// It says false while the part that matters is not measured.
func (c *Curve) Price(mean Mean, n int, behind float64) (float64, bool) {
	if c == nil || mean.Samples == 0 {
		return 0, false
	}
	if c.ITL == nil && (mean.Output >= 1 || c.Prefill == nil) {
		return 0, false
	}
	var p float64
	if c.Prefill != nil {
		p = c.Prefill.At(mean.Input) * (1 + behind)
	}
	if c.ITL != nil {
		p += mean.Output * c.ITL.At(float64(n))
	}
	return p, p > 0
}

// Rung is the price's step above the pool's reference, the lowest no-load
// price among its workers: clamp(⌊log(price/reference) / log rungRatio⌋, 0, 9).
func Rung(price, reference float64) int {
	if price <= reference || reference <= 0 {
		return 0
	}
	rung := 0
	for rung < Rungs-1 && price >= reference*rungs[rung+1] {
		rung++
	}
	return rung
}

// rungs is how many times the reference a price is on each rung at the least. The
// epsilon keeps a price of exactly k steps on rung k.
var rungs = func() (least [Rungs]float64) {
	for k := range least {
		least[k] = math.Pow(rungRatio, float64(k)-1e-9)
	}
	return least
}()

// LoadRung is the rung of a worker of a pool where nobody has measured anything
// yet: its load fraction before it takes the n-th request, ⌊10·(n-1)/slots⌋.
func LoadRung(n, slots int, weight float64) int {
	return int(min(Rungs*float64(n-1)/(float64(slots)*weight), Rungs-1))
}

// TrialRung is the rung of a worker that has measured nothing, in a pool where
// others have: a rung for each request that it has, so that one which turns out
// to be slow has taken few by then. With LoadRung instead, the slow ones of five
// unlike workers took 8 to 10 requests on trial and not 5 to 7, and those were
// the pool's p99: it was 2 to 5 % higher.
func TrialRung(n, slots int, weight float64) int {
	return max(LoadRung(n, slots, weight), int(min(float64(n-1)/weight, Rungs-1)))
}

// FadeAfter is how long an estimate holds without a new sample. After that the
// worker is tried again, by one request that finds it idle; the next ones cost
// what they did. Forgotten, a slow worker would take three to five until it was
// known again, and those would be the pool's p99.
const FadeAfter = 3 * time.Minute

const (
	fitForget  = 0.995 // weight of the last sample for the next: a memory of about 200
	fitSamples = 2     // one alone may be an outlier; until then a worker is on trial
	fitFaded   = 0.1   // what all that has faded counts against the sample that comes next
)

// Regression is an online least-squares line over samples that are forgotten
// exponentially. The zero value is ready.
type Regression struct {
	n, sx, sy, sxx, sxy float64
	samples             int
	last                time.Time
}

// Add takes a sample in.
func (f *Regression) Add(x, y float64, now time.Time) {
	keep := fitForget
	if f.Faded(now) {
		keep = fitFaded / f.n
	}
	f.n = f.n*keep + 1
	f.sx = f.sx*keep + x
	f.sy = f.sy*keep + y
	f.sxx = f.sxx*keep + x*x
	f.sxy = f.sxy*keep + x*y
	f.samples++
	f.last = now
}

// Faded says that there was no sample within FadeAfter.
func (f *Regression) Faded(now time.Time) bool { return f.samples > 0 && now.Sub(f.last) > FadeAfter }

// Line is the fitted line; nil with fewer than two samples. Neither slope nor
// intercept is negative: more work is never expected to take less time, nor less
// than none.
func (f *Regression) Line() *Line {
	if f.samples < fitSamples {
		return nil
	}
	mx, my := f.sx/f.n, f.sy/f.n
	varX := f.sxx/f.n - mx*mx
	var b float64
	// Without spread in x the slope would be noise.
	if varX > 0.25 && varX > 1e-4*mx*mx {
		b = max(0, (f.sxy/f.n-mx*my)/varX)
	}
	if a := my - b*mx; a >= 0 {
		return &Line{A: a, B: b}
	}
	return &Line{B: my / mx}
}
