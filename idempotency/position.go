package idempotency

import (
	"bytes"
	"net/http"

	"github.com/pulley-lb/pulley/subjects"
)

// kind says how an answer is divided.
type kind int

const (
	whole  kind = iota // it is no stream
	events             // server-sent events
	lines              // lines of JSON
)

// kindOf tells by the headers of an answer.
func kindOf(h http.Header) kind {
	if enc := h.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return whole
	}
	switch subjects.MediaType(h) {
	case "text/event-stream":
		return events
	case "application/x-ndjson", "application/jsonl":
		return lines
	}
	return whole
}

// position is a place in a stream. It is stored.
//
// An event is what the specification of server-sent events calls one: lines with at least one field "data" among them, and the
// blank line that ends them. Comments are none, nor is an event that has not ended. In a stream of lines, each that has ended and
// is not blank counts.
type position struct {
	Events uint64 `json:"events,omitzero"` // before it
	Data   bool   `json:"data,omitzero"`   // the event in which it is has data
	Line   uint8  `json:"line,omitzero"`   // what is known of the line in which it is
	Return bool   `json:"return,omitzero"` // a carriage return is before it: a line feed belongs to that
}

// Values of position.Line. Those between are how much of "data" it has been so far.
const (
	blank     = 0
	dataAlone = 4 // a field as well
	dataField = 5
	otherLine = 6
)

// read moves the position over b, until it has as many events before it, and returns by how much it has moved.
func (p *position) read(k kind, b []byte, until uint64) (n int) {
	if p.Return && len(b) > 0 {
		p.Return = false
		if b[0] == '\n' {
			n = 1
		}
	}
	for n < len(b) && p.Events < until {
		size := lineLength(k, b[n:])
		p.see(k, b[n:n+size])
		if n += size; n == len(b) {
			break
		}
		p.Return = b[n] == '\r'
		if n++; p.Return && n < len(b) {
			p.Return = false
			if b[n] == '\n' {
				n++
			}
		}
		p.endLine(k)
	}
	return n
}

// lineLength is how many bytes of b are before the end of its first line.
func lineLength(k kind, b []byte) int {
	size := len(b)
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		size = i
	}
	if k == events {
		if i := bytes.IndexByte(b[:size], '\r'); i >= 0 {
			size = i
		}
	}
	return size
}

// see looks at more of a line.
func (p *position) see(k kind, b []byte) {
	if k == lines {
		if len(bytes.TrimSpace(b)) > 0 {
			p.Line = otherLine
		}
		return
	}
	for i := 0; i < len(b) && p.Line < dataField; i++ {
		switch {
		case p.Line < dataAlone && b[i] == "data"[p.Line]:
			p.Line++
		case p.Line == dataAlone && b[i] == ':':
			p.Line = dataField
		default:
			p.Line = otherLine
		}
	}
}

func (p *position) endLine(k kind) {
	switch {
	case k == lines && p.Line != blank, k == events && p.Line == blank && p.Data:
		p.Events++
		p.Data = false
	case k == events && (p.Line == dataAlone || p.Line == dataField):
		p.Data = true
	}
	p.Line = blank
}
