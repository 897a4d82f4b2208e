package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

// Lane is one lane of a pool's queue in a tier, as the broker has it. Its JSON is part
// of what pulley top -o json prints.
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
	slices.SortFunc(list, func(a, b Lane) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), strings.Compare(a.Tier, b.Tier), strings.Compare(a.Lane, b.Lane))
	})
	return list, nil
}

// ReqStreamPrefix is the beginning of the name of every tier's stream.
var ReqStreamPrefix = subjects.ReqStream("x")[:len(subjects.ReqStream("x"))-1]
