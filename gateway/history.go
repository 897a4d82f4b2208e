package gateway

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// enginesOwn stands in the history for the code of an error whose words are the engine's.
const enginesOwn = "engine"

const (
	// PeriodLength is how long a Period is.
	PeriodLength = 10 * time.Second

	hourPeriods = int64(time.Hour / PeriodLength)
	poolPeriods = int64(RecentLength / PeriodLength)

	// RecentLength is how far View.Recent looks back.
	RecentLength = 5 * time.Minute

	// historyPools bounds the pools that are counted on their own: 90 KB each.
	historyPools = 64

	// endedKept is how many requests that have ended are kept, and as many that have failed or were refused.
	endedKept = 64

	// reasonKept is how many bytes of a reason are kept: an engine may have said anything.
	reasonKept = 400
)

// Outcome is how a request ended for its client. Metrics, traces, the access log, the page and the usage stream have these words.
type Outcome string

const (
	Answered  Outcome = "answered"
	Failed    Outcome = "failed"  // with a 5xx, or broken off
	Refused   Outcome = "refused" // with any other error of the gateway's own
	Cancelled Outcome = "cancelled"
)

// Ended is a request that has ended.
type Ended struct {
	ID                                string
	At                                time.Time
	Outcome                           Outcome
	Status                            int // of the error
	Code, Reason                      string
	Model, Pool, Tier, Tenant, Worker string // Worker is the name of the last one that had it
	Attempts                          int
	TTFT                              time.Duration // 0: no byte was written
	Total                             time.Duration
	InputTokens, OutputTokens         int64
}

// Period is what became of the requests that ended within a period. Times are those of the answered ones.
type Period struct {
	Start                                time.Time
	Answered, Failed, Refused, Cancelled int
	InputTokens, OutputTokens            int64
	Times                                policy.Side
}

// Ended is how many requests ended.
func (p *Period) Ended() int { return p.Answered + p.Failed + p.Refused + p.Cancelled }

// observe counts a request.
func (p *Period) observe(e *Ended) {
	switch e.Outcome {
	case Answered:
		p.Answered++
		p.Times.Observe(true, e.TTFT, e.Total)
	case Failed:
		p.Failed++
	case Refused:
		p.Refused++
	case Cancelled:
		p.Cancelled++
	}
	p.InputTokens += max(e.InputTokens, 0)
	p.OutputTokens += max(e.OutputTokens, 0)
}

// merge adds what another period counted.
func (p *Period) merge(o *Period) {
	p.Answered += o.Answered
	p.Failed += o.Failed
	p.Refused += o.Refused
	p.Cancelled += o.Cancelled
	p.InputTokens += o.InputTokens
	p.OutputTokens += o.OutputTokens
	p.Times.Merge(o.Times)
}

// ring has the latest periods, each at its number modulo the length; nil until there was a request in one of that place.
type ring []*Period

// number counts the periods since 1970.
func number(t time.Time) int64 { return t.UnixNano() / int64(PeriodLength) }

// at returns the period of a time, which replaces the one that is older by the ring's length.
func (r ring) at(now time.Time) *Period {
	n := number(now)
	place, start := n%int64(len(r)), time.Unix(0, n*int64(PeriodLength)).UTC()
	switch p := r[place]; {
	case p == nil:
		r[place] = &Period{Start: start}
	case !p.Start.Equal(start):
		*p = Period{Start: start}
	}
	return r[place]
}

// latest returns the periods that the ring spans now, the oldest first. Those without a request are left out.
func (r ring) latest(now time.Time) (list []*Period) {
	oldest := number(now) - int64(len(r))
	for _, p := range r {
		if n := int64(0); p != nil {
			if n = number(p.Start); n > oldest && n <= number(now) {
				list = append(list, p)
			}
		}
	}
	slices.SortFunc(list, func(a, b *Period) int { return a.Start.Compare(b.Start) })
	return list
}

// history is what became of the requests of the last hour, with the latest of them. It is lost with the gateway.
type history struct {
	mu       sync.Mutex
	hour     ring
	pools    map[string]ring
	ended    lastEnded
	failures lastEnded // failed or refused
}

func newHistory() *history {
	return &history{hour: make(ring, hourPeriods), pools: make(map[string]ring)}
}

// observe counts a request that has ended.
func (h *history) observe(e Ended) {
	if len(e.Reason) > reasonKept {
		e.Reason = strings.ToValidUTF8(strings.Clone(e.Reason[:reasonKept]), "") + "…"
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hour.at(e.At).observe(&e)
	if r := h.poolLocked(e.Pool, e.At); r != nil {
		r.at(e.At).observe(&e)
	}
	h.ended.add(e)
	if e.Outcome == Failed || e.Outcome == Refused {
		h.failures.add(e)
	}
}

// poolLocked returns the ring of a pool; nil if there are too many pools.
func (h *history) poolLocked(pool string, now time.Time) ring {
	r := h.pools[pool]
	if r != nil || pool == "" {
		return r
	}
	if len(h.pools) >= historyPools {
		for name, other := range h.pools {
			if len(other.latest(now)) == 0 {
				delete(h.pools, name)
			}
		}
	}
	if len(h.pools) < historyPools {
		r = make(ring, poolPeriods)
		h.pools[pool] = r
	}
	return r
}

// lastEnded keeps the last endedKept requests.
type lastEnded struct {
	list []Ended
	next int // the place of the next one, which is that of the oldest
}

func (l *lastEnded) add(e Ended) {
	if len(l.list) < endedKept {
		l.list = append(l.list, e)
		return
	}
	l.list[l.next] = e
	l.next = (l.next + 1) % endedKept
}

// all returns a copy, the oldest first.
func (l *lastEnded) all() []Ended { return slices.Concat(l.list[l.next:], l.list[:l.next]) }

// periods returns a copy of the hour's periods, without those in which nothing ended.
func (h *history) periods(now time.Time) []Period {
	h.mu.Lock()
	defer h.mu.Unlock()
	latest := h.hour.latest(now)
	list := make([]Period, len(latest))
	for i, p := range latest {
		list[i] = *p
	}
	return list
}

// recent returns the sum of the last RecentLength, of each pool.
func (h *history) recent(now time.Time) map[string]Period {
	h.mu.Lock()
	defer h.mu.Unlock()
	sums := make(map[string]Period, len(h.pools))
	for pool, r := range h.pools {
		var sum Period
		for _, p := range r.latest(now) {
			sum.merge(p)
		}
		sums[pool] = sum
	}
	return sums
}

// last returns the latest requests that have ended, and those of them that failed, the oldest first.
func (h *history) last() (ended, failures []Ended) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended.all(), h.failures.all()
}

// turnedAway counts a call that was refused before it became a request.
func (h *history) turnedAway(id subjects.ID, err error) {
	if err == errClientGone {
		return
	}
	said := api.AsError(err)
	h.observe(Ended{ID: id.String(), At: time.Now(), Outcome: outcomeOf(said.Status), Status: said.Status, Code: said.Code, Reason: said.Message})
}

// outcome is how the request of an answer that has ended came out. gone says that its client disconnected.
func (a *answer) outcome(gone bool) Outcome {
	switch {
	case a.whole && a.got.Status < http.StatusInternalServerError:
		return Answered
	case !a.whole && gone:
		return Cancelled
	case !a.whole && a.failed != nil:
		return outcomeOf(a.failed.Status)
	}
	return Failed
}

// outcomeOf is the outcome of a request whose client was told an error.
func outcomeOf(status int) Outcome {
	if status >= http.StatusInternalServerError {
		return Failed
	}
	return Refused
}

// finished counts a request that was admitted. Copies for mirrors, and dead letters that run again, are nobody's.
func (h *history) finished(r *request, ans *answer, a *attempt, gone bool) {
	if r.unattended {
		return
	}
	now, at := time.Now(), r.target.Load()
	e := Ended{
		ID: r.wire.ID.String(), At: now, Outcome: ans.outcome(gone), Model: strings.Clone(r.wire.Model), Pool: at.queue.pool, Tier: at.tier.Name, Tenant: r.wire.Tenant, Attempts: r.made(),
		Total: now.Sub(r.arrived), InputTokens: int64(max(ans.usage.InputTokens, 0)), OutputTokens: int64(max(ans.usage.OutputTokens, 0)),
	}
	if a != nil {
		e.Worker = a.name
	}
	if !r.firstByte.IsZero() {
		e.TTFT = r.firstByte.Sub(r.arrived)
	}
	switch said := ans.failed; {
	case e.Outcome == Answered, e.Outcome == Cancelled:
	case ans.whole:
		e.Status, e.Code, e.Reason = ans.got.Status, enginesOwn, "the engine answered with this status"
	case said != nil:
		e.Status, e.Code, e.Reason = said.Status, said.Code, said.Message
	default:
		e.Reason = "the connection to the client broke"
	}
	h.observe(e)
}
