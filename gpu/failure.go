package gpu

import (
	"errors"
	"strings"
)

// Kind is why nothing can be learnt of the GPUs.
type Kind string

// The kinds of failure.
const (
	// Unsupported is a build without NVML.
	Unsupported Kind = "unsupported"
	// NoGPU is a machine with neither an NVIDIA device nor NVML.
	NoGPU Kind = "no-gpu"
	// NoLibrary is a machine with a GPU, or a container, without NVML.
	NoLibrary Kind = "no-library"
	// NoDriver is NVML without the kernel's part of the driver.
	NoDriver Kind = "no-driver"
	// NoAccess is a container that has the library and not the devices.
	NoAccess Kind = "no-access"
	// Mismatch is a library of another version than the loaded driver.
	Mismatch Kind = "version-mismatch"
	// NoPermission is a user who may not open the devices.
	NoPermission Kind = "no-permission"
	// Crashed is a probe that died.
	Crashed Kind = "crashed"
	// Silent is a probe, or a driver, that does not answer.
	Silent Kind = "silent"
	// NoneVisible is an environment that leaves no GPU.
	NoneVisible Kind = "none-visible"
	// NotThere is a GPU that an engine is said to run on, and that NVML does not
	// show.
	NotThere Kind = "not-there"
	// Other is anything else.
	Other Kind = "other"
)

// Failure is why nothing can be learnt of the GPUs, with what to do about it.
type Failure struct {
	Kind Kind `json:"kind"`
	// Detail is what exactly went wrong.
	Detail string `json:"detail,omitempty"`
	// Container says that it went wrong in a container.
	Container bool `json:"container,omitempty"`
}

// Error is a sentence.
func (f *Failure) Error() string {
	text := map[Kind]string{
		Unsupported:  "this build of pulley cannot read GPUs",
		NoGPU:        "there is no NVIDIA GPU here",
		NoLibrary:    "NVML, the NVIDIA driver's library libnvidia-ml.so.1, is not here",
		NoDriver:     "the NVIDIA driver is not loaded",
		NoAccess:     "this container has no access to the NVIDIA devices",
		Mismatch:     "NVML and the loaded NVIDIA driver are of different versions",
		NoPermission: "this user may not open the NVIDIA devices",
		Crashed:      "the GPU probe died",
		Silent:       "the GPU probe does not answer",
		NoneVisible:  "the environment leaves no GPU",
		NotThere:     "a GPU that the engine is said to run on is not here",
		Other:        "NVML does not work",
	}[f.Kind]
	if f.Detail != "" {
		text += ": " + f.Detail
	}
	return text
}

// NoSuchLibrary is how the detail ends if it is the library that was named which
// is not there.
const NoSuchLibrary = "is no such library"

const intoContainer = "start the container with the NVIDIA runtime, such as with --gpus all or runtimeClassName: nvidia, and with NVIDIA_DRIVER_CAPABILITIES=utility,compute"

// Remedy is what to do, in a sentence or a few. Whatever the failure, a worker
// goes on without: by its engine's word alone.
func (f *Failure) Remedy() string {
	switch f.Kind {
	case Unsupported:
		return "use a release for Linux, or build it on Linux with CGO_ENABLED=1 and -ldflags='-extldflags=-Wl,-z,lazy'"
	case NoGPU:
		if f.Container {
			return "there is nothing to do if there should be none; else " + intoContainer
		}
		return "there is nothing to do if there should be none"
	case NoLibrary:
		if strings.HasSuffix(f.Detail, NoSuchLibrary) {
			return "name the driver's libnvidia-ml.so.1 with --nvml-library, or leave that out"
		}
		if f.Container {
			return intoContainer
		}
		return "install the driver's user space part (nvidia-utils, or libnvidia-compute and its version), or say where it is with --nvml-library"
	case NoDriver:
		return "see that the kernel has it: 'lsmod | grep nvidia', then 'modprobe nvidia'; after a kernel update the module may have to be built anew"
	case NoAccess:
		return "create the container anew, with --gpus all or the device plugin; one that had access loses it when systemd reloads its units, see the NVIDIA container toolkit on --device and cgroups"
	case Mismatch:
		return "the driver was upgraded while the old one was loaded: stop what uses the GPUs and reload the nvidia modules, or restart the machine"
	case NoPermission:
		return "let this user open /dev/nvidiactl and /dev/nvidia0: a group that owns them, or NVreg_DeviceFileMode"
	case Crashed:
		if strings.Contains(f.Detail, "undefined symbol") {
			return "unset LD_BIND_NOW and link pulley with -extldflags=-Wl,-z,lazy; if it dies only later, report the driver's version"
		}
		return "it is started again; if it goes on dying, see whether nvidia-smi works"
	case Silent:
		return "see whether nvidia-smi answers; if it hangs too, the driver hangs, and 'dmesg | grep -i nvrm' says why"
	case NoneVisible:
		return "see NVIDIA_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES"
	case NotThere:
		return "see with 'pulley gpu ls --local' what is there, and correct gpus= of --engine"
	}
	return "see whether nvidia-smi works, and what 'dmesg | grep -i nvrm' says"
}

// Diagnose is the failure in an error: err itself, what it wraps, or one of kind
// Other. It is nil for nil.
func Diagnose(err error) *Failure {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	return &Failure{Kind: Other, Detail: err.Error()}
}
