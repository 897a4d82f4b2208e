package policy_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

const ms = time.Millisecond

// tried is a limit with its window and its clock.
type tried struct {
	policy.AdaptiveLimit
	w   policy.LimitWindow
	s   policy.Signals
	now time.Time
}

func try(p policy.Profile, weight float64) *tried {
	x := &tried{AdaptiveLimit: policy.NewAdaptiveLimit(p, weight, 0), s: policy.Signals{Slots: 256}, now: noon}
	x.Update(&x.w, x.s, x.now)
	return x
}

// second advances one second with so many requests in flight and 100 tokens at a pace.
func (x *tried) second(inFlight int, pace time.Duration) policy.Change {
	for range 100 {
		x.w.Gap(pace, 1)
	}
	return x.idle(inFlight)
}

// idle advances one second without a token.
func (x *tried) idle(inFlight int) policy.Change {
	x.now = x.now.Add(time.Second)
	x.s.InFlight, x.s.Scrape.InFlight = inFlight, inFlight
	return x.Update(&x.w, x.s, x.now)
}

// full is as many requests as the limit admits.
func (x *tried) full() int { return int(x.Value()) }

// prefilling sets the number of prompts that wait for two others which the engine reads, at so many
// seconds each.
func (x *tried) prefilling(waiting, each float64) {
	x.s.Scrape = policy.Scrape{Taken: true, Running: policy.Known(2), Waiting: policy.Known(waiting), Preempted: policy.Known(7),
		Prefilling: int(waiting) + 2, Prefill: time.Duration(each * float64(time.Second))}
	x.w.Scraped(x.s.Scrape)
}

// scraped sets the engine's metrics.
func (x *tried) scraped(waiting, preempted float64) {
	x.s.Scrape = policy.Scrape{Taken: true, Running: policy.Known(1), Waiting: policy.Known(waiting), Preempted: policy.Known(preempted)}
	x.w.Scraped(x.s.Scrape)
}

func TestLimitStartsByWeight(t *testing.T) {
	for weight, want := range map[float64]float64{1: 8, 0.05: 1, 0.15: 1, 0.42: 3, 1.64: 13, 2.41: 19, 0: 8, -1: 8, math.NaN(): 8} {
		l := policy.NewAdaptiveLimit(policy.Balanced, weight, 0)
		if got := l.Value(); got != want {
			t.Errorf("weight %v: %v, want %v", weight, got, want)
		}
	}
}

func TestLimitGrowsWhileRequestsAreQuick(t *testing.T) {
	x := try(policy.Balanced, 1)
	x.second(x.full(), 10*ms)
	if got := x.Value(); got != 16 || x.Target().Round(ms) != 30*ms {
		t.Fatalf("after a second: %v, target %v", got, x.Target())
	}
	for range 60 {
		x.second(x.full(), 10*ms)
	}
	if got := x.Value(); got != 256 {
		t.Errorf("after a minute: %v, want the slots", got)
	}
	x.s.Slots = 0
	if x.second(x.full(), 10*ms); x.Value() != 256 {
		t.Errorf("with slots that are not known any more: %v, want what was found", x.Value())
	}
	x.s.EngineSlots = 16
	if x.second(x.full(), 10*ms); x.Value() != 20 {
		t.Errorf("on an engine of 16 slots: %v, want them and the queue", x.Value())
	}
}

func TestUnknownSlots(t *testing.T) {
	for what, c := range map[string]struct {
		told bool
		want float64
	}{
		"of an engine that reports nothing":          {false, 64},
		"of an engine that reports waiting requests": {true, 1024},
	} {
		x := try(policy.Balanced, 1)
		x.s.Slots = 0
		for range 60 {
			if c.told {
				x.scraped(0, 0)
			}
			x.second(x.full(), 10*ms)
		}
		if x.Value() != c.want {
			t.Errorf("%s: %v, want %v", what, x.Value(), c.want)
		}
	}
}

// A step of this engine takes 10 ms plus 0.1 ms per request, so 200 requests make it take three
// times as long.
func TestTheFirstGrowthIsQuickAndDoesNotOvershoot(t *testing.T) {
	x := try(policy.Balanced, 1)
	most := 0.0
	for i := range 60 {
		n := x.full()
		x.second(n, 10*ms+time.Duration(n)*ms/10)
		if most = max(most, x.Value()); i == 4 && x.Value() < 100 {
			t.Errorf("after five seconds: %v", x.Value())
		}
	}
	if target := 2*100 + 3*8.; most > 1.1*target || x.Value() < 0.75*target {
		t.Errorf("%.0f after a minute, and %.0f at most; want about %.0f", x.Value(), most, target)
	}
}

// The tiers below fill what a reserve leaves them. That the limit is in use shows in that, and what it can be in their pace.
func TestLimitGrowsBesideAReserve(t *testing.T) {
	pace := func(base, per time.Duration) func(int) time.Duration {
		return func(n int) time.Duration { return base + time.Duration(n)*per }
	}
	for _, c := range []struct {
		percent    int // of the limit in reserve
		pace       func(int) time.Duration
		used       float64 // part of what the reserve leaves
		least, max float64
	}{
		{0, pace(10*ms, ms/5), 1, 90, 130},
		{25, pace(10*ms, ms/5), 1, 90, 130},
		{50, pace(10*ms, ms/5), 1, 90, 130},
		{80, pace(10*ms, ms/5), 1, 90, 130},
		{0, pace(10*ms, 2*ms), 1, 11, 16},
		{25, pace(10*ms, 2*ms), 1, 11, 16},
		{50, pace(10*ms, 2*ms), 1, 11, 16},
		{25, pace(10*ms, ms/5), 0.5, 8, 8}, // there is no demand
		{50, pace(10*ms, ms/5), 0.5, 8, 8},
	} {
		x := try(policy.Balanced, 1)
		x.s.Slots = 0
		x.s.Scrape.Waiting = policy.Known(0)
		for alone := range 10 { // so that the pace of one alone is known
			x.second(min(alone, 1), c.pace(1))
		}
		for range 120 {
			left := max(x.full()-x.full()*c.percent/100, 1)
			x.s.Reserved = x.full() - left
			n := max(int(c.used*float64(left)), 1)
			x.second(n, c.pace(n))
		}
		if got := x.Value(); got < c.least || got > c.max {
			t.Errorf("%d %% in reserve, %.0f %% of the rest in use, alone %v: %.1f, want %v to %v", c.percent, 100*c.used, c.pace(1), got, c.least, c.max)
		}
	}
}

func TestLimitShrinksWhenRequestsAreSlow(t *testing.T) {
	x := try(policy.Balanced, 4)
	x.second(32, 10*ms)
	before := x.Value()
	var got policy.Change
	for range 5 {
		got = x.second(x.full(), 60*ms)
	}
	if got != policy.ShrankSlow || x.Value() > before*0.8 {
		t.Errorf("at twice the target %q, from %.1f to %.1f", got, before, x.Value())
	}
	low := x.Value()
	for range 3 {
		if got := x.second(x.full(), 10*ms); got == policy.Grew && x.now.Sub(noon) < 9*time.Second {
			t.Errorf("grew within 3 s")
		}
	}
	for range 30 {
		x.second(x.full(), 10*ms)
	}
	if x.Value() < 2*low {
		t.Errorf("half a minute after: %.1f of %.1f", x.Value(), low)
	}
}

// 3.04 requests in flight, of a limit of 3.8, are impossible.
func TestASmallLimitWithAFractionGrows(t *testing.T) {
	for _, refusals := range []int{1, 2, 3, 4, 5, 6, 7, 8} {
		x := try(policy.Balanced, 1)
		for range refusals {
			x.w.Refused()
			x.idle(x.full())
		}
		before := x.Value()
		for range 10 {
			x.second(x.full(), 10*ms)
		}
		if x.Value() <= before {
			t.Errorf("a limit of %.2f does not grow with %d in flight", before, int(before))
		}
	}
}

func TestLimitStays(t *testing.T) {
	for what, do := range map[string]func(x *tried) policy.Change{
		"while too few are in flight to judge": func(x *tried) policy.Change { return x.second(x.full()/2, 10*ms) },
		"in the dead band": func(x *tried) policy.Change {
			for range 20 {
				x.second(x.full(), 30*ms)
			}
			return x.second(x.full(), 30*ms)
		},
		"while the GPU's samples are stale": func(x *tried) policy.Change {
			x.s.GPUs = []policy.GPU{{Sampled: true, Age: 10 * time.Second}}
			return x.second(x.full(), 10*ms)
		},
		"within a second": func(x *tried) policy.Change {
			for range 100 {
				x.w.Gap(10*ms, 1)
			}
			x.now = x.now.Add(999 * ms)
			return x.Update(&x.w, x.s, x.now)
		},
		"until there are 20 tokens": func(x *tried) policy.Change {
			for range 19 {
				x.w.Gap(10*ms, 1)
			}
			return x.idle(x.full())
		},
		"when nothing happens": func(x *tried) policy.Change { return x.idle(0) },
	} {
		x := try(policy.Balanced, 4)
		x.second(x.full(), 10*ms)
		if got := do(x); got != policy.Unchanged {
			t.Errorf("%s: %s", what, got)
		}
	}
}

func TestFewTokensAddUp(t *testing.T) {
	x := try(policy.Balanced, 1)
	changes := 0
	for range 10 {
		for range 5 {
			x.w.Gap(200*ms, 1)
		}
		if x.idle(x.full()) == policy.Grew {
			changes++
		}
	}
	if changes != 2 {
		t.Errorf("%d changes in 50 tokens, want 2", changes)
	}
}

func TestOverload(t *testing.T) {
	for what, c := range map[string]struct {
		do   func(x *tried)
		want policy.Change
	}{
		"the engine refuses":    {func(x *tried) { x.w.Refused() }, policy.ShrankRefuse},
		"the engine preempts":   {func(x *tried) { x.scraped(0, 8) }, policy.ShrankKV},
		"a queue in the engine": {func(x *tried) { x.scraped(9, 7); x.scraped(7, 7) }, policy.ShrankQueue},
		"a burst that waits for its prefill": {func(x *tried) { x.scraped(9, 7); x.scraped(4, 7) },
			policy.Unchanged},
		"prompts that it reads within two seconds": {func(x *tried) { x.prefilling(9, 0.2); x.prefilling(9, 0.2) },
			policy.Unchanged},
		"prompts that it does not":     {func(x *tried) { x.prefilling(9, 1); x.prefilling(9, 1) }, policy.ShrankQueue},
		"an engine that was restarted": {func(x *tried) { x.scraped(0, 3) }, policy.Unchanged},
	} {
		x := try(policy.Balanced, 2)
		x.scraped(0, 7)
		x.second(x.full(), 20*ms)
		x.second(x.full(), 60*ms) // a pace near the target neither grows nor shrinks the limit
		before := x.Value()
		c.do(x)
		if got := x.idle(30); got != c.want || (c.want != policy.Unchanged) != (x.Value() < before) {
			t.Errorf("%s: %q, from %.1f to %.1f; want %q", what, got, before, x.Value(), c.want)
		}
		if c.want == policy.Unchanged {
			continue
		}
		for range 4 {
			if got := x.second(x.full(), 10*ms); got != policy.Unchanged {
				t.Errorf("%s: %q within the hold", what, got)
			}
		}
		if got := x.second(x.full(), 10*ms); got != policy.Grew {
			t.Errorf("%s: %q after the hold", what, got)
		}
	}
}

func TestLimitKeepsThoseThatRun(t *testing.T) {
	x := try(policy.Balanced, 5)
	x.second(40, 20*ms)
	for range 60 { // the engine runs 24, and none ends
		x.scraped(16, 0)
		x.idle(40)
	}
	if x.Value() != 24 {
		t.Errorf("a queue of 16 with 24 running: %v", x.Value())
	}
}

func TestFirstTokensWithoutMetricsShowAQueue(t *testing.T) {
	x := try(policy.Balanced, 5)
	x.second(40, 20*ms)
	x.w.Prefilling(16)
	if got := x.idle(40); got != policy.Unchanged {
		t.Errorf("after a second in part of which none waited: %q", got)
	}
	if got := x.idle(40); got != policy.ShrankQueue {
		t.Errorf("16 that waited all the window: %q", got)
	}
	x.w.Prefilling(2)
	x.w.Prefilling(16)
	if got := x.idle(40); got != policy.Unchanged {
		t.Errorf("16 of which 14 have just come: %q", got)
	}
}

func TestAnswersInOnePieceGrowByOne(t *testing.T) {
	x := try(policy.Balanced, 1)
	for range 5 {
		x.w.Ended()
		x.idle(x.full())
	}
	if x.Value() != 13 {
		t.Errorf("after five seconds: %v, want 13", x.Value())
	}
	x.w.Refused()
	if x.idle(x.full()); math.Abs(x.Value()-13*0.85) > 1e-9 {
		t.Errorf("after a refusal: %v", x.Value())
	}
}

func TestObjectives(t *testing.T) {
	x := try(policy.Profile{Stretch: 4, ITL: 30 * ms}, 1)
	if x.Target() != 30*ms || x.Infeasible() {
		t.Errorf("before anything is measured: %v, %t", x.Target(), x.Infeasible())
	}
	x.second(x.full(), 20*ms)
	if x.Target() != 30*ms || x.Infeasible() {
		t.Errorf("an objective within reach: %v, %t", x.Target(), x.Infeasible())
	}
	x.Restart()
	x.second(x.full(), 40*ms)
	if got := x.Target().Seconds() / x.Baseline().Seconds(); math.Abs(got-1.3) > 1e-6 || !x.Infeasible() {
		t.Errorf("an objective out of reach: %.2f of the baseline, %t", got, x.Infeasible())
	}
	for range 100 {
		x.second(x.full(), 40*ms)
	}
	if x.Value() < 30 {
		t.Errorf("an objective out of reach took the limit to %v", x.Value())
	}
}

func TestFirstTokenObjective(t *testing.T) {
	x := try(policy.Profile{Stretch: 3, TTFT: 500 * ms}, 4)
	x.second(x.full(), 20*ms)
	for range 20 { // a pace near the target
		x.second(x.full(), 60*ms)
	}
	firsts := func(d time.Duration, n int) policy.Change {
		for range n {
			x.w.FirstToken(d)
		}
		return x.second(x.full(), 60*ms)
	}
	if got := firsts(800*ms, 10); got != policy.Unchanged {
		t.Errorf("ten samples gave a percentile: %q", got)
	}
	if got := firsts(100*ms, 30); got != policy.Unchanged {
		t.Errorf("a quarter of 800 ms, of an engine that has shown no better yet: %q", got)
	}
	if got := firsts(100*ms, 30); got != policy.Unchanged {
		t.Errorf("100 ms: %q", got)
	}
	if got := firsts(600*ms, 30); got != policy.ShrankFirst {
		t.Errorf("600 ms: %q", got)
	}
	x.Restart()
	for range 5 {
		if got := firsts(600*ms, 30); got == policy.ShrankFirst {
			t.Error("an engine that does no better shrinks for an objective out of reach")
		}
	}
}

func TestBaseline(t *testing.T) {
	near := func(l *tried, want time.Duration) bool {
		return math.Abs(l.Baseline().Seconds()/want.Seconds()-1) < 0.03
	}
	x := try(policy.Balanced, 4)
	x.second(20, 30*ms)
	x.second(20, 10*ms)
	x.second(20, 30*ms)
	if !near(x, 10*ms) {
		t.Errorf("the least of windows: %v", x.Baseline())
	}
	for range 3600 {
		x.second(20, 30*ms)
	}
	if d := x.Baseline().Seconds() / 0.010; d > 1.06 {
		t.Errorf("after an hour %.3f of it", d)
	}
	for range 7 * 24 * 60 { // a busy week, one minute at a time
		x.now = x.now.Add(59 * time.Second)
		x.second(20, 30*ms)
	}
	if d := x.Baseline().Seconds() / 0.010; d > 1.29 {
		t.Errorf("after a week %.3f of it", d)
	}
	for range 30 { // one request alone, after the clocks were lowered
		x.second(1, 20*ms)
	}
	if !near(x, 20*ms) {
		t.Errorf("one alone takes 20 ms: %v", x.Baseline())
	}
	x.Restart()
	if x.Baseline() != 0 || x.Value() != 32 {
		t.Errorf("after a restart: %v, %v", x.Baseline(), x.Value())
	}
	l := policy.NewAdaptiveLimit(policy.Balanced, 1, 12*ms)
	if l.Baseline() != 12*ms {
		t.Errorf("a baseline that was given: %v", l.Baseline())
	}
	if l.Restart(); l.Baseline() != 12*ms {
		t.Errorf("a baseline that was given, after a restart: %v", l.Baseline())
	}
}

// Tokens that come in bursts have a median gap of nearly 0.
func TestBurstsDoNotSpoilTheBaseline(t *testing.T) {
	x := try(policy.Balanced, 4)
	for range 60 {
		for range 25 {
			x.w.Gap(40*ms, 1)
			for range 3 {
				x.w.Gap(0, 1)
			}
		}
		x.idle(x.full())
	}
	if b := x.Baseline(); b < 5*ms-ms/10 || b > 10*ms+ms/10 || x.Value() < 32 {
		t.Errorf("four tokens each 40 ms: %v, limit %v", b, x.Value())
	}
	x = try(policy.Balanced, 4)
	for range 25 {
		x.w.Gap(40*ms, 4)
	}
	if x.idle(x.full()); x.Baseline().Round(ms) != 10*ms {
		t.Errorf("reported as pieces of four tokens: %v", x.Baseline())
	}
}

func TestProfiles(t *testing.T) {
	for name, want := range map[string]policy.Profile{
		"": policy.Balanced, "latency": policy.Latency, "balanced": policy.Balanced, "throughput": policy.Throughput, "fixed": policy.FixedSlots,
	} {
		if got, ok := policy.ProfileNamed(name); !ok || got != want {
			t.Errorf("%q: %+v, %t", name, got, ok)
		}
	}
	if p, ok := policy.ProfileNamed("fast"); ok {
		t.Errorf("fast: %+v", p)
	}
	x := try(policy.FixedSlots, 1)
	x.w.Refused()
	if got := x.second(8, 10*ms); got != policy.Unchanged || x.Value() != 0 {
		t.Errorf("fixed: %q, %v", got, x.Value())
	}
}

func TestAnyLimitIsInBounds(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		p := policy.Profiles[r.IntN(3)]
		if r.IntN(2) == 0 {
			p.ITL, p.TTFT = time.Duration(r.IntN(100))*ms, time.Duration(r.IntN(1000))*ms
		}
		l := policy.NewAdaptiveLimit(p, 3*r.Float64(), time.Duration(r.IntN(2))*20*ms)
		var w policy.LimitWindow
		now := noon
		for range 200 {
			s := anySignals(r)
			s.Scrape.Preempted = policy.Known(float64(r.IntN(20)))
			for range r.IntN(100) {
				w.Gap(time.Duration(r.ExpFloat64()*float64(20*ms)), r.IntN(4))
			}
			for range r.IntN(10) {
				w.FirstToken(time.Duration(r.ExpFloat64() * float64(500*ms)))
				w.Ended()
				w.Started(r.IntN(200))
				w.Prefilling(r.IntN(30))
			}
			if r.IntN(10) == 0 {
				w.Refused()
			}
			w.Scraped(s.Scrape)
			now = now.Add(time.Duration(r.IntN(3000)) * ms)
			before := l.Value()
			got := l.Update(&w, s, now)
			most := max(64, before)
			if _, told := s.Scrape.Waiting.Value(); told {
				most = 1024
			}
			if s.EngineSlots > 0 {
				most = float64(s.EngineSlots + 4)
			} else if s.Slots > 0 {
				most = float64(s.Slots)
			}
			v := l.Value()
			// An early call returns Unchanged and changes nothing.
			if v < 1 || math.IsNaN(v) || v != before && v > most || v > before && got != policy.Grew && got != policy.GrewBlind || l.Pace() < 0 || l.Baseline() < 0 {
				t.Fatalf("%q: %v, then %v of at most %v; %+v", got, before, v, most, l)
			}
		}
	}
}

func TestParallelWeight(t *testing.T) {
	for gpus, want := range map[int]float64{1: 2, 2: 1.7} {
		if got := policy.ParallelWeight(2, gpus); math.Abs(got-want) > 1e-9 {
			t.Errorf("%d GPUs: %v, want %v", gpus, got, want)
		}
	}
}

// The limit follows the engine: it grows while tokens come quickly.
func ExampleAdaptiveLimit() {
	limit := policy.NewAdaptiveLimit(policy.Balanced, 1, 0)
	var window policy.LimitWindow
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	limit.Update(&window, policy.Signals{}, now)
	for second, gap := range []time.Duration{10 * ms, 15 * ms, 160 * ms} {
		for range 50 {
			window.Gap(gap, 1)
		}
		now = now.Add(time.Second)
		change := limit.Update(&window, policy.Signals{InFlight: int(limit.Value()), Slots: 64}, now)
		fmt.Printf("%d s: %.1f, %s\n", second+1, limit.Value(), change)
	}
	// Output:
	// 1 s: 16.0, grew
	// 2 s: 32.0, grew
	// 3 s: 26.5, shrank: tokens come too slowly
}

// Configured slots stay while the engine always reads prompts: with fewer, the others would wait as long. They are reduced
// if it waits for something else in between.
func TestPromptsThatWaitLeaveConfiguredSlots(t *testing.T) {
	for what, c := range map[string]struct {
		second func(x *tried)
		want   policy.Change
	}{
		"it reads all the time":   {func(x *tried) { x.prefilling(12, 1); x.prefilling(14, 1) }, policy.Grew},
		"it reads now and then":   {func(x *tried) { x.prefilling(12, 1); x.scraped(12, 7) }, policy.ShrankQueue},
		"it does not read at all": {func(x *tried) { x.scraped(12, 7); x.scraped(12, 7) }, policy.ShrankQueue},
	} {
		x := try(policy.GivenSlots, 2)
		x.scraped(0, 7)
		x.second(x.full(), 20*ms)
		c.second(x)
		if got := x.idle(30); got != c.want {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}
