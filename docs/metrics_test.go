package docs

import (
	"os"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/metric"
)

// The table in metrics.md is that of the code.
func TestGeneratedMetrics(t *testing.T) {
	const page, opening, closing = "metrics.md", "<!-- metrics: go generate ./metric -->\n", "<!-- metrics end -->\n"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), opening)
	table, after, closed := strings.Cut(rest, closing)
	if !found || !closed {
		t.Fatalf("%s has no %q … %q", page, opening, closing)
	}
	want := metric.Page() + "\n"
	if table == want {
		return
	}
	if !*update {
		t.Fatalf("%s is out of date: go generate ./metric", page)
	}
	if err := os.WriteFile(page, []byte(before+opening+want+closing+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
