package main

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

// capacityFlags are the flags for the capacity of the workers of a process.
type capacityFlags struct {
	profile   string
	itl, ttft time.Duration
	nvml      string
	library   string
	swapAfter time.Duration
	preload   []string

	sampler *gpu.Sampler // set by equip; nil if NVML is off
}

func (r *capacityFlags) check() error {
	var p policy.Profile
	if r.profile != "" {
		var err error
		if p, err = parseProfile(r.profile); err != nil {
			return cli.Usagef("--profile %w", err)
		}
	}
	if !slices.Contains([]string{"auto", "required", "off"}, r.nvml) {
		return cli.Usagef("--nvml %q: must be auto, required or off", r.nvml)
	}
	if r.swapAfter <= 0 {
		return cli.Usagef("--swap-after %v: must be more than 0", r.swapAfter)
	}
	for _, slo := range []struct {
		flag  string
		value time.Duration
	}{{"--slo-itl", r.itl}, {"--slo-ttft", r.ttft}} {
		switch {
		case slo.value < 0:
			return cli.Usagef("%s %v: must be more than 0, or 0 for none", slo.flag, slo.value)
		case slo.value > 0 && p.Fixed:
			return cli.Usagef("%s: the profile fixed uses all slots regardless of latency; choose another profile", slo.flag)
		}
	}
	return nil
}

// equip sets what the flags say in the configurations of workers, and creates one sampler of the GPUs for all of them.
func (r *capacityFlags) equip(ctx context.Context, cfgs []worker.Config) error {
	if r.nvml != "off" {
		var err error
		if r.sampler, err = gpu.NewSampler(gpu.Config{Command: fleet.ProbeCommand, Library: r.library, Logger: cli.Logger(ctx)}); err != nil {
			return err
		}
	}
	for i := range cfgs {
		c := &cfgs[i]
		if c.Profile.Name == "" && r.profile != "" { // otherwise the worker chooses
			c.Profile, _ = policy.ProfileNamed(r.profile)
		}
		if !c.Profile.Fixed {
			c.Profile.ITL, c.Profile.TTFT = r.itl, r.ttft
		}
		c.NVMLRequired = r.nvml == "required"
		c.SwapAfter = cmp.Or(c.SwapAfter, r.swapAfter)
		if c.Preload == nil {
			c.Preload = preloadModels(r.preload)
		}
		if r.sampler != nil {
			c.NVML = r.sampler
		}
	}
	return nil
}

// preloadModels returns the models that --preload names. In a configuration file and in the environment it may be true.
func preloadModels(names []string) []string {
	var models []string
	for _, n := range names {
		switch n {
		case "", "false":
		case "true":
			models = append(models, worker.AllModels)
		default:
			models = append(models, n)
		}
	}
	return models
}

// during runs do while the GPUs are sampled. It returns when the probe process has ended.
func (r *capacityFlags) during(ctx context.Context, do func() error) error {
	if r.sampler == nil {
		return do()
	}
	defer fleet.RunSampler(ctx, r.sampler)()
	return do()
}

// capacityHelp is the part of the help of pulley worker about capacity.
const capacityHelp = `A worker determines its capacity itself: from the engine's queue and KV cache, from
the time between tokens, and from the GPUs. The profile limits how much requests may
slow each other down. The time per token may grow to

  latency     1.5 times that of a request that runs alone
  balanced    3 times (the default)
  throughput  6 times
  slots       any value: all of slots= are used unless the engine is overloaded
              (the default for an engine with slots=)
  fixed       any value: slots= are always used, unless the engine or a GPU fails

'pulley worker info' shows the capacity and what limits it.`

// nvmlModes are the values of --nvml, for shell completion.
var nvmlModes = []string{"auto\tuse GPU data if there is any", "required\taccept no requests without GPU data", "off\tdo not read GPUs"}

func addCapacityFlags(cmd *cobra.Command) *capacityFlags {
	r := &capacityFlags{}
	fs := cmd.Flags()
	fs.StringVar(&r.profile, "profile", "", "how much requests may slow each other down: latency, balanced, throughput, slots or fixed (default balanced; slots for an engine with slots=)")
	fs.DurationVar(&r.itl, "slo-itl", 0, "target for the mean `time` between two tokens (default that of the profile)")
	fs.DurationVar(&r.ttft, "slo-ttft", 0, "target for the `time` to the first token, for nine of ten requests (default none)")
	fs.DurationVar(&r.swapAfter, "swap-after", policy.SwapAfter, "maximum time that a request waits for a model that is not loaded, while loaded models are in use")
	fs.StringSliceVar(&r.preload, "preload", nil, "load these models at the start: `MODEL[,MODEL]...`; without a value all that fit beside each other")
	fs.Lookup("preload").NoOptDefVal = worker.AllModels
	fs.StringVar(&r.nvml, "nvml", "auto", "whether to read the GPUs with NVML: auto, required or off")
	fleet.AddLibraryFlag(fs, &r.library)
	cli.CompleteFixed(cmd, "profile", profileNames()...)
	cli.CompleteFixed(cmd, "nvml", nvmlModes...)
	return r
}
