package policy

import (
	"testing"
	"time"
)

func TestShortageLoads(t *testing.T) {
	const s = time.Second
	for what, test := range map[string]struct {
		short Shortage
		want  bool // if other workers have it loaded
	}{
		"nothing is short":                       {Shortage{}, false},
		"more slots are free than requests wait": {Shortage{Requests: -2, For: 10 * s}, false},
		"a burst":                                {Shortage{Requests: 9, For: s - 1}, false},
		"it stands":                              {Shortage{Requests: 1, For: s}, true},
		"others do all of it":                    {Shortage{Requests: 4, For: s, Rank: 1, Before: 4}, false},
		"others do some of it":                   {Shortage{Requests: 5, For: s, Rank: 1, Before: 4}, true},
		"others have not done it yet":            {Shortage{Requests: 1, For: 5*s - 1, Rank: 2, Before: 8}, false},
		"others have not done it":                {Shortage{Requests: 1, For: 5 * s, Rank: 2, Before: 8}, true},
	} {
		if got := test.short.Loads(true); got != test.want {
			t.Errorf("%s: %v, want %v", what, got, test.want)
		}
	}
	for what, test := range map[string]struct {
		short Shortage
		want  bool // if none has it loaded
	}{
		"at once":                {Shortage{Requests: 1, Listed: true}, true},
		"no request waits":       {Shortage{Listed: true}, false},
		"it is not one of those": {Shortage{Requests: 9, For: time.Hour}, false},
		"another one is faster":  {Shortage{Requests: 1, Rank: 1, Before: 1, Listed: true}, false},
		"and has not loaded it":  {Shortage{Requests: 1, For: 2 * s, Rank: 1, Before: 1, Listed: true}, true},
		"both are needed":        {Shortage{Requests: 2, Rank: 1, Before: 1, Listed: true}, true},
	} {
		if got := test.short.Loads(false); got != test.want {
			t.Errorf("loaded nowhere, %s: %v, want %v", what, got, test.want)
		}
	}
}

func TestSwapWarmUp(t *testing.T) {
	const s = time.Second
	now := time.Unix(1e9, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	rule := Swap{After: 10 * s, Load: 8 * s, Tiers: []SwapTier{{Share: 1}}}
	settled := Swapping{Last: ago(time.Minute)}
	wanted := SwapModel{Name: "b", Elsewhere: true, Shortage: Shortage{Requests: 3, For: s}}
	waits := func(m SwapModel, d time.Duration) SwapModel { m.Waits = []time.Duration{d}; return m }
	fits := wanted
	fits.Fits = true
	more := SwapModel{Name: "c", Elsewhere: true, Shortage: Shortage{Requests: 7, For: s}}
	nowhere := wanted
	nowhere.Elsewhere = false
	first := SwapModel{Name: "b", Shared: true, Shortage: Shortage{Requests: 1, Listed: true}}
	runs := wanted
	runs.InFlight = 1
	for what, test := range map[string]struct {
		was    Swapping
		models []SwapModel
		want   string
	}{
		"nothing is loaded":                                                 {settled, []SwapModel{{Name: "a"}, wanted}, "b"},
		"nothing is loaded, something was until now":                        {Swapping{Last: now}, []SwapModel{{Name: "a"}, wanted}, "b"},
		"the larger shortage first":                                         {settled, []SwapModel{wanted, more}, "c"},
		"nobody is short of it":                                             {settled, []SwapModel{{Name: "a", Elsewhere: true}}, ""},
		"nobody has it: a request may come":                                 {settled, []SwapModel{nowhere}, ""},
		"nobody has it of several":                                          {settled, []SwapModel{first}, "b"},
		"nobody has it, and the loaded one is idle":                         {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(s)}, first}, "b"},
		"nobody has it, and the loaded one was idle for less than a moment": {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(s / 2)}, first}, ""},
		"nobody has it, and here is work":                                   {settled, []SwapModel{{Name: "a", Loaded: true, InFlight: 1}, first}, ""},
		"it is being loaded":                                                {settled, []SwapModel{runs}, ""},
		"another one is being loaded":                                       {Swapping{To: "c", Last: ago(time.Minute)}, []SwapModel{wanted, {Name: "c", InFlight: 1}}, ""},
		"what is loaded has work":                                           {settled, []SwapModel{{Name: "a", Loaded: true, InFlight: 1}, wanted}, ""},
		"and both fit":                                                      {settled, []SwapModel{{Name: "a", Loaded: true, InFlight: 1}, fits}, "b"},
		"what is loaded had work just now":                                  {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(15 * s)}, wanted}, ""},
		"what is loaded has had none for long":                              {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(16 * s)}, wanted}, "b"},
		"what is loaded never had any":                                      {settled, []SwapModel{{Name: "a", Loaded: true}, wanted}, "b"},
		"what is loaded came just now":                                      {Swapping{Last: ago(15 * s)}, []SwapModel{{Name: "a", Loaded: true}, wanted}, ""},
		"it would be served sooner here":                                    {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(s)}, waits(wanted, 8*s)}, "b"},
		"it would be served sooner there":                                   {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(s)}, waits(wanted, 7*s)}, ""},
		"sooner here, but here is work":                                     {settled, []SwapModel{{Name: "a", Loaded: true, InFlight: 1}, waits(wanted, 80*s)}, ""},
	} {
		got := ""
		if i := rule.WarmUp(test.was, test.models, now); i >= 0 {
			got = test.models[i].Name
		}
		if got != test.want {
			t.Errorf("%s: loads %q, want %q", what, got, test.want)
		}
	}
}
