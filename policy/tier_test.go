package policy_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pulley-lb/pulley/policy"
)

func TestTierFor(t *testing.T) {
	for asked, want := range map[string]string{
		"": "standard", "auto": "standard", "default": "standard", "standard": "standard",
		"priority": "priority", "scale": "priority", "batch": "batch", "flex": "batch",
	} {
		if got, ok := policy.TierFor(asked, policy.DefaultTiers()); !ok || got.Name != want {
			t.Errorf("TierFor(%q) = %q, %v; want %q", asked, got.Name, ok, want)
		}
	}
	for _, asked := range []string{"gold", "Priority", "standard "} {
		if got, ok := policy.TierFor(asked, policy.DefaultTiers()); ok {
			t.Errorf("TierFor(%q) = %q, want none", asked, got.Name)
		}
	}
}

func TestWheelDealsEveryRoundByTheShares(t *testing.T) {
	for _, shares := range [][]int{{8, 4, 1}, {1}, {1, 1, 1}, {5, 0, 3}, {100, 1}, {0, 0, 7}} {
		sum := 0
		for _, s := range shares {
			sum += s
		}
		var w policy.Wheel
		var deals []int
		for range 5 * sum {
			deals = append(deals, w.Next(shares))
		}
		for from := range 4 * sum {
			got := make([]int, len(shares))
			for _, tier := range deals[from : from+sum] {
				got[tier]++
			}
			if fmt.Sprint(got) != fmt.Sprint(shares) {
				t.Fatalf("shares %v: the %d deals from %d are %v", shares, sum, from, got)
			}
		}
	}
}

// However tiers come and go, one that stays is dealt a slot before long.
func TestWheelNeverStarves(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var w policy.Wheel
		full := []int{1 + r.IntN(20), 1 + r.IntN(20), 1}
		waited := 0
		for range 2000 {
			shares := []int{full[0] * r.IntN(2), full[1] * r.IntN(2), 1}
			if w.Next(shares) == 2 {
				waited = 0
			} else if waited++; waited > 3*(full[0]+full[1]+1) {
				t.Fatalf("shares %v: the last tier waited for %d deals", full, waited)
			}
		}
	}
}

func TestWheelWithoutTiers(t *testing.T) {
	var w policy.Wheel
	if got := w.Next(nil); got != -1 {
		t.Errorf("got %d, want -1", got)
	}
	if got := w.Next([]int{0, 0}); got != -1 {
		t.Errorf("got %d, want -1", got)
	}
}

func ExampleWheel() {
	var w policy.Wheel
	tiers := []string{"priority", "standard", "batch"}
	for range 13 {
		fmt.Print(tiers[w.Next([]int{8, 4, 1})][:1], " ")
	}
	// Output: p s p p s p b p s p p s p
}
