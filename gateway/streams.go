package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

const (
	checkStreams = 5 * time.Second
	streamsAgain = 500 * time.Millisecond
)

// keepStreams sees to it that the streams exist, from the start and after a
// broker lost them; what waited in a lost one is published again.
func (g *Gateway) keepStreams(ctx context.Context) {
	status := g.nc.StatusChanged(nats.CONNECTED)
	defer g.nc.RemoveStatusListener(status)
	created := make(map[string]time.Time) // of each tier's stream
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-status:
		case <-g.newPolicy:
		case <-timer.C:
		}
		next := checkStreams
		if err := g.checkStreams(ctx, created); err != nil {
			if ctx.Err() == nil && g.ready.Swap(false) {
				g.log.Warn("queue not available", "err", err)
			}
			next = streamsAgain
		} else if !g.ready.Swap(true) {
			g.log.Info("queue available")
		}
		timer.Reset(next)
	}
}

func (g *Gateway) checkStreams(ctx context.Context, created map[string]time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	lost := len(created) == 0
	for _, t := range g.tiers() {
		s, err := g.js.Stream(ctx, subjects.ReqStream(t.Name))
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			lost = true
		case err != nil:
			return fmt.Errorf("stream of tier %s: %w", t.Name, err)
		case !s.CachedInfo().Created.Equal(created[t.Name]):
			lost = true
		}
	}
	if !lost {
		return nil
	}
	if err := subjects.EnsureStreams(ctx, g.js, g.tiers(), g.cfg.Replicas); err != nil {
		return err
	}
	g.streams.Store(true)
	if err := g.fleet.remember(ctx); err != nil {
		return err
	}
	for _, t := range g.tiers() {
		s, err := g.js.Stream(ctx, subjects.ReqStream(t.Name))
		if err != nil {
			return fmt.Errorf("stream of tier %s: %w", t.Name, err)
		}
		now := s.CachedInfo().Created
		before, known := created[t.Name]
		created[t.Name] = now
		if !known || before.Equal(now) {
			continue
		}
		for _, f := range g.all() {
			f.lose(t.Name)
		}
	}
	return nil
}
