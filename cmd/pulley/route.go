package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/policy"
)

func newRouteCommand() *cobra.Command {
	return noun("route", "Which pools serve a model: splits, canaries, mirrors, fallbacks", `Which pools serve a model. Without a route it is the pool of the same name. A
route named with a trailing * is for all models that begin so; the longest wins.
A change is in force within a second.`,
		newRouteListCommand, newRouteSetCommand, newRouteRemoveCommand,
		newRouteShiftCommand, newRoutePromoteCommand, newRouteAbortCommand)
}

// routeLine is one line of pulley route ls.
type routeLine struct {
	Model string `json:"model"`
	policy.Route
}

func newRouteListCommand(c *connectFlags) *cobra.Command {
	return look(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the routes",
		Long: "List the routes. A model without one is served by the pool of its name.",
		Example: `  pulley route ls
  pulley route ls -o json`,
	}, c, func(s *session) (view, error) {
		p, err := s.policy()
		if err != nil {
			return view{}, err
		}
		list := []routeLine{}
		for _, model := range slices.Sorted(maps.Keys(p.Routes)) {
			list = append(list, routeLine{model, p.Routes[model]})
		}
		return view{list, func(p *page) {
			t := table{
				columns: []column{text("MODEL"), {name: "TO", cut: 20}, ifAny(text("MIRROR")), ifAny(text("FALLBACK")), wide(number("AFTER")), wide(word("STICKY BY")), wide(word("RESTORES")),
					ifAny(painted(column{name: "SHIFT", cut: 12}, paintState))},
				empty: "no routes: each model is served by the pool of its name",
			}
			for _, r := range list {
				sticky := string(r.StickyBy)
				if sticky == "" {
					sticky = string(policy.StickySession)
				}
				restores := "no"
				if r.RestoreModel {
					restores = "the model"
				}
				t.row(r.Model, targets(r.To), mirrors(r.Mirror), joined(r.Fallback), durationOr(r.FallbackAfter), sticky, restores, shiftInWords(r.Route))
			}
			p.table(t)
		}}, nil
	})
}

// targets is a split in words: each pool with its part.
func targets(to []policy.Target) string {
	sum := 0.0
	for _, t := range to {
		sum += t.Weight
	}
	var parts []string
	for _, t := range to {
		switch {
		case t.Weight == sum:
			parts = append(parts, t.Pool)
		case t.Weight > 0:
			parts = append(parts, fmt.Sprintf("%s %s", t.Pool, percent(100*t.Weight/sum)))
		}
	}
	return strings.Join(parts, ", ")
}

func mirrors(list []policy.Mirror) string {
	var parts []string
	for _, m := range list {
		parts = append(parts, fmt.Sprintf("%s %s", m.Pool, percent(m.Percent)))
	}
	return joined(parts)
}

func newRouteSetCommand(c *connectFlags) *cobra.Command {
	var to, mirror, fallback []string
	var after time.Duration
	var sticky string
	var restore bool
	cmd := &cobra.Command{
		Use: "set MODEL", Short: "Create or change a route",
		Long: `Create or change a route. What no flag names stays as it is; a flag that may be
repeated replaces the list, and '' empties it. Names of pools may be given as
they are: with a = in them, say the weight too.

While a shift runs, --to is refused unless --force is given, which ends it.`,
		Example: `  pulley route set gpt-4o --to llama-70b --restore-model
  pulley route set chat --to llama-70b=90 --to llama-70b-fp8=10
  pulley route set 'gpt-*' --to llama-70b --fallback llama-8b --fallback-after 20s
  pulley route set chat --mirror llama-next=5`,
		Args:              wantArgs("MODEL"),
		ValidArgsFunction: complete(c, 1, liveModels),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVar(&to, "to", nil, "`POOL[=WEIGHT]` that serves it; the parts are in proportion, a weight is 1 unless given (repeatable)")
	fs.StringArrayVar(&mirror, "mirror", nil, "`POOL[=PERCENT]` that gets copies, whose answers are thrown away (repeatable; percent 100 unless given)")
	fs.StringArrayVar(&fallback, "fallback", nil, "`POOL` to go to instead, tried in order (repeatable)")
	fs.DurationVar(&after, "fallback-after", 0, "the wait after which requests go to the fallback; 0 is only when no worker lives")
	fs.StringVar(&sticky, "sticky-by", string(policy.StickySession), "what stays on one side of a split: session, tenant or none")
	fs.BoolVar(&restore, "restore-model", false, "answers name the model that the client asked for")
	for _, flag := range []string{"to", "mirror", "fallback"} {
		cmd.RegisterFlagCompletionFunc(flag, completeFlag(c, livePools))
	}
	cmd.RegisterFlagCompletionFunc("sticky-by", cobra.FixedCompletions([]string{"session", "tenant", "none"}, cobra.ShellCompDirectiveNoFileComp))
	return harm(cmd, c, func(s *session) error {
		model := s.args[0]
		next, err := parseRoute(to, mirror, fallback)
		if err != nil {
			return err
		}
		next.FallbackAfter, next.StickyBy, next.RestoreModel = policy.Duration(after), policy.StickyBy(sticky), restore
		created := false
		v, err := s.change(func(p *policy.Policy) error {
			r, there := p.Routes[model]
			created = !there
			if !there && len(to) == 0 {
				return usagef("--to: there is no route for %s yet, so say where its requests go", model)
			}
			if shift := r.Shift; shift != nil && fs.Changed("to") {
				if shift.State == policy.ShiftRunning && !s.force {
					return refusedf("route %s: a shift to %s runs; end it with 'pulley route abort %[1]s' or 'promote', or say --force", model, shift.To)
				}
				r.Shift = nil
			}
			override(fs.Changed("to"), &r.To, next.To)
			override(fs.Changed("mirror"), &r.Mirror, next.Mirror)
			override(fs.Changed("fallback"), &r.Fallback, next.Fallback)
			override(fs.Changed("fallback-after"), &r.FallbackAfter, next.FallbackAfter)
			override(fs.Changed("sticky-by"), &r.StickyBy, next.StickyBy)
			override(fs.Changed("restore-model"), &r.RestoreModel, next.RestoreModel)
			if p.Routes == nil {
				p.Routes = make(map[string]policy.Route)
			}
			p.Routes[model] = r
			return nil
		})
		if err != nil {
			return err
		}
		s.warnOfPools(poolsOf(v.Policy.Routes[model])...)
		return s.done(v, created, "route", model)
	})
}

// parseRoute reads the flags that name pools.
func parseRoute(to, mirror, fallback []string) (r policy.Route, err error) {
	for _, text := range notEmpty(to) {
		pool, weight, err := parsePart(text, 1)
		if err != nil {
			return r, usagef("--to %q: %w: want POOL or POOL=WEIGHT", text, err)
		}
		r.To = append(r.To, policy.Target{Pool: pool, Weight: weight})
	}
	for _, text := range notEmpty(mirror) {
		pool, share, err := parsePart(text, 100)
		if err != nil {
			return r, usagef("--mirror %q: %w: want POOL or POOL=PERCENT", text, err)
		}
		r.Mirror = append(r.Mirror, policy.Mirror{Pool: pool, Percent: share})
	}
	r.Fallback = notEmpty(fallback)
	return r, nil
}

// notEmpty is a list without empty entries, which empty it on a command line.
func notEmpty(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == "" })
}

// parsePart reads POOL=NUMBER; the number may be left out, or have a percent
// sign.
func parsePart(text string, number float64) (pool string, n float64, err error) {
	at := strings.LastIndexByte(text, '=')
	if at < 0 {
		return text, number, nil
	}
	if at == 0 {
		return "", 0, errors.New("names no pool")
	}
	n, err = parsePercent(text[at+1:])
	return text[:at], n, err
}

// parsePercent reads a number that may have a percent sign.
func parsePercent(text string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "%")), 64)
	if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
		return 0, fmt.Errorf("%q is no number", text)
	}
	return n, nil
}

// poolsOf are the pools that a route names.
func poolsOf(r policy.Route) []string {
	pools := slices.Clone(r.Fallback)
	for _, t := range r.To {
		pools = append(pools, t.Pool)
	}
	for _, m := range r.Mirror {
		pools = append(pools, m.Pool)
	}
	slices.Sort(pools)
	return slices.Compact(pools)
}

// warnOfPools tells which pools nobody has ever served.
func (s *session) warnOfPools(pools ...string) {
	served, err := servedPools(s.ctx(), s.js)
	if err != nil {
		return
	}
	for _, pool := range pools {
		if !slices.Contains(served, pool) {
			s.warn("no worker has ever served pool %s%s", printable(pool), didYouMean(pool, served))
		}
	}
}

func newRouteRemoveCommand(c *connectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm MODEL", Aliases: []string{"remove"}, Short: "Remove a route",
		Long:              `Remove a route: the model's requests then go to the pool of its name.`,
		Example:           `  pulley route rm gpt-4o`,
		Args:              wantArgs("MODEL"),
		ValidArgsFunction: complete(c, 1, liveRoutes),
	}
	return harm(cmd, c, func(s *session) error {
		model := s.args[0]
		if _, err := s.route(model); err != nil {
			return err
		}
		if err := s.confirm("remove route %s, so that its requests go to pool %[1]s", printable(model)); err != nil {
			return err
		}
		v, err := s.change(func(p *policy.Policy) error { delete(p.Routes, model); return nil })
		if err != nil {
			return err
		}
		s.say("route %s removed, policy revision %d", printable(model), v.Revision)
		return nil
	})
}

// route is the one that was named.
func (s *session) route(model string) (policy.Route, error) {
	p, err := s.policy()
	if err != nil {
		return policy.Route{}, err
	}
	r, ok := p.Routes[model]
	if !ok {
		return r, noSuch("route", model, slices.Sorted(maps.Keys(p.Routes)))
	}
	return r, nil
}
