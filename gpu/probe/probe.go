// Package probe reads the GPUs of this machine through NVML. It is the only package that calls
// NVML, and that links cgo for it; [gpu.Sampler] runs it in a process of its own, and says why.
//
// Within the process each GPU has a goroutine of its own, so that a GPU that does not answer does not hold up the
// others. Every function is looked up in the library before it is called. What a GPU does not support is asked for
// again only after ten minutes. Every second the probe reads memory, utilisation, temperature, power, clocks and
// throttling; every ten seconds, and after an XID, ECC errors, remapped rows and the recovery action; every thirty
// seconds, because it holds the driver's lock for milliseconds, the processes; every minute, and after any error, which
// GPUs and instances there are. Nothing is ever written to a GPU.
//
// NVML needs Linux and cgo. Elsewhere, and with CGO_ENABLED=0, [Run] reports that this build cannot
// read GPUs. The library's functions are resolved when they are called, so a binary with this
// package must be linked lazily: with -ldflags='-extldflags=-Wl,-z,lazy' where a toolchain hardens
// by default. A binary linked with -z now, or started with LD_BIND_NOW=1, dies before main.
package probe

import "time"

// Config says how to read the GPUs.
type Config struct {
	// Library is the path of libnvidia-ml.so.1. Default: where the loader finds it, or where driver
	// containers and WSL have it.
	Library string
	// All includes the devices that the environment hides. Default false.
	All bool
	// Interval is how often to read. Values that change slowly or cost much are read every 10, 30
	// or 60 intervals. Default 1 s.
	Interval time.Duration
}
