package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// completeWithin bounds how long a shell waits for names that live.
const completeWithin = time.Second

// lister is how names are learnt from a broker, each with a description after a
// tab if it has one.
type lister func(ctx context.Context, nc *nats.Conn) ([]string, error)

// complete completes the first most arguments with what list knows; all of them
// if most is 0. Where nobody answers it completes nothing, and says nothing.
func complete(c *connectFlags, most int, list lister) cobra.CompletionFunc {
	flag := completeFlag(c, list)
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names, directive := flag(cmd, args, toComplete)
		return slices.DeleteFunc(names, func(n string) bool {
			name, _, _ := strings.Cut(n, "\t")
			return slices.Contains(args, name)
		}), directive
	}
}

// completeFlag is complete for a flag's value.
func completeFlag(c *connectFlags, list lister) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		names, err := c.liveNames(cmd, list)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

func (c *connectFlags) liveNames(cmd *cobra.Command, list lister) ([]string, error) {
	if err := configure(cmd); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), completeWithin)
	defer cancel()
	nc, err := c.dial(ctx, "pulley completion", []nats.Option{nats.Timeout(completeWithin / 2), nats.NoReconnect()})
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	return list(ctx, nc)
}

func described(name, format string, args ...any) string {
	return name + "\t" + printable(fmt.Sprintf(format, args...))
}

func livePolicy(ctx context.Context, nc *nats.Conn) (*policy.Policy, error) {
	store, err := policystore.Open(ctx, nc)
	if err != nil {
		return nil, err
	}
	v, err := store.Load(ctx)
	return v.Policy, err
}

func liveTiers(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	p, err := livePolicy(ctx, nc)
	if err != nil {
		return nil, err
	}
	for _, t := range p.Tiers {
		names = append(names, described(t.Name, "share %d", t.Share))
	}
	return names, nil
}

func liveRoutes(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	p, err := livePolicy(ctx, nc)
	if err != nil {
		return nil, err
	}
	for _, model := range slices.Sorted(maps.Keys(p.Routes)) {
		names = append(names, described(model, "to %s", targets(p.Routes[model].To)))
	}
	return names, nil
}

func liveShifts(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	p, err := livePolicy(ctx, nc)
	if err != nil {
		return nil, err
	}
	for _, model := range slices.Sorted(maps.Keys(p.Routes)) {
		if r := p.Routes[model]; r.Shift != nil && r.Shift.State == policy.ShiftRunning {
			names = append(names, described(model, "%s", shiftInWords(r)))
		}
	}
	return names, nil
}

// livePools are those that workers have ever served, and those that are set.
func livePools(ctx context.Context, nc *nats.Conn) ([]string, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	pools, err := servedPools(ctx, js)
	if err != nil {
		return nil, err
	}
	if p, err := livePolicy(ctx, nc); err == nil {
		pools = append(pools, slices.Collect(maps.Keys(p.Pools))...)
	}
	slices.Sort(pools)
	return slices.Compact(pools), nil
}

// liveModels are the routes and the pools.
func liveModels(ctx context.Context, nc *nats.Conn) ([]string, error) {
	routes, err := liveRoutes(ctx, nc)
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool)
	for _, r := range routes {
		name, _, _ := strings.Cut(r, "\t")
		known[name] = true
	}
	pools, err := livePools(ctx, nc)
	for _, p := range pools {
		if !known[p] {
			routes = append(routes, described(p, "pool"))
		}
	}
	return routes, err
}

func liveWorkers(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	list, err := workers(ctx, nc)
	if err != nil {
		return nil, err
	}
	for _, h := range list {
		names = append(names, described(h.Name, "%s, %d of %d slots", h.State, h.InFlight, h.Slots))
	}
	return names, nil
}

func liveKeys(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	store, err := policystore.Open(ctx, nc)
	if err != nil {
		return nil, err
	}
	keys, err := store.Keys(ctx)
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		names = append(names, described(id, "%s", keys[id].Tenant))
	}
	return names, err
}

func liveTenants(ctx context.Context, nc *nats.Conn) ([]string, error) {
	store, err := policystore.Open(ctx, nc)
	if err != nil {
		return nil, err
	}
	return tenants(ctx, store)
}

func liveRequests(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	list, err := requests(ctx, nc)
	for _, r := range list {
		names = append(names, described(r.ID, "%s %s, %s", r.Pool, r.State, age(ms(r.AgeMS))))
	}
	return names, err
}

// liveDeadLetters are the latest few.
func liveDeadLetters(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	list, _, err := deadLetters(ctx, js, subjects.DeadFilter("", ""), 50)
	for _, d := range list {
		names = append(names, described(fmt.Sprint(d.Sequence), "%s: %s", d.Pool, d.Reason))
	}
	return names, err
}

// liveRevisions are the versions of the policy.
func liveRevisions(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	store, err := policystore.Open(ctx, nc)
	if err != nil {
		return nil, err
	}
	list, err := store.History(ctx)
	for _, v := range list {
		names = append(names, described(fmt.Sprint(v.Revision), "%s by %s: %s", clock(v.At), v.By, v.Why))
	}
	return names, err
}
