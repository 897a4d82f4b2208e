package gateway

import (
	"slices"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// cancels are the attempts that this gateway has lately told workers to stop. They are told again when it has connected to the
// broker once more: what was on the way may be lost, and until the worker lists what it runs, its engine would go on.
type cancels struct {
	mu   sync.Mutex
	told []toldCancel // the oldest first
}

type toldCancel struct {
	at     time.Time
	worker string
	cancel subjects.Cancel
}

const (
	// cancelLostFor is how long before a new connection what was sent may be lost. A server that falls silent is noticed within 2 s.
	cancelLostFor = 3 * time.Second

	maxTold = 4096 // remembered at once
)

func (c *cancels) note(t toldCancel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := 0
	for old < len(c.told) && (t.at.Sub(c.told[old].at) > cancelLostFor || len(c.told)-old >= maxTold) {
		old++
	}
	c.told = append(slices.Delete(c.told, 0, old), t)
}

// recent returns what workers were told a moment ago.
func (c *cancels) recent(now time.Time) []toldCancel {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.told, func(t toldCancel) bool { return now.Sub(t.at) <= cancelLostFor })
	if i < 0 {
		return nil
	}
	return slices.Clone(c.told[i:])
}

// cancelAttempt tells a worker to stop an attempt. It does not wait. A worker that does not run it takes no notice.
func (b *bus) cancelAttempt(worker string, id subjects.ID, mark uint64, reason string) {
	t := toldCancel{time.Now(), worker, subjects.Cancel{ID: id, Attempt: mark, Reason: reason}}
	b.cancels.note(t)
	b.publish(subjects.WorkerCancel(worker), t.cancel)
}

// cancelAgain repeats what workers were told a moment ago.
func (b *bus) cancelAgain(now time.Time) {
	for _, t := range b.cancels.recent(now) {
		b.publish(subjects.WorkerCancel(t.worker), t.cancel)
	}
}
