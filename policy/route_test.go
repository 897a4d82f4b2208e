package policy_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/pulley-lb/pulley/policy"
)

func TestFindPrefersTheNameThenTheLongestHead(t *testing.T) {
	p := policy.Default()
	p.Routes = make(map[string]policy.Route)
	for _, name := range []string{"gpt-4o", "gpt-*", "gpt-4*", "gpt-4o*", "llama-70b", "meta/llama*", "meta/llama-3.1-8b*", "é*"} {
		p.Routes[name] = policy.Route{To: []policy.Target{{Pool: "to " + name, Weight: 1}}}
	}
	r := policy.NewRouter(p)
	find := func(model, want string) {
		t.Helper()
		name, route := r.Find(model)
		switch {
		case name != want || (route == nil) != (want == ""):
			t.Errorf("%q: got %q, %v; want %q", model, name, route, want)
		case route != nil && route.To[0].Pool != "to "+want:
			t.Errorf("%q: got the route to %q of %q", model, route.To[0].Pool, want)
		}
	}
	for model, want := range map[string]string{
		"gpt-4o":             "gpt-4o",
		"gpt-4o-mini":        "gpt-4o*",
		"gpt-4":              "gpt-4*",
		"gpt-4.1":            "gpt-4*",
		"gpt-5":              "gpt-*",
		"gpt-":               "gpt-*",
		"gpt":                "",
		"llama-70b":          "llama-70b",
		"llama-70b-chat":     "",
		"meta/llama-3.1-70b": "meta/llama*",
		"meta/llama-3.1-8b":  "meta/llama-3.1-8b*",
		"été":                "é*",
		"":                   "",
		"zzz":                "",
	} {
		find(model, want)
	}

	p.Routes["*"] = policy.Route{To: []policy.Target{{Pool: "to *", Weight: 1}}}
	r = policy.NewRouter(p)
	find("zzz", "*")
	find("", "*")
	find("gpt-5", "gpt-*")
}

func TestFindWithoutRoutes(t *testing.T) {
	if name, route := policy.NewRouter(policy.Default()).Find("gpt-4o"); name != "" || route != nil {
		t.Errorf("got %q, %v", name, route)
	}
}

// FuzzFind compares Find with a search through every route.
func FuzzFind(f *testing.F) {
	f.Add("a*,ab*,abc,b*", "abcd")
	f.Add("*,a*,aa*,aaa*,ab", "aab")
	f.Add("*", "")
	f.Add(",*", "")
	f.Fuzz(func(t *testing.T, routes, model string) {
		p := policy.Default()
		p.Routes = make(map[string]policy.Route)
		want, exact := "", false
		for name := range strings.SplitSeq(routes, ",") {
			if strings.Contains(strings.TrimSuffix(name, "*"), "*") {
				continue
			}
			p.Routes[name] = policy.Route{}
			switch {
			case name == model && !strings.HasSuffix(name, "*"):
				want, exact = name, true
			case !exact && policy.Matches(name, model) && len(name) > len(want):
				want = name
			}
		}
		if got, _ := policy.NewRouter(p).Find(model); got != want {
			t.Errorf("%q of %q: got %q, want %q", model, routes, got, want)
		}
	})
}

func TestPick(t *testing.T) {
	to := []policy.Target{{Pool: "none"}, {Pool: "a", Weight: 3}, {Pool: "off"}, {Pool: "b", Weight: 1}, {Pool: "last"}}
	for point, want := range map[float64]string{0: "a", 0.5: "a", 0.7499: "a", 0.75: "b", 0.9999: "b", math.Nextafter(1, 0): "b"} {
		if got := policy.Pick(to, point); got != want {
			t.Errorf("at %v: got %q, want %q", point, got, want)
		}
	}
	if got := policy.Pick(nil, 0.5); got != "" {
		t.Errorf("of nothing: got %q", got)
	}
	if got := policy.Pick([]policy.Target{{Pool: "a"}}, 0.5); got != "" {
		t.Errorf("of nothing with a weight: got %q", got)
	}
}

// Whatever the pools and wherever the growing one stands, it keeps its points.
func TestPickKeepsWhatIsOnAPoolThatGrows(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		to := make([]policy.Target, 1+rnd.IntN(5))
		for i := range to {
			to[i] = policy.Target{Pool: fmt.Sprint(i), Weight: float64(rnd.IntN(10))}
		}
		grows := rnd.IntN(len(to))
		more := append([]policy.Target(nil), to...)
		more[grows].Weight += rnd.Float64() * 20
		for range 100 {
			point := rnd.Float64()
			if policy.Pick(to, point) == to[grows].Pool && policy.Pick(more, point) != to[grows].Pool {
				t.Fatalf("%v → %v: %v left the pool that grows", to, more, point)
			}
		}
	}
}

func TestPickExchangesNothingAcrossThePoolThatGrows(t *testing.T) {
	for i := range 10_000 {
		point := float64(i) / 10_000
		before := policy.Pick([]policy.Target{{Pool: "a", Weight: 45}, {Pool: "canary", Weight: 10}, {Pool: "b", Weight: 45}}, point)
		after := policy.Pick([]policy.Target{{Pool: "a", Weight: 30}, {Pool: "canary", Weight: 40}, {Pool: "b", Weight: 30}}, point)
		if after != before && after != "canary" {
			t.Fatalf("%v moved from %q to %q", point, before, after)
		}
	}
}

func weighted(weights ...float64) []policy.Target {
	var to []policy.Target
	for i, w := range weights {
		to = append(to, policy.Target{Pool: fmt.Sprint(i), Weight: w})
	}
	return to
}

func TestSpreadSplitsByTheWeights(t *testing.T) {
	const n = 10_000
	for _, weights := range [][]float64{{50, 50}, {90, 10}, {99, 1}, {1, 1, 1}, {99.9, 0.1}, {1, 2, 3, 4, 5, 6, 7}} {
		to := weighted(weights...)
		sum := 0.0
		for _, w := range weights {
			sum += w
		}
		var s policy.Spread
		got := make(map[string]int)
		for i := range n {
			got[policy.Pick(to, s.Next())]++
			for _, target := range to { // and not only at the end
				want := float64(i+1) * target.Weight / sum
				if off := math.Abs(float64(got[target.Pool]) - want); off > 5 {
					t.Fatalf("weights %v: pool %s has %d of %d requests, want %.0f", weights, target.Pool, got[target.Pool], i+1, want)
				}
			}
		}
	}
}

func TestSpreadIsSharedByGoroutines(t *testing.T) {
	var s policy.Spread
	var wg sync.WaitGroup
	counts := make([]int, 8)
	for i := range counts {
		wg.Go(func() {
			for range 1250 {
				if policy.Pick(weighted(90, 10), s.Next()) == "1" {
					counts[i]++
				}
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range counts {
		sum += n
	}
	if sum < 995 || sum > 1005 {
		t.Errorf("got %d of 10000 on a pool of 10 %%", sum)
	}
}

// Similar hashes must get distant points.
func TestPointOfSpreadsHashes(t *testing.T) {
	for what, hash := range map[string]func(i uint64) uint64{
		"counted":          func(i uint64) uint64 { return i },
		"in the high bits": func(i uint64) uint64 { return i << 48 },
		"multiples":        func(i uint64) uint64 { return i * 1000 },
	} {
		const n = 10_000
		var parts [10]int
		for i := range uint64(n) {
			p := policy.PointOf(hash(i))
			if p < 0 || p >= 1 {
				t.Fatalf("%s: the point of %d is %v", what, i, p)
			}
			parts[int(p*10)]++
		}
		for _, got := range parts {
			if got < 850 || got > 1150 { // five standard deviations
				t.Errorf("%s: got %v, want about 1000 each", what, parts)
			}
		}
	}
}

func ExamplePick() {
	to := []policy.Target{{Pool: "llama", Weight: 90}, {Pool: "llama-new", Weight: 10}}
	var s policy.Spread
	n := make(map[string]int)
	for range 10_000 {
		n[policy.Pick(to, s.Next())]++
	}
	fmt.Println(n["llama"], n["llama-new"])
	// Output: 9001 999
}

// large is a policy of 1 000 routes, half of them patterns, 200 pools and 50 tiers, with models of
// each kind.
func large() (p *policy.Policy, models, tiers []string) {
	p = policy.Default()
	p.Pools = make(map[string]policy.Pool)
	p.Routes = make(map[string]policy.Route)
	for i := range 200 {
		p.Pools[fmt.Sprint("pool-", i)] = policy.Pool{Balance: policy.LeastLoaded}
	}
	for i := range 47 {
		tier := p.Tiers[1]
		tier.Name = fmt.Sprint("tier-", i)
		p.Tiers = append(p.Tiers, tier)
	}
	for _, t := range p.Tiers {
		tiers = append(tiers, t.Name)
	}
	for i := range 500 {
		to := []policy.Target{{Pool: fmt.Sprint("pool-", i%200), Weight: 90}, {Pool: fmt.Sprint("pool-", (i+1)%200), Weight: 10}}
		name := fmt.Sprintf("organisation-%d/model-%d", i%20, i)
		pattern := fmt.Sprintf("vendor-%d/family-%.*s*", i%20, 1+i%30, fmt.Sprint(i, "-abcdefghijklmnopqrstuvwxyz"))
		p.Routes[name], p.Routes[pattern] = policy.Route{To: to}, policy.Route{To: to}
		models = append(models, name, strings.TrimSuffix(pattern, "*")+"-instruct", fmt.Sprint("unknown-", i))
	}
	return p, models, tiers
}

func BenchmarkFind(b *testing.B) {
	p, models, _ := large()
	r := policy.NewRouter(p)
	nested := policy.Default() // a, aa, aaa and so on: every pattern matches each model
	nested.Routes = make(map[string]policy.Route)
	for i := range 250 {
		nested.Routes[strings.Repeat("a", i)+"*"] = policy.Route{}
	}
	deep := policy.NewRouter(nested)
	for what, c := range map[string]struct {
		r     *policy.Router
		model func(i int) string
	}{
		"exact":    {r, func(i int) string { return models[i%500*3] }},
		"pattern":  {r, func(i int) string { return models[i%500*3+1] }},
		"none":     {r, func(i int) string { return models[i%500*3+2] }},
		"nested":   {deep, func(int) string { return strings.Repeat("a", 100) + "b" }},
		"nested-z": {deep, func(int) string { return "b" }},
	} {
		b.Run(what, func(b *testing.B) {
			i := 0
			for b.Loop() {
				c.r.Find(c.model(i))
				i++
			}
		})
	}
}

// BenchmarkAdmission measures what the size of the policy costs a request.
func BenchmarkAdmission(b *testing.B) {
	p, models, tiers := large()
	r := policy.NewRouter(p)
	var s policy.Spread
	i, none := 0, 0
	for b.Loop() {
		pool := models[i%len(models)]
		if _, route := r.Find(pool); route != nil {
			pool = policy.Pick(route.To, s.Next())
		}
		if _, ok := p.Tier(tiers[i%len(tiers)]); !ok || p.AffinityOf(pool) == policy.AffinityOff {
			none++
		}
		i++
	}
	if none > 0 {
		b.Fatal(none)
	}
}

func BenchmarkNewRouter(b *testing.B) {
	p, _, _ := large()
	for b.Loop() {
		policy.NewRouter(p)
	}
}
