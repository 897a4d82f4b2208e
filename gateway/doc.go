// Package gateway is the HTTP ingress. It holds the client's connection, puts
// each request on the queue, grants it to one worker at a time, and writes that
// worker's answer to the client.
//
// The way of a request: server.go routes it to Gateway.infer (infer.go), which
// asks whose it is (keys.go), reads the body (body.go), finds model, stream flag,
// tier and conversation in it (scan.go, conversation.go), finds where it goes
// (route.go, affinity.go), asks whether its queue has room (queue.go), and makes it
// a flight (flight.go) that is published when its tenant's turn comes (wait.go,
// publish.go), which the gateways deal together (fairness.go). While it waits it may
// move to another queue (wait.go). Workers' claims and frames arrive in
// Gateway.receive, those of workers in the same process in near (dispatch.go),
// which hand them to their flight and never block. The handler's own goroutine
// takes them from there: it writes the answer (answer.go, edit.go) and decides,
// after a failure, whether there is another attempt (policy.History).
//
// Beside that: streams.go sees to the broker's streams, fleet.go knows which
// workers and gateways live and fails over what a dead worker had, gpus.go
// shows the workers and their GPUs in the metrics, waits.go tells workers for
// how long requests have waited for a model that is not loaded, policy.go puts
// the operator's policy in force, shifts.go moves routes by steps, mirror.go
// runs what no client waits for, usage.go shares what keys have used,
// control.go obeys the operator's verbs, idleconns.go closes what would hold up a
// gateway that stops.
package gateway
