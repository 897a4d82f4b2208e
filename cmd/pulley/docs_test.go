package main

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var (
	docFence   = regexp.MustCompile("(?s)\n```(sh|)\n(.*?)\n```\n")
	docInline  = regexp.MustCompile("`(pulley [^`]+)`")
	docCommand = regexp.MustCompile(`(?:^|[ (;&|/])pulley +([a-z][^|;&)#]*)`)
	docFlag    = regexp.MustCompile(`(?:^| )--([a-z][-a-z]*)`)
)

// Each command of Pulley on a page has a verb and flags that exist.
func TestCommandsOfDocs(t *testing.T) {
	root := newRootCommand()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	n := 0
	for _, dir := range []string{"../../docs", "../../examples", "../../deploy"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && filepath.Ext(path) == ".md" && !strings.Contains(path, "/reference/") {
				n += checkCommands(t, root, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, page := range []string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"} {
		n += checkCommands(t, root, "../../"+page)
	}
	if n < 100 {
		t.Errorf("%d commands found on all pages", n)
	}
}

// checkCommands returns how many commands a page has.
func checkCommands(t *testing.T, root *cobra.Command, path string) (n int) {
	t.Helper()
	page := read(t, path)
	var commands []string
	for _, block := range docFence.FindAllStringSubmatch(page, -1) {
		for line := range strings.Lines(strings.ReplaceAll(block[2], "\\\n", " ")) {
			line, _, _ = strings.Cut(line, " # ")
			if block[1] == "" {
				var is bool
				if line, is = strings.CutPrefix(line, "$ "); !is {
					continue // what a command has printed
				}
			}
			commands = append(commands, line)
		}
	}
	for _, m := range docInline.FindAllStringSubmatch(docFence.ReplaceAllString(page, "\n"), -1) {
		commands = append(commands, strings.Join(strings.Fields(m[1]), " "))
	}
	for _, line := range commands {
		for _, m := range docCommand.FindAllStringSubmatch(strings.ReplaceAll(line, "make -C pulley ", "make "), -1) {
			n++
			checkCommand(t, root, path, strings.Fields(m[1]))
		}
	}
	return n
}

func checkCommand(t *testing.T, root *cobra.Command, path string, words []string) {
	t.Helper()
	line := strings.Join(words, " ")
	var verbs []string
	for _, word := range words {
		if !regexp.MustCompile(`^[a-z][-a-z]*,?$`).MatchString(word) {
			break
		}
		verbs = append(verbs, strings.TrimSuffix(word, ","))
	}
	cmd, rest, err := root.Find(verbs)
	if err != nil || cmd == root || !cmd.Runnable() && len(rest) > 0 {
		t.Errorf("%s: pulley %s: there is no such command", path, line)
		return
	}
	for _, m := range docFlag.FindAllStringSubmatch(line, -1) {
		known := m[1] == "help"
		for _, set := range []*pflag.FlagSet{cmd.Flags(), cmd.InheritedFlags(), root.PersistentFlags()} {
			known = known || set.Lookup(m[1]) != nil
		}
		if !known {
			t.Errorf("%s: pulley %s: %s has no flag --%s", path, line, cmd.CommandPath(), m[1])
		}
	}
}
