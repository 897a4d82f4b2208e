package main

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

// capacityFlags say how much the workers of a process may take, and by whose word.
type capacityFlags struct {
	profile   string
	itl, ttft time.Duration
	nvml      string
	library   string
	swapAfter time.Duration

	sampler *gpu.Sampler // after equip; nil: NVML is off
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
		return cli.Usagef("--nvml %q: want auto, required or off", r.nvml)
	}
	if r.swapAfter <= 0 {
		return cli.Usagef("--swap-after %v: want more than 0", r.swapAfter)
	}
	for _, slo := range []struct {
		flag  string
		value time.Duration
	}{{"--slo-itl", r.itl}, {"--slo-ttft", r.ttft}} {
		switch {
		case slo.value < 0:
			return cli.Usagef("%s %v: want more than 0, or 0 for none", slo.flag, slo.value)
		case slo.value > 0 && p.Fixed:
			return cli.Usagef("%s: the profile fixed takes its slots however slow they are; choose another", slo.flag)
		}
	}
	return nil
}

// equip gives workers what the flags say, and makes what watches the GPUs for
// all of them.
func (r *capacityFlags) equip(ctx context.Context, cfgs []worker.Config) error {
	if err := r.check(); err != nil {
		return err
	}
	if r.nvml != "off" {
		var err error
		if r.sampler, err = gpu.NewSampler(gpu.Config{Command: fleet.ProbeCommand, Library: r.library, Logger: cli.Logger(ctx)}); err != nil {
			return err
		}
	}
	for i := range cfgs {
		c := &cfgs[i]
		if c.Profile.Name == "" && r.profile != "" { // else it is the worker's to choose
			c.Profile, _ = policy.ProfileNamed(r.profile)
		}
		if !c.Profile.Fixed {
			c.Profile.ITL, c.Profile.TTFT = r.itl, r.ttft
		}
		c.NVMLRequired = r.nvml == "required"
		c.SwapAfter = cmp.Or(c.SwapAfter, r.swapAfter)
		if r.sampler != nil {
			c.NVML = r.sampler
		}
	}
	return nil
}

// during has the GPUs watched while do runs, and until the process that asks
// NVML has ended.
func (r *capacityFlags) during(ctx context.Context, do func() error) error {
	if r.sampler == nil {
		return do()
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	var sampling sync.WaitGroup
	sampling.Go(func() { r.sampler.Run(watching) })
	defer sampling.Wait()
	defer stop()
	return do()
}

const capacityHelp = `How much a worker takes it finds out by itself: from what the engine tells of its
queue and its KV cache, from the pace of the answers, and from the GPUs. The
profile says how far requests may slow each other down for the sake of more of
them:

  latency     to 1.5 times the time between two tokens of a request alone
  balanced    to 3 times: the default
  throughput  to 6 times
  slots       as far as they do: all of slots= are used unless the engine is
              overloaded. The default for an engine with slots=
  fixed       slots= are used whatever happens, unless the engine or a GPU is ill

'pulley worker info' shows what binds.`

// nvmlModes are what --nvml may be.
var nvmlModes = []string{"auto\twith word of the GPUs where there is any", "required\ttake nothing without word of the GPUs", "off\tdo not ask"}

func addCapacityFlags(cmd *cobra.Command) *capacityFlags {
	r := &capacityFlags{}
	fs := cmd.Flags()
	fs.StringVar(&r.profile, "profile", "", "how far requests may slow each other down: latency, balanced, throughput, slots or fixed (default balanced; slots for an engine with slots=)")
	fs.DurationVar(&r.itl, "slo-itl", 0, "longest mean `time` between two tokens to aim at (default none but the profile's)")
	fs.DurationVar(&r.ttft, "slo-ttft", 0, "longest `time` to the first token to aim at, of nine requests in ten (default none)")
	fs.DurationVar(&r.swapAfter, "swap-after", policy.SwapAfter, "how long a request waits at most for a model that is not loaded, while others have work")
	fs.StringVar(&r.nvml, "nvml", "auto", "whether to ask NVML how the GPUs are: auto, required or off")
	fleet.AddLibraryFlag(fs, &r.library)
	cmd.RegisterFlagCompletionFunc("profile", cobra.FixedCompletions(profileNames(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("nvml", cobra.FixedCompletions(nvmlModes, cobra.ShellCompDirectiveNoFileComp))
	return r
}
