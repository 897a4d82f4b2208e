package fleet

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/subjects"
)

// GPU is a GPU of a host, as the workers that use it report it. A host without a reported GPU has one entry without a
// device, which says why. Its JSON is what pulley gpu ls -o json prints.
type GPU struct {
	Host    string   `json:"host"`
	Workers []string `json:"workers"` // names of the workers that use it
	// Status is ok, throttled, strained, fenced, stale or unknown, or off if NVML is off. Reason says why it is not ok,
	// and Remedy what to do.
	Status  string       `json:"status"`
	Reason  string       `json:"reason,omitempty"`
	Remedy  string       `json:"remedy,omitempty"`
	Driver  string       `json:"driver,omitempty"`
	Failure *gpu.Failure `json:"failure,omitempty"`
	*subjects.GPU
}

// Path is the name of the GPU in commands: HOST/NUMBER.
func (g *GPU) Path() string {
	if g.GPU == nil {
		return g.Host
	}
	return g.Host + "/" + g.Label()
}

// order is the position of the GPU on its host.
func (g *GPU) order() int {
	switch {
	case g.GPU == nil:
		return -1
	case g.Instance != nil:
		return g.Index<<8 + g.Instance.Number
	}
	return g.Index << 8
}

// merge adds another worker's report of the same GPU. The newest sample counts, but a fence that any worker reports
// stays.
func (g *GPU) merge(report *subjects.GPU, nvml *subjects.NVML) {
	newest := *g.GPU
	if report.At.After(g.At) {
		newest = *report
	}
	if newest.Fenced == "" {
		fenced := cmp.Or(g.Fenced, report.Fenced)
		newest.Fenced, newest.Since = fenced, latestOf(g.Since, report.Since)
		if fenced == "" {
			newest.Since = time.Time{}
		}
	}
	newest.Strain = cmp.Or(newest.Strain, g.Strain, report.Strain)
	g.GPU = &newest
	g.Driver = cmp.Or(nvml.Driver, g.Driver)
	g.Failure = cmp.Or(g.Failure, nvml.Failure)
}

// judge sets the status, with reason and remedy.
func (g *GPU) judge() {
	if g.GPU == nil {
		switch {
		case g.Failure != nil:
			g.Reason, g.Remedy = g.Failure.Error(), g.Failure.Remedy()
		case g.Status == "":
			g.Status, g.Reason = "off", "NVML is off for its workers"
		default:
			g.Reason = "its workers have not reported a GPU yet"
		}
		return
	}
	g.Status, g.Reason, g.Remedy = GPUStatus(*g.GPU)
	if g.Failure != nil && g.Status != "fenced" {
		g.Reason, g.Remedy = g.Failure.Error(), g.Failure.Remedy()
	}
}

// StatusText returns the status for a table, with the reason if it matters.
func (g *GPU) StatusText() string {
	switch g.Status {
	case "fenced":
		return "fenced: " + g.Reason
	case "throttled", "strained":
		return g.Status + " (" + g.Reason + ")"
	}
	return g.Status
}

// GPUs returns the GPUs that workers report, each once, by host and number.
func GPUs(list []subjects.Heartbeat) []GPU {
	type key struct{ host, device string }
	seen := make(map[key]*GPU)
	usedBy := func(h subjects.Heartbeat, device string, report *subjects.GPU) *GPU {
		k := key{h.Host, device}
		if seen[k] == nil {
			seen[k] = &GPU{Host: h.Host, GPU: report}
		}
		seen[k].Workers = append(seen[k].Workers, h.Name)
		return seen[k]
	}
	for _, h := range list {
		if h.NVML == nil || len(h.NVML.GPUs) == 0 {
			g := usedBy(h, "", nil)
			if h.NVML != nil {
				g.Driver, g.Failure = h.NVML.Driver, h.NVML.Failure
				g.Status = "unknown"
			}
			continue
		}
		for j := range h.NVML.GPUs {
			report := &h.NVML.GPUs[j]
			usedBy(h, cmp.Or(report.UUID, report.Label()), report).merge(report, h.NVML)
		}
	}
	var gpus []GPU
	for k, g := range seen {
		if k.device == "" && slices.ContainsFunc(list, func(h subjects.Heartbeat) bool { return h.Host == k.host && h.NVML != nil && len(h.NVML.GPUs) > 0 }) && g.Failure == nil {
			continue // another worker on this host reports GPUs
		}
		g.judge()
		slices.Sort(g.Workers)
		gpus = append(gpus, *g)
	}
	slices.SortFunc(gpus, func(a, b GPU) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), cmp.Compare(a.order(), b.order()), strings.Compare(a.Path(), b.Path()))
	})
	return orEmpty(gpus)
}

func latestOf(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// GPUStatus returns the status of a worker's GPU, with the reason and a remedy.
func GPUStatus(g subjects.GPU) (status, reason, remedy string) {
	throttled := g.Throttle != nil && (g.Throttle.Hard() || g.Throttle.Hot())
	switch {
	case g.Fenced != "":
		return "fenced", g.Fenced, Unfence(g.Snapshot)
	case g.State == gpu.Unknown:
		return "unknown", "no answer for half a minute", (&gpu.Failure{Kind: gpu.Silent}).Remedy()
	case g.State == gpu.Stale:
		return "stale", "no answer for several seconds", ""
	case throttled:
		return "throttled", ThrottleText(g.Snapshot), "check its cooling and its power supply; 'nvidia-smi -q -d PERFORMANCE,TEMPERATURE' has details"
	case g.Strain != "":
		return "strained", g.Strain, ""
	}
	return "ok", "", ""
}

// GPUSum sums up the GPUs of a worker: the worst status with its reason, the highest temperature and use, the memory and the
// power of all.
type GPUSum struct {
	Count       int     `json:"count"`
	Status      string  `json:"status"`
	Reason      string  `json:"reason,omitempty"`
	Name        string  `json:"name,omitempty"` // of the first
	Temperature *int    `json:"temperature,omitempty"`
	Use         *int    `json:"use,omitempty"` // percent
	Used        uint64  `json:"memory_used,omitempty"`
	Total       uint64  `json:"memory_total,omitempty"`
	Power       float64 `json:"power,omitempty"`
}

// GPUSum sums up the worker's GPUs; nil if it is lost, or reports none and no reason why.
func (w *WorkerStatus) GPUSum() *GPUSum {
	switch {
	case w.NVML == nil || w.Lost > 0:
		return nil
	case len(w.NVML.GPUs) == 0 && w.NVML.Failure == nil:
		return nil
	case len(w.NVML.GPUs) == 0:
		return &GPUSum{Status: "unknown", Reason: w.NVML.Failure.Error()}
	}
	sum := &GPUSum{Count: len(w.NVML.GPUs), Status: "ok", Name: w.NVML.GPUs[0].Name}
	for _, g := range w.NVML.GPUs {
		if status, reason, _ := GPUStatus(g); GPURank(status) > GPURank(sum.Status) {
			sum.Status, sum.Reason = status, fmt.Sprintf("GPU %s: %s", g.Label(), reason)
		}
		if t := g.Temperature; t != nil && (sum.Temperature == nil || *t > *sum.Temperature) {
			sum.Temperature = t
		}
		if u := g.Utilization; u != nil && (sum.Use == nil || u.GPU > *sum.Use) {
			sum.Use = &u.GPU
		}
		if g.Memory != nil {
			sum.Used, sum.Total = sum.Used+g.Memory.Used, sum.Total+g.Memory.Total
		}
		if g.Power != nil {
			sum.Power += *g.Power
		}
	}
	return sum
}

// GPURank orders the statuses of a GPU from good to bad.
func GPURank(status string) int {
	return slices.Index([]string{"ok", "stale", "unknown", "strained", "throttled", "fenced"}, status)
}

// Unfence says what ends the fence of a GPU.
func Unfence(g gpu.Snapshot) string {
	switch {
	case g.Rows != nil && g.Rows.Failed:
		return "replace the GPU: it has no spare memory rows left; until then run its worker without it (gpus=)"
	case g.Recovery != nil && *g.Recovery != gpu.RecoveryNone:
		return fmt.Sprintf("%v, then restart the engine", *g.Recovery)
	case g.Lost != "":
		return "reset the GPU ('nvidia-smi -r') or restart the machine, see 'dmesg | grep -i nvrm'; the fence ends once the driver was reloaded and the GPU answers"
	}
	return "restart the engine; the fence ends a minute after the last error, once the engine has restarted and the GPU answers"
}

// GPUStatusStyle returns the colour of a status, or of a StatusText.
func GPUStatusStyle(text string) term.Style {
	status, _, _ := strings.Cut(text, " ")
	switch strings.TrimSuffix(status, ":") {
	case "ok":
		return term.Green
	case "fenced":
		return term.Red
	case "off":
		return term.Unstyled
	}
	return term.Yellow
}

// ProbeCommand is the command that reads NVML; nil is this program. Tests replace it.
var ProbeCommand []string

// AddLibraryFlag declares the flag for the path of NVML.
func AddLibraryFlag(fs *pflag.FlagSet, path *string) {
	fs.StringVar(path, "nvml-library", "", "`path` of NVML, libnvidia-ml.so.1 (default: searched where the loader, a driver container and WSL have it)")
}

// gpuTimeout bounds how long the GPUs may take to answer: without persistence mode each takes seconds to wake up.
const gpuTimeout = 45 * time.Second

// RunSampler runs a sampler until the returned function is called, which waits for its end. It does not end with ctx.
func RunSampler(ctx context.Context, sampler *gpu.Sampler) (stop func()) {
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var sampling sync.WaitGroup
	sampling.Go(func() { sampler.Run(running) })
	return func() {
		cancel()
		sampling.Wait()
	}
}

// ReadGPUs waits for a fresh reading of this machine's GPUs.
func ReadGPUs(ctx context.Context, sampler *gpu.Sampler) (gpu.Reading, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		r, _ := sampler.Latest()
		switch {
		case r.Failure != nil:
			return r, fmt.Errorf("%w; %s", r.Failure, r.Failure.Remedy())
		case r.State == gpu.Fresh:
			return r, nil
		case time.Since(began) > gpuTimeout:
			return r, fmt.Errorf("the GPUs have not answered for %v; %s", gpuTimeout, (&gpu.Failure{Kind: gpu.Silent}).Remedy())
		}
		select {
		case <-ctx.Done():
			return r, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// LocalGPUStatus returns the status of a GPU of this machine, with the reason: ok, throttled, unhealthy, stale or
// unknown. It counts XIDs of the last minute.
func LocalGPUStatus(g gpu.Snapshot) (status, reason string) {
	if g.State != gpu.Fresh && g.State != "" {
		return string(g.State), "no answer"
	}
	reason, fatal := gpu.Sick(gpu.Snapshot{}, g)
	switch {
	case fatal:
		return "unhealthy", reason
	case g.Throttle != nil && (g.Throttle.Hard() || g.Throttle.Hot()):
		return "throttled", reason
	}
	return "ok", reason
}

// LocalGPUStyle returns the colour of a LocalGPUStatus.
func LocalGPUStyle(status string) term.Style {
	switch status {
	case "ok":
		return term.Green
	case "throttled", "stale":
		return term.Yellow
	}
	return term.Red
}
