package worker

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/pulley-lb/pulley/subjects"
)

// watch looks at an answer's bytes as they pass: how many tokens, what the
// engine says of usage, and whether it ended as its API ends. It changes
// nothing and keeps little: of a line longer than keepLine its begin and its end.
type watch struct {
	stream  bool // server-sent events or JSON lines
	sse     bool
	api     api
	delimit bool // the connection's close is the only end: nothing proves it whole
	json    bool
	events  int
	ended   bool   // the API's own last event was seen, or its error
	line    []byte // of a line whose end has not come: what was kept
	length  int    // of all of it
	tail    []byte // the last bytes of an answer that is no stream
	output  int
	input   int
}

type api int

const (
	anyAPI api = iota
	openAI     // chat and text completions: data: [DONE]
	anthropic
	responses
)

const (
	keepLine = 64 << 10
	keepHead = 64 // enough to tell what a line is
	keepTail = 4 << 10
)

var watches = sync.Pool{New: func() any { return new(watch) }}

func newWatch(path string, resp *http.Response) *watch {
	ct := subjects.MediaType(resp.Header)
	path, _, _ = strings.Cut(path, "?")
	wt := watches.Get().(*watch) // as free has left it
	wt.sse = ct == "text/event-stream"
	wt.json = ct == "application/json"
	wt.delimit = resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 && resp.ProtoMajor == 1
	wt.stream = wt.sse || ct == "application/x-ndjson" || ct == "application/jsonl"
	switch {
	case strings.HasSuffix(path, "/completions"):
		wt.api = openAI
	case strings.HasSuffix(path, "/messages"):
		wt.api = anthropic
	case strings.HasSuffix(path, "/responses"):
		wt.api = responses
	}
	return wt
}

// free gives its memory to the next one.
func (wt *watch) free() {
	*wt = watch{line: wt.line[:0], tail: wt.tail[:0]}
	watches.Put(wt)
}

func (wt *watch) see(b []byte) {
	if !wt.stream {
		wt.seeTail(b)
		return
	}
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			wt.gather(b)
			return
		}
		if wt.length == 0 && i <= keepLine { // all of it is here: no need to copy
			wt.seeLine(b[:i])
		} else {
			wt.gather(b[:i])
			wt.endLine()
		}
		b = b[i+1:]
	}
}

// gather adds to a line whose end has not come.
func (wt *watch) gather(b []byte) {
	wt.length += len(b)
	wt.line = append(wt.line, b...)
	if len(wt.line) > keepLine {
		wt.shorten()
	}
}

// shorten keeps the first and the last bytes of a long line, the same ones
// wherever it was cut on its way.
func (wt *watch) shorten() {
	wt.line = append(wt.line[:keepHead], wt.line[len(wt.line)-keepTail:]...)
}

func (wt *watch) endLine() {
	if wt.length > keepLine {
		wt.shorten()
	}
	wt.seeLine(wt.line)
	wt.line, wt.length = wt.line[:0], 0
}

func (wt *watch) seeLine(line []byte) {
	if !wt.sse {
		if len(line) > 0 {
			wt.events++
			wt.usage(line)
		}
		return
	}
	if name, ok := bytes.CutPrefix(line, []byte("event:")); ok {
		switch string(bytes.TrimSpace(name)) {
		case "message_stop", "response.completed", "response.incomplete", "response.failed", "error":
			wt.ended = true
		}
		return
	}
	data, ok := bytes.CutPrefix(line, []byte("data:"))
	if !ok {
		return
	}
	data = bytes.TrimSpace(data)
	if bytes.Equal(data, []byte("[DONE]")) {
		wt.ended = true
		return
	}
	if bytes.HasPrefix(data, []byte(`{"error"`)) {
		wt.ended = true
	}
	wt.events++
	wt.usage(data)
}

func (wt *watch) seeTail(b []byte) {
	if len(b) >= keepTail {
		wt.tail = append(wt.tail[:0], b[len(b)-keepTail:]...)
		return
	}
	if over := len(wt.tail) + len(b) - keepTail; over > 0 {
		wt.tail = append(wt.tail[:0], wt.tail[over:]...)
	}
	wt.tail = append(wt.tail, b...)
}

// usage notes the token counts that a piece of JSON reports, the last of each.
func (wt *watch) usage(b []byte) {
	for {
		i := bytes.Index(b, []byte(`_tokens"`))
		if i < 0 {
			return
		}
		var to *int
		switch name := b[bytes.LastIndexByte(b[:i], '"')+1 : i]; string(name) {
		case "completion", "output":
			to = &wt.output
		case "prompt", "input":
			to = &wt.input
		}
		b = bytes.TrimLeft(b[i+len(`_tokens"`):], ": \t")
		end := 0
		for end < len(b) && '0' <= b[end] && b[end] <= '9' {
			end++
		}
		if n, err := strconv.Atoi(string(b[:end])); err == nil && to != nil {
			*to = n
		}
	}
}

// outputTokens is what the engine reported, else the events of a stream. Like
// inputTokens it is known after broken.
func (wt *watch) outputTokens() int {
	if wt.output == 0 && wt.sse {
		return wt.events
	}
	return wt.output
}

func (wt *watch) inputTokens() int { return wt.input }

// broken says, at the end of an answer whose connection ended well, why it is
// not whole all the same.
func (wt *watch) broken() string {
	if wt.length > 0 { // a last line needs no end
		wt.endLine()
	}
	wt.usage(wt.tail)
	switch {
	case wt.sse && wt.api != anyAPI && !wt.ended:
		return "stream ended without its last event"
	case wt.delimit && wt.json:
		t := bytes.TrimSpace(wt.tail)
		if len(t) > 0 && t[len(t)-1] != '}' && t[len(t)-1] != ']' {
			return "answer broke off"
		}
	}
	return ""
}
