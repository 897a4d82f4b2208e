package ops

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func newRouteShiftCommand(c *cli.ConnectFlags) *cobra.Command {
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
		Args:              cli.ExactArgs("MODEL"),
		ValidArgsFunction: cli.Complete(c, 1, liveModels),
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
	output := cli.AddOutputFlag(cmd)
	cmd.RegisterFlagCompletionFunc("to", cli.CompleteFlag(c, livePools))
	return cli.Action(cmd, c, func(s *cli.Session) error {
		if err := cli.CheckOutput(*output); err != nil {
			return err
		}
		model := s.Args[0]
		begin := fs.Changed("to")
		for _, flag := range []string{"by", "every", "abort-if", "min-sample"} {
			if !begin && fs.Changed(flag) {
				return cli.Usagef("--%s: goes with --to, which begins a shift", flag)
			}
		}
		shift.Every = policy.Duration(every)
		for _, text := range abortIf {
			if _, err := policy.ParseCondition(text); err != nil {
				return cli.Usagef("--abort-if %w", err)
			}
			shift.Abort = append(shift.Abort, policy.Condition(text))
		}
		if begin {
			if err := beginShift(s, model, shift); err != nil {
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
		case begin || now:
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
		return s.Show(v.view(), *output)
	})
}

// beginShift begins a shift.
func beginShift(s *cli.Session, model string, shift policy.Shift) error {
	v, err := changePolicy(s, func(p *policy.Policy) error {
		r, there := p.Routes[model]
		if !there {
			pattern, of := policy.NewRouter(p).Find(model)
			if r = (policy.Route{To: []policy.Target{{Pool: model, Weight: 100}}}); of != nil {
				s.Warnf("route %s was for %s too, which has a route of its own now", pattern, term.Printable(model))
				r = *of
				r.Shift = nil
			}
		}
		if r.Shift != nil && r.Shift.State == policy.ShiftRunning {
			return cli.Refusedf("route %s: a shift to %s runs; end it with 'pulley route abort %[1]s' or 'pulley route promote %[1]s'", model, r.Shift.To)
		}
		next := policy.NewShift(r, shift, time.Now())
		if shareOf(next) >= 100 {
			return cli.Refusedf("route %s: all requests go to %s already", model, shift.To)
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
	warnUnservedPools(s, shift.To)
	if _, err := fleet.Ask[subjects.Heartbeat](s.Context(), s.NC, subjects.AskWorkers, false); errors.Is(err, nats.ErrNoResponders) {
		s.Warnf("no gateway runs: the shift begins with the first")
	}
	s.Printf("shift of %s to %s begun: %s every %s, policy revision %d", term.Printable(model), term.Printable(shift.To), term.Percent(shift.By), durationOr(shift.Every), v.Revision)
	return nil
}

// stepShift makes a running shift do something.
func stepShift(s *cli.Session, model string, do func(policy.Route, time.Time) (policy.Route, string)) error {
	what := ""
	v, err := changePolicy(s, func(p *policy.Policy) error {
		r, ok := p.Routes[model]
		if !ok {
			return cli.NoSuch("route", model, slices.Sorted(maps.Keys(p.Routes)))
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
	publishEvent(s, subjects.Event{Kind: subjects.EventShift, Model: model, Text: fmt.Sprintf("route %s: %s", model, what)})
	s.Printf("shift of %s %s, policy revision %d", term.Printable(model), what, v.Revision)
	return nil
}

func noShift(model string, r policy.Route) error {
	if r.Shift != nil {
		return cli.Refusedf("route %s: its shift to %s is %s", model, r.Shift.To, r.Shift.State)
	}
	return cli.Refusedf("route %s: no shift runs", model)
}

func newRoutePromoteCommand(c *cli.ConnectFlags) *cobra.Command {
	return cli.Action(&cobra.Command{
		Use: "promote MODEL", Short: "End a shift: all requests to the new pool",
		Long:              "End the shift of a model with all its requests on the new pool.",
		Example:           `  pulley route promote chat`,
		Args:              cli.ExactArgs("MODEL"),
		ValidArgsFunction: cli.Complete(c, 1, liveShifts),
	}, c, func(s *cli.Session) error { return stepShift(s, s.Args[0], policy.Route.Promote) })
}

func newRouteAbortCommand(c *cli.ConnectFlags) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "abort MODEL", Short: "End a shift: all requests back to where they were",
		Long:              "End the shift of a model with all its requests where they were before it.",
		Example:           `  pulley route abort chat --reason 'answers in Latin'`,
		Args:              cli.ExactArgs("MODEL"),
		ValidArgsFunction: cli.Complete(c, 1, liveShifts),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the history (default that you did it)")
	return cli.Action(cmd, c, func(s *cli.Session) error {
		why := reason
		if why == "" {
			why = "by " + s.User()
		}
		return stepShift(s, s.Args[0], func(r policy.Route, now time.Time) (policy.Route, string) { return r.AbortShift(why, now) })
	})
}

func shiftText(r policy.Route) string {
	switch s := r.Shift; {
	case s == nil:
		return ""
	case s.State == policy.ShiftRunning:
		return fmt.Sprintf("running to %s, %s", s.To, term.Percent(shareOf(r)))
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
