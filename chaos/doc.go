// Package chaos strikes a fleet under load and shows what becomes of every request. It is for tests: nothing that is shipped
// imports it.
//
// [Run] starts the parts as processes of the built binary: one broker or three, gateways, and workers with simulated
// engines. Clients send requests at a steady rate and compare each token with the one that is due. An injector strikes one
// part after the other, as a seed decides. What the clients, the engines and the injector note is a [History].
//
//	clients ── gateways ──╫── brokers ──╫── workers ──╫── engines
//	                   proxies of ours that cut and delay
//
// Engines and proxies run in the harness's own process, so that all notes have one clock, and none is lost in a crash.
//
// [Check] looks for what must not be in a history: see the Rules. It asks nothing but the history, so a kept one can be
// checked again by a later checker. A fault excuses only what its [Effect] lists: a killed worker breaks the streams that it
// had, and no other ones. A fault that struck nothing is a violation itself, since the run shows nothing about it.
//
// The bounds are promises to users, not measurements: they stay when a run fails.
//
//	make chaos                                      a short run
//	make chaos SEED=7 FOR=10m FAULTS='broker-*' BROKERS=3
//	go test ./chaos -run TestFaults -history FILE   check a history again
//
// [SoakRun] puts a fleet under an even load and counts what its parts have; [Series.Growth] says whether that grows.
//
// The same seed gives the same requests and the same faults in the same order, with the same targets and durations. When
// exactly they meet depends on the machine, so a failure may take several runs with its seed to come back; the history of
// the run that failed is kept.
package chaos
