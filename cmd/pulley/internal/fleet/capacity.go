package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// Bound names what limits a worker's capacity; "" for a worker that is down.
func Bound(h *subjects.Heartbeat) string {
	if h.Capacity == nil || h.State == subjects.Down || h.State == subjects.Left {
		return ""
	}
	return string(h.Capacity.Bound)
}

// BoundText explains why a worker's capacity is not higher.
func BoundText(c *subjects.Capacity) string {
	text := map[policy.Bound]string{
		policy.BoundSlots:    "all configured slots (slots=)",
		policy.BoundEngine:   "the engine's own slots, less the requests of other clients",
		policy.BoundQueue:    "requests are waiting inside the engine",
		policy.BoundKV:       "the KV cache has no space for more",
		policy.BoundMemory:   "the GPU memory has no space for more",
		policy.BoundLimit:    "more would make each request slower than the profile allows",
		policy.BoundThrottle: "a GPU is throttled",
		policy.BoundStale:    "the engine's metrics are stale: no more than when they were last read",
		policy.BoundUnknown:  "neither slots nor engine metrics are known: one request at a time",
		policy.BoundFence:    "no request may start",
	}[c.Bound]
	if text == "" {
		text = string(c.Bound)
	}
	switch {
	case c.Bound != policy.BoundLimit:
	case c.PaceMS <= 0:
		text = "initial limit; it grows as requests succeed"
	case c.PaceMS < 0.9*c.TargetMS:
		text = "current limit; it grows while it is used and tokens come fast enough"
	case c.TargetMS <= 0:
		text = "a higher limit overloaded the engine"
	}
	switch {
	case c.Why == "":
		return text
	case c.Bound == policy.BoundFence:
		return text + ": " + c.Why
	}
	return c.Why
}

// BoundsText lists what each bound alone would allow, the tightest first.
func BoundsText(c *subjects.Capacity) string {
	bounds := slices.SortedFunc(maps.Keys(c.Terms), func(a, b policy.Bound) int {
		return cmp.Or(cmp.Compare(c.Terms[a], c.Terms[b]), strings.Compare(string(a), string(b)))
	})
	var parts []string
	for _, b := range bounds {
		parts = append(parts, fmt.Sprintf("%s %.0f", b, math.Floor(c.Terms[b])))
	}
	return strings.Join(parts, ", ")
}

// TokenTimeText lists the times between two tokens of a stream: of a request that
// runs alone, now, and the target of the profile.
func TokenTimeText(c *subjects.Capacity) string {
	var parts []string
	for _, t := range []struct {
		ms   float64
		name string
	}{{c.AloneMS, "alone"}, {c.PaceMS, "now"}, {c.TargetMS, "target"}} {
		if text := term.Millis(t.ms); text != "" {
			parts = append(parts, text+" "+t.name)
		}
	}
	return strings.Join(parts, ", ")
}
