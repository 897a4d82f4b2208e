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
		"one engine broke off":        {policy.History{Failures: 1, Crashes: 1, MaxAttempts: 3}, policy.Retry},
		"a misfit":                    {policy.History{Misfits: 1, MaxAttempts: 3}, policy.Retry},
		"a misfit for all":            {policy.History{Misfits: 1, MaxAttempts: 3, AllRefused: true}, policy.ReturnRefusal},
		"a misfit for many":           {policy.History{Misfits: 3, MaxAttempts: 3}, policy.ReturnRefusal},
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

// Retries are a share of the first attempts within the window, and a few always.
func TestRetryBudget(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	for what, test := range map[string]struct {
		first    int           // at once
		wait     time.Duration // before the retries
		share    float64
		retries  int // asked for
		want     int // allowed
		wantNext int // of the same, a window later
	}{
		"no traffic":                      {0, 0, 0.2, 100, policy.FewRetries, policy.FewRetries},
		"little traffic":                  {20, 0, 0.2, 100, policy.FewRetries, policy.FewRetries},
		"a fifth":                         {500, 0, 0.2, 500, 100, policy.FewRetries},
		"a half":                          {500, 0, 0.5, 500, 250, policy.FewRetries},
		"fewer than allowed":              {500, 0, 0.2, 50, 50, policy.FewRetries},
		"at the end of the window":        {500, policy.RetryWindow - time.Second, 0.2, 500, 100, policy.FewRetries},
		"the traffic was before":          {500, policy.RetryWindow, 0.2, 500, policy.FewRetries, policy.FewRetries},
		"the traffic was long before":     {500, 1000 * policy.RetryWindow, 0.2, 500, policy.FewRetries, policy.FewRetries},
		"as many retries as requests":     {500, 0, 1, 1000, 500, policy.FewRetries},
		"a share that allows none at all": {500, 0, 0.0001, 500, policy.FewRetries, policy.FewRetries},
	} {
		var b policy.RetryBudget
		for range test.first {
			b.First(start)
		}
		now := start.Add(test.wait)
		take := func(now time.Time) (n int) {
			for range test.retries {
				if b.Take(test.share, now) {
					n++
				}
			}
			return n
		}
		if got := take(now); got != test.want {
			t.Errorf("%s: %d retries, want %d", what, got, test.want)
		}
		if got := take(now.Add(policy.RetryWindow)); got != test.wantNext {
			t.Errorf("%s: %d retries later, want %d", what, got, test.wantNext)
		}
	}
}
