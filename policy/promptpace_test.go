package policy

import (
	"testing"
	"time"
)

// seen is the reading after prompts of so many tokens that took so long, with the engine's counters of its cache.
func seen(n, tokens int, took time.Duration, counters ...int64) Reading {
	var p PromptPace
	now := time.Now()
	for range n {
		p.Add(float64(tokens), took, now)
	}
	if len(counters) > 0 {
		p.Count(counters[0], counters[1], now)
	}
	return p.Reading()
}

func TestPromptPace(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	const us = time.Microsecond
	for what, c := range map[string]struct{ got, want Reading }{
		"nothing":                             {seen(0, 0, 0), Reading{}},
		"too few prompts":                     {seen(7, 1000, s), Reading{}},
		"short prompts say nothing":           {seen(100, 100, s), Reading{}},
		"prompts that may be cached":          {seen(8, 1000, s), Reading{ms, 4000, false}},
		"an engine without a cache":           {seen(8, 1000, s, 0, 0), Reading{ms, 4000, true}},
		"none was cached":                     {seen(8, 1000, s, 8000, 0), Reading{ms, 4000, true}},
		"all but a tenth was cached":          {seen(8, 1000, s, 8000, 7200), Reading{10 * ms, 4000, true}},
		"all was cached":                      {seen(8, 1000, 100*ms, 8000, 8000), Reading{800 * ms, 4000, true}},
		"too few were counted":                {seen(8, 1000, s, 500, 500), Reading{ms, 4000, false}},
		"the engine has started again":        {seen(8, 1000, s, -8000, -10), Reading{ms, 4000, false}},
		"counters that contradict each other": {seen(8, 1000, s, 8000, 9000), Reading{ms, 4000, false}},
		"whole answers":                       {seen(8, 1000, s).AtMost(), Reading{500 * us, 4000, false}},
		"long whole answers":                  {seen(8, 1000, 60*s).AtMost(), Reading{ms, 4000, false}},
	} {
		if d := c.got.Token - c.want.Token; max(d, -d) > time.Microsecond || c.got.Longest != c.want.Longest || c.got.Counted != c.want.Counted {
			t.Errorf("%s: %v, want %v", what, c.got, c.want)
		}
	}
}

// One prompt that was not cached shows the pace, however many were cached, for some minutes and prompts.
func TestPromptPaceOfFewMisses(t *testing.T) {
	var p PromptPace
	now := time.Now()
	p.Add(2000, 2*time.Second, now)
	for i := range 200 {
		p.Add(2000, 20*time.Millisecond, now)
		now = now.Add(2 * FadeAfter / 200)
		if r := p.Reading(); i >= fewPrompts && r.Token != time.Millisecond {
			t.Fatalf("after %d: %v, want that of the prompt that was not cached", i, r)
		}
	}
	for range 200 {
		p.Add(2000, 20*time.Millisecond, now)
		now = now.Add(2 * FadeAfter / 200)
	}
	if r := p.Reading(); r.Token != 10*time.Microsecond {
		t.Errorf("much later: %v, want it forgotten", r)
	}
}

// What a prompt may take follows the measurements, and is not below what a prompt takes that is not cached.
func TestAwaitByPace(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	const us = time.Microsecond
	fast := Reading{Token: 300 * us, Longest: 4000, Counted: true}
	for what, c := range map[string]struct {
		prompt        Prompt
		asked, silent time.Duration // Prompt, Typical
	}{
		"measured":                     {Prompt{Input: 1000, Took: 300 * ms, Read: 300 * ms, Pace: fast}, 1200 * ms, 600 * ms},
		"behind others":                {Prompt{Input: 1000, Took: 3 * s, Read: 300 * ms, Pace: fast}, 6 * s, 600 * ms},
		"it may have been cached":      {Prompt{Input: 1000, Took: 30 * ms, Read: 30 * ms, Pace: Reading{Token: 30 * us, Longest: 4000}}, 4 * s, s},
		"it was not, and never slow":   {Prompt{Input: 1000, Took: 30 * ms, Read: 30 * ms, Pace: Reading{Token: 30 * us, Longest: 4000, Counted: true}}, 500 * ms, 250 * ms},
		"a slow engine":                {Prompt{Input: 1000, Took: 5 * s, Read: 5 * s, Pace: Reading{Token: 6 * ms, Longest: 4000}}, 12 * s, 12 * s},
		"longer than any by far":       {Prompt{Input: 14_000, Took: 300 * ms, Read: 300 * ms, Pace: fast}, 4800*ms + 40*s, 2400*ms + 40*s},
		"a load that is not reported":  {Prompt{Input: 1000, Took: 300 * ms, Read: 300 * ms, Pace: fast, MayLoad: true}, time.Minute, time.Minute},
		"a whole answer":               {Prompt{Input: 1000, Took: 300 * ms, Read: 300 * ms, Pace: fast, Whole: true, Most: 20, Seen: 20, Token: 10 * ms}, 1200 * ms, s},
		"one where all are":            {Prompt{Input: 1000, Pace: fast, Whole: true, Most: 100, Seen: 20, Token: 10 * ms}, 1200 * ms, 2 * s},
		"one with a prompt like none":  {Prompt{Input: 14_000, Pace: fast, Whole: true, Most: 100, Seen: 20, Token: 10 * ms}, 4800*ms + 40*s, 2400*ms + 40*s},
		"a whole answer without bound": {Prompt{Input: 1000, Pace: fast, Whole: true, Seen: 20, Token: 10 * ms}, 1200 * ms, 4 * s},
	} {
		if a := Await(c.prompt); a.Prompt != c.asked || a.Typical != c.silent {
			t.Errorf("%s: %v, and %v of an engine that no longer answers questions; want %v and %v", what, a.Prompt, a.Typical, c.asked, c.silent)
		}
	}
}

// An engine that used to answer questions beside its work, and does not, need not have been silent for as long as requests
// behind others wait.
func TestFrozenBehindOthers(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	behind := Awaited{Expected: 4 * s, Prompt: 8 * s, Typical: 600 * ms, Surely: 8 * s, Longest: 16 * s}
	for what, c := range map[string]struct {
		signs Signs
		want  Vitality
	}{
		"it answers no question":          {Signs{Waiting: 4, Awaited: behind, Silent: 1601 * ms, Mute: 1500 * ms, Attentive: true}, Frozen},
		"for less than a second":          {Signs{Waiting: 4, Awaited: behind, Silent: 1601 * ms, Mute: 900 * ms, Attentive: true}, Working},
		"within its time":                 {Signs{Waiting: 4, Awaited: behind, Silent: 1600 * ms, Mute: 1500 * ms, Attentive: true}, Working},
		"it never did beside requests":    {Signs{Waiting: 4, Awaited: behind, Silent: 1601 * ms, Mute: 1500 * ms}, Working},
		"it answers questions":            {Signs{Waiting: 4, Awaited: behind, Silent: 8 * s, Attentive: true, Open: true}, Working},
		"it was as silent before":         {Signs{Waiting: 4, Awaited: behind, Silent: 4601 * ms, Mute: 4 * s, Attentive: true, Quiet: 2 * s}, Frozen},
		"it was more silent before":       {Signs{Waiting: 4, Awaited: behind, Silent: 4600 * ms, Mute: 4 * s, Attentive: true, Quiet: 2 * s}, Working},
		"it had slept":                    {Signs{Waiting: 4, Awaited: behind, Silent: 20 * s, Mute: 15 * s, Attentive: true, Idle: time.Hour}, Working},
		"it answers other models":         {Signs{Waiting: 4, Awaited: behind, Silent: 20 * s, Mute: 2 * s, Attentive: true, Beside: true}, Working},
		"it has answered a probe, and no": {Signs{Waiting: 4, Awaited: behind, Silent: 2 * s, Mute: 1 * s, Attentive: true, Answered: 1 * s}, Working},
	} {
		if got := c.signs.Vitality(); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

// What answers say of their prompts counts if all of them do, and if one ever said that a part was cached; what the engine says
// of the time for the tokens that it computed counts in any case.
func TestPromptPaceByAnswers(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	now := time.Now()
	fresh := func(n, tokens, fresh int, took time.Duration) func(*PromptPace) {
		return func(p *PromptPace) {
			for range n {
				p.AddFresh(float64(tokens), float64(fresh), took, now)
			}
		}
	}
	silent := func(n, tokens int, took time.Duration) func(*PromptPace) {
		return func(p *PromptPace) {
			for range n {
				p.Add(float64(tokens), took, now)
			}
		}
	}
	computed := func(tokens int64, took time.Duration) func(*PromptPace) {
		return func(p *PromptPace) { p.Computed(tokens, took, now) }
	}
	for what, c := range map[string]struct {
		seen []func(*PromptPace)
		want Reading
	}{
		"a tenth was not cached":              {[]func(*PromptPace){fresh(8, 2000, 200, 200*ms)}, Reading{ms, 8000, true}},
		"none was cached once":                {[]func(*PromptPace){fresh(8, 2000, 100, 200*ms), fresh(1, 2000, 2000, 6*s)}, Reading{3 * ms, 8000, true}},
		"all was cached":                      {[]func(*PromptPace){fresh(8, 2000, 1, 200*ms)}, Reading{200 * ms, 8000, true}},
		"nothing was ever cached":             {[]func(*PromptPace){fresh(8, 2000, 2000, 2*s)}, Reading{ms, 8000, false}},
		"some answers do not say":             {[]func(*PromptPace){fresh(8, 2000, 200, 200*ms), silent(1, 2000, 200*ms)}, Reading{ms, 8000, false}},
		"the engine says how long it took":    {[]func(*PromptPace){silent(8, 2000, 200*ms), computed(4000, 8*s)}, Reading{2 * ms, 8000, true}},
		"it says so of few tokens":            {[]func(*PromptPace){silent(8, 2000, 200*ms), computed(1000, 8*s)}, Reading{100 * time.Microsecond, 8000, false}},
		"it says less than what was measured": {[]func(*PromptPace){silent(8, 2000, 6*s), computed(4000, 2*s)}, Reading{3 * ms, 8000, true}},
		"it has started again":                {[]func(*PromptPace){silent(8, 2000, 200*ms), computed(-4000, -8*s)}, Reading{100 * time.Microsecond, 8000, false}},
		"too few prompts":                     {[]func(*PromptPace){silent(7, 2000, 200*ms), computed(4000, 8*s)}, Reading{}},
	} {
		var p PromptPace
		for _, see := range c.seen {
			see(&p)
		}
		got := p.Reading()
		if d := got.Token - c.want.Token; max(d, -d) > time.Microsecond || got.Longest != c.want.Longest || got.Counted != c.want.Counted {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}
