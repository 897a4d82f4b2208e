package worker

import (
	"slices"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/api"
)

// An attempt that was in flight while the worker was fenced, or its engine down,
// teaches no price.
func TestWhatAFenceTeaches(t *testing.T) {
	now := time.Now()
	for what, test := range map[string]struct {
		fencedAt time.Time
		fence    string
		downAt   time.Time
		learns   bool
	}{
		"never fenced":             {time.Time{}, "", time.Time{}, true},
		"fenced before it began":   {now.Add(-time.Minute), "", time.Time{}, true},
		"fenced while it ran":      {now.Add(-10 * time.Second), "", time.Time{}, false},
		"fenced when it ends":      {now.Add(-10 * time.Second), "the engine has stalled", time.Time{}, false},
		"fenced from before on it": {now.Add(-time.Minute), "NVML is required", time.Time{}, false},
		"down before it began":     {time.Time{}, "", now.Add(-time.Minute), true},
		"down while it ran":        {time.Time{}, "", now.Add(-10 * time.Second), false},
	} {
		t.Run(what, func(t *testing.T) {
			c, e := newCapacity(Config{}), newEstimator()
			c.fence.since, c.fence.reason, c.downAt = test.fencedAt, test.fence, test.downAt
			e.serve([]string{"m"})
			p := e.pool("m")
			for range 2 { // a line takes two
				a := &timing{
					pool: p, input: 100, streams: true, started: now.Add(-20 * time.Second),
					firstByte: now.Add(-19 * time.Second), prefillTook: time.Second,
				}
				e.learn(a, 100, true, c.disturbed(a.started), now)
			}
			if got := e.measurements(now)["m"].curve != nil; got != test.learns {
				t.Errorf("there is a curve: %v, want %v", got, test.learns)
			}
			if p.mean.Output != 100 {
				t.Errorf("mean output %v, want 100: it is the same however long it took", p.mean.Output)
			}
		})
	}
}

// Two prompts are read one after the other, and then their tokens come together.
func TestEstimatorLearnsFromStreams(t *testing.T) {
	now := time.Now()
	at := func(s float64) time.Time { return now.Add(time.Duration(s * float64(time.Second))) }
	e := newEstimator()
	e.serve([]string{"m"})
	p := e.pool("m")
	a := &timing{pool: p, input: 1000, streams: true, started: at(0)}
	b := &timing{pool: p, input: 2000, streams: true, started: at(0.5), beside: 1}
	e.begin(a)
	e.begin(b)
	if w := e.load(at(0.6)); w.n != 2 || w.known || !w.until.IsZero() {
		t.Errorf("before anything is measured %+v wait for their first token", w)
	}
	if m := e.mark(); m.begun != 2 || m.quiet {
		t.Errorf("mark %+v", m)
	}
	e.firstByte(a, false, at(1))
	e.firstByte(b, false, at(3))
	if m := e.mark(); m.begun != 2 || !m.quiet {
		t.Errorf("mark %+v", m)
	}
	e.learn(a, 41, true, false, at(5)) // 40 tokens in 4 s: 2 alone, 2 beside b
	e.end(a, at(5))
	e.learn(b, 21, true, false, at(5)) // 20 in 2 s, beside a
	e.end(b, at(5))
	m := e.measurements(at(5))["m"]
	if m.curve == nil || m.curve.Prefill == nil || m.curve.ITL == nil {
		t.Fatalf("measured %+v", m.curve)
	}
	if one, two := m.curve.Prefill.At(1000), m.curve.Prefill.At(2000); !near(one, 1) || !near(two, 2) {
		t.Errorf("1000 tokens take %v s, and 2000 %v s, want 1 and 2", one, two)
	}
	if itl := m.curve.ITL.At(1.5); !near(itl, 0.1) {
		t.Errorf("a token takes %v s, want 0.1", itl)
	}
	if p.mean.Input != 1500 || p.mean.Output != 31 {
		t.Errorf("mean %+v", p.mean)
	}
	if w := e.workload(at(5)); w.tokens != 1531 || w.prefills != 0 || !near(w.prompt.Seconds(), 1.5) {
		t.Errorf("workload %+v", w)
	}

	// By that, the next one should have its first token after a second.
	c := &timing{pool: p, input: 1000, streams: true, started: at(10)}
	e.begin(c)
	if w := e.load(at(10.25)); !w.known || !near(w.work, 0.75) {
		t.Errorf("after a quarter of its prompt %+v wait", w)
	}
	if e.end(c, at(10.5)); e.load(at(10.5)).n != 0 || !e.mark().quiet {
		t.Error("one that failed still waits")
	}
	if e.decoding.level != 0 {
		t.Errorf("%d decode", e.decoding.level)
	}
}

func near(a, b float64) bool { return a-b < 1e-6 && b-a < 1e-6 }

// An answer that does not stream shows no first token. Its request waits for it
// until it should have had it.
func TestEstimatorOfAnswersThatDoNotStream(t *testing.T) {
	now := time.Now()
	e := newEstimator()
	e.serve([]string{"m"})
	p := e.pool("m")
	a := &timing{pool: p, input: 1000, started: now}
	e.begin(a)
	if w := e.load(now); w.n != 1 || w.known || !w.until.Equal(now.Add(prefillUnknown)) {
		t.Errorf("%+v waits, want it to until %v", w, prefillUnknown)
	}
	if w := e.load(now.Add(prefillUnknown)); w.n != 0 || !e.mark().quiet {
		t.Errorf("after %v %+v waits", prefillUnknown, w)
	}
	e.learn(a, 0, false, false, now.Add(2*time.Second)) // an embedding: all of it is prefill
	e.end(a, now.Add(2*time.Second))
	b := &timing{pool: p, input: 1000, started: now.Add(3 * time.Second)}
	e.begin(b)
	e.learn(b, 0, false, false, now.Add(5*time.Second))
	e.end(b, now.Add(5*time.Second))
	if c := e.measurements(now.Add(5 * time.Second))["m"].curve; c == nil || c.Prefill == nil || c.ITL != nil || !near(c.Prefill.At(1000), 2) {
		t.Errorf("measured %+v, want 2 s for 1000 tokens", c)
	}
}

// A token takes as long in a short answer as in a long one, though the short one waited for a prompt before its own.
func TestWhatATokenTakesInAnswersThatDoNotStream(t *testing.T) {
	for _, c := range []struct {
		name        string
		long, short int // tokens
		every       int // the short one comes each so many times
	}{{"equal", 100, 100, 1}, {"short ones", 300, 10, 1}, {"mostly long ones", 300, 2, 3}} {
		t.Run(c.name, func(t *testing.T) {
			const token, prompt = 0.01, 1.0
			start := time.Now()
			at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
			e := newEstimator()
			e.serve([]string{"m"})
			p := e.pool("m")
			now := 0.0
			for range 2 { // two streams tell how long a prompt takes
				s := &timing{pool: p, input: 1000, streams: true, started: at(now)}
				e.begin(s)
				e.firstByte(s, false, at(now+prompt))
				e.learn(s, 2, true, false, at(now+prompt+token))
				e.end(s, at(now+prompt+token))
				now += 5
			}
			for i := range 30 {
				a := &timing{pool: p, input: 1000, started: at(now)}
				b := &timing{pool: p, input: 1000, started: at(now), beside: 1}
				e.begin(a)
				both := i%c.every == 0
				if both {
					e.begin(b)
				}
				took := map[*timing]float64{a: prompt + float64(c.long)*token, b: 2*prompt + float64(c.short)*token}
				tokens := map[*timing]int{a: c.long, b: c.short}
				order := []*timing{a, b}
				if took[b] < took[a] {
					order = []*timing{b, a}
				}
				for _, r := range order {
					if r == a || both {
						e.learn(r, tokens[r], false, false, at(now+took[r]))
						e.end(r, at(now+took[r]))
					}
				}
				now += 10
			}
			c := e.measurements(at(now))["m"].curve
			for _, n := range []float64{1, 1.5, 2} {
				if got := c.ITL.At(n); got < 0.98*token || got > 1.02*token {
					t.Errorf("with %v at once a token takes %.4f s, want %v", n, got, token)
				}
			}
		})
	}
}

// Requests that wait for the load of a model wait as long for their first token,
// and only the first of them counts it as work of the engine.
func TestEstimatorExpectsALoad(t *testing.T) {
	now := time.Now()
	e := newEstimator()
	e.serve([]string{"m"})
	e.pools["m"].measured(now)
	one := e.pools["m"].curve.Load().Prefill.At(1000)
	for _, load := range []coldLoad{{waits: true, first: true, left: 8 * time.Second}, {waits: true, left: 8 * time.Second}} {
		e.begin(&timing{pool: e.pool("m"), input: 1000, started: now, load: load})
	}
	w := e.load(now)
	if !near(w.work, 8+2*one) || !w.until.Equal(now.Add(8*time.Second+time.Duration(one*float64(time.Second)))) {
		t.Errorf("%+v wait, want 8 s of load and two prompts of %v s", w, one)
	}
}

// A pool that the worker stops to serve is forgotten; one that it goes on to
// serve keeps its measurements.
func TestEstimatorKeepsWhatIsServed(t *testing.T) {
	now := time.Now()
	e := newEstimator()
	e.serve([]string{"a", "b"})
	e.pools["a"].measured(now)
	e.pools["b"].measured(now)
	e.serve([]string{"b", "c"})
	if m := e.measurements(now); len(m) != 2 || m["b"].curve == nil || m["c"].curve != nil {
		t.Errorf("measured %+v", m)
	}
	if e.pool("a").curve.Load() != nil {
		t.Error("a pool that is served no more keeps its curve")
	}
}

// While no answer has ended, the engine's counter tells how long a token takes.
func TestTokensByTheEnginesCounter(t *testing.T) {
	now := time.Now()
	at := func(s float64) time.Time { return now.Add(time.Duration(s * float64(time.Second))) }
	e := newEstimator()
	e.serve([]string{"m"})
	p := e.pool("m")
	count := func(n int64, s float64) { e.onGenerated(&n, at(s)) }
	count(1000, 0)
	var streams []*timing
	for range 2 {
		a := &timing{pool: p, input: 100, streams: true, started: at(0)}
		e.begin(a)
		e.firstByte(a, false, at(1))
		streams = append(streams, a)
	}
	count(1006, 1.5)
	if got := e.countedToken(); got != 0 {
		t.Errorf("after six tokens: %v, want unknown", got)
	}
	count(1036, 2.8) // two streams for 1.8 s
	if got := e.countedToken(); got != 100*time.Millisecond {
		t.Errorf("got %v, want 100ms", got)
	}
	count(3, 3) // it has started again
	for _, a := range streams {
		e.end(a, at(3))
	}
	count(500, 10) // for others
	if got := e.countedToken(); got != 100*time.Millisecond {
		t.Errorf("after a restart, and tokens of others: %v, want 100ms", got)
	}
	e.onGenerated(nil, at(11))
	count(600, 12)
	if got := e.countedToken(); got != 100*time.Millisecond {
		t.Errorf("after a page that was not read: %v, want 100ms", got)
	}
}

// How much of the prompts was cached is known from the engine's counters of what it computed, or from its answers.
func TestEstimatorKnowsWhatWasCached(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	for what, c := range map[string]struct {
		said    api.PromptReport
		counts  bool // the engine counts 2 000 tokens in 6 s beside
		counted bool
		token   time.Duration
	}{
		"nothing is said":        {api.PromptReport{}, false, false, 100 * time.Microsecond},
		"it was cached":          {api.PromptReport{Counted: true, Cached: 900, Tokens: 1000}, false, true, ms},
		"a part was, as it says": {api.PromptReport{Counted: true, Cached: 450, Tokens: 500}, false, true, ms},
		"llama.cpp's answers":    {api.PromptReport{Computed: 200, Took: 400 * ms}, false, true, 2 * ms},
		"its counters":           {api.PromptReport{Computed: 200, Took: 400 * ms}, true, true, 3 * ms},
	} {
		e := newEstimator()
		e.serve([]string{"m"})
		p, now := e.pool("m"), time.Now()
		if c.counts {
			for _, n := range []int64{1000, 3000} {
				took := time.Duration(n) * 3 * ms
				e.onPrefilled(&n, &took, now)
			}
		}
		for range 10 {
			a := &timing{pool: p, input: 1000, streams: true, started: now.Add(-s), firstByte: now.Add(-900 * ms), readTook: 100 * ms}
			e.onPrompt(a, c.said, now)
			e.learn(a, 10, true, false, now)
		}
		if got := p.pace.Reading(); got.Counted != c.counted || (got.Token-c.token).Abs() > time.Microsecond {
			t.Errorf("%s: %v for a token, counted %t; want %v, %t", what, got.Token, got.Counted, c.token, c.counted)
		}
	}
}

// The pace of prompts is that of the slowest, also if it was not the first of those that came at once, by the worker's order:
// the others find in the cache what it has read. Of a prompt that came later it is not known what was read before it.
func TestEstimatorMeasuresPromptsThatComeAtOnce(t *testing.T) {
	const ms = time.Millisecond
	for what, c := range map[string]struct {
		apart  time.Duration // from each request to the next
		first  int           // which one the engine reads first
		counts bool
	}{
		"in order":               {0, 0, true},
		"the last one first":     {0, 3, true},
		"a few milliseconds":     {10 * ms, 3, true},
		"one that is much later": {200 * ms, 3, false},
	} {
		e := newEstimator()
		e.serve([]string{"m"})
		p, now := e.pool("m"), time.Now()
		read := func(at time.Time, took time.Duration, as ...*timing) {
			for _, a := range as {
				e.firstByte(a, false, at)
				e.end(a, at)
				e.learn(a, 1, true, false, at)
				at = at.Add(took)
			}
		}
		var as []*timing
		for range 4 {
			a := &timing{pool: p, input: 1000, streams: true, started: now}
			e.begin(a)
			as = append(as, a)
			now = now.Add(c.apart)
		}
		slow := as[c.first]
		now = now.Add(2 * time.Second)
		read(now, 10*ms, append([]*timing{slow}, slices.DeleteFunc(as, func(a *timing) bool { return a == slow })...)...)
		for range 8 {
			now = now.Add(time.Second)
			a := &timing{pool: p, input: 1000, streams: true, started: now}
			e.begin(a)
			read(now.Add(10*ms), 0, a)
		}
		if got := p.pace.Reading().Token; (got >= 2*ms) != c.counts {
			t.Errorf("%s: %v for a token, want that of the slowest: %t", what, got, c.counts)
		}
	}
}
