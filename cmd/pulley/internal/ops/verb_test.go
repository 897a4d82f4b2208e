package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/subjects"
)

func TestVerbsWithoutPulleyOnTheBroker(t *testing.T) {
	url, _ := clitest.Broker(t, broker.Config{})
	tests := map[string]struct {
		code int
		want string
	}{
		"tier ls":                       {3, "no policy bucket on this broker: start a gateway"},
		"key add --tenant acme":         {3, "no policy bucket on this broker: start a gateway"},
		"request ls":                    {3, "no gateway on this broker: start one"},
		"worker ls":                     {3, "no bucket PULLEY_WORKERS on this broker: start a gateway"},
		"dead ls":                       {3, "no stream PULLEY_DEAD on this broker"},
		"queue ls --output csv":         {2, `--output "csv": must be table, wide, json or yaml`},
		"policy rollback":               {2, "missing argument: REVISION (see 'pulley policy history')"},
		"tier rm":                       {2, "missing argument: TIER (see 'pulley tier ls')"},
		"worker weight gpu-1":           {2, "missing argument: WEIGHT\n"},
		"route shift chat --every soon": {2, `--every: invalid value "soon": must be a duration`},
		"tier set gold --reserve much":  {2, `--reserve: invalid value "much": not a number`},
		"tier set gold --reserve 1.5":   {2, "must be a whole percentage"},
	}
	for args, tt := range tests {
		t.Run(args, func(t *testing.T) {
			code, _, stderr := clitest.Run(testRoot(), append(strings.Fields(args), "--nats", url)...)
			if code != tt.code || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit code %d, %q; want %d, %q", code, stderr, tt.code, tt.want)
			}
		})
	}
}

func TestWordsOfACommand(t *testing.T) {
	tests := map[string]string{
		"tier set gold --share 2 --max-wait 2m":                          "tier set gold --share 2 --max-wait 2m",
		"route set gpt-* --to a=9 --to b --force --nats nats://h":        "route set 'gpt-*' --to a=9 --to b",
		"route shift chat --to b --abort-if error_rate>1% -o json":       "route shift chat --to b --abort-if 'error_rate>1%'",
		"route set m --restore-model --log-level debug --context prod":   "route set m --restore-model",
		"key add --tenant acme --models a,b --expires 720h --watch=true": "key add --tenant acme --models a --models b --expires 720h",
	}
	for args, want := range tests {
		t.Run(args, func(t *testing.T) {
			root := testRoot()
			got := ""
			cli.ForEachCommand(root, func(cmd *cobra.Command) {
				if cmd.Flags().Lookup("watch") == nil {
					cmd.Flags().Bool("watch", false, "")
				}
				cmd.RunE = func(cmd *cobra.Command, args []string) error {
					got = (&cli.Session{Cmd: cmd, Args: args}).CommandLine()
					return nil
				}
			})
			if code, _, stderr := clitest.Run(root, strings.Fields(args)...); code != 0 || got != want {
				t.Errorf("exit code %d %s, words %q; want %q", code, stderr, got, want)
			}
		})
	}
}

func TestConfirmation(t *testing.T) {
	s := newSite(t)
	s.ok("tier set night")
	s.story(step{"tier rm night", 4, "pulley: remove tier night: needs a confirmation, and standard input is not a terminal; use --force to skip it\n"})
	atTerminal(t)
	for answer, want := range map[string]struct {
		code int
		text string
	}{
		"\n":    {4, "remove tier night? [y/N] pulley: not confirmed; nothing was changed\n"},
		"no\n":  {4, "remove tier night? [y/N] pulley: not confirmed; nothing was changed\n"},
		"":      {4, "remove tier night? [y/N] pulley: not confirmed; nothing was changed\n"},
		"Yes\n": {0, "remove tier night? [y/N] "},
	} {
		s.ok("tier set night")
		root := testRoot()
		root.SetIn(strings.NewReader(answer))
		code, _, stderr := clitest.Run(root, "tier", "rm", "night", "--nats", s.url)
		if code != want.code || stderr != want.text {
			t.Errorf("answer %q: exit code %d, %q; want %d, %q", answer, code, stderr, want.code, want.text)
		}
	}
}

func TestInterruptedConfirmation(t *testing.T) {
	s := newSite(t)
	s.ok("tier set night")
	atTerminal(t)
	root := testRoot()
	never, stop := io.Pipe()
	defer stop.Close()
	root.SetIn(never)
	ctx, cancel := context.WithCancelCause(t.Context())
	var stderr clitest.Buffer
	go func() {
		stderr.WaitFor(t, "[y/N]")
		cancel(cli.ErrInterrupted)
	}()
	if code := cli.Execute(ctx, root, []string{"tier", "rm", "night", "--nats", s.url}, io.Discard, &stderr); code != cli.ExitInterrupted {
		t.Errorf("exit code %d, want %d; %s", code, cli.ExitInterrupted, &stderr)
	}
	if _, there := s.policy().Tier("night"); !there {
		t.Error("the tier is gone")
	}
}

func TestWatchShowsChangesUntilInterrupted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	var stdout clitest.Buffer
	ended := make(chan int, 1)
	go func() {
		ended <- cli.Execute(ctx, testRoot(), []string{"tier", "ls", "--watch", "--nats", s.url}, &stdout, io.Discard)
	}()
	stdout.WaitFor(t, "batch")
	s.ok("tier set night")
	stdout.WaitFor(t, "night")
	cancel(cli.ErrInterrupted)
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// The event about a change says who made it, and by which command.
func TestChangesArePublished(t *testing.T) {
	s := newSite(t)
	events, err := s.nc.SubscribeSync(subjects.AllEvents)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"tier set gold --share 2": `"kind":"policy".*"from":"cli \S+@\S+".*"text":"tier set gold --share 2, revision \d+"`,
		"key add --tenant acme":   `"kind":"key".*"text":"key \w{10} added".*"tenant":"acme"`,
	} {
		s.ok(args)
		m, err := events.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(want).Match(m.Data) {
			t.Errorf("pulley %s: event %s, want %s", args, m.Data, want)
		}
	}
	s.ok("tier set gold --share 2")
	if m, err := events.NextMsg(100 * time.Millisecond); err == nil {
		t.Errorf("event %s of a change that changes nothing", m.Data)
	}
	history := s.ok("policy history -o json")
	if !strings.Contains(history, `"why": "tier set gold --share 2"`) || !regexp.MustCompile(`"by": "\S+@\S+"`).MatchString(history) {
		t.Errorf("history %s", history)
	}
}

func TestEveryOutputFormat(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve("llama")
	s.answer()
	s.ok("route set chat --to llama")
	s.ok("key add --tenant acme")
	for _, noun := range []string{"gpu", "tier", "route", "pool", "worker", "queue", "request", "dead", "key"} {
		for _, output := range []string{"table", "wide", "json", "yaml"} {
			out := s.ok(noun + " ls -o " + output)
			switch output {
			case "json":
				var list []any
				if err := json.Unmarshal([]byte(out), &list); err != nil || list == nil {
					t.Errorf("%s ls -o json: %v\n%s", noun, err, out)
				}
			case "yaml":
				if !strings.HasPrefix(out, "- ") && out != "[]\n" {
					t.Errorf("%s ls -o yaml:\n%s", noun, out)
				}
			}
			if bytes.Contains([]byte(out), []byte("\x1b")) {
				t.Errorf("%s ls -o %s: colour in a pipe: %q", noun, output, out)
			}
		}
	}
}
