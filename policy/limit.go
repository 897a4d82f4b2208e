package policy

import (
	"math"
	"time"
)

// KeyLimits is what one gateway knows of the use of one API key: its own, and what
// the others told. The zero value is a key that nobody has used. It is not safe
// for concurrent use. Every method takes the key, whose limits may change at any
// time without what was used being forgotten.
//
// # What a limit means
//
// RPM and TPM are buckets. What was used drains at the limit per minute, and a
// request is admitted while the limit less what was used has room for it. So a
// key that was idle may use the limit of a minute at once, and in any stretch of
// time t no more than limit × (1 + t/minute). Concurrency is a plain count.
//
// A request counts one against RPM. Against TPM counts the estimate of its
// input, and when it has ended what the engine reported: input and output. It is
// admitted while any token is left. So TPM may be overshot by what is in flight;
// the debt drains before anything else is admitted, and in the long run no more
// than the limit is used.
//
// # Any number of gateways
//
// Each decides alone and at once. Every subjects.UsageEvery they tell each other
// what they have used. In between, a gateway supposes that each of the n−1
// others has used, unheard, as much as itself in the last n × HeardWithin, and
// admits a request while
//
//	left − (n−1) × own of late ≥ 1
//
// With one gateway that is exact. With n, all together admit at most n−1
// requests too many: one for each further gateway. This too is a debt, which
// drains: it does not add up.
//
// Proof. Let D be HeardWithin and W = n×D. Look at the moment after some
// admission. Order the gateways by the time of their last admission, and let R
// be those from the latest one on until the first gap of D or more. Everybody
// in R has heard all that the rest ever used. Within R the last admissions are
// less than (n−1)×D apart, so that what k used and j could not have heard at its
// own last admission, or came later, is in the W before k's last admission: it
// is at most k's "own of late". Let j be the one of R with the largest. At its
// last admission it saw left ≥ (n−1)×(own of late − 1), counting that admission;
// what it did not see is at most n−1 times its own of late. So what is really
// left is at least −(n−1). Drains only add to it, and use that is heard late
// only drains later. For Concurrency, own of late is how far the own count is
// above its lowest in W, and the same holds.
//
// The price: a gateway that serves a key alone may use at once one n-th of what
// is left, the next n-th of the rest W later, and so on. It comes to the full
// rate as long as (n−1)×W is below a minute. For that W stops growing at
// mostWindow × D; beyond so many gateways the bound is not proved, only simulated.
//
// What breaks the bound: where gateways hear each other later than HeardWithin,
// what they admit meanwhile may come on top. And one that starts knows nothing of
// the minute before it: see Join.
type KeyLimits struct {
	requests, tokens bucket
	running          counter
	others           int // requests that the other gateways run
}

// ReportDelay is how long it may take until all gateways know what one has
// used: half as long again as it takes to be told.
const ReportDelay = 150 * time.Millisecond

// mostWindow bounds the window that own use counts for, in units of HeardWithin:
// so much that eight gateways are proved, and that one of twenty reaches the
// full rate.
const mostWindow = 8

// Used is what was used of a key's limits. Running is a count, not a sum.
type Used struct {
	Requests, Tokens int64
	Running          int
}

// LimitName is one of a key's limits.
type LimitName string

const (
	LimitRequests    LimitName = "requests"
	LimitTokens      LimitName = "tokens"
	LimitConcurrency LimitName = "concurrency"
)

// Excess says which limit does not let a request in.
type Excess struct {
	Limit           LimitName
	Max, Used, Asks int
	RetryAfter      time.Duration // when it is worth another try
	Shared          bool          // there is room, but others may have used it
}

// Begin takes what a request needs, or says which limit has no room for it: of
// several, the one that takes longest. Then nothing is taken.
func (l *KeyLimits) Begin(k *Key, tokens, gateways int, now time.Time) (Excess, bool) {
	var worst Excess
	for _, e := range [...]Excess{
		l.requests.excess(Excess{Limit: LimitRequests, Max: k.RPM, Asks: 1}, gateways, now),
		l.tokens.excess(Excess{Limit: LimitTokens, Max: k.TPM, Asks: tokens}, gateways, now),
		l.excess(Excess{Limit: LimitConcurrency, Max: k.Concurrency, Asks: 1}, gateways, now),
	} {
		if e.RetryAfter > worst.RetryAfter {
			worst = e
		}
	}
	if worst.RetryAfter > 0 {
		return worst, false
	}
	l.requests.use(k.RPM, 1, now)
	l.tokens.use(k.TPM, tokens, now)
	l.running.add(1, now)
	return Excess{}, true
}

// End notes the end of a request that began, and by how many tokens the
// estimate was too low.
func (l *KeyLimits) End(k *Key, tokens int, now time.Time) {
	l.tokens.use(k.TPM, tokens, now)
	l.running.add(-1, now)
}

// AddRemote takes what another gateway has used since it was last heard.
func (l *KeyLimits) AddRemote(k *Key, u Used, now time.Time) {
	l.requests.charge(k.RPM, float64(u.Requests), now)
	l.tokens.charge(k.TPM, float64(u.Tokens), now)
	l.others += u.Running
}

// Join is for a gateway that started when others were there, and knows nothing
// of what was used before: it counts all but its n-th part of the limits as used
// just then. So a start adds at most one n-th of a limit to what may be
// overshot. A gateway that starts alone knows of nothing: its start adds one
// limit.
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
	return Used{Requests: l.requests.own.value, Tokens: l.tokens.own.value, Running: int(l.running.value)}
}

// Standing is what is left of a limit, and when all of it will be.
type Standing struct {
	Limit, Left int
	Reset       time.Duration
}

// Requests is how RPM stands.
func (l *KeyLimits) Requests(k *Key, now time.Time) Standing { return l.requests.standing(k.RPM, now) }

// Tokens is how TPM stands.
func (l *KeyLimits) Tokens(k *Key, now time.Time) Standing { return l.tokens.standing(k.TPM, now) }

// excess is about the requests that run at once.
func (l *KeyLimits) excess(e Excess, gateways int, now time.Time) Excess {
	e.Used = int(l.running.value) + l.others
	if left := e.Max - e.Used; e.Max > 0 && left-(gateways-1)*int(l.running.late(gateways, now)) < 1 {
		e.RetryAfter, e.Shared = time.Second, left >= 1
	}
	return e
}

// bucket is the use of a limit per minute. With no limit nothing is used.
type bucket struct {
	used float64   // by all, and not drained yet
	at   time.Time // of used
	own  counter
}

// enough is one, less what the arithmetic may lose.
const enough = 1 - 1e-6

func perNano(limit int) float64 { return float64(limit) / float64(time.Minute) }

// drained takes d to drain n.
func drained(limit int, n float64) (d time.Duration) {
	return time.Duration(min(math.Ceil(max(n, 0)/perNano(limit)), math.MaxInt64/2))
}

func (b *bucket) drain(limit int, now time.Time) {
	if d := now.Sub(b.at); d > 0 { // callers take the time before they wait for each other
		b.used = max(b.used-perNano(limit)*float64(d), 0)
		b.at = now
	}
}

func (b *bucket) excess(e Excess, gateways int, now time.Time) Excess {
	if e.Max == 0 {
		return e
	}
	b.drain(e.Max, now)
	left := float64(e.Max) - b.used
	if left-float64(gateways-1)*float64(b.own.late(gateways, now)) >= enough {
		return e
	}
	e.Used, e.Shared = int(math.Ceil(b.used-1e-6)), left >= enough
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

// counter is a number that remembers its lowest values of late.
type counter struct {
	value  int64
	lows   [mostWindow + 1]int64 // of slots of HeardWithin, as a ring
	newest int
	slot   time.Time // when the newest began
}

func (c *counter) add(n int64, now time.Time) {
	c.roll(now)
	c.value += n
	c.lows[c.newest] = min(c.lows[c.newest], c.value)
}

// late is how far the value is above its lowest in a window, or in up to a slot
// longer.
func (c *counter) late(gateways int, now time.Time) int64 {
	if gateways == 1 {
		return 0
	}
	c.roll(now)
	low := c.value
	for i := range min(gateways, mostWindow) + 1 {
		low = min(low, c.lows[(c.newest-i+len(c.lows))%len(c.lows)])
	}
	return c.value - low
}

// window is how long use counts for what others may have used meanwhile.
func window(gateways int) time.Duration {
	return time.Duration(min(gateways, mostWindow)+1) * ReportDelay
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
