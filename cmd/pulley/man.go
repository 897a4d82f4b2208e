package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
)

// newManCommand is pulley man, by which make man writes the manual pages and the completion scripts.
func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use: "man DIRECTORY", Short: "Write manual pages and completion scripts", Hidden: true,
		Args: cli.RequiredArgs("DIRECTORY"),
		RunE: func(cmd *cobra.Command, args []string) error { return writeManual(cmd.Root(), args[0]) },
	}
}

// writeManual writes the manual page of each command into man1 below a directory, and the completion script of each shell into
// completions.
func writeManual(root *cobra.Command, dir string) error {
	pages, scripts := filepath.Join(dir, "man1"), filepath.Join(dir, "completions")
	for _, d := range []string{pages, scripts} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	root.DisableAutoGenTag = true
	epoch := time.Unix(0, 0).UTC() // pages of the same version are the same
	if err := doc.GenManTree(root, &doc.GenManHeader{Title: "PULLEY", Section: "1", Source: "Pulley " + buildVersion(), Date: &epoch}, pages); err != nil {
		return fmt.Errorf("manual pages: %w", err)
	}
	for name, write := range map[string]func(string) error{
		"pulley.bash": func(file string) error { return root.GenBashCompletionFileV2(file, true) },
		"_pulley":     root.GenZshCompletionFile,
		"pulley.fish": func(file string) error { return root.GenFishCompletionFile(file, true) },
	} {
		if err := write(filepath.Join(scripts, name)); err != nil {
			return fmt.Errorf("completion: %w", err)
		}
	}
	return nil
}
