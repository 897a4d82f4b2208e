package doctor

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
)

// localTimeout bounds how long doctor waits for the GPUs of this machine.
const localTimeout = 15 * time.Second

// localGPUs is what NVML says about this machine, or why it cannot be read.
type localGPUs struct {
	reading gpu.Reading
	failure *gpu.Failure
}

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
