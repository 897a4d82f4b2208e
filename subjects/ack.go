package subjects

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Delivery is what the ack subject of a delivery contains.
type Delivery struct {
	Stream, Consumer string
	Delivered        uint64 // number of deliveries including this one and those that were handed back
	StreamSeq        uint64
	ConsumerSeq      uint64
	Pending          uint64 // messages that wait behind it in its queue
}

// ParseAck parses an ack subject, in the form with or without domain and account hash.
func ParseAck(subject string) (Delivery, error) {
	t, ok := strings.CutPrefix(subject, "$JS.ACK.")
	dots := strings.Count(t, ".")
	if !ok || dots != 6 && dots < 8 {
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
		if p == nil { // timestamp
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

// AckSubject is the subject on which a party that did not receive a delivery can settle it.
// consumerSeq may be any sequence that is not above the consumer's last delivery and above its ack
// floor; the last delivery works.
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
