package gateway

import (
	"context"
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

	// bidMeets is after how long a request that a lost worker had has met a bid, if
	// there is one: a retry may wait for a moment.
	bidMeets = 500 * time.Millisecond

	// listedWithin is how long an attempt may go unlisted by its worker.
	listedWithin = 3*subjects.AliveEvery + subjects.AliveEvery/2
)

// fleet is what this gateway knows of workers and pools, all of it heard.
type fleet struct {
	g      *Gateway
	arrive chan laneName   // lanes whose queues must exist
	checks chan laneName   // lanes whose queues may be gone
	lost   chan lostWorker // whose requests others must have

	mu      sync.Mutex
	workers map[string]*member
	pools   map[string]*poolState
	peers   map[string]time.Time // other gateways, and when they were last heard
	gpus    map[gpuKey]*gpuHeard
	swept   time.Time
}

// laneName is a lane of a pool.
type laneName struct{ pool, lane string }

type member struct {
	beat  subjects.Heartbeat
	seen  time.Time
	taken int // claims since beat
}

// lostWorker is one that is no more, and why.
type lostWorker struct {
	beat subjects.Heartbeat
	why  string
}

type poolState struct {
	lanes map[string]*laneState
	empty time.Time // since when no live worker serves it; zero while one does
	slots int       // of its live workers
	free  int       // of these
}

type laneState struct {
	ensured bool      // its consumers exist
	asked   bool      // and that was asked for
	checked time.Time // when it was asked whether they still do
}

// checkLane is how often it is asked whether a lane's consumers still exist,
// while requests wait there for longer than lookAfter. Nobody tells a gateway if
// they do not.
const checkLane = 10 * time.Second

func (p *poolState) ensured(lane string) bool { return p.lanes[lane] != nil && p.lanes[lane].ensured }

func newFleet(g *Gateway) *fleet {
	return &fleet{
		g: g, arrive: make(chan laneName, 1024), checks: make(chan laneName, 64), lost: make(chan lostWorker, 1024),
		workers: make(map[string]*member), pools: make(map[string]*poolState), peers: make(map[string]time.Time),
		gpus: make(map[gpuKey]*gpuHeard),
	}
}

// hear takes a heartbeat.
func (fl *fleet) hear(m *nats.Msg) {
	h, err := subjects.ParseHeartbeat(m)
	if err != nil {
		fl.g.log.Warn("heartbeat dropped", "err", err)
		return
	}
	now := time.Now()
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if h.State == subjects.Left {
		if fl.workers[h.Worker] != nil {
			fl.forgetLocked(h.Worker)
			fl.g.log.Info("worker left", "worker", h.Name)
			fl.g.event(subjects.Event{Kind: subjects.EventWorkerLeft, Worker: h.Name, Text: "worker " + h.Name + " left"})
			fl.lose(*h, "worker "+h.Name+" left")
		}
		return
	}
	was := fl.workers[h.Worker]
	fl.workers[h.Worker] = &member{beat: *h, seen: now}
	fl.hearGPUsLocked(h, now)
	fl.tellStateLocked(was, h)
	p := fl.g.rules.Load().Policy
	for i := range h.Pools {
		pool := h.Pools[i].Pool
		fl.needLocked(pool, subjects.Shared)
		if p.AffinityOf(pool) != policy.AffinityOff {
			fl.needLocked(pool, h.Worker)
		}
	}
	if was == nil || was.beat.State != h.State || was.beat.Slots != h.Slots || len(was.beat.Pools) != len(h.Pools) {
		fl.countLocked(now)
	}
}

// tellStateLocked tells what is new about a worker.
func (fl *fleet) tellStateLocked(was *member, h *subjects.Heartbeat) {
	e := subjects.Event{Worker: h.Name}
	if was != nil && fl.tellFenceLocked(was, h) {
		return
	}
	switch {
	case was == nil:
		fl.g.log.Info("worker joined", "worker", h.Name, "engine", h.URL, "slots", h.Slots)
		e.Kind, e.Text = subjects.EventWorkerJoined, fmt.Sprintf("worker %s joined with %d slots on %s", h.Name, h.Slots, h.URL)
	case was.beat.State != h.State && h.State != subjects.Paused && was.beat.State != subjects.Paused:
		e.Kind, e.Text = subjects.EventWorkerState, fmt.Sprintf("worker %s: %s → %s", h.Name, was.beat.State, h.State)
		if h.Reason != "" {
			e.Text += " (" + h.Reason + ")"
		}
	default:
		return
	}
	fl.g.event(e)
	if was == nil {
		fl.tellFenceLocked(was, h)
	}
}

// needLocked makes sure that a lane's queues exist, soon.
func (fl *fleet) needLocked(pool, lane string) {
	p := fl.pools[pool]
	if p == nil {
		p = &poolState{empty: time.Now(), lanes: make(map[string]*laneState)}
		fl.pools[pool] = p
	}
	l := p.lanes[lane]
	if l == nil {
		l = new(laneState)
		p.lanes[lane] = l
	}
	if !l.asked && fl.g.streams.Load() {
		select {
		case fl.arrive <- laneName{pool, lane}:
			l.asked = true
		default: // the next heartbeat asks again
		}
	}
}

// forgetLocked forgets a worker that is gone. The queues of its home lanes go
// away by themselves.
func (fl *fleet) forgetLocked(worker string) {
	delete(fl.workers, worker)
	for _, p := range fl.pools {
		delete(p.lanes, worker)
	}
	fl.forgetGPUsLocked()
}

// hearPeer notes that another gateway lives.
func (fl *fleet) hearPeer(m *nats.Msg) {
	id, ok := subjects.GatewayOf(m.Subject)
	if !ok || id == fl.g.id {
		return
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.peers[id] = time.Now()
}

// gateways is how many gateways there are, this one included.
func (fl *fleet) gateways(now time.Time) int {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	n := 1
	for id, at := range fl.peers {
		if now.Sub(at) > 3*subjects.ReferenceEvery+subjects.ReferenceEvery/2 {
			delete(fl.peers, id)
			continue
		}
		n++
	}
	return n
}

// claimed notes that a worker has taken a request.
func (fl *fleet) claimed(worker string) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if m := fl.workers[worker]; m != nil {
		m.taken++
	}
}

// countLocked adds up what each pool has.
func (fl *fleet) countLocked(now time.Time) {
	for _, p := range fl.pools {
		p.slots, p.free = 0, 0
	}
	serving := make(map[string]bool)
	for _, m := range fl.workers {
		if !m.beat.Live() {
			continue
		}
		for i := range m.beat.Pools {
			p := fl.pools[m.beat.Pools[i].Pool]
			serving[m.beat.Pools[i].Pool] = true
			p.slots += m.beat.Slots
			if m.beat.State == subjects.Ready {
				p.free += max(m.beat.Slots-m.beat.InFlight-m.taken, 0)
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
}

// free is how many slots of a pool are free.
func (fl *fleet) free(pool string) int {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if p := fl.pools[pool]; p != nil {
		return p.free
	}
	return 0
}

// hasHome says whether a live worker has a home lane in a pool.
func (fl *fleet) hasHome(pool, worker string) bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	m, p := fl.workers[worker], fl.pools[pool]
	return m != nil && p != nil && m.beat.Live() && p.ensured(worker) && m.beat.Serves(pool)
}

// serving says whether a worker is one of a pool's own.
func (fl *fleet) serving(pool, worker string) bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	m := fl.workers[worker]
	return m != nil && m.beat.Serves(pool)
}

// lose has loop fail over what a worker had. Should there be too many at once,
// sweep finds the attempts later.
func (fl *fleet) lose(h subjects.Heartbeat, why string) {
	select {
	case fl.lost <- lostWorker{h, why}:
	default:
	}
}

// loop sweeps, publishes references, and fails over what lost workers had.
func (fl *fleet) loop(ctx context.Context) {
	var abandoning sync.WaitGroup
	defer abandoning.Wait()
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
		case l := <-fl.lost:
			abandoning.Go(func() { fl.g.abandon(ctx, l.beat, l.why) })
		}
	}
}

// check sees to it that the consumers of a lane still exist, where requests wait.
func (fl *fleet) check(pool, lane string, now time.Time) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	p := fl.pools[pool]
	if p == nil || !p.ensured(lane) || now.Sub(p.lanes[lane].checked) < checkLane {
		return
	}
	select {
	case fl.checks <- laneName{pool, lane}:
		p.lanes[lane].checked = now
	default: // there is enough to do
	}
}

// recreate creates those of a lane's consumers that are gone.
func (fl *fleet) recreate(ctx context.Context, l laneName) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, t := range fl.g.tiers() {
		stream, consumer := subjects.ReqStream(t.Name), subjects.ReqConsumer(l.pool, l.lane)
		if _, err := fl.g.js.Consumer(ctx, stream, consumer); !errors.Is(err, jetstream.ErrConsumerNotFound) {
			continue
		}
		err := subjects.EnsureConsumer(ctx, fl.g.js, t.Name, l.pool, l.lane)
		fl.g.log.Warn("the consumer of a lane was gone; creating it again", "stream", stream, "consumer", consumer, "err", err)
	}
}

// ensureLoop creates queues.
func (fl *fleet) ensureLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case l := <-fl.checks:
			fl.recreate(ctx, l)
		case l := <-fl.arrive:
			fl.ensure(ctx, l)
			if len(fl.arrive) == 0 {
				fl.publishReferences() // the workers bid as soon as they hear of it
			}
		}
	}
}

// sweep finds workers that fell silent, and attempts that their worker forgot.
func (fl *fleet) sweep(now time.Time) {
	fl.mu.Lock()
	slept := !fl.swept.IsZero() && now.Sub(fl.swept) > sleptTooLong
	fl.swept = now
	var lost []*member
	for id, m := range fl.workers {
		if slept || !fl.g.nc.IsConnected() {
			m.seen = now
		}
		if now.Sub(m.seen) > subjects.WorkerDeadline {
			fl.forgetLocked(id)
			lost = append(lost, m)
		}
	}
	fl.countLocked(now)
	fl.mu.Unlock()

	fl.g.resizeQueues(now)
	for _, m := range lost {
		fl.g.event(subjects.Event{Kind: subjects.EventWorkerLost, Worker: m.beat.Name, Text: fmt.Sprintf("worker %s fell silent; what it had runs elsewhere", m.beat.Name)})
		fl.g.log.Warn("worker lost", "worker", m.beat.Name, "silent", now.Sub(m.seen))
		fl.lose(m.beat, fmt.Sprintf("worker %s fell silent", m.beat.Name))
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
		if !p.ensured(subjects.Shared) {
			continue
		}
		r := subjects.PoolReference{Mean: policy.MeanOf(means[name])}
		for lane, l := range p.lanes {
			if lane != subjects.Shared && l.ensured {
				r.HomeLanes = append(r.HomeLanes, lane)
			}
		}
		ref.Pools[name] = r
	}
	cold := make(map[string]bool) // pools whose model some worker would have to load
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
			cold[p.Pool] = cold[p.Pool] || p.Cold
			if !p.Cold || p.Loads {
				r.Loaded++
			}
			r.Workers++
			r.Slots += m.beat.Slots
			r.Weight += m.beat.Weight
			if price, ok := p.Curve.Price(r.Mean, 1, 0); ok && m.beat.Weight > 0 {
				if price /= m.beat.Weight; r.Price == 0 || price < r.Price {
					r.Price = price
				}
			}
			ref.Pools[p.Pool] = r
		}
	}
	fl.mu.Unlock()
	fl.g.tellWaits(&ref, cold, time.Now())
	for _, q := range fl.g.queues.all() {
		r, ok := ref.Pools[q.pool]
		if n := q.heldCount(); ok && n > 0 {
			if r.Held == nil {
				r.Held = make(map[string]int)
			}
			r.Held[q.tier] = n
			ref.Pools[q.pool] = r
		}
	}
	fl.g.bus.publish(subjects.GatewayRef(fl.g.id), ref)
}

// ensure creates a lane's queues, one for each tier, and remembers the pool.
func (fl *fleet) ensure(ctx context.Context, l laneName) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := func() error {
		for _, t := range fl.g.tiers() {
			if err := subjects.EnsureConsumer(ctx, fl.g.js, t.Name, l.pool, l.lane); err != nil {
				return err
			}
		}
		if l.lane != subjects.Shared {
			return nil
		}
		kv, err := fl.g.js.KeyValue(ctx, subjects.PoolsBucket)
		if err != nil {
			return fmt.Errorf("bucket %s: %w", subjects.PoolsBucket, err)
		}
		if _, err := kv.Create(ctx, poolKey(l.pool), []byte(l.pool)); err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
			return fmt.Errorf("remember pool %q: %w", l.pool, err)
		}
		return nil
	}()
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if s := fl.pools[l.pool].lanes[l.lane]; s != nil { // else its worker has left
		s.ensured, s.asked = err == nil, err == nil
	}
	if err != nil && ctx.Err() == nil {
		fl.g.log.Warn("queues of a pool not created; trying again", "pool", l.pool, "lane", l.lane, "err", err)
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
		for _, l := range p.lanes {
			*l = laneState{}
		}
	}
	for _, k := range keys {
		if name, err := subjects.Untoken(k); err == nil {
			fl.needLocked(name, subjects.Shared)
		}
	}
	for name, p := range fl.pools {
		for lane := range p.lanes {
			fl.needLocked(name, lane)
		}
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
	if p := fl.pools[pool]; p != nil {
		return p.slots
	}
	return 0
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
func (g *Gateway) abandon(ctx context.Context, h subjects.Heartbeat, why string) {
	pools := make(map[string]bool)
	for i := range h.Pools {
		pools[h.Pools[i].Pool] = true
	}
	for pool, p := range g.rules.Load().Policy.Pools { // those that it helped out
		for _, s := range p.Spill {
			pools[pool] = pools[pool] || pools[s.Pool]
		}
	}
	var waiting []*flight
	for _, f := range g.all() {
		had := f.lostWorker(h.Worker, why)
		f.displace(h.Worker)
		if seq, queued := f.queued(); had || queued && seq > 0 && pools[f.at().pool] {
			waiting = append(waiting, f)
		}
	}
	if len(waiting) == 0 {
		return
	}
	// What was delivered to a live worker this moment is claimed soon. And what the
	// lost one had goes back to the queue, where it may meet a bid that is still
	// parked there.
	for _, pause := range []time.Duration{claimWithin, bidMeets} {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		g.takeBackUnclaimed(ctx, waiting)
	}
}

// takeBackUnclaimed hands back what was delivered, of requests that wait, to
// somebody who does not claim it.
func (g *Gateway) takeBackUnclaimed(ctx context.Context, waiting []*flight) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	last := make(map[string]uint64) // each queue's last delivery
	for _, f := range waiting {
		seq, queued := f.queued()
		if !queued || seq == 0 {
			continue
		}
		at := f.at()
		stream, consumer := subjects.ReqStream(at.tier.Name), subjects.ReqConsumer(at.pool, at.lane)
		key := stream + " " + consumer
		if _, ok := last[key]; !ok {
			last[key] = 0
			c, err := g.js.Consumer(ctx, stream, consumer)
			if err != nil {
				continue
			}
			if info := c.CachedInfo(); info.NumAckPending > 0 {
				last[key] = info.Delivered.Consumer
			}
		}
		if last[key] > 0 {
			// Of no effect unless it was delivered.
			g.nc.Publish(subjects.AckSubject(stream, consumer, seq, last[key]), subjects.Nak)
		}
	}
}
