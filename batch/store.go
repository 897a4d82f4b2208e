package batch

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

var (
	errNotFound = errors.New("not found")
	// errChanged means that somebody else has written meanwhile.
	errChanged = errors.New("changed meanwhile")
)

const (
	// wrongLast is the broker's error code for a message whose expected last sequence is not the last.
	wrongLast jetstream.ErrorCode = 10071

	// answersIn is how long the broker may take to answer once.
	answersIn = 5 * time.Second

	// scanCount and scanBytes bound what is asked for at once of a stream.
	scanCount = 256
	scanBytes = 4 << 20
)

// store reads and writes the streams of files and batches.
type store struct {
	nc *nats.Conn
	js jetstream.JetStream
}

// message is a stored message.
type message struct {
	subject string
	seq     uint64
	header  nats.Header
	data    []byte
}

// put replaces what is on a subject, if the sequence of its last message is last; 0: there must be none. It goes after ttl;
// 0: never. It returns the new sequence, or errChanged.
func (s *store) put(ctx context.Context, subject string, v any, last uint64, ttl time.Duration) (uint64, error) {
	body, err := subjects.Marshal(v)
	if err != nil {
		return 0, err
	}
	return s.publish(ctx, &nats.Msg{Subject: subject, Data: body, Header: nats.Header{}}, ttl, jetstream.WithExpectLastSequencePerSubject(last))
}

func (s *store) publish(ctx context.Context, m *nats.Msg, ttl time.Duration, opts ...jetstream.PublishOpt) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, answersIn)
	defer cancel()
	if ttl > 0 {
		m.Header.Set(jetstream.MsgTTLHeader, strconv.Itoa(max(int(ttl.Seconds()), 1))+"s")
	}
	ack, err := s.js.PublishMsg(ctx, m, append(opts, jetstream.WithRetryAttempts(0))...)
	if refusal, ok := errors.AsType[*jetstream.APIError](err); ok && refusal.ErrorCode == wrongLast {
		return 0, errChanged
	}
	if err != nil {
		return 0, fmt.Errorf("store %s: %w", m.Subject, err)
	}
	return ack.Sequence, nil
}

// get decodes the last message on a subject into v, and returns its sequence. It asks the leader, so that what was written
// before is seen. It returns errNotFound if there is none.
func (s *store) get(ctx context.Context, stream, subject string, v any) (uint64, error) {
	m, err := s.last(ctx, stream, subject)
	if err != nil {
		return 0, err
	}
	if err := subjects.Unmarshal(m.data, v); err != nil {
		return 0, fmt.Errorf("read %s: %w", subject, err)
	}
	return m.seq, nil
}

// last returns the last message on a subject, by the stream's leader.
func (s *store) last(ctx context.Context, stream, subject string) (message, error) {
	ctx, cancel := context.WithTimeout(ctx, answersIn)
	defer cancel()
	reply, err := s.nc.RequestWithContext(ctx, subjects.GetMsg(stream), subjects.MustMarshal(map[string]string{"last_by_subj": subject}))
	if err != nil {
		return message{}, fmt.Errorf("read %s: %w", subject, err)
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Seq    uint64 `json:"seq"`
			Header []byte `json:"hdrs"`
			Data   []byte `json:"data"`
		} `json:"message"`
	}
	if err := subjects.Unmarshal(reply.Data, &answer); err != nil {
		return message{}, fmt.Errorf("read %s: %w", subject, err)
	}
	if answer.Error != nil {
		if answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound || answer.Error.ErrorCode == jetstream.JSErrCodeStreamNotFound {
			return message{}, errNotFound
		}
		return message{}, fmt.Errorf("read %s: %w", subject, answer.Error)
	}
	m := message{subject: subject, seq: answer.Message.Seq, data: answer.Message.Data}
	if len(answer.Message.Header) > 0 {
		m.header, err = nats.DecodeHeadersMsg(answer.Message.Header)
	}
	return m, err
}

// direct returns the message on a subject, by any replica that has it.
func (s *store) direct(ctx context.Context, stream, subject string) ([]byte, error) {
	within, cancel := context.WithTimeout(ctx, answersIn)
	defer cancel()
	m, err := s.nc.RequestWithContext(within, subjects.DirectGet(stream)+"."+subject, nil)
	if err == nil && m.Header.Get("Status") == "" {
		return m.Data, nil
	}
	last, err := s.last(ctx, stream, subject) // a replica may be behind
	return last.data, err
}

// remove drops all messages on a subject, which may have wildcards.
func (s *store) remove(ctx context.Context, stream, subject string) error {
	ctx, cancel := context.WithTimeout(ctx, answersIn)
	defer cancel()
	reply, err := s.nc.RequestWithContext(ctx, "$JS.API.STREAM.PURGE."+stream, subjects.MustMarshal(map[string]string{"filter": subject}))
	if err != nil {
		return fmt.Errorf("remove %s: %w", subject, err)
	}
	var answer struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := subjects.Unmarshal(reply.Data, &answer); err != nil {
		return err
	}
	if answer.Error != nil && answer.Error.ErrorCode != jetstream.JSErrCodeStreamNotFound {
		return fmt.Errorf("remove %s: %w", subject, answer.Error)
	}
	return nil
}

// scan yields the messages on a subject, which may have wildcards, in the order in which they were stored. It reads a bounded
// part of them at a time.
func (s *store) scan(ctx context.Context, stream, subject string) iter.Seq2[message, error] {
	return func(yield func(message, error) bool) {
		for next, more := uint64(1), true; more; {
			part, err := s.part(ctx, stream, subject, next)
			if err != nil {
				yield(message{}, fmt.Errorf("read %s: %w", subject, err))
				return
			}
			for _, m := range part.messages {
				if next = m.seq + 1; !yield(m, nil) {
					return
				}
			}
			more = part.more
		}
	}
}

// part is a part of what is on a subject.
type part struct {
	messages []message
	more     bool
}

func (s *store) part(ctx context.Context, stream, subject string, from uint64) (p part, err error) {
	const tries = 3
	for range tries { // a message of the answer may be lost
		if p, err = s.partOnce(ctx, stream, subject, from); err == nil || ctx.Err() != nil {
			return p, err
		}
	}
	return p, err
}

func (s *store) partOnce(ctx context.Context, stream, subject string, from uint64) (p part, err error) {
	ctx, cancel := context.WithTimeout(ctx, answersIn)
	defer cancel()
	inbox := nats.NewInbox()
	sub, err := s.nc.SubscribeSync(inbox)
	if err != nil {
		return p, err
	}
	defer sub.Unsubscribe()
	ask := subjects.MustMarshal(map[string]any{"seq": from, "next_by_subj": subject, "batch": scanCount, "max_bytes": scanBytes})
	if err := s.nc.PublishRequest(subjects.DirectGet(stream), inbox, ask); err != nil {
		return p, err
	}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return p, err
		}
		switch status := m.Header.Get("Status"); status {
		case "":
			seq, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
			if err != nil {
				return p, err
			}
			p.messages = append(p.messages, message{m.Header.Get(jetstream.SubjectHeader), seq, m.Header, m.Data})
		case "204": // the end of this part
			pending, err := strconv.Atoi(m.Header.Get("Nats-Num-Pending"))
			last, _ := strconv.ParseUint(m.Header.Get("Nats-Last-Sequence"), 10, 64)
			if n := len(p.messages); n > 0 && p.messages[n-1].seq != last {
				return p, errors.New("a message of the answer is missing")
			}
			p.more = pending > 0
			return p, err
		case "404":
			return part{}, nil
		default:
			return p, fmt.Errorf("%s %s", status, m.Header.Get("Description"))
		}
	}
}

// used is how many bytes of disk files and results take.
func (s *store) used(ctx context.Context) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, answersIn)
	defer cancel()
	for _, name := range []string{subjects.FilesStream, subjects.ResultsStream} {
		stream, err := s.js.Stream(ctx, name)
		if err != nil {
			return 0, err
		}
		n += int64(stream.CachedInfo().State.Bytes)
	}
	return n, nil
}
