package policy

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"time"
)

// A Maybe is a number that a machine may or may not tell. The zero value is
// one that it does not: that is no 0.
type Maybe struct {
	value float64
	known bool
}

// Known is a number that was told. What is no number, or infinite, was not.
func Known(v float64) Maybe {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return Maybe{}
	}
	return Maybe{v, true}
}

// Value is the number, and whether there is one.
func (r Maybe) Value() (float64, bool) { return r.value, r.known }

// Signals is what a worker knows, at one moment, of itself, its engine and the
// engine's GPUs. Any signal but its own may be absent or old; [Signals.Capacity]
// does with what there is. The zero value is a worker that knows nothing.
type Signals struct {
	// The worker's own: these are exact.

	InFlight  int     // requests that are with the engine
	Bids      int     // that may each bring one more: 0 where the caller counts them itself
	Slots     int     // as configured: never are more in flight; 0: not configured
	Fixed     bool    // the slots are taken as they are: only a fence binds
	Limit     float64 // the adaptive one, of [Limit.Value]; 0: there is none
	Tokens    float64 // prompt and output of a mean request; 0: not known yet
	QueueFull bool    // Credit.Queued of the last credit
	// Fence is why nothing may start: the engine loads or is down, it has stalled,
	// a GPU is lost. Empty: nothing is wrong.
	Fence string

	// The engine's.

	EngineSlots int     // that it runs at once; 0: unknown
	KVTokens    float64 // that its KV cache holds; 0: unknown
	Scrape      Scrape
	// OnDemand is an engine that takes GPU memory as requests come (Ollama,
	// llama.cpp, Triton's own backends). The others take all of it when they
	// start, so that what is free says nothing about room.
	OnDemand        bool
	BytesPerRequest float64 // on each GPU, of an OnDemand engine; 0: unknown

	// The GPUs'. None where NVML is off, or there is none.

	GPUs         []GPU
	NVMLRequired bool // without a sample of every GPU nothing may start
}

// Scrape is what the engine's metrics said. The zero value is no scrape.
type Scrape struct {
	Taken     bool
	Age       time.Duration
	InFlight  int   // the worker's own requests when it was taken
	Running   Maybe // requests
	Waiting   Maybe // requests, in the engine's own queue
	KVUsed    Maybe // part of the KV cache, 0 to 1
	Preempted Maybe // requests since the engine started: put back for lack of KV cache

	// The worker's own requests that had no first token yet, wherever they were; and
	// how long the engine takes for the prompt of a mean one, 0: unknown.
	Prefilling int
	Prefill    time.Duration
}

// GPU is one of the engine's GPUs as NVML saw it last. The zero value was never
// seen.
type GPU struct {
	Sampled bool
	Age     time.Duration
	Every   time.Duration // between samples. Default 1 s
	Sample  GPUSample
	Strain  Strain // of [StrainWatch.Add]
}

// GPUSample is one look of NVML at a GPU. Memory is in bytes.
type GPUSample struct {
	Reasons uint64 // that its clocks are held down for: NVML's bits
	Margin  Maybe  // °C until it slows down
	Free    Maybe
	Total   Maybe
}

// Freshness is how far a source of signals can be believed.
type Freshness int

const (
	Missing Freshness = iota // not there, or too old to mean anything
	Stale
	Fresh
)

func (f Freshness) String() string { return [...]string{"missing", "stale", "fresh"}[f] }

const (
	// An engine is scraped every 500 ms. Four missed are no accident, and twenty
	// are no hiccup any more: longer than the pause of a garbage collector or the
	// prefill of a very long prompt.
	scrapeFresh = 2 * time.Second
	scrapeKept  = 10 * time.Second

	gpuEvery = time.Second
	gpuFresh = 3                // samples that may be missed
	gpuKept  = 30 * time.Second // restarting what takes the samples takes less
)

// Freshness is Fresh up to 2 s, Stale up to 10 s. A scrape that told nothing is
// Missing.
func (s Scrape) Freshness() Freshness {
	switch {
	case !s.Taken || s.Age > scrapeKept || !s.Running.known && !s.Waiting.known && !s.KVUsed.known:
		return Missing
	case s.Age > scrapeFresh:
		return Stale
	}
	return Fresh
}

// Freshness is Fresh up to three intervals, Stale up to 30 s.
func (g GPU) Freshness() Freshness {
	every := g.Every
	if every <= 0 {
		every = gpuEvery
	}
	switch {
	case !g.Sampled || g.Age > max(gpuKept, gpuFresh*every):
		return Missing
	case g.Age > gpuFresh*every:
		return Stale
	}
	return Fresh
}

// GPUFreshness is that of the GPU which is known worst; Missing without any.
func (s Signals) GPUFreshness() Freshness {
	worst := Fresh
	for _, g := range s.GPUs {
		worst = min(worst, g.Freshness())
	}
	if len(s.GPUs) == 0 {
		return Missing
	}
	return worst
}

// Bound is what a credit comes from, in a word.
type Bound string

const (
	BoundSlots    Bound = "slots"    // the configured slots
	BoundEngine   Bound = "engine"   // the engine's own slots, less what others have sent it
	BoundQueue    Bound = "queue"    // requests wait inside the engine
	BoundKV       Bound = "kv"       // the KV cache has no room for more
	BoundMemory   Bound = "memory"   // GPU memory: of an engine that takes it on demand, or another process took some
	BoundLimit    Bound = "limit"    // the adaptive limit
	BoundThrottle Bound = "throttle" // a GPU slows itself down
	BoundStale    Bound = "stale"    // the engine's metrics are old: no more than it had when they were taken
	BoundUnknown  Bound = "unknown"  // neither slots nor engine metrics: one at a time
	BoundFence    Bound = "fence"    // nothing may start
)

// Bounds are all there are, in the order in which one is named where several
// come to the same.
var Bounds = []Bound{
	BoundFence, BoundThrottle, BoundStale, BoundQueue, BoundKV, BoundMemory, BoundEngine, BoundSlots, BoundLimit, BoundUnknown,
}

// Capacity is how many requests a worker may have.
type Capacity struct {
	Total int   // in flight at once
	More  int   // that may start now, beside those in flight and the open bids
	Bound Bound // where Total comes from
	// Why says in words what a fence or a strain is about. Else empty.
	Why string
	// Headroom is the part that is free, 0 to 1, of whatever has least.
	Headroom float64
	// Ease is the same without what is counted in requests, which a price knows
	// anyway: of KV cache, memory and degrees. 1 where none of them is known.
	Ease float64
	// Factor is what is left of the room for a strained GPU: 1, 0.75, 0.5. 0: fenced.
	Factor float64
	// QueueFull says that the engine's queue was full. The next Signals take it.
	QueueFull bool
	// Engine and GPU say what the credit is based on.
	Engine, GPU Freshness
}

// A Term is one of the bounds of a credit.
type Term struct {
	Bound Bound
	Max   float64 // requests in flight; +Inf where it does not bind
}

const (
	// startTokens is what a request takes of the KV cache while none has ended:
	// between a chat turn and a long document.
	startTokens = 1024

	// kvFull is the use of the KV cache from which on nothing starts. Those that
	// run still grow; above 80 to 90 % engines begin to preempt, which costs the
	// whole prefill again.
	kvFull = 0.90
	// kvEase is where the room begins to shrink if only the use is known, and not
	// of how many tokens.
	kvEase = 0.70

	// ramp is the part of the credit by which the requests in flight may grow
	// between two scrapes: what each will take of the KV cache cannot be known
	// beforehand. It does not bind while the cache is less than half as full as
	// kvEase and there is room for requests that are so many times as large as the
	// mean one: a burst that finds the engine idle would have its last requests wait
	// for two seconds.
	ramp  = 0.25
	large = 4

	// minReserve and reservePart are the GPU memory that stays free.
	minReserve  = 512 << 20
	reservePart = 0.02

	// readsSeveral is how many prompts an engine does not read together if it lacks
	// slots or memory: it reads what has just got a place, most often one.
	readsSeveral = 2

	// prefillWait is how long an engine may take for the prompts that wait for those
	// before them. The price contains that, so it may still be the best there is; but
	// who has gone there stays, whoever is free first. With one second, the L4s beside
	// an H100 took 30 of 1200 conversations and not 15, and E2E p99 was 15 to 22 s and
	// not 11; with no bound, long prompts had their first token up to a tenth later.
	prefillWait = 2 * time.Second

	// easyMargin is from how many °C before its slowdown a GPU counts as less than
	// cool in Headroom. It says so before coolMargin, where it counts as warm.
	easyMargin = 10
)

// engineQueue is how many requests may wait inside the engine, for an adaptive
// limit: 5 %, from 1 to 4. A few keep it busy while one is prefilled; those that
// are more than that wait better in Pulley's queue, where another worker can
// have them.
func engineQueue(limit float64) int {
	return int(min(max(math.Ceil(0.05*limit), 1), 4))
}

// queue is Waiting, without the prompts that are read within prefillWait while the
// engine reads several together. Those of a burst wait for each other, and that is
// no sign that the engine has no room: without this, a burst kept the fast workers
// from bidding until the next scrapes, and an idle one eight times as slow took it.
func (s Scrape) queue() Maybe {
	waiting, known := s.Waiting.Value()
	if !known || s.Prefill <= 0 || float64(s.Prefilling)-waiting < readsSeveral {
		return s.Waiting
	}
	return Known(max(waiting-math.Floor(float64(prefillWait)/float64(s.Prefill)), 0))
}

// Capacity is how many requests the worker may have in flight, and what that comes
// from. It is meant to be asked twice a second, and whenever a request ends.
//
// With I requests in flight, I' when the engine was scraped; R running and W
// waiting in the engine; S slots of the engine; K tokens of KV cache, used to the
// part u; T tokens of a mean request; L the adaptive limit and q = engineQueue(L):
//
//	engine   S + q − F, where F = max(0, R + W − I') is what others sent it
//	kv       I' − W + ⌊(0.90 − u) · K/T⌋, or ⌈L · (0.90 − u)/0.20⌉ where K is unknown
//	queue    I if W ≥ q, until W < q/2, and where S is known I' − (W − q) at least; while it reads several prompts, W is without those that it will read within 2 s
//	memory   I + ⌊(free − reserve) / bytes of a request⌋, reserve = max(512 MiB, 2 %), for engines that take it on demand
//	limit    L
//	slots    as configured
//
//	Total = ⌊Factor · the least of these⌋, and at least 1 where nothing is in flight and nothing fenced
//	More  = min(Total, I' + max(1, ⌈Total/4⌉, ⌊(0.90 − u) · K/4T⌋)) − I − bids
//
// So between two scrapes the requests in flight grow by a quarter of the credit
// at most, or by what surely fits: requests four times as large as the mean, while
// the cache is less than 35 % full. What waits, or starts after a scrape, counts against the room in the
// KV cache that it found, and what ends gives back as much: otherwise an engine
// whose requests are shorter than the scrape interval would stand idle until the
// next. A cache above 90 % is a debt: what ends first pays it. On a simulated L4,
// scraped every 500 ms, that is 8 to 17 preemptions in an hour; 37 to 59 where
// all that ends is replaced.
//
// What is absent does not bind. Older scrapes bind less:
//
//	up to 2 s      all as above
//	up to 10 s     no more than were in flight then; where requests waited, what ends is not replaced
//	older, none    the least of slots and limit; without slots those of the engine, else 1
//
//	GPU sample up to 3 intervals   all as above
//	up to 30 s                     all as above, but the adaptive limit does not grow
//	older, none                    the engine's signals alone; with NVMLRequired a fence
//
// Use and memory of the GPU do not enter but as told, and its power cap not at
// all: decoding a single request shows a GPU as fully used, engines that
// preallocate take all memory when they start, and a busy GPU runs at its power
// cap.
func (s Signals) Capacity() Capacity {
	c := Capacity{Factor: 1, Engine: s.Scrape.Freshness(), GPU: s.GPUFreshness()}
	if why := s.fence(); why != "" {
		c.Bound, c.Why, c.Factor = BoundFence, why, 0
		return c
	}
	terms, queued := s.terms()
	least := slices.MinFunc(terms[:], func(a, b Term) int { return cmp.Compare(a.Max, b.Max) })
	c.Bound, c.QueueFull = least.Bound, queued
	strain := s.strain()
	c.Factor = strain.Factor()
	c.Total = whole(c.Factor * least.Max)
	if c.Total < whole(least.Max) {
		c.Bound, c.Why = strain.bound(), strain.String()
	}
	if s.InFlight <= 0 {
		c.Total = max(c.Total, 1)
	}
	c.More = s.more(c)
	c.Ease = s.ease()
	c.Headroom = c.Factor * min(s.free(terms[:]), c.Ease)
	return c
}

// Terms are all bounds of a credit, those that do not bind included: for people
// who ask why. A fence and a strained GPU are not among them.
func (s Signals) Terms() []Term {
	terms, _ := s.terms()
	return terms[:]
}

// fence says why nothing may start.
func (s *Signals) fence() string {
	if s.Fence == "" && s.NVMLRequired && s.GPUFreshness() == Missing {
		return "NVML is required, and tells nothing"
	}
	return s.Fence
}

// terms are the bounds, in the order of Bounds, so that the first of several
// that are equal is the one to name. The queue's also says whether it is full.
func (s *Signals) terms() (terms [8]Term, queued bool) {
	no := math.Inf(1)
	stale, queue, kv, engine, slots, limit, unknown := no, no, no, no, no, no, no
	memory := s.memory()
	if s.Limit > 0 {
		limit = max(math.Floor(s.Limit+1e-9), 1)
	}
	if s.Slots > 0 {
		slots = float64(s.Slots)
	}
	fresh := s.Scrape.Freshness()
	switch {
	case s.Fixed:
		limit, memory = no, no
	case fresh == Fresh:
		engine, kv = s.engine(), s.kv()
		queue, queued = s.queue()
	case fresh == Stale:
		stale, queued = float64(s.Scrape.InFlight), s.QueueFull
		if queued {
			stale = min(stale, float64(s.InFlight))
		}
	}
	if s.Slots <= 0 && (s.Fixed || fresh != Fresh) {
		if s.EngineSlots > 0 {
			engine = float64(s.EngineSlots)
		} else if fresh == Missing || s.Fixed {
			unknown = 1
		}
	}
	return [8]Term{
		{BoundStale, stale}, {BoundQueue, queue}, {BoundKV, kv}, {BoundMemory, memory},
		{BoundEngine, engine}, {BoundSlots, slots}, {BoundLimit, limit}, {BoundUnknown, unknown},
	}, queued
}

// engine is what the engine's slots leave.
func (s *Signals) engine() float64 {
	if s.EngineSlots <= 0 {
		return math.Inf(1)
	}
	foreign := max(s.Scrape.Running.value+s.Scrape.Waiting.value-float64(s.Scrape.InFlight), 0)
	return max(float64(s.EngineSlots+engineQueue(s.Limit))-foreign, 0)
}

// kv is what the KV cache has room for.
func (s *Signals) kv() float64 {
	used, known := s.Scrape.KVUsed.Value()
	if !known {
		return math.Inf(1)
	}
	if s.KVTokens > 0 {
		return max(float64(s.Scrape.InFlight)+math.Floor((kvFull-used)*s.KVTokens/s.tokens()+1e-9)-s.Scrape.Waiting.value, 0)
	}
	most := s.Limit
	for _, slots := range [...]int{s.Slots, s.EngineSlots} {
		if most <= 0 {
			most = float64(slots)
		}
	}
	if most <= 0 || used <= kvEase {
		return math.Inf(1)
	}
	return math.Ceil(most * max((kvFull-used)/(kvFull-kvEase), 0))
}

// tokens is what a request takes of the KV cache.
func (s *Signals) tokens() float64 {
	if s.Tokens > 0 {
		return s.Tokens
	}
	return startTokens
}

// queue stops what would wait in the engine.
func (s *Signals) queue() (most float64, full bool) {
	waiting, known := s.Scrape.queue().Value()
	if !known {
		return math.Inf(1), false
	}
	q := float64(engineQueue(s.Limit))
	if waiting >= q || s.QueueFull && waiting >= q/2 {
		most = float64(s.InFlight)
		if s.EngineSlots > 0 { // what waits is no more than q that it may: what ends is replaced
			most = max(most, float64(s.Scrape.InFlight)-max(waiting-q, 0))
		}
		return most, true
	}
	return math.Inf(1), false
}

// memory is what the GPUs' memory has room for. Where it is not known what a
// request takes, nothing more starts once the reserve is used.
func (s *Signals) memory() float64 {
	most := math.Inf(1)
	for _, g := range s.GPUs {
		free, known := g.Sample.Free.Value()
		if !s.OnDemand || !known || g.Freshness() == Missing {
			continue
		}
		room := free - reserve(g.Sample)
		switch {
		case room <= 0:
			most = min(most, float64(s.InFlight))
		case s.BytesPerRequest > 0:
			most = min(most, float64(s.InFlight)+math.Floor(room/s.BytesPerRequest))
		}
	}
	return most
}

// reserve is the memory of a GPU that stays free.
func reserve(g GPUSample) float64 { return max(minReserve, reservePart*g.Total.value) }

// strain is that of the GPU which has most. What was seen too long ago is
// forgotten.
func (s *Signals) strain() Strain {
	most := NoStrain
	if s.Fixed {
		return most
	}
	for _, g := range s.GPUs {
		if g.Freshness() != Missing {
			most = max(most, g.Strain)
		}
	}
	return most
}

// more is how much of the credit may be used now.
func (s *Signals) more(c Capacity) int {
	step := max(int(math.Ceil(ramp*float64(c.Total))), 1)
	top := c.Total
	if c.Engine == Fresh && !s.Fixed {
		step = max(step, s.certain())
		top = min(top, s.Scrape.InFlight+step)
	}
	if s.InFlight <= 0 { // what one finds idle takes one, whatever was scraped
		top = max(top, min(c.Total, 1))
	}
	return max(top-max(s.InFlight, 0)-max(s.Bids, 0), 0)
}

// certain is how many requests the KV cache has room for even if they are large.
func (s *Signals) certain() int {
	used, known := s.Scrape.KVUsed.Value()
	switch {
	case known && used > kvEase/2:
		return 0
	case known && s.KVTokens > 0:
		return whole((kvFull - used) * s.KVTokens / (large * s.tokens()))
	}
	return math.MaxInt32 // there is nothing that a ramp would spare
}

// free is the part of the requests that may be in flight which is free. What
// waits in the engine, or is old, does not enter: it comes and goes.
func (s *Signals) free(terms []Term) float64 {
	most := math.Inf(1)
	for _, t := range terms {
		if t.Bound != BoundQueue && t.Bound != BoundStale {
			most = min(most, t.Max)
		}
	}
	return part(1 - float64(s.InFlight)/max(most, 1))
}

// ease is the part that is free of whatever has least: KV cache, memory, degrees.
func (s *Signals) ease() float64 {
	free := 1.0
	if used, known := s.Scrape.KVUsed.Value(); known && s.Scrape.Freshness() == Fresh && !s.Fixed {
		if s.KVTokens > 0 {
			used += float64(s.InFlight-s.Scrape.InFlight) * s.tokens() / s.KVTokens
		}
		free = min(free, (kvFull-used)/kvFull)
	}
	for _, g := range s.GPUs {
		if g.Freshness() == Missing {
			continue
		}
		if left, known := g.Sample.Free.Value(); known && s.OnDemand && g.Sample.Total.value > 0 {
			r := reserve(g.Sample)
			free = min(free, (left-r)/max(g.Sample.Total.value-r, 1))
		}
		if margin, known := g.Sample.Margin.Value(); known {
			free = min(free, margin/easyMargin)
		}
	}
	return part(free)
}

func part(x float64) float64 { return min(max(x, 0), 1) }

func whole(x float64) int { return int(min(max(math.Floor(x+1e-9), 0), math.MaxInt32)) }

// Strain is what makes a GPU take less without being ill. A higher one is worse.
type Strain int

const (
	NoStrain      Strain = iota
	ForeignMemory        // another process takes its memory
	Warm                 // the driver holds the clocks down for heat, or is about to
	Hot                  // the hardware does, for heat or power
)

// Factor is what is left of the room: half, where the hardware runs at about
// half its clocks; a bit less than all where that may come.
func (s Strain) Factor() float64 { return [...]float64{1, 0.75, 0.75, 0.5}[s] }

func (s Strain) String() string {
	return [...]string{
		"", "another process takes GPU memory", "the driver slows the GPU down for heat", "the GPU slows itself down for heat or power",
	}[s]
}

func (s Strain) bound() Bound {
	if s == ForeignMemory {
		return BoundMemory
	}
	return BoundThrottle
}

// The bits of GPUSample.Reasons that mean heat, or power that fails. The power
// cap, 0x4, is not among them: a busy GPU runs at it.
const (
	hotReasons  = 0x8 | 0x40 | 0x80 // hardware slowdown, thermal slowdown, power brake
	warmReasons = 0x20              // the driver's thermal slowdown
)

const (
	strainSamples = 5                // of which
	strainEnters  = 3                // have to show it: one may be a spike
	strainLeaves  = 30 * time.Second // without: a GPU that cools down under less load would swing

	coolMargin = 3 // °C before the slowdown: less is as good as in it

	foreignEnters = 1 << 30   // bytes less free than at the start: above what an engine grows by itself
	foreignLeaves = 512 << 20 // half of it
	leastFree     = 256 << 20 // less is taken for a neighbour's whatever the start was
)

// StrainWatch finds the strain of one GPU in its samples. The zero value is
// ready, and to be taken anew when the engine has started.
type StrainWatch struct {
	hot, warm latch
	base      Maybe // free memory at the start
	foreign   bool
}

// Add takes a sample in. The engine preallocates if it took its memory when it
// started: then a smaller free part is another process.
func (w *StrainWatch) Add(g GPUSample, preallocates bool, now time.Time) Strain {
	margin, known := g.Margin.Value()
	w.hot.add(g.Reasons&hotReasons != 0, false, now)
	w.warm.add(g.Reasons&warmReasons != 0, known && margin < coolMargin, now)
	if free, known := g.Free.Value(); known && preallocates {
		if !w.base.known {
			w.base = g.Free
		}
		less := w.base.value - free
		w.foreign = less > foreignEnters || free < leastFree || w.foreign && less > foreignLeaves
	} else {
		w.foreign = false
	}
	switch {
	case w.hot.on:
		return Hot
	case w.warm.on:
		return Warm
	case w.foreign:
		return ForeignMemory
	}
	return NoStrain
}

// latch is set by strainEnters of strainSamples, and falls strainLeaves after
// the last.
type latch struct {
	seen uint8 // the last samples, as bits
	on   bool
	last time.Time
}

// add takes in whether a sample shows it, or is reason enough alone.
func (l *latch) add(shows, alone bool, now time.Time) {
	l.seen = l.seen << 1 & (1<<strainSamples - 1)
	if shows {
		l.seen |= 1
	}
	switch {
	case alone || shows && (l.on || bits.OnesCount8(l.seen) >= strainEnters):
		l.on, l.last = true, now
	case l.on && now.Sub(l.last) >= strainLeaves:
		l.on = false
	}
}
