package ops

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
)

func newGPUCommand() *cobra.Command {
	return cli.Noun("gpu", "Show the GPUs of all hosts, or of this one",
		`Show what NVML, the library of the NVIDIA driver, says of the GPUs that workers
run on. The workers tell it all the time, so it costs the GPUs nothing to look.

With --local this machine is asked instead: no broker is needed, and no worker.
It shows the GPUs that NVIDIA_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES leave.`,
		newGPUListCommand, newGPUInfoCommand)
}

// gpuVerb is how a verb asks this machine for its GPUs.
type gpuVerb struct {
	local bool
	all   bool
	cfg   gpu.Config
}

// run has a sampler run while the verb does.
func (v *gpuVerb) run(cmd *cobra.Command, args []string, show func(gpu.Reading, []string) (cli.View, error)) error {
	output := cmd.Flag("output").Value.String()
	if err := cli.CheckOutput(output); err != nil {
		return err
	}
	again, err := cmd.Flags().GetBool("watch")
	if err != nil {
		return err
	}
	v.cfg.Command, v.cfg.All = fleet.ProbeCommand, v.all
	sampler, err := gpu.NewSampler(v.cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	var running sync.WaitGroup
	running.Go(func() { sampler.Run(ctx) })
	defer running.Wait()
	defer cancel()

	read := func() (cli.View, error) {
		r, err := fleet.ReadGPUs(ctx, sampler)
		if err != nil {
			return cli.View{}, err
		}
		return show(r, args)
	}
	out := cmd.OutOrStdout()
	if again {
		title := strings.Join(append([]string{cmd.CommandPath()}, args...), " ")
		return cli.Watch(ctx, out, title, output, read)
	}
	list, err := read()
	if err != nil {
		return err
	}
	b, err := list.Render(output, term.Of(out))
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}

// lookAtGPUs makes cmd a verb that shows the GPUs of the fleet, or with --local
// those of this machine.
func lookAtGPUs(cmd *cobra.Command, c *cli.ConnectFlags, ofFleet func(list []fleet.GPU, args []string) (cli.View, error), local func(r gpu.Reading, args []string) (cli.View, error)) *cobra.Command {
	cli.Listing(cmd, c, func(s *cli.Session) (cli.View, error) {
		list, err := fleet.Workers(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		return ofFleet(fleet.GPUs(list), s.Args)
	})
	var v gpuVerb
	fs := cmd.Flags()
	fs.BoolVar(&v.local, "local", false, "ask this machine")
	fs.BoolVar(&v.all, "all", false, "with --local: the GPUs too that the environment hides")
	fleet.AddLibraryFlag(fs, &v.cfg.Library)
	for _, name := range []string{"local", "all"} {
		fs.SetAnnotation(name, cli.CommandLineOnly, []string{})
	}
	askFleet := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if v.local {
			return v.run(cmd, args, local)
		}
		if v.all {
			return cli.Usagef("--all: only this machine can be asked for that: say --local too")
		}
		return askFleet(cmd, args)
	}
	return cmd
}

func newGPUListCommand(c *cli.ConnectFlags) *cobra.Command {
	return lookAtGPUs(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the GPUs",
		Long: `List the GPUs that workers run on, and the MIG instances of those that are split:
how full, busy and hot they are, whether they are well, and who uses them. "-" is
what a GPU or its driver does not tell. Hosts that tell nothing are named below,
with the reason and what to do.

STATE is ok; throttled, by heat or a failing power supply; strained, by another
process that takes its memory; fenced, when nothing may run on it; stale, when
it has not answered for seconds; unknown, when not for half a minute.

UTIL is the share of time in which anything ran at all, and most engines take all
memory when they start: neither says how much room there is for requests. That
is in 'pulley worker ls'.`,
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

func printFleetGPUs(p *term.Page, list []fleet.GPU) {
	t := term.Table{
		Columns: []term.Column{term.Text("HOST"), term.Word("GPU"), {Name: "NAME", Cut: 8}, term.Number("MEM GIB"), term.Number("UTIL"), term.Number("TEMP"), term.Number("POWER"),
			term.Painted(term.Text("STATE"), fleet.GPUStatusStyle), term.Text("WORKERS"),
			term.Wide(term.Number("FREE")), term.Wide(term.Number("CLOCK")), term.Wide(term.Number("ECC")), term.Wide(term.Number("XIDS")), term.Wide(term.Number("WEIGHT")), term.Wide(term.Word("DRIVER")), term.Wide(term.Word("BUS")), term.Wide(term.Word("UUID")), term.Wide(term.Number("READ"))},
		Empty: "no GPUs: no worker tells of one",
	}
	for i := range list {
		g := &list[i]
		if g.GPU == nil {
			continue
		}
		t.Row(g.Host, g.Label(), fleet.ShortName(g.Device), strings.TrimSuffix(fleet.MemoryText(g.Memory), " GiB"), fleet.UtilizationText(g.Snapshot), term.WithUnit(g.Temperature, "°C"), term.WithUnit(g.Power, " W"),
			g.StatusText(), term.Join(g.Workers),
			fleet.FreeMemoryText(g.Memory), term.WithUnit(g.SMClock, " MHz"), uncorrected(g.Snapshot), xidCount(g.Snapshot), weightText(g.Device), g.Driver, g.BusID, g.UUID, term.Ago(g.At))
	}
	p.Table(t)
	for _, n := range notesOn(list) {
		p.Write("")
		p.Wrapped(p.Paint(n.style, term.Printable(n.about))+"  ", term.Printable(n.text), term.Unstyled)
		if n.remedy != "" {
			p.Wrapped("  ", "remedy: "+term.Printable(n.remedy), term.Dim)
		}
	}
}

func xidCount(g gpu.Snapshot) string {
	if !g.WatchesXIDs && len(g.XIDs) == 0 {
		return ""
	}
	return fmt.Sprint(len(g.XIDs))
}

// gpuNote is what is wrong, and with which GPUs or hosts.
type gpuNote struct {
	about, text, remedy string
	style               term.Style
}

// notesOn are what is wrong, each once with all that it is wrong with.
func notesOn(list []fleet.GPU) []gpuNote {
	var notes []gpuNote
	names := make(map[int][]string)
	for i := range list {
		g := &list[i]
		n := gpuNote{text: g.Reason, remedy: g.Remedy, style: term.Yellow}
		switch {
		case n.text == "":
			continue
		case g.Failure != nil && g.Failure.Kind == gpu.NoGPU, g.Status == "off":
			n.style = term.Unstyled
		case g.Status == "fenced":
			n.style = term.Red
		case g.GPU != nil && g.Failure == nil && g.Remedy == "":
			continue // the table says it all
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
		const most = 3
		about := names[i]
		if more := len(about) - most; more > 0 {
			about = append(about[:most:most], fmt.Sprintf("%d more", more))
		}
		notes[i].about = term.Join(about)
	}
	return notes
}

func newGPUInfoCommand(c *cli.ConnectFlags) *cobra.Command {
	return lookAtGPUs(&cobra.Command{
		Use: "info [GPU]", Short: "Describe a GPU",
		Long: `Describe a GPU: everything that NVML tells of it, what is wrong with it, and what
to do. Name it HOST/NUMBER, HOST/NUMBER:INSTANCE, or by its UUID; the beginning is
enough where no other has it. With --local leave the host out. It need not be
named if there is one.`,
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

// findFleetGPU is the GPU of a name, see gpuSeen.name, or of a UUID, or of a
// beginning that no other has.
func findFleetGPU(list []fleet.GPU, args []string) (fleet.GPU, error) {
	var names []string
	for i := range list {
		names = append(names, list[i].Path())
	}
	if len(args) == 0 {
		switch len(list) {
		case 0:
			return fleet.GPU{}, cli.NotFoundf("no GPUs: no worker tells of one; 'pulley gpu info --local' asks this machine")
		case 1:
			return list[0], nil
		}
		return fleet.GPU{}, cli.Usagef("name the GPU: which of %s?", term.Shorten(term.Join(names), 160))
	}
	named := args[0]
	for _, is := range []func(name, uuid string) bool{
		func(name, uuid string) bool { return name == named || uuid == named },
		func(name, uuid string) bool {
			return named != "" && (strings.HasPrefix(name, named) || strings.HasPrefix(uuid, named))
		},
	} {
		var found []fleet.GPU
		var ids []string
		for _, g := range list {
			uuid := ""
			if g.GPU != nil {
				uuid = g.UUID
			}
			if is(g.Path(), uuid) {
				found, ids = append(found, g), append(ids, g.Path())
			}
		}
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return fleet.GPU{}, cli.Usagef("GPU %s: which of %s?", named, term.Shorten(term.Join(ids), 160))
		}
	}
	return fleet.GPU{}, cli.NoSuch("gpu", named, names)
}

func printFleetGPU(p *term.Page, g fleet.GPU) {
	state := g.StatusText()
	if g.Reason != "" && !strings.Contains(state, g.Reason) {
		state += ": " + g.Reason
	}
	list := []term.Field{
		term.KV("gpu", g.Path(), term.Bold),
		term.KV("state", state, fleet.GPUStatusStyle(state)),
		term.KV("workers", term.Join(g.Workers)),
	}
	if g.GPU != nil {
		if g.Fenced != "" && !g.Since.IsZero() {
			list = append(list, term.KV("fenced", fmt.Sprintf("%s ago, at %s", term.Ago(g.Since), term.Clock(g.Since))))
		}
		if g.Strain != "" && g.Status != "strained" && g.Status != "fenced" {
			list = append(list, term.KV("strain", g.Strain, term.Yellow))
		}
		list = append(list, term.KV("read", term.Ago(g.At)+" ago"))
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
