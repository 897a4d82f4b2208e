package engine

import (
	"math"
	"time"
)

// A Model is one that an engine serves.
type Model struct {
	Name string
	// Loaded says that a request for it needs no load first. Engines that swap models report it;
	// for all others it is always set.
	Loaded bool
	// Context is the most tokens of a prompt with its answer, or if the model is not loaded what it could be at most; 0: not
	// reported.
	Context int64
	// VRAM is its size in GPU memory in bytes; nil if the engine does not report it.
	VRAM *int64
}

// A Status is what an engine reports about itself. A nil pointer is a signal that the engine does not report; it never
// means zero. The values that the pointers point to do not change. The counters restart when the engine does.
type Status struct {
	Dialect Dialect // "" until the engine is known

	Checked time.Time     // when its health was last checked, successfully or not; zero: never
	Took    time.Duration // how long that took
	Healthy bool
	Reason  string // why it is not healthy
	// Late is since when the engine has answered no question about itself in time, though it accepts connections; zero: it
	// answers. It may be busy, or frozen: the questions alone do not show which.
	Late time.Time

	// At is when the load signals were read; zero: never. A failed scrape leaves the signals and At unchanged.
	At time.Time

	Models []Model // nil: not reported

	Slots   *int // requests that it runs at once, or accepts at once
	Running *int // requests in its batch
	Waiting *int // requests in its queue

	Context *int64 // most tokens of a prompt with its answer, of an engine with one model

	KVTotal *int64   // size of the KV cache in tokens
	KVUsed  *int64   // used part of KVTotal
	KVUsage *float64 // used fraction, 0 to 1

	// Ranks are the data-parallel engines behind one address, in the order of their numbers; nil: not reported.
	Ranks []RankStatus

	Preemptions   *int64 // counter: running requests that were preempted for lack of KV cache
	Generated     *int64 // counter: tokens generated
	PrefixHits    *int64 // counter: tokens, or blocks of tokens, found in the prefix cache
	PrefixQueries *int64 // counter: tokens or blocks looked up there
	Prefilled     *int64 // counter: prompt tokens computed, those found in a cache not included

	PrefillTime *time.Duration // counter: the time for those
}

// A RankStatus is what one data-parallel engine of several reports. A nil pointer is a signal that it does not report.
type RankStatus struct {
	Running *int
	Waiting *int
	KVUsage *float64
}

// Age is how old the load signals are; the longest possible duration if there are none.
func (s Status) Age(now time.Time) time.Duration {
	if s.At.IsZero() {
		return math.MaxInt64
	}
	return max(0, now.Sub(s.At))
}

// Loaded are the names of the models that answer without a load.
func (s Status) Loaded() []string {
	var names []string
	for _, m := range s.Models {
		if m.Loaded {
			names = append(names, m.Name)
		}
	}
	return names
}

// fill copies from o what s lacks.
func (s *Status) fill(o Status) {
	s.Models = mergeModels(s.Models, o.Models)
	take(&s.Slots, o.Slots)
	take(&s.Running, o.Running)
	take(&s.Waiting, o.Waiting)
	take(&s.Context, o.Context)
	take(&s.KVTotal, o.KVTotal)
	take(&s.KVUsed, o.KVUsed)
	take(&s.KVUsage, o.KVUsage)
	take(&s.Preemptions, o.Preemptions)
	take(&s.Generated, o.Generated)
	take(&s.PrefixHits, o.PrefixHits)
	take(&s.PrefixQueries, o.PrefixQueries)
	take(&s.Prefilled, o.Prefilled)
	take(&s.PrefillTime, o.PrefillTime)
	if s.Ranks == nil {
		s.Ranks = o.Ranks
	}
	if s.Reason == "" {
		s.Reason = o.Reason
	}
}

func take[T any](p **T, v *T) {
	if *p == nil {
		*p = v
	}
}

// mergeModels adds to a the models of b that it does not contain. For a model in both, a counts.
func mergeModels(a, b []Model) []Model {
	if a == nil {
		return b
	}
	named := make(map[string]bool, len(a))
	for _, m := range a {
		named[m.Name] = true
	}
	merged := a[:len(a):len(a)]
	for _, m := range b {
		if !named[m.Name] {
			merged = append(merged, m)
		}
	}
	return merged
}

// derive computes the absolute or relative use of the KV cache from the other one.
func (s *Status) derive() {
	if s.KVTotal == nil || *s.KVTotal == 0 {
		return
	}
	total := float64(*s.KVTotal)
	switch {
	case s.KVUsage == nil && s.KVUsed != nil:
		s.KVUsage = fraction(new(float64(*s.KVUsed) / total))
	case s.KVUsed == nil && s.KVUsage != nil:
		s.KVUsed = whole(new(math.Round(*s.KVUsage * total)))
	}
}

// whole converts a number from an engine to a count; nil if it cannot be one.
func whole(v *float64) *int64 {
	if v == nil || !(*v >= 0 && *v < 1<<53) {
		return nil
	}
	return new(int64(*v))
}

// seconds converts a number of seconds; nil if it cannot be one.
func seconds(v *float64) *time.Duration {
	if v == nil || !(*v >= 0 && *v < math.MaxInt64/float64(time.Second)) {
		return nil
	}
	return new(time.Duration(*v * float64(time.Second)))
}

// number is whole for counts that fit an int32.
func number(v *float64) *int {
	if n := whole(v); n != nil && *n <= math.MaxInt32 {
		return new(int(*n))
	}
	return nil
}

// capacity is number for values that cannot be zero: an engine that reports zero does not know.
func capacity(v *float64) *int {
	if n := number(v); n != nil && *n > 0 {
		return n
	}
	return nil
}

// fraction converts a number to a fraction. Engines round beyond 1.
func fraction(v *float64) *float64 {
	if v == nil || math.IsNaN(*v) || *v < 0 || *v > 1.5 {
		return nil
	}
	return new(min(*v, 1))
}
