package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
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
		return []fleet.Finding{fleet.NewProblem(e.keysErr.Error(), "replace the key: pulley key rm ID; pulley key add --tenant NAME")}
	}
	var found []fleet.Finding
	for _, id := range slices.Sorted(maps.Keys(e.keys)) {
		k := e.keys[id]
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

// findDead reports dead letters.
func (e *examination) findDead() []fleet.Finding {
	info := e.streams[subjects.DeadStream]
	if info == nil || info.State.Msgs == 0 {
		return nil
	}
	return []fleet.Finding{fleet.NewWarning(fmt.Sprintf("%s, the last %s ago", term.Count(info.State.Msgs, "request"), term.Age(e.fleet.At.Sub(info.State.LastTime))),
		"see the reasons with 'pulley dead ls'; 'pulley dead retry' runs them again")}
}

// localTimeout bounds how long doctor waits for the GPUs of this machine.
const localTimeout = 15 * time.Second

// localGPUs is what NVML says about this machine, or why it cannot be read.
type localGPUs struct {
	reading gpu.Reading
	failure *gpu.Failure
}

// readLocalGPUs reads the GPUs of this machine.
func (e *examination) readLocalGPUs(ctx context.Context, library string) error {
	sampler, err := gpu.NewSampler(gpu.Config{Command: fleet.ProbeCommand, Library: library, All: true})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	defer fleet.RunSampler(ctx, sampler)()
	e.local = &localGPUs{}
	e.local.reading, err = fleet.ReadGPUs(ctx, sampler)
	e.local.failure = e.local.reading.Failure
	if err != nil && e.local.failure == nil {
		e.local.failure = &gpu.Failure{Kind: gpu.Silent, Detail: fmt.Sprintf("no answer within %v", localTimeout)}
	}
	return nil
}

// findings returns what there is to report about this machine's GPUs; nothing for nil.
func (l *localGPUs) findings() []fleet.Finding {
	if l == nil {
		return nil
	}
	found := l.problems()
	if found == nil {
		text := term.Count(len(l.reading.GPUs), "GPU")
		if v := l.reading.Driver; v != "" {
			text += ", driver " + v
		}
		found = []fleet.Finding{{Verdict: fleet.OK, Text: text}}
	}
	for i := range found {
		found[i].Check = "this machine"
	}
	return found
}

func (l *localGPUs) problems() (found []fleet.Finding) {
	if l.failure != nil {
		if l.failure.Kind == gpu.NoGPU {
			return []fleet.Finding{{Verdict: fleet.OK, Text: l.failure.Error()}}
		}
		return []fleet.Finding{fleet.NewWarning(l.failure.Error(), l.failure.Remedy())}
	}
	for _, g := range l.reading.GPUs {
		status, reason := fleet.LocalGPUStatus(g)
		text := fmt.Sprintf("GPU %s is %s: %s", g.Label(), status, cmp.Or(reason, fleet.ThrottleText(g)))
		switch status {
		case "ok":
		case "unhealthy":
			found = append(found, fleet.NewProblem(text, fleet.Unfence(g)))
		default:
			found = append(found, fleet.NewWarning(text, ""))
		}
	}
	return found
}
