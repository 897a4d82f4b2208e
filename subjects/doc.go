// Package subjects is the wire between gateways and workers: names, streams,
// messages and frames. Nothing of it is written down anywhere else, and this
// page is enough to write a worker, or a gateway, in another language.
//
// The way of a request: a gateway publishes it to a stream → a worker's bid
// pulls it → the worker claims it at the gateway and calls its engine → the
// answer goes to the gateway in frames → the delivery is settled. Everything
// but the queue itself is core NATS: at most once, and checked by sequence
// numbers, heartbeats and lists.
//
// # Names
//
// A name in a subject, a consumer or a key is escaped into one token: ASCII
// letters, digits and '-' are themselves, every other byte of its UTF-8 is
// "_XX" in upper-case hex, and the empty name is "_". So "org/m:7b" is
// "org_2Fm_3A7b". It is reversible, and no name can reach another's subject.
// Names have at most 256 bytes. Below, <tier>, <pool> and <lane> are such
// tokens. The ids <gw> and <w> of gateways and workers are tokens, made anew at
// each start; a worker's is its name's token, '-' and random hex.
//
// # Subjects
//
//	subject                            from → to           message
//	pulley.req.<tier>.<pool>.<lane>    gateway → stream    Request and body
//	pulley.dead.<tier>.<pool>          gateway → stream    the same, with Pulley-Reason
//	pulley.gw.<gw>.claim               worker → gateway    Claim; the answer, if any, is a Refusal
//	pulley.gw.<gw>.rsp                 worker → gateway    frames
//	pulley.gw.<gw>.alive               worker → gateway    Alive
//	pulley.gw.<gw>.body                worker → gateway    BodyWant; the answer is bytes
//	pulley.gw.<gw>.stored.<n>          broker → gateway    its answer to a Request (a PubAck)
//	pulley.gw.<gw>.left.<w>            gateway → itself    empty: the worker's last frames came before it
//	pulley.gw.<gw>.ref                 gateway → workers   Reference
//	pulley.gw.<gw>.told                gateway → gateways  Told
//	pulley.gw.<gw>.turn                gateway → gateway   Turn
//	pulley.wk.<w>.cancel               gateway → worker    Cancel
//	pulley.wk.<w>.credit               gateway → worker    Credit
//	pulley.wk.<w>.drain                operator → worker   empty; the answer is an Outcome
//	pulley.wk.<w>.bid.…, .refused.…, .gone.…               answers to the worker, see below
//	pulley.hb.<w>                      worker → gateways   Heartbeat
//	pulley.homes, .usage, .sides       gateway → gateways  HomesTold, UsageTold, SidesTold
//	pulley.policy                      writer → all        PolicyChanged
//	pulley.ev.<kind>                   anyone → operators  Event
//	pulley.ask.requests, .ask.workers  operator → gateways empty; each answers with lists, then an empty message
//	pulley.ask.request, pulley.do.…    operator → gateways see control.go
//
// What is not frames is JSON, with the field names of this package's types; in
// their order it is read the fastest, but any order will do.
// Ids of requests are UUIDs as text, marks of attempts are decimal strings of 64
// bits. Unknown fields are ignored: fields may be added, none changes its
// meaning.
//
// The lane is "shared" for what every worker of a pool may take. The others are
// home lanes, named by a worker's id: for what goes on with a conversation that
// this worker has cached.
//
// # Streams and consumers
//
// Gateways create what is missing; what exists is left as it is.
//
// PULLEY_REQ_<TIER>, one for each tier (upper case), holds pulley.req.<tier>.>
//
//	retention work queue      a settled request is gone
//	storage                   memory for interactive tiers: the gateway that holds the client publishes again what a broker lost; file for batch
//	discard new, per subject  the hard bound, 100 000 for each lane, refuses the new and never drops the old; gateways refuse long before
//	message TTL allowed       Nats-TTL removes what nobody can want any more
//	direct get allowed        to see whether a message is still there
//	duplicates 20 s           publishing again after a lost acknowledgement is safe
//
// In it, one durable consumer for each lane of each pool, named <pool>=<lane>,
// or "=" and the hex SHA-256 of that if it has more than 200 bytes; the metadata
// pulley-pool and pulley-lane has the names unescaped.
//
//	ack explicit, wait 30 s     the last resort: heartbeats notice a death in 1.5 s
//	max deliver unlimited       deliveries that found no slot count too; the gateway counts attempts
//	priority policy prioritized, group "pulley": the bid with the lowest number is served first
//	max ack pending 8192        above the slots of any pool; the server walks all of it at a timer
//	max waiting 8192            parked bids; it cannot be changed later
//	memory storage              its state is not worth a disk's latency
//	inactive threshold 2 min    of a home lane: its worker is gone
//
// PULLEY_DEAD holds pulley.dead.> on file for 7 days, 10 000 messages, 1 GiB.
// The bucket PULLEY_WORKERS (memory, TTL 10 s) has each worker's Heartbeat under
// its id, PULLEY_POOLS (file) each pool that was ever served, under its token.
//
// The bucket PULLEY_POLICY (file, 64 versions) has the policy under "policy", as
// a policystore.Version, and each API key under "key." and its id, as a policy.Key.
// Who changes it replaces the revision that it read, then publishes a
// PolicyChanged. Everybody reads the policy at the start, when one comes, and
// every 500 ms if the bucket's last sequence has changed. One that does not
// check is ignored: the last good one stays in force.
//
// # A request's message
//
// The data is the client's body, unchanged, or nothing if it travels by
// reference. Headers:
//
//	Pulley-Request   a Request, as one line of JSON
//	Nats-Msg-Id      the request's id; with ".<sequence>" when it is published again after that one was lost
//	Nats-TTL         whole seconds until the client's deadline, such as 600s
//	Pulley-Reason    of a dead letter: why nobody could answer
//
// A Request names the gateway that holds the client, method, path with query
// (it begins with a slash), the end-to-end header for the engine, and whether
// the client asked for a stream. Header values are bytes: in JSON each byte is
// the code point of the same number, so that "é" in UTF-8 is "Ã©". Header names
// are canonical (Content-Type). The deadline is for people: the gateway judges
// it.
//
// The model is the client's word for it, which may not be the engine's. ModelAt
// says where it stands, in the body or the path; the worker puts its engine's
// name there and changes nothing else.
//
// # Bidding
//
// A worker pulls by publishing a Bid to
// $JS.API.CONSUMER.MSG.NEXT.PULLEY_REQ_<TIER>.<consumer>, batch 1, with its
// price's rung 0 to 9 as priority. The reply subject is
// pulley.wk.<w>.bid.<lane number of its own>.<kind of bid>.<number of the bid>, and
// no two open bids share one: a broker that replicates the consumer tells them apart
// by it. An answer is a request, on the subject it was published to and with an ack
// subject as reply, or a status:
//
//	404, 408   nothing was there, or the bid expired
//	409        not now: bid again after a moment
//	503        no such consumer, and so none of the lane's bids: bid again after a moment
//
// A worker bids on the shared lane and on its own home lane at its price, and on
// the home lanes of other workers (PoolReference.Homes) three rungs dearer, where
// the pool's policy does not forbid it. So a conversation stays where its
// beginning is cached until that worker is three rungs dearer than another, full
// or gone.
//
// Bids expire after 8 s, those of a tier below an active one after 2 s, and are
// never cancelled, since that races with a delivery. What arrives when the bid
// holds no more is handed back at once (-NAK): there is no slot for it, its tier
// has to stand back, its pool is paused, the worker is cordoned, or the price has
// risen since; for the last a request is handed back twice at the most. A home
// lane has a bid at least every 45 s, so that it stays. The ack subject tells, as pending, how many requests wait behind it:
//
//	$JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>
//	$JS.ACK.<domain>.<account>.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>.<random>
//
// # Claim and refusal
//
// With each delivery the worker draws a mark, 64 random bits, and sends a Claim
// with reply subject pulley.wk.<w>.refused.<mark in hex>. It does not wait before
// it calls the engine: silence is a grant. Claim and frames leave on one
// connection and arrive in one subscription, so that the claim is known before
// its frames. A claim that is not granted is answered with a Refusal, which
// repeats the ack subject, since the attempt may be over by then:
//
//	gone        nobody waits for it any more
//	elsewhere   another attempt runs
//	not-you     this worker failed it before, and there are others; delay_ms says when to hand it back
//
// On each the worker aborts its engine call. No responders (status 503) is the
// same as gone. A gateway grants one attempt of a request at a time. A refusal
// that gets lost costs no more than the engine's time: the frames are ignored,
// and the next Alive is answered with a Cancel.
//
// # Frames
//
// A message to pulley.gw.<gw>.rsp is a prefix and one frame or more; all numbers
// are big-endian.
//
//	 0  16  request id
//	16   8  mark of the attempt
//	24   4  sequence: 1, 2, 3, … without a gap for each attempt
//	28   1  kind      ┐
//	29   4  length n  ├ a frame, repeated until the message ends
//	33   n  payload   ┘
//
//	kind      payload
//	h  head   a Head: status, end-to-end header, length of the body or -1. First, and once.
//	d  data   bytes of the body
//	e  end    an End: the answer is whole; nothing follows
//	f  fail   a Fail: the attempt came to nothing, or to half; nothing follows
//
// So the body "hi" is 64 00000002 6869 after the prefix. Frames that arrive
// together travel together; none waits for another. A message stays within half
// of the broker's max_payload. It carries the reply subject
// pulley.wk.<w>.gone.<gw>: status 503 there says that the gateway is gone.
//
// A gap in the sequence, a malformed frame, or bytes beyond the credit fail the
// attempt. Header values are encoded as in a Request; names may have any case,
// and what belongs to one connection is dropped.
//
// A Fail has a class, which says who has to do what (see FailClass), and the
// engine's own answer where there was one and it was short. An engine's 4xx is
// an answer like any other, 429 excepted: 429 and 503 are class refused, other
// 5xx class engine. An event stream without its API's last event is class
// truncated.
//
// # Credit
//
// A worker sends at most 256 KiB (Window) of body beyond what the client has
// taken, and then stops reading from its engine. The gateway tells with Credit
// how much was taken in all, at each quarter of a window. A worker that ignores
// it is failed.
//
// # Bodies by reference
//
// With "ref" in the Request the worker asks for the body's size bytes piece by
// piece: a BodyWant with an offset, answered by as many bytes as fit. An empty
// answer says that the gateway does not have the request any more.
//
// # Signs of life
//
//	Heartbeat   every 500 ms; after 1.5 s without one, everything the worker had is failed over
//	Alive       every second to each gateway: the attempts that run for it and how many messages each has sent. An attempt
//	            that its gateway does not want is cancelled; one unlisted for 3.5 s, or of which fewer messages came, has failed
//	Reference   every second, and as soon as a pool's consumers exist: what a pool costs at the least and what its requests are
//	            like, so that workers who do not hear each other price alike. After 10 s without one, and with a connection to the
//	            broker as old, a worker drops what it runs for that gateway. Of a pool whose model some worker would have to load
//	            (PoolStatus.Cold), it says also who has it loaded and how long requests have waited for it
//
// A worker renews the lease of what it runs (+WPI) every 10 s while its engine
// makes progress.
//
// Its last heartbeat has state "left". The worker publishes it after its last
// frames, on the same connection. A gateway receives the two by different
// subscriptions and may handle them in another order, so on "left" it sends
// itself an empty message on pulley.gw.<gw>.left.<w>. That one comes behind the
// frames, and only then the gateway fails over what the worker did not end. If
// it gets lost, the gateway does so 3.5 s after "left".
//
// # Who settles a delivery
//
// Each delivery is settled once, by publishing to its ack subject, which the
// Claim told the gateway.
//
//	the delivery's attempt                   settled by   with
//	granted; the answer is whole             gateway      +ACK
//	granted; failed, another is due          gateway      -NAK, or -NAK {"delay":ns}: in front of the queue
//	granted; failed, and was the last        gateway      +TERM, after the dead letter if there is one
//	granted; the client or its time is gone  gateway      +TERM, and a Cancel to the worker
//	granted; its worker is gone              gateway      -NAK
//	refused: gone                            worker       +TERM
//	refused: not-you                         worker       -NAK, with the Refusal's delay
//	refused: elsewhere                       nobody       the end of the other attempt settles it
//	its bid does not hold any more           worker       -NAK
//	cannot be read                           worker       +TERM
//	its gateway is gone                      worker       +TERM
//	its worker is gone before the claim      gateway      -NAK, on a made-up ack subject (AckSubject)
//	not delivered yet, and nobody waits      gateway      deletes the message
//	none of these came through               the queue    delivers it again after 30 s without +WPI; removes it at its TTL
//
// # In one process
//
// Where a worker and a gateway share a process (pulley up), Claim and frames are
// calls with the same contents, in the same order, and with the same answer, and
// the Request of a message is the gateway's own: see Local. Everything else is as
// above.
//
// # Failover
//
// Until a byte of an answer has reached the client, a failed attempt is followed
// by another, on another worker where there is one (policy.History says how
// often). After that the client is told honestly that it broke. Frames of an
// attempt that is not the granted one are ignored, so two never mix.
//
// # What a worker may do
//
// It publishes to $JS.API.CONSUMER.MSG.NEXT.PULLEY_REQ_<TIER>.<consumer>, to
// $JS.ACK.>, to claim, rsp, alive and body of pulley.gw.*, and to pulley.hb.<w>;
// for the membership bucket to $JS.API.STREAM.INFO.KV_PULLEY_WORKERS and
// $KV.PULLEY_WORKERS.<w>, for the policy to $JS.API.DIRECT.GET.KV_PULLEY_POLICY.
// It subscribes to pulley.wk.<w>.>, pulley.gw.*.ref, pulley.policy and an inbox.
// It creates nothing.
package subjects
