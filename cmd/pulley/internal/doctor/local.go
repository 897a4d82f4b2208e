package doctor

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
)

// localWait is how long this machine's GPUs may take to answer the doctor.
const localWait = 15 * time.Second

// askLocally reads this machine's GPUs.
func (e *examination) askLocally(ctx context.Context, library string) error {
	e.askedLocally = true
	sampler, err := gpu.NewSampler(gpu.Config{Command: fleet.ProbeCommand, Library: library, All: true})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, localWait)
	defer cancel()
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	var sampling sync.WaitGroup
	sampling.Go(func() { sampler.Run(watching) })
	defer sampling.Wait()
	defer stop()
	r, err := fleet.ReadGPUs(ctx, sampler)
	switch {
	case r.Failure != nil:
		e.localFailure = r.Failure
	case err != nil:
		e.localFailure = &gpu.Failure{Kind: gpu.Silent, Detail: fmt.Sprintf("no answer within %v", localWait)}
	}
	e.localGPUs = r
	return nil
}

// checkLocally is what there is to say of this machine's GPUs, if that was asked.
func (e *examination) checkLocally() []fleet.Finding {
	const check = "this machine"
	if !e.askedLocally {
		return nil
	}
	if f := e.localFailure; f != nil {
		d := fleet.Finding{Check: check, Verdict: fleet.Warning, Text: f.Error(), Remedy: f.Remedy()}
		if f.Kind == gpu.NoGPU {
			d.Verdict, d.Remedy = fleet.OK, ""
		}
		return []fleet.Finding{d}
	}
	var found []fleet.Finding
	for _, g := range e.localGPUs.GPUs {
		state, reason := fleet.LocalGPUStatus(g)
		if state == "ok" {
			continue
		}
		d := fleet.Finding{Check: check, Verdict: fleet.Warning, Text: fmt.Sprintf("GPU %s is %s: %s", g.Label(), state, cmp.Or(reason, fleet.ThrottleText(g))), Remedy: ""}
		if state == "sick" {
			d.Verdict, d.Remedy = fleet.Problem, fleet.Unfence(g)
		}
		found = append(found, d)
	}
	if len(found) == 0 {
		text := term.Count(len(e.localGPUs.GPUs), "GPU")
		if v := e.localGPUs.Driver; v != "" {
			text += ", driver " + v
		}
		found = []fleet.Finding{{Check: check, Verdict: fleet.OK, Text: text, Remedy: ""}}
	}
	return found
}
