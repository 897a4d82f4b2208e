// Package fakenvml builds libraries named libnvidia-ml.so.1 that tests load in place of NVIDIA's, and sets which GPUs
// they simulate. They go through the real dynamic loader; see lib/fakenvml.c for their script.
package fakenvml

import (
	_ "embed"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

//go:embed lib/fakenvml.c
var source []byte

// Library is a fake library in a folder of its own.
type Library struct {
	// Path is that of the library.
	Path string

	mu     sync.Mutex
	script map[string]string
}

// New builds the library of a present-day driver. Without a C compiler it skips the test.
func New(t testing.TB) *Library { return newLibrary(t) }

// NewOld builds the library of a driver that lacks newer functions.
func NewOld(t testing.TB) *Library { return newLibrary(t, "-DOLD_DRIVER") }

func newLibrary(t testing.TB, defines ...string) *Library {
	t.Helper()
	l := &Library{Path: filepath.Join(t.TempDir(), "libnvidia-ml.so.1"), script: make(map[string]string)}
	l.replace(t, defines...)
	l.write(t)
	return l
}

// Upgrade replaces the library by another version, as a package manager does: processes that have
// it open keep the old one.
func (l *Library) Upgrade(t testing.TB, version string) {
	t.Helper()
	l.replace(t, fmt.Sprintf("-DVERSION=%q", version))
}

func (l *Library) replace(t testing.TB, defines ...string) {
	t.Helper()
	put(t, l.Path, compile(t, defines...))
}

// Set sends lines of key=value to the library, also where it is already open. An empty value removes the key.
func (l *Library) Set(t testing.TB, lines ...string) {
	t.Helper()
	l.mu.Lock()
	for _, line := range lines {
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			t.Fatalf("fakenvml: %q is not key=value", line)
		}
		l.script[key] = value
		if value == "" {
			delete(l.script, key)
		}
	}
	l.mu.Unlock()
	l.write(t)
}

func (l *Library) write(t testing.TB) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(l.script)) {
		fmt.Fprintf(&text, "%s=%s\n", key, l.script[key])
	}
	put(t, filepath.Join(filepath.Dir(l.Path), "fakenvml.ctl"), []byte(text.String()))
}

// put writes a file atomically.
func put(t testing.TB, path string, content []byte) {
	t.Helper()
	err := os.WriteFile(path+".new", content, 0o755)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

var (
	compiling sync.Mutex
	compiled  = make(map[string][]byte) // by definitions; guarded by compiling
)

// compile builds the library, once per process.
func compile(t testing.TB, defines ...string) []byte {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc to build the fake NVML with")
	}
	compiling.Lock()
	defer compiling.Unlock()
	key := strings.Join(defines, " ")
	if lib := compiled[key]; lib != nil {
		return lib
	}
	dir := t.TempDir()
	c, so := filepath.Join(dir, "fakenvml.c"), filepath.Join(dir, "fakenvml.so")
	put(t, c, source)
	args := append(defines, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared", "-fvisibility=hidden",
		"-Wl,-soname,libnvidia-ml.so.1", "-o", so, c, "-ldl")
	if out, err := exec.Command(gcc, args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	lib, err := os.ReadFile(so)
	if err != nil {
		t.Fatal(err)
	}
	compiled[key] = lib
	return lib
}

// H100 is the script of a busy H100 with 80 GB, as GPU number n.
func H100(n int) []string {
	return properties(n, "uuid=GPU-1f2e3d4c-0000-4000-8000-00000000000"+fmt.Sprint(n), "name=NVIDIA H100 80GB HBM3", "arch=9", "cc=9.0",
		"bus_width=5120", "max_mem_clock=2619", "mem_clock=2619", "sm_clock=1755",
		"total=85520809984", "used=76235669504", "reserved=540016640", "gpu=97", "mem=61", "temp=64", "margin=21",
		"power=655210", "limit=700000", "reasons=4", "remap=0,0,0,0", "ecc=0", "ecc_corrected=2", "field230=0", "field82=71", "mig=0",
		"pids=4711:75161927680,4712")
}

// SplitA100 is the script of an A100 with 40 GB in MIG mode with two instances.
func SplitA100(n int) []string {
	return properties(n, "uuid=GPU-a1000000-0000-4000-8000-00000000000"+fmt.Sprint(n), "name=NVIDIA A100-SXM4-40GB", "arch=7", "cc=8.0",
		"bus_width=5120", "max_mem_clock=1215", "mem_clock=1215", "sm_clock=1410",
		"total=42949672960", "used=1073741824", "reserved=536870912", "temp=41", "power=90000", "limit=400000", "reasons=1",
		"ecc=0", "ecc_corrected=0", "field230=0", "mig=1", "migs=2",
		"m0.uuid=MIG-aaaaaaaa-0000-4000-8000-000000000000", "m0.total=20937965568", "m0.used=13107200", "m0.gi=1", "m0.ci=0", "m0.mib=19968", "m0.slices=3", "m0.pids=99:1048576",
		"m1.uuid=MIG-bbbbbbbb-0000-4000-8000-000000000000", "m1.total=5100273664", "m1.used=12582912", "m1.gi=7", "m1.ci=0", "m1.mib=4864", "m1.slices=1")
}

// GB10 is the script of a GPU that shares the machine's memory.
func GB10(n int) []string {
	return properties(n, "uuid=GPU-6b100000-0000-4000-8000-00000000000"+fmt.Sprint(n), "name=NVIDIA GB10", "arch=10", "cc=12.1",
		"sm_clock=2418", "gpu=0", "mem=0", "temp=38", "power=4200", "reasons=1", "mig=0")
}

func properties(n int, lines ...string) []string {
	for i := range lines {
		lines[i] = fmt.Sprintf("%d.%s", n, lines[i])
	}
	return lines
}
