package policy

import "time"

// History summarises the attempts of a request so far.
type History struct {
	Failures    int // attempts that the engine or the worker failed
	Crashes     int // those of the failures whose worker died
	Refusals    int // attempts that an engine had no slot for
	MaxAttempts int
	AllRefused  bool // every live worker of the pool has refused the request
}

// maxCrashes is how many workers one request may crash before the request is taken to be the cause.
const maxCrashes = 2

// refusalsPerAttempt bounds the search for a slot. A full engine says nothing against the request,
// so refusals weigh less than failures.
const refusalsPerAttempt = 4

// Next is what happens to a request after a failed attempt.
type Next int

const (
	Retry         Next = iota // start another attempt
	ReturnRefusal             // send the engine's own refusal to the client
	DeadLetter                // make it a dead letter
)

// After decides what happens next, and gives the reason as text for people.
func (h History) After() (Next, string) {
	switch {
	case h.Crashes >= maxCrashes:
		return DeadLetter, "two workers crashed while running it"
	case h.Failures >= h.MaxAttempts:
		return DeadLetter, "every attempt failed"
	case h.AllRefused, h.Refusals >= refusalsPerAttempt*h.MaxAttempts:
		return ReturnRefusal, "no engine had a free slot"
	}
	return Retry, ""
}

// Pause is how long a worker stops bidding after its engine refused n times in a row (n from 1):
// what the engine asks for, otherwise 250 ms doubled each time, at most MaxPause.
func Pause(n int, asked time.Duration) time.Duration {
	if asked > 0 {
		return min(asked, MaxPause)
	}
	return min(250*time.Millisecond<<min(n-1, 10), MaxPause)
}

// MaxPause bounds a worker's pause: an engine's guess of a minute must not keep a free slot idle for a minute.
const MaxPause = 5 * time.Second
