package gpu

import (
	"encoding/json"
	"fmt"
	"time"
)

// Reading is everything that a probe knows at a moment, one line of its output.
type Reading struct {
	// At is when it was written; each snapshot has its own time.
	At time.Time `json:"at"`
	// State is the freshness of the reading, set by [Sampler.Latest].
	State State `json:"state,omitempty"`
	// Driver and NVML are versions.
	Driver string `json:"driver,omitempty"`
	NVML   string `json:"nvml,omitempty"`
	// GPUs are the visible devices, see [Visible], or all devices if the probe was asked for them.
	GPUs []Snapshot `json:"gpus"`
	// Partial says that some GPU has not answered since the probe started: devices may be missing.
	Partial bool `json:"partial,omitempty"`
	// Notes describe doubts about which devices are visible.
	Notes []string `json:"notes,omitempty"`
	// Failure is why there is no newer reading, or none at all.
	Failure *Failure `json:"failure,omitempty"`
}

// GPU finds a device by its UUID.
func (r Reading) GPU(uuid string) (Snapshot, bool) {
	for _, s := range r.GPUs {
		if s.UUID == uuid {
			return s, true
		}
	}
	return Snapshot{}, false
}

// State says how far a value can be trusted.
type State string

// The states.
const (
	// Fresh values are at most three intervals old.
	Fresh State = "fresh"
	// Stale values are older: nothing should grow because of them.
	Stale State = "stale"
	// Unknown values are older than half a minute, or missing: they count as if there were no NVML.
	Unknown State = "unknown"
)

// unknownAfter is the age at which a value becomes Unknown.
const unknownAfter = 30 * time.Second

// stateAt is the state of a value that is read every interval.
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

// parseReading parses a line of a probe that has just arrived. The child's clock may be set while
// it runs, so the times in a line are converted to this process's clock, which is monotonic.
func parseReading(line []byte, now time.Time) (Reading, error) {
	var r Reading
	if err := json.Unmarshal(line, &r); err != nil {
		return Reading{}, fmt.Errorf("parse GPU probe line: %w", err)
	}
	if r.At.IsZero() {
		return Reading{}, fmt.Errorf("parse GPU probe line: no time")
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
