// Package idempotency answers a request that is sent again with the same Idempotency-Key as the first time: from the answer that is
// stored, or from the request that still runs. It is a [gateway.Taker]: requests without the header do not touch it.
//
// # What is stored
//
// Each key of a tenant has a subject of its own in subjects.IdempotencyStream. Its messages are entries, in this order:
//
//	claim      who runs the request, and a hash of its path and body
//	part 1     the status and the headers of the answer, and the beginning of its body
//	part 2 …   what follows, joined as it came within 50 ms
//	the last part says how the answer has ended
//
// Each part of a stream says how many events, or lines, are before it, and how far it is in the next one: so the place where a client
// has lost a stream is found in a few reads. Clients of the gateway that runs the request get the parts from its memory, once they are
// stored.
//
// An answer that is no stream is one part, unless it is long. Every entry expires when the window of its key does, which
// begins with the claim. The broker sees to that.
//
// # One answer for a key
//
// Every message expects the one before it to be the last of its subject. So of two gateways that claim a key, one does, and when
// another takes a key over, the first can add nothing any more. Clients, also the one that came first, get only what is stored,
// and the events that end a stream only together with the entry that says that the answer has ended. So nobody has a whole answer
// that others do not get.
//
// An answer that is not to be kept, an error or one that broke off, ends with an entry that frees the key, and the entries before
// it are removed.
//
// # Who runs a request
//
// The gateway that has claimed the key, as long as somebody waits for the answer: a client here, or a gateway that asks on
// subjects.IdempotencyOwner. One that does not answer that is taken for dead: at once if it has no connection to the broker, else
// after 10 s. Its clients' requests fail, and the next one with the key runs.
package idempotency
