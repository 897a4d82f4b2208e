package policy

import (
	"fmt"
	"time"
)

const (
	// BodyGrace is how long a body may come at any pace.
	BodyGrace = 5 * time.Second

	// BodySilence is how long no byte of a body may come.
	BodySilence = 30 * time.Second

	// bodyTimeEarned is how many bytes of a body earn it a second beside its Total. What comes at that rate, 128 kbit/s, or
	// faster may be of any size.
	bodyTimeEarned = 16 << 10
)

// BodyPace says how slowly the body of a request may come.
type BodyPace struct {
	Rate  int64         // bytes a second on average since it began, once BodyGrace has passed
	Total time.Duration // how long it may take, and a second more for each 16 KiB that have come
}

// Until returns for how long after its beginning a body may go on without a further byte. n bytes of it have come, the
// last one took after its beginning.
func (p BodyPace) Until(n int64, took time.Duration) time.Duration {
	return min(took+BodySilence, p.slow(n), p.long(n))
}

// Broken says, for people, what Until has ended.
func (p BodyPace) Broken(n int64, took time.Duration) string {
	switch p.Until(n, took) {
	case p.slow(n):
		return fmt.Sprintf("the body came with less than %d bytes a second", p.Rate)
	case p.long(n):
		return fmt.Sprintf("the body took longer than %v, and a second for each 16 KiB that came", p.Total)
	}
	return fmt.Sprintf("no byte of the body came for %v", BodySilence)
}

// slow is when a body of which n bytes have come would be below the rate, and long when it would take too long.
func (p BodyPace) slow(n int64) time.Duration { return BodyGrace + timeAt(p.Rate, n) }
func (p BodyPace) long(n int64) time.Duration { return p.Total + timeAt(bodyTimeEarned, n) }

// timeAt is how long n bytes take at a rate.
func timeAt(rate, n int64) time.Duration {
	return time.Duration(float64(n) / float64(rate) * float64(time.Second))
}
