package fleet

import (
	"cmp"
	"fmt"
	"net"
	neturl "net/url"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// newWorkerPasses is how long a worker may take to hear from its engine and its
// GPUs before that is worth a word.
const newWorkerPasses = 10 * time.Second

// farAbove is how many times what the limit finds slots may be.
const farAbove = 2

// FindGPUs finds GPUs that are ill or held back, and hosts that tell nothing.
func (s *Snapshot) FindGPUs() []Finding {
	beats := s.heartbeats()
	list := GPUs(beats)
	var found []Finding
	type trouble struct {
		hosts    []string
		failure  *gpu.Failure
		required bool
	}
	var troubles []*trouble
	for i := range list {
		g := &list[i]
		if f := g.Failure; f != nil {
			required := slices.ContainsFunc(beats, func(h subjects.Heartbeat) bool {
				return h.Host == g.Host && h.NVML != nil && h.NVML.Mode == "required"
			})
			about := g.Host
			if f.Kind == gpu.NotThere { // that is one worker's affair
				about += " (" + term.Join(g.Workers) + ")"
			}
			at := slices.IndexFunc(troubles, func(t *trouble) bool { return *t.failure == *f && t.required == required })
			switch {
			case at >= 0 && !slices.Contains(troubles[at].hosts, about):
				troubles[at].hosts = append(troubles[at].hosts, about)
			case at < 0 && (required || f.Kind != gpu.NoGPU && f.Kind != gpu.Unsupported):
				troubles = append(troubles, &trouble{[]string{about}, f, required})
			}
		}
		if d, is := g.diagnosis(); is {
			found = append(found, d)
		}
	}
	for _, t := range troubles {
		d := Finding{Verdict: Warning, Text: fmt.Sprintf("%s: %s; workers go by their engines alone", term.Shorten(term.Join(t.hosts), 160), t.failure.Error()), Remedy: t.failure.Remedy()}
		if t.required {
			d.Verdict = Problem
			d.Text = fmt.Sprintf("%s: %s; with --nvml required workers take nothing", term.Shorten(term.Join(t.hosts), 160), t.failure.Error())
		}
		found = append(found, d)
	}
	for i := range beats {
		h := &beats[i]
		if h.NVML != nil && h.NVML.Failure == nil && len(h.NVML.GPUs) == 0 && s.At.Sub(h.Started) > newWorkerPasses {
			found = append(found, Finding{Verdict: Warning, Text: fmt.Sprintf("worker %s: NVML shows none of its GPUs", h.Name),
				Remedy: fmt.Sprintf("see its gpus=, and 'pulley gpu ls --local --all' on %s", h.Host)})
		}
	}
	return found
}

// diagnosis says what is wrong with a GPU itself.
func (g *GPU) diagnosis() (Finding, bool) {
	d := Finding{Verdict: Warning, Remedy: g.Remedy}
	about := fmt.Sprintf("GPU %s (%s)", g.Path(), term.Join(g.Workers))
	switch g.Status {
	case "fenced":
		d.Verdict = Problem
		d.Text = fmt.Sprintf("%s is fenced: %s", about, g.Reason)
	case "throttled":
		if g.Strain == "" {
			return d, false // a moment of it is nothing
		}
		d.Text = fmt.Sprintf("%s is throttled: %s (%s)", about, g.Strain, g.Reason)
	case "strained":
		d.Text = fmt.Sprintf("%s is strained: %s", about, g.Reason)
		d.Remedy = cmp.Or(d.Remedy, "'nvidia-smi' on "+g.Host+" says who takes its memory")
	case "stale", "unknown":
		if g.GPU == nil || g.Failure != nil {
			return d, false // that is told of the host
		}
		d.Text = fmt.Sprintf("%s: %s", about, g.Reason)
		d.Remedy = (&gpu.Failure{Kind: gpu.Silent}).Remedy()
	default:
		return d, false
	}
	return d, true
}

// GPUSummary is what there is to say where nothing is wrong.
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
		return "none: no worker has word of one"
	}
	text := fmt.Sprintf("%s on %s, all well", term.Count(n, "GPU"), term.Count(len(hosts), "host"))
	if len(without) > 0 {
		text += fmt.Sprintf("; %s without, or with NVML off", term.Count(len(without), "host"))
	}
	return text
}

// FindHeadroom finds workers that know too little of their engine, or were told
// something about it that is not so.
func (s *Snapshot) FindHeadroom() []Finding {
	var found []Finding
	for _, h := range s.heartbeats() {
		r := h.Capacity
		if r == nil || !h.Live() || s.At.Sub(h.Started) < newWorkerPasses {
			continue
		}
		about := "worker " + h.Name
		if r.Profile != policy.FixedSlots.Name {
			found = append(found, metricsOf(&h, s.At)...)
		}
		if r.Infeasible {
			found = append(found, Finding{Verdict: Warning, Text: fmt.Sprintf("%s cannot meet its objective: a request alone has %s between two tokens", about, cmp.Or(term.Millis(r.AloneMS), "more")),
				Remedy: "a longer --slo-itl, or another worker for what needs it: give this one a pool of its own (pool=)"})
		}
		if slots := r.Terms[policy.BoundSlots]; r.Bound == policy.BoundLimit && r.Limit > 0 && slots >= farAbove*r.Limit && r.PaceMS > 0 && r.PaceMS >= 0.9*r.TargetMS {
			found = append(found, Finding{Verdict: Warning, Text: fmt.Sprintf("%s has %.0f slots, and does well with about %.0f", about, slots, r.Limit),
				Remedy: "leave slots= out, or take --profile throughput if slower answers are fine; only the fixed profile would fill them"})
		}
	}
	return found
}

// metricsOf finds an engine that does not tell its load, and could.
func metricsOf(h *subjects.Heartbeat, now time.Time) []Finding {
	d := Finding{Verdict: Warning}
	dialect := engine.Dialect(h.Engine)
	if h.EngineStatus != nil {
		dialect = engine.Dialect(h.EngineStatus.Dialect)
	}
	switch h.Capacity.Engine {
	case "stale":
		old := "old"
		if h.EngineStatus != nil && !h.EngineStatus.At.IsZero() {
			old = term.Age(max(0, now.Sub(h.EngineStatus.At))) + " old"
		}
		d.Text = fmt.Sprintf("worker %s: the engine's metrics are %s: it takes no more than it had when they were read", h.Name, old)
		d.Remedy = fmt.Sprintf("does %s answer within a second? If it is elsewhere, say metrics=URL", metricsAt(h.URL, dialect))
	case "missing":
		how, known := map[engine.Dialect]string{
			engine.DialectVLLM:     "is it blocked? If it is elsewhere, say metrics=URL",
			engine.DialectSGLang:   "start SGLang with --enable-metrics",
			engine.DialectTGI:      "is it blocked? If it is elsewhere, say metrics=URL",
			engine.DialectLlamaCpp: "start llama-server with --metrics",
			engine.DialectTriton:   "is port 8002 open to the worker? If it is elsewhere, say metrics=URL",
			engine.DialectTRTLLM:   "start trtllm-serve with its Prometheus metrics on, or say metrics=URL",
		}[dialect]
		if !known { // the others have none
			return nil
		}
		d.Text = fmt.Sprintf("worker %s: its engine (%s) tells nothing of its load at %s: the worker goes by its own count of requests", h.Name, dialect, metricsAt(h.URL, dialect))
		d.Remedy = how
	default:
		return nil
	}
	return []Finding{d}
}

// metricsAt is where an engine's metrics are, if nobody says otherwise.
func metricsAt(url string, d engine.Dialect) string {
	base := strings.TrimSuffix(strings.TrimRight(url, "/"), "/v1")
	switch d {
	case engine.DialectTRTLLM:
		return base + "/prometheus/metrics"
	case engine.DialectTriton:
		if u, err := neturl.Parse(base); err == nil && u.Hostname() != "" {
			u.Host = net.JoinHostPort(u.Hostname(), "8002")
			base = u.String()
		}
	}
	return base + "/metrics"
}

// HeadroomSummary is how full the workers are.
func (s *Snapshot) HeadroomSummary() string {
	room, inFlight := 0, 0
	for _, h := range s.heartbeats() {
		if h.Capacity != nil && h.Live() {
			room += h.Capacity.Total
			inFlight += h.InFlight
		}
	}
	if room == 0 {
		return "no worker has room now"
	}
	return fmt.Sprintf("%d in flight, room for %d", inFlight, room)
}

// gpuFenced says whether it is a GPU that is ill, or nobody knows of and has to.
func (w *WorkerStatus) gpuFenced() bool {
	return w.NVML != nil && w.NVML.Mode == "required" && w.NVML.Failure != nil || w.NVML != nil && slices.ContainsFunc(w.NVML.GPUs, func(g subjects.GPU) bool { return g.Fenced != "" })
}

// heartbeats are those of the workers that are not lost.
func (s *Snapshot) heartbeats() []subjects.Heartbeat {
	var list []subjects.Heartbeat
	for i := range s.Workers {
		if s.Workers[i].Lost == 0 {
			list = append(list, s.Workers[i].Heartbeat)
		}
	}
	return list
}
