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
//	body.go         bodies.read: the body, within its share of the memory and in time
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
// queue, usage.go for what they exchange about keys, claim.go for requests that wait for that, mirror.go for copies, control.go for operators, lanes.go for the
// consumers in the broker, homelists.go for when workers are told of home lanes, rations.go for which of them park
// bids, streams.go for its streams, stuck.go for streams that store nothing, stall.go for what a lost message holds up,
// settle.go for messages that are over, stale.go for pools that are gone, watch.go for what follows from a change in
// the fleet, late.go for requests whose engine shows nothing, turn.go for their order, policy.go for the policy,
// patience.go for how long clients wait, linger.go for bodies that are refused early, wrongkeys.go for keys that are
// wrong, address.go for where calls come from, header.go for what headers pass, explain.go for receipts, shifts.go for
// routes that shift, keymove.go for API keys that an older version stored, metrics.go and scrape.go for Prometheus,
// record.go and accesslog.go for the access log, trace.go for traces, admin.go for health, history.go for what became
// of requests, ledger.go for what they have used, demand.go for what autoscalers follow, view.go for what an operator's page shows. gateway.go makes the parts, starts them and stops them; no
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
//	stuck         which streams store nothing, and why
//	settlements   which messages are over, and may still be in the broker
//	links         what has come of each worker, by which way, and is to be acknowledged
//	directLinks   offers of connections past the broker, and which are open (direct.go)
//	fleet         heartbeats, what pools have, other gateways
//	lanes         which consumers exist
//	rations       whether the workers of large pools that park bids still suffice
//	homeLists     which lists of home lanes the workers were told
//	metrics       which pools and tiers have counters, and the meters of requests (metrics.go)
//	metric.GPUHistory  samples and XIDs of GPUs
//	reports       what operators are told who ask for the workers: trouble, held requests, workers that were lost (reports.go)
//	keyring       what other gateways report of keys, and in a lock of its own which keys to report
//	keyUsage      the limits of one key
//	wrongKeys     how many wrong keys came from which address
//	silence       deliveries that no worker has claimed
//	keyMover      which other gateways are of an older version
//	affinity      conversations
//	lengths       how many tokens prompts have
//	shifts        results of shifting routes
//	retries       retries and first attempts of each pool
//	history       what became of the requests of the last hour
//	eventLog      the latest events
//	ledger        what requests have used that is not over and stored (ledger.go)
//	demands       the work of this gateway, and of the others by their reports (demand.go)
//	bodies        how much memory bodies have, and whose they are
//	cheapCalls    how many calls without a slot run at each worker, and which wait
//	idleConns     connections without a request
//	record        what the access log and the trace say of one call; the goroutine that serves it owns it
//	accessLog     lines that are to be written: a channel
//	bus           nothing but the policy in force: an atomic pointer to rules, which never change
//	brokerconn.Watch  when the NATS server last answered: an atomic number; what it has denied
//
// No lock is taken while another is held, so there is no order among them. The one exception is not ours: Prometheus
// collects under a lock of its own, and asks requests, fleet, links, streams and metrics then; none of these touches a metric
// with a lock of its own held. No lock
// is held across a publish, a log line, a callback or I/O: a method copies out or returns a decision, and its caller acts.
//
// # Goroutines
//
// Gateway.Run starts one for each part that has a run method (watch, settlements, stalls, stalePools, lanes, streams,
// policyFollower, affinity, shifts, keyring, keyMover, ledger, demands, directLinks with one for each connection, accessLog with one for
// writes that may block), one for brokerconn.Watch and one for each HTTP server, and waits for all
// of them. The HTTP server has one for each connection. A link has a turn beside its state: messages of a worker that come by
// two ways are handed on one after the other. background
// holds those of work that no client waits for: copies, dead letters that run again, messages to take back. watch waits
// for those that fail over. The NATS client calls each subscription's handler on a goroutine of its own; the handlers
// never block.
package gateway
