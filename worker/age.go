package worker

import "time"

// agesFor is how long the least difference counts. Then it is found anew: a clock may have been set.
const agesFor = time.Minute

// ages tells how long messages have waited in a stream, though the broker's clock may differ from the worker's: the least
// difference that was seen lately is that of the clocks. The bidder owns it.
type ages struct {
	since         time.Time     // when least began
	least, before time.Duration // since then, and in the time before
	known         bool          // before is
}

// of returns the age of a message that was stored at a time of the broker's clock.
func (a *ages) of(stored, now time.Time) time.Duration {
	apart := now.Sub(stored)
	switch {
	case a.since.IsZero():
		a.since, a.least = now, apart
	case now.Sub(a.since) >= agesFor:
		a.since, a.least, a.before, a.known = now, apart, a.least, true
	default:
		a.least = min(a.least, apart)
	}
	if a.known {
		return apart - min(a.least, a.before)
	}
	return apart - a.least
}
