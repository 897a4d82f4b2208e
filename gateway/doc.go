// Package gateway is the HTTP ingress. It holds the client's connection, puts
// each request on the queue, grants it to one worker at a time, and writes that
// worker's answer to the client.
//
// The way of a request: server.go routes it to Gateway.infer (infer.go), which
// reads the body (body.go), finds model, stream flag and tier in it (scan.go),
// asks whether its queue has room (queue.go), and makes it a flight (flight.go)
// that is published. Workers' claims and frames arrive in Gateway.receive
// (dispatch.go), which hands them to their flight and never blocks. The
// handler's own goroutine takes them from there: it writes the answer
// (answer.go) and decides, after a failure, whether there is another attempt
// (policy.History). fleet.go knows which workers live and fails over what a
// dead one had.
package gateway
