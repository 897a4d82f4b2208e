package gateway

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/subjects"
)

// control answers the questions and carries out the orders of operators that come over the broker.
type control struct {
	bus       *bus
	requests  *requests
	fleet     *fleet
	queues    *queues
	admission *admission
	history   *history
	server    *server
	reports   *reports
	draining  *atomic.Bool
}

func (c *control) respond(m *nats.Msg, v any) { c.bus.respond(m, subjects.MustMarshal(v)) }

// onAskRequests answers `pulley request ls`.
func (c *control) onAskRequests(m *nats.Msg) {
	now := time.Now()
	list := make([]subjects.RequestInfo, 0, 16)
	for _, r := range c.requests.all() {
		list = append(list, r.info(c.bus.id, now))
	}
	slices.SortFunc(list, func(a, b subjects.RequestInfo) int { return strings.Compare(a.ID, b.ID) })
	respondList(c.bus, m, list, nil)
}

// onAskWorkers answers `pulley worker ls`.
func (c *control) onAskWorkers(m *nats.Msg) {
	respondList(c.bus, m, c.fleet.heartbeats(), nats.Header{subjects.HeaderReport: {string(subjects.MustMarshal(c.reports.report(time.Now())))}})
}

// onAskResults answers `pulley top`.
func (c *control) onAskResults(m *nats.Msg) {
	list := []subjects.PoolResults{}
	for pool, p := range c.history.recent(time.Now()) {
		list = append(list, subjects.PoolResults{Pool: pool, Answered: p.Answered, Failed: p.Failed, Refused: p.Refused, Cancelled: p.Cancelled, Times: p.Times})
	}
	respondList(c.bus, m, list, nil)
}

// respondList sends a list in as many messages as it takes, then an empty one with the headers.
func respondList[T any](b *bus, m *nats.Msg, list []T, end nats.Header) {
	for each := 100; len(list) > 0; {
		each = min(each, len(list))
		body := subjects.MustMarshal(list[:each])
		if int64(len(body)) > b.nc.MaxPayload() && each > 1 { // workers with many GPUs are long
			each /= 2
			continue
		}
		b.respond(m, body)
		list = list[each:]
	}
	b.respondWith(m, nil, end)
}

// asked returns the request that a query is about; nil if it is not here.
func (c *control) asked(m *nats.Msg) (*request, subjects.RequestQuery) {
	var q subjects.RequestQuery
	if subjects.Unmarshal(m.Data, &q) != nil {
		return nil, q
	}
	id, _ := subjects.ParseID(q.ID) // no request has the id that a malformed one becomes
	return c.requests.find(id), q
}

// onAskRequest answers `pulley request info`.
func (c *control) onAskRequest(m *nats.Msg) {
	r, q := c.asked(m)
	if r == nil {
		return
	}
	d := r.detail(c.bus.id, time.Now())
	if q.Body {
		body := r.piece(0)
		d.Body = body[:min(int64(len(body)), c.bus.nc.MaxPayload()/2)] // base64 makes it a third longer
	}
	c.respond(m, d)
}

// operator is who has given an order.
func operator(by string) string { return cmp.Or(by, "an operator") }

// onCancel carries out `pulley request cancel`.
func (c *control) onCancel(m *nats.Msg) {
	r, q := c.asked(m)
	if r == nil {
		return
	}
	c.bus.log.Info("request cancelled by an operator", "id", r.wire.ID, "by", q.By)
	at := r.target.Load()
	c.bus.event(subjects.Event{
		Kind: subjects.EventCancel, Pool: at.queue.pool, Tier: at.tier.Name, Request: r.wire.ID.String(),
		Text: fmt.Sprintf("request %v in %s (tier %s) was cancelled by %s", r.wire.ID, at.queue.pool, at.tier.Name, operator(q.By)),
	})
	r.cancel(api.Unavailable("cancelled_by_operator", 0, "an operator cancelled the request"))
	c.respond(m, subjects.Outcome{From: c.bus.id, Count: 1})
}

// onPurge carries out `pulley queue purge`.
func (c *control) onPurge(m *nats.Msg) {
	var o subjects.PurgeOrder
	if subjects.Unmarshal(m.Data, &o) != nil || o.Pool == "" {
		c.respond(m, subjects.Outcome{From: c.bus.id, Error: "the order names no pool"})
		return
	}
	n := 0
	for _, r := range c.requests.all() {
		if at := r.target.Load(); at.queue.pool != o.Pool || o.Tier != "" && at.tier.Name != o.Tier {
			continue
		}
		if r.cancelWaiting(api.Unavailable("purged", 5*time.Second, "an operator purged the queue of %s", api.Quote(o.Pool))) {
			n++
		}
	}
	c.bus.log.Info("queue purged by an operator", "pool", o.Pool, "tier", o.Tier, "requests", n, "by", o.By)
	if n > 0 {
		where := o.Pool
		if o.Tier != "" {
			where += fmt.Sprintf(" (tier %s)", o.Tier)
		}
		c.bus.event(subjects.Event{
			Kind: subjects.EventCancel, Pool: o.Pool, Tier: o.Tier,
			Text: fmt.Sprintf("the requests that waited in %s were cancelled by %s", where, operator(o.By)),
		})
	}
	c.respond(m, subjects.Outcome{From: c.bus.id, Count: n})
}

// onRetry carries out `pulley dead retry`.
func (c *control) onRetry(m *nats.Msg) {
	var o subjects.RetryOrder
	if subjects.Unmarshal(m.Data, &o) != nil {
		c.respond(m, subjects.RetryResult{Error: "the order cannot be read"})
		return
	}
	if c.draining.Load() {
		c.respond(m, subjects.RetryResult{Error: "the gateway is shutting down; try again"})
		return
	}
	c.server.background.Go(func() {
		result, err := c.retryDead(o)
		if err != nil {
			result.Error = plain.Error(err)
		}
		c.respond(m, result)
	})
}

// retryDead runs a dead letter again, and removes it if that succeeds.
func (c *control) retryDead(o subjects.RetryOrder) (subjects.RetryResult, error) {
	var result subjects.RetryResult
	ctx, cancel := context.WithTimeout(c.server.background.ctx, 5*time.Second)
	defer cancel()
	dead, err := c.bus.js.Stream(ctx, subjects.DeadStream)
	if err != nil {
		return result, fmt.Errorf("stream %s: %w", subjects.DeadStream, err)
	}
	raw, err := dead.GetMsg(ctx, o.Sequence)
	if err != nil {
		return result, fmt.Errorf("dead letter %d: %w", o.Sequence, err)
	}
	wire, err := subjects.ParseRequest(&nats.Msg{Subject: raw.Subject, Header: raw.Header, Data: raw.Data})
	if err != nil {
		return result, err
	}
	if wire.BodySize != int64(len(raw.Data)) {
		return result, fmt.Errorf("dead letter %d: its body of %d bytes was too large to keep", o.Sequence, wire.BodySize)
	}
	r, err := c.enterAgain(wire, raw.Data)
	if err != nil {
		return result, err
	}
	c.bus.log.Info("dead letter runs again", "seq", o.Sequence, "id", wire.ID, "by", o.By)
	w, err := c.server.serveUnattended(r, int(c.bus.nc.MaxPayload()/2))
	result.Status, result.Body = w.status, w.body
	if err != nil {
		e := api.AsError(err)
		result.Status = e.Status
		return result, e
	}
	if w.status < http.StatusBadRequest {
		if err := dead.DeleteMsg(context.WithoutCancel(ctx), o.Sequence); err != nil {
			return result, fmt.Errorf("answered, but the dead letter was not removed: %w", err)
		}
	}
	if w.status >= http.StatusInternalServerError {
		return result, fmt.Errorf("the engine answered %d", w.status)
	}
	return result, nil
}

// enterAgain lets the request of a dead letter into its queue, under an id of its own.
func (c *control) enterAgain(wire *subjects.Request, body []byte) (*request, error) {
	rules := c.bus.rules.Load()
	tier, ok := rules.tiers[wire.Tier]
	if !ok {
		tier = rules.Policy.Lowest()
	}
	now := time.Now()
	patience, err := patienceOf(nil, wire.Stream, time.Duration(tier.Deadline), c.admission.cfg.MaxDeadline)
	if err != nil {
		return nil, err
	}
	deadline := now.Add(patience.silence)
	wire.ID, wire.Gateway, wire.Deadline, wire.ByReference = subjects.NewID(), c.bus.id, deadline.UnixMilli(), false
	if err := c.admission.fit(wire, body); err != nil {
		return nil, err
	}
	return c.admission.enter(&spec{
		wire: wire, api: api.Of(wire.Path), caller: &caller{tenant: wire.Tenant}, cost: wire.InputTokens, unattended: true,
		arrived: now, deadline: deadline, patience: patience,
		admitted: target{queue: c.queues.get(wire.Pool, tier.Name), tier: tier, lane: subjects.Shared},
	}, body)
}
