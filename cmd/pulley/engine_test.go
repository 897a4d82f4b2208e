package main

import (
	"reflect"
	"strings"
	"testing"
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
		"h:1":                                   "not a URL",
		"http://h:1,slots=0":                    "slots=0",
		"http://h:1,weight=-1":                  "weight=-1",
		"http://h:1,pool=":                      `"pool=" has no value`,
		"http://h:1,pool=p,model=a,model=b":     "pool= allows one model=, not 2",
		"http://h:1,tier=x":                     `unknown key "tier"; keys: name, model, pool, slots, profile, weight, gpus, `,
		"http://h:1,gpu=0":                      `unknown key "gpu"; did you mean "gpus"?`,
		"http://h:1,gpus=0,1":                   `"1" has no value`,
		"http://h:1,gpus=0+":                    `gpus=0+: "" is neither an index nor a UUID; examples: 0+1`,
		"http://h:1,gpus=cuda:0":                `"cuda:0" is neither an index nor a UUID`,
		"http://h:1,gpus=GPU-1":                 `"GPU-1" is neither an index nor a UUID`,
		"http://h:1,gpus=1+1":                   `gpus=1+1: 1 is named twice`,
		"http://h:1,profile=ballanced":          `profile "ballanced": must be latency, balanced, throughput, slots or fixed; did you mean "balanced"?`,
		"http://h:1,dialect=vlm":                `dialect "vlm": must be vllm, sglang,`,
		"http://h:1,metrics=/metrics":           `metrics=/metrics: must be a URL such as`,
		"http://h:1,baseline-itl=12":            `baseline-itl=12: must be the time per token of a request that runs alone, such as 12ms`,
		"http://h:1,key-env=PULLEY_NO_SUCH_KEY": "PULLEY_NO_SUCH_KEY is empty or not set",
	} {
		if _, err := parseEngine(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", spec, err, want)
		}
	}
}
