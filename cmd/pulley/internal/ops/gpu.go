package ops

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
)

func newGPUCommand() *cobra.Command {
	return cli.Noun("gpu", "Show the GPUs of all hosts, or of this machine",
		`Show the GPUs that workers run on, as NVML, the library of the NVIDIA driver,
reports them. Workers read them all the time, so these commands put no load on the
GPUs.

With --local, show the GPUs of this machine instead: neither a broker nor a worker
is needed. GPUs that NVIDIA_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES hide are left
out.`,
		newGPUListCommand, newGPUInfoCommand)
}

// showLocal reads the GPUs of this machine, and prints them as show says.
func showLocal(cmd *cobra.Command, args []string, cfg gpu.Config, show func(gpu.Reading, []string) (cli.View, error)) error {
	cfg.Command = fleet.ProbeCommand
	sampler, err := gpu.NewSampler(cfg)
	if err != nil {
		return err
	}
	defer fleet.RunSampler(cmd.Context(), sampler)()
	title := strings.Join(append([]string{cmd.CommandPath()}, args...), " ")
	return cli.ShowListing(cmd.Context(), cmd, title, func() (cli.View, error) {
		r, err := fleet.ReadGPUs(cmd.Context(), sampler)
		if err != nil {
			return cli.View{}, err
		}
		return show(r, args)
	})
}

// gpuListing makes cmd a verb that shows the GPUs of the fleet, or with --local those of this machine.
func gpuListing(cmd *cobra.Command, c *cli.ConnectFlags, ofFleet func(list []fleet.GPU, args []string) (cli.View, error), ofMachine func(r gpu.Reading, args []string) (cli.View, error)) *cobra.Command {
	cli.Listing(cmd, c, func(s *cli.Session) (cli.View, error) {
		list, err := fleet.Workers(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		return ofFleet(fleet.GPUs(list), s.Args)
	})
	var cfg gpu.Config
	fs := cmd.Flags()
	local := fs.Bool("local", false, "show the GPUs of this machine")
	fs.BoolVar(&cfg.All, "all", false, "with --local: also show GPUs that the environment hides")
	fleet.AddLibraryFlag(fs, &cfg.Library)
	for _, name := range []string{"local", "all"} {
		fs.SetAnnotation(name, cli.CommandLineOnly, []string{})
	}
	showFleet := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *local {
			return showLocal(cmd, args, cfg, ofMachine)
		}
		if cfg.All {
			return cli.Usagef("--all needs --local")
		}
		return showFleet(cmd, args)
	}
	return cmd
}

func newGPUListCommand(c *cli.ConnectFlags) *cobra.Command {
	return gpuListing(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the GPUs",
		Long: `List the GPUs that workers run on, and the MIG instances of split GPUs: memory, use,
temperature, status and workers. "-" is a value that the GPU or its driver does not
report. Hosts without a reported GPU are named below the list, with the reason and a
remedy.

STATUS is one of
  ok
  throttled  slowed down by heat, or by a failing power supply
  strained   another process uses its memory
  fenced     its workers may not start requests
  stale      no answer for several seconds
  unknown    no answer for half a minute

UTIL is the share of time in which at least one kernel ran, and most engines take
all memory when they start: neither shows the capacity for requests, which is in
'pulley worker ls'. Terms: docs/concepts.md`,
		Example: `  pulley gpu ls
  pulley gpu ls -o wide --watch
  pulley gpu ls --local
  pulley gpu ls -o json | jq -r '.[] | select(.status == "fenced") | .host'`,
	}, c, func(list []fleet.GPU, _ []string) (cli.View, error) {
		return cli.View{Value: list, Print: func(p *term.Page) { printFleetGPUs(p, list) }}, nil
	}, func(r gpu.Reading, _ []string) (cli.View, error) {
		return cli.View{Value: r.GPUs, Print: func(p *term.Page) { printLocalGPUs(p, r) }}, nil
	})
}

// printFleetGPUs lists the GPUs, and explains below what is wrong.
func printFleetGPUs(p *term.Page, list []fleet.GPU) {
	t := term.Table{
		Columns: []term.Column{term.Text("HOST"), term.Fixed("GPU"), {Name: "NAME", MinWidth: 8}, term.Number("MEM GIB"), term.Number("UTIL"), term.Number("TEMP"), term.Number("POWER"),
			term.Styled(term.Text("STATUS"), fleet.GPUStatusStyle), term.Text("WORKERS"),
			term.Wide(term.Number("FREE")), term.Wide(term.Number("CLOCK")), term.Wide(term.Number("ECC")), term.Wide(term.Number("XIDS")), term.Wide(term.Number("WEIGHT")), term.Wide(term.Fixed("DRIVER")), term.Wide(term.Fixed("BUS")), term.Wide(term.Fixed("UUID")), term.Wide(term.Number("SAMPLE AGE"))},
		Empty: "no GPUs: no worker reports one",
	}
	for _, g := range list {
		if g.GPU == nil {
			continue
		}
		t.Row(g.Host, g.Label(), fleet.ShortName(g.Device), strings.TrimSuffix(fleet.MemoryText(g.Memory), " GiB"), fleet.UtilizationText(g.Snapshot), term.WithUnit(g.Temperature, "°C"), term.WithUnit(g.Power, " W"),
			g.StatusText(), term.Join(g.Workers),
			fleet.FreeMemoryText(g.Memory), term.WithUnit(g.SMClock, " MHz"), uncorrected(g.Snapshot), xidCount(g.Snapshot), weightText(g.Device), g.Driver, g.BusID, g.UUID, term.Ago(g.At))
	}
	p.Table(t)
	for _, n := range gpuNotes(list) {
		p.Write("")
		p.Wrapped(p.Paint(n.style, term.Printable(n.about))+"  ", term.Printable(n.text), term.Unstyled)
		if n.remedy != "" {
			p.Wrapped("  ", "remedy: "+term.Printable(n.remedy), term.Dim)
		}
	}
}

// xidCount counts the XIDs; it returns "" if they are not watched.
func xidCount(g gpu.Snapshot) string {
	if !g.WatchesXIDs && len(g.XIDs) == 0 {
		return ""
	}
	return fmt.Sprint(len(g.XIDs))
}

// gpuNote explains what is wrong with some GPUs or hosts.
type gpuNote struct {
	about, text, remedy string
	style               term.Style
}

// gpuNotes returns what is wrong, each problem once, with all GPUs or hosts that have it.
func gpuNotes(list []fleet.GPU) []gpuNote {
	var notes []gpuNote
	names := make(map[int][]string)
	for _, g := range list {
		n := gpuNote{text: g.Reason, remedy: g.Remedy, style: term.Yellow}
		switch {
		case n.text == "":
			continue
		case g.Failure != nil && g.Failure.Kind == gpu.NoGPU, g.Status == "off":
			n.style = term.Unstyled
		case g.Status == "fenced":
			n.style = term.Red
		case g.GPU != nil && g.Failure == nil && g.Remedy == "":
			continue // the table has all of it
		}
		if g.GPU != nil && (g.Failure == nil || g.Status == "fenced") {
			n.text = g.Status + ": " + n.text
		}
		about := g.Path()
		if g.Failure != nil && g.Status != "fenced" {
			about = g.Host
		}
		at := slices.IndexFunc(notes, func(o gpuNote) bool { return o.text == n.text })
		if at < 0 {
			at = len(notes)
			notes = append(notes, n)
		}
		if !slices.Contains(names[at], about) {
			names[at] = append(names[at], about)
		}
	}
	for i := range notes {
		const shown = 3
		about := names[i]
		if more := len(about) - shown; more > 0 {
			about = append(about[:shown:shown], fmt.Sprintf("%d more", more))
		}
		notes[i].about = term.Join(about)
	}
	return notes
}

func newGPUInfoCommand(c *cli.ConnectFlags) *cobra.Command {
	return gpuListing(&cobra.Command{
		Use: "info [GPU]", Short: "Describe a GPU",
		Long: `Describe a GPU: everything that NVML reports, what is wrong, and a remedy. A GPU is
named HOST/NUMBER, HOST/NUMBER:INSTANCE, or by its UUID; a unique beginning is
enough. With --local, leave the host out. The argument may be omitted if there is
only one GPU.`,
		Example: `  pulley gpu info gpu-host-3/0
  pulley gpu info GPU-1f2e3d4c -o yaml
  pulley gpu info 0 --local`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cli.Complete(c, 1, liveGPUs),
	}, c, func(list []fleet.GPU, args []string) (cli.View, error) {
		g, err := findFleetGPU(list, args)
		if err != nil {
			return cli.View{}, err
		}
		return cli.View{Value: g, Print: func(p *term.Page) { printFleetGPU(p, g) }}, nil
	}, func(r gpu.Reading, args []string) (cli.View, error) {
		g, err := findLocalGPU(r, args)
		if err != nil {
			return cli.View{}, err
		}
		value := struct {
			Driver string `json:"driver,omitempty"`
			NVML   string `json:"nvml,omitempty"`
			gpu.Snapshot
		}{r.Driver, r.NVML, g}
		return cli.View{Value: value, Print: func(p *term.Page) { printLocalGPU(p, r, g) }}, nil
	})
}

// findFleetGPU returns the GPU with a path (HOST/NUMBER) or a UUID, or with the only one that begins so. Without
// arguments it returns the only GPU.
func findFleetGPU(list []fleet.GPU, args []string) (fleet.GPU, error) {
	paths := func(list []fleet.GPU) []string {
		return fleet.NamesOf(list, func(g fleet.GPU) string { return g.Path() })
	}
	if len(args) == 0 {
		switch len(list) {
		case 0:
			return fleet.GPU{}, cli.NotFoundf("no GPUs: no worker reports one; 'pulley gpu info --local' reads this machine")
		case 1:
			return list[0], nil
		}
		return fleet.GPU{}, cli.Usagef("missing argument: GPU, one of %s", term.Shorten(term.Join(paths(list)), 160))
	}
	name := args[0]
	uuid := func(g fleet.GPU) string {
		if g.GPU == nil {
			return ""
		}
		return g.UUID
	}
	found := fleet.FirstMatches(list,
		func(g fleet.GPU) bool { return g.Path() == name || uuid(g) == name },
		func(g fleet.GPU) bool {
			return name != "" && (strings.HasPrefix(g.Path(), name) || strings.HasPrefix(uuid(g), name))
		})
	switch len(found) {
	case 0:
		return fleet.GPU{}, cli.NoSuch("gpu", name, paths(list))
	case 1:
		return found[0], nil
	}
	return fleet.GPU{}, cli.Ambiguous("GPU", name, paths(found))
}

func printFleetGPU(p *term.Page, g fleet.GPU) {
	status := g.StatusText()
	if g.Reason != "" && !strings.Contains(status, g.Reason) {
		status += ": " + g.Reason
	}
	list := []term.Field{
		term.KV("gpu", g.Path(), term.Bold),
		term.KV("status", status, fleet.GPUStatusStyle(status)),
		term.KV("workers", term.Join(g.Workers)),
	}
	if g.GPU != nil {
		if g.Fenced != "" && !g.Since.IsZero() {
			list = append(list, term.KV("fenced", fmt.Sprintf("for %s, since %s", term.Ago(g.Since), term.Clock(g.Since))))
		}
		if g.Strain != "" && g.Status != "strained" && g.Status != "fenced" {
			list = append(list, term.KV("strain", g.Strain, term.Yellow))
		}
		list = append(list, term.KV("sampled", term.Ago(g.At)+" ago"))
	}
	if g.Failure != nil && g.Status == "fenced" {
		list = append(list, term.KV("failure", g.Failure.Error()+"; "+g.Failure.Remedy(), term.Yellow))
	}
	p.Fields(append(list, term.KV("remedy", g.Remedy), term.KV("driver", g.Driver))...)
	if g.GPU == nil {
		return
	}
	printDevice(p, g.Snapshot)
	printNow(p, g.Snapshot)
	printHealth(p, g.Snapshot, "the worker")
	printProcesses(p, g.Snapshot)
}

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

// findLocalGPU returns the GPU with a number or a UUID, or with the only UUID that begins so. Without arguments it
// returns the only GPU.
func findLocalGPU(r gpu.Reading, args []string) (gpu.Snapshot, error) {
	labels := func(list []gpu.Snapshot) []string {
		return fleet.NamesOf(list, func(g gpu.Snapshot) string { return g.Label() })
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
