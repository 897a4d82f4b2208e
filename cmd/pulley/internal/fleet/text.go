package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// StateStyle returns the colour for the state of a worker, a pool, a request, a shift or a key.
func StateStyle(s string) term.Style {
	switch state, _, _ := strings.Cut(s, " "); state {
	case "ready", "answering", "running", "done", "active", "in_progress", "completed":
		return term.Green
	case "paused", "busy", "draining", "cordoned", "queued", "rotating", "incomplete":
		return term.Yellow
	case "down", "left", "fenced", "aborted", "expired", "damaged", "no", "failed":
		return term.Red
	}
	return term.Unstyled
}

// EventLine formats an event as one line.
func EventLine(p *term.Page, e subjects.Event) string {
	return p.Paint(term.Dim, e.At.Local().Format(time.TimeOnly)) + "  " + p.Paint(eventStyle(e.Kind), fmt.Sprintf("%-15s", term.Printable(string(e.Kind)))) + "  " + term.Printable(e.Text)
}

// eventStyle returns the colour of a kind of event: red for failures.
func eventStyle(k subjects.EventKind) term.Style {
	switch k {
	case subjects.EventWorkerLost, subjects.EventWorkerFenced, subjects.EventWorkerFailing, subjects.EventDead:
		return term.Red
	case subjects.EventFull, subjects.EventWorkerLeft, subjects.EventWorkerState, subjects.EventWorkerSuspect:
		return term.Yellow
	case subjects.EventWorkerJoined, subjects.EventWorkerUnfenced:
		return term.Green
	}
	return term.Unstyled
}

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

// TokenTimeText lists the times between two tokens of a stream: of a request that runs alone, now, and the target of
// the profile.
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

// ShortName returns the name of a GPU without the manufacturer, and with the profile of a MIG instance.
func ShortName(d gpu.Device) string {
	name := strings.TrimPrefix(d.Name, "NVIDIA ")
	if mig := MIGText(d); mig != "" {
		name = mig + " of " + name
	}
	return name
}

// GPUField describes a worker's GPU in one field of that name.
func GPUField(name string, g *subjects.GPU) term.Field {
	status, reason, _ := GPUStatus(*g)
	parts := []string{status}
	if reason != "" {
		parts[0] += ": " + reason
	}
	busy := UtilizationText(g.Snapshot)
	if busy != "" {
		busy += " busy"
	}
	for _, part := range []string{ShortName(g.Device), MemoryText(g.Memory), busy, term.WithUnit(g.Temperature, "°C"), term.WithUnit(g.Power, " W")} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return term.KV(name, strings.Join(parts, ", "), GPUStatusStyle(status))
}

// MemoryText returns used and total memory, such as 72.0/80.0 GiB.
func MemoryText(m *gpu.Memory) string {
	if m == nil {
		return ""
	}
	text := strings.TrimSuffix(term.GiB(m.Used), " GiB") + "/" + term.GiB(m.Total)
	if m.Host {
		text += " shared"
	}
	return text
}

// FreeMemoryText returns the free memory.
func FreeMemoryText(m *gpu.Memory) string {
	if m == nil {
		return ""
	}
	return term.GiB(m.Free)
}

// UtilizationText returns the share of time in which a kernel ran.
func UtilizationText(g gpu.Snapshot) string {
	if g.Utilization == nil {
		return ""
	}
	return fmt.Sprintf("%d%%", g.Utilization.GPU)
}

// ThrottleText lists the reasons why a GPU is throttled. Being idle and running at the power limit are left out: they
// are normal.
func ThrottleText(g gpu.Snapshot) string {
	if g.Throttle == nil {
		return ""
	}
	reasons := slices.DeleteFunc(g.Throttle.Reasons(), func(r string) bool { return r == "idle" || r == "power_cap" })
	return strings.Join(reasons, ",")
}

// MIGText returns the profile of a MIG instance, or "split" for a GPU that is divided into instances.
func MIGText(d gpu.Device) string {
	switch {
	case d.Instance != nil:
		return d.Instance.Profile
	case d.Split:
		return "split"
	}
	return ""
}
