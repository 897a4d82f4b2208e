//go:build linux

package chaos_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/chaos"
)

var (
	run      = flag.Bool("chaos", false, "run parts of Pulley and strike them; without it only the checker is tested")
	seed     = flag.Uint64("seed", 1, "seed of requests and faults")
	during   = flag.Duration("for", 30*time.Second, "how long faults are injected")
	faults   = flag.String("faults", "all", "kinds of faults, separated by commas; a name may have *")
	brokers  = flag.Int("brokers", 1, "1 or 3")
	gateways = flag.Int("gateways", 2, "how many gateways there are")
	quiet    = flag.Duration("quiet", 4*time.Second, "mean time between two faults")
	rate     = flag.Float64("rate", 20, "requests per second")
	out      = flag.String("out", "", "directory for the report, the history and the logs (default: a temporary one, which stays if the run fails)")
	zoo      = flag.String("zoo", "", "names of bugs, separated by commas, or all: show that each of them is found")
	power    = flag.Bool("power", false, "cut the power of all brokers; needs root and loop devices")
	soak     = flag.Duration("soak", 0, "how long a fleet is under an even load, to see whether anything grows")
	leak     = flag.String("leak", "", "name of a leak that the soak has to find, or all")
	table    = flag.String("table", "", "histories, separated by commas: write what they show into README.md and docs/reliability.md")
	history  = flag.String("history", "", "check this history again, and run nothing")
)

// Faults strike a fleet under load, and every request ends as it is promised.
func TestFaults(t *testing.T) {
	if *history != "" {
		h, err := chaos.Load(*history)
		if err != nil {
			t.Fatal(err)
		}
		judge(t, h, filepath.Dir(*history))
		return
	}
	if !*run {
		t.Skip("needs -chaos: see make chaos")
	}
	kinds, err := chaos.Choose(*faults)
	if err != nil {
		t.Fatal(err)
	}
	dir := directory(t)
	h, err := chaos.Run(t.Context(), chaos.Config{
		Bin: binary(t), Dir: dir, Topology: chaos.Topology{Brokers: *brokers, Gateways: *gateways}, Seed: *seed, For: *during, Kinds: kinds, Quiet: *quiet, Rate: *rate, Log: t.Logf,
	})
	if errors.Is(err, chaos.ErrCannot) {
		t.Skip(err)
	}
	if err != nil {
		t.Error(err)
	}
	if h != nil {
		judge(t, h, dir)
	}
}

// Each bug of the zoo is found by the rule that is for it. The binary without a bug, under the same faults, is not accused by
// that rule: else the rule would find anything.
func TestZoo(t *testing.T) {
	if *zoo == "" {
		t.Skip("needs -zoo: see make chaos-zoo")
	}
	bin := buggy(t)
	clean := make(map[string]map[chaos.Rule]int) // rules that the binary without a bug breaks, by kinds of faults
	strike := func(t *testing.T, b chaos.Bug, name string) (found map[chaos.Rule]int) {
		h, err := chaos.Run(t.Context(), chaos.Config{
			Bin: bin, Dir: t.TempDir(), Seed: *seed, For: b.For, Kinds: b.Kinds, Quiet: time.Second, WarmUp: 2 * time.Second, Patience: cmp.Or(b.Patience, 12*time.Second), Rate: *rate, Bug: name, Log: t.Logf,
		})
		if err != nil {
			t.Fatal(err)
		}
		found = make(map[chaos.Rule]int)
		for _, v := range chaos.Check(h) {
			if found[v.Rule]++; found[v.Rule] == 1 {
				t.Log(v)
			}
		}
		return found
	}
	for _, b := range chaos.Bugs {
		if *zoo != "all" && !slices.Contains(strings.Split(*zoo, ","), b.Name) {
			continue
		}
		t.Run(b.Name, func(t *testing.T) {
			set := fmt.Sprint(b.Kinds, b.For, b.Patience)
			if clean[set] == nil {
				clean[set] = strike(t, b, "")
			}
			found := strike(t, b, b.Name)
			if n := found[b.Rule]; n == 0 || n <= clean[set][b.Rule] {
				t.Errorf("%s: rule %s finds it %d times, and %d times without the bug; found are %v", b.Says, b.Rule, n, clean[set][b.Rule], found)
			}
			t.Logf("%s: found %v, without the bug %v", b.Says, found, clean[set])
		})
	}
}

// Under an even load nothing grows: no memory, goroutine, descriptor, stream, consumer or key. With -leak, one of the known
// leaks is found, and in the right place.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("needs -soak: see make soak")
	}
	bin := buggy(t)
	run := func(t *testing.T, bug string) (grow []chaos.Growth) {
		dir := directory(t)
		all, requests, err := chaos.SoakRun(t.Context(), chaos.Config{Bin: bin, Dir: filepath.Join(dir, bug), Topology: chaos.Topology{Brokers: *brokers, Gateways: *gateways}, Seed: *seed, For: *soak, Rate: *rate, Bug: bug})
		if err != nil {
			t.Error(err)
		}
		outcomes := make(map[chaos.Outcome]int)
		for _, r := range requests {
			if outcomes[r.Outcome]++; r.Outcome != chaos.Answered && r.Outcome != chaos.Cancelled {
				t.Errorf("%+v", r)
			}
		}
		t.Logf("%d requests: %v", len(requests), outcomes)
		if b, err := json.Marshal(all); err != nil {
			t.Error(err)
		} else if err := os.WriteFile(filepath.Join(dir, bug, "soak.json"), b, 0o644); err != nil {
			t.Error(err)
		}
		grow, err = chaos.WriteGrowth(os.Stdout, all)
		if err != nil {
			t.Error(err)
		}
		return grow
	}
	if *leak == "" {
		for _, g := range run(t, "") {
			t.Errorf("%s: %s grow by %.1f an hour", g.Part, g.What, g.PerHour)
		}
		return
	}
	for _, l := range chaos.Leaks {
		if *leak != "all" && l.Name != *leak {
			continue
		}
		t.Run(l.Name, func(t *testing.T) {
			if !slices.ContainsFunc(run(t, l.Name), func(g chaos.Growth) bool { return strings.HasPrefix(g.Part, l.Part) && g.What == l.What }) {
				t.Errorf("not found: %s", l.Says)
			}
		})
	}
}

// What a queue on disk has acknowledged survives a power cut of all brokers. With an interval between syncs some of it does
// not: so the cut is one.
func TestPowerCut(t *testing.T) {
	if !*power {
		t.Skip("needs -power: see make chaos-power")
	}
	bin := binary(t)
	for _, test := range []struct {
		sync  string
		loses bool
	}{{"always", false}, {"2m", true}} {
		t.Run(test.sync, func(t *testing.T) {
			acked, lost, err := chaos.PowerCut(t.Context(), chaos.Config{Bin: bin, Dir: t.TempDir(), Topology: chaos.Topology{Brokers: *brokers, Sync: test.sync}}, 8*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d brokers, sync %s: %d requests acknowledged, %d lost", *brokers, test.sync, acked, lost)
			if acked < 100 || test.loses != (lost > 0) {
				t.Errorf("%d of %d acknowledged requests are lost", lost, acked)
			}
		})
	}
}

// The tables of README.md and docs/reliability.md are those of the harness, with a row for each kind of faults. With -table they
// are written.
func TestTables(t *testing.T) {
	var all []*chaos.History
	for file := range strings.SplitSeq(*table, ",") {
		if file == "" {
			continue
		}
		h, err := chaos.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h)
	}
	s := chaos.Summarize(all)
	for page, rows := range map[string]string{"../README.md": s.Promises(), "../docs/reliability.md": s.Figures()} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		before, old, after, err := chaos.SplitPage(string(text), "faults: make chaos-table")
		if err != nil {
			t.Fatalf("%s: %v", page, err)
		}
		if len(all) > 0 {
			if err := os.WriteFile(page, []byte(before+rows+after), 0o644); err != nil {
				t.Fatal(err)
			}
			old = rows
		}
		for _, kind := range chaos.Kinds() {
			if says := chaos.Says(kind); !strings.Contains(old, "| "+says+" |") {
				t.Errorf("%s has no row for %q: make chaos OUT=DIR FAULTS=%s, then make chaos-table", page, says, kind)
			}
		}
	}
}

// judge writes the report into a directory, and fails the test for each kind of violation.
func judge(t *testing.T, h *chaos.History, dir string) {
	t.Helper()
	if err := h.Save(filepath.Join(dir, "history.json")); err != nil {
		t.Error(err)
	}
	r := chaos.NewReport(h)
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "report.json"), b, 0o644)
	}
	if err != nil {
		t.Error(err)
	}
	page, err := os.Create(filepath.Join(dir, "report.html"))
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	if err := chaos.WritePage(page, h, r); err != nil {
		t.Error(err)
	}
	if err := r.WriteText(os.Stdout); err != nil {
		t.Error(err)
	}
	if len(r.Violations) > 0 {
		t.Errorf("%d violations; everything is in %s", len(r.Violations), dir)
	}
}

// directory is where a run leaves what it has. A temporary one stays only if the test fails.
func directory(t *testing.T) string {
	t.Helper()
	if *out != "" {
		return *out
	}
	dir, err := os.MkdirTemp("", "pulley-chaos.")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			os.RemoveAll(dir)
		}
	})
	return dir
}

// binary is the binary that PULLEY_BIN names, or one that is built now.
func binary(t *testing.T) string {
	t.Helper()
	if bin := os.Getenv("PULLEY_BIN"); bin != "" {
		return bin
	}
	bin := filepath.Join(t.TempDir(), "pulley")
	build := exec.Command("go", "build", "-o", bin, "./cmd/pulley")
	build.Dir = ".."
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, b)
	}
	return bin
}
