package chaos_test

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/chaos"
)

// What rises with each request grows. What varies, or rises at first, does not.
func TestGrowth(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	noise := func(most float64) float64 { return (rng.Float64() - 0.5) * 2 * most }
	for about, c := range map[string]struct {
		what  chaos.What
		n     func(at float64) float64 // at a second of 600
		grows bool
	}{
		"flat":                                    {chaos.Heap, func(float64) float64 { return 20 << 20 }, false},
		"a heap that varies":                      {chaos.Heap, func(float64) float64 { return 20<<20 + noise(5<<20) }, false},
		"caches that fill at first":               {chaos.Heap, func(at float64) float64 { return min(at/150, 1) * (40 << 20) }, false},
		"a heap that grows by 16 KiB a request":   {chaos.Heap, func(at float64) float64 { return 20<<20 + at*10*(16<<10) }, true},
		"the same, while it varies":               {chaos.Heap, func(at float64) float64 { return 20<<20 + at*10*(16<<10) + noise(5<<20) }, true},
		"one jump at the end":                     {chaos.Goroutines, func(at float64) float64 { return 50 + 100*max(0, min(1, at-599)) }, false},
		"goroutines as many as requests":          {chaos.Goroutines, func(at float64) float64 { return 50 + at }, true},
		"goroutines that come and go":             {chaos.Goroutines, func(at float64) float64 { return 50 + float64(int(at)%40) }, false},
		"a descriptor in ten seconds":             {chaos.Descriptors, func(at float64) float64 { return 20 + at/10 }, true},
		"a key in a minute":                       {chaos.Keys, func(at float64) float64 { return 12 + float64(int(at/60)) }, true},
		"one key more":                            {chaos.Keys, func(at float64) float64 { return 12 + float64(int(at/400)) }, false},
		"consumers that come and go":              {chaos.Consumers, func(at float64) float64 { return 15 + float64(int(at/50)%2) }, false},
		"consumers that come":                     {chaos.Consumers, func(at float64) float64 { return 15 + float64(int(at/50)) }, true},
		"a queue that is now long and now short":  {chaos.Waiting, func(float64) float64 { return 100 + noise(100) }, false},
		"a queue that gets longer":                {chaos.Waiting, func(at float64) float64 { return at }, true},
		"memory that shrinks":                     {chaos.Memory, func(at float64) float64 { return 900<<20 - at*(1<<20) }, false},
		"memory that rises below what is allowed": {chaos.Memory, func(at float64) float64 { return 90<<20 + at*(20<<10) }, false},
	} {
		s := chaos.Series{Part: "gateway-0", What: c.what}
		for at := 0.0; at < 600; at += 3 {
			s.Samples = append(s.Samples, chaos.Sample{At: chaos.Seconds(at), N: c.n(at)})
		}
		if g := s.Growth(); g.Grows != c.grows {
			t.Errorf("%s: grows %v, want %v: grown by %.0f, allowed are %.0f", about, g.Grows, c.grows, g.Grown, g.Allowed)
		}
		var text bytes.Buffer
		if grow, err := chaos.WriteGrowth(&text, []chaos.Series{s}); err != nil || (len(grow) > 0) != c.grows || strings.Contains(text.String(), "GROWS") != c.grows {
			t.Errorf("%s: %d grow, %v:\n%s", about, len(grow), err, &text)
		}
		s.Samples = s.Samples[:10]
		if s.Growth().Grows {
			t.Errorf("%s: judged by too few samples", about)
		}
	}
}
