package api

import (
	"bytes"
	"net/http"
	"strconv"

	"github.com/pulley-lb/pulley/subjects"
)

// Inspector looks at an answer's bytes as they pass: how many tokens, what the
// engine says of usage, and whether it ended as its API ends. It changes
// nothing and keeps little: of a line longer than keepLine its begin and its end.
// Begin comes before all else.
type Inspector struct {
	Stream bool // server-sent events or JSON lines
	Events int  // of a stream so far
	Ended  bool // the API's own last event was seen, or its error

	sse     bool
	api     API
	delimit bool // the connection's close is the only end: nothing proves it whole
	json    bool
	line    []byte // of a line whose end has not come: what was kept
	length  int    // of all of it
	tail    []byte // the last bytes of an answer that is no stream
	output  int
	input   int
}

const (
	keepLine = 64 << 10
	keepHead = 64 // enough to tell what a line is
	keepTail = 4 << 10
)

// Begin makes it look at the answer to a request for a path, from the first byte
// on. The memory that it has from the answer before is used again.
func (in *Inspector) Begin(path string, resp *http.Response) {
	ct := subjects.MediaType(resp.Header)
	if cap(in.line) > keepLine { // after a very long one
		in.line = nil
	}
	*in = Inspector{line: in.line[:0], tail: in.tail[:0]}
	in.sse = ct == "text/event-stream"
	in.json = ct == "application/json"
	in.delimit = resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 && resp.ProtoMajor == 1
	in.Stream = in.sse || ct == "application/x-ndjson" || ct == "application/jsonl"
	in.api = Of(path)
}

// Observe takes in the next bytes of the answer.
func (in *Inspector) Observe(b []byte) {
	if !in.Stream {
		in.seeTail(b)
		return
	}
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			in.gather(b)
			return
		}
		if in.length == 0 && i <= keepLine { // all of it is here: no need to copy
			in.seeLine(b[:i])
		} else {
			in.gather(b[:i])
			in.endLine()
		}
		b = b[i+1:]
	}
}

// gather adds to a line whose end has not come.
func (in *Inspector) gather(b []byte) {
	in.length += len(b)
	in.line = append(in.line, b...)
	if len(in.line) > keepLine {
		in.shorten()
	}
}

// shorten keeps the first and the last bytes of a long line, the same ones
// wherever it was cut on its way.
func (in *Inspector) shorten() {
	in.line = append(in.line[:keepHead], in.line[len(in.line)-keepTail:]...)
}

func (in *Inspector) endLine() {
	if in.length > keepLine {
		in.shorten()
	}
	in.seeLine(in.line)
	in.line, in.length = in.line[:0], 0
}

func (in *Inspector) seeLine(line []byte) {
	if !in.sse {
		if len(line) > 0 {
			in.Events++
			in.usage(line)
		}
		return
	}
	if name, ok := bytes.CutPrefix(line, []byte("event:")); ok {
		switch string(bytes.TrimSpace(name)) {
		case "message_stop", "response.completed", "response.incomplete", "response.failed", "error":
			in.Ended = true
		}
		return
	}
	data, ok := bytes.CutPrefix(line, []byte("data:"))
	if !ok {
		return
	}
	data = bytes.TrimSpace(data)
	if bytes.Equal(data, []byte("[DONE]")) {
		in.Ended = true
		return
	}
	if bytes.HasPrefix(data, []byte(`{"error"`)) {
		in.Ended = true
	}
	in.Events++
	in.usage(data)
}

func (in *Inspector) seeTail(b []byte) {
	if len(b) >= keepTail {
		in.tail = append(in.tail[:0], b[len(b)-keepTail:]...)
		return
	}
	if over := len(in.tail) + len(b) - keepTail; over > 0 {
		in.tail = append(in.tail[:0], in.tail[over:]...)
	}
	in.tail = append(in.tail, b...)
}

// usage notes the token counts that a piece of JSON reports, the last of each.
func (in *Inspector) usage(b []byte) {
	for {
		i := bytes.Index(b, []byte(`_tokens"`))
		if i < 0 {
			return
		}
		var to *int
		switch name := b[bytes.LastIndexByte(b[:i], '"')+1 : i]; string(name) {
		case "completion", "output":
			to = &in.output
		case "prompt", "input":
			to = &in.input
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

// ReportedTokens are the output tokens that the engine reported; 0 if it did not.
// Like the other two counts it is known after Broken.
func (in *Inspector) ReportedTokens() int { return in.output }

// OutputTokens are those that the engine reported, else the events of a stream.
func (in *Inspector) OutputTokens() int {
	if in.output == 0 && in.sse {
		return in.Events
	}
	return in.output
}

// InputTokens are those that the engine reported; 0 if it did not.
func (in *Inspector) InputTokens() int { return in.input }

// Broken says, at the end of an answer whose connection ended well, why it is
// not whole all the same.
func (in *Inspector) Broken() string {
	if in.length > 0 { // a last line needs no end
		in.endLine()
	}
	in.usage(in.tail)
	switch {
	case in.sse && in.api.hasLastEvent() && !in.Ended:
		return "stream ended without its last event"
	case in.delimit && in.json:
		t := bytes.TrimSpace(in.tail)
		if len(t) > 0 && t[len(t)-1] != '}' && t[len(t)-1] != ']' {
			return "answer broke off"
		}
	}
	return ""
}
