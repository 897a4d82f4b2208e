package policy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

func TestRationOf(t *testing.T) {
	for name, c := range map[string]struct {
		free     [Rungs]int
		rate     float64
		want     Ration
		rationed bool
	}{
		"nobody":                   {},
		"as many as park":          {free: [Rungs]int{30, 0, 34}},
		"one more":                 {free: [Rungs]int{30, 0, 34, 1}, want: Ration{3, 0}, rationed: true},
		"all at one rung":          {free: [Rungs]int{1000}, want: Ration{0, 0.064}, rationed: true},
		"a part of the second":     {free: [Rungs]int{24, 160, 500}, want: Ration{1, 0.25}, rationed: true},
		"dear ones only":           {free: [Rungs]int{9: 128}, want: Ration{9, 0.5}, rationed: true},
		"the cheap ones are full":  {free: [Rungs]int{0, 0, 32, 0, 64}, want: Ration{4, 0.5}, rationed: true},
		"at 36 requests/s":         {free: [Rungs]int{1000}, rate: 36, want: Ration{0, 0.1}, rationed: true},
		"at more than they are":    {free: [Rungs]int{1000}, rate: 1e12},
		"at a rate that is none":   {free: [Rungs]int{640}, rate: math.NaN(), want: Ration{0, 0.1}, rationed: true},
		"exactly the cheapest ten": {free: [Rungs]int{64, 0, 0, 10}, want: Ration{3, 0}, rationed: true},
	} {
		if got, rationed := RationOf(c.free, c.rate); got != c.want || rationed != c.rationed {
			t.Errorf("%s: %+v, %v, want %+v, %v", name, got, rationed, c.want, c.rationed)
		}
	}
}

// Whatever the prices of a fleet, about as many workers park as are wanted, and none that is dearer than one that does not.
func TestTheCheapestPark(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		n := 65 + rng.IntN(2000)
		spread := 1 + rng.IntN(Rungs)
		rungs, free := make([]int, n), [Rungs]int{}
		for i := range rungs {
			rungs[i] = rng.IntN(spread)
			free[rungs[i]]++
		}
		r, _ := RationOf(free, 0)
		parked, dearest, cheapestAside := 0, -1, Rungs
		for i, rung := range rungs {
			if r.Parks(rung, Draw(fmt.Sprintf("gpu-%d", i), "m")) {
				parked, dearest = parked+1, max(dearest, rung)
			} else {
				cheapestAside = min(cheapestAside, rung)
			}
		}
		if parked < ParkTarget/2 || parked > 2*ParkTarget || dearest > cheapestAside {
			t.Errorf("%d workers on %d rungs: %d park by %+v, the dearest at %d, the cheapest aside at %d", n, spread, parked, r, dearest, cheapestAside)
		}
	}
}

func TestDrawsAreSpread(t *testing.T) {
	for _, pool := range []string{"m", "org/model:70b", ""} {
		var tenths [10]int
		for i := range 10_000 {
			d := Draw(fmt.Sprintf("worker-%d", i), pool)
			if d < 0 || d >= 1 || d != Draw(fmt.Sprintf("worker-%d", i), pool) {
				t.Fatalf("draw %v", d)
			}
			tenths[int(10*d)]++
		}
		for i, n := range tenths {
			if n < 900 || n > 1100 {
				t.Errorf("pool %q: %d of 10 000 draws in tenth %d", pool, n, i)
			}
		}
	}
	if Draw("w", "a") == Draw("w", "b") {
		t.Error("a worker has the same draw in two pools")
	}
}
