package background

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/subjects"
)

var (
	// ErrNotFound says that a tenant has no such response: there never was one, it was deleted, or it has expired.
	ErrNotFound = errors.New("no such background response")

	errNoObject = errors.New("not a JSON object")
	errChanged  = errors.New("the response was changed meanwhile")
)

const (
	stateHeader = "Pulley-Response" // of a state: the Response
	piece       = 128 << 10         // bytes of a message with a part of the data, at most
	inState     = 64 << 10          // bytes of an object that is in the state itself
)

// Store is where responses are kept. Its methods can be called at the same time.
type Store struct {
	nc   *nats.Conn
	js   jetstream.JetStream
	keep time.Duration // how long a response is kept after it has ended, and each event after it came
	life time.Duration // how long one may take to end

	limits  subjects.BackgroundLimits
	there   chan struct{} // has an element when the streams exist, and nobody has taken it yet
	streams atomic.Pointer[streams]
}

type streams struct{ states, data jetstream.Stream }

// OpenStore returns the store of a broker. It creates nothing.
func OpenStore(nc *nats.Conn) (*Store, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	return &Store{nc: nc, js: js, keep: DefaultKeep, life: DefaultWithin, there: make(chan struct{}, 1)}, nil
}

// open finds the streams. Without create it is jetstream.ErrStreamNotFound if there are none.
func (s *Store) open(ctx context.Context, create bool) (*streams, error) {
	if st := s.streams.Load(); st != nil {
		return st, nil
	}
	if create {
		if err := subjects.EnsureBackground(ctx, s.js, s.limits); err != nil {
			return nil, err
		}
	}
	st := new(streams)
	var err error
	if st.states, err = s.js.Stream(ctx, subjects.BackgroundStates); err != nil {
		return nil, err
	}
	if st.data, err = s.js.Stream(ctx, subjects.BackgroundData); err != nil {
		return nil, err
	}
	s.streams.Store(st)
	select {
	case s.there <- struct{}{}:
	default:
	}
	return st, nil
}

// lost has the streams looked for again if an error says that they are gone.
func (s *Store) lost(err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		s.streams.Store(nil)
	}
	return err
}

// Get returns a response of a tenant, without its object if that is large: see Object.
func (s *Store) Get(ctx context.Context, tenant, id string) (*Response, error) {
	st, err := s.open(ctx, false)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	m, err := st.states.GetLastMsgForSubject(ctx, subjects.BackgroundState(tenant, id))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, s.lost(err)
	}
	return readState(m.Header, m.Data, m.Sequence)
}

func readState(h nats.Header, data []byte, sequence uint64) (*Response, error) {
	r := &Response{object: data, revision: sequence}
	if h.Get(stateHeader) == "" { // see void
		return nil, ErrNotFound
	}
	if err := subjects.Unmarshal([]byte(h.Get(stateHeader)), r); err != nil {
		return nil, fmt.Errorf("state of a background response: %w", err)
	}
	return r, nil
}

// Object is what clients get of a response, as JSON. ErrNotFound: it has changed since it was read: see Load.
func (s *Store) Object(ctx context.Context, r *Response) ([]byte, error) {
	if r.Part == "" {
		return r.object, nil
	}
	return s.read(ctx, subjects.BackgroundPart(r.Tenant, r.ID, r.Part), r.Size)
}

// Load returns a response of a tenant with its object.
func (s *Store) Load(ctx context.Context, tenant, id string) (*Response, error) {
	for tries := 0; ; tries++ {
		r, err := s.Get(ctx, tenant, id)
		if err != nil {
			return nil, err
		}
		if r.object, err = s.Object(ctx, r); err == nil || !errors.Is(err, ErrNotFound) || tries == 5 {
			return r, err
		}
	}
}

// read reads a part of the data that has size bytes.
func (s *Store) read(ctx context.Context, subject string, size int) ([]byte, error) {
	in := &reader{ctx: ctx, store: s, subject: subject, left: size}
	var b bytes.Buffer
	b.Grow(size)
	if _, err := b.ReadFrom(in); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// put writes the state of a response with its object, if it is still as it was read. errChanged: it is not.
func (s *Store) put(ctx context.Context, r *Response) error {
	r.mark()
	ttl := s.keep
	if !r.Status.Final() {
		ttl += s.life
	}
	before, inline := r.Part, r.object
	r.Part, r.Size = "", 0
	if len(r.object) > inState { // each version has a name of its own
		r.Part, r.Size, inline = "object."+rand.Text(), len(r.object), nil
		if err := s.write(ctx, subjects.BackgroundPart(r.Tenant, r.ID, r.Part), r.object, ttl); err != nil {
			r.Part = before
			return err
		}
	}
	m := &nats.Msg{Subject: subjects.BackgroundState(r.Tenant, r.ID), Header: nats.Header{stateHeader: {string(subjects.MustMarshal(r))}}, Data: inline}
	ack, err := s.js.PublishMsg(ctx, m, jetstream.WithMsgTTL(ttl), jetstream.WithExpectLastSequencePerSubject(r.revision))
	if isConflict(err) {
		now, err := s.Get(ctx, r.Tenant, r.ID)
		if err != nil || now.revision <= r.revision || !sameState(now, r) {
			s.drop(ctx, r, r.Part)
			return errChanged
		}
		r.revision = now.revision // an earlier try of ours
	} else if err != nil {
		return s.lost(err)
	} else {
		r.revision = ack.Sequence
	}
	s.drop(ctx, r, before)
	return nil
}

// drop removes a version of an object that is not needed any more. If it cannot, that expires.
func (s *Store) drop(ctx context.Context, r *Response, part string) {
	if part == "" {
		return
	}
	if st, err := s.open(ctx, false); err == nil {
		st.data.Purge(ctx, jetstream.WithPurgeSubject(subjects.BackgroundPart(r.Tenant, r.ID, part)))
	}
}

// sameState says whether two states are the same but for their revision.
func sameState(a, b *Response) bool {
	return bytes.Equal(subjects.MustMarshal(a), subjects.MustMarshal(b))
}

func isConflict(err error) bool {
	refusal, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (refusal.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || refusal.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// write stores a part of the data.
func (s *Store) write(ctx context.Context, subject string, data []byte, ttl time.Duration) error {
	for chunk := range slices.Chunk(data, s.piece()) {
		if _, err := s.js.Publish(ctx, subject, chunk, jetstream.WithMsgTTL(ttl)); err != nil {
			return s.lost(err)
		}
	}
	return nil
}

// piece is how many bytes a message of the data has at most.
func (s *Store) piece() int { return int(min(piece, max(s.nc.MaxPayload()/2, 1<<10))) }

// add stores a response and its job, in the order that package's comment says. If it cannot, it removes what it has stored.
func (s *Store) add(ctx context.Context, r *Response, j *job, body []byte) error {
	if _, err := s.open(ctx, true); err != nil {
		return s.refusal(err)
	}
	err := s.addParts(ctx, r, j, body)
	if err == nil {
		if err = s.put(ctx, r); err == nil {
			return nil
		}
		s.void(context.WithoutCancel(ctx), r.Tenant, r.ID) // it may have been written
	}
	s.purgeData(context.WithoutCancel(ctx), r.Tenant, r.ID)
	return s.refusal(err)
}

// void has a response not exist, whatever was sent of its state before. With the option that no state is there, none can be written
// after it either.
func (s *Store) void(ctx context.Context, tenant, id string, opts ...jetstream.PublishOpt) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := s.js.Publish(ctx, subjects.BackgroundState(tenant, id), nil, append(opts, jetstream.WithMsgTTL(s.keep+s.life))...)
	return s.lost(err)
}

// forget drops what is stored of a job without a state. errChanged: there is one.
func (s *Store) forget(ctx context.Context, j *job) error {
	err := s.void(ctx, j.Tenant, j.ID, jetstream.WithExpectLastSequencePerSubject(0))
	if isConflict(err) {
		if _, err := s.Get(ctx, j.Tenant, j.ID); !errors.Is(err, ErrNotFound) {
			return errChanged
		}
	} else if err != nil {
		return err
	}
	return s.purgeData(ctx, j.Tenant, j.ID)
}

// addParts stores all of a response but its state.

func (s *Store) addParts(ctx context.Context, r *Response, j *job, body []byte) error {
	if err := s.write(ctx, subjects.BackgroundPart(r.Tenant, r.ID, "body"), body, s.keep+s.life); err != nil {
		return err
	}
	if r.isResponses() {
		l := &log{store: s, response: r, next: r.Next}
		if err := l.append(ctx, [][]byte{r.event("response.created"), r.event("response.queued")}, false); err != nil {
			return err
		}
		r.Next = l.next
	}
	_, err := s.js.Publish(ctx, subjects.BackgroundJob(r.Tenant), subjects.MustMarshal(j), jetstream.WithMsgID(r.ID))
	return err
}

// refusal is the error of a call that cannot be stored.
func (s *Store) refusal(err error) error {
	refusal, ok := errors.AsType[*jetstream.APIError](err)
	switch {
	case ok && refusal.ErrorCode == subjects.StreamFull && refusal.Description == "maximum messages per subject exceeded":
		return &api.Error{Status: 429, Code: "background_queue_full", RetryAfter: 10 * time.Second, Message: fmt.Sprintf("%d background responses of the tenant wait or run, which is as many as may", s.limits.Pending)}
	case isRefused(err):
		return &api.Error{Status: 507, Code: "insufficient_storage", Message: "the store for background responses is full: it has room again when older ones expire or are deleted"}
	}
	return s.unavailable(err)
}

// unavailable is the error of a call that the store cannot serve now.
func (s *Store) unavailable(err error) error {
	return api.Unavailable("background_unavailable", time.Second, "the store for background responses does not answer: %v", s.lost(err))
}

// purge removes all that is stored of a response, but its job.
func (s *Store) purge(ctx context.Context, r *Response) error {
	st, err := s.open(ctx, false)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := st.states.Purge(ctx, jetstream.WithPurgeSubject(subjects.BackgroundState(r.Tenant, r.ID))); err != nil {
		return s.lost(err)
	}
	return s.purgeData(ctx, r.Tenant, r.ID)
}

func (s *Store) purgeData(ctx context.Context, tenant, id string) error {
	st, err := s.open(ctx, false)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return s.lost(st.data.Purge(ctx, jetstream.WithPurgeSubject(subjects.BackgroundPart(tenant, id, ">"))))
}

// Cancel ends a response that has not ended, and returns it as it is then.
func (s *Store) Cancel(ctx context.Context, tenant, id string) (*Response, error) {
	for {
		r, err := s.Load(ctx, tenant, id)
		if err != nil || r.Status.Final() {
			return r, err
		}
		r.Status, r.Ended, r.Gateway = Cancelled, time.Now(), ""
		if err = s.put(ctx, r); errors.Is(err, errChanged) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s.nc.Publish(subjects.BackgroundStops, []byte(id))
		s.end(ctx, r)
		return r, nil
	}
}

// end appends the last event of a response that has ended. A run that goes on nevertheless cannot append then.
func (s *Store) end(ctx context.Context, r *Response) error {
	if !r.isResponses() {
		return nil
	}
	for {
		l, err := s.logOf(ctx, r)
		if err != nil || l.ended {
			return err
		}
		if err = l.append(ctx, [][]byte{r.event("response." + string(r.Status))}, true); !errors.Is(err, errChanged) {
			return err
		}
	}
}

// Delete removes a response, and cancels it if it has not ended.
func (s *Store) Delete(ctx context.Context, tenant, id string) error {
	r, err := s.Get(ctx, tenant, id)
	if err != nil {
		return err
	}
	if err := s.purge(ctx, r); err != nil {
		return err
	}
	return s.nc.Publish(subjects.BackgroundStops, []byte(id))
}

// List returns the responses of a tenant, the oldest first. With all it is those of all tenants.
func (s *Store) List(ctx context.Context, tenant string, all bool) ([]*Response, error) {
	filter := subjects.BackgroundState(tenant, "*")
	if all {
		filter = subjects.AllBackgroundStates
	}
	c, err := s.js.OrderedConsumer(ctx, subjects.BackgroundStates, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{filter}, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, HeadersOnly: true, InactiveThreshold: 10 * time.Second,
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []*Response
	for left := c.CachedInfo().NumPending; left > 0; {
		batch, err := c.Fetch(int(min(left, 500)), jetstream.FetchMaxWait(2*time.Second))
		if err != nil {
			return nil, err
		}
		got := false
		for m := range batch.Messages() {
			got = true
			if r, err := readState(m.Headers(), nil, 0); err == nil {
				list = append(list, r)
			}
			if meta, err := m.Metadata(); err == nil {
				left = meta.NumPending
			}
		}
		if err := batch.Error(); err != nil {
			return nil, err
		}
		if !got { // the rest has expired meanwhile
			break
		}
	}
	slices.SortFunc(list, func(a, b *Response) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return list, nil
}

// reader reads a part of the data, a piece at a time.
type reader struct {
	ctx     context.Context
	store   *Store
	subject string
	left    int // bytes

	next uint64 // sequence from which the next piece is looked for
	buf  []byte
}

func (r *reader) Read(p []byte) (int, error) {
	for len(r.buf) == 0 {
		if r.left <= 0 {
			return 0, errEOF
		}
		m, err := r.store.next(r.ctx, r.subject, r.next)
		if err != nil {
			return 0, err
		}
		r.next, r.buf = m.Sequence+1, m.Data
		r.left -= len(m.Data)
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

func (r *reader) Close() error { return nil }

// next is the first message of a subject of the data from a sequence on. ErrNotFound: there is none.
func (s *Store) next(ctx context.Context, subject string, from uint64) (*jetstream.RawStreamMsg, error) {
	st, err := s.open(ctx, false)
	if err != nil {
		return nil, err
	}
	m, err := st.data.GetMsg(ctx, max(from, 1), jetstream.WithGetMsgSubject(subject))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, ErrNotFound
	}
	return m, s.lost(err)
}
