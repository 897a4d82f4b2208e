package subjects

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Claim tells a gateway that a worker starts an attempt of a request. The worker does not wait for
// an answer before it calls the engine, unless the claim asks for one in any case.
type Claim struct {
	ID      ID     `json:"id"`
	Attempt uint64 `json:"attempt,string"` // the worker's random mark of the attempt
	Worker  string `json:"worker"`
	Name    string `json:"name"`             // the worker's name
	Ack     string `json:"ack"`              // ack subject of the delivery, where the gateway settles failures
	Rung    int    `json:"rung,omitzero"`    // of the bid that the delivery answered
	Confirm bool   `json:"confirm,omitzero"` // a grant is to be answered too: the worker failed the request before, and waits
}

// Bytes is the claim as JSON.
func (c *Claim) Bytes() ([]byte, error) {
	b := builder{buf: make([]byte, 0, 256)}
	b.str(`{"id":`, c.ID.String())
	b.lit(`,"attempt":"`)
	b.buf = strconv.AppendUint(b.buf, c.Attempt, 10)
	b.str(`","worker":`, c.Worker)
	b.str(`,"name":`, c.Name)
	b.str(`,"ack":`, c.Ack)
	if c.Rung != 0 {
		b.int(`,"rung":`, int64(c.Rung))
	}
	if c.Confirm {
		b.lit(`,"confirm":true`)
	}
	b.lit(`}`)
	return b.buf, b.err
}

// ParseClaim parses a claim.
func ParseClaim(data []byte) (*Claim, error) {
	c := new(Claim)
	if !c.read(string(data)) {
		*c = Claim{}
		if err := Unmarshal(data, c); err != nil {
			return nil, fmt.Errorf("claim: %w", err)
		}
	}
	c.Worker = strings.Clone(c.Worker) // it is kept for long; the copy lets the rest be freed
	return c, nil
}

func (c *Claim) read(data string) bool {
	j := reader{data}
	var attempt string
	if !(j.lit(`{"id":`) && j.id(&c.ID) &&
		j.lit(`,"attempt":`) && j.str(&attempt) &&
		j.lit(`,"worker":`) && j.str(&c.Worker) &&
		j.lit(`,"name":`) && j.str(&c.Name) &&
		j.lit(`,"ack":`) && j.str(&c.Ack) &&
		(!j.lit(`,"rung":`) || j.int(&c.Rung)) &&
		(!j.lit(`,"confirm":true`) || c.confirm()) &&
		j.rest == `}`) {
		return false
	}
	n, err := strconv.ParseUint(attempt, 10, 64)
	c.Attempt = n
	return err == nil
}

func (c *Claim) confirm() bool {
	c.Confirm = true
	return true
}

// Verdict is a gateway's answer to a claim.
type Verdict string

const (
	Granted     Verdict = "go"        // only this attempt's frames reach the client. Sent only for a Claim with Confirm
	Gone        Verdict = "gone"      // the request is over: remove the message
	Elsewhere   Verdict = "elsewhere" // another attempt is running: leave the message to it
	OtherWorker Verdict = "not-you"   // this worker failed it before: hand the message back for another
)

// Refusal is the answer to a Claim that is not granted, or that asks for one. Otherwise a granted claim gets no answer: it
// would cost every request a message that no worker waits for.
type Refusal struct {
	Verdict Verdict `json:"verdict"`
	Ack     string  `json:"ack"`                // as in the Claim
	DelayMS int64   `json:"delay_ms,omitempty"` // for OtherWorker: hand the message back after this delay
}

// Cancel tells a worker to abort an attempt. It is sent on WorkerCancel.
type Cancel struct {
	ID      ID     `json:"id"`
	Attempt uint64 `json:"attempt,string"`
	Reason  string `json:"reason"`
}

// Blame tells a worker that a request which failed at it was answered by another worker, so that the request was not to
// blame. It is sent on WorkerBlame.
type Blame struct {
	ID ID `json:"id"`
}

// FailedOver is the Reason of a Cancel after which another worker should have the request.
const FailedOver = "failed over"

// WindowUpdate tells a worker how many body bytes of an attempt the client has consumed so far. It
// is sent on WorkerWindow. A worker sends at most Window bytes beyond that.
type WindowUpdate struct {
	ID      ID     `json:"id"`
	Attempt uint64 `json:"attempt,string"`
	Taken   int64  `json:"taken"`
}

// Window bounds, in bytes, the data of one attempt that a client has not read yet. 256 KiB is an
// hour of a single token stream.
const Window = 256 << 10

// Alive lists, once a second and for each gateway, the attempts that a worker runs for it. It shows that the worker is
// running while an engine is silent, and reveals frames that were lost at the end of an attempt.
type Alive struct {
	Worker   string         `json:"worker"`
	Attempts []AliveAttempt `json:"attempts"`
}

type AliveAttempt struct {
	ID      ID     `json:"id"`
	Attempt uint64 `json:"attempt,string"`
	Sent    uint32 `json:"sent"`           // messages sent so far
	Taken   int64  `json:"taken,omitzero"` // as in the last WindowUpdate
	// Late says that the first byte of the answer takes much longer than the worker has measured for such prompts.
	Late bool `json:"late,omitzero"`
}

// Kind is the kind of a frame.
type Kind byte

const (
	KindHead Kind = 'h' // a Head; always the first frame
	KindData Kind = 'd' // bytes of the response's body
	KindEnd  Kind = 'e' // an End: the response is complete
	KindFail Kind = 'f' // a Fail: the attempt failed before or during the response
)

// Frame is one piece of an answer. The field of its kind is set.
type Frame struct {
	Kind Kind
	Head *Head
	Data []byte
	End  *End
	Fail *Fail
}

// PrefixLen is the length of the part of a message before its frames: request id, attempt, sequence.
const PrefixLen = 16 + 8 + 4

// frameHeader is the length of a frame's kind and payload length.
const frameHeader = 1 + 4

// MaxFrame bounds the payload of one frame: half of a broker's default max_payload.
const MaxFrame = 512 << 10

// Head starts an answer.
type Head struct {
	Status int         `json:"status"`
	Header http.Header `json:"header"` // the engine's end-to-end headers
	Length int64       `json:"length"` // length of the body; -1 if the engine did not give it
}

// End completes an answer.
type End struct {
	OutputTokens int `json:"output_tokens"` // as reported by the engine, otherwise as counted; 0 if unknown
	InputTokens  int `json:"input_tokens"`  // as reported by the engine; 0 if unknown

	// CachedTokens are tokens of the prompt that the engine found in its cache; 0 if it does not say, and from an older worker.
	// CachedApart: InputTokens are without them, as in Anthropic's API.
	CachedTokens int  `json:"cached_tokens,omitzero"`
	CachedApart  bool `json:"cached_apart,omitzero"`
}

// Prompt is how many tokens the prompt had; 0 if unknown.
func (e *End) Prompt() int {
	if e.CachedApart {
		return e.InputTokens + e.CachedTokens
	}
	return e.InputTokens
}

// FailClass says what a failed attempt means for the request and for the worker.
type FailClass string

const (
	FailRefused FailClass = "refused" // the engine has no slot (429, 503): try another worker, do not count a failure
	FailMisfit  FailClass = "misfit"  // this engine cannot serve the request, another may (unknown model or path, refused credentials, short context)
	// FailCredentials: the engine refuses the worker's credentials, which are about to change. Try another worker, do not
	// count a failure; without one the request waits.
	FailCredentials FailClass = "credentials"
	FailEngine      FailClass = "engine"    // the engine failed (5xx, no connection, an answer that is none): try another worker
	FailCrashed     FailClass = "crashed"   // the connection to the engine broke while it had the request, which may have crashed it
	FailTruncated   FailClass = "truncated" // the answer broke off
	FailStalled     FailClass = "stalled"   // the engine sent nothing for too long
	FailDraining    FailClass = "draining"  // the worker leaves before the attempt is done: try another worker, do not count a failure
	FailBody        FailClass = "body"      // the request's body could not be fetched
)

// Fail ends an attempt that failed. Answer and Body hold the engine's own answer if it gave one.
type Fail struct {
	Class  FailClass `json:"class"`
	Reason string    `json:"reason"`
	Answer *Head     `json:"answer,omitempty"`
	Body   []byte    `json:"body,omitempty"`
}

// A Writer builds the messages of one attempt: the prefix, then the frames that arrived together.
// It is not safe for concurrent use.
type Writer struct {
	buf []byte
	seq uint32
}

var writers = sync.Pool{New: func() any { return &Writer{buf: make([]byte, PrefixLen, 4<<10)} }}

// NewWriter returns a writer for an attempt's messages.
func NewWriter(id ID, attempt uint64) *Writer {
	w := writers.Get().(*Writer)
	w.buf, w.seq = w.buf[:PrefixLen], 0
	copy(w.buf, id[:])
	binary.BigEndian.PutUint64(w.buf[16:], attempt)
	return w
}

// Free returns the writer's memory to a pool. w must not be used afterwards.
func (w *Writer) Free() {
	if cap(w.buf) <= 72<<10 { // more than a worker reads at once
		writers.Put(w)
	}
}

// Head adds the frame that starts an answer. Its header must be end to end.
func (w *Writer) Head(h *Head) { w.json(KindHead, h.build) }

// End adds the frame that completes an answer.
func (w *Writer) End(e *End) { w.json(KindEnd, e.build) }

// Fail adds the frame that ends a failed attempt.
func (w *Writer) Fail(f *Fail) { w.json(KindFail, f.build) }

// json adds a frame whose payload build writes in place.
func (w *Writer) json(k Kind, build func(*builder)) {
	at := len(w.buf)
	b := builder{buf: append(w.buf, byte(k), 0, 0, 0, 0)}
	build(&b)
	if b.err != nil {
		panic(fmt.Sprintf("frame %c: %v", k, b.err)) // header names are tokens, and all other strings are made valid
	}
	w.buf = b.buf
	binary.BigEndian.PutUint32(w.buf[at+1:], uint32(len(w.buf)-at-frameHeader))
}

func (h *Head) build(b *builder) {
	b.int(`{"status":`, int64(h.Status))
	b.header(`,"header":`, h.Header)
	b.int(`,"length":`, h.Length)
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
	b.int(`{"output_tokens":`, int64(e.OutputTokens))
	b.int(`,"input_tokens":`, int64(e.InputTokens))
	if e.CachedTokens != 0 {
		b.int(`,"cached_tokens":`, int64(e.CachedTokens))
	}
	if e.CachedApart {
		b.bool(`,"cached_apart":`, true)
	}
	b.lit(`}`)
}

func (e *End) read(payload string) bool {
	j := reader{payload}
	return j.lit(`{"output_tokens":`) && j.int(&e.OutputTokens) &&
		j.lit(`,"input_tokens":`) && j.int(&e.InputTokens) &&
		(!j.lit(`,"cached_tokens":`) || j.int(&e.CachedTokens)) &&
		(!j.lit(`,"cached_apart":`) || j.bool(&e.CachedApart)) &&
		j.rest == `}`
}

func (f *Fail) build(b *builder) {
	b.str(`{"class":`, string(f.Class))
	b.str(`,"reason":`, strings.ToValidUTF8(f.Reason, "\ufffd")) // the reason may quote an engine
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

// Grow reserves space for a data frame of up to n bytes and returns it, to be read into. Commit
// completes the frame. This saves a copy of every token.
func (w *Writer) Grow(n int) []byte {
	need := len(w.buf) + frameHeader + n
	if cap(w.buf) < need {
		b := make([]byte, len(w.buf), need)
		copy(b, w.buf)
		w.buf = b
	}
	return w.buf[len(w.buf)+frameHeader : need]
}

// Commit adds the data frame with the first n bytes of the space that Grow returned.
func (w *Writer) Commit(n int) {
	at := len(w.buf)
	w.buf = w.buf[:at+frameHeader+n]
	w.buf[at] = byte(KindData)
	binary.BigEndian.PutUint32(w.buf[at+1:], uint32(n))
}

// Drop removes the frames since the last Take.
func (w *Writer) Drop() { w.buf = w.buf[:PrefixLen] }

// Sent is the number of messages that Take has returned.
func (w *Writer) Sent() uint32 { return w.seq }

// Take returns the message so far. It is valid until the next call on w.
func (w *Writer) Take() []byte {
	w.seq++
	binary.BigEndian.PutUint32(w.buf[24:], w.seq)
	msg := w.buf
	w.buf = w.buf[:PrefixLen]
	return msg
}

// ParseHead parses the payload of a head as untrusted input. In the result the status is one that
// can be sent to a client, header names are canonical, and hop-by-hop headers are removed.
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

// ParseEnd parses the payload of an end.
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

// ParseFail parses the payload of a fail.
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

// Prefix identifies the attempt that a message belongs to, and the message. Sequences start with 1.
type Prefix struct {
	ID      ID
	Attempt uint64
	Seq     uint32
}

// ErrFrame means that a message is not a sequence of frames.
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

// NextFrame returns the first frame and the rest. The payload is a part of b.
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

// ParseFrame parses a frame's payload. Data is a part of payload.
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

// Local connects the workers and gateways of one process without the broker. A claim and its frames are calls, which
// saves each request two messages and the encoding of their contents. Everything else, above all the queue, goes
// through the broker as between any gateway and worker. The zero value has no gateways yet; a nil Local never has any.
type Local struct {
	gateways sync.Map // map of gateway id to LocalGateway
}

// LocalGateway is a gateway as the workers of its process see it. Its methods may be called from
// many goroutines at once and never block; the calls of one attempt are sequential.
type LocalGateway interface {
	// Request returns a request that waits or runs at the gateway, which must not be modified; nil if there is none.
	Request(id ID) *Request
	// Claim answers a claim as the message would be answered; nil means granted.
	Claim(c Claim) *Refusal
	// Frames delivers what would be one message. The gateway keeps what the frames point to, but not the slice itself.
	Frames(p Prefix, frames []Frame)
}

// Open registers a gateway under its id until the returned function is called.
func (l *Local) Open(id string, gw LocalGateway) (shut func()) {
	if l == nil {
		return func() {}
	}
	l.gateways.Store(id, gw)
	return func() { l.gateways.Delete(id) }
}

// Gateway returns the gateway with an id, if it is in this process.
func (l *Local) Gateway(id string) (gw LocalGateway, ok bool) {
	if l == nil {
		return nil, false
	}
	v, ok := l.gateways.Load(id)
	if !ok {
		return nil, false
	}
	return v.(LocalGateway), true
}
