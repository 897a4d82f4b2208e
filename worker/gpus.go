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
	// stalledAfter is how long the GPU may be idle, and no token come, before the engine counts as stalled while a
	// stream has had its first token. stalledFirst is the same while none has: loading a model or compiling its kernels
	// leaves the GPU idle for some seconds.
	stalledAfter = 10 * time.Second
	stalledFirst = 30 * time.Second
)

// gpuWatch judges the engine's GPUs by what NVML reports. Capacity owns it.
type gpuWatch struct {
	gpus      []*watchedGPU
	absent    int // configured GPUs that NVML does not show
	nvml      subjects.NVML
	weight    float64   // by the bandwidth of the GPUs; 0: unknown
	worked    bool      // a GPU was busy while requests were in flight: the engine runs on it
	idleSince time.Time // since when all GPUs are idle; zero: one is not, or it is unknown
}

type watchedGPU struct {
	last    gpu.Snapshot
	fence   gpu.Fence
	verdict gpu.Verdict
	strains policy.StrainWatch
	strain  policy.Strain
}

// gpuNews is what has changed since the last look.
type gpuNews struct {
	suspect   string       // what happened to a GPU: the engine has to be asked whether it is well
	strains   []string     // changes of strain, for people
	unwatched *gpu.Failure // some configured GPUs are absent
}

// look judges the GPUs with these names by the last sample of all GPUs.
func (w *gpuWatch) look(all gpu.Reading, names []string, inFlight int, preallocates bool, engineStarted, now time.Time) (news gpuNews) {
	mine, wrong := gpu.Choose(all.GPUs, names)
	w.absent = len(wrong)
	news.unwatched = w.failureOf(all, names, wrong)
	w.gpus = slices.DeleteFunc(w.gpus, func(g *watchedGPU) bool {
		return len(mine) > 0 && !slices.ContainsFunc(mine, func(s gpu.Snapshot) bool { return sameGPU(g.last, s) })
	})
	idle := len(mine) > 0
	for _, s := range mine {
		i := slices.IndexFunc(w.gpus, func(g *watchedGPU) bool { return sameGPU(g.last, s) })
		if i < 0 {
			i = len(w.gpus)
			w.gpus = append(w.gpus, new(watchedGPU))
		}
		g := w.gpus[i]
		fresh := s.State == gpu.Fresh && s.At.After(g.last.At)
		g.verdict = g.fence.Judge(s, engineStarted)
		if g.verdict.Suspect != "" {
			news.suspect = fmt.Sprintf("GPU %s: %s: waiting for the engine to answer", s.Label(), g.verdict.Suspect)
		}
		g.last = s
		if fresh {
			was := g.strain
			if g.strain = g.strains.Add(sampleOf(s), preallocates, now); g.strain != was {
				news.strains = append(news.strains, fmt.Sprintf("GPU %s: %s", s.Label(), cmp.Or(g.strain.String(), "no longer strained")))
			}
		}
		if u := s.Utilization; s.State != gpu.Fresh || u == nil {
			idle = false
		} else if u.GPU > 0 {
			idle = false
			w.worked = w.worked || inFlight > 0
		}
	}
	switch {
	case !idle:
		w.idleSince = time.Time{}
	case w.idleSince.IsZero():
		w.idleSince = now
	}
	return news
}

// failureOf stores the state of NVML. If GPUs were not found by their names, and that is new, it returns the failure.
func (w *gpuWatch) failureOf(all gpu.Reading, names, wrong []string) (isNew *gpu.Failure) {
	was := w.nvml.Failure
	w.nvml.Driver, w.nvml.Failure = all.Driver, all.Failure
	if len(wrong) == 0 || all.State != gpu.Fresh || all.Partial || all.Failure != nil {
		return nil
	}
	f := &gpu.Failure{Kind: gpu.NotThere, Detail: "gpus=" + strings.Join(names, "+") + ": " + strings.Join(wrong, ", ")}
	w.nvml.Failure = f
	if was != nil && *was == *f {
		return nil
	}
	return f
}

// signals returns the GPUs as signals for the capacity. A configured GPU that is absent
// counts as one that reports nothing.
func (w *gpuWatch) signals(now time.Time) []policy.GPU {
	gpus := make([]policy.GPU, 0, len(w.gpus)+w.absent)
	for _, g := range w.gpus {
		gpus = append(gpus, policy.GPU{
			Sampled: !g.last.At.IsZero() && g.last.State != gpu.Unknown, Age: now.Sub(g.last.At),
			Sample: sampleOf(g.last), Strain: g.strain,
		})
	}
	for range w.absent {
		gpus = append(gpus, policy.GPU{})
	}
	return gpus
}

// weigh sets the weight as soon as the bandwidth of all GPUs is known. It reports whether it has done so now.
func (w *gpuWatch) weigh() bool {
	sum, known := 0.0, len(w.gpus) > 0
	for _, g := range w.gpus {
		weight, ok := g.last.Weight()
		sum, known = sum+weight, known && ok
	}
	if !known || w.weight > 0 {
		return false
	}
	w.weight = policy.ParallelWeight(sum, len(w.gpus))
	return true
}

// fenced returns why the first GPU that must not be used is fenced; empty if there is none.
func (w *gpuWatch) fenced() (class gpu.FenceClass, why string) {
	for _, g := range w.gpus {
		if g.verdict.Fenced {
			return g.verdict.Class, fmt.Sprintf("GPU %s: %s", g.last.Label(), g.verdict.Reason)
		}
	}
	return "", ""
}

// restart starts to watch for strain again: the engine has restarted.
func (w *gpuWatch) restart() {
	for _, g := range w.gpus {
		g.strains = policy.StrainWatch{}
	}
}

// report returns the GPUs for the heartbeat.
func (w *gpuWatch) report(required bool) *subjects.NVML {
	n := w.nvml
	n.Mode = "auto"
	if required {
		n.Mode = "required"
	}
	for _, g := range w.gpus {
		s := subjects.GPU{Snapshot: g.last, Strain: g.strain.String()}
		s.Processes = nil
		if g.verdict.Fenced {
			s.Fenced, s.FenceClass, s.Since = g.verdict.Reason, g.verdict.Class, g.verdict.Since
		}
		n.GPUs = append(n.GPUs, s)
	}
	return &n
}

func sameGPU(a, b gpu.Snapshot) bool {
	if a.UUID != "" && b.UUID != "" {
		return a.UUID == b.UUID
	}
	return a.Label() == b.Label()
}

func sampleOf(s gpu.Snapshot) policy.GPUSample {
	var g policy.GPUSample
	if s.Throttle != nil {
		g.Reasons = uint64(*s.Throttle)
	}
	g.Margin = maybe(s.Margin)
	if s.Memory != nil {
		g.Free, g.Total = policy.Known(float64(s.Memory.Free)), policy.Known(float64(s.Memory.Total))
	}
	return g
}
