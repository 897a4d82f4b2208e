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

	"github.com/pulley-lb/pulley/subjects"
)

const (
	checkStreams    = 5 * time.Second
	streamsAgain    = 500 * time.Millisecond
	publishAgain    = 250 * time.Millisecond
	publishPatience = 15 * time.Second // a broker's leader may be gone for 7 s
)

// keepStreams sees to it that the streams exist, from the start and after a
// broker lost them; what waited in a lost one is published again.
func (g *Gateway) keepStreams(ctx context.Context) {
	status := g.nc.StatusChanged(nats.CONNECTED)
	defer g.nc.RemoveStatusListener(status)
	created := make(map[string]time.Time) // of each tier's stream
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-status:
		case <-g.newPolicy:
		case <-timer.C:
		}
		next := checkStreams
		if err := g.checkStreams(ctx, created); err != nil {
			if ctx.Err() == nil && g.ready.Swap(false) {
				g.log.Warn("queue not available", "err", err)
			}
			next = streamsAgain
		} else if !g.ready.Swap(true) {
			g.log.Info("queue available")
		}
		timer.Reset(next)
	}
}

func (g *Gateway) checkStreams(ctx context.Context, created map[string]time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	lost := len(created) == 0
	for _, t := range g.tiers() {
		s, err := g.js.Stream(ctx, subjects.ReqStream(t.Name))
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			lost = true
		case err != nil:
			return fmt.Errorf("stream of tier %s: %w", t.Name, err)
		case !s.CachedInfo().Created.Equal(created[t.Name]):
			lost = true
		}
	}
	if !lost {
		return nil
	}
	if err := subjects.EnsureStreams(ctx, g.js, g.tiers(), g.cfg.Replicas); err != nil {
		return err
	}
	g.streams.Store(true)
	if err := g.fleet.remember(ctx); err != nil {
		return err
	}
	for _, t := range g.tiers() {
		s, err := g.js.Stream(ctx, subjects.ReqStream(t.Name))
		if err != nil {
			return fmt.Errorf("stream of tier %s: %w", t.Name, err)
		}
		now := s.CachedInfo().Created
		before, known := created[t.Name]
		created[t.Name] = now
		if !known || before.Equal(now) {
			continue
		}
		for _, f := range g.all() {
			if seq, queued := f.queued(); queued && seq > 0 && f.at().tier.Name == t.Name {
				if err := g.publish(ctx, f); err != nil {
					g.log.Warn("request not published again", "id", f.req.ID, "err", err)
				}
			}
		}
	}
	return nil
}

// publish puts a request on its queue and waits until the broker has it. While
// the broker cannot take it, it tries again; the same message id makes that
// safe. It may be called again for a request whose message is lost.
func (g *Gateway) publish(ctx context.Context, f *flight) error {
	f.mu.Lock()
	copies := f.copies
	f.copies++
	f.mu.Unlock()
	left := max(time.Until(time.UnixMilli(f.req.Deadline)), time.Second) // a message without a TTL would stay
	at := f.at()
	req := *f.req
	req.Pool, req.Tier = at.pool, at.tier.Name
	m, err := req.Msg(at.lane, f.body, left)
	if err != nil {
		return err
	}
	if copies > 0 { // the id of the lost one may still be remembered
		m.Header[subjects.HeaderMsgID] = []string{fmt.Sprintf("%s.%d", f.req.ID, copies)}
	}
	patience := time.Now().Add(publishPatience)
	for {
		seq, err := g.tryPublish(m)
		if err == nil {
			f.mu.Lock()
			f.seq = seq
			f.mu.Unlock()
			return nil
		}
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !now.Before(f.until):
			return errDeadline
		}
		if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.ErrorCode == 10077 {
			return g.full(at, "the broker's queue is full")
		}
		if now.After(patience) {
			g.log.Error("request not published", "id", f.req.ID, "err", err)
			return unavailable("queue_unavailable", 5*time.Second, "the request queue cannot be reached")
		}
		select {
		case <-ctx.Done():
		case <-time.After(publishAgain):
		}
	}
}

// tryPublish waits for the broker's word even for a client that is gone by now:
// only that tells which message to take back.
func (g *Gateway) tryPublish(m *nats.Msg) (seq uint64, err error) {
	answer := make(chan *nats.Msg, 1)
	g.mu.Lock()
	g.published++
	number := g.published
	g.unstored[number] = answer
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.unstored, number)
		g.mu.Unlock()
	}()
	m.Reply = subjects.GatewayStored(g.id, number)
	if err := g.nc.PublishMsg(m); err != nil {
		return 0, err
	}
	timeout := time.NewTimer(2 * time.Second)
	defer timeout.Stop()
	select {
	case a := <-answer:
		return subjects.ParseStored(a)
	case <-timeout.C:
		return 0, errors.New("no answer from the stream")
	}
}

// stored hands the broker's word on a message to who published it.
func (g *Gateway) stored(number string, m *nats.Msg) {
	n, err := strconv.ParseUint(number, 16, 64)
	if err != nil {
		return
	}
	g.mu.Lock()
	answer := g.unstored[n]
	delete(g.unstored, n)
	g.mu.Unlock()
	if answer != nil {
		answer <- m
	}
}

// takeBack takes a request's message off its queue. If it was delivered
// meanwhile, the worker's claim is refused.
func (g *Gateway) takeBack(f *flight, stream string, seq uint64) {
	if there, err := g.holds(context.Background(), f, stream, seq); err != nil || !there {
		return // a claim or its TTL will find it
	}
	g.nc.Publish("$JS.API.STREAM.MSG.DELETE."+stream, fmt.Appendf(nil, `{"seq":%d,"no_erase":true}`, seq))
}

// holds says whether a queue still has a request's message. A sequence alone
// does not tell: a broker that lost a stream in memory counts from 1 again.
func (g *Gateway) holds(ctx context.Context, f *flight, stream string, seq uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	m, err := g.nc.RequestWithContext(ctx, "$JS.API.DIRECT.GET."+stream, fmt.Appendf(nil, `{"seq":%d}`, seq))
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
	return g.publish(ctx, f)
}
