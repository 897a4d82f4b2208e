package chaos

import (
	"encoding/json"
	"fmt"
	"os"
)

// Format is the version of the form of a History in a file.
const Format = 1

// Seconds is a time since the start of a run, or a duration.
type Seconds float64

// History is all that is known of a run. It is enough for [Check], which asks nothing else.
type History struct {
	Format   int         `json:"format"`
	Seed     uint64      `json:"seed"`
	Brokers  int         `json:"brokers"`
	Gateways int         `json:"gateways"`
	Engines  []Slots     `json:"engines"`
	Pace     Seconds     `json:"pace"`  // between two tokens of an engine
	Ended    Seconds     `json:"ended"` // when the last request had ended and the queue had been looked at
	Requests []Request   `json:"requests"`
	Runs     []Execution `json:"runs"`
	Faults   []Fault     `json:"faults"`
	Left     Left        `json:"left"`
	Lags     []Lag       `json:"lags,omitempty"` // of the machine
	Bug      string      `json:"bug,omitempty"`  // that the binary had on purpose
}

// Slots is an engine with the number of requests that its worker runs at once.
type Slots struct {
	Engine string `json:"engine"`
	Slots  int    `json:"slots"`
}

// Request is what one client asked and got.
type Request struct {
	ID       string  `json:"id"`
	Kind     string  `json:"kind,omitempty"` // KindPoison, KindCancel, or empty
	Gateway  string  `json:"gateway"`        // that took it
	Stream   bool    `json:"stream,omitempty"`
	Tier     string  `json:"tier,omitempty"` // empty: the default tier
	Tokens   int     `json:"tokens"`         // that it asked for
	Sent     Seconds `json:"sent"`
	First    Seconds `json:"first,omitempty"` // first token; 0: none came
	End      Seconds `json:"end"`             // 0: it never ended
	Pause    Seconds `json:"pause,omitempty"` // the longest time between two tokens
	PauseEnd Seconds `json:"pauseEnd,omitempty"`
	Outcome  Outcome `json:"outcome"`
	Status   int     `json:"status,omitempty"`
	Code     string  `json:"code,omitempty"`    // of the error
	NoRetry  bool    `json:"noRetry,omitempty"` // x-should-retry: false
	Got      int     `json:"got"`               // right tokens
	Detail   string  `json:"detail,omitempty"`
}

// The kinds of requests that are not plain.
const (
	KindPoison = "poison" // it crashes the engine that runs it
	KindCancel = "cancel" // its client leaves in the middle
)

// Outcome is how a request ended for its client.
type Outcome string

const (
	Answered  Outcome = "answered"  // all tokens, and the end
	Refused   Outcome = "refused"   // an error in place of an answer
	Broken    Outcome = "broken"    // an answer that ended with an error event or a broken connection; or a connection that broke before
	Cancelled Outcome = "cancelled" // the client left, as planned
	Lost      Outcome = "lost"      // nothing within the client's time-out
	Wrong     Outcome = "wrong"     // a token that is not the one that was due
	Truncated Outcome = "truncated" // an end as of a whole answer, without all tokens
	Repeated  Outcome = "repeated"  // something after the end
)

// Execution is one run of a request on an engine.
type Execution struct {
	Request string  `json:"request"`
	Engine  string  `json:"engine"`
	Start   Seconds `json:"start"`
	End     Seconds `json:"end"`
	How     How     `json:"how"`
}

// How is how a run ended.
type How string

const (
	Finished How = "finished" // all was written
	Aborted  How = "aborted"  // the worker closed the connection
	Failed   How = "failed"   // the engine broke it off: a fault
)

// Fault is one fault as it was injected.
type Fault struct {
	Kind   string  `json:"kind"`
	Target string  `json:"target"`
	Start  Seconds `json:"start"`
	Healed Seconds `json:"healed"` // when the part worked again, or the network did
	Effect string  `json:"effect"` // what shows that it took effect
	Err    string  `json:"err,omitempty"`
}

// Lag is a time in which the harness itself did not get on, since the machine had no time for it. It excuses nothing, but says
// how much to make of times that are a little too long.
type Lag struct {
	At  Seconds `json:"at"`
	For Seconds `json:"for"`
}

// Left is what the broker still has at the end.
type Left struct {
	Waiting int    `json:"waiting"`         // requests in the streams of the tiers
	First   string `json:"first,omitempty"` // the first of these: its stream, sequence, and what it is
	Dead    int    `json:"dead"`            // dead letters
	Err     string `json:"err,omitempty"`
}

// Load reads a history that Save wrote.
func Load(file string) (*History, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	h := new(History)
	if err := json.Unmarshal(b, h); err != nil {
		return nil, fmt.Errorf("history %s: %w", file, err)
	}
	if h.Format != Format {
		return nil, fmt.Errorf("history %s: format %d, this checker reads %d", file, h.Format, Format)
	}
	return h, nil
}

// Save writes the history to a file.
func (h *History) Save(file string) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o644)
}
