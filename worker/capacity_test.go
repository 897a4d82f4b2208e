package worker

import (
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/policy"
)

// vllm is what a vLLM reports.
func vllm(at time.Time, running, waiting int, usage float64, generated int64) engine.Status {
	return engine.Status{
		Dialect: engine.DialectVLLM, Healthy: true, Checked: at, At: at,
		Running: &running, Waiting: &waiting, KVUsage: &usage, Generated: &generated,
	}
}

func TestSlotsWithoutConfiguration(t *testing.T) {
	now := time.Now()
	for what, test := range map[string]struct {
		cfg    Config
		status engine.Status
		slots  int
	}{
		"nothing is known":         {Config{}, engine.Status{}, blindSlots},
		"Ollama says nothing":      {Config{}, engine.Status{Dialect: engine.DialectOllama, At: now}, ollamaSlots},
		"configured":               {Config{Slots: 5}, engine.Status{Dialect: engine.DialectOllama, At: now}, 5},
		"the limit of metrics":     {Config{}, vllm(now, 0, 0, 0, 0), policy.SlotsPerWeight},
		"configured, with metrics": {Config{Slots: 5}, vllm(now, 0, 0, 0, 0), 5},
	} {
		c := newCapacity(test.cfg)
		c.onStatus(test.status, workload{}, now)
		c.look(nil, workload{}, runningAttempts{}, 0, 0, now)
		if got := c.load().slots; got != test.slots {
			t.Errorf("%s: %d slots, want %d", what, got, test.slots)
		}
	}
}

// Requests fill the slots and free them, and what waits in the engine stops new
// ones.
func TestCapacityFollowsTheEngine(t *testing.T) {
	now := time.Now()
	c := newCapacity(Config{Slots: 4, Profile: policy.GivenSlots})
	c.serve([]servedPool{{"m", "m"}}, now)
	free := func(what string, want int) {
		t.Helper()
		if ld := c.load(); ld.free != want {
			t.Errorf("%s: %d may start, %d in flight, bound by %s; want %d", what, ld.free, ld.inFlight, c.current.Bound, want)
		}
	}
	free("at the start", 4)
	slots := make([]slot, 3)
	for i := range slots {
		if _, beside := c.begin(&slots[i], "m", true, now); beside != i {
			t.Errorf("request %d begins beside %d", i, beside)
		}
	}
	free("three in flight", 1)
	if c.waiting != 3 {
		t.Errorf("%d wait for their first token", c.waiting)
	}
	c.onStatus(vllm(now, 1, 2, 0.1, 0), workload{prefills: 1}, now)
	free("two of them wait in the engine", 0)
	c.onStatus(vllm(now.Add(time.Second), 3, 0, 0.1, 10), workload{}, now.Add(time.Second))
	free("none waits", 1)
	c.onFirstByte(&slots[0], now, now.Add(time.Second))
	c.end(&slots[0], now.Add(2*time.Second))
	c.end(&slots[1], now.Add(2*time.Second))
	free("two have ended", 3)
	if c.waiting != 1 || !c.lastToken.Equal(now.Add(time.Second)) {
		t.Errorf("%d wait for their first token, the last token came at %v", c.waiting, c.lastToken)
	}
}

// A counter that falls shows that the engine has started again: what was measured
// of it is forgotten.
func TestCapacityOfAnEngineThatStartsAgain(t *testing.T) {
	now := time.Now()
	c := newCapacity(Config{Profile: policy.Balanced})
	c.onStatus(vllm(now, 0, 0, 0, 1000), workload{}, now)
	stream(c, 20*time.Millisecond, 100, now)
	c.look(nil, workload{}, runningAttempts{}, 0, 0, now)
	c.look(nil, workload{}, runningAttempts{}, 0, 0, now.Add(2*time.Second))
	if got := c.limit.Baseline(); got != 20*time.Millisecond {
		t.Fatalf("the baseline is %v, want 20ms", got)
	}
	c.onStatus(vllm(now.Add(3*time.Second), 0, 0, 0, 10), workload{}, now.Add(3*time.Second))
	if c.limit.Baseline() != 0 || !c.startedAt.Equal(now.Add(3*time.Second)) {
		t.Errorf("the baseline is %v, and it started at %v", c.limit.Baseline(), c.startedAt)
	}
}

// stream is a stream of so many tokens, one in each event, whose metrics come with
// the last.
func stream(c *capacity, each time.Duration, tokens int, now time.Time) {
	c.perEvent = 1
	var p pace
	for i := range tokens {
		c.onTokens(&p, i+1, i == tokens-1, prefillMark{begun: 1, quiet: true}, now.Add(time.Duration(i)*each))
	}
	c.onEnd(&p, true, tokens, tokens)
}

// The time between tokens does not count while a client keeps the engine waiting,
// nor while the engine or a GPU is ill.
func TestPaceLeavesOutDisturbances(t *testing.T) {
	now := time.Now()
	at := func(ms int) time.Time { return now.Add(time.Duration(ms) * time.Millisecond) }
	c := newCapacity(Config{Profile: policy.Balanced})
	c.perEvent = 1
	var p pace
	mark := prefillMark{begun: 1, quiet: true}
	c.onTokens(&p, 1, false, mark, at(0))
	c.onTokens(&p, 2, false, mark, at(10))
	p.at = time.Time{} // the client was slow
	c.onTokens(&p, 3, false, mark, at(5000))
	c.onTokens(&p, 4, false, mark, at(5010))
	c.onDown(at(5020))
	c.onTokens(&p, 5, false, mark, at(9000))
	c.onTokens(&p, 6, false, mark, at(9010))
	if p.took != 30*time.Millisecond {
		t.Errorf("three tokens took %v, want 30ms", p.took)
	}
	if !c.disturbed(at(5019)) || c.disturbed(at(5020)) {
		t.Error("an engine that was down disturbed what ran then, and nothing later")
	}
}

// Where events carry several tokens, only the time of the whole stream counts.
func TestPaceOfEventsWithSeveralTokens(t *testing.T) {
	now := time.Now()
	c := newCapacity(Config{Profile: policy.Balanced})
	var p pace
	for i := range 12 {
		c.onTokens(&p, i+1, false, prefillMark{}, now.Add(time.Duration(i)*100*time.Millisecond))
	}
	c.onEnd(&p, true, 12, 40) // in 10 events, and two without
	if !near(c.perEvent, 4) {
		t.Errorf("%v tokens per event, want 4", c.perEvent)
	}
	for i := range 5 { // 39 gaps in 1.1 s, and enough for a window
		c.look(nil, workload{}, runningAttempts{}, 0, 0, now.Add(time.Duration(i)*time.Second))
	}
	if got, want := c.limit.Pace(), 1100*time.Millisecond/39; got.Round(10*time.Microsecond) != want.Round(10*time.Microsecond) {
		t.Errorf("a token takes %v, want %v", got, want)
	}
}

// A limit that goes on growing is one decision, and few decisions are kept.
func TestDecisions(t *testing.T) {
	now := time.Now()
	var d decisions
	d.addLimit(now, 8, 9, policy.Grew)
	d.addLimit(now, 9, 12, policy.Grew)
	d.addLimit(now, 12, 14, policy.GrewBlind)
	if len(d.list) != 1 || d.list[0].Text != "limit 8 → 14: grew without a measurement: no answers were streamed" {
		t.Errorf("decided %v", d.list)
	}
	d.addLimit(now, 14, 10, policy.ShrankSlow)
	d.addLimit(now, 10, 11, policy.Grew)
	if len(d.list) != 3 {
		t.Errorf("decided %v", d.list)
	}
	for range 20 {
		d.add(now, "fence lifted")
	}
	if len(d.list) != keptDecisions {
		t.Errorf("%d decisions are kept, want %d", len(d.list), keptDecisions)
	}
}
