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

// printDevice says what a GPU is.
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

// printNow says what changes from second to second.
func printNow(p *term.Page, g gpu.Snapshot) {
	list := []term.Field{
		term.KV("memory", fleet.MemoryText(g.Memory)),
		term.KV("of this free", fleet.FreeMemoryText(g.Memory)),
		term.KV("a kernel ran", fleet.UtilizationText(g)),
		term.KV("temperature", temperatures(g)),
		term.KV("power", power(g)),
		term.KV("clocks", strings.Trim(term.WithUnit(g.SMClock, " MHz")+", memory "+term.WithUnit(g.MemoryClock, " MHz"), ", ")),
		term.KV("clocks held by", fleet.ThrottleText(g)),
	}
	if g.SMClock == nil && g.MemoryClock == nil {
		list[5].Value = ""
	}
	if !slices.ContainsFunc(list, func(f term.Field) bool { return f.Value != "" }) {
		return // a lost one says nothing
	}
	p.Heading("now")
	p.Fields(list...)
}

// printHealth says what has gone wrong with a GPU, as far as who asks NVML has
// seen it.
func printHealth(p *term.Page, g gpu.Snapshot, witness string) {
	p.Heading("health")
	rows, recovery, xids := "", "", "not told here"
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
		xids = "none since " + witness + " began"
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
	for _, one := range g.Processes {
		memory := "-"
		if one.Memory != nil {
			memory = term.GiB(*one.Memory)
		}
		list = append(list, term.KV(strconv.Itoa(one.PID), memory))
	}
	if len(list) > 0 {
		p.Heading("processes")
		p.Fields(list...)
	}
}

func temperatures(g gpu.Snapshot) string {
	var words []string
	for _, t := range []struct {
		name string
		v    *int
	}{{"", g.Temperature}, {"memory ", g.MemoryTemperature}, {"slows down in ", g.Margin}} {
		if t.v != nil {
			words = append(words, t.name+term.WithUnit(t.v, "°C"))
		}
	}
	return strings.Join(words, ", ")
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

func uncorrected(g gpu.Snapshot) string {
	if g.ECC == nil || g.ECC.Uncorrected == nil {
		return ""
	}
	return strconv.FormatUint(*g.ECC.Uncorrected, 10)
}

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
