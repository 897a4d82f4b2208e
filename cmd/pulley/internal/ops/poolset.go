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
	// hardStick is the duration of --stick hard.
	hardStick = 30 * time.Second

	// spillPenalty is the penalty of --spill POOL in rungs. A bid on another worker's home
	// lane has a penalty of 3.
	spillPenalty = 2
)

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
		Args:              cli.ExactArgs("POOL"),
		ValidArgsFunction: cli.Complete(c, 1, livePools),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&balance, "balance", "", "balance `method`: price, least-loaded, weighted, round-robin, sticky or sticky:METHOD")
	fs.StringVar(&affinity, "affinity", "", "`kind` of affinity: auto, session or off")
	fs.DurationVar(&stickFor, "stick-for", 0, "how long a session waits for its worker before another may take it, for engines that keep the state of a session; 0: not at all")
	fs.StringVar(&stick, "stick", "", "shorthand: `hard` is --stick-for 30s, hard=2m is --stick-for 2m, off is --stick-for 0")
	fs.StringArrayVar(&spill, "spill", nil, "`POOL[=RUNGS]` whose workers also bid on this pool's queues, RUNGS rungs higher (default 2; repeatable; '' for none)")
	var methods []string
	for _, b := range policy.Balances {
		methods = append(methods, string(b))
	}
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

// setPool sets a pool in a policy. A pool with default settings is left out.
func setPool(p *policy.Policy, name string, pool policy.Pool) {
	if p.Pools == nil {
		p.Pools = make(map[string]policy.Pool)
	}
	p.Pools[name] = pool
	if pool.Balance == "" && pool.Affinity == "" && pool.StickFor == 0 && !pool.Paused && len(pool.Spill) == 0 {
		delete(p.Pools, name)
	}
}

// parseStick parses --stick.
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

// parseSpill parses --spill.
func parseSpill(list []string) (spills []policy.Spill, err error) {
	for _, text := range notEmpty(list) {
		pool, rungs, err := parsePart(text, spillPenalty)
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
