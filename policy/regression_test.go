package policy_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

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
