package policy_test

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// sideOf is a side with so many answers and errors, and one time for all the others.
func sideOf(answers, errors int, ttft time.Duration) policy.Side {
	var s policy.Side
	for i := range answers {
		s.Observe(i >= errors, ttft, 10*ttft)
	}
	return s
}

var (
	good = sideOf(1000, 0, 300*time.Millisecond)
	bad  = sideOf(1000, 40, 800*time.Millisecond)
	none policy.Side
)

// shifting is a route of one pool that shifts to "new" by 10 % every 2 minutes.
func shifting(abort ...policy.Condition) policy.Route {
	r := policy.Route{To: []policy.Target{{Pool: "old", Weight: 1}}}
	return policy.NewShift(r, policy.Shift{To: "new", By: 10, Every: policy.Duration(2 * time.Minute), Abort: abort}, noon)
}

// at is a shifting route with a percentage on its canary.
func at(t *testing.T, percent float64, abort ...policy.Condition) policy.Route {
	t.Helper()
	r := shifting(abort...)
	for weightOf(r, "new") < percent {
		r, _ = r.StepNow(noon)
	}
	return r
}

func weightOf(r policy.Route, pool string) float64 {
	i := slices.IndexFunc(r.To, func(t policy.Target) bool { return t.Pool == pool })
	if i < 0 {
		return math.NaN()
	}
	return r.To[i].Weight
}

func TestStep(t *testing.T) {
	const early, late = time.Minute, 2 * time.Minute
	for what, c := range map[string]struct {
		route          policy.Route
		canary, stable policy.Side
		after          time.Duration
		what           string
		weight         float64 // on the canary, after that
		state          policy.ShiftState
	}{
		"the first part goes at once":             {shifting(), none, none, 0, "0 % → 10 % to new", 10, ""},
		"a step takes its time":                   {at(t, 10), good, good, early, "", 10, ""},
		"a step is over":                          {at(t, 10), good, good, late, "10 % → 20 % to new", 20, ""},
		"long over":                               {at(t, 10), good, good, time.Hour, "10 % → 20 % to new", 20, ""},
		"the canary lacks answers":                {at(t, 10), sideOf(99, 0, 1), good, time.Hour, "", 10, ""},
		"the stable side lacks answers":           {at(t, 90), good, sideOf(99, 0, 1), time.Hour, "", 90, ""},
		"just enough answers":                     {at(t, 10), sideOf(100, 0, 1), sideOf(100, 0, 1), late, "10 % → 20 % to new", 20, ""},
		"errors, without a condition on them":     {at(t, 10), bad, good, late, "10 % → 20 % to new", 20, ""},
		"errors, at once":                         {at(t, 20, "error_rate>1%"), bad, good, 0, "aborted at 20 % to new: error_rate 4.0 % (40 of 1000) > 1 %", 0, policy.ShiftAborted},
		"errors, but of few answers":              {at(t, 20, "error_rate>1%"), sideOf(99, 99, 1), good, late, "", 20, ""},
		"errors of the stable side":               {at(t, 20, "error_rate>1%"), good, bad, late, "20 % → 30 % to new", 30, ""},
		"as many errors as there may be":          {at(t, 20, "error_rate>4%"), bad, good, late, "20 % → 30 % to new", 30, ""},
		"slower":                                  {at(t, 20, "error_rate>5%", "p95_ttft>1.5x"), bad, good, 0, "aborted at 20 % to new: p95_ttft 806 ms > 1.5× 297 ms", 0, policy.ShiftAborted},
		"slower, but not by so much":              {at(t, 20, "p95_ttft>3x"), bad, good, late, "20 % → 30 % to new", 30, ""},
		"slower than what cannot be known":        {at(t, 20, "p95_ttft>1.5x"), bad, sideOf(99, 0, 1), late, "", 20, ""},
		"too slow by the clock, which is known":   {at(t, 20, "p95_ttft>500ms"), bad, sideOf(99, 0, 1), 0, "aborted at 20 % to new: p95_ttft 806 ms > 500 ms", 0, policy.ShiftAborted},
		"only errors, and a condition for a time": {at(t, 20, "p95_ttft>500ms"), sideOf(1000, 1000, 1), good, late, "", 20, ""},
		"the last step":                           {at(t, 90), good, good, late, "90 % → 100 % to new", 100, ""},
		"all on the canary, for a while yet":      {at(t, 100), good, none, early, "", 100, ""},
		"all on the canary, which lacks answers":  {at(t, 100), sideOf(99, 0, 1), none, late, "", 100, ""},
		"all on the canary, and healthy":          {at(t, 100, "p95_ttft>1.5x"), good, none, late, "done: all requests to new", 100, policy.ShiftDone},
		"all on the canary, and errors":           {at(t, 100, "error_rate>1%"), bad, none, early, "aborted at 100 % to new: error_rate 4.0 % (40 of 1000) > 1 %", 0, policy.ShiftAborted},
		"all on the canary, a few left elsewhere": {at(t, 100, "p95_ttft>1.5x"), bad, good, late, "done: all requests to new", 100, policy.ShiftDone},
		"a condition that cannot be parsed":       {at(t, 20, "slow"), good, good, 0, `aborted at 20 % to new: "slow": must be METRIC>NUMBER and a unit, such as error_rate>1% or p95_ttft>1.5x`, 0, policy.ShiftAborted},
	} {
		now := noon.Add(c.after)
		next, got := c.route.Step(c.canary, c.stable, now)
		if got != c.what || weightOf(next, "new") != c.weight || next.Shift.State != c.state {
			t.Errorf("%s: got %q, %v, state %q; want %q, %v on new, state %q", what, got, next.To, next.Shift.State, c.what, c.weight, c.state)
		}
		if since := next.Shift.Since; got != "" && !since.Equal(now) || got == "" && !since.Equal(noon) {
			t.Errorf("%s: since %v", what, since)
		}
	}
}

func TestStepOfARouteThatDoesNotShift(t *testing.T) {
	done, _ := at(t, 100).Step(good, none, noon.Add(time.Hour))
	for what, r := range map[string]policy.Route{"without a shift": {To: weighted(1)}, "that is done": done} {
		for name, step := range map[string]func() (policy.Route, string){
			"step":    func() (policy.Route, string) { return r.Step(bad, good, noon) },
			"now":     func() (policy.Route, string) { return r.StepNow(noon) },
			"promote": func() (policy.Route, string) { return r.Promote(noon) },
			"abort":   func() (policy.Route, string) { return r.AbortShift("", noon) },
		} {
			if next, got := step(); got != "" || !reflect.DeepEqual(next, r) {
				t.Errorf("a route %s: %s: %q", what, name, got)
			}
		}
	}
}

func TestNewShiftBringsThePoolIntoTheMiddle(t *testing.T) {
	for _, c := range []struct{ pools, want string }{
		{"a", "a new"}, {"a b", "a new b"}, {"a b c", "a b new c"}, {"a new b", "a new b"}, {"new", "new"},
	} {
		var r policy.Route
		for p := range strings.FieldsSeq(c.pools) {
			r.To = append(r.To, policy.Target{Pool: p, Weight: 2})
		}
		var got []string
		for _, target := range policy.NewShift(r, policy.Shift{To: "new"}, noon).To {
			got = append(got, target.Pool)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%q: got %q, want %q", c.pools, got, c.want)
		}
	}
}

func TestAbortGoesBackToWhatWasBefore(t *testing.T) {
	r := policy.Route{To: []policy.Target{{Pool: "a", Weight: 1}, {Pool: "b", Weight: 3.3}, {Pool: "new", Weight: 0.7}}}
	before := slices.Clone(r.To)
	r = policy.NewShift(r, policy.Shift{To: "new", By: 7, Every: 1}, noon)
	for range 3 {
		r, _ = r.StepNow(noon)
	}
	r, what := r.AbortShift("by ops", noon)
	if !reflect.DeepEqual(r.To, before) || r.Shift.State != policy.ShiftAborted || r.Shift.Reason != "by ops" {
		t.Errorf("got %v, %+v; want %v", r.To, r.Shift, before)
	}
	if want := "aborted at 35 % to new: by ops"; what != want {
		t.Errorf("got %q, want %q", what, want)
	}
}

// A shift in a policy file need not say what was before it.
func TestAShiftThatWasWrittenDown(t *testing.T) {
	written := policy.Route{
		To:    []policy.Target{{Pool: "old", Weight: 3}, {Pool: "new", Weight: 1}},
		Shift: &policy.Shift{To: "new", By: 50, Every: policy.Duration(time.Minute)},
	}
	aborted, _ := written.AbortShift("", noon)
	if !reflect.DeepEqual(aborted.To, written.To) {
		t.Errorf("aborted before its first step: %v, want %v", aborted.To, written.To)
	}
	r, what := written.Step(good, good, noon)
	if want := "25 % → 75 % to new"; what != want {
		t.Errorf("got %q, want %q", what, want)
	}
	if r, _ = r.AbortShift("", noon); !reflect.DeepEqual(r.To, written.To) {
		t.Errorf("aborted: %v, want %v", r.To, written.To)
	}
}

func TestPromote(t *testing.T) {
	r, what := at(t, 20).Promote(noon.Add(time.Second))
	if want := "promoted at 20 %: all requests to new"; what != want {
		t.Errorf("got %q, want %q", what, want)
	}
	if weightOf(r, "new") != 100 || weightOf(r, "old") != 0 || r.Shift.State != policy.ShiftDone {
		t.Errorf("got %v, %+v", r.To, r.Shift)
	}
}

// Whatever the route, the shift and the answers: a shift ends, each step moves By, the weights add
// up to 100, the others keep their proportions, no session leaves the canary, what is stored is
// what was decided, and no argument changes.
func TestAShiftEnds(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var r policy.Route
		for i := range 1 + rnd.IntN(4) {
			r.To = append(r.To, policy.Target{Pool: fmt.Sprint(i), Weight: math.Round(rnd.Float64()*100) / 10})
		}
		r.To[0].Weight++
		s := policy.Shift{
			To: []string{"new", "0", "1"}[rnd.IntN(3)], By: math.Round(300+rnd.Float64()*6000) / 100, Every: policy.Duration(time.Minute),
			Abort: []policy.Condition{"error_rate>3%", "p95_ttft>1.5x"}, MinSample: 10,
		}
		now := noon
		r = policy.NewShift(r, s, now)
		first := slices.Clone(r.To)
		worse := rnd.IntN(2) == 0
		steps := 0
		for r.Shift.State == policy.ShiftRunning {
			if steps++; steps > 5000 {
				t.Fatalf("%+v has not ended: %v", r.Shift, r.To)
			}
			canary, stable := sideOf(rnd.IntN(20), 0, 300*time.Millisecond), sideOf(rnd.IntN(20), 0, 300*time.Millisecond)
			if worse && rnd.IntN(20) == 0 {
				canary = sideOf(20, 1, time.Second)
			}
			now = now.Add(time.Duration(rnd.IntN(60)) * time.Second)
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			next, what := r.Step(canary, stable, now)
			if after, _ := json.Marshal(r); string(after) != string(b) {
				t.Fatalf("Step changed what it was given: %s → %s", b, after)
			}
			var stored policy.Route
			if err := json.Unmarshal(b, &stored); err != nil {
				t.Fatal(err)
			}
			if again, said := stored.Step(canary, stable, now); said != what || !reflect.DeepEqual(again, next) {
				t.Fatalf("from the store: %q, %+v; want %q, %+v", said, again, what, next)
			}
			p := policy.Default()
			p.Routes = map[string]policy.Route{"gpt-4o": next}
			if err := p.Check(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if what != "" && next.Shift.State == policy.ShiftRunning {
				checkStep(t, first, r, next)
			}
			r = next
		}
		if r.Shift.State == policy.ShiftAborted && !reflect.DeepEqual(r.To, first) {
			t.Fatalf("aborted: %v, want %v", r.To, first)
		}
	}
}

func checkStep(t *testing.T, first []policy.Target, from, to policy.Route) {
	t.Helper()
	share := func(ts []policy.Target) (canary, sum float64) {
		for _, target := range ts {
			sum += target.Weight
			if target.Pool == to.Shift.To {
				canary = target.Weight
			}
		}
		return 100 * canary / sum, sum
	}
	before, _ := share(from.To)
	after, sum := share(to.To)
	if want := min(before+to.Shift.By, 100); math.Abs(after-want) > 1e-5 || math.Abs(sum-100) > 1e-9 {
		t.Fatalf("%v → %v: %v %% and a sum of %v; want %v", from.To, to.To, after, sum, want)
	}
	began, _ := share(first)
	for i, target := range to.To {
		if target.Pool == to.Shift.To {
			continue
		}
		_, all := share(first)
		if want := 100 * first[i].Weight / all * (100 - after) / (100 - began); math.Abs(target.Weight-want) > 1e-3 {
			t.Fatalf("%v → %v: %s has %v, want %v", first, to.To, target.Pool, target.Weight, want)
		}
	}
	for i := range 200 {
		point := (float64(i) + 0.5) / 200
		if policy.Pick(from.To, point) == to.Shift.To && policy.Pick(to.To, point) != to.Shift.To {
			t.Fatalf("%v → %v: %v left the canary", from.To, to.To, point)
		}
	}
}

func TestCondition(t *testing.T) {
	for cond, c := range map[string]struct {
		canary, stable policy.Side
		fails          bool
		why            string
	}{
		"error_rate>1%":         {bad, good, true, "error_rate 4.0 % (40 of 1000) > 1 %"},
		"error_rate>4%":         {bad, good, false, "error_rate 4.0 % (40 of 1000) ≤ 4 %"},
		"error_rate>3.95%":      {bad, none, true, "error_rate 4.0 % (40 of 1000) > 3.95 %"},
		"error_rate>2x":         {bad, sideOf(1000, 10, 1), true, "error_rate 4.0 % (40 of 1000) > 2× 1.0 % (10 of 1000)"},
		"error_rate>4x":         {bad, sideOf(1000, 10, 1), false, "error_rate 4.0 % (40 of 1000) ≤ 4× 1.0 % (10 of 1000)"},
		"error_rate>3x":         {sideOf(100, 3, 1), sideOf(100, 0, 1), false, "error_rate 3.0 % (3 of 100) ≤ 3× 1.0 % (1 of 100)"},
		"error_rate>0%":         {sideOf(100, 0, 1), none, false, "error_rate 0.0 % (0 of 100) ≤ 0 %"},
		"error_rate>2.5x":       {bad, none, false, ""},
		"p95_ttft>1.5x":         {bad, good, true, "p95_ttft 806 ms > 1.5× 297 ms"},
		"p95_ttft>1.5x+50ms":    {bad, good, true, "p95_ttft 806 ms > 1.5× 297 ms + 50 ms"},
		"p95_ttft>1.5x + 0.5 s": {bad, good, false, "p95_ttft 806 ms ≤ 1.5× 297 ms + 500 ms"},
		"error_rate>2x+1%":      {bad, sideOf(1000, 10, 1), true, "error_rate 4.0 % (40 of 1000) > 2× 1.0 % (10 of 1000) + 1 %"},
		"error_rate>2x+2.5%":    {bad, sideOf(1000, 10, 1), false, "error_rate 4.0 % (40 of 1000) ≤ 2× 1.0 % (10 of 1000) + 2.5 %"},
		"p95_e2e>2x+1s":         {bad, sideOf(10, 10, time.Hour), false, ""},
		"p50_ttft>3x":           {bad, good, false, "p50_ttft 806 ms ≤ 3× 297 ms"},
		"p99_e2e>1.5x":          {bad, good, true, "p99_e2e 8.0 s > 1.5× 3.0 s"},
		"p95_ttft>500ms":        {bad, none, true, "p95_ttft 806 ms > 500 ms"},
		" p95_e2e > 0.5 s":      {bad, none, true, "p95_e2e 8.0 s > 0.5 s"},
		"p50_e2e>10s":           {bad, none, false, "p50_e2e 8.0 s ≤ 10 s"},
		"p50_e2e>2s":            {none, good, false, ""},
		"p95_e2e>1s":            {sideOf(10, 10, time.Hour), good, false, ""},
		"p95_e2e>2x":            {bad, sideOf(10, 10, time.Hour), false, ""},
	} {
		test, err := policy.ParseCondition(cond)
		if err != nil {
			t.Errorf("%s: %v", cond, err)
			continue
		}
		if fails, why := test.Fails(c.canary, c.stable); fails != c.fails || why != c.why {
			t.Errorf("%s: got %v, %q; want %v, %q", cond, fails, why, c.fails, c.why)
		}
	}
}

func TestConditionsThatAreNone(t *testing.T) {
	for cond, want := range map[string]string{
		"":                    "must be METRIC>NUMBER",
		"error_rate":          "must be METRIC>NUMBER",
		"error_rate<1%":       "must be METRIC>NUMBER",
		"errors>1%":           "must be error_rate, or p50",
		"p90_ttft>1s":         "must be error_rate, or p50",
		"p95_itl>1s":          "must be error_rate, or p50",
		"p95>1s":              "must be error_rate, or p50",
		"p95_ttft_x>1s":       "must be error_rate, or p50",
		">1%":                 "must be error_rate, or p50",
		"error_rate>":         "a unit must follow",
		"error_rate>1":        "a unit must follow",
		"error_rate>=1%":      "a number must follow",
		"error_rate>-1%":      "a number must follow",
		"error_rate>1e3%":     "error_rate is compared with % or x",
		"error_rate>1.2.3%":   "a number must follow",
		"error_rate>.%":       "a number must follow",
		"error_rate>x":        "a number must follow",
		"error_rate>NaN%":     "a number must follow",
		"error_rate>1s":       "error_rate is compared with % or x",
		"error_rate>100%":     "the rate must be below 100 percent",
		"error_rate>0x":       "the factor must be above 0",
		"p95_ttft>1001x":      "the factor must be above 0 and at most 1000",
		"p95_ttft>5%":         "a time is compared with ms, s or x",
		"p95_ttft>5m":         "a time is compared with ms, s or x",
		"p95_ttft>0ms":        "the time must be 1ms to 3600s",
		"p95_ttft>3601s":      "the time must be 1ms to 3600s",
		"p95_ttft>1.5x > 2x":  "a time is compared with",
		"p95_ttft>50ms+1.5x":  "only a multiple, with x, may have a part after a +",
		"p95_ttft>50ms+50ms":  "only a multiple, with x, may have a part after a +",
		"p95_ttft>1.5x+":      "what follows the + must be absolute",
		"p95_ttft>1.5x+2x":    "what follows the + must be absolute",
		"p95_ttft>1.5x+5%":    "what follows the + must be absolute",
		"p95_ttft>1x+1ms+1ms": "what follows the + must be absolute",
		"error_rate>2x+50ms":  "what follows the + must be absolute",
		"error_rate>1% or so": "error_rate is compared with",
		"error_rate>" + strings.Repeat("9", 400) + "%": "a number must follow",
	} {
		_, err := policy.ParseCondition(cond)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasSuffix(err.Error(), ", such as error_rate>1% or p95_ttft>1.5x") {
			t.Errorf("%q: got %v, want %q", cond, err, want)
		}
	}
}

func FuzzParseCondition(f *testing.F) {
	for _, s := range []string{"error_rate>1%", "error_rate>2x", "p95_ttft>1.5x", "p99_e2e>800ms", "p50_e2e > 3 s", ">", "p95_ttft>.", "p95_ttft>1.5x+50ms"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		test, err := policy.ParseCondition(s)
		if err != nil {
			return
		}
		if fails, why := test.Fails(good, good); why == "" || fails && strings.Contains(why, "≤") {
			t.Errorf("%q: got %v, %q", s, fails, why)
		}
	})
}

// Quantiles are those of the times themselves, to within 2.2 %.
func TestSideQuantile(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		var s policy.Side
		var ttfts, e2es []time.Duration
		for range 1 + rnd.IntN(2000) {
			ttft := time.Duration(math.Exp(rnd.NormFloat64()*2) * float64(time.Second))
			ttft = min(max(ttft, time.Millisecond), time.Hour/2)
			s.Observe(true, ttft, 2*ttft)
			ttfts, e2es = append(ttfts, ttft), append(e2es, 2*ttft)
		}
		s.Observe(false, time.Hour, time.Hour)
		slices.Sort(ttfts)
		slices.Sort(e2es)
		for _, q := range []float64{0, 0.5, 0.95, 0.99, 1} {
			for m, times := range map[policy.Metric][]time.Duration{policy.TTFT: ttfts, policy.E2E: e2es} {
				want := times[max(int(math.Ceil(q*float64(len(times))))-1, 0)]
				got, ok := s.Quantile(m, q)
				if off := math.Abs(float64(got)/float64(want) - 1); !ok || off > 0.022 {
					t.Fatalf("%s: quantile %v of %d is %v, want %v: off by %.3f", m, q, len(times), got, want, off)
				}
			}
		}
	}
}

func TestSideAtItsEnds(t *testing.T) {
	if d, ok := none.Quantile(policy.TTFT, 0.5); ok {
		t.Errorf("of nothing: %v", d)
	}
	s := sideOf(3, 3, time.Second)
	if d, ok := s.Quantile(policy.E2E, 0.5); ok || s.Answers() != 3 || s.Errors() != 3 {
		t.Errorf("of errors: %v, %d errors of %d", d, s.Errors(), s.Answers())
	}
	for d, want := range map[time.Duration]time.Duration{
		math.MinInt64: time.Millisecond, 0: time.Millisecond, time.Microsecond: time.Millisecond,
		math.MaxInt64: 1 << 22 * time.Millisecond,
	} {
		var s policy.Side
		s.Observe(true, d, d)
		if got, _ := s.Quantile(policy.TTFT, 0.5); math.Abs(float64(got)/float64(want)-1) > 0.03 {
			t.Errorf("%v: got %v, want about %v", d, got, want)
		}
	}
	var whole policy.Side
	whole.Observe(true, 0, time.Second)
	if got, _ := whole.Quantile(policy.TTFT, 0.5); got < 900*time.Millisecond {
		t.Errorf("an answer in one piece of 1 s: ttft %v", got)
	}
}

func TestSidesMerge(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var all policy.Side
	parts := make([]policy.Side, 3)
	for range 3000 {
		ok, ttft := rnd.IntN(10) > 0, time.Duration(rnd.ExpFloat64()*float64(time.Second))
		all.Observe(ok, ttft, 5*ttft)
		parts[rnd.IntN(3)].Observe(ok, ttft, 5*ttft)
	}
	var merged policy.Side
	for _, p := range parts {
		copied := p
		merged.Merge(p)
		p.Observe(true, 1, 1)
		if copied == p {
			t.Error("a copy follows its original")
		}
	}
	if merged != all {
		t.Error("the parts do not add up to the whole")
	}
}

func TestSideAsJSON(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	var s policy.Side
	for range 10_000 {
		s.Observe(rnd.IntN(100) > 0, time.Duration(math.Exp(rnd.NormFloat64())*3e8), time.Duration(math.Exp(rnd.NormFloat64())*5e9))
	}
	for what, s := range map[string]policy.Side{"empty": none, "errors": sideOf(3, 3, 1), "one": sideOf(1, 0, time.Second), "many": s} {
		b, err := json.Marshal(map[string]policy.Side{"pool": s})
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 3000 {
			t.Errorf("%s: %d bytes", what, len(b))
		}
		var back map[string]policy.Side
		if err := json.Unmarshal(b, &back); err != nil || back["pool"] != s {
			t.Errorf("%s: %s comes back otherwise: %v", what, b, err)
		}
	}
	for _, damaged := range []string{`[]`, `{"n":-1}`, `{"n":1,"errors":2}`, `{"ttft":[1]}`, `{"ttft":[352,1]}`, `{"e2e":[1,-1]}`, `{"e2e":{"1":1}}`} {
		var s policy.Side
		if err := json.Unmarshal([]byte(damaged), &s); err == nil {
			t.Errorf("%s: got %+v, want an error", damaged, s.Answers())
		}
	}
}

func ExampleRoute_Step() {
	r := policy.Route{To: []policy.Target{{Pool: "llama", Weight: 100}}}
	r = policy.NewShift(r, policy.Shift{
		To: "llama-new", By: 10, Every: policy.Duration(2 * time.Minute), Abort: []policy.Condition{"p95_ttft>1.5x"},
	}, noon)
	var canary, stable policy.Side
	r, what := r.Step(canary, stable, noon)
	fmt.Println(what)
	for range 100 {
		canary.Observe(true, 900*time.Millisecond, 8*time.Second)
		stable.Observe(true, 400*time.Millisecond, 6*time.Second)
	}
	r, what = r.Step(canary, stable, noon.Add(time.Minute))
	fmt.Println(what)
	fmt.Println(r.To)
	// Output:
	// 0 % → 10 % to llama-new
	// aborted at 10 % to llama-new: p95_ttft 918 ms > 1.5× 403 ms
	// [{llama 100} {llama-new 0}]
}

func BenchmarkSide(b *testing.B) {
	b.Run("Observe", func(b *testing.B) {
		var s policy.Side
		for b.Loop() {
			s.Observe(true, 300*time.Millisecond, 3*time.Second)
		}
	})
	b.Run("Step", func(b *testing.B) {
		r := shifting("error_rate>1%", "p95_ttft>1.5x")
		r, _ = r.StepNow(noon)
		for b.Loop() {
			r.Step(good, good, noon.Add(time.Minute))
		}
	})
}
