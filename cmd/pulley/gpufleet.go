package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/subjects"
)

// gpuSeen is a GPU of a host, as the workers that use it tell. Where a host has
// none to tell of, it is the host, with the reason.
type gpuSeen struct {
	Host    string   `json:"host"`
	Workers []string `json:"workers"` // that use it, by name
	// Status is ok, throttled, strained, fenced, stale or unknown; off where nobody
	// asks. Reason is why it is not ok, Remedy what to do.
	Status  string       `json:"status"`
	Reason  string       `json:"reason,omitempty"`
	Remedy  string       `json:"remedy,omitempty"`
	Driver  string       `json:"driver,omitempty"`
	Failure *gpu.Failure `json:"failure,omitempty"`
	*subjects.GPU
}

// name is what a verb takes for it.
func (g *gpuSeen) name() string {
	if g.GPU == nil {
		return g.Host
	}
	return g.Host + "/" + g.Label()
}

// gpusOf are the GPUs that workers tell of, each once, by host and number.
func gpusOf(list []subjects.Heartbeat) []gpuSeen {
	type key struct{ host, device string }
	seen := make(map[key]*gpuSeen)
	for i := range list {
		h := &list[i]
		if h.NVML == nil || len(h.NVML.GPUs) == 0 {
			k := key{host: h.Host}
			if seen[k] == nil {
				seen[k] = &gpuSeen{Host: h.Host}
			}
			g := seen[k]
			g.Workers = append(g.Workers, h.Name)
			if h.NVML != nil {
				g.Driver, g.Failure = h.NVML.Driver, h.NVML.Failure
				g.Status = "unknown"
			}
			continue
		}
		for j := range h.NVML.GPUs {
			told := &h.NVML.GPUs[j]
			k := key{h.Host, cmp.Or(told.UUID, told.Label())}
			g := seen[k]
			if g == nil {
				g = &gpuSeen{Host: h.Host, GPU: told}
				seen[k] = g
			}
			g.Workers = append(g.Workers, h.Name)
			g.take(told, h.NVML)
		}
	}
	var gpus []gpuSeen
	for k, g := range seen {
		if k.device == "" && slices.ContainsFunc(list, func(h subjects.Heartbeat) bool { return h.Host == k.host && h.NVML != nil && len(h.NVML.GPUs) > 0 }) && g.Failure == nil {
			continue // another of its workers tells
		}
		g.judge()
		slices.Sort(g.Workers)
		gpus = append(gpus, *g)
	}
	slices.SortFunc(gpus, func(a, b gpuSeen) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), cmp.Compare(a.order(), b.order()), strings.Compare(a.name(), b.name()))
	})
	return some(gpus)
}

// order is the place of a GPU on its host.
func (g *gpuSeen) order() int {
	switch {
	case g.GPU == nil:
		return -1
	case g.Instance != nil:
		return g.Index<<8 + g.Instance.Number
	}
	return g.Index << 8
}

// take takes what another worker tells of the same GPU: the newest holds, but a
// fence that anybody has seen a reason for stands.
func (g *gpuSeen) take(told *subjects.GPU, nvml *subjects.NVML) {
	newest := *g.GPU
	if told.At.After(g.At) {
		newest = *told
	}
	if newest.Fenced == "" {
		fenced := cmp.Or(g.Fenced, told.Fenced)
		newest.Fenced, newest.Since = fenced, latestOf(g.Since, told.Since)
		if fenced == "" {
			newest.Since = time.Time{}
		}
	}
	newest.Strain = cmp.Or(newest.Strain, g.Strain, told.Strain)
	g.GPU = &newest
	g.Driver = cmp.Or(nvml.Driver, g.Driver)
	g.Failure = cmp.Or(g.Failure, nvml.Failure)
}

func latestOf(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// judge says in a word how the GPU is.
func (g *gpuSeen) judge() {
	if g.GPU == nil {
		switch {
		case g.Failure != nil:
			g.Reason, g.Remedy = g.Failure.Error(), g.Failure.Remedy()
		case g.Status == "":
			g.Status, g.Reason = "off", "its workers do not ask NVML"
		default:
			g.Reason = "its workers have not heard of a GPU yet"
		}
		return
	}
	g.Status, g.Reason, g.Remedy = gpuStatus(*g.GPU)
	if g.Failure != nil && g.Status != "fenced" {
		g.Reason, g.Remedy = g.Failure.Error(), g.Failure.Remedy()
	}
}

// gpuStatus is how a worker's GPU is, in a word, with the reason and what to do.
func gpuStatus(g subjects.GPU) (status, reason, remedy string) {
	slowed := g.Throttle != nil && (g.Throttle.Hard() || g.Throttle.Hot())
	switch {
	case g.Fenced != "":
		return "fenced", g.Fenced, unfence(g.Snapshot)
	case g.State == gpu.Unknown:
		return "unknown", "it has not answered for half a minute", (&gpu.Failure{Kind: gpu.Silent}).Remedy()
	case g.State == gpu.Stale:
		return "stale", "it has not answered for seconds", ""
	case slowed:
		return "throttled", throttling(g.Snapshot), "see to its cooling and its power supply: 'nvidia-smi -q -d PERFORMANCE,TEMPERATURE' says more"
	case g.Strain != "":
		return "strained", g.Strain, ""
	}
	return "ok", "", ""
}

// unfence says how a fence ends.
func unfence(g gpu.Snapshot) string {
	switch {
	case g.Rows != nil && g.Rows.Failed:
		return "the GPU has no spare memory left: have it exchanged; until then let its worker run without it (gpus=)"
	case g.Recovery != nil && *g.Recovery != gpu.RecoveryNone:
		return fmt.Sprintf("%v, then start the engine anew", *g.Recovery)
	case g.Lost != "":
		return "see 'dmesg | grep -i nvrm'; reset the GPU ('nvidia-smi -r') or restart the machine: the fence falls when the driver was loaded anew and the GPU answers"
	}
	return "start the engine anew: the fence falls a minute after the last error, when the engine is new and the GPU answers"
}

// inWords is the state for a table.
func (g *gpuSeen) inWords() string {
	switch g.Status {
	case "fenced":
		return "fenced: " + g.Reason
	case "throttled", "strained":
		return g.Status + " (" + g.Reason + ")"
	}
	return g.Status
}

func paintGPUStatus(state string) style {
	word, _, _ := strings.Cut(state, " ")
	switch strings.TrimSuffix(word, ":") {
	case "ok":
		return green
	case "fenced":
		return red
	case "off":
		return unstyled
	}
	return yellow
}

// shortGPU is the name of a GPU without what all of them have.
func shortGPU(d gpu.Device) string {
	name := strings.TrimPrefix(d.Name, "NVIDIA ")
	if mig := migInWords(d); mig != "" {
		name = mig + " of " + name
	}
	return name
}

func printFleetGPUs(p *page, list []gpuSeen) {
	t := table{
		columns: []column{text("HOST"), word("GPU"), {name: "NAME", cut: 8}, number("MEM GIB"), number("UTIL"), number("TEMP"), number("POWER"),
			painted(text("STATE"), paintGPUStatus), text("WORKERS"),
			wide(number("FREE")), wide(number("CLOCK")), wide(number("ECC")), wide(number("XIDS")), wide(number("WEIGHT")), wide(word("DRIVER")), wide(word("BUS")), wide(word("UUID")), wide(number("READ"))},
		empty: "no GPUs: no worker tells of one",
	}
	for i := range list {
		g := &list[i]
		if g.GPU == nil {
			continue
		}
		t.row(g.Host, g.Label(), shortGPU(g.Device), strings.TrimSuffix(memoryInWords(g.Memory), " GiB"), utilization(g.Snapshot), unit(g.Temperature, "°C"), unit(g.Power, " W"),
			g.inWords(), joined(g.Workers),
			freeInWords(g.Memory), unit(g.SMClock, " MHz"), uncorrected(g.Snapshot), xidCount(g.Snapshot), weightInWords(g.Device), g.Driver, g.BusID, g.UUID, ago(g.At))
	}
	p.table(t)
	for _, n := range notesOn(list) {
		p.write("")
		p.wrapped(p.paint(n.style, printable(n.about))+"  ", printable(n.text), unstyled)
		if n.remedy != "" {
			p.wrapped("  ", "remedy: "+printable(n.remedy), dim)
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
	style               style
}

// notesOn are what is wrong, each once with all that it is wrong with.
func notesOn(list []gpuSeen) []gpuNote {
	var notes []gpuNote
	names := make(map[int][]string)
	for i := range list {
		g := &list[i]
		n := gpuNote{text: g.Reason, remedy: g.Remedy, style: yellow}
		switch {
		case n.text == "":
			continue
		case g.Failure != nil && g.Failure.Kind == gpu.NoGPU, g.Status == "off":
			n.style = unstyled
		case g.Status == "fenced":
			n.style = red
		case g.GPU != nil && g.Failure == nil && g.Remedy == "":
			continue // the table says it all
		}
		if g.GPU != nil && (g.Failure == nil || g.Status == "fenced") {
			n.text = g.Status + ": " + n.text
		}
		about := g.name()
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
		notes[i].about = joined(about)
	}
	return notes
}

// findFleetGPU is the GPU of a name, see gpuSeen.name, or of a UUID, or of a
// beginning that no other has.
func findFleetGPU(list []gpuSeen, args []string) (gpuSeen, error) {
	var names []string
	for i := range list {
		names = append(names, list[i].name())
	}
	if len(args) == 0 {
		switch len(list) {
		case 0:
			return gpuSeen{}, notFoundf("no GPUs: no worker tells of one; 'pulley gpu info --local' asks this machine")
		case 1:
			return list[0], nil
		}
		return gpuSeen{}, usagef("name the GPU: which of %s?", shorten(joined(names), 160))
	}
	named := args[0]
	for _, is := range []func(name, uuid string) bool{
		func(name, uuid string) bool { return name == named || uuid == named },
		func(name, uuid string) bool {
			return named != "" && (strings.HasPrefix(name, named) || strings.HasPrefix(uuid, named))
		},
	} {
		var found []gpuSeen
		var ids []string
		for _, g := range list {
			uuid := ""
			if g.GPU != nil {
				uuid = g.UUID
			}
			if is(g.name(), uuid) {
				found, ids = append(found, g), append(ids, g.name())
			}
		}
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return gpuSeen{}, usagef("GPU %s: which of %s?", named, shorten(joined(ids), 160))
		}
	}
	return gpuSeen{}, noSuch("gpu", named, names)
}

func printFleetGPU(p *page, g gpuSeen) {
	state := g.inWords()
	if g.Reason != "" && !strings.Contains(state, g.Reason) {
		state += ": " + g.Reason
	}
	list := []field{
		{"gpu", g.name(), bold},
		{"state", state, paintGPUStatus(state)},
		{"workers", joined(g.Workers), ""},
	}
	if g.GPU != nil {
		if g.Fenced != "" && !g.Since.IsZero() {
			list = append(list, field{"fenced", fmt.Sprintf("%s ago, at %s", ago(g.Since), clock(g.Since)), ""})
		}
		if g.Strain != "" && g.Status != "strained" && g.Status != "fenced" {
			list = append(list, field{"strain", g.Strain, yellow})
		}
		list = append(list, field{"read", ago(g.At) + " ago", ""})
	}
	if g.Failure != nil && g.Status == "fenced" {
		list = append(list, field{"failure", g.Failure.Error() + "; " + g.Failure.Remedy(), yellow})
	}
	p.fields(append(list, field{"remedy", g.Remedy, ""}, field{"driver", g.Driver, ""})...)
	if g.GPU == nil {
		return
	}
	printDevice(p, g.Snapshot)
	printNow(p, g.Snapshot)
	printHealth(p, g.Snapshot, "the worker")
	printProcesses(p, g.Snapshot)
}

// liveGPUs are those that workers tell of.
func liveGPUs(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	list, err := workers(ctx, nc)
	if err != nil {
		return nil, err
	}
	for _, g := range gpusOf(list) {
		about := g.Status
		if g.GPU != nil {
			about = strings.TrimSpace(shortGPU(g.Device) + ", " + g.Status)
		}
		names = append(names, described(g.name(), "%s", about))
	}
	return names, nil
}
