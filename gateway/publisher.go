package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// ackTimeout is the time after which the broker's ack of a message is late.
	ackTimeout = 2 * time.Second

	// republishEvery is how often a message that the broker did not store is published again.
	republishEvery = 250 * time.Millisecond

	// publishTimeout is the time after which that ends with an error. A stream may be without a leader for 7 s; for 20 s
	// it recognises a message that is published again.
	publishTimeout = 15 * time.Second

	// lookInQueueEvery is how often it is checked that the queue still has the message of a waiting request.
	lookInQueueEvery = 15 * time.Second

	// lookAgainAfter is the same if the stream did not answer.
	lookAgainAfter = 3 * time.Second
)

var (
	errNoAck     = errors.New("no answer from the stream")
	errQueueFull = errors.New("the broker's queue is full")
)

// message is a request's message in the stream of its tier. The publisher's methods change it.
type message struct {
	// Owned by the handler's goroutine.
	copies int       // how many messages with an id of their own were published
	sends  int       // how many messages were sent
	sentAt time.Time // when a message was last published
	seenAt time.Time // when it was last checked that the queue has it

	// Guarded by request.mu.
	seq     uint64        // its sequence in the stream, from the ack or a claim; 0 until then
	pending uint64        // the number of the outstanding ack; 0: none is
	err     error         // why the broker did not store it
	acked   chan struct{} // made by awaitAck; closed when the ack or a claim arrives
	left    leftover      // an earlier message, which may still be delivered
	lost    bool          // its stream was lost
	passed  time.Time     // since when its consumer has delivered it, and no worker has claimed it: see unclaimed
	others  []string      // ack subjects of deliveries of other messages of the request, while an attempt runs
}

// leftover is the message that a request left in a stream when it moved to another queue. That message, and all before it,
// are no longer the request's.
type leftover struct {
	stream string
	seq    uint64
}

// covers says whether a delivery is of a message that the request left behind.
func (l leftover) covers(d subjects.Delivery) bool {
	return l.seq > 0 && d.Stream == l.stream && d.StreamSeq <= l.seq
}

// endAwait ends an awaitAck.
func (m *message) endAwait() {
	if m.acked != nil {
		close(m.acked)
		m.acked = nil
	}
}

// publisher publishes requests to the tiers' streams and matches the broker's acks to them. It does not wait for the ack: a
// worker may claim the request before it arrives. Should the broker not store the message, or not answer, the handler is
// woken and calls publishUntilStored.
type publisher struct {
	bus         *bus
	settlements *settlements

	refused atomic.Pointer[refusedStore] // the last time that the broker had no room; nil: it always had
	stuck   stuck

	mu        sync.Mutex
	published uint64              // messages so far; also the number of the last one
	pending   map[uint64]*request // the requests whose ack is outstanding, by its number
	late      map[uint64]lateAck  // acks of messages that were sent again since, by their numbers
	lateSwept time.Time           // when those were last removed that are too old
}

// lateAck is an ack that is not waited for any more. The message may be stored after all, and beside the one that was sent later:
// a leader that was frozen passes on what it had received, and a new one may not know it.
type lateAck struct {
	r      *request
	stream string
	at     time.Time
}

const (
	// lateFor is how long late acks are remembered, and maxLate how many.
	lateFor = time.Minute
	maxLate = 1024
)

func newPublisher(b *bus, s *settlements) *publisher {
	return &publisher{bus: b, settlements: s, pending: make(map[uint64]*request), late: make(map[uint64]lateAck)}
}

// refusedStore is when the broker did not store a message for want of room, and what it said.
type refusedStore struct {
	at  time.Time
	why string
}

// troubleFor is how long it counts as trouble that the broker had no room, and how often it is logged.
const troubleFor = time.Minute

// trouble is why the broker lately did not store requests; empty if it did.
func (p *publisher) trouble(now time.Time) string {
	if r := p.refused.Load(); r != nil && now.Sub(r.at) < troubleFor {
		return r.why
	}
	return p.stuck.trouble(now)
}

// noteRefusal notes, and from time to time logs, that the broker has no room.
func (p *publisher) noteRefusal(err error, now time.Time) {
	was := p.refused.Load()
	if was == nil || now.Sub(was.at) >= troubleFor {
		p.refused.Store(&refusedStore{now, explainStore(err)})
		p.bus.log.Warn("the broker does not store requests", "err", explainStore(err))
	}
}

// publish puts a request on the lane of its target. It may be called again for a request whose message is lost.
func (p *publisher) publish(r *request) error {
	r.message.copies++
	return p.send(r)
}

// send publishes a request's message. A message that is sent again has the same id, so that the broker never has two.
func (p *publisher) send(r *request) error {
	wire, at := r.wire, r.target.Load()
	if wire.Pool != at.queue.pool || wire.Tier != at.tier.Name {
		moved := *wire
		moved.Pool, moved.Tier = at.queue.pool, at.tier.Name
		wire = &moved
	}
	left := max(time.Until(r.deadline), time.Second) // without a TTL the message would stay. The wire's deadline is one of a clock that may be set
	m, err := wire.Msg(at.lane, r.body, left)
	if err != nil {
		return err
	}
	if r.message.copies > 1 { // the broker may still know the id of the lost one
		m.Header[subjects.HeaderMsgID] = []string{fmt.Sprintf("%s.%d", wire.ID, r.message.copies-1)}
	}
	number := p.expectAck(r)
	if number == 0 {
		return nil
	}
	m.Reply = subjects.GatewayAck(p.bus.id, number)
	if err := p.bus.nc.PublishMsg(m); err != nil {
		p.takePending(number)
		r.onAck(number, 0, err)
	}
	return nil
}

// expectAck numbers the message that is sent now. No number is used twice: a stream's new leader may confirm once more
// what the old one has stored. It returns 0 if the request is not to be sent any more: it was taken back, or cancelled.
func (p *publisher) expectAck(r *request) (number uint64) {
	r.message.sentAt = time.Now()
	r.message.sends++
	p.forgetAck(r)
	p.mu.Lock()
	p.published++
	number = p.published
	p.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.order != nil {
		return 0
	}
	p.mu.Lock()
	p.pending[number] = r
	p.mu.Unlock()
	m := &r.message
	m.pending, m.seq, m.err, m.lost = number, 0, nil, false
	return number
}

// forgetAck no longer expects the ack of a request's message. If it was sent more than once, an ack that comes all the same may
// show that there are two.
func (p *publisher) forgetAck(r *request) {
	r.mu.Lock()
	number := r.message.pending
	r.message.pending = 0
	r.mu.Unlock()
	if number == 0 {
		return
	}
	p.takePending(number)
	if r.message.sends > 1 {
		p.expectLate(number, lateAck{r, r.target.Load().queue.stream, time.Now()})
	}
}

func (p *publisher) expectLate(number uint64, l lateAck) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.at.Sub(p.lateSwept) > lateFor {
		p.lateSwept = l.at
		maps.DeleteFunc(p.late, func(_ uint64, o lateAck) bool { return l.at.Sub(o.at) > lateFor })
	}
	if len(p.late) < maxLate {
		p.late[number] = l
	}
}

// onLate has a message removed that was stored late, beside the one that the request has or had.
func (p *publisher) onLate(number uint64, m *nats.Msg) {
	p.mu.Lock()
	l, ok := p.late[number]
	delete(p.late, number)
	p.mu.Unlock()
	if !ok || l.r.target.Load().queue.stream != l.stream {
		return
	}
	seq, err := subjects.ParsePublishAck(m)
	if known := l.r.sequence(); err == nil && known != 0 && seq != known {
		p.settlements.doubtIt(l.r.wire.ID, l.stream, seq)
	}
}

// sequence is that of the request's message; 0 if it is not known.
func (r *request) sequence() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.message.seq
}

// takePending returns, once, the request whose ack has a number; nil if it is not expected.
func (p *publisher) takePending(number uint64) *request {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.pending[number]
	delete(p.pending, number)
	return r
}

// onAck takes in the broker's ack of the message with that number, in hex.
func (p *publisher) onAck(number string, m *nats.Msg) {
	n, err := strconv.ParseUint(number, 16, 64)
	if err != nil {
		return
	}
	r := p.takePending(n)
	if r == nil {
		p.onLate(n, m)
		return
	}
	seq, _ := r.waiting()
	if seq == 0 { // else a claim was faster
		seq, err = subjects.ParsePublishAck(m)
	}
	if err == nil {
		p.stored(r)
	}
	r.onAck(n, seq, err)
}

// stored notes that the stream of a request stores messages.
func (p *publisher) stored(r *request) {
	if stream := r.target.Load().queue.stream; p.stuck.works(stream) {
		p.bus.log.Info("the broker stores requests again", "stream", stream)
	}
}

// onAck notes the sequence of a request's message, or why the broker did not store it.
func (r *request) onAck(number, seq uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &r.message
	if m.pending != number {
		return
	}
	m.pending = 0
	switch {
	case err == nil:
		m.seq = seq
	case m.seq == 0: // no claim shows that it is stored
		m.err = err
		r.wake()
	}
	m.endAwait()
}

// ackDue is until when a request that still waits awaits the ack of its message.
func (r *request) ackDue() time.Time { return earliest(r.message.sentAt.Add(ackTimeout), r.deadline) }

// awaitAck waits for the ack of a request's message, or a claim, even if its client is gone: only that says which
// message to take back. Mostly it has come long ago. It returns 0 if neither comes by until.
func (p *publisher) awaitAck(ctx context.Context, r *request, until time.Time) (seq uint64) {
	r.mu.Lock()
	if r.message.pending == 0 || r.message.seq > 0 {
		defer r.mu.Unlock()
		return r.message.seq
	}
	acked := make(chan struct{})
	r.message.acked = acked
	r.mu.Unlock()
	late := time.NewTimer(time.Until(until))
	defer late.Stop()
	select {
	case <-acked:
	case <-late.C:
	case <-ctx.Done():
	}
	seq, _ = r.waiting()
	return seq
}

// ackIsLate says that the ack of a request's message is overdue.
func (p *publisher) ackIsLate(r *request, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.message.pending != 0 && r.message.seq == 0 && now.Sub(r.message.sentAt) >= ackTimeout
}

// publishUntilStored sends a request's message, which the broker did not store for the reason err, until it does.
func (p *publisher) publishUntilStored(ctx context.Context, r *request, err error) error {
	began, stream := r.message.sentAt, r.target.Load().queue.stream
	end := began.Add(publishTimeout)
	if p.stuck.why(stream, time.Now()) != "" {
		end = began.Add(triesAtStuck)
	}
	for {
		if _, waits := r.waiting(); !waits { // a worker has it after all
			return nil
		}
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !now.Before(r.deadline):
			return errDeadline
		}
		if refusal, ok := errors.AsType[*jetstream.APIError](err); ok && refusal.ErrorCode == subjects.StreamFull {
			return errQueueFull
		}
		exhausted := isExhausted(err)
		if exhausted {
			p.noteRefusal(err, now)
		}
		if errors.Is(err, errNoAck) && (now.Sub(began) > stuckAfter || now.After(end)) {
			p.explainSilence(ctx, stream, now)
		}
		if exhausted && now.After(end) {
			return api.Unavailable("queue_unavailable", 5*time.Second, "the request queue has no room")
		}
		if now.After(end) {
			why := p.stuck.why(stream, now)
			p.bus.log.Error("cannot publish a request", "id", r.wire.ID, "err", err, "why", why)
			if why != "" || errors.Is(err, errNoAck) && p.bus.conn.Hears(now) {
				return api.Unavailable("queue_unavailable", 10*time.Second, "the request queue of tier %s does not store requests now", api.Quote(r.target.Load().tier.Name))
			}
			return api.Unavailable("queue_unavailable", 5*time.Second, "the request queue cannot be reached")
		}
		select {
		case <-ctx.Done():
			continue
		case <-time.After(min(republishEvery, time.Until(r.deadline))):
		}
		if _, waits := r.waiting(); !waits || !time.Now().Before(r.deadline) {
			continue
		}
		if err := p.send(r); err != nil {
			return err
		}
		if p.awaitAck(ctx, r, r.ackDue()) > 0 {
			return nil
		}
		if err = r.takePublishErr(); err == nil {
			err = errNoAck
		}
	}
}

func (r *request) takePublishErr() (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err, r.message.err = r.message.err, nil
	return err
}

// leaveBehind makes the request leave its message, since it moves to another queue. stored is false if it has none. It
// returns false if a worker has claimed the request: then it stays. Deliveries of what is left behind are refused.
func (p *publisher) leaveBehind(r *request, stored bool) (left leftover, moves bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.waitsLocked() {
		return left, false
	}
	m := &r.message
	if stored {
		left = leftover{stream: subjects.ReqStream(r.target.Load().tier.Name), seq: m.seq}
		m.left = left
	}
	m.seq, m.lost = 0, false
	return left, true
}

// takeBackLast takes back the message of a request that has ended while it waited, as soon as its sequence is known: the broker
// may have stored it, and be away.
func (p *publisher) takeBackLast(ctx context.Context, r *request) {
	if seq := p.awaitAck(ctx, r, r.message.sentAt.Add(publishTimeout)); seq > 0 {
		p.settlements.remove(context.WithoutCancel(ctx), r.wire.ID, subjects.ReqStream(r.target.Load().tier.Name), seq)
	}
	p.forgetAck(r)
}

// handBack puts a request whose attempt failed to the front of its queue. If the broker lost the message, it is published
// again.
func (p *publisher) handBack(ctx context.Context, r *request, ack string, delay time.Duration, turn *turn) error {
	seq, _ := r.waiting()
	if d, err := subjects.ParseAck(ack); err == nil && d.StreamSeq == seq {
		if there, err := p.bus.holds(ctx, r.wire.ID, d.Stream, seq); err == nil && there {
			turn.await(ctx)
			return p.bus.nc.Publish(ack, subjects.NakAfter(delay))
		}
	}
	turn.await(ctx)
	return p.publish(r)
}

// publishIfLost publishes a request again that has waited for long, and whose message the queue, despite its ack, no
// longer has.
func (p *publisher) publishIfLost(ctx context.Context, r *request) error {
	now := time.Now()
	if now.Sub(r.message.seenAt) < lookInQueueEvery || !p.bus.conn.Hears(now) {
		return nil
	}
	r.message.seenAt = now
	seq, waits := r.waiting()
	if !waits || seq == 0 {
		return nil
	}
	there, err := p.bus.holds(ctx, r.wire.ID, subjects.ReqStream(r.target.Load().tier.Name), seq)
	if err != nil { // it may be there, and must not run twice
		r.message.seenAt = now.Add(lookAgainAfter - lookInQueueEvery)
		return nil
	}
	if there {
		return nil
	}
	p.bus.log.Warn("the queue lost a request; publishing it again", "id", r.wire.ID)
	return p.publish(r)
}

// deadLetter stores a request that no worker could answer, for the operator.
func (p *publisher) deadLetter(r *request, reason string) {
	at := r.target.Load()
	m, err := r.wire.Msg(subjects.Shared, r.body, 0)
	if err != nil {
		p.bus.log.Error("cannot store a dead letter", "id", r.wire.ID, "err", err)
		return
	}
	m.Subject = subjects.Dead(at.tier.Name, at.queue.pool)
	m.Header.Set(subjects.HeaderReason, reason)
	m.Header[subjects.HeaderHistory] = r.tries
	if int64(m.Size())+1024 > p.bus.nc.MaxPayload() {
		m.Data = nil // the body is too large to keep
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if _, err := p.bus.js.PublishMsg(ctx, m); err != nil {
		p.bus.log.Error("cannot store a dead letter", "id", r.wire.ID, "err", err)
	}
	p.bus.log.Warn("request dead-lettered", "id", r.wire.ID, "pool", at.queue.pool, "reason", reason)
	p.bus.event(subjects.Event{Kind: subjects.EventDead, Pool: at.queue.pool, Tier: at.tier.Name, Model: r.wire.Model, Tenant: r.wire.Tenant, Request: r.wire.ID.String(),
		Text: fmt.Sprintf("request %s to pool %s became a dead letter: %s", r.wire.ID, at.queue.pool, reason)})
}
