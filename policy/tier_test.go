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

// However tiers come and go, one that stays is served a slot before long.
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

func tiersOf(reserves ...int) (ts []policy.Tier) {
	for _, r := range reserves {
		ts = append(ts, policy.Tier{Reserve: r})
	}
	return ts
}

func TestCeiling(t *testing.T) {
	for what, c := range map[string]struct {
		tiers []policy.Tier
		slots int
		want  []int
	}{
		"no reserve":                           {tiersOf(0, 0, 0), 64, []int{64, 64, 64}},
		"of the first":                         {tiersOf(40, 0, 0), 10, []int{10, 6, 6}},
		"they add up":                          {tiersOf(20, 10, 0), 100, []int{100, 80, 70}},
		"part of a slot is nothing":            {tiersOf(10, 0), 8, []int{8, 8}},
		"a single slot is shared by all tiers": {tiersOf(90, 0), 1, []int{1, 1}},
		"however much is in reserve":           {tiersOf(45, 45, 10), 2, []int{2, 2, 1}},
		"that of the last is its":              {tiersOf(0, 0, 50), 8, []int{8, 8, 8}},
	} {
		for i, want := range c.want {
			if got := policy.Ceiling(c.tiers, make([]float64, len(c.tiers)), i, c.slots); got != want {
				t.Errorf("%s: tier %d may fill %d of %d slots, want %d", what, i, got, c.slots, want)
			}
		}
	}
}

func TestCeilingLeavesRoomForWhatComesAtRandom(t *testing.T) {
	for what, c := range map[string]struct {
		tiers []policy.Tier
		loads []float64
		slots int
		want  int // for the last tier
	}{
		"a third of a worker of 16 slots":      {tiersOf(10, 0), []float64{5, 9}, 16, 12},
		"a third of one of 64":                 {tiersOf(10, 0), []float64{20, 40}, 64, 58}, // the percentage is enough
		"one request in a while":               {tiersOf(10, 0), []float64{0.05, 8}, 8, 7},
		"half of one of 8":                     {tiersOf(10, 0), []float64{4, 4}, 8, 4},
		"all of it, and still no more":         {tiersOf(10, 0), []float64{8, 0}, 8, 4},
		"a smaller percentage leaves it less":  {tiersOf(5, 0), []float64{4, 4}, 8, 6},
		"none is none":                         {tiersOf(0, 0), []float64{4, 4}, 8, 8},
		"the tiers before it count as well":    {tiersOf(0, 10, 0), []float64{4, 0, 4}, 8, 4},
		"but not one between without reserve":  {tiersOf(10, 0, 0), []float64{0, 4, 4}, 8, 8},
		"what the last one has in flight, not": {tiersOf(10, 0), []float64{0, 8}, 8, 8},
		"a single slot is shared by all tiers": {tiersOf(90, 0), []float64{1, 0}, 1, 1},
	} {
		if got := policy.Ceiling(c.tiers, c.loads, len(c.tiers)-1, c.slots); got != c.want {
			t.Errorf("%s: the last tier may fill %d of %d slots, want %d", what, got, c.slots, c.want)
		}
	}
}

func TestMayBid(t *testing.T) {
	for what, c := range map[string]struct {
		ceiling, inFlight, prefills int
		activeAbove, want           bool
	}{
		"idle":                        {6, 0, 0, true, true},
		"up to its ceiling":           {6, 5, 0, true, true},
		"but not over it":             {6, 6, 0, false, false},
		"a prefill waits":             {6, 1, 1, true, false},
		"but no tier above is active": {6, 1, 1, false, true},
		"no tier above is active, and the reserve still binds": {6, 6, 1, false, false},
	} {
		if got := policy.MayBid(c.ceiling, c.inFlight, c.prefills, c.activeAbove); got != c.want {
			t.Errorf("%s: %t, want %t", what, got, c.want)
		}
	}
}
