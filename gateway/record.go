package gateway

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/subjects"
)

// record is what is known of one call of the ingress, for the access log and the trace. It is the call's [http.ResponseWriter],
// and notes the status and the size of the answer. Without an access log and traces no call has one: the methods below Unwrap do
// nothing on nil. The goroutine that serves the call owns it.
type record struct {
	http.ResponseWriter
	trace *callTrace // nil if there is none

	began                time.Time
	method, path, scheme string
	bytesIn              int64 // of the request's body
	bytesOut             int64 // of the answer's body
	status               int   // 0: nothing was written; 499: the client went away
	code                 string
	outcome              Outcome // empty until the call has ended

	key, tenant, model, pool, tier string // empty while it is not known

	// Of a request that was admitted.
	request     *subjects.Request // nil if it was not
	last        *attempt          // nil if the request waited when it ended
	worker      string            // the name of the last one that had it
	attempts    int
	queue       time.Duration // from its arrival to its last claim; -1: there was none
	firstByte   time.Duration // from its arrival; -1: no byte of an answer was written
	firstByteAt time.Time     // zero then
	input       int           // tokens; 0: unknown
	output      int
}

// records makes a record of each call, and passes it on when the call has ended.
type records struct {
	log    *accessLog
	tracer *tracer
}

// of makes a record of each call that h serves, if somebody wants it. Health checks have none.
func (rs *records) of(h http.Handler) http.Handler {
	if rs.log == nil && rs.tracer == nil {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			h.ServeHTTP(w, r)
			return
		}
		rec := newRecord(w, r)
		rec.trace = rs.tracer.begin(r, rec.began)
		defer rs.end(rec) // also if the answer is broken off
		h.ServeHTTP(rec, r)
	})
}

func (rs *records) end(rec *record) {
	now, id := time.Now(), rec.Header().Get("X-Pulley-Request-Id")
	rec.close()
	rs.log.add(rec, id, now)
	rec.trace.end(rec, id, now)
}

func newRecord(w http.ResponseWriter, r *http.Request) *record {
	rec := &record{
		ResponseWriter: w, began: time.Now(), method: r.Method, path: r.URL.Path, scheme: "http", bytesIn: max(r.ContentLength, 0), queue: -1, firstByte: -1,
	}
	if r.TLS != nil {
		rec.scheme = "https"
	}
	return rec
}

// recordOf is the record of the call that w answers; nil if there is none.
func recordOf(w http.ResponseWriter) *record {
	rec, _ := w.(*record)
	return rec
}

func (rec *record) WriteHeader(status int) {
	if rec.status == 0 && status >= 200 {
		rec.status = status
	}
	rec.ResponseWriter.WriteHeader(status)
}

func (rec *record) Write(b []byte) (int, error) {
	if rec.status == 0 {
		rec.status = http.StatusOK
	}
	n, err := rec.ResponseWriter.Write(b)
	rec.bytesOut += int64(n)
	return n, err
}

// Unwrap is for [http.ResponseController].
func (rec *record) Unwrap() http.ResponseWriter { return rec.ResponseWriter }

// identified notes who sends the call.
func (rec *record) identified(who *caller) {
	if rec == nil || who == nil {
		return
	}
	if rec.tenant = who.tenant; who.key != nil {
		rec.key = who.key.ID
	}
}

// asks notes what the call asks for.
func (rec *record) asks(model, tier string) {
	if rec != nil {
		rec.model, rec.tier = model, tier
	}
}

// routed notes where the call goes.
func (rec *record) routed(pool string) {
	if rec != nil {
		rec.pool = pool
	}
}

// ended notes how an admitted request ended. last is its attempt, nil if it waited; gone says that its client disconnected.
func (rec *record) ended(r *request, last *attempt, ans *answer, gone bool) {
	if rec == nil {
		return
	}
	at := r.target.Load()
	rec.request, rec.pool, rec.tier, rec.bytesIn = r.wire, at.queue.pool, at.tier.Name, r.wire.BodySize
	rec.attempts, rec.last = r.made(), last
	if last != nil {
		rec.worker = last.name
	}
	if rec.attempts > 0 {
		rec.queue = r.claimed.Sub(r.arrived)
	}
	if ans.begun && !ans.refusal {
		rec.firstByteAt, rec.firstByte = r.firstByte, r.firstByte.Sub(r.arrived)
	}
	rec.input, rec.output = max(ans.usage.InputTokens, 0), max(ans.usage.OutputTokens, 0)
	rec.outcome = ans.outcome(gone)
}

// failed notes the error with which a call ends, if there is one.
func (rec *record) failed(err error) {
	switch {
	case rec == nil, err == nil, errors.Is(err, errBreakOff): // its reason was noted before
	case errors.Is(err, errClientGone):
		rec.status, rec.outcome = statusClientGone, Cancelled
	default:
		rec.code = strings.ToLower(api.AsError(err).Code)
	}
}

// statusClientGone is nginx's status of a request whose client went away.
const statusClientGone = 499

// stream says that the client asked for a stream.
func (rec *record) stream() bool { return rec.request != nil && rec.request.Stream }

// errorType is a word for the error that the call ended with.
func (rec *record) errorType() string {
	switch {
	case rec.code != "":
		return rec.code
	case rec.outcome == Cancelled || rec.status < http.StatusBadRequest:
		return string(rec.outcome)
	}
	return strconv.Itoa(rec.status)
}

// isError says whether the call ended other than with an answer that is no error.
func (rec *record) isError() bool {
	return rec.status >= http.StatusBadRequest || rec.outcome != Answered
}

// close ends the record. The outcome of an admitted request was noted before.
func (rec *record) close() {
	switch {
	case rec.outcome != "":
	case rec.status >= http.StatusBadRequest || rec.status == 0:
		rec.outcome = outcomeOf(rec.status)
	default:
		rec.outcome = Answered
	}
}
