package ops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/subjects"
)

func newDeadCommand() *cobra.Command {
	return cli.Noun("dead", "Dead letters: list, show, retry, remove", `Dead letters are requests that no worker could answer. Their clients got a 502. They
are kept for 7 days. A dead letter is named by its sequence number.`,
		newDeadListCommand, newDeadShowCommand, newDeadRetryCommand, newDeadRemoveCommand)
}

func newDeadListCommand(c *cli.ConnectFlags) *cobra.Command {
	var pool, tier string
	var last int
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the dead letters",
		Long: "List the dead letters, the oldest first.",
		Example: `  pulley dead ls
  pulley dead ls --pool llama-70b -n 0 -o json`,
	}
	fs := cmd.Flags()
	cli.NameFlag(cmd, c, &pool, "pool", "only this `pool`", livePools)
	cli.NameFlag(cmd, c, &tier, "tier", "only this `tier`", liveTiers)
	fs.IntVarP(&last, "number", "n", 100, "show the latest n dead letters; 0: all")
	return cli.Listing(cmd, c, func(s *cli.Session) (cli.View, error) {
		if last < 0 {
			return cli.View{}, cli.Usagef("--number %d: must be 0 or more", last)
		}
		list, all, err := fleet.DeadLetters(s.Context(), s.JS, subjects.DeadFilter(tier, pool), last)
		if err != nil {
			return cli.View{}, err
		}
		return cli.View{Value: list, Print: func(p *term.Page) {
			t := term.Table{
				Columns: []term.Column{term.Number("SEQ"), term.Number("AGE"), term.Wide(term.Fixed("AT")), term.Wide(term.Fixed("ID")), term.Text("POOL"), term.Text("TIER"), term.Text("MODEL"), term.NonEmpty(term.Text("TENANT")), term.Wide(term.Text("PATH")), term.Wide(term.Number("SIZE")),
					{Name: "REASON", MinWidth: 20}},
				Empty: "no dead letters",
			}
			for _, d := range list {
				t.Row(d.Sequence, term.Ago(d.At), term.Clock(d.At), d.ID, d.Pool, d.Tier, d.Model, d.Tenant, d.Path, term.Bytes(d.Size), d.Reason)
			}
			p.Table(t)
			if len(list) < all {
				p.Line("the latest %d of %d; -n 0 shows all", len(list), all)
			}
		}}, nil
	})
}

func newDeadShowCommand(c *cli.ConnectFlags) *cobra.Command {
	var showBody bool
	cmd := &cobra.Command{
		Use: "show SEQ...", Short: "Describe dead letters", Long: "Describe a dead letter. Its prompt is shown only with --show-body.",
		Example: `  pulley dead show 17
  pulley dead show 17 --show-body -o json | jq -r .body`,
		ValidArgsFunction: cli.Complete(c, 0, liveDeadLetters),
	}
	cmd.Flags().BoolVar(&showBody, "show-body", false, showBodyHelp)
	return cli.Describing(cmd, c, func(s *cli.Session, named string) (cli.View, error) {
		list, err := sequences([]string{named})
		if err != nil {
			return cli.View{}, err
		}
		stream, err := fleet.DeadStream(s.Context(), s.JS)
		if err != nil {
			return cli.View{}, err
		}
		m, err := stream.GetMsg(s.Context(), list[0])
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return cli.View{}, noDeadLetter(list[0])
		}
		if err != nil {
			return cli.View{}, fmt.Errorf("read dead letter %d: %w", list[0], err)
		}
		d := fleet.ReadDeadLetter(m.Subject, m.Header, m.Data, m.Sequence, m.Time)
		if !showBody {
			d.Body = ""
		}
		return cli.View{Value: d, Print: func(p *term.Page) {
			p.Fields(
				term.KV("dead letter", fmt.Sprint(d.Sequence), term.Bold),
				term.KV("reason", d.Reason, term.Red),
				term.KV("at", fmt.Sprintf("%s, %s ago", term.Clock(d.At), term.Ago(d.At))),
				term.KV("request", d.ID),
				term.KV("model", d.Model),
				term.KV("pool", d.Pool),
				term.KV("tier", d.Tier),
				term.KV("tenant", d.Tenant),
				term.KV("path", strings.TrimSpace(d.Method+" "+d.Path)),
				term.KV("body", fmt.Sprintf("%s, about %d tokens", term.Bytes(d.Size), d.InputTokens)),
			)
			for _, line := range d.History {
				p.Fields(term.KV("attempt", strings.TrimPrefix(line, "attempt ")))
			}
			printHeaders(p, d.Header)
			if showBody {
				printBody(p, d.Body, d.Size)
			}
		}}, nil
	})
}

func sequences(args []string) ([]uint64, error) {
	var list []uint64
	for _, a := range args {
		n, err := strconv.ParseUint(a, 10, 64)
		if err != nil || n == 0 {
			return nil, cli.Usagef("%q: not the sequence number of a dead letter (see 'pulley dead ls')", a)
		}
		list = append(list, n)
	}
	return list, nil
}

// missingDead is the error about the first of the dead letters that were named and that are not there; nil if all are, or if that
// is not known.
func missingDead(s *cli.Session) error {
	named, _ := sequences(s.Args)
	stream, err := fleet.DeadStream(s.Context(), s.JS)
	if err != nil {
		return nil
	}
	for _, n := range named {
		if _, err := stream.GetMsg(s.Context(), n); errors.Is(err, jetstream.ErrMsgNotFound) {
			return noDeadLetter(n)
		}
	}
	return nil
}

func noDeadLetter(sequence uint64) error {
	return cli.NotFoundf("no dead letter %d; see 'pulley dead ls'", sequence)
}

// deadChoice is the flags that select dead letters in place of arguments.
type deadChoice struct {
	all  bool
	pool string
}

func addDeadChoice(cmd *cobra.Command, c *cli.ConnectFlags) *deadChoice {
	d := &deadChoice{}
	fs := cmd.Flags()
	cli.NameFlag(cmd, c, &d.pool, "pool", "all dead letters of this `pool`", livePools)
	fs.BoolVar(&d.all, "all", false, "all dead letters")
	return d
}

// chosenDead returns the sequence numbers of the selected dead letters.
func chosenDead(s *cli.Session, d *deadChoice) ([]uint64, error) {
	switch {
	case len(s.Args) > 0 && (d.all || d.pool != ""), d.all && d.pool != "":
		return nil, cli.Usagef("SEQ, --pool and --all exclude each other")
	case len(s.Args) > 0:
		return sequences(s.Args)
	case !d.all && d.pool == "":
		return nil, cli.Usagef("missing argument: SEQ, --pool or --all (see 'pulley dead ls')")
	}
	list, _, err := fleet.DeadLetters(s.Context(), s.JS, subjects.DeadFilter("", d.pool), 0)
	if err != nil {
		return nil, err
	}
	var chosen []uint64
	for _, d := range list {
		chosen = append(chosen, d.Sequence)
	}
	return chosen, nil
}

func newDeadRemoveCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm [SEQ...]", Aliases: []string{"remove"}, Short: "Remove dead letters",
		Long: "Remove dead letters permanently.",
		Example: `  pulley dead rm 17 18
  pulley dead rm --all --force`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cli.Complete(c, 0, liveDeadLetters),
	}
	choice := addDeadChoice(cmd, c)
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		chosen, err := chosenDead(s, choice)
		if err != nil {
			return err
		}
		if len(chosen) == 0 {
			s.Printf("no dead letters")
			return nil
		}
		stream, err := fleet.DeadStream(s.Context(), s.JS)
		if err != nil {
			return err
		}
		if err := s.Confirm("permanently remove %s", term.Count(len(chosen), "dead letter")); err != nil {
			return err
		}
		removed := 0
		for _, n := range slices.Compact(slices.Sorted(slices.Values(chosen))) {
			there, err := deleteMessage(s.Context(), stream, n)
			switch {
			case err != nil:
				return fmt.Errorf("remove dead letter %d, after %d others: %w", n, removed, err)
			case there:
				removed++
			case len(s.Args) > 0:
				return noDeadLetter(n)
			}
		}
		s.Printf("%s removed", term.Count(removed, "dead letter"))
		return nil
	})
}

// maxRetries is how many dead letters run at the same time.
const maxRetries = 8

func newDeadRetryCommand(c *cli.ConnectFlags) *cobra.Command {
	var showBody bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "retry [SEQ...]", Short: "Run dead letters again",
		Long: `Run dead letters again with their own headers and tier, and print the status of
each answer. Successful ones are removed, the others are kept. The exit code is 1 if
any failed.`,
		Example: `  pulley dead retry 17 --show-body
  pulley dead retry --pool llama-70b`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cli.Complete(c, 0, liveDeadLetters),
	}
	choice := addDeadChoice(cmd, c)
	cmd.Flags().BoolVar(&showBody, "show-body", false, "also show the answers")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait for each answer")
	return cli.Action(cmd, c, func(s *cli.Session) error {
		chosen, err := chosenDead(s, choice)
		if err != nil {
			return err
		}
		if len(chosen) == 0 {
			s.Printf("no dead letters")
			return nil
		}
		err = retryDead(s, chosen, timeout, showBody)
		if err == nil || errors.Is(err, fleet.ErrNoGateway) || s.Context().Err() != nil {
			return err
		}
		return cmp.Or(missingDead(s), err)
	})
}

// retryDead runs dead letters, several at the same time, and prints the result of each as it ends.
func retryDead(s *cli.Session, chosen []uint64, timeout time.Duration, showBody bool) error {
	type ended struct {
		sequence uint64
		result   subjects.RetryResult
		err      error
	}
	results := make(chan ended)
	go func() { // ends with the last result; the loop below receives all of them
		defer close(results)
		var group errgroup.Group
		group.SetLimit(maxRetries)
		for _, n := range chosen {
			group.Go(func() error {
				r, err := fleet.Call[subjects.RetryResult](s.Context(), s.NC, subjects.DoRetry, subjects.RetryOrder{Sequence: n, By: s.User()}, timeout)
				results <- ended{n, r, err}
				return nil
			})
		}
		group.Wait()
	}()
	failed, noGateway := 0, false
	for e := range results {
		if s.Context().Err() != nil {
			continue
		}
		switch {
		case errors.Is(e.err, nats.ErrNoResponders):
			noGateway = true
			continue
		case errors.Is(e.err, fleet.ErrNoAnswer):
			e.result.Error = fmt.Sprintf("no answer within %v", timeout)
		case e.err != nil:
			e.result.Error = plain.Error(e.err)
		}
		if !printRetry(s, e.sequence, e.result, showBody) {
			failed++
		}
	}
	switch {
	case s.Context().Err() != nil:
		return context.Cause(s.Context())
	case noGateway:
		return fleet.ErrNoGateway
	case failed > 0:
		return fmt.Errorf("%d of %d failed again", failed, len(chosen))
	}
	return nil
}

// printRetry prints the result of a retry, and says whether it succeeded.
func printRetry(s *cli.Session, sequence uint64, r subjects.RetryResult, showBody bool) bool {
	p := term.Page{Terminal: term.Of(s.Cmd.OutOrStdout())}
	succeeded := r.Error == "" && r.Status >= 200 && r.Status < 300
	switch {
	case succeeded:
		p.Line("%d  %s  answered, removed", sequence, p.Paint(term.Green, fmt.Sprint(r.Status)))
	case r.Error != "":
		p.Line("%d  %s", sequence, p.Paint(term.Red, term.Printable(r.Error)))
	default:
		p.Line("%d  %s  kept", sequence, p.Paint(term.Red, fmt.Sprint(r.Status)))
	}
	if showBody && len(r.Body) > 0 {
		printBody(&p, string(r.Body), int64(len(r.Body)))
	}
	s.Cmd.OutOrStdout().Write(p.Bytes())
	return succeeded
}
