package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// Finding is the result of a check: what was found, and what to do about it.
type Finding struct {
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"`
	Remedy  string  `json:"remedy,omitempty"`
}

// NewProblem is a finding that something does not work.
func NewProblem(text, remedy string) Finding {
	return Finding{Verdict: Problem, Text: text, Remedy: remedy}
}

// NewWarning is a finding that someone should look at something.
func NewWarning(text, remedy string) Finding {
	return Finding{Verdict: Warning, Text: text, Remedy: remedy}
}

// Verdict says how bad a finding is.
type Verdict string

// The verdicts, from the best to the worst.
const (
	OK      Verdict = "ok"
	Notice  Verdict = "notice" // nothing is wrong, but it may not be what someone wants
	Unknown Verdict = "unknown"
	Warning Verdict = "warning"
	Problem Verdict = "problem"
)

// Style returns the colour of a verdict.
func (v Verdict) Style() term.Style {
	switch v {
	case Problem:
		return term.Red
	case Warning, Unknown:
		return term.Yellow
	}
	return term.Green
}

func (v Verdict) rank() int { return slices.Index([]Verdict{OK, Notice, Unknown, Warning, Problem}, v) }

// PrintFindings writes findings, each with its remedy below it.
func PrintFindings(p *term.Page, list []Finding) {
	for _, f := range list {
		prefix := p.Paint(f.Verdict.Style(), fmt.Sprintf("%-7s", f.Verdict)) + "  " + p.Paint(term.Bold, fmt.Sprintf("%-12s", f.Check)) + "  "
		p.Wrapped(prefix, term.Printable(f.Text), term.Unstyled)
		if f.Remedy != "" {
			p.Wrapped(strings.Repeat(" ", ansi.StringWidth(prefix)), "remedy: "+term.Printable(f.Remedy), term.Dim)
		}
	}
}

// findAll returns everything that is wrong with the fleet, the worst first.
func (s *Snapshot) findAll() []Finding {
	var all []Finding
	for _, check := range []struct {
		name string
		find func(*Snapshot) []Finding
	}{
		{"policy", (*Snapshot).FindPolicy}, {"streams", (*Snapshot).FindBrokers}, {"gateways", (*Snapshot).FindGateways}, {"workers", (*Snapshot).FindWorkers},
		{"gpus", (*Snapshot).FindGPUs}, {"headroom", (*Snapshot).FindHeadroom}, {"pools", (*Snapshot).FindPools}, {"tiers", (*Snapshot).FindTiers},
	} {
		for _, f := range check.find(s) {
			f.Check = check.name
			all = append(all, f)
		}
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(b.Verdict.rank(), a.Verdict.rank()) })
	return all
}

// stuckAfter is how long a request may wait while a slot is free before that is a finding: a bid gets its request
// within milliseconds.
const stuckAfter = 10 * time.Second

// FindPolicy reports a policy that cannot be read.
func (s *Snapshot) FindPolicy() []Finding {
	if why := s.Unread["policy"]; why != "" {
		return []Finding{NewProblem(why, "see 'pulley doctor'")}
	}
	return nil
}

// FindBrokers reports the members of the brokers' cluster that the others do not hear.
func (s *Snapshot) FindBrokers() (found []Finding) {
	for _, name := range slices.Sorted(maps.Keys(s.SilentBrokers)) {
		found = append(found, SilentBroker(name, s.SilentBrokers[name]))
	}
	return found
}

// SilentBroker is the finding of a broker that the other members of its cluster have not heard for a time.
func SilentBroker(name string, silent time.Duration) Finding {
	return NewWarning(fmt.Sprintf("broker %s is silent: the others have not heard it for %s", name, term.Age(silent)),
		"start it again, or see its log, its disk and its network; while most brokers run, requests go on")
}

// FindGateways reports that there is no gateway, or that gateways do not answer.
func (s *Snapshot) FindGateways() []Finding {
	if !s.Settled() {
		return nil
	}
	if len(s.Gateways) == 0 {
		return []Finding{NewProblem("no gateway: clients cannot send requests", "start one with 'pulley gateway' or 'pulley up'; if one runs, its log and /readyz say why it is not seen, such as wrong NATS credentials")}
	}
	if len(s.Trouble) > 0 {
		var found []Finding
		for _, id := range slices.Sorted(maps.Keys(s.Trouble)) {
			found = append(found, NewProblem(fmt.Sprintf("gateway %s cannot queue requests: %s", id, s.Trouble[id]),
				"the gateway tries again by itself, and is ready as soon as the broker lets it"))
		}
		return found
	}
	if why := s.Unread["requests"]; why != "" {
		return []Finding{NewWarning("gateways do not list their requests: "+why, "see the logs of the gateways")}
	}
	return nil
}

// FindWorkers reports workers that do not accept requests.
func (s *Snapshot) FindWorkers() []Finding {
	if s.Settled() && len(s.Workers) == 0 {
		return []Finding{NewProblem("no worker: requests wait, and are then refused", "start one with 'pulley worker --engine URL'; if one runs, its log says why it is not seen, such as NATS credentials of another role or id")}
	}
	found := s.findRivals()
	for _, w := range s.Workers {
		name, quoted := "worker "+w.Name, cli.ShellWord(w.Name)
		if n := len(w.Pools); n > subjects.MaxPools {
			found = append(found, NewProblem(fmt.Sprintf("%s announces %d pools: gateways take in %d of one worker, and send it no requests of the others", name, n, subjects.MaxPools),
				"name the models that it should serve with model=, or run several workers for its engine; if it is no worker of yours, revoke its credentials"))
		}
		switch {
		case w.Lost > lostShown:
			found = append(found, NewWarning(fmt.Sprintf("%s was lost %s ago, and is not back", name, term.Age(w.Lost)),
				fmt.Sprintf("start it again on %s; if it is not to come back, this is reported for %s", cmp.Or(w.Host, "its host"), cli.FormatDuration(lostReported))))
		case w.Lost > 0:
			found = append(found, NewProblem(fmt.Sprintf("%s is lost: no heartbeat for %s", name, term.Age(w.Lost)),
				fmt.Sprintf("check its process on %s, and its connection to NATS", cmp.Or(w.Host, "its host"))))
		case w.State == subjects.Down:
			found = append(found, NewProblem(fmt.Sprintf("%s: engine down: %s", name, cmp.Or(w.Reason, "no answer")), downRemedy(w.DownClass, w.URL)))
		case w.State == subjects.Fenced && !w.gpuFenced():
			found = append(found, NewProblem(fmt.Sprintf("%s is fenced: %s", name, cmp.Or(w.Reason, "its engine or a GPU has failed")),
				fmt.Sprintf("see 'pulley worker info %s'; if the engine hangs, restart it", quoted)))
		case w.Failing() != "":
			found = append(found, NewProblem(fmt.Sprintf("%s: requests fail: %s", name, w.Failing()),
				fmt.Sprintf("check the engine at %s and its log; 'pulley events' says when requests succeed again", w.URL)))
		case w.Doubt() != "":
			found = append(found, NewWarning(fmt.Sprintf("%s gets few requests: %s", name, w.Doubt()),
				"if this lasts, the engine may hang: see its log"))
		case w.State == subjects.Busy:
			found = append(found, NewWarning(fmt.Sprintf("%s is busy: %s", name, cmp.Or(w.Reason, "its engine answers late")),
				"its requests continue; if this lasts, the engine may hang: see its log"))
		case w.State == subjects.Paused:
			found = append(found, NewWarning(fmt.Sprintf("%s is paused: %s", name, cmp.Or(w.Reason, "its engine refuses requests")),
				fmt.Sprintf("if this continues, give it fewer slots (it has %d), or the engine more capacity", w.Slots)))
		case w.State == subjects.Cordoned:
			found = append(found, NewWarning(name+" is cordoned: it accepts no new requests", "pulley worker uncordon "+quoted))
		}
	}
	return found
}

// FindPeers reports workers that differ much from the others of their pools.
func (s *Snapshot) FindPeers() []Finding {
	var found []Finding
	for _, w := range s.Workers {
		if notes := w.Notes(); notes != "" && w.Lost == 0 {
			found = append(found, Finding{Verdict: Notice, Text: fmt.Sprintf("worker %s: %s", w.Name, notes),
				Remedy: "none needed: it gets as much as its price is worth; if it should be like the others, compare its machine and its engine's settings with theirs"})
		}
	}
	return found
}

// findRivals reports workers that have the same stable id.
func (s *Snapshot) findRivals() (found []Finding) {
	hosts := make(map[string][]string)
	for _, w := range s.Workers {
		if id := subjects.StableID(w.Worker); id != w.Worker && w.Lost == 0 && w.State != subjects.Draining {
			hosts[id] = append(hosts[id], cmp.Or(w.Host, "an unknown host"))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(hosts)) {
		if n := len(hosts[id]); n > 1 {
			slices.Sort(hosts[id])
			found = append(found, NewWarning(fmt.Sprintf("%d processes run as worker %s: on %s", n, id, strings.Join(hosts[id], ", ")),
				"stop all but one if they serve the same engine; else give each its own --id, name= or host name"))
		}
	}
	return found
}

// downRemedy says what to do about an engine that is down.
func downRemedy(class subjects.DownClass, url string) string {
	switch class {
	case subjects.DownCredentials:
		return "set the key that the engine at " + url + " wants: in the file of key-file= (or password-file=) of its --engine, which is read again by itself, " +
			"or in the variable of key-env= (or password-env=), and restart the worker"
	case subjects.DownCertificate:
		return "name the PEM file with the authority that signed the engine's certificate with tls-ca=, and its URL by a name that the certificate has; " +
			"if the engine wants a certificate, set tls-cert= and tls-key="
	case subjects.DownPage:
		return "correct the URL of its --engine: " + url + " is not where the engine's API is; it ends before /v1, and may have a base path, " +
			"such as http://host:8000/prefix; " + url + "/v1/models must list the models"
	}
	return fmt.Sprintf("start the engine at %s, or see its log", url)
}

// FindPools reports pools whose requests are not served, and routes that lead to such pools.
func (s *Snapshot) FindPools() []Finding {
	var found []Finding
	if why := s.Unread["queues"]; why != "" {
		found = append(found, NewProblem("queues cannot be read: "+why, "see 'pulley doctor'"))
	}
	live := make(map[string]bool)
	for _, p := range s.Pools {
		live[p.Pool] = p.Live > 0
		if n := s.Unclaimed[p.Pool]; n > 1 {
			found = append(found, NewProblem(fmt.Sprintf("pool %s: %d deliveries of the last minute had no claim within 2 seconds: a worker takes requests and keeps silent", p.Pool, n),
				"see the logs of its workers; if all are well, somebody has the credentials of one: with an account for each worker, 'nats server report accounts' shows which account receives"))
		}
		oldest, free, waiting := Millis(p.OldestMS), p.Slots-p.Busy, term.Count(p.Waiting, "request")
		switch {
		case p.Paused:
			found = append(found, NewWarning(fmt.Sprintf("pool %s is paused: %s waiting", p.Pool, waiting), "pulley pool resume "+cli.ShellWord(p.Pool)))
		case p.Live == 0 && p.Waiting > 0 && s.Settled():
			found = append(found, NewProblem(fmt.Sprintf("pool %s: %s waiting, and no live worker", p.Pool, waiting),
				fmt.Sprintf("start a worker for it: pulley worker --engine %s; if no client waits any more: pulley queue prune", cli.ShellWord("URL,model="+p.Pool))))
		case oldest > stuckAfter && free > 0 && p.Live > 0:
			found = append(found, NewWarning(fmt.Sprintf("pool %s: a request has waited for %s although there are %s", p.Pool, term.Age(oldest), term.Count(free, "free slot")),
				"see the logs of the workers; check that they may publish to $JS.API.CONSUMER.MSG.NEXT.>"))
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
				found = append(found, NewWarning(fmt.Sprintf("route %s leads to pool %s, which has no live worker", name, t.Pool),
					fmt.Sprintf("start a worker for it, or change the route: pulley route set %s --to POOL", cli.ShellWord(name))))
			}
		}
	}
	return found
}

// FindTiers reports full queues, and tiers that are not in the policy.
func (s *Snapshot) FindTiers() []Finding {
	var found []Finding
	for _, t := range s.Tiers {
		if n := t.Waiting + t.InFlight; t.Unknown && n > 0 {
			found = append(found, NewProblem(fmt.Sprintf("%s in tier %s, which is not in the policy: no worker serves it", term.Count(n, "request"), t.Name),
				fmt.Sprintf("create the tier: pulley tier set %s; or remove those whose gateway is gone: pulley queue prune", t.Name)))
			continue
		}
		if t.Unknown {
			found = append(found, NewWarning(fmt.Sprintf("tier %s has a stream, but is not in the policy", t.Name), "pulley tier rm "+cli.ShellWord(t.Name)))
			continue
		}
		for _, pool := range slices.Sorted(maps.Keys(t.Pools)) {
			if n := t.Pools[pool].Waiting; t.MaxQueue > 0 && n >= t.MaxQueue {
				found = append(found, NewWarning(fmt.Sprintf("pool %s, tier %s: the queue is full with %s", pool, t.Name, term.Count(n, "request")),
					fmt.Sprintf("add workers, or allow a longer queue: pulley tier set %s --max-queue %d", t.Name, min(2*t.MaxQueue, policy.MaxQueueLimit))))
			}
		}
	}
	return found
}
