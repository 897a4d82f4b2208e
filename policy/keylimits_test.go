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

// begin asks n times, with one gateway, and returns how many requests were admitted.
func begin(l *policy.KeyLimits, k *policy.Key, tokens, n int, now time.Time) int {
	let := 0
	for range n {
		if _, ok := l.Begin(k, tokens, 1, now); ok {
			let++
		}
	}
	return let
}

func TestRequestsPerMinute(t *testing.T) {
	k := &policy.Key{RPM: 60}
	var l policy.KeyLimits
	for _, c := range []struct {
		after time.Duration
		want  int
		why   string
	}{
		{0, 60, "a key that was idle may use a minute's limit at once"},
		{999 * time.Millisecond, 0, "after that one in a second"},
		{time.Second, 1, "after that one in a second"},
		{time.Second, 0, "it has come already"},
		{11 * time.Second, 10, "what was not used adds up"},
		{10 * time.Minute, 60, "but to no more than the limit"},
		{5 * time.Minute, 0, "a time before the last changes nothing"},
	} {
		if got := begin(&l, k, 1, 100, noon.Add(c.after)); got != c.want {
			t.Errorf("after %v: %d requests, want %d: %s", c.after, got, c.want, c.why)
		}
	}
}

func TestAnExcessTellsWhenToComeBack(t *testing.T) {
	for _, rpm := range []int{1, 7, 60, 999, 100_000} {
		k := &policy.Key{RPM: rpm}
		var l policy.KeyLimits
		if got := begin(&l, k, 1, rpm+1, noon); got != rpm {
			t.Fatalf("RPM %d: %d at once", rpm, got)
		}
		now := noon
		for range 100 {
			e, ok := l.Begin(k, 1, 1, now)
			if ok || e.Limit != policy.LimitRequests || e.Max != rpm || e.Used != rpm || e.Asks != 1 || e.Shared {
				t.Fatalf("RPM %d: %+v, %t", rpm, e, ok)
			}
			if _, ok := l.Begin(k, 1, 1, now.Add(e.RetryAfter-time.Duration(float64(time.Minute)/float64(rpm)/100))); ok {
				t.Fatalf("RPM %d: admitted before the announced time", rpm)
			}
			now = now.Add(e.RetryAfter)
			if _, ok := l.Begin(k, 1, 1, now); !ok {
				t.Fatalf("RPM %d: refused at the announced time", rpm)
			}
		}
		if d := now.Sub(noon); math.Abs(d.Minutes()-100/float64(rpm)) > 1e-6*100/float64(rpm) {
			t.Errorf("RPM %d: 100 more took %v", rpm, d)
		}
	}
}

func TestTokensPerMinute(t *testing.T) {
	k := &policy.Key{TPM: 6000} // 100 per second
	var l policy.KeyLimits
	if got := begin(&l, k, 1000, 10, noon); got != 6 {
		t.Errorf("%d requests of 1000 estimated tokens, want 6", got)
	}
	e, _ := l.Begin(k, 1000, 1, noon)
	if e.Limit != policy.LimitTokens || e.Used != 6000 || e.Asks != 1000 || e.RetryAfter != 10*time.Millisecond {
		t.Errorf("%+v", e)
	}
	l.End(k, 2000, noon) // twice the estimate more than estimated
	if s := l.Tokens(k, noon); s != (policy.Standing{Limit: 6000, Left: 0, Reset: 80 * time.Second}) {
		t.Errorf("after a long answer: %+v", s)
	}
	if got := begin(&l, k, 1, 1, noon.Add(20*time.Second)); got != 0 {
		t.Error("admitted before the debt has drained")
	}
	l.End(k, -999, noon.Add(20*time.Second)) // less than the estimate
	if s := l.Tokens(k, noon.Add(20*time.Second)); s.Left != 999 {
		t.Errorf("after a short answer: %+v, want 999 left", s)
	}
	if got := begin(&l, k, 100_000, 2, noon.Add(20*time.Second)); got != 1 {
		t.Errorf("%d requests larger than the limit, want 1 while any token is left", got)
	}
}

func TestConcurrency(t *testing.T) {
	k := &policy.Key{Concurrency: 3}
	var l policy.KeyLimits
	if got := begin(&l, k, 1, 10, noon); got != 3 {
		t.Errorf("%d at once, want 3", got)
	}
	e, _ := l.Begin(k, 1, 1, noon)
	if e.Limit != policy.LimitConcurrency || e.Max != 3 || e.Used != 3 || e.RetryAfter != time.Second {
		t.Errorf("%+v", e)
	}
	l.End(k, 0, noon)
	if got := begin(&l, k, 1, 10, noon); got != 1 {
		t.Errorf("%d after one ended, want 1", got)
	}
	l.AddRemote(k, policy.Used{Running: 2}, noon)
	l.End(k, 0, noon)
	l.End(k, 0, noon)
	if got := begin(&l, k, 1, 10, noon); got != 0 {
		t.Errorf("%d with three others, want 0", got)
	}
	l.AddRemote(k, policy.Used{Running: -2}, noon) // its gateway died
	if got := begin(&l, k, 1, 10, noon); got != 2 {
		t.Errorf("%d after the others' ended, want 2", got)
	}
}

func TestOfSeveralLimitsTheOneThatTakesLongestIsTold(t *testing.T) {
	k := &policy.Key{RPM: 6, TPM: 6, Concurrency: 100}
	var l policy.KeyLimits
	begin(&l, k, 3, 2, noon)
	l.AddRemote(k, policy.Used{Requests: 10}, noon)
	if e, ok := l.Begin(k, 1, 1, noon); ok || e.Limit != policy.LimitRequests || e.RetryAfter != 70*time.Second {
		t.Errorf("%+v, %t, want the requests after 70 s", e, ok)
	}
	l.AddRemote(k, policy.Used{Tokens: 10}, noon)
	if e, ok := l.Begin(k, 1, 1, noon); ok || e.Limit != policy.LimitTokens || e.RetryAfter != 110*time.Second {
		t.Errorf("%+v, %t, want the tokens after 110 s", e, ok)
	}
	if own := l.Own(); own != (policy.Used{Requests: 2, Tokens: 6, Running: 2}) {
		t.Errorf("own use %+v: a request that was refused took something", own)
	}
}

func TestALimitMayChange(t *testing.T) {
	var l policy.KeyLimits
	begin(&l, &policy.Key{RPM: 60}, 1, 60, noon)
	if got := begin(&l, &policy.Key{RPM: 100}, 1, 100, noon); got != 40 {
		t.Errorf("%d more under a higher limit, want 40", got)
	}
	if got := begin(&l, &policy.Key{RPM: 60}, 1, 100, noon.Add(40*time.Second)); got != 0 {
		t.Errorf("%d more under the old limit, want 0 until it has drained", got)
	}
	if got := begin(&l, &policy.Key{}, 1, 100, noon); got != 100 {
		t.Errorf("%d of 100 without a limit", got)
	}
}

func TestAGatewayThatJoins(t *testing.T) {
	k := &policy.Key{RPM: 60}
	for _, c := range []struct {
		gateways int
		after    time.Duration
		want     int
	}{{1, 0, 60}, {3, 0, 20}, {7, 0, 9}, {100, 0, 1}, {3, 10 * time.Second, 30}, {3, time.Minute, 60}} {
		var l policy.KeyLimits
		l.Join(k, c.gateways, noon, noon.Add(c.after))
		if got := begin(&l, k, 1, 100, noon.Add(c.after)); got != c.want {
			t.Errorf("one of %d that started %v ago: %d at once, want %d", c.gateways, c.after, got, c.want)
		}
	}
}

// fleet is a set of gateways whose reports to each other arrive late.
type fleet struct {
	key      *policy.Key
	r        *rand.Rand
	gateways []*gateway
	now      time.Time

	used, worst float64 // use of RPM, as known by an observer who sees everything at once
	running     int
	most        int
	let         int
	ends        []ending
}

type gateway struct {
	limits     policy.KeyLimits
	nextReport time.Time // next report
	reported   policy.Used
	reports    []report
	busy       float64 // part of the time in which it asks
	until      time.Time
	asks       bool
}

type report struct {
	at   time.Time // when the report arrives
	used policy.Used
}

type ending struct {
	at time.Time
	of *gateway
}

const (
	tick        = 10 * time.Millisecond
	reportEvery = 100 * time.Millisecond
)

func newFleet(key *policy.Key, n int, seed uint64) *fleet {
	f := &fleet{key: key, r: rand.New(rand.NewPCG(seed, 1)), now: noon}
	for range n {
		f.gateways = append(f.gateways, &gateway{nextReport: noon.Add(time.Duration(f.r.Int64N(int64(reportEvery)))), busy: 1})
	}
	return f
}

// step advances one tick. ask returns how often a gateway is asked in it, takes how long a request
// takes.
func (f *fleet) step(ask func(g *gateway) int, takes func() time.Duration) {
	f.now = f.now.Add(tick)
	f.used = max(0, f.used-float64(f.key.RPM)*tick.Minutes())
	f.ends = slices.DeleteFunc(f.ends, func(e ending) bool {
		if e.at.After(f.now) {
			return false
		}
		e.of.limits.End(f.key, 0, f.now)
		f.running--
		return true
	})
	for _, i := range f.r.Perm(len(f.gateways)) {
		g := f.gateways[i]
		for len(g.reports) > 0 && !g.reports[0].at.After(f.now) {
			g.limits.AddRemote(f.key, g.reports[0].used, f.now)
			g.reports = g.reports[1:]
		}
		for range ask(g) {
			if _, ok := g.limits.Begin(f.key, 1, len(f.gateways), f.now); !ok {
				break
			}
			f.let++
			f.used++
			f.running++
			f.ends = append(f.ends, ending{f.now.Add(takes()), g})
			f.worst = max(f.worst, f.used-float64(f.key.RPM))
			f.most = max(f.most, f.running)
		}
		if !g.nextReport.After(f.now) {
			f.tell(g)
		}
	}
}

func (f *fleet) tell(g *gateway) {
	own := g.limits.Own()
	r := report{used: policy.Used{Requests: own.Requests - g.reported.Requests, Running: own.Running - g.reported.Running}}
	g.reported, g.nextReport = own, g.nextReport.Add(reportEvery)
	for _, other := range f.gateways {
		if other == g {
			continue
		}
		// In order, and within ReportDelay including the tick.
		r.at = f.now.Add(time.Duration(f.r.Int64N(int64(policy.ReportDelay - reportEvery - 2*tick))))
		if n := len(other.reports); n > 0 && other.reports[n-1].at.After(r.at) {
			r.at = other.reports[n-1].at
		}
		other.reports = append(other.reports, r)
	}
}

// demands are patterns of requests.
var demands = map[string]func(f *fleet) func(*gateway) int{
	"all gateways, all the time": func(f *fleet) func(*gateway) int {
		return func(*gateway) int { return math.MaxInt }
	},
	"one gateway only": func(f *fleet) func(*gateway) int {
		return func(g *gateway) int {
			if g == f.gateways[0] {
				return math.MaxInt
			}
			return 0
		}
	},
	"all at once, then nothing": func(f *fleet) func(*gateway) int {
		return func(g *gateway) int {
			if f.now.Second()%20 == 0 {
				return math.MaxInt
			}
			return 0
		}
	},
	"each by fits and starts": func(f *fleet) func(*gateway) int {
		return func(g *gateway) int {
			if !g.until.After(f.now) {
				g.asks = !g.asks
				g.until = f.now.Add(time.Duration(f.r.ExpFloat64() * float64(policy.ReportDelay)))
			}
			if g.asks {
				return 1 + f.r.IntN(f.key.RPM/len(f.gateways)+1)
			}
			return 0
		}
	},
	"one after the other": func(f *fleet) func(*gateway) int {
		return func(g *gateway) int {
			turn := int(f.now.Sub(noon)/(policy.ReportDelay-2*tick)) % len(f.gateways)
			if g == f.gateways[turn] {
				return math.MaxInt
			}
			return 0
		}
	},
	"here and there": func(f *fleet) func(*gateway) int {
		return func(*gateway) int {
			if f.r.IntN(20) == 0 {
				return 1 + f.r.IntN(3)
			}
			return 0
		}
	},
}

// With n gateways no more than n−1 requests too many are ever admitted, whatever the pattern; and
// the limit can be used up.
func TestManyGatewaysShareALimit(t *testing.T) {
	for _, rpm := range []int{1, 10, 60, 600, 6000} {
		for _, n := range []int{1, 2, 3, 5, 8} {
			for name, demand := range demands {
				f := newFleet(&policy.Key{RPM: rpm}, n, uint64(rpm*n))
				ask := demand(f)
				for range 3 * time.Minute / tick {
					f.step(ask, func() time.Duration { return 0 })
				}
				if f.worst > float64(n-1)+1e-3 {
					t.Errorf("RPM %d, %d gateways, %s: %.1f requests too many, want at most %d", rpm, n, name, f.worst, n-1)
				}
				if most := float64(4*rpm + n - 1); name == "all gateways, all the time" && float64(f.let) < 0.95*most-float64(n) {
					t.Errorf("RPM %d, %d gateways, %s: %d requests in 3 minutes, want about %.0f", rpm, n, name, f.let, most)
				}
				if name == "one gateway only" && float64(f.let) < 3.2*float64(rpm)-1 {
					t.Errorf("RPM %d, one of %d gateways asked: %d requests in 3 minutes, want at least %d", rpm, n, f.let, 3*rpm)
				}
			}
		}
	}
}

func TestManyGatewaysShareConcurrency(t *testing.T) {
	for _, limit := range []int{1, 4, 30, 300} {
		for _, n := range []int{1, 2, 3, 5, 8} {
			for name, demand := range demands {
				f := newFleet(&policy.Key{Concurrency: limit, RPM: 1e9}, n, uint64(limit*n))
				ask := demand(f)
				within := func(g *gateway) int { return min(ask(g), 2*limit) }
				for range time.Minute / tick {
					f.step(within, func() time.Duration { return time.Duration(f.r.ExpFloat64() * float64(2*time.Second)) })
				}
				if over := f.most - limit; over > n-1 {
					t.Errorf("concurrency %d, %d gateways, %s: %d requests too many, want at most %d", limit, n, name, over, n-1)
				}
				if name == "all gateways, all the time" && f.most < limit {
					t.Errorf("concurrency %d, %d gateways, %s: never more than %d at once", limit, n, name, f.most)
				}
			}
		}
	}
}

// A search for the worst case: random gateways are asked until each refuses, at random times around
// which the reports arrive.
func TestNoOrderOfRequestsBreaksALimit(t *testing.T) {
	for _, n := range []int{2, 3, 4, 8} {
		worst := 0.0
		for seed := range uint64(60) {
			f := newFleet(&policy.Key{RPM: 600}, n, seed)
			ask := func(g *gateway) int {
				if f.r.IntN(10*n) == 0 {
					return 1 + f.r.IntN(600/n)
				}
				return 0
			}
			for range 20 * time.Second / tick {
				f.step(ask, func() time.Duration { return 0 })
			}
			worst = max(worst, f.worst)
		}
		t.Logf("%d gateways: at worst %.2f requests too many", n, worst)
		if worst > float64(n-1)+1e-3 {
			t.Errorf("%d gateways: %.2f requests too many, want at most %d", n, worst, n-1)
		}
	}
}

// Beyond eight gateways nothing is proved.
func TestLargeFleetsShareALimit(t *testing.T) {
	for _, n := range []int{12, 20} {
		worst := 0.0
		for _, demand := range demands {
			f := newFleet(&policy.Key{RPM: 600}, n, uint64(n))
			ask := demand(f)
			for range time.Minute / tick {
				f.step(ask, func() time.Duration { return 0 })
			}
			worst = max(worst, f.worst)
		}
		t.Logf("%d gateways: at worst %.2f requests too many", n, worst)
		if worst > float64(n-1)+1e-3 {
			t.Errorf("%d gateways: %.2f requests too many", n, worst)
		}
	}
}

func BenchmarkLimits(b *testing.B) {
	for _, gateways := range []int{1, 3} {
		b.Run(fmt.Sprint("gateways=", gateways), func(b *testing.B) {
			k := &policy.Key{RPM: 1e9, TPM: 1e9, Concurrency: 1e9}
			var l policy.KeyLimits
			now := noon
			for b.Loop() {
				now = now.Add(time.Microsecond)
				l.Begin(k, 10, gateways, now)
				l.End(k, 5, now)
			}
		})
	}
}

// Two gateways with a claim each for what is left. Each has heard of the other's claim; the first of them gets it.
func TestClaims(t *testing.T) {
	for about, c := range map[string]struct {
		key    policy.Key
		used   policy.Used // by a third gateway
		unsure bool        // whether Begin says so, of a gateway that has just used some itself
		room   [2]bool     // whether there is room for the claims of the first and the second
	}{
		"one place left, of concurrency":  {policy.Key{Concurrency: 3}, policy.Used{}, true, [2]bool{true, false}},
		"no place left, of concurrency":   {policy.Key{Concurrency: 3}, policy.Used{Running: 1}, true, [2]bool{false, false}},
		"two places left, of concurrency": {policy.Key{Concurrency: 4}, policy.Used{}, true, [2]bool{true, true}},
		"one request left":                {policy.Key{RPM: 3}, policy.Used{}, true, [2]bool{true, false}},
		"no request left":                 {policy.Key{RPM: 3}, policy.Used{Requests: 1}, false, [2]bool{false, false}},
		"two requests left":               {policy.Key{RPM: 4}, policy.Used{}, true, [2]bool{true, true}},
		"one token left":                  {policy.Key{TPM: 21}, policy.Used{}, true, [2]bool{true, false}},
		"no token left":                   {policy.Key{TPM: 21}, policy.Used{Tokens: 1}, false, [2]bool{false, false}},
		"many tokens left":                {policy.Key{TPM: 31}, policy.Used{}, true, [2]bool{true, true}},
		"one left of two limits":          {policy.Key{RPM: 3, TPM: 1000}, policy.Used{}, true, [2]bool{true, false}},
		"nothing left of one of two":      {policy.Key{RPM: 3, Concurrency: 2}, policy.Used{Requests: 1}, false, [2]bool{false, false}},
	} {
		k := &c.key
		var first, second policy.KeyLimits
		for _, l := range []*policy.KeyLimits{&first, &second} {
			if _, ok := l.Begin(k, 10, 1, noon); !ok {
				t.Fatalf("%s: the first request is refused", about)
			}
			l.AddRemote(k, c.used, noon)
		}
		first.AddRemote(k, policy.Used{Requests: 1, Tokens: 10, Running: 1}, noon) // what the second has used
		second.AddRemote(k, policy.Used{Requests: 1, Tokens: 10, Running: 1}, noon)
		for i, l := range []*policy.KeyLimits{&first, &second} {
			over, ok := l.Begin(k, 10, 10, noon)
			if ok || over.Unsure != c.unsure {
				t.Errorf("%s: gateway %d: %t, %+v", about, i, ok, over)
			}
			l.Claim(10)
		}
		claims := policy.Claims{Requests: 1, Tokens: 10}
		if own := first.Own(); own.Claims != claims {
			t.Errorf("%s: claims %+v", about, own.Claims)
		}
		first.AddRemote(k, policy.Used{Claims: claims}, noon)
		second.AddRemote(k, policy.Used{Claims: claims, First: claims}, noon)
		if ok := second.Decide(k, 10, noon); ok != c.room[1] {
			t.Errorf("%s: the second: %t", about, ok)
		} else if ok {
			first.AddRemote(k, policy.Used{Requests: 1, Tokens: 10, Running: 1, Claims: policy.Claims{Requests: -1, Tokens: -10}}, noon)
		}
		if ok := first.Decide(k, 10, noon); ok != c.room[0] {
			t.Errorf("%s: the first: %t", about, ok)
		} else if !ok {
			first.Drop(10)
		}
		if own := first.Own(); own.Claims != (policy.Claims{}) || own.Requests != int64(1+b2i(c.room[0]))*int64(min(k.RPM, 1)) && k.RPM > 0 {
			t.Errorf("%s: at the end %+v", about, own)
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A request of another gateway that is a claim has its place until that is decided.
func TestClaimsOfOthersCount(t *testing.T) {
	k := &policy.Key{RPM: 2, Concurrency: 2}
	var l policy.KeyLimits
	claims := policy.Claims{Requests: 2, Tokens: 9}
	l.AddRemote(k, policy.Used{Claims: claims}, noon)
	if e, ok := l.Begin(k, 1, 2, noon); ok || !e.Unsure {
		t.Errorf("%+v, %t", e, ok)
	}
	l.AddRemote(k, policy.Used{Claims: policy.Claims{Requests: -2, Tokens: -9}}, noon)
	if e, ok := l.Begin(k, 1, 2, noon); !ok {
		t.Errorf("%+v", e)
	}
}
