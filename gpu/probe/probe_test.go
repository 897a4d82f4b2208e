//go:build linux && cgo

package probe_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/gpu/fakenvml"
	"github.com/pulley-lb/pulley/gpu/probe"
)

// TestMain makes this binary the probe that its tests start.
func TestMain(m *testing.M) {
	if os.Getenv("GPU_TEST_PROBE") != "" {
		os.Exit(beProbe())
	}
	os.Exit(m.Run())
}

func beProbe() int {
	var cfg probe.Config
	flag.StringVar(&cfg.Library, "nvml-library", "", "")
	flag.DurationVar(&cfg.Interval, "interval", 0, "")
	flag.BoolVar(&cfg.All, "all", false, "")
	flag.Parse()
	if err := probe.Run(context.Background(), os.Stdin, os.Stdout, cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// asProbe starts this binary as the probe.
var asProbe = []string{"env", "GPU_TEST_PROBE=1", os.Args[0]}

const interval = 40 * time.Millisecond

// watched is a running sampler with this binary as its probe.
func watched(t *testing.T, lib *fakenvml.Library, edit ...func(*gpu.Config)) *gpu.Sampler {
	t.Helper()
	cfg := gpu.Config{Command: asProbe, Library: lib.Path, Interval: interval, Pause: interval}
	for _, e := range edit {
		e(&cfg)
	}
	s, err := gpu.NewSampler(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("Run does not end")
		}
	})
	return s
}

// await waits for a reading that satisfies is.
func await(t *testing.T, s *gpu.Sampler, what string, is func(gpu.Reading) bool) gpu.Reading {
	t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		asked := time.Now()
		r, _ := s.Latest()
		if d := time.Since(asked); d > 200*time.Millisecond {
			t.Fatalf("Latest took %v", d)
		}
		if is(r) {
			return r
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%s: not within 20 s; the last reading: %+v, failure %v", what, r, r.Failure)
		}
	}
}

func has(n int) func(gpu.Reading) bool {
	return func(r gpu.Reading) bool { return r.State == gpu.Fresh && len(r.GPUs) == n }
}

// shown is a value as text, "-" if there is none.
func shown[T any](p *T) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprint(*p)
}

// describe is all values of a snapshot as text.
func describe(s gpu.Snapshot) string {
	processes := []string{}
	for _, p := range s.Processes {
		processes = append(processes, fmt.Sprintf("%d:%s", p.PID, shown(p.Memory)))
	}
	memory, ecc := "-", "-"
	if m := s.Memory; m != nil {
		memory = fmt.Sprintf("%d/%d free %d reserved %s", m.Used, m.Total, m.Free, shown(m.Reserved))
	}
	if s.ECC != nil {
		ecc = shown(s.ECC.Corrected) + "/" + shown(s.ECC.Uncorrected)
	}
	return fmt.Sprintf("%s %s %s sm %s | memory %s | util %s | temp %s memory %s margin %s | power %s of %s | clocks %s %s | %s | ecc %s | rows %s | recovery %s | xids %v | %v",
		s.Label(), s.Name, s.Architecture, s.Compute, memory, shown(s.Utilization), shown(s.Temperature), shown(s.MemoryTemperature), shown(s.Margin),
		shown(s.Power), shown(s.PowerLimit), shown(s.SMClock), shown(s.MemoryClock), shown(s.Throttle), ecc, shown(s.Rows), shown(s.Recovery), s.WatchesXIDs, processes)
}

func expect(t *testing.T, s gpu.Snapshot, want string) {
	t.Helper()
	if got := describe(s); got != want {
		t.Errorf("snapshot:\n got %s\nwant %s", got, want)
	}
}

func watches(r gpu.Reading) bool { return len(r.GPUs) > 0 && r.GPUs[0].WatchesXIDs }

func TestH100(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=1")
	lib.Set(t, fakenvml.H100(0)...)
	s := watched(t, lib)
	r := await(t, s, "an H100", watches)
	g := r.GPUs[0]
	expect(t, g, "0 NVIDIA H100 80GB HBM3 hopper sm 9.0 | memory 76235669504/85520809984 free 8745123840 reserved 540016640 | util {97 61}"+
		" | temp 64 memory 71 margin 21 | power 655.21 of 700 | clocks 1755 2619 | power_cap | ecc 2/0 | rows {0 0 false false} | recovery none | xids true | [4711:75161927680 4712:-]")
	if g.BusID != "00000000:10:00.0" || r.Driver != "580.65.06" || r.NVML != "13.580.65.06" {
		t.Errorf("bus id %s, driver %s, NVML %s", g.BusID, r.Driver, r.NVML)
	}
	if w, ok := g.Weight(); !ok || w < 1.6 || w > 1.7 {
		t.Errorf("weight %v, want 1.64", w)
	}
	if reason, _ := gpu.Sick(gpu.Snapshot{}, g); reason != "" {
		t.Errorf("sick: %s", reason)
	}
}

func TestSplitA100(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=1")
	lib.Set(t, fakenvml.SplitA100(0)...)
	s := watched(t, lib)
	r := await(t, s, "two instances", func(r gpu.Reading) bool { return has(2)(r) && watches(r) })
	expect(t, r.GPUs[0], "0:0 NVIDIA A100-SXM4-40GB ampere sm 8.0 | memory 13107200/20937965568 free 20924858368 reserved 0 | util -"+
		" | temp 41 memory - margin - | power 90 of 400 | clocks 1410 1215 | idle | ecc 0/0 | rows - | recovery none | xids true | [99:1048576]")
	for i, want := range []string{"3g.20gb 0.5", "1g.5gb 0.125"} {
		g := r.GPUs[i]
		if got := fmt.Sprintf("%s %.3g", g.Instance.Profile, *g.Bandwidth/1555.2e9); got != want || g.Instance.Parent != "GPU-a1000000-0000-4000-8000-000000000000" {
			t.Errorf("instance %d: %s of %s, want %s", i, got, g.Instance.Parent, want)
		}
	}

	lib.Set(t, "xid=1:0:94:7:0")
	r = await(t, s, "an XID", func(r gpu.Reading) bool { return len(r.GPUs) == 2 && len(r.GPUs[1].XIDs) == 1 })
	if n := len(r.GPUs[0].XIDs); n != 0 {
		t.Errorf("the other instance has %d XIDs", n)
	}
	if reason, isFatal := gpu.Sick(gpu.Snapshot{}, r.GPUs[1]); !isFatal || reason != "XID 94 (contained ECC error)" {
		t.Errorf("sick: %q, %v", reason, isFatal)
	}

	// The driver rejects the handle of an instance that was recreated.
	lib.Set(t, "0.m1.uuid=MIG-cccccccc-0000-4000-8000-000000000000", "0.ret.nvmlDeviceGetMemoryInfo_v2=2")
	await(t, s, "a recreated instance", func(r gpu.Reading) bool {
		_, ok := r.GPU("MIG-cccccccc-0000-4000-8000-000000000000")
		old, _ := r.GPU("MIG-bbbbbbbb-0000-4000-8000-000000000000")
		return ok && old.Lost == "is no longer there"
	})
}

func TestGB10(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=1")
	lib.Set(t, fakenvml.GB10(0)...)
	r := await(t, watched(t, lib), "a GB10", watches)
	g := r.GPUs[0]
	if g.Memory == nil || !g.Memory.Host || g.Memory.Total == 0 || g.Memory.Free == 0 {
		t.Errorf("memory %+v, want the machine's", g.Memory)
	}
	if w, ok := g.Weight(); ok || g.MemoryTotal != nil {
		t.Errorf("weight %v, total memory %v; want neither", w, g.MemoryTotal)
	}
	g.Memory = nil
	expect(t, g, "0 NVIDIA GB10 blackwell sm 12.1 | memory - | util {0 0} | temp 38 memory - margin - | power 4.2 of - | clocks 2418 - | idle | ecc - | rows - | recovery - | xids true | []")
}

func TestOldDriver(t *testing.T) {
	lib := fakenvml.NewOld(t)
	lib.Set(t, "count=1")
	lib.Set(t, fakenvml.H100(0)...)
	r := await(t, watched(t, lib), "an old driver", watches)
	expect(t, r.GPUs[0], "0 NVIDIA H100 80GB HBM3 hopper sm 9.0 | memory 76775686144/85520809984 free 8745123840 reserved - | util {97 61}"+
		" | temp 64 memory - margin - | power 655.21 of 700 | clocks 1755 2619 | power_cap | ecc 2/0 | rows {0 0 false false} | recovery - | xids true | [4711:75161927680 4712:-]")
}

func TestLostGPU(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=2")
	lib.Set(t, append(fakenvml.H100(0), fakenvml.H100(1)...)...)
	s := watched(t, lib)
	before := await(t, s, "two GPUs", has(2))
	id := before.GPUs[0].UUID

	lib.Set(t, "0.ret=15")
	lost := func(r gpu.Reading) bool { return len(r.GPUs) == 2 && r.GPUs[0].Lost != "" && r.GPUs[0].UUID == id }
	r := await(t, s, "a lost GPU", lost)
	if reason, isFatal := gpu.Sick(before.GPUs[0], r.GPUs[0]); !isFatal || reason != "GPU is lost" {
		t.Errorf("sick: %q, %v", reason, isFatal)
	}
	if g := r.GPUs[0]; g.Memory != nil || g.Temperature != nil {
		t.Errorf("a lost GPU reports %s", describe(g))
	}
	if reason, _ := gpu.Sick(before.GPUs[1], r.GPUs[1]); reason != "" || r.GPUs[1].State != gpu.Fresh {
		t.Errorf("the other GPU: %q, %s", reason, r.GPUs[1].State)
	}

	lib.Set(t, "all=1") // the probe restarts, and finds a GPU that cannot report its UUID
	await(t, s, "a failure", func(r gpu.Reading) bool { return r.Failure != nil })
	lib.Set(t, "all=")
	await(t, s, "the lost GPU, known by its index", func(r gpu.Reading) bool { return r.Failure == nil && r.State == gpu.Fresh && lost(r) })

	lib.Set(t, "0.ret=16")
	await(t, s, "a reset required", func(r gpu.Reading) bool { return len(r.GPUs) == 2 && r.GPUs[0].Lost == "requires a reset" })
	lib.Set(t, "0.ret=")
	await(t, s, "the GPU back", func(r gpu.Reading) bool { return has(2)(r) && r.GPUs[0].Lost == "" && r.GPUs[0].Memory != nil })

	lib.Set(t, "count=1", "all=1") // a restarted probe sees one GPU less
	await(t, s, "a failure", func(r gpu.Reading) bool { return r.Failure != nil })
	lib.Set(t, "all=")
	await(t, s, "a GPU gone", func(r gpu.Reading) bool { return len(r.GPUs) == 2 && r.GPUs[1].Lost != "" })
}

// TestXID uses the normal interval: an XID is reported without waiting for it.
func TestXID(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=2")
	lib.Set(t, append(fakenvml.H100(0), fakenvml.H100(1)...)...)
	s := watched(t, lib, func(c *gpu.Config) { c.Interval = time.Second })
	before := await(t, s, "two GPUs", func(r gpu.Reading) bool { return has(2)(r) && r.GPUs[0].WatchesXIDs && r.GPUs[1].WatchesXIDs })

	fences := make([]gpu.Fence, 2)
	judge := func(r gpu.Reading) (verdicts []gpu.Verdict) {
		for i := range fences {
			verdicts = append(verdicts, fences[i].Judge(r.GPUs[i], time.Time{}))
		}
		return verdicts
	}
	judge(before)
	lib.Set(t, "xid=1:1:31")
	began := time.Now()
	r := await(t, s, "XID 31", func(r gpu.Reading) bool { return len(r.GPUs[1].XIDs) == 1 })
	if v := judge(r); v[1].Suspect != "XID 31 (memory page fault)" || v[1].Fenced || v[0] != (gpu.Verdict{}) {
		t.Errorf("verdicts %+v, want GPU 1 suspect", v)
	}
	lib.Set(t, "xid=2:0:79", "0.ret=15") // as in reality: a GPU off the bus answers nothing
	r = await(t, s, "XID 79", func(r gpu.Reading) bool { return len(r.GPUs[0].XIDs) == 1 })
	took := time.Since(began)
	if v := judge(r); !v[0].Fenced || v[1].Fenced || v[1].Suspect != "" {
		t.Errorf("verdicts %+v, want GPU 0 fenced", v)
	}
	if took > 1500*time.Millisecond {
		t.Errorf("two XIDs took %v", took)
	}
	r = await(t, s, "the loss", func(r gpu.Reading) bool { return r.GPUs[0].Lost != "" })
	if v := judge(r); v[0].Reason != "GPU is lost" {
		t.Errorf("verdicts %+v, want the loss", v)
	}
}

// TestXIDReadsAtOnce checks that an XID makes the probe read what it otherwise reads seldom.
func TestXIDReadsAtOnce(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=1")
	lib.Set(t, fakenvml.H100(0)...)
	s := watched(t, lib, func(c *gpu.Config) { c.Interval = time.Second })
	await(t, s, "a GPU", watches)
	began := time.Now()
	lib.Set(t, "0.field230=2", "0.remap=1,1,1,0", "xid=1:0:154")
	r := await(t, s, "the recovery action", func(r gpu.Reading) bool { return shown(r.GPUs[0].Recovery) == "restart the machine" })
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	if reason, isFatal := gpu.Sick(gpu.Snapshot{}, r.GPUs[0]); !isFatal || reason != "the driver requests recovery: restart the machine" {
		t.Errorf("sick: %q, %v", reason, isFatal)
	}
}

func TestHang(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=2")
	lib.Set(t, append(fakenvml.H100(0), fakenvml.H100(1)...)...)
	s := watched(t, lib, func(c *gpu.Config) { c.Hang = 600 * time.Millisecond })
	await(t, s, "two GPUs", has(2))

	lib.Set(t, "sleep.0.nvmlDeviceGetMemoryInfo_v2=30000")
	await(t, s, "one stale GPU and a fresh one", func(r gpu.Reading) bool {
		return r.GPUs[0].State == gpu.Stale && r.State == gpu.Fresh && r.GPUs[1].State == gpu.Fresh
	})
	lib.Set(t, "sleep.1.nvmlDeviceGetMemoryInfo_v2=30000")
	r := await(t, s, "the probe given up", func(r gpu.Reading) bool { return r.Failure != nil })
	if r.Failure.Kind != gpu.Silent {
		t.Errorf("failure %v, want %s", r.Failure, gpu.Silent)
	}
	lib.Set(t, "sleep.0.nvmlDeviceGetMemoryInfo_v2=", "sleep.1.nvmlDeviceGetMemoryInfo_v2=")
	await(t, s, "both again", func(r gpu.Reading) bool {
		return r.Failure == nil && has(2)(r) && r.GPUs[0].State == gpu.Fresh && r.GPUs[1].State == gpu.Fresh
	})
}

func TestHangAtStart(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=1", "sleep.nvmlInit_v2=30000")
	lib.Set(t, fakenvml.H100(0)...)
	s := watched(t, lib, func(c *gpu.Config) { c.Hang = 300 * time.Millisecond })
	r := await(t, s, "the probe given up", func(r gpu.Reading) bool { return r.Failure != nil })
	if r.Failure.Kind != gpu.Silent || r.State != gpu.Unknown {
		t.Errorf("failure %v, state %s", r.Failure, r.State)
	}
}

func TestDriverUpgrade(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=1")
	lib.Set(t, fakenvml.H100(0)...)
	s := watched(t, lib)
	before := await(t, s, "a GPU", has(1))

	lib.Upgrade(t, "590.10") // the files change under the probe, which has the old ones open
	upgraded := time.Now()
	r := await(t, s, "the old driver still", func(r gpu.Reading) bool { return r.At.After(upgraded.Add(5*interval)) && r.State == gpu.Fresh })
	if r.Driver != "580.65.06" || r.Failure != nil {
		t.Errorf("driver %s, failure %v; want the old one still", r.Driver, r.Failure)
	}
	lib.Set(t, "init=18", "all.580.65.06=9") // the old driver is unloaded, the new one not yet loaded
	r = await(t, s, "a failure", func(r gpu.Reading) bool { return r.Failure != nil && r.Failure.Kind == gpu.Mismatch })
	lib.Set(t, "init=")
	r = await(t, s, "the new driver", func(r gpu.Reading) bool { return r.Failure == nil && r.State == gpu.Fresh })
	if r.Driver != "590.10" || len(r.GPUs) != 1 || r.GPUs[0].UUID != before.GPUs[0].UUID || r.GPUs[0].Lost != "" {
		t.Errorf("driver %s, GPUs %+v", r.Driver, r.GPUs)
	}
}

func TestNoLibrary(t *testing.T) {
	t.Parallel()
	s := watched(t, &fakenvml.Library{Path: filepath.Join(t.TempDir(), "libnvidia-ml.so.1")})
	r := await(t, s, "a failure", func(r gpu.Reading) bool { return r.Failure != nil })
	if r.Failure.Kind != gpu.NoLibrary || r.Failure.Remedy() == "" || r.State != gpu.Unknown {
		t.Errorf("failure %v, state %s", r.Failure, r.State)
	}
}

func TestNotALibrary(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "libnvidia-ml.so.1")
	if err := os.WriteFile(path, []byte("no ELF"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := await(t, watched(t, &fakenvml.Library{Path: path}), "a failure", func(r gpu.Reading) bool { return r.Failure != nil })
	if r.Failure.Kind != gpu.NoLibrary {
		t.Errorf("failure %v", r.Failure)
	}
}

func TestVisibleDevicesOnly(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=3")
	lib.Set(t, slices.Concat(fakenvml.H100(0), fakenvml.SplitA100(1), fakenvml.H100(2))...)
	t.Setenv("CUDA_VISIBLE_DEVICES", "MIG-bbbb,2,nonsense,0")
	s := watched(t, lib)
	r := await(t, s, "the visible ones", has(2))
	if got := r.GPUs[0].Label() + " " + r.GPUs[1].Label(); got != "1:1 2" || len(r.Notes) != 2 {
		t.Errorf("visible: %s, notes %q", got, r.Notes)
	}
	all := watched(t, lib, func(c *gpu.Config) { c.All = true })
	r = await(t, all, "all", has(5))
	if !r.GPUs[1].Split || r.GPUs[1].Instance != nil {
		t.Errorf("the second is %+v, want the GPU that is split", r.GPUs[1].Device)
	}
	t.Setenv("CUDA_VISIBLE_DEVICES", "")
	r = await(t, watched(t, lib), "a failure", func(r gpu.Reading) bool { return r.Failure != nil })
	if r.Failure.Kind != gpu.NoneVisible {
		t.Errorf("failure %v", r.Failure)
	}
}

// TestProbeEndsWithItsParent closes the probe's input, as the end of its parent does, while the driver
// hangs.
func TestProbeEndsWithItsParent(t *testing.T) {
	lib := fakenvml.New(t)
	lib.Set(t, "count=1", "sleep.nvmlInit_v2=30000")
	cmd := exec.Command(os.Args[0], "--nvml-library="+lib.Path)
	cmd.Env = append(os.Environ(), "GPU_TEST_PROBE=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	began := time.Now()
	stdin.Close()
	if err := cmd.Wait(); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("it ended after %v with %v", time.Since(began), err)
	}
}

// TestLibraryWithoutAnything has a library with three functions: a call of any
// other function would kill the probe.
func TestLibraryWithoutAnything(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc to build a library with")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "libnvidia-ml.so.1")
	source := `static int cell;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { (void)i; *d = &cell; return 0; }
`
	cmd := exec.Command(gcc, "-shared", "-fPIC", "-o", path, "-x", "c", "-")
	cmd.Stdin = strings.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	s := watched(t, &fakenvml.Library{Path: path})
	first := await(t, s, "a GPU that says nothing", has(1))
	r := await(t, s, "the same when all that is asked seldom has been", func(r gpu.Reading) bool { return r.At.After(first.At.Add(15 * interval)) })
	if r.Failure != nil || len(r.GPUs) != 1 {
		t.Fatalf("failure %v", r.Failure)
	}
	expect(t, r.GPUs[0], "0   sm  | memory - | util - | temp - memory - margin - | power - of - | clocks - - | - | ecc - | rows - | recovery - | xids false | []")
	if r.GPUs[0].Processes != nil {
		t.Error("an unknown list of processes is reported as empty")
	}
}
