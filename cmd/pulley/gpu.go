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
	return noun("gpu", "Show the GPUs of all hosts, or of this one",
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

// gpuProbe is the program that asks NVML; a variable for tests.
var gpuProbe []string

// lookAtGPUs makes cmd a verb that shows the GPUs of the fleet, or with --local
// those of this machine.
func lookAtGPUs(cmd *cobra.Command, c *connectFlags, fleet func(list []gpuSeen, args []string) (view, error), local func(r gpu.Reading, args []string) (view, error)) *cobra.Command {
	look(cmd, c, func(s *session) (view, error) {
		list, err := workers(s.ctx(), s.nc)
		if err != nil {
			return view{}, err
		}
		return fleet(gpusOf(list), s.args)
	})
	var v gpuVerb
	fs := cmd.Flags()
	fs.BoolVar(&v.local, "local", false, "ask this machine")
	fs.BoolVar(&v.all, "all", false, "with --local: the GPUs too that the environment hides")
	addLibraryFlag(fs, &v.cfg.Library)
	for _, name := range []string{"local", "all"} {
		fs.SetAnnotation(name, typedOnly, []string{})
	}
	askFleet := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if v.local {
			return v.run(cmd, args, local)
		}
		if v.all {
			return usagef("--all: only this machine can be asked for that: say --local too")
		}
		return askFleet(cmd, args)
	}
	return cmd
}

// run has a sampler run while the verb does.
func (v *gpuVerb) run(cmd *cobra.Command, args []string, show func(gpu.Reading, []string) (view, error)) error {
	output := cmd.Flag("output").Value.String()
	if err := checkOutput(output); err != nil {
		return err
	}
	again, err := cmd.Flags().GetBool("watch")
	if err != nil {
		return err
	}
	v.cfg.Command, v.cfg.All = gpuProbe, v.all
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
	if again {
		title := strings.Join(append([]string{cmd.CommandPath()}, args...), " ")
		return watch(ctx, out, title, output, read)
	}
	list, err := read()
	if err != nil {
		return err
	}
	b, err := list.render(output, terminalOf(out))
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

func newGPUListCommand(c *connectFlags) *cobra.Command {
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
	}, c, func(list []gpuSeen, _ []string) (view, error) {
		return view{list, func(p *page) { printFleetGPUs(p, list) }}, nil
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

func newGPUInfoCommand(c *connectFlags) *cobra.Command {
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
		ValidArgsFunction: complete(c, 1, liveGPUs),
	}, c, func(list []gpuSeen, args []string) (view, error) {
		g, err := findFleetGPU(list, args)
		if err != nil {
			return view{}, err
		}
		return view{g, func(p *page) { printFleetGPU(p, g) }}, nil
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
	style := paintGPU(state)
	if reason != "" {
		state += ": " + reason
	}
	p.fields(
		field{"gpu", g.Label(), bold},
		field{"state", state, style},
		field{"read", ago(g.At) + " ago", ""},
		field{"driver", strings.TrimSpace(r.Driver + " NVML " + r.NVML), ""},
	)
	printDevice(p, g)
	printNow(p, g)
	printHealth(p, g, "this command")
	printProcesses(p, g)
}

// printDevice says what a GPU is.
func printDevice(p *page, g gpu.Snapshot) {
	p.heading("device")
	p.fields(
		field{"name", g.Name, ""},
		field{"uuid", g.UUID, ""},
		field{"bus", g.BusID, ""},
		field{"architecture", strings.TrimSpace(g.Architecture + " " + g.Compute), ""},
		field{"MIG", migInWords(g.Device), ""},
		field{"bandwidth", bandwidthInWords(g.Device), ""},
	)
}

// printNow says what changes from second to second.
func printNow(p *page, g gpu.Snapshot) {
	list := []field{
		{"memory", memoryInWords(g.Memory), ""},
		{"of this free", freeInWords(g.Memory), ""},
		{"a kernel ran", utilization(g), ""},
		{"temperature", temperatures(g), ""},
		{"power", power(g), ""},
		{"clocks", strings.Trim(unit(g.SMClock, " MHz")+", memory "+unit(g.MemoryClock, " MHz"), ", "), ""},
		{"clocks held by", throttling(g), ""},
	}
	if g.SMClock == nil && g.MemoryClock == nil {
		list[5].value = ""
	}
	if !slices.ContainsFunc(list, func(f field) bool { return f.value != "" }) {
		return // a lost one says nothing
	}
	p.heading("now")
	p.fields(list...)
}

// printHealth says what has gone wrong with a GPU, as far as who asks NVML has
// seen it.
func printHealth(p *page, g gpu.Snapshot, witness string) {
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
		xids = "none since " + witness + " began"
	}
	list := []field{
		{"ECC errors", uncorrected(g), ""},
		{"rows remapped", rows, ""},
		{"recovery", recovery, ""},
	}
	for _, x := range g.XIDs {
		xids = ""
		list = append(list, field{"error", fmt.Sprintf("%s %v", clock(x.At), x), red})
	}
	p.fields(append(list, field{"XIDs", xids, ""})...)
}

func printProcesses(p *page, g gpu.Snapshot) {
	var list []field
	for _, one := range g.Processes {
		memory := "-"
		if one.Memory != nil {
			memory = gib(*one.Memory)
		}
		list = append(list, field{strconv.Itoa(one.PID), memory, ""})
	}
	if len(list) > 0 {
		p.heading("processes")
		p.fields(list...)
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
