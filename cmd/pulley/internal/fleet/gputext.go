package fleet

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/subjects"
)

// ShortName returns the name of a GPU without the manufacturer, and with the profile
// of a MIG instance.
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

// ThrottleText lists the reasons why a GPU is throttled. Being idle and running at the
// power limit are left out: they are normal.
func ThrottleText(g gpu.Snapshot) string {
	if g.Throttle == nil {
		return ""
	}
	reasons := slices.DeleteFunc(g.Throttle.Reasons(), func(r string) bool { return r == "idle" || r == "power_cap" })
	return strings.Join(reasons, ",")
}

// MIGText returns the profile of a MIG instance, or "split" for a GPU that is divided
// into instances.
func MIGText(d gpu.Device) string {
	switch {
	case d.Instance != nil:
		return d.Instance.Profile
	case d.Split:
		return "split"
	}
	return ""
}
