package ops

import (
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func TestWorkerInfoInWords(t *testing.T) {
	h := clitest.Beat("gpu-1", subjects.Ready, 3, "llama")
	h.Pools[0] = subjects.PoolStatus{Pool: "llama", Model: "org/llama", Rung: 2, Notes: []policy.Note{{Kind: policy.NoteSlow, Text: "12ms for a token, 4.0 times the usual 3ms"}}, Mean: policy.Mean{Input: 100, Output: 50, Samples: 9},
		Curve: &policy.Curve{Prefill: &policy.Line{A: 0.05, B: 0.001}, ITL: &policy.Line{A: 0.01, B: 0.002}}}
	var p term.Page
	printWorker(&p, h)
	for _, want := range []string{
		"note            slow: 12ms for a token, 4.0 times the usual 3ms\n",
		"engine's model  org/llama\n",
		"next bid        rung 2 (0 is the lowest price, 9 the highest); expected latency 1.1 s\n",
		"first token     50 ms + 1 ms per input token\n",
		"each token      10 ms + 2 ms per request in flight\n",
		"mean request    100 tokens in, 50 out\n",
	} {
		if !strings.Contains(p.String(), want) {
			t.Errorf("worker info:\n%s\nwant %s", p.String(), want)
		}
	}
}

func TestWorkerRoomInWords(t *testing.T) {
	h := clitest.BeatOn("node-1", "gpu-1", subjects.Ready, clitest.GPU(0), clitest.GPU(1, clitest.Hot))
	h.InFlight = 12
	h.Capacity = &subjects.Capacity{Profile: "balanced", Total: 16, Bound: policy.BoundKV, Headroom: 0.08, Factor: 1, Engine: "fresh", GPU: "fresh",
		Terms: map[policy.Bound]float64{policy.BoundKV: 16, policy.BoundLimit: 21.7, policy.BoundSlots: 64}, Limit: 21.7, AloneMS: 8.24, PaceMS: 20.6, TargetMS: 24.7,
		Decisions: []subjects.Decision{{At: clitest.Noon, Text: "limit 20 → 21: grew"}}}
	h.EngineStatus = &subjects.EngineStatus{Dialect: "vllm", At: time.Now(), Running: new(12), Waiting: new(0), KVUsage: new(0.83), KVTokens: new(int64(480_000))}
	const fresh = `
capacity
in flight       12 of 16: the KV cache has no space for more
bounds          kv 16, limit 21, slots 64
headroom        8%
profile         balanced
limit           21, measured
token time      8.2 ms alone, 21 ms now, 25 ms target
engine metrics  fresh, 0.0s old
GPU samples     fresh

engine metrics
dialect   vllm
running   12
waiting   0
KV cache  83% of 480000 tokens in use

GPUs
0       ok, H100 80GB HBM3, 72.0/80.0 GiB, 97% busy, 64°C, 655 W
1       throttled: hw_thermal, H100 80GB HBM3, 72.0/80.0 GiB, 97% busy, 91°C, 655 W
remedy  check its cooling`
	tests := map[string]struct {
		edit func(*subjects.Heartbeat)
		want []string
		not  string
	}{
		"all is known": {func(*subjects.Heartbeat) {}, []string{fresh, "\nlatest decisions\n12:00:00  limit 20 → 21: grew\n"}, "preemptions"},
		"nothing is":   {func(h *subjects.Heartbeat) { h.Capacity, h.EngineStatus, h.NVML = nil, nil, nil }, []string{"slots    8, 12 in flight"}, "capacity"},
		"not tried":    {func(h *subjects.Heartbeat) { h.Capacity.Bound, h.Capacity.PaceMS = policy.BoundLimit, 0 }, []string{"12 of 16: initial limit", "21, initial value\n", "8.2 ms alone, 25 ms target\n"}, "0 ms now"},
		"a hot GPU": {func(h *subjects.Heartbeat) {
			h.Capacity.Bound, h.Capacity.Why, h.Capacity.Factor = policy.BoundThrottle, policy.Hot.String(), 0.5
		}, []string{"12 of 16: the GPU slows itself down for heat or power\n", "reduced         to 50% by the state of the GPU\n"}, ""},
		"stale":      {func(h *subjects.Heartbeat) { h.Capacity.Engine, h.Capacity.GPU = "stale", "stale" }, []string{"stale: capacity is not raised until they are fresh\n", "stale: the limit does not grow"}, ""},
		"no metrics": {func(h *subjects.Heartbeat) { h.Capacity.Engine, h.Capacity.GPU, h.NVML = "missing", "missing", nil }, []string{"none: the worker relies on its own count of requests\n", "none: NVML is off\n"}, "GPUs\n"},
		"infeasible": {func(h *subjects.Heartbeat) { h.Capacity.Infeasible = true }, []string{"objective       cannot be met: even a request that runs alone is slower\n"}, ""},
		"fenced": {func(h *subjects.Heartbeat) {
			h.Capacity.Bound, h.Capacity.Why, h.Capacity.Total = policy.BoundFence, "GPU 1: XID 79", 0
		}, []string{"12 of 0: no request may start: GPU 1: XID 79\n"}, "headroom"},
		"fixed":           {func(h *subjects.Heartbeat) { h.Capacity.Profile, h.Capacity.Limit = "fixed", 0 }, []string{"profile         fixed\n"}, "limit  "},
		"another version": {func(h *subjects.Heartbeat) { h.Capacity.Bound = "moon" }, []string{"12 of 16: moon\n"}, ""},
		"NVML fails": {func(h *subjects.Heartbeat) {
			h.NVML = &subjects.NVML{Mode: "auto", Failure: &gpu.Failure{Kind: gpu.Mismatch}}
		},
			[]string{"\nGPUs\nNVML    NVML and the loaded NVIDIA driver have different versions\nremedy  the driver was upgraded"}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := h
			room := *h.Capacity
			h.Capacity = &room
			tt.edit(&h)
			var p term.Page
			printWorker(&p, h)
			for _, want := range tt.want {
				if !strings.Contains(p.String(), want) {
					t.Errorf("no %q in\n%s", want, p.String())
				}
			}
			if tt.not != "" && strings.Contains(p.String(), tt.not) {
				t.Errorf("%q in\n%s", tt.not, p.String())
			}
		})
	}
}
