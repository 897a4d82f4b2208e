// Package bench puts load on any OpenAI-compatible URL and reports what its clients experience.
//
// A run is described by a [Config] and executed by [Run]. The path of one request:
//
//	arrivals or order    when it is due: by the load (arrival.go) in an open loop, when its worker is free in a closed one
//	bodies.build         its body, assembled from parts that were encoded once (body.go)
//	exchange.run         sent, read to the end, timed (exchange.go, sse.go)
//	recorder.record      into the histograms, or under its error class (recorder.go)
//	Result               percentiles, throughput, errors (result.go), shown by table.go and plot.go
//
// # What the figures mean
//
// Open loop ([Config.Rate], [Config.Trace]): requests are sent when they are due, whatever happened to those before
// them, and every latency is measured from the moment when a request was due. A server that stalls for a second
// therefore shows that second in every request that was due meanwhile (no coordinated omission), and so does a
// generator that is itself late: its own lag is in [Result.Lag], and a warning says when it matters.
//
// Closed loop ([Config.Concurrency]): each of N workers sends its next request when its last one has ended. Latency is
// measured from the send. This finds throughput; it says little about the latency of independent users, because a slow
// server slows the load down.
//
//	TTFT         until the first event with content (streams), or the first body byte
//	inter-token  (last content - first content) / (output tokens - 1), one figure per request
//	gap          every interval between two content events
//	E2E          until the terminal event (streams), or the last body byte
//	queue        the metric "queue" of the server-timing header, if a server sends it
//
// Latencies are those of successful requests; the others are counted by class, and count as misses of an SLO. Output
// tokens are those that the server reports as usage; without usage, the content events of a stream.
package bench
