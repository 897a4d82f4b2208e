package worker

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

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
)

// severalTimes is by which factor the requests in flight may have grown since an attempt began for what was measured of such
// attempts to hold.
const severalTimes = 4

// failedRequest is a request that failed here.
type failedRequest struct {
	at         time.Time
	handedBack bool // since it failed
}

// finished is a delivery whose attempt has ended, and when it did.
type finished struct {
	ack string
	at  time.Time
}

// finishedList are those of one gateway, the oldest first. Those before first are forgotten.
type finishedList struct {
	all   []finished
	first int
}

// unsettledFor is how long after the end of an attempt its gateway may not have settled the delivery, if it was killed: until
// that is noticed.
const unsettledFor = 3 * time.Second

// fault is a failure that is remembered, and until when.
type fault struct {
	failure
	until time.Time
}

// attempts owns the attempts that run, and remembers the requests that should not be attempted here again for now.
type attempts struct {
	done   atomic.Uint64 // attempts with a whole answer
	failed atomic.Uint64

	streams  atomic.Int32 // streams that have had their first byte
	parallel atomic.Int32 // most of them at once

	listing chan struct{} // signals that gateways are to be told now what runs; capacity 1

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

	// finished has the deliveries whose attempts ended lately, by gateway, the oldest first: one that is killed settles none.
	finished map[string]*finishedList

	cheap  int           // those of running that are cheap
	closed bool          // no attempt may begin any more
	ended  chan struct{} // closed when closed is set and none runs
}

func newAttempts() *attempts {
	return &attempts{
		listing:    make(chan struct{}, 1),
		running:    make(map[uint64]*attempt),
		finished:   make(map[string]*finishedList),
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

// onFinished remembers for a while the delivery of an attempt that ends.
func (as *attempts) onFinished(a *attempt, now time.Time) {
	as.mu.Lock()
	defer as.mu.Unlock()
	l := as.finished[a.req.Gateway]
	if l == nil {
		l = new(finishedList)
		as.finished[a.req.Gateway] = l
	}
	for l.first < len(l.all) && now.Sub(l.all[l.first].at) > unsettledFor {
		l.first++
	}
	if l.first > len(l.all)/2 {
		l.all, l.first = slices.Delete(l.all, 0, l.first), 0
	}
	l.all = append(l.all, finished{a.msg.Reply, now})
}

// takeFinished returns the deliveries of attempts for a gateway that have ended lately, once.
func (as *attempts) takeFinished(gateway string) (acks []string) {
	as.mu.Lock()
	defer as.mu.Unlock()
	if l := as.finished[gateway]; l != nil {
		for _, f := range l.all[l.first:] {
			acks = append(acks, f.ack)
		}
		delete(as.finished, gateway)
	}
	return acks
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
	all := as.all()
	for _, a := range all {
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
		p.add(a, policy.AwaitToken(gap).Patience(), len(all), now)
	}
	return r
}

// add includes an attempt that has begun. usual is how long a stream may be silent between two tokens, and running how many
// attempts there are.
func (p *poolAttempts) add(a *attempt, usual time.Duration, running int, now time.Time) {
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
	due := a.due
	if running > severalTimes*(a.timing.beside+1) {
		due = policy.Due{}
	}
	if p.waiting > 0 {
		awaited, due = p.awaited.With(awaited), p.due.With(due)
	}
	p.due = due
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
	maps.DeleteFunc(as.finished, func(_ string, l *finishedList) bool { return now.Sub(l.all[len(l.all)-1].at) > unsettledFor })
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

// gateways returns the gateways of other processes that have been told of an attempt which runs.
func (as *attempts) gateways() (ids []string) {
	for _, a := range as.all() {
		if a.claimed.Load() && !slices.Contains(ids, a.req.Gateway) {
			ids = append(ids, a.req.Gateway)
		}
	}
	return ids
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
