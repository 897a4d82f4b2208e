package ops

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
)

func newRouteCommand() *cobra.Command {
	return cli.Noun("route", "Which pools serve a model: splits, canaries, mirrors, fallbacks", `Routes say which pools serve a model. A model without a route is served by the
pool of the same name. A route whose name ends in * applies to all models that
begin so; the longest match wins. A change takes effect within a second.

Terms: docs/concepts.md`,
		newRouteListCommand, newRouteInfoCommand, newRouteSetCommand, newRouteRemoveCommand,
		newRouteShiftCommand, newRoutePromoteCommand, newRouteAbortCommand)
}

// routeLine is a line of pulley route ls.
type routeLine struct {
	Model string `json:"model"`
	policy.Route
}

func newRouteListCommand(c *cli.ConnectFlags) *cobra.Command {
	return cli.Listing(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the routes",
		Long: "List the routes. A model without a route is served by the pool of its name.",
		Example: `  pulley route ls
  pulley route ls -o json`,
	}, c, func(s *cli.Session) (cli.View, error) {
		p, err := fleet.LoadPolicy(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		list := []routeLine{}
		for _, model := range slices.Sorted(maps.Keys(p.Routes)) {
			list = append(list, routeLine{model, p.Routes[model]})
		}
		return cli.View{Value: list, Print: func(p *term.Page) {
			t := term.Table{
				Columns: []term.Column{term.Text("MODEL"), {Name: "TO", MinWidth: 20}, term.NonEmpty(term.Text("MIRROR")), term.NonEmpty(term.Text("FALLBACK")), term.Wide(term.Number("FALLBACK AFTER")), term.Wide(term.Fixed("STICKY BY")), term.Wide(term.Fixed("RESTORE MODEL")),
					term.NonEmpty(term.Styled(term.Column{Name: "SHIFT", MinWidth: 12}, fleet.StateStyle))},
				Empty: "no routes: each model is served by the pool of its name",
			}
			for _, r := range list {
				sticky := string(r.StickyBy)
				if sticky == "" {
					sticky = string(policy.StickySession)
				}
				restore := "no"
				if r.RestoreModel {
					restore = "yes"
				}
				t.Row(r.Model, targets(r.To), mirrors(r.Mirror), term.Join(r.Fallback), durationOr(r.FallbackAfter), sticky, restore, shiftText(r.Route))
			}
			p.Table(t)
		}}, nil
	})
}

func newRouteInfoCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "info MODEL...", Short: "Describe routes",
		Long: `Describe the route of a model: the pools that it leads to and whether they have
workers. 'pulley route shift MODEL' shows the progress of a shift, 'pulley model info'
what serves any model, also one that only a pattern matches.`,
		Example: `  pulley route info gpt-4o
  pulley route info 'gpt-*' -o json`,
		ValidArgsFunction: cli.Complete(c, 0, liveRoutes),
	}
	return cli.Describing(cmd, c, func(s *cli.Session, name string) (cli.View, error) {
		pools, p, err := fleet.Pools(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		r, ok := p.Routes[name]
		if !ok {
			return cli.View{}, cli.NoSuch("route", name, slices.Sorted(maps.Keys(p.Routes)))
		}
		return cli.View{Value: routeLine{name, r}, Print: func(p *term.Page) {
			p.Fields(append([]term.Field{term.KV("route", name, term.Bold), term.KV("to", targets(r.To)), term.KV("fallback", strings.Join(r.Fallback, ", "))}, routeFields(r)...)...)
			p.Heading("pools")
			t := term.Table{Columns: []term.Column{term.Text("POOL"), term.Text("USE"), term.Styled(term.Fixed("STATE"), fleet.StateStyle), term.Number("WORKERS"), term.Number("IN FLIGHT"), term.Number("WAITING")}}
			row := func(pool, use string) {
				i := slices.IndexFunc(pools, func(p fleet.Pool) bool { return p.Pool == pool })
				if i < 0 {
					t.Row(pool, use, "no worker", 0, 0, 0)
					return
				}
				t.Row(pool, use, pools[i].State, pools[i].Live, pools[i].InFlight, pools[i].Waiting)
			}
			sum := 0.0
			for _, to := range r.To {
				sum += to.Weight
			}
			for _, to := range r.To {
				row(to.Pool, term.Percent(100*to.Weight/max(sum, 1e-9)))
			}
			for _, m := range r.Mirror {
				row(m.Pool, "mirror "+term.Percent(m.Percent))
			}
			for _, pool := range r.Fallback {
				row(pool, "fallback")
			}
			p.Table(t)
		}}, nil
	})
}

// routeFields describes a route, except for where it leads to.
func routeFields(r policy.Route) []term.Field {
	after := ""
	switch {
	case len(r.Fallback) > 0 && r.FallbackAfter > 0:
		after = durationOr(r.FallbackAfter) + " of waiting, expected or actual"
	case len(r.Fallback) > 0:
		after = "no live worker"
	}
	answers := ""
	if r.RestoreModel {
		answers = "the model's name as the client asked for it"
	}
	sticky := ""
	if len(r.To) > 1 {
		sticky = string(cmp.Or(r.StickyBy, policy.StickySession))
	}
	return []term.Field{
		term.KV("mirror", strings.TrimPrefix(mirrors(r.Mirror), "-")),
		term.KV("fallback after", after),
		term.KV("sticky by", sticky),
		term.KV("answers have", answers),
		term.KV("shift", shiftText(r)),
	}
}

// targets lists the pools of a split, each with its percentage.
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
			parts = append(parts, fmt.Sprintf("%s %s", t.Pool, term.Percent(100*t.Weight/sum)))
		}
	}
	return strings.Join(parts, ", ")
}

// mirrors lists the pools that get copies, each with its percentage.
func mirrors(list []policy.Mirror) string {
	return term.Join(fleet.NamesOf(list, func(m policy.Mirror) string { return m.Pool + " " + term.Percent(m.Percent) }))
}

func newRouteSetCommand(c *cli.ConnectFlags) *cobra.Command {
	var to, mirror, fallback []string
	var after time.Duration
	var sticky string
	var restore bool
	cmd := &cobra.Command{
		Use: "set MODEL", Short: "Create or change a route",
		Long: `Create or change a route. Settings without a flag stay unchanged. A repeatable flag
replaces the whole list; '' empties it. If the name of a pool contains a =, give
the weight too.

While a shift is running, --to is refused. With --force it ends the shift.`,
		Example: `  pulley route set gpt-4o --to llama-70b --restore-model
  pulley route set chat --to llama-70b=90 --to llama-70b-fp8=10
  pulley route set 'gpt-*' --to llama-70b --fallback llama-8b --fallback-after 20s
  pulley route set chat --mirror llama-next=5`,
		ValidArgsFunction: cli.Complete(c, 1, liveModels),
	}
	fs := cmd.Flags()
	fs.StringArrayVar(&to, "to", nil, "`POOL[=WEIGHT]` that serves the model; requests are split in proportion to the weights (default weight 1; repeatable)")
	fs.StringArrayVar(&mirror, "mirror", nil, "`POOL[=PERCENT]` that gets copies of requests; their answers are discarded (default 100 percent; repeatable)")
	fs.StringArrayVar(&fallback, "fallback", nil, "`POOL` to use instead if the others cannot serve the request; pools are tried in order (repeatable)")
	fs.DurationVar(&after, "fallback-after", 0, "waiting time after which requests go to the fallback; 0: only while there is no live worker")
	fs.StringVar(&sticky, "sticky-by", string(policy.StickySession), "what stays with one pool of a split: session, tenant or none")
	fs.BoolVar(&restore, "restore-model", false, "answers contain the model name that the client asked for")
	for _, flag := range []string{"to", "mirror", "fallback"} {
		cmd.RegisterFlagCompletionFunc(flag, cli.CompleteFlag(c, livePools))
	}
	cli.CompleteFixed(cmd, "sticky-by", "session", "tenant", "none")
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		model := s.Args[0]
		next, err := parseRoute(to, mirror, fallback)
		if err != nil {
			return err
		}
		next.FallbackAfter, next.StickyBy, next.RestoreModel = policy.Duration(after), policy.StickyBy(sticky), restore
		created := false
		v, err := changePolicy(s, func(p *policy.Policy) error {
			r, exists := p.Routes[model]
			created = !exists
			if !exists && len(to) == 0 {
				return cli.Usagef("missing flag: --to (route %s does not exist yet)", model)
			}
			if shift := r.Shift; shift != nil && fs.Changed("to") {
				if shift.State == policy.ShiftRunning && !s.Force {
					return cli.Refusedf("route %s: a shift to %s is running; end it with 'pulley route abort %[1]s' or 'pulley route promote %[1]s', or use --force", model, shift.To)
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
		warnUnservedPools(s, poolsOf(v.Policy.Routes[model])...)
		return printChange(s, v, created, "route", model)
	})
}

func parseRoute(to, mirror, fallback []string) (r policy.Route, err error) {
	for _, text := range notEmpty(to) {
		pool, weight, err := parsePart(text, 1)
		if err != nil {
			return r, cli.Usagef("--to %q: %w: must be POOL or POOL=WEIGHT", text, err)
		}
		r.To = append(r.To, policy.Target{Pool: pool, Weight: weight})
	}
	for _, text := range notEmpty(mirror) {
		pool, share, err := parsePart(text, 100)
		if err != nil {
			return r, cli.Usagef("--mirror %q: %w: must be POOL or POOL=PERCENT", text, err)
		}
		r.Mirror = append(r.Mirror, policy.Mirror{Pool: pool, Percent: share})
	}
	r.Fallback = notEmpty(fallback)
	return r, nil
}

func poolsOf(r policy.Route) []string {
	pools := slices.Concat(r.Fallback, fleet.NamesOf(r.To, func(t policy.Target) string { return t.Pool }),
		fleet.NamesOf(r.Mirror, func(m policy.Mirror) string { return m.Pool }))
	slices.Sort(pools)
	return slices.Compact(pools)
}

func warnUnservedPools(s *cli.Session, pools ...string) {
	served, err := fleet.ServedPools(s.Context(), s.NC)
	if err != nil {
		return
	}
	for _, pool := range pools {
		if !slices.Contains(served, pool) {
			s.Warnf("no worker has ever served pool %s%s", term.Printable(pool), cli.DidYouMean(pool, served))
		}
	}
}

func newRouteRemoveCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm MODEL...", Aliases: []string{"remove"}, Short: "Remove routes",
		Long:              `Remove routes. Requests for each model then go to the pool of its name.`,
		Example:           `  pulley route rm gpt-4o`,
		ValidArgsFunction: cli.Complete(c, 0, liveRoutes),
	}
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		p, err := fleet.LoadPolicy(s.Context(), s.NC)
		if err != nil {
			return err
		}
		for _, model := range s.Args {
			if _, ok := p.Routes[model]; !ok {
				return cli.NoSuch("route", model, slices.Sorted(maps.Keys(p.Routes)))
			}
		}
		question := "remove %s, so that requests go to the pools of the models' names"
		if len(s.Args) == 1 {
			question = "remove %s, so that its requests go to pool " + term.Printable(s.Args[0])
		}
		return removeFromPolicy(s, removal{"route", question, "removed"}, func(p *policy.Policy, model string) { delete(p.Routes, model) })
	})
}
