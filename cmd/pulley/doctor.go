package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// leastPayload lets a request's headers, and frames of a useful size, through.
	leastPayload = 64 << 10

	// nearlyFull is the part of an account's storage that is worth a warning.
	nearlyFull = 0.9

	// stuckAfter is for how long a request may wait beside a free slot: a bid is
	// answered in milliseconds.
	stuckAfter = 10 * time.Second
)

// leastServer is the first nats-server with prioritized pull consumers.
var leastServer = []int{2, 12}

// verdict says how bad something is.
type verdict string

const (
	fine    verdict = "ok"
	unknown verdict = "unknown"
	warning verdict = "warning"
	problem verdict = "problem"
)

// diagnosis is one thing that was found.
type diagnosis struct {
	Check   string  `json:"check"`
	Verdict verdict `json:"verdict"`
	Text    string  `json:"text"`
	Remedy  string  `json:"remedy,omitempty"`
}

// check is one of the doctor's questions: it finds what is wrong, and has a
// line for when nothing is. An empty line says that nobody knows.
type check struct {
	name string
	find func(*examination) []diagnosis
	fine func(*examination) string
}

// checks are all there are, in the order in which they are asked and shown:
// each can rely on what those before it have found to be well.
var checks = []check{
	{"nats", (*examination).findConnection, func(e *examination) string {
		return fmt.Sprintf("%s, version %s, max_payload %s", e.server, e.version, byteCount(e.maxPayload))
	}},
	{"permissions", (*examination).findDenied, func(*examination) string { return "nothing that was tried was denied" }},
	{"jetstream", (*examination).findJetStream, func(e *examination) string {
		return fmt.Sprintf("on; streams take %s of memory and %s of disk", byteCount(int64(e.account.Memory)), byteCount(int64(e.account.Store)))
	}},
	{"streams", (*examination).findStreams, func(e *examination) string {
		return count(len(e.expected.streams), "stream") + " and " + count(len(e.expected.buckets), "bucket") + " as they should be"
	}},
	{"policy", (*examination).findPolicy, func(e *examination) string { return e.fleet.Revision.text(e.fleet.At) }},
	{"gateways", ofFleet((*snapshot).findGateways), func(e *examination) string { return count(len(e.fleet.Gateways), "gateway") + " live" }},
	{"workers", ofFleet((*snapshot).findWorkers), func(e *examination) string {
		t := e.fleet.Totals
		return fmt.Sprintf("%s with %s, %d in flight", count(t.Live, "worker"), count(t.Slots, "slot"), t.InFlight)
	}},
	{"gpus", ofFleet((*snapshot).findGPUs), func(e *examination) string { return e.fleet.fineGPUs() }},
	{"headroom", ofFleet((*snapshot).findRoom), func(e *examination) string { return e.fleet.fineRoom() }},
	{"pools", ofFleet((*snapshot).findPools), func(e *examination) string {
		return fmt.Sprintf("%s, %s waiting", count(len(e.fleet.Pools), "pool"), count(e.fleet.Totals.Waiting, "request"))
	}},
	{"tiers", ofFleet((*snapshot).findTiers), func(e *examination) string {
		var names []string
		for _, t := range e.fleet.Tiers {
			names = append(names, t.Name)
		}
		return strings.Join(names, ", ")
	}},
	{"keys", (*examination).findKeys, func(e *examination) string {
		if e.policyErr != nil && e.keys == nil {
			return ""
		}
		if len(e.keys) == 0 {
			return "none: a gateway on loopback serves everybody, another nobody unless told --auth off; 'pulley key add --tenant NAME' makes one"
		}
		return count(len(e.keys), "key")
	}},
	{"dead letters", (*examination).findDead, func(e *examination) string {
		if e.streams[subjects.DeadStream] == nil {
			return ""
		}
		return "none"
	}},
}

// ofFleet is a question that a snapshot alone answers.
func ofFleet(find func(*snapshot) []diagnosis) func(*examination) []diagnosis {
	return func(e *examination) []diagnosis { return find(&e.fleet) }
}

// examination is everything that the checks look at.
type examination struct {
	unreachable error // no connection; nothing else is known then
	server      string
	version     string
	maxPayload  int64
	denied      []string // what NATS did not allow

	account    *jetstream.AccountInfo
	accountErr error
	streams    map[string]*jetstream.StreamInfo // ours, and all that take our subjects
	streamsErr error
	expected   blueprint
	history    []policystore.Version
	policyErr  error
	keys       map[string]policy.Key
	keysErr    error
	fleet      snapshot

	askedLocally bool // this machine's NVML was asked
	localGPUs    gpu.Reading
	localFailure *gpu.Failure
}

func newDoctorCommand() *cobra.Command {
	var output, library string
	var local bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong and what to do",
		Long: `Examine a Pulley from its broker: the connection, JetStream, streams and buckets,
the policy, gateways, workers with their engines and GPUs, pools, tiers, keys and
dead letters. Each is ok, or has warnings and problems with a remedy. It changes
nothing, and takes a few seconds. With --local it asks NVML on this machine too,
whether or not a worker runs here.

The exit code is 1 where there is a problem, 0 where there are none but warnings.`,
		Example: `  pulley doctor
  pulley doctor --server nats://broker-1:4222
  pulley doctor --local
  pulley doctor -o json | jq '.found[] | select(.verdict == "problem")'`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVarP(&output, "output", "o", "table", "how to print: table, json or yaml")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	fs.BoolVar(&local, "local", false, "ask NVML on this machine too")
	fs.SetAnnotation("local", typedOnly, []string{})
	addLibraryFlag(fs, &library)
	c := addConnectFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains([]string{"table", "json", "yaml"}, output) {
			return usagef("--output %q: want table, json or yaml", output)
		}
		e, err := examine(cmd.Context(), c)
		if err != nil {
			return err
		}
		if local {
			if err := e.askLocally(cmd.Context(), library); err != nil {
				return err
			}
		}
		found := e.findings()
		out := cmd.OutOrStdout()
		b, err := findingsView(found).render(output, terminalOf(out))
		if err != nil {
			return err
		}
		if _, err := out.Write(b); err != nil {
			return err
		}
		if n := problems(found); n > 0 {
			return errors.New(count(n, "problem"))
		}
		return nil
	}
	return cmd
}

// examine looks at everything. Its error says that it could not begin.
func examine(ctx context.Context, c *connectFlags) (*examination, error) {
	e := &examination{}
	var denied deniedList
	quiet := context.WithValue(ctx, loggerKey{}, nil) // the findings say it all
	nc, err := c.connect(quiet, "pulley doctor", nats.ErrorHandler(denied.note))
	if _, ok := errors.AsType[usageError](err); ok || ctx.Err() != nil {
		return nil, err
	}
	if err != nil {
		e.unreachable = err
		return e, nil
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	e.server, e.version, e.maxPayload = nc.ConnectedUrlRedacted(), nc.ConnectedServerVersion(), nc.MaxPayload()

	var parts sync.WaitGroup
	var fleetErr error
	for _, part := range []func(context.Context){
		func(ctx context.Context) { e.account, e.accountErr = js.AccountInfo(ctx) },
		func(ctx context.Context) { e.streams, e.streamsErr = readStreams(ctx, js) },
		func(ctx context.Context) { e.readPolicy(ctx, nc) },
	} {
		parts.Go(func() {
			within, cancel := context.WithTimeout(ctx, lookTimeout)
			defer cancel()
			part(within)
		})
	}
	parts.Go(func() { e.fleet, fleetErr = lookOnce(ctx, nc) })
	parts.Wait()
	if fleetErr != nil {
		return nil, fleetErr
	}
	if e.expected, err = draw(e.fleet.Policy); err != nil {
		return nil, err
	}
	e.denied = denied.sorted()
	return e, nil
}

// findings asks all checks.
func (e *examination) findings() []diagnosis {
	all := e.checkLocally()
	for _, c := range checks {
		found := c.find(e)
		if len(found) == 0 {
			found = []diagnosis{{Verdict: fine, Text: c.fine(e)}}
			if found[0].Text == "" {
				found[0] = diagnosis{Verdict: unknown, Text: "could not be read: see above"}
			}
		}
		for _, d := range found {
			d.Check = c.name
			all = append(all, d)
		}
		if e.unreachable != nil {
			break
		}
	}
	return all
}

func problems(found []diagnosis) (n int) {
	for _, d := range found {
		if d.Verdict == problem {
			n++
		}
	}
	return n
}

// findingsView shows findings, each with its remedy below it.
func findingsView(found []diagnosis) view {
	return view{
		value: struct {
			OK    bool        `json:"ok"`
			Found []diagnosis `json:"found"`
		}{problems(found) == 0, found},
		print: func(p *page) {
			for _, d := range found {
				begin := p.paint(d.Verdict.style(), fmt.Sprintf("%-7s", d.Verdict)) + "  " + p.paint(bold, fmt.Sprintf("%-12s", d.Check)) + "  "
				p.wrapped(begin, printable(d.Text), unstyled)
				if d.Remedy != "" {
					p.wrapped(strings.Repeat(" ", ansi.StringWidth(begin)), "remedy: "+printable(d.Remedy), dim)
				}
			}
		},
	}
}

// wrapped writes text after begin, on as many lines as it takes.
func (p *page) wrapped(begin, text string, s style) {
	indent := ansi.StringWidth(begin)
	if p.width > 0 {
		text = ansi.Wrap(text, max(p.width-indent, 20), "")
	}
	for line := range strings.SplitSeq(text, "\n") {
		p.write(begin + p.paint(s, line))
		begin = strings.Repeat(" ", indent)
	}
}

func (v verdict) style() style {
	switch v {
	case problem:
		return red
	case warning, unknown:
		return yellow
	}
	return green
}

// --- What is asked of the broker

func (e *examination) findConnection() []diagnosis {
	if e.unreachable != nil {
		return []diagnosis{{Verdict: problem, Text: e.unreachable.Error(), Remedy: "name the right server and credentials: --nats, --context, --creds"}}
	}
	var found []diagnosis
	if !atLeast(e.version, leastServer) {
		found = append(found, diagnosis{Verdict: problem, Text: fmt.Sprintf("%s has version %s: bids need prioritized pull consumers", e.server, e.version),
			Remedy: "upgrade nats-server to 2.12 or later"})
	}
	if e.maxPayload < leastPayload {
		found = append(found, diagnosis{Verdict: problem, Text: fmt.Sprintf("max_payload is %s: requests and answers do not fit", byteCount(e.maxPayload)),
			Remedy: "set max_payload in the server's configuration to 1MB, its default"})
	}
	return found
}

// atLeast compares versions such as 2.12.3-RC.1.
func atLeast(version string, least []int) bool {
	var major, minor int
	if _, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor); err != nil {
		return true // not said, or a build of one's own
	}
	return slices.Compare([]int{major, minor}, least) >= 0
}

func (e *examination) findDenied() []diagnosis {
	if len(e.denied) == 0 {
		return nil
	}
	return []diagnosis{{Verdict: problem, Text: "NATS does not let this user " + strings.Join(e.denied, ", "),
		Remedy: "connect as an operator (--creds, --context), or allow it in the account's permissions; what follows is incomplete"}}
}

func (e *examination) findJetStream() []diagnosis {
	switch {
	case errors.Is(e.accountErr, jetstream.ErrJetStreamNotEnabled), errors.Is(e.accountErr, nats.ErrNoResponders):
		return []diagnosis{{Verdict: problem, Text: "JetStream is off: there is nowhere to queue", Remedy: "start nats-server with -js, or use 'pulley broker'"}}
	case errors.Is(e.accountErr, jetstream.ErrJetStreamNotEnabledForAccount):
		return []diagnosis{{Verdict: problem, Text: "JetStream is off for this account", Remedy: "enable it in the account's configuration, or connect to another account"}}
	case e.accountErr != nil && len(e.denied) > 0:
		return []diagnosis{{Verdict: unknown, Text: "could not be asked: see permissions"}}
	case e.accountErr != nil:
		return []diagnosis{{Verdict: problem, Text: fmt.Sprintf("JetStream does not answer: %v", e.accountErr),
			Remedy: "is a majority of the cluster's servers up? See the log of " + e.server}}
	}
	var found []diagnosis
	for _, s := range []struct {
		name string
		used uint64
		most int64
	}{{"memory", e.account.Memory, e.account.Limits.MaxMemory}, {"disk", e.account.Store, e.account.Limits.MaxStore}} {
		if s.most > 0 && float64(s.used) >= nearlyFull*float64(s.most) {
			found = append(found, diagnosis{Verdict: warning, Text: fmt.Sprintf("streams take %s of the account's %s of %s", byteCount(int64(s.used)), byteCount(s.most), s.name),
				Remedy: "raise the account's limit; new requests are refused when it is reached"})
		}
	}
	return found
}

func (e *examination) findStreams() []diagnosis {
	if e.streamsErr != nil {
		return []diagnosis{{Verdict: problem, Text: fmt.Sprintf("streams cannot be read: %v", e.streamsErr), Remedy: "see permissions and jetstream above"}}
	}
	var found, missing []diagnosis
	ours := make(map[string]bool)
	var names []string
	for _, want := range e.expected.all() {
		ours[want.Name] = true
		info := e.streams[want.Name]
		if info == nil {
			names = append(names, want.Name)
			continue
		}
		if unlike := differences(info.Config, want); len(unlike) > 0 {
			found = append(found, diagnosis{Verdict: problem, Text: fmt.Sprintf("stream %s: %s", want.Name, strings.Join(unlike, "; ")),
				Remedy: "gateways leave what exists as it is: set it right with 'nats stream edit', or remove the stream while nothing waits in it, and a gateway makes it anew"})
		}
		found = append(found, sickReplicas(info)...)
	}
	if len(names) > 0 {
		missing = append(missing, diagnosis{Verdict: problem, Text: strings.Join(names, ", ") + ": not there",
			Remedy: "start a gateway: it makes them within seconds, or logs why it cannot"})
	}
	for _, name := range sortedNames(e.streams) {
		if strings.HasPrefix(name, reqStreamPrefix) || ours[name] {
			continue // streams of tiers that are not in the policy are seen to under tiers
		}
		found = append(found, diagnosis{Verdict: problem, Text: fmt.Sprintf("stream %s takes subjects of Pulley's: %s", name, strings.Join(e.streams[name].Config.Subjects, ", ")),
			Remedy: "take pulley.> out of its subjects: it keeps ours from being made, and answers in the gateways' place"})
	}
	return append(missing, found...)
}

// differences are what a stream should not have been set to, in words.
func differences(got, want jetstream.StreamConfig) []string {
	var list []string
	differ := func(what string, got, want any) {
		if got != want {
			list = append(list, fmt.Sprintf("%s is %v, not %v", what, got, want))
		}
	}
	differ("subjects", strings.Join(got.Subjects, " "), strings.Join(want.Subjects, " "))
	differ("retention", got.Retention, want.Retention)
	differ("storage", got.Storage, want.Storage)
	differ("discard", got.Discard, want.Discard)
	differ("discard new per subject", got.DiscardNewPerSubject, want.DiscardNewPerSubject)
	differ("max messages per subject", max(got.MaxMsgsPerSubject, 0), want.MaxMsgsPerSubject) // below 0 is no limit, too
	differ("max age", got.MaxAge, want.MaxAge)
	differ("sealed", got.Sealed, want.Sealed)
	if want.AllowMsgTTL {
		differ("message TTL allowed", got.AllowMsgTTL, true)
	}
	if want.AllowDirect {
		differ("direct get allowed", got.AllowDirect, true)
	}
	return list
}

func sickReplicas(info *jetstream.StreamInfo) []diagnosis {
	if info.Cluster == nil {
		return nil
	}
	remedy := "bring its servers back; see 'nats stream report'"
	if info.Cluster.Leader == "" {
		return []diagnosis{{Verdict: problem, Text: fmt.Sprintf("stream %s has no leader", info.Config.Name), Remedy: remedy}}
	}
	var found []diagnosis
	for _, r := range info.Cluster.Replicas {
		if r.Offline || !r.Current && r.Lag > 0 {
			found = append(found, diagnosis{Verdict: warning, Text: fmt.Sprintf("stream %s: its copy on %s is behind or away", info.Config.Name, r.Name), Remedy: remedy})
		}
	}
	return found
}

func (e *examination) findPolicy() []diagnosis {
	if errors.Is(e.policyErr, policystore.ErrNoBucket) {
		return []diagnosis{{Verdict: problem, Text: fmt.Sprintf("bucket %s is not there: gateways and workers keep the policy that they had, or the default", subjects.PolicyBucket),
			Remedy: "start a gateway: it makes the bucket; then 'pulley policy apply -f' what you have exported"}}
	}
	if damage, ok := errors.AsType[policystore.DamagedError](e.policyErr); ok {
		d := diagnosis{Verdict: problem, Text: damage.Error() + "; gateways and workers keep the one before", Remedy: "write a new one: pulley policy apply -f FILE"}
		for _, v := range e.history {
			if v.Policy != nil {
				d.Remedy = fmt.Sprintf("pulley policy rollback %d", v.Revision)
				break
			}
		}
		return []diagnosis{d}
	}
	if e.policyErr != nil {
		return []diagnosis{{Verdict: problem, Text: e.policyErr.Error(), Remedy: "see permissions and jetstream above; gateways and workers keep the policy that they had"}}
	}
	return e.fleet.findPolicy()
}

func (e *examination) findKeys() []diagnosis {
	if e.keysErr != nil {
		return []diagnosis{{Verdict: problem, Text: e.keysErr.Error(), Remedy: "remove it and add another: pulley key rm ID; pulley key add --tenant NAME"}}
	}
	var found []diagnosis
	for _, id := range sortedNames(e.keys) {
		k := e.keys[id]
		if !k.Expires.IsZero() && k.Expires.Before(e.fleet.At) {
			found = append(found, diagnosis{Verdict: warning, Text: fmt.Sprintf("key %s of tenant %s expired %s ago", id, k.Tenant, age(e.fleet.At.Sub(k.Expires))),
				Remedy: fmt.Sprintf("pulley key rm %s, or pulley key rotate %s", id, id)})
		}
		for _, t := range k.Tiers {
			if e.fleet.Policy != nil && !slices.ContainsFunc(e.fleet.Policy.Policy.Tiers, func(known policy.Tier) bool { return known.Name == t }) {
				found = append(found, diagnosis{Verdict: warning, Text: fmt.Sprintf("key %s of tenant %s allows tier %s, which does not exist", id, k.Tenant, t),
					Remedy: "pulley tier set " + t})
			}
		}
	}
	return found
}

func (e *examination) findDead() []diagnosis {
	info := e.streams[subjects.DeadStream]
	if info == nil || info.State.Msgs == 0 {
		return nil
	}
	return []diagnosis{{Verdict: warning, Text: fmt.Sprintf("%s, the last %s ago", count(info.State.Msgs, "request"), age(e.fleet.At.Sub(info.State.LastTime))),
		Remedy: "pulley dead ls says why; pulley dead retry runs them again"}}
}

// --- What is asked of the fleet: pulley top shows these too

// diagnose is what is wrong with the fleet, the worst first.
func (s *snapshot) diagnose() []diagnosis {
	var all []diagnosis
	for _, ask := range []struct {
		name string
		find func(*snapshot) []diagnosis
	}{
		{"policy", (*snapshot).findPolicy}, {"gateways", (*snapshot).findGateways}, {"workers", (*snapshot).findWorkers},
		{"gpus", (*snapshot).findGPUs}, {"headroom", (*snapshot).findRoom}, {"pools", (*snapshot).findPools}, {"tiers", (*snapshot).findTiers},
	} {
		for _, d := range ask.find(s) {
			d.Check = ask.name
			all = append(all, d)
		}
	}
	slices.SortStableFunc(all, func(a, b diagnosis) int { return cmp.Compare(b.Verdict.rank(), a.Verdict.rank()) })
	return all
}

func (v verdict) rank() int { return slices.Index([]verdict{fine, unknown, warning, problem}, v) }

func (s *snapshot) findPolicy() []diagnosis {
	if why := s.Unread["policy"]; why != "" {
		return []diagnosis{{Verdict: problem, Text: why, Remedy: "pulley doctor says more"}}
	}
	return nil
}

func (s *snapshot) findGateways() []diagnosis {
	if !s.settled() {
		return nil
	}
	if len(s.Gateways) == 0 {
		return []diagnosis{{Verdict: problem, Text: "no gateway: nobody can send requests", Remedy: "start one with 'pulley gateway' or 'pulley up'"}}
	}
	if why := s.Unread["requests"]; why != "" {
		return []diagnosis{{Verdict: warning, Text: "gateways do not tell what they do: " + why, Remedy: "see their logs"}}
	}
	return nil
}

func (s *snapshot) findWorkers() []diagnosis {
	if s.settled() && len(s.Workers) == 0 {
		return []diagnosis{{Verdict: problem, Text: "no worker: requests wait, and are refused then", Remedy: "pulley worker --engine URL"}}
	}
	var found []diagnosis
	for i := range s.Workers {
		w := &s.Workers[i]
		about := "worker " + w.Name
		switch {
		case w.Lost > 0:
			found = append(found, diagnosis{Verdict: problem, Text: fmt.Sprintf("%s is lost: silent for %s", about, age(w.Lost)),
				Remedy: fmt.Sprintf("is its process alive on %s, and its connection to NATS?", cmp.Or(w.Host, "its host"))})
		case w.State == subjects.Down:
			found = append(found, diagnosis{Verdict: problem, Text: fmt.Sprintf("%s: engine down: %s", about, cmp.Or(w.Reason, "it does not answer")),
				Remedy: fmt.Sprintf("start the engine at %s, or look at its log", w.URL)})
		case w.State == subjects.Fenced && !w.gpuFenced():
			found = append(found, diagnosis{Verdict: problem, Text: fmt.Sprintf("%s is fenced: %s", about, cmp.Or(w.Reason, "its engine or a GPU is ill")),
				Remedy: fmt.Sprintf("'pulley worker info %s' says more; if its engine hangs, start that anew", shellWord(w.Name))})
		case w.State == subjects.Paused:
			found = append(found, diagnosis{Verdict: warning, Text: fmt.Sprintf("%s paused: %s", about, cmp.Or(w.Reason, "its engine refuses")),
				Remedy: fmt.Sprintf("if it goes on, give it fewer slots (it has %d), or the engine more room", w.Slots)})
		case w.State == subjects.Cordoned:
			found = append(found, diagnosis{Verdict: warning, Text: about + " is cordoned: it takes nothing new", Remedy: "pulley worker uncordon " + shellWord(w.Name)})
		}
	}
	return found
}

func (s *snapshot) findPools() []diagnosis {
	var found []diagnosis
	if why := s.Unread["queues"]; why != "" {
		found = append(found, diagnosis{Verdict: problem, Text: "queues cannot be read: " + why, Remedy: "pulley doctor says more"})
	}
	live := make(map[string]bool)
	for i := range s.Pools {
		p := &s.Pools[i]
		live[p.Pool] = p.Live > 0
		oldest := ms(p.OldestMS)
		switch {
		case p.Paused:
			found = append(found, diagnosis{Verdict: warning, Text: fmt.Sprintf("pool %s is paused: %s waiting", p.Pool, count(p.Waiting, "request")),
				Remedy: "pulley pool resume " + shellWord(p.Pool)})
		case p.Live == 0 && p.Waiting > 0 && s.settled():
			found = append(found, diagnosis{Verdict: problem, Text: fmt.Sprintf("pool %s: %s waiting, and no live worker", p.Pool, count(p.Waiting, "request")),
				Remedy: "start a worker for it: pulley worker --engine " + shellWord("URL,model="+p.Pool)})
		case oldest > stuckAfter && p.Slots-p.Busy > 0 && p.Live > 0:
			found = append(found, diagnosis{Verdict: warning, Text: fmt.Sprintf("pool %s: a request waits for %s beside %s", p.Pool, age(oldest), count(p.Slots-p.Busy, "free slot")),
				Remedy: "see the workers' logs: may they bid (publish to $JS.API.CONSUMER.MSG.NEXT.>)?"})
		}
	}
	if s.Policy == nil {
		return found
	}
	for name, r := range sortedPairs(s.Policy.Policy.Routes) {
		if slices.ContainsFunc(r.Fallback, func(pool string) bool { return live[pool] }) {
			continue
		}
		for _, t := range r.To {
			if t.Weight > 0 && !live[t.Pool] && s.settled() {
				found = append(found, diagnosis{Verdict: warning, Text: fmt.Sprintf("route %s leads to pool %s, which has no live worker", name, t.Pool),
					Remedy: fmt.Sprintf("start a worker for it, or lead the route elsewhere: pulley route set %s --to POOL", shellWord(name))})
			}
		}
	}
	return found
}

func (s *snapshot) findTiers() []diagnosis {
	var found []diagnosis
	for i := range s.Tiers {
		t := &s.Tiers[i]
		if t.Unknown {
			d := diagnosis{Verdict: warning, Text: fmt.Sprintf("tier %s has queues and is not in the policy", t.Name), Remedy: "nats stream rm " + subjects.ReqStream(t.Name)}
			if t.Waiting+t.Running > 0 {
				d = diagnosis{Verdict: problem, Text: fmt.Sprintf("%s in tier %s, which is not in the policy: no worker takes them", count(t.Waiting+t.Running, "request"), t.Name),
					Remedy: "put it back: pulley tier set " + t.Name}
			}
			found = append(found, d)
			continue
		}
		for pool, l := range sortedPairs(t.Pools) {
			if t.MaxQueue > 0 && l.Waiting >= t.MaxQueue {
				found = append(found, diagnosis{Verdict: warning, Text: fmt.Sprintf("pool %s, tier %s: the queue is full with %s", pool, t.Name, count(l.Waiting, "request")),
					Remedy: fmt.Sprintf("more workers, or a longer queue: pulley tier set %s --max-queue %d", t.Name, min(2*t.MaxQueue, policy.MaxQueueLimit))})
			}
		}
	}
	return found
}
