package policy

import "time"

// Allowance is how often something may be done: Max times at once, and after that as often as it is earned back, Max times
// in Per.
type Allowance struct {
	Max int
	Per time.Duration
}

// Take does it once. full is when all of the allowance is there again, the zero time if nothing was taken yet; the result
// is that time afterwards. If nothing is left, ok is false, full stays, and wait is how long it takes until something is.
func (a Allowance) Take(full, now time.Time) (after time.Time, wait time.Duration, ok bool) {
	if full.Before(now) {
		full = now
	}
	after = full.Add(a.Per / time.Duration(a.Max))
	if wait = after.Sub(now) - a.Per; wait > 0 {
		return full, wait, false
	}
	return after, 0, true
}
