package policy_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/pulley-lb/pulley/policy"
)

func TestPriceRung(t *testing.T) {
	curve := &policy.Curve{Prefill: &policy.Line{B: 0.001}, ITL: &policy.Line{A: 0.010, B: 0.001}}
	faded := *curve
	faded.Faded = true
	chat := policy.Mean{Input: 100, Output: 50, Samples: 10} // 0.65 s alone
	for what, c := range map[string]struct {
		curve     *policy.Curve
		reference float64
		n, wait   int
		weight    float64
		want      int
	}{
		"the cheapest there is":             {curve, 0.65, 1, 0, 1, 0},
		"behind a prefill":                  {curve, 0.65, 2, 1, 1, 0},
		"beside nineteen":                   {curve, 0.65, 20, 0, 1, 3}, // 1.6 s
		"the same, of twice the weight":     {curve, 0.65, 20, 0, 2, 0},
		"nobody has measured":               {nil, 0, 33, 0, 1, 5}, // its load
		"others have measured, it has not":  {nil, 0.65, 4, 0, 1, 3},
		"it has measured, and nobody heard": {curve, 0, 33, 0, 1, 5},
		"it was long ago":                   {&faded, 0.1, 1, 0, 1, 0},
		"and is tried by one request alone": {&faded, 0.1, 2, 0, 1, 7},
	} {
		if got := policy.PriceRung(c.curve, chat, c.reference, c.n, float64(c.wait), 64, c.weight); got != c.want {
			t.Errorf("%s: rung %d, want %d", what, got, c.want)
		}
	}
}

func TestLeastLoadedRung(t *testing.T) {
	for _, c := range []struct{ n, slots, want int }{
		{1, 8, 0}, {5, 8, 5}, {8, 8, 8}, {64, 64, 9}, {33, 64, 5}, {9, 16, 5}, {1, 1, 0},
	} {
		if got := policy.LeastLoadedRung(c.n, c.slots); got != c.want {
			t.Errorf("request %d of %d slots: rung %d, want %d", c.n, c.slots, got, c.want)
		}
	}
}

func TestWeightedRung(t *testing.T) {
	for _, c := range []struct {
		n          int
		weight     float64
		slots      int // of the pool
		poolWeight float64
		want       int
	}{
		{1, 1, 100, 10, 0},
		{6, 1, 100, 10, 5},  // half of the ten slots that its weight stands for
		{11, 2, 100, 10, 5}, // as dear with twice as many
		{6, 2, 100, 10, 2},
		{100, 1, 100, 10, 9},
		{4, 1, 0, 0, 3}, // nothing heard of the pool
	} {
		if got := policy.WeightedRung(c.n, c.weight, c.slots, c.poolWeight); got != c.want {
			t.Errorf("request %d at weight %v: rung %d, want %d", c.n, c.weight, got, c.want)
		}
	}
}

func TestDearer(t *testing.T) {
	for _, c := range []struct{ rung, by, want int }{{0, 2, 2}, {8, 2, 9}, {9, 9, 9}, {3, 0, 3}} {
		if got := policy.AddPenalty(c.rung, c.by); got != c.want {
			t.Errorf("Dearer(%d, %d) = %d, want %d", c.rung, c.by, got, c.want)
		}
	}
}

func TestAway(t *testing.T) {
	for what, c := range map[string]struct {
		self  string
		homes []string
		want  []string
	}{
		"all the others":      {"b", []string{"a", "b", "c"}, []string{"c", "a"}},
		"it has none itself":  {"b", []string{"a", "c"}, []string{"c", "a"}},
		"alone":               {"a", []string{"a"}, nil},
		"there are none":      {"a", nil, nil},
		"it would be the end": {"z", []string{"a", "b"}, []string{"a", "b"}},
	} {
		if got := policy.OtherHomeLanes(c.self, c.homes); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

func TestAwayInALargePoolGivesEachLaneAsManyBidders(t *testing.T) {
	var homes []string
	for i := range 100 {
		homes = append(homes, fmt.Sprintf("w%03d", i))
	}
	bidders := make(map[string]int)
	for _, self := range homes {
		away := policy.OtherHomeLanes(self, homes)
		if slices.Contains(away, self) {
			t.Errorf("%s bids on its own as on another's", self)
		}
		for _, h := range away {
			bidders[h]++
		}
	}
	for _, h := range homes {
		if bidders[h] != 4 {
			t.Errorf("%s has %d bidders beside its own worker, want 4", h, bidders[h])
		}
	}
	if !slices.IsSorted(homes) {
		t.Error("the list was changed")
	}
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
		"no reserve":                 {tiersOf(0, 0, 0), 64, []int{64, 64, 64}},
		"of the first":               {tiersOf(40, 0, 0), 10, []int{10, 6, 6}},
		"they add up":                {tiersOf(20, 10, 0), 100, []int{100, 80, 70}},
		"part of a slot is nothing":  {tiersOf(10, 0), 8, []int{8, 8}},
		"one slot is everybody's":    {tiersOf(90, 0), 1, []int{1, 1}},
		"however much is in reserve": {tiersOf(45, 45, 10), 2, []int{2, 2, 1}},
		"that of the last is its":    {tiersOf(0, 0, 50), 8, []int{8, 8, 8}},
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
		want  int // of the last tier
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
		"one slot is everybody's":              {tiersOf(90, 0), []float64{1, 0}, 1, 1},
	} {
		if got := policy.Ceiling(c.tiers, c.loads, len(c.tiers)-1, c.slots); got != c.want {
			t.Errorf("%s: the last tier may fill %d of %d slots, want %d", what, got, c.slots, c.want)
		}
	}
}

func TestOpens(t *testing.T) {
	for what, c := range map[string]struct {
		ceiling, inFlight, prefills int
		activeAbove, want           bool
	}{
		"idle":                              {6, 0, 0, true, true},
		"up to its ceiling":                 {6, 5, 0, true, true},
		"but not over it":                   {6, 6, 0, false, false},
		"a prefill waits":                   {6, 1, 1, true, false},
		"but there is nobody to be hurt":    {6, 1, 1, false, true},
		"nobody, and the reserve stays all": {6, 6, 1, false, false},
	} {
		if got := policy.MayBid(c.ceiling, c.inFlight, c.prefills, c.activeAbove); got != c.want {
			t.Errorf("%s: %t, want %t", what, got, c.want)
		}
	}
}
