package ops

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// described returns a name with a description, as shell completion shows them.
func described(name, format string, args ...any) string {
	return name + "\t" + term.Printable(fmt.Sprintf(format, args...))
}

// inPolicy makes a Lister of one that needs only the policy.
func inPolicy(list func(*policy.Policy) []string) cli.Lister {
	return func(ctx context.Context, nc *nats.Conn) ([]string, error) {
		p, err := fleet.LoadPolicy(ctx, nc)
		if err != nil {
			return nil, err
		}
		return list(p), nil
	}
}

var liveTiers = inPolicy(func(p *policy.Policy) (names []string) {
	for _, t := range p.Tiers {
		names = append(names, described(t.Name, "share %d", t.Share))
	}
	return names
})

var liveRoutes = inPolicy(func(p *policy.Policy) (names []string) {
	for _, model := range slices.Sorted(maps.Keys(p.Routes)) {
		names = append(names, described(model, "to %s", targets(p.Routes[model].To)))
	}
	return names
})

var liveShifts = inPolicy(func(p *policy.Policy) (names []string) {
	for _, model := range slices.Sorted(maps.Keys(p.Routes)) {
		if r := p.Routes[model]; r.Shift != nil && r.Shift.State == policy.ShiftRunning {
			names = append(names, described(model, "%s", shiftText(r)))
		}
	}
	return names
})

// livePools lists the pools that workers have ever served, and those in the policy.
func livePools(ctx context.Context, nc *nats.Conn) ([]string, error) {
	pools, err := fleet.ServedPools(ctx, nc)
	if err != nil {
		return nil, err
	}
	if p, err := fleet.LoadPolicy(ctx, nc); err == nil {
		pools = append(pools, slices.Collect(maps.Keys(p.Pools))...)
	}
	slices.Sort(pools)
	return slices.Compact(pools), nil
}

// liveModels lists the routes and the pools.
func liveModels(ctx context.Context, nc *nats.Conn) ([]string, error) {
	routes, err := liveRoutes(ctx, nc)
	if err != nil {
		return nil, err
	}
	pools, err := livePools(ctx, nc)
	for _, p := range pools {
		if !slices.ContainsFunc(routes, func(r string) bool { return strings.HasPrefix(r, p+"\t") }) {
			routes = append(routes, described(p, "pool"))
		}
	}
	return routes, err
}

func liveWorkers(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	list, err := fleet.Workers(ctx, nc)
	for _, h := range list {
		names = append(names, described(h.Name, "%s, %d of %d slots in use", h.State, h.InFlight, h.Slots))
	}
	return names, err
}

func liveGPUs(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	list, err := fleet.Workers(ctx, nc)
	for _, g := range fleet.GPUs(list) {
		description := g.Status
		if g.GPU != nil {
			description = strings.TrimSpace(fleet.ShortName(g.Device) + ", " + g.Status)
		}
		names = append(names, described(g.Path(), "%s", description))
	}
	return names, err
}

func liveKeys(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	keys, err := fleet.Keys(ctx, nc)
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		names = append(names, described(id, "%s", keys[id].Tenant))
	}
	return names, err
}

func liveTenants(ctx context.Context, nc *nats.Conn) ([]string, error) {
	keys, err := fleet.Keys(ctx, nc)
	var tenants []string
	for _, k := range keys {
		tenants = append(tenants, k.Tenant)
	}
	slices.Sort(tenants)
	return slices.Compact(tenants), err
}

func liveRequests(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	list, err := fleet.Requests(ctx, nc)
	for _, r := range list {
		names = append(names, described(r.ID, "%s %s, %s", r.Pool, r.State, term.Age(fleet.Millis(r.AgeMS))))
	}
	return names, err
}

// liveDeadLetters lists the latest dead letters.
func liveDeadLetters(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	list, _, err := fleet.DeadLetters(ctx, js, subjects.DeadFilter("", ""), 50)
	for _, d := range list {
		names = append(names, described(fmt.Sprint(d.Sequence), "%s: %s", d.Pool, d.Reason))
	}
	return names, err
}

func liveRevisions(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	store, err := fleet.OpenStore(ctx, nc)
	if err != nil {
		return nil, err
	}
	list, err := store.History(ctx)
	for _, v := range list {
		names = append(names, described(fmt.Sprint(v.Revision), "%s by %s: %s", term.Clock(v.At), v.By, v.Why))
	}
	return names, err
}
