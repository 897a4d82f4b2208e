package idempotency

import (
	"context"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
)

// idHeader is the header of answers that has the id of the request that ran.
const idHeader = "X-Pulley-Request-Id"

// place is what a client has of a stream.
type place struct {
	id string // of the request that ran
	n  uint64 // events
}

func (p place) String() string { return p.id + ":" + strconv.FormatUint(p.n, 10) }

func badResume(format string, args ...any) *api.Error {
	return api.Errorf(http.StatusBadRequest, "invalid_resume", gateway.ResumeHeader+": "+format, args...)
}

// placeOf reads the header of a call that resumes a stream.
func placeOf(values []string) (p place, err error) {
	if len(values) > 1 {
		return p, badResume("it was sent more than once")
	}
	id, n, ok := strings.Cut(values[0], ":")
	if _, err := subjects.ParseID(id); ok && err == nil {
		if count, err := strconv.ParseUint(n, 10, 63); err == nil {
			return place{id, count}, nil
		}
	}
	return p, badResume("%s is not ID:N; ID is the %s of the stream, and N how many of its events were received",
		api.Quote(values[0]), strings.ToLower(idHeader))
}

// errGone is the answer for a stream that is not there any more, or will have no end.
var errGone = &api.Error{Status: http.StatusNotFound, Code: "stream_not_stored", NoRetry: true,
	Message: "the stream is not stored: its request failed or was cancelled, its gateway is gone, or it has expired. Send the request again without " +
		gateway.ResumeHeader + "; it may run again, and give another answer"}

// resume answers a call with what its client lacks of a stream. It never runs a request.
func (s *Service) resume(w http.ResponseWriter, r *http.Request, who gateway.Caller, sent []byte) error {
	r.Body.Close()
	keys := r.Header[keyHeader]
	if keys == nil {
		return badResume("%s is missing; only streams that were asked for with one can be resumed", keyHeader)
	}
	if err := check(keys); err != nil {
		return err
	}
	want, err := placeOf(r.Header[gateway.ResumeHeader])
	if err != nil {
		return err
	}
	c := &call{key: keys[0], subject: subjects.IdempotencyKey(who.Tenant, hash("key", keys[0])), print: fingerprint(r, sent)}
	st, err := s.stored(r.Context(), c)
	if err != nil {
		return s.resumeRefusal(err)
	}
	own := s.local(st.last.Owner)
	if own != nil {
		own.join(1)
		defer own.join(-1)
	}
	at, err := s.seek(r.Context(), st, want)
	if err != nil {
		return s.resumeRefusal(err)
	}
	f := &follower{
		service: s, ctx: r.Context(), w: w, rc: http.NewResponseController(w), subject: c.subject, claim: st.last.run(), owner: st.last.Owner,
		last: at.seq, part: at.Part, run: own, replays: true, skips: true, at: at.At, until: want.n,
	}
	w.Header().Set(gateway.ResumeHeader, want.String())
	f.begin(st.first)
	f.between = f.kind == events
	if err := f.send(nil); err != nil {
		return err
	}
	if err := f.write(at); err != nil || at.End != running {
		return err
	}
	return f.follow()
}

// resumeRefusal is the error of a call whose stream cannot be resumed.
func (s *Service) resumeRefusal(err error) error {
	if errors.Is(err, errNone) || errors.Is(err, errChanged) {
		return errGone
	}
	return s.refusal(err)
}

// storedStream is a stream of which something is stored.
type storedStream struct {
	subject     string
	first, last *entry
	kind        kind
}

// stored finds the answer of a key. The error is errNone or errChanged if there is none.
func (s *Service) stored(ctx context.Context, c *call) (*storedStream, error) {
	if _, _, err := s.running(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, claimWithin)
	defer cancel()
	last, err := s.store.last(ctx, c.subject)
	if err != nil {
		return nil, err
	}
	free, err := s.isFree(ctx, c, last)
	switch {
	case err != nil:
		return nil, err
	case free:
		return nil, errNone
	case last.Print != c.print:
		return nil, reused(c.key)
	case last.Part == 0: // what the client has is of an earlier request
		return nil, errOther
	}
	first, err := s.store.next(ctx, c.subject, last.run()+1)
	if err != nil {
		return nil, err
	}
	if first.run() != last.run() || first.Part != 1 {
		return nil, errChanged
	}
	return &storedStream{c.subject, first, last, kindOf(first.Header)}, nil
}

// errOther is the answer if the key has another answer than the one of which the client has the beginning.
var errOther = &api.Error{Status: http.StatusConflict, Code: "resume_id_mismatch", NoRetry: true,
	Message: gateway.ResumeHeader + " names another request than the one whose answer the " + keyHeader + " has; send the request again without " +
		gateway.ResumeHeader + " to get that answer from its beginning"}

// seek finds the entry in which the last event ends that the client has.
func (s *Service) seek(ctx context.Context, st *storedStream, want place) (*entry, error) {
	switch {
	case st.first.Header.Get(idHeader) != want.id:
		return nil, errOther
	case st.kind == whole:
		return nil, badResume("the answer is not a stream of events or lines; send the request again without the header to get it")
	}
	end := st.last.At
	end.read(st.kind, st.last.data, math.MaxUint64)
	if want.n > end.Events {
		return nil, badResume("%d events were received, but the stream has only %d so far", want.n, end.Events)
	}
	if st.last.At.Events < want.n {
		return st.last, nil
	}
	ctx, cancel := context.WithTimeout(ctx, claimWithin)
	defer cancel()
	low, high, above := st.first, st.last.seq, st.last // above is the first entry from high on, and begins after the event
	for halve := false; want.n > 0 && above.Part > low.Part+1; halve = !halve {
		between := high - low.seq
		if !halve { // guess: most streams are steady
			share := float64(want.n-low.At.Events) / float64(above.At.Events-low.At.Events)
			between = uint64(share * float64(between))
		} else {
			between /= 2
		}
		middle := min(max(low.seq+between, low.seq+1), high-1)
		e, err := s.store.next(ctx, st.subject, middle)
		switch {
		case err != nil:
			return nil, err
		case e.run() != st.last.run():
			return nil, errChanged
		case e.At.Events < want.n:
			low = e
		default:
			high, above = middle, e
		}
	}
	return low, nil
}
