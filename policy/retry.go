package policy

import "time"

// History is what has become of a request so far.
type History struct {
	Failures    int // attempts whose engine or worker failed
	Crashes     int // of these, attempts whose worker died
	Refusals    int // attempts that an engine had no slot for
	MaxAttempts int
	AllRefused  bool // every live worker of the pool has refused it
}

// maxCrashes is how many workers one request may take down before it is held
// to be the cause.
const maxCrashes = 2

// refusalsPerAttempt bounds the search for a slot: an engine that is full says
// nothing against the request, so refusals weigh less than failures.
const refusalsPerAttempt = 4

// Next is what happens to a request after an attempt came to nothing.
type Next int

const (
	Retry         Next = iota // another attempt
	ReturnRefusal             // the engine's own refusal goes to the client
	DeadLetter                // dead letter
)

// After decides. The reason is for people.
func (h History) After() (Next, string) {
	switch {
	case h.Crashes >= maxCrashes:
		return DeadLetter, "two workers died while they ran it"
	case h.Failures >= h.MaxAttempts:
		return DeadLetter, "every attempt failed"
	case h.AllRefused, h.Refusals >= refusalsPerAttempt*h.MaxAttempts:
		return ReturnRefusal, "no engine had a slot"
	}
	return Retry, ""
}

// Pause is how long a worker stops bidding after its engine refused for the
// n-th time in a row (n from 1): what the engine asks for, else 250 ms doubled
// each time, at most MaxPause.
func Pause(n int, asked time.Duration) time.Duration {
	if asked > 0 {
		return min(asked, MaxPause)
	}
	return min(250*time.Millisecond<<min(n-1, 10), MaxPause)
}

// MaxPause bounds a worker's pause: an engine's guess of a minute must not keep
// a free slot idle for as long.
const MaxPause = 5 * time.Second
