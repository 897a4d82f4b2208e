package policy

import (
	"math"
	"time"
)

// A Maybe is a number that may be unknown. The zero value is unknown, which is not the same as 0.
type Maybe struct {
	value float64
	known bool
}

// Known is a known number. NaN and infinities become unknown.
func Known(v float64) Maybe {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return Maybe{}
	}
	return Maybe{v, true}
}

// Value returns the number, and whether it is known.
func (r Maybe) Value() (float64, bool) { return r.value, r.known }

// Signals is what a worker knows, at one moment, about itself, its engine and the engine's GPUs.
// Any signal except the worker's own may be missing or old; [Signals.Capacity] uses what there is.
// The zero value is a worker that knows nothing.
type Signals struct {
	// Signals of the worker itself; these are exact.

	InFlight  int     // requests at the engine
	Bids      int     // open bids, each of which may bring one more request; 0 where the caller counts them itself
	Slots     int     // as configured, never exceeded; 0: not configured
	Fixed     bool    // the slots are used as configured; only a fence binds
	Limit     float64 // the adaptive limit, see [AdaptiveLimit.Value]; 0: none
	Tokens    float64 // prompt and output of a mean request; 0: unknown
	Reserved  int     // of the capacity: what the tiers with requests leave free for tiers above them, see [Ceiling]
	QueueFull bool    // the last Capacity.QueueFull
	// Fence is why no request may start: the engine is loading or down, it has stalled, or a GPU is
	// lost. Empty if nothing is wrong.
	Fence string

	// Signals of the engine.

	EngineSlots int     // requests that it runs at once, as it says; 0: unknown
	Found       int     // the same, as seen: [Parallel.Bound]; 0: unknown
	Reach       int     // how far to go while neither is known: [Parallel.Reach]; 0: no bound
	KVTokens    float64 // size of its KV cache; 0: unknown
	Scrape      Scrape
	// OnDemand is set for an engine that allocates GPU memory as requests come (Ollama, llama.cpp, Triton's own
	// backends). The others allocate all of it when they start, so free memory says nothing about their capacity.
	OnDemand        bool
	BytesPerRequest float64 // on each GPU, of an OnDemand engine; 0: unknown

	// Signals of the GPUs; none if NVML is off or there is no GPU.

	GPUs         []GPU
	NVMLRequired bool // no request may start without a sample of every GPU
}

// Scrape is a reading of the engine's metrics. The zero value is no reading.
type Scrape struct {
	Taken     bool
	Age       time.Duration
	InFlight  int   // the worker's own requests when it was taken
	Running   Maybe // requests
	Waiting   Maybe // requests in the engine's own queue
	KVUsed    Maybe // fraction of the KV cache, 0 to 1
	Preempted Maybe // requests preempted for lack of KV cache since the engine started

	// Request is the part of the KV cache, 0 to 1, that a mean request takes at its end; 0: unknown.
	Request float64

	// Prefilling is the number of the worker's own requests without a first token, wherever they
	// were. Prefill is how long the engine takes for the prompt of a mean request; 0: unknown.
	Prefilling int
	Prefill    time.Duration
}

// GPU is one of the engine's GPUs as NVML last saw it. The zero value was never seen.
type GPU struct {
	Sampled bool
	Age     time.Duration
	Every   time.Duration // interval between samples. Default 1 s
	Sample  GPUSample
	Strain  Strain // the result of [StrainWatch.Add]
}

// GPUSample is one NVML sample of a GPU. Memory is in bytes.
type GPUSample struct {
	Reasons uint64 // why its clocks are held down, as NVML's bits
	Margin  Maybe  // °C until it slows down
	Free    Maybe
	Total   Maybe
}

// Freshness says how far a source of signals can be trusted.
type Freshness int

const (
	Missing Freshness = iota // absent, or too old to mean anything
	Stale
	Fresh
)

func (f Freshness) String() string { return [...]string{"missing", "stale", "fresh"}[f] }

const (
	// An engine is scraped every 500 ms. Four missed scrapes are no accident, and twenty are no longer a hiccup: longer
	// than a garbage collector's pause or the prefill of a very long prompt.
	scrapeFresh = 2 * time.Second
	scrapeKept  = 10 * time.Second

	gpuEvery = time.Second
	gpuFresh = 3                // intervals
	gpuKept  = 30 * time.Second // a restart of the GPU probe takes less
)

// Freshness is Fresh up to 2 s and Stale up to 10 s. A scrape without any value is Missing.
func (s Scrape) Freshness() Freshness {
	switch {
	case !s.Taken || s.Age > scrapeKept || !s.Running.known && !s.Waiting.known && !s.KVUsed.known:
		return Missing
	case s.Age > scrapeFresh:
		return Stale
	}
	return Fresh
}

// Freshness is Fresh up to three intervals and Stale up to 30 s.
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

// GPUFreshness is that of the GPU with the oldest sample; Missing without any GPU.
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
