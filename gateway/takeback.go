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
	taken   atomic.Bool
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

// TakeBack ends the request if it waits in its queue and no worker has ever claimed it: then it returns true, the request will never
// run, and what Do answers says nothing. Otherwise it changes nothing.
func (w *Watch) TakeBack() bool {
	r := w.request.Load()
	if r == nil || !r.takeBack() {
		return false
	}
	w.taken.Store(true)
	w.cancel()
	return true
}

// TakenBack says whether TakeBack has returned true.
func (w *Watch) TakenBack() bool { return w.taken.Load() }

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
func (w *Watch) on(r *request) {
	if w != nil {
		w.request.Store(r)
	}
}

// takeBack has no claim of the request granted any more, if it waits and none ever was. The caller ends its context.
func (r *request) takeBack() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.waitsLocked() || r.attempts > 0 || r.order != nil {
		return false
	}
	r.order = errClientGone
	return true
}
