package metric

import (
	"cmp"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/subjects"
)

// gpuKey names a GPU, which several workers of a host may report.
type gpuKey struct{ host, device string }

func keyOf(host string, s *gpu.Snapshot) gpuKey { return gpuKey{host, cmp.Or(s.UUID, s.Label())} }

// GPUHistory keeps what a single heartbeat does not contain: when each GPU was last sampled, and how many XIDs it had.
type GPUHistory struct {
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

// NewGPUHistory makes an empty one.
func NewGPUHistory() *GPUHistory { return &GPUHistory{gpus: make(map[gpuKey]*gpuRecord)} }

// OnHeartbeat takes in the GPUs of a heartbeat that has come now.
func (g *GPUHistory) OnHeartbeat(h *subjects.Heartbeat, now time.Time) {
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

// Keep forgets the GPUs that none of these heartbeats reports.
func (g *GPUHistory) Keep(beats []*subjects.Heartbeat) {
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
func (g *GPUHistory) record(k gpuKey) gpuRecord {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.gpus[k]
	if r == nil {
		return gpuRecord{}
	}
	return gpuRecord{sampled: r.sampled, received: r.received, xids: maps.Clone(r.xids)}
}

var gpuMetrics = []*Metric{
	NVMLAge, GPUMemory, GPUUtilization, GPUTemperature, GPUMemoryTemp, GPUPower, GPUPowerLimit, GPUClock, GPUThrottled, GPUECC, GPURows, GPUXIDs, GPUFenced,
	DCGMUtilization, DCGMMemoryUtil, DCGMUsed, DCGMFree, DCGMReserved, DCGMTemperature, DCGMMemoryTemp, DCGMPower, DCGMClock, DCGMMemoryClock, DCGMXID,
	DCGMECC, DCGMRows, DCGMSoftRows, DCGMRowFailure,
}

func collectGPU(to chan<- prometheus.Metric, g *subjects.GPU, r gpuRecord, labels []string, now time.Time) {
	with := func(more string) []string { return append(labels[:len(labels):len(labels)], more) }
	GPUFenced.Send(to, Truth(g.Fenced != ""), with(fenceLabel(g.Fenced != "", g.FenceClass))...)
	if !r.received.IsZero() {
		NVMLAge.Send(to, max(0, now.Sub(r.received).Seconds()), labels...)
	}
	for code, c := range r.xids {
		GPUXIDs.Send(to, float64(c.n), with(strconv.Itoa(code))...)
	}
	if g.State == gpu.Unknown {
		return // its values are too old
	}
	if m := g.Memory; m != nil {
		GPUMemory.Send(to, float64(m.Total), with("total")...)
		GPUMemory.Send(to, float64(m.Used), with("used")...)
		GPUMemory.Send(to, float64(m.Free), with("free")...)
		optional(to, GPUMemory, m.Reserved, 1, with("reserved")...)
	}
	if g.Utilization != nil {
		GPUUtilization.Send(to, float64(g.Utilization.GPU)/100, labels...)
	}
	optional(to, GPUTemperature, g.Temperature, 1, labels...)
	optional(to, GPUMemoryTemp, g.MemoryTemperature, 1, labels...)
	optional(to, GPUClock, g.SMClock, 1e6, labels...)
	optional(to, GPUPower, g.Power, 1, labels...)
	optional(to, GPUPowerLimit, g.PowerLimit, 1, labels...)
	if g.Throttle != nil {
		for bit, reason := range gpu.AllThrottle() {
			GPUThrottled.Send(to, Truth(*g.Throttle&bit != 0), with(reason)...)
		}
	}
	if g.ECC != nil {
		optional(to, GPUECC, g.ECC.Uncorrected, 1, labels...)
	}
	if g.Rows != nil {
		GPURows.Send(to, Truth(g.Rows.Failed), labels...)
	}
}

// collectDCGM gives a GPU once more, as dcgm-exporter does.
func collectDCGM(to chan<- prometheus.Metric, g *subjects.GPU, r gpuRecord, host string) {
	if g.State == gpu.Unknown {
		return
	}
	labels := func() []string { return []string{g.Label(), g.UUID, "nvidia" + strconv.Itoa(g.Index), g.Name, host} }
	if g.Utilization != nil {
		DCGMUtilization.Send(to, float64(g.Utilization.GPU), labels()...)
		DCGMMemoryUtil.Send(to, float64(g.Utilization.Memory), labels()...)
	}
	const mebibyte = 1.0 / (1 << 20)
	if m := g.Memory; m != nil {
		DCGMUsed.Send(to, float64(m.Used)*mebibyte, labels()...)
		DCGMFree.Send(to, float64(m.Free)*mebibyte, labels()...)
		optional(to, DCGMReserved, m.Reserved, mebibyte, labels()...)
	}
	optional(to, DCGMTemperature, g.Temperature, 1, labels()...)
	optional(to, DCGMMemoryTemp, g.MemoryTemperature, 1, labels()...)
	optional(to, DCGMPower, g.Power, 1, labels()...)
	optional(to, DCGMClock, g.SMClock, 1, labels()...)
	optional(to, DCGMMemoryClock, g.MemoryClock, 1, labels()...)
	if g.WatchesXIDs {
		DCGMXID.Send(to, float64(r.lastXID()), labels()...)
	}
	if g.ECC != nil {
		optional(to, DCGMECC, g.ECC.Uncorrected, 1, labels()...)
	}
	if g.Rows != nil {
		DCGMRows.Send(to, float64(g.Rows.Uncorrectable), labels()...)
		DCGMSoftRows.Send(to, float64(g.Rows.Correctable), labels()...)
		DCGMRowFailure.Send(to, Truth(g.Rows.Failed), labels()...)
	}
}

// lastXID is the code of the last XID; 0 if there was none.
func (r *gpuRecord) lastXID() (code int) {
	var last time.Time
	for c, x := range r.xids {
		if x.last.After(last) || x.last.Equal(last) && c > code {
			code, last = c, x.last
		}
	}
	return code
}
