// Package fleet measures how Pulley scales: what a broker and gateways, each a process of its own, cost with many workers,
// pools, gateways and open streams, and how fast a request finds a worker.
//
// The workers are real ones, each with a connection of its own to the broker, but all of them in one process, with simulated
// engines that they call without a network ([RunWorkers]). A measurement ([Run]) is a list of cases. Each starts its
// processes, waits until every gateway knows every worker, measures the idle fleet, puts its load on the gateways, and ends
// the processes.
//
// Pickup is the time from a request's arrival at its gateway until a worker has claimed it, by the gateway's own clock: it
// contains the gateway's checks, the broker's ack, the delivery and the way of the claim.
package fleet
