// Package worker is the agent beside one engine. It bids for requests while the
// engine has capacity, runs those that it gets, and streams their answers back.
//
// # The way of a request
//
// The queue answers a bid (bidder.go, lane.go) with a delivery (run.go). If the bid still holds, an attempt begins:
// it takes a slot (capacity.go), claims the request at the gateway that holds the client, and at once calls the engine.
// The answer of the engine goes to the gateway in frames as it comes, no faster than the client takes it (respond.go).
// Nothing of it is sent before a part of it shows content or an error: an answer that is none fails the attempt (failure.go).
// At the end the slot is free, the measured times change the price (estimate.go), and the worker bids again. The
// gateway settles the delivery.
//
// Calls that need no slot, such as to count tokens, come straight from a gateway and not from the queue (cheap.go). They are
// attempts without anything of that: no bid, claim, slot, estimate or failure of the worker.
//
// # Owners
//
// Each part of the state has one owner:
//
//	presence   the worker's state, the engine's health, the pools whose requests fail (failing.go), the operator's orders, the known gateways and whether they can be reached
//	bidder     lanes with their open bids, tiers, how old deliveries are, what the policy and the gateways say about pools; decides what to bid on, at which price, and which deliveries to accept
//	capacity   the adaptive limit, how many requests the engine was seen to run at once, its load, GPUs (gpus.go), loaded models (models.go), data-parallel ranks (ranks.go), the time between tokens; decides how many requests there may be, and whether any may start
//	estimator  how long prompts and tokens take, and which requests wait for their first token
//	attempts   what runs or has just ended, and which requests should not be attempted here again for now (attempts.go)
//	link       what was sent to one gateway and is not acknowledged (link.go), and by which way: through the broker, or past it (direct.go)
//	vitals     whether the engine works, hangs or is frozen, by what it shows while it has requests; when to probe it
//
// An owner knows neither the Worker nor another owner. It takes values and returns values; it does not publish, log, or
// call anything else. So each is tested without a connection. The Worker asks the owners one after the other, and then
// acts. Of an attempt, only capacity uses its slot, and only the estimator its timing.
//
// The metrics (metrics.go) are of all workers of a process; what is observed for each token takes no lock.
// Where traces are wanted, each attempt has a span (trace.go), below that of its gateway and above those of the engine.
//
// The identity (identity.go) is the worker's id, and finds out about other processes that have the same one. It has no state.
//
// # Locks
//
// Each owner has one mutex. None is taken while another is held, so there is no lock
// order. None is held while the worker publishes, logs, or calls back.
//
// Three things are in sequence without a lock. Bids reach the broker in the order in which the bidder recorded them,
// because one goroutine at a time plans and publishes: see Worker.bid. And no two deliveries take the same slot,
// because the goroutine of the subscription handles them one after the other. And the messages of a link are published in
// the order of their numbers, by one goroutine at a time: see link.send.
//
// A read of a stream takes one lock, that of capacity, for the time between tokens; if the gateway is in another process,
// also that of its link.
// Everything else that other goroutines read of a stream is atomic: bytes taken by the
// client, messages sent, first and last byte. So are the curves that price bids.
//
// # Goroutines
//
// Run starts these loops, and waits for them before it returns:
//
//	bidLoop           plans bids when time alone changes something
//	policyLoop        follows the operator's policy
//	Scraper.Run       asks the engine for its health, its load and its models
//	publishHeartbeat  twice a second, and after a change of the worker's state
//	(in Run)          every 3 s, and when the engine goes down or up: writes the worker's entry in the membership bucket
//	publishAlive      every second, and with a new connection: lists to each gateway what runs for it, renews leases, stops what
//	                  is silent
//	loader.run        loads the models that capacity chooses, one after the other, without a request
//	loader.remember   every 3 s: reads what was measured of the engine before the start, and writes what is new
//	lookAtVitals      ten times a second: whether the engine hangs, and the fence if it does
//	lookAtCapacity    four times a second: GPUs, adaptive limit, fence
//	links.tend        four times a second, unless this worker hears nobody: sends again what gateways have not acknowledged,
//	                  asks whether those are there for which something runs, stops what runs for those that are gone
//	brokerconn.Watch  asks the NATS server whether it is there: five times a second, unless something comes from it; while
//	                  nothing runs, after each heartbeat
//	vitals.run        sends the engine a request for one token, when that is due: one at a time for each pool
//
// Attempts run on the goroutines of runners, which end with Run, and so do those of direct connections, one for each. To
// stop, the worker accepts nothing new and waits for the attempts; then it ends the loops; and at last it publishes the
// heartbeat that it has left. This one follows the last frames on the same connection: see package subjects, Signs of life.
package worker
