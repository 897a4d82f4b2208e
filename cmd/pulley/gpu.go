package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/gpu"
)

func newGPUCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gpu",
		Short: "Show this machine's GPUs",
		Long: `Show what NVML, the library of the NVIDIA driver, says of the GPUs of this machine,
those that NVIDIA_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES leave.

It needs no broker. So far that is the only way: say --local.`,
	}
	cmd.AddCommand(newGPUListCommand(), newGPUInfoCommand())
	return cmd
}

// gpuVerb is how a verb asks this machine for its GPUs.
type gpuVerb struct {
	local  bool
	all    bool
	watch  bool
	output *string
	cfg    gpu.Config
}

// gpuProbe is the program that asks NVML; a variable for tests.
var gpuProbe []string

// lookLocally makes cmd a verb that shows this machine's GPUs.
func lookLocally(cmd *cobra.Command, show func(r gpu.Reading, args []string) (view, error)) *cobra.Command {
	var v gpuVerb
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.BoolVar(&v.local, "local", false, "ask this machine")
	fs.BoolVar(&v.all, "all", false, "the GPUs too that the environment hides")
	addLibraryFlag(fs, &v.cfg.Library)
	v.output = addOutputFlag(cmd)
	fs.BoolVarP(&v.watch, "watch", "w", false, "look again every second, until Ctrl-C")
	for _, name := range []string{"local", "all", "watch"} {
		fs.SetAnnotation(name, typedOnly, []string{})
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !v.local {
			return usagef("--local: workers do not tell of their GPUs yet; with it this machine is asked")
		}
		if err := checkOutput(*v.output); err != nil {
			return err
		}
		return v.run(cmd, args, show)
	}
	return cmd
}

// run has a sampler run while the verb does.
func (v *gpuVerb) run(cmd *cobra.Command, args []string, show func(gpu.Reading, []string) (view, error)) error {
	v.cfg.Command, v.cfg.All, v.cfg.Logger = gpuProbe, v.all, nil
	sampler, err := gpu.NewSampler(v.cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	var running sync.WaitGroup
	running.Go(func() { sampler.Run(ctx) })
	defer running.Wait()
	defer cancel()

	read := func() (view, error) {
		r, err := readGPUs(ctx, sampler)
		if err != nil {
			return view{}, err
		}
		return show(r, args)
	}
	out := cmd.OutOrStdout()
	if v.watch {
		title := strings.Join(append([]string{cmd.CommandPath()}, args...), " ")
		return watch(ctx, out, title, *v.output, read)
	}
	list, err := read()
	if err != nil {
		return err
	}
	b, err := list.render(*v.output, terminalOf(out))
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}

// gpuWait is how long the GPUs may take to answer: without persistence mode each
// wakes up for seconds.
const gpuWait = 45 * time.Second

// readGPUs is a fresh reading, as soon as there is one.
func readGPUs(ctx context.Context, sampler *gpu.Sampler) (gpu.Reading, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		r, _ := sampler.Latest()
		switch {
		case r.Failure != nil:
			return r, fmt.Errorf("%w; %s", r.Failure, r.Failure.Remedy())
		case r.State == gpu.Fresh:
			return r, nil
		case time.Since(began) > gpuWait:
			return r, fmt.Errorf("the GPUs have not answered for %v; %s", gpuWait, (&gpu.Failure{Kind: gpu.Silent}).Remedy())
		}
		select {
		case <-ctx.Done():
			return r, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func newGPUListCommand() *cobra.Command {
	return lookLocally(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List this machine's GPUs",
		Long: `List this machine's GPUs and the MIG instances of those that are split: who they
are, how busy, hot and full, and whether they are well. "-" is what a GPU or its
driver does not tell.

UTIL is the share of time in which anything ran at all, and most engines take all
memory when they start: neither says how much room there is for requests.`,
		Example: `  pulley gpu ls --local
  pulley gpu ls --local -o json | jq -r '.[].uuid'`,
	}, func(r gpu.Reading, _ []string) (view, error) {
		return view{r.GPUs, func(p *page) { printGPUs(p, r) }}, nil
	})
}

func printGPUs(p *page, r gpu.Reading) {
	t := table{
		columns: []column{word("GPU"), text("NAME"), painted(word("STATE"), paintGPU), number("MEMORY"), number("UTIL"), number("TEMP"), number("POWER"),
			ifAny(word("MIG")), ifAny(word("SLOWED BY")), wide(number("CLOCK")), wide(number("ECC")), wide(number("WEIGHT")), wide(word("BUS")), wide(word("UUID")),
			ifAny(column{name: "REASON", cut: 12})},
		empty: "no GPUs",
	}
	for _, g := range r.GPUs {
		state, reason := gpuState(g)
		t.row(g.Label(), g.Name, state, memoryInWords(g.Memory), utilization(g), unit(g.Temperature, "°C"), unit(g.Power, " W"),
			migInWords(g.Device), throttling(g), unit(g.SMClock, " MHz"), uncorrected(g), weightInWords(g.Device), g.BusID, g.UUID, reason)
	}
	p.table(t)
	for _, note := range r.Notes {
		p.line("%s %s", p.paint(yellow, "note:"), printable(note))
	}
}

// gpuState is how a GPU is, and why. An XID of the last minute counts.
func gpuState(g gpu.Snapshot) (state, reason string) {
	if g.State != gpu.Fresh && g.State != "" {
		return string(g.State), "it does not answer"
	}
	reason, fatal := gpu.Sick(gpu.Snapshot{}, g)
	switch {
	case fatal:
		return "sick", reason
	case g.Throttle != nil && (g.Throttle.Hard() || g.Throttle.Hot()):
		return "slowed", reason
	}
	return "ok", reason
}

func paintGPU(state string) style {
	switch state {
	case "ok":
		return green
	case "slowed", "stale":
		return yellow
	}
	return red
}

func newGPUInfoCommand() *cobra.Command {
	return lookLocally(&cobra.Command{
		Use: "info [GPU]", Short: "Describe a GPU of this machine",
		Long: `Describe a GPU of this machine: everything that NVML tells of it. Name it by its
number, by number:instance, or by its UUID or a beginning of that; it need not be
named if there is one.`,
		Example: `  pulley gpu info 0 --local
  pulley gpu info GPU-1f2e3d4c --local -o yaml`,
		Args: cobra.MaximumNArgs(1),
	}, func(r gpu.Reading, args []string) (view, error) {
		g, err := findGPU(r, args)
		if err != nil {
			return view{}, err
		}
		value := struct {
			Driver string `json:"driver,omitempty"`
			NVML   string `json:"nvml,omitempty"`
			gpu.Snapshot
		}{r.Driver, r.NVML, g}
		return view{value, func(p *page) { printGPU(p, r, g) }}, nil
	})
}

func findGPU(r gpu.Reading, args []string) (gpu.Snapshot, error) {
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
		return g, usagef("name the GPU: which of %s?", joined(found))
	}
	return g, notFoundf("no GPU %q; there is %s", args[0], joined(labels))
}

func printGPU(p *page, r gpu.Reading, g gpu.Snapshot) {
	state, reason := gpuState(g)
	if reason != "" {
		state += ": " + reason
	}
	p.fields(
		field{"gpu", g.Label(), bold},
		field{"name", g.Name, ""},
		field{"uuid", g.UUID, ""},
		field{"state", state, paintGPU(strings.TrimSuffix(strings.Fields(state)[0], ":"))},
		field{"read", ago(g.At) + " ago", ""},
		field{"bus", g.BusID, ""},
		field{"architecture", strings.TrimSpace(g.Architecture + " " + g.Compute), ""},
		field{"driver", strings.TrimSpace(r.Driver + " NVML " + r.NVML), ""},
		field{"MIG", migInWords(g.Device), ""},
		field{"bandwidth", bandwidthInWords(g.Device), ""},
	)
	p.heading("now")
	p.fields(
		field{"memory", memoryInWords(g.Memory), ""},
		field{"of this free", freeInWords(g.Memory), ""},
		field{"a kernel ran", utilization(g), ""},
		field{"temperature", temperatures(g), ""},
		field{"power", power(g), ""},
		field{"clocks", strings.Trim(unit(g.SMClock, " MHz")+", memory "+unit(g.MemoryClock, " MHz"), ", "), ""},
		field{"clocks held by", throttling(g), ""},
	)
	p.heading("health")
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
		xids = "none since this command began"
	}
	p.fields(
		field{"ECC errors", uncorrected(g), ""},
		field{"rows remapped", rows, ""},
		field{"recovery", recovery, ""},
	)
	for _, x := range g.XIDs {
		xids = ""
		p.fields(field{"error", fmt.Sprintf("%s %v", clock(x.At), x), red})
	}
	p.fields(field{"XIDs", xids, ""})
	for i, one := range g.Processes {
		if i == 0 {
			p.heading("processes")
		}
		memory := ""
		if one.Memory != nil {
			memory = gib(*one.Memory)
		}
		p.fields(field{strconv.Itoa(one.PID), memory + " ", ""})
	}
}

// unit is a value with its unit, nothing if it is not there.
func unit[T int | float64](v *T, unit string) string {
	if v == nil {
		return ""
	}
	return strconv.FormatFloat(float64(*v), 'f', 0, 64) + unit
}

func gib(bytes uint64) string {
	return strconv.FormatFloat(float64(bytes)/(1<<30), 'f', 1, 64) + " GiB"
}

func memoryInWords(m *gpu.Memory) string {
	if m == nil {
		return ""
	}
	words := strings.TrimSuffix(gib(m.Used), " GiB") + "/" + gib(m.Total)
	if m.Host {
		words += " shared"
	}
	return words
}

func freeInWords(m *gpu.Memory) string {
	if m == nil {
		return ""
	}
	return gib(m.Free)
}

func utilization(g gpu.Snapshot) string {
	if g.Utilization == nil {
		return ""
	}
	return fmt.Sprintf("%d%%", g.Utilization.GPU)
}

func temperatures(g gpu.Snapshot) string {
	var words []string
	for _, t := range []struct {
		name string
		v    *int
	}{{"", g.Temperature}, {"memory ", g.MemoryTemperature}, {"slows down in ", g.Margin}} {
		if t.v != nil {
			words = append(words, t.name+unit(t.v, "°C"))
		}
	}
	return strings.Join(words, ", ")
}

func power(g gpu.Snapshot) string {
	switch {
	case g.Power == nil:
		return ""
	case g.PowerLimit == nil:
		return unit(g.Power, " W")
	}
	return unit(g.Power, " W") + " of " + unit(g.PowerLimit, " W")
}

// throttling is what slows a GPU down that could be faster: not that it is idle,
// or at its power limit, where it belongs.
func throttling(g gpu.Snapshot) string {
	if g.Throttle == nil {
		return ""
	}
	reasons := slices.DeleteFunc(g.Throttle.Reasons(), func(r string) bool { return r == "idle" || r == "power_cap" })
	return strings.Join(reasons, ",")
}

func uncorrected(g gpu.Snapshot) string {
	if g.ECC == nil || g.ECC.Uncorrected == nil {
		return ""
	}
	return strconv.FormatUint(*g.ECC.Uncorrected, 10)
}

func migInWords(d gpu.Device) string {
	switch {
	case d.Instance != nil:
		return d.Instance.Profile
	case d.Split:
		return "split"
	}
	return ""
}

func weightInWords(d gpu.Device) string {
	w, ok := d.Weight()
	if !ok {
		return ""
	}
	return strconv.FormatFloat(w, 'f', 2, 64)
}

func bandwidthInWords(d gpu.Device) string {
	if d.Bandwidth == nil {
		return ""
	}
	return fmt.Sprintf("about %.0f GB/s, weight %s", *d.Bandwidth/1e9, weightInWords(d))
}
