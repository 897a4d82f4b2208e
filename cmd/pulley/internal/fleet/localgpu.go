package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
)

// ProbeCommand is the program that asks NVML; a variable for tests.
var ProbeCommand []string

func AddLibraryFlag(fs *pflag.FlagSet, path *string) {
	fs.StringVar(path, "nvml-library", "", "`path` of NVML, libnvidia-ml.so.1 (default: where the loader, a driver container or WSL has it)")
}

// gpuWait is how long the GPUs may take to answer: without persistence mode each
// wakes up for seconds.
const gpuWait = 45 * time.Second

// ReadGPUs is a fresh reading, as soon as there is one.
func ReadGPUs(ctx context.Context, sampler *gpu.Sampler) (gpu.Reading, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		r, _ := sampler.Latest()
		switch {
		case r.Failure != nil:
			return r, fmt.Errorf("%w; %s", r.Failure, r.Failure.Remedy())
		case r.State == gpu.Fresh:
			return r, nil
		case time.Since(began) > gpuWait:
			return r, fmt.Errorf("the GPUs have not answered for %v; %s", gpuWait, (&gpu.Failure{Kind: gpu.Silent}).Remedy())
		}
		select {
		case <-ctx.Done():
			return r, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// LocalGPUStatus is how a GPU is, and why. An XID of the last minute counts.
func LocalGPUStatus(g gpu.Snapshot) (state, reason string) {
	if g.State != gpu.Fresh && g.State != "" {
		return string(g.State), "it does not answer"
	}
	reason, fatal := gpu.Sick(gpu.Snapshot{}, g)
	switch {
	case fatal:
		return "sick", reason
	case g.Throttle != nil && (g.Throttle.Hard() || g.Throttle.Hot()):
		return "slowed", reason
	}
	return "ok", reason
}

func LocalGPUStyle(state string) term.Style {
	switch state {
	case "ok":
		return term.Green
	case "slowed", "stale":
		return term.Yellow
	}
	return term.Red
}
