// Package cli has what all commands of pulley share: the root command, flags with their environment variables and
// configuration file, errors with exit codes, the connection to NATS, the frame of an operator's verb, output formats
// and shell completion.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/plain"
)

// NewRoot makes the root command of a command line. It adds to the given commands what all have in common: the flags
// for configuration and logs, and the name of the environment variable in the help of each flag.
func NewRoot(long, version string, commands ...*cobra.Command) *cobra.Command {
	root := &cobra.Command{
		Use:           "pulley",
		Short:         "Distribute LLM inference requests over GPU workers",
		Long:          long,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		// It runs for every subcommand that has no hook of the same name.
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return prepare(cmd) },
	}
	root.SetVersionTemplate("pulley {{.Version}}\n")
	root.SetUsageTemplate(strings.NewReplacer(
		".LocalFlags.FlagUsages", "wrapped .LocalFlags", ".InheritedFlags.FlagUsages", "wrapped .InheritedFlags",
	).Replace(root.UsageTemplate()))
	fs := root.PersistentFlags()
	fs.String("config", "", "YAML `file` with settings")
	fs.String("log-level", "info", "log level: debug, info, warn or error")
	fs.String("log-format", "text", "log format: text or json")
	root.AddCommand(commands...)
	ForEachCommand(root, func(cmd *cobra.Command) {
		forEachOwnFlag(cmd, func(f *pflag.Flag) { f.Usage += " (env " + EnvName(f.Name) + ")" })
		if cmd.Args == nil {
			cmd.Args = noArgs
		}
		if !cmd.Runnable() && cmd.HasSubCommands() { // without either it is a help topic
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	})
	return root
}

// helpWidth is the width, in columns, at which the descriptions of flags wrap.
const helpWidth = 118

func init() { // cobra keeps template functions in a global
	cobra.AddTemplateFunc("wrapped", func(fs *pflag.FlagSet) string { return fs.FlagUsagesWrapped(helpWidth) })
}

// prepare runs before each command. It sets the flags that the command line does not give from the environment and the
// configuration file, and puts a logger into the command's context.
func prepare(cmd *cobra.Command) error {
	if !TakesConfig(cmd) {
		return nil
	}
	if err := configure(cmd); err != nil {
		return err
	}
	if err := checkOutput(cmd); err != nil {
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

// noArgs refuses arguments. It is the Args of every command that sets none.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasAvailableSubCommands() {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return fmt.Errorf("unknown command %q%s", args[0], suggest(cmd, args))
}

// Execute runs the command that args name, prints its error if there is one, and returns the exit code. An error before
// the command's own function runs is a usage error.
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
		err = Error{ExitUsage, explainFlag(cmd, err)}
	}
	return report(ctx, cmd, err, stderr)
}

// report prints a command's error and returns the exit code.
func report(ctx context.Context, cmd *cobra.Command, err error, stderr io.Writer) int {
	if err == nil {
		return ExitOK
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, ErrInterrupted)) {
		return ExitInterrupted
	}
	fmt.Fprintf(stderr, "pulley: %s\n", plain.Error(err))
	code := ExitFailed
	if e, ok := errors.AsType[Error](err); ok {
		code = e.Code
	}
	if code == ExitUsage {
		fmt.Fprintf(stderr, "run '%s --help'\n", cmd.CommandPath())
	}
	return code
}

// explainFlag says which values a flag accepts, and suggests a name for an unknown one.
func explainFlag(cmd *cobra.Command, err error) error {
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		f := invalid.GetFlag()
		return fmt.Errorf("--%s: %w", f.Name, invalidValue(f, invalid.GetValue(), err))
	}
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok || unknown.GetSpecifiedShortnames() != "" {
		return err
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	return fmt.Errorf("%w%s", err, DidYouMean("--"+unknown.GetSpecifiedName(), names))
}

// ForEachCommand visits cmd and all commands below it.
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

// NewLogger makes a logger from the values of --log-level and --log-format.
func NewLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	l, ok := levels[level]
	if !ok {
		return nil, Usagef("--log-level %q: must be debug, info, warn or error", level)
	}
	options := slog.HandlerOptions{Level: l, ReplaceAttr: plainErrors}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, &options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &options)), nil
	}
	return nil, Usagef("--log-format %q: must be text or json", format)
}

// plainErrors logs errors in plain words.
func plainErrors(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindAny {
		if err, ok := a.Value.Any().(error); ok {
			a.Value = slog.StringValue(plain.Error(err))
		}
	}
	return a
}

type loggerKey struct{}

// WithLogger returns a context with a logger; with nil, nothing is logged.
func WithLogger(ctx context.Context, log *slog.Logger) context.Context {
	return context.WithValue(ctx, loggerKey{}, log)
}

// Logger returns the logger of a context, such as cmd.Context() within a command. Without one it returns a logger that
// discards everything.
func Logger(ctx context.Context) *slog.Logger {
	if log, ok := ctx.Value(loggerKey{}).(*slog.Logger); ok && log != nil {
		return log
	}
	return slog.New(slog.DiscardHandler)
}
