package docs_test

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/metric"
)

// troubleshooting.md has every code of an error that a client may get, every state of a worker and every check of doctor, no
// others, and quotes doctor's own words.
func TestTroubleshooting(t *testing.T) {
	page := read(t, "troubleshooting.md")
	check := func(heading string, want []string) {
		t.Helper()
		if got := firstColumn(section(t, page, heading)); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
			t.Errorf("%s has\n%q\nand the code\n%q", heading, got, want)
		}
	}
	check("Clients get an error", metric.Codes)
	check("A worker appears, and gets nothing", slices.DeleteFunc(slices.Clone(metric.States), func(s string) bool { return s == metric.Other }))

	var source strings.Builder
	for _, dir := range []string{"doctor", "fleet"} {
		files, err := filepath.Glob("../cmd/pulley/internal/" + dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("%d files, %v", len(files), err)
		}
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				source.WriteString(read(t, file))
			}
		}
	}
	checks := []string{"this machine"}
	for _, m := range regexp.MustCompile(`\t\{"([a-z ]+)", (?:ofFleet|\(\*examination\))`).FindAllStringSubmatch(source.String(), -1) {
		checks = append(checks, m[1])
	}
	check("What doctor says", checks)
	for _, row := range strings.Split(section(t, page, "What doctor says"), "\n| ")[1:] {
		_, text, _ := strings.Cut(row, " | ")
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(text, -1) {
			if words := m[1]; !strings.HasPrefix(words, "pulley ") && !strings.HasPrefix(words, "--") && !strings.Contains(source.String(), words) {
				t.Errorf("doctor does not say %q", words)
			}
		}
	}
}

// section is what a page has below a heading, up to the next of that kind.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(page, "\n## "+heading+"\n")
	if !found {
		t.Fatalf("no heading %q", heading)
	}
	text, _, _ := strings.Cut(rest, "\n## ")
	return text
}

// firstColumn is what the rows of a table begin with, in code.
func firstColumn(text string) (list []string) {
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(text, -1) {
		list = append(list, m[1])
	}
	return list
}
