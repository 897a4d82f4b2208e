package policy

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Bound names what limits a worker's capacity.
type Bound string

const (
	BoundSlots    Bound = "slots"    // the configured slots
	BoundEngine   Bound = "engine"   // the engine's own slots, as it says or as seen, minus those that other clients use
	BoundQueue    Bound = "queue"    // requests wait inside the engine
	BoundKV       Bound = "kv"       // the KV cache has no room for more
	BoundMemory   Bound = "memory"   // GPU memory, of an engine that allocates on demand, or because another process took some
	BoundLimit    Bound = "limit"    // the adaptive limit
	BoundThrottle Bound = "throttle" // a GPU is throttled
	BoundStale    Bound = "stale"    // the engine's metrics are old: no more than it had when they were read
	BoundUnknown  Bound = "unknown"  // neither slots nor engine metrics are known: one at a time
	BoundFence    Bound = "fence"    // no request may start
)

// Bounds lists all bounds. If several give the same number, the first of them is named.
var Bounds = []Bound{
	BoundFence, BoundThrottle, BoundStale, BoundQueue, BoundKV, BoundMemory, BoundEngine, BoundSlots, BoundLimit, BoundUnknown,
}

// Capacity is how many requests a worker may have.
type Capacity struct {
	Total int // requests in flight at once
	More  int // requests that may start now, beside those in flight and the open bids
	// Behind is how many may start now behind prompts that wait in the engine while it reads others: More without the bound
	// of its queue. It is for follow-ups of what this engine has cached: see [MayWaitAtHome].
	Behind int
	Bound  Bound // what limits Total
	// Why explains a fence or a strain in words. Otherwise it is empty.
	Why string
	// Headroom is the free part, 0 to 1, of the scarcest resource.
	Headroom float64
	// Ease is Headroom without what is counted in requests, which a price includes anyway: the free
	// part of KV cache, memory and temperature margin. It is 1 if none of them is known.
	Ease float64
	// Factor is the part of the capacity that a strained GPU leaves: 1, 0.75 or 0.5; 0 if fenced.
	Factor float64
	// QueueFull says that the engine's queue was full. Pass it on with the next Signals.
	QueueFull bool
	// Engine and GPU say how fresh the signals were.
	Engine, GPU Freshness
}

// A Term is one of the numbers whose minimum is the capacity.
type Term struct {
	Bound Bound
	Max   float64 // requests in flight; +Inf if it does not bind
}

const (
	// startTokens is the assumed size of a request in the KV cache until one has ended: between a
	// chat message and a long document.
	startTokens = 1024

	// kvFull is the use of the KV cache above which no request starts. Running requests still grow;
	// above 80 to 90 % engines begin to preempt, which costs the whole prefill again.
	kvFull = 0.90
	// kvShrinkFrom is where the capacity starts to shrink if only the use of the KV cache is known,
	// and not its size in tokens.
	kvShrinkFrom = 0.70

	// ramp is the part of the capacity by which the requests in flight may grow between two scrapes: what each will
	// take of the KV cache cannot be known beforehand. It does not bind while the cache is less than half as full as
	// kvShrinkFrom and has room for requests that are largeFactor times as large as the mean: otherwise, of a burst
	// that finds the engine idle, the last requests would wait two seconds.
	ramp        = 0.25
	largeFactor = 4

	// minReserve and reservePart are the GPU memory that stays free.
	minReserve  = 512 << 20
	reservePart = 0.02

	// minReadTogether is the smallest number of prompts that counts as reading several at once. An
	// engine that lacks slots or memory reads what has just got a place, mostly one prompt.
	minReadTogether = 2

	// prefillWait is how long an engine may take for the prompts ahead of those that wait. The price includes that
	// time, so the engine may still be the best choice; but a request that has gone there stays, whichever worker is
	// free first. With one second instead, the L4s beside an H100 took 30 of 1200 conversations and not 15, and E2E p99
	// was 15 to 22 s and not 11; without a bound, long prompts had their first token up to a tenth later.
	prefillWait = 2 * time.Second

	// easyMargin is the temperature margin in °C below which a GPU counts as less than cool in
	// Headroom. It takes effect before coolMargin, below which the GPU counts as warm.
	easyMargin = 10
)

// reads reports whether the engine was reading a prompt. Others that wait then may do so for that and not for a slot: an engine
// that lacks slots reads now and then, when it has got a place for one.
func (s Scrape) reads() bool {
	waiting, known := s.Waiting.Value()
	return known && float64(s.Prefilling)-waiting >= 1
}

// EngineQueue is how many requests may wait inside the engine under an adaptive limit: 5 %, from 1 to 4. A few keep the
// engine busy while one is prefilled; the rest should wait in Pulley's queue, where another worker can take them.
func engineQueue(limit float64) int {
	return int(min(max(math.Ceil(0.05*limit), 1), 4))
}

// queue is Waiting without the prompts that will be read within prefillWait, if the engine reads several together. The
// prompts of a burst wait for each other, which does not mean that the engine has no capacity: without this correction,
// a burst kept the fast workers from bidding until the next scrapes, and an idle one eight times as slow took it.
func (s Scrape) queue() Maybe {
	waiting, known := s.Waiting.Value()
	if !known || s.Prefill <= 0 || float64(s.Prefilling)-waiting < minReadTogether {
		return s.Waiting
	}
	return Known(max(waiting-math.Floor(float64(prefillWait)/float64(s.Prefill)), 0))
}

// Capacity is how many requests the worker may have in flight, and what limits that. It is meant to
// be called twice a second and whenever a request ends.
//
// With I requests in flight, and I' when the engine was scraped; R running and W waiting in the
// engine; S slots of the engine as it says, and N as found; K tokens of KV cache, of which the fraction u is used; T tokens of
// a mean request; L the adaptive limit and q = EngineQueue(L):
//
//	engine   min(S + q, N) − F, where F = max(0, R + W − I') are the requests of other clients
//	kv       I' − W + ⌊(0.90 − u) · K/T⌋, or ⌈L · (0.90 − u)/0.20⌉ where K is unknown
//	queue    I if W ≥ q, until W < q/2; where S is known, at least I' − (W − q); while the engine reads several prompts, W excludes those that it will read within 2 s
//	memory   I + ⌊(free − reserve) / bytes of a request⌋, reserve = max(512 MiB, 2 %), for engines that allocate on demand
//	limit    L
//	slots    as configured
//
//	Total = ⌊Factor · the minimum of these⌋, and at least 1 if nothing is in flight and nothing is fenced
//	More  = min(Total, I' + max(1, ⌈Total/4⌉, ⌊(0.90 − u) · K/4T⌋)) − I − bids
//
// and while neither S nor N is known, no more than Parallel.Reach says.
//
// So between two scrapes the requests in flight grow by a quarter of the capacity at most, or by what is certain to
// fit: requests four times as large as the mean, while the cache is less than 35 % full. A request that waits, or that
// starts after a scrape, counts against the room in the KV cache that the scrape found, and a request that ends gives
// it back: otherwise an engine whose requests are shorter than the scrape interval would stand idle until the next
// scrape. Use above 90 % is a debt that the next requests to end repay. On a simulated L4, scraped every 500 ms, that
// gives 8 to 17 preemptions in an hour, and 37 to 59 if every request that ends is replaced.
//
// A missing signal does not bind. Older scrapes bind less:
//
//	up to 2 s        all as above
//	up to 10 s       no more than were in flight then; if requests waited, those that end are not replaced
//	older or none    the minimum of slots and limit; without slots those of the engine, otherwise 1
//
//	GPU sample up to 3 intervals   all as above
//	up to 30 s                     all as above, but the adaptive limit does not grow
//	older or none                  the engine's signals alone; with NVMLRequired a fence
//
// Utilisation and memory of the GPU count only as described, and its power cap does not count at
// all: decoding a single request shows a GPU as fully utilised, engines that preallocate take all
// memory when they start, and a busy GPU runs at its power cap.
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
	c.Total = floorInt(c.Factor * least.Max)
	if c.Total < floorInt(least.Max) {
		c.Bound, c.Why = strain.bound(), strain.String()
	}
	if s.InFlight <= 0 {
		c.Total = max(c.Total, 1)
	}
	c.More = s.more(c)
	c.Behind = c.More
	if least.Bound == BoundQueue && s.Scrape.reads() {
		c.Behind = s.behind(terms[:], c)
	}
	c.Ease = s.ease()
	c.Headroom = c.Factor * min(s.free(terms[:]), c.Ease)
	return c
}

// Terms returns all terms of the capacity, including those that do not bind, for people who ask
// why. It leaves out a fence and a strained GPU.
func (s Signals) Terms() []Term {
	terms, _ := s.terms()
	return terms[:]
}

// fence returns why no request may start, or "".
func (s *Signals) fence() string {
	if s.Fence == "" && s.NVMLRequired && s.GPUFreshness() == Missing {
		return "NVML is required but reports nothing"
	}
	return s.Fence
}

// terms returns the terms in the order of Bounds, so that the first of several equal ones is named.
// queueFull is that of the queue's term.
func (s *Signals) terms() (terms [8]Term, queueFull bool) {
	inf := math.Inf(1)
	stale, queue, kv, engine, slots, limit, unknown := inf, inf, inf, inf, inf, inf, inf
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
		limit, memory = inf, inf
	case fresh == Fresh:
		engine, kv = s.engine(), s.kv()
		queue, queueFull = s.queue()
	case fresh == Stale:
		stale, queueFull = float64(s.Scrape.InFlight), s.QueueFull
		if queueFull {
			stale = min(stale, float64(s.InFlight))
		}
	}
	if s.Slots <= 0 && (s.Fixed || fresh != Fresh) {
		for _, n := range [...]int{s.EngineSlots, s.Found} {
			if n > 0 {
				engine = min(engine, float64(n))
			}
		}
		if math.IsInf(engine, 1) && (fresh == Missing || s.Fixed) {
			unknown = 1
		}
	}
	return [8]Term{
		{BoundStale, stale}, {BoundQueue, queue}, {BoundKV, kv}, {BoundMemory, memory},
		{BoundEngine, engine}, {BoundSlots, slots}, {BoundLimit, limit}, {BoundUnknown, unknown},
	}, queueFull
}

// engine is what the engine's slots leave.
func (s *Signals) engine() float64 {
	most := math.Inf(1)
	if s.EngineSlots > 0 {
		most = float64(s.EngineSlots + engineQueue(s.Limit))
	}
	if s.Found > 0 {
		most = min(most, float64(s.Found))
	}
	foreign := max(s.Scrape.Running.value+s.Scrape.Waiting.value-float64(s.Scrape.InFlight), 0)
	return max(most-foreign, 0)
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
	if most <= 0 || used <= kvShrinkFrom {
		return math.Inf(1)
	}
	return math.Ceil(most * max((kvFull-used)/(kvFull-kvShrinkFrom), 0))
}

// tokens is the size of a request in the KV cache.
func (s *Signals) tokens() float64 {
	if s.Tokens > 0 {
		return s.Tokens
	}
	return startTokens
}

// queue keeps requests from waiting in the engine.
func (s *Signals) queue() (most float64, full bool) {
	waiting, known := s.Scrape.queue().Value()
	if !known {
		return math.Inf(1), false
	}
	q := float64(engineQueue(s.Limit))
	if waiting >= q || s.QueueFull && waiting >= q/2 {
		most = float64(s.InFlight)
		// At most q requests may wait: those within q that end are replaced.
		if s.EngineSlots > 0 {
			most = max(most, float64(s.Scrape.InFlight)-max(waiting-q, 0))
		}
		return most, true
	}
	return math.Inf(1), false
}

// memory is what the GPUs' memory has room for. If the size of a request is unknown, no request
// starts once the reserve is in use.
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

// strain is the worst strain of any GPU. Old samples are ignored.
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

// more is how much of the capacity may be used now.
func (s *Signals) more(c Capacity) int {
	step := max(int(math.Ceil(ramp*float64(c.Total))), 1)
	top := c.Total
	if c.Engine == Fresh && !s.Fixed {
		step = max(step, s.certain())
		top = min(top, s.Scrape.InFlight+step)
	}
	if s.Reach > 0 && !s.Fixed {
		top = min(top, s.Reach)
	}
	if s.InFlight <= 0 { // an idle engine takes one request, whatever the scrape said
		top = max(top, min(c.Total, 1))
	}
	return max(top-max(s.InFlight, 0)-max(s.Bids, 0), 0)
}

// behind is what more would be if no request waited in the engine.
func (s *Signals) behind(terms []Term, c Capacity) int {
	most := math.Inf(1)
	for _, t := range terms {
		if t.Bound != BoundQueue {
			most = min(most, t.Max)
		}
	}
	c.Total = floorInt(c.Factor * most)
	return s.more(c)
}

// certain is how many requests the KV cache has room for even if they are large.
func (s *Signals) certain() int {
	used, known := s.Scrape.KVUsed.Value()
	switch {
	case known && used > kvShrinkFrom/2:
		return 0
	case known && s.KVTokens > 0:
		return floorInt((kvFull - used) * s.KVTokens / (largeFactor * s.tokens()))
	}
	return math.MaxInt32 // without a KV cache to protect there is no ramp
}

// free is the free part of the requests that may be in flight. The terms for waiting requests and
// old metrics are ignored: they come and go.
func (s *Signals) free(terms []Term) float64 {
	most := math.Inf(1)
	for _, t := range terms {
		if t.Bound != BoundQueue && t.Bound != BoundStale {
			most = min(most, t.Max)
		}
	}
	return clamp01(1 - float64(s.InFlight)/max(most, 1))
}

// ease is the free part of the scarcest of KV cache, memory and temperature margin.
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
	return clamp01(free)
}

func clamp01(x float64) float64 { return min(max(x, 0), 1) }

func floorInt(x float64) int { return int(min(max(math.Floor(x+1e-9), 0), math.MaxInt32)) }
