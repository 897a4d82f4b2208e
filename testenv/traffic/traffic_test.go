package traffic_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/pulley-lb/pulley/testenv/traffic"
)

// statistics are what the families are fitted to. Tokens, but for the last four.
type statistics struct {
	input50, input95, output50, output99 float64

	reused float64 // part of the tokens of prompts that was in the prompt before
	turns  float64 // of a conversation, as far as it is in the traffic
	burst  float64 // coefficient of variation of the gaps between conversations
	top    float64 // part of the conversations that the first tenth of the tenants have
}

func statisticsOf(rs []traffic.Request) (s statistics) {
	var inputs, outputs, gaps []float64
	turns, tenants := make(map[int]int), make(map[int]int)
	reused, last, begun := 0.0, 0.0, 0
	for _, r := range rs {
		inputs, outputs = append(inputs, float64(r.Input())), append(outputs, float64(r.Output))
		if turns[r.Conversation]++; turns[r.Conversation] == 1 {
			tenants[r.Tenant]++
		}
		if r.After >= 0 {
			reused += float64(rs[r.After].Input())
		}
		if n := len(r.Prompt); n == 1 || n == 2 && r.Prompt[0].Role == traffic.System { // it begins a conversation
			gaps, last = append(gaps, r.At-last), r.At
			begun++
		}
	}
	at := func(vs []float64, q float64) float64 { slices.Sort(vs); return vs[int(q*float64(len(vs)-1))] }
	s.reused = reused / sum(inputs)
	s.input50, s.input95, s.output50, s.output99 = at(inputs, .5), at(inputs, .95), at(outputs, .5), at(outputs, .99)
	s.turns = float64(len(rs)) / float64(len(turns))
	mean := sum(gaps) / float64(len(gaps))
	variance := 0.0
	for _, g := range gaps {
		variance += (g - mean) * (g - mean) / float64(len(gaps))
	}
	s.burst = math.Sqrt(variance) / mean
	first := 0
	most := max(slices.Max(slices.Collect(keys(tenants)))+1, 10)
	for tenant, n := range tenants {
		if tenant < (most+5)/10 {
			first += n
		}
	}
	s.top = float64(first) / float64(len(turns))
	return s
}

func keys(m map[int]int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func sum(vs []float64) (s float64) {
	for _, v := range vs {
		s += v
	}
	return s
}

// Each figure is stated with more than four times its spread over 400 seeds.
func TestFamiliesHaveThePublishedStatistics(t *testing.T) {
	type within [2]float64
	for _, c := range []struct {
		family                               traffic.Family
		rate, duration                       float64
		input50, input95, output50, output99 within
		reused, turns, burst, top            within
	}{
		{traffic.Chat(), 2, 800, within{850, 1450}, within{3500, 5800}, within{125, 155}, within{800, 1000},
			within{.57, .73}, within{2.4, 3.2}, within{1.2, 1.9}, within{.45, .7}},
		{traffic.LongPrompts(), 3, 1000, within{6000, 8200}, within{31_000, 47_000}, within{225, 275}, within{1300, 1900},
			within{.3, .47}, within{1.45, 1.8}, within{1.1, 1.6}, within{.4, .6}},
		{traffic.Reasoning(), 3, 1000, within{880, 1200}, within{4700, 7500}, within{410, 515}, within{5000, 9500},
			within{.32, .47}, within{1.55, 1.85}, within{1, 1.4}, within{.4, .6}},
		{traffic.Agents(), 0.1, 700, within{18_000, 33_000}, within{38_000, 72_000}, within{102, 118}, within{700, 1150},
			within{.95, .99}, within{25, 60}, within{.5, 1.6}, within{.1, .8}},
		{traffic.LongTail(), 2, 800, within{750, 1250}, within{3300, 8000}, within{125, 155}, within{800, 1000},
			within{.53, .77}, within{2.4, 3.2}, within{1.2, 1.9}, within{.45, .7}},
		{traffic.HotPrompt(), 4, 800, within{6100, 6250}, within{6500, 6950}, within{82, 99}, within{440, 770},
			within{.18, .29}, within{1.2, 1.4}, within{1.6, 2.6}, within{.25, .45}},
	} {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("%s, seed %d", c.family.Name, seed), func(t *testing.T) {
			rs := c.family.Generate(seed, c.rate, c.duration)
			got := statisticsOf(rs)
			t.Logf("%d requests: %+v", len(rs), got)
			for _, f := range []struct {
				what string
				got  float64
				want within
			}{
				{"p50 of prompts", got.input50, c.input50}, {"p95 of prompts", got.input95, c.input95},
				{"p50 of answers", got.output50, c.output50}, {"p99 of answers", got.output99, c.output99},
				{"reused part", got.reused, c.reused}, {"turns", got.turns, c.turns}, {"burst", got.burst, c.burst},
				{"part of the first tenants", got.top, c.top},
			} {
				if f.got < f.want[0] || f.got > f.want[1] {
					t.Errorf("%s: %.4g, want %v", f.what, f.got, f.want)
				}
			}
		})
	}
}

func TestTurnsRepeatTheirConversation(t *testing.T) {
	for _, f := range traffic.Families() {
		seed := rand.Uint64()
		branches := 0
		rs := f.Generate(seed, 0.2, 300)
		followed := make(map[int]int)
		for i, r := range rs {
			if i > 0 && r.At < rs[i-1].At || r.At < 0 || r.At >= 300 {
				t.Fatalf("%s, seed %d: request %d comes at %v after one at %v", f.Name, seed, i, r.At, rs[i-1].At)
			}
			if r.After < 0 {
				continue
			}
			before := rs[r.After]
			n := len(before.Prompt)
			if r.After >= i || len(r.Prompt) != n+2 || !slices.Equal(r.Prompt[:n], before.Prompt) ||
				r.Prompt[n].Role != traffic.Assistant || r.Prompt[n].Tokens != before.Output || r.Prompt[n+1].Role != traffic.User ||
				r.Tenant != before.Tenant || math.Abs(r.At-before.At-traffic.Nominal(before.Output)-r.Think) > 1e-6 {
				t.Fatalf("%s, seed %d: %+v does not follow %+v", f.Name, seed, r, before)
			}
			if followed[r.After]++; followed[r.After] == 2 {
				branches++
			}
		}
		if (branches > 0) != (f.Branch > 0) {
			t.Errorf("%s, seed %d: %d answers are followed by two conversations", f.Name, seed, branches)
		}
	}
}

func TestSeedsGiveTheSameTrafficAgain(t *testing.T) {
	for _, f := range traffic.Families() {
		a, b, c := f.Generate(1, 0.2, 200), f.Generate(1, 0.2, 200), f.Generate(2, 0.2, 200)
		if !reflect.DeepEqual(a, b) || reflect.DeepEqual(a, c) {
			t.Errorf("%s: the same seed has to give the same traffic, and another one other traffic", f.Name)
		}
	}
}

// The rate of conversations swings by the family's part, about its mean.
func TestRateDrifts(t *testing.T) {
	f := traffic.Chat()
	f.Swing, f.Period = 0.5, 1000
	seed := rand.Uint64()
	var begun [20]float64 // in each twentieth of a period, over ten of them
	f.Turns = traffic.Dist{Median: 1}
	for _, r := range f.Generate(seed, 5, 10*f.Period) {
		if r.After < 0 && len(r.Prompt) == 2 {
			begun[int(r.At/f.Period*20)%20]++
		}
	}
	mean := sum(begun[:]) / 20
	if least, most := slices.Min(begun[:])/mean, slices.Max(begun[:])/mean; least < 0.35 || least > 0.62 || most < 1.38 || most > 1.65 {
		t.Errorf("seed %d: the rate is %.2f to %.2f of its mean, want 0.5 to 1.5", seed, least, most)
	}
}
