package policy_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestRung(t *testing.T) {
	for _, c := range []struct {
		price, reference float64
		want             int
	}{
		{1, 1, 0},
		{0.5, 1, 0},
		{1.29, 1, 0},
		{1.3, 1, 1},
		{1.3 * 1.3, 1, 2},
		{2, 1, 2},
		{math.Pow(1.3, 9), 1, 9},
		{1000, 1, 9},
		{math.Inf(1), 1, 9},
		{5, 0, 0},
	} {
		if got := policy.Rung(c.price, c.reference); got != c.want {
			t.Errorf("Rung(%v, %v) = %d, want %d", c.price, c.reference, got, c.want)
		}
	}
}

// Whatever the price without load is, the cheapest worker bids low enough that dearer ones can be told from it.
func TestReferenceLeavesRungsAboveTheCheapest(t *testing.T) {
	for _, c := range []struct{ idle, now, want float64 }{
		{1, 1, 1}, {1, 2, 1}, {1, 3.7, 1}, // within five rungs, it is the price without load
		{1, 10, 10 / math.Pow(1.3, 5)}, {0.001, 10, 10 / math.Pow(1.3, 5)}, {0, 10, 10 / math.Pow(1.3, 5)},
		{1, 0, 1}, // nothing is known of now
	} {
		got := policy.Reference(c.idle, c.now)
		if math.Abs(got-c.want) > 1e-6*c.want {
			t.Errorf("Reference(%v, %v) = %v, want %v", c.idle, c.now, got, c.want)
		}
		if cheapest, twice := policy.Rung(c.now, got), policy.Rung(2*c.now, got); cheapest > policy.Rungs/2 || c.now > 0 && twice < cheapest+2 {
			t.Errorf("Reference(%v, %v): the cheapest worker is on rung %d, one twice as dear on %d", c.idle, c.now, cheapest, twice)
		}
	}
}

func TestASampleCountsByItsWeight(t *testing.T) {
	var r, alike policy.Regression
	for i := range 50 {
		at := noon.Add(time.Duration(i) * time.Second)
		r.AddOf(float64(i%5), 2+float64(i%5), 4, at)
		r.AddOf(float64(i%5), 100, 0.01, at)
		alike.AddOf(float64(i%5), 2+float64(i%5), 1, at)
	}
	for _, x := range []float64{0, 2, 4} {
		if got := r.Line().At(x); math.Abs(got-2-x) > 0.3 {
			t.Errorf("at %v: %v, want %v: what counts little has moved it", x, got, 2+x)
		}
		if got := alike.Line().At(x); math.Abs(got-2-x) > 1e-9 {
			t.Errorf("at %v: %v, want %v", x, got, 2+x)
		}
	}
}

func TestRungIsMonotoneAndScaleFree(t *testing.T) {
	last := 0
	for p := 0.1; p < 100; p *= 1.01 {
		got := policy.Rung(p, 1)
		if got < last || got > policy.Rungs-1 {
			t.Fatalf("Rung(%v, 1) = %d after %d", p, got, last)
		}
		if k := policy.Rung(p*37, 37); k != got && math.Abs(math.Mod(math.Log(p)/math.Log(1.3), 1)) > 1e-6 {
			t.Fatalf("Rung(%v, 37) = %d, want %d", p*37, k, got)
		}
		last = got
	}
}

func TestLoadRung(t *testing.T) {
	for _, c := range []struct {
		n, slots int
		weight   float64
		want     int
	}{
		{1, 8, 1, 0},
		{2, 8, 1, 1},
		{8, 8, 1, 8},
		{64, 64, 1, 9},
		{33, 64, 1, 5},
		{33, 64, 2, 2}, // counts as if it had twice the slots
		{2, 1, 1, 9},
		{8, 8, 1e-300, 9},
	} {
		if got := policy.LoadRung(c.n, c.slots, c.weight); got != c.want {
			t.Errorf("LoadRung(%d, %d, %v) = %d, want %d", c.n, c.slots, c.weight, got, c.want)
		}
	}
}

func TestTrialRung(t *testing.T) {
	for _, c := range []struct {
		n, slots int
		weight   float64
		want     int
	}{
		{1, 64, 1, 0},
		{2, 64, 1, 1}, // whatever its slots
		{4, 64, 1, 3},
		{64, 64, 1, 9},
		{4, 64, 3, 1},
		{2, 4, 1, 2}, // never below its load rung
		{8, 8, 1e-300, 9},
	} {
		if got := policy.TrialRung(c.n, c.slots, c.weight); got != c.want {
			t.Errorf("TrialRung(%d, %d, %v) = %d, want %d", c.n, c.slots, c.weight, got, c.want)
		}
	}
}

func TestPrice(t *testing.T) {
	prefill, itl := &policy.Line{B: 0.001}, &policy.Line{A: 0.010, B: 0.001}
	chat := policy.Mean{Input: 100, Output: 50, Samples: 10}
	for what, c := range map[string]struct {
		curve       *policy.Curve
		mean        policy.Mean
		n, prefills int
		want        float64
		known       bool
	}{
		"alone":                       {&policy.Curve{Prefill: prefill, ITL: itl}, chat, 1, 0, 0.1 + 50*0.011, true},
		"with nine others":            {&policy.Curve{Prefill: prefill, ITL: itl}, chat, 10, 0, 0.1 + 50*0.020, true},
		"behind two prefills":         {&policy.Curve{Prefill: prefill, ITL: itl}, chat, 3, 2, 0.3 + 50*0.013, true},
		"prefill not measured yet":    {&policy.Curve{ITL: itl}, chat, 1, 0, 50 * 0.011, true},
		"decoding not measured yet":   {&policy.Curve{Prefill: prefill}, chat, 1, 0, 0, false},
		"embeddings only prefill":     {&policy.Curve{Prefill: prefill}, policy.Mean{Input: 100, Samples: 10}, 1, 0, 0.1, true},
		"the mean request is unknown": {&policy.Curve{Prefill: prefill, ITL: itl}, policy.Mean{}, 1, 0, 0, false},
		"nothing measured":            {nil, chat, 1, 0, 0, false},
		"empty curve":                 {&policy.Curve{}, chat, 1, 0, 0, false},
	} {
		got, known := c.curve.Price(c.mean, c.n, float64(c.prefills))
		if known != c.known || math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: price %v, %v; want %v, %v", what, got, known, c.want, c.known)
		}
	}
}

func TestMean(t *testing.T) {
	var m policy.Mean
	m.Add(100, 10)
	m.Add(300, 30)
	if want := (policy.Mean{Input: 200, Output: 20, Samples: 2}); m != want {
		t.Errorf("got %+v, want %+v", m, want)
	}
	for range 10 * policy.MeanMemory {
		m.Add(1000, 500)
	}
	if math.Abs(m.Input-1000) > 1 || math.Abs(m.Output-500) > 1 || m.Samples != policy.MeanMemory {
		t.Errorf("the mean remembers too long: %+v", m)
	}
	joined := policy.MeanOf([]policy.Mean{{Input: 10, Output: 1, Samples: 30}, {}, {Input: 50, Output: 5, Samples: 10}})
	if want := (policy.Mean{Input: 20, Output: 2, Samples: 40}); joined != want {
		t.Errorf("joined %+v, want %+v", joined, want)
	}
	if none := policy.MeanOf(nil); none != (policy.Mean{}) {
		t.Errorf("the mean of nothing is %+v", none)
	}
}

// A loaded fast worker and an idle slow one may have the same price.
func ExampleRung() {
	mean := policy.Mean{Input: 1000, Output: 250, Samples: 100}
	fast := &policy.Curve{Prefill: &policy.Line{B: 1 / 20000.}, ITL: &policy.Line{A: 0.010, B: 0.0002}}
	slow := &policy.Curve{Prefill: &policy.Line{B: 1 / 8000.}, ITL: &policy.Line{A: 0.020, B: 0.0005}}

	reference, _ := fast.Price(mean, 1, 0)
	for _, inFlight := range []int{0, 20, 55} {
		price, _ := fast.Price(mean, inFlight+1, 0)
		fmt.Printf("fast, %2d in flight: %.1f s, rung %d\n", inFlight, price, policy.Rung(price, reference))
	}
	price, _ := slow.Price(mean, 1, 0)
	fmt.Printf("slow,  0 in flight: %.1f s, rung %d\n", price, policy.Rung(price, reference))
	// Output:
	// fast,  0 in flight: 2.6 s, rung 0
	// fast, 20 in flight: 3.6 s, rung 1
	// fast, 55 in flight: 5.3 s, rung 2
	// slow,  0 in flight: 5.2 s, rung 2
}

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
		"the cheapest there is":                         {curve, 0.65, 1, 0, 1, 0},
		"behind a prefill":                              {curve, 0.65, 2, 1, 1, 0},
		"with nineteen others":                          {curve, 0.65, 20, 0, 1, 3}, // 1.6 s
		"the same, of twice the weight":                 {curve, 0.65, 20, 0, 2, 0},
		"no worker has measured":                        {nil, 0, 33, 0, 1, 5}, // its load rung
		"others have measured, it has not":              {nil, 0.65, 4, 0, 1, 3},
		"it has measured, and the reference is missing": {curve, 0, 33, 0, 1, 5},
		"it was long ago":                               {&faded, 0.1, 1, 0, 1, 0},
		"and is tried by one request alone":             {&faded, 0.1, 2, 0, 1, 7},
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
		{11, 2, 100, 10, 5}, // the same rung with twice as many
		{6, 2, 100, 10, 2},
		{100, 1, 100, 10, 9},
		{4, 1, 0, 0, 3}, // the pool is unknown
	} {
		if got := policy.WeightedRung(c.n, c.weight, c.slots, c.poolWeight); got != c.want {
			t.Errorf("request %d at weight %v: rung %d, want %d", c.n, c.weight, got, c.want)
		}
	}
}

func TestAddPenalty(t *testing.T) {
	for _, c := range []struct{ rung, by, want int }{{0, 2, 2}, {8, 2, 9}, {9, 9, 9}, {3, 0, 3}} {
		if got := policy.AddPenalty(c.rung, c.by); got != c.want {
			t.Errorf("AddPenalty(%d, %d) = %d, want %d", c.rung, c.by, got, c.want)
		}
	}
}

func TestMayWaitAtHome(t *testing.T) {
	for what, c := range map[string]struct {
		work   float64
		before int
		others bool
		want   bool
	}{
		"little waits":  {3, 0, false, true},
		"too much does": {31, 0, false, false},
		"many follow-ups, and nothing else waits": {3, 100, false, true},
		"a few, and others wait":                  {3, 7, true, true},
		"many, and others wait":                   {3, 8, true, false},
	} {
		if got := policy.MayWaitAtHome(c.work, c.before, c.others); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}

// However dear a worker is, its own home lane is dearer to the others that are as dear.
func TestHomeRungIsBelowThatOfOthers(t *testing.T) {
	for rung := range policy.Rungs {
		if home, away := policy.HomeRung(rung), policy.AddPenalty(rung, policy.HomePenalty); home >= away || home > rung {
			t.Errorf("rung %d: %d at home, %d elsewhere", rung, home, away)
		}
	}
}

func TestOtherHomeLanes(t *testing.T) {
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

func TestOtherHomeLanesInALargePoolGivesEachLaneAsManyBidders(t *testing.T) {
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
			t.Errorf("%s has %d bidders besides its own worker, want 4", h, bidders[h])
		}
	}
	if !slices.IsSorted(homes) {
		t.Error("the list was changed")
	}
}

// fitted adds noisy samples of a line to a regression; noise is relative to the value.
func fitted(f *policy.Regression, line policy.Line, samples int, noise float64, now time.Time) {
	r := rand.New(rand.NewPCG(1, 2))
	for range samples {
		x := 1 + 63*r.Float64()
		f.Add(x, line.At(x)*(1-noise+2*noise*r.Float64()), now)
	}
}

func TestRegressionRecoversALineFromNoisySamples(t *testing.T) {
	for _, want := range []policy.Line{
		{A: 0.010, B: 0.0002},
		{A: 0.035, B: 0.0012},
		{A: 0, B: 0.001},
	} {
		var f policy.Regression
		fitted(&f, want, 1000, 0.2, noon)
		got := f.Line()
		for _, x := range []float64{1, 16, 64} {
			if math.Abs(got.At(x)-want.At(x)) > 0.1*want.At(32) {
				t.Errorf("%+v: fitted %+v, which is %.5f at %v, want %.5f", want, *got, got.At(x), x, want.At(x))
			}
		}
	}
}

func TestRegressionFollowsAChange(t *testing.T) {
	var f policy.Regression
	fitted(&f, policy.Line{A: 0.010}, 1000, 0.1, noon)
	fitted(&f, policy.Line{A: 0.030}, 1000, 0.1, noon)
	if got := f.Line().At(30); math.Abs(got-0.030) > 0.003 {
		t.Errorf("after 1000 samples of 0.030 the fit says %.4f", got)
	}
}

func TestRegressionIsNeverNegative(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		var f policy.Regression
		n := 2 + r.IntN(20)
		for range n {
			f.Add(r.Float64()*100, r.Float64(), noon)
		}
		if l := f.Line(); l != nil && (l.A < 0 || l.B < 0 || math.IsNaN(l.A+l.B)) {
			t.Fatalf("%d samples: fitted %+v", n, *l)
		}
	}
	var falling policy.Regression
	for x := range 20 {
		falling.Add(float64(x), float64(100-x), noon)
	}
	if l := falling.Line(); l.B != 0 || l.A <= 0 {
		t.Errorf("a falling line is fitted as %+v, want a constant above 0", *l)
	}
}

func TestRegressionWithoutSpreadIsTheMean(t *testing.T) {
	var f policy.Regression
	for _, y := range []float64{1, 2, 3, 2, 1, 3} {
		f.Add(8, y, noon)
	}
	if l := f.Line(); l.B != 0 || math.Abs(l.A-2) > 0.02 {
		t.Errorf("fitted %+v, want about 2 everywhere", *l)
	}
}

func TestRegressionFades(t *testing.T) {
	var f policy.Regression
	if f.Line() != nil {
		t.Error("a line without samples")
	}
	f.Add(1, 1, noon)
	if f.Line() != nil {
		t.Error("a line from one sample: an outlier would decide alone")
	}
	fitted(&f, policy.Line{A: 1}, 100, 0, noon)
	if f.Faded(noon.Add(policy.FadeAfter)) {
		t.Error("the estimate faded too early")
	}
	late := noon.Add(policy.FadeAfter + time.Second)
	if l := f.Line(); !f.Faded(late) || l == nil || math.Abs(l.At(10)-1) > 1e-9 {
		t.Errorf("after %v: faded %t, %+v, want the old line, faded", late.Sub(noon), f.Faded(late), l)
	}
	f.Add(10, 5, late)
	if l := f.Line(); f.Faded(late) || math.Abs(l.At(10)-5) > 0.5 {
		t.Errorf("after a new sample: faded %t, %+v, want about 5, not faded", f.Faded(late), l)
	}
	fitted(&f, policy.Line{A: 5}, 10, 0, late)
	if l := f.Line(); math.Abs(l.At(10)-5) > 0.1 {
		t.Errorf("after it faded, the old samples still count: %+v, want 5", l)
	}
}
