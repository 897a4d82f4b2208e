package policy

import (
	"math"
	"time"
)

// BatchPace decides how many requests of a batch run as ordinary calls, in a tier above its own: more and more while the batch
// would miss its window at its present rate, and fewer again when it would not. The zero value is a batch that has just begun.
type BatchPace struct {
	since time.Time // when the rate was measured last, or the batch began
	done  float64   // then
}

// BatchProgress is how far a batch is.
type BatchProgress struct {
	Now    time.Time
	Until  time.Time     // the end of its window
	Window time.Duration // how long all of it is
	Lines  int           // requests that it has
	Done   float64       // those that are finished, and parts of those that run
	Late   int           // those that may run as ordinary calls now
}

const (
	// paceLines is how many requests a batch should have finished in the time over which its rate is measured, if it is to end in
	// time: fewer say little about its rate.
	paceLines = 8

	firstLate = 2 // requests that run as ordinary calls at first
)

// BatchLooks is how often to look at a batch whose window is so long.
func BatchLooks(window time.Duration) time.Duration {
	return min(max(window/48, time.Second), 5*time.Minute)
}

// Look returns how many requests should run as ordinary calls from now on, and the rate at which requests were finished, in requests
// per second. It says false if it is too early to tell.
//
// A batch is late if it ends, at its present rate, in the last tenth of its window or after it. It gets less help if it would end before
// that at half the rate.
func (p *BatchPace) Look(b BatchProgress) (late int, rate float64, judged bool) {
	lines, left := float64(b.Lines)-b.Done, b.Until.Add(-b.Window/10).Sub(b.Now)
	if lines <= 0 {
		return 0, 0, true
	}
	if p.since.IsZero() {
		p.since, p.done = b.Now, b.Done
		return b.Late, 0, false
	}
	elapsed, needed := b.Now.Sub(p.since), math.Inf(1)
	if left > 0 {
		needed = lines / left.Seconds()
	}
	if elapsed <= 0 || elapsed < min(b.Window/12, left/4, time.Duration(paceLines/needed*float64(time.Second))) {
		return b.Late, 0, false
	}
	rate = max(b.Done-p.done, 0) / elapsed.Seconds()
	p.since, p.done = b.Now, b.Done
	switch {
	case rate < needed:
		return max(2*b.Late, firstLate), rate, true
	case rate > 2*needed:
		return b.Late / 2, rate, true
	}
	return b.Late, rate, true
}
