package gateway

import (
	"context"
	"sync/atomic"
	"time"
)

// TierOfKey has Do run a request in the tier that the caller's key has by default, whatever the request asks for.
const TierOfKey = "*"

// Watch shows a service what becomes of one request that it runs with Do, and takes it back while no worker has had it.
type Watch struct {
	cancel  context.CancelFunc
	request atomic.Pointer[request] // nil until it has been admitted
	bus     *bus                    // set before request
}

// watching is the key of a context's *Watch.
type watching struct{}

// Watched returns a context for one call of Do, and the watch of its request. The context ends with ctx, with cancel, which must be
// called at the end, and when the request is taken back.
func Watched(ctx context.Context) (watched context.Context, w *Watch, cancel context.CancelFunc) {
	ctx, cancel = context.WithCancel(ctx)
	w = &Watch{cancel: cancel}
	return context.WithValue(ctx, watching{}, w), w, cancel
}

// claimComes is how long after its message was deleted the claim of a worker may come that it was delivered to just before: a worker
// calls its engine as soon as it has claimed a request, and does not wait for the grant.
const claimComes = 250 * time.Millisecond

// Waits says whether the request waits in its queue, and no worker has ever claimed it.
func (w *Watch) Waits() bool {
	r := w.request.Load()
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.neverClaimedLocked()
}

// TakeBack ends the request if it waits in its queue and no worker has ever claimed it: then it returns true, the request will never
// run, and what Do answers says nothing. Otherwise the request goes on. If the broker has its message, this takes a moment: it is
// deleted, and a claim that was on its way is granted as any other. Two calls must not run at once.
func (w *Watch) TakeBack(ctx context.Context) bool {
	r := w.request.Load()
	if r == nil || !w.takeBack(ctx, r) {
		return false
	}
	w.cancel()
	return true
}

func (w *Watch) takeBack(ctx context.Context, r *request) bool {
	seq, held, ok := r.beginTakeBack()
	if !ok || held {
		return ok
	}
	if err := w.bus.deleteNow(ctx, r.target.Load().queue.stream, seq); err != nil {
		return false
	}
	select {
	case <-ctx.Done():
	case <-time.After(claimComes):
	}
	return r.endTakeBack(seq)
}

// TakenBack says whether TakeBack has returned true, or is about to.
func (w *Watch) TakenBack() bool {
	r := w.request.Load()
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.takenBack
}

// Claimed says whether a worker has ever claimed the request.
func (w *Watch) Claimed() bool {
	r := w.request.Load()
	return r != nil && r.made() > 0
}

// Running returns since when a worker has the request; zero if none has. Once the request has ended, it is since when the last one
// had it.
func (w *Watch) Running() time.Time {
	r := w.request.Load()
	if r == nil {
		return time.Time{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.attempt == nil {
		return time.Time{}
	}
	return r.claimed
}

// Tier is the tier in which the request runs; empty if it was not admitted.
func (w *Watch) Tier() string {
	r := w.request.Load()
	if r == nil {
		return ""
	}
	return r.target.Load().tier.Name
}

// on notes that the request has been admitted. A nil watch watches none.
func (w *Watch) on(r *request, b *bus) {
	if w != nil {
		w.bus = b
		w.request.Store(r)
	}
}

func (r *request) neverClaimedLocked() bool {
	return r.waitsLocked() && r.attempts == 0 && r.order == nil
}

// beginTakeBack returns the sequence of the message of a request that waits and was never claimed. If the gateway holds it, it is taken
// back at once: it will not be published. It is not ok if the request cannot be taken back now.
func (r *request) beginTakeBack() (seq uint64, held, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &r.message
	if !r.neverClaimedLocked() || m.lost || m.err != nil || m.pending != 0 {
		return 0, false, false
	}
	if m.seq == 0 && m.left.seq == 0 {
		r.order, r.takenBack = errClientGone, true
		return 0, true, true
	}
	return m.seq, false, m.seq != 0
}

// endTakeBack has no claim of the request granted any more, if none has come since its message was deleted, and it was not published
// again.
func (r *request) endTakeBack(seq uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &r.message
	if !r.neverClaimedLocked() || m.lost || m.err != nil || m.pending != 0 || m.seq != seq {
		return false
	}
	r.order, r.takenBack = errClientGone, true
	return true
}
