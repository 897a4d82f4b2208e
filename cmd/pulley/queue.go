package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func newQueueCommand() *cobra.Command {
	return noun("queue", "What waits: list, look into, empty", `The queues: one for each pool and tier. A part of what waits is in the broker,
where the workers' bids pull it; the rest waits in the gateways for its tenant's
turn.`,
		newQueueListCommand, newQueuePeekCommand, newQueuePurgeCommand)
}

// queueLine is one line of pulley queue ls.
type queueLine struct {
	Pool     string `json:"pool"`
	Tier     string `json:"tier"`
	Lane     string `json:"lane,omitempty"` // empty: all of them
	Waiting  uint64 `json:"waiting"`
	InBroker uint64 `json:"in_broker"` // of these
	InFlight int    `json:"in_flight"`
	Bids     int    `json:"bids"` // parked
	MaxQueue int    `json:"max_queue,omitempty"`
	OldestMS int64  `json:"oldest_ms,omitempty"` // age of the oldest that waits
	Paused   bool   `json:"paused,omitempty"`
}

func newQueueListCommand(c *connectFlags) *cobra.Command {
	var pool, tier string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the queues",
		Long: `List the queues: how many requests wait and how long the oldest has, how many run
on workers, and how many bids of workers are parked. --output wide has a line for
each lane: home lanes hold follow-ups for the worker that has their beginning
cached.`,
		Example: `  pulley queue ls
  pulley queue ls --pool llama-70b -o wide --watch`,
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&pool, "pool", "", "only of this `pool`")
	cmd.Flags().StringVar(&tier, "tier", "", "only of this `tier`")
	cmd.RegisterFlagCompletionFunc("pool", completeFlag(c, livePools))
	cmd.RegisterFlagCompletionFunc("tier", completeFlag(c, liveTiers))
	return look(cmd, c, func(s *session) (view, error) {
		p, err := s.policy()
		if err != nil {
			return view{}, err
		}
		lanes, list, err := s.queues(p)
		if err != nil {
			return view{}, err
		}
		other := func(q queueLine) bool { return pool != "" && q.Pool != pool || tier != "" && q.Tier != tier }
		lanes, list = slices.DeleteFunc(lanes, other), slices.DeleteFunc(list, other)
		return view{list, func(pg *page) {
			if pg.wide {
				printLanes(pg, lanes, p)
				return
			}
			t := table{
				columns: []column{text("POOL"), text("TIER"), number("WAITING"), number("OLDEST"), number("MAX"), number("RUNNING"), number("BIDS"), ifAny(painted(word("STATE"), paintState))},
				empty:   "no queues; they appear with the first worker",
			}
			for _, q := range list {
				oldest, state := "", ""
				if q.OldestMS > 0 {
					oldest = age(time.Duration(q.OldestMS) * time.Millisecond)
				}
				if q.Paused {
					state = "paused"
				}
				t.row(q.Pool, q.Tier, q.Waiting, oldest, limit(q.MaxQueue), q.InFlight, q.Bids, state)
			}
			pg.table(t)
		}}, nil
	})
}

// queues are all queues, lane by lane and each as a whole.
func (s *session) queues(p *policy.Policy) (lanes, whole []queueLine, err error) {
	lanes, err = queues(s.ctx(), s.nc)
	if err != nil {
		return nil, nil, err
	}
	held, err := ask[subjects.RequestInfo](s.ctx(), s.nc, subjects.AskRequests, true)
	if err != nil && !errors.Is(err, nats.ErrNoResponders) {
		return nil, nil, fmt.Errorf("ask the gateways: %w", err)
	}
	return lanes, queuesOf(lanes, held, err == nil, p), nil
}

func printLanes(p *page, lanes []queueLine, pol *policy.Policy) {
	t := table{columns: []column{text("POOL"), text("TIER"), text("LANE"), number("IN BROKER"), number("RUNNING"), number("BIDS"), ifAny(painted(word("STATE"), paintState))},
		empty: "no queues; they appear with the first worker"}
	for _, q := range lanes {
		state := ""
		if pol.Pools[q.Pool].Paused {
			state = "paused"
		}
		t.row(q.Pool, q.Tier, q.Lane, q.Waiting, q.InFlight, q.Bids, state)
	}
	p.table(t)
}

// queuesOf joins the lanes of each queue and what the gateways hold of it, if
// they have answered. What a worker has handed back counts as in flight to the
// broker: the gateways know better.
func queuesOf(lanes []queueLine, held []subjects.RequestInfo, answered bool, p *policy.Policy) []queueLine {
	type key struct{ pool, tier string }
	at := make(map[key]*queueLine)
	get := func(pool, tier string) *queueLine {
		q := at[key{pool, tier}]
		if q == nil {
			t, _ := p.Tier(tier)
			q = &queueLine{Pool: pool, Tier: tier, MaxQueue: t.MaxQueue, Paused: p.Pools[pool].Paused}
			at[key{pool, tier}] = q
		}
		return q
	}
	for _, l := range lanes {
		q := get(l.Pool, l.Tier)
		q.InBroker += l.Waiting
		q.Bids += l.Bids
		if !answered {
			q.InFlight += l.InFlight
		}
	}
	queued := make(map[*queueLine]uint64)
	for _, r := range held {
		q := get(r.Pool, r.Tier)
		if r.State != "queued" {
			q.InFlight++
			continue
		}
		queued[q]++
		q.OldestMS = max(q.OldestMS, r.QueueMS)
	}
	list := make([]queueLine, 0, len(at))
	for _, q := range at {
		q.Waiting = max(q.InBroker, queued[q])
		_, inPolicy := p.Tier(q.Tier)
		if inPolicy || q.Waiting > 0 || q.InFlight > 0 {
			list = append(list, *q)
		}
	}
	slices.SortFunc(list, func(a, b queueLine) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), tierOrder(p, a.Tier)-tierOrder(p, b.Tier), strings.Compare(a.Tier, b.Tier))
	})
	return list
}

// tierOrder is a tier's place; those that are gone come last.
func tierOrder(p *policy.Policy, name string) int {
	if i := slices.IndexFunc(p.Tiers, func(t policy.Tier) bool { return t.Name == name }); i >= 0 {
		return i
	}
	return len(p.Tiers)
}

// queues reads the consumers of every tier's stream: one for each lane.
func queues(ctx context.Context, nc *nats.Conn) ([]queueLine, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	list := []queueLine{}
	streams := js.StreamNames(ctx, jetstream.WithStreamListSubject(subjects.AllReqs))
	for name := range streams.Name() {
		s, err := js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
		consumers := s.ListConsumers(ctx)
		for c := range consumers.Info() {
			if pool, ok := c.Config.Metadata["pulley-pool"]; ok {
				list = append(list, queueLine{
					Pool: pool, Tier: subjects.TierOf(name), Lane: c.Config.Metadata["pulley-lane"],
					Waiting: c.NumPending, InBroker: c.NumPending, InFlight: c.NumAckPending, Bids: c.NumWaiting,
				})
			}
		}
		if err := consumers.Err(); err != nil && !errors.Is(err, jetstream.ErrEndOfData) && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil, fmt.Errorf("consumers of %s: %w", name, err)
		}
	}
	if err := streams.Err(); err != nil && !errors.Is(err, jetstream.ErrEndOfData) {
		return nil, fmt.Errorf("list streams: %w", err)
	}
	slices.SortFunc(list, func(a, b queueLine) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), strings.Compare(a.Tier, b.Tier), strings.Compare(a.Lane, b.Lane))
	})
	return list, nil
}

// peeked is a request in the broker that waits.
type peeked struct {
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
	Body        string    `json:"body,omitempty"` // with --show-body; absent if it travels by reference

	sequence uint64
}

const (
	showBodyHelp = "show the prompt too"

	// peekMost bounds how many messages are read to find those that wait.
	peekMost = 5000
)

func newQueuePeekCommand(c *connectFlags) *cobra.Command {
	var tier string
	var n int
	var showBody bool
	cmd := &cobra.Command{
		Use: "peek POOL", Short: "Show the requests that have waited longest",
		Long: `Show the requests that have waited longest in the broker, without taking them.
Those that wait in a gateway for their turn are in 'pulley request ls'. Prompts
are shown with --show-body only.`,
		Example: `  pulley queue peek llama-70b
  pulley queue peek llama-70b --tier batch -n 1 --show-body`,
		Args:              wantArgs("POOL"),
		ValidArgsFunction: complete(c, 1, livePools),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&tier, "tier", "", "only of this `tier`")
	fs.IntVarP(&n, "number", "n", 10, "how many, at most")
	fs.BoolVar(&showBody, "show-body", false, showBodyHelp)
	cmd.RegisterFlagCompletionFunc("tier", completeFlag(c, liveTiers))
	return look(cmd, c, func(s *session) (view, error) {
		if n < 1 {
			return view{}, usagef("--number %d: want 1 or more", n)
		}
		tiers, err := s.tiersToSearch(s.args[0], tier)
		if err != nil {
			return view{}, err
		}
		list := []peeked{}
		for _, t := range tiers {
			some, err := s.peek(t, s.args[0], n)
			if err != nil {
				return view{}, err
			}
			list = append(list, some...)
		}
		slices.SortStableFunc(list, func(a, b peeked) int { return a.Stored.Compare(b.Stored) })
		list = list[:min(n, len(list))]
		if !showBody {
			for i := range list {
				list[i].Body = ""
			}
		}
		return view{list, func(p *page) { printPeeked(p, list, showBody) }}, nil
	})
}

func printPeeked(p *page, list []peeked, showBody bool) {
	t := table{
		columns: []column{number("WAITS"), {name: "ID", cut: 13, tail: true}, word("TIER"), wide(text("LANE")), ifAny(text("TENANT")), text("MODEL"), wide(text("PATH")),
			number("TOKENS IN"), number("SIZE"), number("TIME LEFT"), wide(text("GATEWAY"))},
		empty: "nothing waits in the broker",
	}
	for _, m := range list {
		t.row(ago(m.Stored), m.ID, m.Tier, m.Lane, m.Tenant, m.Model, m.Path, m.InputTokens, byteCount(m.Size), time.Until(m.Deadline), m.Gateway)
	}
	if !showBody {
		p.table(t)
		return
	}
	for i := range list {
		one := t
		one.rows = t.rows[i : i+1]
		p.table(one)
		p.body(list[i].Body, list[i].Size)
	}
	if len(list) == 0 {
		p.table(t)
	}
}

// body writes a prompt or an answer, whole.
func (p *page) body(body string, size int64) {
	if body == "" && size > 0 {
		body = "(" + byteCount(size) + ", not in the message)"
	}
	if p.width > 0 {
		body = printableLines(body)
	}
	fmt.Fprintf(&p.b, "\n%s\n\n", strings.TrimRight(body, "\n"))
}

// tiersToSearch are the tiers in which a pool's requests may be.
func (s *session) tiersToSearch(pool, tier string) ([]string, error) {
	p, err := s.policy()
	if err != nil {
		return nil, err
	}
	lanes, err := queues(s.ctx(), s.nc)
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
		return nil, noSuch("pool", pool, pools)
	}
	names := make([]string, 0, len(tiers))
	for t := range tiers {
		names = append(names, t)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(tierOrder(p, a)-tierOrder(p, b), strings.Compare(a, b)) })
	if tier == "" {
		return names, nil
	}
	if !tiers[tier] {
		return nil, noSuch("tier", tier, names)
	}
	return []string{tier}, nil
}

// peek reads the first n requests of a queue that wait.
func (s *session) peek(tier, pool string, n int) ([]peeked, error) {
	held, delivered, err := s.whatRuns(tier, pool)
	if err != nil {
		return nil, err
	}
	var list []peeked
	read := 0
	err = s.eachStored(tier, pool, func(m peeked) bool {
		state, known := held[m.ID]
		if known && state == "queued" || !known && m.sequence > delivered[m.Lane] {
			list = append(list, m)
		}
		read++
		return len(list) < n && read < peekMost
	})
	return list, err
}

// whatRuns is the state of each request that a gateway holds, and up to which
// sequence each lane of a queue has been delivered.
func (s *session) whatRuns(tier, pool string) (held map[string]string, delivered map[string]uint64, err error) {
	list, err := ask[subjects.RequestInfo](s.ctx(), s.nc, subjects.AskRequests, true)
	if err != nil && !errors.Is(err, nats.ErrNoResponders) {
		return nil, nil, fmt.Errorf("ask the gateways: %w", err)
	}
	held = make(map[string]string, len(list))
	for _, r := range list {
		held[r.ID] = r.State
	}
	stream, err := s.js.Stream(s.ctx(), subjects.ReqStream(tier))
	if err != nil {
		return nil, nil, fmt.Errorf("stream of tier %s: %w", tier, err)
	}
	delivered = make(map[string]uint64)
	consumers := stream.ListConsumers(s.ctx())
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

// eachStored calls with each request of a queue that the broker has, the oldest
// first, until visit says false.
func (s *session) eachStored(tier, pool string, visit func(peeked) bool) error {
	stream, err := s.js.Stream(s.ctx(), subjects.ReqStream(tier))
	if err != nil {
		return fmt.Errorf("stream of tier %s: %w", tier, err)
	}
	subject := subjects.Req(tier, pool, "")
	subject = subject[:strings.LastIndexByte(subject, '.')] + ".*"
	for sequence := uint64(1); ; {
		m, err := stream.GetMsg(s.ctx(), sequence, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the queue of pool %s, tier %s: %w", pool, tier, err)
		}
		sequence = m.Sequence + 1
		p := peeked{Pool: pool, Tier: tier, Stored: m.Time, Body: string(m.Data), sequence: m.Sequence}
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

func newQueuePurgeCommand(c *connectFlags) *cobra.Command {
	var tier string
	cmd := &cobra.Command{
		Use: "purge POOL", Short: "Drop the requests that wait",
		Long: `Drop the requests of a pool that wait: their clients get a 503. What runs on a
worker goes on. To hold requests back instead, pause the pool.`,
		Example: `  pulley queue purge llama-70b --tier batch
  pulley queue purge llama-70b --force`,
		Args:              wantArgs("POOL"),
		ValidArgsFunction: complete(c, 1, livePools),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&tier, "tier", "", "only of this `tier`")
	cmd.RegisterFlagCompletionFunc("tier", completeFlag(c, liveTiers))
	return harm(cmd, c, func(s *session) error {
		pool := s.args[0]
		tiers, err := s.tiersToSearch(pool, tier)
		if err != nil {
			return err
		}
		of := "pool " + printable(pool)
		if tier != "" {
			of += ", tier " + tier
		}
		if err := s.confirm("drop all requests of %s that wait", of); err != nil {
			return err
		}
		dropped, err := orderAll(s.ctx(), s.nc, subjects.DoPurge, subjects.PurgeOrder{Pool: pool, Tier: tier, By: s.who()})
		if err != nil && !errors.Is(err, errNoGateway) {
			return fmt.Errorf("purge %s: %w", of, err)
		}
		orphans := 0
		for _, t := range tiers {
			n, err := s.dropOrphans(t, pool)
			if err != nil {
				return err
			}
			orphans += n
		}
		switch {
		case orphans > 0:
			s.say("%s dropped, and %d that no gateway knew", count(dropped, "request"), orphans)
		default:
			s.say("%s dropped", count(dropped, "request"))
		}
		return nil
	})
}

// dropOrphans deletes the requests of a queue whose gateway is gone.
func (s *session) dropOrphans(tier, pool string) (dropped int, err error) {
	_, delivered, err := s.whatRuns(tier, pool)
	if err != nil {
		return 0, err
	}
	stream, err := s.js.Stream(s.ctx(), subjects.ReqStream(tier))
	if err != nil {
		return 0, fmt.Errorf("stream of tier %s: %w", tier, err)
	}
	gone := make(map[string]bool)
	var failed error
	err = s.eachStored(tier, pool, func(m peeked) bool {
		if _, known := gone[m.Gateway]; !known {
			gone[m.Gateway] = s.gatewayGone(m.Gateway)
		}
		if !gone[m.Gateway] || m.sequence <= delivered[m.Lane] {
			return true
		}
		there, err := deleteMessage(s.ctx(), stream, m.sequence)
		if there {
			dropped++
		}
		failed = err
		return err == nil
	})
	return dropped, errors.Join(err, failed)
}

// gatewayGone says that nobody answers for a gateway any more.
func (s *session) gatewayGone(id string) bool {
	_, err := s.nc.RequestWithContext(s.ctx(), subjects.GatewayBody(id), []byte("{}"))
	return errors.Is(err, nats.ErrNoResponders)
}
