package ops

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

// eventKinds are all there are, and what happened then.
var eventKinds = []struct {
	kind  subjects.EventKind
	about string
}{
	{subjects.EventWorkerJoined, "a worker is there"},
	{subjects.EventWorkerLeft, "a worker has said good-bye"},
	{subjects.EventWorkerLost, "a worker fell silent"},
	{subjects.EventWorkerState, "a worker is ready, down, draining or cordoned"},
	{subjects.EventWorkerFenced, "a worker takes nothing: its engine or a GPU is ill"},
	{subjects.EventWorkerUnfenced, "a fenced worker takes requests again"},
	{subjects.EventPolicy, "the policy was changed, or cannot be read"},
	{subjects.EventShift, "a canary has made a step, or has ended"},
	{subjects.EventDead, "a request became a dead letter"},
	{subjects.EventFull, "a queue is full"},
	{subjects.EventKey, "a key was added, rotated or removed"},
}

// newEventsCommand is pulley events: it follows what happens.
func newEventsCommand() *cobra.Command {
	var only eventFilter
	var output string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Follow what happens: workers, policy, full queues, dead letters",
		Long: `Follow what happens, a line for each event, until Ctrl-C. Events are kept nowhere:
what happened before is in the logs of the gateways.

Kinds
` + describeKinds("  %-15s  %s\n"),
		Example: `  pulley events
  pulley events --kind dead --kind full --pool llama-70b
  pulley events -o json | jq -r .text`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVar(&only.kinds, "kind", nil, "`kind` to follow (repeatable; default all)")
	fs.StringVar(&only.pool, "pool", "", "follow only what is about this `pool`")
	fs.StringVar(&only.worker, "worker", "", "follow only what is about this `worker`, a name or an id")
	fs.StringVarP(&output, "output", "o", "text", "how to print: text, or json with an object on each line")
	cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(strings.Split(describeKinds("%s\t%s\n"), "\n"), cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	c := cli.AddConnectFlags(fs)
	cmd.RegisterFlagCompletionFunc("pool", cli.CompleteFlag(c, livePools))
	cmd.RegisterFlagCompletionFunc("worker", cli.CompleteFlag(c, liveWorkers))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if output != "text" && output != "json" {
			return cli.Usagef("--output %q: want text or json", output)
		}
		if err := only.check(); err != nil {
			return err
		}
		nc, err := c.Connect(cmd.Context(), "pulley events")
		if err != nil {
			return err
		}
		defer nc.Close()
		return followEvents(cmd, nc, only, output == "json")
	}
	return cmd
}

// followEvents prints events until the command's context ends, which is no
// error.
func followEvents(cmd *cobra.Command, nc *nats.Conn, only eventFilter, asJSON bool) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	t := term.Of(out)
	t.Width = 0 // long lines wrap: none is cut
	sub, err := nc.SubscribeSync(subjects.AllEvents)
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", subjects.AllEvents, err)
	}
	within, cancel := context.WithTimeout(ctx, fleet.ReadTimeout)
	defer cancel()
	if err := nc.FlushWithContext(within); err != nil {
		return fmt.Errorf("subscribe %s: %w", subjects.AllEvents, err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "following %s on %s; Ctrl-C ends\n", only, nc.ConnectedUrlRedacted())
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("events: %w", err)
		}
		var e subjects.Event
		if err := subjects.Unmarshal(m.Data, &e); err != nil {
			cli.Logger(ctx).Warn("event dropped", "subject", m.Subject, "err", err)
			continue
		}
		if !only.wants(e) {
			continue
		}
		line := fleet.EventLine(&term.Page{Terminal: t}, e) + "\n"
		if asJSON {
			b, err := json.Marshal(e)
			if err != nil {
				return err
			}
			line = string(b) + "\n"
		}
		if _, err := io.WriteString(out, line); err != nil {
			return err
		}
	}
}

// eventFilter says which events are wanted. The zero value wants all.
type eventFilter struct {
	kinds        []string
	pool, worker string
}

func (f *eventFilter) check() error {
	known := kindNames()
	for _, k := range f.kinds {
		if !slices.Contains(known, k) {
			return cli.Usagef("--kind %q: want one of %s%s", k, strings.Join(known, ", "), cli.DidYouMean(k, known))
		}
	}
	return nil
}

func (f eventFilter) wants(e subjects.Event) bool {
	return (len(f.kinds) == 0 || slices.Contains(f.kinds, string(e.Kind))) &&
		(f.pool == "" || e.Pool == f.pool) &&
		(f.worker == "" || e.Worker == f.worker || isWorkerID(e.Worker, f.worker))
}

func (f eventFilter) String() string {
	s := cmp.Or(strings.Join(f.kinds, ", "), "all") + " events"
	if f.pool != "" {
		s += " of pool " + term.Printable(f.pool)
	}
	if f.worker != "" {
		s += " of worker " + term.Printable(f.worker)
	}
	return s
}

// isWorkerID says whether an id is of a worker with that name: the name's token
// and '-' before six hex digits.
func isWorkerID(id, name string) bool {
	i := strings.LastIndexByte(id, '-')
	return i > 0 && id[:i] == subjects.Token(name)
}

func kindNames() (names []string) {
	for _, k := range eventKinds {
		names = append(names, string(k.kind))
	}
	return names
}

func describeKinds(format string) string {
	var b strings.Builder
	for _, k := range eventKinds {
		fmt.Fprintf(&b, format, k.kind, k.about)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
