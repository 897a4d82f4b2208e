package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	sweepEvery = 100 * time.Millisecond

	// sleptTooLong tells that this gateway itself was stopped or starved: the
	// silence it sees is its own.
	sleptTooLong = 5 * sweepEvery

	// claimWithin is how long a delivery to a live worker takes to be claimed.
	claimWithin = 50 * time.Millisecond

	// listedWithin is how long an attempt may go unlisted by its worker.
	listedWithin = 3*subjects.AliveEvery + subjects.AliveEvery/2
)

// fleet is what this gateway knows of workers and pools, all of it heard.
type fleet struct {
	g      *Gateway
	arrive chan string // pools whose queues must exist

	mu      sync.Mutex
	workers map[string]*member
	pools   map[string]*poolState
	swept   time.Time
}

type member struct {
	beat subjects.Heartbeat
	seen time.Time
}

type poolState struct {
	ensured bool      // its consumers exist
	asked   bool      // and that was asked for
	empty   time.Time // since when no live worker serves it; zero while one does
}

func newFleet(g *Gateway) *fleet {
	return &fleet{g: g, arrive: make(chan string, 1024), workers: make(map[string]*member), pools: make(map[string]*poolState)}
}

// hear takes a heartbeat.
func (fl *fleet) hear(m *nats.Msg) {
	var h subjects.Heartbeat
	if err := json.Unmarshal(m.Data, &h); err != nil || h.Worker != subjects.LastToken(m.Subject) {
		fl.g.log.Warn("heartbeat dropped", "subject", m.Subject, "err", err)
		return
	}
	now := time.Now()
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if h.State == subjects.Left {
		if fl.workers[h.Worker] != nil {
			delete(fl.workers, h.Worker)
			fl.g.log.Info("worker left", "worker", h.Name)
			go fl.g.abandon(h, "worker "+h.Name+" left") // bounded by its own timeout
		}
		return
	}
	if fl.workers[h.Worker] == nil {
		fl.g.log.Info("worker joined", "worker", h.Name, "engine", h.URL, "slots", h.Slots)
	}
	fl.workers[h.Worker] = &member{beat: h, seen: now}
	for i := range h.Pools {
		fl.needLocked(h.Pools[i].Pool)
	}
}

// needLocked makes sure that a pool's queues exist, soon.
func (fl *fleet) needLocked(pool string) {
	p := fl.pools[pool]
	if p == nil {
		p = &poolState{empty: time.Now()}
		fl.pools[pool] = p
	}
	if !p.asked && fl.g.streams.Load() {
		select {
		case fl.arrive <- pool:
			p.asked = true
		default: // the next heartbeat asks again
		}
	}
}

// loop sweeps, publishes references and creates queues.
func (fl *fleet) loop(ctx context.Context) {
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	refs := time.NewTicker(subjects.ReferenceEvery)
	defer refs.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			fl.sweep(time.Now())
		case <-refs.C:
			fl.publishReferences()
		case pool := <-fl.arrive:
			fl.ensure(ctx, pool)
			fl.publishReferences() // the workers bid as soon as they hear of it
		}
	}
}

// sweep finds workers that fell silent, and attempts that their worker forgot.
func (fl *fleet) sweep(now time.Time) {
	fl.mu.Lock()
	slept := !fl.swept.IsZero() && now.Sub(fl.swept) > sleptTooLong
	fl.swept = now
	var lost []*member
	serving := make(map[string]bool)
	for id, m := range fl.workers {
		if slept || !fl.g.nc.IsConnected() {
			m.seen = now
		}
		if now.Sub(m.seen) > subjects.WorkerDeadline {
			delete(fl.workers, id)
			lost = append(lost, m)
			continue
		}
		if m.beat.Live() {
			for i := range m.beat.Pools {
				serving[m.beat.Pools[i].Pool] = true
			}
		}
	}
	for name, p := range fl.pools {
		switch {
		case serving[name]:
			p.empty = time.Time{}
		case p.empty.IsZero():
			p.empty = now
		}
	}
	fl.mu.Unlock()

	for _, m := range lost {
		fl.g.log.Warn("worker lost", "worker", m.beat.Name, "silent", now.Sub(m.seen))
		go fl.g.abandon(m.beat, fmt.Sprintf("worker %s fell silent", m.beat.Name)) // bounded by its own timeout
	}
	for _, f := range fl.g.all() {
		if slept {
			f.mu.Lock()
			if f.current != nil {
				f.current.alive = now
			}
			f.mu.Unlock()
		}
		f.quiet(now, listedWithin)
	}
}

// publishReferences tells the workers how to price: see subjects.Reference.
func (fl *fleet) publishReferences() {
	fl.mu.Lock()
	ref := subjects.Reference{Gateway: fl.g.id, Pools: make(map[string]subjects.PoolReference, len(fl.pools))}
	means := make(map[string][]policy.Mean)
	for _, m := range fl.workers {
		for i := range m.beat.Pools {
			p := &m.beat.Pools[i]
			means[p.Pool] = append(means[p.Pool], p.Mean)
		}
	}
	for name, p := range fl.pools {
		if p.ensured {
			ref.Pools[name] = subjects.PoolReference{Mean: policy.MeanOf(means[name])}
		}
	}
	for _, m := range fl.workers {
		if !m.beat.Live() {
			continue
		}
		for i := range m.beat.Pools {
			p := &m.beat.Pools[i]
			r, ok := ref.Pools[p.Pool]
			if !ok {
				continue
			}
			r.Workers++
			if price, ok := p.Curve.Price(r.Mean, 1, 0); ok && m.beat.Weight > 0 {
				if price /= m.beat.Weight; r.Price == 0 || price < r.Price {
					r.Price = price
				}
			}
			ref.Pools[p.Pool] = r
		}
	}
	fl.mu.Unlock()
	body, err := json.Marshal(ref)
	if err != nil {
		fl.g.log.Error("reference", "err", err)
		return
	}
	fl.g.nc.Publish(subjects.GatewayRef(fl.g.id), body)
}

// ensure creates a pool's queues, one for each tier, and remembers the pool.
func (fl *fleet) ensure(ctx context.Context, pool string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := func() error {
		for _, t := range fl.g.cfg.Tiers {
			if err := subjects.EnsureConsumer(ctx, fl.g.js, t.Name, pool, subjects.Shared); err != nil {
				return err
			}
		}
		kv, err := fl.g.js.KeyValue(ctx, subjects.PoolsBucket)
		if err != nil {
			return fmt.Errorf("bucket %s: %w", subjects.PoolsBucket, err)
		}
		if _, err := kv.Create(ctx, poolKey(pool), []byte(pool)); err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
			return fmt.Errorf("remember pool %q: %w", pool, err)
		}
		return nil
	}()
	fl.mu.Lock()
	defer fl.mu.Unlock()
	p := fl.pools[pool]
	p.ensured, p.asked = err == nil, err == nil
	if err != nil && ctx.Err() == nil {
		fl.g.log.Warn("queues of a pool not created; trying again", "pool", pool, "err", err)
	}
}

// poolKey is the pool's key in its bucket; the empty name has none.
func poolKey(pool string) string { return subjects.Token(pool) }

// remember loads the pools and workers that others knew before this gateway
// was there.
func (fl *fleet) remember(ctx context.Context) error {
	pools, err := fl.g.js.KeyValue(ctx, subjects.PoolsBucket)
	if err != nil {
		return fmt.Errorf("bucket %s: %w", subjects.PoolsBucket, err)
	}
	keys, err := pools.Keys(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return fmt.Errorf("bucket %s: %w", subjects.PoolsBucket, err)
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for _, p := range fl.pools { // after a reconnect: their queues may be gone
		p.ensured, p.asked = false, false
	}
	for _, k := range keys {
		if name, err := subjects.Untoken(k); err == nil {
			fl.needLocked(name)
		}
	}
	for name := range fl.pools {
		fl.needLocked(name)
	}
	return nil
}

// known says whether a model has ever had a worker.
func (fl *fleet) known(pool string) bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.pools[pool] != nil
}

// emptySince is since when no live worker serves a pool; zero while one does.
func (fl *fleet) emptySince(pool string) time.Time {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if p := fl.pools[pool]; p != nil {
		return p.empty
	}
	return time.Time{}
}

// slots is how many slots a pool's live workers have.
func (fl *fleet) slots(pool string) int {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	n := 0
	for _, m := range fl.workers {
		if m.beat.Live() && m.beat.Serves(pool) {
			n += m.beat.Slots
		}
	}
	return n
}

// others counts the live workers of a pool in none of the sets, and those with
// a free slot.
func (fl *fleet) others(pool string, now time.Time, not ...map[string]bool) (live, free int) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
next:
	for id, m := range fl.workers {
		if !m.beat.Live() || !m.beat.Serves(pool) {
			continue
		}
		for _, set := range not {
			if set[id] {
				continue next
			}
		}
		live++
		if m.beat.State == subjects.Ready && m.beat.InFlight < m.beat.Slots {
			free++
		}
	}
	return live, free
}

// models are the pools that live workers serve, by name.
func (fl *fleet) models() []string {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	set := make(map[string]bool)
	for _, m := range fl.workers {
		if m.beat.Live() {
			for i := range m.beat.Pools {
				set[m.beat.Pools[i].Pool] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

func (fl *fleet) heartbeats(now time.Time) []subjects.Heartbeat {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	list := make([]subjects.Heartbeat, 0, len(fl.workers))
	for _, m := range fl.workers {
		list = append(list, m.beat)
	}
	slices.SortFunc(list, func(a, b subjects.Heartbeat) int {
		return strings.Compare(a.Name+a.Worker, b.Name+b.Worker)
	})
	return list
}

// abandon fails over what a worker had that is no more: the attempts it ran,
// and the requests that were delivered to it but never claimed.
func (g *Gateway) abandon(h subjects.Heartbeat, why string) {
	pools := make(map[string]bool)
	for i := range h.Pools {
		pools[h.Pools[i].Pool] = true
	}
	var waiting []*flight
	for _, f := range g.all() {
		f.lostWorker(h.Worker, why)
		if _, queued := f.queued(); queued && pools[f.req.Pool] {
			waiting = append(waiting, f)
		}
	}
	if len(waiting) == 0 {
		return
	}
	// What was delivered to a live worker this moment is claimed soon.
	time.Sleep(claimWithin)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	last := make(map[*queue]uint64) // each queue's last delivery
	for _, f := range waiting {
		stream, consumer := subjects.ReqStream(f.req.Tier), subjects.ReqConsumer(f.req.Pool, subjects.Shared)
		if _, ok := last[f.queue]; !ok {
			last[f.queue] = 0
			c, err := g.js.Consumer(ctx, stream, consumer)
			if err != nil {
				continue
			}
			if info := c.CachedInfo(); info.NumAckPending > 0 {
				last[f.queue] = info.Delivered.Consumer
			}
		}
		if seq, queued := f.queued(); queued && seq > 0 && last[f.queue] > 0 {
			// Of no effect unless it was delivered.
			g.nc.Publish(subjects.AckSubject(stream, consumer, seq, last[f.queue]), subjects.Nak)
		}
	}
}
