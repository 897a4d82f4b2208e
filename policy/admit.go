package policy

import (
	"math"
	"time"
)

// MaxRetryAfter bounds the Retry-After that a client is sent: beyond two minutes the OpenAI SDKs do
// not retry at all.
const MaxRetryAfter = 120 * time.Second

// Queue is a gateway's view of one queue.
type Queue struct {
	Waiting int     // requests ahead of a new one
	Max     int     // the largest number that may wait
	Drain   float64 // requests per second that leave the queue; 0 if unknown
}

// Wait is the expected wait of a new request; 0 if unknown.
func (q Queue) Wait() time.Duration {
	if q.Drain <= 0 {
		return 0
	}
	return time.Duration(min(float64(q.Waiting)/q.Drain, 1e6) * float64(time.Second))
}

// Admission says whether a request may join a queue, and if not, why.
type Admission int

const (
	Admitted  Admission = iota
	Full                // the queue has reached its maximum
	TooLate             // the request would be served after its deadline
	ShareFull           // the tenant has reached its share of the queue
)

// minQueueForTooLate keeps a short queue from refusing requests because of a drain rate that was
// measured while there was little to drain.
const minQueueForTooLate = 16

// Admit decides about a request with this much time left until its deadline.
func (q Queue) Admit(left time.Duration) Admission {
	switch {
	case q.Waiting >= q.Max:
		return Full
	case q.Waiting >= minQueueForTooLate && q.Wait() > left:
		return TooLate
	}
	return Admitted
}

// RetryAfter is when a refused client may try again: when about an eighth of the queue has drained,
// in whole seconds from 1 s to MaxRetryAfter.
func (q Queue) RetryAfter() time.Duration {
	w := q.Wait() / 8
	if q.Drain <= 0 {
		w = 5 * time.Second
	}
	secs := math.Ceil(w.Seconds())
	return min(max(time.Duration(secs)*time.Second, time.Second), MaxRetryAfter)
}

// Rate measures events per second over about the last rateWindow. The zero value is ready to use.
type Rate struct {
	rate float64
	n    int
	from time.Time
}

const rateWindow = 2 * time.Second

// Add counts an event.
func (r *Rate) Add(now time.Time) {
	r.roll(now)
	r.n++
}

// Per returns the rate in events per second.
func (r *Rate) Per(now time.Time) float64 {
	r.roll(now)
	if d := now.Sub(r.from).Seconds(); r.rate == 0 && d > 0 {
		return float64(r.n) / max(d, 0.5)
	}
	return r.rate
}

func (r *Rate) roll(now time.Time) {
	if r.from.IsZero() {
		r.from = now
		return
	}
	d := now.Sub(r.from)
	if d < rateWindow {
		return
	}
	fresh := float64(r.n) / d.Seconds()
	if r.rate == 0 {
		r.rate = fresh
	} else {
		keep := math.Exp(-d.Seconds() / (2 * rateWindow.Seconds()))
		r.rate = r.rate*keep + fresh*(1-keep)
	}
	r.n, r.from = 0, now
}
