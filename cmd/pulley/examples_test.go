package main

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/engine/sim"
)

const examples = "../../examples/"

// The configuration in README.md is one.
func TestReadmeConfiguration(t *testing.T) {
	page, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := bytes.Cut(page, []byte("```yaml\n"))
	text, _, closed := bytes.Cut(rest, []byte("```\n"))
	if !found || !closed {
		t.Fatal("README.md has no configuration")
	}
	if code, _, stderr := clitest.Run(newRootCommand(), "config", "check", clitest.WriteFile(t, "pulley.yaml", string(text))); code != 0 {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// Each file in examples does what its README says.
func TestExamples(t *testing.T) {
	for _, args := range [][]string{{"policy", "validate", examples + "policy.yaml"}, {"config", "check", examples + "pulley.yaml"}} {
		if code, _, stderr := clitest.Run(newRootCommand(), args...); code != 0 {
			t.Errorf("pulley %v: exit code %d, %s", args, code, stderr)
		}
	}
	engine, err := sim.New(sim.Config{Name: "sim", Models: []string{"sim"}, Slots: 64})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(engine)
	defer server.Close()
	trace, err := bench.ReadTraceFile(examples + "trace.csv")
	if err != nil {
		t.Fatal(err)
	}
	if last := trace[len(trace)-1].At; len(trace) < 50 || last > 20*time.Second {
		t.Errorf("the trace has %d requests in %v; want a small one", len(trace), last)
	}
	code, stdout, stderr := clitest.Run(newRootCommand(), "bench", "--url", server.URL, "--model", "sim", "--trace", examples+"trace.csv", "--speedup", "10", "--exact-tokens", "-o", "json")
	if code != 0 || !json.Valid([]byte(stdout)) {
		t.Errorf("bench: exit code %d, %s%s", code, stdout, stderr)
	}
	for threshold, want := range map[string]int{"p50_e2e<0s": 0, "error_rate<1%": 1, "p50_e2e>5": 2} {
		html := filepath.Join(t.TempDir(), "report.html")
		code, stdout, stderr := clitest.Run(newRootCommand(), "bench", "--url", server.URL, "--model", "sim", "--requests", "5", "--fail-if", threshold, "--html", html, "-o", "csv")
		if page, _ := os.ReadFile(html); code != want || want < 2 && (!bytes.HasPrefix([]byte(stdout), []byte("target,url,model,round,")) || !bytes.Contains(page, []byte("<svg"))) {
			t.Errorf("--fail-if %s: exit code %d, want %d: %s%s", threshold, code, want, stdout, stderr)
		}
	}
	files, err := filepath.Glob(examples + "*")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(examples + "README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := filepath.Base(f); name != "README.md" && !bytes.Contains(readme, []byte("["+name+"]("+name+")")) {
			t.Errorf("%s is not in examples/README.md", name)
		}
	}
}
