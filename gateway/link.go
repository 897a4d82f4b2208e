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
}

func newLinks(b *bus) *links { return &links{bus: b, byWorker: make(map[string]*link)} }

// onMessage returns the items of a message if it is the one that is expected, else nothing.
func (ls *links) onMessage(worker string, msg []byte, now time.Time) (items []byte) {
	number, oldest, items, err := subjects.ParseLink(msg)
	if err != nil {
		ls.bus.log.Warn("frames dropped", "worker", worker, "err", err)
		return nil
	}
	ack, due, lost := ls.accept(worker, number, oldest, len(msg), now)
	if lost {
		ls.bus.log.Warn("frames lost: the worker took this gateway for gone", "worker", worker)
	}
	if due {
		ls.bus.publish(subjects.WorkerGot(worker, ls.bus.id), ack)
	}
	if ack.Next != number+1 {
		return nil
	}
	return items
}

// accept takes in the number of a message, and that of the oldest that its worker keeps. If the message is the one that
// was expected, the ack's Next is the one after it. due says that the ack is to be sent now, and lost that messages before
// the oldest never come any more.
func (ls *links) accept(worker string, number, oldest uint64, size int, now time.Time) (ack subjects.LinkAck, due, lost bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.byWorker[worker]
	if l == nil {
		l = &link{next: oldest, acked: oldest}
		ls.byWorker[worker] = l
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

// acknowledge acknowledges what has come since the last ack.
func (ls *links) acknowledge(now time.Time) {
	for worker, next := range ls.due(now) {
		ls.bus.publish(subjects.WorkerGot(worker, ls.bus.id), subjects.LinkAck{Next: next})
	}
}

func (ls *links) due(now time.Time) map[string]uint64 {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	maps.DeleteFunc(ls.byWorker, func(_ string, l *link) bool { return now.Sub(l.at) > linkForgotten })
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
