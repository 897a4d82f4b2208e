package policy_test

import (
	"testing"

	"github.com/pulley-lb/pulley/policy"
)

// However many tenants want all, each of them has about the same, and another one can begin.
func TestMayRun(t *testing.T) {
	for _, c := range []struct{ all, tenants, each int }{{256, 1, 192}, {256, 2, 109}, {256, 3, 76}, {256, 10, 24}, {8, 1, 6}, {4, 1, 3}, {1, 1, 1}} {
		own, free := make([]int, c.tenants), c.all
		for round := range c.all {
			for i := range own {
				if who := (i + round) % c.tenants; policy.MayRun(own[who], free) {
					own[who]++
					free--
				}
			}
		}
		for _, n := range own {
			if n < c.each || n > c.each+1 {
				t.Errorf("%d of %d tenants: %v, want %d each", c.all, c.tenants, own, c.each)
				break
			}
		}
		if c.all > c.tenants && !policy.MayRun(0, free) {
			t.Errorf("%d of %d tenants: no room for another one", c.all, c.tenants)
		}
	}
}
