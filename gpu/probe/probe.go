// Package probe reads the GPUs of this machine through NVML. It is the one
// package that calls it, and with it links cgo; [gpu.Sampler] runs it in a process
// of its own, and says why.
//
// Within the process each GPU has a goroutine of its own, so that one that does not
// answer keeps no other from answering; every function is looked up in the
// library before it is called; what a GPU does not support is asked again only
// after ten minutes. Each second: memory, utilisation, temperature, power,
// clocks, throttling. Each ten seconds, and after an XID: ECC, remapped rows, the
// recovery action. Each thirty seconds, since it holds the driver's lock for
// milliseconds: processes. Each minute, and after any error: who is there.
// Nothing is ever written to a GPU.
//
// NVML needs Linux and cgo. Elsewhere, and with CGO_ENABLED=0, [Run] says that this
// build cannot. The library's functions are resolved as they are called, so a
// binary with it must be linked lazily: with -ldflags='-extldflags=-Wl,-z,lazy'
// where a toolchain hardens by default. One linked with -z now, or started with
// LD_BIND_NOW=1, dies before main.
package probe

import "time"

// Config says how to read the GPUs.
type Config struct {
	// Library is the path of libnvidia-ml.so.1. Default: where
	// the loader finds it, or where driver containers and WSL have it.
	Library string
	// All reads the devices too that the environment hides. Default false.
	All bool
	// Interval is how often to read. What changes slowly, or costs much, is read
	// each 10, 30 and 60 intervals. Default 1 s.
	Interval time.Duration
}
