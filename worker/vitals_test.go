package worker

import (
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// vitalsBench drives the vitals of an engine in steps of a quarter second.
type vitalsBench struct {
	v        *vitals
	now      time.Time
	running  runningAttempts
	pool     *poolAttempts // of running
	signs    engineSigns
	answered time.Time
	cause    fenceCause
	why      string // of the suspicion
}

func newVitalsBench() *vitalsBench {
	now := time.Now()
	b := &vitalsBench{v: newVitals(), now: now, answered: now, signs: engineSigns{started: now.Add(-time.Minute), queue: queueEmpty, served: 1}}
	b.running.oldest = now
	b.pool = new(poolAttempts)
	b.running.pools = map[string]*poolAttempts{"m": b.pool}
	return b
}

// wait lets a request wait of which this is known.
func (b *vitalsBench) wait(a policy.Awaited) {
	b.pool.waiting, b.pool.awaited, b.pool.oldestWaiting = 1, a, b.now
	b.pool.head = &attempt{req: &subjects.Request{Path: "/v1/chat/completions"}, task: task{model: "m"}}
	b.signs.inFlight = 1
}

// pass lets time pass, in which the engine answers questions about its health unless it is mute.
func (b *vitalsBench) pass(d time.Duration) {
	for end := b.now.Add(d); b.now.Before(end); {
		b.now = b.now.Add(capacityTick)
		if b.signs.late.IsZero() {
			b.signs.checked = b.now
		}
		b.v.look(b.running, b.signs, map[string]time.Time{"m": b.answered}, b.now)
		b.cause, b.why = b.v.hangs(), ""
		if f := b.v.latest.Load(); f != nil {
			b.why = f.suspects["m"].why
		}
	}
}

// probed reports whether a probe is due, and takes it.
func (b *vitalsBench) probed() bool {
	select {
	case <-b.v.due:
		return len(b.v.take()) > 0
	default:
		return false
	}
}

var quick = policy.Await(policy.Prompt{Input: 20, Took: 100 * time.Millisecond})

func TestVitalsOfAHungEngine(t *testing.T) {
	b := newVitalsBench()
	b.wait(quick)
	b.pass(time.Second)
	if b.probed() || b.cause.reason != "" || b.why != "" {
		t.Fatalf("within its time: %q %q", b.cause.reason, b.why)
	}
	b.pass(time.Second)
	if !b.probed() || b.why == "" || b.cause.reason != "" {
		t.Fatalf("silent: %q %q, want a probe and no more requests", b.cause.reason, b.why)
	}
	b.pass(1250 * time.Millisecond)
	if b.cause.class != subjects.FenceHung || !strings.Contains(b.cause.reason, "one token") || b.why != "" {
		t.Fatalf("no answer to a probe: %+v %q", b.cause, b.why)
	}
	// Its requests are moved. It stays out until a probe is answered.
	b.pool.waiting, b.signs.inFlight = 0, 0
	for n := range 3 {
		b.v.onProbe("m", false, b.now)
		b.pass(probePause)
		if b.pass(capacityTick); !b.probed() || b.cause.class != subjects.FenceHung {
			t.Fatalf("probe %d is not due; %+v", n, b.cause)
		}
	}
	b.pass(time.Second)
	b.v.onProbe("m", true, b.now)
	if b.pass(capacityTick); b.cause.reason != "" || b.why != "" {
		t.Errorf("a probe was answered: %+v %q", b.cause, b.why)
	}
}

// Its requests may be moved one by one before the verdict: what they have shown counts.
func TestVitalsRememberRequestsThatWereMoved(t *testing.T) {
	b := newVitalsBench()
	b.signs.queue = queueUnknown
	b.wait(quick)
	b.pass(5 * time.Second)
	if b.probed() || b.why == "" {
		t.Fatalf("a probe would wait: probed, or no suspicion %q", b.why)
	}
	b.pool.waiting, b.pool.head, b.signs.inFlight = 0, nil, 0
	b.pass(capacityTick)
	if !b.probed() {
		t.Fatal("nothing is in its way any more, and no probe is due")
	}
	if b.pass(1500 * time.Millisecond); b.cause.class != subjects.FenceHung {
		t.Errorf("no answer to a probe: %+v %q", b.cause, b.why)
	}
	b.answered = b.now // of a request that was still there
	if b.pass(2 * capacityTick); b.cause.reason != "" {
		t.Errorf("an answer has begun: %+v", b.cause)
	}
}

// Clients that give up one after the other do not make an engine trustworthy that has shown nothing.
func TestVitalsWhenClientsGiveUp(t *testing.T) {
	b := newVitalsBench()
	b.signs.queue = queueUnknown
	whole := policy.Await(policy.Prompt{Input: 20, Whole: true, Seen: 5, Token: 10 * time.Millisecond})
	b.wait(whole)
	b.pool.waiting, b.signs.inFlight = 3, 3
	b.pass(2 * time.Second)
	if b.why == "" {
		t.Fatal("three wait, and it gets more requests")
	}
	for left := 2; left >= 0; left-- {
		b.pool.waiting, b.signs.inFlight = left, left
		b.pass(capacityTick)
		if b.why == "" {
			t.Fatalf("%d wait, and it gets more requests", left)
		}
		if left > 0 {
			b.pool.oldestWaiting = b.now.Add(-2 * time.Second)
		}
	}
	if !b.probed() {
		t.Fatal("nothing is in its way any more, and no probe is due")
	}
	b.v.onProbe("m", true, b.now)
	if b.pass(2 * capacityTick); b.why != "" || b.cause.reason != "" {
		t.Errorf("a probe was answered: %+v %q", b.cause, b.why)
	}
}

func TestVitalsOfAFrozenEngine(t *testing.T) {
	b := newVitalsBench()
	b.wait(quick)
	b.signs.late = b.now
	b.pass(1500 * time.Millisecond)
	if b.cause.class != subjects.FenceFrozen || b.probed() {
		t.Fatalf("%+v; want it frozen, and no probe while it answers nothing", b.cause)
	}
	b.pool.waiting, b.signs.inFlight = 0, 0
	b.pass(time.Minute)
	if b.cause.class != subjects.FenceFrozen || b.probed() {
		t.Fatalf("%+v, a probe is out", b.cause)
	}
	b.signs.late = time.Time{}
	if b.pass(capacityTick); !b.probed() {
		t.Error("it answers again, and is not probed")
	}
}

// An engine that was frozen and answers a question again keeps the requests that it still has: it is no longer frozen. It gets no
// others until it has answered one of them, or a probe.
func TestVitalsOfAnEngineThatThaws(t *testing.T) {
	thaw := func() *vitalsBench {
		b := newVitalsBench()
		b.wait(quick)
		b.signs.late = b.now
		if b.pass(2 * time.Second); b.cause.class != subjects.FenceFrozen {
			t.Fatalf("%+v, want it frozen", b.cause)
		}
		b.signs.late = time.Time{}
		b.pass(capacityTick)
		return b
	}
	closed := func(b *vitalsBench) bool {
		ld := load{inFlight: b.signs.inFlight}
		b.v.latest.Load().limit(&ld)
		return ld.closes("m")
	}
	b := thaw()
	if b.cause.reason != "" || !strings.Contains(b.why, "was frozen and answers") || !closed(b) || b.probed() {
		t.Fatalf("it answers questions: %+v %q, closed %t; want its requests to stay, and no others", b.cause, b.why, closed(b))
	}
	if excused := b.v.excused(); !excused.After(b.now) {
		t.Errorf("excused until %v, want as long again as it was mute", excused.Sub(b.now))
	}
	b.answered = b.now.Add(time.Millisecond)
	b.pool.waiting, b.signs.inFlight = 0, 0
	if b.pass(capacityTick); b.why != "" || closed(b) {
		t.Errorf("it has answered one: %q", b.why)
	}

	b = thaw()
	b.pool.waiting, b.signs.inFlight = 0, 0 // its clients have gone
	if b.pass(capacityTick); !b.probed() {
		t.Fatal("nothing is in its way, and no probe is due")
	}
	b.v.onProbe("m", true, b.now)
	if b.pass(2 * capacityTick); b.why != "" || closed(b) {
		t.Errorf("a probe was answered: %q", b.why)
	}

	b = thaw()
	b.pass(4 * time.Second)
	if !b.probed() || b.cause.class != subjects.FenceHung {
		t.Errorf("%+v, want it to hang: it had as long again, and a probe has no answer", b.cause)
	}

	b = thaw()
	b.signs.late = b.now
	if b.pass(3 * time.Second); b.cause.class != subjects.FenceFrozen {
		t.Errorf("%+v, want it frozen again", b.cause)
	}
}

// One that was blocked and still has its requests gets as much time as that took.
func TestVitalsOfAnEngineThatWasBlocked(t *testing.T) {
	b := newVitalsBench()
	b.wait(quick)
	b.signs.late = b.now
	b.pass(15 * time.Second)
	b.signs.late = time.Time{}
	b.pass(14 * time.Second)
	if b.probed() {
		t.Error("probed while it may still be at work")
	}
	b.pass(2 * time.Second)
	if !b.probed() {
		t.Error("not probed at last")
	}
}

func TestVitalsExcuse(t *testing.T) {
	for what, set := range map[string]func(b *vitalsBench){
		"a request of which nothing is known": func(b *vitalsBench) { b.wait(policy.Awaited{}) },
		"one beside it":                       func(b *vitalsBench) { b.wait(quick.With(policy.Awaited{})) },
		"measured before it started":          func(b *vitalsBench) { b.wait(quick); b.answered = b.signs.started.Add(-time.Second) },
		"a long prompt":                       func(b *vitalsBench) { b.wait(policy.Await(policy.Prompt{Input: 10_000, Took: time.Second})) },
		"the engine's clock of tokens moves":  func(b *vitalsBench) { b.wait(quick); b.signs.progress = b.now.Add(time.Hour) },
	} {
		b := newVitalsBench()
		set(b)
		b.pass(30 * time.Second)
		if b.cause.reason != "" || b.probed() && b.why == "" || b.why != "" && !strings.Contains(b.why, "has answered nothing yet") {
			t.Errorf("%s: %+v %q", what, b.cause, b.why)
		}
	}
}

// An engine that answers late while it has requests is busy, and down when it has none.
func TestPresenceOfABusyEngine(t *testing.T) {
	now := time.Now()
	p := newPresence(0)
	p.onStatus("", false)
	p.onListing(nil, false)
	state := func(want subjects.State) {
		t.Helper()
		if got, why := p.report(""); got != want {
			t.Errorf("%s %q, want %s", got, why, want)
		}
	}
	p.onWork(true, now)
	if c := p.onStatus("no answer to /health within 1s", true); c.busy == "" || c.down {
		t.Errorf("late with requests: %+v", c)
	}
	state(subjects.Busy)
	if open, _ := p.open(now); open || !p.late() || p.down() {
		t.Error("a busy engine gets requests, or counts as down")
	}
	if c := p.onStatus("", false); !c.eased || c.up {
		t.Errorf("it answers again: %+v", c)
	}
	state(subjects.Ready)
	p.onListing(errLate, true)
	state(subjects.Busy)
	p.onWork(false, now.Add(time.Second))
	state(subjects.Busy) // it has not been asked since
	p.onWork(false, now.Add(busyStays))
	state(subjects.Down)
	p.onWork(true, now.Add(time.Minute))
	state(subjects.Down) // what is down comes back by its answers
	p.onListing(nil, false)
	state(subjects.Ready)
	p.onStatus("get /health: 503", false)
	state(subjects.Down)
	p.onStatus("", false)
	p.onStatus("no answer to /health within 1s", true)
	p.onWork(true, now.Add(time.Minute))
	if got, why := p.report("it hangs"); got != subjects.Fenced || why != "it hangs" {
		t.Errorf("fenced: %s %q", got, why)
	}
}

var errLate = errorText("GET /v1/models: no answer")

type errorText string

func (e errorText) Error() string { return string(e) }

// What hangs for one pool alone is no reason to fence the worker; what hangs for all is.
func TestVitalsOfOnePool(t *testing.T) {
	b := newVitalsBench()
	b.signs.served = 2
	b.wait(quick)
	other := func(d time.Duration) { // the engine answers requests of the other pool meanwhile
		for end := b.now.Add(d); b.now.Before(end); {
			b.signs.progress = b.now
			b.pass(capacityTick)
		}
	}
	other(2 * time.Second)
	if !b.probed() || b.why != "" {
		t.Fatalf("in doubt: %q, or no probe", b.why)
	}
	other(1750 * time.Millisecond)
	f := b.v.latest.Load()
	if f == nil || f.hung["m"] == "" || f.fence.reason != "" {
		t.Fatalf("no answer to a probe: %+v", f)
	}
	var ld load
	f.limit(&ld)
	if !ld.closes("m") || ld.closes("n") {
		t.Errorf("closed for %v, want m alone", ld.shut)
	}
	b.signs.served = 1
	if b.pass(capacityTick); b.cause.class != subjects.FenceHung {
		t.Errorf("nothing else is served: %+v", b.cause)
	}
	b.v.onProbe("m", true, b.now)
	if b.pass(capacityTick); b.v.latest.Load() != nil {
		t.Errorf("a probe was answered: %+v", b.v.latest.Load())
	}
}

// Streams that have begun and do not go on put the engine in doubt, unless others do, a prompt may hold them up, or it is
// short of KV cache.
func TestVitalsOfStreamsThatStop(t *testing.T) {
	for what, c := range map[string]struct {
		set    func(b *vitalsBench)
		doubts bool
	}{
		"a stream":              {func(*vitalsBench) {}, true},
		"others go on":          {func(b *vitalsBench) { b.pool.going = 1 }, false},
		"short of KV cache":     {func(b *vitalsBench) { b.signs.short = true }, false},
		"requests in its queue": {func(b *vitalsBench) { b.signs.queue = queueFull }, false},
		"the pace is unknown":   {func(b *vitalsBench) { b.signs.gap = 0 }, false},
		"behind a long prompt":  {func(b *vitalsBench) { b.wait(policy.Await(policy.Prompt{Input: 10_000, Took: time.Second})) }, false},
		"behind one of another pool": {func(b *vitalsBench) {
			b.running.pools["n"] = &poolAttempts{waiting: 1, awaited: policy.Await(policy.Prompt{Input: 10_000, Took: time.Second}), oldestWaiting: b.now, head: b.pool.head}
		}, false},
		"behind one of unknown length": {func(b *vitalsBench) { b.wait(policy.Awaited{}) }, false},
	} {
		b := newVitalsBench()
		b.signs.gap, b.signs.inFlight = 10*time.Millisecond, 1
		b.pool.stuck, b.pool.head = 1, &attempt{req: &subjects.Request{Path: "/v1/chat/completions", Stream: true}, task: task{model: "m"}}
		c.set(b)
		for range 20 {
			b.pool.stuckFor += capacityTick
			b.answered = b.now // the first tokens of others
			b.pass(capacityTick)
		}
		if got := b.probed(); got != c.doubts {
			t.Errorf("%s: probed %t, want %t", what, got, c.doubts)
		}
	}
}

// An engine that is silent at times, and goes on by itself, may be silent twice as long.
func TestVitalsLearnSilence(t *testing.T) {
	b := newVitalsBench()
	b.signs.queue = queueFull // no probe
	b.wait(quick)
	b.pool.waiting, b.signs.inFlight = 3, 3
	b.pass(3 * time.Second)
	if b.why == "" {
		t.Fatal("three wait, and it is not suspect")
	}
	b.answered = b.now.Add(time.Millisecond)
	b.pass(capacityTick)
	b.pool.oldestWaiting = b.now
	if b.pass(5 * time.Second); b.why != "" {
		t.Errorf("as silent as before: %q", b.why)
	}
	if b.pass(2 * time.Second); b.why == "" {
		t.Error("more than twice as silent, and not suspect")
	}
}

// What an engine's counters show of its work, and what they only show of the requests that it gets.
func TestCapacityFollowsProgress(t *testing.T) {
	at := time.Now()
	status := func(waiting int, generated, preempted int64, kv float64) engine.Status {
		at = at.Add(500 * time.Millisecond)
		return engine.Status{At: at, Waiting: &waiting, Generated: &generated, Preemptions: &preempted, KVUsage: &kv}
	}
	c := newCapacity(Config{Slots: 8})
	c.turned = at.Add(-time.Minute)
	was := status(2, 10, 0, 0.5)
	for what, s := range map[string]struct {
		is    engine.Status
		turns bool // a request began meanwhile
		want  bool
	}{
		"nothing":                             {status(2, 10, 0, 0.5), false, false},
		"tokens":                              {status(2, 11, 0, 0.5), true, true},
		"a preemption":                        {status(2, 10, 1, 0.5), true, true},
		"KV cache":                            {status(2, 10, 0, 0.6), false, true},
		"KV cache, of another request":        {status(2, 10, 0, 0.6), true, false},
		"one less waits":                      {status(1, 10, 0, 0.5), false, true},
		"one less waits, since a client left": {status(1, 10, 0, 0.5), true, false},
		"one more waits":                      {status(3, 10, 0, 0.5), false, false},
	} {
		c.turned = was.At.Add(-time.Second)
		if s.turns {
			c.turned = was.At.Add(time.Millisecond)
		}
		if got := c.progressedLocked(was, s.is); got != s.want {
			t.Errorf("%s: %t, want %t", what, got, s.want)
		}
	}
}

// A question in a silence that has no answer shows at once since when the engine is mute, unless a later one was answered.
func TestVitalsByPulses(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	behind := policy.Awaited{Expected: 500 * ms, Prompt: 9 * s, Typical: 900 * ms, Surely: 9 * s, Longest: 18 * s}
	for what, c := range map[string]struct {
		pulses  int           // that it answered before
		asked   time.Duration // when the last question was sent, after the request
		checked time.Duration // when it last answered another one; 0: never
		frozen  time.Duration // when it is; 0: it is not
	}{
		"it answered before":               {2, 300 * ms, 0, 2 * s},
		"it never did beside its work":     {0, 300 * ms, 0, 0},
		"once":                             {1, 300 * ms, 0, 0},
		"it was asked late":                {3, 1200 * ms, 0, 2750 * ms},
		"it has answered something since":  {3, 300 * ms, 400 * ms, 0},
		"it answered something before":     {3, 300 * ms, 250 * ms, 2 * s},
		"and was asked long before it was": {3, 300 * ms, 3 * s, 2 * s},
	} {
		b := newVitalsBench()
		b.signs.queue = queueFull // no probe
		at := b.now
		b.running.oldest = at.Add(-time.Minute)
		for range c.pulses {
			b.signs.pulse.Asked = b.now
			b.signs.pulse.Answered = b.now.Add(ms)
			b.now = b.now.Add(vitalsTick)
			b.v.look(b.running, b.signs, nil, b.now)
		}
		b.signs.progress, b.answered = b.now, b.now
		began := b.now
		b.wait(behind)
		var frozen time.Duration
		for b.now.Sub(began) < 2900*ms && frozen == 0 {
			b.now = b.now.Add(50 * ms)
			if b.signs.pulse.Asked.Before(began) && b.now.Sub(began) >= c.asked {
				b.signs.pulse.Asked, b.signs.pulse.Answered = b.now, time.Time{}
			}
			if c.checked > 0 && b.now.Sub(began) >= c.checked && b.signs.checked.Before(began) {
				b.signs.checked = b.now
			}
			b.v.look(b.running, b.signs, map[string]time.Time{"m": b.answered}, b.now)
			if b.v.hangs().class == subjects.FenceFrozen {
				frozen = b.now.Sub(began)
			}
		}
		if (frozen - c.frozen).Abs() > 50*ms {
			t.Errorf("%s: frozen after %v, want %v", what, frozen, c.frozen)
		}
	}
}

// An answer in a silence ends what the scrapes only know at their next question.
func TestVitalsHearThePulse(t *testing.T) {
	b := newVitalsBench()
	b.wait(quick)
	b.signs.late = b.now
	b.pass(1250 * time.Millisecond)
	b.signs.pulse = engine.Pulse{Asked: b.now.Add(-time.Second), Answered: b.now.Add(100 * time.Millisecond)}
	if b.pass(capacityTick); b.cause.class == subjects.FenceFrozen {
		t.Errorf("it has answered: %+v", b.cause)
	}
}

// The engine is asked whether it answers when nothing has come for a while from one with requests.
func TestVitalsAskInASilence(t *testing.T) {
	b := newVitalsBench()
	asks := func() bool {
		b.now = b.now.Add(vitalsTick)
		_, _, ask := b.v.look(b.running, b.signs, map[string]time.Time{"m": b.answered}, b.now)
		return ask
	}
	for range 10 {
		if asks() {
			t.Fatal("asked without a request")
		}
	}
	b.wait(quick)
	b.pool.oldestWaiting = b.now
	if asks() {
		t.Error("asked after 0.1 s")
	}
	if asks(); !asks() {
		t.Error("not asked after 0.3 s")
	}
	b.signs.progress = b.now
	if asks() {
		t.Error("asked although a token has just come")
	}
	if asks(); !asks() {
		t.Error("not asked in the next silence")
	}
}

// A request is not late for as long as the engine was mute, and as long again.
func TestLateOfAnEngineThatWasBlocked(t *testing.T) {
	began := time.Now()
	a := &attempt{started: began}
	if a.late(time.Time{}, began.Add(time.Hour)) {
		t.Error("late before it is known how long it takes")
	}
	a.awaited.Store(&quick)
	late := 3*time.Second + quick.Longest + time.Millisecond
	for excused, want := range map[time.Duration]time.Duration{-time.Minute: late, 0: late, 4 * time.Second: 4*time.Second + late} {
		if until := began.Add(excused); a.late(until, began.Add(want-10*time.Millisecond)) || !a.late(until, began.Add(want)) {
			t.Errorf("excused until %v: not late after %v, or before", excused, want)
		}
	}
}
