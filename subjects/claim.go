package subjects

import (
	"fmt"
	"strconv"
	"strings"
)

// Claim is a worker's word to the gateway that it starts on a request. The
// worker does not wait for an answer before it calls the engine.
type Claim struct {
	ID      ID     `json:"id"`
	Attempt uint64 `json:"attempt,string"` // the worker's random mark of this start
	Worker  string `json:"worker"`
	Name    string `json:"name"` // the worker's name for people
	Ack     string `json:"ack"`  // the delivery's ack subject: the gateway settles failures there
}

// Bytes is the claim as it travels.
func (c *Claim) Bytes() ([]byte, error) {
	b := builder{buf: make([]byte, 0, 256)}
	b.lit(`{"id":`)
	b.str(c.ID.String())
	b.lit(`,"attempt":"`)
	b.buf = strconv.AppendUint(b.buf, c.Attempt, 10)
	b.lit(`","worker":`)
	b.str(c.Worker)
	b.lit(`,"name":`)
	b.str(c.Name)
	b.lit(`,"ack":`)
	b.str(c.Ack)
	b.lit(`}`)
	return b.buf, b.err
}

// ParseClaim reads a claim.
func ParseClaim(data []byte) (*Claim, error) {
	c := new(Claim)
	if !c.read(string(data)) {
		*c = Claim{}
		if err := Unmarshal(data, c); err != nil {
			return nil, fmt.Errorf("claim: %w", err)
		}
	}
	c.Worker = strings.Clone(c.Worker) // it is remembered for long, the rest is not
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
		j.rest == `}`) {
		return false
	}
	n, err := strconv.ParseUint(attempt, 10, 64)
	c.Attempt = n
	return err == nil
}

// Verdict is a gateway's answer to a claim.
type Verdict string

const (
	Granted     Verdict = "go"        // this attempt is the one; only its frames reach the client. Never sent
	Gone        Verdict = "gone"      // nobody waits for it any more: remove the message
	Elsewhere   Verdict = "elsewhere" // another attempt runs: leave the message to it
	OtherWorker Verdict = "not-you"   // this worker failed it before: hand it back for another
)

// Refusal is the answer to a Claim that is not granted. A granted one has no
// answer: it would cost every request a message that no worker waits for.
type Refusal struct {
	Verdict Verdict `json:"verdict"`
	Ack     string  `json:"ack"`                // as in the claim
	DelayMS int64   `json:"delay_ms,omitempty"` // NotYou: hand back after this long
}

// Cancel tells a worker to abort an attempt, on WorkerCancel.
type Cancel struct {
	ID      ID     `json:"id"`
	Attempt uint64 `json:"attempt,string"`
	Reason  string `json:"reason"`
}

// WindowUpdate tells a worker how many body bytes of an attempt the client has taken
// so far, on WorkerCredit. A worker sends at most Window bytes beyond that.
type WindowUpdate struct {
	ID      ID     `json:"id"`
	Attempt uint64 `json:"attempt,string"`
	Taken   int64  `json:"taken"`
}

// Window bounds, in bytes, what one attempt may have under way to a client that
// does not read. 256 KiB is an hour of one token stream.
const Window = 256 << 10

// Alive lists, once a second and for each gateway, the attempts that a worker
// runs for it. It proves that the worker goes on while an engine is silent, and
// tells of frames lost at the end.
type Alive struct {
	Worker   string         `json:"worker"`
	Attempts []AliveAttempt `json:"attempts"`
}

type AliveAttempt struct {
	ID      ID     `json:"id"`
	Attempt uint64 `json:"attempt,string"`
	Sent    uint32 `json:"sent"` // messages sent so far
}

// Delivery is what an ack subject tells of a delivery.
type Delivery struct {
	Stream, Consumer string
	Delivered        uint64 // how often, this one included; bounces count
	StreamSeq        uint64
	ConsumerSeq      uint64
	Pending          uint64 // messages that wait behind it in its queue
}

// ParseAck reads an ack subject, in the form with or without domain and
// account hash.
func ParseAck(subject string) (Delivery, error) {
	t, ok := strings.CutPrefix(subject, "$JS.ACK.")
	dots := strings.Count(t, ".")
	if !ok || dots != 6 && dots < 8 {
		return Delivery{}, fmt.Errorf("%q is no ack subject", subject)
	}
	next := func() (token string) {
		token, t, _ = strings.Cut(t, ".")
		return token
	}
	if dots >= 8 {
		next() // the domain
		next() // the account
	}
	d := Delivery{Stream: next(), Consumer: next()}
	if d.Stream == "" || d.Consumer == "" {
		return Delivery{}, fmt.Errorf("%q is no ack subject", subject)
	}
	for _, p := range []*uint64{&d.Delivered, &d.StreamSeq, &d.ConsumerSeq, nil, &d.Pending} {
		token := next()
		if p == nil { // the time
			continue
		}
		v, err := strconv.ParseUint(token, 10, 64)
		if err != nil {
			return Delivery{}, fmt.Errorf("%q is no ack subject: %w", subject, err)
		}
		*p = v
	}
	return d, nil
}

// AckSubject is the subject on which a delivered message can be settled by
// somebody who did not receive it. consumerSeq is any sequence not above the
// consumer's last delivery and above its ack floor; its last delivery serves.
func AckSubject(stream, consumer string, streamSeq, consumerSeq uint64) string {
	return fmt.Sprintf("$JS.ACK.%s.%s.1.%d.%d.0.0", stream, consumer, streamSeq, consumerSeq)
}
