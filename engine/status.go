package engine

import (
	"math"
	"time"
)

// FreshFor is how old a Status may be to say what there is room for. The Scraper asks four times in that time.
const FreshFor = 2 * time.Second

// A Model is one that an engine can answer for.
type Model struct {
	Name string
	// Loaded says that a request for it needs no load first. Engines that swap tell; of all others every model is.
	Loaded bool
	// VRAM is what it takes, in bytes; nil where the engine does not say.
	VRAM *int64
}

// A Status is what an engine says of itself. A nil pointer is a signal that the engine does not give, never a zero. What
// the pointers point to does not change. The counters begin anew when the engine does.
type Status struct {
	Dialect Dialect // "" until the engine is known

	Checked time.Time // when its health was asked for, whatever came of it; zero: never
	Healthy bool
	Reason  string // why it is not healthy

	// At is when the signals of its load were read; zero: none ever was. A scrape that fails leaves them as they were, and
	// At with them.
	At time.Time

	Models []Model // nil: it does not say

	Slots   *int // requests that it runs at once, or takes at once
	Running *int // requests in its batch
	Waiting *int // requests in its queue

	KVTotal *int64   // tokens that its KV cache holds
	KVUsed  *int64   // of those
	KVUsage *float64 // the fraction in use, 0 to 1

	Preemptions   *int64 // counter: running requests that were put back, for want of KV cache
	Generated     *int64 // counter: tokens made
	PrefixHits    *int64 // counter: tokens, or blocks of them, that the prefix cache had
	PrefixQueries *int64 // counter: those that were looked for there
}

// Age is how old the signals of its load are; the longest possible where there never were any.
func (s Status) Age(now time.Time) time.Duration {
	if s.At.IsZero() {
		return math.MaxInt64
	}
	return max(0, now.Sub(s.At))
}

// Fresh reports whether the signals of its load are young enough to decide on. That they are there it does not promise.
func (s Status) Fresh(now time.Time) bool { return s.Age(now) <= FreshFor }

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

// fill takes from o what s lacks.
func (s *Status) fill(o Status) {
	s.Models = mergeModels(s.Models, o.Models)
	take(&s.Slots, o.Slots)
	take(&s.Running, o.Running)
	take(&s.Waiting, o.Waiting)
	take(&s.KVTotal, o.KVTotal)
	take(&s.KVUsed, o.KVUsed)
	take(&s.KVUsage, o.KVUsage)
	take(&s.Preemptions, o.Preemptions)
	take(&s.Generated, o.Generated)
	take(&s.PrefixHits, o.PrefixHits)
	take(&s.PrefixQueries, o.PrefixQueries)
	if s.Reason == "" {
		s.Reason = o.Reason
	}
}

func take[T any](p **T, v *T) {
	if *p == nil {
		*p = v
	}
}

// mergeModels adds to a the models of b that it does not name. Of one that both name, a knows better.
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

// derive says the use of the KV cache both ways where the engine says it in one.
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

// whole is a number as an engine gave it, if it can be one of things.
func whole(v *float64) *int64 {
	if v == nil || !(*v >= 0 && *v < 1<<53) {
		return nil
	}
	return new(int64(*v))
}

// number is whole for what is few.
func number(v *float64) *int {
	if n := whole(v); n != nil && *n <= math.MaxInt32 {
		return new(int(*n))
	}
	return nil
}

// capacity is number for what cannot be zero: an engine that says zero does not know.
func capacity(v *float64) *int {
	if n := number(v); n != nil && *n > 0 {
		return n
	}
	return nil
}

// fraction is a share of something. Engines round beyond its ends.
func fraction(v *float64) *float64 {
	if v == nil || math.IsNaN(*v) || *v < 0 || *v > 1.5 {
		return nil
	}
	return new(min(*v, 1))
}
