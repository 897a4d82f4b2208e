package gpu

import (
	"fmt"
	"time"
)

// Device identifies a GPU, or a MIG instance of one.
type Device struct {
	// UUID is NVIDIA's identifier, GPU-… or MIG-…. It is empty for a GPU that was lost before it could be asked.
	UUID string `json:"uuid"`
	// Index is NVML's number of the GPU, in the order of the PCI bus. It is not CUDA's, and may
	// change when a GPU disappears.
	Index int    `json:"index"`
	Name  string `json:"name,omitempty"`
	// BusID is the address on the PCI bus, such as 00000000:3B:00.0.
	BusID string `json:"bus_id,omitempty"`
	// Architecture is the family, such as "hopper"; Compute is the CUDA compute capability, such as "9.0".
	Architecture string `json:"architecture,omitempty"`
	Compute      string `json:"compute,omitempty"`
	// MemoryTotal is in bytes.
	MemoryTotal *uint64 `json:"memory_total,omitempty"`
	// Bandwidth is the memory bandwidth in bytes per second, computed from the width of the bus and
	// the highest clock: within a few percent of the data sheet.
	Bandwidth *float64 `json:"bandwidth,omitempty"`
	// Split says that the GPU is in MIG mode: work runs only on its instances.
	Split bool `json:"split,omitempty"`
	// Instance is set for a MIG instance.
	Instance *Instance `json:"instance,omitempty"`
}

// Instance is a part of a GPU that MIG has split.
type Instance struct {
	// Parent is the UUID of the GPU.
	Parent string `json:"parent"`
	// Number is the instance's number on the GPU, from 0.
	Number int `json:"number"`
	// GPUInstance and ComputeInstance are the ids that the driver uses in error reports.
	GPUInstance     int `json:"gpu_instance"`
	ComputeInstance int `json:"compute_instance"`
	// Profile is the size, such as "3g.40gb".
	Profile string `json:"profile,omitempty"`
}

// referenceBandwidth is that of an A100 with 80 GB, whose weight is 1.
const referenceBandwidth = 2039e9

// Weight is roughly how fast a device decodes, where an A100 with 80 GB is 1. Decoding reads all weights of the model
// for each token, so the memory bandwidth bounds it. It returns false if the bandwidth is unknown.
func (d Device) Weight() (float64, bool) {
	if d.Bandwidth == nil {
		return 0, false
	}
	return *d.Bandwidth / referenceBandwidth, true
}

// Label is the short name of a device: the GPU's index, or index:number for a MIG instance.
func (d Device) Label() string {
	if d.Instance != nil {
		return fmt.Sprintf("%d:%d", d.Index, d.Instance.Number)
	}
	return fmt.Sprint(d.Index)
}

// Snapshot is the state of a device at a moment. A nil field is one that the GPU, its driver or our
// permissions do not provide.
//
// A MIG instance has memory and processes of its own; temperature, power, clocks, throttling, ECC,
// recovery action and loss are those of its GPU.
type Snapshot struct {
	Device
	// At is when the GPU last answered, or was found lost; zero if it has not answered yet.
	At time.Time `json:"at"`
	// State is the freshness of the snapshot, set by [Sampler.Latest].
	State State `json:"state,omitempty"`
	// Load identifies the present load of the driver: it changes when the driver is reloaded or the
	// machine starts. Empty if unknown.
	Load string `json:"load,omitempty"`
	// Lost, if not empty, says that the GPU cannot be used any more: "is lost", "requires a reset"
	// or "is no longer there".
	Lost string `json:"lost,omitempty"`

	Memory      *Memory      `json:"memory,omitempty"`
	Utilization *Utilization `json:"utilization,omitempty"`
	// Temperature and MemoryTemperature are in degrees Celsius; Margin is how many are left before the GPU slows down.
	Temperature       *int `json:"temperature,omitempty"`
	MemoryTemperature *int `json:"memory_temperature,omitempty"`
	Margin            *int `json:"margin,omitempty"`
	// Power is the power drawn, PowerLimit the enforced limit, in watts.
	Power      *float64 `json:"power,omitempty"`
	PowerLimit *float64 `json:"power_limit,omitempty"`
	// SMClock and MemoryClock are in MHz.
	SMClock     *int      `json:"sm_clock,omitempty"`
	MemoryClock *int      `json:"memory_clock,omitempty"`
	Throttle    *Throttle `json:"throttle,omitempty"`
	ECC         *ECC      `json:"ecc,omitempty"`
	Rows        *Rows     `json:"rows,omitempty"`
	Recovery    *Recovery `json:"recovery,omitempty"`

	// WatchesXIDs says that XIDs are reported. Without it, an empty XIDs means nothing.
	WatchesXIDs bool `json:"watches_xids"`
	// XIDs are the errors that the driver has reported, oldest first. From a [Sampler] they are the
	// most recent ones since it started; in the child's lines, those since the line before.
	XIDs []XID `json:"xids,omitempty"`
	// Processes compute on the device; nil if unknown. In a container their ids are those of the host.
	Processes []Process `json:"processes,omitzero"`
}

// Memory is in bytes. Used, Free and Reserved add up to Total.
type Memory struct {
	Total uint64 `json:"total"`
	// Used includes what the driver keeps for itself, unless that is in Reserved.
	Used     uint64  `json:"used"`
	Free     uint64  `json:"free"`
	Reserved *uint64 `json:"reserved,omitempty"`
	// Host says that the GPU has no memory of its own and that this is the machine's memory.
	Host bool `json:"host,omitempty"`
}

// Utilization is the percentage of the driver's last sampling period (at most a second) in which any kernel ran, and in
// which memory was accessed at all. It does not show how much of the GPU was used.
type Utilization struct {
	GPU    int `json:"gpu"`
	Memory int `json:"memory"`
}

// ECC counts memory errors since the driver was loaded.
type ECC struct {
	Corrected   *uint64 `json:"corrected,omitempty"`
	Uncorrected *uint64 `json:"uncorrected,omitempty"`
}

// Rows says how many faulty memory rows were replaced by spare rows.
type Rows struct {
	Correctable   int `json:"correctable"`
	Uncorrectable int `json:"uncorrectable"`
	// Pending says that a row will be replaced at the next reset. It does no harm until then.
	Pending bool `json:"pending"`
	// Failed says that no spare row was left: the GPU must be replaced.
	Failed bool `json:"failed"`
}

// Recovery is what the driver requests for the GPU.
type Recovery int

// The recovery actions. Newer drivers have more.
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

// Process is a process that computes on a device.
type Process struct {
	PID    int     `json:"pid"`
	Memory *uint64 `json:"memory,omitempty"` // bytes
}
