package ops

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

// eventKinds are all kinds of events, with what they mean.
var eventKinds = []struct {
	kind    subjects.EventKind
	meaning string
}{
	{subjects.EventWorkerJoined, "a worker has joined"},
	{subjects.EventWorkerLeft, "a worker has left in order"},
	{subjects.EventWorkerLost, "a worker stopped sending heartbeats"},
	{subjects.EventWorkerState, "a worker became ready, busy, down, draining or cordoned"},
	{subjects.EventWorkerFenced, "a worker accepts no requests: its engine or a GPU has failed"},
	{subjects.EventWorkerUnfenced, "a fenced worker accepts requests again"},
	{subjects.EventWorkerFailing, "requests of a pool fail at a worker, or no longer do"},
	{subjects.EventWorkerSuspect, "an engine shows no progress with requests of a pool, or is no longer suspect"},
	{subjects.EventWorkerNote, "a worker is much slower or smaller than is usual in its pool, or no longer is"},
	{subjects.EventModelLoading, "an engine has begun to load a model"},
	{subjects.EventModelLoaded, "an engine has loaded a model"},
	{subjects.EventModelEvicted, "an engine no longer has a model loaded"},
	{subjects.EventPolicy, "the policy was changed, or cannot be read"},
	{subjects.EventShift, "a shift has made a step, or has ended"},
	{subjects.EventDead, "a request became a dead letter"},
	{subjects.EventFull, "a queue is full"},
	{subjects.EventKey, "a key was added, rotated or removed"},
	{subjects.EventCancel, "an operator has cancelled a request, or those that waited in a queue"},
	{subjects.EventBroker, "a member of a cluster of brokers is silent, or is heard again"},
}

func newEventsCommand() *cobra.Command {
	var only eventFilter
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Follow events: workers, policy, full queues, dead letters",
		Long: `Print events as they happen, one per line, until Ctrl-C. Events are not stored:
earlier ones are only in the logs of the gateways. Each is printed once, however many
gateways report it. With -o json each line is a JSON
object.

Kinds
` + describeKinds("  %-15s  %s\n"),
		Example: `  pulley events
  pulley events --kind dead --kind full --pool llama-70b
  pulley events -o json | jq -r .text`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVar(&only.kinds, "kind", nil, "`kind` to follow (repeatable; default all)")
	fs.StringVar(&only.pool, "pool", "", "only events about this `pool`")
	fs.StringVar(&only.worker, "worker", "", "only events about this `worker` (name or id)")
	output := cli.AddOutput(cmd, cli.Text, cli.JSON)
	cli.CompleteFixed(cmd, "kind", strings.Split(describeKinds("%s\t%s\n"), "\n")...)
	c := cli.AddConnectFlags(fs)
	cmd.RegisterFlagCompletionFunc("pool", cli.CompleteFlag(c, livePools))
	cmd.RegisterFlagCompletionFunc("worker", cli.CompleteFlag(c, liveWorkers))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := only.check(); err != nil {
			return err
		}
		nc, err := c.Connect(cmd.Context(), "pulley events")
		if err != nil {
			return err
		}
		defer nc.Close()
		return followEvents(cmd, nc, only, *output == cli.JSON)
	}
	return cmd
}

// followEvents prints events until the command's context ends, which is not an error.
func followEvents(cmd *cobra.Command, nc *nats.Conn, only eventFilter, asJSON bool) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	t := term.Of(out)
	t.Width = 0 // long lines wrap, and are not shortened
	sub, err := nc.SubscribeSync(subjects.AllEvents)
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", subjects.AllEvents, err)
	}
	within, cancel := context.WithTimeout(ctx, fleet.ReadTimeout)
	defer cancel()
	if err := nc.FlushWithContext(within); err != nil {
		return fmt.Errorf("subscribe %s: %w", subjects.AllEvents, err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "following %s on %s; stop with Ctrl-C\n", only, nc.ConnectedUrlRedacted())
	var once fleet.Once
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
		if !once.IsNew(e, time.Now()) || !only.wants(e) {
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

// eventFilter selects events. The zero value selects all.
type eventFilter struct {
	kinds        []string
	pool, worker string
}

func (f *eventFilter) check() error {
	known := kindNames()
	for _, k := range f.kinds {
		if !slices.Contains(known, k) {
			return cli.Usagef("--kind %q: must be %s%s", k, cli.OneOf(known), cli.DidYouMean(k, known))
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

// isWorkerID says whether a worker's id belongs to a name: an id is the token of the name, '-' and six hex digits.
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

// describeKinds formats the kinds and their meanings, a line each.
func describeKinds(format string) string {
	var b strings.Builder
	for _, k := range eventKinds {
		fmt.Fprintf(&b, format, k.kind, k.meaning)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
