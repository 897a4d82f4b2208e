package gateway

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

// bus is what the parts of a gateway share: the way to the broker and the log, and the policy in force.
type bus struct {
	id    string // the gateway's id, a subject token
	nc    *nats.Conn
	js    jetstream.JetStream
	log   *slog.Logger
	rules atomic.Pointer[rules] // policyFollower sets it
}

// publish publishes a message of package subjects as JSON.
func (b *bus) publish(subject string, v any) { b.nc.Publish(subject, subjects.MustMarshal(v)) }

// event publishes an event for operators. The broker does not store events: without a subscriber they are lost.
func (b *bus) event(e subjects.Event) {
	e.At, e.From = time.Now().UTC(), "gateway "+b.id
	b.publish(subjects.EventSubject(e.Kind), e)
}

// every calls do at each interval until ctx is done.
func every(ctx context.Context, interval time.Duration, do func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do()
		}
	}
}

func (b *bus) cancelAttempt(worker string, id subjects.ID, mark uint64, reason string) {
	b.publish(subjects.WorkerCancel(worker), subjects.Cancel{ID: id, Attempt: mark, Reason: reason})
}
