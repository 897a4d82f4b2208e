package traffic

import (
	"math"
	"math/rand/v2"
)

// Dist is a distribution of positive numbers: lognormal, with a part of the draws from a Pareto tail.
type Dist struct {
	Median float64
	Sigma  float64 // of the logarithm: a part of 0.01 is above Median·exp(2.33·Sigma)

	Tail     float64 // the part of the draws that are from the tail; 0: none
	TailFrom float64 // the least number in the tail
	Alpha    float64 // its exponent: half of the tail is above TailFrom·2^(1/Alpha)

	Min, Max float64 // draws beyond are set to these; a Max of 0 sets no bound
}

func (d Dist) draw(rng *rand.Rand) float64 {
	x := d.Median * math.Exp(d.Sigma*rng.NormFloat64())
	if d.Tail > 0 && rng.Float64() < d.Tail {
		x = d.TailFrom * math.Pow(1-rng.Float64(), -1/d.Alpha)
	}
	if x = max(x, d.Min); d.Max > 0 {
		x = min(x, d.Max)
	}
	return x
}

// mean is that of the lognormal part, without bounds.
func (d Dist) mean() float64 { return d.Median * math.Exp(d.Sigma*d.Sigma/2) }

func (d Dist) tokens(rng *rand.Rand) int { return max(int(math.Round(d.draw(rng))), 1) }

// gamma draws from a gamma distribution with mean 1 and this coefficient of variation; 0 is always 1.
func gamma(rng *rand.Rand, cv float64) float64 {
	if cv <= 0 {
		return 1
	}
	shape := 1 / (cv * cv)
	scale, boost := 1/shape, 1.0
	if shape < 1 {
		boost = math.Pow(1-rng.Float64(), 1/shape)
		shape++
	}
	// Marsaglia and Tsang: A simple method for generating gamma variables, 2000.
	d := shape - 1./3
	c := 1 / math.Sqrt(9*d)
	for {
		x := rng.NormFloat64()
		v := 1 + c*x
		v = v * v * v
		if v > 0 && math.Log(1-rng.Float64()) < x*x/2+d-d*v+d*math.Log(v) {
			return d * v * boost * scale
		}
	}
}

// zipf draws one of n with probabilities in proportion to 1/(rank+1)^skew.
type zipf []float64 // cumulative

func newZipf(n int, skew float64) zipf {
	z, sum := make(zipf, max(n, 1)), 0.0
	for i := range z {
		sum += math.Pow(float64(i+1), -skew)
		z[i] = sum
	}
	return z
}

func (z zipf) draw(rng *rand.Rand) int {
	u := rng.Float64() * z[len(z)-1]
	for i, c := range z {
		if u < c {
			return i
		}
	}
	return len(z) - 1
}
