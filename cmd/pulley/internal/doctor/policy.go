package doctor

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// findPolicy reports a policy that is missing or damaged.
func (e *examination) findPolicy() []fleet.Finding {
	if errors.Is(e.policyErr, policystore.ErrNoBucket) {
		return []fleet.Finding{fleet.NewProblem(fmt.Sprintf("bucket %s does not exist: gateways and workers keep their last policy, or use the default", subjects.PolicyBucket),
			"start a gateway: it creates the bucket; then restore an exported policy with 'pulley policy apply -f FILE'")}
	}
	if damage, ok := errors.AsType[policystore.DamagedError](e.policyErr); ok {
		f := fleet.NewProblem(damage.Error()+"; gateways and workers keep the last valid revision", "write a new policy: pulley policy apply -f FILE")
		for _, v := range e.history {
			if v.Policy != nil {
				f.Remedy = fmt.Sprintf("pulley policy rollback %d", v.Revision)
				break
			}
		}
		return []fleet.Finding{f}
	}
	if e.policyErr != nil {
		return []fleet.Finding{fleet.NewProblem(e.policyErr.Error(), "see permissions and jetstream above; gateways and workers keep the last valid revision")}
	}
	return e.fleet.FindPolicy()
}

// findKeys reports keys that are damaged, expired, or name tiers that do not exist.
func (e *examination) findKeys() []fleet.Finding {
	if e.keysErr != nil {
		return []fleet.Finding{fleet.NewProblem(e.keysErr.Error(), "see permissions and jetstream above; gateways keep the keys that they have read")}
	}
	var found []fleet.Finding
	for _, id := range slices.Sorted(maps.Keys(e.keys)) {
		k := e.keys[id]
		if k.Damage != "" {
			found = append(found, fleet.NewProblem(fmt.Sprintf("key %s is damaged, and no client can use it: %s", id, k.Damage),
				fmt.Sprintf("pulley key rm %s; pulley key add --tenant NAME", id)))
			continue
		}
		if !k.Expires.IsZero() && k.Expires.Before(e.fleet.At) {
			found = append(found, fleet.NewWarning(fmt.Sprintf("key %s of tenant %s expired %s ago", id, k.Tenant, term.Age(e.fleet.At.Sub(k.Expires))),
				fmt.Sprintf("pulley key rm %[1]s, or pulley key set %[1]s --expires 720h", id)))
		}
		for _, t := range k.Tiers {
			if e.fleet.Policy != nil && !slices.ContainsFunc(e.fleet.Policy.Policy.Tiers, func(known policy.Tier) bool { return known.Name == t }) {
				found = append(found, fleet.NewWarning(fmt.Sprintf("key %s of tenant %s allows tier %s, which does not exist", id, k.Tenant, t), "pulley tier set "+t))
			}
		}
	}
	return found
}

func (e *examination) findDead() []fleet.Finding {
	info := e.streams[subjects.DeadStream]
	if info == nil || info.State.Msgs == 0 {
		return nil
	}
	return []fleet.Finding{fleet.NewWarning(fmt.Sprintf("%s, the last %s ago", term.Count(info.State.Msgs, "request"), term.Age(e.fleet.At.Sub(info.State.LastTime))),
		"see the reasons with 'pulley dead ls'; 'pulley dead retry' runs them again")}
}
