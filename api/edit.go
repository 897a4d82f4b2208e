package api

import (
	"bytes"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/pulley-lb/pulley/subjects"
)

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

// Lines adds the next bytes of a stream and returns the bytes to send on. They are valid until the
// next call.
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

// RenameModel replaces the client's name for the model in a request by the engine's, and changes no
// other byte. A request whose model has no known place is unchanged. The body itself is not
// modified.
func RenameModel(req *subjects.Request, body []byte, model string) (path string, renamed []byte, err error) {
	at := req.ModelAt
	if at.In == "" || model == req.Model {
		return req.Path, body, nil
	}
	size := len(body)
	if at.In == subjects.ModelInPath {
		size = len(req.Path)
	}
	if at.From < 0 || at.From > at.To || at.To > size {
		return "", nil, fmt.Errorf("model %q cannot be renamed: it is not at %d to %d of %d bytes", req.Model, at.From, at.To, size)
	}
	switch at.In {
	case subjects.ModelInJSON:
		if at.To-at.From < 2 || body[at.From] != '"' || body[at.To-1] != '"' {
			break
		}
		name, err := jsontext.AppendQuote(nil, model)
		if err != nil {
			return "", nil, fmt.Errorf("model %q cannot be renamed to %q: %w", req.Model, model, err)
		}
		return req.Path, slices.Concat(body[:at.From], name, body[at.To:]), nil
	case subjects.ModelInForm:
		if strings.ContainsAny(model, "\r\n") {
			break
		}
		return req.Path, slices.Concat(body[:at.From], []byte(model), body[at.To:]), nil
	case subjects.ModelInPath:
		if strings.ContainsAny(req.Path[at.From:at.To], "/?#") {
			break
		}
		return req.Path[:at.From] + url.PathEscape(model) + req.Path[at.To:], body, nil
	}
	return "", nil, fmt.Errorf("model %q cannot be renamed to %q at %d to %d of the %s", req.Model, model, at.From, at.To, at.In)
}
