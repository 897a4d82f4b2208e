// Package gateway is the HTTP ingress. It holds the client's connection, puts each request on the queue, grants it to one
// worker at a time, and writes that worker's answer to the client.
//
// # The way of a request
//
// Each step is a call from the one before it. The handler's own goroutine goes all the way; only claims, frames and
// acks arrive on others, which note them on the request and wake its handler.
//
//	http.go       normal: the one spelling of the path; ingress.infer: id, caller, whether the path is open, body
//	keys.go         keyring.authenticate: whose key it is
//	admit.go      admission.admit: model, tier, patience → where to → limits → queue; makes the request
//	route.go        router.route: the pool and the lane
//	route.go        affinity.find: which worker has the conversation cached
//	length.go       lengths.lane: the lane of those workers that have room for it, if not all of them have
//	fleet.go        fleet.pool: the slots of the pool
//	queue.go        queue.admit: whether the request may wait
//	serve.go      server.serve: enqueue, publish when the ticket is granted, follow, retry, move, finish
//	queue.go        queue.enqueue: publish now, or hold the request and give it a ticket
//	publisher.go    publisher.publish: the message in the tier's stream
//	dispatch.go   dispatcher: a worker's claim, then its frames, and the broker's ack
//	link.go         links.onMessage: what a worker of another process sends, once and in order
//	request.go      request.claim, request.onFrames: arbitrates, and keeps the frames for the handler
//	answer.go     answer: head, data, end; error, last event or broken connection
//
// A call that needs no slot leaves this way after admit.go: cheap.go sends it straight to a worker.
//
// The other files are for what not every request meets: fairness.go for what several gateways decide together about a
// queue, usage.go for what they exchange about keys, mirror.go for copies, control.go for operators, lanes.go for the
// consumers in the broker, streams.go for its streams, stall.go for what a lost message holds up, watch.go for what follows
// from a change in the fleet, late.go for requests whose engine shows nothing, policy.go for the policy, patience.go for how
// long clients wait, linger.go for bodies that are refused early, explain.go for receipts, shifts.go for routes that shift,
// metrics.go and gpus.go for Prometheus, admin.go for health. gateway.go makes the parts, starts them and stops them; no
// part knows it.
//
// # Owners and locks
//
// State has one owner:
//
//	request       one request; its handler's goroutine owns part of it, its mutex guards the rest, message included
//	requests      which requests are here
//	queue         one queue with its lanes, tickets and what other gateways report of it
//	queues        which queues there are
//	publisher     which acks of the broker are outstanding
//	links         what has come of each worker, and is to be acknowledged
//	fleet         heartbeats, what pools have, other gateways
//	lanes         which consumers exist
//	gpuHistory    samples and XIDs of GPUs
//	keyring       what other gateways report of keys, and in a lock of its own which keys to report
//	keyUsage      the limits of one key
//	affinity      conversations
//	lengths       how many tokens prompts have
//	shifts        results of shifting routes
//	retries       retries and first attempts of each pool
//	cheapCalls    how many calls without a slot run at each worker, and which wait
//	idleConns     connections without a request
//	bus           nothing but the policy in force: an atomic pointer to rules, which never change
//
// No lock is taken while another is held, so there is no order among them. The one exception is not ours: Prometheus
// collects under a lock of its own, and asks requests, fleet and gpuHistory then; none of these touches a metric. No lock
// is held across a publish, a log line, a callback or I/O: a method copies out or returns a decision, and its caller acts.
//
// # Goroutines
//
// Gateway.Run starts one for each part that has a run method (watch, stalls, lanes, streams, policyFollower, affinity,
// shifts, keyring) and for each HTTP server, and waits for all of them. The HTTP server has one for each connection. background
// holds those of work that no client waits for: copies, dead letters that run again, messages to take back. watch waits
// for those that fail over. The NATS client calls each subscription's handler on a goroutine of its own; the handlers
// never block.
package gateway
