package gpu

import (
	"fmt"
	"time"
)

// Device says which GPU, or which MIG instance of one, a snapshot is of.
type Device struct {
	// UUID is what NVIDIA calls it, GPU-… or MIG-…. It is empty for a GPU that was
	// lost before anyone could ask.
	UUID string `json:"uuid"`
	// Index is NVML's number of the GPU, in the order of the PCI bus. It is not
	// CUDA's, and may change when a GPU goes.
	Index int    `json:"index"`
	Name  string `json:"name,omitempty"`
	// BusID is the address on the PCI bus, such as 00000000:3B:00.0.
	BusID string `json:"bus_id,omitempty"`
	// Architecture is the family, such as "hopper", and Compute the CUDA compute
	// capability, such as "9.0".
	Architecture string `json:"architecture,omitempty"`
	Compute      string `json:"compute,omitempty"`
	// MemoryTotal is in bytes.
	MemoryTotal *uint64 `json:"memory_total,omitempty"`
	// Bandwidth of its memory in bytes per second, from the width of the bus and
	// the highest clock: within a few percent of the data sheet.
	Bandwidth *float64 `json:"bandwidth,omitempty"`
	// Split says that the GPU is in MIG mode: work runs on its instances only.
	Split bool `json:"split,omitempty"`
	// Instance is set for a MIG instance.
	Instance *Instance `json:"instance,omitempty"`
}

// Instance is a part of a GPU that MIG has split.
type Instance struct {
	// Parent is the UUID of the GPU.
	Parent string `json:"parent"`
	// Number counts the GPU's instances from 0.
	Number int `json:"number"`
	// GPUInstance and ComputeInstance are the ids by which the driver reports
	// errors.
	GPUInstance     int `json:"gpu_instance"`
	ComputeInstance int `json:"compute_instance"`
	// Profile is the size, such as "3g.40gb".
	Profile string `json:"profile,omitempty"`
}

// referenceBandwidth is that of an A100 with 80 GB, which weighs 1.
const referenceBandwidth = 2039e9

// Weight is how fast a device decodes, about, where an A100 with 80 GB is 1.
// Decoding reads all weights of the model for each token, so that the bandwidth
// of the memory bounds it. It is false if that is unknown.
func (d Device) Weight() (float64, bool) {
	if d.Bandwidth == nil {
		return 0, false
	}
	return *d.Bandwidth / referenceBandwidth, true
}

// Label is the short name of a device: the GPU's index, or index:number for a
// MIG instance.
func (d Device) Label() string {
	if d.Instance != nil {
		return fmt.Sprintf("%d:%d", d.Index, d.Instance.Number)
	}
	return fmt.Sprint(d.Index)
}

// Snapshot is how a device was at a moment. A nil field is one that the GPU, its
// driver or our rights do not give.
//
// A MIG instance has memory and processes of its own; temperature, power,
// clocks, throttling, ECC, recovery action and loss are those of its GPU.
type Snapshot struct {
	Device
	// At is when the GPU last answered, or was found lost; zero if it has not yet.
	At time.Time `json:"at"`
	// State says how old that is. It is set by [Sampler.Latest].
	State State `json:"state,omitempty"`
	// Load identifies the present load of the driver: it changes when the driver
	// is loaded anew or the machine starts. Empty if that cannot be told.
	Load string `json:"load,omitempty"`
	// Lost, if not empty, says that the GPU cannot be used any more: "is lost",
	// "requires a reset" or "is no longer there".
	Lost string `json:"lost,omitempty"`

	Memory      *Memory      `json:"memory,omitempty"`
	Utilization *Utilization `json:"utilization,omitempty"`
	// Temperature and MemoryTemperature are in degrees Celsius; Margin is how many
	// are left until the GPU slows down.
	Temperature       *int `json:"temperature,omitempty"`
	MemoryTemperature *int `json:"memory_temperature,omitempty"`
	Margin            *int `json:"margin,omitempty"`
	// Power drawn, and the limit in force, in watts.
	Power      *float64 `json:"power,omitempty"`
	PowerLimit *float64 `json:"power_limit,omitempty"`
	// SMClock and MemoryClock are in MHz.
	SMClock     *int      `json:"sm_clock,omitempty"`
	MemoryClock *int      `json:"memory_clock,omitempty"`
	Throttle    *Throttle `json:"throttle,omitempty"`
	ECC         *ECC      `json:"ecc,omitempty"`
	Rows        *Rows     `json:"rows,omitempty"`
	Recovery    *Recovery `json:"recovery,omitempty"`

	// WatchesXIDs says that XIDs are reported: without it, none in XIDs means
	// nothing.
	WatchesXIDs bool `json:"watches_xids"`
	// XIDs are the errors that the driver has reported, oldest first. From a
	// [Sampler] they are the last ones since it began, in the child's lines those
	// since the line before.
	XIDs []XID `json:"xids,omitempty"`
	// Processes that compute on the device; nil if unknown. In a container the ids
	// are not ours.
	Processes []Process `json:"processes,omitzero"`
}

// Memory is in bytes. Used, Free and Reserved add up to Total.
type Memory struct {
	Total uint64 `json:"total"`
	// Used holds what the driver keeps for itself too, unless that is in Reserved.
	Used     uint64  `json:"used"`
	Free     uint64  `json:"free"`
	Reserved *uint64 `json:"reserved,omitempty"`
	// Host says that the GPU has no memory of its own and this is the machine's.
	Host bool `json:"host,omitempty"`
}

// Utilization is in percent of the time since the driver last looked, at most a
// second: in which any kernel ran, and in which memory was touched at all. It
// says nothing of how much of the GPU was in use.
type Utilization struct {
	GPU    int `json:"gpu"`
	Memory int `json:"memory"`
}

// ECC counts memory errors since the driver was loaded.
type ECC struct {
	Corrected   *uint64 `json:"corrected,omitempty"`
	Uncorrected *uint64 `json:"uncorrected,omitempty"`
}

// Rows says how often broken memory was replaced by spare rows.
type Rows struct {
	Correctable   int `json:"correctable"`
	Uncorrectable int `json:"uncorrectable"`
	// Pending says that a row is replaced at the next reset: no harm until then.
	Pending bool `json:"pending"`
	// Failed says that no spare row was left: the GPU has to be exchanged.
	Failed bool `json:"failed"`
}

// Recovery is what the driver wants done to the GPU.
type Recovery int

// The recovery actions. Newer drivers know more.
const (
	RecoveryNone Recovery = iota
	RecoveryReset
	RecoveryReboot
	RecoveryDrainPeers
	RecoveryDrainAndReset
)

func (r Recovery) String() string {
	switch r {
	case RecoveryNone:
		return "none"
	case RecoveryReset:
		return "reset the GPU"
	case RecoveryReboot:
		return "restart the machine"
	case RecoveryDrainPeers:
		return "drain its peers"
	case RecoveryDrainAndReset:
		return "drain and reset the GPU"
	}
	return fmt.Sprintf("action %d", int(r))
}

// Process computes on a device.
type Process struct {
	PID    int     `json:"pid"`
	Memory *uint64 `json:"memory,omitempty"` // bytes
}
