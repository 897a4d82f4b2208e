package ops

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

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

func newRouteShiftCommand(c *cli.ConnectFlags) *cobra.Command {
	shift := policy.Shift{By: 10}
	var every time.Duration
	var abortIf []string
	var now, follow bool
	cmd := &cobra.Command{
		Use: "shift MODEL", Short: "Move a model to another pool in steps, or show the progress",
		Long: `With --to: start a shift, which moves a model's requests to another pool (the
canary) in steps. Each step gives the canary --by more percent of all requests. If
a condition of --abort-if becomes true, all requests go back to the previous pools.
The gateways do all this: this command need not keep running. A model without a
route is moved away from the pool of its name.

Without --to: show the progress of the shift.

A condition is METRIC>BOUND. The metrics are error_rate, and p50_, p95_ and p99_ of
ttft (time to first byte) and e2e (time to last byte). A bound with x is a multiple
of the value on the stable side; a bound with %, ms or s is absolute. A multiple may
have an absolute part, as in p95_ttft>1.5x+50ms: chance alone exceeds a multiple of a
few milliseconds. Conditions are checked once each side has --min-sample answers in
the current step; until then the step waits.

Exit code of --follow: 0 if the shift is completed, 1 if it is aborted.`,
		Example: `  pulley route shift chat --to llama-next --by 10% --every 2m \
      --abort-if 'error_rate>1%' --abort-if 'p95_ttft>1.5x+50ms' --follow
  pulley route shift chat              # progress
  pulley route shift chat --now        # next step now
  pulley route promote chat            # all requests to the canary
  pulley route abort chat              # all requests back`,
		ValidArgsFunction: cli.Complete(c, 1, liveModels),
	}
	fs := cmd.Flags()
	cli.NameFlag(cmd, c, &shift.To, "to", "target `pool`", livePools)
	fs.Var((*shareValue)(&shift.By), "by", "`percent` of all requests that each step moves")
	fs.DurationVar(&every, "every", 2*time.Minute, "minimum duration of a step")
	fs.StringArrayVar(&abortIf, "abort-if", nil, "`condition` that aborts the shift, such as 'error_rate>1%' or 'p95_ttft>1.5x+50ms' (repeatable)")
	fs.IntVar(&shift.MinSample, "min-sample", policy.DefaultMinSample, "answers that each side needs before the conditions are checked")
	fs.BoolVar(&now, "now", false, "take the next step now")
	fs.BoolVarP(&follow, "follow", "f", false, "show the progress until the shift ends")
	output := cli.AddOutput(cmd, cli.Table, cli.Wide, cli.JSON, cli.YAML)
	return cli.Action(cmd, c, func(s *cli.Session) error {
		model := s.Args[0]
		start := fs.Changed("to")
		for _, flag := range []string{"by", "every", "abort-if", "min-sample"} {
			if !start && fs.Changed(flag) {
				return cli.Usagef("--%s: needs --to, which starts a shift", flag)
			}
		}
		shift.Every = policy.Duration(every)
		for _, text := range abortIf {
			if _, err := policy.ParseCondition(text); err != nil {
				return cli.Usagef("--abort-if %w", err)
			}
			shift.Abort = append(shift.Abort, policy.Condition(text))
		}
		if start {
			if err := startShift(s, model, shift); err != nil {
				return err
			}
		}
		if now {
			if err := stepShift(s, model, policy.Route.StepNow); err != nil {
				return err
			}
		}
		switch {
		case follow:
			return followShift(s, model)
		case start || now:
			return nil
		}
		p, err := followReports(s, model)
		if err != nil {
			return err
		}
		defer p.sub.Unsubscribe()
		v, err := p.read(s.Context(), subjects.ShiftEvery+200*time.Millisecond)
		if err != nil {
			return err
		}
		return cli.Show(s.Cmd, v.view(), *output)
	})
}

func startShift(s *cli.Session, model string, shift policy.Shift) error {
	v, err := changePolicy(s, func(p *policy.Policy) error {
		pattern, err := p.StartShift(model, shift, time.Now())
		switch {
		case errors.Is(err, policy.ErrShifting):
			return cli.Refusedf("route %s: a shift to %s is running; end it with 'pulley route abort %[1]s' or 'pulley route promote %[1]s'", model, p.Routes[model].Shift.To)
		case errors.Is(err, policy.ErrNothingToShift):
			return cli.Refusedf("route %s: all requests already go to %s", model, shift.To)
		case pattern != "":
			s.Warnf("route %s no longer applies to %s, which now has its own route", pattern, term.Printable(model))
		}
		return nil
	})
	if err != nil {
		return err
	}
	warnUnservedPools(s, shift.To)
	if _, err := fleet.AskAny[subjects.Heartbeat](s.Context(), s.NC, subjects.AskWorkers); errors.Is(err, nats.ErrNoResponders) {
		s.Warnf("no gateway is running: the shift starts when one does")
	}
	s.Printf("shift of %s to %s started: %s every %s, policy revision %d", term.Printable(model), term.Printable(shift.To), term.Percent(shift.By), durationOr(shift.Every), v.Revision)
	return nil
}

// stepShift applies a step to a running shift: the next one, its promotion or its abort.
func stepShift(s *cli.Session, model string, step func(policy.Route, time.Time) (policy.Route, string)) error {
	done := ""
	v, err := changePolicy(s, func(p *policy.Policy) error {
		r, ok := p.Routes[model]
		if !ok {
			return cli.NoSuch("route", model, slices.Sorted(maps.Keys(p.Routes)))
		}
		if r, done = step(r, time.Now()); done == "" {
			return noShift(model, r)
		}
		p.Routes[model] = r
		return nil
	})
	if err != nil {
		return err
	}
	publishEvent(s, subjects.Event{Kind: subjects.EventShift, Model: model, Text: fmt.Sprintf("route %s: %s", model, done)})
	s.Printf("shift of %s %s, policy revision %d", term.Printable(model), done, v.Revision)
	return nil
}

func noShift(model string, r policy.Route) error {
	if r.Shift != nil {
		return cli.Refusedf("route %s: no shift is running; the last one, to %s, is %s", model, r.Shift.To, r.Shift.State)
	}
	return cli.Refusedf("route %s: no shift is running", model)
}

func newRoutePromoteCommand(c *cli.ConnectFlags) *cobra.Command {
	return cli.Action(&cobra.Command{
		Use: "promote MODEL...", Short: "Complete shifts: send all requests to the new pool",
		Long:              "Complete the shift of each model now: send all its requests to the new pool.",
		Example:           `  pulley route promote chat`,
		ValidArgsFunction: cli.Complete(c, 0, liveShifts),
	}, c, func(s *cli.Session) error {
		return eachOf(s.Args, func(model string) error { return stepShift(s, model, policy.Route.Promote) })
	})
}

func newRouteAbortCommand(c *cli.ConnectFlags) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "abort MODEL...", Short: "Abort shifts: send all requests back",
		Long:              "Abort the shift of each model: send all its requests back to the previous pools.",
		Example:           `  pulley route abort chat --reason 'answers in Latin'`,
		ValidArgsFunction: cli.Complete(c, 0, liveShifts),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "reason, for the history (default your user name)")
	return cli.Action(cmd, c, func(s *cli.Session) error {
		why := reason
		if why == "" {
			why = "by " + s.User()
		}
		return eachOf(s.Args, func(model string) error {
			return stepShift(s, model, func(r policy.Route, now time.Time) (policy.Route, string) { return r.AbortShift(why, now) })
		})
	})
}

// shiftText describes the shift of a route; it returns "" if there is none.
func shiftText(r policy.Route) string {
	switch s := r.Shift; {
	case s == nil:
		return ""
	case s.State == policy.ShiftRunning:
		return fmt.Sprintf("running to %s, %s", s.To, term.Percent(r.ShiftShare()))
	case s.Reason != "" && s.State == policy.ShiftAborted:
		return "aborted: " + s.Reason
	default:
		return string(s.State)
	}
}

// shiftReports receives the reports of gateways about the two sides of a shift.
type shiftReports struct {
	model string
	store *policystore.Store
	sub   *nats.Subscription
	last  map[string]subjects.ShiftReport // the last report of each gateway
}

// followReports subscribes to the reports about the shift of a model.
func followReports(s *cli.Session, model string) (*shiftReports, error) {
	store, err := fleet.OpenStore(s.Context(), s.NC)
	if err != nil {
		return nil, err
	}
	sub, err := s.NC.SubscribeSync(subjects.ShiftReports)
	if err != nil {
		return nil, err
	}
	return &shiftReports{model: model, store: store, sub: sub, last: make(map[string]subjects.ShiftReport)}, nil
}

// read returns the progress of the shift. While it is running, read first collects reports for some time.
func (l *shiftReports) read(ctx context.Context, within time.Duration) (shiftView, error) {
	v, err := l.store.Load(ctx)
	if err != nil {
		return shiftView{}, fleet.ExplainDamage(err)
	}
	r, ok := v.Policy.Routes[l.model]
	if !ok {
		return shiftView{}, cli.NoSuch("route", l.model, slices.Sorted(maps.Keys(v.Policy.Routes)))
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
			var report subjects.ShiftReport
			if subjects.Unmarshal(m.Data, &report) == nil {
				l.last[report.Gateway] = report
			}
		}
		if ctx.Err() != nil {
			return shiftView{}, context.Cause(ctx)
		}
	}
	view := shiftView{model: l.model, route: r, share: r.ShiftShare()}
	for _, report := range l.last {
		if !report.Since[l.model].Equal(r.Shift.Since) {
			continue
		}
		for pool, side := range report.Routes[l.model] {
			if pool == r.Shift.To {
				view.canary.Merge(side)
			} else {
				view.stable.Merge(side)
			}
		}
	}
	return view, nil
}

type shiftView struct {
	model          string
	route          policy.Route
	share          float64 // percentage of requests that the canary gets
	canary, stable policy.Side
}

func (v shiftView) view() cli.View {
	value := struct {
		Model  string       `json:"model"`
		Route  policy.Route `json:"route"`
		Canary sideLine     `json:"canary"`
		Stable sideLine     `json:"stable"`
	}{v.model, v.route, lineOf(v.share, v.canary), lineOf(100-v.share, v.stable)}
	return cli.View{Value: value, Print: v.print}
}

func (v shiftView) print(p *term.Page) {
	s := v.route.Shift
	state, when := "running", "step since"
	if s.State != policy.ShiftRunning {
		state, when = string(s.State), "ended"
	}
	p.Fields(
		term.KV("route", v.model, term.Bold),
		term.KV("shift", fmt.Sprintf("to %s, %s every %s", s.To, term.Percent(s.By), durationOr(s.Every))),
		term.KV("state", state, fleet.StateStyle(state)),
		term.KV("reason", s.Reason),
		term.KV(when, fmt.Sprintf("%s, %s ago", term.Clock(s.Since), term.Ago(s.Since))),
		term.KV("now to", targets(v.route.To)),
		term.KV("before", targets(s.Before)),
	)
	if s.State != policy.ShiftRunning {
		return
	}
	p.Line("")
	t := term.Table{Columns: []term.Column{term.Fixed("SIDE"), term.Number("SHARE"), term.Number("ANSWERS"), term.Number("ERRORS"),
		term.Number("TTFT P50"), term.Number("TTFT P95"), term.Number("E2E P50"), term.Number("E2E P95")}}
	row := func(name string, share float64, side policy.Side) {
		t.Row(name, term.Percent(share), fmt.Sprintf("%d/%d", side.Answers(), sampleOf(s)), errorsOf(side),
			quantile(side, policy.TTFT, 0.5), quantile(side, policy.TTFT, 0.95), quantile(side, policy.E2E, 0.5), quantile(side, policy.E2E, 0.95))
	}
	row("canary", v.share, v.canary)
	row("stable", 100-v.share, v.stable)
	p.Table(t)
	if len(s.Abort) == 0 {
		return
	}
	p.Heading("abort if")
	var list []term.Field
	for _, c := range s.Abort {
		test, err := policy.ParseCondition(string(c))
		if err != nil {
			continue
		}
		f := term.KV(string(c), "not enough answers yet", term.Dim)
		if fails, why := test.Fails(v.canary, v.stable); why != "" {
			f.Value, f.Style = why, map[bool]term.Style{true: term.Red, false: term.Green}[fails]
		}
		list = append(list, f)
	}
	p.Fields(list...)
}

// sideLine is one side of a shift, the canary or the stable one, as JSON.
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

func sampleOf(s *policy.Shift) int { return cmp.Or(s.MinSample, policy.DefaultMinSample) }

func errorsOf(s policy.Side) string {
	if s.Answers() == 0 {
		return ""
	}
	return term.Percent(100 * float64(s.Errors()) / float64(s.Answers()))
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

// followShift shows the progress of a shift until it ends: on a terminal as a page that is refreshed, elsewhere as a
// line for each step.
func followShift(s *cli.Session, model string) error {
	l, err := followReports(s, model)
	if err != nil {
		return err
	}
	defer l.sub.Unsubscribe()
	out := s.Cmd.OutOrStdout()
	last := ""
	for {
		v, err := l.read(s.Context(), cli.WatchEvery)
		if s.Context().Err() != nil {
			return nil // the shift itself continues
		}
		if err != nil {
			return err
		}
		t := term.Of(out)
		line := fmt.Sprintf("%s of %s to %s", term.Percent(v.share), model, v.route.Shift.To)
		switch {
		case t.Width > 0:
			p := term.Page{Terminal: t}
			v.print(&p)
			out.Write(term.Frame(p.Bytes(), "pulley "+s.CommandLine(), t))
		case line != last:
			fmt.Fprintf(out, "%s  %s\n", time.Now().Format("15:04:05"), term.Printable(line))
		}
		last = line
		switch shift := v.route.Shift; shift.State {
		case policy.ShiftDone:
			if t.Width == 0 {
				io.WriteString(out, "done\n")
			}
			return nil
		case policy.ShiftAborted:
			return fmt.Errorf("shift of %s aborted: %s", model, shift.Reason)
		}
	}
}
