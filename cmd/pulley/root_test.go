package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
)

func TestHelpNamesTheVariableOfEachFlag(t *testing.T) {
	root := newRootCommand()
	cli.ForEachCommand(root, func(cmd *cobra.Command) {
		if !cli.TakesConfig(cmd) {
			return
		}
		usages := cmd.LocalFlags().FlagUsages()
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !cli.Configurable(f) {
				return
			}
			if n := strings.Count(usages, "(env "+cli.EnvName(f.Name)+")"); n != 1 {
				t.Errorf("%s --help names %s %d times, want once", cmd.CommandPath(), cli.EnvName(f.Name), n)
			}
		})
	})
}

func TestHelpIsNotWide(t *testing.T) {
	root := newRootCommand()
	cli.ForEachCommand(root, func(cmd *cobra.Command) {
		cmd.InitDefaultHelpFlag()
		for line := range strings.Lines(cmd.UsageString()) {
			if strings.HasPrefix(line, "  -") || strings.HasPrefix(line, "      ") {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 120 {
					t.Errorf("%s --help has a line of %d columns: %q", cmd.CommandPath(), n, line)
				}
			}
		}
	})
}

// Every verb has a description, and an example that contains its name.
func TestEveryVerbHasHelp(t *testing.T) {
	nouns := []string{"gpu", "model", "tier", "route", "pool", "worker", "queue", "request", "dead", "key", "policy"}
	seen := make(map[string]bool)
	for _, cmd := range newRootCommand().Commands() {
		if !slices.Contains(nouns, cmd.Name()) {
			continue
		}
		seen[cmd.Name()] = true
		for _, verb := range cmd.Commands() {
			if verb.Long == "" || !strings.Contains(verb.Example, verb.CommandPath()) {
				t.Errorf("%s: Long %q, Example %q; want both, and the example to be of it", verb.CommandPath(), verb.Long, verb.Example)
			}
			for line := range strings.Lines(verb.Long + "\n" + verb.Example) {
				if n := len([]rune(line)); n > 90 {
					t.Errorf("%s: help has a line of %d characters: %s", verb.CommandPath(), n, line)
				}
			}
			if verb.Name() == "ls" && (verb.Flag("watch") == nil || verb.Flag("output") == nil) {
				t.Errorf("%s has no --watch, or no --output", verb.CommandPath())
			}
		}
	}
	if len(seen) != len(nouns) {
		t.Errorf("nouns %v, want %v", slices.Sorted(maps.Keys(seen)), nouns)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		code, stdout, stderr := clitest.Run(newRootCommand(), "completion", shell)
		if code != 0 || !strings.Contains(stdout, "pulley") || stderr != "" {
			t.Errorf("completion %s: exit code %d, %d bytes, stderr %q", shell, code, len(stdout), stderr)
		}
	}
	if _, stdout, _ := clitest.Run(newRootCommand(), "__complete", "brok"); !strings.HasPrefix(stdout, "broker\t") {
		t.Errorf("completion of brok = %q, want broker", stdout)
	}
}

func TestVersionNeedsNoConfiguration(t *testing.T) {
	t.Setenv("PULLEY_CONFIG", "/nowhere.yaml")
	for _, arg := range []string{"version", "--version", "help"} {
		if code, _, stderr := clitest.Run(newRootCommand(), arg); code != 0 {
			t.Errorf("%s: exit code %d, %s", arg, code, stderr)
		}
	}
}
