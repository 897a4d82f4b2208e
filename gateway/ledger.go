package gateway

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/metric"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// recordEvery is how often what requests have used is stored, if there is more: so much is lost at most with a gateway that is
	// killed while the broker is there.
	recordEvery = time.Second

	// recordWithin is how long the broker may take to store a record.
	recordWithin = 5 * time.Second

	// rowsInRecord is how many rows a record has at most: 50 KB with the longest names.
	rowsInRecord = 50

	// maxUsageRows bounds the rows that wait for the broker: 3 MB with usual names. What comes on top is counted in one row for
	// each period, with metric.Other for its names.
	maxUsageRows = 10_000
)

// ledger counts what requests have used, and stores it in the broker: see [subjects.UsageRecord]. No request waits for that. While
// the broker is away, what was used waits here.
type ledger struct {
	bus      *bus
	replicas int // of the stream

	// Owned by the goroutine that stores.
	exists bool // the stream does

	mu    sync.Mutex
	pages []*usagePage // the oldest first; what ends is added to the last one
	rows  int          // of all pages
}

// usagePage is what requests have used that ended within a period.
type usagePage struct {
	start time.Time
	index map[subjects.UsageKey]int
	rows  []subjects.UsageRow
	parts []*usagePart // each of rowsInRecord rows
}

// usagePart is a part of a page that is a record in the stream.
type usagePart struct {
	changed bool   // since it was read to be stored
	last    uint64 // sequence of the last message that is stored; 0: there is none. Owned by the goroutine that stores
}

func newLedger(b *bus, replicas int) *ledger { return &ledger{bus: b, replicas: replicas} }

// finished counts a request that was admitted. a is its last attempt, nil if it waited. Copies for mirrors, and dead letters that
// run again, are nobody's.
func (l *ledger) finished(r *request, ans *answer, a *attempt, gone bool) {
	if r.unattended {
		return
	}
	at, now := r.target.Load(), time.Now()
	u := usageOf(ans.outcome(gone))
	u.InputTokens, u.CachedTokens, u.OutputTokens = int64(max(ans.usage.Prompt(), 0)), int64(max(ans.usage.CachedTokens, 0)), int64(max(ans.usage.OutputTokens, 0))
	if a != nil {
		u.Millis = max(now.Sub(a.began), 0).Milliseconds()
	}
	l.add(subjects.UsageKey{Tenant: r.wire.Tenant, Key: r.caller.keyID(), Model: r.wire.Model, Tier: at.tier.Name, Pool: at.queue.pool}, u, now)
}

// turnedAway counts a call of a known caller that did not become a request.
func (l *ledger) turnedAway(who *caller, model, tier, pool string, err error) {
	outcome := Cancelled
	if !errors.Is(err, errClientGone) {
		outcome = outcomeOf(api.AsError(err).Status)
	}
	l.add(subjects.UsageKey{Tenant: who.tenant, Key: who.keyID(), Model: model, Tier: tier, Pool: pool}, usageOf(outcome), time.Now())
}

// usageOf counts one request.
func usageOf(o Outcome) (u subjects.Usage) {
	switch o {
	case Answered:
		u.Answered = 1
	case Failed:
		u.Failed = 1
	case Cancelled:
		u.Cancelled = 1
	case Refused:
		u.Refused = 1
	}
	return u
}

func (l *ledger) add(key subjects.UsageKey, u subjects.Usage, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pageLocked(now)
	n, known := p.index[key]
	if !known && l.rows >= maxUsageRows {
		key = subjects.UsageKey{Tenant: metric.Other, Key: metric.Other, Model: metric.Other, Tier: metric.Other, Pool: metric.Other}
		n, known = p.index[key]
	}
	if !known {
		key.Model = strings.Clone(key.Model) // it may be a part of the request's body
		n = len(p.rows)
		p.index[key] = n
		p.rows = append(p.rows, subjects.UsageRow{UsageKey: key})
		l.rows++
		if n%rowsInRecord == 0 {
			p.parts = append(p.parts, new(usagePart))
		}
	}
	p.rows[n].Add(u)
	p.parts[n/rowsInRecord].changed = true
}

// pageLocked is the page of what ends now. If the clock goes back it is still the last one.
func (l *ledger) pageLocked(now time.Time) *usagePage {
	start := now.UTC().Truncate(subjects.UsagePeriod)
	if n := len(l.pages); n > 0 && !start.After(l.pages[n-1].start) {
		return l.pages[n-1]
	}
	p := &usagePage{start: start, index: make(map[subjects.UsageKey]int)}
	l.pages = append(l.pages, p)
	return p
}

// run stores what was used, until ctx is done.
func (l *ledger) run(ctx context.Context) {
	every(ctx, recordEvery, func() { l.store(ctx) })
}

// close stores what is left when no request is here any more. It waits for a few seconds at most.
func (l *ledger) close() {
	ctx, cancel := context.WithTimeout(context.Background(), recordWithin)
	defer cancel()
	l.store(ctx)
	if n := l.waiting(); n > 0 {
		l.bus.log.Warn("usage not recorded: the broker did not take it before the gateway ended", "requests", n)
	}
}

// waiting is how many requests are in parts that have changed since they were stored.
func (l *ledger) waiting() (requests int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pages {
		for i, row := range p.rows {
			if p.parts[i/rowsInRecord].changed {
				requests += row.Requests()
			}
		}
	}
	return requests
}

// store stores what has changed, the oldest first. What fails stays for the next time.
func (l *ledger) store(ctx context.Context) {
	for l.bus.nc.IsConnected() && ctx.Err() == nil {
		part, subject, record := l.next(time.Now())
		if part == nil {
			return
		}
		if err := l.put(ctx, part, subject, subjects.MustMarshal(record)); err != nil {
			l.again(part)
			if ctx.Err() == nil {
				l.bus.seldom("usage of requests is not recorded, and waits", "subject", subjects.AllUsage, "err", l.bus.explain(err))
			}
			return
		}
	}
}

// next returns a part to store, nil if there is none, and forgets pages that are over and stored.
func (l *ledger) next(now time.Time) (part *usagePart, subject string, record subjects.UsageRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.pages) > 0 {
		p := l.pages[0]
		for _, p := range l.pages {
			for i, part := range p.parts {
				if part.changed {
					part.changed = false
					rows := p.rows[i*rowsInRecord : min((i+1)*rowsInRecord, len(p.rows))]
					return part, subjects.UsageSubject(l.bus.id, p.start, i), subjects.UsageRecord{Gateway: l.bus.id, Start: p.start, Rows: slices.Clone(rows)}
				}
			}
		}
		if now.Sub(p.start) < 2*subjects.UsagePeriod {
			break
		}
		l.rows -= len(p.rows)
		l.pages = l.pages[1:]
	}
	return nil, "", record
}

func (l *ledger) again(part *usagePart) {
	l.mu.Lock()
	defer l.mu.Unlock()
	part.changed = true
}

// put stores a record in the place of the one before it. Which one that is, is said to the broker, so that a message that was on
// its way for long does not replace a later one.
func (l *ledger) put(ctx context.Context, part *usagePart, subject string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, recordWithin)
	defer cancel()
	if !l.exists {
		if err := subjects.EnsureUsageStream(ctx, l.bus.js, l.replicas); err != nil {
			return err
		}
		l.exists = true
	}
	publish := func() error {
		ack, err := l.bus.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: data}, jetstream.WithExpectLastSequencePerSubject(part.last))
		if err == nil {
			part.last = ack.Sequence
		}
		return err
	}
	err := publish()
	if refusal, ok := errors.AsType[*jetstream.APIError](err); ok && refusal.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		if part.last, err = l.lastOf(ctx, subject); err == nil { // an ack was lost, or the stream
			err = publish()
		}
	}
	l.exists = err == nil
	return err
}

// lastOf is the sequence of the message of a subject; 0 if there is none.
func (l *ledger) lastOf(ctx context.Context, subject string) (uint64, error) {
	stream, err := l.bus.js.Stream(ctx, subjects.UsageStream)
	if err != nil {
		return 0, err
	}
	m, err := stream.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return m.Sequence, nil
}
