package worker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// stalledAfter and stalledFirst are how long a GPU may be idle beside requests
	// that have had a first token, or have not. Loading a model, or compiling its
	// kernels, shows no other sign for some seconds.
	stalledAfter = 10 * time.Second
	stalledFirst = 30 * time.Second
)

// watchedGPU is one of the engine's GPUs.
type watchedGPU struct {
	last    gpu.Snapshot
	fence   gpu.Fence
	verdict gpu.Verdict
	strains policy.StrainWatch
	strain  policy.Strain
}

// lookAtGPUsLocked judges the engine's GPUs by their last sample.
func (w *Worker) lookAtGPUsLocked(now time.Time) {
	if w.cfg.NVML == nil {
		return
	}
	r := &w.room
	all, _ := w.cfg.NVML.Latest()
	was := r.nvml.Failure
	r.nvml.Driver, r.nvml.Failure = all.Driver, all.Failure
	mine, wrong := gpu.Choose(all.GPUs, w.cfg.GPUs)
	if len(wrong) > 0 && all.State == gpu.Fresh && !all.Partial && all.Failure == nil {
		f := &gpu.Failure{Kind: gpu.NotThere, Detail: "gpus=" + strings.Join(w.cfg.GPUs, "+") + ": " + strings.Join(wrong, ", ")}
		if was == nil || *was != *f {
			w.log.Warn("GPUs are not watched", "why", f.Error(), "remedy", f.Remedy())
		}
		r.nvml.Failure = f
	}
	r.gpus = slices.DeleteFunc(r.gpus, func(g *watchedGPU) bool {
		return len(mine) > 0 && !slices.ContainsFunc(mine, func(s gpu.Snapshot) bool { return same(g.last, s) })
	})
	idle := len(mine) > 0
	for _, s := range mine {
		i := slices.IndexFunc(r.gpus, func(g *watchedGPU) bool { return same(g.last, s) })
		if i < 0 {
			i = len(r.gpus)
			r.gpus = append(r.gpus, new(watchedGPU))
		}
		g := r.gpus[i]
		isNew := s.At.After(g.last.At)
		g.verdict = g.fence.Judge(s, r.started)
		if g.verdict.Suspect != "" {
			r.suspect, r.suspected = fmt.Sprintf("GPU %s: %s: the engine has to answer first", s.Label(), g.verdict.Suspect), now
			w.scraper.Look()
		}
		g.last = s
		if isNew && s.State == gpu.Fresh {
			was := g.strain
			if g.strain = g.strains.Add(sample(s), !r.signals.OnDemand, now); g.strain != was {
				w.decideLocked(now, fmt.Sprintf("GPU %s: %s", s.Label(), cmp.Or(g.strain.String(), "is at its ease again")))
			}
		}
		if u := s.Utilization; s.State != gpu.Fresh || u == nil {
			idle = false
		} else if u.GPU > 0 {
			idle = false
			r.worked = r.worked || w.inFlight > 0
		}
	}
	switch {
	case !idle:
		r.idleSince = time.Time{}
	case r.idleSince.IsZero():
		r.idleSince = now
	}
	w.signalGPUsLocked(len(wrong), now)
}

// signalGPUsLocked puts the GPUs among the signals. Those that were configured
// and are absent count as GPUs without a word.
func (w *Worker) signalGPUsLocked(absent int, now time.Time) {
	r := &w.room
	gpus := make([]policy.GPU, 0, len(r.gpus)+absent)
	bandwidths, known := 0.0, len(r.gpus) > 0
	for _, g := range r.gpus {
		gpus = append(gpus, policy.GPU{
			Sampled: !g.last.At.IsZero() && g.last.State != gpu.Unknown, Age: now.Sub(g.last.At),
			Sample: sample(g.last), Strain: g.strain,
		})
		weight, ok := g.last.Weight()
		bandwidths, known = bandwidths+weight, known && ok
	}
	for range absent {
		gpus = append(gpus, policy.GPU{})
	}
	r.signals.GPUs = gpus
	if !known || r.prior > 0 {
		return
	}
	r.prior = policy.ParallelWeight(bandwidths, len(r.gpus))
	if w.cfg.Slots == 0 && r.limit.Baseline() == w.cfg.Baseline { // nothing was measured yet
		r.limit = policy.NewLimit(w.cfg.Profile, w.weightLocked(), w.cfg.Baseline)
	}
}

// same says whether two snapshots are of one device.
func same(a, b gpu.Snapshot) bool {
	if a.UUID != "" && b.UUID != "" {
		return a.UUID == b.UUID
	}
	return a.Label() == b.Label()
}

func sample(s gpu.Snapshot) policy.GPUSample {
	var g policy.GPUSample
	if s.Throttle != nil {
		g.Reasons = uint64(*s.Throttle)
	}
	g.Margin = reading(s.Margin)
	if s.Memory != nil {
		g.Free, g.Total = policy.Known(float64(s.Memory.Free)), policy.Known(float64(s.Memory.Total))
	}
	return g
}

// fenceLocked decides whether anything may start, and says whether that changed.
// While something is fenced, what has had no byte yet goes to another worker
// sooner: see silentLocked.
func (w *Worker) fenceLocked(now time.Time) (changed bool) {
	r := &w.room
	class, why := w.illnessLocked(now)
	was := r.fence
	if was == why {
		return false
	}
	r.fence, r.fenceClass, r.signals.Fence = why, class, why
	switch {
	case why == "":
		w.log.Info("worker takes requests again", "was_fenced_for", now.Sub(r.fencedAt).Round(time.Millisecond))
		w.decideLocked(now, "the fence is down")
	case was == "":
		r.fencedAt = now
		fallthrough
	default:
		w.log.Warn("worker fenced: it takes nothing new", "reason", why, "in_flight", w.inFlight)
		w.decideLocked(now, "fenced: "+why)
	}
	return true
}

// fencedSinceLocked says whether anything was fenced, or the engine went down, at
// some time since.
func (w *Worker) fencedSinceLocked(t time.Time) bool {
	return w.room.fence != "" || w.room.fencedAt.After(t) || w.downAt.After(t)
}

// illnessLocked is why nothing may start, if so.
func (w *Worker) illnessLocked(now time.Time) (class gpu.FenceClass, why string) {
	r := &w.room
	for _, g := range r.gpus {
		if g.verdict.Fenced {
			return g.verdict.Class, fmt.Sprintf("GPU %s: %s", g.last.Label(), g.verdict.Reason)
		}
	}
	if w.blindLocked() {
		if r.nvml.Failure != nil {
			return subjects.FenceNVML, "NVML is required, and fails: " + r.nvml.Failure.Error()
		}
		return subjects.FenceNVML, "NVML is required, and tells nothing of the engine's GPUs"
	}
	if r.suspect != "" {
		return gpu.FenceXID, r.suspect
	}
	return subjects.FenceStalled, w.stallLocked(now)
}

// stallLocked says that an engine has requests, a GPU without work, and nothing
// to show. One that stalled is tried again when it has none of them left. Of an
// engine that runs on no GPU of this machine, an idle one says nothing.
func (w *Worker) stallLocked(now time.Time) string {
	r := &w.room
	if w.inFlight == 0 || r.idleSince.IsZero() || !r.worked {
		return ""
	}
	since, patience := later(r.idleSince, later(r.lastToken, r.started)), stalledFirst
	var oldest time.Time
	for _, a := range w.running {
		if oldest.IsZero() || a.started.Before(oldest) {
			oldest = a.started
		}
		if a.streamed && !a.firstByte.IsZero() {
			patience = stalledAfter
		}
	}
	if w.swaps.state.To != "" { // a model that is read from a disk keeps no GPU busy
		patience = max(patience, w.cfg.StallTimeout)
	}
	if now.Sub(later(since, oldest)) < patience {
		return ""
	}
	return fmt.Sprintf("the engine has stalled: it has requests, and no token and an idle GPU for %v", patience)
}

// silentLocked says whether an attempt has been without a sign of life for too
// long. That is sooner when the engine has been known to be ill for a while and
// the client has seen nothing yet, so that another worker can have it. An answer
// that is not streamed may else take its time.
func (w *Worker) silentLocked(a *attempt, now time.Time) bool {
	if ill := w.illSinceLocked(); !ill.IsZero() && a.firstByte.IsZero() && now.Sub(later(ill, a.lastByte)) > min(stalledAfter, w.cfg.StallTimeout) {
		return true
	}
	return a.req.Stream && now.Sub(a.lastByte) > w.cfg.StallTimeout
}

// illSinceLocked is since when the engine or a GPU is known to be ill; zero: it is
// not, or nobody knows.
func (w *Worker) illSinceLocked() time.Time {
	switch {
	case w.state == subjects.Down:
		return w.downAt
	case w.room.fence != "" && !w.blindLocked():
		return w.room.fencedAt
	}
	return time.Time{}
}

// blindLocked says that word of the GPUs is required, and that there is none.
func (w *Worker) blindLocked() bool {
	return w.cfg.NVMLRequired && w.room.signals.GPUFreshness() == policy.Missing
}

// tellGPUsLocked is what NVML says of the engine's GPUs.
func (w *Worker) tellGPUsLocked() *subjects.NVML {
	if w.cfg.NVML == nil {
		return nil
	}
	n := w.room.nvml
	n.Mode = "auto"
	if w.cfg.NVMLRequired {
		n.Mode = "required"
	}
	for _, g := range w.room.gpus {
		s := subjects.GPU{Snapshot: g.last, Strain: g.strain.String()}
		s.Processes = nil
		if g.verdict.Fenced {
			s.Fenced, s.FenceClass, s.Since = g.verdict.Reason, g.verdict.Class, g.verdict.Since
		}
		n.GPUs = append(n.GPUs, s)
	}
	return &n
}
