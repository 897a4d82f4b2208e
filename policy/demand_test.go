package policy_test

import (
	"math"
	"testing"

	"github.com/pulley-lb/pulley/policy"
)

func TestDemand(t *testing.T) {
	curve := func(perPrompt, perInput, perToken, perOther float64) *policy.Curve {
		return &policy.Curve{Prefill: &policy.Line{A: perPrompt, B: perInput}, ITL: &policy.Line{A: perToken, B: perOther}}
	}
	mean := policy.Mean{Input: 100, Output: 200, Samples: 50}
	fast, slow := policy.PoolWorker{Curve: curve(0, 0.001, 0.01, 0), Slots: 4}, policy.PoolWorker{Curve: curve(0, 0.001, 0.01, 0), Slots: 2}
	wait := func(n int, input, output float64) func(*policy.Demand) {
		return func(d *policy.Demand) {
			for range n {
				d.Wait(input, output, mean)
			}
		}
	}
	run := func(n int, input float64, on int) func(*policy.Demand) {
		return func(d *policy.Demand) {
			for range n {
				d.Run(input, 0, on, mean)
			}
		}
	}
	busy := func(w policy.PoolWorker, n int) policy.PoolWorker { w.InFlight = n; return w }
	slowing := policy.PoolWorker{Curve: curve(0, 0, 0.01, 0.01), Slots: 4} // 20 ms alone, 50 ms with four
	answers := policy.PoolWorker{Curve: &policy.Curve{ITL: fast.Curve.ITL}, Slots: 4, InFlight: 4}
	prompts := func(d *policy.Demand) { // their answers have no tokens
		d.Wait(100, 0, policy.Mean{})
		d.Run(100, 0, 0, policy.Mean{})
	}
	const ahead = policy.DemandAhead
	for about, c := range map[string]struct {
		work    []func(*policy.Demand)
		workers []policy.PoolWorker
		seconds float64 // -1: unknown
		slots   int
	}{
		"nothing, and no worker":           {nil, nil, 0, 0},
		"nothing":                          {nil, []policy.PoolWorker{fast}, 0, 0},
		"a request of 0.2 s + 200 · 10 ms": {[]func(*policy.Demand){wait(1, 200, 0)}, []policy.PoolWorker{fast}, 2.2 / 4, 1},
		"a short answer by its limit":      {[]func(*policy.Demand){wait(1, 200, 100)}, []policy.PoolWorker{fast}, 1.2 / 4, 1},
		"a limit beyond the usual":         {[]func(*policy.Demand){wait(1, 200, 9999)}, []policy.PoolWorker{fast}, 2.2 / 4, 1},
		"twelve":                           {[]func(*policy.Demand){wait(12, 200, 0)}, []policy.PoolWorker{fast}, 6.6, 12},
		"twelve, and two workers":          {[]func(*policy.Demand){wait(12, 200, 0)}, []policy.PoolWorker{fast, slow}, 4.4, 12},
		"long prompts, read one by one":    {[]func(*policy.Demand){wait(6, 2000, 0)}, []policy.PoolWorker{fast}, 12, 6},
		"long ones and others":             {[]func(*policy.Demand){wait(6, 2000, 0), wait(6, 0, 0)}, []policy.PoolWorker{fast}, 15, 12},
		"no worker":                        {[]func(*policy.Demand){wait(3, 1000, 0)}, nil, -1, 3},
		"nothing measured":                 {[]func(*policy.Demand){wait(3, 1000, 0)}, []policy.PoolWorker{{Slots: 4}, {Slots: 4, Curve: new(policy.Curve)}}, -1, 3},
		"one that has measured, one not":   {[]func(*policy.Demand){wait(4, 0, 0)}, []policy.PoolWorker{fast, {Slots: 4}}, 1, 4},
		"a slower token with more at once": {[]func(*policy.Demand){wait(4, 0, 100)}, []policy.PoolWorker{slowing}, 5, 4},

		"all slots in use":                             {[]func(*policy.Demand){run(4, 0, 0)}, []policy.PoolWorker{busy(fast, 4)}, ahead, 4},
		"a slot of four, whatever its request":         {[]func(*policy.Demand){run(1, 100, 0)}, []policy.PoolWorker{busy(fast, 1)}, ahead / 4.0, 1},
		"alone, 2.5 times as fast":                     {[]func(*policy.Demand){run(1, 0, 0)}, []policy.PoolWorker{busy(slowing, 1)}, ahead * 2.5 / 4, 1},
		"with three of another gateway":                {[]func(*policy.Demand){run(1, 0, 0)}, []policy.PoolWorker{busy(slowing, 4)}, ahead / 4.0, 1},
		"more than were last reported":                 {[]func(*policy.Demand){run(2, 0, 0)}, []policy.PoolWorker{busy(slowing, 1)}, ahead * 2 * (5.0 / 3) / 4, 2},
		"prompts that wait for each other":             {[]func(*policy.Demand){run(4, 9000, 0)}, []policy.PoolWorker{busy(fast, 4)}, ahead, 4},
		"all slots of one of two":                      {[]func(*policy.Demand){run(2, 0, 1)}, []policy.PoolWorker{fast, busy(slow, 2)}, ahead / 3.0, 2},
		"on one that drains":                           {[]func(*policy.Demand){run(3, 0, -1)}, []policy.PoolWorker{fast, slow}, ahead / 2.0, 3},
		"on one that has not measured":                 {[]func(*policy.Demand){run(2, 0, 1)}, []policy.PoolWorker{fast, {Slots: 4, InFlight: 2}}, ahead / 4.0, 2},
		"some run and some wait":                       {[]func(*policy.Demand){run(4, 0, 0), wait(8, 0, 0)}, []policy.PoolWorker{busy(fast, 4)}, ahead + 4, 12},
		"prompts alone, and only answers are measured": {[]func(*policy.Demand){run(4, 0, 0), wait(4, 0, 0), prompts}, []policy.PoolWorker{answers}, ahead + 2, 10},
		"one that runs, of unknown duration":           {[]func(*policy.Demand){run(1, 1000, -1)}, nil, -1, 1},
	} {
		var d policy.Demand
		for _, add := range c.work {
			add(&d)
		}
		got, known := d.Seconds(c.workers)
		if known != (c.seconds >= 0) || known && math.Abs(got-c.seconds) > 1e-9 || d.Requests() != c.slots {
			t.Errorf("%s: %v s, known %t, %d requests, want %v s, %d", about, got, known, d.Requests(), c.seconds, c.slots)
		}
	}
}
