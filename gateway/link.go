package gateway

import (
	"maps"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

const (
	// ackBytes is how much of a link may be unacknowledged: the worker keeps that.
	ackBytes = 256 << 10

	// ackEvery is how often links are acknowledged otherwise.
	ackEvery = 250 * time.Millisecond

	// askEvery is how often missing messages of a link are asked for.
	askEvery = 100 * time.Millisecond

	// asksAgain is how many heartbeats of a worker after a gap, of it or of this gateway, have its link asked for what is
	// missing: what was on the way in the gap is lost, and the first question may be too.
	asksAgain = 2

	// linkForgotten is how long a link is remembered on which nothing comes.
	linkForgotten = 10 * time.Minute
)

// links take in what workers of other processes send to this gateway: each message once, in the order of their numbers.
// What is missing is asked for again.
type links struct {
	bus *bus

	mu       sync.Mutex
	byWorker map[string]*link
}

// link is what this gateway has of one worker.
type link struct {
	next  uint64    // the number of the message that is expected
	acked uint64    // next, as the worker was last told; 0: it is to be told
	bytes int       // that came since
	asked time.Time // when a missing message was last asked for
	at    time.Time // when a message last came
	again int       // how many of the next heartbeats ask for what is missing

	direct  *directConn   // by which its messages come; nil: through the broker
	offered time.Time     // when it was last offered such a connection
	turn    chan struct{} // fixed; held by the goroutine that hands on its messages, which come by two ways; not a lock of the state
}

func newLinks(b *bus) *links { return &links{bus: b, byWorker: make(map[string]*link)} }

// get returns the link of a worker.
func (ls *links) get(worker string) *link {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.getLocked(worker)
}

func (ls *links) getLocked(worker string) *link {
	l := ls.byWorker[worker]
	if l == nil {
		l = &link{turn: make(chan struct{}, 1), at: time.Now()}
		ls.byWorker[worker] = l
	}
	return l
}

// onMessage returns the items of a message if it is the one that is expected, else nothing.
func (ls *links) onMessage(worker string, msg []byte, now time.Time) (items []byte) {
	number, oldest, items, err := subjects.ParseLink(msg)
	if err != nil {
		ls.bus.seldom("frames dropped", "worker", worker, "err", err)
		return nil
	}
	ack, due, lost := ls.accept(worker, number, oldest, len(msg), now)
	if lost {
		ls.bus.seldom("frames lost: the worker took this gateway for gone", "worker", worker)
	}
	if due {
		ls.acknowledgeTo(worker, ack)
	}
	if ack.Next != number+1 {
		return nil
	}
	return items
}

// acknowledgeTo sends an ack the way that the worker's messages come.
func (ls *links) acknowledgeTo(worker string, ack subjects.LinkAck) {
	ls.mu.Lock()
	var direct *directConn
	if l := ls.byWorker[worker]; l != nil {
		direct = l.direct
	}
	ls.mu.Unlock()
	if direct == nil {
		ls.bus.publish(subjects.WorkerGot(worker, ls.bus.id), ack)
		return
	}
	direct.acknowledge(ack)
}

// accept takes in the number of a message, and that of the oldest that its worker keeps. If the message is the one that
// was expected, the ack's Next is the one after it. due says that the ack is to be sent now, and lost that messages before
// the oldest never come any more.
func (ls *links) accept(worker string, number, oldest uint64, size int, now time.Time) (ack subjects.LinkAck, due, lost bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.getLocked(worker)
	if l.next == 0 {
		l.next, l.acked = oldest, oldest
	}
	l.at = now
	if oldest > l.next {
		lost, l.next = true, oldest
	}
	switch {
	case number < l.next: // it came before, and perhaps the ack was lost
		l.acked = 0
		return subjects.LinkAck{}, false, false
	case number > l.next:
		if due = now.Sub(l.asked) >= askEvery; due {
			l.asked, l.acked, l.bytes = now, l.next, 0
		}
		return subjects.LinkAck{Next: l.next, Again: true}, due, lost
	}
	l.next++
	if l.bytes += size; l.bytes >= ackBytes {
		due, l.acked, l.bytes = true, l.next, 0
	}
	return subjects.LinkAck{Next: l.next}, due, lost
}

// onGap notes that messages of a worker may be lost; empty: those of all workers.
func (ls *links) onGap(worker string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for id, l := range ls.byWorker {
		if worker == "" || worker == id {
			l.again = asksAgain
		}
	}
}

// onHeartbeat asks a worker that is heard again for what may be lost. By itself it sends that again only after seconds, if it
// came back before this gateway.
func (ls *links) onHeartbeat(worker string) {
	if next, due := ls.dueAgain(worker); due {
		ls.bus.publish(subjects.WorkerGot(worker, ls.bus.id), subjects.LinkAck{Next: next, Again: true})
	}
}

func (ls *links) dueAgain(worker string) (next uint64, due bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.byWorker[worker]
	if l == nil || l.again == 0 {
		return 0, false
	}
	l.again--
	l.acked = l.next
	return l.next, true
}

// acknowledge acknowledges what has come since the last ack.
func (ls *links) acknowledge(now time.Time) {
	for worker, next := range ls.due(now) {
		ls.acknowledgeTo(worker, subjects.LinkAck{Next: next})
	}
}

func (ls *links) due(now time.Time) map[string]uint64 {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	maps.DeleteFunc(ls.byWorker, func(_ string, l *link) bool { return now.Sub(l.at) > linkForgotten && l.direct == nil })
	var due map[string]uint64
	for worker, l := range ls.byWorker {
		if l.acked == l.next {
			continue
		}
		if due == nil {
			due = make(map[string]uint64)
		}
		due[worker] = l.next
		l.acked, l.bytes = l.next, 0
	}
	return due
}

// offerDue reports whether a worker whose messages come through the broker is to be offered a direct connection now.
func (ls *links) offerDue(worker string, now time.Time) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.getLocked(worker)
	if l.direct != nil || now.Sub(l.offered) < offerEvery {
		return false
	}
	l.offered = now
	return true
}

// use notes by which direct connection the messages of a worker come, and returns the one before; nil if there was none.
func (ls *links) use(worker string, c *directConn) (before *directConn) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.getLocked(worker)
	before, l.direct = l.direct, c
	return before
}

// unuse notes that a direct connection has ended.
func (ls *links) unuse(worker string, c *directConn, now time.Time) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.byWorker[worker]; l != nil && l.direct == c {
		l.direct, l.at = nil, now
	}
}

// directCount is how many workers have a direct connection.
func (ls *links) directCount() (n int) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.byWorker {
		if l.direct != nil {
			n++
		}
	}
	return n
}
