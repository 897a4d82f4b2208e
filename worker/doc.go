// Package worker is the agent beside one engine. It bids for requests while
// the engine has room, runs what it is given, and streams the answer back.
//
// The way of a request: a bid that bids.go parked is answered by the queue
// (Worker.deliver) → an attempt begins: it claims the request at the gateway
// that holds the client, and at once calls the engine (attempt.go) → the
// engine's answer goes out in frames as it arrives (outlet.go), watched for an
// early end (stream.go) → the attempt is settled, measured (learn.go), and its slot bids
// again. Beside that, health.go tells the world every half second how the
// worker is, and asks the engine.
//
// How many requests there may be is room.go's: it asks the credit of package
// policy with what the engine says of itself, what NVML says of its GPUs
// (fence.go), and how fast tokens come (pace.go). Where a GPU or the engine is ill,
// a fence stops the bids at once, and the running requests finish or move on.
//
// Of an engine that swaps models, swap.go says which ones requests may be taken of
// now, and what a load adds to the price: see policy.Swap.
//
// What there is to bid on, lanes.go works out anew whenever the engine's models,
// the policy (policy.go) or the gateways' references change: for each tier, the
// shared lane of each pool and the worker's own home lane in it, the shared lanes
// of pools that spill over to here, and the home lanes of others. Bids are never
// taken back, so whatever an operator stops, a request that still comes by one is
// handed back at once and is another worker's.
package worker
