package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// stuckAfter is for how long a request may wait beside a free slot: a bid is
// answered in milliseconds.
const stuckAfter = 10 * time.Second

func (s *Snapshot) FindPolicy() []Finding {
	if why := s.Unread["policy"]; why != "" {
		return []Finding{{Verdict: Problem, Text: why, Remedy: "pulley doctor says more"}}
	}
	return nil
}

func (s *Snapshot) FindGateways() []Finding {
	if !s.Settled() {
		return nil
	}
	if len(s.Gateways) == 0 {
		return []Finding{{Verdict: Problem, Text: "no gateway: nobody can send requests", Remedy: "start one with 'pulley gateway' or 'pulley up'"}}
	}
	if why := s.Unread["requests"]; why != "" {
		return []Finding{{Verdict: Warning, Text: "gateways do not tell what they do: " + why, Remedy: "see their logs"}}
	}
	return nil
}

func (s *Snapshot) FindWorkers() []Finding {
	if s.Settled() && len(s.Workers) == 0 {
		return []Finding{{Verdict: Problem, Text: "no worker: requests wait, and are refused then", Remedy: "pulley worker --engine URL"}}
	}
	var found []Finding
	for i := range s.Workers {
		w := &s.Workers[i]
		about := "worker " + w.Name
		switch {
		case w.Lost > 0:
			found = append(found, Finding{Verdict: Problem, Text: fmt.Sprintf("%s is lost: silent for %s", about, term.Age(w.Lost)),
				Remedy: fmt.Sprintf("is its process alive on %s, and its connection to NATS?", cmp.Or(w.Host, "its host"))})
		case w.State == subjects.Down:
			found = append(found, Finding{Verdict: Problem, Text: fmt.Sprintf("%s: engine down: %s", about, cmp.Or(w.Reason, "it does not answer")),
				Remedy: fmt.Sprintf("start the engine at %s, or look at its log", w.URL)})
		case w.State == subjects.Fenced && !w.gpuFenced():
			found = append(found, Finding{Verdict: Problem, Text: fmt.Sprintf("%s is fenced: %s", about, cmp.Or(w.Reason, "its engine or a GPU is ill")),
				Remedy: fmt.Sprintf("'pulley worker info %s' says more; if its engine hangs, start that anew", cli.ShellWord(w.Name))})
		case w.State == subjects.Paused:
			found = append(found, Finding{Verdict: Warning, Text: fmt.Sprintf("%s paused: %s", about, cmp.Or(w.Reason, "its engine refuses")),
				Remedy: fmt.Sprintf("if it goes on, give it fewer slots (it has %d), or the engine more room", w.Slots)})
		case w.State == subjects.Cordoned:
			found = append(found, Finding{Verdict: Warning, Text: about + " is cordoned: it takes nothing new", Remedy: "pulley worker uncordon " + cli.ShellWord(w.Name)})
		}
	}
	return found
}

func (s *Snapshot) FindPools() []Finding {
	var found []Finding
	if why := s.Unread["queues"]; why != "" {
		found = append(found, Finding{Verdict: Problem, Text: "queues cannot be read: " + why, Remedy: "pulley doctor says more"})
	}
	live := make(map[string]bool)
	for i := range s.Pools {
		p := &s.Pools[i]
		live[p.Pool] = p.Live > 0
		oldest := Millis(p.OldestMS)
		switch {
		case p.Paused:
			found = append(found, Finding{Verdict: Warning, Text: fmt.Sprintf("pool %s is paused: %s waiting", p.Pool, term.Count(p.Waiting, "request")),
				Remedy: "pulley pool resume " + cli.ShellWord(p.Pool)})
		case p.Live == 0 && p.Waiting > 0 && s.Settled():
			found = append(found, Finding{Verdict: Problem, Text: fmt.Sprintf("pool %s: %s waiting, and no live worker", p.Pool, term.Count(p.Waiting, "request")),
				Remedy: "start a worker for it: pulley worker --engine " + cli.ShellWord("URL,model="+p.Pool)})
		case oldest > stuckAfter && p.Slots-p.Busy > 0 && p.Live > 0:
			found = append(found, Finding{Verdict: Warning, Text: fmt.Sprintf("pool %s: a request waits for %s beside %s", p.Pool, term.Age(oldest), term.Count(p.Slots-p.Busy, "free slot")),
				Remedy: "see the workers' logs: may they bid (publish to $JS.API.CONSUMER.MSG.NEXT.>)?"})
		}
	}
	if s.Policy == nil {
		return found
	}
	for _, name := range slices.Sorted(maps.Keys(s.Policy.Policy.Routes)) {
		r := s.Policy.Policy.Routes[name]
		if slices.ContainsFunc(r.Fallback, func(pool string) bool { return live[pool] }) {
			continue
		}
		for _, t := range r.To {
			if t.Weight > 0 && !live[t.Pool] && s.Settled() {
				found = append(found, Finding{Verdict: Warning, Text: fmt.Sprintf("route %s leads to pool %s, which has no live worker", name, t.Pool),
					Remedy: fmt.Sprintf("start a worker for it, or lead the route elsewhere: pulley route set %s --to POOL", cli.ShellWord(name))})
			}
		}
	}
	return found
}

func (s *Snapshot) FindTiers() []Finding {
	var found []Finding
	for i := range s.Tiers {
		t := &s.Tiers[i]
		if t.Unknown {
			d := Finding{Verdict: Warning, Text: fmt.Sprintf("tier %s has queues and is not in the policy", t.Name), Remedy: "nats stream rm " + subjects.ReqStream(t.Name)}
			if t.Waiting+t.Running > 0 {
				d = Finding{Verdict: Problem, Text: fmt.Sprintf("%s in tier %s, which is not in the policy: no worker takes them", term.Count(t.Waiting+t.Running, "request"), t.Name),
					Remedy: "put it back: pulley tier set " + t.Name}
			}
			found = append(found, d)
			continue
		}
		for _, pool := range slices.Sorted(maps.Keys(t.Pools)) {
			l := t.Pools[pool]
			if t.MaxQueue > 0 && l.Waiting >= t.MaxQueue {
				found = append(found, Finding{Verdict: Warning, Text: fmt.Sprintf("pool %s, tier %s: the queue is full with %s", pool, t.Name, term.Count(l.Waiting, "request")),
					Remedy: fmt.Sprintf("more workers, or a longer queue: pulley tier set %s --max-queue %d", t.Name, min(2*t.MaxQueue, policy.MaxQueueLimit))})
			}
		}
	}
	return found
}
