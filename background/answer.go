package background

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// answer is the [http.ResponseWriter] of a run. The events of a stream are numbered and stored as they come; what is no stream is
// kept until its end.
type answer struct {
	cfg    *Config
	resp   *Response
	log    *log // nil: the call has no events
	cancel context.CancelCauseFunc

	// Owned by the goroutine that runs the request.
	header http.Header
	status int
	split  *splitter // nil: the answer is no stream
	body   bytes.Buffer
	size   int
	last   []byte // the data of the last event
	wake   chan struct{}

	mu     sync.Mutex
	events [][]byte // to be appended
	closed bool
}

func newAnswer(cfg *Config, resp *Response, log *log, cancel context.CancelCauseFunc) *answer {
	return &answer{cfg: cfg, resp: resp, log: log, cancel: cancel, header: make(http.Header), wake: make(chan struct{}, 1)}
}

func (a *answer) Header() http.Header { return a.header }
func (a *answer) Flush()              {}

func (a *answer) WriteHeader(status int) {
	if a.status != 0 || status < 200 {
		return
	}
	a.status = status
	if a.log != nil && status == http.StatusOK && mediaType(a.header) == "text/event-stream" {
		a.split = &splitter{event: a.onEvent}
	}
}

func mediaType(h http.Header) string {
	t, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	return t
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if a.size += len(p); int64(a.size) > a.cfg.MaxAnswer {
		a.cancel(errTooLarge)
		return 0, errTooLarge
	}
	if a.split != nil {
		return a.split.Write(p)
	}
	return a.body.Write(p)
}

// onEvent notes an event of the engine. The last one is held back until the state of the response is written.
func (a *answer) onEvent(data []byte) error {
	switch kind := getText(data, "type"); kind {
	case "response.created", "response.queued", "response.in_progress": // these are ours
		return nil
	case "response.completed", "response.failed", "response.incomplete", "error":
		a.last = data
		return nil
	}
	if inner := get(data, "response"); inner.Kind() == '{' {
		adopted, err := a.resp.adopt(inner)
		if err != nil {
			return err
		}
		if data, err = with(data, member{"response", adopted}); err != nil {
			return err
		}
	}
	a.mu.Lock()
	a.events = append(a.events, data)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
	return nil
}

// close says that no event follows.
func (a *answer) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// take returns the events that wait.
func (a *answer) take() (events [][]byte, closed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	events, a.events = a.events, nil
	return events, a.closed
}

// appendLoop stores events until there are no more. If it cannot, it ends the run.
func (a *answer) appendLoop(ctx context.Context) {
	begun := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		}
		if begun { // more events may come
			select {
			case <-ctx.Done():
				return
			case <-time.After(coalesced):
			}
		}
		events, closed := a.take()
		var err error
		if len(events) > 0 {
			if !begun {
				begun = true
				if err = a.begin(ctx); err == nil {
					more, done := a.take()
					events, closed = append([][]byte{a.resp.event("response.in_progress")}, append(events, more...)...), done
				}
			}
			if err == nil {
				err = a.log.append(ctx, events, false)
			}
		}
		if err != nil {
			a.cancel(err)
			return
		}
		if closed {
			return
		}
	}
}

// begin writes that the response is in progress.
func (a *answer) begin(ctx context.Context) error {
	if a.resp.Status == InProgress {
		return nil
	}
	a.resp.Status = InProgress
	return a.log.store.put(ctx, a.resp)
}

// outcome says what the answer means, if it came to its end.
func (a *answer) outcome(whole bool) outcome {
	switch {
	case !whole:
		return outcome{broken: true, err: errors.New("the answer broke off")}
	case a.status == 0:
		return outcome{broken: true, err: errors.New("there was no answer")}
	case a.split != nil:
		return a.endOfStream()
	}
	unknown := a.status == http.StatusNotFound && getText(get(a.body.Bytes(), "error"), "code") == "model_not_found"
	if !unknown {
		a.resp.Known = true
	} else if a.resp.Unknown++; a.resp.Known || a.resp.Unknown <= maxUnknown { // its workers may be away, or the gateway new
		return outcome{again: later(a.header, a.resp.Unknown), err: errors.New(a.message())}
	}
	if again := laterAfter(a.status, a.header, a.resp.Runs); again > 0 {
		return outcome{again: again, err: errors.New(a.message())}
	}
	if a.log != nil && a.status == http.StatusOK {
		return a.ended(a.body.Bytes())
	}
	return a.stored()
}

// endOfStream is the outcome of a stream, by its last event.
func (a *answer) endOfStream() outcome {
	switch {
	case a.last == nil:
		return outcome{broken: true, err: errors.New("the stream has no last event")}
	case madeByGateway(a.last):
		return outcome{broken: true, err: errors.New(cmp.Or(getText(get(get(a.last, "response"), "error"), "message"), "the stream broke off"))}
	case getText(a.last, "type") == "error":
		e, _ := with([]byte("{}"), member{"code", text(cmp.Or(getText(a.last, "code"), "server_error"))}, member{"message", text(getText(a.last, "message"))})
		object, err := with(a.resp.object, member{"error", e})
		if err != nil {
			return outcome{err: err}
		}
		return outcome{ended: true, status: Failed, object: object, err: errors.New(getText(a.last, "message"))}
	}
	return a.ended(get(a.last, "response"))
}

// ended is the outcome of an engine's response object.
func (a *answer) ended(engines []byte) outcome {
	object, err := a.resp.adopt(engines)
	if err != nil {
		return outcome{err: errors.New("the engine's answer is no response: " + err.Error())}
	}
	out := outcome{ended: true, status: Status(getText(object, "status")), object: object}
	switch out.status {
	case Completed, Incomplete:
	case Failed:
		out.err = errors.New(cmp.Or(getText(get(object, "error"), "message"), "the engine says that the response failed"))
	default:
		return outcome{err: errors.New("the engine's answer has the status " + strconv.Quote(string(out.status)))}
	}
	return out
}

// stored is the outcome of an answer that is kept as it is: of another API, or an error.
func (a *answer) stored() outcome {
	out := outcome{ended: true, status: Completed}
	changes := []member{}
	if a.status >= 400 {
		out.status, out.err = Failed, errors.New(a.message())
		e, _ := with([]byte("{}"), member{"code", text(cmp.Or(getText(get(a.body.Bytes(), "error"), "code"), "server_error"))}, member{"message", text(a.message())})
		changes = append(changes, member{"error", e})
	}
	if a.log == nil {
		kind := mediaType(a.header)
		content := member{"body_base64", nil}
		if (kind == "application/json" || strings.HasSuffix(kind, "+json")) && jsontext.Value(a.body.Bytes()).IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)) {
			content = member{"body", bytes.TrimSpace(a.body.Bytes())}
		} else if strings.HasPrefix(kind, "text/") {
			content = member{"body", text(a.body.String())}
		} else {
			content.value = text(base64.StdEncoding.EncodeToString(a.body.Bytes()))
		}
		whole, err := with([]byte("{}"), member{"status_code", strconv.AppendInt(nil, int64(a.status), 10)}, member{"request_id", text(a.header.Get("X-Request-Id"))},
			member{"content_type", text(a.header.Get("Content-Type"))}, content)
		if err != nil {
			return outcome{err: err}
		}
		changes = append(changes, member{"answer", whole})
	}
	object, err := with(a.resp.object, changes...)
	if err != nil {
		return outcome{err: err}
	}
	out.object = object
	return out
}

// message is what an error says.
func (a *answer) message() string {
	body := a.body.Bytes()
	return cmp.Or(getText(get(body, "error"), "message"), getText(body, "error"), getText(body, "message"), getText(body, "detail"), http.StatusText(a.status), "error "+strconv.Itoa(a.status))
}
