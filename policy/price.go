package policy

import (
	"math"
	"slices"
	"time"
)

// Rungs is the number of price steps that the queue distinguishes: priorities 0 to 9 of a pull request.
const Rungs = 10

// RungRatio is the price ratio of one rung to the next. Ten rungs of 1.3 span a factor of 10.6
// between an idle fast worker and the most expensive one.
const rungRatio = 1.3

// Mean describes the mean request of a pool.
type Mean struct {
	Input   float64 `json:"in"`  // tokens, as estimated by the gateway
	Output  float64 `json:"out"` // tokens
	Samples float64 `json:"n"`   // the number of requests it is based on, at most MeanMemory
}

// MeanMemory is the number of requests after which a Mean has mostly forgotten older ones.
const MeanMemory = 100

// Add includes one request in the mean.
func (m *Mean) Add(input, output float64) {
	m.Samples = min(m.Samples+1, MeanMemory)
	m.Input += (input - m.Input) / m.Samples
	m.Output += (output - m.Output) / m.Samples
}

// MeanOf combines the means of several workers, weighted by their samples.
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
	Prefill *Line `json:"prefill,omitempty"` // seconds to the first token over input tokens, with no other prefill waiting
	ITL     *Line `json:"itl,omitempty"`     // seconds per output token over the number of requests decoding at once
	Faded   bool  `json:"faded,omitempty"`   // the measurements are so old that the worker should be tried again
}

// Price is the latency in seconds that a worker expects for a mean request which it takes as the
// n-th in flight, with as much prefill ahead of it as that of behind mean requests:
//
//	prefill(mean input) · (1 + behind) + mean output · itl(n)
//
// It returns false until the part that matters has been measured.
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

// Reference is the price that the rungs of a pool are relative to: the lowest of its workers without load (idle), but at
// most five rungs below the lowest of them as they are (now). The first is extrapolated where no worker has been idle, and
// may be far too low; then all bids would be on the last rung, and those of slow workers no dearer than those of fast ones.
func Reference(idle, now float64) float64 { return max(idle, now/rungs[Rungs/2]) }

// Rung is the price's step above the pool's reference.
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

// rungs holds the lowest price of each rung, as a multiple of the reference. The epsilon keeps a
// price of exactly k steps on rung k.
var rungs = func() (least [Rungs]float64) {
	for k := range least {
		least[k] = math.Pow(rungRatio, float64(k)-1e-9)
	}
	return least
}()

// LoadRung is the rung of a worker in a pool where no worker has measured anything yet: its load
// fraction before it takes the n-th request, ⌊10·(n-1)/slots⌋.
func LoadRung(n, slots int, weight float64) int {
	return int(min(Rungs*float64(n-1)/(float64(slots)*weight), Rungs-1))
}

// TrialRung is the rung of a worker that has measured nothing, in a pool where others have: one
// rung for each request that it has, so that a worker which turns out to be slow has taken only a
// few. With LoadRung instead, the slow ones of five unlike workers took 8 to 10 requests on trial
// rather than 5 to 7, and those were the pool's p99: it was 2 to 5 % higher.
func TrialRung(n, slots int, weight float64) int {
	return max(LoadRung(n, slots, weight), int(min(float64(n-1)/weight, Rungs-1)))
}

// A worker's bid is a rung, and a balancing method (see Balance) is a way to compute it. Price is the default and needs
// no tuning. The other methods are for operators who know more than a measurement shows, or who want a familiar one.
//
//	price         PriceRung       unlike workers, and when in doubt: it learns which worker is fast, and how fast it is with n requests
//	least-loaded  LeastLoadedRung slots are all that matters: engines with as many slots as they serve well, whatever they are
//	weighted      WeightedRung    weights are all that matters: after a measurement, or to fill one worker before another
//	round-robin   always rung 0   like workers and like requests, such as embeddings: the cheapest for the broker

// PriceRung is the rung, under Price, of a request that would be the n-th in flight, with as much prefill ahead of it
// as that of behind mean requests. It is the latency that the worker expects for the request by its own measurements,
// over the pool's reference price. A weight of 2 makes the worker bid as if it were twice as fast.
//
// Use it unless there is a reason not to. While no worker of the pool has measured anything (reference 0), the rung is
// the load fraction. For a worker that has measured nothing, in a pool where others have, it is TrialRung; so it is for
// the first request of a worker whose measurements have faded.
func PriceRung(c *Curve, mean Mean, reference float64, n int, behind float64, slots int, weight float64) int {
	price, known := c.Price(mean, n, behind)
	switch {
	case reference <= 0:
		return LoadRung(n, slots, weight)
	case !known || c.Faded && n == 1:
		return TrialRung(n, slots, weight)
	}
	return Rung(price/weight, reference)
}

// LeastLoadedRung is the rung of the n-th request in flight under LeastLoaded: the part of the
// slots that is in use without it, in tenths.
//
// Use it where the slot counts were chosen with care, so that a half-full worker is as good as any other half-full one.
// Fast and slow workers fill alike: a slow one takes requests while a fast one has free slots.
func LeastLoadedRung(n, slots int) int { return LoadRung(n, slots, 1) }

// WeightedRung is the rung of the n-th request in flight under Weighted: the requests in flight without it, over the
// worker's weight. The last rung is reached at the pool's mean number of slots per unit of weight, so that the scale
// fits what the pool can hold. poolSlots and poolWeight are the sums over its workers.
//
// Use it where the operator knows more than a measurement shows, for example to prefer machines
// that are paid for anyway. Requests in flight split in proportion to the weights while no worker
// is full, whatever each worker's slots and speed are.
func WeightedRung(n int, weight float64, poolSlots int, poolWeight float64) int {
	if poolSlots <= 0 || poolWeight <= 0 {
		return min(n-1, Rungs-1)
	}
	full := weight * float64(poolSlots) / poolWeight
	return int(min(Rungs*float64(n-1)/full, Rungs-1))
}

// RoundRobinDepth is how many bids a worker parks on a lane under RoundRobin. They are all on rung 0, where the queue
// serves the bid that has waited longest: with one bid each, workers alternate, and a full worker is passed over. It
// bounds a worker to one request per round trip to the broker, which no model server notices.
const RoundRobinDepth = 1

// AddPenalty raises a rung by some steps, at most to the last.
func AddPenalty(rung, by int) int { return min(rung+by, Rungs-1) }

// HomePenalty is how many rungs higher a worker bids on another worker's home lane than on its own. A conversation
// leaves the worker that has its start cached when that worker is so much more expensive than another: a factor of 2.2.
const HomePenalty = 3

// HomeRung is the rung of a worker's bid on its own home lane: below that of others who would have to raise theirs beyond the
// last one.
func HomeRung(rung int) int { return min(rung, Rungs-2) }

const (
	// homeWait is how long the prompts may take that wait in an engine when a follow-up of what it has cached joins them.
	homeWait = 30 * time.Second

	// mostAtHome is how many follow-ups in a row may do so while other requests wait for the same worker.
	mostAtHome = 8
)

// MayWaitAtHome reports whether a worker takes a follow-up of what its engine has cached though so much work waits there that
// it takes no other request. work is how many seconds the engine needs for the prompts that wait; before is how many
// follow-ups it has taken so since it began another request, and others says whether requests wait that are no such follow-ups.
//
// Other workers take the follow-up only if the price of this one, which has that work in it, is [HomePenalty] rungs above
// theirs. If the worker did not bid at all, any that has a free slot would take it, however dear. Above the capacity that
// engines have without their caches that is work done before, so that more and more requests wait: see docs/balance.md.
func MayWaitAtHome(work float64, before int, others bool) bool {
	return work < homeWait.Seconds() && (before < mostAtHome || !others)
}

const (
	// With more than manyHomeLanes home lanes, a worker bids on its own and on othersInLargePool
	// of the others: each parked bid costs the broker work.
	manyHomeLanes     = 32
	othersInLargePool = 4
)

// OtherHomeLanes returns the home lanes of other workers that a worker bids on too. In a large pool
// they are the next few in the ring of all lanes, so that each lane has the same number of bidders.
// homes is sorted and without duplicates; self may be absent.
func OtherHomeLanes(self string, homes []string) []string {
	at, there := slices.BinarySearch(homes, self)
	after := homes[at:]
	if there {
		after = homes[at+1:]
	}
	others := slices.Concat(after, homes[:at])
	if len(homes) > manyHomeLanes {
		others = others[:othersInLargePool]
	}
	return others
}

// Regression is an online least-squares line over exponentially weighted samples. The zero value is ready to use.
type Regression struct {
	n, sx, sy, sxx, sxy float64
	samples             int
	last                time.Time
}

// FadeAfter is how long an estimate is valid without a new sample. After that the worker is tried again, with one
// request that finds it idle; the price of the next ones is unchanged. If the estimate were dropped, a slow worker
// would take three to five requests until it was measured again, and those would be the pool's p99.
const FadeAfter = 3 * time.Minute

const (
	sampleDecay = 0.995 // weight of each older sample when a new one arrives: a memory of about 200
	minSamples  = 2     // a single sample may be an outlier; until the second the worker is on trial
	fadedWeight = 0.1   // total weight of faded samples relative to the next one
)

// Add adds a sample.
func (r *Regression) Add(x, y float64, now time.Time) { r.AddOf(x, y, 1, now) }

// AddOf adds a sample that counts as so many.
func (r *Regression) AddOf(x, y, weight float64, now time.Time) {
	keep := math.Pow(sampleDecay, weight)
	if r.Faded(now) {
		keep = fadedWeight / r.n
	}
	r.n = r.n*keep + weight
	r.sx = r.sx*keep + weight*x
	r.sy = r.sy*keep + weight*y
	r.sxx = r.sxx*keep + weight*x*x
	r.sxy = r.sxy*keep + weight*x*y
	r.samples++
	r.last = now
}

// Faded reports whether the last sample is older than FadeAfter.
func (r *Regression) Faded(now time.Time) bool { return r.samples > 0 && now.Sub(r.last) > FadeAfter }

// Line is the fitted line, or nil with fewer than two samples. Neither slope nor intercept is negative: more work is
// never expected to take less time, and no work is never expected to take less than none.
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
