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
	"github.com/pulley-lb/pulley/subjects"
)

// maxHeld bounds how much of an answer that does not stream is held back until
// it is whole. A larger one is begun, and broken off if it fails.
const maxHeld = 8 << 20

// answer writes one response. Until a byte of an attempt's answer has reached
// the client, it can be reset and another attempt's answer written instead.
type answer struct {
	g   *Gateway
	w   http.ResponseWriter
	rc  *http.ResponseController
	r   *http.Request
	f   *flight
	api api.API

	opened   bool // status and headers of an event stream went out, to keep the client waiting
	begun    bool // bytes of an attempt's answer went out
	whole    bool
	tail     [4]byte   // of what was written, to know whether an event is complete
	extended time.Time // when the write deadline was last set

	// Of the present attempt.
	got    *subjects.Head
	stream bool        // passed on as it comes
	events bool        // server-sent events
	held   [][]byte    // else
	few    [1][]byte   // what held begins with: a short answer comes as one
	edit   *api.Editor // nil: no byte of it changes
	size   int64       // as it came, whatever is made of it
	taken  int64       // told to the worker
	usage  subjects.End
}

func newAnswer(g *Gateway, w http.ResponseWriter, r *http.Request, f *flight) *answer {
	return &answer{g: g, w: w, rc: http.NewResponseController(w), r: r, f: f, api: api.Of(r.URL.Path)}
}

// reset forgets an attempt's answer of which nothing was written.
func (a *answer) reset() {
	a.got, a.held, a.edit, a.stream, a.events, a.size, a.taken = nil, nil, nil, false, false, 0, 0
}

// errMalformed is a bug of a worker.
var errMalformed = &api.Error{Status: http.StatusBadGateway, Code: "upstream_invalid", Message: "the worker sent a malformed answer"}

// head begins an attempt's answer; nil is a malformed one.
func (a *answer) head(h *subjects.Head) error {
	if h == nil || a.got != nil || h.Status < 200 { // 101 is of a connection
		return errMalformed
	}
	a.got = h
	ct := subjects.MediaType(h.Header)
	a.events = ct == "text/event-stream"
	jsonLines := ct == "application/x-ndjson" || ct == "application/jsonl"
	switch {
	case a.opened:
		a.stream = a.events && h.Status == http.StatusOK
	case a.events, jsonLines:
		a.stream = true
	case h.Length < 0 && ct != "application/json", h.Length > maxHeld:
		a.stream = true
	}
	if h.Status < 400 && plainBytes(h.Header) && (a.events || jsonLines || !a.stream && ct == "application/json") {
		a.edit = api.NewEditor(a.f.edits, a.api, jsonLines)
	}
	return nil
}

// plainBytes says that an answer is not compressed: only such a one is edited.
func plainBytes(h http.Header) bool {
	enc := h.Get("Content-Encoding")
	return enc == "" || strings.EqualFold(enc, "identity")
}

// data takes a piece of the answer; last says that no other is there yet.
func (a *answer) data(b []byte, last bool) error {
	if a.got == nil {
		return errMalformed
	}
	a.size += int64(len(b))
	if a.stream {
		if err := a.pass(b, last); err != nil {
			return err
		}
	} else {
		if a.held == nil {
			a.held = a.few[:0]
		}
		a.held = append(a.held, b)
		if a.size > maxHeld && a.opened {
			return &api.Error{Status: http.StatusBadGateway, Code: "upstream_invalid",
				Message: fmt.Sprintf("the engine answered a stream with more than %d bytes of something else", maxHeld)}
		}
		if a.size > maxHeld {
			a.stream, a.edit = true, nil
			for _, h := range a.held {
				if err := a.pass(h, false); err != nil {
					return err
				}
			}
			a.held = nil
		}
	}
	if a.size-a.taken >= subjects.Window/4 {
		a.credit()
	}
	return nil
}

func (a *answer) credit() {
	a.f.mu.Lock()
	cur := a.f.current
	a.f.mu.Unlock()
	a.taken = a.size
	a.g.bus.publish(subjects.WorkerWindow(cur.worker), subjects.WindowUpdate{ID: a.f.req.ID, Attempt: cur.mark, Taken: a.taken})
}

// pass writes bytes of a stream through.
func (a *answer) pass(b []byte, flush bool) error {
	if a.edit != nil {
		if b = a.edit.Lines(b); len(b) == 0 && !a.begun {
			return nil // another attempt can still be made
		}
	}
	if !a.begun {
		a.begin(-1)
	}
	if err := a.write(b); err != nil {
		return err
	}
	if flush {
		return a.flush()
	}
	return nil
}

// begin notes that the answer begins to reach the client, and writes its
// header. length is that of a body that is there as a whole, else -1.
func (a *answer) begin(length int64) {
	now := time.Now()
	a.begun = true
	a.f.firstByte = now
	a.f.mu.Lock()
	a.f.begun = true
	claimed := a.f.claimed
	a.f.mu.Unlock()
	at := a.f.at()
	at.queue.meters.ttft.Observe(now.Sub(a.f.arrived).Seconds())
	if a.opened {
		return
	}
	h := a.w.Header()
	for k, v := range a.got.Header {
		if k != "X-Request-Id" && k != "Openai-Processing-Ms" {
			had := h[k]
			if had != nil && strings.HasPrefix(k, "X-Ratelimit-") { // the key's, not the engine's
				continue
			}
			if had != nil { // such as Vary, for browsers
				v = slices.Concat(had, v)
			}
			h[k] = v
		}
	}
	if a.stream && (a.events || a.edit != nil) {
		h.Del("Content-Length")
	}
	if length >= 0 {
		h.Set("Content-Length", strconv.FormatInt(length, 10))
	}
	total := now.Sub(a.f.arrived)
	h.Set("Openai-Processing-Ms", strconv.FormatInt(total.Milliseconds(), 10))
	timing := make([]byte, 0, 64)
	timing = appendMillis(append(timing, "queue;dur="...), claimed.Sub(a.f.arrived))
	timing = appendMillis(append(timing, ", engine;dur="...), now.Sub(claimed))
	timing = appendMillis(append(timing, ", total;dur="...), total)
	h.Add("Server-Timing", string(timing))
	a.header(a.got.Status)
}

func appendMillis(b []byte, d time.Duration) []byte {
	return strconv.AppendFloat(b, float64(d.Nanoseconds())/1e6, 'f', 3, 64)
}

func (a *answer) header(status int) {
	a.w.Header().Set("X-Service-Tier", a.f.at().tier.Name)
	a.extend(time.Now())
	a.w.WriteHeader(status)
}

func (a *answer) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	a.extend(time.Now())
	n, err := a.w.Write(b)
	a.f.bytes.Add(int64(n))
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
	if now.Sub(a.extended) > a.g.cfg.SlowClient/16 { // for each token it would be a cost
		a.extended = now
		a.rc.SetWriteDeadline(now.Add(a.g.cfg.SlowClient))
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
		if a.edit != nil {
			if err := a.write(a.edit.Last()); err != nil {
				return err
			}
		}
		return a.flush()
	}
	if a.edit != nil {
		a.held = [][]byte{a.edit.Whole(a.held)}
	}
	if a.opened { // promised a stream, got something else
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

// insteadOfStream tells, inside an event stream that only comments were sent
// on, an answer that is no stream: most likely the engine's error.
func (a *answer) insteadOfStream() error {
	body := bytes.Join(a.held, nil)
	if a.got.Status >= 400 {
		return a.lastEvent(api.EngineError(a.got.Status, body, a.api, a.f.req.ID.String()))
	}
	var line bytes.Buffer
	if json.Compact(&line, body) == nil && line.Len() > 0 {
		return a.lastEvent(fmt.Appendf(nil, "data: %s\n\n", &line))
	}
	e := &api.Error{Status: http.StatusBadGateway, Code: "upstream_error", Message: "the engine answered with something that is no stream"}
	return a.lastEvent(e.Event(a.api, a.f.req.ID.String()))
}

// giveBack answers with the engine's own refusal.
func (a *answer) giveBack(fail *subjects.Fail) error {
	if fail.Answer == nil {
		return a.refuse(api.Unavailable("no_slot", time.Second, "no engine had room: %s", fail.Reason))
	}
	if a.opened {
		a.got, a.held = fail.Answer, [][]byte{fail.Body}
		return a.insteadOfStream()
	}
	a.reset()
	a.got, a.held, a.size = fail.Answer, [][]byte{fail.Body}, int64(len(fail.Body))
	if a.got.Header.Get("Retry-After") == "" {
		a.got.Header.Set("Retry-After", "1")
	}
	a.begin(a.size)
	return a.write(fail.Body)
}

// keepAlive sends a comment, if the client waits for a stream and no event is
// half written.
func (a *answer) keepAlive(position int) error {
	switch {
	case !a.f.req.Stream || a.api == api.Other || a.begun && !a.events:
		return nil
	case !a.between():
		return nil
	}
	comment := ": working\n\n"
	if _, queued := a.f.queued(); queued {
		comment = fmt.Sprintf(": queued position=%d\n\n", position)
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

// refuse ends the answer with an error: as a status while nothing was sent, as
// the last event of a stream, else by breaking the connection, so that no
// client takes a part for the whole.
func (a *answer) refuse(err error) error {
	if err == errClientGone {
		return err
	}
	e := api.AsError(err)
	switch {
	case !a.begun && !a.opened:
		return e
	case a.opened && !a.begun, a.events && a.api != api.Other:
		return a.lastEvent(e.Event(a.api, a.f.req.ID.String()))
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
	a.g.metrics.brokenStream(a.f.at().pool)
	return a.flush()
}
