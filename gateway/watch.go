package gateway

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/metric"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// claimTime is how long a delivery to a live worker takes to be claimed.
	claimTime = 50 * time.Millisecond

	// bidTime is after how long a request that a lost worker had has met a bid, if there is one: a retry may be delayed.
	bidTime = 500 * time.Millisecond

	// listDeadline is how long an attempt may be missing in its worker's lists.
	listDeadline = 3*subjects.AliveEvery + subjects.AliveEvery/2
)

// watch acts on what happens in the fleet: it takes in heartbeats, publishes events, sizes the queues, publishes the
// references, and fails over what a worker had that is gone.
type watch struct {
	bus       *bus
	streams   *streams
	publisher *publisher
	fleet     *fleet
	gpus      *metric.GPUHistory
	lanes     *lanes
	queues    *queues
	exchange  *exchange
	requests  *requests
	short     *shortages
	links     *links
	late      *late
	keyMover  *keyMover
	silence   *silence
	reports   *reports
	homes     homeLists
	rations   rations

	gone  chan goneWorker // workers whose requests run has to fail over
	hangs chan struct{}   // signals that an engine was found to hang; capacity 1
}

// goneWorker is a worker that left or was lost, and the reason in a sentence.
type goneWorker struct {
	beat   *subjects.Heartbeat
	reason string
}

func (w *watch) onHeartbeat(m *nats.Msg) {
	h, err := subjects.ParseHeartbeat(m)
	if err != nil {
		w.bus.seldom("heartbeat dropped", "subject", m.Subject, "err", err)
		return
	}
	now := time.Now()
	if h.State == subjects.Left {
		// The worker's last frames may still wait to be handled: they come by another subscription than heartbeats, and
		// no order holds between the two. So the gateway sends itself a message on the subject tree of the frames, which
		// the broker delivers behind all that the worker published before it left.
		if w.fleet.onLastHeartbeat(h, now) {
			w.bus.nc.Publish(subjects.GatewayLeft(w.bus.id, h.Worker), nil)
		}
		return
	}
	if omitted := w.fleet.admitPools(h, now); omitted > 0 {
		w.bus.seldom("a worker announces too many pools; the others get no requests from this gateway", "worker", h.Name, "most", subjects.MaxPools, "omitted", omitted)
	}
	for i := range h.Pools {
		if p, known := w.fleet.pool(h.Pools[i].Pool); known && !p.emptySince.IsZero() {
			w.lanes.renew(h.Pools[i].Pool)
		}
	}
	if h.State == subjects.Down && h.DownClass == "" {
		if was := w.fleet.worker(h.Worker); was != nil && was.State != subjects.Down {
			w.onEngineDied(h.Worker)
		}
	}
	if w.fleet.overdue(h.Worker, now) {
		w.links.onGap(h.Worker)
	}
	changes := w.fleet.onHeartbeat(h, now)
	w.links.onHeartbeat(h.Worker)
	w.gpus.OnHeartbeat(h, now)
	w.lanes.need(h)
	for i := range h.Pools {
		if all := w.fleet.lengthsKnown(h.Pools[i].Pool, now); len(all) > 0 {
			w.lanes.needLong(h.Pools[i].Pool, all[1:])
		}
	}
	w.report(changes)
}

// onLeft handles the gateway's own message that a worker has left, behind the worker's last frames: an attempt of the worker
// that has not ended never will.
func (w *watch) onLeft(worker string) { w.report(w.fleet.onLeft(worker)) }

func (w *watch) onReference(m *nats.Msg) {
	id, ok := subjects.GatewayOf(m.Subject)
	if !ok || id == w.bus.id {
		return
	}
	now := time.Now()
	w.fleet.onGateway(id, now)
	var ref struct {
		Keys bool `json:"keys"`
	}
	if subjects.Unmarshal(m.Data, &ref) == nil {
		w.keyMover.onReference(id, ref.Keys, now)
	}
}

// run sweeps, publishes references and fails over, until ctx is done.
func (w *watch) run(ctx context.Context) {
	var failingOver sync.WaitGroup
	defer failingOver.Wait()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	refs := time.NewTicker(subjects.ReferenceEvery)
	defer refs.Stop()
	acks := time.NewTicker(ackEvery)
	defer acks.Stop()
	status := w.bus.nc.StatusChanged(nats.CONNECTED)
	defer w.bus.nc.RemoveStatusListener(status)
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			w.sweep(time.Now())
		case <-refs.C:
			w.publishReferences()
		case <-status: // connected again: the workers were told that this gateway is not there
			w.fleet.onConnected(time.Now())
			w.links.onGap("")
			w.publishReferences()
			w.bus.cancelAgain(time.Now())
		case <-acks.C:
			w.links.acknowledge(time.Now())
		case <-w.hangs:
			w.late.move(w.requests.all(), time.Now())
		case gone := <-w.gone:
			failingOver.Go(func() { w.failOver(ctx, gone) })
		}
	}
}

// sweep finds workers that stopped sending heartbeats and attempts that their worker no longer lists, and sizes the queues.
func (w *watch) sweep(now time.Time) {
	lost, deaf := w.fleet.sweep(now, w.bus.conn.Hears(now))
	gateways := w.fleet.gateways(now)
	queues := w.queues.all()
	for _, q := range queues {
		p, _ := w.fleet.pool(q.pool)
		q.resize(p.slots, p.free, gateways, now)
	}
	w.exchange.publish(now, queues...)
	w.report(lost)
	cold := w.fleet.coldPools()
	var waiting map[string]int
	if len(cold) > 0 {
		waiting = make(map[string]int)
	}
	requests := w.requests.all()
	var loads map[string]poolLoad
	if w.rations.any() {
		loads = make(map[string]poolLoad)
	}
	for _, r := range requests {
		r.checkListed(now, deaf)
		if cold == nil && loads == nil {
			continue
		}
		pool := r.target.Load().queue.pool
		_, waits := r.waiting()
		if _, ok := cold[pool]; ok && waits {
			waiting[pool]++
		}
		if loads != nil {
			l := loads[pool]
			switch {
			case !waits:
				l.running++
			case now.Sub(r.arrived) > sweepEvery: // not only on its way
				l.waiting++
			}
			loads[pool] = l
		}
	}
	outdated := loads != nil && w.rations.observe(loads, gateways)
	if w.short.observe(waiting, cold, now) || outdated {
		w.publishReferences()
	}
	if !deaf {
		w.late.move(requests, now)
	}
}

// joinedBefore is how long a worker runs that has not just joined, though a gateway that starts sees it for the first time.
const joinedBefore = 10 * time.Second

// report logs and publishes what happened to workers, and has the requests of those that are gone failed over.
func (w *watch) report(changes []change) {
	for _, c := range changes {
		h := c.beat
		e := subjects.Event{Kind: c.kind, Worker: h.Name}
		switch c.kind {
		case subjects.EventWorkerJoined:
			w.reports.onJoined(h.Worker)
			w.bus.log.Info("worker joined", "worker", h.Name, "engine", h.URL, "slots", h.Slots)
			if w.fleet.listensSince(time.Now()) < 2*subjects.WorkerDeadline && !h.Started.IsZero() && time.Since(h.Started) > joinedBefore { // it was there: other gateways have said so
				continue
			}
			e.Text = fmt.Sprintf("worker %s joined with %d slots on %s", h.Name, h.Slots, h.URL)
		case subjects.EventWorkerState:
			e.Text = fmt.Sprintf("worker %s: %s → %s", h.Name, c.was.State, h.State)
			if h.Reason != "" {
				e.Text += " (" + h.Reason + ")"
			}
		case subjects.EventWorkerFailing:
			e.Pool = c.pool
			if e.Text = fmt.Sprintf("worker %s: requests for %s fail: %s", h.Name, c.pool, c.why); c.why == "" {
				e.Text = fmt.Sprintf("worker %s: requests for %s no longer fail", h.Name, c.pool)
			}
		case subjects.EventWorkerSuspect:
			e.Pool = c.pool
			if e.Text = fmt.Sprintf("worker %s gets few requests for %s: %s", h.Name, c.pool, c.why); c.why == "" {
				e.Text = fmt.Sprintf("worker %s: the engine is no longer suspect for %s", h.Name, c.pool)
			}
		case subjects.EventWorkerNote:
			e.Pool = c.pool
			if e.Text = fmt.Sprintf("worker %s in pool %s: %s", h.Name, c.pool, c.why); c.why == "" {
				e.Text = fmt.Sprintf("worker %s in pool %s: no longer %s", h.Name, c.pool, c.note)
			}
			w.bus.log.Info("worker differs from the others of its pool", "worker", h.Name, "pool", c.pool, "note", cmp.Or(c.why, "no longer "+c.note))
		case subjects.EventWorkerFenced:
			if h.Hangs() { // its requests need not wait for the next sweep
				select {
				case w.hangs <- struct{}{}:
				default:
				}
			}
			w.bus.log.Warn("worker fenced", "worker", h.Name, "reason", h.Reason)
			e.Text = fmt.Sprintf("worker %s fenced: %s; %d in flight", h.Name, h.Reason, h.InFlight)
		case subjects.EventWorkerUnfenced:
			w.bus.log.Info("worker unfenced", "worker", h.Name)
			e.Text = fmt.Sprintf("worker %s accepts requests again; it was fenced: %s", h.Name, c.was.Reason)
		case subjects.EventModelLoading, subjects.EventModelLoaded, subjects.EventModelEvicted:
			e.Pool, e.Model = c.model.Pool, cmp.Or(c.model.Model, c.model.Pool)
			e.Text = c.modelText()
			w.bus.log.Info(e.Text)
		case subjects.EventWorkerLeft:
			w.forget(h, "worker "+h.Name+" left")
			w.bus.log.Info("worker left", "worker", h.Name)
			e.Text = "worker " + h.Name + " left"
		case subjects.EventWorkerLost:
			w.onEngineDied(h.Worker)
			w.reports.onLost(*h, c.silent, time.Now())
			w.forget(h, "worker "+h.Name+" stopped sending heartbeats")
			w.bus.log.Warn("worker lost", "worker", h.Name, "silent", c.silent)
			e.Text = fmt.Sprintf("worker %s stopped sending heartbeats; its requests move to other workers", h.Name)
		}
		w.bus.event(e)
	}
}

func (w *watch) onEngineDied(worker string) {
	now := time.Now()
	for _, r := range w.requests.all() {
		r.onEngineDied(worker, now)
	}
}

// forget drops what is kept of a worker that is gone, and has run fail over its requests. Should there be too many such
// workers at once, sweep finds their attempts later.
func (w *watch) forget(h *subjects.Heartbeat, reason string) {
	if id := subjects.StableID(h.Worker); !w.fleet.started(id) {
		w.lanes.forget(id)
	}
	w.gpus.Keep(w.fleet.heartbeats())
	select {
	case w.gone <- goneWorker{h, reason}:
	default:
	}
}

// failOver fails over what a worker had that is gone: the attempts that it ran, and the requests that were delivered to it
// and that it had not claimed.
func (w *watch) failOver(ctx context.Context, gone goneWorker) {
	pools := make(map[string]bool)
	for i := range gone.beat.Pools {
		pools[gone.beat.Pools[i].Pool] = true
	}
	for pool, p := range w.bus.rules.Load().Policy.Pools { // those that it helped
		for _, s := range p.Spill {
			pools[pool] = pools[pool] || pools[s.Pool]
		}
	}
	var waiting []*request
	for _, r := range w.requests.all() {
		had := r.onWorkerGone(gone.beat.Worker, gone.reason)
		if seq, waits := r.waiting(); had || waits && seq > 0 && pools[r.target.Load().queue.pool] {
			waiting = append(waiting, r)
		}
	}
	if len(waiting) == 0 {
		return
	}
	// What was delivered to a live worker this moment is claimed soon. And what goes back to the queue may meet a bid of
	// the gone worker that the broker still holds.
	for _, pause := range []time.Duration{claimTime, bidTime} {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		w.handBackUnclaimed(ctx, waiting)
	}
}

// handBackUnclaimed hands back to the queue those of the waiting requests that were delivered and not claimed.
func (w *watch) handBackUnclaimed(ctx context.Context, waiting []*request) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ask := consumers{bus: w.bus, known: make(map[string]*jetstream.ConsumerInfo)}
	for _, r := range waiting {
		seq, waits := r.waiting()
		if !waits || seq == 0 {
			continue
		}
		at := r.target.Load()
		info := ask.info(ctx, at.tier.Name, at.queue.pool, at.lane)
		if info != nil && info.NumAckPending > 0 { // without effect on a message that was not delivered
			w.bus.nc.Publish(subjects.AckSubject(info.Stream, info.Name, seq, info.Delivered.Consumer), subjects.Nak)
		}
	}
}

// publishReferences publishes what workers need to know to price requests: see subjects.Reference.
func (w *watch) publishReferences() {
	pools, cold := w.fleet.references(w.lanes.homes())
	w.addWaits(pools, cold, time.Now())
	for name, r := range pools {
		if all := w.fleet.lengthsKnown(name, time.Now()); len(all) > 1 {
			for _, n := range all[1:] {
				if w.lanes.exists(name, subjects.LongLane(n)) {
					r.Lengths = append(r.Lengths, n)
				}
			}
			pools[name] = r
		}
	}
	now, perSecond := time.Now(), make(map[string]float64)
	gateways := float64(w.fleet.gateways(now))
	for _, q := range w.queues.all() {
		perSecond[q.pool] += q.claimsPerSecond(now) * gateways
		r, ok := pools[q.pool]
		if n := q.heldCount(); ok && n > 0 {
			if r.Held == nil {
				r.Held = make(map[string]int)
			}
			r.Held[q.tier] = n
			pools[q.pool] = r
		}
	}
	w.addStanding(pools, now)
	for name, n := range w.silence.counts(time.Now()) {
		if r, ok := pools[name]; ok {
			r.Unclaimed = n
			pools[name] = r
		}
	}
	w.rations.apply(pools, w.fleet.free(), perSecond)
	keep, joined := w.fleet.keepHomes()
	w.homes.shorten(pools, keep, joined, now)
	ref := subjects.Reference{
		Gateway: w.bus.id, Pools: pools, Keys: true, Trouble: w.trouble(time.Now()), SilentBrokers: w.streams.brokers.silent(now),
	}
	w.reports.tell(ref)
	w.bus.publish(subjects.GatewayRef(w.bus.id), ref)
}

const (
	// standsAfter is how long a request waits until workers are told that it stands. Where a worker bids for its tier it is
	// delivered at once, or a delivery tells that it waits.
	standsAfter = time.Second

	// starvesAfter is how long one stands, and none of its lane is taken, until workers are told that the lane starves: a tier above
	// that always has as many requests as there are slots would keep it out for ever.
	starvesAfter = time.Minute

	// mostStanding bounds the lanes of a pool of which workers are told that; which ones differs from time to time.
	mostStanding = 256
)

// addStanding adds how many requests the broker has that no worker has taken for a while.
func (w *watch) addStanding(pools map[string]subjects.PoolReference, now time.Time) {
	lanes := make(map[string]int)
	for _, r := range w.requests.all() {
		at := r.target.Load()
		pool := at.queue.pool
		ref, ok := pools[pool]
		if !ok || now.Sub(at.since) < standsAfter || !r.stands(now) {
			continue
		}
		tier := ref.Standing[at.tier.Name]
		if tier[at.lane] == 0 {
			if lanes[pool]++; lanes[pool] > mostStanding {
				continue
			}
		}
		if ref.Standing == nil {
			ref.Standing = make(map[string]map[string]int)
			pools[pool] = ref
		}
		if tier == nil {
			tier = make(map[string]int)
			ref.Standing[at.tier.Name] = tier
		}
		if tier[at.lane]++; now.Sub(at.since) < starvesAfter || now.Sub(at.queue.claimedAt(at.lane)) < starvesAfter {
			continue
		}
		if ref.Starving == nil {
			ref.Starving = make(map[string][]string)
			pools[pool] = ref
		}
		if of := ref.Starving[at.tier.Name]; !slices.Contains(of, at.lane) {
			ref.Starving[at.tier.Name] = append(of, at.lane)
		}
	}
}

// trouble is why requests, or those of some tiers, cannot be queued; empty if they can.
func (w *watch) trouble(now time.Time) string {
	return cmp.Or(w.streams.trouble(), w.publisher.trouble(now))
}

// addWaits adds for how long requests have waited whose model some worker would have to load: the worker weighs that
// against the models that it has loaded.
func (w *watch) addWaits(pools map[string]subjects.PoolReference, cold map[string]bool, now time.Time) {
	for name, r := range pools {
		if !cold[name] && r.Loaded > 0 {
			r.Loaded = 0 // no worker needs it
			pools[name] = r
		}
	}
	if len(cold) == 0 {
		return
	}
	known := w.fleet.coldPools()
	for name, ref := range pools {
		if cold[name] {
			ref.Shortage = &subjects.Shortage{Free: known[name].free, ForMS: w.short.of(name, now).Milliseconds()}
			pools[name] = ref
		}
	}
	for _, r := range w.requests.all() {
		at := r.target.Load()
		ref, ok := pools[at.queue.pool]
		if !ok || !cold[at.queue.pool] {
			continue
		}
		if _, waits := r.waiting(); !waits {
			continue
		}
		ref.Shortage.Waiting++
		if ref.WaitsMS == nil {
			ref.WaitsMS = make(map[string]int64)
			pools[at.queue.pool] = ref
		}
		ref.WaitsMS[at.tier.Name] = max(ref.WaitsMS[at.tier.Name], now.Sub(r.arrived).Milliseconds(), 1)
	}
	for name, ref := range pools {
		if ref.Shortage != nil && ref.Shortage.Waiting > 0 {
			ref.Shortage.Loaders = w.fleet.loaders(name, ref.Mean)
		}
	}
}
