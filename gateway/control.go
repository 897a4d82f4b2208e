package gateway

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/subjects"
)

// respond answers an operator's request.
func respond(m *nats.Msg, v any) {
	m.Respond(subjects.MustMarshal(v))
}

// asked is the request that an operator asks about, if it is here.
func (g *Gateway) asked(m *nats.Msg) (*flight, subjects.RequestQuery) {
	var q subjects.RequestQuery
	if subjects.Unmarshal(m.Data, &q) != nil {
		return nil, q
	}
	id, err := subjects.ParseID(q.ID)
	if err != nil {
		return nil, q
	}
	return g.requests.find(id), q
}

// tellRequest answers `pulley request info`.
func (g *Gateway) tellRequest(m *nats.Msg) {
	f, q := g.asked(m)
	if f == nil {
		return
	}
	d := subjects.RequestDetail{
		RequestInfo: f.info(g.id, time.Now()), Deadline: time.UnixMilli(f.req.Deadline),
		InputTokens: f.req.InputTokens, BodySize: f.req.BodySize, Header: f.req.Header, Lane: f.at().lane,
	}
	f.mu.Lock()
	d.Failures, d.Refusals = f.history.Failures, f.history.Refusals
	if q.Body {
		d.Body = f.body[:min(int64(len(f.body)), g.nc.MaxPayload()/2)] // as base64 it is a third longer
	}
	f.mu.Unlock()
	respond(m, d)
}

// doCancel carries out `pulley request cancel`.
func (g *Gateway) doCancel(m *nats.Msg) {
	f, q := g.asked(m)
	if f == nil {
		return
	}
	g.log.Info("request cancelled by an operator", "id", f.req.ID, "by", q.By)
	f.order(api.Unavailable("cancelled_by_operator", 0, "an operator cancelled the request"))
	respond(m, subjects.Outcome{From: g.id, Count: 1})
}

// doPurge carries out `pulley queue purge`.
func (g *Gateway) doPurge(m *nats.Msg) {
	var o subjects.PurgeOrder
	if subjects.Unmarshal(m.Data, &o) != nil || o.Pool == "" {
		respond(m, subjects.Outcome{From: g.id, Error: "the order names no pool"})
		return
	}
	n := 0
	for _, f := range g.requests.all() {
		if at := f.at(); at.pool != o.Pool || o.Tier != "" && at.tier.Name != o.Tier {
			continue
		}
		if f.purge(api.Unavailable("purged", 5*time.Second, "an operator emptied the queue of %s", api.Quote(o.Pool))) {
			n++
		}
	}
	g.log.Info("queue purged by an operator", "pool", o.Pool, "tier", o.Tier, "requests", n, "by", o.By)
	respond(m, subjects.Outcome{From: g.id, Count: n})
}

// doRetry carries out `pulley dead retry`.
func (g *Gateway) doRetry(m *nats.Msg) {
	var o subjects.RetryOrder
	if subjects.Unmarshal(m.Data, &o) != nil {
		respond(m, subjects.RetryResult{Error: "the order cannot be read"})
		return
	}
	if g.draining.Load() {
		respond(m, subjects.RetryResult{Error: "the gateway stops; try again"})
		return
	}
	g.background.Go(func() {
		result, err := g.retryDead(o)
		if err != nil {
			result.Error = err.Error()
		}
		respond(m, result)
	})
}

// retryDead runs a dead letter again, and removes it if that goes well.
func (g *Gateway) retryDead(o subjects.RetryOrder) (subjects.RetryResult, error) {
	var result subjects.RetryResult
	ctx, cancel := context.WithTimeout(g.life, 5*time.Second)
	defer cancel()
	dead, err := g.js.Stream(ctx, subjects.DeadStream)
	if err != nil {
		return result, fmt.Errorf("stream %s: %w", subjects.DeadStream, err)
	}
	raw, err := dead.GetMsg(ctx, o.Sequence)
	if err != nil {
		return result, fmt.Errorf("dead letter %d: %w", o.Sequence, err)
	}
	req, err := subjects.ParseRequest(&nats.Msg{Subject: raw.Subject, Header: raw.Header, Data: raw.Data})
	if err != nil {
		return result, err
	}
	if req.BodySize != int64(len(raw.Data)) {
		return result, fmt.Errorf("dead letter %d: its body of %d bytes was too large to keep", o.Sequence, req.BodySize)
	}
	tier, ok := g.rules.Load().tiers[req.Tier]
	if !ok {
		tier = g.rules.Load().Policy.Lowest()
	}
	now, timeout := time.Now(), time.Duration(tier.Deadline)
	req.ID, req.Gateway, req.Deadline, req.ByReference = subjects.NewID(), g.id, now.Add(timeout).UnixMilli(), false
	if err := g.fit(req, raw.Data); err != nil {
		return result, err
	}
	at := place{pool: req.Pool, tier: tier, lane: subjects.Shared, queue: g.queues.get(req.Pool, tier.Name)}
	who := &caller{tenant: req.Tenant}
	if err := g.enter(&at, who, timeout, now); err != nil {
		return result, err
	}
	f := newFlight(req, at, raw.Data, now, timeout)
	f.caller, f.cost = who, req.InputTokens
	g.log.Info("dead letter runs again", "seq", o.Sequence, "id", req.ID, "by", o.By)
	s, err := g.unattended(f, int(g.nc.MaxPayload()/2))
	result.Status, result.Body = s.status, s.body
	if err != nil {
		e := api.AsError(err)
		result.Status = e.Status
		return result, e
	}
	if s.status < http.StatusBadRequest {
		if err := dead.DeleteMsg(context.WithoutCancel(ctx), o.Sequence); err != nil {
			return result, fmt.Errorf("answered, but not removed: %w", err)
		}
	}
	return result, nil
}
