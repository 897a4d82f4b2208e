package main

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// states are what a fleet may look like.
var states = map[string]state{
	"empty":    {},
	"starting": {starting: true},
	"idle":     {workers: 6},
	"busy":     {workers: 8, load: 0.97, rate: 21, waiting: 37},
	"failing":  {workers: 8, load: 0.55, rate: 14, waiting: 5, failing: true},
	"canary":   {workers: 8, load: 0.5, rate: 12, canary: true},
	"hundred":  {workers: 100, load: 0.7, rate: 260, waiting: 12},
	"away":     {workers: 6, load: 0.4, rate: 9, away: true},
}

type state struct {
	workers  int
	load     float64 // share of the slots in use
	rate     float64 // requests a second
	waiting  int
	starting bool
	failing  bool // an engine is down, a GPU is fenced, a worker is lost
	canary   bool
	away     bool // the broker
}

// scene shows a state. It has chance in it, but the same at each start.
type scene struct {
	state
	began time.Time
}

func newScene(s state) *scene { return &scene{s, time.Now()} }

var (
	pools  = []string{"llama-70b", "qwen-32b", "embed"}
	tenant = []string{"acme", "globex", "initech", "umbrella"}
	tiers  = []string{"priority", "standard", "standard", "batch"}
)

func (s *scene) view() gateway.View {
	now := time.Now()
	chance := rand.New(rand.NewPCG(7, uint64(now.Sub(s.began)/(3*time.Second))))
	v := gateway.View{
		At: now, Gateway: "3f9ac21be04d", Server: "nats://broker-1:4222", Since: now.Add(-3 * time.Hour),
		Policy: policystore.Version{Revision: 41, At: s.began.Add(-26 * time.Minute), By: "anna", Why: "tier set batch --max-queue 500", Policy: policy.Default()},
		Recent: make(map[string]gateway.Period),
	}
	if s.starting {
		v.Since, v.NotReady, v.Policy = now, "the queue is not available yet", policystore.Version{Policy: policy.Default()}
		return v
	}
	if s.away {
		v.Server, v.NotReady = "", "no connection to the broker"
	}
	s.addWorkers(&v, chance)
	s.addRequests(&v, chance)
	s.addEnded(&v)
	s.addEvents(&v)
	if s.canary {
		s.addCanary(&v)
	}
	return v
}

func (s *scene) addWorkers(v *gateway.View, chance *rand.Rand) {
	for i := range s.workers {
		pool := pools[i%2]
		if s.workers > 6 && i%8 == 7 {
			pool = pools[2]
		}
		if s.canary && i%4 == 3 {
			pool = "llama-70b-fp8"
		}
		slots := []int{32, 24, 16, 64}[i%4]
		h := &subjects.Heartbeat{
			Worker: fmt.Sprintf("gpu-%d.0a1b", i+1), Name: fmt.Sprintf("gpu-%d", i+1), Engine: []string{"vllm", "sglang"}[i%2], URL: fmt.Sprintf("http://10.0.0.%d:8000", i+1),
			Host: fmt.Sprintf("node-%d", i/4+1), Version: "v1.0.0", Started: s.began.Add(-50 * time.Hour), State: subjects.Ready, Slots: slots, Weight: 1,
			InFlight: min(slots, int(float64(slots)*s.load*(0.9+0.2*chance.Float64()))), Done: uint64(float64(i+1) * 1000 * time.Since(s.began).Seconds() * s.load),
		}
		h.Prefills = h.InFlight / 9
		itl := 0.018 + 0.004*float64(i%3)
		h.Pools = []subjects.PoolStatus{{Pool: pool, Mean: policy.Mean{Input: 900, Output: 240, Samples: 500}, Rung: min(9, h.InFlight*10/slots),
			Curve: &policy.Curve{Prefill: &policy.Line{A: 0.03, B: 0.00012}, ITL: &policy.Line{A: itl, B: 0.0004}}}}
		kv := min(0.97, 0.08+0.9*float64(h.InFlight)/float64(slots))
		h.EngineStatus = &subjects.EngineStatus{Dialect: h.Engine, KVUsage: &kv}
		h.Capacity = &subjects.Capacity{Profile: "throughput", Total: slots, Bound: policy.BoundSlots, Headroom: 1 - kv}
		heat, use, power := 41+int(44*float64(h.InFlight)/float64(slots))+chance.IntN(3), int(100*float64(h.InFlight)/float64(slots)), 90+560*float64(h.InFlight)/float64(slots)
		const total = 80 << 30
		snap := gpu.Snapshot{Device: gpu.Device{Index: i % 4, UUID: fmt.Sprintf("GPU-%d", i), Name: "NVIDIA H100 80GB HBM3"}, At: v.At, State: gpu.Fresh, Temperature: &heat, Power: &power,
			Utilization: &gpu.Utilization{GPU: use}, Memory: &gpu.Memory{Total: total, Used: 71 << 30, Free: 9 << 30}}
		h.NVML = &subjects.NVML{Mode: "auto", Driver: "570.124", GPUs: []subjects.GPU{{Snapshot: snap}}}
		switch {
		case s.failing && i == 1:
			h.State, h.Reason, h.InFlight, h.Prefills = subjects.Down, "connection refused", 0, 0
		case s.failing && i == 2:
			g := &h.NVML.GPUs[0]
			h.State, h.Reason, h.InFlight, h.Prefills = subjects.Fenced, "GPU 2: XID 79: GPU has fallen off the bus", 3, 0
			g.Fenced, g.Since, g.Lost = "XID 79: GPU has fallen off the bus", s.began.Add(-4*time.Minute), "is lost"
		case s.failing && i == 4:
			h.Pools[0].Failing = "the last 5 requests failed: the engine answered 500"
		case s.failing && i == 6, s.workers == 100 && i%37 == 11:
			h.State = subjects.Cordoned
		}
		if s.failing && i == 3 {
			v.Lost = append(v.Lost, gateway.LostWorker{Heartbeat: h, Silent: time.Since(s.began) + 9*time.Second})
			continue
		}
		v.Workers = append(v.Workers, h)
	}
}

func (s *scene) addRequests(v *gateway.View, chance *rand.Rand) {
	number := 0
	add := func(r subjects.RequestInfo, ago time.Duration) {
		number++
		r.ID = fmt.Sprintf("019a%04x-7d79-7ba1-8e32-%012x", number, 0xbb02083be00+number*7919)
		r.Gateway, r.Path, r.Stream, r.Arrived, r.AgeMS = v.Gateway, "/v1/chat/completions", true, v.At.Add(-ago), ago.Milliseconds()
		r.Tier, r.Tenant, r.Model = tiers[number%len(tiers)], tenant[number%len(tenant)], cmp.Or(r.Model, r.Pool)
		v.Requests = append(v.Requests, r)
	}
	for _, h := range v.Workers {
		for i := range min(h.InFlight, 24) {
			ago := time.Duration(200+chance.IntN(9000)) * time.Millisecond
			r := subjects.RequestInfo{Pool: h.Pools[0].Pool, State: "answering", Worker: h.Worker, Attempt: 1, QueueMS: int64(chance.IntN(60)), BytesOut: ago.Milliseconds() * 3}
			if i < h.Prefills {
				r.State, r.BytesOut = "running", 0
			}
			add(r, ago)
		}
	}
	for i := range s.waiting {
		r := subjects.RequestInfo{Pool: pools[i%2], State: "queued"}
		if i == 2 {
			r.Model = `<b onclick="alert(1)">llama</b>` // a client can ask for any name
		}
		add(r, time.Duration(s.waiting-i)*240*time.Millisecond)
	}
}

var failures = []gateway.Ended{
	{Outcome: gateway.Failed, Status: 502, Code: "dead_lettered", Reason: "too many failures; attempts: 3; last error: the engine answered 500: CUDA error: an illegal memory access was encountered", Pool: "llama-70b", Worker: "gpu-5"},
	{Outcome: gateway.Refused, Status: 429, Code: "queue_full", Reason: "the queue of llama-70b (tier batch) is full: 500 requests wait", Pool: "llama-70b"},
	{Outcome: gateway.Refused, Status: 404, Code: "model_not_found", Reason: `no worker serves "gpt-5"; models: llama-70b, qwen-32b`},
	{Outcome: gateway.Failed, Status: 502, Code: "upstream_lost", Reason: "the answer broke off: connection reset by peer", Pool: "qwen-32b", Worker: "gpu-2"},
	{Outcome: gateway.Failed, Status: 504, Code: "deadline", Reason: "no first byte within 60 s", Pool: "qwen-32b"},
	{Outcome: gateway.Refused, Status: 401, Code: "invalid_api_key", Reason: "the API key is not known"},
}

// addEnded adds what has ended: one each second at most, so that it moves.
func (s *scene) addEnded(v *gateway.View) {
	if s.rate == 0 {
		return
	}
	for i := 60; i >= 0; i-- {
		n := v.At.Unix() - int64(i)
		chance := rand.New(rand.NewPCG(3, uint64(n)))
		e := gateway.Ended{
			ID: fmt.Sprintf("019a%04x-7d79-7ba1-8e32-%012x", n%0xffff, 0xcc02083be00+n*7919%0xfffffff), At: time.Unix(n, 0), Outcome: gateway.Answered, Pool: pools[n%2], Model: pools[n%2], Tier: tiers[n%4], Tenant: tenant[n%4],
			Attempts: 1, Worker: fmt.Sprintf("gpu-%d", 1+chance.IntN(s.workers)), TTFT: time.Duration(120+chance.IntN(500)) * time.Millisecond, InputTokens: 900, OutputTokens: int64(40 + chance.IntN(500)),
		}
		e.Total = e.TTFT + time.Duration(e.OutputTokens)*21*time.Millisecond
		if n%29 == 0 {
			e.Outcome, e.OutputTokens = gateway.Cancelled, 12
		}
		if f := failures[n%int64(len(failures))]; s.failing && n%5 == 0 || n%61 == 0 {
			f.ID, f.At, f.Model = e.ID, e.At, cmp.Or(f.Pool, "gpt-5")
			e = f
			v.Failures = append(v.Failures, f)
		}
		v.Ended = append(v.Ended, e)
	}
	for _, p := range pools[:2] {
		sum := gateway.Period{Answered: int(s.rate * 150), Failed: int(s.rate / 8)}
		if !s.failing {
			sum.Failed = 0
		}
		for i := range 400 {
			sum.Times.Observe(true, time.Duration(140+i)*time.Millisecond, time.Duration(3000+20*i)*time.Millisecond)
		}
		v.Recent[p] = sum
	}
}

func (s *scene) addEvents(v *gateway.View) {
	add := func(ago time.Duration, kind subjects.EventKind, from, text string) {
		v.Events = append(v.Events, subjects.Event{At: s.began.Add(-ago).UTC(), Kind: kind, From: from, Text: text})
	}
	for i := range min(s.workers, 6) {
		add(50*time.Minute-time.Duration(i)*time.Second, subjects.EventWorkerJoined, "gateway", fmt.Sprintf("worker gpu-%d joined with %d slots on http://10.0.0.%d:8000", i+1, []int{32, 24, 16, 64}[i%4], i+1))
	}
	if s.workers > 0 {
		add(26*time.Minute, subjects.EventPolicy, "anna", "tier set batch --max-queue 500, revision 41")
	}
	if s.failing {
		add(6*time.Minute, subjects.EventWorkerState, "gateway", "worker gpu-2 is down: connection refused")
		add(4*time.Minute, subjects.EventWorkerFenced, "gateway", "worker gpu-3 is fenced: GPU 2: XID 79: GPU has fallen off the bus")
		add(time.Minute, subjects.EventWorkerFailing, "gateway", "worker gpu-5: requests of llama-70b fail: the last 5 requests failed: the engine answered 500")
		add(30*time.Second, subjects.EventDead, "gateway", "request 019a228f-5d83-7d79-9ba1-e32bb02083be to pool llama-70b became a dead letter: too many failures")
		add(9*time.Second, subjects.EventWorkerLost, "gateway", "worker gpu-4 is lost: no heartbeat for 1.5 s")
	}
	if s.canary {
		add(20*time.Minute, subjects.EventPolicy, "ben", "route shift chat --to llama-70b-fp8 --by 10% --every 2m, revision 42")
		add(2*time.Minute, subjects.EventShift, "gateway", "route chat: 20 % → 30 % to llama-70b-fp8")
	}
}

func (s *scene) addCanary(v *gateway.View) {
	side := func(answers, errors, slower int) (side policy.Side) {
		for i := range answers {
			side.Observe(i >= errors, time.Duration(slower*(150+i%300))*time.Millisecond/100, time.Duration(slower*(2500+7*(i%900)))*time.Millisecond/100)
		}
		return side
	}
	r := policy.Route{To: []policy.Target{{Pool: "llama-70b", Weight: 70}, {Pool: "llama-70b-fp8", Weight: 30}}, Shift: &policy.Shift{
		To: "llama-70b-fp8", By: 10, Every: policy.Duration(2 * time.Minute), Abort: []policy.Condition{"error_rate>1%", "p95_ttft>1.5x"}, Since: s.began.Add(-100 * time.Second),
	}}
	done := policy.Route{To: []policy.Target{{Pool: "qwen-32b", Weight: 100}, {Pool: "qwen-next", Weight: 0}}, Shift: &policy.Shift{
		To: "qwen-next", By: 25, Every: policy.Duration(5 * time.Minute), State: policy.ShiftAborted, Reason: "error_rate 4.0 % (40 of 1000) > 1 %", Since: s.began.Add(-31 * time.Minute),
	}}
	v.Policy.Policy.Routes = map[string]policy.Route{"chat": r, "code": done}
	v.Shifts = []gateway.ShiftResults{{Model: "chat", Route: r, Canary: side(352, 2, 96), Stable: side(823, 3, 100)}, {Model: "code", Route: done, Canary: side(1000, 40, 130), Stable: side(1204, 6, 100)}}
}

// hour returns an hour whose load rises and falls.
func (s *scene) hour() []gateway.Period {
	if s.rate == 0 {
		return nil
	}
	var list []gateway.Period
	now := time.Now().UnixNano() / int64(gateway.PeriodLength)
	for n := now - 359; n <= now; n++ {
		chance := rand.New(rand.NewPCG(5, uint64(n)))
		p := gateway.Period{Start: time.Unix(0, n*int64(gateway.PeriodLength)).UTC()}
		share := 1.0
		if n == now {
			share = float64(time.Now().UnixNano()%int64(gateway.PeriodLength)) / float64(gateway.PeriodLength)
		}
		rate := s.rate * (0.62 + 0.3*math.Sin(float64(now-n)/57) + 0.16*chance.Float64())
		p.Answered = int(rate * 10 * share)
		p.OutputTokens = int64(p.Answered * (210 + chance.IntN(40)))
		if s.failing && now-n < 40 && chance.IntN(3) > 0 {
			p.Failed, p.Refused = 1+chance.IntN(6), chance.IntN(9)
		} else if chance.IntN(40) == 0 {
			p.Failed = 1
		}
		slow := 1 + rate/s.rate
		if s.failing && now-n < 40 {
			slow *= 1.9
		}
		for i := range min(p.Answered, 60) {
			p.Times.Observe(true, time.Duration(slow*float64(90+4*i+chance.IntN(60)))*time.Millisecond, time.Duration(slow*float64(1800+40*i+chance.IntN(900)))*time.Millisecond)
		}
		list = append(list, p)
	}
	return list
}
