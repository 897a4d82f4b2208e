package gpu

import (
	"encoding/json"
	"fmt"
	"time"
)

// Reading is all that a probe knows at a moment: a line of its output.
type Reading struct {
	// At is when it was written down; each snapshot says when it was taken.
	At time.Time `json:"at"`
	// State says how old the reading is. It is set by [Sampler.Latest].
	State State `json:"state,omitempty"`
	// Driver and NVML are versions.
	Driver string `json:"driver,omitempty"`
	NVML   string `json:"nvml,omitempty"`
	// GPUs are the devices that are visible, see [Visible], or all of them if the
	// probe was asked for that.
	GPUs []Snapshot `json:"gpus"`
	// Partial says that some GPU has not answered since the probe began: devices
	// may be missing.
	Partial bool `json:"partial,omitempty"`
	// Notes are what is doubtful about which devices are visible.
	Notes []string `json:"notes,omitempty"`
	// Failure is why there is nothing newer, or nothing at all.
	Failure *Failure `json:"failure,omitempty"`
}

// GPU finds the device of a UUID.
func (r Reading) GPU(uuid string) (Snapshot, bool) {
	for _, s := range r.GPUs {
		if s.UUID == uuid {
			return s, true
		}
	}
	return Snapshot{}, false
}

// State is how far a value can be trusted.
type State string

// The states.
const (
	// Fresh values are at most three intervals old.
	Fresh State = "fresh"
	// Stale ones are older: nothing should grow on their word.
	Stale State = "stale"
	// Unknown is what is older than half a minute, or was never there: as if
	// there were no NVML.
	Unknown State = "unknown"
)

// unknownAfter is the age at which a value says nothing any more.
const unknownAfter = 30 * time.Second

// stateAt is the state of a value of a time, taken anew each interval.
func stateAt(taken, now time.Time, interval time.Duration) State {
	age := now.Sub(taken)
	switch {
	case taken.IsZero() || age > max(unknownAfter, 4*interval):
		return Unknown
	case age > 3*interval:
		return Stale
	}
	return Fresh
}

// parseReading reads a line of a probe that has come now. The child's clock may
// be set while it runs, so the times in a line are moved to our own, which grows
// steadily.
func parseReading(line []byte, now time.Time) (Reading, error) {
	var r Reading
	if err := json.Unmarshal(line, &r); err != nil {
		return Reading{}, fmt.Errorf("a line of the GPU probe: %w", err)
	}
	if r.At.IsZero() {
		return Reading{}, fmt.Errorf("a line of the GPU probe: it has no time")
	}
	written := r.At
	moved := func(t time.Time) time.Time {
		if t.IsZero() {
			return t
		}
		return now.Add(-max(0, written.Sub(t)))
	}
	r.At = now
	for i := range r.GPUs {
		s := &r.GPUs[i]
		s.At = moved(s.At)
		for j := range s.XIDs {
			s.XIDs[j].At = moved(s.XIDs[j].At)
		}
	}
	return r, nil
}
