package policy

import "time"

// History summarises the attempts of a request so far.
type History struct {
	Failures    int // attempts that the engine or the worker failed
	Crashes     int // those of the failures whose worker died, or whose engine broke the connection
	Refusals    int // attempts that an engine had no slot for
	Misfits     int // attempts on an engine that cannot serve the request
	MaxAttempts int
	AllRefused  bool // every live worker of the pool has refused the request, or cannot serve it
}

// maxCrashes is how many workers or engines one request may crash before the request is taken to be the cause.
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
		return DeadLetter, "two workers crashed, or lost their engine, while running it"
	case h.Failures >= h.MaxAttempts:
		return DeadLetter, "every attempt failed"
	case h.Misfits >= h.MaxAttempts:
		return ReturnRefusal, "no engine that was tried can serve it"
	case h.AllRefused && h.Misfits > 0:
		return ReturnRefusal, "no engine can serve it now"
	case h.AllRefused, h.Refusals >= refusalsPerAttempt*h.MaxAttempts:
		return ReturnRefusal, "no engine had a free slot"
	}
	return Retry, ""
}

// RetryBudget bounds the retries of a pool to a share of its first attempts, so that a pool that fails is not given a
// multiple of its load. It counts over the last RetryWindow. The zero value has counted nothing.
type RetryBudget struct {
	seconds [int(RetryWindow / time.Second)]attemptCount
}

// attemptCount counts the attempts of one second.
type attemptCount struct {
	second         int64
	first, retries int
}

const (
	// RetryWindow is the time over which a RetryBudget counts.
	RetryWindow = 10 * time.Second

	// RetryShare is the default share of retries in first attempts.
	RetryShare = 0.2

	// FewRetries are allowed within RetryWindow in any pool: with little traffic a share says nothing.
	FewRetries = 10
)

// First counts the first attempt of a request.
func (b *RetryBudget) First(now time.Time) { b.at(now).first++ }

// Take reports whether another retry is allowed, and counts it if it is.
func (b *RetryBudget) Take(share float64, now time.Time) bool {
	this := b.at(now)
	first, retries := 0, 0
	for _, c := range b.seconds {
		if this.second-c.second < int64(len(b.seconds)) {
			first += c.first
			retries += c.retries
		}
	}
	if retries >= FewRetries && float64(retries+1) > share*float64(first) {
		return false
	}
	this.retries++
	return true
}

func (b *RetryBudget) at(now time.Time) *attemptCount {
	second := now.Unix()
	c := &b.seconds[second%int64(len(b.seconds))]
	if c.second != second {
		*c = attemptCount{second: second}
	}
	return c
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

// Failures are the failures of one model's requests on one worker since the last success. The zero value is none.
//
// A request that always fails, wherever it runs, must not stop a worker for the others. So a failure counts by the
// request's content: one client that repeats a bad request counts once. A failure counts in any case if another worker
// has answered the request since.
type Failures struct {
	requests [pauseAfter]uint64 // hashes of the different requests that failed
	distinct int
	blamed   int // failures of requests that another worker has answered
	pauses   int
	until    time.Time // the end of the last pause
}

const (
	// pauseAfter is how many different requests must fail before a worker pauses. A worker whose attempts fail quickly
	// has free slots at once, and would take every request of the queue.
	pauseAfter = 3

	// pauseAfterBlamed is the same for requests that another worker has answered.
	pauseAfterBlamed = 2
)

// Add counts the failure of a request with that hash of its content. It reports whether a pause begins.
func (f *Failures) Add(request uint64, now time.Time) (pauses bool) {
	known := false
	for _, r := range f.requests[:f.distinct] {
		known = known || r == request
	}
	if !known && f.distinct < pauseAfter {
		f.requests[f.distinct] = request
		f.distinct++
	}
	return f.pause(f.distinct >= pauseAfter || f.pauses > 0, now)
}

// Blame counts the failure of a request that another worker has answered. It reports whether a pause begins.
func (f *Failures) Blame(now time.Time) (pauses bool) {
	f.blamed++
	return f.pause(f.blamed >= pauseAfterBlamed && f.pauses == 0, now)
}

// Stop counts a failure that is certainly the engine's. A pause begins.
func (f *Failures) Stop(now time.Time) (pauses bool) { return f.pause(true, now) }

// pause begins a pause if it is due and none lasts: failures of requests that began before a pause do not make it longer.
func (f *Failures) pause(due bool, now time.Time) bool {
	if !due || now.Before(f.until) {
		return false
	}
	f.pauses++
	f.until = now.Add(Pause(f.pauses+1, 0))
	return true
}

// Paused reports whether the pause lasts.
func (f *Failures) Paused(now time.Time) bool { return now.Before(f.until) }

// Tried reports whether there was a pause. After one, only one request at a time should be tried until one succeeds.
func (f *Failures) Tried() bool { return f.pauses > 0 }

// Pauses is how many pauses there were.
func (f *Failures) Pauses() int { return f.pauses }
