// Package batch serves files and batches at a gateway's ingress: OpenAI's /v1/files and /v1/batches, and Anthropic's
// /v1/messages/batches. A batch is a file of requests that are run when there is room, within a day, and whose results are a file
// again. Those of a batch of messages are hidden: the requests come with the call that makes the batch, are stored as they come as
// lines of such a file, and go when the batch has ended. It is a package of its own since a batch outlives every connection and every gateway: it uses no more of the gateway
// than a gateway.Do, which runs one request, and keeps all its state in the broker.
//
// # What is kept where
//
// Three streams on disk, whose names and subjects are in package subjects:
//
//   - PULLEY_FILES has the content of files in pieces, each on a subject of its own, so that any part of a file can be read without the
//     rest. Pieces have a TTL: they go when the file expires, whether or not a gateway is there.
//   - PULLEY_BATCH has a record of each file and each batch, and one more of each batch that has not ended, by which gateways find
//     work. A record is replaced only if its sequence is still the one that was read.
//   - PULLEY_BATCH_RESULTS has the results of batches that have not ended: one subject for each batch, to which its owner appends.
//
// These are streams and no buckets because object stores have no TTL for a single object and no way to read a part of one, and
// buckets none for a value that is replaced.
//
// # Who runs a batch
//
// One gateway at a time owns a batch. It says so in the batch's record, and writes the record again every two seconds, with the
// progress. A record that has not changed for eight seconds, by the clock of the gateway that watches it, has lost its owner, and any
// gateway takes it.
//
// Two gateways may believe for a while that they own a batch, such as one that was frozen. What keeps results right is
// the log of results: whoever appends says which sequence was the last, and the broker refuses the append if that is not so. A new
// owner reads the whole log and appends a mark; from then on every append of an earlier owner is refused, and it gives up. So each
// line has one result: a line counts as finished when its result is in the log, and an owner runs only those that are not.
// A line that ran when its owner died runs again.
//
// # How lines run
//
// At most a window of lines runs at once. It grows by one with each window of answers and halves when the gateway has no room (429 or
// 503). Such lines run again when Retry-After says, until the batch expires. The input is read in segments of 8 MiB, whose lines are run in
// the order of hashes of their beginnings, so that those that have long beginnings in common follow each other and engines find them in
// their caches.
//
// In memory an owner has two segments, what is in the window, and a byte for each line; while it checks the input, another 20.
package batch
