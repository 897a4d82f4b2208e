package subjects

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

// A direct connection carries the messages of a link past the broker: the worker opens it to the gateway. It begins with a
// DirectHello of the worker and a DirectWelcome of the gateway; then the worker sends messages of its link, and the gateway
// LinkAcks.

// DirectOffer tells a worker where a gateway takes its messages directly. It is sent on WorkerDirect, and used at most once.
type DirectOffer struct {
	Gateway     string `json:"gateway"`
	Address     string `json:"address"`               // host:port
	Offer       string `json:"offer"`                 // names it
	Secret      []byte `json:"secret"`                // both sides prove that they know it, and neither sends it
	Certificate []byte `json:"certificate,omitempty"` // SHA-256 of the certificate that the gateway shows; empty: there is no TLS
}

// DirectHello is the worker's first message on a direct connection.
type DirectHello struct {
	Offer  string `json:"offer"`
	Worker string `json:"worker"`
	Proof  []byte `json:"proof"` // WorkerProof
}

// DirectWelcome is the gateway's answer to a DirectHello.
type DirectWelcome struct {
	Proof []byte `json:"proof"` // GatewayProof
}

// WorkerProof shows that a worker knows the secret of an offer.
func WorkerProof(secret []byte, worker string) []byte { return proof(secret, "worker "+worker) }

// GatewayProof shows that a gateway does.
func GatewayProof(secret []byte, gateway string) []byte { return proof(secret, "gateway "+gateway) }

func proof(secret []byte, of string) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(of))
	return h.Sum(nil)
}

// DirectHeader is the length of what comes before each message on a direct connection: its length, without these bytes.
const DirectHeader = 4

// MaxDirect bounds a message on a direct connection.
const MaxDirect = 2 * MaxFrame

// PutDirectHeader writes the length of the message that follows the first DirectHeader bytes of b there.
func PutDirectHeader(b []byte) { binary.BigEndian.PutUint32(b, uint32(len(b)-DirectHeader)) }

// Direct returns v as a message of a direct connection, as JSON.
func Direct(v any) []byte {
	b := append(make([]byte, DirectHeader), MustMarshal(v)...)
	PutDirectHeader(b)
	return b
}

// ReadDirect reads the next message of a direct connection, of at most so many bytes. The caller may keep it.
func ReadDirect(r io.Reader, most int) ([]byte, error) {
	var head [DirectHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if int64(n) > int64(most) {
		return nil, fmt.Errorf("%w: message of %d bytes, at most %d are expected", ErrFrame, n, most)
	}
	msg := make([]byte, n)
	if _, err := io.ReadFull(r, msg); err != nil {
		return nil, fmt.Errorf("message of %d bytes: %w", n, err)
	}
	return msg, nil
}
