package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSwapNext(t *testing.T) {
	const s = time.Second
	now := time.Unix(1e9, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	rule := Swap{After: 10 * s, Load: 8 * s, Tiers: []SwapTier{{Share: 8}, {Share: 4, Active: true}, {Share: 1}}}
	standard := func(d time.Duration) []time.Duration { return []time.Duration{0, d, 0} }
	batch := func(d time.Duration) []time.Duration { return []time.Duration{0, 0, d} }
	busy := SwapModel{Name: "a", Loaded: true, InFlight: 1}
	settled := Swapping{Last: ago(time.Minute)}
	tests := map[string]struct {
		was    Swapping
		models []SwapModel
		to     string // with a ! if it may start
		open   string
	}{
		"nothing is loaded: any model may come first": {Swapping{}, []SwapModel{{Name: "a"}, {Name: "b"}}, "", "a b"},
		"the loaded one has work":                     {settled, []SwapModel{busy, {Name: "b", Waits: standard(9 * s)}}, "", "a"},
		"it had some just now": {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(s / 2)}, {Name: "b", Waits: standard(s)}},
			"", "a"},
		"it has nothing to do": {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(s)}, {Name: "b"}}, "", "a b"},
		"it came in just now: that moment is longer": {Swapping{Last: ago(3 * s)}, []SwapModel{{Name: "a", Loaded: true, Used: ago(2*s - 1)}, {Name: "b"}},
			"", "a"},
		"and over": {Swapping{Last: ago(3 * s)}, []SwapModel{{Name: "a", Loaded: true, Used: ago(2 * s)}, {Name: "b"}}, "", "a b"},
		"idle: who has waited the longest is first": {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(s)},
			{Name: "b", Waits: standard(s)}, {Name: "c", Waits: standard(2 * s)}, {Name: "d"}}, "", "a c"},
		"idle: if that one does not come, any": {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(4 * s)},
			{Name: "b", Waits: standard(s)}, {Name: "c", Waits: standard(2 * s)}, {Name: "d"}}, "", "a b c d"},
		"one has waited long enough: nothing new of the old": {settled, []SwapModel{busy, {Name: "b", Waits: standard(10 * s)}}, "b", ""},
		"and then the new": {settled, []SwapModel{{Name: "a", Loaded: true, Used: now}, {Name: "b", Waits: standard(10 * s)}},
			"b!", "b"},
		"the longest wait is first": {settled, []SwapModel{busy, {Name: "b", Waits: standard(11 * s)}, {Name: "c", Waits: standard(12 * s)}},
			"c", ""},
		"what came in stays": {Swapping{Last: ago(15 * s)}, []SwapModel{busy, {Name: "b", Waits: standard(30 * s)}}, "", "a"},
		"and not for ever":   {Swapping{Last: ago(16 * s)}, []SwapModel{busy, {Name: "b", Waits: standard(30 * s)}}, "b", ""},
		"a lower tier waits for its share": {settled, []SwapModel{busy, {Name: "b", Waits: batch(39 * s)}}, "",
			"a"},
		"and gets it": {settled, []SwapModel{busy, {Name: "b", Waits: batch(40 * s)}}, "b", ""},
		"on its way": {Swapping{To: "b", From: "a", Clear: ago(s), Last: ago(9 * s)},
			[]SwapModel{{Name: "a", Loaded: true, Waits: standard(60 * s)}, {Name: "b", InFlight: 1}, {Name: "c", Waits: standard(60 * s)}}, "b!", "b"},
		"there": {Swapping{To: "b", From: "a", Clear: ago(s), Last: ago(9 * s)},
			[]SwapModel{{Name: "a", Waits: standard(60 * s)}, {Name: "b", InFlight: 1, Loaded: true}}, "", "b"},
		"started by a request that found it idle": {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(s)}, {Name: "b", InFlight: 1}}, "b!",
			"b"},
		"the request that waited was cancelled": {Swapping{To: "b", From: "a", Last: ago(20 * s)}, []SwapModel{busy, {Name: "b"}}, "", "a"},
		"who waited does not come": {Swapping{To: "b", From: "a", Clear: ago(3 * s), Last: ago(20 * s)},
			[]SwapModel{{Name: "a", Loaded: true, Used: ago(s / 2)}, {Name: "b", Waits: standard(10 * s)}}, "", "a"},
		"the load failed, and others wait": {Swapping{To: "b", From: "a", Clear: ago(s), Last: ago(20 * s)},
			[]SwapModel{{Name: "a", Loaded: true, Used: ago(9 * s)}, {Name: "b", Waits: standard(10 * s)}}, "b!", "b"},
		"it is loaded elsewhere": {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(s)}, {Name: "b", Elsewhere: true, Waits: standard(7 * s)}},
			"", "a"},
		"there they do not get to it": {settled, []SwapModel{{Name: "a", Loaded: true, Used: ago(s)}, {Name: "b", Elsewhere: true, Waits: standard(8 * s)}},
			"", "a b"},
		"elsewhere, and here is work": {settled, []SwapModel{busy, {Name: "b", Elsewhere: true, Waits: standard(17 * s)}}, "", "a"},
		"others come before":          {settled, []SwapModel{busy, {Name: "b", Delay: 2 * s, Waits: standard(11 * s)}}, "", "a"},
		"and did not":                 {settled, []SwapModel{busy, {Name: "b", Delay: 2 * s, Waits: standard(12 * s)}}, "b", ""},
		"both fit":                    {settled, []SwapModel{busy, {Name: "b", Fits: true}, {Name: "c"}}, "", "a b"},
		"beside each other":           {settled, []SwapModel{busy, {Name: "b", Fits: true, InFlight: 1}, {Name: "c"}}, "b!", "a b"},
		"two are loaded: the idle one goes": {settled, []SwapModel{busy, {Name: "b", Loaded: true, Used: ago(s)}, {Name: "c", InFlight: 1}},
			"c!", "a c"},
		"two are loaded, both with work: one goes": {settled, []SwapModel{{Name: "a", Loaded: true, InFlight: 3, Used: ago(s)},
			{Name: "b", Loaded: true, InFlight: 2, Used: ago(2 * s)}, {Name: "c", Waits: standard(10 * s)}}, "c", "a"},
		"the one on its way is served no more": {Swapping{To: "x", From: "a"}, []SwapModel{busy, {Name: "b"}}, "", "a"},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			st, open := rule.Next(test.was, test.models, now)
			var names []string
			for i, m := range test.models {
				if open[i] {
					names = append(names, m.Name)
				}
			}
			to := st.To
			if to != "" && !st.Clear.IsZero() {
				to += "!"
			}
			if got := strings.Join(names, " "); to != test.to || got != test.open {
				t.Errorf("to %q, open %q, want %q and %q", to, got, test.to, test.open)
			}
			if again, openToo := rule.Next(st, test.models, now); again != st || !slices.Equal(open, openToo) {
				t.Errorf("asked again: %+v %v, was %+v %v", again, openToo, st, open)
			}
		})
	}
}

func TestSwapNextHolds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	now := time.Unix(1e9, 0)
	upTo := func(s float64) time.Duration { return time.Duration(r.Float64() * s * float64(time.Second)) }
	for range 20000 {
		rule := Swap{After: upTo(20) + 1, Load: upTo(20) + 1, Tiers: []SwapTier{{8, r.IntN(2) == 0}, {4, r.IntN(2) == 0}, {1, r.IntN(2) == 0}}}
		models := make([]SwapModel, 1+r.IntN(5))
		names := []string{""}
		for i := range models {
			models[i] = SwapModel{Name: string(rune('a' + i)), Loaded: r.IntN(2) == 0, Fits: r.IntN(4) == 0, Elsewhere: r.IntN(3) == 0,
				InFlight: max(r.IntN(4)-1, 0), Used: now.Add(-upTo(3)), Waits: []time.Duration{upTo(30), upTo(50), upTo(100)}}
			names = append(names, models[i].Name)
		}
		was := Swapping{To: names[r.IntN(len(names))], Last: now.Add(-upTo(40))}
		if was.To != "" {
			was.From = names[r.IntN(len(names))]
		}
		if r.IntN(2) == 0 {
			was.Clear = now.Add(-upTo(3))
		}
		st, open := rule.Next(was, models, now)
		show := fmt.Sprintf("%+v %+v %+v: %+v %v", rule, was, models, st, open)
		loaded, opened := 0, 0
		for i, m := range models {
			switch {
			case m.Loaded && !open[i] && m.Name != st.From:
				t.Fatalf("%s is loaded and closed: %s", m.Name, show)
			case !m.Loaded && open[i] && st.To != "" && st.To != m.Name:
				t.Fatalf("%s is open besides the model to be loaded: %s", m.Name, show)
			case m.Name == st.To && m.Loaded, m.Name == st.From && st.To == "":
				t.Fatalf("%s: %s", m.Name, show)
			}
			if m.Loaded {
				loaded++
			}
			if open[i] {
				opened++
			}
		}
		if opened == 0 && (loaded > 0) != (st.To != "") {
			t.Fatalf("nothing is open: %s", show)
		}
		if was.To == "" && st.To != "" && now.Sub(was.Last) < rule.minStay() && find(models, st.To).InFlight == 0 {
			t.Fatalf("it did not stay: %s", show)
		}
		if was.To != "" && st.To == "" {
			continue // a swap has ended: the next may start
		}
		if again, openToo := rule.Next(st, models, now); again != st || !slices.Equal(open, openToo) {
			t.Fatalf("asked again it says %+v %v: %s", again, openToo, show)
		}
	}
}

func TestColdRung(t *testing.T) {
	for _, test := range []struct {
		rung      int
		reference float64
		load      time.Duration
		evicts    bool
		want      int
	}{
		{0, 0, time.Second, false, 8},
		{0, 0, time.Second, true, 9},
		{0, 10, 0, false, 0},
		{3, 10, 0, false, 3},
		{3, 10, 0, true, 4},
		{0, 10, 3 * time.Second, false, 1},
		{0, 10, 10 * time.Second, false, 2},
		{2, 10, 10 * time.Second, true, 4},
		{0, 1, 10 * time.Second, true, 9},
		{9, 1, 10 * time.Second, false, 8},
	} {
		if got := ColdRung(test.rung, test.reference, test.load, test.evicts); got != test.want {
			t.Errorf("ColdRung(%d, %v, %v, %v) = %d, want %d", test.rung, test.reference, test.load, test.evicts, got, test.want)
		}
	}
}

// swapSim is an engine that holds one of its models. It advances in ticks.
type swapSim struct {
	slots   int
	load    time.Duration
	service time.Duration
	perHour []float64 // requests by model
}

type swapResult struct {
	swapsPerMinute float64
	served         float64   // part of the requests
	waits          []float64 // seconds until they ran
	worst          []float64 // by model
}

func (r swapResult) String() string {
	slices.Sort(r.waits)
	at := func(q float64) float64 { return r.waits[int(q*float64(len(r.waits)-1))] }
	return fmt.Sprintf("%4.1f swaps/min, %3.0f %% served, wait p50 %6.1f s, p99 %6.1f s, worst of each %.0f",
		r.swapsPerMinute, 100*r.served, at(.5), at(.99), r.worst)
}

// The ways in which a worker may take requests for several models.
const (
	inOrder = "in order" // what Ollama does
	grouped = "grouped"  // what llama-swap does: requests of one model together, and no more of it once another is requested
	byRule  = "rule"
)

func (c swapSim) run(how string) swapResult {
	type request struct{ at, until time.Time }
	r := rand.New(rand.NewPCG(7, 7))
	start := time.Unix(1e9, 0)
	const tick, length = 100 * time.Millisecond, 30 * time.Minute
	n := len(c.perHour)
	queues, next, used := make([][]request, n), make([]time.Time, n), make([]time.Time, n)
	gap := func(m int) time.Duration { return time.Duration(r.ExpFloat64() / c.perHour[m] * float64(time.Hour)) }
	for m := range next {
		next[m] = start.Add(gap(m))
	}
	loaded, came, swaps := -1, 0, 0
	var running []request // requests of the loaded model
	var loadEnd time.Time
	var st Swapping
	rule := Swap{After: SwapAfter, Load: c.load, Tiers: []SwapTier{{Share: 1}}}
	res := swapResult{worst: make([]float64, n)}
	for now := start; now.Before(start.Add(length)); now = now.Add(tick) {
		first := -1 // the model whose request has waited longest
		for m := range next {
			for ; !next[m].After(now); next[m] = next[m].Add(gap(m)) {
				queues[m] = append(queues[m], request{at: next[m]})
				came++
			}
			if len(queues[m]) > 0 && (first < 0 || queues[m][0].at.Before(queues[first][0].at)) {
				first = m
			}
		}
		running = slices.DeleteFunc(running, func(q request) bool { return !q.until.After(now) })
		if len(running) > 0 {
			used[loaded] = now
		}
		var open []bool
		if how == byRule {
			models := make([]SwapModel, n)
			for m := range models {
				models[m] = SwapModel{Name: string(rune('a' + m)), Used: used[m], Waits: []time.Duration{0}}
				if m == loaded {
					models[m].InFlight, models[m].Loaded = len(running), !now.Before(loadEnd)
				}
				if len(queues[m]) > 0 {
					models[m].Waits[0] = now.Sub(queues[m][0].at)
				}
			}
			st, open = rule.Next(st, models, now)
		}
		for len(running) < c.slots {
			m := -1 // the model whose request is next
			for k := range queues {
				if len(queues[k]) == 0 {
					continue
				}
				may := false
				switch how {
				case inOrder:
					may = k == first
				case grouped:
					other := -1 // the model that is requested next
					for o := range queues {
						if o != loaded && len(queues[o]) > 0 && (other < 0 || queues[o][0].at.Before(queues[other][0].at)) {
							other = o
						}
					}
					at := queues[k][0].at
					may = k == other || k == loaded && (other < 0 || at.Before(loadEnd) || at.Before(queues[other][0].at))
				case byRule:
					may = open[k]
				}
				if may && (k == loaded || len(running) == 0) && (m < 0 || queues[k][0].at.Before(queues[m][0].at)) {
					m = k
				}
			}
			if m < 0 {
				break
			}
			if m != loaded {
				loaded, loadEnd = m, now.Add(c.load)
				swaps++
				if how == byRule { // decide again after each request
					open = make([]bool, n)
					open[m] = true
				}
			}
			q := queues[m][0]
			queues[m] = queues[m][1:]
			begins := now
			if loadEnd.After(now) {
				begins = loadEnd
			}
			q.until = begins.Add(c.service)
			wait := begins.Sub(q.at).Seconds()
			res.waits = append(res.waits, wait)
			res.worst[m] = max(res.worst[m], wait)
			running = append(running, q)
			first = -1
			for k := range queues {
				if len(queues[k]) > 0 && (first < 0 || queues[k][0].at.Before(queues[first][0].at)) {
					first = k
				}
			}
		}
	}
	for m, q := range queues {
		if len(q) > 0 {
			res.worst[m] = max(res.worst[m], start.Add(length).Sub(q[0].at).Seconds())
		}
	}
	res.swapsPerMinute = float64(swaps) / length.Minutes()
	res.served = float64(len(res.waits)) / float64(came)
	return res
}

func TestSwapSimulated(t *testing.T) {
	const load, service = 8 * time.Second, 4 * time.Second
	for what, perHour := range map[string][]float64{ // 3600 per hour is all that it serves without a load
		"two models, a third of the engine each":       {1200, 1200},
		"two models, a tenth each":                     {360, 360},
		"one busy, one now and then":                   {1800, 60},
		"five models, a tenth each":                    {360, 360, 360, 360, 360},
		"three models now and then":                    {30, 30, 30},
		"two models, each enough for the whole engine": {3600, 3600},
	} {
		sim := swapSim{slots: 4, load: load, service: service, perHour: perHour}
		ways := map[string]swapResult{}
		var table strings.Builder
		for _, how := range []string{inOrder, grouped, byRule} {
			ways[how] = sim.run(how)
			fmt.Fprintf(&table, "\n%-9s %v", how, ways[how])
		}
		t.Logf("%s%s", what, &table)
		rule := ways[byRule]
		if most := max(60/(load+2*load).Seconds()+0.1, ways[grouped].swapsPerMinute); rule.swapsPerMinute > most {
			t.Errorf("%s: %.1f swaps per minute, want at most %.1f", what, rule.swapsPerMinute, most)
		}
		for how, other := range ways {
			if rule.served < other.served-0.01 {
				t.Errorf("%s: served %.2f, %s %.2f", what, rule.served, how, other.served)
			}
		}
		if worst := rule.worst; slices.Max(perHour) == slices.Min(perHour) && slices.Max(worst) > 2*slices.Min(worst) {
			t.Errorf("%s: one starves: the worst waits are %.0f s", what, worst)
		}
	}
}
