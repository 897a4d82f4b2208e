package api

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// Inspector observes an answer's bytes as they pass: the number of tokens, the usage that the
// engine reports, whether it is an answer at all (Verdict), and whether it ended as its API requires. It changes nothing
// and keeps little: of a line or an answer longer than keepLine only its start and its end. Begin is called first.
type Inspector struct {
	Stream bool // server-sent events or JSON lines; known once the verdict is not Undecided
	Events int  // events of a stream so far
	Ended  bool // the API's last event, its error, or the end of every choice was seen

	sse     bool
	api     API
	opaque  bool // it is compressed: nothing can be seen
	delimit bool // the answer ends when the connection closes, which does not prove that it is complete
	json    bool
	line    []byte // kept part of an incomplete line
	length  int    // length of the whole line
	cr      bool   // the last byte was a carriage return
	event   []byte // the name of the current event
	tail    []byte // the last bytes of an answer that is not a stream
	output  int
	input   int
	prompt  PromptReport
	apart   bool // input does not include what was cached

	verdict     Verdict
	decided     bool // an event or the whole text has decided; else the verdict is for want of a better one
	reason      string
	errorStatus int
	errorText   []byte
	errored     bool
	askedWrong  bool   // the answer is an error that names the request
	recognized  bool   // the form of an answer that is not a stream by its content type is known
	whole       []byte // an answer that is not a stream, while it is short
	size        int    // bytes of the answer so far
	closed      bool   // an event that ends the stream was seen
	seen, done  uint64 // choices of the stream: those that were read, and those that have ended
	doneKnown   bool   // lines of JSON say whether they are the last one
	lastDone    bool   // the last line does
	over        bool   // [DONE] was read: nothing but the end of its event belongs to the answer
	after       int    // line ends after its line
	extra       int    // bytes of the last piece that do not belong to the answer
	t           cursor
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
	if cap(in.whole) > keepLine {
		in.whole = nil
	}
	*in = Inspector{line: in.line[:0], tail: in.tail[:0], whole: in.whole[:0], event: in.event[:0]}
	in.sse = ct == "text/event-stream"
	in.json = ct == "application/json"
	in.delimit = resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 && resp.ProtoMajor == 1
	in.Stream = in.sse || ct == "application/x-ndjson" || ct == "application/jsonl"
	in.api = Of(path)
	enc := resp.Header.Get("Content-Encoding")
	in.opaque = enc != "" && !strings.EqualFold(enc, "identity")
	switch {
	case in.opaque, !judges(resp):
		in.verdict = Answered
	case ct == "text/html":
		in.fail("HTML")
	case !in.Stream && !in.json && !in.api.hasLastEvent() && ct != "":
		in.verdict = Answered // text, audio, an image
	}
}

// Observe adds the next bytes of the answer. It returns how many of them belong to it: what comes after the event [DONE]
// does not, and no client reads it.
func (in *Inspector) Observe(b []byte) int {
	in.size += len(b)
	in.extra = 0
	switch {
	case in.opaque:
	case in.Stream:
		in.observeLines(b)
	default:
		in.seeTail(b)
		if in.verdict == Undecided {
			in.whole = append(in.whole, b...)
			in.recognize()
		}
	}
	if in.verdict == Undecided && in.size > keepLine {
		in.verdict = Answered
	}
	return max(len(b)-in.extra, 0)
}

// observeLines splits a stream into lines. A line ends with a line feed, a carriage return, or both. Hardly any stream has
// carriage returns, so they are looked for once and not in each line.
func (in *Inspector) observeLines(b []byte) {
	returns := bytes.IndexByte(b, '\r') >= 0
	for len(b) > 0 {
		if in.over {
			in.seeExtra(b)
			return
		}
		if in.cr {
			in.cr = false
			if b[0] == '\n' {
				b = b[1:]
				continue
			}
		}
		i := bytes.IndexByte(b, '\n')
		if returns {
			i = lineEnd(b)
		}
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
		in.cr = b[i] == '\r'
		b = b[i+1:]
	}
}

// seeExtra sees what comes after the line [DONE].
func (in *Inspector) seeExtra(b []byte) {
	const lineEnds = 3 // the rest of its own, and that of an empty line
	for i, c := range b {
		if c != '\n' && c != '\r' || in.after == lineEnds {
			in.after, in.extra = lineEnds, len(b)-i
			return
		}
		in.after++
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

// shorten keeps the first and the last bytes of a long line, the same ones however it was cut on its way.
func (in *Inspector) shorten() {
	in.line = append(in.line[:keepHead], in.line[len(in.line)-keepTail:]...)
}

func (in *Inspector) endLine() {
	long := in.length > keepLine
	if long {
		in.shorten()
		in.answered() // it says something, whatever that is
	}
	in.seeLine(in.line)
	in.line, in.length = in.line[:0], 0
}

func (in *Inspector) seeLine(line []byte) {
	if !in.sse {
		in.seeJSONLine(line)
		return
	}
	if in.Events == 0 {
		line = bytes.TrimPrefix(line, []byte("\ufeff"))
	}
	if len(line) == 0 {
		in.event = in.event[:0]
		return
	}
	if name, ok := bytes.CutPrefix(line, []byte("event:")); ok {
		in.seeEventName(bytes.TrimSpace(name))
		return
	}
	data, ok := bytes.CutPrefix(line, []byte("data:"))
	if !ok {
		return
	}
	data = bytes.TrimSpace(data)
	if bytes.Equal(data, []byte("[DONE]")) {
		in.closed, in.Ended, in.over = true, true, true
		in.fail("the stream ended without content")
		return
	}
	m := marksOf(data)
	switch {
	case !in.decided:
		in.judgeEvent(data)
	case in.tells(data, m):
		in.judgeEvent(data)
		in.timings(data)
	case in.api.completes():
		in.seen |= 1 // see tells
		in.endChoices()
	}
	in.Events++
	if m.tokens {
		in.usage(data)
	}
}

// seeEventName keeps the name of the current event. Of a few names nothing else is needed to know that the stream ends.
func (in *Inspector) seeEventName(name []byte) {
	in.event = append(in.event[:0], name...)
	switch string(name) {
	case "message_stop", "response.completed", "response.incomplete", "response.failed", "error":
		in.closed, in.Ended = true, true
	}
}

func (in *Inspector) seeJSONLine(line []byte) {
	if line = bytes.TrimSpace(line); len(line) == 0 {
		return
	}
	m := marksOf(line)
	if !in.decided || in.tells(line, m) {
		in.judgeEvent(line)
	}
	if _, after, ok := bytes.Cut(line, []byte(`"done":`)); ok { // Ollama's
		in.doneKnown, in.lastDone = true, bytes.HasPrefix(after, []byte("true"))
	}
	in.Events++
	if m.tokens {
		in.usage(line)
	}
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
		case "cached", "cache_read_input":
			to, in.prompt.Counted, in.apart = &in.prompt.Cached, true, name[5] == '_' // Anthropic's
		}
		b = bytes.TrimLeft(b[i+len(`_tokens"`):], ": \t")
		digits := b[:len(b)-len(bytes.TrimLeft(b, "0123456789"))]
		if n, err := strconv.Atoi(string(digits)); err == nil && to != nil {
			*to = n
		}
	}
}

// A PromptReport is what an engine says in its answer of how it read the prompt. The zero value is that it says nothing.
type PromptReport struct {
	Counted  bool          // it says how many tokens it found in its cache
	Cached   int           // those tokens
	Tokens   int           // all of the prompt; 0: it does not say
	Computed int           // tokens that it did not find there; 0: it does not say
	Took     time.Duration // what these took; 0: it does not say
}

// Prompt is what the engine said of how it read the prompt. Like the counts of tokens it is known after Broken.
func (in *Inspector) Prompt() PromptReport {
	p := in.prompt
	if p.Tokens = in.input; in.apart {
		p.Tokens += p.Cached
	}
	return p
}

// timings records what llama.cpp says of the prompt, in the last event of a stream or at the end of an answer.
func (in *Inspector) timings(b []byte) {
	i := bytes.LastIndex(b, []byte(`"timings"`))
	if i < 0 {
		return
	}
	number := func(name string) (v float64, ok bool) {
		_, after, ok := bytes.Cut(b[i:], []byte(name))
		if !ok {
			return 0, false
		}
		after = afterColon(after)
		end := bytes.IndexAny(after, ",} \t\r\n")
		if end < 0 {
			return 0, false
		}
		v, err := strconv.ParseFloat(string(after[:end]), 64)
		return v, err == nil && v >= 0 && v < 1e9
	}
	n, counted := number(`"prompt_n"`)
	ms, timed := number(`"prompt_ms"`)
	if counted && timed && n >= 1 && ms > 0 {
		in.prompt.Computed, in.prompt.Took = int(n), time.Duration(ms*float64(time.Millisecond))
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
	in.timings(in.tail)
	broken := in.broken()
	switch {
	case in.verdict != Undecided:
	case in.Stream && broken != "":
		in.fail(broken)
	case in.Stream && (in.api != Other || in.Events == 0 && !in.sse):
		in.fail("the stream ended without content")
	case in.Stream:
		in.answered()
	default:
		in.judgeWhole()
	}
	return broken
}

func (in *Inspector) broken() string {
	switch {
	case in.opaque:
	case in.sse && in.api.hasLastEvent() && !in.Ended, in.doneKnown && !in.lastDone && !in.closed:
		return "the stream ended without its last event"
	case in.delimit && in.json:
		t := bytes.TrimSpace(in.tail)
		if len(t) > 0 && t[len(t)-1] != '}' && t[len(t)-1] != ']' {
			return "the answer broke off"
		}
	}
	return ""
}

// Edits are the values that an answer gets in place of its engine's. Empty values change nothing.
type Edits struct {
	Model string // the name that the client used
	Tier  string // the tier that served the request
}

// Editor applies the edits to one answer and changes no other byte.
//
// It edits a JSON object: the answer itself, the data of a line "data:" of an event stream, or a
// line of a stream of JSON lines:
//
//	model           at the top level; in Anthropic's message_start also message.model,
//	                in the events of Responses response.model
//	service_tier    next to that model, in completions and Responses: set, or inserted
//	                after the model if the engine does not send one. Anthropic's, in
//	                usage: set if it is there
//
// Anything else passes unchanged: errors, [DONE], comments, an event whose data is in several
// lines, malformed data. A complete line is never held back, and an incomplete one only until its
// end arrives, so the result does not depend on how the bytes were cut on their way.
type Editor struct {
	model, tier []byte // as JSON; nil: unchanged
	beside      []byte // the member service_tier, where it is next to the model
	inUsage     bool   // service_tier is in usage
	inner       string // the member of an event that holds the answer; "": none
	jsonLines   bool   // otherwise lines of server-sent events

	t    cursor
	cuts []cut
	out  []byte
	held []byte // incomplete line
	long bool   // the current line is too long to be edited
}

// cut replaces b[from:to].
type cut struct {
	from, to   int
	with, then []byte
}

// maxLine bounds the memory of a line. A longer one passes unchanged, however it is cut.
const maxLine = 1 << 20

// NewEditor returns an Editor for an answer of an API, which may be a stream of JSON lines instead
// of server-sent events. It returns nil if there is nothing to edit.
func NewEditor(ed Edits, a API, jsonLines bool) *Editor {
	if ed == (Edits{}) {
		return nil
	}
	e := &Editor{jsonLines: jsonLines}
	if ed.Model != "" {
		e.model = jsonString(ed.Model)
	}
	if ed.Tier != "" {
		e.tier = jsonString(ed.Tier)
	}
	switch {
	case a == Messages:
		e.inner = "message"
		e.inUsage = e.tier != nil
	case a == Responses, a.completes():
		if a == Responses {
			e.inner = "response"
		}
		if e.tier != nil {
			e.beside = slices.Concat([]byte(`,"service_tier":`), e.tier)
		}
	}
	if e.model == nil && e.beside == nil && !e.inUsage {
		return nil
	}
	return e
}

// Whole edits an answer that is not a stream.
func (e *Editor) Whole(pieces [][]byte) []byte {
	b := bytes.Join(pieces, nil)
	return e.appendJSON(make([]byte, 0, len(b)+len(e.model)+len(e.tier)+len(e.beside)), b)
}

// Lines adds the next bytes of a stream and returns the bytes to send on. They are valid until the next call.
func (e *Editor) Lines(b []byte) []byte {
	e.out = e.out[:0]
	for end := lineEnd(b); end >= 0; end = lineEnd(b) {
		e.endLine(b[:end])
		e.out = append(e.out, b[end])
		b = b[end+1:]
	}
	if e.long || len(e.held)+len(b) > maxLine {
		e.flushHeld(b)
		e.long = true
	} else {
		e.held = append(e.held, b...)
	}
	return e.out
}

// Last returns the remaining bytes when the stream has ended successfully: a line without an end.
func (e *Editor) Last() []byte {
	e.out = e.out[:0]
	e.endLine(nil)
	return e.out
}

// lineEnd is the index where a line ends, as in server-sent events: at a line feed, a carriage
// return or both. JSON strings contain neither.
func lineEnd(b []byte) int {
	end := bytes.IndexByte(b, '\n')
	line := b
	if end >= 0 {
		line = b[:end]
	}
	if cr := bytes.IndexByte(line, '\r'); cr >= 0 {
		return cr
	}
	return end
}

// endLine appends a line to out; b is its last part.
func (e *Editor) endLine(b []byte) {
	switch {
	case e.long, len(e.held)+len(b) > maxLine:
		e.flushHeld(b)
		e.long = false
		return
	case len(e.held) > 0:
		e.held = append(e.held, b...)
		b = e.held
	}
	start := 0
	if !e.jsonLines {
		start = len("data:")
		if !bytes.HasPrefix(b, []byte("data:")) {
			start = len(b)
		}
	}
	e.out = append(e.out, b[:start]...)
	e.out = e.appendJSON(e.out, b[start:])
	e.held = e.held[:0]
}

func (e *Editor) flushHeld(b []byte) {
	e.out = append(append(e.out, e.held...), b...)
	e.held = e.held[:0]
}

// appendJSON appends the edited object, or anything else unchanged.
func (e *Editor) appendJSON(dst, b []byte) []byte {
	t := &e.t
	t.b, t.at, t.bad, t.depth = b, 0, false, 0
	if t.peek() != '{' {
		return append(dst, b...)
	}
	e.cuts = e.cuts[:0]
	e.object(true)
	if t.peek(); t.bad || t.at < len(b) {
		return append(dst, b...)
	}
	at := 0
	for _, c := range e.cuts {
		dst = append(dst, b[at:c.from]...)
		dst = append(dst, c.with...)
		dst = append(dst, c.then...)
		at = c.to
	}
	return append(dst, b[at:]...)
}

// object finds the cuts in the object that the cursor is at.
func (e *Editor) object(top bool) {
	t := &e.t
	named, tiered := -1, false // named is the index of the cut at its model; tiered reports whether it has a tier
	t.open()
	for name := t.name(); name != nil; name = t.name() {
		from, kind := t.at, t.peek()
		switch name := memberName(name); {
		case string(name) == "model" && kind == '"':
			t.value()
			named = len(e.cuts)
			if e.model != nil {
				e.cuts = append(e.cuts, cut{from: from, to: t.at, with: e.model})
			} else {
				e.cuts = append(e.cuts, cut{from: t.at, to: t.at})
			}
		case string(name) == "service_tier" && e.beside != nil:
			e.setTier(kind)
			tiered = true
		case string(name) == "usage" && e.inUsage && kind == '{':
			e.usage()
		case top && e.inner != "" && string(name) == e.inner && kind == '{':
			e.object(false)
		default:
			t.value()
		}
	}
	if e.beside != nil && named >= 0 && !tiered {
		e.cuts[named].then = e.beside
	}
}

// usage finds Anthropic's tier.
func (e *Editor) usage() {
	t := &e.t
	t.open()
	for name := t.name(); name != nil; name = t.name() {
		if string(memberName(name)) == "service_tier" {
			e.setTier(t.peek())
		} else {
			t.value()
		}
	}
}

// setTier replaces a tier that is a string or null.
func (e *Editor) setTier(kind byte) {
	from := e.t.at
	if e.t.value(); kind == '"' || kind == 'n' {
		e.cuts = append(e.cuts, cut{from: from, to: e.t.at, with: e.tier})
	}
}

// memberName is the unquoted name of a member; nil if it is longer than any name that matters here.
func memberName(name []byte) []byte {
	const longest = 6*len("service_tier") + 2 // each letter as \u0073
	switch {
	case len(name) > longest:
		return nil
	case bytes.IndexByte(name, '\\') < 0:
		return name[1 : len(name)-1]
	}
	return []byte(unquoted(name))
}
