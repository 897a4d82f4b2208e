package ops

import (
	"errors"
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
	"github.com/pulley-lb/pulley/subjects"
)

func newPoolCommand() *cobra.Command {
	return cli.Noun("pool", "Pools of workers: list, describe, balance, pause", `A pool is a set of interchangeable workers, with a queue for each tier. It exists
as soon as a worker serves it. Settings can be made before that. A change takes
effect within a second.

Terms: docs/concepts.md`,
		newPoolListCommand, newPoolInfoCommand, newPoolSetCommand, newPoolRemoveCommand, newPoolPauseCommand, newPoolResumeCommand)
}

func newPoolListCommand(c *cli.ConnectFlags) *cobra.Command {
	return cli.Listing(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the pools",
		Long: `List the pools that workers serve or have served, and those that have settings. A
worker that serves several pools counts in each of them, with all its slots.`,
		Example: `  pulley pool ls
  pulley pool ls -o wide --watch`,
	}, c, func(s *cli.Session) (cli.View, error) {
		list, _, err := fleet.Pools(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		return cli.View{Value: list, Print: func(p *term.Page) {
			t := term.Table{
				Columns: []term.Column{term.Text("POOL"), term.Styled(term.Fixed("STATE"), fleet.StateStyle), term.Number("WORKERS"), term.Number("SLOTS"), term.Number("IN FLIGHT"), term.Number("WAITING"),
					term.Fixed("BALANCE"), term.Fixed("AFFINITY"), term.Wide(term.Number("STICK FOR")), term.Wide(term.Text("SPILL"))},
				Empty: "no pools; they appear with the first worker",
			}
			for _, i := range list {
				workers := fmt.Sprint(i.Workers)
				if i.Live < i.Workers {
					workers = fmt.Sprintf("%d/%d", i.Live, i.Workers)
				}
				t.Row(i.Pool, i.State, workers, i.Slots, i.InFlight, i.Waiting, i.Balance, i.Affinity, durationOr(i.StickFor), spills(i.Spill))
			}
			p.Table(t)
		}}, nil
	})
}

// spills lists the pools that a pool spills to, each with its penalty in rungs.
func spills(list []policy.Spill) string {
	return term.Join(fleet.NamesOf(list, func(s policy.Spill) string { return fmt.Sprintf("%s +%d", s.Pool, s.Penalty) }))
}

func newPoolInfoCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "info POOL...", Short: "Describe pools", Long: "Describe a pool: its settings, workers and queues, and the routes that lead to it.",
		Example:           `  pulley pool info llama-70b`,
		ValidArgsFunction: cli.Complete(c, 0, livePools),
	}
	return cli.Describing(cmd, c, func(s *cli.Session, name string) (cli.View, error) {
		list, pol, err := fleet.Pools(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		names := fleet.NamesOf(list, func(p fleet.Pool) string { return p.Pool })
		n := slices.Index(names, name)
		if n < 0 {
			return cli.View{}, cli.NoSuch("pool", name, names)
		}
		i := list[n]
		routes := routesTo(i.Pool, pol)
		value := struct {
			fleet.Pool
			Routes  []string             `json:"routes,omitempty"`
			Queues  []fleet.Queue        `json:"queues"`
			Members []subjects.Heartbeat `json:"members"`
		}{i, routes, i.Queues, i.Members}
		return cli.View{Value: value, Print: func(p *term.Page) {
			stick := durationOr(i.StickFor)
			if stick != "" {
				stick += ": a session waits this long for its worker"
			}
			p.Fields(
				term.KV("pool", i.Pool, term.Bold),
				term.KV("state", i.State, fleet.StateStyle(i.State)),
				term.KV("balance", string(i.Balance)),
				term.KV("affinity", string(i.Affinity)),
				term.KV("stick for", stick),
				term.KV("spill", strings.TrimPrefix(spills(i.Spill), "-")),
				term.KV("routes", strings.TrimPrefix(term.Join(routes), "-")),
			)
			p.Heading("workers")
			t := term.Table{Columns: []term.Column{term.Text("NAME"), term.Styled(term.Fixed("STATE"), fleet.StateStyle), term.Number("IN FLIGHT"), term.Number("SLOTS"), term.Number("RUNG"), term.Number("WEIGHT"), term.Number("FIRST TOKEN"), term.Number("PER TOKEN"), term.NonEmpty(term.Column{Name: "REASON", MinWidth: 12})},
				Empty: "none"}
			for _, h := range i.Members {
				st := statusOf(h, i.Pool)
				first, each := curveNow(st, h)
				t.Row(h.Name, h.State, h.InFlight, h.Slots, st.Rung, h.Weight, first, each, h.Reason)
			}
			p.Table(t)
			p.Heading("queues")
			t = term.Table{Columns: []term.Column{term.Text("TIER"), term.Number("WAITING"), term.Number("OLDEST"), term.Number("MAX QUEUE"), term.Number("IN FLIGHT"), term.Number("BIDS")}, Empty: "none"}
			for _, q := range i.Queues {
				t.Row(q.Tier, q.Waiting, q.Oldest(), q.MaxQueue, q.InFlight, q.Bids)
			}
			p.Table(t)
		}}, nil
	})
}

// routesTo returns the routes that lead to a pool.
func routesTo(pool string, p *policy.Policy) (names []string) {
	for _, model := range slices.Sorted(maps.Keys(p.Routes)) {
		r := p.Routes[model]
		to := slices.ContainsFunc(r.To, func(t policy.Target) bool { return t.Pool == pool && t.Weight > 0 })
		mirrored := slices.ContainsFunc(r.Mirror, func(m policy.Mirror) bool { return m.Pool == pool })
		switch {
		case to:
			names = append(names, model)
		case mirrored:
			names = append(names, model+" (mirror)")
		case slices.Contains(r.Fallback, pool):
			names = append(names, model+" (fallback)")
		}
	}
	return names
}

// statusOf returns what a worker reports about a pool.
func statusOf(h subjects.Heartbeat, pool string) subjects.PoolStatus {
	for _, p := range h.Pools {
		if p.Pool == pool {
			return p
		}
	}
	return subjects.PoolStatus{}
}

// curveNow returns how long a worker would take now for the first token of a mean request, and for each further token.
func curveNow(st subjects.PoolStatus, h subjects.Heartbeat) (first, each string) {
	if st.Curve == nil {
		return "", ""
	}
	if l := st.Curve.Prefill; l != nil {
		first = term.Seconds(l.At(st.Mean.Input) * float64(1+h.Prefills))
	}
	if l := st.Curve.ITL; l != nil {
		each = term.Seconds(l.At(float64(h.InFlight + 1)))
	}
	return first, each
}

func newPoolRemoveCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm POOL...", Aliases: []string{"reset"}, Short: "Reset pools to the defaults",
		Long: `Reset the settings of pools to the defaults; a paused pool is resumed. Workers and
queues stay.`,
		Example:           `  pulley pool rm llama-70b`,
		ValidArgsFunction: cli.Complete(c, 0, livePools),
	}
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		p, err := fleet.LoadPolicy(s.Context(), s.NC)
		if err != nil {
			return err
		}
		for _, name := range s.Args {
			if _, ok := p.Pools[name]; !ok {
				return cli.NotFoundf("pool %q has no settings%s", name, cli.DidYouMean(name, slices.Sorted(maps.Keys(p.Pools))))
			}
		}
		return removeFromPolicy(s, removal{"pool", "reset %s to defaults", "reset to defaults"}, func(p *policy.Policy, name string) { delete(p.Pools, name) })
	})
}

func newPoolPauseCommand(c *cli.ConnectFlags) *cobra.Command {
	return toggle{noun: "pool", on: true, done: "paused", state: "paused", edit: setPaused}.verb(c, &cobra.Command{
		Use: "pause POOL...", Short: "Hold the requests of pools in their queues",
		Long: `Hold the requests of a pool in their queues: its workers accept no new ones.
Running requests continue. Waiting requests keep their deadlines, and the queues
fill up.`,
		Example:           `  pulley pool pause llama-70b`,
		ValidArgsFunction: cli.Complete(c, 0, livePools),
	})
}

func newPoolResumeCommand(c *cli.ConnectFlags) *cobra.Command {
	return toggle{noun: "pool", done: "resumed", state: "paused", edit: setPaused}.verb(c, &cobra.Command{
		Use: "resume POOL...", Short: "Resume paused pools",
		Long:              "Resume paused pools: their workers accept requests again.",
		Example:           `  pulley pool resume llama-70b`,
		ValidArgsFunction: cli.Complete(c, 0, livePools),
	})
}

func setPaused(s *cli.Session, paused bool) ([]toggled, policyChange, error) {
	served, err := fleet.ServedPools(s.Context(), s.NC)
	if err != nil {
		return nil, policyChange{}, err
	}
	var list []toggled
	v, err := changePolicy(s, func(p *policy.Policy) error {
		list = nil
		for _, name := range s.Args {
			pool, set := p.Pools[name]
			if !set && !slices.Contains(served, name) {
				return cli.NoSuch("pool", name, served)
			}
			list = append(list, toggled{name, pool.Paused == paused})
			p.EditPool(name, func(pool *policy.Pool) { pool.Paused = paused })
		}
		return nil
	})
	return list, v, err
}

// hardStick is the duration of --stick hard.
const hardStick = 30 * time.Second

func newPoolSetCommand(c *cli.ConnectFlags) *cobra.Command {
	var balance, affinity, stick string
	var stickFor time.Duration
	var spill []string
	cmd := &cobra.Command{
		Use: "set POOL", Short: "Set how a pool's workers share its requests",
		Long: `Set how the workers of a pool share its requests. Settings without a flag stay
unchanged.

The balance method sets the price of a worker's bids. The lowest bid gets the next
request:
  price         the latency that the worker expects, from its measurements (default)
  least-loaded  requests in flight / slots; for engines with meaningless latencies
  weighted      requests in flight / weight; to set the ratio by hand
  round-robin   the same price for all: the worker that has waited longest is next
  sticky        keep the method, set --affinity session; sticky:METHOD sets both

Affinity says which requests go back to the worker that has their prefix cached:
  auto          those of a named session, else those that continue a conversation
  session       those of a named session
  off           none

Terms: docs/concepts.md`,
		Example: `  pulley pool set llama-70b --balance least-loaded
  pulley pool set agents --balance sticky --stick hard=2m
  pulley pool set llama-70b --spill llama-70b-eu=3`,
		ValidArgsFunction: cli.Complete(c, 1, livePools),
	}
	fs := cmd.Flags()
	fs.StringVar(&balance, "balance", "", "balance `method`: price, least-loaded, weighted, round-robin, sticky or sticky:METHOD")
	fs.StringVar(&affinity, "affinity", "", "`kind` of affinity: auto, session or off")
	fs.DurationVar(&stickFor, "stick-for", 0, "how long a session waits for its worker before another may take it, for engines that keep the state of a session; 0: not at all")
	fs.StringVar(&stick, "stick", "", "shorthand: `hard` is --stick-for 30s, hard=2m is --stick-for 2m, off is --stick-for 0")
	fs.StringArrayVar(&spill, "spill", nil, "`POOL[=RUNGS]` whose workers also bid on this pool's queues, RUNGS rungs higher (default 2; repeatable; '' for none)")
	methods := fleet.NamesOf(policy.Balances, func(b policy.Balance) string { return string(b) })
	cli.CompleteFixed(cmd, "balance", append(methods, "sticky")...)
	cli.CompleteFixed(cmd, "affinity", "auto", "session", "off")
	cli.CompleteFixed(cmd, "stick", "hard", "off")
	cmd.RegisterFlagCompletionFunc("spill", cli.CompleteFlag(c, livePools))
	return cli.Action(cmd, c, func(s *cli.Session) error {
		name := s.Args[0]
		if method, _ := strings.CutPrefix(balance, "sticky:"); balance != "" && balance != "sticky" && !slices.Contains(methods, method) {
			return cli.Usagef("--balance %q: must be price, least-loaded, weighted, round-robin, sticky or sticky:METHOD", balance)
		}
		if fs.Changed("stick") {
			if fs.Changed("stick-for") {
				return cli.Usagef("--stick and --stick-for exclude each other")
			}
			var err error
			if stickFor, err = parseStick(stick); err != nil {
				return err
			}
		}
		spills, err := parseSpill(spill)
		if err != nil {
			return err
		}
		v, err := changePolicy(s, func(p *policy.Policy) error {
			pool := p.Pools[name]
			if method, sticky := strings.CutPrefix(balance, "sticky"); sticky {
				method = strings.TrimPrefix(method, ":")
				override(method != "", &pool.Balance, policy.Balance(method))
				pool.Affinity = policy.AffinitySession
			} else {
				override(fs.Changed("balance"), &pool.Balance, policy.Balance(balance))
			}
			override(fs.Changed("affinity"), &pool.Affinity, policy.Affinity(affinity))
			override(fs.Changed("stick") || fs.Changed("stick-for"), &pool.StickFor, policy.Duration(stickFor))
			override(fs.Changed("spill"), &pool.Spill, spills)
			p.EditPool(name, func(was *policy.Pool) { *was = pool })
			return nil
		})
		if err != nil {
			return err
		}
		warnUnservedPools(s, append(fleet.NamesOf(spills, func(sp policy.Spill) string { return sp.Pool }), name)...)
		return printChange(s, v, false, "pool", name)
	})
}

func parseStick(text string) (time.Duration, error) {
	kind, bound, given := strings.Cut(text, "=")
	switch {
	case kind == "off" && !given:
		return 0, nil
	case kind == "hard" && !given:
		return hardStick, nil
	case kind == "hard":
		d, err := time.ParseDuration(bound)
		if err != nil || d <= 0 {
			return 0, cli.Usagef("--stick %q: must be a duration after the =, such as hard=2m", text)
		}
		return d, nil
	}
	return 0, cli.Usagef("--stick %q: must be hard, hard=DURATION or off", text)
}

func parseSpill(list []string) (spills []policy.Spill, err error) {
	for _, text := range notEmpty(list) {
		pool, rungs, err := parsePart(text, policy.SpillPenalty)
		if err == nil && rungs != float64(int(rungs)) {
			err = errors.New("the number of rungs must be whole")
		}
		if err != nil {
			return nil, cli.Usagef("--spill %q: %w: must be POOL or POOL=RUNGS", text, err)
		}
		spills = append(spills, policy.Spill{Pool: pool, Penalty: int(rungs)})
	}
	return spills, nil
}
