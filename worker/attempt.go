package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// attempt is one start on one request.
type attempt struct {
	// Fixed when it begins.
	mark    uint64
	msg     *nats.Msg
	lane    *lane
	model   string // as the engine calls it
	ctx     context.Context
	stop    context.CancelCauseFunc
	credit  chan struct{} // told when taken grew
	started time.Time
	alone   bool  // no other waited for its first token when it began
	besides int   // others in flight then
	served  *pool // whose model it runs on
	cold    bool  // that had to be loaded
	loads   bool  // and it was the first to ask for it

	// Owned by run.
	out      outlet
	streamed bool

	// Guarded by Worker.mu.
	req         *subjects.Request
	claimed     bool          // the claim is on its way
	sent        uint32        // messages
	taken       int64         // body bytes that the client took
	prefillTook time.Duration // as far as can be told; 0: it cannot
	expectFirst time.Duration // how long a first token was to take, by what was measured
	firstBy     time.Time     // until when it counts as waiting for it, if it does not stream
	firstByte   time.Time
	lastByte    time.Time
	waits       bool // it counts in room.firsts
	behindLoad  bool // its first byte came of a load
	decodes     bool // it is in the decoding meter
	areaAtFirst float64
	renewed     time.Time // when the delivery's lease was last renewed
}

func (w *Worker) beginLocked(m *nats.Msg, l *lane, now time.Time) *attempt {
	ctx, stop := context.WithCancelCause(context.Background())
	a := &attempt{
		mark: rand.Uint64(), msg: m, lane: l, model: l.pool.model, ctx: ctx, stop: stop,
		credit:  make(chan struct{}, 1),
		started: now, lastByte: now, renewed: now,
		alone: w.prefillsLocked(now).n == 0, besides: w.inFlight,
	}
	w.running[a.mark] = a
	w.prefilling = append(w.prefilling, a)
	w.room.prefills++
	w.tiers[l.tier].seen = now
	w.inFlight++
	a.served = l.pool.by
	w.enterModelLocked(a, now)
	w.room.window.Started(w.inFlight)
	return a
}

// maxIdle bounds the goroutines that wait for their next attempt.
const maxIdle = 64

// start runs an attempt, on a goroutine whose last one ended if there is such.
// The stack that calling an engine takes has grown there already, which a new
// goroutine's does step by step, with a copy each: 3 % of a small request.
func (w *Worker) start(a *attempt) {
	w.attempts.Add(1)
	select {
	case w.idle <- a:
	default:
		go w.runAll(a) // ends when it is one too many, or with Run
	}
}

// runAll runs an attempt, and then others.
func (w *Worker) runAll(a *attempt) {
	for ok := true; ok; {
		w.run(a)
		w.attempts.Done()
		if w.idlers.Add(1) <= maxIdle {
			a, ok = <-w.idle
		} else {
			ok = false
		}
		w.idlers.Add(-1)
	}
}

// run carries an attempt out and settles it. The slot is free again as soon as
// the engine is done with it.
func (w *Worker) run(a *attempt) {
	defer a.stop(nil)
	req, err := w.requestOf(a.msg)
	if err != nil {
		w.log.Warn("request dropped", "err", err)
		w.nc.Publish(a.msg.Reply, subjects.Term("malformed"))
		w.release(a)
		w.settle(a)
		return
	}
	w.mu.Lock()
	a.req = req
	_, again := w.failedHere[req.ID]
	delete(w.failedHere, req.ID) // should it come once more, the gateway decides
	kept := a.started.Before(w.keptFor[req.ID])
	if again || kept {
		w.mu.Unlock()
		var delay time.Duration
		if kept {
			delay = keptAgain
		}
		w.handBack(a.msg.Reply, delay)
		w.release(a)
		w.settle(a)
		return
	}
	if req.Stream {
		w.waitsLocked(a, true)
	} else { // its first token will not show: it counts as decoding from here
		w.decodesLocked(a, a.started)
	}
	w.expectLocked(a)
	_, known := w.gateways[req.Gateway]
	if !known { // its silence counts from here
		w.gateways[req.Gateway] = a.started
	}
	w.mu.Unlock()

	a.out = w.outlet(a)
	if w.claim(a) {
		w.answer(a)
	}
	a.out.Free()
	w.release(a)
	w.settle(a)
}

// claim tells the gateway that the attempt begins. False: the gateway is in this
// process, and has refused already.
func (w *Worker) claim(a *attempt) (granted bool) {
	claim := subjects.Claim{ID: a.req.ID, Attempt: a.mark, Worker: w.id, Name: w.cfg.Name, Ack: a.msg.Reply}
	if gw, ok := w.cfg.Local.Gateway(a.req.Gateway); ok {
		if r := gw.Claim(claim); r != nil {
			a.stop(ErrRefused)
			w.giveUp(r)
			return false
		}
	} else {
		body, err := claim.Bytes()
		if err != nil {
			panic(err) // names are UTF-8
		}
		w.nc.PublishRequest(subjects.GatewayClaim(a.req.Gateway), subjects.WorkerRefused(w.id, a.mark), body)
	}
	w.mu.Lock()
	a.claimed = true // after the claim: a gateway cancels what it hears of before
	w.mu.Unlock()
	return true
}

const (
	keepFor   = 500 * time.Millisecond // a request that a gateway keeps for other workers
	keptAgain = 100 * time.Millisecond
)

// refused hears that a claim was refused, or that there is no gateway. A claim
// that is granted has no answer. The refusal says what it refuses, since the
// attempt may be over by now.
func (w *Worker) refused(mark string, m *nats.Msg) {
	var r subjects.Refusal
	said := len(m.Data) > 0 && subjects.Unmarshal(m.Data, &r) == nil
	if n, err := strconv.ParseUint(mark, 16, 64); err == nil {
		w.mu.Lock()
		if a := w.running[n]; a != nil {
			if m.Header.Get("Status") == "503" {
				a.stop(ErrGatewayGone)
			} else {
				a.stop(ErrRefused)
			}
			if r.Verdict == subjects.OtherWorker {
				w.keptFor[a.req.ID] = time.Now().Add(keepFor)
			}
		}
		w.mu.Unlock()
	}
	if said {
		w.giveUp(&r)
	}
}

// giveUp settles a delivery whose claim was refused.
func (w *Worker) giveUp(r *subjects.Refusal) {
	switch r.Verdict {
	case subjects.Gone:
		w.nc.Publish(r.Ack, subjects.Term("gone"))
	case subjects.OtherWorker:
		w.handBack(r.Ack, time.Duration(r.DelayMS)*time.Millisecond)
	case subjects.Elsewhere: // the message belongs to the other attempt
	}
}

// answer calls the engine and sends its answer on.
func (w *Worker) answer(a *attempt) {
	body, err := w.body(a)
	path := a.req.Path
	if err == nil {
		path, body, err = api.RenameModel(a.req, body, a.model)
	}
	if err != nil {
		w.fail(a, subjects.Fail{Class: subjects.FailBody, Reason: err.Error()})
		return
	}
	hr, err := w.callOf(a, path, body)
	if err != nil {
		w.fail(a, subjects.Fail{Class: subjects.FailEngine, Reason: err.Error()})
		return
	}
	resp, err := w.cfg.Transport.RoundTrip(hr) // as a proxy does: what a client adds is not wanted
	if err != nil {
		w.brokeOff(a, err)
		w.scraper.Look()
		w.fail(a, subjects.Fail{Class: subjects.FailEngine, Reason: fmt.Sprintf("engine %s: %v", w.cfg.Name, err)})
		return
	}
	defer resp.Body.Close()
	subjects.EndToEnd(resp.Header)
	head := &subjects.Head{Status: resp.StatusCode, Header: resp.Header, Length: resp.ContentLength}
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500 {
		w.turnedDown(a, resp, head)
		return
	}
	w.relay(a, resp, head)
}

// callKind is what calls of the engine have in common.
type callKind struct {
	method, path string
	call         *http.Request // without header and body
}

// callOf is the call of the engine that an attempt makes. Most are of the same kind
// as the last one: its URL need not be parsed again, which is 1 % of a small request.
func (w *Worker) callOf(a *attempt, path string, body []byte) (*http.Request, error) {
	kind := w.lastCall.Load()
	if kind == nil || kind.method != a.req.Method || kind.path != path {
		call, err := http.NewRequest(a.req.Method, w.base+path, nil)
		if err != nil {
			return nil, err
		}
		kind = &callKind{a.req.Method, path, call}
		w.lastCall.Store(kind)
	}
	hr := kind.call.WithContext(a.ctx)
	hr.Body, hr.ContentLength = http.NoBody, int64(len(body))
	if len(body) > 0 {
		hr.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		hr.Body, _ = hr.GetBody()
	}
	w.engineHeader(hr, a.req)
	return hr, nil
}

// engineHeader is the header of a call of the engine: that of the request, which
// nobody may change, and what the engine wants to know us by.
func (w *Worker) engineHeader(hr *http.Request, req *subjects.Request) {
	hr.Header = req.Header
	if hr.Header == nil {
		hr.Header = make(http.Header)
	}
	user := hr.URL.User
	if w.cfg.APIKey == "" && user == nil {
		return
	}
	hr.Header = hr.Header.Clone()
	if w.cfg.APIKey != "" {
		hr.Header.Set("Authorization", "Bearer "+w.cfg.APIKey)
		return
	}
	password, _ := user.Password()
	hr.SetBasicAuth(user.Username(), password)
}

// maxTurnedDown bounds an engine's error that is carried on. A longer one is
// left out: half of a body is worse than none.
const maxTurnedDown = 64 << 10

// turnedDown hands on an answer that another worker may better.
func (w *Worker) turnedDown(a *attempt, resp *http.Response, head *subjects.Head) {
	most := min(maxTurnedDown, w.nc.MaxPayload()/4)
	text, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	f := subjects.Fail{Class: subjects.FailEngine, Reason: fmt.Sprintf("engine %s: %s", w.cfg.Name, resp.Status)}
	if err == nil && int64(len(text)) <= most {
		f.Answer, f.Body = head, text
	}
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		f.Class = subjects.FailRefused
	}
	secs, _ := strconv.ParseFloat(resp.Header.Get("Retry-After"), 64)
	w.pause(time.Duration(secs*float64(time.Second)), string(f.Class)+": "+resp.Status, f.Class == subjects.FailRefused)
	w.fail(a, f)
}

// pause stops bidding for a while after the engine turned a request down.
func (w *Worker) pause(asked time.Duration, reason string, full bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.badInRow++
	if full {
		w.room.window.Refused()
	}
	if w.state == subjects.Ready || w.state == subjects.Paused {
		w.pausedTo = time.Now().Add(policy.Pause(w.badInRow, asked))
		w.setStateLocked(subjects.Paused, reason)
	}
}

// manyBroken is how many answers in a row have to break off before the worker
// stops to bid for a while. One that fails fast is free again at once, and would
// draw the whole queue.
const manyBroken = 3

// brokeOff notes that the engine closed a connection, or gave none.
func (w *Worker) brokeOff(a *attempt, err error) {
	if a.ctx.Err() != nil { // it was us
		return
	}
	w.mu.Lock()
	many := w.badInRow+1 >= manyBroken
	if !many {
		w.badInRow++
	}
	w.mu.Unlock()
	if many {
		w.pause(0, fmt.Sprintf("%d answers in a row broke off: %v", manyBroken, err), false)
	}
}

// relay sends the engine's answer on as it comes.
func (w *Worker) relay(a *attempt, resp *http.Response, head *subjects.Head) {
	watch := api.NewInspector(a.req.Path, resp)
	defer watch.Free()
	a.streamed = watch.Stream
	a.out.Head(head)
	room := 8 << 10
	var sent int64
	var pace pace
	for {
		buf := a.out.Grow(room)
		n, err := resp.Body.Read(buf)
		now := time.Now()
		if n > 0 {
			watch.See(buf[:n])
			a.out.Commit(n)
			sent += int64(n)
			if n == len(buf) {
				room = int(min(2*int64(room), 64<<10, w.nc.MaxPayload()/2))
			}
		}
		w.mu.Lock()
		if n > 0 {
			if a.firstByte.IsZero() {
				if a.cold && resp.StatusCode < 300 {
					w.loadedLocked(a, now)
				}
				w.firstLocked(a, now)
				if a.streamed {
					w.bidLocked() // a prefill less: the price fell
				}
			}
			if a.streamed {
				w.tokensLocked(&pace, watch, now)
			}
			a.lastByte, w.room.lastToken = now, now
		}
		taken := a.taken
		w.mu.Unlock()
		switch {
		case err == io.EOF:
			if reason := watch.Broken(); reason != "" {
				w.fail(a, subjects.Fail{Class: subjects.FailTruncated, Reason: fmt.Sprintf("engine %s: %s", w.cfg.Name, reason)})
				return
			}
			w.finish(a, head.Status, watch, &pace, now)
			return
		case err != nil:
			w.brokeOff(a, err)
			w.fail(a, subjects.Fail{Class: subjects.FailTruncated, Reason: fmt.Sprintf("engine %s: answer broke off: %v", w.cfg.Name, err)})
			return
		case n > 0:
			w.send(a)
		}
		if sent-taken > subjects.Window {
			if !w.waitCredit(a, sent) {
				w.fail(a, subjects.Fail{})
				return
			}
			pace.at = time.Time{}
		}
	}
}

// finish sends the end of a whole answer.
func (w *Worker) finish(a *attempt, status int, watch *api.Inspector, pace *pace, now time.Time) {
	end := subjects.End{OutputTokens: watch.OutputTokens(), InputTokens: watch.InputTokens()}
	w.mu.Lock()
	if a.firstByte.IsZero() {
		w.firstLocked(a, now)
	}
	if status < 300 { // a quick "no" says nothing of the engine's speed
		w.learnLocked(a, end.OutputTokens, now)
	}
	w.done++
	w.badInRow = 0
	w.room.window.Ended()
	w.streamedLocked(pace, watch)
	if w.state == subjects.Paused { // the engine has room again
		w.pausedTo = now
	}
	w.mu.Unlock()
	a.out.End(&end)
	w.send(a)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// fail tells the gateway that the attempt came to nothing. What to do about it
// is decided there.
func (w *Worker) fail(a *attempt, f subjects.Fail) {
	switch cause := context.Cause(a.ctx); {
	case errors.Is(cause, ErrRefused), errors.Is(cause, ErrGatewayGone), errors.Is(cause, ErrCancelled):
		return // nobody listens
	case errors.Is(cause, ErrDraining):
		f = subjects.Fail{Class: subjects.FailDraining, Reason: "worker " + w.cfg.Name + " stops"}
	case errors.Is(cause, ErrStalled):
		w.mu.Lock()
		silent := time.Since(a.lastByte).Round(time.Second)
		w.mu.Unlock()
		f = subjects.Fail{Class: subjects.FailStalled, Reason: fmt.Sprintf("engine %s: silent for %v", w.cfg.Name, silent)}
	}
	if f.Class != subjects.FailDraining {
		w.mu.Lock()
		w.failed++
		w.failedHere[a.req.ID] = time.Now()
		w.mu.Unlock()
	}
	a.out.Fail(&f)
	w.send(a)
}

// send sends what has gathered.
func (w *Worker) send(a *attempt) {
	if !a.out.send() {
		a.stop(ErrGatewayGone)
	}
	w.mu.Lock()
	a.sent = a.out.Sent() // after the message: the list of what was sent must not overtake it
	w.mu.Unlock()
}

// waitCredit waits until the client has taken enough. False: the attempt ended.
func (w *Worker) waitCredit(a *attempt, sent int64) bool {
	for {
		w.mu.Lock()
		enough := sent-a.taken <= subjects.Window
		a.lastByte = time.Now() // the engine is not to blame for the client
		w.mu.Unlock()
		if enough {
			return true
		}
		select {
		case <-a.credit:
		case <-a.ctx.Done():
			return false
		}
	}
}

// release frees the attempt's slot.
func (w *Worker) release(a *attempt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.decodes {
		w.decoding.add(-1, time.Now())
	}
	w.waitsLocked(a, false)
	w.prefilledLocked(a)
	w.inFlight--
	w.leaveModelLocked(a, time.Now())
	w.bidLocked()
}

// settle forgets an attempt. What becomes of its delivery is said by the
// gateway, which alone knows whether there is to be another attempt, or, if
// there is no gateway any more, here.
func (w *Worker) settle(a *attempt) {
	if errors.Is(context.Cause(a.ctx), ErrGatewayGone) {
		w.nc.Publish(a.msg.Reply, subjects.Term("gateway gone"))
	}
	w.mu.Lock()
	delete(w.running, a.mark)
	w.mu.Unlock()
}

// handBack returns a request for another worker, and stands back for a moment
// so that it does not come again at once.
func (w *Worker) handBack(ack string, delay time.Duration) {
	if d, err := subjects.ParseAck(ack); err == nil && delay == 0 {
		w.mu.Lock()
		if l := w.byQueue[queueName{d.Stream, d.Consumer}]; l != nil {
			l.notTill = time.Now().Add(standBack)
		}
		w.mu.Unlock()
	}
	w.nc.Publish(ack, subjects.NakAfter(delay))
}

// find is the running attempt that a message speaks of.
func (w *Worker) find(id subjects.ID, mark uint64) *attempt {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a := w.running[mark]; a != nil && a.req != nil && a.req.ID == id {
		return a
	}
	return nil
}

func (w *Worker) cancelled(m *nats.Msg) {
	var c subjects.Cancel
	if subjects.Unmarshal(m.Data, &c) != nil {
		return
	}
	if a := w.find(c.ID, c.Attempt); a != nil {
		a.stop(ErrCancelled)
	}
}

func (w *Worker) credited(m *nats.Msg) {
	var c subjects.WindowUpdate
	if subjects.Unmarshal(m.Data, &c) != nil {
		return
	}
	a := w.find(c.ID, c.Attempt)
	if a == nil {
		return
	}
	w.mu.Lock()
	a.taken = max(a.taken, c.Taken)
	w.mu.Unlock()
	select {
	case a.credit <- struct{}{}:
	default:
	}
}

// gatewayGone stops everything that runs for a gateway nobody hears of.
func (w *Worker) gatewayGone(gateway string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.running {
		if a.req != nil && a.req.Gateway == gateway {
			a.stop(ErrGatewayGone)
		}
	}
}
