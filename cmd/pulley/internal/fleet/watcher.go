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

// Watcher gathers what can be seen of a fleet from its broker.
type Watcher struct {
	nc *nats.Conn
	js jetstream.JetStream

	mu        sync.Mutex
	connected bool
	since     time.Time // of the present state of the connection
	looked    time.Time
	gateways  map[string]*gatewayState
	workers   map[string]*workerState
	queues    []Lane
	taken     map[laneName]*rate
	requests  []subjects.RequestInfo
	policy    *policystore.Version // nil until read
	unread    map[string]error     // what could not be read just now
	tried     map[string]bool      // what has been read, or was tried to
	events    []subjects.Event     // the oldest first
}

// Run watches until ctx is done, and shows a snapshot each time it has looked.
func (w *Watcher) Run(ctx context.Context, show func(Snapshot)) error {
	for subject, hear := range map[string]func(*nats.Msg){
		subjects.AllGateways:   w.onReference,
		subjects.AllHeartbeats: w.onHeartbeat,
		subjects.AllEvents:     w.onEvent,
	} {
		sub, err := w.nc.Subscribe(subject, hear)
		if err != nil {
			return fmt.Errorf("subscribe %s: %w", subject, err)
		}
		defer sub.Unsubscribe()
	}
	var loops sync.WaitGroup
	defer loops.Wait()
	loops.Go(func() { w.readLoop(ctx, "requests", w.readRequests) })
	loops.Go(func() { w.readLoop(ctx, "queues", w.readQueues) })
	loops.Go(func() {
		f := policystore.Follower{Policy: w.onPolicy, Trouble: func(err error) { w.setUnread("policy", err) }}
		if err := f.Run(ctx, w.nc); err != nil {
			w.setUnread("policy", err)
		}
	})
	tick := time.NewTicker(firstLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			show(w.snapshot(now))
			tick.Reset(lookEvery)
		}
	}
}

func (w *Watcher) triedAll() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tried["requests"] && w.tried["queues"] && (w.policy != nil || w.tried["policy"])
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
	k := w.workers[h.Worker]
	if k == nil {
		k = &workerState{}
		w.workers[h.Worker] = k
	}
	k.beat, k.at = h, now
	k.done.add(now, h.Done)
	k.failed.add(now, h.Failed)
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

// setUnread keeps why something could not be read; nil: it could.
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

// readLoop reads again and again while there is a connection.
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
		case <-time.After(max(lookEvery, lookShare*time.Since(begun))):
		}
	}
}

func (w *Watcher) readRequests(ctx context.Context) error {
	list, err := Ask[subjects.RequestInfo](ctx, w.nc, subjects.AskRequests, true)
	if err != nil && !errors.Is(err, nats.ErrNoResponders) { // no gateway, no requests
		return fmt.Errorf("ask the gateways: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests = list
	return nil
}

// readQueues reads the lanes of every tier.
func (w *Watcher) readQueues(ctx context.Context) error {
	list, err := Lanes(ctx, w.js)
	if err != nil {
		return err
	}
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	taken := make(map[laneName]*rate, len(list))
	for i := range list {
		q := &list[i]
		name := laneName{q.Tier, q.Pool, q.Lane}
		r := cmp.Or(w.taken[name], new(rate))
		r.add(now, q.deliveries)
		q.TakenPerSecond = r.perSecond()
		taken[name] = r
	}
	w.queues, w.taken = list, taken
	return nil
}

// snapshot is what is known now. It forgets what fell silent, unless the silence is
// our own.
func (w *Watcher) snapshot(now time.Time) Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	connected := w.nc.IsConnected()
	if connected != w.connected {
		w.connected, w.since = connected, now
	}
	if slept := now.Sub(w.looked); !connected || slept > 3*lookEvery {
		for _, k := range w.gateways {
			k.at = k.at.Add(slept)
		}
		for _, k := range w.workers {
			k.at = k.at.Add(slept)
		}
		if connected {
			w.since = now
		}
	}
	w.looked = now
	s := Snapshot{
		At: now, Since: w.since, Policy: w.policy, Queues: slices.Clone(w.queues), Requests: slices.Clone(w.requests), Events: slices.Clone(w.events),
		Held: make(map[PoolTier]int), Unread: make(map[string]string),
	}
	if connected {
		s.Server = w.nc.ConnectedUrlRedacted()
	}
	for id, k := range w.gateways {
		if now.Sub(k.at) > gatewaySilent {
			delete(w.gateways, id)
			continue
		}
		s.Gateways = append(s.Gateways, id)
		for pool, ref := range k.ref.Pools {
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
		seen := WorkerStatus{Heartbeat: k.beat, DonePerSecond: k.done.perSecond(), FailedPerSecond: k.failed.perSecond(), TokensPerSecond: decoding(&k.beat)}
		if silent > subjects.WorkerDeadline && now.Sub(w.since) >= settledAfter { // workers need a moment to connect, too
			if w.replacedLocked(k) {
				continue
			}
			seen.Lost, seen.DonePerSecond, seen.FailedPerSecond, seen.TokensPerSecond = silent, 0, 0, 0
		}
		s.Workers = append(s.Workers, seen)
	}
	for what, err := range w.unread {
		s.Unread[what] = err.Error()
	}
	s.Complete()
	return s
}

// replacedLocked says whether a worker that fell silent was started again.
func (w *Watcher) replacedLocked(lost *workerState) bool {
	for _, k := range w.workers {
		if k.at.After(lost.at) && k.beat.Name == lost.beat.Name && k.beat.Host == lost.beat.Host && k.beat.Started.After(lost.beat.Started) {
			return true
		}
	}
	return false
}

const (
	firstLook = 250 * time.Millisecond
	lookEvery = time.Second

	// lookShare is the part of the time that reading may take: where a list is
	// long, it is read less often.
	lookShare = 5

	ReadTimeout = 5 * time.Second

	// settledAfter is how long a watcher has to listen before silence means
	// something: gateways speak every ReferenceEvery, workers more often.
	settledAfter = 2 * subjects.ReferenceEvery

	gatewaySilent = 3*subjects.ReferenceEvery + subjects.ReferenceEvery/2

	// lostShown is how long a worker that fell silent stays in view.
	lostShown = time.Minute

	rateOver   = 5 * time.Second
	eventsKept = 100
)

type gatewayState struct {
	ref subjects.Reference
	at  time.Time
}

type workerState struct {
	beat         subjects.Heartbeat
	at           time.Time
	done, failed rate
}

type laneName struct{ tier, pool, lane string }

func NewWatcher(nc *nats.Conn) (*Watcher, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &Watcher{
		nc: nc, js: js, connected: true, since: now, looked: now,
		gateways: make(map[string]*gatewayState), workers: make(map[string]*workerState), taken: make(map[laneName]*rate),
		unread: make(map[string]error), tried: make(map[string]bool),
	}, nil
}

// ReadSnapshot watches as long as it takes to see everything once.
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
