package background

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

var errEOF = io.EOF

// Headers of a message with events. Events are joined into messages, and an event that is too long goes through several.
const (
	firstHeader = "Pulley-First" // number of the first event of which it has bytes
	restHeader  = "Pulley-Rest"  // it begins within that event
	nextHeader  = "Pulley-Next"  // number of the event that comes after those which end in it
	runHeader   = "Pulley-Run"   // that appended it
	endHeader   = "Pulley-End"   // no event follows
)

// log appends events to those of a response. One goroutine uses it at a time.
type log struct {
	store    *Store
	response *Response
	next     int    // number of the next event
	last     uint64 // sequence of the last message; 0: there is none
	ended    bool
	bytes    int // appended by this log
}

// logOf continues the events that a response has.
func (s *Store) logOf(ctx context.Context, r *Response) (*log, error) {
	st, err := s.open(ctx, false)
	if err != nil {
		return nil, err
	}
	l := &log{store: s, response: r, next: r.Next}
	m, err := st.data.GetLastMsgForSubject(ctx, l.subject())
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return l, nil
	}
	if err != nil {
		return nil, s.lost(err)
	}
	l.last, l.ended = m.Sequence, m.Header.Get(endHeader) != ""
	l.next, _ = strconv.Atoi(m.Header.Get(nextHeader))
	return l, nil
}

func (l *log) subject() string {
	return subjects.BackgroundPart(l.response.Tenant, l.response.ID, "events")
}

// append appends events, which have no number yet: see event. errChanged: others have appended since.
func (l *log) append(ctx context.Context, events [][]byte, end bool) error {
	var buf []byte
	most := l.store.piece()
	first, rest := l.next, false
	flush := func(last bool) error {
		h := nats.Header{firstHeader: {strconv.Itoa(first)}, nextHeader: {strconv.Itoa(l.next)}, runHeader: {strconv.Itoa(l.response.Runs)}}
		if rest {
			h.Set(restHeader, "1")
		}
		if last && end {
			h.Set(endHeader, "1")
		}
		err := l.publish(ctx, h, buf)
		buf, first = nil, l.next
		return err
	}
	for i, e := range events {
		e = numbered(e, l.next)
		if len(buf) > 0 && len(buf)+len(e) > most {
			if err := flush(false); err != nil {
				return err
			}
			rest = false
		}
		for len(e) > most {
			buf = e[:most]
			if err := flush(false); err != nil {
				return err
			}
			e, rest = e[most:], true
		}
		buf = append(buf, e...)
		l.next++
		if rest || i == len(events)-1 {
			if err := flush(i == len(events)-1); err != nil {
				return err
			}
			rest = false
		}
	}
	return nil
}

// publish stores one message. It tries again while the broker does not answer, within ctx.
func (l *log) publish(ctx context.Context, h nats.Header, data []byte) error {
	m := &nats.Msg{Subject: l.subject(), Header: h, Data: data}
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		ack, err := l.store.js.PublishMsg(try, m, jetstream.WithMsgTTL(l.store.keep), jetstream.WithExpectLastSequencePerSubject(l.last))
		cancel()
		stored := err == nil
		switch {
		case stored:
			l.last = ack.Sequence
		case isConflict(err):
			if stored, err = l.rejoin(ctx, m); err != nil {
				return err
			}
		case isRefused(err), ctx.Err() != nil:
			return err
		default:
			select {
			case <-ctx.Done():
				return err
			case <-time.After(100 * time.Millisecond):
			}
		}
		if stored {
			l.bytes += len(data)
			return nil
		}
	}
}

// rejoin says whether a message that did not come as expected is the last one: its ack was lost. Without an error it may else be
// appended: all others have expired, and the response is still as this log knows it.
func (l *log) rejoin(ctx context.Context, m *nats.Msg) (stored bool, err error) {
	st, err := l.store.open(ctx, false)
	if err != nil {
		return false, err
	}
	last, err := st.data.GetLastMsgForSubject(ctx, l.subject())
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		r, err := l.store.Get(ctx, l.response.Tenant, l.response.ID)
		if err != nil || r.revision != l.response.revision {
			return false, errChanged
		}
		l.last = 0
		return false, nil
	case err != nil:
		return false, l.store.lost(err)
	}
	for _, name := range []string{firstHeader, restHeader, nextHeader, runHeader, endHeader} {
		if last.Header.Get(name) != m.Header.Get(name) {
			return false, errChanged
		}
	}
	if !bytes.Equal(last.Data, m.Data) {
		return false, errChanged
	}
	l.last = last.Sequence
	return true, nil
}

// isRefused says whether the broker has no room for a message. What else it says passes: it starts, or elects a leader.
func isRefused(err error) bool {
	refusal, ok := errors.AsType[*jetstream.APIError](err)
	return ok && slices.Contains([]jetstream.ErrorCode{subjects.StreamFull, jetstream.JSErrCodeStreamMessageExceedsMaximum, 10002, 10023, 10047}, refusal.ErrorCode)
}

// event is an event of a response with its object.
func (r *Response) event(kind string) []byte {
	data, _ := with([]byte("{}"), member{"type", text(kind)}, member{"sequence_number", jsonZero}, member{"response", r.object})
	return data
}

var jsonZero = []byte("0")

// numbered is an event as it is sent to clients, with its number.
func numbered(data []byte, n int) []byte {
	if with, err := with(data, member{"sequence_number", strconv.AppendInt(nil, int64(n), 10)}); err == nil {
		data = with
	}
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", getText(data, "type"), data)
}

// splitter takes server-sent events apart.
type splitter struct {
	line  []byte
	data  []byte
	event func(data []byte) error // gets the data of each event that has any, until it returns an error; it may keep it
}

func (s *splitter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			s.line = append(s.line, rest...)
			break
		}
		s.line = append(s.line, rest[:i]...)
		rest = rest[i+1:]
		line := bytes.TrimSuffix(s.line, []byte("\r"))
		if field, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			if s.data != nil {
				s.data = append(s.data, '\n')
			}
			s.data = append(s.data, bytes.TrimPrefix(field, []byte(" "))...)
		}
		if len(line) == 0 && s.data != nil {
			data := s.data
			s.data = nil
			if err := s.event(data); err != nil {
				return 0, err
			}
		}
		s.line = s.line[:0]
	}
	return len(p), nil
}
