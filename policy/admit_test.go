package policy_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

func TestAdmit(t *testing.T) {
	const minute = time.Minute
	for what, c := range map[string]struct {
		queue policy.Queue
		left  time.Duration
		want  policy.Admission
	}{
		"empty":                               {policy.Queue{Max: 10}, minute, policy.Admitted},
		"one place left":                      {policy.Queue{Waiting: 9, Max: 10, Drain: 1}, minute, policy.Admitted},
		"full":                                {policy.Queue{Waiting: 10, Max: 10, Drain: 100}, minute, policy.Full},
		"more than full":                      {policy.Queue{Waiting: 11, Max: 10}, minute, policy.Full},
		"in time":                             {policy.Queue{Waiting: 60, Max: 100, Drain: 1}, minute, policy.Admitted},
		"too late":                            {policy.Queue{Waiting: 61, Max: 100, Drain: 1}, minute, policy.TooLate},
		"too late, but few wait":              {policy.Queue{Waiting: 15, Max: 100, Drain: 0.001}, time.Second, policy.Admitted},
		"the drain rate is unknown":           {policy.Queue{Waiting: 99, Max: 100}, time.Second, policy.Admitted},
		"full comes before too late":          {policy.Queue{Waiting: 100, Max: 100, Drain: 0.1}, time.Second, policy.Full},
		"a queue that hardly drains is known": {policy.Queue{Waiting: 99, Max: 100, Drain: 1e-12}, 100 * time.Hour, policy.TooLate},
	} {
		if got := c.queue.Admit(c.left); got != c.want {
			t.Errorf("%s: got %d, want %d", what, got, c.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		queue policy.Queue
		want  time.Duration
	}{
		{policy.Queue{Waiting: 2000}, 5 * time.Second}, // unknown drain rate
		{policy.Queue{Waiting: 0, Drain: 10}, time.Second},
		{policy.Queue{Waiting: 80, Drain: 10}, time.Second},
		{policy.Queue{Waiting: 81, Drain: 10}, 2 * time.Second},
		{policy.Queue{Waiting: 2000, Drain: 10}, 25 * time.Second},
		{policy.Queue{Waiting: 2000, Drain: 0.01}, policy.MaxRetryAfter},
	} {
		if got := c.queue.RetryAfter(); got != c.want {
			t.Errorf("%+v: got %v, want %v", c.queue, got, c.want)
		}
	}
}

func TestRetryAfterIsWholeSecondsWithinBounds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		q := policy.Queue{Waiting: r.IntN(1e6), Drain: r.ExpFloat64() * 10}
		longer := policy.Queue{Waiting: q.Waiting + r.IntN(1000), Drain: q.Drain}
		got := q.RetryAfter()
		if got < time.Second || got > policy.MaxRetryAfter || got%time.Second != 0 {
			t.Fatalf("%+v: %v", q, got)
		}
		if longer.RetryAfter() < got {
			t.Fatalf("a queue of %d says %v, one of %d %v", q.Waiting, got, longer.Waiting, longer.RetryAfter())
		}
	}
}

func TestRate(t *testing.T) {
	var r policy.Rate
	now := noon
	if got := r.Per(now); got != 0 {
		t.Errorf("without events: %v", got)
	}
	for range 100 { // ten per second, for ten seconds
		now = now.Add(100 * time.Millisecond)
		r.Add(now)
	}
	if got := r.Per(now); got < 9 || got > 11 {
		t.Errorf("ten a second: %v", got)
	}
	for range 1000 { // a hundred per second, for ten seconds
		now = now.Add(10 * time.Millisecond)
		r.Add(now)
	}
	if got := r.Per(now); got < 80 || got > 105 {
		t.Errorf("a hundred a second, after ten a second: %v", got)
	}
	if got := r.Per(now.Add(time.Minute)); got > 1 {
		t.Errorf("a minute after the last event: %v", got)
	}
}

func ExampleQueue_RetryAfter() {
	q := policy.Queue{Waiting: 2000, Max: 2000, Drain: 25}
	if q.Admit(10*time.Minute) == policy.Full {
		fmt.Println("retry-after:", q.RetryAfter().Seconds())
	}
	// Output: retry-after: 10
}
