package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// site is a broker with the streams that gateways make, and something that
// answers like a gateway.
type site struct {
	t   *testing.T
	url string
	nc  *nats.Conn
	js  jetstream.JetStream

	mu      sync.Mutex
	workers []subjects.Heartbeat
	held    []subjects.RequestDetail
	orders  []string // what the gateway was told to do
}

// newSite starts a broker as a gateway would find it that has just prepared it,
// without a gateway.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t}
	s.url, _ = startBroker(t, broker.Config{})
	var err error
	if s.nc, err = nats.Connect(s.url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.nc.Close)
	if s.js, err = jetstream.New(s.nc); err != nil {
		t.Fatal(err)
	}
	if err := subjects.EnsureStreams(t.Context(), s.js, policy.DefaultTiers(), 1); err != nil {
		t.Fatal(err)
	}
	return s
}

// serve makes pools that have been served, and their queues.
func (s *site) serve(pools ...string) {
	s.t.Helper()
	kv, err := s.js.KeyValue(s.t.Context(), subjects.PoolsBucket)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, pool := range pools {
		if _, err := kv.PutString(s.t.Context(), subjects.Token(pool), pool); err != nil {
			s.t.Fatal(err)
		}
		for _, t := range policy.DefaultTiers() {
			if err := subjects.EnsureConsumer(s.t.Context(), s.js, t.Name, pool, subjects.Shared); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// answer is a gateway, as far as the verbs see one.
func (s *site) answer() {
	s.t.Helper()
	handle := func(subject string, do func(m *nats.Msg)) {
		sub, err := s.nc.Subscribe(subject, do)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { sub.Unsubscribe() })
	}
	handle(subjects.AskWorkers, func(m *nats.Msg) {
		s.mu.Lock()
		defer s.mu.Unlock()
		respondJSON(m, s.workers)
		m.Respond(nil)
	})
	handle(subjects.AskRequests, func(m *nats.Msg) {
		s.mu.Lock()
		defer s.mu.Unlock()
		var list []subjects.RequestInfo
		for _, r := range s.held {
			list = append(list, r.RequestInfo)
		}
		respondJSON(m, list)
		m.Respond(nil)
	})
	find := func(m *nats.Msg) (subjects.RequestDetail, subjects.RequestQuery, bool) {
		var q subjects.RequestQuery
		json.Unmarshal(m.Data, &q)
		s.mu.Lock()
		defer s.mu.Unlock()
		i := slices.IndexFunc(s.held, func(r subjects.RequestDetail) bool { return r.ID == q.ID })
		if i < 0 {
			return subjects.RequestDetail{}, q, false
		}
		return s.held[i], q, true
	}
	handle(subjects.AskRequest, func(m *nats.Msg) {
		if r, q, ok := find(m); ok {
			if !q.Body {
				r.Body = nil
			}
			respondJSON(m, r)
		}
	})
	handle(subjects.DoCancel, func(m *nats.Msg) {
		if r, q, ok := find(m); ok {
			s.ordered("cancel " + r.ID + " by " + q.By)
			respondJSON(m, subjects.Outcome{From: "gw", Count: 1})
		}
	})
	handle(subjects.DoPurge, func(m *nats.Msg) {
		var o subjects.PurgeOrder
		json.Unmarshal(m.Data, &o)
		s.ordered("purge " + o.Pool + " " + o.Tier)
		respondJSON(m, subjects.Outcome{From: "gw", Count: 3})
	})
	handle(subjects.DoRetry, func(m *nats.Msg) {
		var o subjects.RetryOrder
		json.Unmarshal(m.Data, &o)
		if o.Sequence == 2 {
			respondJSON(m, subjects.RetryResult{Status: 500})
			return
		}
		respondJSON(m, subjects.RetryResult{Status: 200, Body: []byte("the answer")})
	})
	handle(subjects.GatewayBody("gw"), func(m *nats.Msg) { m.Respond(nil) })
	if err := s.nc.Flush(); err != nil {
		s.t.Fatal(err)
	}
}

func respondJSON(m *nats.Msg, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	m.Respond(b)
}

func (s *site) ordered(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders = append(s.orders, what)
}

// wasOrdered is what the gateway was told to do since it was asked last.
func (s *site) wasOrdered() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := strings.Join(s.orders, "; ")
	s.orders = nil
	return text
}

// run runs a verb, the words of which have no spaces.
func (s *site) run(args string) (code int, stdout, stderr string) {
	s.t.Helper()
	return runRoot(newRootCommand(), append(strings.Fields(args), "--nats", s.url)...)
}

// ok runs a verb that must succeed, and returns what it prints.
func (s *site) ok(args string) string {
	s.t.Helper()
	code, stdout, stderr := s.run(args)
	if code != 0 {
		s.t.Fatalf("pulley %s: exit code %d, %s", args, code, stderr)
	}
	return stdout
}

// step is a verb and what comes of it.
type step struct {
	args string
	code int
	want string // of both outputs, a regular expression for the whole
}

func (s *site) story(steps ...step) {
	s.t.Helper()
	for _, st := range steps {
		code, stdout, stderr := s.run(st.args)
		got := stdout + stderr
		if code != st.code || !regexp.MustCompile(`(?s)^`+st.want+`$`).MatchString(got) {
			s.t.Fatalf("pulley %s: exit code %d\n%s\nwant %d\n%s", st.args, code, got, st.code, st.want)
		}
	}
}

// policy is the one in force.
func (s *site) policy() *policy.Policy {
	s.t.Helper()
	store, err := policystore.Open(s.t.Context(), s.nc)
	if err != nil {
		s.t.Fatal(err)
	}
	v, err := store.Load(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return v.Policy
}

// put puts a request into a queue, and returns its id.
func (s *site) put(tier, pool, gateway, body string) string {
	s.t.Helper()
	r := subjects.Request{ID: subjects.NewID(), Gateway: gateway, Tier: tier, Model: pool, Pool: pool, Tenant: "acme", Method: "POST",
		Path: "/v1/chat/completions", Deadline: time.Now().Add(time.Hour).UnixMilli(), InputTokens: 7, BodySize: int64(len(body))}
	m, err := r.Msg(subjects.Shared, []byte(body), time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.js.PublishMsg(s.t.Context(), m); err != nil {
		s.t.Fatal(err)
	}
	return r.ID.String()
}

func TestVerbsWithoutPulleyOnTheBroker(t *testing.T) {
	url, _ := startBroker(t, broker.Config{})
	tests := map[string]struct {
		code int
		want string
	}{
		"tier ls":                       {3, "no policy bucket on this broker: start a gateway"},
		"key add --tenant acme":         {3, "no policy bucket on this broker: start a gateway"},
		"request ls":                    {3, "no gateway on this broker: start one"},
		"worker ls":                     {3, "nothing of Pulley on this broker yet"},
		"dead ls":                       {3, "no stream PULLEY_DEAD on this broker"},
		"queue ls --output csv":         {2, `--output "csv": want table, wide, json or yaml`},
		"policy rollback":               {2, "name the revision"},
		"tier rm":                       {2, "name the tier"},
		"worker weight gpu-1":           {2, "name the weight"},
		"route shift chat --every soon": {2, `invalid argument "soon"`},
		"tier set gold --reserve much":  {2, `"much" is no number`},
		"tier set gold --reserve 1.5":   {2, "want a whole percentage"},
	}
	for args, tt := range tests {
		t.Run(args, func(t *testing.T) {
			code, _, stderr := runRoot(newRootCommand(), append(strings.Fields(args), "--nats", url)...)
			if code != tt.code || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit code %d, %q; want %d, %q", code, stderr, tt.code, tt.want)
			}
		})
	}
}

// Every verb says what it does, with an example that names it.
func TestEveryVerbHasHelp(t *testing.T) {
	nouns := []string{"gpu", "tier", "route", "pool", "worker", "queue", "request", "dead", "key", "policy"}
	seen := make(map[string]bool)
	for _, cmd := range newRootCommand().Commands() {
		if !slices.Contains(nouns, cmd.Name()) {
			continue
		}
		seen[cmd.Name()] = true
		for _, verb := range cmd.Commands() {
			if verb.Long == "" || !strings.Contains(verb.Example, verb.CommandPath()) {
				t.Errorf("%s: Long %q, Example %q; want both, and the example to be of it", verb.CommandPath(), verb.Long, verb.Example)
			}
			for line := range strings.Lines(verb.Long + "\n" + verb.Example) {
				if n := len([]rune(line)); n > 90 {
					t.Errorf("%s: help has a line of %d characters: %s", verb.CommandPath(), n, line)
				}
			}
			if verb.Name() == "ls" && (verb.Flag("watch") == nil || verb.Flag("output") == nil) {
				t.Errorf("%s has no --watch, or no --output", verb.CommandPath())
			}
		}
	}
	if len(seen) != len(nouns) {
		t.Errorf("nouns %v, want %v", slices.Sorted(maps.Keys(seen)), nouns)
	}
}

func TestWordsOfACommand(t *testing.T) {
	tests := map[string]string{
		"tier set gold --share 2 --max-wait 2m":                          "tier set gold --share 2 --max-wait 2m",
		"route set gpt-* --to a=9 --to b --force --nats nats://h":        "route set 'gpt-*' --to a=9 --to b",
		"route shift chat --to b --abort-if error_rate>1% -o json":       "route shift chat --to b --abort-if 'error_rate>1%'",
		"route set m --restore-model --log-level debug --context prod":   "route set m --restore-model",
		"key add --tenant acme --models a,b --expires 720h --watch=true": "key add --tenant acme --models a --models b --expires 720h",
	}
	for args, want := range tests {
		t.Run(args, func(t *testing.T) {
			root := newRootCommand()
			got := ""
			forEachCommand(root, func(cmd *cobra.Command) {
				if cmd.Flags().Lookup("watch") == nil {
					cmd.Flags().Bool("watch", false, "")
				}
				cmd.RunE = func(cmd *cobra.Command, args []string) error {
					got = (&session{cmd: cmd, args: args}).words()
					return nil
				}
			})
			if code, _, stderr := runRoot(root, strings.Fields(args)...); code != 0 || got != want {
				t.Errorf("exit code %d %s, words %q; want %q", code, stderr, got, want)
			}
		})
	}
}

// atTerminal makes confirmations ask.
func atTerminal(t *testing.T) {
	t.Helper()
	before := canAsk
	canAsk = func(io.Reader) bool { return true }
	t.Cleanup(func() { canAsk = before })
}

func TestConfirmation(t *testing.T) {
	s := newSite(t)
	s.ok("tier set night")
	s.story(step{"tier rm night", 4, "pulley: remove tier night: there is no terminal to ask on; say --force\n"})
	atTerminal(t)
	for answer, want := range map[string]struct {
		code int
		text string
	}{
		"\n":    {4, "remove tier night? [y/N] pulley: not confirmed: nothing was changed\n"},
		"no\n":  {4, "remove tier night? [y/N] pulley: not confirmed: nothing was changed\n"},
		"":      {4, "remove tier night? [y/N] pulley: not confirmed: nothing was changed\n"},
		"Yes\n": {0, "remove tier night? [y/N] "},
	} {
		s.ok("tier set night")
		root := newRootCommand()
		root.SetIn(strings.NewReader(answer))
		code, _, stderr := runRoot(root, "tier", "rm", "night", "--nats", s.url)
		if code != want.code || stderr != want.text {
			t.Errorf("answer %q: exit code %d, %q; want %d, %q", answer, code, stderr, want.code, want.text)
		}
	}
}

func TestInterruptedConfirmation(t *testing.T) {
	s := newSite(t)
	s.ok("tier set night")
	atTerminal(t)
	root := newRootCommand()
	never, stop := io.Pipe()
	defer stop.Close()
	root.SetIn(never)
	ctx, cancel := context.WithCancelCause(t.Context())
	var stderr syncBuffer
	go func() {
		stderr.waitFor(t, "[y/N]")
		cancel(errInterrupted)
	}()
	if code := execute(ctx, root, []string{"tier", "rm", "night", "--nats", s.url}, io.Discard, &stderr); code != exitInterrupted {
		t.Errorf("exit code %d, want %d; %s", code, exitInterrupted, &stderr)
	}
	if _, there := s.policy().Tier("night"); !there {
		t.Error("the tier is gone")
	}
}

func TestWatchShowsChangesUntilInterrupted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	var stdout syncBuffer
	ended := make(chan int, 1)
	go func() {
		ended <- execute(ctx, newRootCommand(), []string{"tier", "ls", "--watch", "--nats", s.url}, &stdout, io.Discard)
	}()
	stdout.waitFor(t, "batch")
	s.ok("tier set night")
	stdout.waitFor(t, "night")
	cancel(errInterrupted)
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// What is told to the world about a change: who, and by which command.
func TestChangesAreTold(t *testing.T) {
	s := newSite(t)
	events, err := s.nc.SubscribeSync(subjects.AllEvents)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"tier set gold --share 2": `"kind":"policy".*"from":"cli \S+@\S+".*"text":"tier set gold --share 2, revision \d+"`,
		"key add --tenant acme":   `"kind":"key".*"text":"key \w{10} added".*"tenant":"acme"`,
	} {
		s.ok(args)
		m, err := events.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(want).Match(m.Data) {
			t.Errorf("pulley %s: event %s, want %s", args, m.Data, want)
		}
	}
	s.ok("tier set gold --share 2")
	if m, err := events.NextMsg(100 * time.Millisecond); err == nil {
		t.Errorf("event %s of a change that changes nothing", m.Data)
	}
	history := s.ok("policy history -o json")
	if !strings.Contains(history, `"why": "tier set gold --share 2"`) || !regexp.MustCompile(`"by": "\S+@\S+"`).MatchString(history) {
		t.Errorf("history %s", history)
	}
}

func TestEveryOutputFormat(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve("llama")
	s.answer()
	s.ok("route set chat --to llama")
	s.ok("key add --tenant acme")
	for _, noun := range []string{"gpu", "tier", "route", "pool", "worker", "queue", "request", "dead", "key"} {
		for _, output := range []string{"table", "wide", "json", "yaml"} {
			out := s.ok(noun + " ls -o " + output)
			switch output {
			case "json":
				var list []any
				if err := json.Unmarshal([]byte(out), &list); err != nil || list == nil {
					t.Errorf("%s ls -o json: %v\n%s", noun, err, out)
				}
			case "yaml":
				if !strings.HasPrefix(out, "- ") && out != "[]\n" {
					t.Errorf("%s ls -o yaml:\n%s", noun, out)
				}
			}
			if bytes.Contains([]byte(out), []byte("\x1b")) {
				t.Errorf("%s ls -o %s: colour in a pipe: %q", noun, output, out)
			}
		}
	}
}
