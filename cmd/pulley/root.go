package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// commands makes the subcommands of pulley, in the order of its help.
var commands = []func() *cobra.Command{
	newUpCommand,
	newGatewayCommand,
	newWorkerNoun,
	newGPUCommand,
	newGPUProbeCommand,
	newBrokerCommand,
	newTierCommand,
	newRouteCommand,
	newPoolCommand,
	newQueueCommand,
	newRequestCommand,
	newDeadCommand,
	newKeyCommand,
	newPolicyCommand,
	newTopCommand,
	newEventsCommand,
	newDoctorCommand,
	newBenchCommand,
	newSimCommand,
	newVersionCommand,
}

const rootHelp = `Pulley distributes LLM inference requests over GPU workers that pull what they
have room for from NATS JetStream.

Configuration
  Every flag --some-flag is also the environment variable PULLEY_SOME_FLAG and
  the key some-flag in the YAML file given by --config, unless it says what one of
  the verbs of gpu, tier, route, pool, worker, queue, request, dead, key or policy
  is to do. The flag wins over the environment, the environment over the file. In
  the file a key at the top level holds for each command with that flag; under the
  name of a command it holds for that command alone, and wins:

    nats: nats://broker-1:4222
    log-level: debug
    gateway:
      listen: 0.0.0.0:8080
      nats-token-file: ${CREDENTIALS_DIRECTORY}/nats-token

  ${NAME} in the file is the environment variable NAME ($${ is a plain ${).
  A flag that may be repeated takes a list in the file, and values separated by
  newlines or semicolons in the environment. An empty variable counts as unset.

Exit codes
  0    done
  1    failed
  2    wrong usage or configuration
  3    the thing named does not exist
  4    refused: the thing named is in no state for it, or it is not allowed
  130  interrupted`

// helpWidth is where the descriptions of flags are wrapped, in columns.
const helpWidth = 118

func init() { // cobra keeps them for the whole process
	cobra.AddTemplateFunc("wrapped", func(fs *pflag.FlagSet) string { return fs.FlagUsagesWrapped(helpWidth) })
}

// newRootCommand is the whole command line.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "pulley",
		Short:         "Distribute LLM inference requests over GPU workers",
		Long:          rootHelp,
		Version:       buildVersion(),
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
	for _, newCommand := range commands {
		root.AddCommand(newCommand())
	}
	forEachCommand(root, func(cmd *cobra.Command) {
		forEachOwnFlag(cmd, func(f *pflag.Flag) { f.Usage += " (env " + envName(f.Name) + ")" })
		if cmd.Args == nil {
			cmd.Args = noArgs
		}
		if !cmd.Runnable() {
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	})
	return root
}

// prepare completes the flags of the command that is about to run from the
// environment and the configuration file, and gives its context a logger.
func prepare(cmd *cobra.Command) error {
	if !takesConfig(cmd) {
		return nil
	}
	if err := configure(cmd); err != nil {
		return err
	}
	level, format := cmd.Flag("log-level").Value.String(), cmd.Flag("log-format").Value.String()
	log, err := newLogger(cmd.ErrOrStderr(), level, format)
	if err != nil {
		return err
	}
	warnUnknownEnv(log, cmd.Root())
	cmd.SetContext(context.WithValue(cmd.Context(), loggerKey{}, log))
	return nil
}

// takesConfig is false for the commands that cobra adds, and for version,
// which must work with any configuration.
func takesConfig(cmd *cobra.Command) bool {
	for cmd.HasParent() && cmd.Parent().HasParent() {
		cmd = cmd.Parent()
	}
	switch cmd.Name() {
	case "completion", "help", "version", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd:
		return false
	}
	return true
}

func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var options slog.HandlerOptions
	switch level {
	case "debug":
		options.Level = slog.LevelDebug
	case "info":
		options.Level = slog.LevelInfo
	case "warn":
		options.Level = slog.LevelWarn
	case "error":
		options.Level = slog.LevelError
	default:
		return nil, usagef("--log-level %q: want debug, info, warn or error", level)
	}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, &options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &options)), nil
	}
	return nil, usagef("--log-format %q: want text or json", format)
}

type loggerKey struct{}

// logger is the logger that --log-level and --log-format ask for, out of
// cmd.Context() within a command.
func logger(ctx context.Context) *slog.Logger {
	if log, ok := ctx.Value(loggerKey{}).(*slog.Logger); ok {
		return log
	}
	return slog.New(slog.DiscardHandler)
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
	return fmt.Errorf("unknown command %q%s", args[0], didYouMean(args[0], names))
}

const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4
	exitInterrupted = 130
)

// usageError says that the command cannot be run as it was asked for.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// notFoundError says that the thing named does not exist.
type notFoundError struct{ err error }

func (e notFoundError) Error() string { return e.err.Error() }
func (e notFoundError) Unwrap() error { return e.err }

func notFoundf(format string, args ...any) error { return notFoundError{fmt.Errorf(format, args...)} }

// refusedError says that the thing named is in no state for what was asked, or
// that the one who asked may not.
type refusedError struct{ err error }

func (e refusedError) Error() string { return e.err.Error() }
func (e refusedError) Unwrap() error { return e.err }

func refusedf(format string, args ...any) error { return refusedError{fmt.Errorf(format, args...)} }

// execute runs the command that args name and returns the exit code, having
// reported the error if there is one. Whatever goes wrong before a command's
// own function begins is a usage error.
func execute(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	began := false
	forEachCommand(root, func(cmd *cobra.Command) {
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
		err = usageError{explainUnknownFlag(cmd, err)}
	}
	return report(ctx, cmd, err, stderr)
}

// report turns a command's error into words and an exit code.
func report(ctx context.Context, cmd *cobra.Command, err error, stderr io.Writer) int {
	if err == nil {
		return exitOK
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, errInterrupted)) {
		return exitInterrupted
	}
	fmt.Fprintf(stderr, "pulley: %v\n", err)
	if _, ok := errors.AsType[usageError](err); ok {
		fmt.Fprintf(stderr, "run '%s --help'\n", cmd.CommandPath())
		return exitUsage
	}
	if _, ok := errors.AsType[notFoundError](err); ok {
		return exitNotFound
	}
	if _, ok := errors.AsType[refusedError](err); ok {
		return exitRefused
	}
	return exitFailed
}

// explainUnknownFlag adds the flag that may have been meant.
func explainUnknownFlag(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok || unknown.GetSpecifiedShortnames() != "" {
		return err
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	return fmt.Errorf("%w%s", err, didYouMean("--"+unknown.GetSpecifiedName(), names))
}

// didYouMean is a clause with the known word nearest to word, or nothing if
// none is near.
func didYouMean(word string, known []string) string {
	if s := nearest(word, known); s != "" {
		return fmt.Sprintf("; did you mean %q?", s)
	}
	return ""
}

func nearest(word string, known []string) string {
	best, most := "", max(2, len(word)/3)
	for _, k := range known {
		if d := editDistance(strings.ToLower(word), strings.ToLower(k)); d <= most {
			best, most = k, d-1
		}
	}
	return best
}

// editDistance is the number of characters to insert, delete or replace to
// make b of a.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(d, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}
