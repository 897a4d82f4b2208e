package gateway

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
)

const (
	// settleEvery is how long deliveries of one consumer are collected, until the broker is asked to confirm that all of them
	// are settled. One question for many costs next to nothing. In a cluster each is confirmed: see expect.
	settleEvery = 250 * time.Millisecond

	// confirmWithin is how long the broker may take to confirm that, before it is done again: the first time; then twice as
	// long each time, up to slowestSettle.
	confirmWithin = time.Second
	slowestSettle = 16 * time.Second

	// settleAtEnd bounds how long a gateway that stops waits for that.
	settleAtEnd = confirmWithin

	// settleFor is how long settling is tried. A message is gone at the latest when its TTL has passed.
	settleFor = 10 * time.Minute
)

// settlements are the messages that are no longer wanted, until it is known that they are gone: those whose delivery was
// settled for good, and those that were not delivered and are to be deleted. What is lost on the way, because the broker
// restarts or a consumer has no leader, would be delivered to a worker again. So it is done until it is confirmed.
type settlements struct {
	bus *bus

	mu      sync.Mutex
	last    uint64                    // number of the last batch
	batches map[consumerName]*settled // what was settled since the last question
	asked   map[uint64]*settled       // what the broker was asked to confirm, by number
	doubts  map[unwanted]*doubt       // what it has not confirmed
}

type consumerName struct{ stream, consumer string }

// settled are deliveries of one consumer that were settled one after the other.
type settled struct {
	acks       []settledAck
	since      time.Time // when the last was, or when the broker was asked
	connection uint64    // how many there were before the one that the first was sent on
}

type settledAck struct {
	id  subjects.ID
	seq uint64
	ack string
}

// unwanted is a message of a request. The sequence alone does not name it: a broker that lost a stream in memory counts from 1
// again.
type unwanted struct {
	id     subjects.ID
	stream string
	seq    uint64
}

// doubt is what is known of a message that may still be there.
type doubt struct {
	ack   string // settles its delivery; empty if it was not delivered
	since time.Time
	due   time.Time // when to look whether it is there
	tries int
}

func newSettlements(b *bus) *settlements {
	return &settlements{
		bus: b, batches: make(map[consumerName]*settled), asked: make(map[uint64]*settled), doubts: make(map[unwanted]*doubt),
	}
}

// settle settles a delivery of a request for good. It does not wait.
func (s *settlements) settle(id subjects.ID, ack string, with []byte) {
	d, err := subjects.ParseAck(ack)
	if err != nil {
		return
	}
	a, now := settledAck{id, d.StreamSeq, ack}, time.Now()
	if s.bus.replicated.Load() {
		s.bus.nc.PublishRequest(ack, subjects.GatewaySettled(s.bus.id, s.expect(a, now)), with)
		return
	}
	s.note(consumerName{d.Stream, d.Consumer}, a, now)
	s.bus.nc.Publish(ack, with)
}

// expect returns the number with which the broker is to confirm one delivery. In a cluster each is confirmed for itself: what a
// consumer's leader has not passed on, its next one does not know, although it confirms those that came later.
func (s *settlements) expect(a settledAck, now time.Time) (number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	s.asked[s.last] = &settled{acks: []settledAck{a}, since: now}
	return s.last
}

func (s *settlements) note(of consumerName, a settledAck, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.batches[of]
	if b == nil {
		b = &settled{connection: s.bus.nc.Stats().Reconnects}
		s.batches[of] = b
	}
	b.acks, b.since = append(b.acks, a), now
}

// remove deletes a message of a request. If it was delivered meanwhile, the worker's claim is refused.
func (s *settlements) remove(ctx context.Context, id subjects.ID, stream string, seq uint64) {
	m, now := unwanted{id, stream, seq}, time.Now()
	d := doubt{since: now, due: now.Add(confirmWithin)}
	s.mu.Lock()
	s.doubts[m] = &d
	s.mu.Unlock()
	s.try(ctx, m, "")
}

// doubtIt has a message looked for, and deleted if it is there. It does not wait.
func (s *settlements) doubtIt(id subjects.ID, stream string, seq uint64) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubts[unwanted{id, stream, seq}] = &doubt{since: now, due: now}
}

// onConfirmed takes in the broker's answer to the question with that number, in hex: it has handled all acks before it.
func (s *settlements) onConfirmed(number string, m *nats.Msg) {
	n, err := strconv.ParseUint(number, 16, 64)
	if err != nil || len(m.Header) > 0 { // status 503: the consumer has no leader
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.asked, n)
}

// run asks for confirmation, and does again what is not confirmed, until ctx is done and then for a little longer.
func (s *settlements) run(ctx context.Context) {
	every(ctx, settleEvery, func() { s.check(ctx, time.Now()) })
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleAtEnd)
	defer cancel()
	for s.count() > 0 && ctx.Err() == nil {
		s.check(ctx, time.Now())
		select {
		case <-ctx.Done():
		case <-time.After(settleEvery / 10):
		}
	}
}

func (s *settlements) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.batches) + len(s.asked) + len(s.doubts)
}

func (s *settlements) check(ctx context.Context, now time.Time) {
	for number, ack := range s.ask(now) {
		s.bus.nc.PublishRequest(ack, subjects.GatewaySettled(s.bus.id, number), subjects.Ack)
	}
	silent := make(map[string]bool) // streams that do not answer: their other messages wait for the next check
	for m, ack := range s.due(now) {
		if silent[m.stream] || ctx.Err() != nil || !s.try(ctx, m, ack) {
			silent[m.stream] = true
			s.again(m)
		}
	}
}

// ask returns, for each consumer of which deliveries were settled, the number of a question and the last ack: published once
// more, with a reply subject, it has no effect but the answer. It says nothing about those that were sent on an earlier
// connection: they may be lost.
func (s *settlements) ask(now time.Time) (questions map[uint64]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	connection := s.bus.nc.Stats().Reconnects
	for of, b := range s.batches {
		if b.connection != connection {
			s.doubtLocked(b, now)
			delete(s.batches, of)
			continue
		}
		if questions == nil {
			questions = make(map[uint64]string)
		}
		s.last++
		questions[s.last] = b.acks[len(b.acks)-1].ack
		b.since = now
		s.asked[s.last] = b
		delete(s.batches, of)
	}
	return questions
}

// doubtLocked has it looked for whether messages are still there.
func (s *settlements) doubtLocked(b *settled, now time.Time) {
	for _, a := range b.acks {
		if d, err := subjects.ParseAck(a.ack); err == nil {
			s.doubts[unwanted{a.id, d.Stream, a.seq}] = &doubt{ack: a.ack, since: now, due: now}
		}
	}
}

// due returns the messages that are to be looked at, with the ack subjects of their deliveries.
func (s *settlements) due(now time.Time) (due map[unwanted]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for number, b := range s.asked {
		if now.Sub(b.since) < confirmWithin {
			continue
		}
		delete(s.asked, number)
		s.doubtLocked(b, now)
	}
	for m, d := range s.doubts {
		switch {
		case now.Sub(d.since) > settleFor:
			delete(s.doubts, m)
		case !now.Before(d.due):
			d.due = now.Add(min(confirmWithin<<min(d.tries, 10), slowestSettle))
			d.tries++
			if due == nil {
				due = make(map[unwanted]string)
			}
			due[m] = d.ack
		}
	}
	return due
}

// try looks whether a message is there. If so, it settles its delivery and deletes it; the next check looks again. It returns
// false if the stream does not answer.
func (s *settlements) try(ctx context.Context, m unwanted, ack string) (answered bool) {
	switch there, err := s.bus.holds(ctx, m.id, m.stream, m.seq); {
	case err != nil:
		return false
	case !there:
		s.forget(m)
	default:
		if ack != "" {
			s.bus.nc.Publish(ack, subjects.Ack)
		}
		s.bus.deleteMessage(m.stream, m.seq)
	}
	return true
}

// again has a message looked at with the next check.
func (s *settlements) again(m unwanted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.doubts[m]; d != nil {
		d.due, d.tries = time.Now(), max(d.tries-1, 0)
	}
}

func (s *settlements) forget(m unwanted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.doubts, m)
}
