package gateway

import (
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// Of what a worker sends, each message counts once, in the order of the numbers. What is missing is asked for, but not with
// each message that comes too early.
func TestLinkAcceptsInOrder(t *testing.T) {
	ls, now := newLinks(new(bus)), time.Now()
	for i, m := range []struct {
		number, oldest uint64
		after          time.Duration // since the message before
		taken, asks    bool
		lost           bool
	}{
		{number: 1, oldest: 1, taken: true},
		{number: 2, oldest: 1, taken: true},
		{number: 2, oldest: 1},             // sent again, for want of an ack
		{number: 5, oldest: 2, asks: true}, // 3 and 4 are missing
		{number: 6, oldest: 3},             // it has been asked for them just now
		{number: 7, oldest: 3, after: askEvery, asks: true},
		{number: 3, oldest: 3, taken: true},
		{number: 4, oldest: 3, taken: true},
		{number: 5, oldest: 3, taken: true},
		{number: 9, oldest: 8, after: askEvery, asks: true, lost: true}, // 6 and 7 never come again
		{number: 8, oldest: 8, taken: true},
		{number: 9, oldest: 8, taken: true},
	} {
		now = now.Add(m.after)
		ack, due, lost := ls.accept("w", m.number, m.oldest, 100, now)
		if taken := ack.Next == m.number+1; taken != m.taken || due != m.asks || ack.Again != due && due || lost != m.lost {
			t.Errorf("message %d (%d, oldest %d): %+v, ack due %t, lost %t; want %+v", i, m.number, m.oldest, ack, due, lost, m)
		}
	}
	if due := ls.due(now); due["w"] != 10 || len(due) != 1 {
		t.Errorf("acks %v, want one of all before 10", due)
	}
	if due := ls.due(now); len(due) != 0 {
		t.Errorf("nothing has come since, and acks are %v", due)
	}
	ls.accept("w", 9, 9, 100, now) // the ack was lost
	if due := ls.due(now); due["w"] != 10 {
		t.Errorf("acks %v: the lost one is not sent again", due)
	}
	// A gateway that has forgotten a worker, or never heard of it, begins where the worker does.
	if ack, due, lost := ls.accept("v", 40, 38, 100, now); ack.Next != 38 || !ack.Again || !due || lost {
		t.Errorf("an unknown worker: %+v, due %t, lost %t", ack, due, lost)
	}
	if ack, _, _ := ls.accept("v", 38, 38, 100, now); ack.Next != 39 {
		t.Errorf("its oldest message: %+v", ack)
	}
	if due := ls.due(now.Add(linkForgotten + 1)); len(ls.byWorker) != 0 {
		t.Errorf("links are never forgotten: acks %v", due)
	}
}

// Large answers are acknowledged before the next regular ack, so that the worker need not keep them.
func TestLinkAcknowledgesLargeAnswersSooner(t *testing.T) {
	ls, now := newLinks(new(bus)), time.Now()
	acks := 0
	for n := uint64(1); n <= 100; n++ {
		ack, due, _ := ls.accept("w", n, 1, 64<<10, now)
		if due {
			acks++
		}
		if ack != (subjects.LinkAck{Next: n + 1}) {
			t.Fatalf("message %d: %+v", n, ack)
		}
	}
	if acks != 25 {
		t.Errorf("%d acks for 6.4 MB, want 25", acks)
	}
}
