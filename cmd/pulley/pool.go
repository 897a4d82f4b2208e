package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func newPoolCommand() *cobra.Command {
	return noun("pool", "Pools of workers: list, describe, set the balance, pause", `Pools: the workers that serve one thing, and its queues. A pool is there as soon
as a worker serves it; what is set here may be set before. A change is in force
within a second.`,
		newPoolListCommand, newPoolInfoCommand, newPoolSetCommand, newPoolRemoveCommand, newPoolPauseCommand, newPoolResumeCommand)
}

// poolInfo is what is known of a pool.
type poolInfo struct {
	Pool     string          `json:"pool"`
	State    string          `json:"state"` // ready, paused, no worker
	Workers  int             `json:"workers"`
	Live     int             `json:"live"` // of these, those that take requests
	Slots    int             `json:"slots"`
	InFlight int             `json:"in_flight"`
	Waiting  uint64          `json:"waiting"`
	Balance  policy.Balance  `json:"balance"`
	Affinity policy.Affinity `json:"affinity"`
	StickFor policy.Duration `json:"stick_for,omitempty"`
	Spill    []policy.Spill  `json:"spill,omitempty"`

	queues  []queueLine
	workers []subjects.Heartbeat
}

// pools is all that is known of pools, by name.
func (s *session) pools() ([]poolInfo, *policy.Policy, error) {
	p, err := s.policy()
	if err != nil {
		return nil, nil, err
	}
	beats, err := workers(s.ctx(), s.nc)
	if err != nil {
		return nil, nil, err
	}
	_, all, err := s.queues(p)
	if err != nil {
		return nil, nil, err
	}
	served, err := servedPools(s.ctx(), s.js)
	if err != nil {
		return nil, nil, err
	}
	at := make(map[string]*poolInfo)
	get := func(name string) *poolInfo {
		if at[name] == nil {
			set := p.Pools[name]
			at[name] = &poolInfo{Pool: name, State: "ready", Balance: p.BalanceOf(name), Affinity: p.AffinityOf(name), StickFor: set.StickFor, Spill: set.Spill}
		}
		return at[name]
	}
	for _, name := range slices.Concat(served, slices.Collect(maps.Keys(p.Pools))) {
		get(name)
	}
	for _, h := range beats {
		for _, served := range h.Pools {
			i := get(served.Pool)
			i.workers = append(i.workers, h)
			if i.Workers++; h.Live() {
				i.Live++
				i.Slots += h.Slots
			}
		}
	}
	for _, q := range all {
		i := get(q.Pool)
		i.queues = append(i.queues, q)
		i.InFlight += q.InFlight
		i.Waiting += q.Waiting
	}
	list := make([]poolInfo, 0, len(at))
	for _, name := range slices.Sorted(maps.Keys(at)) {
		i := at[name]
		switch {
		case p.Pools[name].Paused:
			i.State = "paused"
		case i.Live == 0:
			i.State = "no worker"
		}
		list = append(list, *i)
	}
	return list, p, nil
}

func newPoolListCommand(c *connectFlags) *cobra.Command {
	return look(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the pools",
		Long: `List the pools: those that workers serve or have served, and those that are set.
A worker that serves several pools counts in each of them, with all its slots.`,
		Example: `  pulley pool ls
  pulley pool ls -o wide --watch`,
	}, c, func(s *session) (view, error) {
		list, _, err := s.pools()
		if err != nil {
			return view{}, err
		}
		return view{list, func(p *page) {
			t := table{
				columns: []column{text("POOL"), painted(word("STATE"), paintState), number("WORKERS"), number("SLOTS"), number("RUNNING"), number("WAITING"),
					word("BALANCE"), word("AFFINITY"), wide(number("STICKS FOR")), wide(text("SPILLS TO"))},
				empty: "no pools; they appear with the first worker",
			}
			for _, i := range list {
				alive := fmt.Sprint(i.Workers)
				if i.Live < i.Workers {
					alive = fmt.Sprintf("%d/%d", i.Live, i.Workers)
				}
				t.row(i.Pool, i.State, alive, i.Slots, i.InFlight, i.Waiting, i.Balance, i.Affinity, durationOr(i.StickFor), spills(i.Spill))
			}
			p.table(t)
		}}, nil
	})
}

func spills(list []policy.Spill) string {
	var parts []string
	for _, s := range list {
		parts = append(parts, fmt.Sprintf("%s +%d", s.Pool, s.Penalty))
	}
	return joined(parts)
}

func newPoolInfoCommand(c *connectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "info POOL", Short: "Describe a pool", Long: "Describe a pool: its settings, its workers, its queues, and the routes that lead to it.",
		Example:           `  pulley pool info llama-70b`,
		Args:              wantArgs("POOL"),
		ValidArgsFunction: complete(c, 1, livePools),
	}
	return look(cmd, c, func(s *session) (view, error) {
		list, pol, err := s.pools()
		if err != nil {
			return view{}, err
		}
		var names []string
		for _, i := range list {
			names = append(names, i.Pool)
		}
		n := slices.Index(names, s.args[0])
		if n < 0 {
			return view{}, noSuch("pool", s.args[0], names)
		}
		i := list[n]
		routes := routesTo(i.Pool, pol)
		value := struct {
			poolInfo
			Routes  []string             `json:"routes,omitempty"`
			Queues  []queueLine          `json:"queues"`
			Members []subjects.Heartbeat `json:"members"`
		}{i, routes, i.queues, i.workers}
		return view{value, func(p *page) {
			sticks := durationOr(i.StickFor)
			if sticks != "" {
				sticks += ": so long a session waits for its worker"
			}
			p.fields(
				field{"pool", i.Pool, bold},
				field{"state", i.State, paintState(i.State)},
				field{"balance", string(i.Balance), ""},
				field{"affinity", string(i.Affinity), ""},
				field{"sticks for", sticks, ""},
				field{"spills to", strings.TrimPrefix(spills(i.Spill), "-"), ""},
				field{"routes", strings.TrimPrefix(joined(routes), "-"), ""},
			)
			p.heading("workers")
			t := table{columns: []column{text("NAME"), painted(word("STATE"), paintState), number("RUNNING"), number("SLOTS"), number("RUNG"), number("WEIGHT"), number("FIRST TOKEN"), number("PER TOKEN"), ifAny(column{name: "REASON", cut: 12})},
				empty: "none"}
			for _, h := range i.workers {
				st := statusOf(h, i.Pool)
				first, each := curveNow(st, h)
				t.row(h.Name, h.State, h.InFlight, h.Slots, st.Rung, h.Weight, first, each, h.Reason)
			}
			p.table(t)
			p.heading("queues")
			t = table{columns: []column{text("TIER"), number("WAITING"), number("OLDEST"), number("MAX"), number("RUNNING"), number("BIDS")}, empty: "none"}
			for _, q := range i.queues {
				oldest := ""
				if q.OldestMS > 0 {
					oldest = age(ms(q.OldestMS))
				}
				t.row(q.Tier, q.Waiting, oldest, q.MaxQueue, q.InFlight, q.Bids)
			}
			p.table(t)
		}}, nil
	})
}

// routesTo are the routes by which requests may come to a pool.
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

func statusOf(h subjects.Heartbeat, pool string) subjects.PoolStatus {
	for _, p := range h.Pools {
		if p.Pool == pool {
			return p
		}
	}
	return subjects.PoolStatus{}
}

// curveNow is how long a mean request's first token, and each further one, would
// take a worker now.
func curveNow(st subjects.PoolStatus, h subjects.Heartbeat) (first, each string) {
	if st.Curve == nil {
		return "", ""
	}
	if l := st.Curve.Prefill; l != nil {
		first = seconds(l.At(st.Mean.Input) * float64(1+h.Prefills))
	}
	if l := st.Curve.ITL; l != nil {
		each = seconds(l.At(float64(h.InFlight + 1)))
	}
	return first, each
}

// seconds is a short time for people.
func seconds(s float64) string {
	switch {
	case s < 0.01:
		return fmt.Sprintf("%.2g ms", 1000*s)
	case s < 1:
		return fmt.Sprintf("%.0f ms", 1000*s)
	}
	return fmt.Sprintf("%.1f s", s)
}

const (
	// hardStick is how long --stick hard waits unless told otherwise.
	hardStick = 30 * time.Second

	// spillPenalty is that of --spill POOL: as dear as the home of somebody else.
	spillPenalty = 2
)

func newPoolSetCommand(c *connectFlags) *cobra.Command {
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
		Args:              wantArgs("POOL"),
		ValidArgsFunction: complete(c, 1, livePools),
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
	cmd.RegisterFlagCompletionFunc("spill", completeFlag(c, livePools))
	return act(cmd, c, func(s *session) error {
		name := s.args[0]
		if method, _ := strings.CutPrefix(balance, "sticky:"); balance != "" && balance != "sticky" && !slices.Contains(methods, method) {
			return usagef("--balance %q: want price, least-loaded, weighted, round-robin, sticky or sticky:METHOD", balance)
		}
		if fs.Changed("stick") {
			if fs.Changed("stick-for") {
				return usagef("--stick, --stick-for: only one of them")
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
		v, err := s.change(func(p *policy.Policy) error {
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
		s.warnOfPools(named...)
		return s.done(v, false, "pool", name)
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
			return 0, usagef("--stick %q: want a duration after the =, such as hard=2m", text)
		}
		return d, nil
	}
	return 0, usagef("--stick %q: want hard, hard=DURATION or off", text)
}

func parseSpill(list []string) (spills []policy.Spill, err error) {
	for _, text := range notEmpty(list) {
		pool, rungs, err := parsePart(text, spillPenalty)
		if err == nil && rungs != float64(int(rungs)) {
			err = errors.New("rungs are whole")
		}
		if err != nil {
			return nil, usagef("--spill %q: %w: want POOL or POOL=RUNGS", text, err)
		}
		spills = append(spills, policy.Spill{Pool: pool, Penalty: int(rungs)})
	}
	return spills, nil
}

func newPoolRemoveCommand(c *connectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm POOL", Aliases: []string{"reset"}, Short: "Forget what is set for a pool",
		Long: `Forget what is set for a pool: it is as others are again, and not paused. Its
workers and its queues stay.`,
		Example:           `  pulley pool rm llama-70b`,
		Args:              wantArgs("POOL"),
		ValidArgsFunction: complete(c, 1, livePools),
	}
	return harm(cmd, c, func(s *session) error {
		name := s.args[0]
		p, err := s.policy()
		if err != nil {
			return err
		}
		if _, ok := p.Pools[name]; !ok {
			return notFoundf("nothing is set for pool %q%s", name, didYouMean(name, slices.Sorted(maps.Keys(p.Pools))))
		}
		if err := s.confirm("forget what is set for pool %s", printable(name)); err != nil {
			return err
		}
		v, err := s.change(func(p *policy.Policy) error { delete(p.Pools, name); return nil })
		if err != nil {
			return err
		}
		s.say("pool %s is as others are, policy revision %d", printable(name), v.Revision)
		return nil
	})
}

func newPoolPauseCommand(c *connectFlags) *cobra.Command {
	return newPauseCommand(c, true, &cobra.Command{
		Use: "pause POOL", Short: "Hold a pool's requests in their queues",
		Long: `Hold a pool's requests in their queues: its workers take nothing new. What runs
goes on; what waits keeps its deadline, and queues fill up.`,
		Example: `  pulley pool pause llama-70b`,
	})
}

func newPoolResumeCommand(c *connectFlags) *cobra.Command {
	return newPauseCommand(c, false, &cobra.Command{
		Use: "resume POOL", Short: "Let a paused pool go on",
		Long:    "Let a paused pool go on: its workers take requests again.",
		Example: `  pulley pool resume llama-70b`,
	})
}

func newPauseCommand(c *connectFlags, pause bool, cmd *cobra.Command) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = wantArgs("POOL"), complete(c, 1, livePools)
	return act(cmd, c, func(s *session) error {
		name := s.args[0]
		served, err := servedPools(s.ctx(), s.js)
		if err != nil {
			return err
		}
		v, err := s.change(func(p *policy.Policy) error {
			pool, set := p.Pools[name]
			if !set && !slices.Contains(served, name) {
				return noSuch("pool", name, served)
			}
			pool.Paused = pause
			setPool(p, name, pool)
			return nil
		})
		if err != nil {
			return err
		}
		what := "resumed"
		switch {
		case pause && v.same:
			what = "is paused already"
		case pause:
			what = "paused"
		case v.same:
			what = "was not paused"
		}
		s.say("pool %s %s, policy revision %d", printable(name), what, v.Revision)
		return nil
	})
}

// stateOf is a worker's state with its reason.
func stateOf(h subjects.Heartbeat) string {
	if h.Reason == "" {
		return string(h.State)
	}
	return fmt.Sprintf("%s (%s)", h.State, h.Reason)
}
