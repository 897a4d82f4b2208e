package subjects

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers of a message in a request stream.
const (
	HeaderRequest = "Pulley-Request" // a Request as one line of JSON
	HeaderMsgID   = "Nats-Msg-Id"    // the request id, by which the broker recognises a repeated message
	HeaderTTL     = "Nats-TTL"       // whole seconds until the client's deadline, as in 600s; the broker removes the message then
	HeaderAttempt = "Pulley-Attempt" // of a call: the gateway's mark of the attempt, 64 bits as a decimal number
	HeaderReason  = "Pulley-Reason"  // of a dead letter: why it could not be answered
	HeaderHistory = "Pulley-History" // of a dead letter: a line for people for each attempt, the oldest first
)

// Request is the description that travels with a body through the queue.
type Request struct {
	ID          ID          `json:"id"`
	Gateway     string      `json:"gw"` // the gateway that holds the client's connection
	Tenant      string      `json:"tenant,omitempty"`
	Tier        string      `json:"tier"`
	Model       string      `json:"model"` // as the client named it
	ModelAt     ModelAt     `json:"model_at,omitzero"`
	AdapterOf   string      `json:"adapter_of,omitempty"` // Model is an adapter of this model, as engines call it: where that is served, the name stays
	Pool        string      `json:"pool"`
	Deadline    int64       `json:"deadline"` // Unix milliseconds; informative, the gateway enforces it
	Method      string      `json:"method"`
	Path        string      `json:"path"`             // with the query
	Header      http.Header `json:"header,omitempty"` // end-to-end headers for the engine
	Stream      bool        `json:"stream,omitempty"`
	InputTokens int         `json:"in"`           // estimate: body bytes / 4, at least 1
	MaxOutput   int         `json:"out,omitzero"` // bound on the answer's tokens; 0: the client set none
	BodySize    int64       `json:"size"`
	ByReference bool        `json:"ref,omitempty"` // the body has to be fetched from the gateway (GatewayBody)
}

// ModelAt is where a request names its model, so that a worker whose engine uses another name can replace it without
// changing any other byte. The zero value means that the name cannot be replaced.
type ModelAt struct {
	In   ModelIn `json:"in"`
	From int     `json:"from"` // byte offset in the body or in Request.Path
	To   int     `json:"to"`
}

// ModelIn is the form in which the model is named.
type ModelIn string

const (
	ModelInJSON ModelIn = "json" // a JSON string in the body, with its quotes
	ModelInForm ModelIn = "form" // plain bytes in the body
	ModelInPath ModelIn = "path" // an escaped segment of the path
)

// Msg is the message that carries r and its body. The body is left out if it travels by reference.
// The TTL is the time left, rounded up to a second.
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
	if ttl > 0 { // the server also accepts a plain number, but tries a duration first
		values[2] = strconv.FormatInt(int64((ttl+time.Second-1)/time.Second), 10) + "s"
		m.Header[HeaderTTL] = values[2:3:3]
	}
	if !r.ByReference {
		m.Data = body
	}
	return m, nil
}

// Call is the message that carries r and its body straight to a worker, as an attempt with that mark. See CallAttempt.
func (r *Request) Call(worker string, attempt uint64, body []byte) (*nats.Msg, error) {
	m, err := r.Msg(Shared, body, 0)
	if err != nil {
		return nil, err
	}
	m.Subject, m.Reply = WorkerCall(worker), GatewayUncalled(r.Gateway, r.ID, attempt)
	delete(m.Header, HeaderMsgID)
	m.Header[HeaderAttempt] = []string{strconv.FormatUint(attempt, 10)}
	return m, nil
}

// CallAttempt is the mark of the attempt that a call is.
func CallAttempt(m *nats.Msg) (attempt uint64, err error) {
	attempt, err = strconv.ParseUint(m.Header.Get(HeaderAttempt), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("message on %s: %s: %w", m.Subject, HeaderAttempt, err)
	}
	return attempt, nil
}

var builders = sync.Pool{New: func() any { return &builder{buf: make([]byte, 0, 1<<10)} }}

func (r *Request) build(b *builder) {
	b.str(`{"id":`, r.ID.String())
	b.str(`,"gw":`, r.Gateway)
	if r.Tenant != "" {
		b.str(`,"tenant":`, r.Tenant)
	}
	b.str(`,"tier":`, r.Tier)
	b.str(`,"model":`, r.Model)
	if r.ModelAt != (ModelAt{}) {
		b.str(`,"model_at":{"in":`, string(r.ModelAt.In))
		b.int(`,"from":`, int64(r.ModelAt.From))
		b.int(`,"to":`, int64(r.ModelAt.To))
		b.lit(`}`)
	}
	if r.AdapterOf != "" {
		b.str(`,"adapter_of":`, r.AdapterOf)
	}
	b.str(`,"pool":`, r.Pool)
	b.int(`,"deadline":`, r.Deadline)
	b.str(`,"method":`, r.Method)
	b.str(`,"path":`, r.Path)
	if len(r.Header) > 0 {
		b.header(`,"header":`, r.Header)
	}
	b.bool(`,"stream":`, r.Stream)
	b.int(`,"in":`, int64(r.InputTokens))
	if r.MaxOutput != 0 {
		b.int(`,"out":`, int64(r.MaxOutput))
	}
	b.int(`,"size":`, r.BodySize)
	b.bool(`,"ref":`, r.ByReference)
	b.lit(`}`)
}

// read reads what build has written. If it returns false, r may be partly filled.
func (r *Request) read(meta string) bool {
	j := reader{meta}
	return j.lit(`{"id":`) && j.id(&r.ID) &&
		j.lit(`,"gw":`) && j.str(&r.Gateway) &&
		(!j.lit(`,"tenant":`) || j.str(&r.Tenant)) &&
		j.lit(`,"tier":`) && j.str(&r.Tier) &&
		j.lit(`,"model":`) && j.str(&r.Model) &&
		(!j.lit(`,"model_at":{"in":`) || j.str((*string)(&r.ModelAt.In)) &&
			j.lit(`,"from":`) && j.int(&r.ModelAt.From) && j.lit(`,"to":`) && j.int(&r.ModelAt.To) && j.lit(`}`)) &&
		(!j.lit(`,"adapter_of":`) || j.str(&r.AdapterOf)) &&
		j.lit(`,"pool":`) && j.str(&r.Pool) &&
		j.lit(`,"deadline":`) && j.int64(&r.Deadline) &&
		j.lit(`,"method":`) && j.str(&r.Method) &&
		j.lit(`,"path":`) && j.str(&r.Path) &&
		(!j.lit(`,"header":`) || j.header(&r.Header)) &&
		j.lit(`,"stream":`) && j.bool(&r.Stream) &&
		j.lit(`,"in":`) && j.int(&r.InputTokens) &&
		(!j.lit(`,"out":`) || j.int(&r.MaxOutput)) &&
		j.lit(`,"size":`) && j.int64(&r.BodySize) &&
		j.lit(`,"ref":`) && j.bool(&r.ByReference) &&
		j.rest == `}`
}

// ParseRequest parses the Request of a delivered message. Its path starts with a slash, so that it
// can follow an engine's host and port.
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

// Sender returns the id and the gateway of a delivered Request without parsing the rest. If it
// returns false, only ParseRequest can tell.
func Sender(m *nats.Msg) (id ID, gateway string, ok bool) {
	h := m.Header[HeaderRequest]
	if len(h) != 1 {
		return id, "", false
	}
	j := reader{h[0]}
	ok = j.lit(`{"id":`) && j.id(&id) && j.lit(`,"gw":`) && j.str(&gateway)
	return id, gateway, ok
}

// ParsePublishAck parses the broker's ack of a published Request. It returns the sequence of the
// message, or why the broker did not store it, in most cases as a *jetstream.APIError.
func ParsePublishAck(m *nats.Msg) (seq uint64, err error) {
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
		return 0, fmt.Errorf("parse the broker's ack: %w", err)
	case a.Error != nil:
		return 0, a.Error
	case a.Seq == 0:
		return 0, errors.New("the broker's ack has no sequence")
	}
	return a.Seq, nil
}

// BodyRequest asks a gateway for a piece of a body that it holds. The answer is the bytes from Offset on, as many as
// fit; an empty answer means that the gateway does not hold the request any more.
type BodyRequest struct {
	ID     ID    `json:"id"`
	Offset int64 `json:"offset"`
}

// ID is a request's id, a UUIDv7.
type ID = uuid.UUID

// NewID makes a request id.
func NewID() ID { return uuid.Must(uuid.NewV7()) }

// ParseID parses an id in its canonical form only.
func ParseID(s string) (ID, error) {
	if len(s) != 36 {
		return ID{}, fmt.Errorf("request id %q: must be a UUID", s)
	}
	id, err := uuid.Parse(s)
	if err != nil {
		return ID{}, fmt.Errorf("request id %q: %w", s, err)
	}
	return id, nil
}

// Delivery is what the ack subject of a delivery contains.
type Delivery struct {
	Stream, Consumer string
	Delivered        uint64 // number of deliveries including this one and those that were handed back
	StreamSeq        uint64
	ConsumerSeq      uint64
	Stored           time.Time // by the broker's clock; zero if that cannot be parsed
	Pending          uint64    // messages that wait behind it in its queue
}

// ParseAck parses an ack subject, in the form with or without domain and account hash. It may be published to: it has no
// wildcard and no white space.
func ParseAck(subject string) (Delivery, error) {
	t, ok := strings.CutPrefix(subject, "$JS.ACK.")
	dots := strings.Count(t, ".")
	if !ok || dots != 6 && dots < 8 || !literal(t) {
		return Delivery{}, fmt.Errorf("%q is not an ack subject", subject)
	}
	next := func() (token string) {
		token, t, _ = strings.Cut(t, ".")
		return token
	}
	if dots >= 8 {
		next() // domain
		next() // account
	}
	d := Delivery{Stream: next(), Consumer: next()}
	if d.Stream == "" || d.Consumer == "" {
		return Delivery{}, fmt.Errorf("%q is not an ack subject", subject)
	}
	for _, p := range []*uint64{&d.Delivered, &d.StreamSeq, &d.ConsumerSeq, nil, &d.Pending} {
		token := next()
		if p == nil {
			if stored, err := strconv.ParseInt(token, 10, 64); err == nil {
				d.Stored = time.Unix(0, stored)
			}
			continue
		}
		v, err := strconv.ParseUint(token, 10, 64)
		if err != nil {
			return Delivery{}, fmt.Errorf("%q is not an ack subject: %w", subject, err)
		}
		*p = v
	}
	return d, nil
}

// literal reports whether a subject has neither a wildcard nor white space nor control characters.
func literal(subject string) bool {
	for i := range len(subject) {
		if c := subject[i]; c <= ' ' || c >= 0x7f || c == '*' || c == '>' {
			return false
		}
	}
	return true
}

// AckSubject is the subject on which a party that did not receive a delivery can settle it. consumerSeq may be any
// sequence that is not above the consumer's last delivery and above its ack floor; the last delivery works.
func AckSubject(stream, consumer string, streamSeq, consumerSeq uint64) string {
	return fmt.Sprintf("$JS.ACK.%s.%s.1.%d.%d.0.0", stream, consumer, streamSeq, consumerSeq)
}

// The payloads that settle a delivery.
var (
	Ack        = []byte("+ACK")
	Nak        = []byte("-NAK")
	InProgress = []byte("+WPI")
)

// NakAfter is the payload that hands a delivery back after a delay.
func NakAfter(d time.Duration) []byte {
	if d <= 0 {
		return Nak
	}
	return fmt.Appendf(nil, `-NAK {"delay":%d}`, d.Nanoseconds())
}

// Term is the payload that removes a delivery from the queue for good, with the reason.
func Term(reason string) []byte { return []byte("+TERM " + reason) }

// EndToEnd removes hop-by-hop headers.
func EndToEnd(h http.Header) {
	for _, named := range h["Connection"] {
		for name := range strings.SplitSeq(named, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, k := range hopByHop {
		delete(h, k)
	}
}

var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// MediaType is a header's content type in lower case, without parameters.
func MediaType(h http.Header) string {
	ct, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(ct))
}

// canonical merges the spellings of each header name into the canonical one. The result is never nil.
func canonical(h http.Header) http.Header {
	same := h != nil
	for k := range h {
		same = same && http.CanonicalHeaderKey(k) == k
	}
	if same {
		return h
	}
	out := make(http.Header, len(h))
	for _, k := range slices.Sorted(maps.Keys(h)) {
		c := http.CanonicalHeaderKey(k)
		out[c] = append(out[c], h[k]...)
	}
	return out
}
