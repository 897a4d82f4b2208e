package gateway

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// hears records the heartbeats of workers, at these times after noon.
func (m fleetMetrics) hears(after time.Duration, beats ...subjects.Heartbeat) {
	now := noon.Add(after)
	for _, h := range beats {
		m.fleet.onHeartbeat(&h, now)
		m.gpus.onHeartbeat(&h, now)
	}
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// onGPU is a worker with one GPU.
func onGPU(name, uuid string, sampled time.Duration, xids ...gpu.XID) subjects.Heartbeat {
	return subjects.Heartbeat{
		Worker: name + "-1", Name: name, Host: "h", State: subjects.Ready, InFlight: 3, Started: noon,
		Capacity: &subjects.Capacity{Total: 8, Bound: policy.BoundKV, Headroom: 0.25, Factor: 1, Terms: map[policy.Bound]float64{policy.BoundKV: 8, policy.BoundLimit: 12}},
		NVML: &subjects.NVML{Mode: "auto", GPUs: []subjects.GPU{{Snapshot: gpu.Snapshot{
			Device: gpu.Device{UUID: uuid, Name: "H100"}, At: noon.Add(sampled), State: gpu.Fresh, XIDs: xids, Temperature: new(64),
			Memory: &gpu.Memory{Total: 100, Used: 60, Free: 40},
		}}}},
	}
}

func newFleetMetrics() fleetMetrics { return fleetMetrics{newFleet(), newGPUHistory()} }

// wantMetrics wants these lines, and no others, of the metrics with these names.
func wantMetrics(t *testing.T, m fleetMetrics, names string, want string) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m)
	page := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(page, httptest.NewRequest("GET", "/metrics", nil))
	if page.Code != 200 {
		t.Fatalf("%d: %s", page.Code, page.Body)
	}
	var got, wanted []string
	for line := range strings.Lines(page.Body.String()) {
		if name, _, ok := strings.Cut(line, "{"); ok && slices.Contains(strings.Fields(names), name) {
			got = append(got, strings.TrimSpace(line))
		}
	}
	for line := range strings.Lines(strings.TrimSpace(want)) {
		wanted = append(wanted, strings.TrimSpace(line))
	}
	slices.Sort(got)
	slices.Sort(wanted)
	if !slices.Equal(got, wanted) {
		t.Errorf(" got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wanted, "\n"))
	}
}

func TestMetricsOfAWorker(t *testing.T) {
	m := newFleetMetrics()
	m.hears(0, onGPU("a", "GPU-1", 0))
	const names = "pulley_worker_credits pulley_worker_bound_requests pulley_worker_headroom_ratio pulley_worker_in_flight pulley_worker_fenced pulley_nvml_up pulley_gpu_memory_bytes pulley_gpu_temperature_celsius pulley_gpu_power_watts pulley_gpu_fenced"
	wantMetrics(t, m, names, `
		pulley_worker_credits{bound="kv",host="h",worker="a"} 8
		pulley_worker_bound_requests{bound="kv",host="h",worker="a"} 8
		pulley_worker_bound_requests{bound="limit",host="h",worker="a"} 12
		pulley_worker_headroom_ratio{host="h",worker="a"} 0.25
		pulley_worker_in_flight{host="h",worker="a"} 3
		pulley_worker_fenced{host="h",reason="",worker="a"} 0
		pulley_nvml_up{host="h",worker="a"} 1
		pulley_gpu_memory_bytes{UUID="GPU-1",gpu="0",host="h",modelName="H100",state="free"} 40
		pulley_gpu_memory_bytes{UUID="GPU-1",gpu="0",host="h",modelName="H100",state="total"} 100
		pulley_gpu_memory_bytes{UUID="GPU-1",gpu="0",host="h",modelName="H100",state="used"} 60
		pulley_gpu_temperature_celsius{UUID="GPU-1",gpu="0",host="h",modelName="H100"} 64
		pulley_gpu_fenced{UUID="GPU-1",gpu="0",host="h",modelName="H100",reason=""} 0`)

	h := onGPU("a", "GPU-1", time.Second)
	h.State, h.Reason, h.FenceClass = subjects.Fenced, "the engine has stalled: for 10s it had requests but produced no token, and its GPU was idle", subjects.FenceStalled
	h.Capacity.Bound, h.Capacity.Total = "moon", 0 // of a newer version
	h.NVML.GPUs[0].Fenced, h.NVML.GPUs[0].FenceClass, h.NVML.GPUs[0].State = "XID 79 (fallen off the bus)", gpu.FenceXID, gpu.Unknown
	m.hears(time.Second, h)
	wantMetrics(t, m, "pulley_worker_credits pulley_worker_fenced pulley_gpu_fenced pulley_gpu_temperature_celsius", `
		pulley_worker_credits{bound="other",host="h",worker="a"} 0
		pulley_worker_fenced{host="h",reason="stalled",worker="a"} 1
		pulley_gpu_fenced{UUID="GPU-1",gpu="0",host="h",modelName="H100",reason="xid"} 1`)

	m.fleet.onLeft(h.Worker)
	m.gpus.keep(m.fleet.heartbeats())
	left := len(m.gpus.gpus)
	wantMetrics(t, m, names+" pulley_gpu_xid_total", "")
	if left != 0 {
		t.Errorf("%d GPUs are kept of a worker that is gone", left)
	}
}

func TestMetricOfAWorkersState(t *testing.T) {
	for state, want := range map[subjects.State]string{subjects.Ready: "ready", subjects.Busy: "busy", subjects.Down: "down", subjects.Fenced: "fenced", "asleep": "other"} {
		m := newFleetMetrics()
		h := onGPU("a", "GPU-1", 0)
		h.State, h.FenceClass = state, subjects.FenceFrozen
		m.hears(0, h)
		fence := `pulley_worker_fenced{host="h",reason="",worker="a"} 0`
		if state == subjects.Fenced {
			fence = `pulley_worker_fenced{host="h",reason="frozen",worker="a"} 1`
		}
		wantMetrics(t, m, "pulley_worker_state pulley_worker_fenced", `
			pulley_worker_state{host="h",state="`+want+`",worker="a"} 1
			`+fence)
	}
}

// Two workers of a name, or of a GPU, are one line each: a page with a line twice
// is refused whole.
func TestMetricsNameEverythingOnce(t *testing.T) {
	m := newFleetMetrics()
	old, again, other := onGPU("a", "GPU-1", 0), onGPU("a", "GPU-1", time.Second), onGPU("b", "GPU-1", 0)
	again.Worker, again.Started, again.InFlight = "a-2", noon.Add(time.Minute), 5
	m.hears(0, old, again, other)
	wantMetrics(t, m, "pulley_worker_in_flight pulley_gpu_temperature_celsius", `
		pulley_worker_in_flight{host="h",worker="a"} 5
		pulley_worker_in_flight{host="h",worker="b"} 3
		pulley_gpu_temperature_celsius{UUID="GPU-1",gpu="0",host="h",modelName="H100"} 64`)
}

// An XID counts once, however often and by however many workers it is told, and
// goes on counting when the oldest are told no more.
func TestXIDsAreCountedOnce(t *testing.T) {
	m := newFleetMetrics()
	at := func(after time.Duration, code int) gpu.XID { return gpu.XID{At: noon.Add(after), Code: code} }
	for _, h := range []subjects.Heartbeat{
		onGPU("a", "GPU-1", 0, at(0, 31)),
		onGPU("a", "GPU-1", 0, at(0, 31)),
		onGPU("b", "GPU-1", 0, at(20*time.Millisecond, 31)),
		onGPU("a", "GPU-1", 0, at(0, 31), at(time.Minute, 31), at(time.Minute, 79)),
		onGPU("a", "GPU-1", 0, at(time.Minute, 31), at(time.Minute, 79)),
		onGPU("a", "GPU-1", 0, at(time.Hour, 31)),
	} {
		m.hears(0, h)
	}
	wantMetrics(t, m, "pulley_gpu_xid_total", `
		pulley_gpu_xid_total{UUID="GPU-1",gpu="0",host="h",modelName="H100",xid="31"} 3
		pulley_gpu_xid_total{UUID="GPU-1",gpu="0",host="h",modelName="H100",xid="79"} 1`)
}
