package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// everything is a policy with something in every field.
func everything() *policy.Policy {
	p := policy.Default()
	p.Tiers[0].MaxWait = policy.Duration(30 * time.Second)
	p.Pools = map[string]policy.Pool{"org/llama:7b": {Balance: policy.Weighted, Affinity: policy.AffinitySession, StickFor: policy.Duration(time.Minute), Paused: true,
		Spill: []policy.Spill{{Pool: "qwen", Penalty: 3}}}}
	p.Routes = map[string]policy.Route{"gpt-*": {To: []policy.Target{{Pool: "org/llama:7b", Weight: 90}, {Pool: "qwen", Weight: 10}},
		Mirror: []policy.Mirror{{Pool: "qwen", Percent: 5}}, Fallback: []string{"qwen"}, FallbackAfter: policy.Duration(20 * time.Second), StickyBy: policy.StickyTenant, RestoreModel: true,
		Shift: &policy.Shift{To: "qwen", By: 10, Every: policy.Duration(90 * time.Second), Abort: []policy.Condition{"error_rate>1%"}, MinSample: 50,
			Since: time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC), Before: []policy.Target{{Pool: "org/llama:7b", Weight: 1}}}}}
	p.Workers = map[string]policy.Worker{"gpu-1": {Cordoned: true, Weight: 0.5}}
	p.SessionHeaders = []string{"X-Session-Id"}
	return p
}

func TestPolicyAsFileAndBack(t *testing.T) {
	for name, p := range map[string]*policy.Policy{"default": policy.Default(), "everything": everything()} {
		t.Run(name, func(t *testing.T) {
			if err := p.Check(); err != nil {
				t.Fatal(err)
			}
			got, err := parsePolicy("p.yaml", []byte(yamlPolicy(p)))
			if err != nil || !reflect.DeepEqual(got, p) {
				t.Errorf("after %s\ngot %v, %+v\nwant %+v", yamlPolicy(p), err, got, p)
			}
			b := []byte(jsonOf(t, p)) // JSON is YAML
			if got, err := parsePolicy("p.json", b); err != nil || !reflect.DeepEqual(got, p) {
				t.Errorf("as JSON: %v, %+v", err, got)
			}
		})
	}
}

func TestPolicyFileErrors(t *testing.T) {
	const standard = "tiers:\n  - {name: standard, share: 1, storage: memory, max_queue: 9, deadline: 1m, retries: 0}\n"
	tests := map[string]struct {
		file string
		want string // lines
	}{
		"unknown key":            {standard + "routs: {}\n", `p.yaml:3: routs: there is no such key; did you mean "routes"?`},
		"unknown key below":      {standard + "pools:\n  llama:\n    ballance: price\n", `p.yaml:5: pools.llama.ballance: there is no such key; did you mean "balance"?`},
		"wrong type":             {strings.Replace(standard, "share: 1", "share: many", 1), `p.yaml:2: tiers.0.share: "many": want a whole number`},
		"fraction":               {strings.Replace(standard, "share: 1", "share: 1.5", 1), `p.yaml:2: tiers.0.share: "1.5": want a whole number`},
		"duration without unit":  {strings.Replace(standard, "1m", "60", 1), `p.yaml:2: tiers.0.deadline: "60": want a duration such as 30s or 1m30s`},
		"nothing":                {strings.Replace(standard, "1m", "", 1), `p.yaml:2: tiers.0.deadline: has no value: want a duration such as 30s or 1m30s`},
		"map for a list":         {standard + "routes:\n  chat:\n    to:\n      llama: 1\n", `p.yaml:6: routes.chat.to: want a list: lines that begin with '- '`},
		"list for a map":         {standard + "routes:\n  - chat\n", `p.yaml:4: routes: want 'key: value' lines`},
		"scalar for a route":     {standard + "routes:\n  chat: llama\n", `p.yaml:4: routes.chat: want 'key: value' lines`},
		"map for a scalar":       {standard + "pools:\n  llama:\n    paused:\n      a: b\n", `p.yaml:6: pools.llama.paused: want true or false`},
		"twice":                  {standard + "pools:\n  a: {}\n  a: {}\n", `p.yaml:5: pools.a: given twice`},
		"a rule":                 {standard + "routes:\n  chat:\n    to:\n      - pool: llama\n        weight: -1\n", "p.yaml has 2 problems:\n  p.yaml:5: routes.chat.to: the weights add up to 0: nothing would be served\n  p.yaml:7: routes.chat.to.0.weight: -1: must be 0 to 1e+09"},
		"a condition of a shift": {standard + "routes:\n  chat:\n    to: [{pool: a, weight: 1}]\n    shift:\n      to: a\n      by: 10\n      every: 2m\n      abort: [error_rate>1%,\n        nonsense]\n", `p.yaml:11: routes.chat.shift.abort.1: "nonsense": want METRIC>NUMBER and a unit, such as error_rate>1% or p95_ttft>1.5x`},
		"merged":                 {standard + "pools: &a\n  <<: *a\n", `p.yaml:4: pools.<<: merging is not supported: write it out`},
		"by an anchor":           {standard + "x: &r\n", `p.yaml:3: x: there is no such key`},
		"empty":                  {"", `p.yaml:1: tiers: no tier "standard": requests that ask for none need it`},
		"empty tiers":            {"\ntiers:\n", `p.yaml:2: tiers: no tier "standard": requests that ask for none need it`},
		"no mapping":             {"- a\n", `p.yaml:1: want 'key: value' lines`},
		"no YAML":                {standard + "routes: [\n", `p.yaml:3: did not find expected node content`},
		"two documents":          {standard + "---\na: b\n", `p.yaml:3: want one YAML document, not several`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := parsePolicy("p.yaml", []byte(tt.file))
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s\nof\n%s", err, tt.want, tt.file)
			}
		})
	}
	if _, err := parsePolicy("p.yaml", []byte(standard+"routes:\n  a: &r\n    to: [{pool: x, weight: 1}]\n  b: *r\npools:\n")); err != nil {
		t.Errorf("anchors and empty maps: %v", err)
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(yamlPolicy(everything())))
	f.Add([]byte("tiers: [{name: 1, share: x}, *a]\n? [a]\n: b\n"))
	f.Add([]byte("a: &a\n  b: *a\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePolicy("p.yaml", b)
		if err == nil && p.Check() != nil {
			t.Errorf("accepted %q", b)
		}
	})
}

func TestPolicyApply(t *testing.T) {
	s := newSite(t)
	s.serve("llama", "llama-next")
	exported := s.ok("policy export")
	if !strings.HasPrefix(exported, "# the default policy: nobody has set one\ntiers:\n  - name: priority\n") {
		t.Errorf("export:\n%s", exported)
	}
	file := writeFile(t, "policy.yaml", strings.Replace(exported, "share: 8", "share: 16", 1)+"routes:\n  chat:\n    to: [{pool: llama, weight: 1}]\n")
	diff := `  tiers:\n    - name: priority\n-     share: 8\n\+     share: 16\n      storage: memory\n.*@@ tiers: - name: batch\n.*\+ routes:\n\+   chat:\n.*`
	s.story(
		step{"policy diff -f " + file, 0, diff},
		step{"policy diff --exit-code -f " + file, 1, diff + `pulley: the policies differ\n`},
		step{"policy apply --dry-run -f " + file, 0, diff + `nothing was applied: this was a dry run\n`},
		step{"policy history", 0, "nobody has changed the policy: the default is in force\n"},
		step{"policy apply -f " + file, 0, diff + `revision 1 is in force\n`},
		step{"policy apply -f " + file, 0, `nothing to change: revision 1 is in force\n`},
		step{"policy diff -f " + file, 0, "no difference\n"},
		step{"policy apply", 2, `pulley: --file: name the file, such as -f policy.yaml\nrun .*`},
		step{"policy apply -f /nowhere.yaml", 3, `pulley: --file /nowhere.yaml: there is no such file\n`},
		step{"policy apply -f " + writeFile(t, "bad.yaml", "tiers:\n  - name: standard\n    shar: 2\n"), 2, `pulley: .*bad.yaml:3: tiers.0.shar: there is no such key; did you mean "share"\?\nrun .*`},
		step{"policy export -o json", 0, `\{\n  "tiers": \[\n.*`},
	)
	root := newRootCommand()
	root.SetIn(strings.NewReader(strings.Replace(exported, "reserve: 10", "reserve: 15", 1)))
	if code, _, stderr := runRoot(root, "policy", "apply", "-f", "-", "--nats", s.url); code != 0 {
		t.Errorf("apply from standard input: exit code %d, %s", code, stderr)
	}

	// What would lose requests or a canary is refused.
	s.put("batch", "llama", "gw", "{}")
	s.ok("route shift chat --to llama-next")
	lacksBatch, _, _ := strings.Cut(exported, "  - name: batch")
	s.story(
		step{"policy apply -f " + writeFile(t, "nobatch.yaml", lacksBatch), 4, `.*pulley: tier batch: 1 request is in it; .*`},
		step{"policy apply -f " + file, 4, `.*pulley: route chat: a shift to llama-next runs, which this would disturb; .*`},
		step{"policy apply --dry-run -f " + file, 4, `.*pulley: route chat: a shift to llama-next runs, .*`},
		step{"policy apply --force -f " + file, 0, `.*revision 4 is in force\n`},
	)
}

func TestPolicyHistoryAndRollback(t *testing.T) {
	s := newSite(t)
	s.ok("tier set gold --share 2")
	s.ok("key add --tenant acme") // keys share the bucket, not the history
	s.ok("route set chat --to llama")
	s.story(
		step{"policy history", 0, `REVISION   AGE  WHO +WHY
       3  \S+s  \S+@\S+  route set chat --to llama
       1  \S+s  \S+@\S+  tier set gold --share 2\n`},
		step{"policy history -n 1", 0, `REVISION.*\n       3 [^\n]*\nthe newest 1 of 2; -n 0 shows all\n`},
		step{"policy history --diff", 0, `revision 3, .*: route set chat --to llama\n.*\+ routes:\n\+   chat:\n.*\n\nrevision 1, .*: tier set gold --share 2\n.*\+   - name: gold\n.*`},
		step{"policy export 1", 0, `# revision 1, .*: tier set gold --share 2\ntiers:\n.*`},
		step{"policy diff 1 3", 0, `.*\+ routes:\n.*`},
		step{"policy diff 3", 0, "no difference\n"},
		step{"policy rollback 1 --dry-run", 0, `.*- routes:\n.*nothing was applied: this was a dry run\n`},
		step{"policy rollback 1", 0, `.*- routes:\n.*revision 4 is in force\n`},
		step{"policy rollback 1", 0, "nothing to change: revision 4 is in force\n"},
		step{"policy rollback 2", 3, `pulley: no revision 2 of the policy: the last 3 versions are kept, see 'pulley policy history'\n`},
		step{"policy rollback last", 2, `pulley: revision "last": want a number, .*`},
		step{"policy rollback 0", 0, `.*revision 5 is in force\n`},
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
		step{"tier ls", 1, `pulley: policy revision 2 is damaged: .*; see 'pulley policy history', and put a sound one in force with 'pulley policy rollback REVISION'\n`},
		step{"tier set gold --share 3", 1, `pulley: policy revision 2 is damaged: .*`},
		step{"policy history", 0, `REVISION.*\n       2 .* policy revision 2 is damaged: .*\n       1 .*`},
		step{"policy rollback 2", 4, `pulley: revision 2 is damaged: .*`},
		step{"policy rollback 1", 0, `.*revision 3 is in force\nwarning: policy revision 2 is damaged: .*; it is replaced\n`},
		step{"policy history --diff", 0, `revision 3, .*revision 2, .*revision 1, .*`},
	)
}

// Two who change the policy at once: the one that read first is told.
func TestApplyLosesToAnotherChange(t *testing.T) {
	s := newSite(t)
	s.serve("llama")
	file := writeFile(t, "p.yaml", strings.Replace(s.ok("policy export"), "share: 8", "share: 16", 1))
	root := newRootCommand()
	// The other is quicker: while this one has shown its diff, and not yet written.
	var stderr bytes.Buffer
	code := execute(t.Context(), root, []string{"policy", "apply", "-f", file, "--nats", s.url}, &sneak{func() { s.ok("tier set gold") }}, &stderr)
	if want := "nothing was applied: the policy has changed meanwhile"; code != 4 || !strings.Contains(stderr.String(), want) {
		t.Errorf("exit code %d, %s; want 4, %s", code, &stderr, want)
	}
	if p := s.policy(); p.Tiers[0].Share != 8 {
		t.Error("it was applied")
	}
}

// sneak does something at the first write.
type sneak struct{ do func() }

func (s *sneak) Write(p []byte) (int, error) {
	if s.do != nil {
		s.do()
		s.do = nil
	}
	return len(p), nil
}

func TestDiffLines(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		text := func() string {
			var b strings.Builder
			for range random.IntN(30) {
				fmt.Fprintf(&b, "%s%d\n", strings.Repeat("  ", random.IntN(3)), random.IntN(6))
			}
			return b.String()
		}
		before, after := text(), text()
		var a, b []string
		for _, l := range compareLines(splitLines(before), splitLines(after)) {
			if l.op != '+' {
				a = append(a, l.text)
			}
			if l.op != '-' {
				b = append(b, l.text)
			}
		}
		if strings.Join(a, "\n") != strings.TrimSuffix(before, "\n") || strings.Join(b, "\n") != strings.TrimSuffix(after, "\n") {
			t.Fatalf("the difference of\n%s\nand\n%s\nleads elsewhere", before, after)
		}
		if (len(diffLines(before, after)) == 0) != (before == after) {
			t.Fatalf("no hunks for\n%s\nand\n%s", before, after)
		}
	}
	if h := diffLines("", ""); h != nil {
		t.Errorf("hunks %v of nothing", h)
	}
}

func TestDiffShowsWhatALineIsBelow(t *testing.T) {
	before := yamlPolicy(policy.Default())
	hunks := diffLines(before, strings.Replace(before, "deadline: 1h", "deadline: 2h", 1))
	if len(hunks) != 1 || hunks[0].within != "tiers: - name: batch" {
		t.Errorf("hunks %+v", hunks)
	}
}
