package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
)

// Each command that help lists has a page with what its help says, and each shell a script.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	if code, _, stderr := clitest.Run(newRootCommand(), "man", dir); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	cli.ForEachCommand(newRootCommand(), func(cmd *cobra.Command) {
		if !cmd.IsAvailableCommand() && cmd.HasParent() {
			return
		}
		page := read("man1/" + strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1")
		if !strings.Contains(page, ".SH NAME") || !strings.Contains(page, ".SH SYNOPSIS") {
			t.Errorf("the page of %s lacks its head", cmd.CommandPath())
		}
	})
	if page := read("man1/pulley-worker-drain.1"); !strings.Contains(page, "accepts no new requests") || !strings.Contains(page, "no-wait") {
		t.Errorf("pulley-worker-drain.1:\n%s", page)
	}
	for _, name := range []string{"pulley.bash", "_pulley", "pulley.fish"} {
		if !strings.Contains(read("completions/"+name), "pulley") {
			t.Errorf("%s is no completion script of pulley", name)
		}
	}
	if code, _, stderr := clitest.Run(newRootCommand(), "man"); code != cli.ExitUsage || !strings.Contains(stderr, "missing argument: DIRECTORY") {
		t.Errorf("without a directory: exit code %d, %s", code, stderr)
	}
}
