package api

import (
	"bytes"
	"net/http"
	"strconv"
)

// Verdict is what an answer with a status of success has turned out to be.
type Verdict int

const (
	Undecided Verdict = iota // nothing so far shows content or an error
	Answered                 // it has content, is legitimately empty, or is an error that names the request: it is the client's
	Failed                   // it is no answer: an error of the engine, empty, not JSON, without choices
)

// An Inspector decides about an answer as soon as a part of it shows content or an error: for a stream with one of its
// first events, otherwise at its end. The beginning of a stream that carries no content (a role, "response.created",
// "message_start", a ping) decides nothing. An answer of which keepLine bytes decide nothing counts as Answered, and so
// does one whose form is not known: compressed, binary, of an API that Pulley does not know, or an object with other members
// than those of an answer or an error, unless it is an error.

// Verdict returns what is known so far. It is final once it is not Undecided; after Broken it never is Undecided.
func (in *Inspector) Verdict() Verdict { return in.verdict }

// Errored reports whether the engine has said, in an answer with a status of success, that it failed.
func (in *Inspector) Errored() bool { return in.errored }

// NoAnswer returns why an answer has Failed, and the engine's own error: an HTTP status and a JSON text, which is nil if
// the engine did not send one.
func (in *Inspector) NoAnswer() (reason string, status int, text []byte) {
	return in.reason, in.errorStatus, in.errorText
}

// judges reports whether the answer is to be judged.
func judges(resp *http.Response) bool {
	return resp.StatusCode >= 200 && resp.StatusCode < 300 && resp.StatusCode != http.StatusNoContent
}

// fail decides that the answer is none, unless it has been decided otherwise before.
func (in *Inspector) fail(reason string) {
	in.decided = true
	if in.verdict == Undecided {
		in.verdict, in.reason = Failed, reason
	}
}

func (in *Inspector) answered() {
	in.decided = true
	if in.verdict == Undecided {
		in.verdict = Answered
	}
}

// onError handles an error of the engine in an answer with a status of success.
func (in *Inspector) onError(text []byte) {
	e, _ := readError(text)
	if e.namesRequest() && !e.tooLong() && !e.missesModel(e.status) {
		in.answered()
		in.askedWrong = true
		return
	}
	in.errored = true
	if in.verdict != Undecided {
		return
	}
	in.fail("an error with status 200: " + firstOf(e.message, e.code, e.kind, "no message"))
	in.errorStatus = http.StatusBadGateway
	switch {
	case e.status != 0:
		in.errorStatus = e.status
	case e.tooLong():
		in.errorStatus = http.StatusBadRequest
	case e.missesModel(http.StatusNotFound):
		in.errorStatus = http.StatusNotFound
	}
	in.errorText = bytes.Clone(text)
}

// finding is what a JSON text says: an event of a stream, or all of an answer that does not stream.
type finding struct {
	object  bool // it is a JSON object
	failed  bool // it is an error
	choices int  // -1: the member is absent
	data    bool // it has a member that carries the result, in an API without choices
	known   bool // it is an object that is empty, or has members of an answer or of an error
	content bool // that member, or some choice, is not empty
	stopped bool // something has ended normally
	aborted bool // every choice that ended was given up by the engine
	status  []byte
	kind    []byte // its "type", without quotes
}

// read reads a JSON text, and records which choices it has and which of them it ends.
func (in *Inspector) read(text []byte) finding {
	t := &in.t
	t.b, t.at, t.bad, t.fresh, t.depth = text, 0, false, false, 0
	f := finding{choices: -1}
	if t.peek() != '{' {
		return f
	}
	t.open()
	members := 0
	for name := t.name(); name != nil; name = t.name() {
		members++
		switch string(memberName(name)) {
		case "error":
			f.failed = !isEmpty(t.value()) || f.failed
		case "object":
			f.known = true
			f.failed = string(t.value()) == `"error"` || f.failed
		case "id", "usage", "ok", "detail", "details", "message", "msg":
			f.known = true
			t.value()
		case "type":
			f.kind = inQuotes(t.value())
		case "status":
			f.known = true
			f.status = inQuotes(t.value())
		case "stop_reason":
			f.stopped = !isEmpty(t.value()) || f.stopped
		case "stop": // llama.cpp's own form
			f.stopped = string(t.value()) == "true" || f.stopped
		case "delta": // Anthropic's message_delta
			if t.peek() == '{' {
				in.readDelta(&f)
			} else {
				t.value()
			}
		case "choices":
			if t.peek() == '[' {
				in.readChoices(&f)
			} else {
				t.value()
			}
		case "content", "output", "data", "embedding", "embeddings", "results", "generated_text":
			f.data = true
			f.content = !isEmpty(t.value()) || f.content
		default:
			t.value()
		}
	}
	t.peek()
	f.object = !t.bad && t.at == len(text)
	f.known = f.known || members == 0
	return f
}

// readDelta reads whether a message stops.
func (in *Inspector) readDelta(f *finding) {
	t := &in.t
	t.open()
	for name := t.name(); name != nil; name = t.name() {
		stops := string(memberName(name)) == "stop_reason"
		if empty := isEmpty(t.value()); stops && !empty {
			f.stopped = true
		}
	}
}

func (in *Inspector) readChoices(f *finding) {
	t := &in.t
	f.choices, f.aborted = 0, true
	t.open()
	for t.element() {
		if t.peek() != '{' {
			t.value()
			continue
		}
		f.choices++
		in.readChoice(f)
	}
	f.aborted = f.aborted && f.choices > 0
}

func (in *Inspector) readChoice(f *finding) {
	t := &in.t
	index := f.choices - 1
	ended, aborted := false, false
	t.open()
	for name := t.name(); name != nil; name = t.name() {
		switch string(memberName(name)) {
		case "index":
			if n, err := strconv.Atoi(string(t.value())); err == nil {
				index = n
			}
		case "finish_reason":
			reason := t.value()
			ended = !isEmpty(reason)
			aborted = gaveUp(inQuotes(reason))
		case "delta", "message":
			if t.peek() == '{' {
				in.readMessage(f)
			} else {
				t.value()
			}
		case "text":
			f.content = !isEmpty(t.value()) || f.content
		default:
			t.value()
		}
	}
	f.stopped = f.stopped || ended && !aborted
	f.aborted = f.aborted && aborted
	in.seen |= 1 << (uint(index) % 64)
	if ended {
		in.done |= 1 << (uint(index) % 64)
	}
}

// readMessage reads whether a message, or a piece of one, says anything beside whose it is.
func (in *Inspector) readMessage(f *finding) {
	t := &in.t
	t.open()
	for name := t.name(); name != nil; name = t.name() {
		role := string(memberName(name)) == "role"
		if empty := isEmpty(t.value()); !role && !empty {
			f.content = true
		}
	}
}

// gaveUp reports whether a finish reason says that the engine gave up.
func gaveUp(reason []byte) bool {
	switch string(bytes.ToLower(reason)) {
	case "abort", "aborted", "error", "cancelled", "canceled", "failed":
		return true
	}
	return false
}

// isEmpty reports whether a JSON value says nothing.
func isEmpty(v []byte) bool {
	switch string(v) {
	case "", "null", `""`, "{}", "[]", "false":
		return true
	}
	return len(v) > 2 && (v[0] == '{' || v[0] == '[') && len(bytes.Trim(v[1:len(v)-1], jsonSpace)) == 0
}

// inQuotes is a JSON string without its quotes, escapes included; anything else is nil.
func inQuotes(v []byte) []byte {
	if len(v) < 2 || v[0] != '"' {
		return nil
	}
	return v[1 : len(v)-1]
}

// judgeEvent reads an event of a stream in full. tells says which events have to be read.
func (in *Inspector) judgeEvent(data []byte) {
	f := in.read(data)
	kind := string(f.kind)
	if kind == "" {
		kind = string(in.event)
	}
	switch in.api {
	case Chat, Completions:
		in.judgeChoices(f, kind, data)
	case Messages:
		in.judgeMessages(f, kind, data)
	case Responses:
		in.judgeResponses(f, kind, data)
	default:
		if f.object && f.failed {
			in.closed = true
			in.onError(data)
		} else {
			in.answered()
		}
	}
	in.endChoices()
}

func (in *Inspector) endChoices() { in.Ended = in.closed || in.seen != 0 && in.done == in.seen }

func (in *Inspector) judgeChoices(f finding, kind string, data []byte) {
	switch {
	case f.object && f.failed, kind == "error":
		in.closed = true
		in.onError(data)
	case !f.object:
		in.fail("an event that is not JSON")
	case f.content || f.stopped && (f.choices > 0 || f.data):
		in.answered()
	case f.aborted:
		in.fail("the engine gave up before the first token")
	}
	if f.choices < 0 && f.stopped {
		in.closed = true
	}
}

func (in *Inspector) judgeMessages(f finding, kind string, data []byte) {
	switch kind {
	case "error":
		in.closed = true
		in.onError(data)
	case "message_stop":
		in.closed = true
		in.fail("the stream ended without content")
	case "message_start", "ping":
	case "message_delta":
		if f.stopped {
			in.answered()
		}
	default:
		if f.failed {
			in.closed = true
			in.onError(data)
		} else {
			in.answered()
		}
	}
}

func (in *Inspector) judgeResponses(f finding, kind string, data []byte) {
	switch kind {
	case "error", "response.failed":
		in.closed = true
		in.onError(data)
	case "response.completed", "response.incomplete":
		in.closed = true
		in.answered()
	case "response.created", "response.in_progress", "response.queued":
	default:
		if f.failed {
			in.closed = true
			in.onError(data)
		} else {
			in.answered()
		}
	}
}

// tells reports whether an event of a stream that has content may say that it ends, or that a choice does. It is asked for
// each token, so it does not parse a chunk of a completion: it looks for a finish reason that is not null, and takes a chunk
// with a choice 0 for one that is no error. What it looks for begins with a byte that is rare in a chunk.
func (in *Inspector) tells(data []byte, m marks) bool {
	switch in.api {
	case Chat, Completions:
		none := m.reasons == 0 && in.api == Completions // llama.cpp's own completions have none
		return m.ends || m.reasons > 1 || none || !hasChoice0(data)
	case Messages, Responses:
		kind := in.kindOf(data)
		if kind == nil {
			kind = in.event
		}
		return !bytes.HasSuffix(kind, []byte("delta")) || string(kind) == "message_delta"
	}
	return bytes.Contains(data, []byte(`"error"`))
}

// marks are what the names of members that end in "_reason" or "_tokens" say of an event.
type marks struct {
	reasons int  // how many finish reasons it has; those after one that ends are not counted
	ends    bool // one of them may not be null
	tokens  bool // it may have counts of tokens
}

// marksOf reads an event once for all of its marks, since each token is one: they have an underscore in common, which is rare.
func marksOf(data []byte) (m marks) {
	for at := 0; ; {
		i := bytes.IndexByte(data[at:], '_')
		if i < 0 {
			return m
		}
		before, after := data[:at+i], data[at+i+1:]
		at += i + 1
		if v, ok := bytes.CutPrefix(after, []byte(`reason"`)); ok && !m.ends && bytes.HasSuffix(before, []byte(`"finish`)) {
			v = afterColon(v)
			m.reasons++
			m.ends = !bytes.HasPrefix(v, []byte("null")) && !bytes.HasPrefix(v, []byte(`""`))
		} else if bytes.HasPrefix(after, []byte(`tokens"`)) {
			m.tokens = true
		}
	}
}

// afterColon skips what is between a member's name and its value.
func afterColon(b []byte) []byte {
	for len(b) > 0 && (b[0] == ':' || b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	return b
}

// hasChoice0 reports whether a chunk has a member "index" with the value 0.
func hasChoice0(data []byte) bool {
	for {
		i := bytes.IndexByte(data, 'x')
		if i < 0 {
			return false
		}
		before, v := data[:i], data[i+1:]
		data = v
		if v, ok := bytes.CutPrefix(v, []byte(`"`)); ok && bytes.HasSuffix(before, []byte(`"inde`)) {
			v = afterColon(v)
			if len(v) > 1 && v[0] == '0' && (v[1] < '0' || v[1] > '9') {
				return true
			}
		}
	}
}

// kindOf is the "type" of an event, nil if it has none. In most events it is the first member.
func (in *Inspector) kindOf(data []byte) []byte {
	t := &in.t
	t.b, t.at, t.bad, t.fresh, t.depth = data, 0, false, false, 0
	if t.peek() != '{' {
		return nil
	}
	t.open()
	for name := t.name(); name != nil; name = t.name() {
		v := t.value()
		if string(memberName(name)) == "type" {
			return inQuotes(v)
		}
	}
	return nil
}

// judgeWhole judges an answer that does not stream, at its end.
func (in *Inspector) judgeWhole() {
	text := bytes.TrimSpace(in.whole)
	if len(text) == 0 {
		if in.api != Other && in.api != OpenAI {
			in.fail("an empty answer")
		}
		in.answered()
		return
	}
	f := in.read(text)
	if f.object && f.failed || in.api == Messages && string(f.kind) == "error" || in.api == Responses && string(f.status) == "failed" {
		in.onError(text)
		return
	}
	switch in.api {
	case Chat, Completions:
		switch {
		case !f.object:
			in.fail("an answer that is not JSON")
		case f.choices == 0 && !f.data, f.choices < 0 && !f.data && f.known:
			in.fail("an answer without choices")
		case f.aborted && !f.content:
			in.fail("the engine gave up without an answer")
		}
	case Messages, Responses:
		switch {
		case !f.object:
			in.fail("an answer that is not JSON")
		case !f.data && f.known:
			in.fail("an answer without content")
		}
	case Embeddings:
		switch {
		case in.json && !f.object:
			in.fail("an answer that is not JSON")
		case f.object && !f.content:
			in.fail("an answer without data")
		}
	}
	in.answered()
}

// fieldStarts begin a line of server-sent events. A JSON text begins with none of them.
var fieldStarts = [][]byte{[]byte("data:"), []byte("event:"), []byte("id:"), []byte("retry:"), []byte(":")}

// EventStream reports whether an answer that begins with b is server-sent events, whatever its content type says.
// known is false if there is too little of it to tell.
func EventStream(b []byte) (is, known bool) {
	b = bytes.TrimLeft(bytes.TrimPrefix(b, []byte("\ufeff")), jsonSpace)
	if len(b) == 0 {
		return false, false
	}
	for _, start := range fieldStarts {
		if bytes.HasPrefix(b, start) {
			return true, true
		}
		if bytes.HasPrefix(start, b) {
			return false, false
		}
	}
	return false, true
}

// recognize finds out the form of an answer that does not say that it is a stream, from its beginning.
func (in *Inspector) recognize() {
	if in.recognized {
		return
	}
	is, known := false, true
	if in.api.hasLastEvent() {
		is, known = EventStream(in.whole)
	}
	if !known {
		return
	}
	in.recognized = true
	if is {
		in.sse, in.Stream = true, true
		b := in.whole
		in.whole, in.tail = nil, in.tail[:0]
		in.observeLines(b)
		return
	}
	text := bytes.TrimLeft(bytes.TrimPrefix(in.whole, []byte("\ufeff")), jsonSpace)
	if in.api.hasLastEvent() && text[0] != '{' && text[0] != '[' {
		in.fail("an answer that is not JSON")
	}
}
