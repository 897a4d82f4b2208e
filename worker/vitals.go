package worker

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// vitals decides whether the engine works, by what it shows while it has requests: see policy.Signs. It judges each served
// pool by itself, since an engine may hang for one model alone. Once it hangs, it does until an answer begins or goes on,
// or a probe of one token is answered; what was frozen and answers a question keeps its requests, and gets no others until then.
type vitals struct {
	due    chan struct{}            // signals that a probe is due; capacity 1
	latest atomic.Pointer[verdicts] // nil: nothing is wrong

	mu      sync.Mutex
	hearing hearing
	byPool  map[string]*vital
}

// hearing is whether the engine answers questions about itself.
type hearing struct {
	muteFrom  time.Time // since when an answer of it is overdue; zero: none is
	checked   time.Time // when it last answered one
	pulsed    time.Time // when it last answered one of engine.Scraper.Pulse
	attentive int       // how often it has answered one beside a request, since it last was mute
	excused   time.Time // until when its silence says nothing, since it was mute before
}

// vital is what is known of the engine's requests of one pool.
type vital struct {
	verdict   policy.Vitality
	since     time.Time     // of the verdict
	cause     fenceCause    // while it hangs
	suspicion string        // while it is suspect
	most      int           // requests in flight of all pools while it is suspect
	doubted   time.Time     // since when the engine is not known to work; zero: it is
	waited    poolAttempts  // the last with requests that wait, while the engine is not known to work
	heard     time.Time     // when something last came of an answer
	seen      time.Time     // when it was last judged
	excess    time.Duration // see policy.Signs, as of then
	quiet     policy.Worst
	probe     probe
}

const (
	// mostExcused is for how long at most the silence of an engine that was mute says nothing.
	mostExcused = 30 * time.Second
	// probePause is the time from a probe without an answer to the next one.
	probePause = time.Second

	// justNow is how long an answer in a silence shows that the engine answers: until the next question.
	justNow = 400 * time.Millisecond

	// An answer about the engine's health counts as one beside a request if it took less than besideFor and the request ran
	// for longer before: one with a single thread answers between two requests. fewAnswers of them show that the engine
	// answers while it works.
	besideFor  = 50 * time.Millisecond
	fewAnswers = 2

	// answerDue is how long the answer about the engine's health may take: after that the engine is mute. Together with the
	// second for which it has to be (see policy.Signs), it bridges a pause of the whole process for 1.5 s. A question in a
	// silence, which may be sent at the moment when such a pause begins, has pulseDue.
	answerDue = 500 * time.Millisecond
	pulseDue  = 550 * time.Millisecond
)

// vitalsTick is how often the engine is judged: a verdict comes as much later at most.
const vitalsTick = 100 * time.Millisecond

// fenceCause is why the fence has to be up. The zero value is no reason.
type fenceCause struct {
	class  gpu.FenceClass
	reason string
}

// verdicts are what is wrong with the engine. They are never changed.
type verdicts struct {
	fence    fenceCause        // why no request may start at all
	hung     map[string]string // why it does not answer requests of a pool, by pool, while it may answer others
	suspects map[string]doubt  // the pools for which it is suspect
}

// doubt is why an engine is suspect, and how many requests of all pools it may have in flight while it is.
type doubt struct {
	why  string
	most int
}

// limit lets no request begin for which the engine hangs, and few for which it is suspect.
func (f *verdicts) limit(ld *load) {
	if f == nil {
		return
	}
	ld.doubted = f.suspects
	for pool := range f.hung {
		if ld.shut == nil {
			ld.shut = make(map[string]bool)
		}
		ld.shut[pool] = true
	}
}

// mark adds to the status of a pool what is wrong with the engine.
func (f *verdicts) mark(s *subjects.PoolStatus) {
	switch {
	case f == nil:
	case f.hung[s.Pool] != "":
		s.Vitality, s.Failing = subjects.VitalityHung, f.hung[s.Pool]
	case f.suspects[s.Pool].why != "":
		s.Vitality, s.Doubt = subjects.VitalitySuspect, f.suspects[s.Pool].why
	}
}

// log says what has become wrong, but for a fence, of which capacity reports changes.
func (f *verdicts) log(log *slog.Logger) {
	if f == nil {
		return
	}
	for pool, why := range f.hung {
		log.Warn("engine does not answer requests of a pool; it gets none until a probe is answered", "pool", pool, "reason", why)
	}
	for pool, d := range f.suspects {
		log.Info("engine shows no progress; it gets few requests", "pool", pool, "reason", d.why)
	}
}

// hangs reports whether the engine hangs for a pool.
func (f *verdicts) hangs(pool string) bool {
	return f != nil && (f.fence.reason != "" || f.hung[pool] != "")
}

// probe is a request of one token, which shows whether the engine answers.
type probe struct {
	path, model string // of a request that waits, or waited last
	stream      bool
	expected    time.Duration // what that one was expected to take
	sent        time.Time     // when it became due; zero: none is
	out         bool          // it is being sent
	failed      int           // consecutive ones without an answer
	next        time.Time     // when the next one may be sent
	answered    time.Time     // when the last answer came, in the present silence; zero: there was none
}

func newVitals() *vitals {
	return &vitals{due: make(chan struct{}, 1), byPool: make(map[string]*vital)}
}

// engineSigns is what capacity knows of the engine's progress.
type engineSigns struct {
	progress time.Time // when something last came from it, or it started
	started  time.Time
	late     time.Time     // see engine.Status
	checked  time.Time     // when it last answered a question about its health, or did not in time
	took     time.Duration // how long that took
	pulse    engine.Pulse  // the last question beside these
	queue    queueSign
	inFlight int
	served   int           // pools
	short    bool          // its KV cache is nearly full
	gap      time.Duration // expected time between two tokens of a stream; 0: unknown
}

// queueSign says whether a probe would wait behind the requests that the engine has.
type queueSign int

const (
	queueUnknown queueSign = iota
	queueEmpty             // it would not
	queueFull
)

// look judges the engine by the attempts that run, what capacity knows, and when something last came of an answer, by pool.
// It reports whether that is another judgement than before, and whether the engine should be asked now whether it answers.
func (v *vitals) look(r runningAttempts, s engineSigns, heard map[string]time.Time, now time.Time) (found *verdicts, changed, ask bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.hearing.listen(r.oldest, s, now)
	for pool := range r.pools {
		if v.byPool[pool] == nil {
			v.byPool[pool] = new(vital)
		}
	}
	found = &verdicts{}
	var hung fenceCause
	hanging := 0
	for pool, o := range v.byPool {
		o.heard = later(o.heard, heard[pool])
		send, silent := o.look(r.of(pool), s, &v.hearing, now)
		if send {
			signal(v.due)
		}
		ask = ask || silent
		switch {
		case o.verdict == policy.Frozen:
			found.fence = o.cause
		case o.verdict == policy.Hung:
			if found.hung == nil {
				found.hung = make(map[string]string)
			}
			found.hung[pool], hung = o.cause.reason, o.cause
			hanging++
		case o.verdict == policy.Suspect:
			if found.suspects == nil {
				found.suspects = make(map[string]doubt)
			}
			found.suspects[pool] = doubt{o.suspicion, o.most}
		}
	}
	if hanging > 0 && hanging >= s.served && found.fence.reason == "" {
		found.fence = hung
	}
	if found.fence.reason != "" {
		found.hung = nil
	}
	if found.fence.reason == "" && found.hung == nil && found.suspects == nil {
		found = nil
	}
	was := v.latest.Swap(found)
	return found, !was.same(found), ask
}

// same reports whether two judgements look alike from outside.
func (f *verdicts) same(g *verdicts) bool {
	if f == nil || g == nil {
		return f == g
	}
	return f.fence == g.fence && maps.Equal(f.hung, g.hung) && maps.Equal(f.suspects, g.suspects)
}

// listen follows whether the engine answers questions about itself. One that was blocked gets as much time again.
func (h *hearing) listen(oldest time.Time, s engineSigns, now time.Time) {
	from := s.mute(now)
	beside := func(answered time.Time, took time.Duration) bool {
		return took < besideFor && !oldest.IsZero() && answered.Sub(oldest) > 2*besideFor
	}
	switch p := s.pulse; {
	case from.IsZero() && !h.muteFrom.IsZero():
		mute := now.Sub(h.muteFrom)
		if h.excused = now.Add(min(mute, mostExcused)); mute >= answerDue {
			h.attentive = 0
		}
	case !from.IsZero():
	case s.checked.After(h.checked) && beside(s.checked, s.took), // or in the middle of a silence:
		p.Answered.After(h.pulsed) && beside(p.Answered, p.Answered.Sub(p.Asked)) && !s.progress.After(p.Asked):
		h.attentive++
	}
	h.muteFrom, h.checked, h.pulsed = from, s.checked, later(h.pulsed, s.pulse.Answered)
}

// mute returns since when an answer of the engine to a question about itself is overdue; zero: none is.
func (s *engineSigns) mute(now time.Time) (due time.Time) {
	if !s.late.IsZero() && !s.pulse.Answered.After(s.late) { // else it answers, though the scraper does not know it yet
		due = s.late.Add(answerDue)
	}
	if p := s.pulse; !p.Asked.IsZero() && p.Answered.IsZero() {
		later := s.late.IsZero() && s.checked.Add(-s.took).After(p.Asked) // a question that was answered
		if at := p.Asked.Add(pulseDue); !later && (due.IsZero() || at.Before(due)) {
			due = at
		}
	}
	if now.Before(due) {
		return time.Time{}
	}
	return due
}

// look judges by the attempts of the pool. It reports whether a probe is to be sent, and whether the engine is silent.
func (o *vital) look(r poolAttempts, s engineSigns, h *hearing, now time.Time) (send, silent bool) {
	o.heard = later(o.heard, r.lastByte)
	if r.waiting > 0 || r.stuck > 0 {
		if w := &o.waited; w.waiting > 0 && r.waiting > 0 && w.oldestWaiting.Before(r.oldestWaiting) && !o.heard.After(w.oldestWaiting) {
			// Those that waited for longer were moved, or their clients have gone. The engine has not answered them.
			r.oldestWaiting, r.awaited, r.due = w.oldestWaiting, w.awaited.With(r.awaited), policy.Due{}
		}
		o.waited = r
		o.probe.path, o.probe.model, o.probe.stream, o.probe.expected = r.head.req.Path, r.head.task.model, r.head.req.Stream, r.awaited.Expected
	}
	was := o.verdict
	switch {
	case was < policy.Hung:
	case o.heard.After(o.since) || o.probe.answered.After(o.since):
		o.set(policy.Working, now)
		return false, false
	case was == policy.Frozen && h.muteFrom.IsZero(): // it goes on with the requests that it still has
		o.set(policy.Suspect, now)
		o.doubted, o.most = now, 0
		o.suspicion = "it was frozen and answers questions again; it gets no requests until it has answered one of those it has, or one for a token"
		return r.waiting == 0 && o.send(h, now), false
	default:
		return (r.waiting == 0 || !now.Before(h.excused)) && o.send(h, now), false
	}
	signs := o.signs(r, s, h, now)
	o.learn(signs, s, h, now)
	verdict := signs.Vitality()
	midway := o.signsMidway(r, s, h, now)
	silent = signs.Ask() || midway.Ask()
	if midway.Vitality() > verdict {
		signs, verdict = midway, midway.Vitality()
	}
	shown := later(later(s.progress, o.heard), o.probe.answered).After(o.doubted)
	switch {
	case verdict == was:
	case was == policy.Suspect && verdict < was && !shown: // its requests end, or clients give up, and it has shown nothing yet
	case verdict >= policy.Hung:
		o.set(verdict, now)
		o.cause = causeOf(verdict, signs)
		o.probe.next, o.probe.failed = now, 0
	default:
		o.set(verdict, now)
		if verdict == policy.Suspect {
			o.most = policy.MostInDoubt(s.inFlight)
			o.suspicion = suspicionOf(signs)
		}
	}
	if o.verdict == policy.Working {
		o.doubted, o.waited = time.Time{}, poolAttempts{}
	} else if o.doubted.IsZero() {
		o.doubted = now
	}
	// If its pages do not answer either, a probe shows no more than that. So it waits for the next answer of one, if none has
	// just come.
	return o.verdict > policy.Working && o.verdict < policy.Hung && (signs.Open && !signs.Recovers || s.inFlight == 0) &&
		later(s.checked, h.pulsed.Add(justNow)).After(o.doubted) && o.send(h, now), silent
}

func (o *vital) set(verdict policy.Vitality, now time.Time) {
	o.verdict, o.since, o.cause, o.suspicion = verdict, now, fenceCause{}, ""
}

// learn remembers a silence that has ended by itself.
func (o *vital) learn(signs policy.Signs, s engineSigns, h *hearing, now time.Time) {
	progress := o.heard
	if !signs.Beside {
		progress = later(progress, s.progress)
	}
	if progress.After(o.seen) && o.excess > 0 && h.muteFrom.IsZero() && !now.Before(h.excused) {
		o.quiet.Add(s.inFlight, o.excess, now)
	}
	o.seen, o.excess = now, 0
	if signs.Waiting > 0 && signs.Awaited != (policy.Awaited{}) {
		o.excess = signs.Excess()
	}
}

func (o *vital) signs(r poolAttempts, s engineSigns, h *hearing, now time.Time) policy.Signs {
	if r.waiting == 0 { // they were moved, perhaps, and the engine has not answered them
		if r = o.waited; o.verdict == policy.Working || r.waiting == 0 {
			return policy.Signs{}
		}
	}
	from := later(later(s.started, o.heard), r.oldestWaiting)
	beside := s.served > 1 && s.progress.After(from)
	if !beside {
		from = later(from, s.progress)
	}
	signs := o.signsSince(from, r, s, h, now)
	signs.Waiting, signs.Awaited, signs.Beside, signs.Idle = r.waiting, r.awaited, beside, r.oldestWaiting.Sub(o.heard)
	if r.others == nil {
		signs.Overdue = r.due.Overdue(now.Sub(r.oldestWaiting))
	}
	if !o.heard.After(s.started) { // what was measured is of before
		signs.Awaited = policy.Awaited{}
	}
	return signs
}

// signsMidway judges by the streams that have begun: none goes on. The prompts that wait may hold up their tokens, and so does
// an engine that is short of KV cache, or has more requests than it runs at once.
func (o *vital) signsMidway(r poolAttempts, s engineSigns, h *hearing, now time.Time) policy.Signs {
	if r.stuck == 0 || r.going > 0 || s.short || s.queue == queueFull {
		return policy.Signs{}
	}
	signs := o.signsSince(now.Add(-r.stuckFor), r, s, h, now)
	signs.Waiting, signs.Awaited = r.stuck, policy.AwaitToken(s.gap)
	if r.waiting > 0 {
		signs.Awaited = signs.Awaited.With(r.awaited)
	}
	if r.others != nil {
		signs.Awaited = signs.Awaited.With(*r.others)
	}
	if signs.Awaited == (policy.Awaited{}) {
		return policy.Signs{}
	}
	return signs
}

// signsSince returns the signs of a silence that began at from.
func (o *vital) signsSince(from time.Time, r poolAttempts, s engineSigns, h *hearing, now time.Time) policy.Signs {
	signs := policy.Signs{
		Silent: now.Sub(from), Recovers: now.Before(h.excused), Attentive: h.attentive >= fewAnswers, Quiet: o.quiet.With(s.inFlight, now),
		Open: s.queue == queueEmpty || s.queue == queueUnknown && (s.inFlight < r.parallel || s.inFlight == 0),
	}
	if !h.muteFrom.IsZero() {
		signs.Mute = now.Sub(h.muteFrom)
	}
	if !o.probe.sent.IsZero() {
		signs.Probe = now.Sub(o.probe.sent)
	}
	if o.probe.answered.After(from) {
		signs.Answered = o.probe.answered.Sub(from)
	}
	return signs
}

func suspicionOf(s policy.Signs) string {
	if s.Awaited == (policy.Awaited{}) {
		return fmt.Sprintf("nothing has come from the engine for %v, and it has answered nothing yet that tells how long it takes", round(s.Silent))
	}
	return fmt.Sprintf("nothing has come from the engine for %v, where an answer was expected after %v", round(s.Silent), round(s.Awaited.Expected))
}

func causeOf(verdict policy.Vitality, s policy.Signs) fenceCause {
	if verdict == policy.Frozen {
		return fenceCause{subjects.FenceFrozen, fmt.Sprintf("the engine is frozen: no answer has begun or gone on for %v, where %v was expected, and no health check was answered for %v",
			round(s.Silent), round(s.Awaited.Expected), round(s.Mute))}
	}
	probed := ""
	if s.Probe > 0 {
		probed = fmt.Sprintf(", and a request for one token had no answer for %v", round(s.Probe))
	}
	return fenceCause{subjects.FenceHung, fmt.Sprintf("the engine has stalled: no answer has begun or gone on for %v, where %v was expected%s",
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
	if f := v.latest.Load(); f != nil {
		return f.fence
	}
	return fenceCause{}
}

// excused returns until when the silence of the engine says nothing, since it was mute before; zero: it was not.
func (v *vitals) excused() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.hearing.excused
}

// send reports whether a probe is to be sent: none is out, and it is time for one.
func (o *vital) send(h *hearing, now time.Time) bool {
	if o.probe.path == "" || !o.probe.sent.IsZero() || now.Before(o.probe.next) || !h.muteFrom.IsZero() {
		return false
	}
	o.probe.sent = now
	return true
}

// run sends the probes that are due until ctx is done, and waits for their ends. send reports whether the engine has
// answered.
func (v *vitals) run(ctx context.Context, send func(ctx context.Context, path, model string, stream bool) (answered bool)) {
	var probes sync.WaitGroup
	defer probes.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-v.due:
		}
		for pool, p := range v.take() {
			probes.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, policy.ProbeTime(p.failed, p.expected))
				defer cancel()
				answered := send(ctx, p.path, p.model, p.stream)
				v.onProbe(pool, answered, time.Now())
			})
		}
	}
}

// take returns the probes that are to be sent, by pool.
func (v *vitals) take() map[string]probe {
	v.mu.Lock()
	defer v.mu.Unlock()
	due := make(map[string]probe)
	for pool, o := range v.byPool {
		if !o.probe.sent.IsZero() && !o.probe.out {
			o.probe.out = true
			due[pool] = o.probe
		}
	}
	return due
}

func (v *vitals) onProbe(pool string, answered bool, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	o := v.byPool[pool]
	p := &o.probe
	p.sent, p.out = time.Time{}, false
	if answered {
		p.failed, p.answered, p.next = 0, now, now
		o.waited = poolAttempts{}
		return
	}
	p.failed++
	p.next = now.Add(probePause)
}

// lookAtVitals judges the engine by what it shows, and asks it whether it answers if it is silent. It runs every vitalsTick.
func (w *Worker) lookAtVitals(now time.Time) {
	signs := w.capacity.signs(now)
	signs.pulse, signs.gap = w.scraper.LatestPulse(), w.estimates.gap(signs.inFlight)
	running := w.attempts.summary(signs.gap, now)
	verdicts, changed, ask := w.vitals.look(running, signs, w.estimates.lastHeard(), now)
	if ask {
		w.scraper.Pulse()
	}
	running.hangs = w.vitals.hangs()
	fence := w.capacity.onVitals(running, now)
	if w.onHealth(w.presence.onWork(!running.oldest.IsZero(), now), now) || changed {
		verdicts.log(w.log)
		w.presence.beat()
	}
	if fence.tell(w.log) {
		w.presence.beat()
	}
	if changed || fence.changed {
		w.bid()
	}
}
