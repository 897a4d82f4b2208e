package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/pulley-lb/pulley/subjects"
)

func newDeadCommand() *cobra.Command {
	return noun("dead", "Dead letters: list, show, retry, remove", `Dead letters: requests that no worker could answer, kept for 7 days. Their clients
got a 502. Each is named by its sequence number.`,
		newDeadListCommand, newDeadShowCommand, newDeadRetryCommand, newDeadRemoveCommand)
}

// deadLetter is a request that no worker could answer.
type deadLetter struct {
	Sequence    uint64      `json:"seq"`
	At          time.Time   `json:"at"`
	Reason      string      `json:"reason"`
	ID          string      `json:"id"`
	Pool        string      `json:"pool"`
	Tier        string      `json:"tier"`
	Model       string      `json:"model"`
	Tenant      string      `json:"tenant,omitempty"`
	Method      string      `json:"method"`
	Path        string      `json:"path"`
	Stream      bool        `json:"stream"`
	InputTokens int         `json:"input_tokens"`
	Size        int64       `json:"size"`
	Header      http.Header `json:"header,omitempty"`
	Body        string      `json:"body,omitempty"` // with --show-body
}

func readDeadLetter(subject string, header nats.Header, body []byte, sequence uint64, at time.Time) deadLetter {
	d := deadLetter{Sequence: sequence, At: at, Reason: header.Get(subjects.HeaderReason), Body: string(body)}
	if parts := strings.Split(subject, "."); len(parts) == 4 {
		d.Tier, _ = subjects.Untoken(parts[2])
		d.Pool, _ = subjects.Untoken(parts[3])
	}
	if r, err := subjects.ParseRequest(&nats.Msg{Subject: subject, Header: header}); err == nil {
		d.ID, d.Model, d.Tenant, d.Method, d.Path, d.Stream = r.ID.String(), r.Model, r.Tenant, r.Method, r.Path, r.Stream
		d.InputTokens, d.Size, d.Header = r.InputTokens, r.BodySize, withoutSecrets(r.Header)
	}
	return d
}

// deadStream finds the dead letters.
func deadStream(ctx context.Context, js jetstream.JetStream) (jetstream.Stream, error) {
	stream, err := js.Stream(ctx, subjects.DeadStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, notFoundf("no stream %s on this broker: start a gateway", subjects.DeadStream)
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", subjects.DeadStream, err)
	}
	return stream, nil
}

// deadLetters reads the last n dead letters under a subject, the oldest first,
// without their bodies, and how many there are. 0 is all.
func deadLetters(ctx context.Context, js jetstream.JetStream, filter string, last int) (list []deadLetter, all int, err error) {
	stream, err := deadStream(ctx, js)
	if err != nil {
		return nil, 0, err
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{FilterSubjects: []string{filter}, HeadersOnly: true})
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", subjects.DeadStream, err)
	}
	info, err := consumer.Info(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", subjects.DeadStream, err)
	}
	list = []deadLetter{}
	for left := info.NumPending; left > 0; {
		batch, err := consumer.FetchNoWait(int(min(left, 500)))
		if err != nil {
			return nil, 0, fmt.Errorf("read %s: %w", subjects.DeadStream, err)
		}
		got := uint64(0)
		for m := range batch.Messages() {
			got++
			meta, err := m.Metadata()
			if err != nil {
				continue
			}
			list = append(list, readDeadLetter(m.Subject(), m.Headers(), nil, meta.Sequence.Stream, meta.Timestamp))
		}
		if err := batch.Error(); err != nil {
			return nil, 0, fmt.Errorf("read %s: %w", subjects.DeadStream, err)
		}
		if got == 0 {
			break // removed meanwhile
		}
		left -= min(got, left)
	}
	all = len(list)
	if last > 0 {
		list = list[max(0, all-last):]
	}
	return list, all, nil
}

func newDeadListCommand(c *connectFlags) *cobra.Command {
	var pool, tier string
	var last int
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the dead letters",
		Long: "List the dead letters, the latest last.",
		Example: `  pulley dead ls
  pulley dead ls --pool llama-70b -n 0 -o json`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&pool, "pool", "", "only of this `pool`")
	fs.StringVar(&tier, "tier", "", "only of this `tier`")
	fs.IntVarP(&last, "number", "n", 100, "how many, the latest; 0 is all")
	cmd.RegisterFlagCompletionFunc("pool", completeFlag(c, livePools))
	cmd.RegisterFlagCompletionFunc("tier", completeFlag(c, liveTiers))
	return look(cmd, c, func(s *session) (view, error) {
		if last < 0 {
			return view{}, usagef("--number %d: want 0 or more", last)
		}
		list, all, err := deadLetters(s.ctx(), s.js, subjects.DeadFilter(tier, pool), last)
		if err != nil {
			return view{}, err
		}
		return view{list, func(p *page) {
			t := table{
				columns: []column{number("SEQ"), number("AGE"), wide(word("DIED")), wide(word("ID")), text("POOL"), text("TIER"), text("MODEL"), ifAny(text("TENANT")), wide(text("PATH")), wide(number("SIZE")),
					{name: "REASON", cut: 20}},
				empty: "no dead letters",
			}
			for _, d := range list {
				t.row(d.Sequence, ago(d.At), clock(d.At), d.ID, d.Pool, d.Tier, d.Model, d.Tenant, d.Path, byteCount(d.Size), d.Reason)
			}
			p.table(t)
			if len(list) < all {
				p.line("the last %d of %d; -n 0 shows all", len(list), all)
			}
		}}, nil
	})
}

// sequences reads the numbers of dead letters.
func sequences(args []string) ([]uint64, error) {
	var list []uint64
	for _, a := range args {
		n, err := strconv.ParseUint(a, 10, 64)
		if err != nil || n == 0 {
			return nil, usagef("%q: want the number of a dead letter, see 'pulley dead ls'", a)
		}
		list = append(list, n)
	}
	return list, nil
}

func noDeadLetter(sequence uint64) error {
	return notFoundf("no dead letter %d; see 'pulley dead ls'", sequence)
}

func newDeadShowCommand(c *connectFlags) *cobra.Command {
	var showBody bool
	cmd := &cobra.Command{
		Use: "show SEQ", Short: "Describe a dead letter", Long: "Describe a dead letter. Its prompt is shown with --show-body only.",
		Example: `  pulley dead show 17
  pulley dead show 17 --show-body -o json | jq -r .body`,
		Args:              wantArgs("SEQ"),
		ValidArgsFunction: complete(c, 1, liveDeadLetters),
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().BoolVar(&showBody, "show-body", false, showBodyHelp)
	return look(cmd, c, func(s *session) (view, error) {
		list, err := sequences(s.args)
		if err != nil {
			return view{}, err
		}
		stream, err := deadStream(s.ctx(), s.js)
		if err != nil {
			return view{}, err
		}
		m, err := stream.GetMsg(s.ctx(), list[0])
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return view{}, noDeadLetter(list[0])
		}
		if err != nil {
			return view{}, fmt.Errorf("read dead letter %d: %w", list[0], err)
		}
		d := readDeadLetter(m.Subject, m.Header, m.Data, m.Sequence, m.Time)
		if !showBody {
			d.Body = ""
		}
		return view{d, func(p *page) {
			p.fields(
				field{"dead letter", fmt.Sprint(d.Sequence), bold},
				field{"reason", d.Reason, red},
				field{"died", fmt.Sprintf("%s, %s ago", clock(d.At), ago(d.At)), ""},
				field{"request", d.ID, ""},
				field{"model", d.Model, ""},
				field{"pool", d.Pool, ""},
				field{"tier", d.Tier, ""},
				field{"tenant", d.Tenant, ""},
				field{"path", strings.TrimSpace(d.Method + " " + d.Path), ""},
				field{"body", fmt.Sprintf("%s, about %d tokens", byteCount(d.Size), d.InputTokens), ""},
			)
			p.headers(d.Header)
			if showBody {
				p.body(d.Body, d.Size)
			}
		}}, nil
	})
}

// deadChoice says which dead letters a verb is for, where no arguments do.
type deadChoice struct {
	all  bool
	pool string
}

func addDeadChoice(cmd *cobra.Command, c *connectFlags) *deadChoice {
	d := &deadChoice{}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&d.pool, "pool", "", "all of this `pool`")
	fs.BoolVar(&d.all, "all", false, "all there are")
	cmd.RegisterFlagCompletionFunc("pool", completeFlag(c, livePools))
	return d
}

// chosenDead are the dead letters that arguments, or --all or --pool, name.
func (s *session) chosenDead(d *deadChoice) ([]uint64, error) {
	switch {
	case len(s.args) > 0 && (d.all || d.pool != ""), d.all && d.pool != "":
		return nil, usagef("name dead letters, or --pool, or --all: only one of these")
	case len(s.args) > 0:
		return sequences(s.args)
	case !d.all && d.pool == "":
		return nil, usagef("name dead letters, or --pool, or --all")
	}
	list, _, err := deadLetters(s.ctx(), s.js, subjects.DeadFilter("", d.pool), 0)
	if err != nil {
		return nil, err
	}
	var chosen []uint64
	for _, d := range list {
		chosen = append(chosen, d.Sequence)
	}
	return chosen, nil
}

// retryAtOnce is how many dead letters are under way together.
const retryAtOnce = 8

func newDeadRetryCommand(c *connectFlags) *cobra.Command {
	var showBody bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "retry [SEQ...]", Short: "Run dead letters again",
		Long: `Run dead letters again, with their own headers and tier, and say how they were
answered. One that is answered with success is removed; the others stay. It fails
if any did.`,
		Example: `  pulley dead retry 17 --show-body
  pulley dead retry --pool llama-70b`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: complete(c, 0, liveDeadLetters),
	}
	choice := addDeadChoice(cmd, c)
	cmd.Flags().BoolVar(&showBody, "show-body", false, "show the answers too")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait for each answer")
	return act(cmd, c, func(s *session) error {
		chosen, err := s.chosenDead(choice)
		if err != nil {
			return err
		}
		if len(chosen) == 0 {
			s.say("no dead letters")
			return nil
		}
		return s.retry(chosen, timeout, showBody)
	})
}

// retry runs dead letters, some at once, and tells of each as it ends.
func (s *session) retry(chosen []uint64, timeout time.Duration, showBody bool) error {
	type ended struct {
		sequence uint64
		result   subjects.RetryResult
		err      error
	}
	results := make(chan ended)
	go func() { // ends with the last result, all of which are awaited below
		defer close(results)
		var group errgroup.Group
		group.SetLimit(retryAtOnce)
		for _, n := range chosen {
			group.Go(func() error {
				r, err := order[subjects.RetryResult](s.ctx(), s.nc, subjects.DoRetry, subjects.RetryOrder{Sequence: n, By: s.who()}, timeout)
				results <- ended{n, r, err}
				return nil
			})
		}
		group.Wait()
	}()
	failed, alone := 0, false
	for e := range results {
		if s.ctx().Err() != nil {
			continue
		}
		switch {
		case errors.Is(e.err, nats.ErrNoResponders):
			alone = true
			continue
		case errors.Is(e.err, errSilence):
			e.result.Error = fmt.Sprintf("no answer within %v", timeout)
		case e.err != nil:
			e.result.Error = e.err.Error()
		}
		if !s.tellRetry(e.sequence, e.result, showBody) {
			failed++
		}
	}
	switch {
	case s.ctx().Err() != nil:
		return context.Cause(s.ctx())
	case alone:
		return errNoGateway
	case failed > 0:
		return fmt.Errorf("%d of %d failed again", failed, len(chosen))
	}
	return nil
}

// tellRetry tells what came of one, and whether it was good.
func (s *session) tellRetry(sequence uint64, r subjects.RetryResult, showBody bool) bool {
	p := page{terminal: terminalOf(s.cmd.OutOrStdout())}
	good := r.Error == "" && r.Status >= 200 && r.Status < 300
	switch {
	case good:
		p.line("%d  %s  answered and removed", sequence, p.paint(green, fmt.Sprint(r.Status)))
	case r.Error != "":
		p.line("%d  %s", sequence, p.paint(red, printable(r.Error)))
	default:
		p.line("%d  %s  stays", sequence, p.paint(red, fmt.Sprint(r.Status)))
	}
	if showBody && len(r.Body) > 0 {
		p.body(string(r.Body), int64(len(r.Body)))
	}
	s.cmd.OutOrStdout().Write(p.b.Bytes())
	return good
}

func newDeadRemoveCommand(c *connectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm [SEQ...]", Aliases: []string{"remove"}, Short: "Remove dead letters",
		Long: "Remove dead letters for good.",
		Example: `  pulley dead rm 17 18
  pulley dead rm --all --force`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: complete(c, 0, liveDeadLetters),
	}
	choice := addDeadChoice(cmd, c)
	return harm(cmd, c, func(s *session) error {
		chosen, err := s.chosenDead(choice)
		if err != nil {
			return err
		}
		if len(chosen) == 0 {
			s.say("no dead letters")
			return nil
		}
		stream, err := deadStream(s.ctx(), s.js)
		if err != nil {
			return err
		}
		if err := s.confirm("remove %s for good", count(len(chosen), "dead letter")); err != nil {
			return err
		}
		removed := 0
		for _, n := range slices.Compact(slices.Sorted(slices.Values(chosen))) {
			there, err := deleteMessage(s.ctx(), stream, n)
			switch {
			case err != nil:
				return fmt.Errorf("remove dead letter %d, after %d others: %w", n, removed, err)
			case there:
				removed++
			case len(s.args) > 0:
				return noDeadLetter(n)
			}
		}
		s.say("%s removed", count(removed, "dead letter"))
		return nil
	})
}

// deleteMessage removes a message from a stream. False: it was not there.
func deleteMessage(ctx context.Context, stream jetstream.Stream, sequence uint64) (bool, error) {
	err := stream.DeleteMsg(ctx, sequence)
	if err == nil {
		return true, nil
	}
	// The error does not tell apart.
	if _, look := stream.GetMsg(ctx, sequence); errors.Is(look, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return false, err
}
