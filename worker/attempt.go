package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// failedHereFor is how long a request is remembered that failed here.
	failedHereFor = time.Minute

	// keptFor is how long a request that a gateway keeps for other workers, none of which has a free slot, is not
	// claimed again. Handed back meanwhile, it is delivered again after keptAgain.
	keptFor   = 500 * time.Millisecond
	keptAgain = 100 * time.Millisecond

	// grantTimeout bounds the wait for a grant. A gateway that does not know Claim.Confirm does not answer.
	grantTimeout = time.Second
	// A request for an adapter that the engine does not list is handed back this often, the first time for this long and
	// then longer: another worker may have it. That takes 16 s.
	adapterBounces = 20
	adapterFirst   = 20 * time.Millisecond

	bodyTimeout = 5 * time.Second // for one piece of a body

	// maxBodyAtOnce bounds the memory that is allocated for a body before its bytes
	// have come, by the size that the request says.
	maxBodyAtOnce = 64 << 20

	// maxRefusal bounds an engine's error answer that is passed on. A longer one is
	// left out, since half of a body is worse than none.
	maxRefusal = 64 << 10
)

// Why an attempt was stopped, as causes of its context.
var (
	errCancelled   = errors.New("the gateway cancelled it")
	errGatewayGone = errors.New("its gateway is gone")
	errRefused     = errors.New("the gateway refused the claim")
	errDraining    = errors.New("the worker stops")
	errStalled     = errors.New("the engine went silent")
)

// attempt is one start on one request.
type attempt struct {
	// Fixed when it begins.
	mark    uint64
	msg     *nats.Msg         // the delivery
	req     *subjects.Request // never changed: it may be the gateway's own
	task    task
	ctx     context.Context
	stop    context.CancelCauseFunc
	started time.Time
	grown   chan struct{} // signals that taken grew; capacity 1
	granted chan struct{} // signals that the gateway has granted a claim that asked for confirmation; capacity 1
	cheap   bool          // it is a gateway's call (cheap.go): it has no slot, and no delivery to settle

	// Owned by Worker.run.
	runner   *runner // the one that runs it
	out      responder
	body     []byte
	streamed bool // the engine's answer is a stream; other goroutines may read it once firstByte is set
	rank     int  // data-parallel rank of the engine that runs it; -1: the engine chooses
	adapter  bool // the engine is asked for an adapter, by the client's name

	// Shared without a lock.
	claimed   atomic.Bool   // the claim has been published
	sent      atomic.Uint32 // messages with frames that have been published
	taken     atomic.Int64  // body bytes that the client has taken
	firstByte moment
	lastByte  moment
	awaited   atomic.Pointer[policy.Awaited] // how long its first byte should take; nil until that is known
	held      atomic.Bool                    // its client does not take what has come

	counted bool // it is one of attempts.cheap; guarded by attempts.mu

	renewed time.Time // when the lease of the delivery was last renewed; owned by Worker.publishAlive

	timing timing // owned by the estimator
	slot   slot   // owned by capacity
}

// failedRequest is a request that failed here.
type failedRequest struct {
	at         time.Time
	handedBack bool // since it failed
}

// fault is a failure that is remembered, and until when.
type fault struct {
	failure
	until time.Time
}

// moment is a time after a start, read and written without a lock. The zero value is not set.
type moment struct {
	after atomic.Int64 // nanoseconds since the start, plus one
}

func (m *moment) set(start, t time.Time) { m.after.Store(int64(t.Sub(start)) + 1) }

func (m *moment) isSet() bool { return m.after.Load() != 0 }

// at returns the moment, or the start if it is not set.
func (m *moment) at(start time.Time) time.Time {
	return start.Add(time.Duration(max(m.after.Load()-1, 0)))
}

// since returns the time from the moment to now; from the start, if it is not set.
func (m *moment) since(start, now time.Time) time.Duration {
	return now.Sub(start) - time.Duration(max(m.after.Load()-1, 0))
}

func newAttempt(m *nats.Msg, req *subjects.Request, t task, now time.Time) *attempt {
	ctx, stop := context.WithCancelCause(context.Background())
	a := &attempt{
		mark: rand.Uint64(), msg: m, req: req, task: t, ctx: ctx, stop: stop,
		started: now, grown: make(chan struct{}, 1), granted: make(chan struct{}, 1), renewed: now,
	}
	a.lastByte.set(now, now)
	return a
}

// silent reports whether the engine has been silent for too long. While the engine or a GPU is ill (since ill; zero: it
// is not), that is sooner for an attempt without a first byte, so that another worker can have the request. Otherwise
// an answer that does not stream may take any time.
func (a *attempt) silent(ill time.Time, stall time.Duration, now time.Time) bool {
	silent := a.lastByte.since(a.started, now)
	if !ill.IsZero() && !a.firstByte.isSet() && min(silent, now.Sub(ill)) > min(stalledAfter, stall) {
		return true
	}
	return (a.req.Stream || a.cheap) && silent > stall
}

// late reports whether the first byte takes much longer than was measured.
func (a *attempt) late(now time.Time) bool {
	awaited := a.awaited.Load()
	return !a.firstByte.isSet() && awaited != nil && awaited.Late(now.Sub(a.started))
}

// attempts owns the attempts that run, and remembers the requests that should not be attempted here again for now.
type attempts struct {
	done   atomic.Uint64 // attempts with a whole answer
	failed atomic.Uint64

	streams  atomic.Int32 // streams that have had their first byte
	parallel atomic.Int32 // most of them at once

	mu      sync.Mutex
	running map[uint64]*attempt // by mark

	// failedHere has the requests that failed here lately. The queue gives such a request to the cheapest bid, which is
	// likely to be of this worker again; other workers should have it first.
	failedHere map[subjects.ID]failedRequest
	// kept has the requests that a gateway keeps for other workers, and until when they are not claimed again: when the
	// gateway refuses a claim, the engine has been called already.
	kept map[subjects.ID]time.Time
	// faults has the failures of the requests in failedHere, and of those that came again since: another worker may
	// answer them.
	faults map[subjects.ID]fault

	cheap  int           // those of running that are cheap
	closed bool          // no attempt may begin any more
	ended  chan struct{} // closed when closed is set and none runs
}

func newAttempts() *attempts {
	return &attempts{
		running:    make(map[uint64]*attempt),
		failedHere: make(map[subjects.ID]failedRequest), kept: make(map[subjects.ID]time.Time), faults: make(map[subjects.ID]fault),
		ended: make(chan struct{}),
	}
}

// refuses reports whether a request should go to another worker, and after how long it may be delivered again. A
// request that failed here is refused once; if it comes again, the gateway decides.
func (as *attempts) refuses(id subjects.ID, now time.Time) (after time.Duration, yes bool) {
	as.mu.Lock()
	defer as.mu.Unlock()
	f, failed := as.failedHere[id]
	if failed {
		as.failedHere[id] = failedRequest{at: f.at, handedBack: true}
	}
	if now.Before(as.kept[id]) {
		return keptAgain, true
	}
	return 0, failed && !f.handedBack
}

// again reports whether a request failed here before. Its gateway may want another worker, so that the engine must not be
// called before the claim is granted.
func (as *attempts) again(id subjects.ID) bool {
	as.mu.Lock()
	defer as.mu.Unlock()
	_, failed := as.failedHere[id]
	return failed
}

// begin adds an attempt. It reports false if none may begin any more.
func (as *attempts) begin(a *attempt) bool {
	as.mu.Lock()
	defer as.mu.Unlock()
	if as.closed {
		return false
	}
	as.running[a.mark] = a
	return true
}

// onStream counts a stream that has had its first byte.
func (as *attempts) onStream() {
	n := as.streams.Add(1)
	for most := as.parallel.Load(); n > most && !as.parallel.CompareAndSwap(most, n); {
		most = as.parallel.Load()
	}
}

func (as *attempts) end(a *attempt) {
	if a.streamed && a.firstByte.isSet() {
		as.streams.Add(-1)
	}
	as.mu.Lock()
	defer as.mu.Unlock()
	as.endLocked(a)
}

// beginCheap adds a cheap call. It reports false if there are maxCheap, or none may begin any more.
func (as *attempts) beginCheap(a *attempt) bool {
	as.mu.Lock()
	defer as.mu.Unlock()
	if as.closed || as.cheap >= maxCheap {
		return false
	}
	as.cheap++
	a.counted = true
	as.running[a.mark] = a
	return true
}

// freeCheap notes that the engine is done with a cheap call, before the gateway learns of it: then the gateway may send the
// next one at once.
func (as *attempts) freeCheap(a *attempt) {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.freeCheapLocked(a)
}

func (as *attempts) freeCheapLocked(a *attempt) {
	if a.counted {
		a.counted = false
		as.cheap--
	}
}

func (as *attempts) endCheap(a *attempt) {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.freeCheapLocked(a)
	as.endLocked(a)
}

func (as *attempts) endLocked(a *attempt) {
	delete(as.running, a.mark)
	if as.closed && len(as.running) == 0 {
		close(as.ended)
	}
}

// close stops attempts from beginning. The channel is closed when the last attempt that runs has ended.
func (as *attempts) close() (ended <-chan struct{}, running int) {
	as.mu.Lock()
	defer as.mu.Unlock()
	if !as.closed && len(as.running) == 0 {
		close(as.ended)
	}
	as.closed = true
	return as.ended, len(as.running)
}

// fail counts an attempt that failed, and remembers its request.
func (as *attempts) fail(id subjects.ID, now time.Time) {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.failed.Add(1)
	as.failedHere[id] = failedRequest{at: now}
}

func (as *attempts) all() []*attempt {
	as.mu.Lock()
	defer as.mu.Unlock()
	all := make([]*attempt, 0, len(as.running))
	for _, a := range as.running {
		all = append(all, a)
	}
	return all
}

func (as *attempts) byTier() map[string]int {
	n := make(map[string]int)
	for _, a := range as.all() {
		if !a.cheap {
			n[a.task.tier]++
		}
	}
	return n
}

// summary returns what a stall of the engine is recognised by. gap is the expected time between two tokens of a stream.
func (as *attempts) summary(gap time.Duration, now time.Time) (r runningAttempts) {
	r.parallel = int(as.parallel.Load())
	for _, a := range as.all() {
		if a.cheap {
			continue
		}
		if r.oldest.IsZero() || a.started.Before(r.oldest) {
			r.oldest = a.started
		}
		if a.firstByte.isSet() && a.streamed {
			r.streaming = true
		}
		if a.awaited.Load() == nil { // it has not begun
			continue
		}
		if r.pools == nil {
			r.pools = make(map[string]*poolAttempts)
		}
		p := r.pools[a.task.source]
		if p == nil {
			p = new(poolAttempts)
			r.pools[a.task.source] = p
		}
		p.add(a, policy.AwaitToken(gap).Patience(), now)
	}
	return r
}

// add includes an attempt that has begun. usual is how long a stream may be silent between two tokens.
func (p *poolAttempts) add(a *attempt, usual time.Duration, now time.Time) {
	if a.firstByte.isSet() {
		p.lastByte = later(p.lastByte, a.lastByte.at(a.started))
		silent := a.lastByte.since(a.started, now)
		switch {
		case !a.streamed || a.held.Load():
		case silent > usual:
			p.stuck, p.stuckFor = p.stuck+1, max(p.stuckFor, silent)
			if p.head == nil {
				p.head = a
			}
		case a.firstByte.since(a.started, now) > usual:
			p.going++
		}
		return
	}
	awaited := *a.awaited.Load()
	if p.waiting > 0 {
		awaited = p.awaited.With(awaited)
	}
	if p.waiting == 0 || a.started.Before(p.oldestWaiting) {
		p.head, p.oldestWaiting = a, a.started
	}
	p.awaited = awaited
	p.waiting++
}

// find returns the running attempt of a request with a mark; nil if there is none.
func (as *attempts) find(id subjects.ID, mark uint64) *attempt {
	as.mu.Lock()
	defer as.mu.Unlock()
	if a := as.running[mark]; a != nil && a.req.ID == id {
		return a
	}
	return nil
}

// forget forgets the requests that failed here, or were kept for others, long ago.
func (as *attempts) forget(now time.Time) {
	as.mu.Lock()
	defer as.mu.Unlock()
	maps.DeleteFunc(as.failedHere, func(_ subjects.ID, f failedRequest) bool { return now.Sub(f.at) > failedHereFor })
	maps.DeleteFunc(as.kept, func(_ subjects.ID, until time.Time) bool { return now.After(until) })
	maps.DeleteFunc(as.faults, func(_ subjects.ID, f fault) bool { return now.After(f.until) })
}

// remember keeps a failure, in case another worker answers its request.
func (as *attempts) remember(id subjects.ID, f failure, now time.Time) {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.faults[id] = fault{f, now.Add(failedHereFor)}
}

// onBlame returns the failure of a request that another worker has answered.
func (as *attempts) onBlame(m *nats.Msg) (f failure, known bool) {
	var b subjects.Blame
	if subjects.Unmarshal(m.Data, &b) != nil {
		return f, false
	}
	as.mu.Lock()
	defer as.mu.Unlock()
	kept, known := as.faults[b.ID]
	delete(as.faults, b.ID)
	kept.blamed = true
	return kept.failure, known
}

// onCancel stops an attempt that its gateway does not want. If another worker should have the request, it is remembered as
// one that failed here, unless it is known that the engine hangs.
func (as *attempts) onCancel(m *nats.Msg, known *verdicts) {
	var c subjects.Cancel
	if subjects.Unmarshal(m.Data, &c) != nil {
		return
	}
	a := as.find(c.ID, c.Attempt)
	if a == nil {
		return
	}
	if c.Reason == subjects.FailedOver { // another worker should have it
		as.onFailedOver(a, known.hangs(a.task.source), time.Now())
	}
	a.stop(errCancelled)
}

// onWindow handles a window update: the client of an attempt has taken more bytes.
func (as *attempts) onWindow(m *nats.Msg) {
	var u subjects.WindowUpdate
	if subjects.Unmarshal(m.Data, &u) != nil {
		return
	}
	if a := as.find(u.ID, u.Attempt); a != nil {
		a.taken.Store(max(a.taken.Load(), u.Taken)) // one goroutine receives them all
		signal(a.grown)
	}
}

// onGatewayGone stops all attempts of a gateway that no longer listens.
func (as *attempts) onGatewayGone(gateway string) {
	for _, a := range as.all() {
		if a.req.Gateway == gateway {
			a.stop(errGatewayGone)
		}
	}
}

// onFailedOver remembers an attempt of whose answer nothing came in time.
func (as *attempts) onFailedOver(a *attempt, known bool, now time.Time) {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.failedHere[a.req.ID] = failedRequest{at: now}
	if !known && !a.firstByte.isSet() {
		reason := fmt.Sprintf("no first byte within %v", round(now.Sub(a.started)))
		as.faults[a.req.ID] = fault{failure{pool: a.task.source, reason: reason}, now.Add(failedHereFor)}
	}
}

// onRefusal stops an attempt whose claim was refused. kept says that the gateway keeps the request for other workers.
func (as *attempts) onRefusal(mark uint64, kept bool, now time.Time) {
	as.mu.Lock()
	a := as.running[mark]
	if a != nil && kept {
		as.kept[a.req.ID] = now.Add(keptFor)
	}
	as.mu.Unlock()
	if a != nil {
		a.stop(errRefused)
	}
}

// onGrant lets an attempt call its engine that waits for its grant.
func (as *attempts) onGrant(mark uint64) {
	as.mu.Lock()
	defer as.mu.Unlock()
	if a := as.running[mark]; a != nil {
		signal(a.granted)
	}
}

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
	case "cancel":
		w.attempts.onCancel(m, w.vitals.latest.Load())
	case "credit":
		w.attempts.onWindow(m)
	case "blame":
		if f, known := w.attempts.onBlame(m); known {
			w.onFailure(f, time.Now())
		}
	case "drain":
		w.onDrainOrder(m)
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
		w.nc.Publish(m.Reply, subjects.Nak)
		return nil
	}
	req, err := requestOf(w.cfg.Local, m)
	if err != nil {
		w.log.Warn("request dropped", "err", err)
		w.nc.Publish(m.Reply, subjects.Term("malformed"))
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
	awaited := w.estimates.begin(&a.timing)
	a.awaited.Store(&awaited)
	a.rank = w.capacity.takeRank()
}

// run carries out an attempt. Its slot is free as soon as the engine is done.
func (w *Worker) run(a *attempt) {
	defer w.attempts.end(a)
	defer a.stop(nil)
	a.out = a.newResponder(w.cfg.Local, w.links)
	if w.claim(a) {
		w.call(a)
	}
	a.out.Free()
	now := time.Now()
	w.estimates.end(&a.timing, now)
	w.capacity.end(&a.slot, now)
	w.capacity.freeRank(a.rank)
	w.presence.endTrial(a.task.source)
	w.bid()
	// The gateway settles the delivery, since it decides whether there is another
	// attempt. Without a gateway there is none.
	if errors.Is(context.Cause(a.ctx), errGatewayGone) {
		w.nc.Publish(a.msg.Reply, subjects.Term("gateway gone"))
	}
}

// claim claims the request at its gateway. It reports false if the gateway has refused. Of a gateway in another process
// that is known only for a request that failed here before: for others the engine is called meanwhile.
func (w *Worker) claim(a *attempt) (granted bool) {
	claim := subjects.Claim{ID: a.req.ID, Attempt: a.mark, Worker: w.id, Name: w.cfg.Name, Ack: a.msg.Reply, Rung: a.task.rung}
	if gw, ok := w.cfg.Local.Gateway(a.req.Gateway); ok {
		if r := gw.Claim(claim); r != nil {
			a.stop(errRefused)
			w.settle(r)
			return false
		}
	} else {
		claim.Confirm = w.attempts.again(a.req.ID) && !a.timing.load.waits // waiting for a grant must not look like a load
		body, err := claim.Bytes()
		if err != nil {
			panic(err) // names are UTF-8
		}
		w.links.get(a.req.Gateway).add(subjects.ItemClaim, body, only)
	}
	a.claimed.Store(true) // after the claim: a gateway cancels an attempt that is listed before its claim
	return !claim.Confirm || a.awaitGrant()
}

// awaitGrant waits for the answer to a claim. It reports false if there is nothing more to do, because the gateway has
// refused, has cancelled the request, or is gone.
func (a *attempt) awaitGrant() bool {
	timer := time.NewTimer(grantTimeout)
	defer timer.Stop()
	select {
	case <-a.granted:
	case <-timer.C:
	case <-a.ctx.Done():
		cause := context.Cause(a.ctx)
		return !errors.Is(cause, errRefused) && !errors.Is(cause, errGatewayGone) && !errors.Is(cause, errCancelled)
	}
	return true
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
	body, err := fetchBody(w.nc, a)
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
		w.fail(a, subjects.Fail{Class: subjects.FailBody, Reason: err.Error()})
		return
	}
	r, err := w.engine.request(a, path, body)
	if err != nil {
		w.fail(a, subjects.Fail{Class: subjects.FailEngine, Reason: err.Error()})
		return
	}
	resp, err := w.cfg.Transport.RoundTrip(r) // as a proxy does: an http.Client would follow redirects
	if err != nil {
		w.scraper.Look()
		class := subjects.FailEngine
		if connectionBroke(err) {
			class = subjects.FailCrashed
		}
		w.fail(a, subjects.Fail{Class: class, Reason: fmt.Sprintf("engine %s: %v", w.cfg.Name, err)})
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
func fetchBody(nc *nats.Conn, a *attempt) ([]byte, error) {
	if !a.req.ByReference {
		return a.msg.Data, nil
	}
	body := make([]byte, 0, min(a.req.BodySize, maxBodyAtOnce))
	for int64(len(body)) < a.req.BodySize {
		piece, err := fetchPiece(nc, a, int64(len(body)))
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

func fetchPiece(nc *nats.Conn, a *attempt, offset int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(a.ctx, bodyTimeout)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, subjects.GatewayBody(a.req.Gateway), subjects.MustMarshal(subjects.BodyRequest{ID: a.req.ID, Offset: offset}))
	if err != nil {
		return nil, err
	}
	return m.Data, nil
}

// onErrorAnswer handles an error answer of the engine. One that the request is to blame for is an answer like any other.
// After the others another worker is tried; the answer goes to the gateway with the failure.
func (w *Worker) onErrorAnswer(a *attempt, resp *http.Response, head *subjects.Head) {
	most := min(maxRefusal, w.nc.MaxPayload()/4)
	text, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	due := api.FaultOf(resp.StatusCode, text)
	if due == api.FaultEngine && resp.Header.Get("X-Should-Retry") == "false" { // the engine knows that it would fail again
		due = api.FaultRequest
	}
	if due == api.FaultRequest {
		resp.Body = rest{io.MultiReader(bytes.NewReader(text), resp.Body), resp.Body}
		w.relay(a, resp, head)
		return
	}
	f := subjects.Fail{Class: subjects.FailEngine, Reason: fmt.Sprintf("engine %s: %s", w.cfg.Name, resp.Status)}
	if err == nil && int64(len(text)) <= most {
		f.Answer, f.Body = head, text
	}
	secs, _ := strconv.ParseFloat(resp.Header.Get("Retry-After"), 64)
	failAs(w, a, due, resp.StatusCode, time.Duration(secs*float64(time.Second)), f)
}

// failAs fails an attempt by what an error of the engine with this status is due to.
func failAs(w *Worker, a *attempt, due api.Fault, status int, retryAfter time.Duration, f subjects.Fail) {
	said := fmt.Sprintf("%d %s", status, http.StatusText(status))
	switch due {
	case api.FaultBusy:
		f.Class = subjects.FailRefused
		w.capacity.onRefusal()
		w.presence.onRefusal(retryAfter, string(f.Class)+": "+said, time.Now())
	case api.FaultSetup:
		f.Class = subjects.FailMisfit
		reason := fmt.Sprintf("the engine does not have the model %q: %s", a.task.model, said)
		if status != http.StatusNotFound && status != http.StatusBadRequest {
			f.Answer, f.Body = nil, nil // the credentials are the worker's: its client could not do anything about that
			reason = "the engine refuses the worker's credentials: " + said
		}
		if status == http.StatusUnauthorized || status == http.StatusProxyAuthRequired {
			if w.cfg.Credentials.InFile() {
				f.Class = subjects.FailCredentials
			}
			w.scraper.Doubt()
		}
		f.Reason = fmt.Sprintf("engine %s: %s", w.cfg.Name, reason)
		if a.adapter && (status == http.StatusNotFound || status == http.StatusBadRequest) { // which says nothing about its parent
			f.Reason = fmt.Sprintf("engine %s: it does not have the adapter %q: %s", w.cfg.Name, a.req.Model, said)
			break
		}
		w.onFailure(failure{pool: a.task.source, reason: reason, setup: true}, time.Now())
	case api.FaultMisfit:
		f.Class = subjects.FailMisfit
	}
	w.fail(a, f)
}

// connectionBroke reports whether a call failed because the engine, which had the request, closed the connection.
func connectionBroke(err error) bool {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// rest is a body of which a part has been read before.
type rest struct {
	io.Reader
	io.Closer
}

// noAnswer is the failure of an answer with a status of success that is none, and what it is due to. If the engine says
// why, that is as with another status: streams have begun when some engines refuse them.
func noAnswer(engine string, in *api.Inspector, head *subjects.Head) (f subjects.Fail, due api.Fault, status int) {
	reason, status, text := in.NoAnswer()
	f = subjects.Fail{Class: subjects.FailEngine, Reason: fmt.Sprintf("engine %s: %s", engine, reason)}
	due = api.FaultEngine
	if text != nil {
		due = api.FaultOf(status, text)
		h := head.Header.Clone()
		h.Del("Content-Length")
		h.Set("Content-Type", "application/json")
		f.Answer, f.Body = &subjects.Head{Status: status, Header: h, Length: int64(len(text))}, text
	}
	return f, due, status
}

// onFailure notes a failure for which the engine may be to blame. If many follow each other, the worker pauses for the
// pool.
func (w *Worker) onFailure(f failure, now time.Time) {
	if w.presence.onFailure(f, now) {
		w.log.Warn("requests fail; the worker pauses, then tries one at a time", "pool", f.pool, "reason", f.reason)
		w.presence.beat()
	}
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
	end := subjects.End{OutputTokens: in.OutputTokens(), InputTokens: in.InputTokens()}
	good := status < 300 && !in.Errored()
	if !a.firstByte.isSet() {
		w.onFirstByte(a, good, now)
	}
	if good { // a quick error says nothing about the engine's speed
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

// fail sends the gateway the failure of the attempt. The gateway decides what follows.
func (w *Worker) fail(a *attempt, f subjects.Fail) {
	now := time.Now()
	switch cause := context.Cause(a.ctx); {
	case errors.Is(cause, errRefused), errors.Is(cause, errGatewayGone), errors.Is(cause, errCancelled):
		return // the gateway does not wait for it any more
	case errors.Is(cause, errDraining):
		f = subjects.Fail{Class: subjects.FailDraining, Reason: "worker " + w.cfg.Name + " stops"}
	case errors.Is(cause, errStalled):
		silent := a.lastByte.since(a.started, now).Round(time.Second)
		f = subjects.Fail{Class: subjects.FailStalled, Reason: fmt.Sprintf("engine %s: silent for %v", w.cfg.Name, silent)}
	}
	if f.Class != subjects.FailDraining {
		w.attempts.fail(a.req.ID, now)
	}
	switch f.Class {
	case subjects.FailEngine, subjects.FailCrashed, subjects.FailTruncated, subjects.FailStalled:
		// An engine that could not load the model for this request will not for the next one.
		due := failure{pool: a.task.source, request: a.content(), reason: f.Reason, setup: a.timing.load.first && !a.firstByte.isSet()}
		w.attempts.remember(a.req.ID, due, now)
		w.onFailure(due, now)
	}
	if !a.firstByte.isSet() { // what is held back of an answer must not reach the client
		a.out.Drop()
	}
	a.out.Fail(&f)
	a.send()
}

// content is a hash of what the request asks for.
func (a *attempt) content() uint64 {
	var h maphash.Hash
	h.SetSeed(contentSeed)
	h.WriteString(a.req.Path)
	h.WriteByte(0)
	h.Write(a.body)
	return h.Sum64()
}

var contentSeed = maphash.MakeSeed()

// signal wakes the goroutine that waits on a channel of capacity 1.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// mostIdle bounds the runners that wait for an attempt.
const mostIdle = 64

// runners run attempts. A goroutine that has run one waits for the next, with its stack and with what else is in
// runner. Without that, a small request takes 11 % more CPU, and a stream of 100 tokens 3 to 8 % (pulley up, 16
// clients, engines that take no time). 7 % of the 11 are for the stack alone: calling an engine takes a deep one, which
// a new goroutine grows step by step, copying it each time.
type runners struct {
	run     func(*attempt)
	waiting chan *attempt // to a runner that waits; closed by close
	idle    atomic.Int32  // number of runners that wait
	all     sync.WaitGroup
}

// runner is what a goroutine keeps from one attempt to the next.
type runner struct {
	path      string        // of the last call of the engine
	call      *http.Request // that call, without header and body; later ones are copied from it
	inspector api.Inspector
	local     local
}

func newRunners(run func(*attempt)) *runners {
	return &runners{run: run, waiting: make(chan *attempt)}
}

func (rs *runners) start(a *attempt) {
	select {
	case rs.waiting <- a:
	default:
		rs.all.Go(func() { rs.loop(a) }) // ends when mostIdle others wait, or with close
	}
}

func (rs *runners) loop(a *attempt) {
	r := new(runner)
	for ok := true; ok; {
		a.runner = r
		rs.run(a)
		if rs.idle.Add(1) <= mostIdle {
			a, ok = <-rs.waiting
		} else {
			ok = false
		}
		rs.idle.Add(-1)
	}
}

// close ends the runners, and returns when the attempts that they run have ended. start must not be called any more.
func (rs *runners) close() {
	close(rs.waiting)
	rs.all.Wait()
}
