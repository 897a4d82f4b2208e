package ops

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

func newWorkerDrainCommand(c *cli.ConnectFlags) *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use: "drain WORKER", Short: "Let a worker finish its requests and exit",
		Long: `Drain a worker: it accepts no new requests, finishes the running ones, and exits.
The command waits until the worker has left; Ctrl-C ends the wait, not the drain.
To use the worker again later without a restart, cordon it instead.`,
		Example: `  pulley worker drain gpu-3
  pulley worker drain gpu-3 --force --no-wait`,
		Args:              cli.ExactArgs("WORKER"),
		ValidArgsFunction: cli.Complete(c, 1, liveWorkers),
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until the worker has left")
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		h, err := fleet.FindWorker(s.Context(), s.NC, s.Args[0])
		if err != nil {
			return err
		}
		if err := s.Confirm("drain worker %s, so that it finishes its requests and exits", h.Name); err != nil {
			return err
		}
		beats, err := s.NC.SubscribeSync(subjects.Heartbeats(h.Worker))
		if err != nil {
			return err
		}
		defer beats.Unsubscribe()
		o, err := fleet.Call[subjects.Outcome](s.Context(), s.NC, subjects.WorkerDrain(h.Worker), struct{}{}, fleet.AskTimeout)
		switch {
		case errors.Is(err, nats.ErrNoResponders), errors.Is(err, fleet.ErrNoAnswer):
			return fmt.Errorf("drain worker %s: no answer; it may have just left, see 'pulley worker ls'", h.Name)
		case err != nil:
			return fmt.Errorf("drain worker %s: %w", h.Name, err)
		case o.Error != "":
			return cli.Refusedf("drain worker %s: %s", h.Name, o.Error)
		case noWait:
			s.Printf("worker %s is draining", h.Name)
			return nil
		}
		return awaitLeft(s, h, beats)
	})
}

// awaitLeft shows the progress of a drain until the worker has left.
func awaitLeft(s *cli.Session, h subjects.Heartbeat, beats *nats.Subscription) error {
	began := time.Now()
	t := term.Of(s.Cmd.ErrOrStderr())
	show := func(text string) { fmt.Fprintln(s.Cmd.ErrOrStderr(), text) }
	if t.Width > 0 { // one line that is overwritten
		show = func(text string) { fmt.Fprintf(s.Cmd.ErrOrStderr(), "\r\x1b[K%s", text) }
		defer fmt.Fprint(s.Cmd.ErrOrStderr(), "\r\x1b[K")
	}
	last := ""
	for {
		waiting, cancel := context.WithTimeout(s.Context(), 2*subjects.WorkerDeadline)
		m, err := beats.NextMsgWithContext(waiting)
		cancel()
		if s.Context().Err() != nil {
			return context.Cause(s.Context())
		}
		if err != nil {
			return fmt.Errorf("worker %s stopped sending heartbeats during the drain: its requests run on other workers", h.Name)
		}
		var now subjects.Heartbeat
		if subjects.Unmarshal(m.Data, &now) != nil {
			continue
		}
		if now.State == subjects.Left {
			break
		}
		if text := fmt.Sprintf("worker %s: %s running", h.Name, term.Count(now.InFlight, "request")); text != last {
			show(text)
			last = text
		}
	}
	if t.Width > 0 {
		fmt.Fprint(s.Cmd.ErrOrStderr(), "\r\x1b[K")
	}
	s.Printf("worker %s has left after %s", h.Name, term.Age(time.Since(began)))
	return nil
}
