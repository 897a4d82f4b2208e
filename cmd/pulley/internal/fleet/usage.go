package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

// clocksApart is how much earlier than the broker stores a record its gateway may say that the record's period began.
const clocksApart = time.Hour

// Usage reads what requests have used that ended from since to until, in periods that began then. Each record is there once, as it
// was stored last. Without the stream there is none.
func Usage(ctx context.Context, js jetstream.JetStream, since, until time.Time) ([]subjects.UsageRecord, error) {
	stream, err := js.Stream(ctx, subjects.UsageStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", subjects.UsageStream, err)
	}
	from := since.Add(-clocksApart)
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &from})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", subjects.UsageStream, err)
	}
	info, err := consumer.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", subjects.UsageStream, err)
	}
	last := make(map[string]subjects.UsageRecord) // by subject: a record may be replaced while the stream is read
	for left := info.NumPending; left > 0; {
		batch, err := consumer.FetchNoWait(int(min(left, 2000)))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", subjects.UsageStream, err)
		}
		got := uint64(0)
		for m := range batch.Messages() {
			got++
			r, err := subjects.ParseUsage(m.Subject(), m.Data())
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", subjects.UsageStream, err)
			}
			if !r.Start.Before(since) && r.Start.Before(until) {
				last[m.Subject()] = r
			}
			if meta, err := m.Metadata(); err == nil {
				left = meta.NumPending
			}
		}
		if err := batch.Error(); err != nil {
			return nil, fmt.Errorf("read %s: %w", subjects.UsageStream, err)
		}
		if got == 0 {
			break // replaced or removed in the meantime
		}
	}
	list := make([]subjects.UsageRecord, 0, len(last))
	for _, r := range last {
		list = append(list, r)
	}
	return list, nil
}
