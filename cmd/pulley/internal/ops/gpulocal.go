package ops

import (
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
)

func printLocalGPUs(p *term.Page, r gpu.Reading) {
	t := term.Table{
		Columns: []term.Column{term.Word("GPU"), term.Text("NAME"), term.Painted(term.Word("STATE"), fleet.LocalGPUStyle), term.Number("MEMORY"), term.Number("UTIL"), term.Number("TEMP"), term.Number("POWER"),
			term.IfAny(term.Word("MIG")), term.IfAny(term.Word("SLOWED BY")), term.Wide(term.Number("CLOCK")), term.Wide(term.Number("ECC")), term.Wide(term.Number("WEIGHT")), term.Wide(term.Word("BUS")), term.Wide(term.Word("UUID")),
			term.IfAny(term.Column{Name: "REASON", Cut: 12})},
		Empty: "no GPUs",
	}
	for _, g := range r.GPUs {
		state, reason := fleet.LocalGPUStatus(g)
		t.Row(g.Label(), g.Name, state, fleet.MemoryText(g.Memory), fleet.UtilizationText(g), term.WithUnit(g.Temperature, "°C"), term.WithUnit(g.Power, " W"),
			fleet.MIGText(g.Device), fleet.ThrottleText(g), term.WithUnit(g.SMClock, " MHz"), uncorrected(g), weightText(g.Device), g.BusID, g.UUID, reason)
	}
	p.Table(t)
	for _, note := range r.Notes {
		p.Line("%s %s", p.Paint(term.Yellow, "note:"), term.Printable(note))
	}
}

func findLocalGPU(r gpu.Reading, args []string) (gpu.Snapshot, error) {
	var labels, found []string
	var g gpu.Snapshot
	for _, s := range r.GPUs {
		labels = append(labels, s.Label())
		if len(args) == 0 || args[0] == s.Label() || args[0] == s.UUID {
			found, g = append(found, s.Label()), s
		}
	}
	if len(found) == 0 && args[0] != "" {
		for _, s := range r.GPUs {
			if strings.HasPrefix(s.UUID, args[0]) {
				found, g = append(found, s.Label()), s
			}
		}
	}
	switch {
	case len(found) == 1:
		return g, nil
	case len(found) > 1:
		return g, cli.Usagef("name the GPU: which of %s?", term.Join(found))
	}
	return g, cli.NotFoundf("no GPU %q; there is %s", args[0], term.Join(labels))
}

func printLocalGPU(p *term.Page, r gpu.Reading, g gpu.Snapshot) {
	state, reason := fleet.LocalGPUStatus(g)
	style := fleet.LocalGPUStyle(state)
	if reason != "" {
		state += ": " + reason
	}
	p.Fields(
		term.KV("gpu", g.Label(), term.Bold),
		term.KV("state", state, style),
		term.KV("read", term.Ago(g.At)+" ago"),
		term.KV("driver", strings.TrimSpace(r.Driver+" NVML "+r.NVML)),
	)
	printDevice(p, g)
	printNow(p, g)
	printHealth(p, g, "this command")
	printProcesses(p, g)
}
