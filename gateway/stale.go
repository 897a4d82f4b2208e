package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

// forgetEvery is how often the gateway looks for pools to forget.
const forgetEvery = 30 * time.Second

// stalePools forgets pools that no worker has served for long, with their consumers in the broker: models come and go. A pool
// that the policy mentions stays, and one with requests. Each gateway does that by itself. If a worker serves such a pool
// again, it is made anew.
type stalePools struct {
	bus      *bus
	fleet    *fleet
	lanes    *lanes
	requests *requests
	after    time.Duration
}

func (s *stalePools) run(ctx context.Context) {
	every(ctx, min(forgetEvery, s.after), func() { s.forget(ctx, time.Now()) })
}

func (s *stalePools) forget(ctx context.Context, now time.Time) {
	if !s.bus.conn.Hears(now) {
		return
	}
	stale := s.fleet.unserved(s.after, now)
	if len(stale) == 0 {
		return
	}
	used := make(map[string]bool)
	for _, r := range s.requests.all() {
		used[r.target.Load().queue.pool] = true
	}
	for _, pool := range stale {
		if used[pool] || s.bus.rules.Load().Policy.Mentions(pool) {
			continue
		}
		if waiting, err := s.waiting(ctx, pool); err != nil || waiting {
			continue
		}
		if s.fleet.drop(pool, s.after, now) {
			s.lanes.drop(pool)
			s.bus.log.Info("pool forgotten: no worker served it", "pool", pool, "for", s.after)
		}
	}
}

// waiting says whether the broker has messages of a pool, perhaps of another gateway.
func (s *stalePools) waiting(ctx context.Context, pool string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, t := range s.bus.rules.Load().Policy.Tiers {
		stream, err := s.bus.js.Stream(ctx, subjects.ReqStream(t.Name))
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subjects.PoolRequests(t.Name, pool)))
		if err != nil || len(info.State.Subjects) > 0 {
			return err == nil, err
		}
	}
	return false, nil
}

// unserved returns the pools that no worker, live or not, has had for a time.
func (f *fleet) unserved(after time.Duration, now time.Time) (pools []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.pools {
		if f.unservedLocked(name, after, now) {
			pools = append(pools, name)
		}
	}
	return pools
}

func (f *fleet) unservedLocked(pool string, after time.Duration, now time.Time) bool {
	p := f.pools[pool]
	if p == nil || p.emptySince.IsZero() || now.Sub(p.emptySince) < after {
		return false
	}
	for _, m := range f.workers {
		if m.beat.Serves(pool) {
			return false
		}
	}
	return true
}

// drop forgets a pool, unless a worker has it after all.
func (f *fleet) drop(pool string, after time.Duration, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.unservedLocked(pool, after, now) {
		return false
	}
	delete(f.pools, pool)
	delete(f.adapters, pool)
	delete(f.lengths, pool)
	return true
}

// remove deletes what the broker has of a pool. It is called by the goroutine that creates consumers, so that a worker that
// comes meanwhile has them made again after that.
func (l *lanes) remove(ctx context.Context, pool string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, t := range l.bus.rules.Load().Policy.Tiers {
		err := l.bus.js.DeleteConsumer(ctx, subjects.ReqStream(t.Name), subjects.ReqConsumer(pool, subjects.Shared))
		if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) && !errors.Is(err, jetstream.ErrStreamNotFound) {
			l.bus.log.Warn("cannot delete a consumer of a pool that is gone", "pool", pool, "tier", t.Name, "err", err)
		}
	}
	if err := l.unlist(ctx, subjects.Token(pool)); err != nil {
		l.bus.log.Warn("cannot remove a pool from the broker's list", "pool", pool, "err", err)
	}
}

// unlist removes an entry from the broker's list of pools. Deleting its key would leave a marker for each name for ever.
func (l *lanes) unlist(ctx context.Context, entry string) error {
	stream, err := l.bus.js.Stream(ctx, "KV_"+subjects.PoolsBucket)
	if err != nil {
		return fmt.Errorf("bucket %s: %w", subjects.PoolsBucket, err)
	}
	return stream.Purge(ctx, jetstream.WithPurgeSubject("$KV."+subjects.PoolsBucket+"."+entry))
}
