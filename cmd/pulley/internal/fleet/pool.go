package fleet

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// ServedPools returns the names of all pools that workers have ever served.
func ServedPools(ctx context.Context, nc *nats.Conn) ([]string, error) {
	_, keys, err := readBucket(ctx, nc, subjects.PoolsBucket)
	if err != nil && !errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, err
	}
	var pools []string
	for _, k := range keys {
		if name, err := subjects.Untoken(k); err == nil {
			pools = append(pools, name)
		}
	}
	slices.Sort(pools)
	return pools, nil
}

// Pool describes a pool. Its JSON is what pulley pool ls -o json prints.
type Pool struct {
	Pool     string          `json:"pool"`
	State    string          `json:"state"` // ready, paused or no worker
	Workers  int             `json:"workers"`
	Live     int             `json:"live"` // workers that accept requests
	Slots    int             `json:"slots"`
	InFlight int             `json:"in_flight"`
	Waiting  uint64          `json:"waiting"`
	Balance  policy.Balance  `json:"balance"`
	Affinity policy.Affinity `json:"affinity"`
	StickFor policy.Duration `json:"stick_for,omitempty"`
	Spill    []policy.Spill  `json:"spill,omitempty"`

	Queues  []Queue              `json:"-"`
	Members []subjects.Heartbeat `json:"-"`
}

// Pools returns all pools by name, and the current policy.
func Pools(ctx context.Context, nc *nats.Conn) ([]Pool, *policy.Policy, error) {
	p, err := LoadPolicy(ctx, nc)
	if err != nil {
		return nil, nil, err
	}
	beats, err := Workers(ctx, nc)
	if err != nil {
		return nil, nil, err
	}
	_, all, err := Queues(ctx, nc, p)
	if err != nil {
		return nil, nil, err
	}
	served, err := ServedPools(ctx, nc)
	if err != nil {
		return nil, nil, err
	}
	at := make(map[string]*Pool)
	get := func(name string) *Pool {
		if at[name] == nil {
			set := p.Pools[name]
			at[name] = &Pool{Pool: name, State: "ready", Balance: p.BalanceOf(name), Affinity: p.AffinityOf(name), StickFor: set.StickFor, Spill: set.Spill}
		}
		return at[name]
	}
	for _, name := range slices.Concat(served, slices.Collect(maps.Keys(p.Pools))) {
		get(name)
	}
	for _, h := range beats {
		for _, served := range h.Pools {
			i := get(served.Pool)
			i.Members = append(i.Members, h)
			if i.Workers++; h.Live() {
				i.Live++
				i.Slots += h.Slots
			}
		}
	}
	for _, q := range all {
		i := get(q.Pool)
		i.Queues = append(i.Queues, q)
		i.InFlight += q.InFlight
		i.Waiting += q.Waiting
	}
	list := make([]Pool, 0, len(at))
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
