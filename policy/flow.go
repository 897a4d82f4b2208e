package policy

import "time"

// Flow measures the rate at which workers take the requests of a queue while these have to wait: what the workers can do, and
// not how much is asked of them. Time in which none waits does not count. The zero value is ready to use; nothing is known then.
//
// That requests have to wait shows in how long they waited. Free slots do not show that none has to: a worker whose engine
// still reads prompts leaves slots free.
type Flow struct {
	some    bool      // requests wait
	since   time.Time // since when some wait, or none
	from    time.Time // from when on time counts that has not been added to took or part yet, while some wait
	part    float64   // seconds in which some waited since one was taken, before from
	service float64   // seconds for which a request occupies a slot; 0 if unknown

	waited float64   // seconds: mean of what the latest requests waited
	waits  bool      // requests have to wait
	n      float64   // requests that were taken since, of which older ones count less
	took   float64   // seconds for these
	began  time.Time // when the first was taken since nothing is known of those before

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

	// stillFlows is how long no request may be taken though some wait, in seconds and in mean intervals, until the rate is unknown
	// again: a model that is loaded, or a pool without workers, is no rate. As long as a request occupies its slot is no longer
	// than that either: the slots may all have been taken at once.
	stillFlows          = 2.0
	stillFlowsIntervals = 8

	// idleFlows is how many seconds none may wait until nothing is known any more: then slots have become free.
	idleFlows = 2.0

	// latestHolds is how long the rate is remembered that was last known.
	latestHolds = time.Minute

	// freeTaken is how long it takes at most until workers have taken requests that came when none waited, as far as they have
	// free slots for them and do not hold back.
	freeTaken = 200 * time.Millisecond
)

// Waiting notes whether requests wait from now on.
func (f *Flow) Waiting(some bool, now time.Time) {
	if some == f.some {
		return
	}
	if some && f.idle(now) {
		f.forget()
	}
	if !some {
		f.part += now.Sub(f.from).Seconds()
	}
	f.some, f.since, f.from = some, now, now
}

// idle reports whether none has waited for so long that nothing is known any more.
func (f *Flow) idle(now time.Time) bool { return !f.some && now.Sub(f.since).Seconds() > idleFlows }

// forget makes all unknown but the latest rate, which is no longer in force.
func (f *Flow) forget() {
	f.waited, f.waits, f.n, f.took, f.part, f.began = 0, false, 0, 0, 0, time.Time{}
}

// Starts reports whether those that wait came a moment ago, when none waited: then workers are about to take them as far as they
// have free slots. Later on, slots that are free are not taken.
func (f *Flow) Starts(now time.Time) bool { return !f.some || now.Sub(f.since) < freeTaken }

// Service notes for how long a request occupies a slot.
func (f *Flow) Service(mean time.Duration) { f.service = mean.Seconds() }

// Took notes that a worker has taken a request, which had waited for so long where any worker may take it. With a wait below
// 0 it only counts for the rate.
func (f *Flow) Took(waited time.Duration, now time.Time) {
	interval := f.still(now)
	if f.stopped(interval) { // those before were waiting for a worker or a model, and say nothing of what workers can do
		f.forget()
	}
	if f.began.IsZero() {
		f.began = now
	}
	if waited >= 0 {
		waited = min(waited, now.Sub(f.began)) // before that none was taken at all
		f.waited += (min(waited.Seconds(), longestSample) - f.waited) / latestWaits
	}
	switch {
	case !f.waits && f.waited >= longWait:
		f.waits, f.n, f.took = true, 0, 0
	case f.waited < shortWait:
		f.waits = false
	case f.waits && f.some:
		f.n++
		f.took += interval
		if over := min(f.n/keptTaken, f.took/flowMemory); over > 1 {
			f.n, f.took = f.n/over, f.took/over
		}
	}
	f.part, f.from = 0, now
	if rate, ok := f.PerSecond(now); ok {
		f.latest, f.latestAt = rate, now
	}
}

// still is for how many seconds requests have waited since one was taken.
func (f *Flow) still(now time.Time) float64 {
	if !f.some {
		return f.part
	}
	return f.part + now.Sub(f.from).Seconds()
}

// stopped reports whether the rate is no longer what it was, since none was taken for so many seconds.
func (f *Flow) stopped(still float64) bool {
	return f.n >= leastTaken && still > max(stillFlows, stillFlowsIntervals*f.took/f.n, f.service)
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
	still := f.still(now)
	if !f.waits || f.n < leastTaken || f.took < leastFlow || f.stopped(still) || f.idle(now) {
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
