package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// inUse is how many requests a worker has of how many it may have.
func inUse(h *subjects.Heartbeat) string {
	most := h.Slots
	if h.Capacity != nil {
		most = h.Capacity.Total
	}
	return fmt.Sprintf("%d/%d", h.InFlight, most)
}

// boundOf is what bounds a worker, in the policy's word for it.
func boundOf(h *subjects.Heartbeat) string {
	if h.Capacity == nil || h.State == subjects.Down || h.State == subjects.Left {
		return ""
	}
	return string(h.Capacity.Bound)
}

// reasonOf is why a worker does not take all that it might.
func reasonOf(h *subjects.Heartbeat) string {
	if h.Reason == "" && h.Capacity != nil {
		return h.Capacity.Why
	}
	return h.Reason
}

// boundInWords says why a worker has room for so many and not for more.
func boundInWords(r *subjects.Capacity) string {
	words := map[policy.Bound]string{
		policy.BoundSlots:    "as many slots as it has: slots= says how many",
		policy.BoundEngine:   "as many as the engine runs at once, less what others have sent it",
		policy.BoundQueue:    "requests wait inside the engine",
		policy.BoundKV:       "the KV cache has no room for more",
		policy.BoundMemory:   "the GPU memory has no room for more",
		policy.BoundLimit:    "with more, each would be slower than the profile allows",
		policy.BoundThrottle: "a GPU is held back",
		policy.BoundStale:    "the engine's metrics are old, so no more than it had when they were read",
		policy.BoundUnknown:  "neither slots nor engine metrics are known, so one at a time",
		policy.BoundFence:    "nothing may start",
	}[r.Bound]
	if words == "" {
		words = string(r.Bound)
	}
	switch {
	case r.Bound != policy.BoundLimit:
	case r.PaceMS <= 0:
		words = "a first guess: it takes more as requests come and go well"
	case r.PaceMS < 0.9*r.TargetMS:
		words = "the limit so far; it grows while it is used and tokens come fast enough"
	case r.TargetMS <= 0:
		words = "with more, the engine was overloaded"
	}
	if r.Why != "" && r.Bound != policy.BoundFence {
		return r.Why
	}
	if r.Why != "" {
		words += ": " + r.Why
	}
	return words
}

// termsInWords are all bounds, the tightest first.
func termsInWords(r *subjects.Capacity) string {
	type term struct {
		bound policy.Bound
		most  float64
	}
	var terms []term
	for b, most := range r.Terms {
		terms = append(terms, term{b, most})
	}
	slices.SortFunc(terms, func(a, b term) int {
		return cmp.Or(cmp.Compare(a.most, b.most), strings.Compare(string(a.bound), string(b.bound)))
	})
	var words []string
	for _, t := range terms {
		words = append(words, fmt.Sprintf("%s %.0f", t.bound, math.Floor(t.most)))
	}
	return strings.Join(words, ", ")
}

// share is a part of 1 as a percentage.
func share(x float64) string { return strconv.FormatFloat(100*x, 'f', 0, 64) + "%" }

// millis is a time that is told in milliseconds, nothing if it is not known.
func millis(ms float64) string {
	switch {
	case ms <= 0:
		return ""
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 1, 64) + " ms"
	}
	return strconv.FormatFloat(ms, 'f', 0, 64) + " ms"
}

// printRoom says how much a worker may have and why not more, what it goes by,
// and what it decided of late.
func printRoom(p *page, h *subjects.Heartbeat) {
	r := h.Capacity
	if r == nil {
		return
	}
	use := field{"in use", fmt.Sprintf("%d of %d: %s", h.InFlight, r.Total, boundInWords(r)), ""}
	if r.Bound == policy.BoundFence {
		use.style = red
	} else if r.Factor < 1 {
		use.style = yellow
	}
	p.heading("room")
	list := []field{use, {"bounds", termsInWords(r), ""}}
	if r.Bound != policy.BoundFence {
		list = append(list, field{"headroom", share(r.Headroom), ""})
		if r.Factor < 1 {
			list = append(list, field{"held back", "to " + share(r.Factor) + " of its room", yellow})
		}
	}
	list = append(list, field{"profile", r.Profile, ""}, field{"limit", limitInWords(r), ""}, field{"token time", pacesInWords(r), ""})
	if r.Infeasible {
		list = append(list, field{"objective", "cannot be met: a request alone is slower than that", yellow})
	}
	p.fields(append(list, field{"engine metrics", engineFreshness(h), freshStyle(r.Engine)}, field{"GPU samples", gpuFreshness(h), freshStyle(r.GPU)})...)
}

func limitInWords(r *subjects.Capacity) string {
	if r.Limit <= 0 {
		return ""
	}
	how := "found by trying"
	if r.PaceMS <= 0 {
		how = "not tried yet"
	}
	return fmt.Sprintf("%.0f, %s", math.Floor(r.Limit), how)
}

// pacesInWords are the times between two tokens.
func pacesInWords(r *subjects.Capacity) string {
	var words []string
	for _, t := range []struct {
		ms   float64
		name string
	}{{r.AloneMS, "alone"}, {r.PaceMS, "now"}, {r.TargetMS, "aimed at"}} {
		if text := millis(t.ms); text != "" {
			words = append(words, text+" "+t.name)
		}
	}
	return strings.Join(words, ", ")
}

// engineFreshness says how far the engine's own word counts.
func engineFreshness(h *subjects.Heartbeat) string {
	switch h.Capacity.Engine {
	case "fresh":
		if h.EngineStatus != nil && !h.EngineStatus.At.IsZero() {
			return "fresh, " + ago(h.EngineStatus.At) + " old"
		}
	case "stale":
		return "stale: no more than it had when they were read"
	case "missing":
		return "none: the worker goes by its own count of requests"
	}
	return h.Capacity.Engine
}

// gpuFreshness says how far NVML's word counts.
func gpuFreshness(h *subjects.Heartbeat) string {
	switch {
	case h.NVML == nil:
		return "none: NVML is off"
	case h.Capacity.GPU == "stale":
		return "stale: the limit does not grow until they are fresh"
	case h.Capacity.GPU == "missing" && h.NVML.Mode == "required":
		return "none, and they are required"
	case h.Capacity.GPU == "missing":
		return "none: the worker goes by its engine alone"
	}
	return h.Capacity.GPU
}

func freshStyle(freshness string) style {
	if freshness == "stale" {
		return yellow
	}
	return unstyled
}

// printEngine says what an engine tells of itself.
func printEngine(p *page, h *subjects.Heartbeat) {
	t := h.EngineStatus
	if t == nil {
		return
	}
	kv := ""
	switch {
	case t.KVUsage != nil && t.KVTokens != nil:
		kv = fmt.Sprintf("%s of %d tokens in use", share(*t.KVUsage), *t.KVTokens)
	case t.KVUsage != nil:
		kv = share(*t.KVUsage) + " in use"
	case t.KVTokens != nil:
		kv = fmt.Sprintf("%d tokens", *t.KVTokens)
	}
	p.heading("the engine says")
	p.fields(
		field{"dialect", t.Dialect, ""},
		field{"running", told(t.Running), ""},
		field{"waiting", told(t.Waiting), ""},
		field{"slots", told(t.Slots), ""},
		field{"KV cache", kv, ""},
		field{"preempted", told(t.Preemptions), ""},
		field{"loaded", strings.Join(t.Loaded, ", "), ""},
	)
}

// told is a number that was told, or nothing.
func told[N int | int64](n *N) string {
	if n == nil {
		return ""
	}
	return fmt.Sprint(*n)
}

// printWorkerGPUs says how a worker's GPUs are.
func printWorkerGPUs(p *page, h *subjects.Heartbeat) {
	if h.NVML == nil {
		return
	}
	p.heading("GPUs")
	var list []field
	if f := h.NVML.Failure; f != nil {
		s := yellow
		if f.Kind == gpu.NoGPU && h.NVML.Mode != "required" {
			s = unstyled
		}
		list = append(list, field{"NVML", f.Error(), s}, field{"remedy", f.Remedy(), ""})
	}
	for i := range h.NVML.GPUs {
		g := &h.NVML.GPUs[i]
		_, _, remedy := gpuStatus(*g)
		list = append(list, field{g.Label(), gpuInWords(g), paintGPUStatus(gpuWord(g))}, field{"remedy", remedy, ""})
	}
	if len(list) == 0 {
		list = append(list, field{"NVML", "no word of a GPU yet", yellow})
	}
	p.fields(list...)
}

// gpuInWords is a worker's GPU in a line.
func gpuInWords(g *subjects.GPU) string {
	status, reason, _ := gpuStatus(*g)
	if reason != "" {
		status += ": " + reason
	}
	words := []string{status}
	for _, w := range []string{shortGPU(g.Device), memoryInWords(g.Memory), after(utilization(g.Snapshot), " busy"), unit(g.Temperature, "°C"), unit(g.Power, " W")} {
		if w != "" {
			words = append(words, w)
		}
	}
	return strings.Join(words, ", ")
}

func gpuWord(g *subjects.GPU) string {
	status, _, _ := gpuStatus(*g)
	return status
}

// after is s and what belongs after it, if it is not empty.
func after(s, more string) string {
	if s == "" {
		return ""
	}
	return s + more
}

func printDecisions(p *page, h *subjects.Heartbeat) {
	if h.Capacity == nil || len(h.Capacity.Decisions) == 0 {
		return
	}
	p.heading("last decisions")
	for _, d := range h.Capacity.Decisions {
		p.fields(field{d.At.Local().Format(time.TimeOnly), d.Text, ""})
	}
}
