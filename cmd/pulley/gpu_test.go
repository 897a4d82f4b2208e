//go:build linux && cgo

package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/gpu/fakenvml"
)

// onFake runs a command line with a fake NVML.
func onFake(t *testing.T, lib *fakenvml.Library, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	before := fleet.ProbeCommand
	defer func() { fleet.ProbeCommand = before }()
	fleet.ProbeCommand = []string{"sh", "-c", `BE_PULLEY="gpu-probe $*" exec "$0" -test.run='^TestBePulley$'`, os.Args[0]}
	return clitest.Run(newRootCommand(), append(args, "--nvml-library="+lib.Path)...)
}

func TestGPUList(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=3")
	lib.Set(t, slices.Concat(fakenvml.H100(0), fakenvml.SplitA100(1), fakenvml.H100(2))...)
	lib.Set(t, "0.reasons=0x68", "2.remap=9,2,0,1")
	code, stdout, stderr := onFake(t, lib, "gpu", "ls", "--local")
	want := `GPU  NAME                   STATUS            MEMORY  UTIL  TEMP  POWER  MIG      THROTTLED BY                    REASON
0    NVIDIA H100 80GB HBM3  throttled  71.0/79.6 GiB   97%  64°C  655 W  -        hw_slowdown,thermal,hw_thermal  -
1:0  NVIDIA A100-SXM4-40GB  ok          0.0/19.5 GiB     -  41°C   90 W  3g.20gb  -                               -
1:1  NVIDIA A100-SXM4-40GB  ok           0.0/4.8 GiB     -  41°C   90 W  1g.5gb   -                               -
2    NVIDIA H100 80GB HBM3  unhealthy  71.0/79.6 GiB   97%  64°C  655 W  -        -                               row remapping failed
`
	if code != 0 || stdout != want || stderr != "" {
		t.Errorf("exit code %d, stderr %q\n got\n%s\nwant\n%s", code, stderr, stdout, want)
	}

	code, stdout, stderr = onFake(t, lib, "gpu", "ls", "--local", "--all", "-o", "json")
	var list []struct {
		UUID        string
		Utilization *struct{ GPU int }
		Throttle    []string
	}
	if err := json.Unmarshal([]byte(stdout), &list); code != 0 || err != nil || len(list) != 5 {
		t.Fatalf("exit code %d, stderr %q, %v: %s", code, stderr, err, stdout)
	}
	if list[0].Utilization.GPU != 97 || list[1].Utilization != nil || strings.Join(list[0].Throttle, " ") != "hw_slowdown thermal hw_thermal" {
		t.Errorf("JSON: %+v", list)
	}
}

func TestGPUInfo(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=2")
	lib.Set(t, append(fakenvml.H100(0), fakenvml.GB10(1)...)...)
	code, stdout, stderr := onFake(t, lib, "gpu", "info", "GPU-1f", "--local")
	for _, want := range []string{"architecture  hopper 9.0\n", "driver   580.65.06 NVML 13.580.65.06\n", "bandwidth     about 3352 GB/s, weight 1.64\n",
		"temperature  64°C, memory 71°C, 21°C below throttling\n", "power        655 W of 700 W\n", "ECC errors     0\n", "recovery       none\n", "4711  70.0 GiB\n", "4712  -\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q", want)
		}
	}
	if code != 0 || t.Failed() {
		t.Errorf("exit code %d, stderr %q:\n%s", code, stderr, stdout)
	}
	if code, stdout, _ := onFake(t, lib, "gpu", "info", "1", "--local", "-o", "yaml"); code != 0 || !strings.Contains(stdout, "host: true") || strings.Contains(stdout, "ecc") {
		t.Errorf("exit code %d:\n%s", code, stdout)
	}
}

func TestGPUErrors(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=2")
	lib.Set(t, append(fakenvml.H100(0), fakenvml.H100(1)...)...)
	tests := map[string]struct {
		args string
		code int
		want string
	}{
		"no such GPU":       {"gpu info 7 --local", 3, "pulley: no GPU \"7\" on this machine; it has 0, 1\n"},
		"which GPU":         {"gpu info --local", 2, "pulley: missing argument: GPU, one of 0, 1\n"},
		"an unknown format": {"gpu ls --local -o xml", 2, "pulley: --output \"xml\": must be table, wide, json or yaml\n"},
		"all of whom":       {"gpu ls --all", 2, "pulley: --all needs --local\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if code, _, stderr := onFake(t, lib, strings.Fields(tt.args)...); code != tt.code || !strings.HasPrefix(stderr, tt.want) {
				t.Errorf("exit code %d, stderr %q; want %d, %q", code, stderr, tt.code, tt.want)
			}
		})
	}
	lib.Set(t, "init=18")
	code, _, stderr := onFake(t, lib, "gpu", "ls", "--local")
	if code != 1 || !strings.HasPrefix(stderr, "pulley: NVML and the loaded NVIDIA driver have different versions") || !strings.Contains(stderr, "restart the machine") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	none := &fakenvml.Library{Path: t.TempDir() + "/libnvidia-ml.so.1"}
	code, _, stderr = onFake(t, none, "gpu", "ls", "--local")
	if code != 1 || !strings.HasPrefix(stderr, "pulley: NVML not found (libnvidia-ml.so.1, a library of the NVIDIA driver): "+none.Path) {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}
