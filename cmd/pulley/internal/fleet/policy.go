package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
)

// OpenStore opens the bucket of the policy and the keys.
func OpenStore(ctx context.Context, nc *nats.Conn) (*policystore.Store, error) {
	store, err := policystore.Open(ctx, nc)
	if errors.Is(err, policystore.ErrNoBucket) {
		return nil, cli.NotFoundf("%w", err)
	}
	return store, err
}

// LoadPolicy returns the current policy.
func LoadPolicy(ctx context.Context, nc *nats.Conn) (*policy.Policy, error) {
	store, err := OpenStore(ctx, nc)
	if err != nil {
		return nil, err
	}
	v, err := store.Load(ctx)
	return v.Policy, ExplainDamage(err)
}

// Keys returns the API keys by their ids.
func Keys(ctx context.Context, nc *nats.Conn) (map[string]policy.Key, error) {
	store, err := OpenStore(ctx, nc)
	if err != nil {
		return nil, err
	}
	return store.Keys(ctx)
}

// ExplainDamage adds the remedy to an error about a damaged policy.
func ExplainDamage(err error) error {
	if _, ok := errors.AsType[policystore.DamagedError](err); ok {
		return fmt.Errorf("%w; see 'pulley policy history', and restore a valid revision with 'pulley policy rollback REVISION'", err)
	}
	return err
}

// TierOrder returns the position of a tier in the policy. Tiers that are not in the policy come last.
func TierOrder(p *policy.Policy, name string) int {
	if i := slices.IndexFunc(p.Tiers, func(t policy.Tier) bool { return t.Name == name }); i >= 0 {
		return i
	}
	return len(p.Tiers)
}
