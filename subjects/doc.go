// Package subjects is the wire protocol between gateways and workers: subjects, streams, messages
// and frames. Every subject, stream name and wire type is defined here and nowhere else. This page
// is the specification; it suffices to write a worker, or a gateway, in another language.
//
// The path of a request: a gateway publishes it to a stream → a worker's bid pulls it → the worker
// claims it at the gateway and calls its engine → the answer goes to the gateway in frames → the
// delivery is settled. Everything except the queue itself is core NATS: delivery is at most once.
// What a worker sends to a gateway is numbered, and sent again until it is acknowledged; other
// losses are detected by heartbeats and lists.
//
// # Names
//
// A name in a subject, a consumer or a key is escaped into one token: ASCII letters, digits and '-' are unchanged,
// every other byte of its UTF-8 becomes "_XX" in upper-case hex, and the empty name becomes "_". For example,
// "org/m:7b" becomes "org_2Fm_3A7b". The escaping is reversible, and no name can reach another name's subject. Names
// have at most 256 bytes. Below, <tier>, <pool> and <lane> are such tokens. The ids <gw> and <w> of gateways and
// workers are tokens that are chosen at each start; a worker's id is its name's token, '-' and random hex.
//
// # Subjects
//
//	subject                            from → to           message
//	pulley.req.<tier>.<pool>.<lane>    gateway → stream    Request and body
//	pulley.dead.<tier>.<pool>          gateway → stream    the same, with Pulley-Reason
//	pulley.gw.<gw>.link.<w>            worker → gateway    claims and frames
//	pulley.gw.<gw>.alive               worker → gateway    Alive
//	pulley.gw.<gw>.body                worker → gateway    BodyRequest; the answer is bytes
//	pulley.gw.<gw>.stored.<n>          broker → gateway    the broker's ack of a Request (ParsePublishAck)
//	pulley.gw.<gw>.uncalled.<id>.<mark>  broker → gateway  status 503: no worker received that call
//	pulley.gw.<gw>.left.<w>            gateway → itself    empty; the worker's last frames arrived before it
//	pulley.gw.<gw>.ref                 gateway → workers   Reference
//	pulley.gw.<gw>.told                gateway → gateways  HeldReport
//	pulley.gw.<gw>.turn                gateway → gateway   Release
//	pulley.wk.<w>.cancel               gateway → worker    Cancel
//	pulley.wk.<w>.credit               gateway → worker    WindowUpdate
//	pulley.wk.<w>.blame                gateway → worker    Blame
//	pulley.wk.<w>.call                 gateway → worker    Request and body, see Calls
//	pulley.wk.<w>.drain                operator → worker   empty; the answer is an Outcome
//	pulley.wk.<w>.got.<gw>             gateway → worker    LinkAck
//	pulley.wk.<w>.refused.<mark>       gateway → worker    Refusal
//	pulley.wk.<w>.bid.…, .gone.…                           replies to the worker, see below
//	pulley.hb.<w>                      worker → gateways   Heartbeat
//	pulley.homes, .usage, .sides       gateway → gateways  AffinityReport, UsageReport, ShiftReport
//	pulley.policy                      writer → all        PolicyChanged
//	pulley.ev.<kind>                   anyone → operators  Event
//	pulley.ask.requests, .ask.workers  operator → gateways empty; each answers with lists, then an empty message
//	pulley.ask.request, pulley.do.…    operator → gateways see control.go
//
// The lane is "shared" for requests that every worker of a pool may take. All other lanes are home
// lanes, named by a worker's id: they hold follow-ups of conversations that this worker has cached.
//
// # JSON
//
// Every message except frames is JSON, with the field names of this package's types. Any order of fields is accepted;
// the order of the types is read fastest. Request ids are UUIDs as text, attempt marks are 64 bits as decimal strings,
// times are RFC 3339 and bytes are base64, unless a field says otherwise.
//
// Field names are matched exactly. Unknown fields are ignored: fields may be added, and no field changes its meaning. A
// field that occurs twice in an object is an error, and so is a string that is not valid UTF-8. A writer replaces
// invalid UTF-8, such as in an engine's error message, by U+FFFD. See Marshal and Unmarshal.
//
// # Streams and consumers
//
// Gateways create what is missing and leave what exists as it is.
//
// PULLEY_REQ_<TIER>, one per tier (in upper case), holds pulley.req.<tier>.>
//
//	retention work queue      a settled request is gone
//	storage                   memory for interactive tiers, whose requests the gateway publishes again if the broker loses them; file for batch
//	discard new, per subject  the hard bound of 100 000 per lane refuses new messages and never drops old ones; gateways refuse long before
//	message TTL allowed       Nats-TTL removes requests whose deadline has passed
//	direct get allowed        to check whether a message is still there
//	duplicates 20 s           a message may be published again after its ack was lost
//
// It has one durable consumer for each lane of each pool, named <pool>=<lane>, or "=" and the hex SHA-256 of that name
// if it is longer than 200 bytes. The metadata pulley-pool and pulley-lane have the unescaped names.
//
//	ack explicit, wait 30 s     the last resort: heartbeats reveal a dead worker in 1.5 s
//	max deliver unlimited       deliveries that were handed back count too; the gateway counts attempts
//	priority policy prioritized, group "pulley": the bid with the lowest number is served first
//	max ack pending 8192        above the slots of any pool; the server walks all pending deliveries on a timer
//	max waiting 8192            parked bids; it cannot be changed later
//	memory storage              its state is not worth a disk's latency
//	inactive threshold 2 min    for a home lane: its worker is gone
//
// PULLEY_DEAD holds pulley.dead.> on file for 7 days, 10 000 messages, 1 GiB. The bucket
// PULLEY_WORKERS (memory, TTL 10 s) has each worker's Heartbeat under its id. The bucket
// PULLEY_POOLS (file) has each pool that was ever served, under its token. The bucket PULLEY_LEARNED (file, TTL 90 days) has
// what a worker has measured of its engine, a Learned under LearnedKey: the worker reads it when it starts.
//
// The bucket PULLEY_POLICY (file, 64 versions) has the policy under "policy", as a policystore.Version, and each API
// key under "key." and its id, as a policy.Key. A writer replaces the revision that it read, then publishes a
// PolicyChanged. Every part reads the policy at its start, when a PolicyChanged arrives, and every 500 ms if the last
// sequence of the bucket has changed. A policy that does not validate is ignored: the last valid one stays in effect.
//
// # Request messages
//
// The data is the client's body, unchanged, or empty if the body travels by reference. Headers:
//
//	Pulley-Request   a Request, as one line of JSON
//	Nats-Msg-Id      the request's id; with ".<sequence>" if it is published again after the message with that sequence was lost
//	Nats-TTL         whole seconds until the client's deadline, such as 600s
//	Pulley-Reason    of a dead letter: why the request could not be answered
//
// A Request names the gateway that holds the client's connection, the method, the path with its query (it starts with a
// slash), the end-to-end headers for the engine, and whether the client asked for a stream. Header values are bytes: in
// JSON each byte is the code point of the same number, so that "é" in UTF-8 is "Ã©". Header names are canonical
// (Content-Type). The deadline, by which the first byte of the answer has to come, is informative: the gateway enforces it.
//
// The model is the name that the client used, which may differ from the engine's. ModelAt says where it is, in the body
// or the path; the worker replaces it there with its engine's name and changes nothing else.
//
// # Bids
//
// A worker pulls by publishing a Bid to $JS.API.CONSUMER.MSG.NEXT.PULLEY_REQ_<TIER>.<consumer>, with batch 1 and the
// rung of its price, 0 to 9, as priority. The reply subject is pulley.wk.<w>.bid.<number of the lane>.<kind of
// bid>.<number of the bid>, where the worker chooses the numbers. No two open bids share a reply subject: a broker that
// replicates the consumer distinguishes them by it. The reply is a request, on the subject on which it was published
// and with an ack subject as reply, or a status:
//
//	404, 408   there was no message, or the bid expired
//	409        not possible now: bid again after a moment
//	503        the consumer does not exist, so none of the lane's bids is open: bid again after a moment
//
// A worker bids on the shared lane and on its own home lane at its price, and on the home lanes of other workers
// (PoolReference.HomeLanes) three rungs higher, unless the pool's policy forbids it. So a conversation stays where its
// start is cached until that worker is three rungs more expensive than another, full or gone.
//
// If the contexts of a pool's workers differ (PoolStatus.Length), there is a lane long:<tokens> for each length but the least
// (PoolReference.Lengths). Requests that are estimated to need more than the least wait on the one of the smallest length that
// suffices, or of the largest if none does, and a worker bids on those up to its own length. An older worker sends no length: it
// gets none of these requests, and an older gateway makes no such lanes.
//
// Bids expire after 8 s, those of a tier below an active one after 2 s. They are never cancelled, since a cancellation
// races with a delivery. A delivery whose bid no longer holds is handed back at once (-NAK): there is no slot for it,
// its tier must wait for another one, its pool is paused, the worker is cordoned, or the price has risen since. For a
// risen price a request is handed back at most twice. A home lane gets a bid at least every 45 s, so that its consumer
// stays. The ack subject says, as pending, how many requests wait behind the delivered one:
//
//	$JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>
//	$JS.ACK.<domain>.<account>.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>.<random>
//
// # Claim and refusal
//
// For each delivery the worker draws a mark, 64 random bits, and sends a Claim, with the rung of the bid (0: left out). It
// does not wait before it calls the engine: silence is a grant. Claim and frames travel on one link, so the gateway
// receives the claim before its frames. A claim that is not granted is answered on pulley.wk.<w>.refused.<mark in hex> with
// a Refusal, which repeats the ack subject because the attempt may already be over:
//
//	gone        the request is over
//	elsewhere   another attempt is running
//	not-you     this worker failed the request before, and there are others; delay_ms says when to hand it back
//
// A worker that has failed the request before is likely to be refused. It sets confirm in its Claim, and calls the engine
// only when the answer "go" has come, or none within a second.
//
// On each refusal the worker aborts its engine call. A gateway grants one attempt of a request at a time, and none to a
// worker in whose name another one claims. A lost refusal costs no more than the engine's time: the frames are ignored, and
// the next Alive is answered with a Cancel.
//
// # Links
//
// Each worker has a link to each gateway for which it runs something. A message to pulley.gw.<gw>.link.<w> is a header and
// one or more items. All numbers are big-endian.
//
//	 0  8  number of the message: consecutive, and higher than in an earlier link between the two
//	 8  8  number of the oldest message that the worker still keeps
//	16  1  kind      ┐
//	17  4  length n  ├ an item, repeated until the message ends
//	21  n  payload   ┘
//
//	kind       payload
//	c  claim   a Claim
//	f  frames  a prefix, and one or more frames of one attempt
//
// Of a batching engine, the tokens of one step travel together: an item waits at most 0.5 ms for those of other attempts.
// The first and the last of an attempt, and those of a stream alone do not wait. A message is at most half as long as the
// broker's max_payload.
//
// The worker keeps each message until a LinkAck says that the gateway has it. The gateway acknowledges all that has come
// within 250 ms, or 256 KiB. A message whose number is not the one that it expects is ignored: an older one has come
// before; a newer one shows that some are missing, and a LinkAck with again asks for these and all that follow. A gateway
// that does not know the worker expects the oldest one that it keeps. The worker also sends everything again that it keeps
// when it has connected to the broker again, and when nothing was acknowledged for a second, then for two, four and eight. So a broker that restarts
// breaks no stream.
//
// The reply subject is pulley.wk.<w>.gone.<gw>: status 503 there means that the broker knows no such gateway. If that lasts
// for 0.7 s, and no Reference of it comes, the gateway is gone. For 10 s after the worker itself has connected again, it is
// only if it is silent.
//
// # Frames
//
// An item of frames is a prefix and one or more frames.
//
//	 0  16  request id
//	16   8  mark of the attempt
//	24   4  sequence of the item: 1, 2, 3, … without a gap for each attempt
//	28   1  kind      ┐
//	29   4  length n  ├ a frame, repeated until the message ends
//	33   n  payload   ┘
//
//	kind      payload
//	h  head   a Head: status, end-to-end header, length of the body or -1. Always first, and only once.
//	d  data   bytes of the body
//	e  end    an End: the answer is complete; no frame follows
//	f  fail   a Fail: the attempt failed before or during the answer; no frame follows
//
// So the body "hi" is 64 00000002 6869 after the prefix. Frames that are ready together travel
// together.
//
// A gap in the sequence, a malformed frame, or bytes beyond the window fail the attempt. Header
// values are encoded as in a Request; names may have any case, and hop-by-hop headers are dropped.
//
// A Fail has a class, which says what the failure means for the request and for the worker (see FailClass), and the
// engine's own answer if there was one, it was short, and it is fit for a client. A worker sends no frame of an answer
// before a part of it shows content or an error (api.Inspector), and fails an attempt whose answer is none. An error that
// names the request is an answer like any other (api.FaultOf). Of the other errors of an engine, 429 and 503 are class
// refused; an unknown model or path, refused credentials and a context that is too short are class misfit, but class credentials if these may change; 5xx, and
// errors with status 200, are class engine. A connection to the engine that breaks is class crashed. An event stream
// without its API's last event is class truncated. A gateway that does not know a class treats it as engine.
//
// If a request that failed at a worker is then answered by another, the gateway sends the first one a Blame. A worker
// pauses for a pool after a few failures without a success between that are not one request's own: of different
// requests, or with a Blame. Then it runs one request of the pool at a time until one succeeds, and says why in the
// pool's "failing".
//
// # Calls
//
// For some paths an engine generates nothing, such as /tokenize (api.Cheap). A call of one needs no slot, and does not go
// through a stream: the gateway chooses a live worker of the pool that has the model loaded, and whose heartbeat says how
// many calls it runs at once (calls; an older worker sends none, and gets none). The message on pulley.wk.<w>.call is that of a
// request stream, with the header Pulley-Attempt: the mark of the attempt, which the gateway chooses, as a decimal number. Its
// reply subject is pulley.gw.<gw>.uncalled.<id>.<mark in hex>, where only the broker answers. There is no claim, no bid and no
// delivery to settle; frames, window updates, cancels, bodies by reference and Alive are those of any attempt. A worker that
// runs as many as it may answers with a Fail of class refused, one that accepts nothing with one of class draining. Calls
// have no effect: one whose worker or engine is gone is sent to another worker, and a gateway that finds none puts
// the request on its stream instead.
//
// # Flow control
//
// A worker sends at most 256 KiB (Window) of body beyond what the client has consumed, and then
// stops reading from its engine. The gateway reports with a WindowUpdate how much was consumed in
// total, at each quarter of a window. A worker that exceeds the window is failed.
//
// # Bodies by reference
//
// If the Request has "ref", the worker fetches the body piece by piece: a BodyRequest with an
// offset is answered with as many bytes as fit, until it has "size" bytes. An empty answer means
// that the gateway does not have the request any more.
//
// # Signs of life
//
//	Heartbeat   every 500 ms. After 1.5 s without one, all attempts of the worker are failed over. A fenced worker says why in
//	            reason, and in fence_class, one word from a fixed set (gpu.FenceClass). One that is down because its engine refuses
//	            its credentials, has a certificate that is not trusted, or is a web page, says which in down_class (DownClass). One that chooses among data-parallel ranks has the load of each in ranks. For each pool it has what the engine's list
//	            says of the model (listed), and whether its name may be spelled otherwise (any_case); an older worker sends neither
//	            State busy means that the engine has requests and answers nothing else in time: it keeps them, and gets no new ones.
//	            Pools whose requests the engine does not answer have vitality hung, and those for which it is suspect vitality
//	            suspect, with the reason in failing or doubt.
//	            Of a worker that is fenced with class hung or frozen, gateways fail over the attempts without a first byte as far
//	            as other workers have free slots, and the same of a pool with vitality hung
//	Alive       every second to each gateway: the attempts that run for it, how many items of frames each has sent, and what
//	            the last WindowUpdate said. An attempt that its gateway does not want is cancelled, and a WindowUpdate that was lost
//	            is sent again. One is marked late if its first byte takes much longer than was measured: its gateway may fail it over, once. An attempt that is not listed for 3.5 s has failed, and so has one of which fewer items have come for 10 s
//	Reference   every second, and as soon as a pool's consumers exist: the lowest price of each pool and its mean request,
//	            so that workers, which do not receive each other's messages, price alike. After 10 s without one, and with a connection
//	            to the broker as old, a worker drops what it runs for that gateway. For a pool whose model some worker would have
//	            to load (PoolStatus.Cold), it also says how many workers have it loaded and how long requests have waited for it;
//	            and with a Shortage, which older gateways do not send, how many wait, how many these workers could start, for
//	            how long that has not sufficed, and which workers could load it without pushing out what is in use. When that
//	            has lasted for a second, a Reference is published at once. See policy.Shortage
//
// A worker renews the lease of its attempts (+WPI) every 10 s while its engine makes progress.
//
// Its last heartbeat has state "left". The worker publishes it after its last frames, on the same connection. A gateway
// receives the two by different subscriptions and may handle them in another order. So on "left" it sends itself an empty
// message on pulley.gw.<gw>.left.<w>, which arrives behind the frames; only then does it fail over the attempts that the
// worker did not end. If that message is lost, the gateway does so 3.5 s after "left".
//
// # Who settles a delivery
//
// Each delivery is settled once, by publishing to its ack subject. The gateway knows it from the Claim.
//
//	the delivery's attempt                   settled by   with
//	granted; the answer is complete          gateway      +ACK
//	granted; failed, another is due          gateway      -NAK, or -NAK {"delay":ns}: to the front of the queue
//	granted; failed, and was the last        gateway      +TERM, after the dead letter if there is one
//	granted; client gone or deadline passed  gateway      +TERM, and a Cancel to the worker
//	granted; its worker is gone              gateway      -NAK
//	refused: gone                            worker       +TERM
//	refused: not-you                         worker       -NAK, with the Refusal's delay
//	refused: elsewhere                       –            the end of the other attempt settles it
//	its bid no longer holds                  worker       -NAK
//	cannot be parsed                         worker       +TERM
//	its gateway is gone                      worker       +TERM
//	its worker is gone before the claim      gateway      -NAK, on a constructed ack subject (AckSubject)
//	no claim of it arrives for 2 s           gateway      the same
//	not delivered yet, and no longer wanted  gateway      deletes the message
//	none of these arrived                    the queue    delivers it again after 30 s without +WPI; removes it at its TTL
//
// # In one process
//
// Where a worker and a gateway share a process (pulley up), Claim and frames are calls with the
// same contents, in the same order and with the same answer, and the Request of a message is the
// gateway's own: see Local. Everything else is as above.
//
// # Failover
//
// Until a byte of an answer has reached the client, a failed attempt is followed by another, on another worker if there
// is one (policy.History says how often). After that the client gets an error. Frames of an attempt
// that is not the granted one are ignored, so two attempts never mix.
//
// # Permissions of a worker
//
// A worker publishes to $JS.API.CONSUMER.MSG.NEXT.PULLEY_REQ_<TIER>.<consumer>, to $JS.ACK.>, to link.<w>, alive and body
// of pulley.gw.*, and to pulley.hb.<w>; for the membership bucket to $JS.API.STREAM.INFO.KV_PULLEY_WORKERS and
// $KV.PULLEY_WORKERS.<w>, and for the policy to $JS.API.DIRECT.GET.KV_PULLEY_POLICY. It subscribes to pulley.wk.<w>.>,
// pulley.gw.*.ref, pulley.policy and an inbox. It creates nothing. To keep what it has measured of its engine, it publishes to
// $JS.API.STREAM.INFO.KV_PULLEY_LEARNED, $JS.API.DIRECT.GET.KV_PULLEY_LEARNED.> and $KV.PULLEY_LEARNED.>; without that right
// it measures again after a restart.
package subjects
