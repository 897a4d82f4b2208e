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

	// lostShown is how long a worker that is lost stays in the snapshots.
	lostShown = time.Minute

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
	policy    *policystore.Version // nil until read
	unread    map[string]error     // why the last attempt to read something failed
	tried     map[string]bool      // what was read, or failed, at least once
	events    []subjects.Event     // the oldest first
}

// gatewayState is the last message of a gateway, and when it arrived.
type gatewayState struct {
	ref subjects.Reference
	at  time.Time
}

// workerState is the last heartbeat of a worker, and when it arrived.
type workerState struct {
	beat         subjects.Heartbeat
	at           time.Time
	done, failed rate
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
		unread: make(map[string]error), tried: make(map[string]bool),
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
		case now := <-tick.C:
			s := w.snapshot(now)
			s.Complete()
			show(s)
			tick.Reset(snapshotEvery)
		}
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
	if subjects.Unmarshal(m.Data, &h) != nil || h.Worker != subjects.LastToken(m.Subject) {
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
	s.done.add(now, h.Done)
	s.failed.add(now, h.Failed)
}

func (w *Watcher) onEvent(m *nats.Msg) {
	var e subjects.Event
	if subjects.Unmarshal(m.Data, &e) != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
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
		At: now, Since: w.since, Policy: w.policy, Lanes: slices.Clone(w.lanes), Requests: slices.Clone(w.requests), Events: slices.Clone(w.events),
		Held: make(map[PoolTier]int), Unread: make(map[string]string),
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
		for pool, ref := range g.ref.Pools {
			for tier, n := range ref.Held {
				s.Held[PoolTier{pool, tier}] += n
			}
		}
	}
	for id, k := range w.workers {
		silent := now.Sub(k.at)
		if silent > lostShown {
			delete(w.workers, id)
			continue
		}
		status := WorkerStatus{Heartbeat: k.beat, DonePerSecond: k.done.perSecond(), FailedPerSecond: k.failed.perSecond(), TokensPerSecond: tokensPerSecond(&k.beat)}
		if silent > subjects.WorkerDeadline && now.Sub(w.since) >= settledAfter { // workers may still be reconnecting, too
			if w.replacedLocked(k) {
				continue
			}
			status.Lost, status.DonePerSecond, status.FailedPerSecond, status.TokensPerSecond = silent, 0, 0, 0
		}
		s.Workers = append(s.Workers, status)
	}
	for what, err := range w.unread {
		s.Unread[what] = err.Error()
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
	return w.tried["requests"] && w.tried["queues"] && (w.policy != nil || w.tried["policy"])
}

// ReadSnapshot watches until everything was read once, and returns a snapshot.
func ReadSnapshot(ctx context.Context, nc *nats.Conn) (Snapshot, error) {
	w, err := NewWatcher(nc)
	if err != nil {
		return Snapshot{}, err
	}
	within, done := context.WithTimeout(ctx, 2*ReadTimeout)
	defer done()
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

// rateOver is the time over which rates are measured.
const rateOver = 5 * time.Second

// rate measures how fast a counter grows. The zero value is ready.
type rate struct{ samples []sample }

type sample struct {
	at time.Time
	n  uint64
}

// add records the counter. A counter that has fallen has restarted: earlier samples are dropped.
func (r *rate) add(at time.Time, n uint64) {
	if len(r.samples) > 0 && n < r.samples[len(r.samples)-1].n {
		r.samples = r.samples[:0]
	}
	r.samples = append(r.samples, sample{at, n})
	for len(r.samples) > 2 && at.Sub(r.samples[1].at) >= rateOver {
		r.samples = slices.Delete(r.samples, 0, 1)
	}
}

func (r *rate) perSecond() float64 {
	if len(r.samples) < 2 {
		return 0
	}
	first, last := r.samples[0], r.samples[len(r.samples)-1]
	return float64(last.n-first.n) / last.at.Sub(first.at).Seconds()
}
