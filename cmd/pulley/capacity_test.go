package main

import (
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

// The flags are checked before anything is started.
func TestCapacityFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--nvml on":                     "pulley: --nvml \"on\": must be auto, required or off\n",
		"--profile fast":                "pulley: --profile \"fast\": must be latency, balanced, throughput, slots or fixed\n",
		"--profile latencie":            "pulley: --profile \"latencie\": must be latency, balanced, throughput, slots or fixed; did you mean \"latency\"?\n",
		"--slo-itl -1s":                 "pulley: --slo-itl -1s: must be more than 0, or 0 for none\n",
		"--profile fixed --slo-ttft 2s": "pulley: --slo-ttft: the profile fixed uses all slots regardless of latency; choose another profile\n",
		"--slo-itl 50":                  "pulley: --slo-itl: invalid value \"50\": must be a duration such as 30s or 5m\n",
	} {
		for _, cmd := range []string{"worker --engine http://127.0.0.1:9 ", "up "} {
			code, _, stderr := clitest.Run(newRootCommand(), strings.Fields(cmd+args)...)
			if code != cli.ExitUsage || !strings.HasPrefix(stderr, want) {
				t.Errorf("%s%s: exit code %d, %q; want %d, %q", cmd, args, code, stderr, cli.ExitUsage, want)
			}
		}
	}
}

func TestCapacityFlagsOfEachEngine(t *testing.T) {
	cfgs := make([]worker.Config, 2)
	cfgs[1].Profile = policy.FixedSlots
	r := &capacityFlags{profile: "throughput", itl: time.Second, ttft: time.Minute, nvml: "required", swapAfter: policy.SwapAfter}
	if err := r.equip(t.Context(), cfgs); err != nil {
		t.Fatal(err)
	}
	want := policy.Throughput
	want.ITL, want.TTFT = time.Second, time.Minute
	if cfgs[0].Profile != want || cfgs[1].Profile != policy.FixedSlots {
		t.Errorf("profiles %+v, %+v", cfgs[0].Profile, cfgs[1].Profile)
	}
	if cfgs[0].NVML == nil || cfgs[0].NVML != cfgs[1].NVML || !cfgs[0].NVMLRequired {
		t.Errorf("NVML %v, %v, required %v; want one for both", cfgs[0].NVML, cfgs[1].NVML, cfgs[0].NVMLRequired)
	}
	cfgs[0] = worker.Config{}
	off := &capacityFlags{nvml: "off", swapAfter: policy.SwapAfter}
	if err := off.equip(t.Context(), cfgs); err != nil || off.sampler != nil || cfgs[0].NVML != nil || cfgs[0].NVMLRequired || cfgs[0].Profile != (policy.Profile{}) {
		t.Errorf("off: %+v, %v", cfgs[0], err)
	}
}
