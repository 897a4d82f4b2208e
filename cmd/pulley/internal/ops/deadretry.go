package ops

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

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
		return retryDead(s, chosen, timeout, showBody)
	})
}

// retryDead runs dead letters, several at the same time, and prints the result of each
// as it ends.
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
			e.result.Error = e.err.Error()
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
