package policy_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// busy is a scrape that shows so many requests running and waiting.
func busy(running, waiting int) policy.Scrape {
	return policy.Scrape{Taken: true, InFlight: running + waiting, Prefilling: waiting,
		Running: policy.Known(float64(running)), Waiting: policy.Known(float64(waiting))}
}

func TestWhatShowsHowManyRunAtOnce(t *testing.T) {
	with := func(s policy.Scrape, change func(*policy.Scrape)) policy.Scrape { change(&s); return s }
	reading := func(s *policy.Scrape) { s.Prefilling += 1 }
	full := func(s *policy.Scrape) { s.KVUsed = policy.Known(0.8) }
	large := func(s *policy.Scrape) { s.KVUsed, s.Request = policy.Known(0.6), 0.1 }
	small := func(s *policy.Scrape) { s.KVUsed, s.Request = policy.Known(0.6), 0.01 }
	preempted := func(s *policy.Scrape) { s.Preempted = policy.Known(1) }
	for name, c := range map[string]struct {
		scrapes []policy.Scrape // one every half second
		found   int
		reach   int // if nothing is found
	}{
		"nothing":                              {nil, 0, 4},
		"all run":                              {[]policy.Scrape{busy(4, 0), busy(5, 0), busy(7, 0)}, 0, 9},
		"others wait":                          {[]policy.Scrape{busy(4, 0), busy(8, 2), busy(8, 1)}, 8, 0},
		"others wait once":                     {[]policy.Scrape{busy(8, 2)}, 0, 10},
		"they run then":                        {[]policy.Scrape{busy(8, 2), busy(10, 0)}, 0, 13},
		"of two transients at one number":      {[]policy.Scrape{busy(8, 1), busy(7, 0), busy(7, 0), busy(8, 1), busy(6, 0)}, 0, 10},
		"it has run more":                      {[]policy.Scrape{busy(12, 0), busy(8, 2), busy(8, 2), busy(8, 2)}, 0, 15},
		"it runs fewer now":                    {append([]policy.Scrape{busy(12, 0)}, repeat(busy(8, 2), 10)...), 8, 0},
		"prompts are being read":               {repeat(with(busy(8, 2), reading), 20), 0, 10},
		"the KV cache is full":                 {repeat(with(busy(8, 2), full), 20), 0, 10},
		"there may be no room for a large one": {repeat(with(busy(8, 2), large), 20), 0, 10},
		"there is room":                        {repeat(with(busy(8, 2), small), 2), 8, 0},
		"what was preempted waits":             {repeat(with(busy(8, 2), preempted), 20), 0, 10},
		"it was preempted before":              {append(repeat(with(busy(8, 2), preempted), 20), with(busy(8, 0), preempted), with(busy(8, 2), preempted), with(busy(8, 2), preempted)), 8, 0},
		"it runs more after all":               {[]policy.Scrape{busy(8, 2), busy(8, 2), busy(9, 0)}, 0, 12},
		"only what waits is known":             {repeat(with(busy(8, 2), func(s *policy.Scrape) { s.Running = policy.Maybe{} }), 2), 8, 0},
	} {
		var p policy.Parallel
		now := noon
		for _, s := range c.scrapes {
			now = now.Add(500 * time.Millisecond)
			p.Scraped(s, now)
		}
		if p.Found() != c.found {
			t.Errorf("%s: found %d, want %d", name, p.Found(), c.found)
		}
		if got := p.Reach(4); c.found == 0 && got != c.reach {
			t.Errorf("%s: goes as far as %d, want %d", name, got, c.reach)
		}
	}
}

func repeat(s policy.Scrape, n int) (all []policy.Scrape) {
	for range n {
		all = append(all, s)
	}
	return all
}

// One more is tried after 15 s, and less often each time; after a restart at once.
func TestOneMoreIsTried(t *testing.T) {
	var p policy.Parallel
	now := noon
	look := func(after time.Duration, running, waiting int) {
		now = now.Add(after)
		p.Scraped(busy(running, waiting), now)
	}
	bound := func(what string, want int) {
		t.Helper()
		if got := p.Bound(); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	confirm := func(wait time.Duration) {
		t.Helper()
		look(wait-2*time.Second, 8, 0)
		bound("before it is time", 8)
		look(2*time.Second, 7, 0)
		bound("with a free slot", 8)
		look(0, 8, 0)
		bound("now", 9)
		look(time.Second, 8, 1)
		look(time.Second, 8, 1)
		bound("tried", 8)
	}
	look(0, 8, 1)
	look(time.Second, 8, 1)
	bound("found", 8)
	confirm(15 * time.Second)
	confirm(30 * time.Second)
	confirm(time.Minute)
	p.Restart(now)
	bound("after a restart", 8)
	look(3*time.Second, 8, 0)
	bound("soon after", 9)
	look(time.Second, 9, 0)
	bound("it runs nine", 0)
	if got := p.Reach(4); got != 12 {
		t.Errorf("goes as far as %d, want 12", got)
	}
	var q policy.Parallel
	q.Recall(6, now)
	if q.Found() != 6 {
		t.Errorf("%d of the 6 that were found before", q.Found())
	}
	for range 10 {
		now = now.Add(500 * time.Millisecond)
		q.Scraped(busy(4, 2), now)
	}
	if q.Found() != 4 {
		t.Errorf("found %d, want 4: recalled was 6", q.Found())
	}
}

// Beside a reserve, a confirmed number is tried after 10 min, and one that is not soon: then the tiers below may fill the reserve.
func TestOneMoreIsTriedBesideAReserve(t *testing.T) {
	var p policy.Parallel
	now := noon
	look := func(after time.Duration, running, waiting int) {
		now = now.Add(after)
		p.Reserve(2, now)
		p.Scraped(busy(running, waiting), now)
	}
	want := func(what string, bound int, whole bool) {
		t.Helper()
		if p.Bound() != bound || p.Whole() != whole {
			t.Errorf("%s: %d, the reserve can be filled %v; want %d, %v", what, p.Bound(), p.Whole(), bound, whole)
		}
	}
	look(0, 8, 1)
	look(time.Second, 8, 1)
	want("found", 8, false)
	look(time.Minute, 8, 0)
	look(time.Minute, 6, 0)
	want("after two minutes", 8, false)
	look(9*time.Minute, 5, 0)
	want("after ten, with a free slot", 8, false)
	look(time.Second, 6, 0)
	want("after ten", 9, true)
	look(9*time.Second, 7, 0)
	want("while it is tried", 9, true)
	look(2*time.Second, 7, 0)
	want("tried without a result", 8, false)
	look(9*time.Minute, 6, 0)
	want("before it is time again", 8, false)
	p.Restart(now)
	look(3*time.Second, 6, 0)
	want("after a restart", 9, true)
	look(time.Second, 8, 1)
	look(time.Second, 8, 1)
	want("confirmed", 8, false)
	p.Restart(now)
	look(3*time.Second, 6, 0)
	look(time.Second, 9, 0)
	want("it runs more now", 0, false)
	for range 2 {
		look(time.Second, 12, 1)
	}
	want("found again", 12, false)

	p = policy.Parallel{}
	p.Reserve(2, now)
	p.Recall(8, now)
	look(3*time.Second, 6, 0)
	want("after a start of the worker", 9, true)
	p.Reserve(0, now)
	want("the reserve is gone", 9, false)
}

// queueing plays an engine without metrics that runs n streams at once, for a worker that gives it as many as it should, and
// returns how many first tokens it took until that was right.
func queueing(p *policy.Parallel, n, start int) (took, given int) {
	now := noon
	running, waiting := 0, 0
	for took = 0; took < 200; took++ {
		may := p.Bound()
		if may == 0 {
			may = p.Reach(start)
		}
		if p.Found() == n {
			return took, given
		}
		ended := running == n
		if ended {
			running--
		}
		waiting = max(may-running, waiting)
		given = max(given, running+waiting)
		now = now.Add(time.Second)
		running, waiting = running+1, waiting-1
		p.FirstToken(running, waiting, ended, now)
	}
	return took, given
}

func TestStreamsShowHowManyRunAtOnce(t *testing.T) {
	for n := 1; n <= 12; n++ {
		var p policy.Parallel
		took, given := queueing(&p, n, 1)
		if took > 3*n+10 || given > n+max(n/4, 1)+1 {
			t.Errorf("%d at once: found after %d first tokens, and it had up to %d requests", n, took, given)
		}
		took, _ = queueing(&p, max(n/2, 1), 1)
		if took > 60 {
			t.Errorf("%d at once, then half: found after %d first tokens", n, took)
		}
	}
	// Prompts are read one after the other, and answers are short: first tokens follow no end.
	var p policy.Parallel
	for i := range 50 {
		p.FirstToken(1+i%3, 4, false, noon.Add(time.Duration(i)*time.Second))
	}
	if p.Found() != 0 || p.Reach(1) != 4 {
		t.Errorf("found %d, goes as far as %d; want 4", p.Found(), p.Reach(1))
	}
	// It has fewer requests than it runs, and reads a prompt now and then.
	p = policy.Parallel{}
	p.Recall(24, noon)
	p.FirstToken(24, 0, true, noon)
	for i := range 500 {
		p.FirstToken(17+i%2, 1-i%2, true, noon.Add(time.Duration(i)*time.Second))
	}
	if p.Found() != 24 {
		t.Errorf("found %d with 18 requests, want 24 still", p.Found())
	}
	p = policy.Parallel{}
	for i := range 50 {
		p.FirstToken(1+i%3, 4, false, noon.Add(time.Duration(i)*time.Second))
	}
	for range 4 {
		p.Answered(5, 5, noon)
	}
	if p.Reach(1) != 8 {
		t.Errorf("goes as far as %d after an answer that has overtaken 5, want 8", p.Reach(1))
	}
}

// Of answers that are not streamed only their order shows how many run at once: of those of unlike lengths, from 4 on.
func TestOrderShowsHowManyRunAtOnce(t *testing.T) {
	for n := 1; n <= 48; n++ {
		for seed := range uint64(5) {
			r := rand.New(rand.NewPCG(seed, uint64(n)))
			var p, alike policy.Parallel
			requests, took, most := 0, 0, 0
			for ; took < 2000 && p.Found() == 0; took++ {
				requests = max(p.Reach(2), 2)
				most = max(most, requests)
				p.Answered(r.IntN(min(n, requests)), requests-1, noon)
			}
			switch {
			case n < 4 && (p.Found() != 0 || most > n+1):
				t.Errorf("%d at once: found %d, with up to %d requests", n, p.Found(), most)
			case n >= 4 && (p.Found() < n-1-n/16 || p.Found() > n || took > 150+30*n || most > n+max(n/4, 1)+1):
				t.Errorf("%d at once: found %d after %d answers, with up to %d requests", n, p.Found(), took, most)
			}
			for range 1000 { // all are of one length, or nearly
				alike.Answered(r.IntN(100)/95*min(n-1, 1), alike.Reach(8)-1, noon)
			}
			if alike.Found() != 0 {
				t.Errorf("%d at once, answers of one length: found %d", n, alike.Found())
			}
		}
	}
}
