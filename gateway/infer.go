package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// infer carries one request: who asks, what for, where to, whether it may, and
// then what comes back.
func (g *Gateway) infer(w http.ResponseWriter, r *http.Request, id subjects.ID) error {
	arrived := time.Now()
	who, err := g.keys.authenticate(r.Header, arrived)
	if err != nil {
		return err
	}
	body, hold, err := g.readBody(w, r)
	if err != nil {
		return err
	}
	defer func() { g.bodies.give(hold) }()
	f, timeout, err := g.admit(w.Header(), r, id, who, body, arrived)
	if err != nil {
		return err
	}
	g.mirror(f, timeout)
	return g.carry(w, r, f)
}

// carry takes an admitted request to its end.
func (g *Gateway) carry(w http.ResponseWriter, r *http.Request, f *flight) error {
	ctx := r.Context()
	g.requests.add(f)
	ans := newAnswer(g, w, r, f)
	defer g.land(f, ans)

	if err := g.queueUp(f); err != nil {
		return ans.refuse(g.ended(ctx, f, err))
	}
	return g.follow(ctx, f, ans)
}

// admit makes a flight of a request, or says why it may not join its queue.
func (g *Gateway) admit(out http.Header, r *http.Request, id subjects.ID, who *caller, body []byte, now time.Time) (*flight, time.Duration, error) {
	c, err := api.Scan(r, body)
	if err != nil {
		return nil, 0, err
	}
	rules := g.rules.Load()
	tier, err := g.tierFor(rules, who, &c, r.Header)
	if err != nil {
		return nil, 0, err
	}
	if who.key != nil && !who.key.AllowsModel(c.Model) {
		return nil, 0, &api.Error{Status: http.StatusForbidden, Code: "model_not_allowed", Param: "model",
			Message: fmt.Sprintf("the key may not ask for the model %s", api.Quote(c.Model))}
	}
	timeout, err := deadline(r.Header, time.Duration(tier.Deadline), g.cfg.MaxDeadline)
	if err != nil {
		return nil, 0, err
	}
	way := g.findWay(rules, &c, who, r.Header, now)
	if _, known := g.fleet.pool(c.Model); way.route == nil && !known {
		return nil, 0, g.unknownModel(c.Model)
	}
	served := api.Edits{Tier: servedAs(c.Tier, tier.Name)}
	if way.route != nil && way.route.RestoreModel {
		served.Model = c.Model
	}
	body = c.WithEngineTier(body)
	req := &subjects.Request{
		ID: id, Gateway: g.id, Tenant: who.tenant, Tier: tier.Name, Model: c.Model, ModelAt: c.ModelAt, Pool: way.pool,
		Deadline: now.Add(timeout).UnixMilli(), Method: r.Method, Path: api.RequestURI(r.URL),
		Header: forEngine(r.Header, out["X-Request-Id"]), Stream: c.Stream, InputTokens: max(len(body)/4, 1),
		BodySize: int64(len(body)),
	}
	if err := g.fit(req, body); err != nil {
		return nil, 0, err
	}
	if err := g.keys.begin(who, req.InputTokens, out, now); err != nil {
		return nil, 0, err
	}
	at := place{pool: way.pool, tier: tier, lane: way.lane, queue: g.queues.get(way.pool, tier.Name)}
	if err := g.enter(&at, who, timeout, now); err != nil {
		g.keys.end(who, req.InputTokens, 0, now)
		return nil, 0, err
	}
	f := newFlight(req, at, body, now, timeout)
	f.caller, f.route, f.routed, f.home, f.edits = who, way.route, way.name, way.learn, served
	f.cost = req.InputTokens + min(cmp.Or(c.MaxTokens, usualOutput), mostOutput)
	return f, timeout, nil
}

// What a request's answer counts in its tenant's turn: what it allows, or about
// the mean of production traffic, and never so much that one turn takes long.
const (
	usualOutput = 256
	mostOutput  = 4096
)

// enter lets a request into its queue, or says why not.
func (g *Gateway) enter(at *place, who *caller, timeout time.Duration, now time.Time) error {
	left := timeout
	if at.tier.MaxWait > 0 {
		left = min(left, time.Duration(at.tier.MaxWait))
	}
	pool, _ := g.fleet.pool(at.pool)
	join, view, admission := at.queue.admit(candidate{
		tier: at.tier, tenant: who.tenant, share: g.keys.queueShare(who, at.tier.MaxQueue), left: left, slots: pool.slots,
	}, now)
	at.join = join
	switch admission {
	case policy.Full:
		return g.full(at, fmt.Sprintf("%d requests wait", view.Waiting))
	case policy.ShareFull:
		return g.full(at, "as many requests of this tenant wait as its key allows")
	case policy.TooLate:
		g.metrics.refused(at.pool, at.tier.Name, "too_late")
		what := fmt.Sprintf("the request's deadline of %v", timeout)
		if left < timeout {
			what = fmt.Sprintf("the %v that tier %s allows", left, at.tier.Name)
		}
		return &api.Error{Status: http.StatusTooManyRequests, Code: "deadline_unreachable", RetryAfter: view.RetryAfter(),
			Message: fmt.Sprintf("the queue of %s (tier %s) would take about %v, longer than %s", api.Quote(at.pool), at.tier.Name, view.Wait().Round(time.Second), what)}
	}
	return nil
}

// tierFor is the tier that serves a request: what it asks for, if its key
// allows that. A header may ask only where there is a key.
func (g *Gateway) tierFor(r *rules, who *caller, c *api.Call, h http.Header) (policy.Tier, error) {
	asked := c.Tier
	if asked == "" && who.key != nil {
		asked = h.Get("X-Service-Tier")
	}
	if who.key != nil && (asked == "" || asked == "auto" || asked == "default") {
		asked = who.key.DefaultTier()
	}
	tier, ok := policy.TierFor(asked, r.Policy.Tiers)
	if !ok {
		return tier, api.BadRequest("service_tier", "no service tier %s: there are %s", api.Quote(asked), strings.Join(tierNames(r.Policy.Tiers), ", "))
	}
	if who.key != nil && !who.key.AllowsTier(tier.Name, r.Policy.Tiers) {
		return tier, &api.Error{Status: http.StatusForbidden, Code: "tier_not_allowed", Param: "service_tier",
			Message: fmt.Sprintf("the key may not ask for the service tier %s", api.Quote(asked))}
	}
	return tier, nil
}

// servedAs is the word for the tier that served a request in the body of its
// answer: the client's own where it named one. "" if it named none.
func servedAs(asked, tier string) string {
	switch {
	case asked == "":
		return ""
	case asked != "auto" && asked != "default":
		return asked
	case tier == policy.DefaultTier:
		return "default"
	}
	return tier
}

func tierNames(tiers []policy.Tier) []string {
	var names []string
	for _, t := range tiers {
		names = append(names, t.Name)
	}
	return names
}

// fit decides whether the body travels in the message.
func (g *Gateway) fit(req *subjects.Request, body []byte) error {
	size, most := int64(len(body)), g.nc.MaxPayload()
	const room = 1 << 10 // for what the protocol adds
	meta := int64(room + 6*(len(req.Path)+len(req.Model)+len(req.Pool)))
	for k, vs := range req.Header {
		for _, v := range vs {
			meta += int64(6*(len(k)+len(v)) + 8) // a byte may become six, such as \u0001
		}
	}
	if meta+size > most { // it matters how much it is exactly
		m, err := req.Msg(subjects.Shared, nil, time.Second)
		if err != nil {
			return err
		}
		if meta = int64(m.Size()) + room; meta > most {
			return &api.Error{Status: http.StatusRequestHeaderFieldsTooLarge, Code: "headers_too_large",
				Message: "the request's headers are larger than the broker takes"}
		}
	}
	req.ByReference = size > g.cfg.InlineBody || size > most/2 || meta+size > most
	return nil
}

func (g *Gateway) unknownModel(model string) *api.Error {
	there := g.Models()
	e := &api.Error{Status: http.StatusNotFound, Code: "model_not_found", Param: "model"}
	switch {
	case len(there) == 0:
		e.Message = fmt.Sprintf("The model %s does not exist; no worker serves any model now.", api.Quote(model))
	case len(there) > 20:
		e.Message = fmt.Sprintf("The model %s does not exist; there are %s and %d more.", api.Quote(model), strings.Join(there[:20], ", "), len(there)-20)
	default:
		e.Message = fmt.Sprintf("The model %s does not exist; there are: %s.", api.Quote(model), strings.Join(there, ", "))
	}
	return e
}

func (g *Gateway) full(at *place, why string) *api.Error {
	g.metrics.refused(at.pool, at.tier.Name, "full")
	retry, event := at.queue.refuse(time.Now())
	if event {
		g.event(subjects.Event{Kind: subjects.EventFull, Pool: at.pool, Tier: at.tier.Name, Text: fmt.Sprintf("the queue of %s (tier %s) is full: %s", at.pool, at.tier.Name, why)})
	}
	return &api.Error{Status: http.StatusTooManyRequests, Code: "queue_full", RetryAfter: retry,
		Message: fmt.Sprintf("the queue of %s (tier %s) is full: %s", api.Quote(at.pool), at.tier.Name, why)}
}

// deadline is what the client gives: x-request-timeout in seconds or as 1m30s,
// else the read timeout that the OpenAI SDKs tell, else the tier's.
func deadline(h http.Header, fallback, most time.Duration) (time.Duration, error) {
	if v := h.Get("X-Request-Timeout"); v != "" {
		d, err := time.ParseDuration(v)
		if secs, ferr := strconv.ParseFloat(v, 64); ferr == nil {
			d, err = time.Duration(min(secs, 1e9)*float64(time.Second)), nil
		}
		if err != nil || d <= 0 {
			return 0, api.BadRequest("x-request-timeout", "x-request-timeout %s: want seconds, such as 30, or a duration, such as 1m30s", api.Quote(v))
		}
		return min(d, most), nil
	}
	if v := h.Get("X-Stainless-Read-Timeout"); v != "" {
		if secs, err := strconv.ParseFloat(v, 64); err == nil && secs > 0 && secs < 1e9 {
			return min(time.Duration(secs*float64(time.Second)), most), nil
		}
	}
	return min(fallback, most), nil
}

// notForEngine are request headers that end here, beside those of one connection:
// of the gateway's own trust, or meant for us.
var notForEngine = []string{
	"Host", "Content-Length", "Accept-Encoding", "Expect",
	"Authorization", "X-Api-Key", "Api-Key", "Cookie", "Origin", "Referer", "X-Request-Timeout",
}

func forEngine(h http.Header, id []string) http.Header {
	out := make(http.Header, len(h))
	for k, v := range h {
		if !slices.Contains(notForEngine, k) && !strings.HasPrefix(k, "Nats-") && !strings.HasPrefix(k, "X-Pulley-") && !strings.HasPrefix(k, "Sec-") {
			out[k] = v
		}
	}
	subjects.EndToEnd(out)
	out["X-Request-Id"] = id
	return out
}

// progress handles what has come. It says whether the answer has ended.
func (g *Gateway) progress(ctx context.Context, f *flight, ans *answer) (done bool, err error) {
	events := f.take()
	for i, ev := range events {
		ev.parse()
		switch ev.Kind {
		case subjects.KindHead:
			err = ans.head(ev.Head)
		case subjects.KindData:
			err = ans.data(ev.Data, i == len(events)-1)
		case subjects.KindEnd:
			return true, ans.end(ev.End)
		case subjects.KindFail:
			return g.failed(ctx, f, ans, ev)
		}
		if err != nil {
			return true, ans.refuse(err)
		}
	}
	return false, nil
}

// failed decides what becomes of a request whose attempt came to nothing.
func (g *Gateway) failed(ctx context.Context, f *flight, ans *answer, ev event) (done bool, err error) {
	fail := ev.Fail
	if fail == nil {
		return true, ans.refuse(errMalformed)
	}
	f.mu.Lock()
	a := f.current
	elapsed := time.Since(a.began)
	f.mu.Unlock()
	g.metrics.attemptFailed(f.at().pool, string(fail.Class), ev.crashed)
	g.log.Info("attempt failed", "id", f.req.ID, "attempt", a.number, "worker", a.name, "class", fail.Class, "crashed", ev.crashed, "reason", fail.Reason, "after", elapsed)
	g.shifts.failed(f, fail.Class)
	if ans.begun {
		return true, ans.refuse(&api.Error{Status: http.StatusBadGateway, Code: "upstream_lost", Message: "the answer broke off: " + fail.Reason})
	}
	next, why := g.judge(f, a, fail, ev.crashed)
	switch next {
	case policy.Again:
		ans.reset()
		f.mu.Lock()
		f.current = nil
		f.mu.Unlock()
		f.at().queue.requeue(f.at().lane)
		if ev.crashed || fail.Class == subjects.FailTruncated || fail.Class == subjects.FailStalled {
			g.cancelAttempt(a.worker, f.req.ID, a.mark, "failed over") // should it still run
		}
		if err := g.handBack(ctx, f, a.ack, g.retryDelay(f)); err != nil {
			return true, ans.refuse(g.ended(ctx, f, err))
		}
		if at := f.at(); at.lane == a.worker { // nobody else may bid there
			if err := g.move(ctx, f, at.pool, at.tier, subjects.Shared); err != nil {
				return true, ans.refuse(g.ended(ctx, f, err))
			}
		}
		return false, nil
	case policy.GiveBack:
		return true, ans.giveBack(fail)
	}
	g.bury(f, fmt.Sprintf("%s; last: %s", why, fail.Reason))
	return true, ans.refuse(&api.Error{Status: http.StatusBadGateway, Code: "dead_lettered", NoRetry: f.history.Crashes > 1,
		Message: fmt.Sprintf("%s after %d attempts; last: %s", why, a.number, fail.Reason)})
}

// retryDelay is none while there is another worker to try, else a moment for
// the one to recover.
func (g *Gateway) retryDelay(f *flight) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if live, _ := g.fleet.others(f.at().pool, f.avoidLocked()); live > 0 {
		return 0
	}
	return policy.Pause(f.starts, 0)
}

// judge notes a failure in the request's history and asks the policy.
func (g *Gateway) judge(f *flight, a *attempt, fail *subjects.Fail, crashed bool) (policy.Next, string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed == nil {
		f.failed, f.refused = make(map[string]bool), make(map[string]bool)
	}
	h := &f.history
	switch {
	case crashed:
		h.Failures++
		h.Crashes++
		f.failed[a.worker] = true
	case fail.Class == subjects.FailRefused:
		h.Refusals++
		f.refused[a.worker] = true
	case fail.Class == subjects.FailDraining:
		f.refused[a.worker] = true
	default:
		h.Failures++
		f.failed[a.worker] = true
	}
	if fail.Class == subjects.FailRefused {
		live, _ := g.fleet.others(f.at().pool, f.refused)
		h.AllRefused = live == 0
	}
	return h.After()
}

// bury keeps a request that no worker could answer, for the operator.
func (g *Gateway) bury(f *flight, reason string) {
	if f.nobody { // it is one already, or of no consequence
		return
	}
	m, err := f.req.Msg(subjects.Shared, f.body, 0)
	if err != nil {
		g.log.Error("dead letter", "id", f.req.ID, "err", err)
		return
	}
	m.Subject = subjects.Dead(f.at().tier.Name, f.at().pool)
	m.Header.Set(subjects.HeaderReason, reason)
	if int64(m.Size())+1024 > g.nc.MaxPayload() {
		m.Data = nil // the body is too large to keep
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if _, err := g.js.PublishMsg(ctx, m); err != nil {
		g.log.Error("dead letter", "id", f.req.ID, "err", err)
	}
	g.log.Warn("request dead-lettered", "id", f.req.ID, "pool", f.at().pool, "reason", reason)
	g.event(subjects.Event{Kind: subjects.EventDead, Pool: f.at().pool, Tier: f.at().tier.Name, Model: f.req.Model, Tenant: f.req.Tenant, Request: f.req.ID.String(),
		Text: fmt.Sprintf("request %s to %s is a dead letter: %s", f.req.ID, f.at().pool, reason)})
}

// ended puts why a request ended into the client's words.
func (g *Gateway) ended(ctx context.Context, f *flight, err error) error {
	if _, ok := errors.AsType[*api.Error](err); ok {
		return err
	}
	switch {
	case errors.Is(err, errDeadline):
		_, queued := f.queued()
		where := "it was running"
		if queued {
			where = "it waited for a worker"
		}
		return &api.Error{Status: http.StatusGatewayTimeout, Code: "deadline_exceeded",
			Message: fmt.Sprintf("the request's deadline of %v passed while %s", f.until.Sub(f.arrived).Round(time.Millisecond), where)}
	case ctx.Err() == nil:
		return err
	case errors.Is(context.Cause(ctx), errStopping):
		return api.Unavailable("gateway_stopping", time.Second, "the gateway stops")
	}
	return errClientGone
}

// errClientGone ends a request whose client went away. It is an outcome of its
// own, 499 in the log, and no failure.
var errClientGone = errors.New("client gone")

// land ends a flight: whatever still waits or runs for it is stopped.
func (g *Gateway) land(f *flight, ans *answer) {
	g.requests.remove(f)
	f.mu.Lock()
	f.over = true
	a, at := f.current, f.at()
	f.body, f.events, f.taken = nil, nil, nil
	f.mu.Unlock()
	switch {
	case f.ticket != nil:
		at.queue.cancel(f.ticket)
	case a == nil:
		at.queue.withdraw(at.lane)
		g.background.Go(func() { // the client need not wait for the broker
			if seq := g.await(context.Background(), f, f.sent.Add(wordLate)); seq > 0 {
				g.takeBack(f, subjects.ReqStream(at.tier.Name), seq)
			}
			g.forgetWord(f)
		})
	case ans.whole:
		g.nc.Publish(a.ack, subjects.Ack)
		at.queue.observeService(time.Since(a.began))
	default:
		g.cancelAttempt(a.worker, f.req.ID, a.mark, "over")
		g.nc.Publish(a.ack, subjects.Term("over"))
	}
	if f.ticket != nil || a != nil {
		g.forgetWord(f)
	}
	g.keys.end(f.caller, ans.usage.InputTokens, ans.usage.OutputTokens, time.Now())
	g.shifts.observe(f, ans)
	g.metrics.done(f, ans)
}
