package worker

import (
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// vitalsBench drives the vitals of an engine in steps of a quarter second.
type vitalsBench struct {
	v        *vitals
	now      time.Time
	running  runningAttempts
	signs    engineSigns
	answered time.Time
	cause    fenceCause
	why      string // of the suspicion
}

func newVitalsBench() *vitalsBench {
	now := time.Now()
	b := &vitalsBench{v: newVitals(), now: now, answered: now, signs: engineSigns{started: now.Add(-time.Minute), queue: queueEmpty}}
	b.running.oldest = now
	return b
}

// wait lets a request wait of which this is known.
func (b *vitalsBench) wait(a policy.Awaited) {
	b.running.waiting, b.running.awaited, b.running.oldestWaiting = 1, a, b.now
	b.running.head = &attempt{req: &subjects.Request{Path: "/v1/chat/completions"}, task: task{model: "m"}}
	b.signs.inFlight = 1
}

// pass lets time pass, in which the engine answers questions about its health unless it is mute.
func (b *vitalsBench) pass(d time.Duration) {
	for end := b.now.Add(d); b.now.Before(end); {
		b.now = b.now.Add(capacityTick)
		if b.signs.late.IsZero() {
			b.signs.checked = b.now
		}
		b.cause, b.why = b.v.look(b.running, b.signs, b.answered, b.now)
	}
}

// probed reports whether a probe is due, and takes it.
func (b *vitalsBench) probed() bool {
	select {
	case <-b.v.due:
		return true
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
	b.running.waiting, b.signs.inFlight = 0, 0
	for n := range 3 {
		b.v.onProbe(false, b.now)
		b.pass(probePause)
		if b.pass(capacityTick); !b.probed() || b.cause.class != subjects.FenceHung {
			t.Fatalf("probe %d is not due; %+v", n, b.cause)
		}
	}
	b.pass(time.Second)
	b.v.onProbe(true, b.now)
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
	b.running.waiting, b.running.head, b.signs.inFlight = 0, nil, 0
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
	b.running.waiting, b.signs.inFlight = 3, 3
	b.pass(2 * time.Second)
	if b.why == "" {
		t.Fatal("three wait, and it gets more requests")
	}
	for left := 2; left >= 0; left-- {
		b.running.waiting, b.signs.inFlight = left, left
		b.pass(capacityTick)
		if b.why == "" {
			t.Fatalf("%d wait, and it gets more requests", left)
		}
		if left > 0 {
			b.running.oldestWaiting = b.now.Add(-2 * time.Second)
		}
	}
	if !b.probed() {
		t.Fatal("nothing is in its way any more, and no probe is due")
	}
	b.v.onProbe(true, b.now)
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
	b.running.waiting, b.signs.inFlight = 0, 0
	b.pass(time.Minute)
	if b.cause.class != subjects.FenceFrozen || b.probed() {
		t.Fatalf("%+v, a probe is out", b.cause)
	}
	b.signs.late = time.Time{}
	if b.pass(capacityTick); !b.probed() {
		t.Error("it answers again, and is not probed")
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
		if b.cause.reason != "" || b.why != "" || b.probed() {
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
	p.onWork(true, "", now)
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
	p.onWork(false, "", now.Add(time.Second))
	state(subjects.Busy) // it has not been asked since
	p.onWork(false, "", now.Add(busyStays))
	state(subjects.Down)
	p.onWork(true, "", now.Add(time.Minute))
	state(subjects.Down) // what is down comes back by its answers
	p.onListing(nil, false)
	state(subjects.Ready)
	p.onStatus("get /health: 503", false)
	state(subjects.Down)
	p.onStatus("", false)
	if c := p.onWork(true, "nothing comes", now.Add(time.Minute)); c.busy != "nothing comes" || p.late() {
		t.Errorf("suspect: %+v", c)
	}
	state(subjects.Busy)
	if got, why := p.report("it hangs"); got != subjects.Fenced || why != "it hangs" {
		t.Errorf("fenced: %s %q", got, why)
	}
	p.onWork(true, "", now.Add(time.Minute))
	state(subjects.Ready)
}

var errLate = errorText("GET /v1/models: no answer")

type errorText string

func (e errorText) Error() string { return string(e) }
