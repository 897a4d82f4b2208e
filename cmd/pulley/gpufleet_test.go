package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// toldGPU is an H100 at work as a worker tells of it.
func toldGPU(n int, edit ...func(*subjects.GPU)) subjects.GPU {
	id := string(rune('0' + n))
	g := subjects.GPU{Snapshot: gpu.Snapshot{
		Device: gpu.Device{UUID: "GPU-1f2e3d4" + id + "-0000", Index: n, Name: "NVIDIA H100 80GB HBM3"},
		At:     time.Now(), State: gpu.Fresh, WatchesXIDs: true,
		Memory:      &gpu.Memory{Total: 80 << 30, Used: 72 << 30, Free: 8 << 30},
		Utilization: &gpu.Utilization{GPU: 97}, Temperature: new(64), Power: new(655.2), Throttle: new(gpu.ThrottlePowerCap),
	}}
	for _, e := range edit {
		e(&g)
	}
	return g
}

// beatOn is a worker's word of its GPUs.
func beatOn(host, name string, state subjects.State, gpus ...subjects.GPU) subjects.Heartbeat {
	h := beat(name, state, 3, "llama")
	h.Host, h.NVML = host, &subjects.NVML{Mode: "auto", Driver: "580.65.06", GPUs: gpus}
	return h
}

func lost(g *subjects.GPU) {
	*g = subjects.GPU{Snapshot: gpu.Snapshot{Device: g.Device, At: g.At, State: gpu.Fresh, Lost: "is lost", WatchesXIDs: true,
		XIDs: []gpu.XID{{Seq: 1, At: g.At, Code: 79}}}, Fenced: "XID 79 (fallen off the bus)", Since: g.At}
}

func hot(g *subjects.GPU) {
	g.Throttle, g.Temperature, g.Strain = new(gpu.ThrottleHardwareHeat), new(91), policy.Hot.String()
}

// aFleet has two workers on one host that share a GPU, one that is fenced, and
// hosts that say nothing.
func aFleet() []subjects.Heartbeat {
	bare, mac, off := beatOn("node-3", "c", subjects.Ready), beatOn("node-4", "d", subjects.Ready), beat("e", subjects.Ready, 0, "llama")
	bare.NVML.Failure = &gpu.Failure{Kind: gpu.NoLibrary, Container: true}
	mac.NVML.Failure = &gpu.Failure{Kind: gpu.NoGPU}
	off.Host = "node-5"
	fenced := beatOn("node-2", "b", subjects.Fenced, toldGPU(2, lost))
	fenced.Reason = "GPU 2: XID 79 (fallen off the bus)"
	stale := toldGPU(3, func(g *subjects.GPU) { g.State, g.At = gpu.Stale, g.At.Add(-10*time.Second) })
	return []subjects.Heartbeat{
		beatOn("node-1", "a1", subjects.Ready, toldGPU(0), toldGPU(1, hot)), beatOn("node-1", "a2", subjects.Ready, toldGPU(1, hot), stale),
		fenced, bare, mac, off,
	}
}

func TestGPUsOfTheFleet(t *testing.T) {
	s := newSite(t)
	s.answer()
	s.story(step{"gpu ls", 0, "no GPUs: no worker tells of one\n"}, step{"gpu info", 3, "pulley: no GPUs: no worker tells of one; .*"})
	s.workers = aFleet()
	s.story(
		step{"gpu ls", 0, `HOST    GPU  NAME              MEM GIB  UTIL  TEMP  POWER  STATE                                WORKERS
node-1  0    H100 80GB HBM3  72.0/80.0   97%  64°C  655 W  ok                                   a1
node-1  1    H100 80GB HBM3  72.0/80.0   97%  91°C  655 W  throttled \(hw_thermal\)               a1, a2
node-1  3    H100 80GB HBM3  72.0/80.0   97%  64°C  655 W  stale                                a2
node-2  2    H100 80GB HBM3          -     -     -      -  fenced: XID 79 \(fallen off the bus\)  b

node-1/1  throttled: hw_thermal
  remedy: see to its cooling .*
node-2/2  fenced: XID 79 \(fallen off the bus\)
  remedy: see 'dmesg \| grep -i nvrm'; reset the GPU .*
node-3  NVML, the NVIDIA driver's library libnvidia-ml.so.1, is not here
  remedy: start the container with the NVIDIA runtime, .*
node-4  there is no NVIDIA GPU here
  remedy: .*
node-5  its workers do not ask NVML
`},
		step{"gpu info node-2/2", 0, `gpu      node-2/2\nstate    fenced: XID 79 \(fallen off the bus\)\nworkers  b\nfenced   .* ago, at .*remedy   see 'dmesg .*driver   580.65.06\n.*health\nerror  .* XID 79 \(fallen off the bus\)\n`},
		step{"gpu info GPU-1f2e3d40", 0, `gpu      node-1/0\nstate    ok\n.*`},
		step{"gpu info node-3", 0, `gpu      node-3\nstate    unknown: NVML, .* is not here\nworkers  c\nremedy   start the container .*`},
		step{"gpu info node-1", 2, `pulley: GPU node-1: which of node-1/0, node-1/1, node-1/3\?\n.*`},
		step{"gpu info node-9/0", 3, `pulley: no gpu "node-9/0"; .*`},
		step{"gpu info", 2, `pulley: name the GPU: which of node-1/0, .*`},
	)
	var list []struct {
		Host, Status, Fenced, UUID string
		Workers                    []string
		Failure                    *gpu.Failure
		Memory                     *gpu.Memory
	}
	if err := json.Unmarshal([]byte(s.ok("gpu ls -o json")), &list); err != nil || len(list) != 7 {
		t.Fatalf("%v: %+v", err, list)
	}
	if g := list[1]; g.Status != "throttled" || strings.Join(g.Workers, " ") != "a1 a2" || g.Memory == nil {
		t.Errorf("the second is %+v", g)
	}
	if g := list[3]; g.Status != "fenced" || g.Fenced == "" || g.UUID != "GPU-1f2e3d42-0000" {
		t.Errorf("the fourth is %+v", g)
	}
	if g := list[4]; g.Failure == nil || g.Failure.Kind != gpu.NoLibrary || g.UUID != "" {
		t.Errorf("the fifth is %+v", g)
	}
	t.Setenv("PULLEY_NATS", s.url) // as a shell would have it
	_, names, _ := runRoot(newRootCommand(), "__complete", "gpu", "info", "")
	if !strings.HasPrefix(names, "node-1/0\tH100 80GB HBM3, ok\n") || !strings.Contains(names, "node-2/2\tH100 80GB HBM3, fenced\n") {
		t.Errorf("completion: %q", names)
	}
}

// On a terminal of 80 columns all of them fit, and what is cut is told below.
func TestGPUsFitATerminal(t *testing.T) {
	p := page{terminal: terminal{width: 80}}
	printFleetGPUs(&p, gpusOf(aFleet()))
	for line := range strings.Lines(p.b.String()) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, want := range []string{"WORKERS\n", "a1, a2\n", "node-2/2  fenced: XID 79 (fallen off the bus)\n"} {
		if !strings.Contains(p.b.String(), want) {
			t.Errorf("no %q in\n%s", want, &p.b)
		}
	}
}

// A fence that one worker has seen the reason of stands, whatever another says.
func TestGPUIsFencedIfAnyWorkerSaysSo(t *testing.T) {
	fenced := toldGPU(0, lost)
	later := toldGPU(0, func(g *subjects.GPU) { g.At = g.At.Add(time.Second) })
	for _, list := range [][]subjects.Heartbeat{
		{beatOn("n", "a", subjects.Ready, later), beatOn("n", "b", subjects.Fenced, fenced)},
		{beatOn("n", "b", subjects.Fenced, fenced), beatOn("n", "a", subjects.Ready, later)},
	} {
		got := gpusOf(list)
		if len(got) != 1 || got[0].Status != "fenced" || got[0].Memory == nil || got[0].Since != fenced.Since {
			t.Errorf("%+v", got)
		}
	}
}

func TestWorkerRoomInWords(t *testing.T) {
	h := beatOn("node-1", "gpu-1", subjects.Ready, toldGPU(0), toldGPU(1, hot))
	h.InFlight = 12
	h.Capacity = &subjects.Capacity{Profile: "balanced", Total: 16, Bound: policy.BoundKV, Headroom: 0.08, Factor: 1, Engine: "fresh", GPU: "fresh",
		Terms: map[policy.Bound]float64{policy.BoundKV: 16, policy.BoundLimit: 21.7, policy.BoundSlots: 64}, Limit: 21.7, AloneMS: 8.24, PaceMS: 20.6, TargetMS: 24.7,
		Decisions: []subjects.Decision{{At: noon, Text: "limit 20 → 21: grew"}}}
	h.EngineStatus = &subjects.EngineStatus{Dialect: "vllm", At: time.Now(), Running: new(12), Waiting: new(0), KVUsage: new(0.83), KVTokens: new(int64(480_000))}
	const fresh = `
room
in use          12 of 16: the KV cache has no room for more
bounds          kv 16, limit 21, slots 64
headroom        8%
profile         balanced
limit           21, found by trying
token time      8.2 ms alone, 21 ms now, 25 ms aimed at
engine metrics  fresh, 0.0s old
GPU samples     fresh

the engine says
dialect   vllm
running   12
waiting   0
KV cache  83% of 480000 tokens in use

GPUs
0       ok, H100 80GB HBM3, 72.0/80.0 GiB, 97% busy, 64°C, 655 W
1       throttled: hw_thermal, H100 80GB HBM3, 72.0/80.0 GiB, 97% busy, 91°C, 655 W
remedy  see to its cooling`
	tests := map[string]struct {
		edit func(*subjects.Heartbeat)
		want []string
		not  string
	}{
		"all is known": {func(*subjects.Heartbeat) {}, []string{fresh, "\nlast decisions\n12:00:00  limit 20 → 21: grew\n"}, "preempted"},
		"nothing is":   {func(h *subjects.Heartbeat) { h.Capacity, h.EngineStatus, h.NVML = nil, nil, nil }, []string{"slots    8, 12 running"}, "room"},
		"not tried":    {func(h *subjects.Heartbeat) { h.Capacity.Bound, h.Capacity.PaceMS = policy.BoundLimit, 0 }, []string{"12 of 16: a first guess", "21, not tried yet\n", "8.2 ms alone, 25 ms aimed at\n"}, "0 ms now"},
		"a hot GPU": {func(h *subjects.Heartbeat) {
			h.Capacity.Bound, h.Capacity.Why, h.Capacity.Factor = policy.BoundThrottle, policy.Hot.String(), 0.5
		}, []string{"12 of 16: the GPU slows itself down for heat or power\n", "held back       to 50% of its room\n"}, ""},
		"stale":      {func(h *subjects.Heartbeat) { h.Capacity.Engine, h.Capacity.GPU = "stale", "stale" }, []string{"stale: no more than it had when they were read\n", "stale: the limit does not grow"}, ""},
		"no metrics": {func(h *subjects.Heartbeat) { h.Capacity.Engine, h.Capacity.GPU, h.NVML = "missing", "missing", nil }, []string{"none: the worker goes by its own count of requests\n", "none: NVML is off\n"}, "GPUs\n"},
		"infeasible": {func(h *subjects.Heartbeat) { h.Capacity.Infeasible = true }, []string{"objective       cannot be met: a request alone is slower than that\n"}, ""},
		"fenced": {func(h *subjects.Heartbeat) {
			h.Capacity.Bound, h.Capacity.Why, h.Capacity.Total = policy.BoundFence, "GPU 1: XID 79", 0
		}, []string{"12 of 0: nothing may start: GPU 1: XID 79\n"}, "headroom"},
		"fixed":           {func(h *subjects.Heartbeat) { h.Capacity.Profile, h.Capacity.Limit = "fixed", 0 }, []string{"profile         fixed\n"}, "limit  "},
		"another version": {func(h *subjects.Heartbeat) { h.Capacity.Bound = "moon" }, []string{"12 of 16: moon\n"}, ""},
		"NVML fails": {func(h *subjects.Heartbeat) {
			h.NVML = &subjects.NVML{Mode: "auto", Failure: &gpu.Failure{Kind: gpu.Mismatch}}
		},
			[]string{"\nGPUs\nNVML    NVML and the loaded NVIDIA driver are of different versions\nremedy  the driver was upgraded"}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := h
			room := *h.Capacity
			h.Capacity = &room
			tt.edit(&h)
			var p page
			printWorker(&p, h)
			for _, want := range tt.want {
				if !strings.Contains(p.b.String(), want) {
					t.Errorf("no %q in\n%s", want, &p.b)
				}
			}
			if tt.not != "" && strings.Contains(p.b.String(), tt.not) {
				t.Errorf("%q in\n%s", tt.not, &p.b)
			}
		})
	}
}

func TestWorkersWithRoom(t *testing.T) {
	s := newSite(t)
	s.answer()
	a, b := beatOn("node-1", "a", subjects.Ready, toldGPU(0)), beatOn("node-2", "b", subjects.Fenced, toldGPU(2, lost))
	a.Capacity = &subjects.Capacity{Profile: "balanced", Total: 16, Bound: policy.BoundKV, Headroom: 0.08, Limit: 21.7}
	b.Reason = "GPU 2: XID 79 (fallen off the bus)"
	b.Capacity = &subjects.Capacity{Profile: "latency", Bound: policy.BoundFence}
	b.Slots, b.InFlight = 0, 0
	s.workers = []subjects.Heartbeat{a, b}
	s.story(step{"worker ls", 0, `NAME  STATE   ENGINE  IN USE  BOUND  RUNG  DONE  FAILED  POOLS  REASON
a     ready   vllm      3/16  kv        0    12       0  llama  -
b     fenced  vllm       0/0  fence     0    12       0  llama  GPU 2: XID 79 \(fallen off the bus\)\n`})
	wide := s.ok("worker ls -o wide")
	for _, want := range []string{"HEADROOM  PROFILE   LIMIT  GPUS", "8%  balanced     21  0 ", "0%  latency       -  2 fenced"} {
		if !strings.Contains(wide, want) {
			t.Errorf("no %q in\n%s", want, wide)
		}
	}
}

// TestWorkersWithMuchToTell has more than fits into a message, as a hundred
// workers with eight GPUs each have.
func TestWorkersWithMuchToTell(t *testing.T) {
	url, _ := startBroker(t, broker.Config{})
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	runGateway(t, nc)
	var list []subjects.Heartbeat
	const n = 20
	for began := time.Now(); len(list) != n; {
		if time.Since(began) > time.Minute {
			t.Fatalf("%d workers, want %d: %v", len(list), n, err)
		}
		for i := range n {
			h := beat(fmt.Sprint("w", i), subjects.Ready, 0)
			h.Reason = strings.Repeat("x", 60<<10)
			publishJSON(nc, subjects.Heartbeats(h.Worker), h)
		}
		nc.Flush()
		list, err = ask[subjects.Heartbeat](t.Context(), nc, subjects.AskWorkers, false) // a busy machine may take too long
	}
}

func runGateway(t *testing.T, nc *nats.Conn) (ingress, admin string) {
	t.Helper()
	gw, err := gateway.New(gateway.Config{}, nc)
	if err != nil {
		t.Fatal(err)
	}
	var listeners [2]net.Listener
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- gw.Run(ctx, listeners[0], listeners[1]) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return "http://" + listeners[0].Addr().String(), "http://" + listeners[1].Addr().String()
}
