package main

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

// roomFlags say how much the workers of a process may take, and by whose word.
type roomFlags struct {
	profile   string
	itl, ttft time.Duration
	nvml      string
	library   string
	swapAfter time.Duration

	sampler *gpu.Sampler // after equip; nil: NVML is off
}

const roomHelp = `How much a worker takes it finds out by itself: from what the engine tells of its
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

// roomModes are what --nvml may be.
var roomModes = []string{"auto\twith word of the GPUs where there is any", "required\ttake nothing without word of the GPUs", "off\tdo not ask"}

func addRoomFlags(cmd *cobra.Command) *roomFlags {
	r := &roomFlags{}
	fs := cmd.Flags()
	fs.StringVar(&r.profile, "profile", "", "how far requests may slow each other down: latency, balanced, throughput, slots or fixed (default balanced; slots for an engine with slots=)")
	fs.DurationVar(&r.itl, "slo-itl", 0, "longest mean `time` between two tokens to aim at (default none but the profile's)")
	fs.DurationVar(&r.ttft, "slo-ttft", 0, "longest `time` to the first token to aim at, of nine requests in ten (default none)")
	fs.DurationVar(&r.swapAfter, "swap-after", policy.SwapAfter, "how long a request waits at most for a model that is not loaded, while others have work")
	fs.StringVar(&r.nvml, "nvml", "auto", "whether to ask NVML how the GPUs are: auto, required or off")
	addLibraryFlag(fs, &r.library)
	cmd.RegisterFlagCompletionFunc("profile", cobra.FixedCompletions(profileNames(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("nvml", cobra.FixedCompletions(roomModes, cobra.ShellCompDirectiveNoFileComp))
	return r
}

func (r *roomFlags) check() error {
	var p policy.Profile
	if r.profile != "" {
		var err error
		if p, err = parseProfile(r.profile); err != nil {
			return usagef("--profile %w", err)
		}
	}
	if !slices.Contains([]string{"auto", "required", "off"}, r.nvml) {
		return usagef("--nvml %q: want auto, required or off", r.nvml)
	}
	if r.swapAfter <= 0 {
		return usagef("--swap-after %v: want more than 0", r.swapAfter)
	}
	for _, slo := range []struct {
		flag  string
		value time.Duration
	}{{"--slo-itl", r.itl}, {"--slo-ttft", r.ttft}} {
		switch {
		case slo.value < 0:
			return usagef("%s %v: want more than 0, or 0 for none", slo.flag, slo.value)
		case slo.value > 0 && p.Fixed:
			return usagef("%s: the profile fixed takes its slots however slow they are; choose another", slo.flag)
		}
	}
	return nil
}

// equip gives workers what the flags say, and makes what watches the GPUs for
// all of them.
func (r *roomFlags) equip(ctx context.Context, cfgs []worker.Config) error {
	if err := r.check(); err != nil {
		return err
	}
	if r.nvml != "off" {
		var err error
		if r.sampler, err = gpu.NewSampler(gpu.Config{Command: gpuProbe, Library: r.library, Logger: logger(ctx)}); err != nil {
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
func (r *roomFlags) during(ctx context.Context, do func() error) error {
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

func profileNames() (names []string) {
	for _, p := range policy.Profiles {
		names = append(names, p.Name)
	}
	return names
}

func parseProfile(name string) (policy.Profile, error) {
	p, ok := policy.ProfileNamed(name)
	if !ok || name == "" {
		return p, fmt.Errorf("%q: want %s%s", name, spell(profileNames()), didYouMean(name, profileNames()))
	}
	return p, nil
}

// spell is "a, b or c".
func spell(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// gpuName is how an engine's GPU may be named: NVML's index, with an instance as
// index:number, or a UUID or as much of its beginning as tells it from others.
var gpuName = regexp.MustCompile(`^([0-9]+(:[0-9]+)?|(GPU|MIG)-[-0-9A-Fa-f/]{4,})$`)

// parseGPUs reads gpus=0+1.
func parseGPUs(text string) ([]string, error) {
	names := strings.Split(text, "+")
	for i, n := range names {
		if !gpuName.MatchString(n) {
			return nil, fmt.Errorf("gpus=%s: %q is neither an index nor a UUID; want such as 0+1, 0:1 for an instance, or GPU-1f2e3d4c", text, n)
		}
		if slices.Contains(names[:i], n) {
			return nil, fmt.Errorf("gpus=%s: %s is named twice", text, n)
		}
	}
	return names, nil
}

// parseMetricsURL reads metrics=URL.
func parseMetricsURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("metrics=%s: want a URL such as http://127.0.0.1:8002/metrics", text)
	}
	return text, nil
}
