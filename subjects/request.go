package subjects

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers of a message in a request stream.
const (
	HeaderRequest = "Pulley-Request" // a Request as one line of JSON
	HeaderMsgID   = "Nats-Msg-Id"    // the request id: a repeated publish is recognised
	HeaderTTL     = "Nats-TTL"       // whole seconds until the client's deadline, as in 600s: dead requests leave by themselves
	HeaderReason  = "Pulley-Reason"  // of a dead letter: why nobody could answer
)

// Request is what travels with a body through the queue.
type Request struct {
	ID          ID          `json:"id"`
	Gateway     string      `json:"gw"` // who holds the client's connection
	Tenant      string      `json:"tenant,omitempty"`
	Tier        string      `json:"tier"`
	Model       string      `json:"model"` // as the client said it
	ModelAt     ModelAt     `json:"model_at,omitzero"`
	Pool        string      `json:"pool"`
	Deadline    int64       `json:"deadline"` // Unix milliseconds; the gateway is the judge of it
	Method      string      `json:"method"`
	Path        string      `json:"path"`             // with the query
	Header      http.Header `json:"header,omitempty"` // end-to-end headers for the engine
	Stream      bool        `json:"stream,omitempty"`
	InputTokens int         `json:"in"` // estimate: body bytes / 4, at least 1
	BodySize    int64       `json:"size"`
	ByReference bool        `json:"ref,omitempty"` // the body is fetched from the gateway (GatewayBody)
}

// ModelAt is where a request names its model, so that a worker whose engine
// knows it by another name can put that in its place and change no other byte.
// The zero value: nowhere that can be replaced.
type ModelAt struct {
	In   ModelIn `json:"in"`
	From int     `json:"from"` // bytes; of the body, or of Request.Path
	To   int     `json:"to"`
}

// ModelIn is how the name stands there.
type ModelIn string

const (
	ModelInJSON ModelIn = "json" // a JSON string in the body, with its quotes
	ModelInForm ModelIn = "form" // plain bytes in the body
	ModelInPath ModelIn = "path" // an escaped segment of the path
)

// Msg is the message that carries r and its body, which is left out when it
// travels by reference. The TTL is the time left, rounded up to a second.
func (r *Request) Msg(lane string, body []byte, ttl time.Duration) (*nats.Msg, error) {
	b := builders.Get().(*builder)
	defer builders.Put(b)
	b.buf, b.err = b.buf[:0], nil
	r.build(b)
	if b.err != nil {
		return nil, fmt.Errorf("encode request %s: %w", r.ID, b.err)
	}
	values := []string{string(b.buf), r.ID.String(), ""}
	m := &nats.Msg{
		Subject: Req(r.Tier, r.Pool, lane),
		Header:  nats.Header{HeaderRequest: values[0:1:1], HeaderMsgID: values[1:2:2]},
	}
	if ttl > 0 { // the server takes a number too, but only after it has tried a duration
		values[2] = strconv.FormatInt(int64((ttl+time.Second-1)/time.Second), 10) + "s"
		m.Header[HeaderTTL] = values[2:3:3]
	}
	if !r.ByReference {
		m.Data = body
	}
	return m, nil
}

var builders = sync.Pool{New: func() any { return &builder{buf: make([]byte, 0, 1<<10)} }}

func (r *Request) build(b *builder) {
	b.lit(`{"id":`)
	b.str(r.ID.String())
	b.lit(`,"gw":`)
	b.str(r.Gateway)
	if r.Tenant != "" {
		b.lit(`,"tenant":`)
		b.str(r.Tenant)
	}
	b.lit(`,"tier":`)
	b.str(r.Tier)
	b.lit(`,"model":`)
	b.str(r.Model)
	if r.ModelAt != (ModelAt{}) {
		b.lit(`,"model_at":{"in":`)
		b.str(string(r.ModelAt.In))
		b.lit(`,"from":`)
		b.int(int64(r.ModelAt.From))
		b.lit(`,"to":`)
		b.int(int64(r.ModelAt.To))
		b.lit(`}`)
	}
	b.lit(`,"pool":`)
	b.str(r.Pool)
	b.lit(`,"deadline":`)
	b.int(r.Deadline)
	b.lit(`,"method":`)
	b.str(r.Method)
	b.lit(`,"path":`)
	b.str(r.Path)
	if len(r.Header) > 0 {
		b.lit(`,"header":`)
		b.header(r.Header)
	}
	b.lit(`,"stream":`)
	b.bool(r.Stream)
	b.lit(`,"in":`)
	b.int(int64(r.InputTokens))
	b.lit(`,"size":`)
	b.int(r.BodySize)
	b.lit(`,"ref":`)
	b.bool(r.ByReference)
	b.lit(`}`)
}

// read reads what build has written. False: some of it, or none.
func (r *Request) read(meta string) bool {
	j := reader{meta}
	return j.lit(`{"id":`) && j.id(&r.ID) &&
		j.lit(`,"gw":`) && j.str(&r.Gateway) &&
		(!j.lit(`,"tenant":`) || j.str(&r.Tenant)) &&
		j.lit(`,"tier":`) && j.str(&r.Tier) &&
		j.lit(`,"model":`) && j.str(&r.Model) &&
		(!j.lit(`,"model_at":{"in":`) || j.str((*string)(&r.ModelAt.In)) &&
			j.lit(`,"from":`) && j.int(&r.ModelAt.From) && j.lit(`,"to":`) && j.int(&r.ModelAt.To) && j.lit(`}`)) &&
		j.lit(`,"pool":`) && j.str(&r.Pool) &&
		j.lit(`,"deadline":`) && j.int64(&r.Deadline) &&
		j.lit(`,"method":`) && j.str(&r.Method) &&
		j.lit(`,"path":`) && j.str(&r.Path) &&
		(!j.lit(`,"header":`) || j.header(&r.Header)) &&
		j.lit(`,"stream":`) && j.bool(&r.Stream) &&
		j.lit(`,"in":`) && j.int(&r.InputTokens) &&
		j.lit(`,"size":`) && j.int64(&r.BodySize) &&
		j.lit(`,"ref":`) && j.bool(&r.ByReference) &&
		j.rest == `}`
}

// ParseRequest reads the Request of a delivered message. Its path begins with a
// slash, so that it can follow an engine's host and port.
func ParseRequest(m *nats.Msg) (*Request, error) {
	h := m.Header[HeaderRequest]
	if len(h) != 1 {
		return nil, fmt.Errorf("message on %s: no %s header", m.Subject, HeaderRequest)
	}
	r := new(Request)
	if !r.read(h[0]) {
		*r = Request{}
		if err := Unmarshal([]byte(h[0]), r); err != nil {
			return nil, fmt.Errorf("message on %s: %s: %w", m.Subject, HeaderRequest, err)
		}
		fromWire(r.Header)
	}
	if !strings.HasPrefix(r.Path, "/") {
		return nil, fmt.Errorf("message on %s: path %q: must begin with a slash", m.Subject, r.Path)
	}
	if r.BodySize < 0 {
		return nil, fmt.Errorf("message on %s: body of %d bytes", m.Subject, r.BodySize)
	}
	return r, nil
}

// Sender is who a delivered Request is of, read without the rest of it. False: it
// takes ParseRequest to tell.
func Sender(m *nats.Msg) (id ID, gateway string, ok bool) {
	h := m.Header[HeaderRequest]
	if len(h) != 1 {
		return id, "", false
	}
	j := reader{h[0]}
	ok = j.lit(`{"id":`) && j.id(&id) && j.lit(`,"gw":`) && j.str(&gateway)
	return id, gateway, ok
}

// ParsePubAck reads the broker's answer to a published Request: the sequence of
// its message, or, mostly as a *jetstream.APIError, why it was not taken.
func ParsePubAck(m *nats.Msg) (seq uint64, err error) {
	var stream string
	var n int64
	if j := (reader{string(m.Data)}); j.lit(`{"stream":`) && j.str(&stream) && j.lit(`,"seq":`) && j.int64(&n) && n > 0 && j.rest == `}` {
		return uint64(n), nil
	}
	if m.Header.Get("Status") == "503" {
		return 0, jetstream.ErrNoStreamResponse
	}
	var a struct {
		Seq   uint64              `json:"seq"`
		Error *jetstream.APIError `json:"error"`
	}
	switch err := Unmarshal(m.Data, &a); {
	case err != nil:
		return 0, fmt.Errorf("the stream's answer: %w", err)
	case a.Error != nil:
		return 0, a.Error
	case a.Seq == 0:
		return 0, errors.New("the stream's answer has no sequence")
	}
	return a.Seq, nil
}

// BodyRequest asks a gateway for a piece of a body held there. The answer is the
// bytes from Offset on, as many as fit; an empty answer means that the gateway
// does not hold the request any more.
type BodyRequest struct {
	ID     ID    `json:"id"`
	Offset int64 `json:"offset"`
}
