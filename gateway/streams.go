package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// The broker's error codes that say what it lacks.
const (
	noPeers          jetstream.ErrorCode = 10005
	accountExhausted jetstream.ErrorCode = 10002
	noResources      jetstream.ErrorCode = 10023
	memoryExhausted  jetstream.ErrorCode = 10028
	diskExhausted    jetstream.ErrorCode = 10047
	notForAccount    jetstream.ErrorCode = 10039
)

// explainStore says why the broker does not create or fill a stream, and what to do about it.
func explainStore(err error) string {
	text := err.Error()
	refusal, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return text
	}
	text = strings.Replace(text, refusal.Error(), refusal.Description, 1)
	switch {
	case refusal.ErrorCode == diskExhausted:
		text += ". The streams on disk need more than the broker has left, and dead letters, which reserve most of it, cannot reserve less. See its --max-store, its free space, and the limits of the NATS account"
	case refusal.ErrorCode == memoryExhausted:
		text += ". The streams in memory need more than the broker may use: see its --max-memory"
	case refusal.ErrorCode == accountExhausted:
		text += ". The streams need more than the limits of the NATS account allow"
	case refusal.ErrorCode == noResources:
		text += ". The broker has no room left, in memory or on disk"
	case refusal.ErrorCode == notForAccount:
		text += ". The credentials may be those of another role, such as a worker: a gateway needs those of a gateway"
	case refusal.ErrorCode == noPeers:
		text += ". --replicas may be more than the broker has nodes"
	}
	return text
}

// isExhausted says whether the broker refuses to store a message because it has no room.
func isExhausted(err error) bool {
	refusal, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return false
	}
	switch refusal.ErrorCode {
	case diskExhausted, memoryExhausted, accountExhausted, noResources:
		return true
	}
	return false
}

// maxSaid bounds how many different reasons are logged why the queue is not available.
const maxSaid = 20

const (
	checkStreamsEvery = 5 * time.Second
	checkMembersEvery = time.Second // where there is a cluster of brokers
	retryStreams      = 500 * time.Millisecond

	// streamAnswersIn is how long one stream may take to answer.
	streamAnswersIn = 2 * time.Second
)

// streams makes sure that the tiers' streams exist, from the start and after a broker lost them. What waited in a lost
// stream is published again.
type streams struct {
	bus      *bus
	replicas int // of the streams that it creates
	fleet    *fleet
	lanes    *lanes
	requests *requests

	changed chan struct{}          // wakes run: a new policy may have new tiers
	ready   atomic.Bool            // the streams exist, and consumers were asked for
	why     atomic.Pointer[string] // they are not available; nil: that is not known yet
	silent  atomic.Pointer[string] // why those of some tiers are not, while ready; nil: all are
	brokers brokers
	states  sync.Map // the streamState of each tier, by its name, for metrics
}

// streamState is what a tier's stream last said of itself.
type streamState struct {
	at                time.Time // when it was asked
	answered          bool
	leader            string // empty if the broker is not in a cluster and has no name
	replicas, current int    // as configured, and those that are up to date
	messages, bytes   uint64
	perSubject        int64 // bound of the messages of a pool and lane
	maxBytes          int64 // bound of its size; -1: none
}

// state returns what a tier's stream last said of itself, if it was asked.
func (s *streams) state(tier string) (st streamState, known bool) {
	v, known := s.states.Load(tier)
	if known {
		st = v.(streamState)
	}
	return st, known
}

// trouble is why the streams are not available, or some of them; empty if they are, or if that is not known yet.
func (s *streams) trouble() string {
	why := s.why.Load()
	if s.ready.Load() {
		why = s.silent.Load()
	}
	if why == nil {
		return ""
	}
	return *why
}

// policyChanged makes run look at once.
func (s *streams) policyChanged() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *streams) tiers() []policy.Tier { return s.bus.rules.Load().Policy.Tiers }

// run checks the streams, every few seconds and after each reconnect, until ctx is done.
func (s *streams) run(ctx context.Context) {
	status := s.bus.nc.StatusChanged(nats.CONNECTED)
	defer s.bus.nc.RemoveStatusListener(status)
	created := make(map[string]time.Time) // when each tier's stream was
	said := make(map[string]bool)         // why the streams are not available, as logged since they were
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-status:
		case <-s.changed:
		case <-timer.C:
		}
		next := checkStreamsEvery
		if s.bus.replicated.Load() {
			next = checkMembersEvery
		}
		if err := s.check(ctx, created); err != nil {
			why := s.bus.explain(err)
			if errors.Is(err, nats.ErrNoResponders) && len(created) == 0 { // later, a stream without a leader does not respond either
				why += ". JetStream is off, or out of reach for this user: the credentials may be those of another role, such as a worker or a monitor"
			}
			s.why.Store(&why)
			s.ready.Store(false)
			if ctx.Err() == nil && !said[why] && len(said) < maxSaid {
				said[why] = true
				s.bus.log.Warn("queue not available", "err", why)
			}
			next = retryStreams
		} else if !s.ready.Swap(true) {
			clear(said)
			s.bus.log.Info("queue available")
		}
		timer.Reset(next)
	}
}

// check creates the streams that are missing, and has the requests published again that were in one that is new. Streams that
// were there and do not answer are no error while others do.
func (s *streams) check(ctx context.Context, created map[string]time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	lost, answer := false, 0
	var silent error
	var clusters []*jetstream.ClusterInfo
	defer func() { s.notice(clusters) }()
	for _, t := range s.tiers() {
		at, cluster, err := s.createdAt(ctx, t)
		if cluster != nil {
			clusters = append(clusters, cluster)
		}
		switch {
		case err == nil || errors.Is(err, jetstream.ErrStreamNotFound):
			lost = lost || err != nil || !at.Equal(created[t.Name])
			answer++
		case created[t.Name].IsZero(): // it has to be created
			return err
		default:
			silent = err
			if s.takesRequests(ctx, t) {
				answer++
			}
		}
	}
	if answer == 0 && silent != nil {
		return silent
	}
	s.noteSilent(silent)
	if !lost {
		return nil
	}
	if err := subjects.EnsureStreams(ctx, s.bus.js, s.tiers(), s.replicas); err != nil {
		return err
	}
	s.lanes.streams.Store(true)
	pools, err := s.lanes.storedPools(ctx)
	if err != nil {
		return err
	}
	s.fleet.addPools(pools, time.Now())
	s.lanes.restore(pools)
	for _, t := range s.tiers() {
		now, _, err := s.createdAt(ctx, t)
		if err != nil {
			return err
		}
		before, known := created[t.Name]
		created[t.Name] = now
		if !known || before.Equal(now) {
			continue
		}
		for _, r := range s.requests.all() {
			r.onStreamLost(t.Name)
		}
	}
	return nil
}

// takesRequests says whether the stream of a tier is there, although the broker does not answer questions about it: one stream
// whose disk hangs holds up all of them. Of a stream with replicas one would answer even if it had no leader. A stream on disk is
// not asked: see bus.holds.
func (s *streams) takesRequests(ctx context.Context, t policy.Tier) bool {
	if s.bus.replicated.Load() || t.Storage == policy.File {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := s.bus.nc.RequestWithContext(ctx, subjects.DirectGet(subjects.ReqStream(t.Name)), []byte(`{"seq":1,`+subjects.DirectGetBound+`}`))
	return err == nil
}

// noteSilent notes that the stream of a tier does not answer, while others do: requests of the other tiers go on.
func (s *streams) noteSilent(err error) {
	var why *string
	if err != nil {
		text := s.bus.explain(err) + ": it may have no leader, or the broker's disk may hang. Other tiers go on"
		why = &text
	}
	switch was := s.silent.Swap(why); {
	case why != nil && (was == nil || *was != *why):
		s.bus.log.Warn("the queue of a tier does not answer", "err", *why)
	case why == nil && was != nil:
		s.bus.log.Info("the queues of all tiers answer again")
	}
}

// notice takes in what the leaders of the streams say of the members of their cluster.
func (s *streams) notice(clusters []*jetstream.ClusterInfo) {
	for _, e := range s.brokers.observe(clusters, time.Now()) {
		s.bus.log.Warn(e.Text)
		s.bus.event(e)
	}
}

// createdAt returns when the stream of a tier was created, and the cluster that it is in; nil if there is none.
func (s *streams) createdAt(ctx context.Context, t policy.Tier) (time.Time, *jetstream.ClusterInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, streamAnswersIn)
	defer cancel()
	asked := time.Now()
	stream, err := s.bus.js.Stream(ctx, subjects.ReqStream(t.Name))
	if err != nil {
		s.states.Store(t.Name, streamState{at: asked})
		return time.Time{}, nil, fmt.Errorf("stream of tier %s: %w", t.Name, err)
	}
	info := stream.CachedInfo()
	s.states.Store(t.Name, stateOf(info, asked))
	if info.Config.Replicas > 1 {
		s.bus.replicated.Store(true)
	}
	return info.Created, info.Cluster, nil
}

func stateOf(info *jetstream.StreamInfo, now time.Time) streamState {
	st := streamState{
		at: now, answered: true, replicas: max(info.Config.Replicas, 1), current: 1, messages: info.State.Msgs, bytes: info.State.Bytes,
		perSubject: info.Config.MaxMsgsPerSubject, maxBytes: info.Config.MaxBytes,
	}
	if c := info.Cluster; c != nil {
		st.leader = c.Leader
		for _, p := range c.Replicas {
			if p.Current && subjects.SilentMember(p) == 0 {
				st.current++
			}
		}
	}
	return st
}
