package ops

import (
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
)

// printLocalGPUs lists the GPUs of this machine.
func printLocalGPUs(p *term.Page, r gpu.Reading) {
	t := term.Table{
		Columns: []term.Column{term.Fixed("GPU"), term.Text("NAME"), term.Styled(term.Fixed("STATUS"), fleet.LocalGPUStyle), term.Number("MEMORY"), term.Number("UTIL"), term.Number("TEMP"), term.Number("POWER"),
			term.NonEmpty(term.Fixed("MIG")), term.NonEmpty(term.Fixed("THROTTLED BY")), term.Wide(term.Number("CLOCK")), term.Wide(term.Number("ECC")), term.Wide(term.Number("WEIGHT")), term.Wide(term.Fixed("BUS")), term.Wide(term.Fixed("UUID")),
			term.NonEmpty(term.Column{Name: "REASON", MinWidth: 12})},
		Empty: "no GPUs",
	}
	for _, g := range r.GPUs {
		status, reason := fleet.LocalGPUStatus(g)
		t.Row(g.Label(), g.Name, status, fleet.MemoryText(g.Memory), fleet.UtilizationText(g), term.WithUnit(g.Temperature, "°C"), term.WithUnit(g.Power, " W"),
			fleet.MIGText(g.Device), fleet.ThrottleText(g), term.WithUnit(g.SMClock, " MHz"), uncorrected(g), weightText(g.Device), g.BusID, g.UUID, reason)
	}
	p.Table(t)
	for _, note := range r.Notes {
		p.Line("%s %s", p.Paint(term.Yellow, "note:"), term.Printable(note))
	}
}

// findLocalGPU returns the GPU with a number or a UUID, or with the only UUID that begins
// so. Without arguments it returns the only GPU.
func findLocalGPU(r gpu.Reading, args []string) (gpu.Snapshot, error) {
	labels := func(list []gpu.Snapshot) (labels []string) {
		for _, g := range list {
			labels = append(labels, g.Label())
		}
		return labels
	}
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	found := fleet.FirstMatches(r.GPUs,
		func(g gpu.Snapshot) bool { return len(args) == 0 || g.Label() == name || g.UUID == name },
		func(g gpu.Snapshot) bool { return name != "" && strings.HasPrefix(g.UUID, name) })
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0:
		return gpu.Snapshot{}, cli.NotFoundf("no GPU %q on this machine; it has %s", name, term.Join(labels(r.GPUs)))
	case name == "":
		return gpu.Snapshot{}, cli.Usagef("missing argument: GPU, one of %s", term.Join(labels(found)))
	}
	return gpu.Snapshot{}, cli.Ambiguous("GPU", name, labels(found))
}

// printLocalGPU describes a GPU of this machine.
func printLocalGPU(p *term.Page, r gpu.Reading, g gpu.Snapshot) {
	status, reason := fleet.LocalGPUStatus(g)
	style := fleet.LocalGPUStyle(status)
	if reason != "" {
		status += ": " + reason
	}
	p.Fields(
		term.KV("gpu", g.Label(), term.Bold),
		term.KV("status", status, style),
		term.KV("sampled", term.Ago(g.At)+" ago"),
		term.KV("driver", strings.TrimSpace(r.Driver+" NVML "+r.NVML)),
	)
	printDevice(p, g)
	printNow(p, g)
	printHealth(p, g, "this command")
	printProcesses(p, g)
}
