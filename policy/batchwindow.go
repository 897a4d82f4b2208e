package policy

import "time"

// BatchWindow is how many requests of a batch may run at once: it grows while they are answered, and halves when there is no room for them.
// The zero value is a window that has just begun.
type BatchWindow struct {
	size   float64
	halved time.Time
}

const (
	firstWindow = 8
	leastWindow = 2

	// halveEvery is how long one refusal stands for all that were sent at the same time.
	halveEvery = time.Second
)

// Size is how many may run now; most is a bound.
func (w *BatchWindow) Size(most int) int {
	w.begin()
	return max(min(int(w.size), most), 1)
}

// Answered notes an answer: the window grows by one with as many answers as it has places.
func (w *BatchWindow) Answered(most int) {
	w.begin()
	w.size = min(w.size+1/w.size, float64(most))
}

// Refused notes that a request was refused for want of room.
func (w *BatchWindow) Refused(now time.Time) {
	w.begin()
	if now.Sub(w.halved) >= halveEvery {
		w.size, w.halved = max(w.size/2, leastWindow), now
	}
}

func (w *BatchWindow) begin() {
	if w.size == 0 {
		w.size = firstWindow
	}
}
