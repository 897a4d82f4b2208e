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

// flight is one request from its admission to its last byte. The handler's
// goroutine owns it; what the dispatcher touches too is guarded.
type flight struct {
	// Fixed before it is published.
	req     *subjects.Request // Pool and Tier are those it was admitted to: see at
	caller  *caller
	route   *policy.Route // nil: none
	routed  string        // the route's name
	home    uint64        // where the conversation goes is learned under it; 0: not at all
	edits   api.Edits
	cost    int  // tokens, in its tenant's turn
	nobody  bool // waits for it: a copy, or a dead letter that runs again
	arrived time.Time
	until   time.Time // its deadline

	// The handler's own.
	copies  int       // messages with an id of their own that were published
	sent    time.Time // when the last message was
	inQueue time.Time // when it was last seen to be there
	since   time.Time // when it came to its lane
	counted bool      // a failure of it counts against its side of a shift
	ticket  *ticket   // it is held here; nil: it is published, or soon

	first place                 // where it was admitted to
	where atomic.Pointer[place] // written by the handler alone
	bytes atomic.Int64          // written to the client

	mu       sync.Mutex
	body     []byte
	seq      uint64        // of its message in the tier's stream; 0 until known
	number   uint64        // of the message that the broker has not confirmed; 0: none
	unstored error         // why the broker did not take it
	word     chan struct{} // closed when the broker's word comes, if somebody waits for it
	left     leftover      // a message that may still be delivered and is not the one
	lost     bool          // its message is, with the stream
	move     bool          // its home is gone: it has to go to the shared lane
	purged   error         // an operator wants it gone
	current  *attempt
	over     bool
	history  policy.History
	failed   map[string]bool // workers that failed it, by id
	refused  map[string]bool // workers that had no slot for it
	starts   int
	events   []event
	few      [3]event // what events begins with: a short answer that does not stream has no more
	taken    []event  // what take returned last
	pending  int      // bytes in events
	notify   chan struct{}
	claimed  time.Time
	begun    bool // its answer has begun to reach the client

	firstByte time.Time // when it did; the handler's own
}

// attempt is a worker's granted start on a flight.
type attempt struct {
	mark   uint64
	worker string // id
	name   string
	ack    string // where the delivery is settled
	number int
	began  time.Time
	seq    uint32 // of the last message
	alive  time.Time
	dead   bool // it failed; nothing more of it counts
}

// event is what the dispatcher hands to the handler: a frame of the worker, or a
// fail of the gateway itself.
type event struct {
	subjects.Frame
	payload []byte // of a frame from the broker that is not data: not parsed yet
	crashed bool   // the worker died
}

// parse reads what came from the broker. Something malformed is a frame of
// nothing.
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

// place is a queue that a request may wait in.
type place struct {
	pool  string
	tier  policy.Tier
	lane  string
	queue *queue
	join  joinPoint
}

// leftover is a message of a request that has moved to another queue.
type leftover struct {
	stream string
	seq    uint64 // it, and all before it
}

func newFlight(req *subjects.Request, at place, body []byte, now time.Time, timeout time.Duration) *flight {
	f := &flight{
		req: req, first: at, body: body, arrived: now, until: now.Add(timeout), inQueue: now, since: now,
		history: policy.History{MaxAttempts: at.tier.Retries + 1},
		notify:  make(chan struct{}, 1),
	}
	f.events = f.few[:0]
	f.where.Store(&f.first)
	return f
}

// at is the queue that it waits in, or was taken from.
func (f *flight) at() *place { return f.where.Load() }

// order makes it end with an error, from outside of its handler.
func (f *flight) order(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.purged = err
	f.wake()
}

// purge does the same if it waits for a worker. It says whether it does.
func (f *flight) purge(err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over || f.current != nil {
		return false
	}
	f.purged = err // from here on no claim is granted
	f.wake()
	return true
}

// displace makes it leave the home lane of a worker that is gone.
func (f *flight) displace(worker string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.over && f.current == nil && f.at().lane == worker {
		f.move = true
		f.wake()
	}
}

// leaveQueue makes it leave a queue whose tier is gone.
func (f *flight) leaveQueue() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.over && f.current == nil {
		f.move = true
		f.wake()
	}
}

func (f *flight) wake() {
	select {
	case f.notify <- struct{}{}:
	default:
	}
}

// take returns what has come since the last take, whose events it forgets.
func (f *flight) take() []event {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.taken)
	f.taken, f.events, f.pending = f.events, f.taken[:0], 0
	return f.taken
}

// lose makes it be published again if its message was in the stream of a tier.
func (f *flight) lose(tier string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.over && f.current == nil && f.seq > 0 && f.at().tier.Name == tier {
		f.lost = true
		f.wake()
	}
}

// claim arbitrates a worker's claim. others says, of the live workers of the
// pool that are not in a set, how many there are and how many have a free slot.
func (f *flight) claim(c *subjects.Claim, now time.Time, others func(avoid map[string]bool) (live, free int)) (v subjects.Verdict, delayMS int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.over, f.purged != nil, f.stale(c.Ack):
		return subjects.Gone, 0
	case f.current != nil:
		return subjects.Elsewhere, 0
	case f.failed[c.Worker] || f.refused[c.Worker]:
		if live, free := others(f.avoidLocked()); free > 0 {
			return subjects.OtherWorker, 0
		} else if live > 0 {
			return subjects.OtherWorker, 100
		}
	}
	if f.seq == 0 { // it is faster than the broker's word
		if d, err := subjects.ParseAck(c.Ack); err == nil {
			f.seq = d.StreamSeq
			f.toldLocked()
		}
	}
	f.unstored = nil // the message is there after all
	f.starts++
	f.current = &attempt{mark: c.Attempt, worker: c.Worker, name: c.Name, ack: c.Ack, number: f.starts, began: now, alive: now}
	f.claimed = now
	f.at().queue.claimed(f.at().lane, now)
	return subjects.Granted, 0
}

// avoidLocked are the workers that failed or refused the request.
func (f *flight) avoidLocked() map[string]bool {
	avoid := maps.Clone(f.failed)
	maps.Copy(avoid, f.refused)
	return avoid
}

// stale says that a delivery is of a message that the request left behind.
func (f *flight) stale(ack string) bool {
	if f.left.seq == 0 {
		return false
	}
	d, err := subjects.ParseAck(ack)
	return err == nil && d.Stream == f.left.stream && d.StreamSeq <= f.left.seq
}

// maxPending bounds what a worker may have sent beyond its credit.
const maxPending = 2*subjects.Window + 2*subjects.MaxFrame

// message takes in frames as they came from the broker.
func (f *flight) message(p subjects.Prefix, msg []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.hearLocked(p) {
		return
	}
	for len(msg) > 0 {
		kind, payload, rest, err := subjects.NextFrame(msg)
		if err != nil {
			f.failLocked(subjects.Fail{Class: subjects.FailTruncated, Reason: fmt.Sprintf("worker %s: %v", f.current.name, err)}, false)
			return
		}
		msg = rest
		ev := event{Frame: subjects.Frame{Kind: kind}}
		if kind == subjects.KindData {
			ev.Data = payload
		} else {
			ev.payload = payload
		}
		if !f.addLocked(ev) {
			return
		}
	}
	f.wake()
}

// frames takes in those of a worker in this process.
func (f *flight) frames(p subjects.Prefix, frames []subjects.Frame) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.hearLocked(p) {
		return
	}
	for _, frame := range frames {
		if !f.addLocked(event{Frame: frame}) {
			return
		}
	}
	f.wake()
}

// hearLocked says whether a message is the next one of the running attempt;
// anything else is stale, or the end of it.
func (f *flight) hearLocked(p subjects.Prefix) bool {
	a := f.current
	if a == nil || a.dead || a.mark != p.Attempt || f.over {
		return false
	}
	if p.Seq != a.seq+1 {
		f.failLocked(subjects.Fail{Class: subjects.FailTruncated, Reason: fmt.Sprintf("worker %s: frames lost between %d and %d", a.name, a.seq, p.Seq)}, false)
		return false
	}
	a.seq = p.Seq
	return true
}

// addLocked adds a frame of the running attempt. False: that was too much.
func (f *flight) addLocked(ev event) bool {
	if f.pending += len(ev.Data) + len(ev.payload); f.pending > maxPending {
		f.failLocked(subjects.Fail{Class: subjects.FailTruncated, Reason: fmt.Sprintf("worker %s sent beyond its credit", f.current.name)}, false)
		return false
	}
	f.events = append(f.events, ev)
	if ev.Kind == subjects.KindFail || ev.Kind == subjects.KindEnd {
		f.current.dead = true
	}
	return true
}

// failLocked ends the running attempt.
func (f *flight) failLocked(fail subjects.Fail, crashed bool) {
	if f.current == nil || f.current.dead || f.over {
		return
	}
	f.current.dead = true
	f.events = append(f.events, event{Frame: subjects.Frame{Kind: subjects.KindFail, Fail: &fail}, crashed: crashed})
	f.wake()
}

// lostWorker ends the attempt that runs on a worker, if it does.
func (f *flight) lostWorker(worker, why string) (had bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current == nil || f.current.worker != worker {
		return false
	}
	f.failLocked(subjects.Fail{Class: subjects.FailEngine, Reason: why}, true)
	return true
}

// listed takes a worker's word that it runs an attempt and how much it sent.
// False: that attempt is not the one.
func (f *flight) listed(a subjects.AliveAttempt, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over || f.current == nil || f.current.mark != a.Attempt || f.current.dead {
		return false
	}
	f.current.alive = now
	if a.Sent > f.current.seq { // they were sent before this word, on the same connection
		f.failLocked(subjects.Fail{Class: subjects.FailTruncated, Reason: fmt.Sprintf("worker %s: frames lost after %d", f.current.name, f.current.seq)}, false)
	}
	return true
}

// keepAttempt keeps an attempt from being ended by quiet: the gateway itself was stopped.
func (f *flight) keepAttempt(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current != nil {
		f.current.alive = now
	}
}

// quiet ends an attempt that its live worker no longer lists.
func (f *flight) quiet(now time.Time, limit time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current != nil && now.Sub(f.current.alive) > limit {
		f.failLocked(subjects.Fail{Class: subjects.FailTruncated, Reason: "worker " + f.current.name + " lost the request"}, false)
	}
}

// queued says whether it waits for a worker, and under which sequence: 0 while
// it waits for its turn, or the broker has not confirmed it.
func (f *flight) queued() (seq uint64, yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seq, !f.over && f.current == nil
}

func (f *flight) info(gateway string, now time.Time) subjects.RequestInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := subjects.RequestInfo{
		ID: f.req.ID.String(), Gateway: gateway, Tenant: f.req.Tenant, Model: f.req.Model, Tier: f.at().tier.Name, Pool: f.at().pool,
		Path: f.req.Path, Stream: f.req.Stream, State: "queued", Attempt: f.starts, Arrived: f.arrived,
		AgeMS: now.Sub(f.arrived).Milliseconds(), QueueMS: now.Sub(f.arrived).Milliseconds(), BytesOut: f.bytes.Load(),
	}
	if f.current != nil {
		i.State, i.Worker = "running", f.current.name
		i.QueueMS = f.claimed.Sub(f.arrived).Milliseconds()
		if f.begun {
			i.State = "answering"
		}
	}
	return i
}

// requests are the requests that this gateway holds.
type requests struct {
	mu   sync.Mutex
	byID map[subjects.ID]*flight
}

func newRequests() *requests { return &requests{byID: make(map[subjects.ID]*flight)} }

func (rs *requests) add(f *flight) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.byID[f.req.ID] = f
}

func (rs *requests) remove(f *flight) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.byID, f.req.ID)
}

// find returns a request; nil if it is not here.
func (rs *requests) find(id subjects.ID) *flight {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.byID[id]
}

// all returns the requests that there are now.
func (rs *requests) all() []*flight {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return slices.Collect(maps.Values(rs.byID))
}

func (rs *requests) count() int {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return len(rs.byID)
}
