package gateway

import (
	"context"
	"time"
)

// turnWithin is how long a request waits at most for each thing that the one before it does.
const turnWithin = 100 * time.Millisecond

// A turn is the place of a request among several that move at once, so that they keep their order. Each is put on the queue by
// its own handler when the one before has been taken from there: by the bid of a worker, perhaps the one that they leave, which
// hands it back, to the end. Where no worker takes them for a while, all follow. A nil turn is that of a request that moves alone.
type turn struct {
	before *turn         // nil: it is the first
	back   chan struct{} // closed when it is on the queue
	taken  chan struct{} // closed when a worker has claimed it then, or it has ended
}

// after returns the turn that follows.
func (t *turn) after() *turn {
	return &turn{before: t, back: make(chan struct{}), taken: make(chan struct{})}
}

// await waits until the request may be put on the queue.
func (t *turn) await(ctx context.Context) {
	if t == nil || t.before == nil {
		return
	}
	for _, done := range []chan struct{}{t.before.taken, t.before.back} {
		select {
		case <-done:
		case <-time.After(turnWithin):
		case <-ctx.Done():
		}
	}
}

// onBack is called when the request is on the queue again, or cannot be.
func (t *turn) onBack() {
	if t != nil {
		close(t.back)
	}
}

// onTaken is called when a worker has claimed the request, or it has ended.
func (t *turn) onTaken() {
	if t != nil {
		close(t.taken)
	}
}
