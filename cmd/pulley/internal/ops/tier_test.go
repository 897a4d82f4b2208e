package ops

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func TestTiers(t *testing.T) {
	s := newSite(t)
	s.story(
		step{"tier set night --share 3 --max-wait 8h --deadline 12h --storage file", 0, "tier night created, policy revision 1\n"},
		step{"tier set night --order 2", 0, "tier night changed, policy revision 2\n"},
		step{"tier set night --order 2 --share 3", 0, "tier night unchanged\n"},
		step{"tier set night --order 5", 2, `pulley: --order 5: must be 1 to 4\nrun .*`},
		step{"tier set night --share 0", 2, `pulley: --share: 0: must be 1 to 1000000\nrun .*`},
		step{"tier set night --storage tape", 2, `pulley: --storage: "tape": must be memory or file\nrun .*`},
		step{"tier set Night", 2, `pulley: "Night": a name is 1 to 32 lower-case letters, digits and '-'\nrun .*`},
		step{"tier set priority --reserve 20%", 0, "tier priority changed, policy revision 3\n"},
		step{"tier ls", 0, `NAME      SHARE  RESERVE  MAX QUEUE  MAX WAIT  DEADLINE  WAITING  IN FLIGHT
priority      8      20%       2000         -       10m        0          0
night         3        -       2000        8h       12h        0          0
standard      4      10%       2000         -       10m        0          0
batch         1        -      10000         -        1h        0          0
`},
		step{"tier rm nigth --force", 3, `pulley: no tier "nigth"; did you mean "night"\?\n`},
		step{"tier rm gold --force", 3, `pulley: no tier "gold"; see 'pulley tier ls'\n`},
		step{"tier rm standard --force", 4, `pulley: tier standard cannot be removed: it serves the requests that ask for no tier\n`},
		step{"tier rm night --force", 0, "tier night removed, policy revision 4\n"},
	)
	got, _ := s.policy().Tier("priority")
	want := policy.DefaultTiers()[0]
	if want.Reserve = 20; got != want {
		t.Errorf("tier priority %+v, want %+v: only what a flag names changes", got, want)
	}
}

// Flags that change an object are not set by the environment.
func TestVerbsIgnoreTheEnvironment(t *testing.T) {
	t.Setenv("PULLEY_FORCE", "true")
	t.Setenv("PULLEY_SHARE", "7")
	s := newSite(t)
	s.story(
		step{"tier set night", 0, `(?s)tier night created, policy revision 1\n.*`},
		step{"tier rm night", 4, `(?s).*`},
	)
	if night, _ := s.policy().Tier("night"); night.Share != 1 {
		t.Errorf("share %d from the environment", night.Share)
	}
}

func TestTierWithRequestsIsNotRemovedUnasked(t *testing.T) {
	s := newSite(t)
	s.ok("key add --tenant acme --tier batch")
	s.serve("llama")
	s.put("batch", "llama", "gw", "{}")
	atTerminal(t)
	root := testRoot()
	root.SetIn(strings.NewReader("y\n"))
	code, _, stderr := clitest.Run(root, "tier", "rm", "batch", "--nats", s.url)
	want := "pulley: tier batch has 1 request: wait until it is empty, or use --force to move the waiting ones to tier standard\n"
	if code != 4 || !strings.HasSuffix(stderr, want) {
		t.Errorf("exit code %d, %q; want 4, %q", code, stderr, want)
	}
	s.story(step{"tier rm batch --force", 0, `tier batch removed, policy revision \d+\nwarning: tier batch is still allowed by 1 key: \w{10}\n` +
		`warning: the stream PULLEY_REQ_BATCH remains, since it has 1 request: 'pulley doctor' says when it can be removed\n`})
}

// A tier takes its stream along. One that an older version has left is removed too, and unasked only while it is empty.
func TestTierTakesItsStreamAlong(t *testing.T) {
	s := newSite(t)
	s.serve("llama")
	streams := func() (names []string) {
		list := s.js.StreamNames(t.Context())
		for name := range list.Name() {
			if strings.HasPrefix(name, "PULLEY_REQ_") {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return names
	}
	s.story(step{"tier rm batch --force", 0, `tier batch removed, policy revision \d+\n`})
	if got := streams(); slices.Contains(got, "PULLEY_REQ_BATCH") || len(got) != 2 {
		t.Errorf("streams %v", got)
	}
	for _, n := range []int{0, 1} {
		if _, err := s.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "PULLEY_REQ_OLD", Subjects: []string{"pulley.req.old.>"}, AllowMsgTTL: true}); err != nil {
			t.Fatal(err)
		}
		for range n {
			s.put("old", "llama", "gw", "{}")
		}
		if n > 0 {
			atTerminal(t)
			root := testRoot()
			root.SetIn(strings.NewReader("y\n"))
			if code, _, stderr := clitest.Run(root, "tier", "rm", "old", "--nats", s.url); code != 4 || !strings.Contains(stderr, "tier old is not in the policy, but has 1 request: ") {
				t.Errorf("unasked: %d %s", code, stderr)
			}
		}
		s.story(step{"tier rm old --force", 0, "stream PULLEY_REQ_OLD removed\n"})
		if got := streams(); slices.Contains(got, "PULLEY_REQ_OLD") {
			t.Errorf("streams %v", got)
		}
	}
	s.story(step{"tier rm old --force", 3, `pulley: no tier "old".*\n`})
}

func TestTierMovesBetweenMemoryAndFile(t *testing.T) {
	s := newSite(t)
	s.serve("llama")
	id := s.put("batch", "llama", "gw", "{}")
	s.story(step{"tier set batch --storage memory", 4,
		`pulley: tier batch has 1 request, and moving its queue to memory would lose them: wait until it is empty\n`})
	if got, _ := s.policy().Tier("batch"); got.Storage != policy.File {
		t.Errorf("storage %s after a refusal, want %s", got.Storage, policy.File)
	}
	stream, err := s.js.Stream(t.Context(), subjects.ReqStream("batch"))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err, id)
	}
	s.story(step{"tier set batch --storage memory", 0, "tier batch changed, policy revision .*"})
	if _, err := s.js.Stream(t.Context(), subjects.ReqStream("batch")); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("stream of the tier: %v, want it gone, for gateways to make it anew", err)
	}
}

func TestTierListCountsWhatGatewaysHold(t *testing.T) {
	s := newSite(t)
	s.serve("llama")
	s.answer()
	s.held = append(s.held, held("01", "llama", "batch", "queued", 5*time.Second), held("02", "llama", "batch", "running", time.Second), held("03", "llama", "batch", "queued", time.Second))
	if out := s.ok("tier ls"); !strings.Contains(out, "1h        2          1\n") {
		t.Errorf("tier ls:\n%s\nwant 2 waiting and 1 in flight in batch", out)
	}
}
