package idempotency

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

var (
	errNone    = errors.New("no such entry")
	errChanged = errors.New("the key was taken over")
)

// End says how an answer has ended. The values are stored.
type end string

const (
	running end = ""
	kept    end = "kept"
	freed   end = "freed"  // whole, but not kept: the next request with the key runs
	broken  end = "broken" // as freed, and clients must see that it is not whole
)

func (e end) frees() bool { return e == freed || e == broken }

// entry is a message of a key.
type entry struct {
	Owner  string      `json:"owner"`         // the gateway that wrote it, and one of its runs
	Print  string      `json:"print"`         // hash of the request's path and body
	Run    uint64      `json:"run,omitzero"`  // sequence of the claim; 0: it is the claim
	Part   int         `json:"part,omitzero"` // from 1 on; 0: the claim
	Until  time.Time   `json:"until"`         // when the key expires
	Status int         `json:"status,omitzero"`
	Header http.Header `json:"header,omitzero"` // of part 1, as Status
	At     position    `json:"at,omitzero"`     // where it begins, in a stream
	End    end         `json:"end,omitzero"`

	data []byte
	seq  uint64
}

// run is the sequence of the claim to which the entry belongs.
func (e *entry) run() uint64 {
	if e.Run == 0 {
		return e.seq
	}
	return e.Run
}

const (
	entryHeader = "Pulley-Idempotency" // the entry, without its data

	countWithin = 5 * time.Second // what a tenant has stored, by a broker that answers

	freedFor = time.Minute // the last entry of a freed key, and others at least, are kept for those that have not read them
)

// store is where entries are kept. Its methods can be called at the same time.
type store struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	limits subjects.IdempotencyLimits
	stream atomic.Pointer[jetstream.Stream]
}

func newStore(nc *nats.Conn, limits subjects.IdempotencyLimits) (*store, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	return &store{nc: nc, js: js, limits: limits}, nil
}

// open finds the stream, or creates it.
func (s *store) open(ctx context.Context) (jetstream.Stream, error) {
	if st := s.stream.Load(); st != nil {
		return *st, nil
	}
	if err := subjects.EnsureIdempotency(ctx, s.js, s.limits); err != nil {
		return nil, err
	}
	st, err := s.js.Stream(ctx, subjects.IdempotencyStream)
	if err != nil {
		return nil, err
	}
	s.stream.Store(&st)
	return st, nil
}

// lost has the stream looked for again if an error says that it is gone.
func (s *store) lost(err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		s.stream.Store(nil)
	}
	return err
}

// append stores an entry after the one with a sequence, which is 0 if there is none, and sets the entry's own. errChanged: another
// one has come in between. It tries again while the broker does not answer, within ctx.
func (s *store) append(ctx context.Context, subject string, e *entry, after uint64) error {
	if _, err := s.open(ctx); err != nil {
		return err
	}
	m := &nats.Msg{Subject: subject, Header: nats.Header{entryHeader: {string(subjects.MustMarshal(e))}}, Data: e.data}
	for {
		ttl := time.Until(e.Until)
		if e.Part > 0 { // the claim expires first: then the rest does not count
			ttl = max(ttl+time.Second, freedFor)
		}
		if e.End.frees() {
			ttl = freedFor
		}
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		ack, err := s.js.PublishMsg(try, m, jetstream.WithMsgTTL(max(ttl.Round(time.Second), time.Second)), jetstream.WithExpectLastSequencePerSubject(after))
		cancel()
		switch {
		case err == nil:
			e.seq = ack.Sequence
			return nil
		case isConflict(err):
			last, err := s.last(ctx, subject)
			if err == nil && last.Owner == e.Owner && last.Part == e.Part { // an earlier try
				e.seq = last.seq
				return nil
			}
			switch {
			case errors.Is(err, errNone) && after > 0 && !time.Now().Before(e.Until): // all has expired
				after = 0
				continue
			case err != nil && !errors.Is(err, errNone):
				return err
			}
			return errChanged
		case isFull(err), ctx.Err() != nil:
			return s.lost(err)
		}
		select {
		case <-ctx.Done():
			return s.lost(err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// last is the last entry of a key. errNone: there is none.
func (s *store) last(ctx context.Context, subject string) (*entry, error) {
	st, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	return s.entry(st.GetLastMsgForSubject(ctx, subject))
}

// next is the first entry of a key from a sequence on. errNone: there is none.
func (s *store) next(ctx context.Context, subject string, from uint64) (*entry, error) {
	st, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	return s.entry(st.GetMsg(ctx, from, jetstream.WithGetMsgSubject(subject)))
}

func (s *store) entry(m *jetstream.RawStreamMsg, err error) (*entry, error) {
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, errNone
	}
	if err != nil {
		return nil, s.lost(err)
	}
	e := &entry{data: m.Data, seq: m.Sequence}
	if err := subjects.Unmarshal([]byte(m.Header.Get(entryHeader)), e); err != nil {
		return nil, fmt.Errorf("entry of an idempotency key: %w", err)
	}
	return e, nil
}

// purge removes the entries of a key before a sequence. What it cannot remove expires.
func (s *store) purge(ctx context.Context, subject string, before uint64) {
	if st, err := s.open(ctx); err == nil {
		st.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(before))
	}
}

// use counts that a tenant stores something, and returns by what that is taken back. The error is one of isFull if the tenant has
// as much as it may.
func (s *store) use(ctx context.Context, tenant string, keep time.Duration) (seq uint64, err error) {
	if _, err := s.open(ctx); err != nil {
		return 0, err
	}
	ack, err := s.js.Publish(ctx, subjects.IdempotencyUse(tenant), nil, jetstream.WithMsgTTL(max(keep.Round(time.Second), time.Second)))
	if err != nil {
		return 0, s.lost(err)
	}
	return ack.Sequence, nil
}

// useMore counts n further units, and adds to uses by what they are taken back. The error is one of isFull if the tenant has as many
// as it may. What a slow broker does not count in time is not counted.
func (s *store) useMore(tenant string, n int, keep time.Duration, uses *[]uint64) (full error) {
	var acks []jetstream.PubAckFuture
	for range n {
		ack, err := s.js.PublishAsync(subjects.IdempotencyUse(tenant), nil, jetstream.WithMsgTTL(max(keep.Round(time.Second), time.Second)))
		if err != nil {
			break
		}
		acks = append(acks, ack)
	}
	late := time.After(countWithin)
	for _, ack := range acks {
		select {
		case a := <-ack.Ok():
			*uses = append(*uses, a.Sequence)
		case err := <-ack.Err():
			if isFull(err) {
				full = err
			}
		case <-late:
			return full
		}
	}
	return full
}

// unuse takes back what was counted. What it cannot take back expires.
func (s *store) unuse(ctx context.Context, uses ...uint64) {
	st, err := s.js.Stream(ctx, subjects.IdempotencyUses)
	for _, seq := range uses {
		if seq != 0 && err == nil && ctx.Err() == nil {
			st.DeleteMsg(ctx, seq)
		}
	}
}

func isConflict(err error) bool {
	refusal, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (refusal.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || refusal.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// isFull says whether the broker has no room for a message. What else it says passes: it starts, or elects a leader.
func isFull(err error) bool {
	refusal, ok := errors.AsType[*jetstream.APIError](err)
	return ok && slices.Contains([]jetstream.ErrorCode{subjects.StreamFull, jetstream.JSErrCodeStreamMessageExceedsMaximum, 10002, 10023, 10047}, refusal.ErrorCode)
}
