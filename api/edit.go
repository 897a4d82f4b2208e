package api

import (
	"bytes"
	"slices"
)

// Edits are what an answer says otherwise than its engine did. Empty: as it did.
type Edits struct {
	Model string // as the client asked for it
	Tier  string // that served it
}

// Editor makes the edits of one answer and changes no other byte.
//
// It edits the JSON object that the answer is, or that stands behind "data:" in
// one line of an event stream, or that is one line of a stream of JSON lines:
//
//	model           at the top; in Anthropic's message_start also message.model,
//	                in the events of Responses response.model
//	service_tier    beside that model, in completions and Responses: set, or put
//	                behind the model where the engine says none. Anthropic's, in
//	                usage: set where there is one
//
// What has another form passes as it is: errors, [DONE], comments, an event
// whose data is in several lines, damage. A complete line is never held back,
// and the begin of one only until its end comes, so that what it says does not
// depend on how the bytes were cut on their way.
type Editor struct {
	model, tier []byte // as JSON; nil: left alone
	beside      []byte // the tier's member, where one goes beside a model
	inUsage     bool   // where the API has its tier
	inner       string // the member of an event that has the answer in it; "": none
	jsonLines   bool   // else lines are those of server-sent events

	t    cursor
	cuts []cut
	out  []byte
	held []byte // of a line whose end has not come
	long bool   // in a line that is too long to be edited
}

// cut replaces b[from:to].
type cut struct {
	from, to   int
	with, then []byte
}

// maxLine bounds the memory of a line that is edited. A longer one passes as it
// is, however it comes.
const maxLine = 1 << 20

// NewEditor is for an answer of an API, which may be a stream of JSON lines instead of
// server-sent events. It is nil if there is nothing to edit.
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

// Whole edits an answer that is no stream.
func (e *Editor) Whole(pieces [][]byte) []byte {
	b := bytes.Join(pieces, nil)
	return e.appendJSON(make([]byte, 0, len(b)+len(e.model)+len(e.tier)+len(e.beside)), b)
}

// Lines takes in the next bytes of a stream and gives what they make ready to
// be sent on. That is valid until the next call.
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

// Last gives what is ready when the stream ends well: a line without an end.
func (e *Editor) Last() []byte {
	e.out = e.out[:0]
	e.endLine(nil)
	return e.out
}

// lineEnd is where a line ends, as server-sent events have it: at a line feed, a
// carriage return or both. No JSON has either inside a string.
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

// endLine sends a line on of which b is the rest.
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

// appendJSON appends a JSON object as it is edited, and anything else as it is.
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

// object finds what to cut in the object that the text is at.
func (e *Editor) object(top bool) {
	t := &e.t
	named, tiered := -1, false // the cut at its model; whether it names a tier
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

// memberName is what a quoted name of an answer says; nil for one that is
// longer than those that matter here can be.
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
