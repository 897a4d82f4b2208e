package ops

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
)

// printDevice shows what does not change.
func printDevice(p *term.Page, g gpu.Snapshot) {
	p.Heading("device")
	p.Fields(
		term.KV("name", g.Name),
		term.KV("uuid", g.UUID),
		term.KV("bus", g.BusID),
		term.KV("architecture", strings.TrimSpace(g.Architecture+" "+g.Compute)),
		term.KV("MIG", fleet.MIGText(g.Device)),
		term.KV("bandwidth", bandwidthText(g.Device)),
	)
}

// printNow shows what changes from second to second.
func printNow(p *term.Page, g gpu.Snapshot) {
	list := []term.Field{
		term.KV("memory", fleet.MemoryText(g.Memory)),
		term.KV("free memory", fleet.FreeMemoryText(g.Memory)),
		term.KV("utilization", fleet.UtilizationText(g)),
		term.KV("temperature", temperatures(g)),
		term.KV("power", power(g)),
		term.KV("clocks", strings.Trim(term.WithUnit(g.SMClock, " MHz")+", memory "+term.WithUnit(g.MemoryClock, " MHz"), ", ")),
		term.KV("throttled by", fleet.ThrottleText(g)),
	}
	if g.SMClock == nil && g.MemoryClock == nil {
		list[5].Value = ""
	}
	if !slices.ContainsFunc(list, func(f term.Field) bool { return f.Value != "" }) {
		return // a GPU that is lost reports nothing
	}
	p.Heading("now")
	p.Fields(list...)
}

// printHealth shows the errors of a GPU. XIDs are known from the start of reader on, which reads NVML.
func printHealth(p *term.Page, g gpu.Snapshot, reader string) {
	p.Heading("health")
	rows, recovery, xids := "", "", "not available"
	if g.Rows != nil {
		rows = fmt.Sprintf("%d after correctable, %d after uncorrectable errors", g.Rows.Correctable, g.Rows.Uncorrectable)
		if g.Rows.Pending {
			rows += ", more at the next reset"
		}
	}
	if g.Recovery != nil {
		recovery = g.Recovery.String()
	}
	if g.WatchesXIDs {
		xids = "none since " + reader + " started"
	}
	list := []term.Field{
		term.KV("ECC errors", uncorrected(g)),
		term.KV("rows remapped", rows),
		term.KV("recovery", recovery),
	}
	for _, x := range g.XIDs {
		xids = ""
		list = append(list, term.KV("error", fmt.Sprintf("%s %v", term.Clock(x.At), x), term.Red))
	}
	p.Fields(append(list, term.KV("XIDs", xids))...)
}

func printProcesses(p *term.Page, g gpu.Snapshot) {
	var list []term.Field
	for _, process := range g.Processes {
		memory := "-"
		if process.Memory != nil {
			memory = term.GiB(*process.Memory)
		}
		list = append(list, term.KV(strconv.Itoa(process.PID), memory))
	}
	if len(list) > 0 {
		p.Heading("processes")
		p.Fields(list...)
	}
}

// temperatures lists the temperatures, and the distance to the one at which the GPU is throttled.
func temperatures(g gpu.Snapshot) string {
	var parts []string
	for _, t := range []struct{ before, value, after string }{
		{"", term.WithUnit(g.Temperature, "°C"), ""},
		{"memory ", term.WithUnit(g.MemoryTemperature, "°C"), ""},
		{"", term.WithUnit(g.Margin, "°C"), " below throttling"},
	} {
		if t.value != "" {
			parts = append(parts, t.before+t.value+t.after)
		}
	}
	return strings.Join(parts, ", ")
}

func power(g gpu.Snapshot) string {
	switch {
	case g.Power == nil:
		return ""
	case g.PowerLimit == nil:
		return term.WithUnit(g.Power, " W")
	}
	return term.WithUnit(g.Power, " W") + " of " + term.WithUnit(g.PowerLimit, " W")
}

// uncorrected returns the number of uncorrectable ECC errors.
func uncorrected(g gpu.Snapshot) string {
	if g.ECC == nil || g.ECC.Uncorrected == nil {
		return ""
	}
	return strconv.FormatUint(*g.ECC.Uncorrected, 10)
}

// weightText returns the weight that follows from the memory bandwidth.
func weightText(d gpu.Device) string {
	w, ok := d.Weight()
	if !ok {
		return ""
	}
	return strconv.FormatFloat(w, 'f', 2, 64)
}

func bandwidthText(d gpu.Device) string {
	if d.Bandwidth == nil {
		return ""
	}
	return fmt.Sprintf("about %.0f GB/s, weight %s", *d.Bandwidth/1e9, weightText(d))
}
