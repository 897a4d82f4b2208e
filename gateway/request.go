package gateway

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// request is one request from its admission to its last byte. Its handler's goroutine serves it (serve.go). Claims, frames
// and the orders of operators arrive on other goroutines, which note them under the lock and wake the handler.
type request struct {
	spec // fixed after admission

	notify   chan struct{}          // wakes the handler; its capacity is 1
	target   atomic.Pointer[target] // where the request waits or was taken from; only the handler changes it
	bytesOut atomic.Int64           // written to the client
	meters   atomic.Pointer[meters] // those of its metrics; see metrics.of

	// Owned by the handler's goroutine.
	ticket         *ticket        // its place among the held requests; nil once it may be published
	laneSince      time.Time      // when it came to its lane
	failureCounted bool           // the results of its route's shift include a failure of it
	firstByte      time.Time      // when the first byte of an answer was written
	taken          []event        // what take returned last; its memory is reused
	said           *subjects.Fail // the last failure of an engine that came with its own answer; nil if none did
	reason         string         // why the last attempt of a cheap call failed
	dead           bool           // it has become a dead letter
	tries          []string       // what each attempt was and how it failed, for people
	failedAt       []string       // ids of the workers whose attempts failed, other than for want of a slot

	mu        sync.Mutex
	message   message              // its message in the stream of its tier: see publisher.go
	body      []byte               // nil once the request has ended; only the handler changes it
	ended     bool                 // nothing that arrives counts any more
	order     error                // an operator's order: the handler ends the request with this error
	takenBack bool                 // by the service that watches it
	moves     bool                 // its lane or its tier is gone: the handler moves it
	attempt   *attempt             // the granted one; nil while the request waits
	attempts  int                  // granted so far
	claimed   time.Time            // when the last attempt was granted
	delayed   bool                 // it waits for another attempt that is due only after a while: see queue.delay
	due       time.Time            // then
	begun     bool                 // bytes of an answer have been written to the client
	events    []event              // what has arrived for the handler
	buffered  int                  // bytes in events
	history   policy.History       // failures so far
	unpinned  bool                 // the worker of pin has failed it, so that any may take it
	avoid     map[string]bool      // ids of the workers that failed it or had no slot for it
	refused   map[string]bool      // ids of those that had no slot
	wasLate   bool                 // it was moved to another worker because its first byte was late
	turn      *turn                // while it moves with others
	suspects  map[string]time.Time // when attempts failed that may turn out to have killed their engine, by the id of the worker
}

// spec is what a request was admitted with.
type spec struct {
	wire       *subjects.Request // what workers get; its pool and tier are those of admitted
	api        api.API           // the API of its path
	caller     *caller
	routeName  string        // the name of its model's route; empty if there is none
	route      *policy.Route // the route; nil if there is none
	affinity   uint64        // the key under which its worker is remembered; 0: it is not
	edits      api.Edits     // how its answer is edited
	cost       int           // tokens that it counts for its tenant in the queue
	home       string        // the id of the live worker that has its conversation cached; empty if none is known
	pin        string        // the id of the only worker that should take it; empty: any may
	needs      need          // how much of a context it needs; its handler may change it
	explain    bool          // its answer explains itself: see receipt
	cheap      bool          // it needs no slot, and waits in no queue: see cheapCalls
	record     *record       // of its call; nil: there is none
	unattended bool          // no client waits for it: a mirror's copy, or a dead letter that runs again
	arrived    time.Time
	deadline   time.Time // until when the first byte of an answer must have come
	patience   patience  // what ends an answer that has begun, and why
	admitted   target    // its first target
}

// target is the lane of a queue that a request is put on.
type target struct {
	queue *queue
	tier  policy.Tier
	lane  string
	join  joinPoint
	since time.Time // when the request joined the queue
}

// delivers says whether a delivery is one of the lane.
func (t *target) delivers(d subjects.Delivery) bool {
	consumer := t.queue.shared
	if t.lane != subjects.Shared {
		consumer = subjects.ReqConsumer(t.queue.pool, t.lane)
	}
	return d.Stream == t.queue.stream && d.Consumer == consumer
}

// attempt is a granted claim: one worker's run of a request.
type attempt struct {
	// Fixed.
	mark   uint64 // the worker's random number for it
	worker string // the worker's id
	name   string // the worker's name
	number int    // counts the attempts of a request from 1
	rung   int    // of the worker's bid
	began  time.Time

	taken atomic.Int64 // body bytes in the last WindowUpdate

	// Guarded by request.mu.
	ack    string    // the subject on which the delivery is settled
	seq    uint32    // sequence of the last message of frames
	listed time.Time // when the worker last listed it as running
	behind time.Time // since when the worker lists more messages than have come; zero: it does not
	late   bool      // the worker said then that its first byte is late
	over   bool      // it has ended or failed: none of its frames counts any more
}

// event is something for the handler: a frame of the worker, or a Fail that the gateway itself makes.
type event struct {
	subjects.Frame
	payload []byte // the payload of a frame from the broker that is not data; the handler parses it
	crashed bool   // the attempt failed because its worker is gone
	moved   bool   // another worker should have the request: the retry budget has been asked
	turn    *turn  // when it may be put on the queue again
}

// parse parses the payload. A malformed frame becomes a frame of its kind without content.
func (e *event) parse() {
	if e.payload == nil {
		return
	}
	frame, err := subjects.ParseFrame(e.Kind, e.payload)
	if err != nil {
		frame = subjects.Frame{Kind: e.Kind}
	}
	e.Frame, e.payload = frame, nil
}

// newRequest makes a request that has joined the queue of its spec.
func newRequest(s *spec, body []byte) *request {
	r := &request{
		spec: *s, body: body, laneSince: s.arrived, notify: make(chan struct{}, 1),
		message: message{seenAt: s.arrived},
		history: policy.History{MaxAttempts: s.admitted.tier.Retries + 1},
	}
	r.target.Store(&r.admitted)
	return r
}

// take returns the events since the last call, and forgets those that it returned then.
func (r *request) take() []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.taken)
	r.taken, r.events, r.buffered = r.events, r.taken[:0], 0
	return r.taken
}

// orders is what other goroutines want the handler to do.
type orders struct {
	err        error // end the request with it
	notStored  error // publish again: the broker did not store the message, for this reason
	republish  bool  // the message was lost with its stream
	moveShared bool  // move to the shared lane
}

func (r *request) takeOrders() orders {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := orders{r.order, r.message.err, r.message.lost && r.attempt == nil, r.moves}
	r.message.err, r.message.lost, r.moves = nil, false, false
	return o
}

// waiting says whether the request waits in a queue for a worker, and the sequence of its message: 0 while the message is not
// published or not confirmed.
func (r *request) waiting() (seq uint64, waits bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.message.seq, r.waitsLocked()
}

// stands says whether the request waits in the broker, and any worker may take it now.
func (r *request) stands(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waitsLocked() && r.message.seq > 0 && !(r.delayed && now.Before(r.due))
}

func (r *request) waitsLocked() bool { return !r.ended && r.attempt == nil && !r.cheap }

// begin notes that an answer begins to reach the client. It returns when the attempt was granted.
func (r *request) begin(now time.Time) (claimed time.Time) {
	r.firstByte = now
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun = true
	return r.claimed
}

// current is the attempt that was granted last, unless it has failed and another is due.
func (r *request) current() *attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.attempt
}

// undelay reports whether the request was delayed in its queue. It is no longer.
func (r *request) undelay() (was bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was, r.delayed = r.delayed, false
	return was
}

// retry lets another attempt be granted, which is due after a delay. It returns the ack subject of the delivery that is to be
// handed back, and those of deliveries of other messages of the request, which are to be settled.
func (r *request) retry(delay time.Duration, now time.Time) (ack string, others []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ack, others = r.attempt.ack, r.message.others
	r.attempt, r.message.others, r.message.passed = nil, nil, time.Time{}
	r.delayed, r.due = delay > 0, now.Add(delay)
	return ack, others
}

// avoided returns the workers that failed or refused the request so far.
func (r *request) avoided() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.avoid)
}

// end ends the request: nothing that comes for it counts any more. It returns the last attempt, nil if the request waits, and
// the ack subjects of deliveries of other messages of the request, which are to be settled.
func (r *request) end() (last *attempt, others []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	r.endTurnLocked()
	r.body, r.events, r.taken = nil, nil, nil
	return r.attempt, r.message.others
}

// fail notes in the request's history that an attempt failed. It also returns the workers that refused the request so far.
func (r *request) fail(a *attempt, class subjects.FailClass, crashed bool) (h policy.History, refused map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.avoid == nil {
		r.avoid, r.refused = make(map[string]bool), make(map[string]bool)
	}
	r.avoid[a.worker] = true
	r.unpinned = true
	if !crashed && (class == subjects.FailEngine || class == subjects.FailTruncated || class == subjects.FailStalled) {
		if r.suspects == nil {
			r.suspects = make(map[string]time.Time)
		}
		r.suspects[a.worker] = time.Now()
	}
	switch {
	case crashed:
		r.history.Failures++
		r.history.Crashes++
	case class == subjects.FailRefused:
		r.history.Refusals++
		r.refused[a.worker] = true
	case class == subjects.FailMisfit:
		r.history.Misfits++
		r.refused[a.worker] = true
	case class == subjects.FailCredentials: // there is time to wait: the worker is down until the engine accepts them
		r.history.Refusals++
	case class == subjects.FailCrashed:
		r.history.Failures++
		r.history.Crashes++
	case class == subjects.FailDraining:
		r.refused[a.worker] = true
	default:
		r.history.Failures++
	}
	return r.history, maps.Clone(r.refused)
}

// diedWithin is how long after an attempt failed the death of its engine counts as caused by it.
const diedWithin = 10 * time.Second

// onEngineDied notes that a worker is gone, or its engine is down: an attempt that failed there shortly before has killed it. If
// that is one too many, the request ends.
func (r *request) onEngineDied(worker string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, suspect := r.suspects[worker]
	if !suspect || now.Sub(at) > diedWithin || r.ended || r.begun {
		return
	}
	delete(r.suspects, worker)
	r.history.Crashes++
	if next, _ := r.history.After(); next == policy.DeadLetter && r.order == nil {
		r.order = errKills
		r.wake()
	}
}

// pinned is the id of the only worker that should take the request while it waits; empty if any may.
func (r *request) pinned() string {
	if r.pin == "" {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unpinned || r.order != nil || !r.waitsLocked() {
		return ""
	}
	return r.pin
}

func (r *request) wake() {
	select {
	case r.notify <- struct{}{}:
	default:
	}
}

// claim arbitrates a claim of the delivery d and returns where the request waited. A delivery of another lane or message
// is not granted: the gateway would settle that. A worker that failed or refused the request before is not granted it, unless
// again is set: the workers to avoid are returned, and the caller finds out whether there are others.
func (r *request) claim(c *subjects.Claim, d subjects.Delivery, again bool, now time.Time) (v subjects.Verdict, at *target, avoid map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at = r.target.Load()
	switch {
	case r.ended, r.order != nil, r.message.left.covers(d), !at.delivers(d):
		return subjects.Gone, at, nil
	case r.attempt != nil:
		r.deliveredAgainLocked(c.Ack, d)
		return subjects.Elsewhere, at, nil
	case r.message.seq > 0 && d.StreamSeq != r.message.seq: // an older copy, or another request's message
		return subjects.Gone, at, nil
	case !again && r.avoid[c.Worker]:
		return subjects.OtherWorker, at, maps.Clone(r.avoid)
	}
	if r.message.seq == 0 { // the claim arrived before the ack
		r.message.seq = d.StreamSeq
		r.message.endAwait()
	}
	r.message.err = nil // the message is there after all
	r.attempts++
	r.attempt = &attempt{mark: c.Attempt, worker: c.Worker, name: c.Name, ack: c.Ack, number: r.attempts, rung: c.Rung, began: now, listed: now}
	r.claimed = now
	r.endTurnLocked()
	return subjects.Granted, at, nil
}

// maxOthers bounds message.others: there is more than one only if the broker loses its state again and again.
const maxOthers = 8

// deliveredAgainLocked notes a delivery that is refused because the request runs. Of the same message, it replaces the one
// that runs: the broker may have lost what it knew of that.
func (r *request) deliveredAgainLocked(ack string, d subjects.Delivery) {
	known, err := subjects.ParseAck(r.attempt.ack)
	switch {
	case err != nil || d.Stream != known.Stream:
	case d.StreamSeq == known.StreamSeq:
		r.attempt.ack = ack
	case len(r.message.others) < maxOthers && !slices.Contains(r.message.others, ack):
		r.message.others = append(r.message.others, ack)
	}
}

// maxBuffered bounds the bytes of the frames that wait for the handler: what flow control allows, and a margin.
const maxBuffered = 2*subjects.Window + 2*subjects.MaxFrame

// onMessage takes in a message of frames that a worker sent through the broker.
func (r *request) onMessage(worker string, p subjects.Prefix, msg []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.attempt == nil || r.attempt.worker != worker || !r.expectedLocked(p) {
		return
	}
	for len(msg) > 0 {
		kind, payload, rest, err := subjects.NextFrame(msg)
		if err != nil {
			r.failAttemptLocked(subjects.FailTruncated, fmt.Sprintf("worker %s: %v", r.attempt.name, err), false)
			return
		}
		msg = rest
		ev := event{Frame: subjects.Frame{Kind: kind}}
		if kind == subjects.KindData {
			ev.Data = payload
		} else {
			ev.payload = payload
		}
		if !r.addLocked(ev) {
			return
		}
	}
	r.wake()
}

// onFrames takes in the frames of a worker in this process.
func (r *request) onFrames(p subjects.Prefix, frames []subjects.Frame) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.expectedLocked(p) {
		return
	}
	r.events = slices.Grow(r.events, len(frames))
	for _, frame := range frames {
		if !r.addLocked(event{Frame: frame}) {
			return
		}
	}
	r.wake()
}

// expectedLocked says whether a message is the next one of the running attempt. Others are stale, or show that one is
// lost, which fails the attempt.
func (r *request) expectedLocked(p subjects.Prefix) bool {
	a := r.attempt
	if a == nil || a.over || a.mark != p.Attempt || r.ended {
		return false
	}
	if p.Seq != a.seq+1 {
		r.failAttemptLocked(subjects.FailTruncated, fmt.Sprintf("worker %s: frames lost between %d and %d", a.name, a.seq, p.Seq), false)
		return false
	}
	a.seq, a.behind = p.Seq, time.Time{}
	return true
}

// addLocked adds a frame of the running attempt. It returns false, and fails the attempt, if there are too many.
func (r *request) addLocked(ev event) bool {
	if r.buffered += len(ev.Data) + len(ev.payload); r.buffered > maxBuffered {
		r.failAttemptLocked(subjects.FailTruncated, fmt.Sprintf("worker %s exceeded its flow-control window", r.attempt.name), false)
		return false
	}
	r.events = append(r.events, ev)
	if ev.Kind == subjects.KindFail || ev.Kind == subjects.KindEnd {
		r.attempt.over = true
	}
	return true
}

// failAttemptLocked fails the running attempt, if there is one.
func (r *request) failAttemptLocked(class subjects.FailClass, reason string, crashed bool) {
	if r.attempt == nil || r.attempt.over || r.ended {
		return
	}
	fail := &subjects.Fail{Class: class, Reason: reason}
	r.overLocked(event{Frame: subjects.Frame{Kind: subjects.KindFail, Fail: fail}, crashed: crashed})
}

// overLocked ends the running attempt with a failure.
func (r *request) overLocked(failed event) {
	r.attempt.over = true
	r.events = append(r.events, failed)
	r.wake()
}

// onWorkerGone fails the attempt that runs on a worker that is gone, and says whether there was one. If the request waits
// on the worker's home lane, it has to move.
func (r *request) onWorkerGone(worker, reason string) (had bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.attempt != nil && r.attempt.worker == worker {
		r.failAttemptLocked(subjects.FailEngine, reason, true)
		had = true
	}
	if r.waitsLocked() && r.target.Load().lane == subjects.StableID(worker) {
		r.moveLocked()
	}
	return had
}

// onTierGone makes the request move if it waits: its tier is not in the policy any more.
func (r *request) onTierGone() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waitsLocked() {
		r.moveLocked()
	}
}

func (r *request) moveLocked() {
	r.moves = true
	r.wake()
}

// onStreamLost makes the request be published again if its message was in the stream of that tier.
func (r *request) onStreamLost(tier string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waitsLocked() && r.message.seq > 0 && r.target.Load().tier.Name == tier {
		r.message.lost = true
		r.wake()
	}
}

// onMessageLost makes the request be published again if it still waits, and its message is the one of that sequence.
func (r *request) onMessageLost(seq uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.waitsLocked() || r.message.lost || r.message.seq != seq {
		return false
	}
	r.message.lost = true
	r.wake()
	return true
}

// lostAfter is how long a worker may list more messages than have come: its link sends them again.
const lostAfter = 10 * time.Second

// onListed takes in that a worker lists an attempt as running, and how many messages it has sent. It returns how many bytes
// the client has taken, as the worker was last told, and false if that is not the request's attempt.
func (r *request) onListed(worker string, l subjects.AliveAttempt, now time.Time) (taken int64, wanted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.attempt
	if r.ended || a == nil || a.worker != worker || a.mark != l.Attempt || a.over {
		return 0, false
	}
	a.listed, a.late = now, l.Late
	switch {
	case l.Sent <= a.seq:
		a.behind = time.Time{}
	case a.behind.IsZero():
		a.behind = now
	case now.Sub(a.behind) > lostAfter:
		r.failAttemptLocked(subjects.FailTruncated, fmt.Sprintf("worker %s: frames lost after %d", a.name, a.seq), false)
	}
	return a.taken.Load(), true
}

// checkListed fails an attempt that its live worker no longer lists. deaf says that this gateway did not hear the worker.
func (r *request) checkListed(now time.Time, deaf bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.attempt
	switch {
	case a == nil:
	case deaf:
		a.listed, a.behind = now, time.Time{}
	case now.Sub(a.listed) > listDeadline:
		r.failAttemptLocked(subjects.FailTruncated, "worker "+a.name+" lost the request", false)
	}
}

// progress is how far a request has come, for those who decide whether another worker should have it.
type progress struct {
	attempt  *attempt // the one that runs; nil: none does
	answered bool     // something of its answer has reached the client
	late     bool     // its first byte is late by its worker's measure
	wasLate  bool     // the request was moved before because its first byte was late
	last     bool     // after a failure of this attempt there is no other one
	again    bool     // it waits for another attempt, or is about to
}

func (r *request) progress() progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.attempt
	if r.ended || a == nil || a.over {
		answered := r.ended || r.begun
		return progress{answered: answered, wasLate: r.wasLate, again: !answered && (a != nil || r.history.Failures > 0)}
	}
	return progress{attempt: a, answered: r.begun, late: a.late, wasLate: r.wasLate, last: r.history.Failures+1 >= r.history.MaxAttempts}
}

// shunned returns the workers that should not have the request next: those that failed it, and the one that runs it.
func (r *request) shunned(a *attempt) (avoid map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	avoid = map[string]bool{a.worker: true}
	maps.Copy(avoid, r.avoid)
	return avoid
}

// giveUp fails an attempt of whose answer nothing has reached the client, so that another worker has the request. late says
// that the only reason is its first byte. It reports whether it has.
func (r *request) giveUp(a *attempt, reason string, late bool, turn *turn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.attempt != a || a.over || r.begun || r.ended {
		return false
	}
	r.wasLate = r.wasLate || late
	fail := &subjects.Fail{Class: subjects.FailStalled, Reason: reason}
	r.overLocked(event{Frame: subjects.Frame{Kind: subjects.KindFail, Fail: fail}, moved: true, turn: turn})
	r.turn = turn
	return true
}

func (r *request) endTurnLocked() {
	r.turn.onTaken()
	r.turn = nil
}

// cancel makes the handler end the request with an error.
func (r *request) cancel(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order = err
	r.wake()
}

// cancelWaiting does the same if the request waits for a worker. It says whether it does.
func (r *request) cancelWaiting(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.waitsLocked() {
		return false
	}
	r.order = err // from here on no claim is granted
	r.wake()
	return true
}

// piece returns the body from an offset on.
func (r *request) piece(offset int64) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pieceLocked(offset)
}

func (r *request) pieceLocked(offset int64) []byte {
	if offset < 0 || offset > int64(len(r.body)) {
		return nil
	}
	return r.body[offset:]
}

// pieceFor returns the body from an offset on, if the worker runs the request; else nothing. An older worker does not say
// which one it is.
func (r *request) pieceFor(worker string, offset int64) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.attempt == nil || worker != "" && r.attempt.worker != worker {
		return nil
	}
	return r.pieceLocked(offset)
}

func (r *request) info(gateway string, now time.Time) subjects.RequestInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.target.Load()
	i := subjects.RequestInfo{
		ID: r.wire.ID.String(), Gateway: gateway, Tenant: r.wire.Tenant, Model: r.wire.Model, Tier: at.tier.Name, Pool: at.queue.pool,
		Path: r.wire.Path, Stream: r.wire.Stream, State: "queued", Attempt: r.attempts, Arrived: r.arrived,
		AgeMS: now.Sub(r.arrived).Milliseconds(), QueueMS: now.Sub(r.arrived).Milliseconds(), BytesOut: r.bytesOut.Load(),
	}
	if own := r.wire.Header.Get("X-Request-Id"); own != i.ID {
		i.ClientID = own
	}
	if r.attempt != nil {
		i.State, i.Worker = "running", r.attempt.name
		i.QueueMS = r.claimed.Sub(r.arrived).Milliseconds()
		if r.begun {
			i.State = "answering"
		}
	}
	return i
}

func (r *request) detail(gateway string, now time.Time) subjects.RequestDetail {
	d := subjects.RequestDetail{
		RequestInfo: r.info(gateway, now), Deadline: time.UnixMilli(r.wire.Deadline), Lane: r.target.Load().lane,
		InputTokens: r.wire.InputTokens, BodySize: r.wire.BodySize, Header: r.wire.Header,
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d.Failures, d.Refusals = r.history.Failures, r.history.Refusals
	return d
}

// requests are the requests that a gateway holds.
type requests struct {
	mu   sync.Mutex
	byID map[subjects.ID]*request
}

func newRequests() *requests { return &requests{byID: make(map[subjects.ID]*request)} }

func (rs *requests) add(r *request) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.byID[r.wire.ID] = r
}

func (rs *requests) remove(r *request) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.byID, r.wire.ID)
}

func (rs *requests) find(id subjects.ID) *request {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.byID[id]
}

func (rs *requests) all() []*request {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return slices.Collect(maps.Values(rs.byID))
}

func (rs *requests) count() int {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return len(rs.byID)
}
