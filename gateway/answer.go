package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/metric"
	"github.com/pulley-lb/pulley/subjects"
)

// maxHeld bounds how much of an answer that does not stream is held until it is whole. A larger one is begun, and broken
// off if it fails.
const maxHeld = 8 << 20

// answer writes one response. Until a byte of an attempt's answer has reached the client, it can be reset, and another
// attempt's answer is written instead. The handler's goroutine owns it.
type answer struct {
	server *server
	w      http.ResponseWriter
	rc     *http.ResponseController
	r      *request

	opened   bool         // the status and headers of an event stream were sent, to keep the client waiting
	begun    bool         // bytes of an attempt's answer were sent
	whole    bool         // the worker sent all of it
	refusal  bool         // it is the engine's answer to an attempt that failed
	tail     [4]byte      // the last bytes written: they show whether an event is complete
	extended time.Time    // when the write deadline was last set
	gaps     *metric.Gaps // times between the pieces of a stream; set once it has begun
	status   int          // what the client got; 0: nothing. Of an error on an opened stream, that of the error
	failed   *api.Error   // the error that the client was told; nil if none

	// Reset for each attempt.
	got     *subjects.Head // nil until it has come
	stream  bool           // the answer is passed on as it comes
	events  bool           // the answer is server-sent events
	text    bool           // and they are not compressed
	part    []byte         // of them: the beginning of a line whose end has not come
	held    [][]byte       // the pieces of an answer that is not passed on yet
	edit    *api.Editor    // nil if the answer is not edited
	size    int64          // bytes that came from the worker
	start   []byte         // the beginning of an answer of the Responses API, until its id is found
	named   bool           // the id was found, or is not looked for any more
	id      string         // of the response; empty until it is found
	taken   int64          // the size in the last WindowUpdate
	usage   subjects.End   // tokens, as the engine reports them
	pieces  int            // of the answer, as they came from the worker: mostly a token each
	timed   int            // how many of them had come at timedAt
	timedAt time.Time
}

func (s *server) newAnswer(w http.ResponseWriter, r *request) *answer {
	return &answer{server: s, w: w, rc: http.NewResponseController(w), r: r}
}

// reset forgets an attempt's answer of which nothing was written.
func (a *answer) reset() {
	a.got, a.held, a.edit, a.stream, a.events, a.size, a.taken, a.start, a.named, a.id = nil, nil, nil, false, false, 0, 0, nil, false, ""
	a.pieces, a.timed, a.timedAt = 0, 0, time.Time{}
	a.text, a.part = false, nil
}

// errMalformed is a bug of a worker.
var errMalformed = api.Errorf(http.StatusBadGateway, "upstream_invalid", "the worker sent a malformed answer")

// head begins an attempt's answer; nil is a malformed head.
func (a *answer) head(h *subjects.Head) error {
	if h == nil || a.got != nil || h.Status < 200 { // 101 is not end to end
		return errMalformed
	}
	a.got = h
	ct := subjects.MediaType(h.Header)
	a.events = ct == "text/event-stream"
	a.text = a.events && uncompressed(h.Header)
	jsonLines := ct == "application/x-ndjson" || ct == "application/jsonl"
	switch {
	case a.opened:
		a.stream = a.events && h.Status == http.StatusOK
	case a.events, jsonLines:
		a.stream = true
	case h.Length < 0 && ct != "application/json", h.Length > maxHeld:
		a.stream = true
	}
	if h.Status < 400 && uncompressed(h.Header) && (a.events || jsonLines || !a.stream && ct == "application/json") {
		a.edit = api.NewEditor(a.r.edits, a.r.api, jsonLines)
	}
	return nil
}

// uncompressed says that the bytes of an answer are its text: only then can it be edited.
func uncompressed(h http.Header) bool {
	enc := h.Get("Content-Encoding")
	return enc == "" || strings.EqualFold(enc, "identity")
}

// recognize finds out, from the first piece, whether an answer that the engine does not call a stream is one.
func (a *answer) recognize(b []byte) {
	if a.events || !a.r.wire.Stream || a.got.Status != http.StatusOK || a.r.api == api.Other || a.r.api == api.OpenAI || !uncompressed(a.got.Header) {
		return
	}
	if is, _ := api.EventStream(b); is {
		a.stream, a.events, a.text = true, true, true
		a.edit = api.NewEditor(a.r.edits, a.r.api, false)
	}
}

// data takes a piece of the answer; last says that no further piece has come yet.
func (a *answer) data(b []byte, last bool) error {
	if a.got == nil {
		return errMalformed
	}
	if a.size == 0 {
		a.recognize(b)
	}
	a.size += int64(len(b))
	a.pieces++
	if a.r.api == api.Responses && !a.named {
		a.learnResponse(b)
	}
	if a.stream {
		if err := a.pass(b, last); err != nil {
			return err
		}
	} else if err := a.hold(b); err != nil {
		return err
	}
	if a.size-a.taken >= subjects.Window/4 {
		a.updateWindow()
	}
	return nil
}

// observeGap observes the time between the pieces of a stream, of which some have come until now.
func (a *answer) observeGap(now time.Time) {
	more := a.pieces - a.timed
	if more == 0 || !a.stream || !a.begun {
		return
	}
	if !a.timedAt.IsZero() {
		a.gaps.Observe(now.Sub(a.timedAt)/time.Duration(more), more)
	}
	a.timed, a.timedAt = a.pieces, now
}

// maxStart bounds the beginning of an answer in which the id of a response is looked for.
const maxStart = 64 << 10

// learnResponse looks for the id of a response in a piece of an answer, and remembers which worker's engine has that
// response: a later request may continue it.
func (a *answer) learnResponse(b []byte) {
	a.start = append(a.start, b...)
	id := api.ResponseID(a.start, a.events)
	if id == "" && len(a.start) <= maxStart {
		return
	}
	a.start, a.named, a.id = nil, true, id
	if id != "" && a.server.router != nil && !a.r.unattended {
		at, by := a.r.target.Load(), a.r.current()
		a.server.router.affinity.learn(responseKey(a.r.wire.Tenant, id), at.queue.pool, by.worker)
	}
}

// hold keeps a piece of an answer that does not stream. When that becomes too large it is passed on from there.
func (a *answer) hold(b []byte) error {
	a.held = append(a.held, b)
	switch {
	case a.size <= maxHeld:
		return nil
	case a.opened:
		return api.Errorf(http.StatusBadGateway, "upstream_invalid", "the engine answered a streaming request with more than %d bytes that are not a stream", maxHeld)
	}
	a.stream, a.edit = true, nil
	for _, h := range a.held {
		if err := a.pass(h, false); err != nil {
			return err
		}
	}
	a.held = nil
	return nil
}

func (a *answer) updateWindow() {
	a.taken = a.size
	att := a.r.current()
	att.taken.Store(a.taken)
	a.server.bus.publish(subjects.WorkerWindow(att.worker), subjects.WindowUpdate{ID: a.r.wire.ID, Attempt: att.mark, Taken: a.taken})
}

func (a *answer) pass(b []byte, flush bool) error {
	if a.edit != nil {
		if b = a.edit.Lines(b); len(b) == 0 && !a.begun {
			return nil // another attempt can still be made
		}
	}
	var part []byte
	if a.text {
		b, part = a.wholeLines(b)
	}
	if len(b) > 0 {
		if !a.begun {
			a.begin(-1)
		}
		if err := a.write(a.part); err != nil {
			return err
		}
		if err := a.write(b); err != nil {
			return err
		}
		a.part = a.part[:0]
	}
	a.part = append(a.part, part...)
	if flush && a.begun { // pieces before this one may have lines, although this one has none
		return a.flush()
	}
	return nil
}

// maxPart bounds the part of a line that is kept until its end has come.
const maxPart = 64 << 10

// wholeLines divides what has come into what ends a line, and the part after it, which is kept until its end has come too: if
// that never comes, since the worker is gone, all that the client has can be read. An engine's lines do not wait for the blank
// one after an event: some send none.
func (a *answer) wholeLines(b []byte) (lines, part []byte) {
	end := bytes.LastIndexAny(b, "\r\n") + 1
	kept := len(b) - end
	if end == 0 {
		kept += len(a.part)
	}
	if kept > maxPart {
		end = len(b)
	}
	return b[:end], b[end:]
}

// begin notes that the answer begins to reach the client, and writes its header. length is that of a body that is there
// as a whole, else -1.
func (a *answer) begin(length int64) {
	now := time.Now()
	a.begun = true
	claimed := a.r.begin(now)
	total := now.Sub(a.r.arrived)
	c := a.server.metrics.of(a.r)
	c.firstByte.Observe(total.Seconds())
	if a.stream {
		observe(c.firstToken, total, a.r.record.exemplar())
	}
	a.status, a.gaps = a.got.Status, c.interToken
	if a.opened {
		return
	}
	h := a.w.Header()
	limited := a.r.caller.limited()
	for k, v := range a.got.Header {
		if !a.server.headers.passes(k, limited) {
			continue
		}
		if had := h[k]; had != nil { // both set it, such as Vary
			v = slices.Concat(had, v)
		}
		h[k] = v
	}
	if a.stream && (a.events || a.edit != nil) {
		h.Del("Content-Length")
	}
	if length >= 0 {
		h.Set("Content-Length", strconv.FormatInt(length, 10))
	}
	if a.got.Status >= 500 && (!a.refusal || a.got.Status != http.StatusServiceUnavailable) {
		h.Set("X-Should-Retry", "false") // it was tried as often as it makes sense
	}
	h.Set("Openai-Processing-Ms", strconv.FormatInt(total.Milliseconds(), 10))
	timing := make([]byte, 0, 64)
	timing = appendMillis(append(timing, "queue;dur="...), claimed.Sub(a.r.arrived))
	timing = appendMillis(append(timing, ", engine;dur="...), now.Sub(claimed))
	timing = appendMillis(append(timing, ", total;dur="...), total)
	h.Add("Server-Timing", string(timing))
	a.header(a.got.Status)
}

func appendMillis(b []byte, d time.Duration) []byte {
	return strconv.AppendFloat(b, float64(d.Nanoseconds())/1e6, 'f', 3, 64)
}

func (a *answer) header(status int) {
	if a.r.explain && !a.opened {
		a.r.receipt(a.w.Header())
	}
	a.w.Header().Set("X-Service-Tier", a.r.target.Load().tier.Name)
	a.extend(time.Now())
	a.w.WriteHeader(status)
}

func (a *answer) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	a.extend(time.Now())
	n, err := a.w.Write(b)
	a.r.bytesOut.Add(int64(n))
	if err != nil {
		return errClientGone
	}
	if n := len(b); n >= len(a.tail) {
		copy(a.tail[:], b[n-len(a.tail):])
	} else {
		copy(a.tail[:], a.tail[n:])
		copy(a.tail[len(a.tail)-n:], b)
	}
	return nil
}

// between says that no event is half written.
func (a *answer) between() bool {
	return !a.begun || a.tail[2] == '\n' && a.tail[3] == '\n' || a.tail == [4]byte{'\r', '\n', '\r', '\n'}
}

// extend gives the client time to take the next bytes.
func (a *answer) extend(now time.Time) {
	if now.Sub(a.extended) > a.server.cfg.SlowClient/16 { // not for each token: setting a deadline has a cost
		a.extended = now
		a.rc.SetWriteDeadline(now.Add(a.server.cfg.SlowClient))
	}
}

func (a *answer) flush() error {
	a.extend(time.Now())
	if err := a.rc.Flush(); err != nil {
		return errClientGone
	}
	return nil
}

// end completes the answer; nil is a malformed end.
func (a *answer) end(usage *subjects.End) error {
	if usage == nil || a.got == nil {
		return a.refuse(errMalformed)
	}
	a.whole, a.usage = true, *usage
	if a.stream {
		if !a.begun {
			a.begin(-1)
		}
		if err := a.write(a.part); err != nil {
			return err
		}
		if a.edit != nil {
			if err := a.write(a.edit.Last()); err != nil {
				return err
			}
		}
		return nil // net/http sends the last lines in one write with the end of the response
	}
	if a.edit != nil {
		a.held = [][]byte{a.edit.Whole(a.held)}
	}
	if a.opened { // the client was promised a stream
		return a.insteadOfStream()
	}
	var length int64
	for _, b := range a.held {
		length += int64(len(b))
	}
	a.begin(length)
	for _, b := range a.held {
		if err := a.write(b); err != nil {
			return err
		}
	}
	return nil
}

// requestID is the id that the client knows: its own, or else the gateway's.
func (a *answer) requestID() string {
	if ids := a.r.wire.Header["X-Request-Id"]; len(ids) > 0 {
		return ids[0]
	}
	return a.r.wire.ID.String()
}

// insteadOfStream sends an answer that is no stream, most likely the engine's error, as an event of a stream on which only
// comments were sent.
func (a *answer) insteadOfStream() error {
	body := bytes.Join(a.held, nil)
	if a.got.Status >= 400 {
		return a.lastEvent(api.EngineError(a.got.Status, body, a.r.api, a.requestID(), a.r.wire.Model))
	}
	var line bytes.Buffer
	if json.Compact(&line, body) == nil && line.Len() > 0 {
		return a.lastEvent(fmt.Appendf(nil, "data: %s\n\n", &line))
	}
	e := api.Errorf(http.StatusBadGateway, "upstream_error", "the engine did not answer with a stream")
	return a.lastEvent(e.Event(a.r.api, a.requestID(), a.r.wire.Model))
}

// giveBack answers with what the engine said in an attempt that failed.
func (a *answer) giveBack(fail *subjects.Fail) error {
	switch {
	case fail.Answer != nil:
	case fail.Class == subjects.FailMisfit, fail.Class == subjects.FailCredentials:
		return a.refuse(&api.Error{Status: http.StatusBadGateway, Code: "upstream_misconfigured", NoRetry: true,
			Message: "no engine could serve the request: " + fail.Reason})
	default:
		return a.refuse(api.Unavailable("no_slot", time.Second, "no engine had a free slot: %s", fail.Reason))
	}
	a.refusal = true
	a.failed = &api.Error{Status: fail.Answer.Status, Code: enginesOwn, Message: fail.Reason}
	if a.opened {
		a.got, a.held = fail.Answer, [][]byte{fail.Body}
		return a.insteadOfStream()
	}
	a.reset()
	a.got, a.held, a.size = fail.Answer, [][]byte{fail.Body}, int64(len(fail.Body))
	if fail.Class == subjects.FailRefused {
		h := a.got.Header
		if h.Get("Retry-After") == "" {
			h.Set("Retry-After", "1")
		}
		if secs, err := strconv.ParseFloat(h.Get("Retry-After"), 64); err == nil && secs > api.LongestRetry(a.r.wire.Header).Seconds() {
			h.Set("X-Should-Retry", "false")
		}
	}
	a.begin(a.size)
	return a.write(fail.Body)
}

// keepAlive sends a comment, if the client waits for a stream and no event is half written.
func (a *answer) keepAlive(now time.Time) error {
	switch {
	case !a.r.wire.Stream || !a.r.api.EventStream() || a.begun && !a.events || a.r.caller.quietly():
		return nil
	case !a.between():
		return nil
	}
	comment := ": working\n\n"
	if _, waits := a.r.waiting(); waits {
		at := a.r.target.Load()
		comment = fmt.Sprintf(": queued position=%d\n\n", at.queue.position(at.join, now))
	}
	if !a.begun && !a.opened {
		a.opened = true
		h := a.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-cache")
		a.header(http.StatusOK)
	}
	if err := a.write([]byte(comment)); err != nil {
		return err
	}
	return a.flush()
}

// refuse ends the answer with an error: as a status while nothing was sent, as the last event of a stream, else by closing
// the connection, so that no client mistakes a part for all of it.
func (a *answer) refuse(err error) error {
	if err == errClientGone {
		return err
	}
	a.r.record.failed(err)
	e := api.AsError(err)
	if !a.begun {
		a.status = e.Status
	}
	a.failed = e
	switch {
	case !a.begun && !a.opened:
		if a.r.explain {
			a.r.receipt(a.w.Header())
		}
		return e
	case a.opened && !a.begun, a.events && a.r.api != api.Other:
		last := *e
		if a.begun {
			last.Response = a.id // SDKs refuse an event of another response
		}
		return a.lastEvent(last.Event(a.r.api, a.requestID(), a.r.wire.Model))
	}
	return errBreakOff
}

func (a *answer) lastEvent(b []byte) error {
	if !a.between() {
		b = append([]byte("\n\n"), b...)
	}
	if err := a.write(b); err != nil {
		return err
	}
	a.w.Header().Set(BrokenOff, "true") // for services: see Do
	a.server.metrics.broken.WithLabelValues(a.r.target.Load().queue.pool).Inc()
	return a.flush()
}
