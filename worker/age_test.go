package worker

import (
	"testing"
	"time"
)

// The clocks of the broker and of the worker may differ, and be set.
func TestAgesOfMessages(t *testing.T) {
	for _, apart := range []time.Duration{0, time.Hour, -time.Hour, 3 * time.Millisecond} {
		start := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
		a, now := new(ages), start
		deliver := func(waited time.Duration) time.Duration {
			now = now.Add(time.Second)
			return a.of(now.Add(-waited).Add(-apart), now)
		}
		deliver(time.Millisecond)
		for range 200 { // more than three minutes
			for _, waited := range []time.Duration{time.Millisecond, 2 * time.Second, 10 * time.Millisecond, time.Minute} {
				if got := deliver(waited); got < waited-10*time.Millisecond || got > waited {
					t.Fatalf("clocks %v apart, waited %v: got %v", apart, waited, got)
				}
			}
		}
		apart += 10 * time.Second // the worker's clock is set
		for range 130 {
			deliver(time.Millisecond)
		}
		if got := deliver(time.Millisecond); got > 10*time.Millisecond {
			t.Errorf("clocks %v apart, two minutes after one was set: got %v, want 0", apart, got)
		}
		apart -= 20 * time.Second // and back
		deliver(time.Millisecond)
		if got := deliver(2 * time.Second); got < time.Second {
			t.Errorf("clocks %v apart, one was set back: got %v, want 2s", apart, got)
		}
		now = now.Add(time.Hour) // nothing came meanwhile
		if got := deliver(2 * time.Second); got < time.Second {
			t.Errorf("clocks %v apart, after an hour: got %v, want 2s", apart, got)
		}
	}
}
