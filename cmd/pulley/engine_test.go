package main

import (
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

func TestParseEngine(t *testing.T) {
	t.Setenv("ENGINE_KEY", "secret\n")
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for spec, want := range map[string]worker.Config{
		"http://h:1":                                         {Engine: "http://h:1"},
		"big=http://h:1,slots=64":                            {Engine: "http://h:1", Name: "big", Slots: 64},
		"http://h:1,dp=4,slots=8":                            {Engine: "http://h:1", Ranks: 4, Slots: 8},
		"http://h:1,model=a,model=b":                         {Engine: "http://h:1", Models: []string{"a", "b"}},
		"http://h:1,pool=canary":                             {Engine: "http://h:1", Pool: "canary"},
		"http://h:1,pool=canary,model=m":                     {Engine: "http://h:1", Pool: "canary", Models: []string{"m"}},
		"http://h:1,name=n,weight=0.5":                       {Engine: "http://h:1", Name: "n", Weight: 0.5},
		"https://h/v1,key-env=ENGINE_KEY":                    {Engine: "https://h", Credentials: engine.Credentials{Key: "secret"}},
		"http://h:1,gpus=0+1:2+GPU-1f2e3d4c,profile=latency": {Engine: "http://h:1", GPUs: []string{"0", "1:2", "GPU-1f2e3d4c"}, Profile: policy.Latency},
		"http://h:1,dialect=llamacpp,metrics=http://h:2/m,baseline-itl=12ms": {Engine: "http://h:1", Dialect: engine.DialectLlamaCpp,
			MetricsURL: "http://h:2/m", Baseline: 12 * time.Millisecond},
		"https://h/a/b/v1/,key-file=" + file + ",tls-verify=off": {Engine: "https://h/a/b", Credentials: engine.Credentials{KeyFile: file}, TLS: engine.TLS{Insecure: true}},
		"http://ann:s3%2Cret@h:1/":                               {Engine: "http://h:1", Credentials: engine.Credentials{User: "ann", Password: "s3,ret"}},
		"http://ann@h:1,password-file=" + file:                   {Engine: "http://h:1", Credentials: engine.Credentials{User: "ann", PasswordFile: file}},
		"http://h:1,username=ann,password-env=ENGINE_KEY":        {Engine: "http://h:1", Credentials: engine.Credentials{User: "ann", Password: "secret"}},
	} {
		if got, err := parseEngine(spec); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v %v, want %+v", spec, got, err, want)
		}
	}
	for spec, want := range map[string]string{
		"h:1":                                        "not a URL",
		"http://h:1,slots=0":                         "slots=0",
		"http://h:1,dp=0":                            "dp=0: must be the number",
		"http://h:1,weight=-1":                       "weight=-1",
		"http://h:1,pool=":                           `"pool=" has no value`,
		"http://h:1,pool=p,model=a,model=b":          "pool= allows one model=, not 2",
		"http://h:1,tier=x":                          `unknown key "tier"; keys: name, model, pool, slots, dp, profile, weight, gpus, `,
		"http://h:1,gpu=0":                           `unknown key "gpu"; did you mean "gpus"?`,
		"http://h:1,gpus=0,1":                        `"1" has no value`,
		"http://h:1,gpus=0+":                         `gpus=0+: "" is neither an index nor a UUID; examples: 0+1`,
		"http://h:1,gpus=cuda:0":                     `"cuda:0" is neither an index nor a UUID`,
		"http://h:1,gpus=GPU-1":                      `"GPU-1" is neither an index nor a UUID`,
		"http://h:1,gpus=1+1":                        `gpus=1+1: 1 is named twice`,
		"http://h:1,profile=ballanced":               `profile "ballanced": must be latency, balanced, throughput, slots or fixed; did you mean "balanced"?`,
		"http://h:1,dialect=vlm":                     `dialect "vlm": must be vllm, sglang,`,
		"http://h:1,metrics=/metrics":                `metrics=/metrics: must be a URL such as`,
		"http://h:1,baseline-itl=12":                 `baseline-itl=12: must be the time per token of a request that runs alone, such as 12ms`,
		"http://h:1,key-env=PULLEY_NO_SUCH_KEY":      "PULLEY_NO_SUCH_KEY is empty or not set",
		"http://h:1,key-file=/no/such/file":          "/no/such/file: no such file",
		"http://h:1,key-file=/dev/null":              "/dev/null is empty",
		"http://h:1,username=ann,key-env=ENGINE_KEY": "exclude each other",
		"http://ann:x@h:1,key-env=ENGINE_KEY":        "exclude each other",
		"http://h:1,password-env=ENGINE_KEY":         "a password needs a user",
		"http://h:1,tls-verify=off":                  "need a URL with https",
		"https://h:1,tls-verify=no":                  "tls-verify=no: must be on or off",
		"https://h:1,tls-ca=/dev/null":               "/dev/null has no certificate in PEM",
		"https://h:1,tls-cert=" + file:               "its key are given together",
		"http://h:1/v1?api-key=x":                    "must not have a query",
		"http://h:1/#x":                              "must not have a fragment",
	} {
		if _, err := parseEngine(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", spec, err, want)
		}
	}
}

// Errors about --engine go into logs: they show no password and no key, whatever is wrong.
func TestEngineErrorsShowNoSecret(t *testing.T) {
	for _, spec := range []string{
		"http://ann:s3cret@h:1,slots=0", "http://ann:s3cret@h:x", "http://ann:s3/cret@h:1,slots=0", "http://ann:s3cr et@h:1",
		"http://ann:s3cret@h:1?key=s3cret", "http://h:1?api-key=s3cret", "http://h:1/#s3cret", "http://h:1,key=s3cret", "http://h:1,api-key=s3cret",
		"http://ann:s3cret@h:1,metrics=http://bob:s3cret@h", "http://h:1,metrics=ftp://bob:s3cret@h", "http://ann:a,s3cret@h:1", "ftp://ann:s3cret@h:1",
		"big=http://ann:s3cret@h:1,slots=0", "http://:s3cret@h:1", "http://ann:s3cret@h:1,key-file=/no/such", "ann:s3cret@h:1",
	} {
		_, err := parseEngine(spec)
		if err == nil && !strings.Contains(spec, "metrics=http:") {
			t.Errorf("%s: no error", spec)
		}
		if err != nil && (strings.Contains(err.Error(), "s3") || strings.Contains(err.Error(), "cret")) {
			t.Errorf("%s: %v", spec, err)
		}
	}
}

func TestEngineName(t *testing.T) {
	for at, want := range map[string]string{
		"http://127.0.0.1:8000": "vllm-8000", "https://gpu.example.com": "vllm-gpu.example.com", "http://h:8000/big": "vllm-8000-big", "http://h/a/b/": "vllm-h-a/b",
	} {
		u, err := url.Parse(at)
		if err != nil {
			t.Fatal(err)
		}
		if got := engineName("vllm", u); got != want {
			t.Errorf("%s: %q, want %q", at, got, want)
		}
	}
}

func TestCompleteEngine(t *testing.T) {
	for typed, want := range map[string]string{
		"http://h:1,key":        "http://h:1,key-env= http://h:1,key-file=",
		"http://h:1,slots=4,pr": "http://h:1,slots=4,profile= http://h:1,slots=4,preload=",
		"http://h:1,profile=b":  "http://h:1,profile=balanced",
		"https://h,tls-verify=": "https://h,tls-verify=on https://h,tls-verify=off",
		"http://h:1,key-file=x": "",
		"http://h:1":            "",
	} {
		for _, verb := range []string{"worker", "up"} {
			_, stdout, _ := clitest.Run(newRootCommand(), "__complete", verb, "--engine", typed)
			lines := strings.Fields(stdout)
			if got := strings.Join(lines[:len(lines)-1], " "); got != want {
				t.Errorf("%s --engine %s: %q, want %q", verb, typed, got, want)
			}
		}
	}
}
