package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
)

var updateReference = flag.Bool("update", false, "write docs/reference/flags.md")

const flagsPage = "../../docs/reference/flags.md"

// The page of all flags is that of the commands.
func TestReferenceOfFlags(t *testing.T) {
	t.Setenv("HOME", "~") // defaults name it
	t.Setenv("XDG_STATE_HOME", "")
	want := flagsReference()
	if *updateReference {
		if err := os.WriteFile(flagsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(flagsPage); err != nil || string(got) != want {
		t.Errorf("%s is out of date (%v): go test ./cmd/pulley -run ReferenceOfFlags -update", flagsPage, err)
	}
}

// flagsReference lists the commands with their flags. Flags that many commands have alike are listed once.
func flagsReference() string {
	root := newRootCommand()
	commands := listed(root)
	users := make(map[string]int)
	for _, cmd := range commands {
		for _, f := range ownFlags(cmd) {
			users[flagRow(f)]++
		}
	}
	const many = 6
	var common []string
	for row, n := range users {
		if n >= many {
			common = append(common, row)
		}
	}
	slices.Sort(common)

	var page strings.Builder
	page.WriteString(`# Flags

Each flag ` + "`--some-flag`" + ` of a command is also the environment variable ` + "`PULLEY_SOME_FLAG`" + ` and the key ` + "`some-flag`" + ` of the YAML file
that ` + "`--config`" + ` names, except for those marked with *, which are flags only. A flag takes precedence over the environment, and the
environment over the file. ` + "`pulley COMMAND --help`" + ` describes the command; ` + "`make man`" + ` writes manual pages.

This page is generated: ` + "`go test ./cmd/pulley -run ReferenceOfFlags -update`" + `.

## Flags of all commands

`)
	table(&page, rows(slices.Collect(flagsOf(root.PersistentFlags()))))
	page.WriteString("\n## Flags of many commands\n\nThe tables of the commands name them in their last line.\n\n")
	table(&page, common)
	for _, cmd := range commands {
		fmt.Fprintf(&page, "\n## %s\n\n%s.\n\n```\n%s\n```\n", cmd.CommandPath(), cmd.Short, cmd.UseLine())
		var own, alike []string
		for _, f := range ownFlags(cmd) {
			if row := flagRow(f); users[row] >= many {
				alike = append(alike, "`--"+f.Name+"`")
			} else {
				own = append(own, row)
			}
		}
		if len(own) > 0 {
			page.WriteString("\n")
			table(&page, own)
		}
		if len(alike) > 0 {
			slices.Sort(alike)
			fmt.Fprintf(&page, "\nAnd %s.\n", strings.Join(alike, ", "))
		}
	}
	return page.String()
}

// listed are the commands that do something and that help lists, in alphabetical order.
func listed(root *cobra.Command) (list []*cobra.Command) {
	cli.ForEachCommand(root, func(cmd *cobra.Command) {
		hidden := false
		cmd.VisitParents(func(parent *cobra.Command) { hidden = hidden || parent.Hidden })
		if cmd.Runnable() && cmd.HasParent() && !cmd.Hidden && !hidden && cmd.Parent().Name() != "completion" && cmd.Name() != "help" {
			list = append(list, cmd)
		}
	})
	slices.SortStableFunc(list, func(a, b *cobra.Command) int { return cmp.Compare(a.CommandPath(), b.CommandPath()) })
	return list
}

// ownFlags are the flags of a command that are not flags of all commands, in the order of its help.
func ownFlags(cmd *cobra.Command) []*pflag.Flag {
	seen := make(map[string]bool)
	cmd.Root().PersistentFlags().VisitAll(func(f *pflag.Flag) { seen[f.Name] = true })
	var list []*pflag.Flag
	for _, set := range []*pflag.FlagSet{cmd.LocalFlags(), cmd.InheritedFlags()} {
		for f := range flagsOf(set) {
			if !seen[f.Name] {
				seen[f.Name] = true
				list = append(list, f)
			}
		}
	}
	return list
}

// flagsOf are the flags of a set that help lists.
func flagsOf(set *pflag.FlagSet) func(yield func(*pflag.Flag) bool) {
	return func(yield func(*pflag.Flag) bool) {
		more := true
		set.VisitAll(func(f *pflag.Flag) {
			if more && !f.Hidden && f.Name != "help" && f.Name != "version" {
				more = yield(f)
			}
		})
	}
}

func rows(flags []*pflag.Flag) (list []string) {
	for _, f := range flags {
		list = append(list, flagRow(f))
	}
	return list
}

// flagRow is a flag's line of a table.
func flagRow(f *pflag.Flag) string {
	kind, usage := pflag.UnquoteUsage(f)
	usage, _, _ = strings.Cut(usage, " (env PULLEY_")
	name := "`--" + f.Name
	if kind != "" {
		name += " " + kind
	}
	name += "`"
	if f.Shorthand != "" {
		name = "`-" + f.Shorthand + "`, " + name
	}
	if !cli.Configurable(f) {
		name += " *"
	}
	if !strings.Contains(usage, "(default") {
		switch f.DefValue {
		case "", "false", "0", "0s", "[]":
		default:
			usage += " (default " + f.DefValue + ")"
		}
	}
	return "| " + name + " | " + strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;", "*", `\*`).Replace(usage) + " |\n"
}

func table(page *strings.Builder, rows []string) {
	page.WriteString("| flag | meaning |\n|---|---|\n" + strings.Join(rows, ""))
}
