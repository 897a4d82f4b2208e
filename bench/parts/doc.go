// Package parts starts the parts of Pulley, simulated engines and the plain reverse proxy as processes of their own on free
// loopback ports, and reads what each costs: CPU time, context switches, memory. The benchmarks that measure real processes
// share it.
//
// A [Set] owns the processes of a measurement: [With] ends all of them, in the reverse order of their start, before it
// returns. Each is in a process group of its own, so that Ctrl-C in a terminal reaches this process alone and the parts are
// ended in order. On Linux the kernel ends them if this process is killed.
package parts
