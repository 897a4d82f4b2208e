package gateway

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// gpuKey names a GPU, which several workers of a host may tell of.
type gpuKey struct{ host, device string }

func keyOf(host string, s *gpu.Snapshot) gpuKey { return gpuKey{host, cmp.Or(s.UUID, s.Label())} }

// gpuHeard is what one heartbeat alone does not say of a GPU.
type gpuHeard struct {
	sampled time.Time // by the clock of its host, which may not be ours
	heard   time.Time // when a newer sample came
	xids    map[int]xidCount
}

type xidCount struct {
	n    int
	last time.Time // by the clock of its host
}

// sameXID is within what time two workers tell of one XID.
const sameXID = 2 * time.Second

// hearGPUsLocked takes in what a worker tells of its GPUs.
func (fl *fleet) hearGPUsLocked(h *subjects.Heartbeat, now time.Time) {
	if h.NVML == nil {
		return
	}
	for i := range h.NVML.GPUs {
		s := &h.NVML.GPUs[i].Snapshot
		k := keyOf(h.Host, s)
		g := fl.gpus[k]
		if g == nil {
			g = &gpuHeard{xids: make(map[int]xidCount)}
			fl.gpus[k] = g
		}
		if s.At.After(g.sampled) {
			g.sampled, g.heard = s.At, now
		}
		for _, x := range s.XIDs {
			if c := g.xids[x.Code]; x.At.After(c.last.Add(sameXID)) {
				g.xids[x.Code] = xidCount{c.n + 1, x.At}
			}
		}
	}
}

// forgetGPUsLocked forgets those that no worker tells of any more.
func (fl *fleet) forgetGPUsLocked() {
	told := make(map[gpuKey]bool)
	for _, m := range fl.workers {
		if m.beat.NVML == nil {
			continue
		}
		for i := range m.beat.NVML.GPUs {
			told[keyOf(m.beat.Host, &m.beat.NVML.GPUs[i].Snapshot)] = true
		}
	}
	for k := range fl.gpus {
		if !told[k] {
			delete(fl.gpus, k)
		}
	}
}

// fleetMetrics are those of the workers that live and of their GPUs, made anew
// for each scrape from their last heartbeats: what is gone is not in them. Every
// gateway has them all.
type fleetMetrics struct{ g *Gateway }

func fleetDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("pulley_"+name, help, labels, nil)
}

var (
	workerLabels = []string{"worker", "host"}
	gpuLabels    = []string{"host", "gpu", "UUID", "modelName"} // as dcgm-exporter has them

	descCredits  = fleetDesc("worker_credits", "Requests that a worker may have in flight, by what bounds them.", "worker", "host", "bound")
	descBounds   = fleetDesc("worker_bound_requests", "Requests in flight that each bound alone would allow.", "worker", "host", "bound")
	descInFlight = fleetDesc("worker_in_flight", "Requests that a worker has with its engine.", workerLabels...)
	descHeadroom = fleetDesc("worker_headroom_ratio", "Free part of whatever a worker has least of.", workerLabels...)
	descFactor   = fleetDesc("worker_factor_ratio", "What a strained GPU leaves of a worker's room; 0 if fenced.", workerLabels...)
	descFenced   = fleetDesc("worker_fenced", "1 if a worker takes nothing for the sake of its engine or a GPU.", "worker", "host", "reason")
	descNVML     = fleetDesc("nvml_up", "1 if a worker has word of its GPUs. Absent with NVML off.", workerLabels...)

	descAge         = fleetDesc("nvml_sample_age_seconds", "Since a GPU was last read.", gpuLabels...)
	descMemory      = fleetDesc("gpu_memory_bytes", "Memory of a GPU: total, used, free, reserved.", append(gpuLabels, "state")...)
	descUtilization = fleetDesc("gpu_utilization_ratio", "Part of the time in which any kernel ran.", gpuLabels...)
	descTemperature = fleetDesc("gpu_temperature_celsius", "Temperature of a GPU.", gpuLabels...)
	descMemoryTemp  = fleetDesc("gpu_memory_temperature_celsius", "Temperature of a GPU's memory.", gpuLabels...)
	descPower       = fleetDesc("gpu_power_watts", "Power that a GPU draws.", gpuLabels...)
	descPowerLimit  = fleetDesc("gpu_power_limit_watts", "Power limit in force.", gpuLabels...)
	descClock       = fleetDesc("gpu_sm_clock_hertz", "Clock of the multiprocessors.", gpuLabels...)
	descThrottled   = fleetDesc("gpu_throttled", "1 if the clocks are held down for this reason.", append(gpuLabels, "reason")...)
	descECC         = fleetDesc("gpu_ecc_uncorrected_total", "Uncorrectable memory errors since the driver was loaded.", gpuLabels...)
	descRows        = fleetDesc("gpu_row_remap_failed", "1 if no spare row of memory is left.", gpuLabels...)
	descXIDs        = fleetDesc("gpu_xid_total", "XIDs since the GPU's workers are known here.", append(gpuLabels, "xid")...)
	descGPUFenced   = fleetDesc("gpu_fenced", "1 if nothing may run on a GPU.", append(gpuLabels, "reason")...)
)

var fleetDescs = []*prometheus.Desc{
	descCredits, descBounds, descInFlight, descHeadroom, descFactor, descFenced, descNVML, descAge, descMemory, descUtilization, descTemperature,
	descMemoryTemp, descPower, descPowerLimit, descClock, descThrottled, descECC, descRows, descXIDs, descGPUFenced,
}

func (fleetMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range fleetDescs {
		to <- d
	}
}

// Collect has each worker and each GPU once: a second of the same name and host
// would make the whole page fail.
func (m fleetMetrics) Collect(to chan<- prometheus.Metric) {
	if m.g.fleet == nil {
		return
	}
	type name struct{ worker, host string }
	workers := make(map[name]*subjects.Heartbeat)
	gpus := make(map[gpuKey]*subjects.GPU)
	now := time.Now()
	heartbeats := m.g.fleet.heartbeats(now)
	for i := range heartbeats {
		h := &heartbeats[i]
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
		m.g.fleet.collectHeard(to, k, labels, now)
	}
}

func gauge(to chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels []string, more ...string) {
	to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, utf8Labels(append(labels[:len(labels):len(labels)], more...))...)
}

func counter(to chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels []string, more ...string) {
	to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, utf8Labels(append(labels[:len(labels):len(labels)], more...))...)
}

// utf8Labels makes labels valid: they are a worker's words.
func utf8Labels(labels []string) []string {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "?")
	}
	return labels
}

func collectWorker(to chan<- prometheus.Metric, h *subjects.Heartbeat) {
	labels := []string{h.Name, h.Host}
	gauge(to, descInFlight, float64(h.InFlight), labels)
	if h.NVML != nil {
		gauge(to, descNVML, truth(h.NVML.Failure == nil && len(h.NVML.GPUs) > 0), labels)
	}
	if h.State == subjects.Fenced {
		gauge(to, descFenced, 1, labels, knownClass(h.FenceClass))
	} else {
		gauge(to, descFenced, 0, labels, "")
	}
	r := h.Capacity
	if r == nil {
		return
	}
	gauge(to, descCredits, float64(r.Total), labels, knownBound(r.Bound))
	gauge(to, descHeadroom, r.Headroom, labels)
	gauge(to, descFactor, r.Factor, labels)
	for _, b := range policy.Bounds {
		if v, ok := r.Terms[b]; ok {
			gauge(to, descBounds, v, labels, string(b))
		}
	}
}

// knownBound keeps the label's values few, whatever a worker of another version
// says.
func knownBound(b policy.Bound) string {
	if slices.Contains(policy.Bounds, b) {
		return string(b)
	}
	return "other"
}

// knownClass keeps the label's values few, whatever a worker of another version
// says.
func knownClass(c gpu.FenceClass) string {
	switch c {
	case gpu.FenceLost, gpu.FenceResetRequired, gpu.FenceRowRemap, gpu.FenceRecovery, gpu.FenceXID, gpu.FenceECC, subjects.FenceStalled, subjects.FenceNVML:
		return string(c)
	}
	return "other"
}

func collectGPU(to chan<- prometheus.Metric, g *subjects.GPU, labels []string) {
	if g.Fenced != "" {
		gauge(to, descGPUFenced, 1, labels, knownClass(g.FenceClass))
	} else {
		gauge(to, descGPUFenced, 0, labels, "")
	}
	if g.State == gpu.Unknown {
		return // as if nobody had read it
	}
	if m := g.Memory; m != nil {
		gauge(to, descMemory, float64(m.Total), labels, "total")
		gauge(to, descMemory, float64(m.Used), labels, "used")
		gauge(to, descMemory, float64(m.Free), labels, "free")
		if m.Reserved != nil {
			gauge(to, descMemory, float64(*m.Reserved), labels, "reserved")
		}
	}
	if g.Utilization != nil {
		gauge(to, descUtilization, float64(g.Utilization.GPU)/100, labels)
	}
	for _, v := range []struct {
		desc *prometheus.Desc
		v    *int
		unit float64
	}{{descTemperature, g.Temperature, 1}, {descMemoryTemp, g.MemoryTemperature, 1}, {descClock, g.SMClock, 1e6}} {
		if v.v != nil {
			gauge(to, v.desc, float64(*v.v)*v.unit, labels)
		}
	}
	if g.Power != nil {
		gauge(to, descPower, *g.Power, labels)
	}
	if g.PowerLimit != nil {
		gauge(to, descPowerLimit, *g.PowerLimit, labels)
	}
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

// collectHeard gives what this gateway has kept of a GPU.
func (fl *fleet) collectHeard(to chan<- prometheus.Metric, k gpuKey, labels []string, now time.Time) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	g := fl.gpus[k]
	if g == nil {
		return
	}
	if !g.heard.IsZero() {
		gauge(to, descAge, max(0, now.Sub(g.heard).Seconds()), labels)
	}
	for code, c := range g.xids {
		counter(to, descXIDs, float64(c.n), labels, strconv.Itoa(code))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// tellFenceLocked tells that a worker was fenced, or is not any more.
func (fl *fleet) tellFenceLocked(was *member, h *subjects.Heartbeat) (told bool) {
	fenced, wasFenced := h.State == subjects.Fenced, was != nil && was.beat.State == subjects.Fenced
	switch {
	case fenced && !wasFenced:
		fl.g.log.Warn("worker fenced", "worker", h.Name, "reason", h.Reason)
		fl.g.event(subjects.Event{Kind: subjects.EventWorkerFenced, Worker: h.Name,
			Text: fmt.Sprintf("worker %s fenced: %s; %d in flight", h.Name, h.Reason, h.InFlight)})
		return was != nil
	case wasFenced && h.Live():
		fl.g.log.Info("worker unfenced", "worker", h.Name)
		fl.g.event(subjects.Event{Kind: subjects.EventWorkerUnfenced, Worker: h.Name,
			Text: fmt.Sprintf("worker %s takes requests again; it was fenced: %s", h.Name, was.beat.Reason)})
		return true
	}
	return false
}
