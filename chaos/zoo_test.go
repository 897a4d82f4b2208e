package chaos_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pulley-lb/pulley/chaos"
)

// The edits of the bugs fit the product as it is.
func TestBugsFitTheProduct(t *testing.T) {
	if _, err := chaos.WriteOverlay("..", t.TempDir()); err != nil {
		t.Error(err)
	}
	rules := make(map[chaos.Rule]bool)
	for _, b := range chaos.Bugs {
		rules[b.Rule] = true
		if _, err := chaos.Choose(b.Kinds[0]); err != nil {
			t.Errorf("bug %s: %v", b.Name, err)
		}
	}
	t.Logf("%d bugs, %d rules", len(chaos.Bugs), len(rules))
}

// buggy builds the binary that has all bugs.
func buggy(t *testing.T) string {
	t.Helper()
	if bin := os.Getenv("PULLEY_BUGGY_BIN"); bin != "" {
		return bin
	}
	dir := t.TempDir()
	overlay, err := chaos.WriteOverlay("..", dir)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "pulley")
	build := exec.Command("go", "build", "-overlay", overlay, "-o", bin, "./cmd/pulley")
	build.Dir = ".."
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, b)
	}
	return bin
}
