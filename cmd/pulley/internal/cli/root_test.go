package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
)

func TestExitCodes(t *testing.T) {
	returns := map[string]error{
		"done": nil, "failed": errors.New("disk full"), "usage": cli.Usagef("--a: too much"),
		"notfound": fmt.Errorf("look up: %w", cli.NotFoundf("no worker %q", "w1")),
		"refused":  cli.Refusedf("request is done"),
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
		"invalid flag":         {"try needs --count x", 2, "pulley: --count: invalid value \"x\": must be a whole number\nrun 'pulley try needs --help'\n"},
		"missing flag":         {"try needs", 2, "pulley: required flag(s) \"count\" not set\nrun 'pulley try needs --help'\n"},
		"unknown log level":    {"try done --log-level loud", 2, "pulley: --log-level \"loud\": must be debug, info, warn or error\nrun 'pulley try done --help'\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := clitest.Run(cli.NewRoot("", "test", newTryCommand(), newOtherCommand()), strings.Fields(tt.args)...)
			if code != tt.code || stderr != tt.want {
				t.Errorf("pulley %s: exit code %d, stderr %q; want %d, %q", tt.args, code, stderr, tt.code, tt.want)
			}
		})
	}
}

// Words of other command lines lead to the command that is meant.
func TestSuggestions(t *testing.T) {
	verb := func(use string, aliases ...string) *cobra.Command {
		return &cobra.Command{Use: use, Aliases: aliases, RunE: func(*cobra.Command, []string) error { return nil }}
	}
	noun := func(name string, verbs ...*cobra.Command) *cobra.Command {
		cmd := &cobra.Command{Use: name}
		cmd.AddCommand(verbs...)
		return cmd
	}
	root := func() *cobra.Command {
		doctor := verb("doctor")
		doctor.SuggestFor = []string{"status"}
		return cli.NewRoot("", "test", doctor,
			noun("worker", verb("ls"), verb("info WORKER"), verb("drain WORKER")),
			noun("policy", verb("export", "show"), verb("history")),
			noun("tier", verb("ls"), verb("set TIER"), verb("rm TIER")))
	}
	for args, want := range map[string]string{
		"worker ps":             `unknown command "ps"; did you mean "ls"?`,
		"worker get":            `unknown command "get"; did you mean "ls"?`,
		"worker get gpu-1":      `unknown command "get"; did you mean "info"?`,
		"worker describe gpu-1": `unknown command "describe"; did you mean "info"?`,
		"worker inspect gpu-1":  `unknown command "inspect"; did you mean "info"?`,
		"worker stop gpu-1":     `unknown command "stop"; did you mean "drain"?`,
		"worker drian gpu-1":    `unknown command "drian"; did you mean "drain"?`,
		"worker zzzzzz":         `unknown command "zzzzzz"` + "\n",
		"tier create x":         `unknown command "create"; did you mean "set"?`,
		"tier delete x":         `unknown command "delete"; did you mean "rm"?`,
		"get workers":           `unknown command "get"; did you mean 'pulley worker ls'?`,
		"get worker gpu-1":      `unknown command "get"; did you mean 'pulley worker info gpu-1'?`,
		"describe worker gpu-1": `unknown command "describe"; did you mean 'pulley worker info gpu-1'?`,
		"delete tier a b":       `unknown command "delete"; did you mean 'pulley tier rm a b'?`,
		"get policies":          `unknown command "get"` + "\n",
		"describe policy":       `unknown command "describe"; did you mean 'pulley policy export'?`,
		"workers":               `unknown command "workers"; did you mean 'pulley worker'?`,
		"workers ls":            `unknown command "workers"; did you mean 'pulley worker ls'?`,
		"status":                `unknown command "status"; did you mean 'pulley doctor'?`,
		"doctr":                 `unknown command "doctr"; did you mean "doctor"?`,
		"Describe WORKER gpu-1": `unknown command "Describe"`,
	} {
		code, _, stderr := clitest.Run(root(), strings.Fields(args)...)
		if code != cli.ExitUsage || !strings.HasPrefix(stderr, "pulley: "+want) {
			t.Errorf("pulley %s: exit code %d, %q; want %d, %q", args, code, stderr, cli.ExitUsage, want)
		}
	}
}

func TestInterruptedCommandIsSilent(t *testing.T) {
	root := cli.NewRoot("", "test", &cobra.Command{Use: "try", RunE: func(cmd *cobra.Command, _ []string) error {
		return fmt.Errorf("ask: %w", context.Cause(cmd.Context()))
	}})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cli.ErrInterrupted)
	var stderr bytes.Buffer
	if code := cli.Execute(ctx, root, []string{"try"}, &stderr, &stderr); code != cli.ExitInterrupted || stderr.Len() > 0 {
		t.Errorf("exit code %d, stderr %q; want %d and nothing", code, &stderr, cli.ExitInterrupted)
	}
}

func TestLogFormat(t *testing.T) {
	newTryCommand := func() *cobra.Command {
		return &cobra.Command{Use: "try", RunE: func(cmd *cobra.Command, _ []string) error {
			cli.Logger(cmd.Context()).Debug("hidden")
			cli.Logger(cmd.Context()).Info("seen")
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
			_, _, stderr := clitest.Run(cli.NewRoot("", "test", newTryCommand()), strings.Fields(tt.args)...)
			if !tt.want.MatchString(stderr) {
				t.Errorf("stderr = %q, want %s", stderr, tt.want)
			}
		})
	}
}
