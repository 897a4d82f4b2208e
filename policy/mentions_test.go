package policy_test

import (
	"slices"
	"testing"

	"github.com/pulley-lb/pulley/policy"
)

func TestMentions(t *testing.T) {
	p := policy.Default()
	p.Pools = map[string]policy.Pool{"set": {Paused: true}, "helped": {Spill: []policy.Spill{{Pool: "helper"}}}}
	p.Routes = map[string]policy.Route{
		"model": {To: []policy.Target{{Pool: "target"}, {Pool: "nothing now"}}, Mirror: []policy.Mirror{{Pool: "mirror"}}, Fallback: []string{"last", "very last"}},
		"new":   {To: []policy.Target{{Pool: "old"}}, Shift: &policy.Shift{To: "canary", Before: []policy.Target{{Pool: "before"}}}},
	}
	for _, pool := range []string{"set", "helped", "helper", "target", "nothing now", "mirror", "last", "very last", "old", "canary", "before"} {
		if !p.Mentions(pool) {
			t.Errorf("pool %s is not mentioned", pool)
		}
	}
	for _, pool := range []string{"model", "new", "other", "", "standard"} {
		if p.Mentions(pool) {
			t.Errorf("pool %q is mentioned", pool)
		}
	}
	want := []string{"before", "canary", "helped", "helper", "last", "mirror", "nothing now", "old", "set", "target", "very last"}
	if got := p.PoolNames(); !slices.Equal(got, want) {
		t.Errorf("pools %q, want %q", got, want)
	}
}
