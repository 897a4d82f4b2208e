package gpu

import (
	"fmt"
	"time"
)

// XID is an error of a GPU that the driver has reported.
type XID struct {
	// Seq grows from one XID to the next. It is set by the [Sampler].
	Seq  uint64    `json:"seq,omitempty"`
	At   time.Time `json:"at"`
	Code int       `json:"code"`
	// GPUInstance and ComputeInstance identify the part of the GPU; nil for all of it.
	GPUInstance     *int `json:"gpu_instance,omitempty"`
	ComputeInstance *int `json:"compute_instance,omitempty"`
}

func (x XID) String() string {
	if name := xidNames[x.Code]; name != "" {
		return fmt.Sprintf("XID %d (%s)", x.Code, name)
	}
	return fmt.Sprintf("XID %d", x.Code)
}

// severity is the consequence of an XID.
type severity int

const (
	harmless severity = iota // it is only shown
	suspect                  // the engine's health must be checked
	fatal                    // the GPU must not be used
)

// severity is fatal for an unknown XID, since few are harmless.
func (x XID) severity() severity {
	switch x.Code {
	case 13, 31, 43, 45, 109: // faults of a program: its process dies, the GPU continues
		return suspect
	case 68: // the video decoder, which no engine needs
		return harmless
	case 63, 92: // memory was repaired, or its errors were corrected
		return harmless
	case 154: // the recovery action has changed; Snapshot.Recovery has the new one
		return harmless
	}
	return fatal
}

// Within reports whether an XID concerns a device: all of its GPU, or its instance.
func (x XID) Within(d Device) bool {
	if d.Instance == nil || x.GPUInstance == nil {
		return true
	}
	return *x.GPUInstance == d.Instance.GPUInstance &&
		(x.ComputeInstance == nil || *x.ComputeInstance == d.Instance.ComputeInstance)
}

// xidNames names the XIDs that an operator may see.
var xidNames = map[int]string{
	13: "graphics engine exception", 31: "memory page fault", 43: "stopped processing", 45: "preemptive cleanup",
	48: "double bit ECC error", 61: "microcontroller breakpoint", 62: "microcontroller halt", 63: "memory row remapped",
	64: "row remapping failed", 68: "video processor exception", 74: "NVLink error", 79: "fallen off the bus",
	92: "many corrected ECC errors", 94: "contained ECC error", 95: "uncontained ECC error", 109: "context switch timeout",
	119: "GSP timeout", 120: "GSP error", 140: "unrecovered ECC error", 154: "recovery action changed",
}
