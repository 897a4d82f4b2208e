package policy

import (
	"math"
	"time"
)

// KeyLimits is one gateway's view of the use of one API key: its own use, and what the other gateways reported. The
// zero value is a key that was never used. It is not safe for concurrent use. Every method takes the key, whose limits
// may change at any time without losing what was used.
//
// # What a limit means
//
// RPM and TPM are buckets. What was used drains at the limit per minute, and a request is admitted while the limit
// minus what was used has room for it. So a key that was idle may use the limit of a minute at once, and in any period
// t no more than limit × (1 + t/minute). Concurrency is a plain count.
//
// A request counts one against RPM. Against TPM it counts the estimate of its input, and when it has ended what the
// engine reported: input and output. It is admitted while any token is left. So TPM may be exceeded by what is in
// flight; that debt drains before anything else is admitted, and in the long run no more than the limit is used.
//
// # Any number of gateways
//
// Each gateway decides alone and at once. Every subjects.UsageEvery they report to each other what
// they have used. In between, a gateway assumes that each of the n−1 others has used, unreported,
// as much as itself in the last n × ReportDelay, and admits a request while
//
//	left − (n−1) × own recent use ≥ 1
//
// With one gateway that is exact. With n, all together admit at most n−1 requests too many: one for
// each further gateway. This too is a debt that drains: it does not accumulate. For RPM, a gateway that used the key
// recently counts the request that it admits as one that the others admit too. So RPM is exact unless all gateways that
// admit at once are at their first request.
//
// Proof. Let D be ReportDelay and W = n×D. Consider the moment after some admission. Order the gateways by the time of
// their last admission, and let R be those from the latest one back to the first gap of D or more. Every gateway in R
// has received all that the others ever used. Within R the last admissions are less than (n−1)×D apart, so what k used
// and j could not have received at its own last admission, or what came later, is in the W before k's last admission:
// it is at most k's own recent use. Let j be the gateway in R with the largest. At its last admission it saw left ≥
// (n−1)×(own recent use − 1), counting that admission; what it did not see is at most n−1 times its own recent use. So
// what is really left is at least −(n−1), and with the request that RPM adds, 0. Draining only adds to it, and use that is reported late only drains later.
// For Concurrency, own recent use is how far the own count is above its lowest value in W, and the same holds.
//
// The price: a gateway that serves a key alone may use at once one n-th of what is left, the next n-th of the rest W
// later, and so on. It reaches the full rate as long as (n−1)×W is below a minute. To ensure that, W stops growing at
// maxWindow × D; with more gateways the bound is not proved, only simulated.
//
// # Requests that wait for the others' word
//
// What ended at another gateway a moment ago, and what is kept free for others that use nothing, must not refuse a client that
// sends one request after the other. So a request that Begin refuses while what is known leaves room, or for Concurrency, which may be
// free again, becomes a claim (Claim): its gateway tells the others of it, hears from each what it uses and claims, and then
// decides by that (Decide). Claims of others count in Begin; in Decide those of gateways that come first, so that of two claims for the
// last place one succeeds. That adds nothing to what may be exceeded: of a request that was decided and any of another
// gateway, one knew of the other. For either the other gateway counted its own before it answered, or it counted it later and
// then knew of the claim.
//
// What breaks the bound: where reports take longer than ReportDelay, what is admitted meanwhile may
// come on top. And a gateway that starts knows nothing of the minute before it: see Join.
type KeyLimits struct {
	requests, tokens bucket
	running          counter
	others           int    // concurrent requests of the other gateways
	claims           Claims // of this gateway
	pending, first   Claims // of the other gateways, and of those that come first
}

// ReportDelay is how long it may take until all gateways know what one has used: one and a half reporting intervals.
const ReportDelay = 150 * time.Millisecond

// maxWindow bounds the window that own recent use covers, in units of ReportDelay. With 8, the
// bound is proved for eight gateways, and one gateway of twenty reaches the full rate.
const maxWindow = 8

// Used is what was used of a key's limits. Running and claims are counts, not sums.
type Used struct {
	Requests, Tokens int64
	Running          int
	Claims           Claims
	First            Claims // the part of Claims of gateways that come before this one, in an order that all agree on
}

// Claims are requests that wait for the word of the other gateways.
type Claims struct {
	Requests int
	Tokens   int64 // estimates of their input
}

// Add adds claims.
func (c *Claims) Add(o Claims) {
	c.Requests += o.Requests
	c.Tokens += o.Tokens
}

// LimitName names one of a key's limits.
type LimitName string

const (
	LimitRequests    LimitName = "requests"
	LimitTokens      LimitName = "tokens"
	LimitConcurrency LimitName = "concurrency"
)

// Excess says which limit rejects a request.
type Excess struct {
	Limit           LimitName
	Max, Used, Asks int
	RetryAfter      time.Duration // when to try again
	Shared          bool          // the limit is not used up, but other gateways may have used the rest
	Unsure          bool          // what is not known here yet may leave room: see Claim
}

// Begin charges what a request needs. If a limit has no room for it, Begin charges nothing and
// returns that limit; of several, the one that takes longest to recover.
func (l *KeyLimits) Begin(k *Key, tokens, gateways int, now time.Time) (Excess, bool) {
	var worst Excess
	sure := false
	for _, e := range [...]Excess{
		l.requests.excess(Excess{Limit: LimitRequests, Max: k.RPM, Asks: 1}, float64(l.pending.Requests), gateways, now),
		l.tokens.excess(Excess{Limit: LimitTokens, Max: k.TPM, Asks: tokens}, float64(l.pending.Tokens), gateways, now),
		l.excess(Excess{Limit: LimitConcurrency, Max: k.Concurrency, Asks: 1}, gateways, now),
	} {
		sure = sure || e.RetryAfter > 0 && !e.Unsure
		if e.RetryAfter > worst.RetryAfter {
			worst = e
		}
	}
	if worst.RetryAfter > 0 {
		worst.Unsure = !sure
		return worst, false
	}
	l.charge(k, tokens, now)
	return Excess{}, true
}

// charge counts a request that is admitted.
func (l *KeyLimits) charge(k *Key, tokens int, now time.Time) {
	l.requests.use(k.RPM, 1, now)
	l.tokens.use(k.TPM, tokens, now)
	l.running.add(1, now)
}

// Claim notes a request that Begin has refused as Unsure. The claim ends with a Decide that admits it, or with Drop.
func (l *KeyLimits) Claim(tokens int) { l.claims.Add(Claims{1, int64(tokens)}) }

// Drop ends a claim whose request is not admitted.
func (l *KeyLimits) Drop(tokens int) { l.claims.Add(Claims{-1, -int64(tokens)}) }

// Decide charges what the request of a claim needs and ends the claim, if there is room for it. All other gateways must have said
// what they have used and claimed since they know of the claim.
func (l *KeyLimits) Decide(k *Key, tokens int, now time.Time) bool {
	if !l.requests.hasRoom(k.RPM, float64(l.first.Requests), now) || !l.tokens.hasRoom(k.TPM, float64(l.first.Tokens), now) ||
		k.Concurrency > 0 && k.Concurrency-int(l.running.value)-l.others-l.first.Requests < 1 {
		return false
	}
	l.Drop(tokens)
	l.charge(k, tokens, now)
	return true
}

// End records the end of a request that Begin admitted. tokens is how much too low the estimate was.
func (l *KeyLimits) End(k *Key, tokens int, now time.Time) {
	l.tokens.use(k.TPM, tokens, now)
	l.running.add(-1, now)
}

// AddRemote adds what another gateway has used since its last report.
func (l *KeyLimits) AddRemote(k *Key, u Used, now time.Time) {
	l.requests.charge(k.RPM, float64(u.Requests), now)
	l.tokens.charge(k.TPM, float64(u.Tokens), now)
	l.others += u.Running
	l.pending.Add(u.Claims)
	l.first.Add(u.First)
}

// Join is for a gateway that starts while others run, and knows nothing of what was used before: it counts all but its
// n-th part of the limits as just used. So a start adds at most one n-th of a limit to what may be exceeded. A gateway
// that starts alone knows of no use: its start adds one limit.
func (l *KeyLimits) Join(k *Key, gateways int, started, now time.Time) {
	for _, b := range []struct {
		*bucket
		limit int
	}{{&l.requests, k.RPM}, {&l.tokens, k.TPM}} {
		past := float64(b.limit - (b.limit+gateways-1)/gateways)
		past -= perNano(b.limit) * float64(now.Sub(started))
		b.charge(b.limit, max(past, 0), now)
	}
}

// Own is what this gateway has used: the sums since it started, and the count.
func (l *KeyLimits) Own() Used {
	return Used{Requests: l.requests.own.value, Tokens: l.tokens.own.value, Running: int(l.running.value), Claims: l.claims}
}

// Standing is what is left of a limit, and when all of it will be.
type Standing struct {
	Limit, Left int
	Reset       time.Duration
}

// Requests is the standing of RPM.
func (l *KeyLimits) Requests(k *Key, now time.Time) Standing { return l.requests.standing(k.RPM, now) }

// Tokens is the standing of TPM.
func (l *KeyLimits) Tokens(k *Key, now time.Time) Standing { return l.tokens.standing(k.TPM, now) }

// excess checks Concurrency.
func (l *KeyLimits) excess(e Excess, gateways int, now time.Time) Excess {
	e.Used = int(l.running.value) + l.others
	if left := e.Max - e.Used; e.Max > 0 && left-l.pending.Requests-(gateways-1)*int(l.running.recent(gateways, now)) < 1 {
		e.RetryAfter, e.Shared, e.Unsure = time.Second, left >= 1, true
	}
	return e
}

// bucket is the use of a limit per minute. Without a limit nothing is recorded.
type bucket struct {
	used float64   // by all gateways, and not drained yet
	at   time.Time // when used was last drained
	own  counter
}

// enough is one, minus rounding errors.
const enough = 1 - 1e-6

func perNano(limit int) float64 { return float64(limit) / float64(time.Minute) }

// drained is how long n takes to drain.
func drained(limit int, n float64) (d time.Duration) {
	return time.Duration(min(math.Ceil(max(n, 0)/perNano(limit)), math.MaxInt64/2))
}

func (b *bucket) drain(limit int, now time.Time) {
	if d := now.Sub(b.at); d > 0 { // callers read the clock before they wait for the lock, so now may go back
		b.used = max(b.used-perNano(limit)*float64(d), 0)
		b.at = now
	}
}

// hasRoom says whether any is left beside what is claimed.
func (b *bucket) hasRoom(limit int, claimed float64, now time.Time) bool {
	if limit == 0 {
		return true
	}
	b.drain(limit, now)
	return float64(limit)-b.used-claimed >= enough
}

func (b *bucket) excess(e Excess, claimed float64, gateways int, now time.Time) Excess {
	if e.Max == 0 {
		return e
	}
	b.drain(e.Max, now)
	left := float64(e.Max) - b.used
	unreported := b.own.recent(gateways, now)
	if unreported > 0 {
		unreported++ // with this request
	}
	if left-claimed-float64(gateways-1)*float64(unreported) >= enough {
		return e
	}
	e.Used, e.Shared, e.Unsure = int(math.Ceil(b.used-1e-6)), left >= enough, left >= enough
	e.RetryAfter = drained(e.Max, 1-left)
	if e.Shared {
		e.RetryAfter = window(gateways)
	}
	return e
}

func (b *bucket) use(limit, n int, now time.Time) {
	b.own.add(int64(n), now)
	b.charge(limit, float64(n), now)
}

func (b *bucket) charge(limit int, n float64, now time.Time) {
	b.drain(limit, now)
	if limit > 0 {
		b.used = max(b.used+n, 0)
	}
}

func (b *bucket) standing(limit int, now time.Time) Standing {
	if limit == 0 {
		return Standing{}
	}
	b.drain(limit, now)
	return Standing{Limit: limit, Left: int(max(float64(limit)-b.used+1e-6, 0)), Reset: drained(limit, b.used)}
}

// counter is a number that remembers its lowest recent values.
type counter struct {
	value  int64
	lows   [maxWindow + 1]int64 // per slot of ReportDelay, as a ring
	newest int
	slot   time.Time // start of the newest
}

func (c *counter) add(n int64, now time.Time) {
	c.roll(now)
	c.value += n
	c.lows[c.newest] = min(c.lows[c.newest], c.value)
}

// recent is how far the value is above its lowest in a window, or in up to a slot longer.
func (c *counter) recent(gateways int, now time.Time) int64 {
	if gateways == 1 {
		return 0
	}
	c.roll(now)
	low := c.value
	for i := range min(gateways, maxWindow) + 1 {
		low = min(low, c.lows[(c.newest-i+len(c.lows))%len(c.lows)])
	}
	return c.value - low
}

// window is how long own use counts as an estimate of what others may have used.
func window(gateways int) time.Duration {
	return time.Duration(min(gateways, maxWindow)+1) * ReportDelay
}

func (c *counter) roll(now time.Time) {
	if c.slot.IsZero() {
		c.slot = now
	}
	passed := int(now.Sub(c.slot) / ReportDelay)
	if passed <= 0 {
		return
	}
	c.slot = c.slot.Add(time.Duration(passed) * ReportDelay)
	for range min(passed, len(c.lows)) {
		c.newest = (c.newest + 1) % len(c.lows)
		c.lows[c.newest] = c.value
	}
}
