package gateway

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

const (
	// stallEvery is how often queues are checked for requests that nothing sets in motion.
	stallEvery = 250 * time.Millisecond

	// claimWithin is the time after which a delivery that no worker has claimed is taken back.
	claimWithin = 2 * time.Second
)

// stalls find what stands still because a message was lost: a delivery whose claim never comes, and requests that are held
// here though the broker has none left to deliver.
type stalls struct {
	bus      *bus
	requests *requests
	queues   *queues
	fleet    *fleet
}

func (s *stalls) run(ctx context.Context) {
	round := 0
	every(ctx, stallEvery, func() {
		ask := consumers{bus: s.bus, known: make(map[string]*jetstream.ConsumerInfo)}
		s.unblock(ctx, &ask)
		if round++; round%4 == 0 {
			s.handBack(ctx, &ask)
		}
	})
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
// handed back the one before, was lost. Without that the broker delivers it again only after subjects.AckWait.
func (s *stalls) handBack(ctx context.Context, ask *consumers) {
	for _, r := range s.requests.all() {
		now := time.Now()
		if seq, waits := r.waiting(); !waits || seq == 0 || now.Sub(r.arrived) < claimWithin/2 {
			continue
		}
		at := r.target.Load()
		info := ask.info(ctx, at.tier.Name, at.queue.pool, at.lane)
		if info == nil || info.NumAckPending == 0 {
			continue
		}
		if seq := r.unclaimed(info.Delivered.Stream, now); seq > 0 { // without effect on a message that was not delivered
			s.bus.nc.Publish(subjects.AckSubject(info.Stream, info.Name, seq, info.Delivered.Consumer), subjects.Nak)
		}
	}
}

// unclaimed returns the sequence of a request's message if it was delivered claimWithin ago and no worker has claimed it,
// else 0. delivered is the highest sequence that its consumer has delivered.
func (r *request) unclaimed(delivered uint64, now time.Time) (seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &r.message
	switch {
	case !r.waitsLocked(), r.delayed, m.seq == 0, m.seq > delivered:
		m.passed = time.Time{}
	case m.passed.IsZero():
		m.passed = now
	case now.Sub(m.passed) >= claimWithin:
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
