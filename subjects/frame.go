package subjects

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
)

// Kind says what a frame is.
type Kind byte

const (
	KindHead Kind = 'h' // a Head, before anything else
	KindData Kind = 'd' // bytes of the response's body
	KindEnd  Kind = 'e' // an End: the response is whole
	KindFail Kind = 'f' // a Fail: the attempt came to nothing, or to half
)

// Frame is one piece of an answer: the field of its kind is set.
type Frame struct {
	Kind Kind
	Head *Head
	Data []byte
	End  *End
	Fail *Fail
}

// PrefixLen is the length of what stands before the frames of a message:
// request id, attempt, sequence.
const PrefixLen = 16 + 8 + 4

// frameHeader is kind and length.
const frameHeader = 1 + 4

// MaxFrame bounds one frame's payload: half of the default payload of a broker.
const MaxFrame = 512 << 10

// Head begins an answer.
type Head struct {
	Status int         `json:"status"`
	Header http.Header `json:"header"` // end-to-end headers of the engine
	Length int64       `json:"length"` // of the body, -1 if the engine did not say
}

// End closes an answer that is whole.
type End struct {
	OutputTokens int `json:"output_tokens"` // as the engine reports, else as counted; 0 if unknown
	InputTokens  int `json:"input_tokens"`  // as the engine reports; 0 if unknown
}

// FailClass says who has to do what about a failed attempt.
type FailClass string

const (
	FailRefused   FailClass = "refused"   // the engine has no slot (429, 503): another worker, no blame
	FailEngine    FailClass = "engine"    // the engine failed (5xx, connection): another worker
	FailTruncated FailClass = "truncated" // the answer broke off
	FailStalled   FailClass = "stalled"   // the engine went silent
	FailDraining  FailClass = "draining"  // the worker leaves before it is done: another worker, no blame
	FailBody      FailClass = "body"      // the request's body could not be had
)

// Fail ends an attempt that is not whole. Answer holds the engine's own words
// when it gave any.
type Fail struct {
	Class  FailClass `json:"class"`
	Reason string    `json:"reason"`
	Answer *Head     `json:"answer,omitempty"`
	Body   []byte    `json:"body,omitempty"`
}

// A Writer builds the messages of one attempt: the prefix, then frames that
// arrived together. Not safe for concurrent use.
type Writer struct {
	buf []byte
	seq uint32
}

var writers = sync.Pool{New: func() any { return &Writer{buf: make([]byte, PrefixLen, 4<<10)} }}

// NewWriter begins the messages of an attempt.
func NewWriter(id ID, attempt uint64) *Writer {
	w := writers.Get().(*Writer)
	w.buf, w.seq = w.buf[:PrefixLen], 0
	copy(w.buf, id[:])
	binary.BigEndian.PutUint64(w.buf[16:], attempt)
	return w
}

// Free gives the writer's memory to the next attempt. w must not be used after.
func (w *Writer) Free() {
	if cap(w.buf) <= 72<<10 { // more than a worker reads at once
		writers.Put(w)
	}
}

// Head adds the frame that begins an answer. Its header must be end to end.
func (w *Writer) Head(h *Head) { w.json(KindHead, h.build) }

// End adds the frame that ends a whole answer.
func (w *Writer) End(e *End) { w.json(KindEnd, e.build) }

// Fail adds the frame that ends an attempt which is not whole.
func (w *Writer) Fail(f *Fail) { w.json(KindFail, f.build) }

// json adds a frame that is written in place.
func (w *Writer) json(k Kind, build func(*builder)) {
	at := len(w.buf)
	b := builder{buf: append(w.buf, byte(k), 0, 0, 0, 0)}
	build(&b)
	if b.err != nil {
		panic(fmt.Sprintf("frame %c: %v", k, b.err)) // names of headers are tokens, all else is made valid
	}
	w.buf = b.buf
	binary.BigEndian.PutUint32(w.buf[at+1:], uint32(len(w.buf)-at-frameHeader))
}

func (h *Head) build(b *builder) {
	b.lit(`{"status":`)
	b.int(int64(h.Status))
	b.lit(`,"header":`)
	b.header(h.Header)
	b.lit(`,"length":`)
	b.int(h.Length)
	b.lit(`}`)
}

func (h *Head) read(payload string) bool {
	j := reader{payload}
	return j.lit(`{"status":`) && j.int(&h.Status) &&
		j.lit(`,"header":`) && j.header(&h.Header) &&
		j.lit(`,"length":`) && j.int64(&h.Length) &&
		j.rest == `}`
}

func (e *End) build(b *builder) {
	b.lit(`{"output_tokens":`)
	b.int(int64(e.OutputTokens))
	b.lit(`,"input_tokens":`)
	b.int(int64(e.InputTokens))
	b.lit(`}`)
}

func (e *End) read(payload string) bool {
	j := reader{payload}
	return j.lit(`{"output_tokens":`) && j.int(&e.OutputTokens) &&
		j.lit(`,"input_tokens":`) && j.int(&e.InputTokens) &&
		j.rest == `}`
}

func (f *Fail) build(b *builder) {
	b.lit(`{"class":`)
	b.str(string(f.Class))
	b.lit(`,"reason":`)
	b.str(strings.ToValidUTF8(f.Reason, "\ufffd")) // it may quote an engine
	if f.Answer != nil {
		b.lit(`,"answer":`)
		f.Answer.build(b)
	}
	if len(f.Body) > 0 {
		b.lit(`,"body":"`)
		b.buf = base64.StdEncoding.AppendEncode(b.buf, f.Body)
		b.lit(`"`)
	}
	b.lit(`}`)
}

// Grow makes room for a data frame of up to n bytes and returns where to read
// it in; Commit says how many there were. It saves a copy of every token.
func (w *Writer) Grow(n int) []byte {
	need := len(w.buf) + frameHeader + n
	if cap(w.buf) < need {
		b := make([]byte, len(w.buf), need)
		copy(b, w.buf)
		w.buf = b
	}
	return w.buf[len(w.buf)+frameHeader : need]
}

// Commit adds the data frame whose n bytes were read into Grow's room.
func (w *Writer) Commit(n int) {
	at := len(w.buf)
	w.buf = w.buf[:at+frameHeader+n]
	w.buf[at] = byte(KindData)
	binary.BigEndian.PutUint32(w.buf[at+1:], uint32(n))
}

// Sent is the number of messages taken.
func (w *Writer) Sent() uint32 { return w.seq }

// Take is the message so far; it is valid until the next call on w.
func (w *Writer) Take() []byte {
	w.seq++
	binary.BigEndian.PutUint32(w.buf[24:], w.seq)
	msg := w.buf
	w.buf = w.buf[:PrefixLen]
	return msg
}

// ParseHead reads the payload of a head, as hostile input: the status is one
// that can be answered, header names are canonical, and what belongs to one
// connection is gone.
func ParseHead(payload []byte) (*Head, error) {
	h := new(Head)
	if !h.read(string(payload)) {
		*h = Head{}
		if err := Unmarshal(payload, h); err != nil {
			return nil, fmt.Errorf("head: %w", err)
		}
		fromWire(h.Header)
	}
	return h, h.check()
}

// ParseEnd reads the payload of an end.
func ParseEnd(payload []byte) (*End, error) {
	e := new(End)
	if !e.read(string(payload)) {
		*e = End{}
		if err := Unmarshal(payload, e); err != nil {
			return nil, fmt.Errorf("end: %w", err)
		}
	}
	return e, nil
}

// ParseFail reads the payload of a fail.
func ParseFail(payload []byte) (*Fail, error) {
	f := new(Fail)
	if err := Unmarshal(payload, f); err != nil {
		return nil, fmt.Errorf("fail: %w", err)
	}
	if f.Answer != nil {
		fromWire(f.Answer.Header)
		return f, f.Answer.check()
	}
	return f, nil
}

func (h *Head) check() error {
	if h.Status < 200 || h.Status > 999 {
		return fmt.Errorf("head: status %d", h.Status)
	}
	h.Header = canonical(h.Header)
	EndToEnd(h.Header)
	return nil
}

// Prefix is who a message belongs to. Sequences begin with 1.
type Prefix struct {
	ID      ID
	Attempt uint64
	Seq     uint32
}

// ErrFrame says that a message is no sequence of frames.
var ErrFrame = errors.New("malformed frames")

// ParsePrefix splits a message into prefix and frames.
func ParsePrefix(msg []byte) (Prefix, []byte, error) {
	if len(msg) < PrefixLen {
		return Prefix{}, nil, fmt.Errorf("%w: %d bytes", ErrFrame, len(msg))
	}
	return Prefix{
		ID:      ID(msg[:16]),
		Attempt: binary.BigEndian.Uint64(msg[16:]),
		Seq:     binary.BigEndian.Uint32(msg[24:]),
	}, msg[PrefixLen:], nil
}

// NextFrame splits the first frame off. Its payload is part of b.
func NextFrame(b []byte) (k Kind, payload, rest []byte, err error) {
	if len(b) < frameHeader {
		return 0, nil, nil, fmt.Errorf("%w: %d bytes left", ErrFrame, len(b))
	}
	k = Kind(b[0])
	n := binary.BigEndian.Uint32(b[1:])
	if uint64(n) > uint64(len(b)-frameHeader) {
		return 0, nil, nil, fmt.Errorf("%w: frame of %d bytes in %d", ErrFrame, n, len(b)-frameHeader)
	}
	switch k {
	case KindHead, KindData, KindEnd, KindFail:
	default:
		return 0, nil, nil, fmt.Errorf("%w: kind %q", ErrFrame, k)
	}
	return k, b[frameHeader : frameHeader+n], b[frameHeader+n:], nil
}

// ParseFrame reads a frame's payload, of which data stays a part.
func ParseFrame(k Kind, payload []byte) (f Frame, err error) {
	f.Kind = k
	switch k {
	case KindHead:
		f.Head, err = ParseHead(payload)
	case KindData:
		f.Data = payload
	case KindEnd:
		f.End, err = ParseEnd(payload)
	case KindFail:
		f.Fail, err = ParseFail(payload)
	}
	return f, err
}
