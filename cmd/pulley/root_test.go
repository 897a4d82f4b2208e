package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// withCommands is the command line with further commands.
func withCommands(t *testing.T, more ...func() *cobra.Command) *cobra.Command {
	t.Helper()
	before := commands
	commands = append(commands[:len(commands):len(commands)], more...)
	defer func() { commands = before }()
	return newRootCommand()
}

// runRoot runs a command line in this process.
func runRoot(root *cobra.Command, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = execute(context.Background(), root, args, &out, &err)
	return code, out.String(), err.String()
}

func TestExitCodes(t *testing.T) {
	returns := map[string]error{
		"done": nil, "failed": errors.New("disk full"), "usage": usagef("--a: too much"),
		"notfound": fmt.Errorf("look up: %w", notFoundf("no worker %q", "w1")),
		"refused":  refusedf("request is done"),
	}
	newTryCommand := func() *cobra.Command {
		parent := &cobra.Command{Use: "try"}
		for name, err := range returns {
			parent.AddCommand(&cobra.Command{Use: name, RunE: func(*cobra.Command, []string) error { return err }})
		}
		needs := &cobra.Command{Use: "needs", RunE: func(*cobra.Command, []string) error { return nil }}
		needs.Flags().Int("count", 0, "")
		needs.MarkFlagRequired("count")
		parent.AddCommand(needs)
		return parent
	}
	tests := map[string]struct {
		args string
		code int
		want string // on stderr, whole
	}{
		"done":                 {"try done", 0, ""},
		"failed":               {"try failed", 1, "pulley: disk full\n"},
		"usage error":          {"try usage", 2, "pulley: --a: too much\nrun 'pulley try usage --help'\n"},
		"not found, wrapped":   {"try notfound", 3, "pulley: look up: no worker \"w1\"\n"},
		"refused":              {"try refused", 4, "pulley: request is done\n"},
		"group shows its help": {"try", 0, ""},
		"unknown command":      {"brokr", 2, "pulley: unknown command \"brokr\"; did you mean \"broker\"?\nrun 'pulley --help'\n"},
		"unknown subcommand":   {"try refusd", 2, "pulley: unknown command \"refusd\"; did you mean \"refused\"?\nrun 'pulley try --help'\n"},
		"unexpected argument":  {"try done x", 2, "pulley: unexpected argument \"x\"\nrun 'pulley try done --help'\n"},
		"unknown flag":         {"try needs --cuont 1", 2, "pulley: unknown flag: --cuont; did you mean \"--count\"?\nrun 'pulley try needs --help'\n"},
		"invalid flag":         {"try needs --count x", 2, "pulley: invalid argument \"x\" for \"--count\" flag: strconv.ParseInt: parsing \"x\": invalid syntax\nrun 'pulley try needs --help'\n"},
		"missing flag":         {"try needs", 2, "pulley: required flag(s) \"count\" not set\nrun 'pulley try needs --help'\n"},
		"unknown log level":    {"try done --log-level loud", 2, "pulley: --log-level \"loud\": want debug, info, warn or error\nrun 'pulley try done --help'\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := runRoot(withCommands(t, newTryCommand), strings.Fields(tt.args)...)
			if code != tt.code || stderr != tt.want {
				t.Errorf("pulley %s: exit code %d, stderr %q; want %d, %q", tt.args, code, stderr, tt.code, tt.want)
			}
		})
	}
}

func TestInterruptedCommandIsSilent(t *testing.T) {
	root := withCommands(t, func() *cobra.Command {
		return &cobra.Command{Use: "try", RunE: func(cmd *cobra.Command, _ []string) error {
			return fmt.Errorf("ask: %w", context.Cause(cmd.Context()))
		}}
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errInterrupted)
	var stderr bytes.Buffer
	if code := execute(ctx, root, []string{"try"}, &stderr, &stderr); code != exitInterrupted || stderr.Len() > 0 {
		t.Errorf("exit code %d, stderr %q; want %d and nothing", code, &stderr, exitInterrupted)
	}
}

func TestHelpNamesTheVariableOfEachFlag(t *testing.T) {
	root := newRootCommand()
	forEachCommand(root, func(cmd *cobra.Command) {
		if !takesConfig(cmd) {
			return
		}
		usages := cmd.LocalFlags().FlagUsages()
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !configurable(f) {
				return
			}
			if n := strings.Count(usages, "(env "+envName(f.Name)+")"); n != 1 {
				t.Errorf("%s --help names %s %d times, want once", cmd.CommandPath(), envName(f.Name), n)
			}
		})
	})
}

func TestHelpIsNotWide(t *testing.T) {
	root := newRootCommand()
	forEachCommand(root, func(cmd *cobra.Command) {
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

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		code, stdout, stderr := runRoot(newRootCommand(), "completion", shell)
		if code != 0 || !strings.Contains(stdout, "pulley") || stderr != "" {
			t.Errorf("completion %s: exit code %d, %d bytes, stderr %q", shell, code, len(stdout), stderr)
		}
	}
	if _, stdout, _ := runRoot(newRootCommand(), "__complete", "brok"); !strings.HasPrefix(stdout, "broker\t") {
		t.Errorf("completion of brok = %q, want broker", stdout)
	}
}

func TestLogFormat(t *testing.T) {
	newTryCommand := func() *cobra.Command {
		return &cobra.Command{Use: "try", RunE: func(cmd *cobra.Command, _ []string) error {
			logger(cmd.Context()).Debug("hidden")
			logger(cmd.Context()).Info("seen")
			return nil
		}}
	}
	tests := map[string]struct {
		args string
		want *regexp.Regexp
	}{
		"text by default":     {"try", regexp.MustCompile(`^time=\S+ level=INFO msg=seen\n$`)},
		"json":                {"try --log-format json", regexp.MustCompile(`^{.*"msg":"seen"}\n$`)},
		"debug and all above": {"try --log-level debug", regexp.MustCompile(`(?s)msg=hidden.*msg=seen`)},
		"nothing below warn":  {"try --log-level warn", regexp.MustCompile(`^$`)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, _, stderr := runRoot(withCommands(t, newTryCommand), strings.Fields(tt.args)...)
			if !tt.want.MatchString(stderr) {
				t.Errorf("stderr = %q, want %s", stderr, tt.want)
			}
		})
	}
}

func TestNearest(t *testing.T) {
	tests := []struct{ word, want string }{
		{"lisen", "listen"}, {"LISTEN", "listen"}, {"store_dir", "store-dir"}, {"zzzzzz", ""},
	}
	for _, tt := range tests {
		if got := nearest(tt.word, []string{"store-dir", "listen", "routes"}); got != tt.want {
			t.Errorf("nearest(%q) = %q, want %q", tt.word, got, tt.want)
		}
	}
}

// TestBePulley is not a test: the tests of the whole process start this binary
// again, to be pulley with the arguments in BE_PULLEY.
func TestBePulley(t *testing.T) {
	args, ok := os.LookupEnv("BE_PULLEY")
	if !ok {
		t.Skip("started by other tests only")
	}
	gpuProbe = []string{"sh", "-c", `BE_PULLEY="gpu-probe $*" exec "$0" -test.run='^TestBePulley$'`, os.Args[0]}
	os.Args = append([]string{"pulley"}, strings.Fields(args)...)
	main()
}

// pulleyProcess is a process that runs pulley with args.
func pulleyProcess(t *testing.T, args string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBePulley$")
	cmd.Env = append(os.Environ(), "BE_PULLEY="+args)
	return cmd
}

func TestBrokerProcessStopsOnSignal(t *testing.T) {
	store := filepath.Join(t.TempDir(), "store")
	cmd := pulleyProcess(t, "broker --listen 127.0.0.1:0 --store-dir "+store)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 1000)
	n, err := stdout.Read(line)
	if err != nil {
		t.Fatalf("%v; stderr: %s", err, &stderr)
	}
	start := regexp.MustCompile(`^pulley broker ready: nats://127\.0\.0\.1:[1-9]\d*, store ` + regexp.QuoteMeta(store) + `\n$`)
	if !start.Match(line[:n]) {
		t.Errorf("first line %q, want %s", line[:n], start)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v, want exit code 0; stderr: %s", err, &stderr)
	}
	if !strings.Contains(stderr.String(), `msg="broker stopped"`) {
		t.Errorf("stderr %q, want the broker's stop", &stderr)
	}
}

func TestSecondSignalExitsAtOnce(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBeStubborn$")
	cmd.Env = append(os.Environ(), "BE_STUBBORN=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	for _, want := range []string{"running", "interrupted"} {
		n, err := stdout.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("read %q, %v; want %q", buf[:n], err, want)
		}
		cmd.Process.Signal(os.Interrupt)
	}
	err = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
		t.Errorf("after the second signal: %v, want exit code %d", err, exitInterrupted)
	}
}

// TestBeStubborn is not a test: see TestSecondSignalExitsAtOnce.
func TestBeStubborn(t *testing.T) {
	if os.Getenv("BE_STUBBORN") == "" {
		t.Skip("started by another test only")
	}
	commands = append(commands, func() *cobra.Command {
		return &cobra.Command{Use: "stubborn", RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Print("running")
			<-cmd.Context().Done()
			fmt.Print(context.Cause(cmd.Context()))
			time.Sleep(time.Minute)
			return nil
		}}
	})
	os.Args = []string{"pulley", "stubborn"}
	main()
}
