package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	checkStreamsEvery = 5 * time.Second
	retryStreams      = 500 * time.Millisecond
)

// streams makes sure that the tiers' streams exist, from the start and after a broker lost them. What waited in a lost
// stream is published again.
type streams struct {
	bus      *bus
	replicas int // of the streams that it creates
	fleet    *fleet
	lanes    *lanes
	requests *requests

	changed chan struct{} // wakes run: a new policy may have new tiers
	ready   atomic.Bool   // the streams exist, and consumers were asked for
}

// policyChanged makes run look at once.
func (s *streams) policyChanged() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *streams) tiers() []policy.Tier { return s.bus.rules.Load().Policy.Tiers }

// run checks the streams, every few seconds and after each reconnect, until ctx is done.
func (s *streams) run(ctx context.Context) {
	status := s.bus.nc.StatusChanged(nats.CONNECTED)
	defer s.bus.nc.RemoveStatusListener(status)
	created := make(map[string]time.Time) // when each tier's stream was
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-status:
		case <-s.changed:
		case <-timer.C:
		}
		next := checkStreamsEvery
		if err := s.check(ctx, created); err != nil {
			if ctx.Err() == nil && s.ready.Swap(false) {
				s.bus.log.Warn("queue not available", "err", err)
			}
			next = retryStreams
		} else if !s.ready.Swap(true) {
			s.bus.log.Info("queue available")
		}
		timer.Reset(next)
	}
}

// check creates the streams that are missing, and has the requests published again that were in one that is new.
func (s *streams) check(ctx context.Context, created map[string]time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	lost := false
	for _, t := range s.tiers() {
		at, err := s.createdAt(ctx, t)
		if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return err
		}
		lost = lost || err != nil || !at.Equal(created[t.Name])
	}
	if !lost {
		return nil
	}
	if err := subjects.EnsureStreams(ctx, s.bus.js, s.tiers(), s.replicas); err != nil {
		return err
	}
	s.lanes.streams.Store(true)
	pools, err := s.lanes.storedPools(ctx)
	if err != nil {
		return err
	}
	s.fleet.addPools(pools, time.Now())
	s.lanes.restore(pools)
	for _, t := range s.tiers() {
		now, err := s.createdAt(ctx, t)
		if err != nil {
			return err
		}
		before, known := created[t.Name]
		created[t.Name] = now
		if !known || before.Equal(now) {
			continue
		}
		for _, r := range s.requests.all() {
			r.onStreamLost(t.Name)
		}
	}
	return nil
}

func (s *streams) createdAt(ctx context.Context, t policy.Tier) (time.Time, error) {
	stream, err := s.bus.js.Stream(ctx, subjects.ReqStream(t.Name))
	if err != nil {
		return time.Time{}, fmt.Errorf("stream of tier %s: %w", t.Name, err)
	}
	return stream.CachedInfo().Created, nil
}
