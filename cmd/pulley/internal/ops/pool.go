package ops

import (
	"fmt"
	"maps"
	"slices"
	"strings"

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
	var parts []string
	for _, s := range list {
		parts = append(parts, fmt.Sprintf("%s +%d", s.Pool, s.Penalty))
	}
	return term.Join(parts)
}

func newPoolInfoCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "info POOL", Short: "Describe a pool", Long: "Describe a pool: its settings, workers and queues, and the routes that lead to it.",
		Example:           `  pulley pool info llama-70b`,
		Args:              cli.ExactArgs("POOL"),
		ValidArgsFunction: cli.Complete(c, 1, livePools),
	}
	return cli.Listing(cmd, c, func(s *cli.Session) (cli.View, error) {
		list, pol, err := fleet.Pools(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		var names []string
		for _, i := range list {
			names = append(names, i.Pool)
		}
		n := slices.Index(names, s.Args[0])
		if n < 0 {
			return cli.View{}, cli.NoSuch("pool", s.Args[0], names)
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
				oldest := ""
				if q.OldestMS > 0 {
					oldest = term.Age(fleet.Millis(q.OldestMS))
				}
				t.Row(q.Tier, q.Waiting, oldest, q.MaxQueue, q.InFlight, q.Bids)
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

// curveNow returns how long a worker would take now for the first token of a mean
// request, and for each further token.
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
		Use: "rm POOL", Aliases: []string{"reset"}, Short: "Reset a pool to the defaults",
		Long: `Reset the settings of a pool to the defaults; a paused pool is resumed. Its workers
and queues stay.`,
		Example:           `  pulley pool rm llama-70b`,
		Args:              cli.ExactArgs("POOL"),
		ValidArgsFunction: cli.Complete(c, 1, livePools),
	}
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		name := s.Args[0]
		p, err := fleet.LoadPolicy(s.Context(), s.NC)
		if err != nil {
			return err
		}
		if _, ok := p.Pools[name]; !ok {
			return cli.NotFoundf("pool %q has no settings%s", name, cli.DidYouMean(name, slices.Sorted(maps.Keys(p.Pools))))
		}
		if err := s.Confirm("reset pool %s to defaults", term.Printable(name)); err != nil {
			return err
		}
		v, err := changePolicy(s, func(p *policy.Policy) error { delete(p.Pools, name); return nil })
		if err != nil {
			return err
		}
		s.Printf("pool %s reset to defaults, policy revision %d", term.Printable(name), v.Revision)
		return nil
	})
}

func newPoolPauseCommand(c *cli.ConnectFlags) *cobra.Command {
	return toggle{noun: "pool", on: true, done: "paused", state: "paused", edit: setPaused}.verb(c, &cobra.Command{
		Use: "pause POOL", Short: "Hold a pool's requests in their queues",
		Long: `Hold the requests of a pool in their queues: its workers accept no new ones.
Running requests continue. Waiting requests keep their deadlines, and the queues
fill up.`,
		Example:           `  pulley pool pause llama-70b`,
		ValidArgsFunction: cli.Complete(c, 1, livePools),
	})
}

func newPoolResumeCommand(c *cli.ConnectFlags) *cobra.Command {
	return toggle{noun: "pool", done: "resumed", state: "paused", edit: setPaused}.verb(c, &cobra.Command{
		Use: "resume POOL", Short: "Resume a paused pool",
		Long:              "Resume a paused pool: its workers accept requests again.",
		Example:           `  pulley pool resume llama-70b`,
		ValidArgsFunction: cli.Complete(c, 1, livePools),
	})
}

// setPaused pauses a pool, or resumes it.
func setPaused(s *cli.Session, name string, paused bool) (string, policyChange, error) {
	served, err := fleet.ServedPools(s.Context(), s.NC)
	if err != nil {
		return name, policyChange{}, err
	}
	v, err := changePolicy(s, func(p *policy.Policy) error {
		pool, set := p.Pools[name]
		if !set && !slices.Contains(served, name) {
			return cli.NoSuch("pool", name, served)
		}
		pool.Paused = paused
		setPool(p, name, pool)
		return nil
	})
	return name, v, err
}
