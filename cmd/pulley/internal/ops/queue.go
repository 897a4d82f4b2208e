package ops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func newQueueCommand() *cobra.Command {
	return cli.Noun("queue", "Waiting requests: list, peek, purge", `There is one queue for each pool and tier. Some of the waiting requests are in the
broker, where the bids of workers pull them. The others wait in the gateways, which
release them fairly over the tenants.

Terms: docs/concepts.md`,
		newQueueListCommand, newQueuePeekCommand, newQueuePurgeCommand)
}

func newQueueListCommand(c *cli.ConnectFlags) *cobra.Command {
	var pool, tier string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the queues",
		Long: `List the queues: requests waiting and for how long, requests in flight on workers,
and open bids of workers. With -o wide there is a line for each lane: a home lane
holds the follow-up requests for the worker that has their prefix cached.`,
		Example: `  pulley queue ls
  pulley queue ls --pool llama-70b -o wide --watch`,
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&pool, "pool", "", "only this `pool`")
	cmd.Flags().StringVar(&tier, "tier", "", "only this `tier`")
	cmd.RegisterFlagCompletionFunc("pool", cli.CompleteFlag(c, livePools))
	cmd.RegisterFlagCompletionFunc("tier", cli.CompleteFlag(c, liveTiers))
	return cli.Listing(cmd, c, func(s *cli.Session) (cli.View, error) {
		p, err := fleet.LoadPolicy(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		lanes, list, err := fleet.Queues(s.Context(), s.NC, p)
		if err != nil {
			return cli.View{}, err
		}
		other := func(p, t string) bool { return pool != "" && p != pool || tier != "" && t != tier }
		lanes = slices.DeleteFunc(lanes, func(l fleet.Lane) bool { return other(l.Pool, l.Tier) })
		list = slices.DeleteFunc(list, func(q fleet.Queue) bool { return other(q.Pool, q.Tier) })
		return cli.View{Value: list, Print: func(pg *term.Page) {
			if pg.Wide {
				printLanes(pg, lanes, p)
				return
			}
			t := term.Table{
				Columns: []term.Column{term.Text("POOL"), term.Text("TIER"), term.Number("WAITING"), term.Number("OLDEST"), term.Number("MAX QUEUE"), term.Number("IN FLIGHT"), term.Number("BIDS"), term.NonEmpty(term.Styled(term.Fixed("STATE"), fleet.StateStyle))},
				Empty:   "no queues: they appear with the first worker",
			}
			for _, q := range list {
				oldest, state := "", ""
				if q.OldestMS > 0 {
					oldest = term.Age(time.Duration(q.OldestMS) * time.Millisecond)
				}
				if q.Paused {
					state = "paused"
				}
				t.Row(q.Pool, q.Tier, q.Waiting, oldest, term.NonZero(q.MaxQueue), q.InFlight, q.Bids, state)
			}
			pg.Table(t)
		}}, nil
	})
}

func printLanes(p *term.Page, lanes []fleet.Lane, pol *policy.Policy) {
	t := term.Table{Columns: []term.Column{term.Text("POOL"), term.Text("TIER"), term.Text("LANE"), term.Number("IN BROKER"), term.Number("IN FLIGHT"), term.Number("BIDS"), term.NonEmpty(term.Styled(term.Fixed("STATE"), fleet.StateStyle))},
		Empty: "no queues: they appear with the first worker"}
	for _, q := range lanes {
		state := ""
		if pol.Pools[q.Pool].Paused {
			state = "paused"
		}
		t.Row(q.Pool, q.Tier, q.Lane, q.Waiting, q.Delivered, q.Bids, state)
	}
	p.Table(t)
}

func newQueuePurgeCommand(c *cli.ConnectFlags) *cobra.Command {
	var tier string
	cmd := &cobra.Command{
		Use: "purge POOL", Short: "Drop the waiting requests",
		Long: `Drop the waiting requests of a pool: their clients get a 503. Running requests
continue. To hold requests back instead, pause the pool.`,
		Example: `  pulley queue purge llama-70b --tier batch
  pulley queue purge llama-70b --force`,
		Args:              cli.ExactArgs("POOL"),
		ValidArgsFunction: cli.Complete(c, 1, livePools),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&tier, "tier", "", "only this `tier`")
	cmd.RegisterFlagCompletionFunc("tier", cli.CompleteFlag(c, liveTiers))
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		pool := s.Args[0]
		tiers, err := tiersToSearch(s, pool, tier)
		if err != nil {
			return err
		}
		queue := "pool " + term.Printable(pool)
		if tier != "" {
			queue += ", tier " + tier
		}
		if err := s.Confirm("drop all waiting requests of %s", queue); err != nil {
			return err
		}
		dropped, err := fleet.CallAll(s.Context(), s.NC, subjects.DoPurge, subjects.PurgeOrder{Pool: pool, Tier: tier, By: s.User()})
		if err != nil && !errors.Is(err, fleet.ErrNoGateway) {
			return fmt.Errorf("purge %s: %w", queue, err)
		}
		orphans := 0
		for _, t := range tiers {
			n, err := dropOrphans(s, t, pool)
			if err != nil {
				return err
			}
			orphans += n
		}
		switch {
		case orphans > 0:
			s.Printf("%s dropped, and %d of gateways that are gone", term.Count(dropped, "request"), orphans)
		default:
			s.Printf("%s dropped", term.Count(dropped, "request"))
		}
		return nil
	})
}

// dropOrphans deletes the waiting requests of gateways that are gone.
func dropOrphans(s *cli.Session, tier, pool string) (dropped int, err error) {
	_, delivered, err := deliveryState(s, tier, pool)
	if err != nil {
		return 0, err
	}
	stream, err := s.JS.Stream(s.Context(), subjects.ReqStream(tier))
	if err != nil {
		return 0, fmt.Errorf("stream of tier %s: %w", tier, err)
	}
	gone := make(map[string]bool)
	var failed error
	err = eachStored(s, tier, pool, func(m queuedRequest) bool {
		if _, known := gone[m.Gateway]; !known {
			gone[m.Gateway] = gatewayGone(s, m.Gateway)
		}
		if !gone[m.Gateway] || m.sequence <= delivered[m.Lane] {
			return true
		}
		there, err := deleteMessage(s.Context(), stream, m.sequence)
		if there {
			dropped++
		}
		failed = err
		return err == nil
	})
	return dropped, errors.Join(err, failed)
}

// gatewayGone says whether a gateway no longer answers.
func gatewayGone(s *cli.Session, id string) bool {
	_, err := s.NC.RequestWithContext(s.Context(), subjects.GatewayBody(id), []byte("{}"))
	return errors.Is(err, nats.ErrNoResponders)
}

// deleteMessage deletes a message of a stream; false if it does not exist.
func deleteMessage(ctx context.Context, stream jetstream.Stream, sequence uint64) (bool, error) {
	err := stream.DeleteMsg(ctx, sequence)
	if err == nil {
		return true, nil
	}
	// The error does not say whether the message exists.
	if _, getErr := stream.GetMsg(ctx, sequence); errors.Is(getErr, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return false, err
}
