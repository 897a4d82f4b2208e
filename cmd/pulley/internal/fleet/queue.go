package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// Queue is the queue of a pool in a tier. Its JSON is what pulley queue ls -o json prints.
type Queue struct {
	Pool     string `json:"pool"`
	Tier     string `json:"tier"`
	Waiting  uint64 `json:"waiting"`
	InBroker uint64 `json:"in_broker"` // part of Waiting
	InFlight int    `json:"in_flight"`
	Bids     int    `json:"bids"` // parked
	MaxQueue int    `json:"max_queue,omitempty"`
	OldestMS int64  `json:"oldest_ms,omitempty"` // how long the oldest has waited
	Paused   bool   `json:"paused,omitempty"`
}

// Oldest returns how long the oldest request has waited; "" without one.
func (q Queue) Oldest() string {
	if q.OldestMS == 0 {
		return ""
	}
	return term.Age(Millis(q.OldestMS))
}

// Queues returns all queues, and the lanes that they consist of.
func Queues(ctx context.Context, nc *nats.Conn, p *policy.Policy) (lanes []Lane, queues []Queue, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, nil, err
	}
	lanes, err = Lanes(ctx, js)
	if err != nil {
		return nil, nil, err
	}
	held, err := AskAll[subjects.RequestInfo](ctx, nc, subjects.AskRequests)
	if err != nil && !errors.Is(err, nats.ErrNoResponders) {
		return nil, nil, fmt.Errorf("ask the gateways: %w", err)
	}
	return lanes, queuesOf(lanes, held, err == nil, p), nil
}

// queuesOf adds up the lanes of each queue and the requests that the gateways hold. If the gateways have answered,
// their number of requests in flight counts: the broker still counts a request that a worker has handed back.
func queuesOf(lanes []Lane, held []subjects.RequestInfo, answered bool, p *policy.Policy) []Queue {
	type key struct{ pool, tier string }
	at := make(map[key]*Queue)
	get := func(pool, tier string) *Queue {
		q := at[key{pool, tier}]
		if q == nil {
			t, _ := p.Tier(tier)
			q = &Queue{Pool: pool, Tier: tier, MaxQueue: t.MaxQueue, Paused: p.Pools[pool].Paused}
			at[key{pool, tier}] = q
		}
		return q
	}
	for _, l := range lanes {
		q := get(l.Pool, l.Tier)
		q.InBroker += uint64(l.Waiting)
		q.Bids += l.Bids
		if !answered {
			q.InFlight += l.Delivered
		}
	}
	queued := make(map[*Queue]uint64)
	for _, r := range held {
		q := get(r.Pool, r.Tier)
		if r.State != "queued" {
			q.InFlight++
			continue
		}
		queued[q]++
		q.OldestMS = max(q.OldestMS, r.QueueMS)
	}
	list := make([]Queue, 0, len(at))
	for _, q := range at {
		q.Waiting = max(q.InBroker, queued[q])
		_, inPolicy := p.Tier(q.Tier)
		if inPolicy || q.Waiting > 0 || q.InFlight > 0 {
			list = append(list, *q)
		}
	}
	slices.SortFunc(list, func(a, b Queue) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), TierOrder(p, a.Tier)-TierOrder(p, b.Tier), strings.Compare(a.Tier, b.Tier))
	})
	return list
}

// Lane is one lane of a pool's queue in a tier, as the broker has it. Its JSON is part of what pulley top -o json
// prints.
type Lane struct {
	Pool           string  `json:"pool"`
	Tier           string  `json:"tier"`
	Lane           string  `json:"lane"`
	Waiting        int     `json:"waiting"`
	Delivered      int     `json:"delivered"` // and not settled
	Bids           int     `json:"bids"`      // parked
	TakenPerSecond float64 `json:"taken_per_second"`

	deliveries uint64 // since the consumer was created
}

// Lanes reads the consumers of all tiers' streams: there is one for each lane.
func Lanes(ctx context.Context, js jetstream.JetStream) ([]Lane, error) {
	list := []Lane{}
	streams := js.StreamNames(ctx, jetstream.WithStreamListSubject(subjects.AllReqs))
	for name := range streams.Name() {
		if !strings.HasPrefix(name, ReqStreamPrefix) {
			continue
		}
		s, err := js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue // deleted in the meantime
		}
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
		consumers := s.ListConsumers(ctx)
		for c := range consumers.Info() {
			if pool, ok := c.Config.Metadata["pulley-pool"]; ok {
				list = append(list, Lane{
					Pool: pool, Tier: subjects.TierOf(name), Lane: c.Config.Metadata["pulley-lane"],
					Waiting: int(c.NumPending), Delivered: c.NumAckPending, Bids: c.NumWaiting, deliveries: c.Delivered.Consumer,
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
	slices.SortFunc(list, compareLanes)
	return list, nil
}

// ReqStreamPrefix is the beginning of the name of every tier's stream.
var ReqStreamPrefix = subjects.ReqStream("x")[:len(subjects.ReqStream("x"))-1]

// compareLanes orders lanes by pool, tier and name.
func compareLanes(a, b Lane) int {
	return cmp.Or(strings.Compare(a.Pool, b.Pool), strings.Compare(a.Tier, b.Tier), strings.Compare(a.Lane, b.Lane))
}
