package policy

import (
	"testing"
	"time"
)

func TestBatchWindow(t *testing.T) {
	now := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		most  int
		after func(*BatchWindow)
		want  int
	}{
		"at first":                          {256, func(*BatchWindow) {}, 8},
		"never above the bound":             {5, func(*BatchWindow) {}, 5},
		"one more with each window":         {256, func(w *BatchWindow) { answered(w, 9, 256) }, 9},
		"grows up to the bound":             {16, func(w *BatchWindow) { answered(w, 10_000, 16) }, 16},
		"halves":                            {256, func(w *BatchWindow) { w.Refused(now) }, 4},
		"halves once for all of one moment": {256, func(w *BatchWindow) { w.Refused(now); w.Refused(now.Add(time.Millisecond)) }, 4},
		"halves again":                      {256, func(w *BatchWindow) { w.Refused(now); w.Refused(now.Add(2 * time.Second)) }, 2},
		"stays open": {256, func(w *BatchWindow) {
			for i := range 20 {
				w.Refused(now.Add(time.Duration(i) * time.Minute))
			}
		}, 2},
		"grows again": {256, func(w *BatchWindow) { w.Refused(now); answered(w, 10, 256) }, 6},
	} {
		w := new(BatchWindow)
		c.after(w)
		if got := w.Size(c.most); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func answered(w *BatchWindow, n, most int) {
	for range n {
		w.Answered(most)
	}
}
