package fleet

import (
	"testing"
	"time"
)

func TestRate(t *testing.T) {
	start := time.Date(2026, 5, 4, 12, 0, 0, 0, time.Local)
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	var r rate
	if r.perSecond() != 0 {
		t.Error("a rate of nothing")
	}
	r.add(at(0), 100)
	if r.perSecond() != 0 {
		t.Error("a rate of one sample")
	}
	r.add(at(2), 120)
	if got := r.perSecond(); got != 10 {
		t.Errorf("got %v, want 10", got)
	}
	for i := range 20 { // the fast start is forgotten
		r.add(at(3+float64(i)), 120+uint64(i))
	}
	if got := r.perSecond(); got != 1 {
		t.Errorf("got %v, want 1", got)
	}
	r.add(at(30), 5)
	if got := r.perSecond(); got != 0 {
		t.Errorf("counted anew: got %v, want 0", got)
	}
}
