package gpu

import (
	"errors"
	"strings"
)

// Kind says why the GPUs cannot be read.
type Kind string

// The kinds of failure.
const (
	// Unsupported: this build does not contain NVML.
	Unsupported Kind = "unsupported"
	// NoGPU: the machine has neither an NVIDIA device nor NVML.
	NoGPU Kind = "no-gpu"
	// NoLibrary: the machine has a GPU, or this is a container, but NVML is missing.
	NoLibrary Kind = "no-library"
	// NoDriver: NVML is installed, but the kernel module is not loaded.
	NoDriver Kind = "no-driver"
	// NoAccess: the container has NVML, but not the devices.
	NoAccess Kind = "no-access"
	// Mismatch: NVML and the loaded kernel module have different versions.
	Mismatch Kind = "version-mismatch"
	// NoPermission: the user may not open the devices.
	NoPermission Kind = "no-permission"
	// Crashed: the probe exited.
	Crashed Kind = "crashed"
	// Silent: the probe, or the driver, does not answer.
	Silent Kind = "silent"
	// NoneVisible: the environment hides all GPUs.
	NoneVisible Kind = "none-visible"
	// NotThere: NVML does not show a GPU that gpus= names.
	NotThere Kind = "not-there"
	// Other is any other failure.
	Other Kind = "other"
)

// Failure says why the GPUs cannot be read, and what to do about it.
type Failure struct {
	Kind Kind `json:"kind"`
	// Detail is the underlying error.
	Detail string `json:"detail,omitempty"`
	// Container says whether this process runs in a container.
	Container bool `json:"container,omitempty"`
}

// Error returns the failure as a sentence, with the detail.
func (f *Failure) Error() string {
	text := map[Kind]string{
		Unsupported:  "this build of pulley cannot read GPUs",
		NoGPU:        "no NVIDIA GPU found",
		NoLibrary:    "NVML not found (libnvidia-ml.so.1, a library of the NVIDIA driver)",
		NoDriver:     "the NVIDIA driver is not loaded",
		NoAccess:     "this container has no access to the NVIDIA devices",
		Mismatch:     "NVML and the loaded NVIDIA driver have different versions",
		NoPermission: "this user may not open the NVIDIA devices",
		Crashed:      "the GPU probe exited",
		Silent:       "the GPU probe does not answer",
		NoneVisible:  "the environment hides all GPUs",
		NotThere:     "a GPU named by gpus= was not found",
		Other:        "NVML failed",
	}[f.Kind]
	if f.Detail != "" {
		text += ": " + f.Detail
	}
	return text
}

// NoSuchLibrary is the end of the detail if the library that --nvml-library names does not exist.
const NoSuchLibrary = "no such library"

const intoContainer = "start the container with the NVIDIA runtime (--gpus all, or runtimeClassName: nvidia) and NVIDIA_DRIVER_CAPABILITIES=utility,compute"

// Remedy says what to do. Whatever the failure, a worker keeps running: it then relies
// on its engine alone, unless --nvml required says otherwise.
func (f *Failure) Remedy() string {
	switch f.Kind {
	case Unsupported:
		return "use a release for Linux, or build it on Linux with CGO_ENABLED=1 and -ldflags='-extldflags=-Wl,-z,lazy'"
	case NoGPU:
		if f.Container {
			return "if this host should have a GPU, " + intoContainer + "; otherwise ignore this"
		}
		return "if this host should have a GPU, check that 'lspci' shows it; otherwise ignore this"
	case NoLibrary:
		if strings.HasSuffix(f.Detail, NoSuchLibrary) {
			return "set --nvml-library to the driver's libnvidia-ml.so.1, or remove the flag"
		}
		if f.Container {
			return intoContainer
		}
		return "install the user space part of the driver (nvidia-utils, or libnvidia-compute-VERSION), or set --nvml-library to its path"
	case NoDriver:
		return "load the kernel module: 'lsmod | grep nvidia', then 'modprobe nvidia'; after a kernel update the module may have to be rebuilt"
	case NoAccess:
		return "recreate the container with --gpus all or the device plugin; a container loses access when systemd reloads its units, see the NVIDIA container toolkit on --device and cgroups"
	case Mismatch:
		return "the driver was upgraded while the old one was loaded: stop all processes that use the GPUs and reload the nvidia modules, or restart the machine"
	case NoPermission:
		return "allow this user to open /dev/nvidiactl and /dev/nvidia0, by their group or NVreg_DeviceFileMode"
	case Crashed:
		if strings.Contains(f.Detail, "undefined symbol") {
			return "unset LD_BIND_NOW and link pulley with -extldflags=-Wl,-z,lazy; if it exits only later, report the version of the driver"
		}
		return "it is restarted automatically; if it keeps exiting, check that nvidia-smi works"
	case Silent:
		return "check that nvidia-smi answers; if it hangs too, the driver hangs, see 'dmesg | grep -i nvrm'"
	case NoneVisible:
		return "check NVIDIA_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES"
	case NotThere:
		return "run 'pulley gpu ls --local' to see which GPUs exist, and correct gpus= of --engine"
	}
	return "check that nvidia-smi works, and see 'dmesg | grep -i nvrm'"
}

// Diagnose returns the Failure that err is or wraps, or a Failure of kind Other. It returns nil for nil.
func Diagnose(err error) *Failure {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	return &Failure{Kind: Other, Detail: err.Error()}
}
