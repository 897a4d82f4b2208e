package fleet

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/subjects"
)

// ShortName is the name of a GPU without what all of them have.
func ShortName(d gpu.Device) string {
	name := strings.TrimPrefix(d.Name, "NVIDIA ")
	if mig := MIGText(d); mig != "" {
		name = mig + " of " + name
	}
	return name
}

// GPUText is a worker's GPU in a line.
func GPUText(g *subjects.GPU) string {
	status, reason, _ := GPUStatus(*g)
	if reason != "" {
		status += ": " + reason
	}
	words := []string{status}
	for _, w := range []string{ShortName(g.Device), MemoryText(g.Memory), after(UtilizationText(g.Snapshot), " busy"), term.WithUnit(g.Temperature, "°C"), term.WithUnit(g.Power, " W")} {
		if w != "" {
			words = append(words, w)
		}
	}
	return strings.Join(words, ", ")
}

func GpuWord(g *subjects.GPU) string {
	status, _, _ := GPUStatus(*g)
	return status
}

func MemoryText(m *gpu.Memory) string {
	if m == nil {
		return ""
	}
	words := strings.TrimSuffix(term.GiB(m.Used), " GiB") + "/" + term.GiB(m.Total)
	if m.Host {
		words += " shared"
	}
	return words
}

func FreeMemoryText(m *gpu.Memory) string {
	if m == nil {
		return ""
	}
	return term.GiB(m.Free)
}

func UtilizationText(g gpu.Snapshot) string {
	if g.Utilization == nil {
		return ""
	}
	return fmt.Sprintf("%d%%", g.Utilization.GPU)
}

// ThrottleText is what slows a GPU down that could be faster: not that it is idle,
// or at its power limit, where it belongs.
func ThrottleText(g gpu.Snapshot) string {
	if g.Throttle == nil {
		return ""
	}
	reasons := slices.DeleteFunc(g.Throttle.Reasons(), func(r string) bool { return r == "idle" || r == "power_cap" })
	return strings.Join(reasons, ",")
}

func MIGText(d gpu.Device) string {
	switch {
	case d.Instance != nil:
		return d.Instance.Profile
	case d.Split:
		return "split"
	}
	return ""
}

// after is s and what belongs after it, if it is not empty.
func after(s, more string) string {
	if s == "" {
		return ""
	}
	return s + more
}
