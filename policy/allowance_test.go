package policy_test

import (
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

func TestAllowance(t *testing.T) {
	for about, c := range map[string]struct {
		max   int
		every time.Duration
		times int
		want  int // how often it was allowed
	}{
		"all at once":               {10, 0, 100, 10},
		"one":                       {1, 0, 3, 1},
		"as fast as it comes back":  {10, 6 * time.Second, 100, 100},
		"twice as fast":             {10, 3 * time.Second, 100, 59},
		"one a minute":              {1, time.Minute, 5, 5},
		"a thousand, at that speed": {1000, 60 * time.Millisecond, 3000, 3000},
	} {
		a, full, now, got := policy.Allowance{Max: c.max, Per: time.Minute}, time.Time{}, time.Unix(1e9, 0), 0
		for range c.times {
			after, wait, ok := a.Take(full, now)
			switch {
			case ok:
				got++
			case !after.Equal(full), wait <= 0, wait > time.Minute:
				t.Errorf("%s: refused until %v later, full at %v, was %v", about, wait, after, full)
			default:
				if _, _, ok := a.Take(full, now.Add(wait)); !ok {
					t.Errorf("%s: refused again after %v", about, wait)
				}
				if _, _, ok := a.Take(full, now.Add(wait-time.Nanosecond)); ok {
					t.Errorf("%s: allowed before %v", about, wait)
				}
			}
			full, now = after, now.Add(c.every)
		}
		if got != c.want {
			t.Errorf("%s: allowed %d times, want %d", about, got, c.want)
		}
	}
}
