package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

func TestParseEngine(t *testing.T) {
	t.Setenv("ENGINE_KEY", "secret")
	for spec, want := range map[string]worker.Config{
		"http://h:1":                                         {Engine: "http://h:1"},
		"big=http://h:1,slots=64":                            {Engine: "http://h:1", Name: "big", Slots: 64},
		"http://h:1,model=a,model=b":                         {Engine: "http://h:1", Models: []string{"a", "b"}},
		"http://h:1,pool=canary":                             {Engine: "http://h:1", Pool: "canary"},
		"http://h:1,pool=canary,model=m":                     {Engine: "http://h:1", Pool: "canary", Models: []string{"m"}},
		"http://h:1,name=n,weight=0.5":                       {Engine: "http://h:1", Name: "n", Weight: 0.5},
		"https://h/v1,key-env=ENGINE_KEY":                    {Engine: "https://h/v1", APIKey: "secret"},
		"http://h:1,gpus=0+1:2+GPU-1f2e3d4c,profile=latency": {Engine: "http://h:1", GPUs: []string{"0", "1:2", "GPU-1f2e3d4c"}, Profile: policy.Latency},
		"http://h:1,dialect=llamacpp,metrics=http://h:2/m,baseline-itl=12ms": {Engine: "http://h:1", Dialect: engine.DialectLlamaCpp,
			MetricsURL: "http://h:2/m", Baseline: 12 * time.Millisecond},
	} {
		if got, err := parseEngine(spec); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v %v, want %+v", spec, got, err, want)
		}
	}
	for spec, want := range map[string]string{
		"h:1":                                   "no URL",
		"http://h:1,slots=0":                    "slots=0",
		"http://h:1,weight=-1":                  "weight=-1",
		"http://h:1,pool=":                      `"pool=" has no value`,
		"http://h:1,pool=p,model=a,model=b":     "a pool takes one model, and 2 are named",
		"http://h:1,tier=x":                     `there is no "tier"; keys: name, model, pool, slots, profile, weight, gpus, `,
		"http://h:1,gpu=0":                      `there is no "gpu"; did you mean "gpus"?`,
		"http://h:1,gpus=0,1":                   `"1" has no value`,
		"http://h:1,gpus=0+":                    `gpus=0+: "" is neither an index nor a UUID; want such as 0+1`,
		"http://h:1,gpus=cuda:0":                `"cuda:0" is neither an index nor a UUID`,
		"http://h:1,gpus=GPU-1":                 `"GPU-1" is neither an index nor a UUID`,
		"http://h:1,gpus=1+1":                   `gpus=1+1: 1 is named twice`,
		"http://h:1,profile=ballanced":          `profile "ballanced": want latency, balanced, throughput, slots or fixed; did you mean "balanced"?`,
		"http://h:1,dialect=vlm":                `dialect "vlm": want vllm, sglang,`,
		"http://h:1,metrics=/metrics":           `metrics=/metrics: want a URL such as`,
		"http://h:1,baseline-itl=12":            `baseline-itl=12: want the time between two tokens of a request alone, such as 12ms`,
		"http://h:1,key-env=PULLEY_NO_SUCH_KEY": "PULLEY_NO_SUCH_KEY is empty",
	} {
		if _, err := parseEngine(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", spec, err, want)
		}
	}
}

func TestAPartThatWasOrderedToLeaveEndsAlone(t *testing.T) {
	forever := func(ctx context.Context) error { <-ctx.Done(); return nil }
	after := func(d time.Duration, err error) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(d):
				return err
			}
		}
	}
	broken := errors.New("broken")
	for what, c := range map[string]struct {
		stages [][]part
		took   time.Duration
		want   string
	}{
		"the others go on":           {[][]part{{{"a", after(time.Second, worker.ErrDrained)}, {"b", after(time.Minute, broken)}}}, time.Minute, "b: broken"},
		"with those of other stages": {[][]part{{{"a", after(time.Second, worker.ErrDrained)}}, {{"b", forever}}}, time.Hour, "<nil>"},
		"until all have left":        {[][]part{{{"a", after(time.Second, worker.ErrDrained)}, {"b", after(time.Minute, worker.ErrDrained)}}}, time.Minute, "<nil>"},
		"no end of its own":          {[][]part{{{"a", after(time.Second, nil)}, {"b", forever}}}, time.Second, "a: ended by itself"},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			begun := time.Now()
			err := runParts(ctx, c.stages)
			if fmt.Sprint(err) != c.want || time.Since(begun) != c.took {
				t.Errorf("%s: %v after %v, want %v after %v", what, err, time.Since(begun), c.want, c.took)
			}
		})
	}
}

// What is said of the room is checked before anything is started or asked.
func TestRoomFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--nvml on":                     "pulley: --nvml \"on\": want auto, required or off\n",
		"--profile fast":                "pulley: --profile \"fast\": want latency, balanced, throughput, slots or fixed\n",
		"--profile latencie":            "pulley: --profile \"latencie\": want latency, balanced, throughput, slots or fixed; did you mean \"latency\"?\n",
		"--slo-itl -1s":                 "pulley: --slo-itl -1s: want more than 0, or 0 for none\n",
		"--profile fixed --slo-ttft 2s": "pulley: --slo-ttft: the profile fixed takes its slots however slow they are; choose another\n",
		"--slo-itl 50":                  "pulley: invalid argument \"50\" for \"--slo-itl\" flag: time: missing unit in duration \"50\"\n",
	} {
		for _, cmd := range []string{"worker --engine http://127.0.0.1:9 ", "up "} {
			code, _, stderr := runRoot(newRootCommand(), strings.Fields(cmd+args)...)
			if code != exitUsage || !strings.HasPrefix(stderr, want) {
				t.Errorf("%s%s: exit code %d, %q; want %d, %q", cmd, args, code, stderr, exitUsage, want)
			}
		}
	}
}

func TestRoomFlagsOfEachEngine(t *testing.T) {
	cfgs := make([]worker.Config, 2)
	cfgs[1].Profile = policy.FixedSlots
	r := &roomFlags{profile: "throughput", itl: time.Second, ttft: time.Minute, nvml: "required", swapAfter: policy.SwapAfter}
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
	off := &roomFlags{nvml: "off", swapAfter: policy.SwapAfter}
	if err := off.equip(t.Context(), cfgs); err != nil || off.sampler != nil || cfgs[0].NVML != nil || cfgs[0].NVMLRequired || cfgs[0].Profile != (policy.Profile{}) {
		t.Errorf("off: %+v, %v", cfgs[0], err)
	}
}
