// Package background runs requests whose clients do not wait: background responses of the Responses API, and any other
// call of inference with "Prefer: respond-async". It is a [gateway.Service], so that the paths, the storage and the work are not
// part of the way of ordinary requests: those do not touch it.
//
// # What is stored
//
// subjects.EnsureBackground has the streams. A call is stored in this order before its client gets an answer: its body and its
// first events (data), the job (jobs), the state (states). So a gateway that dies in between leaves a job without a state,
// which is dropped after 10 s, and nothing that a client could see. An empty message in place of the state says so: it keeps a
// gateway that was only slow from writing the state of a response whose job is gone.
//
//	data    …<id>.body              the request's body, in pieces
//	        …<id>.events            server-sent events, joined as they came within 50 ms; see events.go for their headers
//	        …<id>.object.<version>  the object that a client gets, in pieces, if it is too long for the state
//	states  …<id>                   a Response as header, and the object as body; empty: there is none, and will be none
//	jobs    …                       a job
//
// Each state expires by its own TTL, and so does all data; no gateway is needed for it.
//
// # Who runs a response
//
// Gateways pull jobs with explicit acknowledgement and a lease of 10 s (subjects.BackgroundLease), which they renew while they
// run one. A gateway that dies is followed by another. What makes the end unique is the state: each change of it
// expects the last one that its writer has seen, so that of two gateways that both believe to run a response, or of one
// that ends it and one that cancels it, one succeeds. The other stops. Events are appended by the same rule.
//
// A run that breaks off in the middle, since its worker or its gateway died, is run again. Its events stay. The sequence
// numbers go on, the next run begins with another response.in_progress, and the last event holds the whole answer of the run
// that has ended.
package background
