package policyfile

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// everything returns a policy with a value in every field.
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

func TestFormatAndParse(t *testing.T) {
	for name, p := range map[string]*policy.Policy{"default": policy.Default(), "everything": everything()} {
		t.Run(name, func(t *testing.T) {
			if err := p.Check(); err != nil {
				t.Fatal(err)
			}
			got, err := Parse("p.yaml", []byte(Format(p)))
			if err != nil || !reflect.DeepEqual(got, p) {
				t.Errorf("after %s\ngot %v, %+v\nwant %+v", Format(p), err, got, p)
			}
			b, err := json.Marshal(p) // JSON is YAML
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Parse("p.json", b); err != nil || !reflect.DeepEqual(got, p) {
				t.Errorf("as JSON: %v, %+v", err, got)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	const standard = "tiers:\n  - {name: standard, share: 1, storage: memory, max_queue: 9, deadline: 1m, retries: 0}\n"
	tests := map[string]struct {
		file string
		want string // lines
	}{
		"unknown key":            {standard + "routs: {}\n", `p.yaml:3: routs: unknown key; did you mean "routes"?`},
		"unknown key below":      {standard + "pools:\n  llama:\n    ballance: price\n", `p.yaml:5: pools.llama.ballance: unknown key; did you mean "balance"?`},
		"wrong type":             {strings.Replace(standard, "share: 1", "share: many", 1), `p.yaml:2: tiers.0.share: "many": must be a whole number`},
		"fraction":               {strings.Replace(standard, "share: 1", "share: 1.5", 1), `p.yaml:2: tiers.0.share: "1.5": must be a whole number`},
		"duration without unit":  {strings.Replace(standard, "1m", "60", 1), `p.yaml:2: tiers.0.deadline: "60": must be a duration such as 30s or 1m30s`},
		"nothing":                {strings.Replace(standard, "1m", "", 1), `p.yaml:2: tiers.0.deadline: has no value: must be a duration such as 30s or 1m30s`},
		"map for a list":         {standard + "routes:\n  chat:\n    to:\n      llama: 1\n", `p.yaml:6: routes.chat.to: must be a list: lines that begin with '- '`},
		"list for a map":         {standard + "routes:\n  - chat\n", `p.yaml:4: routes: must be 'key: value' lines`},
		"scalar for a route":     {standard + "routes:\n  chat: llama\n", `p.yaml:4: routes.chat: must be 'key: value' lines`},
		"map for a scalar":       {standard + "pools:\n  llama:\n    paused:\n      a: b\n", `p.yaml:6: pools.llama.paused: must be true or false`},
		"twice":                  {standard + "pools:\n  a: {}\n  a: {}\n", `p.yaml:5: pools.a: given twice`},
		"a rule":                 {standard + "routes:\n  chat:\n    to:\n      - pool: llama\n        weight: -1\n", "p.yaml has 2 problems:\n  p.yaml:5: routes.chat.to: the weights add up to 0: nothing would be served\n  p.yaml:7: routes.chat.to.0.weight: -1: must be 0 to 1e+09"},
		"a condition of a shift": {standard + "routes:\n  chat:\n    to: [{pool: a, weight: 1}]\n    shift:\n      to: a\n      by: 10\n      every: 2m\n      abort: [error_rate>1%,\n        nonsense]\n", `p.yaml:11: routes.chat.shift.abort.1: "nonsense": must be METRIC>NUMBER and a unit, such as error_rate>1% or p95_ttft>1.5x`},
		"merged":                 {standard + "pools: &a\n  <<: *a\n", `p.yaml:4: pools.<<: merge keys are not supported: write the values out`},
		"by an anchor":           {standard + "x: &r\n", `p.yaml:3: x: unknown key`},
		"empty":                  {"", `p.yaml:1: tiers: no tier "standard": requests that ask for none need it`},
		"empty tiers":            {"\ntiers:\n", `p.yaml:2: tiers: no tier "standard": requests that ask for none need it`},
		"no mapping":             {"- a\n", `p.yaml:1: must be 'key: value' lines`},
		"no YAML":                {standard + "routes: [\n", `p.yaml:3: did not find expected node content`},
		"two documents":          {standard + "---\na: b\n", `p.yaml:3: must be one YAML document, not several`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("p.yaml", []byte(tt.file))
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s\nof\n%s", err, tt.want, tt.file)
			}
		})
	}
	if _, err := Parse("p.yaml", []byte(standard+"routes:\n  a: &r\n    to: [{pool: x, weight: 1}]\n  b: *r\npools:\n")); err != nil {
		t.Errorf("anchors and empty maps: %v", err)
	}
}

// A file says only what is not as usual.
func TestDefaultsMayBeLeftOut(t *testing.T) {
	night := policy.TierDefaults("night")
	night.Share = 3
	standard := policy.TierDefaults("standard")
	standard.Retries = 0
	pools := map[string]policy.Pool{"a": {Spill: []policy.Spill{{Pool: "b", Penalty: policy.SpillPenalty}, {Pool: "c"}}}}
	routes := map[string]policy.Route{"chat": {To: []policy.Target{{Pool: "a", Weight: 1}, {Pool: "b", Weight: 0}}, Mirror: []policy.Mirror{{Pool: "b", Percent: 100}},
		Shift: &policy.Shift{To: "b", By: 10, Every: policy.Duration(2 * time.Minute)}}}
	for text, want := range map[string]*policy.Policy{
		"pools: {}\n": {Tiers: policy.DefaultTiers(), Pools: map[string]policy.Pool{}},
		"tiers: [{name: standard, retries: 0}, {name: night, share: 3}]\n":                               {Tiers: []policy.Tier{standard, night}},
		"tiers:\n  - &t {name: standard, retries: 0}\n":                                                  {Tiers: []policy.Tier{standard}},
		"pools: {a: {spill: [{pool: b}, {pool: c, penalty: 0}]}}\n":                                      {Tiers: policy.DefaultTiers(), Pools: pools},
		"routes: {chat: {to: [{pool: a}, {pool: b, weight: 0}], mirror: [{pool: b}], shift: {to: b}}}\n": {Tiers: policy.DefaultTiers(), Routes: routes},
		`{"tiers": [{"name": "standard"}, {"name": "batch"}]}`:                                           {Tiers: []policy.Tier{policy.TierDefaults("standard"), policy.TierDefaults("batch")}},
	} {
		got, err := Parse("p.yaml", []byte(text))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s\ngot  %v, %+v\nwant %+v", text, err, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(Format(everything())))
	f.Add([]byte("tiers: [{name: 1, share: x}, *a]\n? [a]\n: b\n"))
	f.Add([]byte("a: &a\n  b: *a\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse("p.yaml", b)
		if err == nil && p.Check() != nil {
			t.Errorf("accepted %q", b)
		}
	})
}
