package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/testenv"
)

// TestEngines checks engines.md against the code: each dialect has a section with the version of its recording, and each
// setting of Pulley that it names exists.
func TestEngines(t *testing.T) {
	page := read(t, "engines.md")
	named := make(map[engine.Dialect]string)
	for _, section := range strings.Split(page, "\n## ")[1:] {
		if m := regexp.MustCompile("`dialect=([^`]+)`").FindStringSubmatch(section); m != nil {
			named[engine.Dialect(m[1])] = section
		}
	}
	for _, d := range sim.Dialects() {
		section, ok := named[d]
		if !ok {
			t.Errorf("no section has `dialect=%s`", d)
		}
		for _, row := range []string{"tells", "does not tell", "Pulley concludes", "engine settings", "Pulley settings", "traps"} {
			if !strings.Contains(section, "\n| "+row+" |") {
				t.Errorf("the section of %s has no row %q", d, row)
			}
		}
		delete(named, d)
	}
	for d := range named {
		t.Errorf("there is no dialect %s", d)
	}
	for _, r := range testenv.Recordings(t, "../engine/testdata/answers") {
		if !strings.Contains(page, r.Engine) {
			t.Errorf("the version of the recording, %s, is not there", r.Engine)
		}
	}
	list := regexp.MustCompile(`engineKeys = "([^"]+)" \+\s+"([^"]+)"`).FindStringSubmatch(read(t, "../cmd/pulley/engine.go"))
	keys := strings.Split(list[1]+list[2], ", ")
	flags := flagsOf(t)
	for line := range strings.Lines(page) {
		settings, ok := strings.CutPrefix(line, "| Pulley settings |")
		for _, m := range regexp.MustCompile("`([-a-z]+)=[^`]*`").FindAllStringSubmatch(settings, -1) {
			if ok && !slices.Contains(keys, m[1]) {
				t.Errorf("--engine has no key %s=", m[1])
			}
		}
	}
	for _, m := range regexp.MustCompile("`pulley [a-z ]*(--[-a-z]+)").FindAllStringSubmatch(page, -1) {
		if !flags[m[1][2:]] {
			t.Errorf("there is no flag %s", m[1])
		}
	}
}

// flagsOf are the names of the flags in cmd/pulley.
func flagsOf(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("../cmd/pulley/*.go")
	if err != nil {
		t.Fatal(err)
	}
	flags := make(map[string]bool)
	for _, file := range files {
		for _, m := range regexp.MustCompile(`"([a-z][-a-z]+)"`).FindAllStringSubmatch(read(t, file), -1) {
			flags[m[1]] = true
		}
	}
	return flags
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
