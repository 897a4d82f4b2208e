// Package cli is what all commands of pulley share: the root command, flags with
// their environment variables and configuration file, errors with exit codes, the
// connection to NATS, the frame of an operator's verb, output formats and shell
// completion.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// NewRoot is a command line of these commands. It adds to each what all have in
// common: the flags for configuration and logs, and the environment variable of
// each flag in its help.
func NewRoot(long, version string, list ...*cobra.Command) *cobra.Command {
	root := &cobra.Command{
		Use:           "pulley",
		Short:         "Distribute LLM inference requests over GPU workers",
		Long:          long,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		// Runs for every subcommand, unless one has a hook of the same name.
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return prepare(cmd) },
	}
	root.SetVersionTemplate("pulley {{.Version}}\n")
	root.SetUsageTemplate(strings.NewReplacer(
		".LocalFlags.FlagUsages", "wrapped .LocalFlags", ".InheritedFlags.FlagUsages", "wrapped .InheritedFlags",
	).Replace(root.UsageTemplate()))
	fs := root.PersistentFlags()
	fs.String("config", "", "YAML `file` with further settings")
	fs.String("log-level", "info", "what to log: debug, info, warn or error")
	fs.String("log-format", "text", "how to log: text or json")
	root.AddCommand(list...)
	ForEachCommand(root, func(cmd *cobra.Command) {
		forEachOwnFlag(cmd, func(f *pflag.Flag) { f.Usage += " (env " + EnvName(f.Name) + ")" })
		if cmd.Args == nil {
			cmd.Args = noArgs
		}
		if !cmd.Runnable() {
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	})
	return root
}

// helpWidth is where the descriptions of flags are wrapped, in columns.
const helpWidth = 118

func init() { // cobra keeps them for the whole process
	cobra.AddTemplateFunc("wrapped", func(fs *pflag.FlagSet) string { return fs.FlagUsagesWrapped(helpWidth) })
}

// prepare completes the flags of the command that is about to run from the
// environment and the configuration file, and gives its context a logger.
func prepare(cmd *cobra.Command) error {
	if !TakesConfig(cmd) {
		return nil
	}
	if err := configure(cmd); err != nil {
		return err
	}
	level, format := cmd.Flag("log-level").Value.String(), cmd.Flag("log-format").Value.String()
	log, err := NewLogger(cmd.ErrOrStderr(), level, format)
	if err != nil {
		return err
	}
	warnUnknownEnv(log, cmd.Root())
	cmd.SetContext(WithLogger(cmd.Context(), log))
	return nil
}

// noArgs is the Args of every command that sets none.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasAvailableSubCommands() {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	var names []string
	for _, sub := range cmd.Commands() {
		names = append(names, sub.Name())
	}
	return fmt.Errorf("unknown command %q%s", args[0], DidYouMean(args[0], names))
}

// Execute runs the command that args name and returns the exit code, having
// reported the error if there is one. Whatever goes wrong before a command's
// own function begins is a usage error.
func Execute(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	began := false
	ForEachCommand(root, func(cmd *cobra.Command) {
		run := cmd.RunE
		if run == nil {
			return
		}
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			began = true
			return run(cmd, args)
		}
	})
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !began {
		err = UsageError{explainUnknownFlag(cmd, err)}
	}
	return report(ctx, cmd, err, stderr)
}

// report turns a command's error into words and an exit code.
func report(ctx context.Context, cmd *cobra.Command, err error, stderr io.Writer) int {
	if err == nil {
		return ExitOK
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, ErrInterrupted)) {
		return ExitInterrupted
	}
	fmt.Fprintf(stderr, "pulley: %v\n", err)
	if _, ok := errors.AsType[UsageError](err); ok {
		fmt.Fprintf(stderr, "run '%s --help'\n", cmd.CommandPath())
		return ExitUsage
	}
	if _, ok := errors.AsType[NotFoundError](err); ok {
		return ExitNotFound
	}
	if _, ok := errors.AsType[refusedError](err); ok {
		return ExitRefused
	}
	return ExitFailed
}

// explainUnknownFlag adds the flag that may have been meant.
func explainUnknownFlag(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok || unknown.GetSpecifiedShortnames() != "" {
		return err
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	return fmt.Errorf("%w%s", err, DidYouMean("--"+unknown.GetSpecifiedName(), names))
}

// ForEachCommand visits cmd and all below it.
func ForEachCommand(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, sub := range cmd.Commands() {
		ForEachCommand(sub, visit)
	}
}

// forEachOwnFlag visits the configurable flags that cmd itself declares.
func forEachOwnFlag(cmd *cobra.Command, visit func(*pflag.Flag)) {
	seen := map[*pflag.Flag]bool{}
	own := func(f *pflag.Flag) {
		if Configurable(f) && !seen[f] {
			seen[f] = true
			visit(f)
		}
	}
	cmd.PersistentFlags().VisitAll(own)
	cmd.LocalNonPersistentFlags().VisitAll(own)
}
