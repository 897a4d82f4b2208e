// Package gpu reports the state of this machine's GPUs: whether one is lost, faulty, hot or throttled, and how much
// memory it has. The state is used as a gate, and to estimate a worker before it has measured anything. How many
// requests there is capacity for is the engine's to report, not this package's.
//
// # Who calls NVML
//
// NVIDIA's library kills the process that calls a function which the installed driver lacks, blocks a call for as long
// as the driver hangs, and cannot be replaced while a process has it open. So it runs in a child process, `pulley
// gpu-probe`, which prints a [Reading] as a line of JSON each interval, and at once when a GPU reports an XID. A
// [Sampler] starts the child, reads it, restarts it with growing pauses when it dies, and abandons it when it is stuck:
// a child in an uninterruptible call cannot even be killed, so the Sampler does not wait for it. The child ends when
// its standard input does, which includes the death of its parent.
//
// Package gpu/probe is the child. It alone calls NVML, which needs cgo; this package, and every
// package that imports it, is plain Go.
//
// A client of NVML keeps the kernel module in use: before the driver is unloaded, stop the workers
// of a machine or run them with NVML off.
//
// # A missing value is not zero
//
// Hardly two GPUs answer the same questions, so each value that may be missing is a pointer. It is nil if the GPU, the
// driver, its version or missing permissions do not provide the value. An H100 has all of them; one that is split into
// MIG instances has no utilisation and no remapped rows; a GeForce has no ECC; a GB10 or a Jetson has no memory of its
// own, and the machine's memory is given instead, marked Host.
//
// # What the signals mean
//
//	signal                what it shows                         what it does not show
//	Lost, Recovery,       the GPU cannot continue: fence it     -
//	Rows.Failed, XIDs
//	ECC.Uncorrected       growth means lost data: fence it      old errors are history
//	Rows.Pending          a repair waits for the next reset     it is no reason to stop
//	Throttle, hardware    heat or power holds the clocks back   -
//	or thermal bits
//	Throttle, power cap   an H100 at work                       a problem
//	Memory.Free           another process has taken memory      capacity for requests, see below
//	Utilization.GPU       zero, with requests running: the      capacity for requests, see below
//	                      engine hangs
//	Bandwidth             roughly how fast it will decode: the  how fast it is
//	                      initial weight of a worker
//
// Free memory is not headroom. vLLM, SGLang and TensorRT-LLM take 90 % of it when they start and
// never give it back: it is the same with no requests and with hundreds. It is informative only for
// engines that allocate as they go (Ollama, llama.cpp), and for memory taken by other processes.
//
// Utilisation is not headroom either. It is the share of time in which at least one kernel ran, and decoding a single
// request keeps it near 100 %, as decoding two hundred does. Memory utilisation is such a share too, not a bandwidth.
//
// # Which GPUs
//
// Devices are identified by UUID, since NVML's numbers are not CUDA's. [Visible] applies
// NVIDIA_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES.
//
// # Building
//
// NVML needs Linux and cgo. The child of another build reports that it cannot read GPUs
// ([Unsupported]), and is not started again.
package gpu
