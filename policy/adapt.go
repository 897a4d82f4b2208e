package policy

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Profile is how far a worker's adaptive limit may slow its requests down for
// the sake of more of them.
type Profile struct {
	Name string
	// Stretch is how many times the inter-token time of a request alone that of
	// many may be. A step of an engine takes about t0 + a·n for n requests, so that
	// a stretch of τ is about 1 − 1/τ of the most tokens per second that it can do. 0:
	// requests may slow each other down as they do.
	Stretch float64
	// ITL and TTFT are objectives for the mean inter-token time and for the 90th
	// percentile of the time to the first token. Default 0: none.
	ITL, TTFT time.Duration
	// Fixed takes the configured slots as they are: there is no adaptive limit, and
	// only a fence binds. The slots are right then, or too many or too few.
	Fixed bool
}

// The profiles, by what somebody who waits would say of them. On a simulated
// H100 with an 8B model and an endless queue they come to 42, 75 and 93 % of the
// tokens per second of 256 slots, at 16, 22 and 37 % of the inter-token time.
var (
	Latency    = Profile{Name: "latency", Stretch: 1.5}
	Balanced   = Profile{Name: "balanced", Stretch: 3}
	Throughput = Profile{Name: "throughput", Stretch: 6}
	// GivenSlots is for slots that somebody has chosen: fewer are used only while
	// the engine is overloaded.
	GivenSlots = Profile{Name: "slots"}
	FixedSlots = Profile{Name: "fixed", Fixed: true}
)

// Profiles are all there are. The default is Balanced; where slots are
// configured, GivenSlots.
var Profiles = []Profile{Latency, Balanced, Throughput, GivenSlots, FixedSlots}

// ProfileNamed finds a profile. No name is Balanced.
func ProfileNamed(name string) (Profile, bool) {
	for _, p := range Profiles {
		if p.Name == cmp.Or(name, Balanced.Name) {
			return p, true
		}
	}
	return Profile{}, false
}

// AdaptiveLimit is how many requests an engine does well at once, found by trying: it
// grows while they do not slow each other down by more than the profile's
// stretch, and shrinks when they do or when the engine is overloaded. It needs
// no more than the latency that the worker sees itself and the refusals of the
// engine. It is not safe for concurrent use.
//
// # The rule
//
// Once in a window of at least 1 s and 20 inter-token times, with b the
// inter-token time of a request alone, e = 0.7·e + 0.3·(the window's mean), the
// target max(1.3·b, min(stretch·b, objective)) and r = target/e:
//
//	overloaded: refusals; more preemptions; more than 2·engineQueue wait all the
//	            window; p90 of TTFT above its objective     L = 0.85 · min(L, in flight), hold 5 s
//	r < 0.9                                                 L = L · max(0.5, r)^0.3, hold 3 s
//	r > 1.1, no hold, in flight ≥ 0.8·⌊L⌋, fewer than
//	engineQueue wait all the window, no GPU sample stale    L = max(L + 1, L · min(1.5, r)^0.3)
//	  the same, and L has never shrunk nor come near r = 1  L = max(L + 1, L · min(2, r)), with the window's mean for e if that is more
//
// from max(1, round(8·weight)) on, between 1 and the slots of the engine plus
// engineQueue, else the configured slots, else 1024 if the engine tells what waits
// in it, else 64. A step takes t0 + a·n, so that r times as many do not take more
// than r times as long: the first growth does not overshoot, and an H100 is where
// it ought to be after four seconds and not after twenty. Overload is looked at every
// second, however few tokens there were. While requests wait in the engine, L
// stays at those that it runs at least: however low it is, the queue is as long
// until some of them end. See Scraped for what counts as waiting. Of answers that
// are not streamed no inter-token time is known: while only such end, overload
// shrinks the limit and every second without adds one.
//
// # Without engine metrics
//
// An engine whose KV cache is full shows no slower tokens: it keeps the rest
// waiting, and their first tokens come late. So what counts as waiting there is
// what was streamed and has had no first token in all of the window. On a
// simulated L4 that comes to a TTFT p95 of 9 s; with metrics it is 1.5 s, with
// 256 slots and no limit 290 s.
//
// # Why inter-token time
//
// It is the same for long and for short requests, and there are enough samples
// on the slowest GPU, which may give a first token once a second. Why not
// against the recent past, as Gradient2 and its kind do: with a queue that never
// ends the past is as slow as the present, and the baseline drifts up with the
// limit. Theirs came to 826 requests on an engine of 256 slots, with 39 s to the
// first token.
//
// # The baseline
//
// b is the least median of a window since the engine started. An outlier among
// them is forgotten in three ways. While one request at most is in flight, b
// moves by a fifth towards what is measured, which is what b means: so it also
// follows a GPU whose clocks were lowered for good. Else it drifts up by 0.001 %
// per second, an hour making 3.7 %, but to no more than a quarter above the
// least: without that bound, a simulated day without a quiet minute took the
// limit from 57 to 152, and it was still rising; with it, to 76.
// And where the times of a window are not alike, its mean stands for the median:
// of tokens that come in bursts, through a proxy or from speculative decoding, the
// median is near 0, and of events of many tokens it is now that of whole events and
// now that of what is left for the last.
//
// # What fewer requests do not help
//
// Clocks, a neighbour on the GPU, or a baseline that was an accident make tokens
// come slowly however few requests there are. So when the limit has been halved
// and the pace is hardly better, that was in vain: it goes back to where it was,
// and the pace counts as that of the engine for five minutes. Without this, the
// limit went to 1 under every such error, and a queue grew before idle slots.
//
// 1.3·b is the floor of the target because below that there is no load to shed:
// one objective for a fleet would leave its slow GPUs with one request each, at a
// thirteenth of their throughput. [AdaptiveLimit.Infeasible] says so.
type AdaptiveLimit struct {
	// Fixed after NewLimit.
	profile  Profile
	start    float64
	baseline float64

	value     float64
	base      float64 // b, in seconds; 0: not measured
	least     float64 // that b has been
	pace      float64 // e
	last      float64 // mean of the last window, in seconds
	settled   bool    // it has shrunk, or been near its target
	holdTo    time.Time
	preempted Maybe
	baseFirst float64 // least p90 of TTFT

	// Since when it shrinks for the pace, and what it has come from; 0: it does not.
	shrinks       float64
	shrinksPace   float64
	unavoidable   float64 // pace that shrinking did not better, in seconds
	unavoidableTo time.Time
}

const (
	limitTime   = time.Second // the least of a window
	limitTokens = 20          // fewer have no median to speak of
	limitFirsts = 20          // first tokens, for a p90

	// Where the slots are unknown: of an engine that tells what waits in it, so that
	// a limit above its slots shows, and of any other.
	toldCeiling  = 1024
	blindCeiling = 64

	paceKeeps = 0.7  // of e: a window may fall on one long prefill
	loadFloor = 1.3  // of b: less is noise
	baseDrift = 1e-5 // per second; twenty times as much doubled b within one busy hour
	baseMost  = 1.25 // of the least
	baseMoves = 0.2  // towards what one request alone shows
	alike     = 0.5  // of the last decile that the first quartile is, or the times are not alike
	inVain    = 0.9  // of the pace that is left when the limit has been halved
	vainFor   = 5 * time.Minute

	deadBand  = 0.1  // of r, both ways: L would swing about the target
	exponent  = 0.3  // of r: ITL is not in proportion to L, and answers late
	mostShrug = 0.5  // r counts as no less: one bad window takes a fifth
	mostBoast = 1.5  // r counts as no more: 13 % each window
	firstRush = 2    // nor as more than this, until it has settled
	busy      = 0.8  // of L in flight: with less, r says nothing about L
	backOff   = 0.85 // of L, when overloaded
	holdOver  = 5 * time.Second
	holdSlow  = 3 * time.Second
)

// SlotsPerWeight is how many requests a limit starts with, for a weight of 1.
const SlotsPerWeight = 8

// NewAdaptiveLimit is the limit of an engine that has just started, on GPUs of a weight
// (see ParallelWeight). A baseline, the inter-token time of one request alone,
// is for an engine that never is alone on its GPU; 0 has it measured.
func NewAdaptiveLimit(p Profile, weight float64, baseline time.Duration) AdaptiveLimit {
	if !(weight > 0) {
		weight = 1
	}
	l := AdaptiveLimit{profile: p, start: max(1, math.Round(SlotsPerWeight*weight)), baseline: baseline.Seconds()}
	l.Restart()
	return l
}

// Restart begins anew: the engine was restarted, or serves another model.
func (l *AdaptiveLimit) Restart() {
	*l = AdaptiveLimit{profile: l.profile, start: l.start, baseline: l.baseline, value: l.start, base: l.baseline, least: l.baseline}
}

// Value is the limit, at least 1; 0, none, for a fixed profile. It is no whole
// number, so that small steps add up.
func (l *AdaptiveLimit) Value() float64 {
	if l.profile.Fixed {
		return 0
	}
	return l.value
}

// Baseline is the inter-token time of a request alone; 0 if not measured yet.
func (l *AdaptiveLimit) Baseline() time.Duration { return seconds(l.base) }

// Pace is the inter-token time of late; 0 if not measured yet.
func (l *AdaptiveLimit) Pace() time.Duration { return seconds(l.pace) }

// Target is the inter-token time that the limit aims at; 0 if not known yet, or
// if it aims at none.
func (l *AdaptiveLimit) Target() time.Duration {
	if l.profile.Stretch <= 0 && l.profile.ITL <= 0 {
		return 0
	}
	target := l.profile.Stretch * l.base
	if slo := l.profile.ITL.Seconds(); slo > 0 && (slo < target || target <= 0) {
		target = slo
	}
	return seconds(max(target, loadFloor*l.base))
}

// Infeasible says that this engine does not meet the objective for the
// inter-token time with any number of requests. Its worker had better not serve
// those that need it.
func (l *AdaptiveLimit) Infeasible() bool {
	return l.profile.ITL > 0 && l.base > 0 && l.profile.ITL.Seconds() < loadFloor*l.base
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// LimitWindow is what a worker sees of its engine from one change of its Limit
// to the next. The zero value is ready; Update empties it.
type LimitWindow struct {
	from    time.Time
	gaps    times
	quiet   times // of these, those without a prompt before the engine
	firsts  times
	ended   int
	refused int
	most    int   // in flight
	waited  Maybe // the least that any scrape found

	prefilling, leastPrefilling int
}

// Gap is the time from one piece of an answer to the next, which has so many
// tokens. The first piece has none: see First.
func (w *LimitWindow) Gap(d time.Duration, tokens int) {
	for range tokens {
		w.gaps.add(d / time.Duration(tokens))
	}
}

// GapWithoutPrefill is a Gap in which no request waited for its first token. If there are
// enough of these, a tenth of all, the others do not count: the prompts of others
// slow tokens down however many sequences there are, and a limit that shrinks
// under long prompts lets a queue grow before an engine that has room.
func (w *LimitWindow) GapWithoutPrefill(d time.Duration, tokens int) {
	w.Gap(d, tokens)
	for range tokens {
		w.quiet.add(d / time.Duration(tokens))
	}
}

// pace are the times that tell how fast tokens come.
func (w *LimitWindow) pace() *times {
	if w.quiet.n >= max(limitTokens, w.gaps.n/10) {
		return &w.quiet
	}
	return &w.gaps
}

// FirstToken is the time from the start of a request to its first token.
func (w *LimitWindow) FirstToken(d time.Duration) { w.firsts.add(d) }

// Started notes a request, and how many are in flight with it.
func (w *LimitWindow) Started(inFlight int) { w.most = max(w.most, inFlight) }

// Ended notes a request that was answered.
func (w *LimitWindow) Ended() { w.ended++ }

// Refused notes an engine that said 429 or 503, or not a word in time.
func (w *LimitWindow) Refused() { w.refused++ }

// Scraped notes the engine's queue. Only what all scrapes of a window found is a
// queue that stands: requests that have just come together wait for each other's
// prefill, and that is no overload. Nor is it one if they come so often that some
// always wait, as long as these are read within two seconds: with a lower limit
// they would wait elsewhere, or go to a slower engine.
func (w *LimitWindow) Scraped(s Scrape) {
	queue := s.queue()
	if n, known := queue.Value(); known && (!w.waited.known || n < w.waited.value) {
		w.waited = queue
	}
}

// Prefilling notes how many streamed requests are in flight without a first
// token, whenever that changes: an engine without metrics does not say what
// waits in it, but this does.
func (w *LimitWindow) Prefilling(n int) {
	w.prefilling = n
	w.leastPrefilling = min(w.leastPrefilling, n)
}

// waits is how many requests have waited in the engine all the window.
func (w *LimitWindow) waits() float64 {
	if n, known := w.waited.Value(); known {
		return n
	}
	return float64(w.leastPrefilling)
}

// Change is what Update did to a limit, in words for people; empty if nothing.
type Change string

const (
	Unchanged    Change = ""
	Grew         Change = "grew"
	GrewBlind    Change = "grew without a measure: no answers were streamed"
	ShrankSlow   Change = "shrank: tokens come too slowly"
	Restored     Change = "restored: tokens come as slowly with half as many"
	ShrankFirst  Change = "shrank: first tokens come too late"
	ShrankRefuse Change = "shrank: the engine refused, or timed out"
	ShrankKV     Change = "shrank: the engine preempted"
	ShrankQueue  Change = "shrank: requests queue in the engine"
)

// Update takes a window in, if it is long enough, and empties it. It may be
// asked at any time; twice a second is often enough.
func (l *AdaptiveLimit) Update(w *LimitWindow, s Signals, now time.Time) Change {
	if l.profile.Fixed {
		*w = LimitWindow{}
		return Unchanged
	}
	if w.from.IsZero() {
		w.from = now
	}
	w.Started(s.InFlight)
	if now.Sub(w.from) < limitTime {
		return Unchanged
	}
	streamed := w.gaps.n >= limitTokens
	if streamed {
		l.measure(w, s, now)
	}
	was := l.value
	change, runs := l.overloaded(w, s)
	may := !now.Before(l.holdTo) && float64(w.most) >= busy*math.Floor(l.value) &&
		w.waits() < float64(engineQueue(l.value)) && s.GPUFreshness() != Stale
	r := math.Inf(1)
	if target := l.Target(); target > 0 {
		r = target.Seconds() / l.pace
		if now.Before(l.unavoidableTo) {
			r = max(r, min(l.unavoidable/l.pace, 1))
		}
	}
	switch {
	case change != Unchanged:
		l.value = min(l.value, max(backOff*min(l.value, float64(w.most)), runs))
		l.holdTo = now.Add(holdOver)
	case streamed && r < 1-deadBand && l.isInVain():
		l.value = l.shrinks
		l.unavoidable, l.unavoidableTo = l.pace, now.Add(vainFor)
		l.holdTo = now.Add(holdSlow)
		change = Restored
	case streamed && r < 1-deadBand:
		if l.shrinks == 0 {
			l.shrinks, l.shrinksPace = l.value, l.pace
		}
		l.value *= math.Pow(max(mostShrug, r), exponent)
		l.holdTo = now.Add(holdSlow)
		change = ShrankSlow
	case streamed && r > 1+deadBand && may:
		l.value = max(l.value+1, l.value*l.growth(r, w))
		change = Grew
	case l.profile.Stretch <= 0 && l.profile.ITL <= 0 && !now.Before(l.holdTo): // slots that were given: fewer only while there is overload
		l.value++
		change = Grew
	case w.gaps.n == 0 && w.ended > 0 && may:
		l.value++
		change = GrewBlind
	}
	l.settled = l.settled || change != Unchanged && change != Grew && change != GrewBlind || streamed && r <= 1+deadBand
	if change != ShrankSlow && (change != Unchanged || r >= 1) {
		l.shrinks = 0
	}
	l.value = max(1, min(l.value, l.ceiling(s, was)))
	next := LimitWindow{from: now, gaps: w.gaps, quiet: w.quiet, firsts: w.firsts, prefilling: w.prefilling, leastPrefilling: w.prefilling}
	if streamed {
		next.gaps.empty()
		next.quiet.empty()
	} else { // what there was adds up
		next.most = w.most
	}
	*w = next
	return change
}

// growth is the factor by which the limit grows. What mostly waits for its first
// token says little of how many decode well together.
func (l *AdaptiveLimit) growth(r float64, w *LimitWindow) float64 {
	if l.settled || 2*w.prefilling > w.most {
		return math.Pow(min(mostBoast, r), exponent)
	}
	return min(firstRush, r*min(1, l.pace/l.last))
}

// isInVain says that the limit has been halved, and the pace is hardly better.
func (l *AdaptiveLimit) isInVain() bool {
	return l.shrinks > 0 && l.value <= l.shrinks/2 && l.pace > inVain*l.shrinksPace
}

// measure takes the inter-token times of a window in.
func (l *AdaptiveLimit) measure(w *LimitWindow, s Signals, now time.Time) {
	gaps := w.pace()
	mean := gaps.mean()
	if l.pace == 0 {
		l.pace = mean
	}
	l.last = mean
	l.pace = paceKeeps*l.pace + (1-paceKeeps)*mean
	median := gaps.quantile(0.5)
	if gaps.quantile(0.25) < alike*gaps.quantile(0.9) {
		median = mean
	}
	foreign := s.Scrape.Running.value + s.Scrape.Waiting.value - float64(s.Scrape.InFlight)
	switch {
	case l.base == 0 || median < l.base:
		l.base = median
		if l.least == 0 || l.base < l.least {
			l.least = l.base
		}
	case w.most <= 1 && foreign <= 0 && l.baseline == 0:
		l.base += baseMoves * (median - l.base)
		l.least = l.base
	default:
		passed := min(now.Sub(w.from), time.Minute)
		l.base = min(l.base*(1+baseDrift*passed.Seconds()), baseMost*l.least)
	}
}

// overloaded says how, if the engine has more than it can take, and how many it
// runs all the same.
func (l *AdaptiveLimit) overloaded(w *LimitWindow, s Signals) (how Change, runs float64) {
	fresh := s.Scrape.Freshness() == Fresh
	preempted := false
	if n, known := s.Scrape.Preempted.Value(); known && fresh {
		preempted = l.preempted.known && n > l.preempted.value
		l.preempted = s.Scrape.Preempted // less: the engine has been restarted
	}
	switch {
	case w.refused > 0:
		return ShrankRefuse, 0
	case preempted:
		return ShrankKV, 0
	case w.waits() > float64(2*engineQueue(l.value)):
		return ShrankQueue, float64(s.InFlight) - w.waits()
	case w.firsts.n >= limitFirsts && l.late(w.firsts.quantile(0.9), w):
		return ShrankFirst, 0
	}
	return Unchanged, 0
}

// late judges first tokens, as inter-token times are judged: not against an
// objective that this engine does not meet at its best.
func (l *AdaptiveLimit) late(p90 float64, w *LimitWindow) bool {
	w.firsts.empty()
	if l.baseFirst == 0 || p90 < l.baseFirst {
		l.baseFirst = p90
	}
	return l.profile.TTFT > 0 && p90 > max(l.profile.TTFT.Seconds(), loadFloor*l.baseFirst)
}

// ceiling is the most that the limit may come to from what it was.
func (l *AdaptiveLimit) ceiling(s Signals, was float64) float64 {
	switch {
	case s.EngineSlots > 0:
		return float64(s.EngineSlots + engineQueue(l.value))
	case s.Slots > 0:
		return float64(s.Slots)
	case s.Scrape.Waiting.known:
		return toldCeiling
	}
	return max(blindCeiling, was) // what was found with metrics is not wrong without
}

// times are durations, of which the mean is exact, and quantiles are those of
// some that are spread evenly: half of timesKept at least, or all. The buckets of
// a histogram would be coarse for a least of many medians.
type times struct {
	kept   []float64 // seconds: each stride-th
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

// quantile is 0 if there are none. It reorders what is kept: nothing can be
// added any more.
func (t *times) quantile(q float64) float64 {
	if len(t.kept) == 0 {
		return 0
	}
	slices.Sort(t.kept)
	return t.kept[int(q*float64(len(t.kept)-1))]
}

// empty begins anew.
func (t *times) empty() { *t = times{kept: t.kept[:0]} }

// parallelPart of the sum is what tensor parallelism leaves.
const parallelPart = 0.85

// ParallelWeight is the weight of an engine on so many GPUs whose weights, by the
// bandwidth of their memory, have this sum. It orders workers that have measured
// nothing, and is where their limits start. It does not multiply credits: what a
// GPU can do is in its slots, its KV cache and its latency already.
func ParallelWeight(sum float64, gpus int) float64 {
	if gpus > 1 {
		return parallelPart * sum
	}
	return sum
}
