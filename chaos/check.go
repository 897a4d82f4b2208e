package chaos

import (
	"fmt"
	"slices"
	"strings"
)

// Rule is something that must hold in every run.
type Rule string

const (
	RuleLost       Rule = "lost"        // a request has no outcome within its client's time-out
	RuleWrong      Rule = "wrong"       // an answer has a token that is not its own, or one out of order
	RuleTruncated  Rule = "truncated"   // a part of an answer ends as if it were all
	RuleRepeated   Rule = "repeated"    // something comes after the end of an answer
	RuleBroken     Rule = "broken"      // an answer breaks off for no reason that may break it
	RuleRefused    Rule = "refused"     // a request ends with an error for no reason that may refuse it
	RuleNoRun      Rule = "no-run"      // an answer that no engine finished
	RuleLateStart  Rule = "late-start"  // an engine starts a request that has ended
	RuleRefusedRun Rule = "refused-run" // an engine starts a request that was refused
	RuleRunsOn     Rule = "runs-on"     // an engine runs a request 2 s after it has ended
	RuleTwice      Rule = "twice"       // two engines run a request at once
	RuleTooOften   Rule = "too-often"   // a request is run more than three times
	RulePoison     Rule = "poison"      // a request that crashes engines crashes more than two, or its client is not told not to retry
	RuleStalled    Rule = "stalled"     // a request waits while a worker is free, or its answer does
	RuleRecovery   Rule = "recovery"    // answers do not come again in time after a fault
	RuleLeft       Rule = "left"        // the queue still has messages when all requests have ended
	RuleUnverified Rule = "unverified"  // a fault had no effect: the run shows nothing about it
)

// Violation is a rule that did not hold.
type Violation struct {
	Rule    Rule     `json:"rule"`
	At      Seconds  `json:"at"`
	Request string   `json:"request,omitempty"`
	Faults  []string `json:"faults,omitempty"` // the kinds that lasted then, or had just ended
	Detail  string   `json:"detail"`
}

func (v Violation) String() string {
	s := fmt.Sprintf("%8.2f s  %-11s %s", v.At, v.Rule, v.Request)
	if len(v.Faults) > 0 {
		s += " [" + strings.Join(v.Faults, ", ") + "]"
	}
	return s + ": " + v.Detail
}

// Check returns what does not hold in a history, in the order of time.
func Check(h *History) []Violation {
	c := newChecker(h)
	for i := range h.Requests {
		c.request(&h.Requests[i])
	}
	for i := range h.Faults {
		c.fault(&h.Faults[i])
	}
	c.left()
	slices.SortStableFunc(c.found, func(a, b Violation) int { return compare(a.At, b.At) })
	return c.found
}

func compare(a, b Seconds) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

type checker struct {
	h       *History
	runs    map[string][]Execution // of each request, by their start
	answers []Seconds              // when answers were complete, sorted
	sends   []Seconds              // when requests were sent, sorted
	sent    Seconds                // when the last was
	busy    []step                 // how many runs there were, by time
	slots   int
	spare   int // slots of the engine that has most
	found   []Violation
}

// step is a number from a time on.
type step struct {
	at Seconds
	n  int
}

func sortSteps(s []step) { slices.SortFunc(s, func(a, b step) int { return compare(a.at, b.at) }) }

func newChecker(h *History) *checker {
	c := &checker{h: h, runs: make(map[string][]Execution)}
	for _, e := range h.Engines {
		c.slots += e.Slots
		c.spare = max(c.spare, e.Slots)
	}
	for _, r := range h.Runs {
		c.runs[r.Request] = append(c.runs[r.Request], r)
		c.busy = append(c.busy, step{r.Start, 1}, step{r.End, -1})
	}
	for _, runs := range c.runs {
		slices.SortFunc(runs, func(a, b Execution) int { return compare(a.Start, b.Start) })
	}
	sortSteps(c.busy)
	for i := 1; i < len(c.busy); i++ {
		c.busy[i].n += c.busy[i-1].n
	}
	for i := range h.Requests {
		r := &h.Requests[i]
		c.sends, c.sent = append(c.sends, r.Sent), max(c.sent, r.Sent)
		if r.Outcome == Answered {
			c.answers = append(c.answers, r.End)
		}
	}
	slices.SortFunc(c.answers, compare)
	slices.SortFunc(c.sends, compare)
	return c
}

func (c *checker) report(rule Rule, at Seconds, request, format string, args ...any) {
	c.reportOf(at, at, rule, at, request, format, args...)
}

// reportOf reports what began and ended at other times. The faults that lasted then are named, or else the last one.
func (c *checker) reportOf(from, to Seconds, rule Rule, at Seconds, request, format string, args ...any) {
	v := Violation{Rule: rule, At: at, Request: request, Detail: fmt.Sprintf(format, args...)}
	last := ""
	for _, f := range c.h.Faults {
		switch {
		case f.Start > to || f.Healed+faultEcho < from:
		case f.Healed < from:
			last = f.Kind
		case !slices.Contains(v.Faults, f.Kind):
			v.Faults = append(v.Faults, f.Kind)
		}
	}
	if len(v.Faults) == 0 && last != "" {
		v.Faults = []string{last}
	}
	c.found = append(c.found, v)
}

// faultEcho is how long after its end a fault is named as what may be behind a violation.
const faultEcho Seconds = 5

func (c *checker) request(r *Request) {
	runs := c.runs[r.ID]
	switch r.Outcome {
	case "":
		c.report(RuleLost, r.Sent, r.ID, "it never ended")
		return
	case Lost:
		c.report(RuleLost, r.End, r.ID, "sent at %.2f s, %d of %d tokens: %s", r.Sent, r.Got, r.Tokens, r.Detail)
	case Wrong:
		c.report(RuleWrong, r.End, r.ID, "%s", r.Detail)
	case Truncated:
		c.report(RuleTruncated, r.End, r.ID, "%s", r.Detail)
	case Repeated:
		c.report(RuleRepeated, r.End, r.ID, "%s", r.Detail)
	case Broken:
		if !c.mayBreak(r) {
			c.report(RuleBroken, r.End, r.ID, "after %d of %d tokens: %s %s", r.Got, r.Tokens, r.Code, r.Detail)
		}
	case Refused:
		if r.Kind != KindPoison && !c.mayRefuse(r) && !c.diedTwice(r) {
			c.report(RuleRefused, r.End, r.ID, "%d %s %s", r.Status, r.Code, r.Detail)
		}
	case Answered:
		if !slices.ContainsFunc(runs, func(run Execution) bool { return run.How == Finished && run.Start < r.End }) {
			c.report(RuleNoRun, r.End, r.ID, "%d runs, none finished", len(runs))
		}
	}
	c.executions(r, runs)
	c.waits(r, runs)
}

// hits says whether a fault is at an engine, or at the worker of that engine.
func (f *Fault) hits(engine string) bool {
	_, n, _ := strings.Cut(engine, "-")
	part, at, _ := strings.Cut(f.Target, "-")
	return effects[f.Kind].anyEngine || (part == "worker" || part == "engine") && at == n
}

// mayBreak says whether a fault explains that an answer broke off. Before its first token it is the next worker's.
func (c *checker) mayBreak(r *Request) bool {
	for i := range c.h.Faults {
		f := &c.h.Faults[i]
		k := effects[f.Kind]
		if r.End < f.Start || r.End > f.Healed+faultEcho || r.Sent > f.Healed {
			continue
		}
		if k.breaksGateway && f.Target == r.Gateway {
			return true
		}
		if k.breaksEngine && r.First > 0 && slices.ContainsFunc(c.runs[r.ID], func(run Execution) bool {
			return f.hits(run.Engine) && run.Start <= f.Healed && run.End >= f.Start
		}) {
			return true
		}
	}
	return false
}

// mayRefuse says whether a fault lasted for so long that requests are refused.
func (c *checker) mayRefuse(r *Request) bool {
	return slices.ContainsFunc(c.h.Faults, func(f Fault) bool {
		k := c.bounds(&f)
		return k.refuses > 0 && f.Start+k.refuses <= r.End && r.End <= f.Healed+k.stall && (!k.disk || onDisk(r))
	})
}

// diedTwice says whether two of the runs of a request ended with their worker or engine. Then it may be the request that
// crashes them, and it is not run a third time.
func (c *checker) diedTwice(r *Request) bool {
	died := 0
	for _, run := range c.runs[r.ID] {
		if slices.ContainsFunc(c.h.Faults, func(f Fault) bool {
			return effects[f.Kind].breaksEngine && f.hits(run.Engine) && run.Start <= f.Healed && run.End >= f.Start
		}) {
			died++
		}
	}
	return r.Code == "dead_lettered" && died >= 2
}

// isolated says whether an engine, or its worker, could not be told at that time what became of a request.
func (c *checker) isolated(engine string, from, to Seconds) bool {
	return slices.ContainsFunc(c.h.Faults, func(f Fault) bool {
		return effects[f.Kind].isolates && f.hits(engine) && from <= f.Healed+1 && to >= f.Start-1
	})
}

// untold says whether a request whose client left could not be taken back until then, because no broker could be reached.
// What was refused is to be taken back all the same: its gateway had the time to see to it.
func (c *checker) untold(r *Request, then Seconds) bool {
	return r.Outcome == Cancelled && slices.ContainsFunc(c.h.Faults, func(f Fault) bool {
		k := c.bounds(&f)
		return k.deaf && (f.Target == r.Gateway || !strings.HasPrefix(f.Target, "gateway")) &&
			f.Start <= r.End && r.End <= f.Healed && then <= f.Healed+k.stall
	})
}

// gatewayDied says whether the gateway of a request was killed while the request was there. Workers notice that later.
func (c *checker) gatewayDied(r *Request) bool {
	return slices.ContainsFunc(c.h.Faults, func(f Fault) bool {
		return effects[f.Kind].breaksGateway && f.Target == r.Gateway && r.Sent <= f.Healed && r.End >= f.Start
	})
}

// executions checks how often a request was run, and when.
func (c *checker) executions(r *Request, runs []Execution) {
	long := 0
	for i, run := range runs {
		late := lateBound
		if c.gatewayDied(r) {
			late = cancelBound
		}
		if run.Start > r.End+late && !c.isolated(run.Engine, run.Start, run.End) && !c.untold(r, run.Start) {
			rule := RuleLateStart
			if r.Outcome == Refused {
				rule = RuleRefusedRun
			}
			c.reportOf(r.End, r.End, rule, run.Start, r.ID, "%s starts it %.2f s after its end (%s) and runs it for %.2f s", run.Engine, run.Start-r.End, r.Outcome, run.End-run.Start)
		}
		if run.Start <= r.End+late && run.End > r.End+cancelBound && !c.isolated(run.Engine, run.Start, run.End) && !c.untold(r, run.End-cancelBound) {
			c.report(RuleRunsOn, r.End+cancelBound, r.ID, "%s runs it until %.2f s after its end (%s)", run.Engine, run.End-r.End, r.Outcome)
		}
		if run.End-run.Start > twiceBound {
			long++
		}
		for _, before := range runs[:i] {
			both := min(before.End, run.End) - run.Start
			if both > twiceBound && !c.isolated(before.Engine, before.Start, before.End) && !c.isolated(run.Engine, run.Start, run.End) {
				c.report(RuleTwice, run.Start, r.ID, "%s and %s run it at once for %.2f s", before.Engine, run.Engine, both)
			}
		}
	}
	switch {
	case r.Kind == KindPoison:
		if len(runs) > 2 {
			c.report(RulePoison, r.End, r.ID, "it was started %d times", len(runs))
		}
		if !r.NoRetry && r.Status != 200 { // in a stream that has begun there is no header left to say so
			c.report(RulePoison, r.End, r.ID, "its client is not told not to retry: %s, %d %s", r.Outcome, r.Status, r.Code)
		}
	case long > 3:
		c.report(RuleTooOften, r.End, r.ID, "it was run %d times", long)
	}
}

// waits checks the times in which no engine ran a request.
func (c *checker) waits(r *Request, runs []Execution) {
	if r.Outcome == Cancelled || r.Kind == KindPoison {
		return
	}
	from := r.Sent
	for _, run := range runs {
		if run.Start > r.End {
			break
		}
		c.wait(r, from, run.Start, "no engine runs it")
		from = max(from, run.End)
	}
	switch {
	case r.Outcome == Answered && len(runs) > 0:
		c.wait(r, from, r.End, "its run has ended, and its answer has not")
	case r.Outcome == Lost:
		c.wait(r, from, r.End, "no engine runs it, until its client gave up")
	}
	if r.Pause > stallBound {
		c.wait(r, r.PauseEnd-r.Pause, r.PauseEnd, "its stream pauses")
	}
}

// wait checks that a time is short, as far as no fault explains it, if a worker was free all the time.
func (c *checker) wait(r *Request, from, to Seconds, what string) {
	if to-from <= stallBound {
		return
	}
	longest, since := Seconds(0), from
	for _, w := range c.excuses(r, from, to) {
		if w.from > since {
			longest = max(longest, w.from-since)
		}
		since = max(since, w.to)
	}
	longest = max(longest, to-since)
	if longest > stallBound && c.free(r, from, to) {
		c.reportOf(from, to, RuleStalled, to, r.ID, "%s for %.2f s, %.2f s of it in a row without a reason", what, to-from, longest)
	}
}

// window is a time in which requests may wait.
type window struct{ from, to Seconds }

// excuses are the times in which faults let requests wait, by their start.
func (c *checker) excuses(r *Request, from, to Seconds) (all []window) {
	for i := range c.h.Faults {
		f := &c.h.Faults[i]
		w := c.excuse(f, r)
		if w.to > from && w.from < to {
			all = append(all, w)
		}
	}
	slices.SortFunc(all, func(a, b window) int { return compare(a.from, b.from) })
	return all
}

// onDisk says whether the queue of a request is on disk.
func onDisk(r *Request) bool { return r.Tier == fileTier }

func (c *checker) excuse(f *Fault, r *Request) window {
	k := c.bounds(f)
	switch {
	case k.disk && onDisk(r):
		return window{f.Start, f.Healed + k.stall}
	case k.disk && k.fromEnd:
		return window{f.Healed, f.Healed + k.stall}
	case k.disk:
		return window{}
	}
	if k.fromEnd || k.ownTarget && c.own(f, r) {
		return window{f.Start, f.Healed + k.stall}
	}
	return window{f.Start, f.Start + k.stall}
}

// own says whether a request is at the very part that a fault strikes.
func (c *checker) own(f *Fault, r *Request) bool {
	return f.Target == r.Gateway || slices.ContainsFunc(c.runs[r.ID], func(run Execution) bool { return f.hits(run.Engine) })
}

// bounds are those of a fault in this fleet.
func (c *checker) bounds(f *Fault) Effect {
	k := effects[f.Kind]
	if c.h.Brokers == 1 && (f.Kind == "broker-kill" || f.Kind == "broker-freeze") { // there is no other one
		k.fromEnd, k.stall, k.recovery = true, 2, 2
	}
	if c.h.Brokers > 1 && k.elects { // another one leads
		k.disk, k.fromEnd, k.stall, k.recovery, k.refuses = false, false, electionBound, electionBound, 0
	}
	return k
}

// free says whether some engine had a free slot for a request all the time, even if one engine could not be used; two, if a fault
// took as many away. Of batch requests, up to half of the slots may be in reserve for the tiers above: see policy.Ceiling.
func (c *checker) free(r *Request, from, to Seconds) bool {
	usable := c.slots - c.spare
	if slices.ContainsFunc(c.h.Faults, func(f Fault) bool { return effects[f.Kind].two && f.Start < to && f.Healed > from }) {
		usable -= c.spare
	}
	if r.Tier == "batch" {
		usable /= 2
	}
	i, _ := slices.BinarySearchFunc(c.busy, from, func(s step, at Seconds) int { return compare(s.at, at) })
	for i = max(i-1, 0); i < len(c.busy) && c.busy[i].at < to; i++ {
		if c.busy[i].n >= usable {
			return false
		}
	}
	return true
}

func (c *checker) fault(f *Fault) {
	if f.Err != "" {
		c.report(RuleUnverified, f.Start, "", "%s at %s: %s", f.Kind, f.Target, f.Err)
	}
	if took, bound, ok := c.recovery(f); ok && took > bound {
		c.report(RuleRecovery, f.Start, "", "%s at %s: answers come at half of the rate before only after %.1f s, allowed are %.1f s", f.Kind, f.Target, took, bound)
	}
}

const (
	rateBefore  Seconds = 5  // over which the rate before a fault is measured
	rateWindow  Seconds = 1  // over which the rate after it is
	rateHorizon Seconds = 20 // how long after a fault is looked at
	rateSteady  Seconds = 3  // for which it has to be good
	rateStep    Seconds = 0.1
)

// recovery is the time from a fault, or from its end, until answers come at half of the rate before and go on so for 3 s, or
// until the next fault. ok is false if the load does not suffice to tell.
func (c *checker) recovery(f *Fault) (took, bound Seconds, ok bool) {
	k := c.bounds(f)
	before := c.count(f.Start-rateBefore, f.Start)
	if f.Start < rateBefore || before < int(5*rateBefore) {
		return 0, 0, false
	}
	origin := f.Start
	if k.fromEnd || k.ownTarget && strings.HasPrefix(f.Target, "gateway") { // until then its share of the requests waits for it
		origin = f.Healed
	}
	end := min(origin+rateHorizon, c.sent-rateWindow)
	for i := range c.h.Faults {
		if next := c.h.Faults[i].Start; next > f.Start {
			end = min(end, next-rateWindow)
		}
	}
	for at, good := origin, Seconds(0); at <= end && good < rateSteady; at, good = at+rateStep, good+rateStep {
		// Where the machine is short of time, fewer requests are sent.
		rate := min(float64(before)/float64(rateBefore), float64(between(c.sends, at-rateWindow, at+rateWindow))/2/float64(rateWindow))
		if float64(c.count(at, at+rateWindow)) < rate*float64(rateWindow)/2 {
			took, good = at+rateWindow-origin, -rateStep
		}
	}
	return took, k.recovery + rateWindow, true
}

// count is the number of answers that were complete in a time.
func (c *checker) count(from, to Seconds) int { return between(c.answers, from, to) }

func between(times []Seconds, from, to Seconds) int {
	a, _ := slices.BinarySearchFunc(times, from, compare)
	b, _ := slices.BinarySearchFunc(times, to, compare)
	return b - a
}

func (c *checker) left() {
	l := &c.h.Left
	if l.Err != "" {
		c.report(RuleLeft, c.h.Ended, "", "%s", l.Err)
	}
	if l.Waiting > 0 {
		c.report(RuleLeft, c.h.Ended, "", "%d messages are in the queue, though all requests have ended; the first is %s", l.Waiting, l.First)
	}
	refused := 0
	for i := range c.h.Requests {
		if c.h.Requests[i].Outcome == Refused {
			refused++
		}
	}
	if l.Dead > refused {
		c.report(RuleLeft, c.h.Ended, "", "%d dead letters, though only %d requests were refused", l.Dead, refused)
	}
}
