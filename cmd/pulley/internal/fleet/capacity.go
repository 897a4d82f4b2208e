package fleet

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// Bound is what bounds a worker, in the policy's word for it.
func Bound(h *subjects.Heartbeat) string {
	if h.Capacity == nil || h.State == subjects.Down || h.State == subjects.Left {
		return ""
	}
	return string(h.Capacity.Bound)
}

// BoundText says why a worker has room for so many and not for more.
func BoundText(r *subjects.Capacity) string {
	words := map[policy.Bound]string{
		policy.BoundSlots:    "as many slots as it has: slots= says how many",
		policy.BoundEngine:   "as many as the engine runs at once, less what others have sent it",
		policy.BoundQueue:    "requests wait inside the engine",
		policy.BoundKV:       "the KV cache has no room for more",
		policy.BoundMemory:   "the GPU memory has no room for more",
		policy.BoundLimit:    "with more, each would be slower than the profile allows",
		policy.BoundThrottle: "a GPU is held back",
		policy.BoundStale:    "the engine's metrics are old, so no more than it had when they were read",
		policy.BoundUnknown:  "neither slots nor engine metrics are known, so one at a time",
		policy.BoundFence:    "nothing may start",
	}[r.Bound]
	if words == "" {
		words = string(r.Bound)
	}
	switch {
	case r.Bound != policy.BoundLimit:
	case r.PaceMS <= 0:
		words = "a first guess: it takes more as requests come and go well"
	case r.PaceMS < 0.9*r.TargetMS:
		words = "the limit so far; it grows while it is used and tokens come fast enough"
	case r.TargetMS <= 0:
		words = "with more, the engine was overloaded"
	}
	if r.Why != "" && r.Bound != policy.BoundFence {
		return r.Why
	}
	if r.Why != "" {
		words += ": " + r.Why
	}
	return words
}

// BoundsText are all bounds, the tightest first.
func BoundsText(r *subjects.Capacity) string {
	type term struct {
		bound policy.Bound
		most  float64
	}
	var terms []term
	for b, most := range r.Terms {
		terms = append(terms, term{b, most})
	}
	slices.SortFunc(terms, func(a, b term) int {
		return cmp.Or(cmp.Compare(a.most, b.most), strings.Compare(string(a.bound), string(b.bound)))
	})
	var words []string
	for _, t := range terms {
		words = append(words, fmt.Sprintf("%s %.0f", t.bound, math.Floor(t.most)))
	}
	return strings.Join(words, ", ")
}

// TokenTimeText are the times between two tokens.
func TokenTimeText(r *subjects.Capacity) string {
	var words []string
	for _, t := range []struct {
		ms   float64
		name string
	}{{r.AloneMS, "alone"}, {r.PaceMS, "now"}, {r.TargetMS, "aimed at"}} {
		if text := term.Millis(t.ms); text != "" {
			words = append(words, text+" "+t.name)
		}
	}
	return strings.Join(words, ", ")
}
