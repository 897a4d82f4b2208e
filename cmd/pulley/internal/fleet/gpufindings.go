package fleet

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// startupGrace is how long a new worker may take to receive its engine's metrics and its GPUs' samples before their
	// absence is a finding.
	startupGrace = 10 * time.Second

	// tooManySlots is how many times the adaptive limit the slots must be to be a finding.
	tooManySlots = 2
)

// heartbeats returns the heartbeats of the workers that are not lost.
func (s *Snapshot) heartbeats() []subjects.Heartbeat {
	var list []subjects.Heartbeat
	for _, w := range s.Workers {
		if w.Lost == 0 {
			list = append(list, w.Heartbeat)
		}
	}
	return list
}

// FindGPUs reports GPUs that are fenced, throttled or silent, and hosts whose GPUs cannot be read. A failure that
// several hosts share is reported once.
func (s *Snapshot) FindGPUs() []Finding {
	beats := s.heartbeats()
	list := GPUs(beats)
	var found []Finding
	type hostFailure struct {
		hosts    []string
		failure  *gpu.Failure
		required bool
	}
	var failures []*hostFailure
	for _, g := range list {
		if f := g.finding(); f != nil {
			found = append(found, *f)
		}
		if g.Failure == nil {
			continue
		}
		required := slices.ContainsFunc(beats, func(h subjects.Heartbeat) bool {
			return h.Host == g.Host && h.NVML != nil && h.NVML.Mode == "required"
		})
		host := g.Host
		if g.Failure.Kind == gpu.NotThere { // the failure of these workers, not of the host
			host += " (" + term.Join(g.Workers) + ")"
		}
		at := slices.IndexFunc(failures, func(f *hostFailure) bool { return *f.failure == *g.Failure && f.required == required })
		switch {
		case at >= 0 && !slices.Contains(failures[at].hosts, host):
			failures[at].hosts = append(failures[at].hosts, host)
		case at < 0 && (required || g.Failure.Kind != gpu.NoGPU && g.Failure.Kind != gpu.Unsupported):
			failures = append(failures, &hostFailure{[]string{host}, g.Failure, required})
		}
	}
	for _, f := range failures {
		text := fmt.Sprintf("%s: %v", term.Shorten(term.Join(f.hosts), 160), f.failure)
		if f.required {
			found = append(found, NewProblem(text+"; with --nvml required workers accept no requests", f.failure.Remedy()))
		} else {
			found = append(found, NewWarning(text+"; workers rely on their engines alone", f.failure.Remedy()))
		}
	}
	for _, h := range beats {
		if h.NVML != nil && h.NVML.Failure == nil && len(h.NVML.GPUs) == 0 && s.At.Sub(h.Started) > startupGrace {
			found = append(found, NewWarning(fmt.Sprintf("worker %s: NVML shows none of its GPUs", h.Name),
				fmt.Sprintf("check its gpus=, and run 'pulley gpu ls --local --all' on %s", h.Host)))
		}
	}
	return found
}

// finding returns what is wrong with the GPU itself; nil if nothing is.
func (g *GPU) finding() *Finding {
	name := fmt.Sprintf("GPU %s (%s)", g.Path(), term.Join(g.Workers))
	f := NewWarning("", g.Remedy)
	switch g.Status {
	case "fenced":
		f = NewProblem(fmt.Sprintf("%s is fenced: %s", name, g.Reason), g.Remedy)
	case "throttled":
		if g.Strain == "" {
			return nil // throttled for a moment only
		}
		f.Text = fmt.Sprintf("%s is throttled: %s (%s)", name, g.Strain, g.Reason)
	case "strained":
		f.Text = fmt.Sprintf("%s is strained: %s", name, g.Reason)
		f.Remedy = cmp.Or(g.Remedy, "run 'nvidia-smi' on "+g.Host+" to see which process uses its memory")
	case "stale", "unknown":
		if g.GPU == nil || g.Failure != nil {
			return nil // reported for the host
		}
		f.Text = fmt.Sprintf("%s: %s", name, g.Reason)
		f.Remedy = (&gpu.Failure{Kind: gpu.Silent}).Remedy()
	default:
		return nil
	}
	return &f
}

// GPUSummary describes the GPUs if there is no finding about them.
func (s *Snapshot) GPUSummary() string {
	hosts, without, n := make(map[string]bool), make(map[string]bool), 0
	for _, g := range GPUs(s.heartbeats()) {
		if g.GPU == nil {
			without[g.Host] = true
			continue
		}
		n++
		hosts[g.Host] = true
	}
	if n == 0 {
		return "no worker reports a GPU"
	}
	text := fmt.Sprintf("%s on %s", term.Count(n, "GPU"), term.Count(len(hosts), "host"))
	if len(without) > 0 {
		text += fmt.Sprintf("; %s without a GPU or with NVML off", term.Count(len(without), "host"))
	}
	return text
}

// FindHeadroom reports workers that lack their engine's metrics, that cannot meet their objective, or that have far
// more slots than they can use.
func (s *Snapshot) FindHeadroom() []Finding {
	var found []Finding
	for _, h := range s.heartbeats() {
		c := h.Capacity
		if c == nil || !h.Live() || s.At.Sub(h.Started) < startupGrace {
			continue
		}
		if f := metricsFinding(&h, s.At); f != nil && c.Profile != policy.FixedSlots.Name {
			found = append(found, *f)
		}
		if c.Infeasible {
			found = append(found, NewWarning(fmt.Sprintf("worker %s cannot meet its objective: a request that runs alone takes %s per token", h.Name, cmp.Or(term.Millis(c.AloneMS), "longer")),
				"set a longer --slo-itl, or give this worker its own pool (pool=) and use another for these requests"))
		}
		if slots := c.Terms[policy.BoundSlots]; c.Bound == policy.BoundLimit && c.Limit > 0 && slots >= tooManySlots*c.Limit && c.PaceMS > 0 && c.PaceMS >= 0.9*c.TargetMS {
			found = append(found, NewWarning(fmt.Sprintf("worker %s has %.0f slots, but can use only about %.0f", h.Name, slots, c.Limit),
				"remove slots=, or use --profile throughput if slower answers are acceptable; only the profile fixed would use all slots"))
		}
	}
	return found
}

// metricsFinding reports an engine whose metrics are stale, or missing although its kind has metrics.
func metricsFinding(h *subjects.Heartbeat, now time.Time) *Finding {
	dialect := engine.Dialect(h.Engine)
	if h.EngineStatus != nil {
		dialect = engine.Dialect(h.EngineStatus.Dialect)
	}
	at := metricsURL(h.URL, dialect)
	var f Finding
	switch h.Capacity.Engine {
	case "stale":
		age := "stale"
		if h.EngineStatus != nil && !h.EngineStatus.At.IsZero() {
			age = term.Age(max(0, now.Sub(h.EngineStatus.At))) + " old"
		}
		f = NewWarning(fmt.Sprintf("worker %s: the engine's metrics are %s: capacity is not raised until they are fresh", h.Name, age),
			fmt.Sprintf("check that %s answers within a second; if the metrics are elsewhere, set metrics=URL", at))
	case "missing":
		const blocked = "check that it is not blocked; if the metrics are elsewhere, set metrics=URL"
		remedy, hasMetrics := map[engine.Dialect]string{
			engine.DialectVLLM:     blocked,
			engine.DialectSGLang:   "start SGLang with --enable-metrics",
			engine.DialectTGI:      blocked,
			engine.DialectLlamaCpp: "start llama-server with --metrics",
			engine.DialectTriton:   "open port 8002 to the worker; if the metrics are elsewhere, set metrics=URL",
			engine.DialectTRTLLM:   "start trtllm-serve with Prometheus metrics, or set metrics=URL",
		}[dialect]
		if !hasMetrics {
			return nil
		}
		f = NewWarning(fmt.Sprintf("worker %s: no metrics of its engine (%s) at %s: the worker relies on its own count of requests", h.Name, dialect, at), remedy)
	default:
		return nil
	}
	return &f
}

// metricsURL returns the default URL of an engine's metrics.
func metricsURL(engineURL string, d engine.Dialect) string {
	base := strings.TrimSuffix(strings.TrimRight(engineURL, "/"), "/v1")
	switch d {
	case engine.DialectTRTLLM:
		return base + "/prometheus/metrics"
	case engine.DialectTriton:
		if u, err := url.Parse(base); err == nil && u.Hostname() != "" {
			u.Host = net.JoinHostPort(u.Hostname(), "8002")
			base = u.String()
		}
	}
	return base + "/metrics"
}

// HeadroomSummary describes the capacity of the workers if there is no finding about it.
func (s *Snapshot) HeadroomSummary() string {
	capacity, inFlight := 0, 0
	for _, h := range s.heartbeats() {
		if h.Capacity != nil && h.Live() {
			capacity += h.Capacity.Total
			inFlight += h.InFlight
		}
	}
	if capacity == 0 {
		return "no worker has capacity now"
	}
	return fmt.Sprintf("%d of %d in flight", inFlight, capacity)
}

// gpuFenced says whether a GPU is the reason why the worker is fenced.
func (w *WorkerStatus) gpuFenced() bool {
	if w.NVML == nil {
		return false
	}
	return w.NVML.Mode == "required" && w.NVML.Failure != nil || slices.ContainsFunc(w.NVML.GPUs, func(g subjects.GPU) bool { return g.Fenced != "" })
}
