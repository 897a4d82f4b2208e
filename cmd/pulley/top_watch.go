package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	firstLook = 250 * time.Millisecond
	lookEvery = time.Second

	// lookShare is the part of the time that reading may take: where a list is
	// long, it is read less often.
	lookShare = 5

	lookTimeout = 5 * time.Second

	// settledAfter is how long a watcher has to listen before silence means
	// something: gateways speak every ReferenceEvery, workers more often.
	settledAfter = 2 * subjects.ReferenceEvery

	gatewaySilent = 3*subjects.ReferenceEvery + subjects.ReferenceEvery/2

	// lostShown is how long a worker that fell silent stays in view.
	lostShown = time.Minute

	rateOver   = 5 * time.Second
	eventsKept = 100
)

// watcher gathers what can be seen of a fleet from its broker.
type watcher struct {
	nc *nats.Conn
	js jetstream.JetStream

	mu        sync.Mutex
	connected bool
	since     time.Time // of the present state of the connection
	looked    time.Time
	gateways  map[string]*gatewayHeard
	workers   map[string]*workerHeard
	queues    []queueSeen
	taken     map[queueName]*rate
	requests  []subjects.RequestInfo
	policy    *policystore.Version // nil until read
	unread    map[string]error     // what could not be read just now
	tried     map[string]bool      // what has been read, or was tried to
	events    []subjects.Event     // the oldest first
}

type gatewayHeard struct {
	ref subjects.Reference
	at  time.Time
}

type workerHeard struct {
	beat         subjects.Heartbeat
	at           time.Time
	done, failed rate
}

type queueName struct{ tier, pool, lane string }

func newWatcher(nc *nats.Conn) (*watcher, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &watcher{
		nc: nc, js: js, connected: true, since: now, looked: now,
		gateways: make(map[string]*gatewayHeard), workers: make(map[string]*workerHeard), taken: make(map[queueName]*rate),
		unread: make(map[string]error), tried: make(map[string]bool),
	}, nil
}

// run watches until ctx is done, and shows a snapshot each time it has looked.
func (w *watcher) run(ctx context.Context, show func(snapshot)) error {
	for subject, hear := range map[string]func(*nats.Msg){
		subjects.AllGateways:   w.hearGateway,
		subjects.AllHeartbeats: w.hearWorker,
		subjects.AllEvents:     w.hearEvent,
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
		f := policystore.Follower{Policy: w.hearPolicy, Trouble: func(err error) { w.note("policy", err) }}
		if err := f.Run(ctx, w.nc); err != nil {
			w.note("policy", err)
		}
	})
	tick := time.NewTicker(firstLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			show(w.look(now))
			tick.Reset(lookEvery)
		}
	}
}

// lookOnce watches as long as it takes to see everything once.
func lookOnce(ctx context.Context, nc *nats.Conn) (snapshot, error) {
	w, err := newWatcher(nc)
	if err != nil {
		return snapshot{}, err
	}
	within, done := context.WithTimeout(ctx, 2*lookTimeout)
	defer done()
	var last snapshot
	err = w.run(within, func(s snapshot) {
		if last = s; s.settled() && w.triedAll() {
			done()
		}
	})
	if ctx.Err() != nil {
		return last, context.Cause(ctx)
	}
	return last, err
}

func (w *watcher) triedAll() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tried["requests"] && w.tried["queues"] && (w.policy != nil || w.tried["policy"])
}

func (w *watcher) hearGateway(m *nats.Msg) {
	var ref subjects.Reference
	if subjects.Unmarshal(m.Data, &ref) != nil || ref.Gateway == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gateways[ref.Gateway] = &gatewayHeard{ref, time.Now()}
}

func (w *watcher) hearWorker(m *nats.Msg) {
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
		k = &workerHeard{}
		w.workers[h.Worker] = k
	}
	k.beat, k.at = h, now
	k.done.add(now, h.Done)
	k.failed.add(now, h.Failed)
}

func (w *watcher) hearEvent(m *nats.Msg) {
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

func (w *watcher) hearPolicy(v policystore.Version) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.policy = &v
}

// note keeps why something could not be read; nil: it could.
func (w *watcher) note(what string, err error) {
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
func (w *watcher) readLoop(ctx context.Context, what string, read func(context.Context) error) {
	for {
		begun := time.Now()
		if w.nc.IsConnected() {
			within, cancel := context.WithTimeout(ctx, lookTimeout)
			err := read(within)
			cancel()
			if ctx.Err() != nil {
				return
			}
			w.note(what, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(lookEvery, lookShare*time.Since(begun))):
		}
	}
}

func (w *watcher) readRequests(ctx context.Context) error {
	list, err := ask[subjects.RequestInfo](ctx, w.nc, subjects.AskRequests, true)
	if err != nil && !errors.Is(err, nats.ErrNoResponders) { // no gateway, no requests
		return fmt.Errorf("ask the gateways: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests = list
	return nil
}

// readQueues reads the consumers of every tier's stream.
func (w *watcher) readQueues(ctx context.Context) error {
	var list []queueSeen
	streams := w.js.ListStreams(ctx, jetstream.WithStreamListSubject(subjects.AllReqs))
	var tiers []string
	for info := range streams.Info() {
		if strings.HasPrefix(info.Config.Name, reqStreamPrefix) {
			tiers = append(tiers, info.Config.Name)
		}
	}
	if err := streams.Err(); err != nil {
		return fmt.Errorf("list streams: %w", err)
	}
	for _, name := range tiers {
		s, err := w.js.Stream(ctx, name)
		if err != nil {
			return fmt.Errorf("stream %s: %w", name, err)
		}
		consumers := s.ListConsumers(ctx)
		for c := range consumers.Info() {
			if pool, ok := c.Config.Metadata["pulley-pool"]; ok {
				list = append(list, queueSeen{
					Pool: pool, Tier: subjects.TierOf(name), Lane: c.Config.Metadata["pulley-lane"],
					Waiting: int(c.NumPending), Delivered: c.NumAckPending, Bids: c.NumWaiting, deliveries: c.Delivered.Consumer,
				})
			}
		}
		if err := consumers.Err(); err != nil {
			return fmt.Errorf("consumers of %s: %w", name, err)
		}
	}
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	taken := make(map[queueName]*rate, len(list))
	for i := range list {
		q := &list[i]
		name := queueName{q.Tier, q.Pool, q.Lane}
		r := cmp.Or(w.taken[name], new(rate))
		r.add(now, q.deliveries)
		q.TakenPerSecond = r.perSecond()
		taken[name] = r
	}
	w.queues, w.taken = list, taken
	return nil
}

// reqStreamPrefix begins the name of every tier's stream.
var reqStreamPrefix = subjects.ReqStream("x")[:len(subjects.ReqStream("x"))-1]

// look is what is known now. It forgets what fell silent, unless the silence is
// our own.
func (w *watcher) look(now time.Time) snapshot {
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
	s := snapshot{
		At: now, Since: w.since, Policy: w.policy, Queues: slices.Clone(w.queues), Requests: slices.Clone(w.requests), Events: slices.Clone(w.events),
		held: make(map[poolTier]int), Unread: make(map[string]string),
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
				s.held[poolTier{pool, tier}] += n
			}
		}
	}
	for id, k := range w.workers {
		silent := now.Sub(k.at)
		if silent > lostShown {
			delete(w.workers, id)
			continue
		}
		seen := workerSeen{Heartbeat: k.beat, DonePerSecond: k.done.perSecond(), FailedPerSecond: k.failed.perSecond(), TokensPerSecond: decoding(&k.beat)}
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
	s.complete()
	return s
}

// replacedLocked says whether a worker that fell silent was started again.
func (w *watcher) replacedLocked(lost *workerHeard) bool {
	for _, k := range w.workers {
		if k.at.After(lost.at) && k.beat.Name == lost.beat.Name && k.beat.Host == lost.beat.Host && k.beat.Started.After(lost.beat.Started) {
			return true
		}
	}
	return false
}

// rate is how fast a counter has grown over the last rateOver. The zero value
// is ready.
type rate struct{ samples []sample }

type sample struct {
	at time.Time
	n  uint64
}

func (r *rate) add(at time.Time, n uint64) {
	if len(r.samples) > 0 && n < r.samples[len(r.samples)-1].n { // counted anew
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
