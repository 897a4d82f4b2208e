package policy

import (
	"math"
	"slices"
	"time"
)

// AdaptiveLimit finds out by trial how many requests an engine serves well at once: it grows while they do not slow
// each other down by more than the profile's stretch, and shrinks when they do or when the engine is overloaded. It
// needs no more than the latency that the worker observes and the engine's refusals. It is not safe for concurrent use.
//
// # The rule
//
// Once per window of at least 1 s and 20 inter-token times, with b the inter-token time of a request alone, e = 0.7·e +
// 0.3·(the window's mean), the target max(1.3·b, min(stretch·b, objective)) and r = target/e:
//
//	overloaded: refusals; more preemptions; more than 2·engineQueue wait during
//	            the whole window, and slots are not configured or it
//	            does not read prompts all the time; p90 of TTFT
//	            above its objective                                 L = 0.85 · min(L, in flight), hold 5 s
//	r < 0.9                                                         L = L · max(0.5, r)^0.3, hold 3 s
//	r > 1.1, no hold, in flight ≥ 0.8·(⌊L⌋ − reserve), fewer than engineQueue
//	wait during the whole window, no GPU sample stale               L = max(L + 1, L · min(1.5, r)^0.3)
//	  the same, and L has never shrunk nor come near r = 1          L = max(L + 1, L · min(2, r)), with the window's mean for e if that is more
//
// L starts at max(1, round(8·weight)). It stays between 1 and one more than the engine was found to run at once (see
// [Parallel]), otherwise its slots as it says plus engineQueue, otherwise the configured slots, otherwise 1024 if the engine reports how many requests wait in it, otherwise 64. A step takes t0 +
// a·n, so r times as many requests do not take more than r times as long: the first growth does not overshoot, and an
// H100 reaches its limit after four seconds rather than twenty. Overload is checked every second, however few tokens
// there were. While requests wait in the engine, L stays at least at the number that the engine runs: however low L is,
// the queue stays as long until some of them end. See Scraped for what counts as waiting. The inter-token time of
// answers that are not streamed is unknown: while only such answers end, overload shrinks the limit and every second
// without overload adds one.
//
// # Beside a reserve
//
// Where the tiers below leave part of the capacity free for those above (Signals.Reserved), they keep the engine busy if they
// fill what is left to them. Without that rule a limit of 8 of which 2 were in reserve stayed at 8 whatever the engine runs.
// Since r is then the pace of fewer requests than L, it is at most L'/L, where L' of them would have the target as their
// pace, on the line through the pace of those in flight and b.
//
// # Without engine metrics
//
// An engine whose KV cache is full shows no slower tokens: it keeps the rest waiting, and their first tokens come late.
// So without metrics, streamed requests that had no first token during the whole window count as waiting. On a
// simulated L4 that gives a TTFT p95 of 9 s; with metrics it is 1.5 s, with 256 slots and no limit 290 s.
//
// # Why inter-token time
//
// It is the same for long and for short requests, and there are enough samples even on the slowest GPU, which may
// produce one first token per second. Gradient2 and similar algorithms compare with the recent past instead. With an
// endless queue the past is as slow as the present, and the baseline drifts up with the limit: they reached 826
// requests on an engine of 256 slots, with 39 s to the first token.
//
// # The baseline
//
// b is the lowest median of a window since the engine started. An outlier among the medians is corrected in three ways.
// While at most one request is in flight, b moves by a fifth towards what is measured, which is b by definition; so it
// also follows a GPU whose clocks were lowered for good. Otherwise b drifts up by 0.001 % per second, 3.7 % per hour,
// but to no more than a quarter above the lowest: without that bound, a simulated day without a quiet minute took the
// limit from 57 to 152, and it was still rising; with it, to 76. And where the times of a window are not alike, the
// mean replaces the median: with tokens that arrive in bursts, through a proxy or from speculative decoding, the median
// is near 0, and with events of many tokens it is sometimes that of whole events and sometimes that of the remainder in
// the last one.
//
// # When fewer requests do not help
//
// Lowered clocks, another process on the GPU, or an accidental baseline make tokens slow however few requests there
// are. So when the limit has been halved and the pace has hardly improved, the limit returns to where it was, and the
// pace is accepted as the engine's own for five minutes. Without this rule, the limit went to 1 after every such error,
// and a queue grew in front of idle slots.
//
// The target is at least 1.3·b because below that there is no load to shed: one objective for a
// whole fleet would leave its slow GPUs with one request each, at a thirteenth of their throughput.
// [AdaptiveLimit.Infeasible] reports that case.
type AdaptiveLimit struct {
	// Fixed after NewAdaptiveLimit.
	profile  Profile
	start    float64
	baseline float64

	value     float64
	base      float64 // b, in seconds; 0: not measured
	bestBase  float64 // lowest value of base
	pace      float64 // e
	last      float64 // mean of the last window, in seconds
	settled   bool    // the limit has shrunk, or the pace has been near its target
	holdUntil time.Time
	preempted Maybe
	bestFirst float64 // lowest p90 of TTFT

	// The limit and the pace from which the present shrinking for the pace started; 0: it is not shrinking.
	shrinkFrom     float64
	shrinkFromPace float64
	acceptedPace   float64 // pace that shrinking did not improve, in seconds
	acceptedUntil  time.Time
}

const (
	minWindowTime   = time.Second // shortest window
	minWindowTokens = 20          // with fewer, the median means little
	minFirstTokens  = 20          // first tokens needed for a p90

	// The ceilings for unknown slots: of an engine that reports its waiting requests, so that a
	// limit above its slots shows, and of any other engine.
	ceilingWithMetrics    = 1024
	ceilingWithoutMetrics = 64

	paceDecay    = 0.7  // of e; a window may contain one long prefill
	minStretch   = 1.3  // of b; a smaller slowdown is noise
	baseDrift    = 1e-5 // per second; twenty times as much doubled b within one busy hour
	maxBaseDrift = 1.25 // of the lowest
	baseStep     = 0.2  // part of the way towards the measurement of one request alone
	alikeRatio   = 0.5  // the times of a window are alike if the first quartile is at least this part of the ninth decile
	noGainRatio  = 0.9  // shrinking did not help if this part of the pace is left with half the limit
	noGainFor    = 5 * time.Minute

	deadBand          = 0.1  // of r, in both directions; without it L would oscillate around the target
	exponent          = 0.3  // of r; ITL is not proportional to L and responds late
	minRatio          = 0.5  // lower bound of r: one bad window reduces L by at most a fifth
	maxRatio          = 1.5  // upper bound of r: at most 13 % growth per window
	maxFirstRatio     = 2    // upper bound of r until the limit has settled
	busyPart          = 0.8  // part of L that must be in flight; with less, r says nothing about L
	backOff           = 0.85 // of L, on overload
	holdAfterOverload = 5 * time.Second
	holdAfterSlow     = 3 * time.Second
)

// SlotsPerWeight is how many requests a limit starts with, for a weight of 1.
const SlotsPerWeight = 8

// NewAdaptiveLimit is the limit of an engine that has just started, on GPUs of a weight (see
// ParallelWeight). A baseline, the inter-token time of one request alone, is for an engine that is
// never alone on its GPU; with 0 it is measured.
func NewAdaptiveLimit(p Profile, weight float64, baseline time.Duration) AdaptiveLimit {
	if !(weight > 0) {
		weight = 1
	}
	l := AdaptiveLimit{profile: p, start: max(1, math.Round(SlotsPerWeight*weight)), baseline: baseline.Seconds()}
	l.Restart()
	return l
}

// Restart discards what was learned: the engine was restarted, or serves another model.
func (l *AdaptiveLimit) Restart() {
	*l = AdaptiveLimit{profile: l.profile, start: l.start, baseline: l.baseline, value: l.start, base: l.baseline, bestBase: l.baseline}
}

// Value is the limit, at least 1; 0 (none) for a fixed profile. It is fractional, so that small steps add up.
func (l *AdaptiveLimit) Value() float64 {
	if l.profile.Fixed {
		return 0
	}
	return l.value
}

// Baseline is the inter-token time of a request alone; 0 if not measured yet.
func (l *AdaptiveLimit) Baseline() time.Duration { return seconds(l.base) }

// Pace is the recent inter-token time; 0 if not measured yet.
func (l *AdaptiveLimit) Pace() time.Duration { return seconds(l.pace) }

// Target is the inter-token time that the limit aims at; 0 if it is not known yet, or if there is none.
func (l *AdaptiveLimit) Target() time.Duration {
	if l.profile.Stretch <= 0 && l.profile.ITL <= 0 {
		return 0
	}
	target := l.profile.Stretch * l.base
	if slo := l.profile.ITL.Seconds(); slo > 0 && (slo < target || target <= 0) {
		target = slo
	}
	return seconds(max(target, minStretch*l.base))
}

// Infeasible reports that this engine does not meet the objective for the inter-token time with any
// number of requests. Its worker should not serve requests that need it.
func (l *AdaptiveLimit) Infeasible() bool {
	return l.profile.ITL > 0 && l.base > 0 && l.profile.ITL.Seconds() < minStretch*l.base
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// LimitWindow collects what a worker observes of its engine from one update of its AdaptiveLimit to
// the next. The zero value is ready to use; Update empties it.
type LimitWindow struct {
	from        time.Time
	gaps        times
	quiet       times // the gaps during which no prompt was being read
	firsts      times
	ended       int
	refused     int
	maxInFlight int   // most requests in flight
	minWaiting  Maybe // lowest number of waiting requests that any scrape found

	scrapes, reading int // how many there were, and how many of these found the engine reading a prompt

	prefilling, minPrefilling int
}

// Gap adds the time between two pieces of an answer, the second of which has so many tokens. The
// first piece has no gap: see FirstToken.
func (w *LimitWindow) Gap(d time.Duration, tokens int) {
	for range tokens {
		w.gaps.add(d / time.Duration(tokens))
	}
}

// GapWithoutPrefill adds a Gap during which no request waited for its first token. If at least a tenth of all gaps are
// of this kind, the others do not count: the prompts of others slow tokens down however many sequences there are, and a
// limit that shrinks under long prompts lets a queue grow in front of an engine that has capacity.
func (w *LimitWindow) GapWithoutPrefill(d time.Duration, tokens int) {
	w.Gap(d, tokens)
	for range tokens {
		w.quiet.add(d / time.Duration(tokens))
	}
}

// pace returns the times that show how fast tokens come.
func (w *LimitWindow) pace() *times {
	if w.quiet.n >= max(minWindowTokens, w.gaps.n/10) {
		return &w.quiet
	}
	return &w.gaps
}

// FirstToken adds the time from the start of a request to its first token.
func (w *LimitWindow) FirstToken(d time.Duration) { w.firsts.add(d) }

// Started records that a request has started, and how many are in flight with it.
func (w *LimitWindow) Started(inFlight int) { w.maxInFlight = max(w.maxInFlight, inFlight) }

// Ended records that a request was answered.
func (w *LimitWindow) Ended() { w.ended++ }

// Refused records that the engine answered 429 or 503, or did not answer in time.
func (w *LimitWindow) Refused() { w.refused++ }

// Scraped records the engine's queue. Only requests that every scrape of a window found waiting count as a queue:
// requests that have arrived together wait for each other's prefill, and that is no overload. Nor is it one if requests
// arrive so often that some always wait, as long as their prompts are read within two seconds: with a lower limit they
// would wait elsewhere, or go to a slower engine.
func (w *LimitWindow) Scraped(s Scrape) {
	queue := s.queue()
	if n, known := queue.Value(); known && (!w.minWaiting.known || n < w.minWaiting.value) {
		w.minWaiting = queue
	}
	w.scrapes++
	if s.reads() {
		w.reading++
	}
}

// reads reports whether every scrape of the window found the engine reading a prompt, so that others wait for that: with fewer
// requests at once they would wait as long.
func (w *LimitWindow) reads() bool { return w.scrapes > 0 && w.reading == w.scrapes }

// Prefilling records how many streamed requests are in flight without a first token, whenever that
// changes. It stands in for the waiting requests of an engine without metrics.
func (w *LimitWindow) Prefilling(n int) {
	w.prefilling = n
	w.minPrefilling = min(w.minPrefilling, n)
}

// waits is how many requests have waited in the engine during the whole window.
func (w *LimitWindow) waits() float64 {
	if n, known := w.minWaiting.Value(); known {
		return n
	}
	return float64(w.minPrefilling)
}

// Change is what Update did to a limit, as text for people; empty if nothing.
type Change string

const (
	Unchanged    Change = ""
	Grew         Change = "grew"
	GrewBlind    Change = "grew without a measurement: no answers were streamed"
	ShrankSlow   Change = "shrank: tokens come too slowly"
	Restored     Change = "restored: tokens come as slowly with half as many"
	ShrankFirst  Change = "shrank: first tokens come too late"
	ShrankRefuse Change = "shrank: the engine refused, or timed out"
	ShrankKV     Change = "shrank: the engine preempted"
	ShrankQueue  Change = "shrank: requests queue in the engine"
)

// Update applies a window if it is long enough, and empties it. It may be called at any time; twice
// a second is often enough.
func (l *AdaptiveLimit) Update(w *LimitWindow, s Signals, now time.Time) Change {
	if l.profile.Fixed {
		*w = LimitWindow{}
		return Unchanged
	}
	if w.from.IsZero() {
		w.from = now
	}
	w.Started(s.InFlight)
	if now.Sub(w.from) < minWindowTime {
		return Unchanged
	}
	streamed := w.gaps.n >= minWindowTokens
	if streamed {
		l.measure(w, s, now)
	}
	was := l.value
	change, runs := l.overloaded(w, s)
	may := !now.Before(l.holdUntil) && float64(w.maxInFlight) >= busyPart*max(math.Floor(l.value)-float64(s.Reserved), 1) &&
		w.waits() < float64(engineQueue(l.value)) && s.GPUFreshness() != Stale
	r := math.Inf(1)
	if target := l.Target(); target > 0 {
		r = target.Seconds() / l.pace
		if now.Before(l.acceptedUntil) {
			r = max(r, min(l.acceptedPace/l.pace, 1))
		}
		if s.Reserved > 0 && r > 1 {
			r = max(1, min(r, l.meets(target, w.maxInFlight)/l.value))
		}
	}
	switch {
	case change != Unchanged:
		l.value = min(l.value, max(backOff*min(l.value, float64(w.maxInFlight)), runs))
		l.holdUntil = now.Add(holdAfterOverload)
	case streamed && r < 1-deadBand && l.shrinkingDidNotHelp():
		l.value = l.shrinkFrom
		l.acceptedPace, l.acceptedUntil = l.pace, now.Add(noGainFor)
		l.holdUntil = now.Add(holdAfterSlow)
		change = Restored
	case streamed && r < 1-deadBand:
		if l.shrinkFrom == 0 {
			l.shrinkFrom, l.shrinkFromPace = l.value, l.pace
		}
		l.value *= math.Pow(max(minRatio, r), exponent)
		l.holdUntil = now.Add(holdAfterSlow)
		change = ShrankSlow
	case streamed && r > 1+deadBand && may:
		l.value = max(l.value+1, l.value*l.growth(r, w))
		change = Grew
	case l.asConfigured() && !now.Before(l.holdUntil): // configured slots are reduced only while there is overload
		l.value++
		change = Grew
	case w.gaps.n == 0 && w.ended > 0 && may:
		l.value++
		change = GrewBlind
	}
	l.settled = l.settled || change != Unchanged && change != Grew && change != GrewBlind || streamed && r <= 1+deadBand
	if change != ShrankSlow && (change != Unchanged || r >= 1) {
		l.shrinkFrom = 0
	}
	l.value = max(1, min(l.value, l.ceiling(s, was)))
	next := LimitWindow{from: now, gaps: w.gaps, quiet: w.quiet, firsts: w.firsts, prefilling: w.prefilling, minPrefilling: w.prefilling}
	if streamed {
		next.gaps.empty()
		next.quiet.empty()
	} else { // too few tokens yet: the next window continues this one
		next.maxInFlight = w.maxInFlight
	}
	*w = next
	return change
}

// growth is the factor by which the limit grows. A window in which most requests wait for their
// first token says little about how many decode well together.
func (l *AdaptiveLimit) growth(r float64, w *LimitWindow) float64 {
	if l.settled || 2*w.prefilling > w.maxInFlight {
		return math.Pow(min(maxRatio, r), exponent)
	}
	return min(maxFirstRatio, r*min(1, l.pace/l.last))
}

// meets extrapolates how many requests would have the target as their pace, from the pace of n and that of one alone.
func (l *AdaptiveLimit) meets(target time.Duration, n int) float64 {
	pace := max(l.pace, l.last)
	if n <= 1 || pace <= l.base {
		return math.Inf(1)
	}
	return 1 + float64(n-1)*(target.Seconds()-l.base)/(pace-l.base)
}

// shrinkingDidNotHelp reports that the limit has been halved and the pace has hardly improved.
func (l *AdaptiveLimit) shrinkingDidNotHelp() bool {
	return l.shrinkFrom > 0 && l.value <= l.shrinkFrom/2 && l.pace > noGainRatio*l.shrinkFromPace
}

// measure adds the inter-token times of a window.
func (l *AdaptiveLimit) measure(w *LimitWindow, s Signals, now time.Time) {
	gaps := w.pace()
	mean := gaps.mean()
	if l.pace == 0 {
		l.pace = mean
	}
	l.last = mean
	l.pace = paceDecay*l.pace + (1-paceDecay)*mean
	median := gaps.quantile(0.5)
	if gaps.quantile(0.25) < alikeRatio*gaps.quantile(0.9) {
		median = mean
	}
	foreign := s.Scrape.Running.value + s.Scrape.Waiting.value - float64(s.Scrape.InFlight)
	switch {
	case l.base == 0 || median < l.base:
		l.base = median
		if l.bestBase == 0 || l.base < l.bestBase {
			l.bestBase = l.base
		}
	case w.maxInFlight <= 1 && foreign <= 0 && l.baseline == 0:
		l.base += baseStep * (median - l.base)
		l.bestBase = l.base
	default:
		passed := min(now.Sub(w.from), time.Minute)
		l.base = min(l.base*(1+baseDrift*passed.Seconds()), maxBaseDrift*l.bestBase)
	}
}

// asConfigured reports that the limit aims at the configured slots and not at a pace.
func (l *AdaptiveLimit) asConfigured() bool { return l.profile.Stretch <= 0 && l.profile.ITL <= 0 }

// overloaded reports whether and how the engine is overloaded, and how many requests it runs all the same.
func (l *AdaptiveLimit) overloaded(w *LimitWindow, s Signals) (how Change, runs float64) {
	fresh := s.Scrape.Freshness() == Fresh
	preempted := false
	if n, known := s.Scrape.Preempted.Value(); known && fresh {
		preempted = l.preempted.known && n > l.preempted.value
		l.preempted = s.Scrape.Preempted // a lower count means that the engine was restarted
	}
	switch {
	case w.refused > 0:
		return ShrankRefuse, 0
	case preempted:
		return ShrankKV, 0
	case w.waits() > float64(2*engineQueue(l.value)) && !(l.asConfigured() && w.reads()):
		return ShrankQueue, float64(s.InFlight) - w.waits()
	case w.firsts.n >= minFirstTokens && l.firstTokensLate(w.firsts.quantile(0.9), w):
		return ShrankFirst, 0
	}
	return Unchanged, 0
}

// firstTokensLate compares first tokens with their objective. As with inter-token times, an
// objective that this engine does not meet at its best does not count.
func (l *AdaptiveLimit) firstTokensLate(p90 float64, w *LimitWindow) bool {
	w.firsts.empty()
	if l.bestFirst == 0 || p90 < l.bestFirst {
		l.bestFirst = p90
	}
	return l.profile.TTFT > 0 && p90 > max(l.profile.TTFT.Seconds(), minStretch*l.bestFirst)
}

// ceiling is the upper bound of the limit, given what it was before.
func (l *AdaptiveLimit) ceiling(s Signals, was float64) float64 {
	switch {
	case s.Found > 0: // one more, to be tried
		return float64(s.Found + 1)
	case s.EngineSlots > 0:
		return float64(s.EngineSlots + engineQueue(l.value))
	case s.Slots > 0:
		return float64(s.Slots)
	case s.Scrape.Waiting.known:
		return ceilingWithMetrics
	}
	return max(ceilingWithoutMetrics, was) // a limit that was found with metrics is still right without them
}

// times is a set of durations. The mean is exact; quantiles are those of evenly spread samples: at least half of
// timesKept, or all. Histogram buckets would be too coarse for the lowest of many medians.
type times struct {
	kept   []float64 // every stride-th, in seconds
	stride int
	n      int
	sum    float64
}

const timesKept = 256

func (t *times) add(d time.Duration) {
	t.stride = max(t.stride, 1)
	if t.n%t.stride == 0 {
		if len(t.kept) == timesKept {
			for i := range timesKept / 2 {
				t.kept[i] = t.kept[2*i]
			}
			t.kept = t.kept[:timesKept/2]
			t.stride *= 2
		}
		t.kept = append(t.kept, d.Seconds())
	}
	t.n++
	t.sum += d.Seconds()
}

func (t *times) mean() float64 { return t.sum / float64(max(t.n, 1)) }

// quantile returns 0 if there are no durations. It reorders the samples: no more can be added afterwards.
func (t *times) quantile(q float64) float64 {
	if len(t.kept) == 0 {
		return 0
	}
	slices.Sort(t.kept)
	return t.kept[int(q*float64(len(t.kept)-1))]
}

// empty removes all durations and keeps the memory.
func (t *times) empty() { *t = times{kept: t.kept[:0]} }

// parallelPart is the part of the sum that tensor parallelism achieves.
const parallelPart = 0.85

// ParallelWeight is the weight of an engine on several GPUs, given the sum of their weights (by memory bandwidth). It
// orders workers that have measured nothing, and is where their limits start. It does not multiply the capacity: what a
// GPU can do is already in its slots, its KV cache and its latency.
func ParallelWeight(sum float64, gpus int) float64 {
	if gpus > 1 {
		return parallelPart * sum
	}
	return sum
}
