package policy

import (
	"testing"
	"time"
)

func TestBatchPace(t *testing.T) {
	start := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		window time.Duration
		at     time.Duration // since the rate was measured last, at the start of the window
		done   float64       // of 100 requests since
		late   int
		want   int
		judged bool
	}{
		"a batch that would just end in time":          {100 * time.Minute, 10 * time.Minute, 11.2, 0, 0, true},
		"one that would not":                           {100 * time.Minute, 10 * time.Minute, 11, 0, 2, true},
		"one of which nothing is finished":             {100 * time.Minute, 10 * time.Minute, 0, 0, 2, true},
		"one that is still late":                       {100 * time.Minute, 10 * time.Minute, 8, 2, 4, true},
		"one that is in time with this help":           {100 * time.Minute, 10 * time.Minute, 19, 8, 8, true},
		"one that needs less":                          {100 * time.Minute, 10 * time.Minute, 21, 8, 4, true},
		"one that needs none":                          {100 * time.Minute, 10 * time.Minute, 21, 1, 0, true},
		"too early to tell":                            {100 * time.Minute, time.Minute, 0, 0, 0, false},
		"too early to tell whether the help is enough": {100 * time.Minute, time.Minute, 0, 4, 4, false},
		"a day, and a minute in which nothing came":    {24 * time.Hour, time.Minute, 0, 0, 0, false},
		"the last tenth":                               {100 * time.Minute, 90 * time.Minute, 99, 8, 16, true},
		"all is finished":                              {100 * time.Minute, 10 * time.Minute, 100, 8, 0, true},
	} {
		var p BatchPace
		p.Look(BatchProgress{Now: start, Until: start.Add(c.window), Window: c.window, Lines: 100})
		got, _, judged := p.Look(BatchProgress{
			Now: start.Add(c.at), Until: start.Add(c.window), Window: c.window, Lines: 100, Done: c.done, Late: c.late,
		})
		if got != c.want || judged != c.judged {
			t.Errorf("%s: %d %v, want %d %v", name, got, judged, c.want, c.judged)
		}
	}
}

// Whatever the window and the number of requests, a batch that comes evenly and ends before the last tenth of its window is never late, and
// one that needs a fifth more than the window is.
func TestBatchPaceOverAWindow(t *testing.T) {
	for _, window := range []time.Duration{time.Minute, 2 * time.Minute, time.Hour, 24 * time.Hour} {
		for _, lines := range []int{1, 5, 80, 50_000} {
			for part, want := range map[float64]bool{0.85: false, 1.2: true} {
				var p BatchPace
				start := time.Unix(1000, 0)
				was := false
				for now := start; now.Before(start.Add(window)); now = now.Add(BatchLooks(window)) {
					done := min(float64(lines)*now.Sub(start).Seconds()/(part*window.Seconds()), float64(lines))
					late, _, _ := p.Look(BatchProgress{Now: now, Until: start.Add(window), Window: window, Lines: lines, Done: done})
					was = was || late > 0
				}
				if was != want {
					t.Errorf("%d requests that need %v of %v: late %v, want %v", lines, part, window, was, want)
				}
			}
		}
	}
}
