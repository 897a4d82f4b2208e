package policy

import (
	"math/bits"
	"time"
)

// Strain says why a healthy GPU should take less. A higher value is worse.
type Strain int

const (
	NoStrain      Strain = iota
	ForeignMemory        // another process takes GPU memory
	Warm                 // the driver throttles the clocks for heat, or is about to
	Hot                  // the hardware throttles the clocks, for heat or power
)

// Factor is the part of the capacity that is left: half, where the hardware runs at about half its
// clocks; three quarters, where that may come.
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

// The bits of GPUSample.Reasons that mean heat or a power failure. The power cap, 0x4, is not among
// them: a busy GPU runs at it.
const (
	hotReasons  = 0x8 | 0x40 | 0x80 // hardware slowdown, thermal slowdown, power brake
	warmReasons = 0x20              // the driver's thermal slowdown
)

const (
	strainSamples = 5                // the last samples that are looked at
	strainEnters  = 3                // how many of them must show the strain; a single one may be a spike
	strainLeaves  = 30 * time.Second // how long none may show it; otherwise a GPU that cools down under less load would oscillate

	coolMargin = 3 // °C before the slowdown; a smaller margin counts as throttled

	foreignEnters = 1 << 30   // bytes less free than at the start: more than an engine grows by itself
	foreignLeaves = 512 << 20 // half of foreignEnters
	leastFree     = 256 << 20 // less free memory is attributed to another process whatever the start was
)

// StrainWatch detects the strain of one GPU from its samples. The zero value is ready to use; start
// with a new one when the engine has started.
type StrainWatch struct {
	hot, warm latch
	base      Maybe // free memory when the engine started
	foreign   bool
}

// Add adds a sample and returns the strain. preallocates says that the engine allocated its memory
// when it started: then a drop in free memory is another process.
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

// latch is set when strainEnters of the last strainSamples show a strain, and cleared strainLeaves after the last one.
type latch struct {
	seen uint8 // the last samples, one bit each
	on   bool
	last time.Time
}

// add adds a sample. shows says that it shows the strain, alone that it suffices by itself.
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
