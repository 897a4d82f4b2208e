package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// checkLaneEvery is how often it is checked that a lane's consumers still exist, while requests wait there for longer than
// checkEvery. The broker does not report a consumer that is gone.
const checkLaneEvery = 10 * time.Second

// lanes makes sure that each lane that a worker needs has its consumers, one in the stream of each tier. It also keeps the
// broker's list of pools, which a gateway that starts reads.
type lanes struct {
	bus *bus

	creates chan laneName // lanes whose consumers must be created
	checks  chan laneName // lanes whose consumers may be gone
	drops   chan string   // pools whose consumers must be deleted
	streams atomic.Bool   // the tiers' streams exist: until then no consumer can be created

	mu     sync.Mutex
	byName map[laneName]*laneState
}

type laneName struct{ pool, lane string }

type laneState struct {
	exists    bool      // its consumers were created
	requested bool      // run has been asked to create them
	checked   time.Time // when run was last asked whether they still exist
}

func newLanes(b *bus) *lanes {
	return &lanes{
		bus: b, creates: make(chan laneName, 1024), checks: make(chan laneName, 64), drops: make(chan string, 1024),
		byName: make(map[laneName]*laneState),
	}
}

// need asks for the lanes of a worker: the shared lanes of its pools, and its home lane in each pool that has affinity.
func (l *lanes) need(h *subjects.Heartbeat) {
	p := l.bus.rules.Load().Policy
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range h.Pools {
		pool := h.Pools[i].Pool
		l.needLocked(laneName{pool, subjects.Shared})
		if p.AffinityOf(pool) != policy.AffinityOff {
			l.needLocked(laneName{pool, subjects.StableID(h.Worker)})
		}
	}
}

// needLong asks for the lanes of a pool for long requests, of these lengths, and drops those of others.
func (l *lanes) needLong(pool string, lengths []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.byName, func(name laneName, _ *laneState) bool {
		return name.pool == pool && subjects.IsLongLane(name.lane) &&
			!slices.ContainsFunc(lengths, func(n int64) bool { return subjects.LongLane(n) == name.lane })
	})
	for _, n := range lengths {
		l.needLocked(laneName{pool, subjects.LongLane(n)})
	}
}

func (l *lanes) needLocked(name laneName) {
	s := l.byName[name]
	if s == nil {
		s = new(laneState)
		l.byName[name] = s
	}
	if !s.requested && l.streams.Load() {
		select {
		case l.creates <- name:
			s.requested = true
		default: // the next heartbeat asks again
		}
	}
}

// restore asks for all lanes anew, and for the shared lanes of these pools: after a reconnect consumers may be gone.
func (l *lanes) restore(pools []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.byName {
		*s = laneState{}
	}
	for _, pool := range pools {
		l.needLocked(laneName{pool, subjects.Shared})
	}
	for name := range l.byName {
		l.needLocked(name)
	}
}

// forget drops the home lanes of a worker that is gone, by its stable id. The broker removes their consumers by itself.
func (l *lanes) forget(worker string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.byName, func(name laneName, _ *laneState) bool { return name.lane == worker })
}

// drop drops all lanes of a pool, and has what the broker has of it deleted. If too much is to be deleted at once, the next
// gateway that starts has the pool, and does it later.
func (l *lanes) drop(pool string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.byName, func(name laneName, _ *laneState) bool { return name.pool == pool })
	select {
	case l.drops <- pool:
	default:
	}
}

// renew asks for the shared lane of a pool anew: while no worker served it, another gateway may have deleted its consumers.
func (l *lanes) renew(pool string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.byName[laneName{pool, subjects.Shared}]; s != nil && s.exists {
		s.requested = false
	}
}

// exists says whether a lane's consumers were created.
func (l *lanes) exists(pool, lane string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.existsLocked(laneName{pool, lane})
}

func (l *lanes) existsLocked(name laneName) bool {
	s := l.byName[name]
	return s != nil && s.exists
}

// homes returns the home lanes of each pool whose shared lane exists.
func (l *lanes) homes() map[string][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	homes := make(map[string][]string)
	for name, s := range l.byName {
		if !s.exists || !l.existsLocked(laneName{name.pool, subjects.Shared}) {
			continue
		}
		lanes := homes[name.pool]
		if name.lane != subjects.Shared && !subjects.IsLongLane(name.lane) {
			lanes = append(lanes, name.lane)
		}
		homes[name.pool] = lanes
	}
	return homes
}

// check asks whether the consumers of a lane on which requests wait still exist.
func (l *lanes) check(pool, lane string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.byName[laneName{pool, lane}]
	if s == nil || !s.exists || now.Sub(s.checked) < checkLaneEvery {
		return
	}
	select {
	case l.checks <- laneName{pool, lane}:
		s.checked = now
	default: // run is busy; a later check asks again
	}
}

// run creates consumers until ctx is done. It calls created when all that were asked for exist.
func (l *lanes) run(ctx context.Context, created func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case name := <-l.checks:
			l.recreate(ctx, name)
		case pool := <-l.drops:
			l.remove(ctx, pool)
		case name := <-l.creates:
			l.create(ctx, name)
			if len(l.creates) == 0 {
				created()
			}
		}
	}
}

// create creates a lane's consumers, and adds its pool to the broker's list.
func (l *lanes) create(ctx context.Context, name laneName) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := l.ensure(ctx, name)
	l.mu.Lock()
	if s := l.byName[name]; s != nil { // else its worker is gone
		s.exists, s.requested = err == nil, err == nil
	}
	l.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		l.bus.log.Warn("cannot create the consumers of a lane; trying again", "pool", name.pool, "lane", name.lane, "err", err)
	}
}

func (l *lanes) ensure(ctx context.Context, name laneName) error {
	for _, t := range l.bus.rules.Load().Policy.Tiers {
		if err := subjects.EnsureConsumer(ctx, l.bus.js, t.Name, name.pool, name.lane); err != nil {
			return err
		}
	}
	if name.lane != subjects.Shared {
		return nil
	}
	kv, err := l.bus.js.KeyValue(ctx, subjects.PoolsBucket)
	if err != nil {
		return fmt.Errorf("bucket %s: %w", subjects.PoolsBucket, err)
	}
	if _, err := kv.Create(ctx, subjects.Token(name.pool), []byte(name.pool)); err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
		return fmt.Errorf("store pool %q: %w", name.pool, err)
	}
	return nil
}

// recreate creates those of a lane's consumers that are gone.
func (l *lanes) recreate(ctx context.Context, name laneName) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, t := range l.bus.rules.Load().Policy.Tiers {
		stream, consumer := subjects.ReqStream(t.Name), subjects.ReqConsumer(name.pool, name.lane)
		if _, err := l.bus.js.Consumer(ctx, stream, consumer); !errors.Is(err, jetstream.ErrConsumerNotFound) {
			continue
		}
		err := subjects.EnsureConsumer(ctx, l.bus.js, t.Name, name.pool, name.lane)
		l.bus.log.Warn("a lane's consumer is gone; creating it again", "stream", stream, "consumer", consumer, "err", err)
	}
}

// storedPools returns the broker's list of pools: what gateways knew before this one started.
func (l *lanes) storedPools(ctx context.Context) (names []string, err error) {
	kv, err := l.bus.js.KeyValue(ctx, subjects.PoolsBucket)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", subjects.PoolsBucket, err)
	}
	keys, err := kv.Keys(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, fmt.Errorf("bucket %s: %w", subjects.PoolsBucket, err)
	}
	for _, k := range keys {
		name, err := subjects.Untoken(k)
		if err != nil || name == "" || len(name) > subjects.MaxName || !utf8.ValidString(name) {
			l.bus.log.Warn("the broker's list of pools has an entry that is no pool; removing it", "entry", k, "err", l.unlist(ctx, k))
			continue
		}
		names = append(names, name)
	}
	return names, nil
}
