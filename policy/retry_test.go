package policy_test

import (
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

func TestAfter(t *testing.T) {
	for what, c := range map[string]struct {
		history policy.History
		want    policy.Next
	}{
		"first failure":               {policy.History{Failures: 1, MaxAttempts: 3}, policy.Retry},
		"last but one":                {policy.History{Failures: 2, MaxAttempts: 3}, policy.Retry},
		"attempts spent":              {policy.History{Failures: 3, MaxAttempts: 3}, policy.DeadLetter},
		"only one allowed":            {policy.History{Failures: 1, MaxAttempts: 1}, policy.DeadLetter},
		"one worker died":             {policy.History{Failures: 1, Crashes: 1, MaxAttempts: 3}, policy.Retry},
		"two workers died":            {policy.History{Failures: 2, Crashes: 2, MaxAttempts: 9}, policy.DeadLetter},
		"refused once":                {policy.History{Refusals: 1, MaxAttempts: 3}, policy.Retry},
		"refused by all":              {policy.History{Refusals: 2, MaxAttempts: 3, AllRefused: true}, policy.ReturnRefusal},
		"refused more than it fails":  {policy.History{Refusals: 11, MaxAttempts: 3}, policy.Retry},
		"refused too often":           {policy.History{Refusals: 12, MaxAttempts: 3}, policy.ReturnRefusal},
		"refusals are not failures":   {policy.History{Refusals: 5, Failures: 2, MaxAttempts: 3}, policy.Retry},
		"spent before all refused it": {policy.History{Refusals: 1, Failures: 3, MaxAttempts: 3, AllRefused: true}, policy.DeadLetter},
	} {
		got, reason := c.history.After()
		if got != c.want || (reason == "") != (got == policy.Retry) {
			t.Errorf("%s: got %d, %q; want %d", what, got, reason, c.want)
		}
	}
}

func TestPause(t *testing.T) {
	for _, c := range []struct {
		n     int
		asked time.Duration
		want  time.Duration
	}{
		{1, 0, 250 * time.Millisecond},
		{2, 0, 500 * time.Millisecond},
		{5, 0, 4 * time.Second},
		{6, 0, policy.MaxPause},
		{1000, 0, policy.MaxPause},
		{1, 2 * time.Second, 2 * time.Second},
		{9, 2 * time.Second, 2 * time.Second},
		{1, time.Minute, policy.MaxPause},
	} {
		if got := policy.Pause(c.n, c.asked); got != c.want {
			t.Errorf("Pause(%d, %v) = %v, want %v", c.n, c.asked, got, c.want)
		}
	}
}
