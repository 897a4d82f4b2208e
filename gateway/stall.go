package gateway

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

const (
	// stallTick is the time between two looks at deliveries while a worker is silent. Queues are checked every stallEvery for
	// requests that nothing sets in motion.
	stallTick  = 100 * time.Millisecond
	stallEvery = 2 * stallTick

	// lostEvery is how often it is checked that the streams have the messages of requests that wait.
	lostEvery = 10 * stallTick

	// claimWithin is how long after it was found a delivery is taken back that no worker has claimed. It is found handBackEvery
	// after it was made at the latest, and taken back when that comes round again: within 2 s in all.
	claimWithin   = 800 * time.Millisecond
	handBackEvery = 4 * stallTick

	// claimSoon is the same while a worker of the pool is silent: the broker may serve one of its bids after the other. A worker
	// that is there takes a few milliseconds; if it takes longer, its claim is granted all the same, and the next one refused.
	claimSoon = stallTick - 20*time.Millisecond
)

// stalls find what stands still because a message was lost: a delivery whose claim never comes, and requests that are held
// here though the broker has none left to deliver.
type stalls struct {
	bus      *bus
	requests *requests
	queues   *queues
	fleet    *fleet
	silence  *silence
	metrics  *metrics
}

// silence counts, by pool, the deliveries that no worker has claimed in time: a worker is out of order, or takes requests and
// keeps silent. The broker does not say which one it is.
type silence struct {
	mu sync.Mutex
	at map[string][]time.Time // within the last minute, the oldest first
}

// maxSilence bounds what is remembered of a pool.
const maxSilence = 1000

// add counts a delivery of a pool.
func (s *silence) add(pool string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == nil {
		s.at = make(map[string][]time.Time)
	}
	if len(s.at[pool]) < maxSilence {
		s.at[pool] = append(s.at[pool], now)
	}
}

// counts returns how many there were within the last minute, by pool.
func (s *silence) counts(now time.Time) map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var counts map[string]int
	for pool, at := range s.at {
		at = slices.DeleteFunc(at, func(t time.Time) bool { return now.Sub(t) > time.Minute })
		if s.at[pool] = at; len(at) == 0 {
			delete(s.at, pool)
			continue
		}
		if counts == nil {
			counts = make(map[string]int)
		}
		counts[pool] = len(at)
	}
	return counts
}

func (s *stalls) run(ctx context.Context) {
	round := 0
	every(ctx, stallTick, func() {
		ask := consumers{bus: s.bus, known: make(map[string]*jetstream.ConsumerInfo)}
		round++
		if round%int(stallEvery/stallTick) == 0 {
			s.unblock(ctx, &ask)
		}
		var silent map[string]bool
		if now := time.Now(); s.bus.conn.Hears(now) { // else all workers seem to be
			silent = s.fleet.silent(s.bus.rules.Load().Policy, now)
		}
		if all := round%int(handBackEvery/stallTick) == 0; all || len(silent) > 0 {
			s.handBack(ctx, &ask, silent, all)
		}
		if round%int(lostEvery/stallTick) == 0 {
			s.findLost(ctx)
		}
	})
}

// findLost has the requests published again whose messages the broker has lost: it has restarted, all nodes of a cluster have,
// or somebody has emptied the stream. What is lost in the middle of others is found by publisher.publishIfLost.
func (s *stalls) findLost(ctx context.Context) {
	waiting := make(map[string]map[*request]uint64) // sequences, by stream
	for _, r := range s.requests.all() {
		seq, waits := r.waiting()
		if !waits || seq == 0 || time.Since(r.arrived) < lostEvery {
			continue
		}
		stream := r.target.Load().queue.stream
		if waiting[stream] == nil {
			waiting[stream] = make(map[*request]uint64)
		}
		waiting[stream][r] = seq
	}
	for stream, requests := range waiting {
		state, err := s.state(ctx, stream)
		if err != nil {
			continue
		}
		n := 0
		for r, seq := range requests {
			if (seq < state.FirstSeq || seq > state.LastSeq) && r.onMessageLost(seq) {
				n++
			}
		}
		if n > 0 {
			s.bus.log.Warn("the broker lost requests; publishing them again", "stream", stream, "requests", n)
		}
	}
}

// state is what a stream has.
func (s *stalls) state(ctx context.Context, stream string) (jetstream.StreamState, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	st, err := s.bus.js.Stream(ctx, stream)
	if err != nil {
		return jetstream.StreamState{}, err
	}
	return st.CachedInfo().State, nil
}

// unblock releases requests that this gateway holds until a delivery shows that the broker needs more, where a worker is
// free and no delivery comes.
func (s *stalls) unblock(ctx context.Context, ask *consumers) {
	for _, q := range s.queues.all() {
		if !q.stands(time.Now()) {
			continue
		}
		if p, _ := s.fleet.pool(q.pool); p.free == 0 {
			continue
		}
		if info := ask.info(ctx, q.tier, q.pool, subjects.Shared); info != nil {
			q.onPending(info.NumPending, time.Now())
		}
	}
}

// handBack hands back to the queue what was delivered and that no worker has claimed for too long: the delivery, or what
// handed back the one before, was lost. Without that the broker delivers it again only after subjects.AckWait. silent are the
// pools that have a silent worker: unless all is set, only their requests are looked at.
func (s *stalls) handBack(ctx context.Context, ask *consumers, silent map[string]bool, all bool) {
	for _, r := range s.requests.all() {
		now, at := time.Now(), r.target.Load()
		young, within := handBackEvery, claimWithin
		if silent[at.queue.pool] {
			young, within = stallTick, claimSoon
		} else if !all {
			continue
		}
		if seq, waits := r.waiting(); !waits || seq == 0 || now.Sub(r.arrived) < young {
			continue
		}
		info := ask.info(ctx, at.tier.Name, at.queue.pool, at.lane)
		if info == nil || info.NumAckPending == 0 {
			continue
		}
		seq := r.unclaimed(info.Delivered.Stream, within, now)
		if seq == 0 {
			continue
		}
		s.bus.nc.Publish(subjects.AckSubject(info.Stream, info.Name, seq, info.Delivered.Consumer), subjects.Nak) // without effect on a message that was not delivered
		if within == claimSoon {
			continue // that worker is known
		}
		s.silence.add(at.queue.pool, now)
		s.metrics.unclaimed.WithLabelValues(at.queue.pool).Inc()
		s.bus.seldom("no worker has claimed a delivery; it is taken back: a worker is out of order, or takes requests and keeps silent", "pool", at.queue.pool, "lane", at.lane, "id", r.wire.ID)
	}
}

// unclaimed returns the sequence of a request's message if it was found to be delivered so long ago and no worker has claimed it,
// else 0. delivered is the highest sequence that its consumer has delivered.
func (r *request) unclaimed(delivered uint64, within time.Duration, now time.Time) (seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &r.message
	switch {
	case !r.waitsLocked(), r.delayed && now.Before(r.due), m.seq == 0, m.seq > delivered:
		m.passed = time.Time{}
	case m.passed.IsZero():
		m.passed = now
	case now.Sub(m.passed) >= within:
		m.passed = now
		return m.seq
	}
	return 0
}

// consumers asks the broker for the state of consumers, at most once for each.
type consumers struct {
	bus   *bus
	known map[string]*jetstream.ConsumerInfo
}

// info returns the state of the consumer of a lane; nil if the broker does not tell.
func (c *consumers) info(ctx context.Context, tier, pool, lane string) *jetstream.ConsumerInfo {
	stream, name := subjects.ReqStream(tier), subjects.ReqConsumer(pool, lane)
	key := stream + " " + name
	if info, asked := c.known[key]; asked {
		return info
	}
	c.known[key] = nil
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if consumer, err := c.bus.js.Consumer(ctx, stream, name); err == nil {
		c.known[key] = consumer.CachedInfo()
	}
	return c.known[key]
}
