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

func (e *examination) findPolicy() []fleet.Finding {
	if errors.Is(e.policyErr, policystore.ErrNoBucket) {
		return []fleet.Finding{{Verdict: fleet.Problem, Text: fmt.Sprintf("bucket %s is not there: gateways and workers keep the policy that they had, or the default", subjects.PolicyBucket),
			Remedy: "start a gateway: it makes the bucket; then 'pulley policy apply -f' what you have exported"}}
	}
	if damage, ok := errors.AsType[policystore.DamagedError](e.policyErr); ok {
		d := fleet.Finding{Verdict: fleet.Problem, Text: damage.Error() + "; gateways and workers keep the one before", Remedy: "write a new one: pulley policy apply -f FILE"}
		for _, v := range e.history {
			if v.Policy != nil {
				d.Remedy = fmt.Sprintf("pulley policy rollback %d", v.Revision)
				break
			}
		}
		return []fleet.Finding{d}
	}
	if e.policyErr != nil {
		return []fleet.Finding{{Verdict: fleet.Problem, Text: e.policyErr.Error(), Remedy: "see permissions and jetstream above; gateways and workers keep the policy that they had"}}
	}
	return e.fleet.FindPolicy()
}

func (e *examination) findKeys() []fleet.Finding {
	if e.keysErr != nil {
		return []fleet.Finding{{Verdict: fleet.Problem, Text: e.keysErr.Error(), Remedy: "remove it and add another: pulley key rm ID; pulley key add --tenant NAME"}}
	}
	var found []fleet.Finding
	for _, id := range slices.Sorted(maps.Keys(e.keys)) {
		k := e.keys[id]
		if !k.Expires.IsZero() && k.Expires.Before(e.fleet.At) {
			found = append(found, fleet.Finding{Verdict: fleet.Warning, Text: fmt.Sprintf("key %s of tenant %s expired %s ago", id, k.Tenant, term.Age(e.fleet.At.Sub(k.Expires))),
				Remedy: fmt.Sprintf("pulley key rm %s, or pulley key rotate %s", id, id)})
		}
		for _, t := range k.Tiers {
			if e.fleet.Policy != nil && !slices.ContainsFunc(e.fleet.Policy.Policy.Tiers, func(known policy.Tier) bool { return known.Name == t }) {
				found = append(found, fleet.Finding{Verdict: fleet.Warning, Text: fmt.Sprintf("key %s of tenant %s allows tier %s, which does not exist", id, k.Tenant, t),
					Remedy: "pulley tier set " + t})
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
	return []fleet.Finding{{Verdict: fleet.Warning, Text: fmt.Sprintf("%s, the last %s ago", term.Count(info.State.Msgs, "request"), term.Age(e.fleet.At.Sub(info.State.LastTime))),
		Remedy: "pulley dead ls says why; pulley dead retry runs them again"}}
}
