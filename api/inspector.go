package api

import (
	"bytes"
	"net/http"
	"strconv"

	"github.com/pulley-lb/pulley/subjects"
)

// Inspector observes an answer's bytes as they pass: the number of tokens, the usage that the
// engine reports, and whether the answer ended as its API requires. It changes nothing and keeps
// little: of a line longer than keepLine only its start and its end. Begin is called first.
type Inspector struct {
	Stream bool // server-sent events or JSON lines
	Events int  // events of a stream so far
	Ended  bool // the API's last event, or its error, was seen

	sse     bool
	api     API
	delimit bool // the answer ends when the connection closes, which does not prove that it is complete
	json    bool
	line    []byte // kept part of an incomplete line
	length  int    // length of the whole line
	tail    []byte // the last bytes of an answer that is not a stream
	output  int
	input   int
}

const (
	keepLine = 64 << 10
	keepHead = 64 // enough to identify a line
	keepTail = 4 << 10
)

// Begin makes the Inspector observe the answer to a request for a path, from its first byte. It
// reuses the memory of the answer before.
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

// Observe adds the next bytes of the answer.
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
		if in.length == 0 && i <= keepLine { // the whole line is here: no need to copy
			in.seeLine(b[:i])
		} else {
			in.gather(b[:i])
			in.endLine()
		}
		b = b[i+1:]
	}
}

// gather adds to an incomplete line.
func (in *Inspector) gather(b []byte) {
	in.length += len(b)
	in.line = append(in.line, b...)
	if len(in.line) > keepLine {
		in.shorten()
	}
}

// shorten keeps the first and the last bytes of a long line, the same ones however it was cut on
// its way.
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

// usage records the token counts in a piece of JSON, the last of each.
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

// ReportedTokens is the number of output tokens that the engine reported; 0 if it did not. Like the
// other two counts it is known after Broken.
func (in *Inspector) ReportedTokens() int { return in.output }

// OutputTokens is the number that the engine reported, otherwise the number of events of a stream.
func (in *Inspector) OutputTokens() int {
	if in.output == 0 && in.sse {
		return in.Events
	}
	return in.output
}

// InputTokens is the number that the engine reported; 0 if it did not.
func (in *Inspector) InputTokens() int { return in.input }

// Broken returns why an answer is not complete although its connection ended normally, or "". It is
// called at the end of the answer.
func (in *Inspector) Broken() string {
	if in.length > 0 { // a last line may lack its end
		in.endLine()
	}
	in.usage(in.tail)
	switch {
	case in.sse && in.api.hasLastEvent() && !in.Ended:
		return "the stream ended without its last event"
	case in.delimit && in.json:
		t := bytes.TrimSpace(in.tail)
		if len(t) > 0 && t[len(t)-1] != '}' && t[len(t)-1] != ']' {
			return "the answer broke off"
		}
	}
	return ""
}
