package clitest

import (
	"fmt"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// Noon is the time of SnapshotAtNoon.
var Noon = time.Date(2026, 5, 4, 12, 0, 0, 0, time.Local)

// Beat is the heartbeat of a worker.
func Beat(name string, state subjects.State, inFlight int, pools ...string) subjects.Heartbeat {
	h := subjects.Heartbeat{Worker: name + "-00ff", Name: name, Engine: "vllm", URL: "http://10.0.0.7:8000", Host: "node-7", Version: "1.0", Started: time.Now().Add(-time.Hour),
		State: state, Slots: 8, InFlight: inFlight, Weight: 1, Done: 12}
	for i, p := range pools {
		h.Pools = append(h.Pools, subjects.PoolStatus{Pool: p, Rung: i})
	}
	return h
}

// GPU is a busy H100 as a worker reports it.
func GPU(n int, edit ...func(*subjects.GPU)) subjects.GPU {
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

// BeatOn is the heartbeat of a worker with GPUs.
func BeatOn(host, name string, state subjects.State, gpus ...subjects.GPU) subjects.Heartbeat {
	h := Beat(name, state, 3, "llama")
	h.Host, h.NVML = host, &subjects.NVML{Mode: "auto", Driver: "580.65.06", GPUs: gpus}
	return h
}

// Lost makes a GPU one that has fallen off the bus.
func Lost(g *subjects.GPU) {
	*g = subjects.GPU{Snapshot: gpu.Snapshot{Device: g.Device, At: g.At, State: gpu.Fresh, Lost: "is lost", WatchesXIDs: true,
		XIDs: []gpu.XID{{Seq: 1, At: g.At, Code: 79}}}, Fenced: "XID 79 (fallen off the bus)", Since: g.At}
}

// Hot makes a GPU one that is throttled by heat.
func Hot(g *subjects.GPU) {
	g.Throttle, g.Temperature, g.Strain = new(gpu.ThrottleHardwareHeat), new(91), policy.Hot.String()
}

// SnapshotAtNoon has two gateways and four workers, with some of everything that a screen can show.
func SnapshotAtNoon() fleet.Snapshot {
	serves := func(pools ...string) (list []subjects.PoolStatus) {
		for i, p := range pools {
			list = append(list, subjects.PoolStatus{Pool: p, Rung: 2 + i, Mean: policy.Mean{Input: 100, Output: 50, Samples: 9},
				Curve: &policy.Curve{Prefill: &policy.Line{A: 0.1}, ITL: &policy.Line{A: 0.01}}})
		}
		return list
	}
	worker := func(name string, state subjects.State, inFlight, slots int, pools ...string) fleet.WorkerStatus {
		return fleet.WorkerStatus{Heartbeat: subjects.Heartbeat{
			Worker: subjects.Token(name) + "-0a1b2c", Name: name, Engine: "vllm", URL: "http://" + name, Host: "host-" + name,
			State: state, Slots: slots, InFlight: inFlight, Weight: 1, Started: Noon.Add(-time.Hour), Pools: serves(pools...), Done: 100, Failed: 3,
		}}
	}
	s := fleet.Snapshot{
		At: Noon, Server: "nats://broker-1:4222", Since: Noon.Add(-time.Minute),
		Gateways: []string{"gw-b", "gw-a"},
		Workers: []fleet.WorkerStatus{
			worker("fast", subjects.Ready, 6, 16, "llama-70b", "qwen"), worker("slow", subjects.Down, 0, 4, "llama-70b"),
			worker("idle", subjects.Cordoned, 0, 8, "embed"), worker("gone", subjects.Ready, 2, 8, "mistral"),
		},
		Policy: &policystore.Version{Revision: 17, At: Noon.Add(-3 * time.Minute), By: "ann@ops", Why: "tier set batch --share 2", Policy: policy.Default()},
		Held:   map[fleet.PoolTier]int{{Pool: "llama-70b", Tier: "batch"}: 30},
		Lanes: []fleet.Lane{
			{Pool: "llama-70b", Tier: "batch", Lane: "shared", Waiting: 2, Delivered: 1, TakenPerSecond: 1.5},
			{Pool: "llama-70b", Tier: "standard", Lane: "shared", Delivered: 2, TakenPerSecond: 3},
			{Pool: "mistral", Tier: "standard", Lane: "shared", Waiting: 1},
		},
		Events: []subjects.Event{
			{At: Noon.Add(-time.Minute), Kind: subjects.EventWorkerJoined, Worker: "fast", Text: "worker fast joined"},
			{At: Noon.Add(-time.Second), Kind: subjects.EventWorkerLost, Worker: "gone", Text: "worker gone fell silent"},
		},
	}
	s.Workers[0].DonePerSecond, s.Workers[0].TokensPerSecond = 4.5, 1234
	s.Workers[1].Reason = "connection refused"
	s.Workers[3].Lost = 5 * time.Second
	for i, state := range []string{"answering", "running", "queued"} {
		s.Requests = append(s.Requests, subjects.RequestInfo{
			ID: fmt.Sprintf("019a0000-0000-7000-8000-00000000000%d", i), Gateway: "gw-a", Tenant: "acme", Model: "gpt-4o", Tier: "standard", Pool: "llama-70b",
			Path: "/v1/chat/completions", Stream: true, State: state, Worker: "fast-0a1b2c", Attempt: 1, Arrived: Noon.Add(-time.Minute), AgeMS: int64(1000 * (i + 1)), BytesOut: 20_000,
		})
	}
	s.Requests[2].Worker = ""
	s.Complete()
	return s
}
