package policy_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

func TestAdmit(t *testing.T) {
	const minute = time.Minute
	for what, c := range map[string]struct {
		queue policy.Queue
		left  time.Duration
		want  policy.Admission
	}{
		"empty":                               {policy.Queue{Max: 10}, minute, policy.Admitted},
		"one place left":                      {policy.Queue{Waiting: 9, Max: 10, Drain: 1}, minute, policy.Admitted},
		"full":                                {policy.Queue{Waiting: 10, Max: 10, Drain: 100}, minute, policy.Full},
		"a burst that free slots take":        {policy.Queue{Waiting: 8999, Free: 12000, Max: 2000, Drain: 1}, minute, policy.Admitted},
		"a burst that fills slots and queue":  {policy.Queue{Waiting: 13999, Free: 12000, Max: 2000, Drain: 1000}, minute, policy.Admitted},
		"a burst beyond slots and queue":      {policy.Queue{Waiting: 14000, Free: 12000, Max: 2000, Drain: 1000}, minute, policy.Full},
		"too late behind those that are free": {policy.Queue{Waiting: 161, Free: 100, Max: 100, Drain: 1}, minute, policy.TooLate},
		"more than full":                      {policy.Queue{Waiting: 11, Max: 10}, minute, policy.Full},
		"in time":                             {policy.Queue{Waiting: 60, Max: 100, Drain: 1}, minute, policy.Admitted},
		"too late":                            {policy.Queue{Waiting: 61, Max: 100, Drain: 1}, minute, policy.TooLate},
		"too late, but few wait":              {policy.Queue{Waiting: 15, Max: 100, Drain: 0.001}, time.Second, policy.Admitted},
		"the drain rate is unknown":           {policy.Queue{Waiting: 99, Max: 100}, time.Second, policy.Admitted},
		"full comes before too late":          {policy.Queue{Waiting: 100, Max: 100, Drain: 0.1}, time.Second, policy.Full},
		"few wait, at a measured rate":        {policy.Queue{Waiting: 3, Free: 50, Max: 100, Drain: 2, Measured: true}, time.Second, policy.TooLate},
		"fewer wait, at a measured rate":      {policy.Queue{Waiting: 2, Free: 50, Max: 100, Drain: 2, Measured: true}, time.Second, policy.Admitted},
		"a queue that hardly drains is known": {policy.Queue{Waiting: 99, Max: 100, Drain: 1e-12}, 100 * time.Hour, policy.TooLate},
	} {
		if got := c.queue.Admit(c.left); got != c.want {
			t.Errorf("%s: got %d, want %d", what, got, c.want)
		}
	}
}

func TestRate(t *testing.T) {
	var r policy.Rate
	now := noon
	if got := r.Per(now); got != 0 {
		t.Errorf("without events: %v", got)
	}
	for range 100 { // ten per second, for ten seconds
		now = now.Add(100 * time.Millisecond)
		r.Add(now)
	}
	if got := r.Per(now); got < 9 || got > 11 {
		t.Errorf("ten a second: %v", got)
	}
	for range 1000 { // a hundred per second, for ten seconds
		now = now.Add(10 * time.Millisecond)
		r.Add(now)
	}
	if got := r.Per(now); got < 80 || got > 105 {
		t.Errorf("a hundred a second, after ten a second: %v", got)
	}
	if got := r.Per(now.Add(time.Minute)); got > 1 {
		t.Errorf("a minute after the last event: %v", got)
	}
}

// waiting is a request in these tests.
type waiting struct {
	tenant string
	cost   int
	n      int // number among the tenant's requests
}

// crowd is a Fair with a record of what it served.
type crowd struct {
	policy.Fair[waiting]
	pushed map[string]int
	served map[string]int // tokens
}

func newCrowd() *crowd { return &crowd{pushed: make(map[string]int), served: make(map[string]int)} }

func (c *crowd) push(tenant string, cost int) *policy.Ticket[waiting] {
	c.pushed[tenant]++
	return c.Push(tenant, cost, waiting{tenant, cost, c.pushed[tenant]})
}

func (c *crowd) pop(t *testing.T) waiting {
	t.Helper()
	w, ok := c.Pop()
	if !ok {
		t.Fatal("nothing waits")
	}
	c.served[w.tenant] += w.cost
	return w
}

// spreadOf is the largest difference between the tokens served.
func (c *crowd) spreadOf(tenants ...string) int {
	low, high := math.MaxInt, 0
	for _, t := range tenants {
		low, high = min(low, c.served[t]), max(high, c.served[t])
	}
	return high - low
}

func TestFairServesTenantsInTurn(t *testing.T) {
	c := newCrowd()
	for range 3 {
		c.push("flood", 10)
	}
	c.push("light", 10)
	c.push("other", 10)
	var got []string
	for c.Len() > 0 {
		w := c.pop(t)
		got = append(got, fmt.Sprint(w.tenant, w.n))
	}
	if want := []string{"flood1", "light1", "other1", "flood2", "flood3"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if w, ok := c.Pop(); ok {
		t.Errorf("got %v of nothing", w)
	}
}

// While all tenants have a backlog, the tokens served are equal to within one request at every
// moment, though requests differ a thousandfold.
func TestFairServesTheSameTokens(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	sizes := map[string]func() int{
		"small":  func() int { return 100 },
		"large":  func() int { return 100_000 },
		"mixed":  func() int { return int(100 * math.Pow(1000, rnd.Float64())) },
		"mostly": func() int { return 100 + 99_900*(rnd.IntN(50)/49) },
	}
	c := newCrowd()
	tenants := slices.Collect(func(yield func(string) bool) {
		for tenant := range sizes {
			if !yield(tenant) {
				return
			}
		}
	})
	for _, tenant := range tenants {
		c.push(tenant, sizes[tenant]())
	}
	for range 100_000 {
		w := c.pop(t)
		c.push(w.tenant, sizes[w.tenant]())
		if off := c.spreadOf(tenants...); off > 100_000 {
			t.Fatalf("served %v: %d apart", c.served, off)
		}
	}
}

// A tenant that comes for the first time, or after what it was served has been made up for, waits
// for at most one request of each other tenant.
func TestFairServesWhoComesWithinOneTurnOfEachOther(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	cost := func() int { return 1 + rnd.IntN(1000) }
	c := newCrowd()
	for i := range 20 {
		for range 100 {
			c.push(fmt.Sprint("backlog-", i), cost())
		}
	}
	for i := range 200 {
		for range rnd.IntN(30) {
			w := c.pop(t)
			c.push(w.tenant, cost())
		}
		light := fmt.Sprint("light-", i)
		c.push(light, cost())
		before := make(map[string]int)
		for {
			w := c.pop(t)
			if w.tenant == light {
				break
			}
			c.push(w.tenant, cost())
			if before[w.tenant]++; before[w.tenant] > 1 {
				t.Fatalf("%s was served %d times before %s", w.tenant, before[w.tenant], light)
			}
		}
	}
}

// Idle time gives a small burst: a tenant that was away while another was served a lot is served
// fairBurst mean requests in its place, and no more.
func TestFairGivesLittleCreditForIdleTime(t *testing.T) {
	c := newCrowd()
	for range 1000 {
		c.push("busy", 10)
	}
	for range 500 {
		c.pop(t)
	}
	for range 100 {
		c.push("back", 10)
	}
	clear(c.served)
	for range 100 {
		c.pop(t)
		if off := c.spreadOf("busy", "back"); off > 16*10+10 {
			t.Fatalf("served %v since both wait", c.served)
		}
	}
	if c.served["busy"] < 400 {
		t.Errorf("served %v since both wait", c.served)
	}
}

// An occasional tenant goes ahead of one that always has requests waiting; among occasional tenants
// the first is first.
func TestFairLetsLightTenantsAhead(t *testing.T) {
	c := newCrowd()
	for range 1000 {
		c.push("flood", 10)
	}
	for range 100 {
		c.pop(t)
	}
	for round := range 100 {
		for i := range 3 {
			c.push(fmt.Sprint("light-", (i+round)%3), 10)
		}
		for i := range 3 {
			if w := c.pop(t); w.tenant != fmt.Sprint("light-", (i+round)%3) {
				t.Fatalf("round %d: %s was served", round, w.tenant)
			}
		}
		for range 4 {
			c.pop(t)
		}
	}
}

// A tenant that never has two requests waiting gets no more tokens for that.
func TestFairRemembersWhatWasServedJustNow(t *testing.T) {
	c := newCrowd()
	for range 10_000 {
		c.push("many", 10)
	}
	c.push("one", 5000)
	for range 5000 {
		if w := c.pop(t); w.tenant == "one" {
			c.push("one", 5000)
		}
		if off := c.spreadOf("many", "one"); off > 5000 {
			t.Fatalf("served %v", c.served)
		}
	}
}

// Tenants that come and go, so that always one of them waits, do not starve one that was served a
// large request.
func TestFairStarvesNobody(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	c := newCrowd()
	const most = 1000
	tenants := []string{"a", "b", "c", "d", "e"}
	since := make(map[string]int) // tokens served to all since the tenant's first request started to wait
	for range 50_000 {
		for _, tenant := range tenants {
			if c.Waiting(tenant) == 0 && rnd.IntN(3) > 0 {
				c.push(tenant, 1+rnd.IntN(most)*rnd.IntN(2))
				since[tenant] = 0
			}
		}
		if c.Len() == 0 {
			continue
		}
		w := c.pop(t)
		since[w.tenant] = 0
		for _, tenant := range tenants {
			if c.Waiting(tenant) == 0 {
				continue
			}
			if since[tenant] += w.cost; since[tenant] > 2*most*len(tenants) {
				t.Fatalf("%s waits while the others are served %d tokens", tenant, since[tenant])
			}
		}
	}
}

// Two Fairs that report to each other what they serve act like one: tenants with a backlog get the
// same tokens, whichever Fair they wait in, and an occasional tenant goes ahead, even if no tenant
// floods the Fair that it waits in.
func TestFairsCountTogether(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 10))
	one, two := newCrowd(), newCrowd()
	where := map[string]*crowd{"small": one, "large": two}
	cost := map[string]int{"small": 100, "large": 3000}
	both := newCrowd() // what all tenants were served
	one.Keep(true)
	two.Keep(true)
	for tenant, c := range where {
		for range 2 {
			c.push(tenant, cost[tenant])
		}
	}
	for i := range 20_000 {
		from, other := one, two
		_, first, _, _ := one.Next()
		if _, second, _, _ := two.Next(); second < first {
			from, other = two, one
		}
		w := from.pop(t)
		both.served[w.tenant] += w.cost
		from.push(w.tenant, w.cost)
		other.Charge(w.tenant, uint64(w.cost))
		other.Raise(from.Level())
		if off := both.spreadOf("small", "large"); off > 3000 {
			t.Fatalf("served %v: %d apart", both.served, off)
		}
		if i > 1000 && rnd.IntN(100) == 0 {
			if two.push("light", 100); !two.Ahead() {
				t.Fatal("who asks now and then is not ahead")
			}
			if w := two.pop(t); w.tenant != "light" || two.Ahead() {
				t.Fatalf("got %v", w)
			}
		}
	}
}

// A Fair that was alone until now adopts the others' level. A tenant that waits in it neither gains
// nor loses by that; nor does one that comes after a reset.
func TestFairJoinsOthers(t *testing.T) {
	c := newCrowd()
	for range 100 {
		c.push("busy", 10)
	}
	for range 50 {
		c.pop(t)
	}
	c.Raise(1_000_000)
	if _, served, _, _ := c.Next(); c.Ahead() || served < 1_000_000 || served > 1_000_010 {
		t.Errorf("who waits was served %d, is ahead: %t", served, c.Ahead())
	}
	for c.Len() > 0 {
		c.pop(t)
	}
	if c.push("busy", 10); c.Ahead() {
		t.Error("a tenant that comes when no request waits is ahead")
	}
}

func TestFairRemove(t *testing.T) {
	c := newCrowd()
	first, second, third := c.push("a", 1), c.push("a", 1), c.push("a", 1)
	other := c.push("b", 1)
	if !c.Remove(second) || c.Remove(second) {
		t.Error("a waiting request is removed once")
	}
	if c.Len() != 3 || c.Waiting("a") != 2 {
		t.Errorf("%d wait, %d of a", c.Len(), c.Waiting("a"))
	}
	if w := c.pop(t); w.n != 1 || c.Remove(first) {
		t.Errorf("popped %v, which can be removed", w)
	}
	if !c.Remove(other) || c.Waiting("b") != 0 {
		t.Error("b's only request is not removed")
	}
	if w := c.pop(t); w.tenant != "a" || w.n != 3 || c.Remove(third) {
		t.Errorf("got %v, want the third of a", w)
	}
	if c.Len() != 0 {
		t.Errorf("%d wait", c.Len())
	}
}

// Whatever happens, each request comes out once, and each tenant's in order.
func TestFairLosesNothing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	type pushed struct {
		turn   *policy.Ticket[waiting]
		tenant string
		n      int
	}
	for range 100 {
		c := newCrowd()
		var all []pushed
		wait := make(map[string][]int) // by tenant, the numbers of the waiting requests
		for range 1000 {
			switch rnd.IntN(5) {
			case 0, 1:
				tenant := fmt.Sprint(rnd.IntN(8))
				turn := c.push(tenant, 1+rnd.IntN(1000))
				all = append(all, pushed{turn, tenant, c.pushed[tenant]})
				wait[tenant] = append(wait[tenant], c.pushed[tenant])
			case 2, 3:
				if c.Len() == 0 {
					continue
				}
				w := c.pop(t)
				if first := wait[w.tenant][0]; first != w.n {
					t.Fatalf("popped number %d of %s, want %d", w.n, w.tenant, first)
				}
				wait[w.tenant] = wait[w.tenant][1:]
			case 4:
				if len(all) == 0 {
					continue
				}
				p := all[rnd.IntN(len(all))]
				at := slices.Index(wait[p.tenant], p.n)
				if got := c.Remove(p.turn); got != (at >= 0) {
					t.Fatalf("removed number %d of %s: %v", p.n, p.tenant, got)
				}
				if at >= 0 {
					wait[p.tenant] = slices.Delete(wait[p.tenant], at, at+1)
				}
			}
			sum := 0
			for tenant, list := range wait {
				sum += len(list)
				if c.Waiting(tenant) != len(list) {
					t.Fatalf("%d of %s wait, want %d", c.Waiting(tenant), tenant, len(list))
				}
			}
			if c.Len() != sum {
				t.Fatalf("%d wait, want %d", c.Len(), sum)
			}
		}
	}
}

func TestWindow(t *testing.T) {
	for what, c := range map[string]struct {
		free, gateways int
		perSecond      float64
		low, high      int // the range that makes sense; the value inside it is tuned
	}{
		"nothing is free":           {0, 1, 0, 1, 2},
		"one gateway":               {16, 1, 0, 16, 16},
		"three gateways":            {16, 3, 0, 6, 6},
		"many gateways":             {16, 100, 0, 1, 2},
		"it leaves quickly":         {0, 1, 1000, 5, 20},
		"it leaves slowly":          {16, 1, 100, 16, 16},
		"no other gateway is known": {16, 0, 0, 16, 16},
		"less than none is free":    {-1, 1, 0, 1, 2},
		"beyond reason":             {0, 1, math.Inf(1), 1e6, 1e6},
	} {
		if got := policy.Window(c.free, c.gateways, c.perSecond); got < c.low || got > c.high {
			t.Errorf("%s: got %d, want %d to %d", what, got, c.low, c.high)
		}
	}
}

func ExampleFair() {
	var f policy.Fair[string]
	f.Push("flood", 1000, "flood's first")
	f.Push("flood", 1000, "flood's second")
	f.Push("light", 200, "light's first")
	f.Push("light", 200, "light's second")
	for f.Len() > 0 {
		item, _ := f.Pop()
		fmt.Println(item)
	}
	// Output:
	// flood's first
	// light's first
	// light's second
	// flood's second
}

func BenchmarkFair(b *testing.B) {
	for _, tenants := range []int{1, 100, 10_000} {
		names := make([]string, tenants)
		for i := range names {
			names[i] = fmt.Sprint("tenant-", i)
		}
		b.Run(fmt.Sprint("tenants=", tenants), func(b *testing.B) {
			rnd := rand.New(rand.NewPCG(1, 2))
			var f policy.Fair[string]
			for range 2 {
				for _, name := range names {
					f.Push(name, 1+rnd.IntN(1000), name)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				name, _ := f.Pop()
				f.Push(name, 1+rnd.IntN(1000), name)
			}
		})
	}
	b.Run("alone", func(b *testing.B) { // no other request waits
		var f policy.Fair[string]
		b.ReportAllocs()
		for b.Loop() {
			f.Push("tenant", 100, "")
			f.Pop()
		}
	})
}
