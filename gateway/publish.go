package gateway

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	wordLate        = 2 * time.Second // for the broker's word on a message
	publishAgain    = 250 * time.Millisecond
	publishPatience = 15 * time.Second // a broker's leader may be gone for 7 s; below what the streams remember ids for
)

var errNoWord = errors.New("no answer from the stream")

// publish puts a request on the queue of its place. It may be called again for
// one whose message is lost. The broker's word is not waited for: a worker may
// claim the request before it comes. Should the broker not take it, or not
// answer, follow sees to that.
func (g *Gateway) publish(f *flight) error {
	f.copies++
	return g.send(f)
}

// send publishes a request's message. One that is sent again has the same id, so
// that the broker never has two of it.
func (g *Gateway) send(f *flight) error {
	req, at := f.req, f.at()
	if req.Pool != at.pool || req.Tier != at.tier.Name {
		moved := *req
		moved.Pool, moved.Tier = at.pool, at.tier.Name
		req = &moved
	}
	left := max(time.Until(time.UnixMilli(req.Deadline)), time.Second) // a message without a TTL would stay
	m, err := req.Msg(at.lane, f.body, left)
	if err != nil {
		return err
	}
	if f.copies > 1 { // the id of the lost one may still be remembered
		m.Header[subjects.HeaderMsgID] = []string{fmt.Sprintf("%s.%d", req.ID, f.copies-1)}
	}
	number := g.expectWord(f)
	m.Reply = subjects.GatewayAck(g.id, number)
	if err := g.nc.PublishMsg(m); err != nil {
		g.takeUnstored(number)
		f.stored(number, 0, err)
	}
	return nil
}

// expectWord numbers the message that is sent now. No number is used twice: a
// stream's new leader may confirm once more what the old one has.
func (g *Gateway) expectWord(f *flight) uint64 {
	f.sent = time.Now()
	g.forgetWord(f)
	g.mu.Lock()
	g.published++
	number := g.published
	g.unstored[number] = f
	g.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.number, f.seq, f.unstored, f.lost = number, 0, nil, false
	return number
}

// forgetWord no longer expects the broker's word.
func (g *Gateway) forgetWord(f *flight) {
	f.mu.Lock()
	number := f.number
	f.number = 0
	f.mu.Unlock()
	if number != 0 {
		g.takeUnstored(number)
	}
}

// takeUnstored takes out the flight whose message has a number; nil if its word
// has come, or is not expected any more.
func (g *Gateway) takeUnstored(number uint64) *flight {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.unstored[number]
	delete(g.unstored, number)
	return f
}

// stored takes the broker's word on a message.
func (g *Gateway) stored(number string, m *nats.Msg) {
	n, err := strconv.ParseUint(number, 16, 64)
	if err != nil {
		return
	}
	f := g.takeUnstored(n)
	if f == nil {
		return
	}
	f.mu.Lock()
	seq := f.seq
	f.mu.Unlock()
	if seq == 0 { // else a claim was faster
		seq, err = subjects.ParsePubAck(m)
	}
	f.stored(n, seq, err)
}

// stored notes the sequence of a request's message, or why there is none.
func (f *flight) stored(number, seq uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.number != number {
		return
	}
	f.number = 0
	switch {
	case err == nil:
		f.seq = seq
	case f.seq == 0: // no claim has told it
		f.unstored = err
		f.wake()
	}
	f.toldLocked()
}

// toldLocked ends an await.
func (f *flight) toldLocked() {
	if f.word != nil {
		close(f.word)
		f.word = nil
	}
}

// await waits for the broker's word on a request's message, or a claim, even for
// a client that is gone by now: only that tells which message to take back. Most
// often it has come long since. It returns 0 if there is none by till, or in
// time for such words.
func (g *Gateway) await(ctx context.Context, f *flight, till time.Time) (seq uint64) {
	f.mu.Lock()
	if f.number == 0 || f.seq > 0 {
		defer f.mu.Unlock()
		return f.seq
	}
	word := make(chan struct{})
	f.word = word
	f.mu.Unlock()
	if late := f.sent.Add(wordLate); late.Before(till) {
		till = late
	}
	late := time.NewTimer(time.Until(till))
	defer late.Stop()
	select {
	case <-word:
	case <-late.C:
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seq
}

// noWord says that the broker's word is late.
func (f *flight) noWord(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.number != 0 && f.seq == 0 && now.Sub(f.sent) >= wordLate
}

// persist sends a request's message that the broker did not take, until it does.
func (g *Gateway) persist(ctx context.Context, f *flight, err error) error {
	patience := f.sent.Add(publishPatience)
	for {
		if _, queued := f.queued(); !queued { // it was there after all
			return nil
		}
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !now.Before(f.until):
			return errDeadline
		}
		if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.ErrorCode == subjects.StreamFull {
			return g.full(f.at(), "the broker's queue is full")
		}
		if now.After(patience) {
			g.log.Error("request not published", "id", f.req.ID, "err", err)
			return api.Unavailable("queue_unavailable", 5*time.Second, "the request queue cannot be reached")
		}
		select {
		case <-ctx.Done():
			continue
		case <-time.After(min(publishAgain, time.Until(f.until))):
		}
		if _, queued := f.queued(); !queued || !time.Now().Before(f.until) {
			continue
		}
		if err := g.send(f); err != nil {
			return err
		}
		if g.await(ctx, f, f.until) > 0 {
			return nil
		}
		f.mu.Lock()
		err, f.unstored = f.unstored, nil
		f.mu.Unlock()
		if err == nil {
			err = errNoWord
		}
	}
}

// takeBack takes a request's message off its queue. If it was delivered
// meanwhile, the worker's claim is refused.
func (g *Gateway) takeBack(f *flight, stream string, seq uint64) {
	if there, err := g.holds(context.Background(), f, stream, seq); err != nil || !there {
		return // a claim or its TTL will find it
	}
	g.nc.Publish(subjects.DeleteMsg(stream), fmt.Appendf(nil, `{"seq":%d,"no_erase":true}`, seq))
}

// holds says whether a queue still has a request's message. A sequence alone
// does not tell: a broker that lost a stream in memory counts from 1 again.
func (g *Gateway) holds(ctx context.Context, f *flight, stream string, seq uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	m, err := g.nc.RequestWithContext(ctx, subjects.DirectGet(stream), fmt.Appendf(nil, `{"seq":%d}`, seq))
	if err != nil {
		return false, fmt.Errorf("look for message %d: %w", seq, err)
	}
	return m.Header.Get("Status") == "" && strings.HasPrefix(m.Header.Get(subjects.HeaderMsgID), f.req.ID.String()), nil
}

// handBack puts a request whose attempt failed to the front of its queue. If the
// broker lost the message, it is published again.
func (g *Gateway) handBack(ctx context.Context, f *flight, ack string, delay time.Duration) error {
	f.mu.Lock()
	seq := f.seq
	f.mu.Unlock()
	if d, err := subjects.ParseAck(ack); err == nil && d.StreamSeq == seq {
		if there, err := g.holds(ctx, f, d.Stream, seq); err == nil && there {
			return g.nc.Publish(ack, subjects.NakAfter(delay))
		}
	}
	return g.publish(f)
}
