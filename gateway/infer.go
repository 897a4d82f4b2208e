package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// infer carries one request: read, admit, publish, and write what comes back.
func (g *Gateway) infer(w http.ResponseWriter, r *http.Request, id subjects.ID) error {
	arrived := time.Now()
	body, hold, err := g.readBody(w, r)
	if err != nil {
		return err
	}
	defer g.bodies.give(hold)
	f, timeout, err := g.admit(r, id, body, arrived)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), timeout, errDeadline)
	defer cancel()
	g.mu.Lock()
	g.flights[id] = f
	g.mu.Unlock()
	ans := newAnswer(g, w, r, f)
	defer g.land(f, ans)

	if err := g.publish(ctx, f); err != nil {
		return ans.refuse(g.ended(ctx, f, err))
	}
	return g.follow(ctx, f, ans)
}

// admit makes a flight of a request, or says why it may not join its queue.
func (g *Gateway) admit(r *http.Request, id subjects.ID, body []byte, now time.Time) (*flight, time.Duration, error) {
	c, err := scan(r, body)
	if err != nil {
		return nil, 0, err
	}
	tier, ok := policy.TierFor(c.tier, g.cfg.Tiers)
	if !ok {
		return nil, 0, badRequest("service_tier", "no service tier %s: there are %s", quote(c.tier), strings.Join(g.tierNames(), ", "))
	}
	timeout, err := deadline(r.Header, tier.Deadline, g.cfg.MaxDeadline)
	if err != nil {
		return nil, 0, err
	}
	if !g.fleet.known(c.model) {
		return nil, 0, g.unknownModel(c.model)
	}
	req := &subjects.Request{
		ID: id, Gateway: g.id, Tier: tier.Name, Model: c.model, Pool: c.model,
		Deadline: now.Add(timeout).UnixMilli(), Method: r.Method, Path: requestURI(r.URL),
		Header: forEngine(r.Header, id), Stream: c.stream, InputTokens: max(len(body)/4, 1),
		MaxAttempts: tier.MaxAttempts, BodySize: int64(len(body)),
	}
	if err := g.fit(req, body); err != nil {
		return nil, 0, err
	}
	q := g.queue(c.model, tier.Name)
	view, admission := q.enter(tier, timeout, g.fleet.slots(c.model), now)
	switch admission {
	case policy.Full:
		return nil, 0, g.full(c.model, tier.Name, q, fmt.Sprintf("%d requests wait", view.Waiting))
	case policy.TooLate:
		g.metrics.refused(c.model, tier.Name, "too_late")
		return nil, 0, &Error{Status: http.StatusTooManyRequests, Code: "deadline_unreachable", RetryAfter: view.RetryAfter(),
			Message: fmt.Sprintf("the queue of %s (tier %s) would take about %v, longer than the request's deadline of %v", quote(c.model), tier.Name, view.Wait().Round(time.Second), timeout)}
	}
	return newFlight(req, tier, q, body, now), timeout, nil
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
			return &Error{Status: http.StatusRequestHeaderFieldsTooLarge, Code: "headers_too_large",
				Message: "the request's headers are larger than the broker takes"}
		}
	}
	req.ByReference = size > g.cfg.InlineBody || size > most/2 || meta+size > most
	return nil
}

func (g *Gateway) tierNames() []string {
	var names []string
	for _, t := range g.cfg.Tiers {
		names = append(names, t.Name)
	}
	return names
}

func (g *Gateway) unknownModel(model string) *Error {
	there := g.fleet.models()
	e := &Error{Status: http.StatusNotFound, Code: "model_not_found", Param: "model"}
	switch {
	case len(there) == 0:
		e.Message = fmt.Sprintf("The model %s does not exist; no worker serves any model now.", quote(model))
	case len(there) > 20:
		e.Message = fmt.Sprintf("The model %s does not exist; there are %s and %d more.", quote(model), strings.Join(there[:20], ", "), len(there)-20)
	default:
		e.Message = fmt.Sprintf("The model %s does not exist; there are: %s.", quote(model), strings.Join(there, ", "))
	}
	return e
}

func (g *Gateway) full(pool, tier string, q *queue, why string) *Error {
	g.metrics.refused(pool, tier, "full")
	q.mu.Lock()
	now := time.Now()
	retry := policy.Queue{Waiting: q.waitingLocked(now), Drain: q.drain.Per(now)}.RetryAfter()
	q.mu.Unlock()
	return &Error{Status: http.StatusTooManyRequests, Code: "queue_full", RetryAfter: retry,
		Message: fmt.Sprintf("the queue of %s (tier %s) is full: %s", quote(pool), tier, why)}
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
			return 0, badRequest("x-request-timeout", "x-request-timeout %s: want seconds, such as 30, or a duration, such as 1m30s", quote(v))
		}
		return min(d, most), nil
	}
	if secs, err := strconv.ParseFloat(h.Get("X-Stainless-Read-Timeout"), 64); err == nil && secs > 0 && secs < 1e9 {
		return min(time.Duration(secs*float64(time.Second)), most), nil
	}
	return min(fallback, most), nil
}

// notForEngine are request headers that end here: of one connection, of the
// gateway's own trust, or meant for us.
var notForEngine = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"Host", "Content-Length", "Accept-Encoding", "Expect",
	"Authorization", "X-Api-Key", "Api-Key", "Cookie", "Origin", "Referer", "X-Request-Timeout",
}

func forEngine(h http.Header, id subjects.ID) http.Header {
	out := make(http.Header, len(h))
	for k, v := range h {
		if !slices.Contains(notForEngine, k) && !strings.HasPrefix(k, "Nats-") && !strings.HasPrefix(k, "X-Pulley-") && !strings.HasPrefix(k, "Sec-") {
			out[k] = v
		}
	}
	for _, named := range h["Connection"] {
		for name := range strings.SplitSeq(named, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	out["X-Request-Id"] = []string{id.String()}
	return out
}

// requestURI is the path with the query, as it came. A query may hold bytes that
// are no UTF-8 and that no JSON holds: these are escaped.
func requestURI(u *url.URL) string {
	uri := u.RequestURI()
	if utf8.ValidString(uri) {
		return uri
	}
	var b strings.Builder
	for i := range len(uri) {
		if c := uri[i]; c < utf8.RuneSelf {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

const (
	// lookAfter is how often a waiting request looks whether anybody could serve it.
	lookAfter = time.Second

	// lookInQueue is how often it looks whether the queue still has it.
	lookInQueue = 15 * time.Second
)

// follow writes what comes back, until the answer ends or the client does.
func (g *Gateway) follow(ctx context.Context, f *flight, ans *answer) error {
	quiet := time.NewTimer(g.cfg.KeepAlive)
	defer quiet.Stop()
	moved := time.Now() // when something last came
	look := time.NewTimer(lookAfter)
	defer look.Stop()
	for {
		select {
		case <-f.notify:
			done, err := g.progress(ctx, f, ans)
			if done || err != nil {
				return err
			}
			if ans.got == nil { // it waits again
				look.Reset(lookAfter)
			}
			moved = time.Now()
		case <-ctx.Done():
			return ans.refuse(g.ended(ctx, f, ctx.Err()))
		case <-quiet.C:
			if d := time.Since(moved); d < g.cfg.KeepAlive {
				quiet.Reset(g.cfg.KeepAlive - d)
				continue
			}
			if err := ans.keepAlive(f.queue.waiting(time.Now())); err != nil {
				return err
			}
			quiet.Reset(g.cfg.KeepAlive)
		case <-look.C:
			if _, queued := f.queued(); !queued {
				continue // should the attempt fail, it looks again
			}
			if since := g.fleet.emptySince(f.req.Pool); !since.IsZero() {
				now := time.Now()
				if now.Sub(since) > g.cfg.NoWorkerWait && now.Sub(f.arrived) > g.cfg.NoWorkerWait {
					return ans.refuse(unavailable("no_worker", 10*time.Second, "no worker serves %s", quote(f.req.Model)))
				}
			}
			if err := g.stillQueued(ctx, f); err != nil {
				return ans.refuse(g.ended(ctx, f, err))
			}
			look.Reset(lookAfter)
		}
	}
}

// stillQueued publishes a request again that waits for long and that the
// queue, against its word, no longer has.
func (g *Gateway) stillQueued(ctx context.Context, f *flight) error {
	now := time.Now()
	if now.Sub(f.inQueue) < lookInQueue {
		return nil
	}
	f.inQueue = now
	seq, queued := f.queued()
	if !queued {
		return nil
	}
	there, err := g.holds(ctx, f, seq)
	if there || err != nil {
		return nil // not knowing is no reason to run it twice
	}
	g.log.Warn("the queue lost a request; publishing it again", "id", f.req.ID)
	return g.publish(ctx, f)
}

// progress handles what has come. It says whether the answer has ended.
func (g *Gateway) progress(ctx context.Context, f *flight, ans *answer) (done bool, err error) {
	events := f.take()
	for i, ev := range events {
		switch ev.kind {
		case subjects.KindHead:
			err = ans.head(ev.payload)
		case subjects.KindData:
			err = ans.data(ev.payload, i == len(events)-1)
		case subjects.KindEnd:
			return true, ans.end(ev.payload)
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
	fail := ev.fail
	if fail == nil {
		if fail, err = subjects.ParseFail(ev.payload); err != nil {
			return true, ans.refuse(errMalformed)
		}
	}
	f.mu.Lock()
	a := f.current
	elapsed := time.Since(a.began)
	f.mu.Unlock()
	g.metrics.attemptFailed(f.req.Pool, string(fail.Class), ev.crashed)
	g.log.Info("attempt failed", "id", f.req.ID, "attempt", a.number, "worker", a.name, "class", fail.Class, "crashed", ev.crashed, "reason", fail.Reason, "after", elapsed)
	if ans.begun {
		return true, ans.refuse(&Error{Status: http.StatusBadGateway, Code: "upstream_lost", Message: "the answer broke off: " + fail.Reason})
	}
	next, why := g.judge(f, a, fail, ev.crashed)
	switch next {
	case policy.Again:
		ans.reset()
		f.mu.Lock()
		f.current = nil
		f.mu.Unlock()
		f.queue.back()
		if ev.crashed || fail.Class == subjects.FailTruncated || fail.Class == subjects.FailStalled {
			g.cancelAttempt(a.worker, f.req.ID, a.mark, "failed over") // should it still run
		}
		if err := g.handBack(ctx, f, a.ack, g.retryDelay(f)); err != nil {
			return true, ans.refuse(g.ended(ctx, f, err))
		}
		return false, nil
	case policy.GiveBack:
		return true, ans.giveBack(fail)
	}
	g.bury(f, fmt.Sprintf("%s; last: %s", why, fail.Reason))
	return true, ans.refuse(&Error{Status: http.StatusBadGateway, Code: "dead_lettered", NoRetry: f.history.Crashes > 1,
		Message: fmt.Sprintf("%s after %d attempts; last: %s", why, a.number, fail.Reason)})
}

// retryDelay is none while there is another worker to try, else a moment for
// the one to recover.
func (g *Gateway) retryDelay(f *flight) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if live, _ := g.fleet.others(f.req.Pool, time.Now(), f.failed, f.refused); live > 0 {
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
		live, _ := g.fleet.others(f.req.Pool, time.Now(), f.refused)
		h.AllRefused = live == 0
	}
	return h.After()
}

// bury keeps a request that no worker could answer, for the operator.
func (g *Gateway) bury(f *flight, reason string) {
	m, err := f.req.Msg(subjects.Shared, f.body, 0)
	if err != nil {
		g.log.Error("dead letter", "id", f.req.ID, "err", err)
		return
	}
	m.Subject = subjects.Dead(f.req.Tier, f.req.Pool)
	m.Header.Set(subjects.HeaderReason, reason)
	if int64(m.Size())+1024 > g.nc.MaxPayload() {
		m.Data = nil // the body is too large to keep
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if _, err := g.js.PublishMsg(ctx, m); err != nil {
		g.log.Error("dead letter", "id", f.req.ID, "err", err)
	}
	g.log.Warn("request dead-lettered", "id", f.req.ID, "pool", f.req.Pool, "reason", reason)
}

// ended turns the end of a request's context into the client's words.
func (g *Gateway) ended(ctx context.Context, f *flight, err error) error {
	if _, ok := errors.AsType[*Error](err); ok || ctx.Err() == nil {
		return err
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errDeadline):
		_, queued := f.queued()
		where := "it was running"
		if queued {
			where = "it waited for a worker"
		}
		return &Error{Status: http.StatusGatewayTimeout, Code: "deadline_exceeded",
			Message: fmt.Sprintf("the request's deadline of %v passed while %s", time.UnixMilli(f.req.Deadline).Sub(f.arrived).Round(time.Millisecond), where)}
	case errors.Is(cause, errStopping):
		return unavailable("gateway_stopping", time.Second, "the gateway stops")
	}
	return errClientGone
}

// errClientGone ends a request whose client went away. It is an outcome of its
// own, 499 in the log, and no failure.
var errClientGone = errors.New("client gone")

// land ends a flight: whatever still waits or runs for it is stopped.
func (g *Gateway) land(f *flight, ans *answer) {
	g.mu.Lock()
	delete(g.flights, f.req.ID)
	g.mu.Unlock()
	f.mu.Lock()
	f.over = true
	a, seq := f.current, f.seq
	f.body, f.events = nil, nil
	f.mu.Unlock()
	switch {
	case a == nil:
		f.queue.leave(false, time.Now())
		if seq > 0 {
			g.takeBack(f, seq)
		}
	case ans.whole:
		g.nc.Publish(a.ack, subjects.Ack)
		f.queue.serve(time.Since(a.began))
	default:
		g.cancelAttempt(a.worker, f.req.ID, a.mark, "over")
		g.nc.Publish(a.ack, subjects.Term("over"))
	}
	g.metrics.done(f, ans)
}
