package main

import (
	"cmp"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check a configuration file", Long: `The configuration file is the one that --config names. 'pulley --help' says how it is
read.`}
	cmd.AddCommand(&cobra.Command{
		Use: "check [FILE]", Short: "Check a configuration file, and start nothing",
		Long: `Check a configuration file: its keys, its values, and what the commands that it has a
section for say of them, with the files that they name. Nothing is started or
connected. Without FILE that is the file of --config or $PULLEY_CONFIG. The exit code
is 2 if anything is wrong.`,
		Example: `  pulley config check pulley.yaml`,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file := cmp.Or(strings.Join(args, ""), cmd.Flag("config").Value.String(), os.Getenv(cli.EnvName("config")))
			if file == "" {
				return cli.Usagef("missing argument: FILE, or --config")
			}
			if err := cmd.Root().PersistentFlags().Set("config", file); err != nil {
				return err
			}
			sections, err := cli.CheckConfig(cli.WithLogger(cmd.Context(), nil), cmd.Root())
			if err != nil {
				return err
			}
			text := "no command has a section of its own"
			if len(sections) > 0 {
				text = "sections for " + strings.Join(sections, ", ")
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is valid: %s\n", term.Printable(file), text)
			return nil
		},
	})
	return cmd
}
