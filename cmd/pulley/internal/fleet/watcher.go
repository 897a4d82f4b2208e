package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// firstSnapshot is how soon a watcher shows its first snapshot, and snapshotEvery the interval after that.
	firstSnapshot = 250 * time.Millisecond
	snapshotEvery = time.Second

	// readShare bounds the time spent reading to a fifth: a long list is read less often.
	readShare = 5

	// ReadTimeout bounds one read from the broker.
	ReadTimeout = 5 * time.Second

	// settledAfter is how long a watcher must listen before silence means that a part is absent: gateways publish every
	// ReferenceEvery, workers more often.
	settledAfter = 2 * subjects.ReferenceEvery

	// gatewayDeadline is the silence after which a gateway counts as gone.
	gatewayDeadline = 3*subjects.ReferenceEvery + subjects.ReferenceEvery/2

	// lostShown is how long a worker that is lost stays in the snapshots of a watcher, and lostReported how long in that of
	// ReadSnapshot, which also has those that gateways have lost before.
	lostShown    = time.Minute
	lostReported = 10 * time.Minute

	// eventsKept is how many events a snapshot has at most.
	eventsKept = 100
)

// Watcher collects the state of a fleet from its broker: it receives what gateways and workers publish, and reads the
// requests and the queues once a second.
type Watcher struct {
	nc *nats.Conn
	js jetstream.JetStream

	mu        sync.Mutex
	connected bool
	since     time.Time // of the last change of connected
	last      time.Time // of the last snapshot
	gateways  map[string]*gatewayState
	workers   map[string]*workerState
	lanes     []Lane
	taken     map[laneName]*rate // deliveries of each lane
	requests  []subjects.RequestInfo
	results   []subjects.PoolResults // of each gateway
	policy    *policystore.Version   // nil until read
	unread    map[string]error       // why the last attempt to read something failed
	tried     map[string]bool        // what was read, or failed, at least once
	events    []subjects.Event       // the oldest first
	once      Once                   // of events
	heard     bool                   // ask has succeeded

	lostFor time.Duration // lostShown or lostReported
	now     chan struct{} // asks for a snapshot at once
}

// gatewayState is the last message of a gateway, and when it arrived.
type gatewayState struct {
	ref subjects.Reference
	at  time.Time
}

// workerState is the last heartbeat of a worker, and when it arrived.
type workerState struct {
	beat  subjects.Heartbeat
	at    time.Time
	rates workerRates
}

type laneName struct{ tier, pool, lane string }

// NewWatcher makes a watcher on a connection. It starts nothing.
func NewWatcher(nc *nats.Conn) (*Watcher, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &Watcher{
		nc: nc, js: js, connected: true, since: now, last: now,
		gateways: make(map[string]*gatewayState), workers: make(map[string]*workerState), taken: make(map[laneName]*rate),
		unread: make(map[string]error), tried: make(map[string]bool), lostFor: lostShown, now: make(chan struct{}, 1),
	}, nil
}

// Run watches until ctx is done. It calls show with a snapshot every second.
func (w *Watcher) Run(ctx context.Context, show func(Snapshot)) error {
	for subject, handle := range map[string]func(*nats.Msg){
		subjects.AllGateways:   w.onReference,
		subjects.AllHeartbeats: w.onHeartbeat,
		subjects.AllEvents:     w.onEvent,
	} {
		sub, err := w.nc.Subscribe(subject, handle)
		if err != nil {
			return fmt.Errorf("subscribe %s: %w", subject, err)
		}
		defer sub.Unsubscribe()
	}
	var loops sync.WaitGroup
	defer loops.Wait()
	loops.Go(func() { w.readLoop(ctx, "requests", w.readRequests) })
	loops.Go(func() { w.readLoop(ctx, "queues", w.readLanes) })
	loops.Go(func() { w.readLoop(ctx, "results", w.readResults) })
	loops.Go(func() {
		f := policystore.Follower{Policy: w.onPolicy, Trouble: func(err error) { w.setUnread("policy", err) }}
		if err := f.Run(ctx, w.nc); err != nil {
			w.setUnread("policy", err)
		}
	})
	tick := time.NewTicker(firstSnapshot)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-w.now:
		}
		s := w.snapshot(time.Now())
		s.Complete()
		show(s)
		tick.Reset(snapshotEvery)
	}
}

func (w *Watcher) onReference(m *nats.Msg) {
	var ref subjects.Reference
	if subjects.Unmarshal(m.Data, &ref) != nil || ref.Gateway == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gateways[ref.Gateway] = &gatewayState{ref, time.Now()}
}

func (w *Watcher) onHeartbeat(m *nats.Msg) {
	var h subjects.Heartbeat
	if subjects.Unmarshal(m.Data, &h) != nil || m.Subject != subjects.Heartbeats(h.Worker) {
		return
	}
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if h.State == subjects.Left {
		delete(w.workers, h.Worker)
		return
	}
	s := w.workers[h.Worker]
	if s == nil {
		s = &workerState{}
		w.workers[h.Worker] = s
	}
	s.beat, s.at = h, now
	s.rates.add(now, &h)
}

func (w *Watcher) onEvent(m *nats.Msg) {
	var e subjects.Event
	if subjects.Unmarshal(m.Data, &e) != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.once.IsNew(e, time.Now()) {
		return
	}
	if w.events = append(w.events, e); len(w.events) > eventsKept {
		w.events = slices.Delete(w.events, 0, len(w.events)-eventsKept)
	}
}

func (w *Watcher) onPolicy(v policystore.Version) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.policy = &v
}

// setUnread records the error of an attempt to read something; nil is success.
func (w *Watcher) setUnread(what string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tried[what] = true
	if err == nil {
		delete(w.unread, what)
		return
	}
	w.unread[what] = err
}

// readLoop calls read once a second while there is a connection.
func (w *Watcher) readLoop(ctx context.Context, what string, read func(context.Context) error) {
	for {
		begun := time.Now()
		if w.nc.IsConnected() {
			within, cancel := context.WithTimeout(ctx, ReadTimeout)
			err := read(within)
			cancel()
			if ctx.Err() != nil {
				return
			}
			w.setUnread(what, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(snapshotEvery, readShare*time.Since(begun))):
		}
	}
}

func (w *Watcher) readRequests(ctx context.Context) error {
	list, err := AskAll[subjects.RequestInfo](ctx, w.nc, subjects.AskRequests)
	if err != nil && !errors.Is(err, nats.ErrNoResponders) { // without a gateway there are no requests
		return fmt.Errorf("ask the gateways: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests = list
	return nil
}

// readResults asks for what became of requests. Older gateways do not answer.
func (w *Watcher) readResults(ctx context.Context) error {
	list, err := AskAll[subjects.PoolResults](ctx, w.nc, subjects.AskResults)
	if err != nil && !errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("ask the gateways: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.results = list
	return nil
}

func (w *Watcher) readLanes(ctx context.Context) error {
	list, err := Lanes(ctx, w.js)
	if err != nil {
		return err
	}
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	taken := make(map[laneName]*rate, len(list))
	for i := range list {
		l := &list[i]
		name := laneName{l.Tier, l.Pool, l.Lane}
		r := cmp.Or(w.taken[name], new(rate))
		r.add(now, l.deliveries)
		l.TakenPerSecond = r.perSecond()
		taken[name] = r
	}
	w.lanes, w.taken = list, taken
	return nil
}

// snapshot returns what is known now, to be completed. It drops parts that have been silent for long. Time without a
// connection, or in which this process was suspended, does not count as silence.
func (w *Watcher) snapshot(now time.Time) Snapshot {
	connected, server := w.nc.IsConnected(), w.nc.ConnectedUrlRedacted()
	w.mu.Lock()
	defer w.mu.Unlock()
	if connected != w.connected {
		w.connected, w.since = connected, now
	}
	if passed := now.Sub(w.last); !connected || passed > 3*snapshotEvery {
		for _, g := range w.gateways {
			g.at = g.at.Add(passed)
		}
		for _, s := range w.workers {
			s.at = s.at.Add(passed)
		}
		if connected {
			w.since = now
		}
	}
	w.last = now
	s := Snapshot{
		At: now, Since: w.since, heard: w.heard && connected, Policy: w.policy, Lanes: slices.Clone(w.lanes), Requests: slices.Clone(w.requests), Results: w.results, Events: slices.Clone(w.events),
		Held: make(map[PoolTier]int), Unclaimed: make(map[string]int), Unread: make(map[string]string), Trouble: make(map[string]string),
	}
	if connected {
		s.Server = server
	}
	for id, g := range w.gateways {
		if now.Sub(g.at) > gatewayDeadline {
			delete(w.gateways, id)
			continue
		}
		s.Gateways = append(s.Gateways, id)
		if g.ref.Trouble != "" {
			s.Trouble[id] = g.ref.Trouble
		}
		for broker, ms := range g.ref.SilentBrokers {
			if s.SilentBrokers == nil {
				s.SilentBrokers = make(map[string]time.Duration)
			}
			s.SilentBrokers[broker] = max(s.SilentBrokers[broker], Millis(ms))
		}
		for pool, ref := range g.ref.Pools {
			if ref.Unclaimed > 0 {
				s.Unclaimed[pool] += ref.Unclaimed
			}
			for tier, n := range ref.Held {
				s.Held[PoolTier{pool, tier}] += n
			}
		}
	}
	for id, k := range w.workers {
		silent := now.Sub(k.at)
		if silent > w.lostFor {
			delete(w.workers, id)
			continue
		}
		lost := time.Duration(0)
		if silent > subjects.WorkerDeadline && (w.heard || now.Sub(w.since) >= settledAfter) { // workers may still be reconnecting, too
			if w.replacedLocked(k) {
				continue
			}
			lost = silent
		}
		s.Workers = append(s.Workers, k.rates.status(&k.beat, lost))
	}
	for what, err := range w.unread {
		s.Unread[what] = plain.Error(err)
	}
	return s
}

// replacedLocked says whether a worker that is lost was started again since.
func (w *Watcher) replacedLocked(lost *workerState) bool {
	for _, k := range w.workers {
		if k.at.After(lost.at) && k.beat.Name == lost.beat.Name && k.beat.Host == lost.beat.Host && k.beat.Started.After(lost.beat.Started) {
			return true
		}
	}
	return false
}

// triedAll says whether everything was read, or failed to be, at least once.
func (w *Watcher) triedAll() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tried["requests"] && w.tried["queues"] && w.tried["results"] && (w.policy != nil || w.tried["policy"])
}

// ask asks all gateways what a watcher would hear from them and from the workers within some seconds. If a worker is missing
// whose heartbeat is in the broker, or a gateway is an older one, that is left to listening.
func (w *Watcher) ask(ctx context.Context) {
	beats, ends, err := ask[subjects.Heartbeat](ctx, w.nc, subjects.AskWorkers, true)
	if err != nil {
		return
	}
	reports := make([]subjects.Report, len(ends))
	for i, h := range ends {
		if err := subjects.Unmarshal([]byte(h.Get(subjects.HeaderReport)), &reports[i]); err != nil || reports[i].Gateway == "" {
			return
		}
	}
	members, err := membersInBucket(ctx, w.nc)
	if err != nil {
		return
	}
	for _, m := range members {
		heard := slices.ContainsFunc(beats, func(h subjects.Heartbeat) bool { return h.Worker == m.Worker })
		if !heard && !slices.ContainsFunc(reports, func(r subjects.Report) bool { return lost(r, m.Worker) }) {
			return
		}
	}
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range reports {
		if w.gateways[r.Gateway] == nil {
			ref := subjects.Reference{Gateway: r.Gateway, Trouble: r.Trouble, SilentBrokers: r.Silent, Pools: make(map[string]subjects.PoolReference)}
			for name, p := range r.Pools {
				ref.Pools[name] = subjects.PoolReference{Held: p.Held, Unclaimed: p.Unclaimed}
			}
			w.gateways[r.Gateway] = &gatewayState{ref, now}
		}
	}
	for _, h := range beats {
		if w.workers[h.Worker] == nil {
			w.workers[h.Worker] = &workerState{beat: h, at: now}
		}
	}
	for _, r := range reports {
		for _, l := range r.Lost {
			if w.workers[l.Worker] == nil {
				w.workers[l.Worker] = &workerState{beat: subjects.Heartbeat{Worker: l.Worker, Name: l.Name, Host: l.Host, Started: l.Started}, at: now.Add(-Millis(l.SilentMS))}
			}
		}
	}
	w.heard = true
}

// lost says whether a gateway has lost a worker.
func lost(r subjects.Report, worker string) bool {
	return slices.ContainsFunc(r.Lost, func(l subjects.LostWorker) bool { return l.Worker == worker })
}

// ReadSnapshot asks and watches until everything was read once, and returns a snapshot. Workers that gateways have lost within
// the last 10 minutes are in it, unless they were started again. It takes some tenths of a second where all parts answer, and
// otherwise as long as it takes to know that they do not.
func ReadSnapshot(ctx context.Context, nc *nats.Conn) (Snapshot, error) {
	w, err := NewWatcher(nc)
	if err != nil {
		return Snapshot{}, err
	}
	within, done := context.WithTimeout(ctx, 2*ReadTimeout)
	defer done()
	w.lostFor = lostReported
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() {
		w.ask(within)
		for within.Err() == nil && !w.triedAll() {
			time.Sleep(5 * time.Millisecond)
		}
		w.now <- struct{}{}
	})
	var last Snapshot
	err = w.Run(within, func(s Snapshot) {
		if last = s; s.Settled() && w.triedAll() {
			done()
		}
	})
	if ctx.Err() != nil {
		return last, context.Cause(ctx)
	}
	return last, err
}
