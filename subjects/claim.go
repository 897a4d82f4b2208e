package subjects

import (
	"fmt"
	"strconv"
	"strings"
)

// Claim tells a gateway that a worker starts an attempt of a request. The worker does not wait for
// an answer before it calls the engine.
type Claim struct {
	ID      ID     `json:"id"`
	Attempt uint64 `json:"attempt,string"` // the worker's random mark of the attempt
	Worker  string `json:"worker"`
	Name    string `json:"name"` // the worker's name
	Ack     string `json:"ack"`  // ack subject of the delivery, where the gateway settles failures
}

// Bytes is the claim as JSON.
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
	Granted     Verdict = "go"        // only this attempt's frames reach the client. Never sent
	Gone        Verdict = "gone"      // the request is over: remove the message
	Elsewhere   Verdict = "elsewhere" // another attempt is running: leave the message to it
	OtherWorker Verdict = "not-you"   // this worker failed it before: hand the message back for another
)

// Refusal is the answer to a Claim that is not granted. A granted claim gets no answer: it would
// cost every request a message that no worker waits for.
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

// Alive lists, once a second and for each gateway, the attempts that a worker runs for it. It shows
// that the worker is running while an engine is silent, and reveals frames that were lost at the
// end of an attempt.
type Alive struct {
	Worker   string         `json:"worker"`
	Attempts []AliveAttempt `json:"attempts"`
}

type AliveAttempt struct {
	ID      ID     `json:"id"`
	Attempt uint64 `json:"attempt,string"`
	Sent    uint32 `json:"sent"` // messages sent so far
}
