package ops

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func TestPolicyApply(t *testing.T) {
	s := newSite(t)
	s.serve("llama", "llama-next")
	exported := s.ok("policy export")
	if !strings.HasPrefix(exported, "# the default policy: it has not been changed\ntiers:\n  - name: priority\n") {
		t.Errorf("export:\n%s", exported)
	}
	file := clitest.WriteFile(t, "policy.yaml", strings.Replace(exported, "share: 8", "share: 16", 1)+"routes:\n  chat:\n    to: [{pool: llama, weight: 1}]\n")
	diff := `  tiers:\n    - name: priority\n-     share: 8\n\+     share: 16\n      storage: memory\n.*@@ tiers: - name: batch\n.*\+ routes:\n\+   chat:\n.*`
	s.story(
		step{"policy diff -f " + file, 0, diff},
		step{"policy diff --exit-code -f " + file, 1, diff + `pulley: the policies differ\n`},
		step{"policy apply --dry-run -f " + file, 0, diff + `dry run: nothing was applied\n`},
		step{"policy history", 0, "no revisions: the policy is the default\n"},
		step{"policy apply -f " + file, 0, diff + `revision 1 is current\n`},
		step{"policy apply -f " + file, 0, `nothing to change: revision 1 is current\n`},
		step{"policy diff -f " + file, 0, "no difference\n"},
		step{"policy apply", 2, `pulley: missing flag: --file FILE\nrun .*`},
		step{"policy apply -f /nowhere.yaml", 3, `pulley: --file /nowhere.yaml: no such file\n`},
		step{"policy apply -f " + clitest.WriteFile(t, "bad.yaml", "tiers:\n  - name: standard\n    shar: 2\n"), 2, `pulley: .*bad.yaml:3: tiers.0.shar: unknown key; did you mean "share"\?\nrun .*`},
		step{"policy export -o json", 0, `\{\n  "tiers": \[\n.*`},
	)
	root := testRoot()
	root.SetIn(strings.NewReader(strings.Replace(exported, "reserve: 10", "reserve: 15", 1)))
	if code, _, stderr := clitest.Run(root, "policy", "apply", "-f", "-", "--nats", s.url); code != 0 {
		t.Errorf("apply from standard input: exit code %d, %s", code, stderr)
	}

	// A policy that would lose requests or end a shift is refused.
	s.put("batch", "llama", "gw", "{}")
	s.ok("route shift chat --to llama-next")
	other := clitest.WriteFile(t, "other.yaml", exported+"routes:\n  chat:\n    to: [{pool: llama, weight: 1}]\n    fallback: [llama-next]\n")
	lacksBatch, _, _ := strings.Cut(exported, "  - name: batch")
	s.story(
		step{"policy apply -f " + clitest.WriteFile(t, "nobatch.yaml", lacksBatch), 4, `.*pulley: tier batch has 1 request: .*`},
		step{"policy apply -f " + other, 4, `.*pulley: route chat: a shift to llama-next is running; .*`},
		step{"policy apply --dry-run -f " + other, 4, `.*pulley: route chat: a shift to llama-next is running; .*`},
		step{"policy apply --force -f " + file, 0, `.*revision 4 is current\n`},
	)
}

// What Pulley itself writes into the policy is in no exported file, and an exported file that is applied again changes none of it.
func TestShiftsAreNotExported(t *testing.T) {
	s := newSite(t)
	s.serve("llama", "llama-next")
	s.ok("route set chat --to llama")
	s.ok("route shift chat --to llama-next --by 10% --every 1m")
	exported := s.ok("policy export")
	if !strings.HasSuffix(exported, "routes:\n  chat:\n    to:\n      - pool: llama\n        weight: 1\n") {
		t.Errorf("while it runs:\n%s", exported)
	}
	file := clitest.WriteFile(t, "policy.yaml", exported)
	s.story(
		step{"policy apply -f " + file, 0, `nothing to change: revision 2 is current\n`},
		step{"policy diff -f " + file, 0, "no difference\n"},
		step{"policy apply -f " + clitest.WriteFile(t, "more.yaml", strings.Replace(exported, "share: 8", "share: 9", 1)), 0, `.*share: 9.*revision 3 is current\n`},
	)
	if r := s.policy().Routes["chat"]; r.Shift == nil || r.Shift.State != policy.ShiftRunning {
		t.Errorf("the shift has ended: %+v", r)
	}
	s.ok("route abort chat")
	if again := s.ok("policy export"); strings.Contains(again, "llama-next") || strings.Contains(again, "shift") {
		t.Errorf("after it was aborted:\n%s", again)
	}
	s.ok("route shift chat --to llama-next")
	s.ok("route promote chat")
	if again := s.ok("policy export"); !strings.HasSuffix(again, "    to:\n      - pool: llama-next\n        weight: 100\n") {
		t.Errorf("after it was promoted:\n%s", again)
	}
}

func TestPolicyValidate(t *testing.T) {
	file := func(text string) string { return clitest.WriteFile(t, "p.yaml", text) }
	for text, want := range map[string]struct {
		code int
		want string
	}{
		"routes: {chat: {to: [{pool: llama}]}}\n": {0, " is valid: 3 tiers, 1 route, 0 pools\n"},
		"tiers: [{name: standard}]\n":             {0, " is valid: 1 tier, 0 routes, 0 pools\n"},
		"tiers: [{name: gold}]\n":                 {2, `:1: tiers: no tier "standard"`},
		"pools: {llama: {balance: fair}}\n":       {2, `:1: pools.llama.balance: "fair": must be one of`},
		"":                                        {2, `:1: tiers: no tier "standard"`},
	} {
		code, stdout, stderr := clitest.Run(testRoot(), "policy", "validate", file(text), "--nats", "nats://127.0.0.1:1")
		if code != want.code || !strings.Contains(stdout+stderr, want.want) {
			t.Errorf("%q: exit code %d, %q, %q; want %d, %q", text, code, stdout, stderr, want.code, want.want)
		}
	}
	code, stdout, stderr := clitest.Run(testRoot(), "policy", "validate", file("tiers: x\n"), file("pools: {}\n"), "/nowhere.yaml")
	if code != 2 || !strings.Contains(stdout, "is valid") || !strings.Contains(stderr, "must be a list") || !strings.Contains(stderr, "/nowhere.yaml: no such file") {
		t.Errorf("several files: exit code %d, %q, %q", code, stdout, stderr)
	}
	root := testRoot()
	root.SetIn(strings.NewReader("workers: {gpu-1: {weight: -1}}\n"))
	if code, _, stderr := clitest.Run(root, "policy", "validate", "-"); code != 2 || !strings.Contains(stderr, "standard input:1: workers.gpu-1.weight: -1: must be") {
		t.Errorf("standard input: exit code %d, %q", code, stderr)
	}
	if code, _, stderr := clitest.Run(root, "policy", "validate"); code != 2 || !strings.Contains(stderr, "missing argument: FILE") {
		t.Errorf("no file: exit code %d, %q", code, stderr)
	}
}

func TestPolicyHistoryAndRollback(t *testing.T) {
	s := newSite(t)
	s.ok("tier set gold --share 2")
	kv, err := s.js.KeyValue(t.Context(), subjects.PolicyBucket)
	if err == nil {
		_, err = kv.PutString(t.Context(), subjects.APIKey("aaaaaaaaaa"), "{}") // keys of older versions share the bucket, not the history
	}
	if err != nil {
		t.Fatal(err)
	}
	s.ok("route set chat --to llama")
	s.story(
		step{"policy history", 0, `REVISION   AGE  BY +WHY
       3  \S+s  \S+@\S+  route set chat --to llama
       1  \S+s  \S+@\S+  tier set gold --share 2\n`},
		step{"policy history -n 1", 0, `REVISION.*\n       3 [^\n]*\nthe newest 1 of 2; -n 0 shows all\n`},
		step{"policy history --diff", 0, `revision 3, .*: route set chat --to llama\n.*\+ routes:\n\+   chat:\n.*\n\nrevision 1, .*: tier set gold --share 2\n.*\+   - name: gold\n.*`},
		step{"policy export 1", 0, `# revision 1, .*: tier set gold --share 2\ntiers:\n.*`},
		step{"policy diff 1 3", 0, `.*\+ routes:\n.*`},
		step{"policy diff 3", 0, "no difference\n"},
		step{"policy rollback 1 --dry-run", 0, `.*- routes:\n.*dry run: nothing was applied\n`},
		step{"policy rollback 1", 0, `.*- routes:\n.*revision 4 is current\n`},
		step{"policy rollback 1", 0, "nothing to change: revision 4 is current\n"},
		step{"policy rollback 2", 3, `pulley: no revision 2 of the policy: the last 3 revisions are kept; see 'pulley policy history'\n`},
		step{"policy rollback last", 2, `pulley: revision "last": not a number .*`},
		step{"policy rollback 0", 0, `.*revision 5 is current\n`},
	)
	if got := s.policy(); !reflect.DeepEqual(got, policy.Default()) {
		t.Errorf("policy %+v, want the default", got)
	}
	if len(s.keys()) != 1 {
		t.Error("a rollback has touched keys")
	}
}

func TestDamagedPolicyIsReplaced(t *testing.T) {
	s := newSite(t)
	s.ok("tier set gold --share 2")
	kv, err := s.js.KeyValue(t.Context(), subjects.PolicyBucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(t.Context(), "policy", "scribble"); err != nil {
		t.Fatal(err)
	}
	s.story(
		step{"tier ls", 1, `pulley: policy revision 2 is damaged: .*; see 'pulley policy history', and restore a valid revision with 'pulley policy rollback REVISION'\n`},
		step{"tier set gold --share 3", 1, `pulley: policy revision 2 is damaged: .*`},
		step{"policy history", 0, `REVISION.*\n       2 .* policy revision 2 is damaged: .*\n       1 .*`},
		step{"policy rollback 2", 4, `pulley: revision 2 is damaged: .*`},
		step{"policy rollback 1", 0, `.*revision 3 is current\nwarning: policy revision 2 is damaged: .*; replacing it\n`},
		step{"policy history --diff", 0, `revision 3, .*revision 2, .*revision 1, .*`},
	)
}

// If the policy changes between reading and applying, the apply is refused.
func TestApplyLosesToAnotherChange(t *testing.T) {
	s := newSite(t)
	s.serve("llama")
	file := clitest.WriteFile(t, "p.yaml", strings.Replace(s.ok("policy export"), "share: 8", "share: 16", 1))
	root := testRoot()
	// The other change happens after the apply has printed its diff, and before it writes.
	var stderr bytes.Buffer
	code := cli.Execute(t.Context(), root, []string{"policy", "apply", "-f", file, "--nats", s.url}, &sneak{func() { s.ok("tier set gold") }}, &stderr)
	if want := "nothing was applied: the policy has changed meanwhile"; code != 4 || !strings.Contains(stderr.String(), want) {
		t.Errorf("exit code %d, %s; want 4, %s", code, &stderr, want)
	}
	if p := s.policy(); p.Tiers[0].Share != 8 {
		t.Error("it was applied")
	}
}

// sneak calls do at the first write.
type sneak struct{ do func() }

func (s *sneak) Write(p []byte) (int, error) {
	if s.do != nil {
		s.do()
		s.do = nil
	}
	return len(p), nil
}
