package subjects

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
)

// Headers of a message in a request stream.
const (
	HeaderRequest = "Pulley-Request" // a Request as one line of JSON
	HeaderMsgID   = "Nats-Msg-Id"    // the request id: a repeated publish is recognised
	HeaderTTL     = "Nats-TTL"       // seconds until the client's deadline: dead requests leave by themselves
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
	Affinity    string      `json:"affinity,omitempty"`
	InputTokens int         `json:"in"` // estimate: body bytes / 4, at least 1
	MaxAttempts int         `json:"max_attempts"`
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
	wire := *r
	wire.Header = wireHeader(r.Header)
	meta, err := json.Marshal(&wire)
	if err != nil {
		return nil, fmt.Errorf("encode request %s: %w", r.ID, err)
	}
	m := &nats.Msg{
		Subject: Req(r.Tier, r.Pool, lane),
		Header: nats.Header{
			HeaderRequest: {string(meta)},
			HeaderMsgID:   {r.ID.String()},
		},
	}
	if ttl > 0 {
		m.Header[HeaderTTL] = []string{strconv.FormatInt(int64((ttl+time.Second-1)/time.Second), 10)}
	}
	if !r.ByReference {
		m.Data = body
	}
	return m, nil
}

// ParseRequest reads the Request of a delivered message. Its path begins with a
// slash, so that it can follow an engine's host and port.
func ParseRequest(m *nats.Msg) (*Request, error) {
	h := m.Header[HeaderRequest]
	if len(h) != 1 {
		return nil, fmt.Errorf("message on %s: no %s header", m.Subject, HeaderRequest)
	}
	r := new(Request)
	if err := json.Unmarshal([]byte(h[0]), r); err != nil {
		return nil, fmt.Errorf("message on %s: %s: %w", m.Subject, HeaderRequest, err)
	}
	if !strings.HasPrefix(r.Path, "/") {
		return nil, fmt.Errorf("message on %s: path %q: must begin with a slash", m.Subject, r.Path)
	}
	if r.BodySize < 0 {
		return nil, fmt.Errorf("message on %s: body of %d bytes", m.Subject, r.BodySize)
	}
	fromWire(r.Header)
	return r, nil
}

// BodyWant asks a gateway for a piece of a body held there. The answer is the
// bytes from Offset on, as many as fit; an empty answer means that the gateway
// does not hold the request any more.
type BodyWant struct {
	ID     ID    `json:"id"`
	Offset int64 `json:"offset"`
}
