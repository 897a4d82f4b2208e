package worker

import (
	"bytes"
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// watch looks at an answer's bytes as they pass: how many tokens, what the
// engine says of usage, and whether it ended as its API ends. It changes
// nothing and keeps at most keepLine bytes.
type watch struct {
	stream   bool // server-sent events or JSON lines
	sse      bool
	api      api
	delimit  bool // the connection's close is the only end: nothing proves it whole
	json     bool
	events   int
	ended    bool   // the API's own last event was seen, or its error
	line     []byte // the begin of a line whose end has not come
	skipping bool   // the line was longer than keepLine
	tail     []byte // the last bytes of an answer that is no stream
	output   int
	input    int
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
	keepTail = 4 << 10
)

func newWatch(path string, resp *http.Response) *watch {
	ct, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	path, _, _ = strings.Cut(path, "?")
	wt := &watch{
		sse:     ct == "text/event-stream",
		json:    ct == "application/json",
		delimit: resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 && resp.ProtoMajor == 1,
	}
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

func (wt *watch) see(b []byte) {
	if !wt.stream {
		wt.seeTail(b)
		return
	}
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			if len(wt.line)+len(b) > keepLine {
				wt.line, wt.skipping = wt.line[:0], true
			}
			if !wt.skipping {
				wt.line = append(wt.line, b...)
			}
			return
		}
		line := b[:i]
		if len(wt.line) > 0 {
			wt.line = append(wt.line, line...)
			line = wt.line
		}
		if !wt.skipping {
			wt.seeLine(bytes.TrimSuffix(line, []byte("\r")))
		} else {
			wt.events++
		}
		wt.line, wt.skipping = wt.line[:0], false
		b = b[i+1:]
	}
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

// usage notes the token counts that a piece of JSON reports.
func (wt *watch) usage(b []byte) {
	if !bytes.Contains(b, []byte(`_tokens"`)) {
		return
	}
	for _, f := range []struct {
		field string
		to    *int
	}{
		{`"completion_tokens"`, &wt.output}, {`"output_tokens"`, &wt.output},
		{`"prompt_tokens"`, &wt.input}, {`"input_tokens"`, &wt.input},
	} {
		i := bytes.LastIndex(b, []byte(f.field))
		if i < 0 {
			continue
		}
		v := bytes.TrimLeft(b[i+len(f.field):], ": \t")
		end := 0
		for end < len(v) && '0' <= v[end] && v[end] <= '9' {
			end++
		}
		if n, err := strconv.Atoi(string(v[:end])); err == nil {
			*f.to = n
		}
	}
}

// outputTokens is what the engine reported, else the events of a stream.
func (wt *watch) outputTokens() int {
	wt.usage(wt.tail)
	if wt.output == 0 && wt.sse {
		return wt.events
	}
	return wt.output
}

func (wt *watch) inputTokens() int { return wt.input }

// broken says why an answer whose connection ended well is not whole.
func (wt *watch) broken() string {
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

// endToEnd drops the headers that belong to one connection.
func endToEnd(h http.Header) http.Header {
	out := make(http.Header, len(h))
	for k, v := range h {
		out[k] = v
	}
	for _, named := range h.Values("Connection") {
		for name := range strings.SplitSeq(named, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	for _, k := range []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"} {
		delete(out, k)
	}
	return out
}
