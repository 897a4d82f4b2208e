package policy

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Shift moves a route's weight to one of its pools step by step, and back if that pool does worse.
type Shift struct {
	To    string      `json:"to" yaml:"to"`
	By    float64     `json:"by" yaml:"by"` // percent of all requests per step
	Every Duration    `json:"every" yaml:"every"`
	Abort []Condition `json:"abort,omitempty" yaml:"abort,omitempty"`
	// MinSample is how many answers each side needs before a step is judged. A step that lacks them
	// waits. Default DefaultMinSample.
	MinSample int `json:"min_sample,omitempty" yaml:"min_sample,omitempty"`

	// The progress of the shift. State is empty while it runs.
	State  ShiftState `json:"state,omitempty" yaml:"state,omitempty"`
	Reason string     `json:"reason,omitempty" yaml:"reason,omitempty"` // why it ended
	Since  time.Time  `json:"since,omitzero" yaml:"since,omitempty"`    // when the present step started, or the shift ended
	// Before holds the weights to restore. It is empty until the first step of a shift that was written without it.
	Before []Target `json:"before,omitempty" yaml:"before,omitempty"`
}

// ShiftState is how a shift ended.
type ShiftState string

const (
	ShiftRunning ShiftState = ""
	ShiftDone    ShiftState = "done"
	ShiftAborted ShiftState = "aborted"
)

// DefaultMinSample makes an error rate of 1 % visible more often than not.
const DefaultMinSample = 100

// minBy keeps a step above the rounding of weights.
const minBy = 0.01

func (s *Shift) check(r Route) []Problem {
	var ps []Problem
	add := func(field, format string, args ...any) {
		ps = append(ps, Problem{Path: strings.Split(field, "."), Reason: fmt.Sprintf(format, args...)})
	}
	switch s.State {
	case ShiftRunning:
		if indexOf(r.To, s.To) < 0 {
			add("to", "%q: not a pool of the route", s.To)
		}
	case ShiftDone, ShiftAborted:
	default:
		add("state", "%q: must be empty, done or aborted", s.State)
	}
	if !(s.By >= minBy && s.By <= 100) {
		add("by", "%g: must be %g to 100 percent", s.By, minBy)
	}
	if s.Every <= 0 {
		add("every", "%v: must be above 0", s.Every)
	}
	if s.MinSample < 0 {
		add("min_sample", "%d: must not be negative", s.MinSample)
	}
	for i, c := range s.Abort {
		if _, err := ParseCondition(string(c)); err != nil {
			add(fmt.Sprint("abort.", i), "%v", err)
		}
	}
	for i, t := range s.Before {
		if !(t.Weight >= 0 && t.Weight <= maxWeight) {
			add(fmt.Sprint("before.", i, ".weight"), "%g: must be 0 to %g", t.Weight, maxWeight)
		}
	}
	if len(s.Before) > 0 && !(sumOf(s.Before) > 0) {
		add("before", "the weights add up to 0: there is nothing to restore")
	}
	return ps
}

// NewShift starts a shift of a route that has a pool with a weight. If the shift's pool is not one
// of the route's, it is added with weight 0. Step makes the first step.
func NewShift(r Route, s Shift, now time.Time) Route {
	r.To = withTarget(r.To, s.To)
	s.State, s.Reason = ShiftRunning, ""
	s.Since = stamp(now)
	s.Before = slices.Clone(r.To)
	r.Shift = &s
	return r
}

// Step advances a running shift. canary describes the answers, since the present step started, of
// the shift's pool; stable those of all other pools of the route together. what says in words what
// has changed and is empty if nothing has.
//
//   - A pool that gets no requests yet gets its first part at once.
//   - A condition that holds aborts the shift at once and restores the weights from before it. A
//     condition is evaluated when each side that it compares has MinSample answers that it can use.
//   - When the step has lasted for Every, each side has MinSample answers and every condition was
//     evaluated, the pool gets By percent of all requests more, and the others less in proportion.
//     A step that lacks answers waits for as long as it takes.
//   - With all requests on the pool the stable side has nothing to compare with, so conditions with
//     x are skipped. When that step has lasted too, the shift is done.
//
// Conditions are evaluated again on every call, which gives chance many opportunities: a bound close to the usual value
// will be exceeded at some time, the sooner the smaller MinSample is. The p99 of 100 answers is their second largest.
func (r Route) Step(canary, stable Side, now time.Time) (next Route, what string) {
	if !r.shifting() {
		return r, ""
	}
	s := r.Shift
	share := r.ShiftShare()
	if share <= 0 {
		return r.StepNow(now)
	}
	worse, judged := s.judge(canary, stable, share < 100)
	if worse != "" {
		return r.AbortShift(worse, now)
	}
	if !judged || now.Before(s.Since.Add(time.Duration(s.Every))) {
		return r, ""
	}
	return r.StepNow(now)
}

// StepNow makes the next step of a running shift, or ends it after the last one, whatever the answers say.
func (r Route) StepNow(now time.Time) (next Route, what string) {
	if !r.shifting() {
		return r, ""
	}
	share := r.ShiftShare()
	if share >= 100 {
		return r.ended(ShiftDone, "", r.To, now), "done: all requests to " + r.Shift.To
	}
	s := *r.Shift
	if len(s.Before) == 0 {
		s.Before = slices.Clone(r.To)
	}
	s.Since = stamp(now)
	to := min(share+s.By, 100)
	r.To = withShare(r.To, s.To, to)
	r.Shift = &s
	return r, fmt.Sprintf("%.4g %% → %.4g %% to %s", share, to, s.To)
}

// Promote ends a running shift with all weight on its pool.
func (r Route) Promote(now time.Time) (next Route, what string) {
	if !r.shifting() {
		return r, ""
	}
	what = fmt.Sprintf("promoted at %.4g %%: all requests to %s", r.ShiftShare(), r.Shift.To)
	return r.ended(ShiftDone, "promoted", withShare(r.To, r.Shift.To, 100), now), what
}

// AbortShift ends a running shift and restores the weights from before it.
func (r Route) AbortShift(reason string, now time.Time) (next Route, what string) {
	if !r.shifting() {
		return r, ""
	}
	before := r.Shift.Before
	if !(sumOf(before) > 0) {
		before = r.To // no step was made yet
	}
	what = fmt.Sprintf("aborted at %.4g %% to %s: %s", r.ShiftShare(), r.Shift.To, reason)
	return r.ended(ShiftAborted, reason, before, now), what
}

func (r Route) shifting() bool { return r.Shift != nil && r.Shift.State == ShiftRunning }

func (r Route) ended(state ShiftState, reason string, to []Target, now time.Time) Route {
	s := *r.Shift
	s.State, s.Reason, s.Since = state, reason, stamp(now)
	r.To = slices.Clone(to)
	r.Shift = &s
	return r
}

// ShiftShare is the percentage of the requests that the pool of the route's shift gets.
func (r Route) ShiftShare() float64 {
	i, sum := indexOf(r.To, r.Shift.To), sumOf(r.To)
	if i < 0 || sum == 0 {
		return 0
	}
	return roundWeight(100 * r.To[i].Weight / sum)
}

// withShare returns the targets with share percent on one pool and the rest on the others in proportion.
func withShare(to []Target, pool string, share float64) []Target {
	to = withTarget(to, pool)
	at := indexOf(to, pool)
	to[at].Weight = 0
	others := sumOf(to)
	share = roundWeight(share)
	rest, most := 100-share, -1
	for i := range to {
		if to[i].Weight == 0 {
			continue
		}
		to[i].Weight = roundWeight(to[i].Weight / others * (100 - share))
		rest -= to[i].Weight
		if most < 0 || to[i].Weight > to[most].Weight {
			most = i
		}
	}
	if most >= 0 {
		to[most].Weight = roundWeight(to[most].Weight + rest) // the remainder of rounding
	}
	to[at].Weight = share
	return to
}

// withTarget returns a copy of the targets that includes the pool. A new pool is inserted in the
// middle: no session then moves between the pools on its left and those on its right. See Pick.
func withTarget(to []Target, pool string) []Target {
	to = slices.Clone(to)
	if indexOf(to, pool) >= 0 {
		return to
	}
	return slices.Insert(to, (len(to)+1)/2, Target{Pool: pool})
}

// roundWeight keeps weights readable. It rounds far below what a Side can show.
func roundWeight(w float64) float64 { return math.Round(w*1e6) / 1e6 }

// stamp is a time as it reads back from the store.
func stamp(now time.Time) time.Time { return now.UTC().Round(0) }

func indexOf(to []Target, pool string) int {
	return slices.IndexFunc(to, func(t Target) bool { return t.Pool == pool })
}

// judge reports which condition holds, or whether all were evaluated and none holds.
func (s *Shift) judge(canary, stable Side, compare bool) (worse string, judged bool) {
	need := cmp.Or(s.MinSample, DefaultMinSample)
	judged = canary.Answers() >= need && (!compare || stable.Answers() >= need)
	for _, c := range s.Abort {
		t, err := ParseCondition(string(c))
		if err != nil {
			return err.Error(), true // a condition that cannot be parsed must not count as passed
		}
		if t.relative && !compare {
			continue
		}
		if t.sample(canary) < need || t.relative && t.sample(stable) < need {
			judged = false
			continue
		}
		if fails, why := t.Fails(canary, stable); fails {
			return why, true
		}
	}
	return "", judged
}
