package fleet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/subjects"
)

// DeadLetter is a request that no worker could answer. Its JSON is what pulley dead ls -o json prints.
type DeadLetter struct {
	Sequence    uint64      `json:"seq"`
	At          time.Time   `json:"at"`
	Reason      string      `json:"reason"`
	History     []string    `json:"history,omitempty"` // of its attempts, the oldest first
	ID          string      `json:"id"`
	Pool        string      `json:"pool"`
	Tier        string      `json:"tier"`
	Model       string      `json:"model"`
	Tenant      string      `json:"tenant,omitempty"`
	Method      string      `json:"method"`
	Path        string      `json:"path"`
	Stream      bool        `json:"stream"`
	InputTokens int         `json:"input_tokens"`
	Size        int64       `json:"size"`
	Header      http.Header `json:"header,omitempty"`
	Body        string      `json:"body,omitempty"` // with --show-body
}

// ReadDeadLetter reads a message of the stream of dead letters.
func ReadDeadLetter(subject string, header nats.Header, body []byte, sequence uint64, at time.Time) DeadLetter {
	d := DeadLetter{Sequence: sequence, At: at, Reason: header.Get(subjects.HeaderReason), History: header[subjects.HeaderHistory], Body: string(body)}
	if parts := strings.Split(subject, "."); len(parts) == 4 {
		d.Tier, _ = subjects.Untoken(parts[2])
		d.Pool, _ = subjects.Untoken(parts[3])
	}
	if r, err := subjects.ParseRequest(&nats.Msg{Subject: subject, Header: header}); err == nil {
		d.ID, d.Model, d.Tenant, d.Method, d.Path, d.Stream = r.ID.String(), r.Model, r.Tenant, r.Method, r.Path, r.Stream
		d.InputTokens, d.Size, d.Header = r.InputTokens, r.BodySize, WithoutSecrets(r.Header)
	}
	return d
}

// DeadStream opens the stream of dead letters.
func DeadStream(ctx context.Context, js jetstream.JetStream) (jetstream.Stream, error) {
	stream, err := js.Stream(ctx, subjects.DeadStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, cli.NotFoundf("no stream %s on this broker: start a gateway", subjects.DeadStream)
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", subjects.DeadStream, err)
	}
	return stream, nil
}

// LatestDeadLetters reads at most n of the latest dead letters, without their bodies, the oldest first. total is how many there
// are. What it costs does not depend on that.
func LatestDeadLetters(ctx context.Context, js jetstream.JetStream, n int) (list []DeadLetter, total uint64, err error) {
	stream, err := DeadStream(ctx, js)
	if err != nil {
		return nil, 0, err
	}
	state := stream.CachedInfo().State
	list = []DeadLetter{}
	if state.Msgs == 0 {
		return list, 0, nil
	}
	from := max(state.FirstSeq, state.LastSeq-min(state.LastSeq, uint64(n)-1))
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from, HeadersOnly: true})
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", subjects.DeadStream, err)
	}
	batch, err := consumer.FetchNoWait(n)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", subjects.DeadStream, err)
	}
	for m := range batch.Messages() {
		if meta, err := m.Metadata(); err == nil {
			list = append(list, ReadDeadLetter(m.Subject(), m.Headers(), nil, meta.Sequence.Stream, meta.Timestamp))
		}
	}
	return list, state.Msgs, batch.Error()
}

// DeadLetters reads the latest dead letters that match a subject, without their bodies, the oldest first, and counts
// all that match. last 0 means all.
func DeadLetters(ctx context.Context, js jetstream.JetStream, filter string, last int) (list []DeadLetter, all int, err error) {
	stream, err := DeadStream(ctx, js)
	if err != nil {
		return nil, 0, err
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{FilterSubjects: []string{filter}, HeadersOnly: true})
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", subjects.DeadStream, err)
	}
	info, err := consumer.Info(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", subjects.DeadStream, err)
	}
	list = []DeadLetter{}
	for left := info.NumPending; left > 0; {
		batch, err := consumer.FetchNoWait(int(min(left, 500)))
		if err != nil {
			return nil, 0, fmt.Errorf("read %s: %w", subjects.DeadStream, err)
		}
		got := uint64(0)
		for m := range batch.Messages() {
			got++
			meta, err := m.Metadata()
			if err != nil {
				continue
			}
			list = append(list, ReadDeadLetter(m.Subject(), m.Headers(), nil, meta.Sequence.Stream, meta.Timestamp))
		}
		if err := batch.Error(); err != nil {
			return nil, 0, fmt.Errorf("read %s: %w", subjects.DeadStream, err)
		}
		if got == 0 {
			break // removed in the meantime
		}
		left -= min(got, left)
	}
	all = len(list)
	if last > 0 {
		list = list[max(0, all-last):]
	}
	return list, all, nil
}
