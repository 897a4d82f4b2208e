package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

func newRouteShiftCommand(c *connectFlags) *cobra.Command {
	shift := policy.Shift{By: 10}
	var every time.Duration
	var abortIf []string
	var now, follow bool
	cmd := &cobra.Command{
		Use: "shift MODEL", Short: "Move a model to another pool step by step, or show how that goes",
		Long: `With --to: begin to move a model's requests to another pool, step by step. At each
step the pool, the canary, gets --by more of all requests. If one of the --abort-if
holds, all requests go back to where they were. The gateways do that: it goes on
without this command. A model without a route is moved away from the pool of its
name.

Without --to: show how the shift goes.

Conditions: METRIC>BOUND. Metrics are error_rate, and p50_, p95_ and p99_ of ttft
(time to the first byte) and e2e (to the last). A bound with x is that many times
the stable side's value, with % (of a rate), ms or s (of a time) the value itself.
They are judged when each side has --min-sample answers since the step began; a
step that lacks them waits.

Exit code of --follow: 0 when the shift is done, 1 when it is aborted.`,
		Example: `  pulley route shift chat --to llama-next --by 10% --every 2m \
      --abort-if 'error_rate>1%' --abort-if 'p95_ttft>1.5x' --follow
  pulley route shift chat              # how it goes
  pulley route shift chat --now        # the next step at once
  pulley route promote chat            # all requests to the canary, or
  pulley route abort chat              # all back`,
		Args:              wantArgs("MODEL"),
		ValidArgsFunction: complete(c, 1, liveModels),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&shift.To, "to", "", "`pool` that gets more and more")
	fs.Var((*shareValue)(&shift.By), "by", "`percent` of all requests for each step")
	fs.DurationVar(&every, "every", 2*time.Minute, "how long a step lasts, at least")
	fs.StringArrayVar(&abortIf, "abort-if", nil, "`condition` that ends it, such as 'error_rate>1%' or 'p95_ttft>1.5x' (repeatable)")
	fs.IntVar(&shift.MinSample, "min-sample", policy.DefaultMinSample, "answers that each side needs before a step is judged")
	fs.BoolVar(&now, "now", false, "take the next step at once")
	fs.BoolVarP(&follow, "follow", "f", false, "show how it goes until it ends")
	output := addOutputFlag(cmd)
	cmd.RegisterFlagCompletionFunc("to", completeFlag(c, livePools))
	return act(cmd, c, func(s *session) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		model := s.args[0]
		begin := fs.Changed("to")
		for _, flag := range []string{"by", "every", "abort-if", "min-sample"} {
			if !begin && fs.Changed(flag) {
				return usagef("--%s: goes with --to, which begins a shift", flag)
			}
		}
		shift.Every = policy.Duration(every)
		for _, text := range abortIf {
			if _, err := policy.ParseCondition(text); err != nil {
				return usagef("--abort-if %w", err)
			}
			shift.Abort = append(shift.Abort, policy.Condition(text))
		}
		if begin {
			if err := s.beginShift(model, shift); err != nil {
				return err
			}
		}
		if now {
			if err := s.endStep(model, policy.Route.StepNow); err != nil {
				return err
			}
		}
		switch {
		case follow:
			return s.followShift(model)
		case begin || now:
			return nil
		}
		p, err := s.listenToShift(model)
		if err != nil {
			return err
		}
		defer p.sub.Unsubscribe()
		v, err := p.look(s.ctx(), subjects.ShiftEvery+200*time.Millisecond)
		if err != nil {
			return err
		}
		return s.show(v.view(), *output)
	})
}

// beginShift begins a shift.
func (s *session) beginShift(model string, shift policy.Shift) error {
	v, err := s.change(func(p *policy.Policy) error {
		r, there := p.Routes[model]
		if !there {
			pattern, of := policy.NewRouter(p).Find(model)
			if r = (policy.Route{To: []policy.Target{{Pool: model, Weight: 100}}}); of != nil {
				s.warn("route %s was for %s too, which has a route of its own now", pattern, printable(model))
				r = *of
				r.Shift = nil
			}
		}
		if r.Shift != nil && r.Shift.State == policy.ShiftRunning {
			return refusedf("route %s: a shift to %s runs; end it with 'pulley route abort %[1]s' or 'pulley route promote %[1]s'", model, r.Shift.To)
		}
		next := policy.NewShift(r, shift, time.Now())
		if shareOf(next) >= 100 {
			return refusedf("route %s: all requests go to %s already", model, shift.To)
		}
		if p.Routes == nil {
			p.Routes = make(map[string]policy.Route)
		}
		p.Routes[model] = next
		return nil
	})
	if err != nil {
		return err
	}
	s.warnOfPools(shift.To)
	if _, err := ask[subjects.Heartbeat](s.ctx(), s.nc, subjects.AskWorkers, false); errors.Is(err, nats.ErrNoResponders) {
		s.warn("no gateway runs: the shift begins with the first")
	}
	s.say("shift of %s to %s begun: %s every %s, policy revision %d", printable(model), printable(shift.To), percent(shift.By), durationOr(shift.Every), v.Revision)
	return nil
}

// endStep makes a running shift do something.
func (s *session) endStep(model string, do func(policy.Route, time.Time) (policy.Route, string)) error {
	what := ""
	v, err := s.change(func(p *policy.Policy) error {
		r, ok := p.Routes[model]
		if !ok {
			return noSuch("route", model, slices.Sorted(maps.Keys(p.Routes)))
		}
		if r, what = do(r, time.Now()); what == "" {
			return noShift(model, r)
		}
		p.Routes[model] = r
		return nil
	})
	if err != nil {
		return err
	}
	s.tell(subjects.Event{Kind: subjects.EventShift, Model: model, Text: fmt.Sprintf("route %s: %s", model, what)})
	s.say("shift of %s %s, policy revision %d", printable(model), what, v.Revision)
	return nil
}

func noShift(model string, r policy.Route) error {
	if r.Shift != nil {
		return refusedf("route %s: its shift to %s is %s", model, r.Shift.To, r.Shift.State)
	}
	return refusedf("route %s: no shift runs", model)
}

func newRoutePromoteCommand(c *connectFlags) *cobra.Command {
	return act(&cobra.Command{
		Use: "promote MODEL", Short: "End a shift: all requests to the new pool",
		Long:              "End the shift of a model with all its requests on the new pool.",
		Example:           `  pulley route promote chat`,
		Args:              wantArgs("MODEL"),
		ValidArgsFunction: complete(c, 1, liveShifts),
	}, c, func(s *session) error { return s.endStep(s.args[0], policy.Route.Promote) })
}

func newRouteAbortCommand(c *connectFlags) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "abort MODEL", Short: "End a shift: all requests back to where they were",
		Long:              "End the shift of a model with all its requests where they were before it.",
		Example:           `  pulley route abort chat --reason 'answers in Latin'`,
		Args:              wantArgs("MODEL"),
		ValidArgsFunction: complete(c, 1, liveShifts),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the history (default that you did it)")
	return act(cmd, c, func(s *session) error {
		why := reason
		if why == "" {
			why = "by " + s.who()
		}
		return s.endStep(s.args[0], func(r policy.Route, now time.Time) (policy.Route, string) { return r.AbortShift(why, now) })
	})
}

// shiftListener hears what gateways tell of a shift's sides.
type shiftListener struct {
	model string
	store *policystore.Store
	sub   *nats.Subscription
	told  map[string]subjects.ShiftReport // by gateway
}

func (s *session) listenToShift(model string) (*shiftListener, error) {
	store, err := s.store()
	if err != nil {
		return nil, err
	}
	sub, err := s.nc.SubscribeSync(subjects.ShiftReports)
	if err != nil {
		return nil, err
	}
	return &shiftListener{model: model, store: store, sub: sub, told: make(map[string]subjects.ShiftReport)}, nil
}

// look listens for a while, if the shift runs, and says how it goes.
func (l *shiftListener) look(ctx context.Context, within time.Duration) (shiftView, error) {
	v, err := l.store.Load(ctx)
	if err != nil {
		return shiftView{}, explainDamage(err)
	}
	r, ok := v.Policy.Routes[l.model]
	if !ok {
		return shiftView{}, noSuch("route", l.model, slices.Sorted(maps.Keys(v.Policy.Routes)))
	}
	if r.Shift == nil {
		return shiftView{}, noShift(l.model, r)
	}
	if r.Shift.State == policy.ShiftRunning {
		waiting, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		for {
			m, err := l.sub.NextMsgWithContext(waiting)
			if err != nil {
				break
			}
			var told subjects.ShiftReport
			if subjects.Unmarshal(m.Data, &told) == nil {
				l.told[told.Gateway] = told
			}
		}
		if ctx.Err() != nil {
			return shiftView{}, context.Cause(ctx)
		}
	}
	view := shiftView{model: l.model, route: r, share: shareOf(r)}
	for _, told := range l.told {
		if !told.Since[l.model].Equal(r.Shift.Since) {
			continue
		}
		for pool, side := range told.Routes[l.model] {
			if pool == r.Shift.To {
				view.canary.Merge(side)
			} else {
				view.stable.Merge(side)
			}
		}
	}
	return view, nil
}

// shiftView is how a shift goes.
type shiftView struct {
	model          string
	route          policy.Route
	share          float64 // of the canary, in percent
	canary, stable policy.Side
}

// sideLine is one side of a shift.
type sideLine struct {
	Share   float64 `json:"share"` // percent
	Answers int     `json:"answers"`
	Errors  int     `json:"errors"`
	TTFTp50 int64   `json:"ttft_p50_ms,omitempty"`
	TTFTp95 int64   `json:"ttft_p95_ms,omitempty"`
	E2Ep50  int64   `json:"e2e_p50_ms,omitempty"`
	E2Ep95  int64   `json:"e2e_p95_ms,omitempty"`
}

func lineOf(share float64, s policy.Side) sideLine {
	ms := func(m policy.Metric, q float64) int64 {
		d, _ := s.Quantile(m, q)
		return d.Milliseconds()
	}
	return sideLine{share, s.Answers(), s.Errors(), ms(policy.TTFT, 0.5), ms(policy.TTFT, 0.95), ms(policy.E2E, 0.5), ms(policy.E2E, 0.95)}
}

func (v shiftView) view() view {
	value := struct {
		Model  string       `json:"model"`
		Route  policy.Route `json:"route"`
		Canary sideLine     `json:"canary"`
		Stable sideLine     `json:"stable"`
	}{v.model, v.route, lineOf(v.share, v.canary), lineOf(100-v.share, v.stable)}
	return view{value, v.print}
}

func (v shiftView) print(p *page) {
	s := v.route.Shift
	state, when := "running", "step since"
	if s.State != policy.ShiftRunning {
		state, when = string(s.State), "ended"
	}
	p.fields(
		field{"route", v.model, bold},
		field{"shift", fmt.Sprintf("to %s, %s every %s", s.To, percent(s.By), durationOr(s.Every)), ""},
		field{"state", state, paintState(state)},
		field{"reason", s.Reason, ""},
		field{when, fmt.Sprintf("%s, %s ago", clock(s.Since), ago(s.Since)), ""},
		field{"now to", targets(v.route.To), ""},
		field{"before", targets(s.Before), ""},
	)
	if s.State != policy.ShiftRunning {
		return
	}
	p.line("")
	t := table{columns: []column{word("SIDE"), number("SHARE"), number("ANSWERS"), number("ERRORS"),
		number("TTFT P50"), number("TTFT P95"), number("E2E P50"), number("E2E P95")}}
	row := func(name string, share float64, side policy.Side) {
		t.row(name, percent(share), fmt.Sprintf("%d/%d", side.Answers(), sampleOf(s)), errorsOf(side),
			quantile(side, policy.TTFT, 0.5), quantile(side, policy.TTFT, 0.95), quantile(side, policy.E2E, 0.5), quantile(side, policy.E2E, 0.95))
	}
	row("canary", v.share, v.canary)
	row("stable", 100-v.share, v.stable)
	p.table(t)
	if len(s.Abort) == 0 {
		return
	}
	p.heading("abort if")
	var list []field
	for _, c := range s.Abort {
		test, err := policy.ParseCondition(string(c))
		if err != nil {
			continue
		}
		f := field{string(c), "nothing to compare yet", dim}
		if fails, why := test.Fails(v.canary, v.stable); why != "" {
			f.value, f.style = why, map[bool]style{true: red, false: green}[fails]
		}
		list = append(list, f)
	}
	p.fields(list...)
}

func sampleOf(s *policy.Shift) int { return cmp.Or(s.MinSample, policy.DefaultMinSample) }

func errorsOf(s policy.Side) string {
	if s.Answers() == 0 {
		return ""
	}
	return percent(100 * float64(s.Errors()) / float64(s.Answers()))
}

func quantile(s policy.Side, m policy.Metric, q float64) string {
	d, ok := s.Quantile(m, q)
	switch {
	case !ok:
		return ""
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// followShift shows how a shift goes until it ends: on a terminal as a page that
// changes, else as a line for each step.
func (s *session) followShift(model string) error {
	l, err := s.listenToShift(model)
	if err != nil {
		return err
	}
	defer l.sub.Unsubscribe()
	out := s.cmd.OutOrStdout()
	last := ""
	for {
		v, err := l.look(s.ctx(), watchEvery)
		if s.ctx().Err() != nil {
			return nil // the shift goes on
		}
		if err != nil {
			return err
		}
		t := terminalOf(out)
		frame, err := v.view().render("table", t)
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s of %s to %s", percent(v.share), model, v.route.Shift.To)
		switch {
		case t.width > 0:
			out.Write(screen(frame, "pulley "+s.words(), t))
		case line != last:
			fmt.Fprintf(out, "%s  %s\n", time.Now().Format("15:04:05"), printable(line))
		}
		last = line
		switch shift := v.route.Shift; shift.State {
		case policy.ShiftDone:
			if t.width == 0 {
				io.WriteString(out, "done\n")
			}
			return nil
		case policy.ShiftAborted:
			return fmt.Errorf("shift of %s aborted: %s", model, shift.Reason)
		}
	}
}

func shiftInWords(r policy.Route) string {
	switch s := r.Shift; {
	case s == nil:
		return ""
	case s.State == policy.ShiftRunning:
		return fmt.Sprintf("running to %s, %s", s.To, percent(shareOf(r)))
	case s.Reason != "" && s.State == policy.ShiftAborted:
		return "aborted: " + s.Reason
	default:
		return string(s.State)
	}
}

// shareOf is the part of the requests, in percent, that a shift's pool gets.
func shareOf(r policy.Route) float64 {
	mine, sum := 0.0, 0.0
	for _, t := range r.To {
		if sum += t.Weight; t.Pool == r.Shift.To {
			mine = t.Weight
		}
	}
	if sum == 0 {
		return 0
	}
	return 100 * mine / sum
}

// shareValue is a flag for a percentage, with or without its sign.
type shareValue float64

func (v *shareValue) Set(text string) error {
	n, err := parsePercent(text)
	*v = shareValue(n)
	return err
}

func (v *shareValue) String() string { return percent(float64(*v)) }
func (v *shareValue) Type() string   { return "percent" }
