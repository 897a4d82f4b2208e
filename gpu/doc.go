// Package gpu says how the GPUs of this machine are: whether one is lost, ill,
// hot or held back, and how much memory it has. It is a gate and a prior. How
// much room there is for requests is the engine's to say, not this package's.
//
// # Who calls NVML
//
// NVIDIA's library kills the process that calls a function which the installed
// driver lacks, blocks a call for as long as the driver hangs, and cannot be
// replaced under a process that has it open. So it lives in a child process,
// `pulley gpu-probe`, that prints a [Reading] as a line of JSON each
// interval, and at once when a GPU reports an XID. A [Sampler] starts it, reads
// it, starts it again with growing pauses when it dies, and gives it up when it
// is stuck: a child in an uninterruptible call cannot even be killed, so nobody
// waits for it. The child ends when its standard input does, as it does when its
// parent dies.
//
// What the child does is package gpu/probe. It alone calls NVML, which takes cgo;
// this package is plain Go, and whoever imports it stays so.
//
// A client of NVML keeps the kernel module in use: stop the workers of a machine,
// or run them with NVML off, before the driver is unloaded.
//
// # What is absent is not zero
//
// Hardly two GPUs answer the same questions, so each value that may be missing
// is a pointer, and nil where the GPU, the driver, its age or missing rights do not
// give it. An H100 has all of them; one split into MIG instances has no
// utilisation and no remapped rows; a GeForce no ECC; a GB10 or a Jetson no memory
// of its own, and the machine's is given instead, marked Host.
//
// # What the signals mean
//
//	signal                what it tells                         what it does not
//	Lost, Recovery,       the GPU cannot go on: fence it        -
//	Rows.Failed, XIDs
//	ECC.Uncorrected       if it grows, data was lost: fence     old errors are history
//	Rows.Pending          a repair waits for the next reset     it is no reason to stop
//	Throttle, hardware    heat or power holds the clocks back   -
//	or thermal bits
//	Throttle, power cap   an H100 at work                       that anything is wrong
//	Memory.Free           that another process took memory      room for requests, see below
//	Utilization.GPU       zero, with requests running: the      room for requests, see below
//	                      engine hangs
//	Bandwidth             how fast it will decode, about: the   how fast it is
//	                      prior of a worker's weight
//
// Free memory is not headroom. vLLM, SGLang and TensorRT-LLM take 90 % of it when
// they start and never give it back: it is the same with none and with hundreds
// of requests. It tells something only of engines that allocate as they go
// (Ollama, llama.cpp), and of strangers.
//
// Utilisation is not headroom either. It is the share of time in which at least
// one kernel ran, and decoding a single request keeps it near 100 %, as decoding
// two hundred does. Memory utilisation is such a share too, not a bandwidth.
//
// # Which GPUs
//
// Devices are known by UUID: NVML's numbers are not CUDA's. [Visible] is what
// NVIDIA_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES leave.
//
// # Building
//
// NVML needs Linux and cgo. A child of another build says that it cannot
// ([Unsupported]), and is asked no more.
package gpu
