package ops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
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
	return cli.Noun("queue", "Waiting requests: list, peek, purge, prune", `There is one queue for each pool and tier. Some of the waiting requests are in the
broker, where the bids of workers pull them. The others wait in the gateways, which
release them fairly over the tenants.

Terms: docs/concepts.md`,
		newQueueListCommand, newQueuePeekCommand, newQueuePurgeCommand, newQueuePruneCommand)
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
	cli.NameFlag(cmd, c, &pool, "pool", "only this `pool`", livePools)
	cli.NameFlag(cmd, c, &tier, "tier", "only this `tier`", liveTiers)
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
				t.Row(q.Pool, q.Tier, q.Waiting, q.Oldest(), term.NonZero(q.MaxQueue), q.InFlight, q.Bids, pausedText(q.Paused))
			}
			pg.Table(t)
		}}, nil
	})
}

func printLanes(p *term.Page, lanes []fleet.Lane, pol *policy.Policy) {
	t := term.Table{Columns: []term.Column{term.Text("POOL"), term.Text("TIER"), term.Text("LANE"), term.Number("IN BROKER"), term.Number("IN FLIGHT"), term.Number("BIDS"), term.NonEmpty(term.Styled(term.Fixed("STATE"), fleet.StateStyle))},
		Empty: "no queues: they appear with the first worker"}
	for _, q := range lanes {
		t.Row(q.Pool, q.Tier, q.Lane, q.Waiting, q.Delivered, q.Bids, pausedText(pol.Pools[q.Pool].Paused))
	}
	p.Table(t)
}

func pausedText(paused bool) string {
	if paused {
		return "paused"
	}
	return ""
}

func newQueuePurgeCommand(c *cli.ConnectFlags) *cobra.Command {
	var tier string
	cmd := &cobra.Command{
		Use: "purge POOL", Short: "Drop the waiting requests",
		Long: `Drop the waiting requests of a pool: their clients get a 503. Running requests
continue. To hold requests back instead, pause the pool.`,
		Example: `  pulley queue purge llama-70b --tier batch
  pulley queue purge llama-70b --force`,
		ValidArgsFunction: cli.Complete(c, 1, livePools),
	}
	cli.NameFlag(cmd, c, &tier, "tier", "only this `tier`", liveTiers)
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

func newQueuePruneCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove what nobody waits for",
		Long: `Remove what nobody waits for: the waiting requests of gateways that are gone, in the
queues of all pools, and the empty streams of tiers that are not in the policy.
Requests whose clients wait stay. 'pulley queue purge' drops those too.`,
		Example: `  pulley queue prune`,
	}
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		lanes, err := fleet.Lanes(s.Context(), s.JS)
		if err != nil {
			return err
		}
		p, err := fleet.LoadPolicy(s.Context(), s.NC)
		if err != nil {
			return err
		}
		streams, err := streamsOfUnknownTiers(s, p)
		if err != nil {
			return err
		}
		if err := s.Confirm("remove the waiting requests of gateways that are gone, and the empty streams of tiers that are not in the policy"); err != nil {
			return err
		}
		dropped := 0
		done := make(map[fleet.PoolTier]bool)
		for _, l := range lanes {
			queue := fleet.PoolTier{Pool: l.Pool, Tier: l.Tier}
			if done[queue] {
				continue
			}
			done[queue] = true
			n, err := dropOrphans(s, l.Tier, l.Pool)
			if err != nil {
				return err
			}
			dropped += n
		}
		s.Printf("%s of gateways that are gone removed", term.Count(dropped, "request"))
		for _, name := range streams {
			stream, err := s.JS.Stream(s.Context(), name)
			switch {
			case errors.Is(err, jetstream.ErrStreamNotFound):
				continue
			case err != nil:
				return fmt.Errorf("stream %s: %w", name, err)
			case stream.CachedInfo().State.Msgs > 0:
				s.Warnf("the stream %s remains, since it has %s; %s", name, term.Count(stream.CachedInfo().State.Msgs, "request"), "'pulley tier rm --force' deletes them")
				continue
			}
			if err := s.JS.DeleteStream(s.Context(), name); err != nil {
				return fmt.Errorf("delete stream %s: %w", name, err)
			}
			s.Printf("stream %s removed", name)
		}
		return nil
	})
}

// streamsOfUnknownTiers returns the streams of tiers that are not in a policy.
func streamsOfUnknownTiers(s *cli.Session, p *policy.Policy) (names []string, err error) {
	list := s.JS.StreamNames(s.Context())
	for name := range list.Name() {
		known := slices.ContainsFunc(p.Tiers, func(t policy.Tier) bool { return subjects.ReqStream(t.Name) == name })
		if strings.HasPrefix(name, fleet.ReqStreamPrefix) && !known {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("list streams: %w", err)
	}
	return names, nil
}

// dropOrphans deletes the waiting requests of gateways that are gone.
func dropOrphans(s *cli.Session, tier, pool string) (dropped int, err error) {
	_, delivered, err := deliveryState(s, tier, pool)
	if err != nil {
		return 0, err
	}
	stream, err := tierStream(s, tier)
	if err != nil {
		return 0, err
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
	_, err := s.NC.RequestWithContext(s.Context(), subjects.GatewayThere(id), nil)
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

// queuedRequest is a request that waits in the broker. Its JSON is what pulley queue peek -o json prints.
type queuedRequest struct {
	ID          string    `json:"id"`
	Pool        string    `json:"pool"`
	Tier        string    `json:"tier"`
	Lane        string    `json:"lane"`
	Tenant      string    `json:"tenant,omitempty"`
	Model       string    `json:"model"`
	Path        string    `json:"path"`
	Stream      bool      `json:"stream"`
	InputTokens int       `json:"input_tokens"`
	Size        int64     `json:"size"`
	Stored      time.Time `json:"stored"`
	Deadline    time.Time `json:"deadline"`
	Gateway     string    `json:"gateway"`
	Body        string    `json:"body,omitempty"` // with --show-body; empty if the gateway keeps the body

	sequence uint64
}

func newQueuePeekCommand(c *cli.ConnectFlags) *cobra.Command {
	var tier string
	var n int
	var showBody bool
	cmd := &cobra.Command{
		Use: "peek POOL", Short: "Show the requests that have waited longest",
		Long: `Show the requests that have waited longest in the broker, without removing them.
Requests that wait in a gateway are listed by 'pulley request ls'. Prompts are
shown only with --show-body.`,
		Example: `  pulley queue peek llama-70b
  pulley queue peek llama-70b --tier batch -n 1 --show-body`,
		ValidArgsFunction: cli.Complete(c, 1, livePools),
	}
	fs := cmd.Flags()
	cli.NameFlag(cmd, c, &tier, "tier", "only this `tier`", liveTiers)
	fs.IntVarP(&n, "number", "n", 10, "maximum number of requests")
	fs.BoolVar(&showBody, "show-body", false, showBodyHelp)
	return cli.Listing(cmd, c, func(s *cli.Session) (cli.View, error) {
		if n < 1 {
			return cli.View{}, cli.Usagef("--number %d: must be 1 or more", n)
		}
		tiers, err := tiersToSearch(s, s.Args[0], tier)
		if err != nil {
			return cli.View{}, err
		}
		list := []queuedRequest{}
		for _, t := range tiers {
			some, err := peek(s, t, s.Args[0], n)
			if err != nil {
				return cli.View{}, err
			}
			list = append(list, some...)
		}
		slices.SortStableFunc(list, func(a, b queuedRequest) int { return a.Stored.Compare(b.Stored) })
		list = list[:min(n, len(list))]
		if !showBody {
			for i := range list {
				list[i].Body = ""
			}
		}
		return cli.View{Value: list, Print: func(p *term.Page) { printQueued(p, list, showBody) }}, nil
	})
}

func printQueued(p *term.Page, list []queuedRequest, showBody bool) {
	t := term.Table{
		Columns: []term.Column{term.Number("WAITING"), {Name: "ID", MinWidth: 13, KeepEnd: true}, term.Fixed("TIER"), term.Wide(term.Text("LANE")), term.NonEmpty(term.Text("TENANT")), term.Text("MODEL"), term.Wide(term.Text("PATH")),
			term.Number("INPUT TOKENS"), term.Number("SIZE"), term.Number("TIME LEFT"), term.Wide(term.Text("GATEWAY"))},
		Empty: "no requests waiting in the broker",
	}
	for _, m := range list {
		t.Row(term.Ago(m.Stored), m.ID, m.Tier, m.Lane, m.Tenant, m.Model, m.Path, m.InputTokens, term.Bytes(m.Size), time.Until(m.Deadline), m.Gateway)
	}
	if !showBody {
		p.Table(t)
		return
	}
	for i := range list {
		one := t
		one.Rows = t.Rows[i : i+1]
		p.Table(one)
		printBody(p, list[i].Body, list[i].Size)
	}
	if len(list) == 0 {
		p.Table(t)
	}
}

// tiersToSearch returns the tiers in which a pool has a queue, or the one that is given.
func tiersToSearch(s *cli.Session, pool, tier string) ([]string, error) {
	p, err := fleet.LoadPolicy(s.Context(), s.NC)
	if err != nil {
		return nil, err
	}
	lanes, err := fleet.Lanes(s.Context(), s.JS)
	if err != nil {
		return nil, err
	}
	tiers := make(map[string]bool)
	var pools []string
	for _, q := range lanes {
		if pools = append(pools, q.Pool); q.Pool == pool {
			tiers[q.Tier] = true
		}
	}
	if len(tiers) == 0 {
		return nil, cli.NoSuch("pool", pool, pools)
	}
	names := slices.SortedFunc(maps.Keys(tiers), func(a, b string) int {
		return cmp.Or(fleet.TierOrder(p, a)-fleet.TierOrder(p, b), strings.Compare(a, b))
	})
	if tier == "" {
		return names, nil
	}
	if !tiers[tier] {
		return nil, cli.NoSuch("tier", tier, names)
	}
	return []string{tier}, nil
}

// maxPeeked bounds how many messages are read to find the waiting ones.
const maxPeeked = 5000

// peek reads the first n waiting requests of a queue.
func peek(s *cli.Session, tier, pool string, n int) ([]queuedRequest, error) {
	held, delivered, err := deliveryState(s, tier, pool)
	if err != nil {
		return nil, err
	}
	var list []queuedRequest
	read := 0
	err = eachStored(s, tier, pool, func(m queuedRequest) bool {
		state, known := held[m.ID]
		if known && state == "queued" || !known && m.sequence > delivered[m.Lane] {
			list = append(list, m)
		}
		read++
		return len(list) < n && read < maxPeeked
	})
	return list, err
}

// deliveryState returns the state of each request that a gateway holds, and the last sequence that each lane of a queue
// has delivered.
func deliveryState(s *cli.Session, tier, pool string) (held map[string]string, delivered map[string]uint64, err error) {
	list, err := fleet.AskAll[subjects.RequestInfo](s.Context(), s.NC, subjects.AskRequests)
	if err != nil && !errors.Is(err, nats.ErrNoResponders) {
		return nil, nil, fmt.Errorf("ask the gateways: %w", err)
	}
	held = make(map[string]string, len(list))
	for _, r := range list {
		held[r.ID] = r.State
	}
	stream, err := tierStream(s, tier)
	if err != nil {
		return nil, nil, err
	}
	delivered = make(map[string]uint64)
	consumers := stream.ListConsumers(s.Context())
	for c := range consumers.Info() {
		if c.Config.Metadata["pulley-pool"] == pool {
			delivered[c.Config.Metadata["pulley-lane"]] = c.Delivered.Stream
		}
	}
	if err := consumers.Err(); err != nil && !errors.Is(err, jetstream.ErrEndOfData) {
		return nil, nil, fmt.Errorf("consumers of tier %s: %w", tier, err)
	}
	return held, delivered, nil
}

// eachStored visits the requests of a queue in the broker, the oldest first, until visit returns false.
func eachStored(s *cli.Session, tier, pool string, visit func(queuedRequest) bool) error {
	stream, err := tierStream(s, tier)
	if err != nil {
		return err
	}
	subject := subjects.Req(tier, pool, "")
	subject = subject[:strings.LastIndexByte(subject, '.')] + ".*"
	for sequence := uint64(1); ; {
		m, err := stream.GetMsg(s.Context(), sequence, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the queue of pool %s, tier %s: %w", pool, tier, err)
		}
		sequence = m.Sequence + 1
		p := queuedRequest{Pool: pool, Tier: tier, Stored: m.Time, Body: string(m.Data), sequence: m.Sequence}
		p.Lane, _ = subjects.Untoken(subjects.LastToken(m.Subject))
		if r, err := subjects.ParseRequest(&nats.Msg{Subject: m.Subject, Header: m.Header}); err == nil {
			p.ID, p.Tenant, p.Model, p.Path, p.Stream, p.Gateway = r.ID.String(), r.Tenant, r.Model, r.Path, r.Stream, r.Gateway
			p.InputTokens, p.Size, p.Deadline = r.InputTokens, r.BodySize, time.UnixMilli(r.Deadline)
		}
		if !visit(p) {
			return nil
		}
	}
}
