package ops

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/policy"
)

const (
	// hardStick is how long --stick hard waits unless told otherwise.
	hardStick = 30 * time.Second

	// spillPenalty is that of --spill POOL: as dear as the home of somebody else.
	spillPenalty = 2
)

func newPoolSetCommand(c *cli.ConnectFlags) *cobra.Command {
	var balance, affinity, stick string
	var stickFor time.Duration
	var spill []string
	cmd := &cobra.Command{
		Use: "set POOL", Short: "Set how a pool's workers share its requests",
		Long: `Set how a pool's workers share its requests. What no flag names stays as it is.

Balance is how a worker prices its bids; the cheapest takes the next request:
  price         by the latency it expects, as it has measured (the default)
  least-loaded  by requests in flight over slots: engines whose times say nothing
  weighted      by requests in flight over weight: when you know better
  round-robin   all alike: whoever has waited longest
  sticky        the same with --affinity session; sticky:weighted sets both

Affinity is what goes back to the worker that has its beginning cached:
  auto          a session that the request names, else the conversation so far
  session       a session that the request names
  off           nothing`,
		Example: `  pulley pool set llama-70b --balance least-loaded
  pulley pool set agents --balance sticky --stick hard=2m
  pulley pool set llama-70b --spill llama-70b-eu=3`,
		Args:              cli.ExactArgs("POOL"),
		ValidArgsFunction: cli.Complete(c, 1, livePools),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&balance, "balance", "", "`method`: price, least-loaded, weighted, round-robin, sticky or sticky:METHOD")
	fs.StringVar(&affinity, "affinity", "", "`kind`: auto, session or off")
	fs.DurationVar(&stickFor, "stick-for", 0, "how long a session waits for its worker before another may take it, for engines that keep a session's state; 0 is not at all")
	fs.StringVar(&stick, "stick", "", "`hard` is --stick-for 30s, hard=2m is --stick-for 2m, off is --stick-for 0")
	fs.StringArrayVar(&spill, "spill", nil, "`POOL[=RUNGS]` whose workers bid on this pool's queues too, so many rungs dearer, 2 unless given (repeatable; '' is none)")
	var methods []string
	for _, b := range policy.Balances {
		methods = append(methods, string(b))
	}
	cmd.RegisterFlagCompletionFunc("balance", cobra.FixedCompletions(append(methods, "sticky"), cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("affinity", cobra.FixedCompletions([]string{"auto", "session", "off"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("stick", cobra.FixedCompletions([]string{"hard", "off"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("spill", cli.CompleteFlag(c, livePools))
	return cli.Action(cmd, c, func(s *cli.Session) error {
		name := s.Args[0]
		if method, _ := strings.CutPrefix(balance, "sticky:"); balance != "" && balance != "sticky" && !slices.Contains(methods, method) {
			return cli.Usagef("--balance %q: want price, least-loaded, weighted, round-robin, sticky or sticky:METHOD", balance)
		}
		if fs.Changed("stick") {
			if fs.Changed("stick-for") {
				return cli.Usagef("--stick, --stick-for: only one of them")
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
			setPool(p, name, pool)
			return nil
		})
		if err != nil {
			return err
		}
		named := []string{name}
		for _, sp := range spills {
			named = append(named, sp.Pool)
		}
		warnUnservedPools(s, named...)
		return printChange(s, v, false, "pool", name)
	})
}

// setPool puts a pool into a policy; one that is as others are is left out.
func setPool(p *policy.Policy, name string, pool policy.Pool) {
	if p.Pools == nil {
		p.Pools = make(map[string]policy.Pool)
	}
	p.Pools[name] = pool
	if pool.Balance == "" && pool.Affinity == "" && pool.StickFor == 0 && !pool.Paused && len(pool.Spill) == 0 {
		delete(p.Pools, name)
	}
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
			return 0, cli.Usagef("--stick %q: want a duration after the =, such as hard=2m", text)
		}
		return d, nil
	}
	return 0, cli.Usagef("--stick %q: want hard, hard=DURATION or off", text)
}

func parseSpill(list []string) (spills []policy.Spill, err error) {
	for _, text := range notEmpty(list) {
		pool, rungs, err := parsePart(text, spillPenalty)
		if err == nil && rungs != float64(int(rungs)) {
			err = errors.New("rungs are whole")
		}
		if err != nil {
			return nil, cli.Usagef("--spill %q: %w: want POOL or POOL=RUNGS", text, err)
		}
		spills = append(spills, policy.Spill{Pool: pool, Penalty: int(rungs)})
	}
	return spills, nil
}
