package batch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/pulley-lb/pulley/subjects"
)

// Settings are what gateways store of their Config, for operators. Those of the gateway that was started last count.
type Settings struct {
	Disk int64 `json:"disk"` // bytes
}

func (s *store) putSettings(ctx context.Context, v Settings) error {
	_, err := s.publish(ctx, &nats.Msg{Subject: subjects.BatchSettings, Data: subjects.MustMarshal(v), Header: nats.Header{}}, 0)
	return err
}

// Open is a batch that has not ended, as operators see it.
type Open struct {
	ID, Tenant string
	Status     Status
	Lines      int
	Done       int       // lines that are finished
	Owned      bool      // a gateway runs it, or has run it and died
	Written    time.Time // when its record was written last: each two seconds by a gateway that runs it
	Moved      time.Time // when a line was finished last; else when it began
	Until      time.Time // when it expires
}

// mostOpen bounds how many batches Examine reads.
const mostOpen = 200

// Examine returns the settings, and the batches of all tenants that have not ended, the oldest first and a few hundred at most. There
// are none where gateways have not made the streams.
func Examine(ctx context.Context, nc *nats.Conn) (cfg Settings, list []Open, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return cfg, nil, err
	}
	s := &store{nc, js}
	records, err := js.Stream(ctx, subjects.RecordsStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return cfg, nil, nil
	}
	if err != nil {
		return cfg, nil, fmt.Errorf("batches: %w", err)
	}
	if _, err := s.get(ctx, subjects.RecordsStream, subjects.BatchSettings, &cfg); err != nil && !errors.Is(err, errNotFound) {
		return cfg, nil, err
	}
	open, err := s.open(ctx)
	if err != nil {
		return cfg, nil, err
	}
	open = open[:min(len(open), mostOpen)]
	found := make([]*Open, len(open))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i, o := range open {
		group.Go(func() error {
			m, err := records.GetLastMsgForSubject(ctx, subjectOf(o.Tenant, o.ID))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			var b record
			if err := subjects.Unmarshal(m.Data, &b); err != nil {
				return fmt.Errorf("read %s: %w", o.ID, err)
			}
			if b.Status.ended() {
				return nil
			}
			found[i] = &Open{
				ID: b.ID, Tenant: b.Tenant, Status: b.Status, Lines: b.Lines, Done: b.Progress.Completed + b.Progress.Failed, Owned: b.Owner != "",
				Written: m.Time, Moved: later(b.Moved, later(b.Since[InProgress], b.Since[Validating])), Until: b.Until,
			}
			return nil
		})
	}
	err = group.Wait()
	for _, o := range found {
		if o != nil {
			list = append(list, *o)
		}
	}
	return cfg, list, err
}
