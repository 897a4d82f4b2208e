package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
)

// ProbeCommand is the command that reads NVML; nil is this program. Tests replace it.
var ProbeCommand []string

// AddLibraryFlag declares the flag for the path of NVML.
func AddLibraryFlag(fs *pflag.FlagSet, path *string) {
	fs.StringVar(path, "nvml-library", "", "`path` of NVML, libnvidia-ml.so.1 (default: searched where the loader, a driver container and WSL have it)")
}

// gpuTimeout bounds how long the GPUs may take to answer: without persistence mode
// each takes seconds to wake up.
const gpuTimeout = 45 * time.Second

// ReadGPUs waits for a fresh reading of this machine's GPUs.
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
		case time.Since(began) > gpuTimeout:
			return r, fmt.Errorf("the GPUs have not answered for %v; %s", gpuTimeout, (&gpu.Failure{Kind: gpu.Silent}).Remedy())
		}
		select {
		case <-ctx.Done():
			return r, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// LocalGPUStatus returns the status of a GPU of this machine, with the reason: ok,
// throttled, unhealthy, stale or unknown. It counts XIDs of the last minute.
func LocalGPUStatus(g gpu.Snapshot) (status, reason string) {
	if g.State != gpu.Fresh && g.State != "" {
		return string(g.State), "no answer"
	}
	reason, fatal := gpu.Sick(gpu.Snapshot{}, g)
	switch {
	case fatal:
		return "unhealthy", reason
	case g.Throttle != nil && (g.Throttle.Hard() || g.Throttle.Hot()):
		return "throttled", reason
	}
	return "ok", reason
}

// LocalGPUStyle returns the colour of a LocalGPUStatus.
func LocalGPUStyle(status string) term.Style {
	switch status {
	case "ok":
		return term.Green
	case "throttled", "stale":
		return term.Yellow
	}
	return term.Red
}
