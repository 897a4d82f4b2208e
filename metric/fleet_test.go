package metric

import (
	"fmt"
	"maps"
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

// workers are the last heartbeats of some workers, by id.
type workers map[string]*subjects.Heartbeat

func (w workers) heartbeats() []*subjects.Heartbeat { return slices.Collect(maps.Values(w)) }

// fleet has the metrics of workers.
type fleet struct {
	Fleet
	workers workers
	gpus    *GPUHistory
}

func newFleet() fleet {
	w, gpus := make(workers), NewGPUHistory()
	return fleet{Fleet{Beats: w.heartbeats, GPUs: gpus}, w, gpus}
}

// hears records the heartbeats of workers, at these times after noon.
func (m fleet) hears(after time.Duration, beats ...subjects.Heartbeat) {
	now := noon.Add(after)
	for _, h := range beats {
		m.workers[h.Worker] = &h
		m.gpus.OnHeartbeat(&h, now)
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

// wantMetrics wants these lines, and no others, of the metrics with these names.
func wantMetrics(t *testing.T, m fleet, names string, want string) {
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
	m := newFleet()
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

	delete(m.workers, h.Worker)
	m.gpus.Keep(m.workers.heartbeats())
	left := len(m.gpus.gpus)
	wantMetrics(t, m, names+" pulley_gpu_xid_total", "")
	if left != 0 {
		t.Errorf("%d GPUs are kept of a worker that is gone", left)
	}
}

// oneHot are the lines of the state of worker a.
func oneHot(state string) (lines string) {
	for _, s := range []string{"ready", "paused", "busy", "down", "fenced", "cordoned", "draining", "lost", "other"} {
		lines += fmt.Sprintf("pulley_worker_state{host=\"h\",state=%q,worker=\"a\"} %v\n", s, Truth(s == state))
	}
	return lines
}

func TestMetricOfAWorkersState(t *testing.T) {
	for state, want := range map[subjects.State]string{subjects.Ready: "ready", subjects.Busy: "busy", subjects.Down: "down", subjects.Fenced: "fenced", subjects.Cordoned: "cordoned", subjects.Draining: "draining", subjects.Left: "draining", "asleep": "other", "lost": "other"} {
		m := newFleet()
		h := onGPU("a", "GPU-1", 0)
		h.State, h.FenceClass = state, subjects.FenceFrozen
		m.hears(0, h)
		fence := `pulley_worker_fenced{host="h",reason="",worker="a"} 0`
		if state == subjects.Fenced {
			fence = `pulley_worker_fenced{host="h",reason="frozen",worker="a"} 1`
		}
		wantMetrics(t, m, "pulley_worker_state pulley_worker_fenced", `
			`+oneHot(want)+fence)
	}
}

// Two workers of a name, or of a GPU, are one line each: a page with a line twice
// is refused whole.
func TestMetricsNameEverythingOnce(t *testing.T) {
	m := newFleet()
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
	m := newFleet()
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

// A worker that accepts nothing has no capacity, whatever was measured of its engine before.
func TestNothingIsFreeAtAWorkerThatAcceptsNothing(t *testing.T) {
	for state, bound := range map[subjects.State]string{subjects.Down: "down", subjects.Cordoned: "cordoned", subjects.Draining: "draining", subjects.Fenced: "kv"} {
		m := newFleet()
		h := onGPU("a", "GPU-1", 0)
		h.State = state
		h.EngineStatus = &subjects.EngineStatus{Running: new(0), Waiting: new(0), KVUsage: new(0.0)}
		m.hears(0, h)
		engine := ""
		if state != subjects.Down { // what it said before it died is no news
			engine = `pulley_worker_engine_kv_usage_ratio{host="h",worker="a"} 0`
		}
		wantMetrics(t, m, "pulley_worker_credits pulley_worker_headroom_ratio pulley_worker_engine_kv_usage_ratio", `
			pulley_worker_credits{bound="`+bound+`",host="h",worker="a"} 0
			pulley_worker_headroom_ratio{host="h",worker="a"} 0
			`+engine)
	}
}

// A lost worker has nothing but its state, until one of its name is back.
func TestMetricsOfALostWorker(t *testing.T) {
	m := newFleet()
	lost := []*subjects.Heartbeat{new(onGPU("a", "GPU-1", 0)), new(onGPU("a", "GPU-1", time.Second))}
	m.Lost = func() []*subjects.Heartbeat { return lost }
	wantMetrics(t, m, "pulley_worker_state pulley_worker_credits pulley_worker_in_flight", oneHot("lost"))
	m.hears(0, onGPU("a", "GPU-1", 0))
	wantMetrics(t, m, "pulley_worker_state", oneHot("ready"))
}

func TestGPUsAsDCGMExporterHasThem(t *testing.T) {
	m := newFleet()
	h := onGPU("a", "GPU-1", 0, gpu.XID{At: noon, Code: 79}, gpu.XID{At: noon.Add(time.Minute), Code: 31})
	g := &h.NVML.GPUs[0]
	g.Index, g.WatchesXIDs, g.Memory = 2, true, &gpu.Memory{Total: 80 << 30, Used: 70 << 30, Free: 9 << 30, Reserved: new(uint64(1 << 30))}
	g.Utilization, g.Power, g.SMClock = &gpu.Utilization{GPU: 97, Memory: 40}, new(655.21), new(1980)
	m.hears(0, h)
	const labels = `{Hostname="h",UUID="GPU-1",device="nvidia2",gpu="2",modelName="H100"}`
	wantMetrics(t, m, "DCGM_FI_DEV_GPU_UTIL DCGM_FI_DEV_MEM_COPY_UTIL DCGM_FI_DEV_FB_USED DCGM_FI_DEV_FB_FREE DCGM_FI_DEV_FB_RESERVED DCGM_FI_DEV_GPU_TEMP DCGM_FI_DEV_POWER_USAGE DCGM_FI_DEV_SM_CLOCK DCGM_FI_DEV_XID_ERRORS DCGM_FI_DEV_ROW_REMAP_FAILURE",
		strings.ReplaceAll(`
		DCGM_FI_DEV_GPU_UTIL{} 97
		DCGM_FI_DEV_MEM_COPY_UTIL{} 40
		DCGM_FI_DEV_FB_USED{} 71680
		DCGM_FI_DEV_FB_FREE{} 9216
		DCGM_FI_DEV_FB_RESERVED{} 1024
		DCGM_FI_DEV_GPU_TEMP{} 64
		DCGM_FI_DEV_POWER_USAGE{} 655.21
		DCGM_FI_DEV_SM_CLOCK{} 1980
		DCGM_FI_DEV_XID_ERRORS{} 31`, "{}", labels))
}

// Of the values of a label that clients choose, the first thousand are kept apart.
func TestBounded(t *testing.T) {
	var b Bounded
	for i := range MaxValues {
		if v := fmt.Sprint("tenant ", i); b.Value(v) != v {
			t.Fatalf("value %d is %q", i, b.Value(v))
		}
	}
	if got := []string{b.Value("one more"), b.Value("tenant 0"), b.Value("yet another")}; !slices.Equal(got, []string{"other", "tenant 0", "other"}) {
		t.Errorf("got %q", got)
	}
}
