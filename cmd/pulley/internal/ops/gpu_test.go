package ops

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/subjects"
)

func TestGPUsOfTheFleet(t *testing.T) {
	s := newSite(t)
	s.answer()
	s.story(step{"gpu ls", 0, "no GPUs: no worker reports one\n"}, step{"gpu info", 3, "pulley: no GPUs: no worker reports one; .*"})
	s.workers = gpuFleet()
	s.story(
		step{"gpu ls", 0, `HOST    GPU  NAME              MEM GIB  UTIL  TEMP  POWER  STATUS                               WORKERS
node-1  0    H100 80GB HBM3  72.0/80.0   97%  64°C  655 W  ok                                   a1
node-1  1    H100 80GB HBM3  72.0/80.0   97%  91°C  655 W  throttled \(hw_thermal\)               a1, a2
node-1  3    H100 80GB HBM3  72.0/80.0   97%  64°C  655 W  stale                                a2
node-2  2    H100 80GB HBM3          -     -     -      -  fenced: XID 79 \(fallen off the bus\)  b

node-1/1  throttled: hw_thermal
  remedy: check its cooling .*
node-2/2  fenced: XID 79 \(fallen off the bus\)
  remedy: reset the GPU .*
node-3  NVML not found \(libnvidia-ml.so.1, a library of the NVIDIA driver\)
  remedy: start the container with the NVIDIA runtime .*
node-4  no NVIDIA GPU found
  remedy: .*
node-5  NVML is off for its workers
`},
		step{"gpu info node-2/2", 0, `gpu      node-2/2\nstatus   fenced: XID 79 \(fallen off the bus\)\nworkers  b\nfenced   for .*, since .*remedy   reset the GPU .*driver   580.65.06\n.*health\nerror  .* XID 79 \(fallen off the bus\)\n`},
		step{"gpu info GPU-1f2e3d40", 0, `gpu      node-1/0\nstatus   ok\n.*`},
		step{"gpu info node-3", 0, `gpu      node-3\nstatus   unknown: NVML not found .*\nworkers  c\nremedy   start the container .*`},
		step{"gpu info node-1", 2, `pulley: GPU node-1 is ambiguous: it may be node-1/0, node-1/1 or node-1/3\n.*`},
		step{"gpu info node-9/0", 3, `pulley: no gpu "node-9/0"; .*`},
		step{"gpu info", 2, `pulley: missing argument: GPU, one of node-1/0, .*`},
	)
	var list []struct {
		Host, Status, Fenced, UUID string
		Workers                    []string
		Failure                    *gpu.Failure
		Memory                     *gpu.Memory
	}
	if err := json.Unmarshal([]byte(s.ok("gpu ls -o json")), &list); err != nil || len(list) != 7 {
		t.Fatalf("%v: %+v", err, list)
	}
	if g := list[1]; g.Status != "throttled" || strings.Join(g.Workers, " ") != "a1 a2" || g.Memory == nil {
		t.Errorf("the second is %+v", g)
	}
	if g := list[3]; g.Status != "fenced" || g.Fenced == "" || g.UUID != "GPU-1f2e3d42-0000" {
		t.Errorf("the fourth is %+v", g)
	}
	if g := list[4]; g.Failure == nil || g.Failure.Kind != gpu.NoLibrary || g.UUID != "" {
		t.Errorf("the fifth is %+v", g)
	}
	t.Setenv("PULLEY_NATS", s.url) // as a shell would have it
	_, names, _ := clitest.Run(testRoot(), "__complete", "gpu", "info", "")
	if !strings.HasPrefix(names, "node-1/0\tH100 80GB HBM3, ok\n") || !strings.Contains(names, "node-2/2\tH100 80GB HBM3, fenced\n") {
		t.Errorf("completion: %q", names)
	}
}

// All columns fit a terminal of 80 columns; what is shortened is repeated below.
func TestGPUsFitATerminal(t *testing.T) {
	p := term.Page{Terminal: term.Terminal{Width: 80}}
	printFleetGPUs(&p, fleet.GPUs(gpuFleet()))
	for line := range strings.Lines(p.String()) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, want := range []string{"WORKERS\n", "a1, a2\n", "node-2/2  fenced: XID 79 (fallen off the bus)\n"} {
		if !strings.Contains(p.String(), want) {
			t.Errorf("no %q in\n%s", want, p.String())
		}
	}
}

// gpuFleet has two workers on one host that share a GPU, a fenced worker, and hosts without a reported GPU.
func gpuFleet() []subjects.Heartbeat {
	bare, mac, off := clitest.BeatOn("node-3", "c", subjects.Ready), clitest.BeatOn("node-4", "d", subjects.Ready), clitest.Beat("e", subjects.Ready, 0, "llama")
	bare.NVML.Failure = &gpu.Failure{Kind: gpu.NoLibrary, Container: true}
	mac.NVML.Failure = &gpu.Failure{Kind: gpu.NoGPU}
	off.Host = "node-5"
	fenced := clitest.BeatOn("node-2", "b", subjects.Fenced, clitest.GPU(2, clitest.Lost))
	fenced.Reason = "GPU 2: XID 79 (fallen off the bus)"
	stale := clitest.GPU(3, func(g *subjects.GPU) { g.State, g.At = gpu.Stale, g.At.Add(-10*time.Second) })
	return []subjects.Heartbeat{
		clitest.BeatOn("node-1", "a1", subjects.Ready, clitest.GPU(0), clitest.GPU(1, clitest.Hot)), clitest.BeatOn("node-1", "a2", subjects.Ready, clitest.GPU(1, clitest.Hot), stale),
		fenced, bare, mac, off,
	}
}
