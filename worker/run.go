package worker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// grantTimeout bounds the wait for a grant. A gateway that does not know Claim.Confirm does not answer.
	grantTimeout = time.Second

	// askAfter is how long a request may have waited in the stream until the worker asks its gateway before it calls the engine.
	// A broker that restarts, or a consumer's new leader, delivers requests again that run or have ended, and may count that as
	// the first delivery; and for one that has waited that long, the time of an answer is nothing.
	askAfter = time.Second

	// A request for an adapter that the engine does not list is handed back this often, the first time for this long and
	// then longer: another worker may have it. That takes 16 s.
	adapterBounces = 20
	adapterFirst   = 20 * time.Millisecond

	bodyTimeout = 5 * time.Second       // for one piece of a body
	bodyAgain   = 50 * time.Millisecond // after an empty answer; twice as long after each further one, 1.6 s in all

	// maxBodyAtOnce bounds the memory that is allocated for a body before its bytes have come, by the size that the
	// request says.
	maxBodyAtOnce = 64 << 20
)

// receive handles everything that is sent to this worker, in order: answers to bids and claims, cancels, window
// updates, and the broker's answers for gateways that are gone. It never blocks.
func (w *Worker) receive(m *nats.Msg) {
	mine, ok := strings.CutPrefix(m.Subject, subjects.Worker(w.id)+".")
	if !ok { // a delivery keeps the subject that the request was published on
		w.onDelivery(m)
		return
	}
	what, arg, _ := strings.Cut(mine, ".")
	switch what {
	case "bid":
		w.onBidStatus(arg, m)
	case "refused":
		w.onRefusal(arg, m)
	case "gone":
		if m.Header.Get("Status") == "503" {
			w.presence.onNoGateway(arg, time.Now())
		}
	case "got":
		w.links.onAck(arg, m)
	case "direct":
		w.links.onOffer(m)
	case "cancel":
		w.attempts.onCancel(m, w.vitals.latest.Load())
	case "credit":
		w.attempts.onWindow(m)
	case "blame":
		if f, known := w.attempts.onBlame(m); known {
			w.onFailure(f, time.Now())
		}
	case "rival":
		w.who.onRival(m)
	case "call":
		w.cheap.onCall(m)
	}
}

// onDelivery handles a request that answered a bid: it starts an attempt or hands the request back. Deliveries are
// handled one after the other, so that no two take the same slot.
func (w *Worker) onDelivery(m *nats.Msg) {
	d, err := subjects.ParseAck(m.Reply)
	if err != nil {
		w.log.Warn("delivery without an ack subject", "subject", m.Subject, "err", err)
		return
	}
	a := w.accept(m, d, time.Now())
	if a == nil {
		w.bid()
		return
	}
	w.begin(a)
	w.bid()
	w.runners.start(a)
}

// accept returns the attempt that a delivery starts. If it starts none, accept settles it and returns nil.
func (w *Worker) accept(m *nats.Msg, d subjects.Delivery, now time.Time) *attempt {
	t, ok := w.bidder.onDelivery(d, w.load(now), now)
	if !ok {
		w.bid() // at the price of now, before others get the request
		w.nc.Publish(m.Reply, subjects.Nak)
		return nil
	}
	req, err := requestOf(w.cfg.Local, m)
	if err != nil {
		w.log.Warn("request dropped", "err", err)
		w.nc.Publish(m.Reply, subjects.Term("malformed"))
		return nil
	}
	if w.presence.isGone(req.Gateway, now) {
		w.nc.Publish(m.Reply, subjects.Term("gateway gone"))
		return nil
	}
	if after, yes := w.attempts.refuses(req.ID, now); yes && (after > 0 || !w.bidder.alone(d)) {
		w.handBack(m.Reply, after)
		return nil
	}
	if req.AdapterOf == t.model && req.AdapterOf != "" && !w.bidder.alone(d) {
		if listed, _ := w.presence.facts(); listed[req.Model] == nil && d.Delivered <= adapterBounces {
			w.handBack(m.Reply, min(adapterFirst<<(d.Delivered-1), time.Second))
			return nil
		}
	}
	a := newAttempt(m, req, t, now)
	if !w.attempts.begin(a) { // the worker has begun to drain
		w.nc.Publish(m.Reply, subjects.Nak)
		return nil
	}
	return a
}

// requestOf returns the request of a delivery, from its gateway if that is in this process.
func requestOf(gateways *subjects.Local, m *nats.Msg) (*subjects.Request, error) {
	if id, gateway, ok := subjects.Sender(m); ok {
		if gw, ok := gateways.Gateway(gateway); ok {
			if req := gw.Request(id); req != nil {
				return req, nil
			}
		}
	}
	return subjects.ParseRequest(m)
}

// begin adds an attempt to the owners that follow it.
func (w *Worker) begin(a *attempt) {
	w.presence.onRequestOf(a.req.Gateway, a.started)
	w.presence.begin(a.task.source)
	load, beside := w.capacity.begin(&a.slot, a.task.source, a.req.Stream, a.started)
	a.timing = timing{
		pool: w.estimates.pool(a.task.source), spilled: a.task.pool != a.task.source,
		input: float64(a.req.InputTokens), streams: a.req.Stream, started: a.started, beside: beside, load: load,
		most: a.req.MaxOutput,
	}
	awaited, due := w.estimates.begin(&a.timing)
	a.due = due // before awaited, which others wait for
	a.awaited.Store(&awaited)
	a.rank = w.capacity.takeRank()
}

// run carries out an attempt. Its slot is free as soon as the engine is done.
func (w *Worker) run(a *attempt) {
	defer w.attempts.end(a)
	defer a.stop(nil)
	a.out = a.newResponder(w.cfg.Local, w.links)
	w.engine.tracer.begin(a)
	granted := w.claim(a)
	w.engine.tracer.claimed(a, granted)
	if granted {
		w.call(a)
	}
	a.out.Free()
	now := time.Now()
	w.estimates.end(&a.timing, now)
	w.capacity.end(&a.slot, now)
	w.capacity.freeRank(a.rank)
	w.presence.endTrial(a.task.source)
	w.attempts.onFinished(a, now)
	w.bid()
	w.engine.tracer.end(a, now)
	// The gateway settles the delivery, since it decides whether there is another
	// attempt. Without a gateway there is none.
	if errors.Is(context.Cause(a.ctx), errGatewayGone) {
		w.nc.Publish(a.msg.Reply, subjects.Term("gateway gone"))
	}
}

// claim claims the request at its gateway. It reports false if the gateway has refused. Of a gateway in another process
// that is known only for a request that was delivered before, failed here or has waited for long, or if the gateway may be gone:
// for others the engine is called meanwhile.
func (w *Worker) claim(a *attempt) (granted bool) {
	claim := subjects.Claim{ID: a.req.ID, Attempt: a.mark, Worker: w.id, Name: w.cfg.Name, Ack: a.msg.Reply, Rung: a.task.rung}
	if gw, ok := w.cfg.Local.Gateway(a.req.Gateway); ok {
		if r := gw.Claim(claim); r != nil {
			a.stop(errRefused)
			w.settle(r)
			return false
		}
	} else {
		ask := w.attempts.again(a.req.ID) || a.task.again || a.task.waited > askAfter || w.presence.quiet(a.req.Gateway, a.started)
		claim.Confirm = ask && !a.timing.load.waits // waiting for a grant must not look like a load
		body, err := claim.Bytes()
		if err != nil {
			panic(err) // names are UTF-8
		}
		w.links.get(a.req.Gateway).add(subjects.ItemClaim, body, only)
	}
	a.claimed.Store(true) // after the claim: a gateway cancels an attempt that is listed before its claim
	if !claim.Confirm {
		return true
	}
	granted, answered := a.awaitGrant()
	if !answered && w.presence.quiet(a.req.Gateway, time.Now()) { // it may be gone, or this worker hears nobody
		w.fail(a, subjects.Fail{Class: subjects.FailDraining, Reason: "worker " + w.cfg.Name + " does not hear the gateway"})
		w.nc.Publish(a.msg.Reply, subjects.NakAfter(grantTimeout))
		return false
	}
	return granted
}

// awaitGrant waits for the answer to a claim. granted is false if there is nothing more to do, because the gateway has
// refused, has cancelled the request, or is gone; answered is false if none of that was heard in time.
func (a *attempt) awaitGrant() (granted, answered bool) {
	timer := time.NewTimer(grantTimeout)
	defer timer.Stop()
	select {
	case <-a.granted:
	case <-timer.C:
		return true, false
	case <-a.ctx.Done():
		cause := context.Cause(a.ctx)
		return !errors.Is(cause, errRefused) && !errors.Is(cause, errGatewayGone) && !errors.Is(cause, errCancelled), true
	}
	return true, true
}

// onRefusal handles the answer that a claim is refused. A claim that is granted has an answer only if it asked for one. The
// refusal repeats the ack subject, since the attempt may have ended by now.
func (w *Worker) onRefusal(mark string, m *nats.Msg) {
	var r subjects.Refusal
	refused := len(m.Data) > 0 && subjects.Unmarshal(m.Data, &r) == nil
	if n, err := strconv.ParseUint(mark, 16, 64); err == nil {
		if refused && r.Verdict == subjects.Granted {
			w.attempts.onGrant(n)
			return
		}
		w.attempts.onRefusal(n, r.Verdict == subjects.OtherWorker && r.DelayMS > 0, time.Now())
	}
	if refused {
		w.settle(&r)
	}
}

func (w *Worker) settle(r *subjects.Refusal) {
	switch r.Verdict {
	case subjects.Gone:
		w.nc.Publish(r.Ack, subjects.Term("gone"))
	case subjects.OtherWorker:
		w.handBack(r.Ack, time.Duration(r.DelayMS)*time.Millisecond)
	case subjects.Elsewhere: // the message belongs to the other attempt
	}
}

// handBack returns a request to the queue, for another worker. If it may be delivered
// again at once, bids on its lane stop for a moment, so that it does not come back.
func (w *Worker) handBack(ack string, after time.Duration) {
	if d, err := subjects.ParseAck(ack); err == nil && after == 0 {
		w.bidder.rest(d, time.Now())
	}
	w.nc.Publish(ack, subjects.NakAfter(after))
}

func (w *Worker) call(a *attempt) {
	body, err := fetchBody(w.nc, w.id, a)
	path := a.req.Path
	a.body = body
	if a.req.Model != a.task.model {
		listed, _ := w.presence.facts()
		a.adapter = keepsName(a.req, a.task.model, listed)
	}
	if err == nil && !a.adapter {
		path, body, err = api.RenameModel(a.req, body, a.task.model)
	}
	if err != nil {
		w.fail(a, subjects.Fail{Class: subjects.FailBody, Reason: plain.Error(err)})
		return
	}
	r, err := w.engine.request(a, path, body)
	if err != nil {
		w.fail(a, subjects.Fail{Class: subjects.FailEngine, Reason: plain.Error(err)})
		return
	}
	resp, err := w.engine.send(w.cfg.Transport, r)
	if err != nil {
		w.scraper.Look()
		class := subjects.FailEngine
		if engine.Broke(err) {
			class = subjects.FailCrashed
		}
		w.fail(a, subjects.Fail{Class: class, Reason: fmt.Sprintf("engine %s: %s", w.cfg.Name, plain.Error(err))})
		return
	}
	defer resp.Body.Close()
	subjects.EndToEnd(resp.Header)
	head := &subjects.Head{Status: resp.StatusCode, Header: resp.Header, Length: resp.ContentLength}
	if resp.StatusCode >= 400 {
		w.onErrorAnswer(a, resp, head)
		return
	}
	w.relay(a, resp, head)
}

// fetchBody returns the body of a request. If the delivery does not contain it, the
// body is fetched from the gateway piece by piece.
func fetchBody(nc *nats.Conn, worker string, a *attempt) ([]byte, error) {
	if !a.req.ByReference {
		return a.msg.Data, nil
	}
	body := make([]byte, 0, min(a.req.BodySize, maxBodyAtOnce))
	for int64(len(body)) < a.req.BodySize {
		piece, err := fetchPiece(nc, worker, a, int64(len(body)))
		for pause := bodyAgain; err == nil && len(piece) == 0 && pause < bodyTimeout/4; pause *= 2 { // the claim may be on its way
			select {
			case <-a.ctx.Done():
			case <-time.After(pause):
			}
			piece, err = fetchPiece(nc, worker, a, int64(len(body)))
		}
		if err == nil && (len(piece) == 0 || int64(len(body)+len(piece)) > a.req.BodySize) {
			err = fmt.Errorf("the gateway sent %d", len(piece))
		}
		if err != nil {
			return nil, fmt.Errorf("fetch body at %d of %d bytes: %w", len(body), a.req.BodySize, err)
		}
		body = append(body, piece...)
	}
	return body, nil
}

func fetchPiece(nc *nats.Conn, worker string, a *attempt, offset int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(a.ctx, bodyTimeout)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, subjects.GatewayBody(a.req.Gateway, worker), subjects.MustMarshal(subjects.BodyRequest{ID: a.req.ID, Offset: offset}))
	if err != nil {
		return nil, err
	}
	return m.Data, nil
}

// onFirstByte passes the first byte of an answer on to the owners. answers is false if it is the answer of an error.
func (w *Worker) onFirstByte(a *attempt, answers bool, now time.Time) {
	afterLoad := false
	if a.timing.load.waits && answers {
		answer, exact := w.estimates.answerTime(&a.timing, a.streamed, now)
		var took time.Duration
		if afterLoad, took = w.capacity.onLoaded(&a.slot, answer, exact, now); took > 0 {
			w.log.Info("model loaded", "model", a.task.model, "took", took.Round(10*time.Millisecond))
		}
	}
	w.capacity.onFirstByte(&a.slot, a.started, now)
	w.estimates.firstByte(&a.timing, afterLoad, now)
	if w.presence.late() { // it answers again
		w.scraper.Look()
	}
	a.firstByte.set(a.started, now)
	if a.streamed {
		w.attempts.onStream()
	}
}

func (w *Worker) finish(a *attempt, status int, in *api.Inspector, p *pace, now time.Time) {
	prompt := in.Prompt()
	end := subjects.End{OutputTokens: in.OutputTokens(), InputTokens: in.InputTokens(), CachedTokens: prompt.Cached, CachedApart: prompt.Tokens > in.InputTokens()}
	good := status < 300 && !in.Errored()
	if !a.firstByte.isSet() {
		w.onFirstByte(a, good, now)
	}
	if good && !a.cheap {
		w.cfg.meters.answer.Observe(now.Sub(a.started).Seconds())
	}
	if good { // a quick error says nothing about the engine's speed
		w.estimates.onPrompt(&a.timing, prompt, now)
		w.estimates.learn(&a.timing, end.OutputTokens, a.streamed, w.capacity.disturbed(a.started), now)
		w.capacity.onAnswer(&a.slot, now)
	}
	w.capacity.onEnd(p, in.Stream, in.Events, in.ReportedTokens())
	switch {
	case in.Errored():
		w.onFailure(failure{pool: a.task.source, request: a.content(), reason: "an error in the middle of an answer"}, now)
	case good:
		w.presence.onSuccess(now)
		if w.presence.onAnswer(a.task.source) {
			w.log.Info("requests no longer fail", "pool", a.task.source)
			w.presence.beat()
		}
	}
	w.attempts.done.Add(1)
	a.out.End(&end)
	a.send()
}
