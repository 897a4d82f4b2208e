package probe

import (
	"fmt"

	"github.com/pulley-lb/pulley/gpu"
)

// The values returned by NVML that matter here.
const (
	retUninitialized = 1
	retInvalid       = 2
	retNotSupported  = 3
	retNoPermission  = 4
	retNotFound      = 6
	retNotLoaded     = 9
	retTimeout       = 10
	retNoLibrary     = 12
	retNoFunction    = 13
	retLost          = 15
	retResetRequired = 16
	retOS            = 17
	retMismatch      = 18
	retVersion       = 25
	retUnknown       = 999
	retNotInLibrary  = -1 // not one of NVML's: the library lacks the function
)

// returned is the text for a value that NVML returned. NVML's own function for that may be missing.
func returned(ret int) string {
	text, ok := map[int]string{
		retUninitialized: "not initialised", retInvalid: "invalid argument", retNotSupported: "not supported",
		retNoPermission: "no permission", retNotFound: "not found", retNotLoaded: "driver not loaded", retTimeout: "timeout",
		retNoLibrary: "library not found", retNoFunction: "function not found", retLost: "GPU is lost",
		retResetRequired: "GPU requires a reset", retOS: "blocked by the operating system",
		retMismatch: "driver and library versions differ", retVersion: "unknown version of an argument", retUnknown: "unknown error",
		retNotInLibrary: "not in this library",
	}[ret]
	if !ok {
		return fmt.Sprintf("NVML error %d", ret)
	}
	return text
}

// failureToInit is why NVML could not be initialised.
func failureToInit(ret int, h host) *gpu.Failure {
	f := &gpu.Failure{Kind: gpu.Other, Container: h.container()}
	kernel := h.kernelDriver()
	switch ret {
	case retNoLibrary:
		f.Kind = gpu.NoLibrary
		if kernel == "" && !h.hardware() && !h.deviceNodes() { // a container sees those of its host
			f.Kind = gpu.NoGPU
		}
		return f
	case retMismatch:
		f.Kind = gpu.Mismatch
		if kernel != "" {
			f.Detail = "the driver that is loaded is " + kernel
		}
		return f
	case retNoPermission:
		f.Kind = gpu.NoPermission
	case retNotLoaded:
		f.Kind = gpu.NoDriver
		if f.Container || kernel != "" && !h.deviceNodes() {
			f.Kind = gpu.NoAccess
		}
	case retOS, retUnknown:
		if f.Container {
			f.Kind = gpu.NoAccess
		}
	}
	f.Detail = returned(ret)
	return f
}
