package gateway

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// gpuKey names a GPU, which several workers of a host may report.
type gpuKey struct{ host, device string }

func keyOf(host string, s *gpu.Snapshot) gpuKey { return gpuKey{host, cmp.Or(s.UUID, s.Label())} }

// gpuHistory keeps what a single heartbeat does not contain: when each GPU was last sampled, and how many XIDs it had.
type gpuHistory struct {
	mu   sync.Mutex
	gpus map[gpuKey]*gpuRecord
}

type gpuRecord struct {
	sampled  time.Time // by the clock of its host, which may differ from ours
	received time.Time // when a newer sample came
	xids     map[int]xidCount
}

type xidCount struct {
	n    int
	last time.Time // by the clock of its host
}

// sameXID is the time within which two workers report the same XID.
const sameXID = 2 * time.Second

func newGPUHistory() *gpuHistory { return &gpuHistory{gpus: make(map[gpuKey]*gpuRecord)} }

func (g *gpuHistory) onHeartbeat(h *subjects.Heartbeat, now time.Time) {
	if h.NVML == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range h.NVML.GPUs {
		s := &h.NVML.GPUs[i].Snapshot
		k := keyOf(h.Host, s)
		r := g.gpus[k]
		if r == nil {
			r = &gpuRecord{xids: make(map[int]xidCount)}
			g.gpus[k] = r
		}
		if s.At.After(r.sampled) {
			r.sampled, r.received = s.At, now
		}
		for _, x := range s.XIDs {
			if c := r.xids[x.Code]; x.At.After(c.last.Add(sameXID)) {
				r.xids[x.Code] = xidCount{c.n + 1, x.At}
			}
		}
	}
}

// keep forgets the GPUs that none of these heartbeats reports.
func (g *gpuHistory) keep(beats []*subjects.Heartbeat) {
	reported := make(map[gpuKey]bool)
	for _, h := range beats {
		if h.NVML == nil {
			continue
		}
		for i := range h.NVML.GPUs {
			reported[keyOf(h.Host, &h.NVML.GPUs[i].Snapshot)] = true
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.DeleteFunc(g.gpus, func(k gpuKey, _ *gpuRecord) bool { return !reported[k] })
}

// record returns a copy of what is kept of a GPU; the zero record if that is nothing.
func (g *gpuHistory) record(k gpuKey) gpuRecord {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.gpus[k]
	if r == nil {
		return gpuRecord{}
	}
	return gpuRecord{sampled: r.sampled, received: r.received, xids: maps.Clone(r.xids)}
}

// fleetMetrics are the metrics of the live workers and of their GPUs, made for each scrape from the last heartbeats: a
// worker that is gone is not in them. Every gateway has them all.
type fleetMetrics struct {
	fleet *fleet
	gpus  *gpuHistory
}

// fleetDescs are those that fleetDesc has made.
var fleetDescs []*prometheus.Desc

func fleetDesc(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("pulley_"+name, help, labels, nil)
	fleetDescs = append(fleetDescs, d)
	return d
}

var (
	workerLabels = []string{"worker", "host"}
	gpuLabels    = []string{"host", "gpu", "UUID", "modelName"} // as dcgm-exporter has them

	descCapacity = fleetDesc("worker_credits", "Requests that a worker may have in flight, labelled with what bounds them.", "worker", "host", "bound")
	descBounds   = fleetDesc("worker_bound_requests", "Requests in flight that each bound alone would allow.", "worker", "host", "bound")
	descInFlight = fleetDesc("worker_in_flight", "Requests in flight on a worker.", workerLabels...)
	descHeadroom = fleetDesc("worker_headroom_ratio", "Free share of the resource that a worker has least of, 0 to 1.", workerLabels...)
	descFactor   = fleetDesc("worker_factor_ratio", "Factor by which a strained GPU reduces a worker's capacity; 0 if the worker is fenced.", workerLabels...)
	descFenced   = fleetDesc("worker_fenced", "1 if a worker takes no requests because its engine or a GPU is faulty.", "worker", "host", "reason")
	descFailing  = fleetDesc("worker_failing_pools", "Pools whose requests fail at a worker, so that it tries one at a time.", workerLabels...)
	descSuspect  = fleetDesc("worker_suspect_pools", "Pools for which a worker's engine shows no progress, so that it gets few requests.", workerLabels...)
	descState    = fleetDesc("worker_state", "1 for the state that a worker is in: ready, paused, busy, down, fenced, draining, cordoned or other.", "worker", "host", "state")
	descNVML     = fleetDesc("nvml_up", "1 if a worker can read its GPUs. Absent if NVML is off.", workerLabels...)

	descAge         = fleetDesc("nvml_sample_age_seconds", "Time since a GPU was last sampled.", gpuLabels...)
	descMemory      = fleetDesc("gpu_memory_bytes", "Memory of a GPU by state: total, used, free, reserved.", append(gpuLabels, "state")...)
	descUtilization = fleetDesc("gpu_utilization_ratio", "Share of the time in which a kernel ran on the GPU.", gpuLabels...)
	descTemperature = fleetDesc("gpu_temperature_celsius", "Temperature of a GPU.", gpuLabels...)
	descMemoryTemp  = fleetDesc("gpu_memory_temperature_celsius", "Temperature of a GPU's memory.", gpuLabels...)
	descPower       = fleetDesc("gpu_power_watts", "Power that a GPU draws.", gpuLabels...)
	descPowerLimit  = fleetDesc("gpu_power_limit_watts", "Power limit in force on a GPU.", gpuLabels...)
	descClock       = fleetDesc("gpu_sm_clock_hertz", "Clock rate of the multiprocessors.", gpuLabels...)
	descThrottled   = fleetDesc("gpu_throttled", "1 if the clocks of a GPU are throttled for this reason.", append(gpuLabels, "reason")...)
	descECC         = fleetDesc("gpu_ecc_uncorrected_total", "Uncorrectable memory errors since the driver was loaded.", gpuLabels...)
	descRows        = fleetDesc("gpu_row_remap_failed", "1 if a memory row could not be remapped.", gpuLabels...)
	descXIDs        = fleetDesc("gpu_xid_total", "XID errors since the gateway first saw the GPU.", append(gpuLabels, "xid")...)
	descGPUFenced   = fleetDesc("gpu_fenced", "1 if a GPU is fenced: no requests may run on it.", append(gpuLabels, "reason")...)
)

func (fleetMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range fleetDescs {
		to <- d
	}
}

// Collect gives each worker and each GPU once: a second one of the same name and host would make the whole page fail.
func (m fleetMetrics) Collect(to chan<- prometheus.Metric) {
	type name struct{ worker, host string }
	workers := make(map[name]*subjects.Heartbeat)
	gpus := make(map[gpuKey]*subjects.GPU)
	now := time.Now()
	for _, h := range m.fleet.heartbeats() {
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
	for _, h := range workers {
		collectWorker(to, h)
	}
	for k, g := range gpus {
		labels := []string{k.host, g.Label(), g.UUID, g.Name}
		collectGPU(to, g, labels)
		collectHistory(to, m.gpus.record(k), labels, now)
	}
}

func gauge(to chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels []string, more ...string) {
	to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, utf8Labels(append(labels[:len(labels):len(labels)], more...))...)
}

func counter(to chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels []string, more ...string) {
	to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, utf8Labels(append(labels[:len(labels):len(labels)], more...))...)
}

// optional gives the gauge of a value that may be missing.
func optional[T int | uint64 | float64](to chan<- prometheus.Metric, d *prometheus.Desc, v *T, unit float64, labels []string, more ...string) {
	if v != nil {
		gauge(to, d, float64(*v)*unit, labels, more...)
	}
}

// utf8Labels makes labels valid UTF-8: workers choose them.
func utf8Labels(labels []string) []string {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "?")
	}
	return labels
}

func collectWorker(to chan<- prometheus.Metric, h *subjects.Heartbeat) {
	labels := []string{h.Name, h.Host}
	gauge(to, descInFlight, float64(h.InFlight), labels)
	failing, suspect := 0, 0
	for i := range h.Pools {
		if h.Pools[i].Failing != "" {
			failing++
		}
		if h.Pools[i].Doubt != "" {
			suspect++
		}
	}
	gauge(to, descFailing, float64(failing), labels)
	gauge(to, descSuspect, float64(suspect), labels)
	if h.NVML != nil {
		gauge(to, descNVML, truth(h.NVML.Failure == nil && len(h.NVML.GPUs) > 0), labels)
	}
	gauge(to, descState, 1, labels, knownState(h.State))
	fenced := h.State == subjects.Fenced
	gauge(to, descFenced, truth(fenced), labels, fenceLabel(fenced, h.FenceClass))
	r := h.Capacity
	if r == nil {
		return
	}
	gauge(to, descCapacity, float64(r.Total), labels, knownBound(r.Bound))
	gauge(to, descHeadroom, r.Headroom, labels)
	gauge(to, descFactor, r.Factor, labels)
	for _, b := range policy.Bounds {
		if v, ok := r.Terms[b]; ok {
			gauge(to, descBounds, v, labels, string(b))
		}
	}
}

// knownState bounds the label's values in the same way as knownBound.
func knownState(s subjects.State) string {
	switch s {
	case subjects.Ready, subjects.Paused, subjects.Busy, subjects.Down, subjects.Fenced, subjects.Draining, subjects.Cordoned, subjects.Left:
		return string(s)
	}
	return "other"
}

// knownBound bounds the label's values, whatever a worker of another version reports.
func knownBound(b policy.Bound) string {
	if slices.Contains(policy.Bounds, b) {
		return string(b)
	}
	return "other"
}

// fenceLabel bounds the label's values in the same way. It is empty without a fence.
func fenceLabel(fenced bool, c gpu.FenceClass) string {
	if !fenced {
		return ""
	}
	switch c {
	case gpu.FenceLost, gpu.FenceResetRequired, gpu.FenceRowRemap, gpu.FenceRecovery, gpu.FenceXID, gpu.FenceECC, subjects.FenceStalled, subjects.FenceNVML,
		subjects.FenceHung, subjects.FenceFrozen:
		return string(c)
	}
	return "other"
}

func collectGPU(to chan<- prometheus.Metric, g *subjects.GPU, labels []string) {
	gauge(to, descGPUFenced, truth(g.Fenced != ""), labels, fenceLabel(g.Fenced != "", g.FenceClass))
	if g.State == gpu.Unknown {
		return // its values are too old
	}
	if m := g.Memory; m != nil {
		gauge(to, descMemory, float64(m.Total), labels, "total")
		gauge(to, descMemory, float64(m.Used), labels, "used")
		gauge(to, descMemory, float64(m.Free), labels, "free")
		optional(to, descMemory, m.Reserved, 1, labels, "reserved")
	}
	if g.Utilization != nil {
		gauge(to, descUtilization, float64(g.Utilization.GPU)/100, labels)
	}
	optional(to, descTemperature, g.Temperature, 1, labels)
	optional(to, descMemoryTemp, g.MemoryTemperature, 1, labels)
	optional(to, descClock, g.SMClock, 1e6, labels)
	optional(to, descPower, g.Power, 1, labels)
	optional(to, descPowerLimit, g.PowerLimit, 1, labels)
	if g.Throttle != nil {
		for bit, reason := range gpu.AllThrottle() {
			gauge(to, descThrottled, truth(*g.Throttle&bit != 0), labels, reason)
		}
	}
	if g.ECC != nil && g.ECC.Uncorrected != nil {
		counter(to, descECC, float64(*g.ECC.Uncorrected), labels)
	}
	if g.Rows != nil {
		gauge(to, descRows, truth(g.Rows.Failed), labels)
	}
}

func collectHistory(to chan<- prometheus.Metric, r gpuRecord, labels []string, now time.Time) {
	if !r.received.IsZero() {
		gauge(to, descAge, max(0, now.Sub(r.received).Seconds()), labels)
	}
	for code, c := range r.xids {
		counter(to, descXIDs, float64(c.n), labels, strconv.Itoa(code))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
