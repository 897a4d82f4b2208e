package worker

import (
	"context"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// Why an attempt was stopped, as causes of its context.
var (
	errCancelled   = errors.New("the gateway cancelled it")
	errGatewayGone = errors.New("its gateway is gone")
	errRefused     = errors.New("the gateway refused the claim")
	errDraining    = errors.New("the worker stops")
	errStalled     = errors.New("the engine went silent")
)

// attempt is one start on one request.
type attempt struct {
	// Fixed when it begins.
	mark    uint64
	msg     *nats.Msg         // the delivery
	req     *subjects.Request // never changed: it may be the gateway's own
	task    task
	ctx     context.Context
	stop    context.CancelCauseFunc
	started time.Time
	grown   chan struct{} // signals that taken grew; capacity 1
	granted chan struct{} // signals that the gateway has granted a claim that asked for confirmation; capacity 1
	cheap   bool          // it is a gateway's call (cheap.go): it has no slot, and no delivery to settle

	// Owned by Worker.run.
	runner   *runner // the one that runs it
	out      responder
	body     []byte
	streamed bool               // the engine's answer is a stream; other goroutines may read it once firstByte is set
	rank     int                // data-parallel rank of the engine that runs it; -1: the engine chooses
	span     trace.Span         // nil without a tracer, and where the trace is not kept
	failed   subjects.FailClass // "" if it did not
	adapter  bool               // the engine is asked for an adapter, by the client's name

	// Shared without a lock.
	claimed   atomic.Bool   // the claim has been published
	sent      atomic.Uint32 // messages with frames that have been published
	taken     atomic.Int64  // body bytes that the client has taken
	firstByte moment
	lastByte  moment
	awaited   atomic.Pointer[policy.Awaited] // how long its first byte should take; nil until that is known
	due       policy.Due                     // by when it has had it, of such attempts; set before awaited, and not changed then
	held      atomic.Bool                    // its client does not take what has come

	counted bool // it is one of attempts.cheap; guarded by attempts.mu

	renewed time.Time // when the lease of the delivery was last renewed; owned by Worker.publishAlive

	timing timing // owned by the estimator
	slot   slot   // owned by capacity
}

// moment is a time after a start, read and written without a lock. The zero value is not set.
type moment struct {
	after atomic.Int64 // nanoseconds since the start, plus one
}

func (m *moment) set(start, t time.Time) { m.after.Store(int64(t.Sub(start)) + 1) }

func (m *moment) isSet() bool { return m.after.Load() != 0 }

// at returns the moment, or the start if it is not set.
func (m *moment) at(start time.Time) time.Time {
	return start.Add(time.Duration(max(m.after.Load()-1, 0)))
}

// since returns the time from the moment to now; from the start, if it is not set.
func (m *moment) since(start, now time.Time) time.Duration {
	return now.Sub(start) - time.Duration(max(m.after.Load()-1, 0))
}

func newAttempt(m *nats.Msg, req *subjects.Request, t task, now time.Time) *attempt {
	ctx, stop := context.WithCancelCause(context.Background())
	a := &attempt{
		mark: rand.Uint64(), msg: m, req: req, task: t, ctx: ctx, stop: stop,
		started: now, grown: make(chan struct{}, 1), granted: make(chan struct{}, 1), renewed: now,
	}
	a.lastByte.set(now, now)
	return a
}

// silent reports whether the engine has been silent for too long. While the engine or a GPU is ill (since ill; zero: it
// is not), that is sooner for an attempt without a first byte, so that another worker can have the request. Otherwise
// an answer that does not stream may take any time.
func (a *attempt) silent(ill time.Time, stall time.Duration, now time.Time) bool {
	silent := a.lastByte.since(a.started, now)
	if !ill.IsZero() && !a.firstByte.isSet() && min(silent, now.Sub(ill)) > min(stalledAfter, stall) {
		return true
	}
	return (a.req.Stream || a.cheap) && silent > stall
}

// late reports whether the first byte takes much longer than was measured. The time until excused does not count: see
// vitals.excused.
func (a *attempt) late(excused, now time.Time) bool {
	awaited := a.awaited.Load()
	return !a.firstByte.isSet() && awaited != nil && awaited.Late(now.Sub(later(a.started, excused)))
}

// content is a hash of what the request asks for.
func (a *attempt) content() uint64 {
	var h maphash.Hash
	h.SetSeed(contentSeed)
	h.WriteString(a.req.Path)
	h.WriteByte(0)
	h.Write(a.body)
	return h.Sum64()
}

var contentSeed = maphash.MakeSeed()

// signal wakes the goroutine that waits on a channel of capacity 1.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
