package worker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// vitals decides whether the engine works, by what it shows while it has requests: see policy.Signs. Once it hangs, it
// does until an answer begins, or a probe of one token is answered.
type vitals struct {
	due chan struct{} // signals that a probe is due; capacity 1

	mu        sync.Mutex
	verdict   policy.Vitality
	since     time.Time       // of the verdict
	cause     fenceCause      // while it hangs
	suspicion string          // while it is suspect
	doubted   time.Time       // since when the engine is not known to work; zero: it is
	waited    runningAttempts // the last with requests that wait, while the engine is not known to work
	muteFrom  time.Time       // since when it answers no question about itself; zero: it does
	checked   time.Time       // when it last answered one
	attentive int             // how often it has answered one beside a request, since it last was mute
	excused   time.Time       // until when its silence says nothing, since it was mute before
	probe     probe
}

const (
	// mostExcused is for how long at most the silence of an engine that was mute says nothing.
	mostExcused = 30 * time.Second
	// probePause is the time from a probe without an answer to the next one.
	probePause = time.Second

	// An answer about the engine's health counts as one beside a request if it took less than besideFor and the request ran
	// for longer before: one with a single thread answers between two requests. fewAnswers of them show that the engine
	// answers while it works.
	besideFor  = 50 * time.Millisecond
	fewAnswers = 2
)

// fenceCause is why the fence has to be up. The zero value is no reason.
type fenceCause struct {
	class  gpu.FenceClass
	reason string
}

// probe is a request of one token, which shows whether the engine answers.
type probe struct {
	path, model string        // of a request that waits, or waited last
	expected    time.Duration // what that one was expected to take
	sent        time.Time     // zero: none is out
	failed      int           // consecutive ones without an answer
	next        time.Time     // when the next one may be sent
	answered    time.Time     // when the last answer came, in the present silence; zero: there was none
}

func newVitals() *vitals { return &vitals{due: make(chan struct{}, 1)} }

// engineSigns is what capacity knows of the engine's progress.
type engineSigns struct {
	progress time.Time // when something last came from it, or it started
	started  time.Time
	late     time.Time     // see engine.Status
	checked  time.Time     // when it last answered a question about its health, or did not in time
	took     time.Duration // how long that took
	queue    queueSign
	inFlight int
}

// queueSign says whether a probe would wait behind the requests that the engine has.
type queueSign int

const (
	queueUnknown queueSign = iota
	queueEmpty             // it would not
	queueFull
)

// look judges the engine by the attempts that run, what capacity knows, and when an answer last began. It returns why the
// fence has to be up, or else why no request should start for the moment; empty if neither.
func (v *vitals) look(r runningAttempts, s engineSigns, answered, now time.Time) (hangs fenceCause, suspicion string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.hearLocked(r, s, now)
	if r.waiting > 0 {
		v.waited = r
		v.probe.path, v.probe.model, v.probe.expected = r.head.req.Path, r.head.task.model, r.awaited.Expected
	}
	was := v.verdict
	if was >= policy.Hung {
		if answered.After(v.since) || v.probe.answered.After(v.since) {
			v.setLocked(policy.Working, now)
		} else if r.waiting == 0 || !now.Before(v.excused) {
			v.sendLocked(now)
		}
		return v.cause, v.suspicion
	}
	signs := v.signsLocked(r, s, answered, now)
	verdict := signs.Vitality()
	shown := later(later(s.progress, answered), v.probe.answered).After(v.doubted)
	switch {
	case verdict == was:
	case was == policy.Suspect && verdict < was && !shown: // its requests end, or clients give up, and it has shown nothing yet
	case verdict >= policy.Hung:
		v.setLocked(verdict, now)
		v.cause = causeOf(verdict, signs)
		v.probe.next, v.probe.failed = now, 0
	default:
		v.setLocked(verdict, now)
		if verdict == policy.Suspect {
			v.suspicion = fmt.Sprintf("nothing has come from the engine for %v, where an answer was expected after %v", round(signs.Silent), round(signs.Awaited.Expected))
		}
	}
	if v.verdict == policy.Working {
		v.doubted, v.waited = time.Time{}, runningAttempts{}
	} else if v.doubted.IsZero() {
		v.doubted = now
	}
	// If its pages do not answer either, a probe shows no more than that. So it waits for the next answer of one.
	if v.verdict > policy.Working && v.verdict < policy.Hung && (signs.Open && !signs.Recovers || s.inFlight == 0) && s.checked.After(v.doubted) {
		v.sendLocked(now)
	}
	return v.cause, v.suspicion
}

func (v *vitals) setLocked(verdict policy.Vitality, now time.Time) {
	v.verdict, v.since, v.cause, v.suspicion = verdict, now, fenceCause{}, ""
}

// hearLocked follows whether the engine answers questions about itself. One that was blocked gets as much time again.
func (v *vitals) hearLocked(r runningAttempts, s engineSigns, now time.Time) {
	switch {
	case s.late.IsZero() && !v.muteFrom.IsZero():
		v.excused, v.attentive = now.Add(min(now.Sub(v.muteFrom), mostExcused)), 0
	case s.late.IsZero() && s.checked.After(v.checked) && s.took < besideFor && !r.oldest.IsZero() && s.checked.Sub(r.oldest) > 2*besideFor:
		v.attentive++
	}
	v.muteFrom, v.checked = s.late, s.checked
}

func (v *vitals) signsLocked(r runningAttempts, s engineSigns, answered, now time.Time) policy.Signs {
	if r.waiting == 0 { // they were moved, perhaps, and the engine has not answered them
		if r = v.waited; v.verdict == policy.Working || r.waiting == 0 {
			return policy.Signs{}
		}
	}
	from := later(later(s.progress, answered), r.oldestWaiting)
	signs := policy.Signs{
		Waiting: r.waiting, Awaited: r.awaited, Silent: now.Sub(from), Idle: r.oldestWaiting.Sub(answered),
		Recovers: now.Before(v.excused), Attentive: v.attentive >= fewAnswers, Open: s.queue == queueEmpty || s.queue == queueUnknown && (s.inFlight < r.parallel || s.inFlight == 0),
	}
	if !answered.After(s.started) { // what was measured is of before
		signs.Awaited = policy.Awaited{}
	}
	if !v.muteFrom.IsZero() {
		signs.Mute = now.Sub(v.muteFrom)
	}
	if !v.probe.sent.IsZero() {
		signs.Probe = now.Sub(v.probe.sent)
	}
	if v.probe.answered.After(from) {
		signs.Answered = v.probe.answered.Sub(from)
	}
	return signs
}

func causeOf(verdict policy.Vitality, s policy.Signs) fenceCause {
	if verdict == policy.Frozen {
		return fenceCause{subjects.FenceFrozen, fmt.Sprintf("the engine is frozen: no answer has begun for %v, where %v was expected, and no health check was answered for %v",
			round(s.Silent), round(s.Awaited.Expected), round(s.Mute))}
	}
	probed := ""
	if s.Probe > 0 {
		probed = fmt.Sprintf(", and a request for one token had no answer for %v", round(s.Probe))
	}
	return fenceCause{subjects.FenceHung, fmt.Sprintf("the engine has stalled: no answer has begun for %v, where %v was expected%s",
		round(s.Silent), round(s.Awaited.Expected), probed)}
}

func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Millisecond)
}

// hangs returns why the engine counts as one that hangs.
func (v *vitals) hangs() fenceCause {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.cause
}

// sendLocked has a probe sent if none is out and it is time for one.
func (v *vitals) sendLocked(now time.Time) {
	if v.probe.path == "" || !v.probe.sent.IsZero() || now.Before(v.probe.next) || !v.muteFrom.IsZero() {
		return
	}
	v.probe.sent = now
	signal(v.due)
}

// run sends the probes that are due, one after the other, until ctx is done. send reports whether the engine has answered.
func (v *vitals) run(ctx context.Context, send func(ctx context.Context, path, model string) (answered bool)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-v.due:
		}
		v.mu.Lock()
		p := v.probe
		v.mu.Unlock()
		ctx, cancel := context.WithTimeout(ctx, policy.ProbeTime(p.failed, p.expected))
		answered := send(ctx, p.path, p.model)
		cancel()
		v.onProbe(answered, time.Now())
	}
}

func (v *vitals) onProbe(answered bool, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := &v.probe
	p.sent = time.Time{}
	if answered {
		p.failed, p.answered, p.next = 0, now, now
		v.waited = runningAttempts{}
		return
	}
	p.failed++
	p.next = now.Add(probePause)
}
