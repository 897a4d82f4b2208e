package metric

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// Fleet are the metrics of workers and of their GPUs, made for each scrape from their last heartbeats: a worker that has left
// is not in them. Every gateway has those of all workers, and every worker its own.
type Fleet struct {
	Beats func() []*subjects.Heartbeat
	GPUs  *GPUHistory
	// Lost returns the last heartbeats of workers that are lost. Nil: there are none.
	Lost func() []*subjects.Heartbeat
	// Ages returns the time since the heartbeats of Beats came, by the worker's id. Nil: it is not exported.
	Ages func(now time.Time) map[string]time.Duration
}

var fleetMetrics = slices.Concat([]*Metric{
	WorkerState, WorkerBeat, WorkerCredits, WorkerBounds, WorkerInFlight, WorkerPrefills, WorkerRung, WorkerHeadroom, WorkerFactor, WorkerFenced,
	WorkerFailing, WorkerSuspect, WorkerNote, WorkerTries, EngineRunning, EngineWaiting, EngineKV, NVMLUp,
}, gpuMetrics)

// Describe is of prometheus.Collector.
func (f Fleet) Describe(to chan<- *prometheus.Desc) { Collector{Metrics: fleetMetrics}.Describe(to) }

// name is of a worker, as the labels have it.
type name struct{ worker, host string }

// Collect is of prometheus.Collector. It gives each worker and each GPU once: a second one of the same name and host would
// make the whole page fail.
func (f Fleet) Collect(to chan<- prometheus.Metric) {
	workers, gpus := make(map[name]*subjects.Heartbeat), make(map[gpuKey]*subjects.GPU)
	for _, h := range f.Beats() {
		if k := (name{h.Name, h.Host}); workers[k] == nil || h.Started.After(workers[k].Started) {
			workers[k] = h
		}
		if h.NVML == nil {
			continue
		}
		for j := range h.NVML.GPUs {
			g := &h.NVML.GPUs[j]
			k := keyOf(h.Host, &g.Snapshot)
			if was := gpus[k]; was == nil || was.Fenced == "" && (g.Fenced != "" || g.At.After(was.At)) {
				gpus[k] = g
			}
		}
	}
	now := time.Now()
	var ages map[string]time.Duration
	if f.Ages != nil {
		ages = f.Ages(now)
	}
	for _, h := range workers {
		collectWorker(to, h)
		if age, ok := ages[h.Worker]; ok {
			WorkerBeat.Send(to, age.Seconds(), h.Name, h.Host)
		}
	}
	if f.Lost != nil {
		lost := make(map[name]bool)
		for _, h := range f.Lost() {
			if k := (name{h.Name, h.Host}); workers[k] == nil && !lost[k] {
				lost[k] = true
				collectState(to, h, StateLost)
			}
		}
	}
	for k, g := range gpus {
		r := f.GPUs.record(k)
		collectGPU(to, g, r, []string{k.host, g.Label(), g.UUID, g.Name}, now)
		collectDCGM(to, g, r, k.host)
	}
}

func collectState(to chan<- prometheus.Metric, h *subjects.Heartbeat, state string) {
	for _, s := range States {
		WorkerState.Send(to, Truth(s == state), h.Name, h.Host, s)
	}
}

// knownState bounds the label's values, whatever a worker of another version reports.
func knownState(s subjects.State) string {
	switch {
	case s == subjects.Left:
		return string(subjects.Draining) // its last frames are still to be handled
	case s != StateLost && slices.Contains(States, string(s)):
		return string(s)
	}
	return Other
}

// knownBound bounds the label's values in the same way.
func knownBound(b policy.Bound) string {
	if slices.Contains(policy.Bounds, b) {
		return string(b)
	}
	return Other
}

// fenceLabel bounds the label's values in the same way. It is empty without a fence.
func fenceLabel(fenced bool, c gpu.FenceClass) string {
	switch {
	case !fenced:
		return ""
	case slices.Contains(fenceClasses, string(c)):
		return string(c)
	}
	return Other
}

// noted reports whether a worker has a note of a kind in any of its pools.
func noted(h *subjects.Heartbeat, kind string) bool {
	return slices.ContainsFunc(h.Pools, func(p subjects.PoolStatus) bool {
		return slices.ContainsFunc(p.Notes, func(n policy.Note) bool { return n.Kind == kind })
	})
}

func collectWorker(to chan<- prometheus.Metric, h *subjects.Heartbeat) {
	collectState(to, h, knownState(h.State))
	fenced := h.State == subjects.Fenced
	WorkerFenced.Send(to, Truth(fenced), h.Name, h.Host, fenceLabel(fenced, h.FenceClass))
	WorkerInFlight.Send(to, float64(h.InFlight), h.Name, h.Host)
	WorkerPrefills.Send(to, float64(h.Prefills), h.Name, h.Host)
	WorkerTries.Send(to, float64(h.Done), h.Name, h.Host, "done")
	WorkerTries.Send(to, float64(h.Failed), h.Name, h.Host, "failed")
	failing, suspect, rungs := 0, 0, make(map[string]bool, len(h.Pools))
	for i := range h.Pools {
		p := &h.Pools[i]
		if p.Failing != "" {
			failing++
		}
		if p.Doubt != "" {
			suspect++
		}
		if !rungs[p.Pool] {
			rungs[p.Pool] = true
			WorkerRung.Send(to, float64(p.Rung), h.Name, h.Host, p.Pool)
		}
	}
	WorkerFailing.Send(to, float64(failing), h.Name, h.Host)
	WorkerSuspect.Send(to, float64(suspect), h.Name, h.Host)
	for _, kind := range WorkerNote.Values["kind"] {
		WorkerNote.Send(to, Truth(noted(h, kind)), h.Name, h.Host, kind)
	}
	if h.NVML != nil {
		NVMLUp.Send(to, Truth(h.NVML.Failure == nil && len(h.NVML.GPUs) > 0), h.Name, h.Host)
	}
	if e := h.EngineStatus; e != nil && h.State != subjects.Down {
		optional(to, EngineRunning, e.Running, 1, h.Name, h.Host)
		optional(to, EngineWaiting, e.Waiting, 1, h.Name, h.Host)
		optional(to, EngineKV, e.KVUsage, 1, h.Name, h.Host)
	}
	collectCapacity(to, h)
}

// collectCapacity says nothing of free capacity of a worker that accepts no requests, whatever its engine last reported.
func collectCapacity(to chan<- prometheus.Metric, h *subjects.Heartbeat) {
	r := h.Capacity
	if r == nil {
		return
	}
	total, bound, headroom, factor := r.Total, knownBound(r.Bound), r.Headroom, r.Factor
	switch h.State {
	case subjects.Down, subjects.Cordoned, subjects.Draining, subjects.Left:
		total, bound, headroom = 0, knownState(h.State), 0
	case subjects.Fenced:
		total, headroom, factor = 0, 0, 0
	}
	WorkerCredits.Send(to, float64(total), h.Name, h.Host, bound)
	WorkerHeadroom.Send(to, headroom, h.Name, h.Host)
	WorkerFactor.Send(to, factor, h.Name, h.Host)
	for _, b := range policy.Bounds {
		if v, ok := r.Terms[b]; ok {
			WorkerBounds.Send(to, v, h.Name, h.Host, string(b))
		}
	}
}

// optional sends a value that may be missing.
func optional[T int | int64 | uint64 | float64](to chan<- prometheus.Metric, m *Metric, v *T, unit float64, labels ...string) {
	if v != nil {
		m.Send(to, float64(*v)*unit, labels...)
	}
}

// KVUsage is the used share of the KV cache of a pool's engines: the mean over those that report it, else the share of slots
// in use; 1 without a worker that accepts requests.
func KVUsage(pool string, beats []*subjects.Heartbeat) float64 {
	var sum, engines, slots, inFlight float64
	for _, h := range beats {
		if !h.Live() || !h.Serves(pool) {
			continue
		}
		slots += float64(h.Slots)
		inFlight += float64(h.InFlight)
		if e := h.EngineStatus; e != nil && e.KVUsage != nil {
			sum += *e.KVUsage
			engines++
		}
	}
	switch {
	case engines > 0:
		return sum / engines
	case slots > 0:
		return min(inFlight/cmp.Or(slots, 1), 1)
	}
	return 1
}
