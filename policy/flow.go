package policy

import "time"

// Flow measures the rate at which workers take the requests of a queue while these have to wait: what the workers can do, and
// not how much is asked of them. The zero value is ready to use; nothing is known then.
//
// That requests have to wait shows in how long they waited. Free slots do not show that none has to: a worker whose engine
// still reads prompts leaves slots free.
type Flow struct {
	waited float64   // seconds: mean of what the latest requests waited
	waits  bool      // requests have to wait
	n      float64   // requests that were taken since, of which older ones count less
	took   float64   // seconds for these
	last   time.Time // when the last one was taken

	latest   float64 // the rate when it was last known
	latestAt time.Time
}

const (
	// longWait is the mean wait from which on requests have to wait: much longer than a delivery takes, with two workers that
	// hand the request back. They no longer have to when it is below shortWait.
	longWait  = 0.1
	shortWait = 0.05

	// longestSample bounds what one request adds to the mean: one that waited for the first worker says nothing of the next.
	longestSample = 1.0

	// latestWaits is of how many requests the mean is.
	latestWaits = 8

	// The rate is known after leastTaken requests and leastFlow seconds. It is of the last flowMemory seconds, or of keptTaken
	// requests if these took longer.
	leastTaken = 8
	leastFlow  = 1.0
	flowMemory = 4.0
	keptTaken  = 16

	// stillFlows is how long no request may be taken, in seconds and in mean intervals, until the rate is unknown again: a model
	// that is loaded, or a pool without workers, is no rate.
	stillFlows          = 2.0
	stillFlowsIntervals = 8

	// latestHolds is how long the rate is remembered that was last known.
	latestHolds = time.Minute
)

// Took notes that a worker has taken a request, which had waited for so long where any worker may take it. With a wait below
// 0 it only counts for the rate.
func (f *Flow) Took(waited time.Duration, now time.Time) {
	if waited >= 0 {
		f.waited += (min(waited.Seconds(), longestSample) - f.waited) / latestWaits
	}
	switch {
	case !f.waits && f.waited >= longWait:
		f.waits, f.n, f.took = true, 0, 0
	case f.waited < shortWait:
		f.waits = false
	case f.waits:
		f.n++
		f.took += now.Sub(f.last).Seconds()
		if over := min(f.n/keptTaken, f.took/flowMemory); over > 1 {
			f.n, f.took = f.n/over, f.took/over
		}
	}
	f.last = now
	if rate, ok := f.PerSecond(now); ok {
		f.latest, f.latestAt = rate, now
	}
}

// Latest returns the rate when it was last known; 0 if that is more than a minute ago.
func (f *Flow) Latest(now time.Time) float64 {
	if now.Sub(f.latestAt) > latestHolds {
		return 0
	}
	return f.latest
}

// PerSecond returns the rate; false if requests do not have to wait, or it is unknown.
func (f *Flow) PerSecond(now time.Time) (rate float64, ok bool) {
	still := now.Sub(f.last).Seconds()
	if !f.waits || f.n < leastTaken || f.took < leastFlow || still > max(stillFlows, stillFlowsIntervals*f.took/f.n) {
		return 0, false
	}
	if still > f.took/f.n {
		return f.n / (f.took + still), true
	}
	return f.n / f.took, true
}

const (
	// unknownReturn is when a refused client may come again while the rate is unknown.
	unknownReturn = 5 * time.Second

	// longestReturn bounds it: most SDKs ignore what is longer than a minute.
	longestReturn = time.Minute
)

// Returns says to refused clients when to come again: each at the time when the queue has room for it after all those that were
// refused before. Otherwise they would all come again at once, and most would be refused again. The zero value is ready to use.
type Returns struct {
	next time.Time // when there is room for the next
}

// Next returns after which time a client that is refused now should come again, from 1 s to a minute. room is how long it takes
// until the queue accepts another request, and perSecond how many it accepts from then on; 0 if unknown.
func (r *Returns) Next(room time.Duration, perSecond float64, now time.Time) time.Duration {
	if perSecond <= 0 {
		return unknownReturn
	}
	if room >= longestReturn {
		return longestReturn
	}
	at := now.Add(room)
	if at.Before(r.next) {
		at = r.next
	}
	if at.Sub(now) > longestReturn { // more than can be told apart: these come as often as those before, beside them
		at = now.Add(max(room, longestReturn/2))
	}
	r.next = at.Add(time.Duration(float64(time.Second) / max(perSecond, 1e-3)))
	return max(at.Sub(now), time.Second)
}
