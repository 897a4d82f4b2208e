package policy

import (
	"math/bits"
	"time"
)

// Vitality is what an engine that has requests shows of itself.
type Vitality int

const (
	Working  Vitality = iota // nothing is wrong, or nothing is known to be
	Doubtful                 // it is silent, which may have a reason: a probe can tell
	Suspect                  // it should get no more requests for the moment
	Hung                     // its pages answer, its requests do not
	Frozen                   // neither its pages nor its requests answer
)

func (v Vitality) String() string {
	return [...]string{"working", "doubtful", "suspect", "hung", "frozen"}[v]
}

// An Awaited is what was measured of requests such as one whose answer has not begun: after which silence of the engine its
// first byte should have come. The zero value is a request of which nothing is known.
type Awaited struct {
	Expected time.Duration // the mean
	Prompt   time.Duration // the time for its prompt if nothing of that is cached
	Typical  time.Duration // the same with less of a margin, and the time for an answer of the usual length if it does not stream
	Surely   time.Duration // the same, and the time for an answer that is as long as the client allows
	Longest  time.Duration // the same with a margin, behind the prompts before it
	Loads    bool          // it waits for the load of a model, which may take any time
}

const (
	// leastSilence is the shortest silence that means anything: garbage collection, a graph that is captured, a slow
	// network. A suspicion costs a moment without bids, and one token.
	leastSilence = time.Second
	// idleSilence is the same for an engine that has not answered for FadeAfter: it may have been put to sleep, or its
	// memory swapped out.
	idleSilence = 30 * time.Second
	// strangeSilence is the silence after which an engine of which nothing is known gets less: it may compile, or hang.
	strangeSilence = 5 * time.Second
	// slack is by which factor a request may exceed what was measured, and within which part of it more it should stay.
	slack  = 2
	within = 4
	// probeTime is the least time for the answer to a probe, and probeLate when it begins to say something.
	probeTime = time.Second
	probeLate = 500 * time.Millisecond
	// muteTime is how long an engine is mute before that counts: one question without an answer in time.
	muteTime = time.Second
	// askAfter is the silence after which it is worth a question whether the engine answers at all.
	askAfter = 200 * time.Millisecond
	// longMute is the same where nothing is known of the requests. Their move costs little then: to an engine that answers.
	longMute = 30 * time.Second

	// leastLongest is the least time after which silence alone is enough, and leastTypical the same for an answer that does
	// not stream, whose length is not bounded, of an engine that is mute.
	leastLongest = 10 * time.Second
	leastTypical = 4 * time.Second
	// unboundedOutput is how long at least the answer to a request without a bound may be, and longestOutputs how many
	// times as long as the longest answer that was seen.
	unboundedOutput = 1024
	longestOutputs  = 4

	// unseenLoad is how long the load of a model may take that the engine does not report.
	unseenLoad = time.Minute
	// lateAfter is by how much at least the first byte of a stream exceeds all that explains it before it counts as late.
	lateAfter = 3 * time.Second
	// shared is by which factor a probe may take longer while the engine answers requests for other models.
	shared = 1.5
	// mostQuiet bounds the silence that an engine may be used to.
	mostQuiet = 10 * time.Second
	never     = 100 * 365 * 24 * time.Hour
	// several requests that wait for an engine at once are too many to give it another one, even if a probe cannot tell.
	several = 3
)

// A Prompt is a request as Await needs it.
type Prompt struct {
	Input  int           // tokens
	Took   time.Duration // what such a prompt was measured to take, with what the engine did meanwhile; 0: unknown
	Read   time.Duration // the same without that; 0: unknown
	Pace   Reading       // of prompts that are not cached
	Before time.Duration // the same for the prompts before it
	// Whole says that the answer does not stream: its first byte comes with its last token.
	Whole bool
	// Most is how many tokens the client allows; 0: any number. Seen is the longest answer so far; 0: no answer has tokens.
	// Token is the time for each; 0: unknown.
	Most  int
	Seen  float64
	Token time.Duration
	// MayLoad says that the engine may first have to load the model, and does not report that.
	MayLoad bool
	// Slowest is the longest time to the first byte of a stream that was measured lately with as many requests in flight; 0: none.
	Slowest time.Duration
	// Worst is the same for such a request, stream or not, by Worst.Of, and Usual the mean number of tokens of their prompts.
	Worst time.Duration
	Usual float64
}

// Await returns how long a request may take.
func Await(p Prompt) Awaited {
	at, mute := p.Pace.prompt(p.Input)
	read := p.Took // bytes and tokens of other requests end a silence: only without any of them is it as long as this
	if p.Pace != (Reading{}) && p.Read > 0 {
		read = p.Read
	}
	a := Awaited{Expected: p.Took, Prompt: max(slack*p.Took, at), Typical: max(slack*read, mute)}
	if p.MayLoad {
		a.Prompt, a.Typical = max(a.Prompt, unseenLoad), max(a.Typical, unseenLoad)
	}
	a.Surely, a.Longest = a.Prompt, max(slack*(a.Prompt+p.Before), slack*p.Slowest)
	switch {
	case p.Whole && p.Seen > 0: // its prompt may be unknown: what is measured is the whole answer
		if p.Token <= 0 {
			return Awaited{}
		}
		token := float64(p.Token)
		likely, most := p.Seen, max(longestOutputs*p.Seen, unboundedOutput)
		if p.Most > 0 {
			likely, most = min(likely, float64(p.Most)), float64(p.Most)
		}
		a.Expected += time.Duration(token * likely)
		all := time.Duration(slack * token * most)
		a.Surely += all
		a.Longest += all
		if p.Most > 0 {
			if a.Typical += all; p.Read == 0 && p.Pace != (Reading{}) { // the time for tokens contains that for prompts
				a.Typical = max(a.Typical-all, all)
			}
		} else {
			a.Typical = max(a.Typical+time.Duration(slack*longestOutputs/2*token*likely), leastTypical)
		}
	case p.Took <= 0:
		return Awaited{}
	}
	return a
}

// A Due is by when the first bytes of requests have come, if the engine works. The zero value is that of requests of which none like
// them was measured, such as one whose answer may be longer than any so far.
type Due struct {
	Within time.Duration // what the slowest such request took lately with as many in flight, or its prompt if nothing of that is cached
	Long   time.Duration // what those of the prompts take that are much longer than usual: others may wait for them
}

// DueOf returns by when a request is due.
func DueOf(p Prompt) Due {
	if p.Worst <= 0 || p.MayLoad || p.Whole && p.Seen > 0 && (p.Most == 0 || float64(p.Most) > p.Seen) {
		return Due{}
	}
	_, mute := p.Pace.prompt(p.Input)
	d := Due{Within: max(p.Worst+p.Worst/within, mute)}
	if float64(p.Input) > slack*p.Usual {
		d.Long = mute
	}
	return d
}

// With returns by when two requests are due: one may wait for the other.
func (d Due) With(e Due) Due {
	if d == (Due{}) || e == (Due{}) {
		return Due{}
	}
	return Due{max(d.Within, e.Within), d.Long + e.Long}
}

// Overdue returns for how long one of them is overdue that has waited so long; 0: it is not.
func (d Due) Overdue(waited time.Duration) time.Duration {
	if d == (Due{}) {
		return 0
	}
	return max(0, waited-d.Within-d.Long)
}

// With returns what is awaited of two requests together: the longer times. If nothing is known of one of them, nothing is
// known of both.
func (a Awaited) With(b Awaited) Awaited {
	if a == (Awaited{}) || b == (Awaited{}) {
		return Awaited{Loads: a.Loads || b.Loads}
	}
	return Awaited{max(a.Expected, b.Expected), max(a.Prompt, b.Prompt), max(a.Typical, b.Typical), max(a.Surely, b.Surely), max(a.Longest, b.Longest), a.Loads || b.Loads}
}

// AwaitToken returns after which silence the next token of a stream should have come, whose mean time between two reads with
// tokens is known. An engine may keep tokens back, such as those of a tool call: silence alone never shows that it hangs.
func AwaitToken(mean time.Duration) Awaited {
	if mean <= 0 {
		return Awaited{}
	}
	return Awaited{Expected: mean, Prompt: slack * mean, Typical: slack * mean, Surely: max(leastLongest, slack*mean), Longest: never}
}

// Patience is the silence from which on something may be wrong with an engine in everyday use.
func (a Awaited) Patience() time.Duration { return leastSilence + slack*a.Expected }

// Late says whether a request has waited so long for its first byte that another worker should have it, although its engine
// works: for three seconds more than four times what was expected with the prompts before it, and than twice the slowest with
// as many requests in flight. A request of which nothing is known is late after a minute; one that waits for a load never.
func (a Awaited) Late(waited time.Duration) bool {
	switch {
	case a.Loads:
		return false
	case a == Awaited{}:
		return waited > unseenLoad
	}
	return waited > lateAfter+a.Longest
}

// Signs is what is seen of an engine with requests in flight.
type Signs struct {
	Waiting int           // requests whose answer has not begun
	Awaited Awaited       // of all of them
	Silent  time.Duration // since a byte of any answer came or a counter of tokens moved, or since the oldest of Waiting began
	Idle    time.Duration // how long the engine had answered no request when the oldest of Waiting began
	Mute    time.Duration // since it answers no question about itself; 0: it does
	// Attentive says that it used to answer such questions while it had requests.
	Attentive bool
	// Overdue is for how long one of the requests is overdue: see Due. 0: none is.
	Overdue time.Duration
	// Quiet is the longest silence that it has ended by itself, with as many requests in flight, beyond what was expected.
	Quiet time.Duration
	// Beside says that it answers requests for other models meanwhile.
	Beside bool
	// Recovers says that it was mute until lately, and gets as much time again.
	Recovers bool
	// Open says that a probe would not wait behind the requests that the engine has: only then does its silence mean anything.
	Open     bool
	Probe    time.Duration // how long a probe of one token has had no answer; 0: there is none
	Answered time.Duration // how long the engine was silent when it answered the last probe, in this silence; 0: there was none
}

// Vitality judges an engine by its signs. The verdict is late rather than wrong:
//
//	doubtful  silent for as long as the prompts take if they are not cached, and a probe would not wait for an answer; it counts when
//	          the engine has been silent for a second more
//	suspect   a probe has had no answer for half a second; or silent for as long as nothing explains; or several requests wait that a probe would wait behind
//	          (a suspect gets less, and not nothing: see MostInDoubt)
//	hung      a probe has had no answer for a second, or twice what was expected; or silent for twice as long as nothing explains
//	frozen    mute for a second, and silent for as long as nothing explains; or, if it used to answer questions while it had requests, for
//	          longer than is typical, which bytes for other requests do not extend, or with a request that is overdue for a second
//
// A request of which nothing is known, such as the first ones of an engine, excuses any silence of an engine that is not mute for
// half a minute; it is suspect after five seconds, unless it loads a model. An engine that answers a probe is in doubt again after twice the silence.
// One that was silent before and went on may be silent twice as long. While it answers requests for other models, only a probe
// shows that it hangs.
func (s Signs) Vitality() Vitality {
	switch {
	case s.Waiting == 0 || s.Recovers:
		return Working
	case s.Awaited.Loads, s.Awaited == Awaited{}:
		if min(s.Mute, s.Silent) > longMute {
			return Frozen
		}
		if s.Silent > strangeSilence && !s.Awaited.Loads {
			return Suspect
		}
		return Working
	}
	least := leastSilence
	if s.Idle > FadeAfter {
		least = idleSilence
	}
	used := max(least, slack*min(s.Quiet, mostQuiet))
	if s.Mute >= muteTime && s.Attentive && !s.Beside && s.Silent > max(used, slack*s.Answered) && (s.Silent > used+s.Awaited.Typical || s.Overdue > used) {
		return Frozen
	}
	patience := used + slack*s.Awaited.Expected
	if s.Silent <= max(patience, slack*s.Answered) {
		return Working
	}
	longest := max(s.Awaited.Longest, leastLongest, patience)
	sure, open := s.Silent > least+s.Awaited.Surely, s.Mute == 0 && s.Open && s.Silent > least+s.Awaited.Prompt
	asks := s.Mute == 0 && s.Open && s.Silent > least+s.Awaited.Prompt-probeTime // so that the probe has had its time by then
	switch {
	case s.Beside && open && s.Probe > time.Duration(shared*float64(max(probeTime, slack*s.Awaited.Expected))):
		return Hung
	case s.Beside && open:
		return Doubtful
	case s.Beside:
		return Working
	case s.Mute >= muteTime && sure, s.Mute > 0 && s.Silent > longest:
		return Frozen
	case s.Silent > longest:
		return Hung
	case open && s.Probe > max(probeTime, slack*s.Awaited.Expected):
		return Hung
	case sure, open && s.Probe > probeLate:
		return Suspect
	case s.Mute == 0 && s.Waiting >= several && !open:
		return Suspect
	case asks:
		return Doubtful
	}
	return Working
}

// Ask reports whether the engine should be asked now whether it answers questions: it has been silent for a while.
func (s Signs) Ask() bool { return s.Waiting > 0 && s.Silent >= askAfter }

// ProbeTime is how long a probe may take after n that had no answer. It grows, so that one gets its answer even if the
// engine has become much slower than it was.
func ProbeTime(n int, expected time.Duration) time.Duration {
	return max(min(2*time.Second<<min(n, 10), 30*time.Second), 2*slack*expected+leastSilence)
}

// Excess is how much of a silence what was expected of the requests that waited does not explain.
func (s Signs) Excess() time.Duration {
	return max(0, s.Silent-max(s.Awaited.Prompt, slack*s.Awaited.Expected))
}

// MostInDoubt is how many requests an engine may have in flight while it is suspect, which had so many when that began: as
// many again, and a few. If it works, little is lost, and if not, little is to be moved.
func MostInDoubt(inFlight int) int { return max(2*inFlight, inFlight+several) }

// MayMove says whether one more request may move to another worker because its first byte is late: of those that run, a
// twentieth at once, but at least one.
func MayMove(moving, running int) bool { return moving < max(running/20, 1) }

// Worst remembers the longest of some times, by how many requests were in flight, in powers of two. A time counts for
// FadeAfter, or until there is a longer one. The zero value remembers none.
type Worst struct {
	byLoad [12]struct {
		took time.Duration
		at   time.Time
	}
}

// Add includes a time that was measured with n requests in flight.
func (w *Worst) Add(n int, took time.Duration, now time.Time) {
	w.forget(now)
	if l := &w.byLoad[w.class(n)]; took >= l.took {
		l.took, l.at = took, now
	}
}

// With returns the longest time with n requests in flight or fewer; 0: there was none.
func (w *Worst) With(n int, now time.Time) (took time.Duration) {
	w.forget(now)
	for _, l := range w.byLoad[:w.class(n)+1] {
		took = max(took, l.took)
	}
	return took
}

// Of returns what a time with n requests in flight may be at most: the longest with as many or more, or else the longest with
// fewer, in proportion to n, for no engine gets slower than that; 0: there was none.
func (w *Worst) Of(n int, now time.Time) time.Duration {
	w.forget(now)
	for _, l := range w.byLoad[w.class(n):] {
		if l.took > 0 {
			return max(w.With(n, now), l.took)
		}
	}
	for class := w.class(n); class > 0; class-- {
		if w.byLoad[class].took > 0 {
			return w.With(n, now) * time.Duration(n) / time.Duration(max(1<<class>>1, 1))
		}
	}
	return 0
}

func (w *Worst) forget(now time.Time) {
	for i := range w.byLoad {
		if l := &w.byLoad[i]; now.Sub(l.at) > FadeAfter {
			l.took = 0
		}
	}
}

func (w *Worst) class(n int) int { return min(bits.Len(uint(max(n, 0))), len(w.byLoad)-1) }
