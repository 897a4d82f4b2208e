package policy_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// flowing lets a Flow see n requests that are taken at a rate, each after such a wait.
func flowing(f *policy.Flow, n int, perSecond float64, waited time.Duration, now *time.Time) {
	for range n {
		*now = now.Add(time.Duration(float64(time.Second) / perSecond))
		f.Took(waited, *now)
	}
}

func TestFlow(t *testing.T) {
	for about, c := range map[string]struct {
		see  func(f *policy.Flow, now *time.Time)
		want float64 // 0: unknown
	}{
		"nothing was taken":  {func(f *policy.Flow, now *time.Time) {}, 0},
		"nobody has to wait": {func(f *policy.Flow, now *time.Time) { flowing(f, 1000, 50, 5*time.Millisecond, now) }, 0},
		"few have waited":    {func(f *policy.Flow, now *time.Time) { flowing(f, 6, 1, time.Second, now) }, 0},
		"for a short time":   {func(f *policy.Flow, now *time.Time) { flowing(f, 100, 200, time.Second, now) }, 0},
		"20 a second":        {func(f *policy.Flow, now *time.Time) { flowing(f, 100, 20, time.Second, now) }, 20},
		"one in two seconds": {func(f *policy.Flow, now *time.Time) { flowing(f, 30, 0.5, 10*time.Second, now) }, 0.5},
		"what the rate is by now": {func(f *policy.Flow, now *time.Time) {
			flowing(f, 1000, 100, time.Second, now)
			flowing(f, 100, 5, time.Second, now)
		}, 5},
		"before they had to wait": {func(f *policy.Flow, now *time.Time) {
			flowing(f, 1000, 5, 0, now)
			flowing(f, 200, 40, 500*time.Millisecond, now)
		}, 40},
		"they no longer wait": {func(f *policy.Flow, now *time.Time) {
			flowing(f, 100, 20, time.Second, now)
			flowing(f, 30, 20, 0, now)
		}, 0},
		"others wait for one worker": {func(f *policy.Flow, now *time.Time) {
			flowing(f, 100, 20, 5*time.Millisecond, now)
			flowing(f, 100, 20, -1, now)
		}, 0},
		"before a pause": {func(f *policy.Flow, now *time.Time) {
			flowing(f, 100, 20, time.Second, now)
			f.Waiting(false, *now)
			*now = now.Add(time.Minute)
			f.Waiting(true, *now)
			f.Took(0, *now)
		}, 0},
		"time in which none waits does not count": {func(f *policy.Flow, now *time.Time) {
			for range 100 { // one a second, each after 200 ms
				f.Waiting(false, *now)
				*now = now.Add(800 * time.Millisecond)
				f.Waiting(true, *now)
				flowing(f, 1, 5, 200*time.Millisecond, now)
			}
		}, 5},
		"a model was loaded": {func(f *policy.Flow, now *time.Time) {
			flowing(f, 100, 20, time.Second, now)
			*now = now.Add(30 * time.Second)
			flowing(f, 12, 1000, 30*time.Second, now)
		}, 0},
		"as it is after a model was loaded": {func(f *policy.Flow, now *time.Time) {
			flowing(f, 100, 20, time.Second, now)
			*now = now.Add(30 * time.Second)
			flowing(f, 40, 10, 30*time.Second, now)
		}, 10},
		"all slots are taken at once, and again": {func(f *policy.Flow, now *time.Time) {
			f.Service(10 * time.Second)
			for range 4 {
				flowing(f, 64, 1000, 10*time.Second, now)
				*now = now.Add(9936 * time.Millisecond)
			}
			f.Took(10*time.Second, *now)
		}, 6.4},
		"the first worker comes": {func(f *policy.Flow, now *time.Time) {
			f.Took(time.Minute, *now)
			flowing(f, 100, 50, 5*time.Millisecond, now)
		}, 0},
	} {
		f, now := new(policy.Flow), noon
		f.Waiting(true, now)
		c.see(f, &now)
		got, ok := f.PerSecond(now)
		if ok != (c.want > 0) || math.Abs(got-c.want) > 0.2*c.want {
			t.Errorf("%s: %v %v, want %v", about, got, ok, c.want)
		}
	}
}

// A pool in which nothing is taken any more has no rate: its model is loaded, or its workers are gone.
func TestFlowThatStops(t *testing.T) {
	f, now := new(policy.Flow), noon
	f.Waiting(true, now)
	flowing(f, 100, 20, time.Second, &now)
	slower, ok := f.PerSecond(now.Add(time.Second))
	if !ok || slower > 17 {
		t.Errorf("a second without one: %v %v, want less than 17", slower, ok)
	}
	if got, ok := f.PerSecond(now.Add(2100 * time.Millisecond)); ok {
		t.Errorf("two seconds without one: %v, want unknown", got)
	}
	if got := f.Latest(now.Add(50 * time.Second)); math.Abs(got-20) > 1 {
		t.Errorf("the latest rate: %v, want 20", got)
	}
	if got := f.Latest(now.Add(61 * time.Second)); got != 0 {
		t.Errorf("the latest rate a minute later: %v, want none", got)
	}
}

func TestReturns(t *testing.T) {
	if got := new(policy.Returns).Next(0, 0, noon); got != 5*time.Second {
		t.Errorf("where the rate is unknown: %v", got)
	}
	if got := new(policy.Returns).Next(time.Hour, 10, noon); got != time.Minute {
		t.Errorf("where there is no room for long: %v", got)
	}
	// Clients that are refused together come again as they can be served.
	var r policy.Returns
	var back []time.Duration
	for range 400 {
		back = append(back, r.Next(500*time.Millisecond, 10, noon))
	}
	for i, d := range back {
		if want := max(500*time.Millisecond+time.Duration(i)*100*time.Millisecond, time.Second); d != want {
			t.Fatalf("the %d. comes again after %v, want %v", i, d, want)
		}
	}
	// Those that come after these do not wait for them.
	if got := r.Next(0, 10, noon.Add(time.Minute)); got != time.Second {
		t.Errorf("a minute later: %v", got)
	}
}

func TestReturnsWithinBounds(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		var r policy.Returns
		now, rate := noon, rnd.ExpFloat64()*10
		for range 2000 {
			now = now.Add(time.Duration(rnd.ExpFloat64() * 1e8))
			if got := r.Next(time.Duration(rnd.ExpFloat64()*1e10), rate, now); got < time.Second || got > time.Minute {
				t.Fatalf("at %v a second: %v", rate, got)
			}
		}
	}
}

func TestRoom(t *testing.T) {
	for about, c := range map[string]struct {
		queue policy.Queue
		limit time.Duration
		want  time.Duration
	}{
		"there is room":          {policy.Queue{Waiting: 5, Max: 10, Drain: 10, Measured: true}, time.Second, 0},
		"one must leave":         {policy.Queue{Waiting: 10, Max: 10, Drain: 10}, time.Minute, 100 * time.Millisecond},
		"those with slots aside": {policy.Queue{Waiting: 15, Free: 4, Max: 10, Drain: 10}, time.Minute, 200 * time.Millisecond},
		"it would wait too long": {policy.Queue{Waiting: 30, Max: 100, Drain: 10, Measured: true}, time.Second, 2 * time.Second},
		"the rate is unknown":    {policy.Queue{Waiting: 100, Max: 10}, time.Second, 0},
		"it hardly drains":       {policy.Queue{Waiting: 1e9, Max: 10, Drain: 1e-9}, time.Second, 1e6 * time.Second},
	} {
		if got := c.queue.Room(c.limit); got != c.want {
			t.Errorf("%s: %v, want %v", about, got, c.want)
		}
	}
}

func TestHoldsBack(t *testing.T) {
	for _, c := range []struct {
		maxWait time.Duration
		work    float64
		want    bool
	}{
		{0, 1000, false}, // any wait is allowed
		{time.Second, 0.9, false},
		{time.Second, 1.1, true},
		{10 * time.Millisecond, 0.2, false}, // the engine would idle
		{10 * time.Millisecond, 0.3, true},
	} {
		if got := policy.HoldsBack(c.maxWait, c.work); got != c.want {
			t.Errorf("%v, %v s of prompts: %v", c.maxWait, c.work, got)
		}
	}
}

func TestFairAfter(t *testing.T) {
	var f policy.Fair[int]
	for range 10 {
		f.Push("a", 1, 0)
	}
	f.Push("b", 1, 0)
	for tenant, want := range map[string]int{"a": 0, "b": 8, "c": 9} {
		if got := f.After(tenant); got != want {
			t.Errorf("after a request of %s come %d, want %d", tenant, got, want)
		}
	}
}
