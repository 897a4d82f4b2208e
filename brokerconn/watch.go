// Package brokerconn watches a part's connection to the broker: whether the server at its other end answers. A server that
// is frozen, or whose host is cut off, leaves its connections open, and the NATS client notices that only after many
// seconds. Until then the part hears nobody, and nobody hears it.
package brokerconn

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// pingEvery is how often the server is asked for an answer, unless something has come from it meanwhile.
	pingEvery = 200 * time.Millisecond

	// calmEvery is the same while the part is calm, if it does not call Look. It is not shorter than the time between two
	// heartbeats, after each of which a worker calls Look.
	calmEvery = 550 * time.Millisecond

	// answerWithin is how long an answer may take. An answer takes less than a millisecond.
	answerWithin = 250 * time.Millisecond

	// doubtAfter is how long after the last answer the connection is in doubt. It is shorter, by more than the time between
	// two heartbeats, than subjects.WorkerDeadline.
	doubtAfter = pingEvery + answerWithin + 50*time.Millisecond

	// misses is how many pings in a row must be unanswered until the connection moves to another server. A worker moves, and
	// publishes its next heartbeat, before gateways take it for lost.
	misses = 2

	// restFor is how long after such a move there is no other one: a server that has just answered is overloaded, not frozen.
	restFor = 5 * time.Second

	// stopped is how much later than asked for this process was woken, if it was stopped or starved itself meanwhile.
	stopped = 100 * time.Millisecond
)

// Watch watches one connection. Create it with New, then Run it once.
type Watch struct {
	nc   *nats.Conn
	log  *slog.Logger
	look chan struct{} // holds one

	began    time.Time // times are counted from it: the clock may be set
	calm     atomic.Bool
	answered atomic.Int64 // how long after began the server last answered
	denials  denials
}

// New returns a watch of a connection that is established. It starts nothing. The connection's handler of errors is called as
// before.
func New(nc *nats.Conn, log *slog.Logger) *Watch {
	w := &Watch{nc: nc, log: log, look: make(chan struct{}, 1), began: time.Now()}
	handle := nc.ErrorHandler()
	nc.SetErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
		w.denials.note(err, nc.Stats().Reconnects, time.Now())
		if handle != nil {
			handle(nc, sub, err)
		}
	})
	return w
}

// Denied is what the server does not allow this connection's user, of what the part needs, as in "subscribe to pulley.hb.>, and
// publish to $JS.API.INFO"; empty if nothing. It is what a user of another role is denied.
func (w *Watch) Denied(needs func(o Operation) bool) string {
	return w.denials.text(needs, w.nc.Stats().Reconnects, time.Now())
}

// Refused is why the server does not let the part connect, if that is its credentials; else empty.
func (w *Watch) Refused() string {
	if w.nc.IsConnected() {
		return ""
	}
	return w.denials.refusal(time.Now())
}

// Calm says whether nothing depends on the connection for now, as with a worker that runs nothing. While it is so, the server
// is asked only when Look is called, and about twice a second otherwise: the questions of a thousand idle workers cost the broker
// more than all else that these do. Hears is then true for up to 0.9 s after the server fell silent.
func (w *Watch) Calm(calm bool) { w.calm.Store(calm) }

// Look asks the server now, and does not wait for the answer. After a publish, both go to the server together.
func (w *Watch) Look() {
	select {
	case w.look <- struct{}{}:
	default:
	}
}

// Hears says whether the part is connected and would hear others now: if not, their silence proves nothing. It may be true
// for up to half a second after the server fell silent. now is a time of this process.
func (w *Watch) Hears(now time.Time) bool {
	doubt := doubtAfter
	if w.calm.Load() {
		doubt += calmEvery - pingEvery
	}
	return w.quiet(now) < doubt && w.nc.IsConnected()
}

// quiet is for how long the server has not answered.
func (w *Watch) quiet(now time.Time) time.Duration {
	return now.Sub(w.began) - time.Duration(w.answered.Load())
}

func (w *Watch) noteAnswer(at time.Time) {
	w.answered.Store(max(w.answered.Load(), int64(at.Sub(w.began))))
}

// Run watches until ctx is done. If the server stops answering and the client knows others, the connection moves to one of
// them: what was on the way is lost then, as with any reconnect. A single server is waited for.
func (w *Watch) Run(ctx context.Context) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	moved, received, at := time.Time{}, w.received(), time.Now()
	told, denied := uint64(0), "" // number of the connection of which it was logged; what was denied at the last tick
	for {
		looks := false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-w.look:
			looks = true
		}
		if n := w.nc.Stats().Reconnects + 1; !looks && told != n {
			what := w.Denied(nil)
			if what != "" && what == denied { // there is no more to come
				told = n
				w.log.Warn("NATS denies this user what the part needs; the credentials may be those of another role", "denied", what)
			}
			denied = what
		}
		// What has come since the last look shows as well as an answer that the server was there then.
		was, since := received, at
		if received, at = w.received(), time.Now(); received != was && at.Sub(since) <= pingEvery+stopped {
			w.noteAnswer(since)
			continue
		}
		if !looks && w.calm.Load() && w.quiet(at) < calmEvery {
			continue
		}
		if w.nc.IsConnected() && w.silent(ctx) && len(w.nc.Servers()) > 1 && time.Since(moved) >= restFor {
			moved = time.Now()
			w.log.Warn("the NATS server does not answer; moving to another one", "url", w.nc.ConnectedUrlRedacted())
			w.nc.ForceReconnect()
		}
	}
}

// received counts the messages that have come from the server.
func (w *Watch) received() uint64 { return w.nc.Stats().InMsgs }

// silent says whether the server leaves one ping after the other unanswered.
func (w *Watch) silent(ctx context.Context) bool {
	for range misses {
		asked := time.Now()
		within, cancel := context.WithTimeout(ctx, answerWithin)
		err := w.nc.FlushWithContext(within)
		cancel()
		now := time.Now()
		switch {
		case err == nil:
			w.noteAnswer(now)
			return false
		case ctx.Err() != nil, !w.nc.IsConnected(), now.Sub(asked) > answerWithin+stopped:
			return false
		}
	}
	return true
}
