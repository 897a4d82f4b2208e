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
// have at most 256 bytes. Below, <tier>, <pool> and <lane> are such tokens. The id <gw> of a gateway is a token that is chosen
// at each start. The id <w> of a worker is two tokens: one that stays when it is started again (StableID), so that permissions
// can name it, and one that is random. The first is configured, or the name's token, '-' and hex of a hash of the name, the host
// and the engine's URL. Older workers have one token, chosen at each start.
//
// # Subjects
//
//	subject                            from → to           message
//	pulley.req.<tier>.<pool>.<lane>    gateway → stream    Request and body
//	pulley.dead.<tier>.<pool>          gateway → stream    the same, with Pulley-Reason
//	pulley.gw.<gw>.link.<w>            worker → gateway    claims and frames
//	pulley.gw.<gw>.alive.<w>           worker → gateway    Alive; an older worker leaves out its id
//	pulley.gw.<gw>.body.<w>            worker → gateway    BodyRequest; the answer is bytes. An older worker leaves out its id
//	pulley.gw.<gw>.there               operator → gateway  empty; the answer is empty
//	pulley.gw.<gw>.stored.<n>          broker → gateway    the broker's ack of a Request (ParsePublishAck)
//	pulley.gw.<gw>.settled.<n>         broker → gateway    empty: deliveries are settled
//	pulley.gw.<gw>.uncalled.<id>.<mark>  broker → gateway  status 503: no worker received that call
//	pulley.gw.<gw>.left.<w>            gateway → itself    empty; the worker's last frames arrived before it
//	pulley.gw.<gw>.ref                 gateway → workers   Reference
//	pulley.gw.<gw>.told                gateway → gateways  HeldReport
//	pulley.gw.<gw>.turn                gateway → gateway   Release
//	pulley.wk.<w>.cancel               gateway → worker    Cancel
//	pulley.wk.<w>.credit               gateway → worker    WindowUpdate
//	pulley.wk.<w>.blame                gateway → worker    Blame
//	pulley.wk.<w>.call                 gateway → worker    Request and body, see Calls
//	pulley.wk.<w>.got.<gw>             gateway → worker    LinkAck
//	pulley.wk.<w>.direct               gateway → worker    DirectOffer
//	pulley.wk.<w>.refused.<mark>       gateway → worker    Refusal
//	pulley.wk.<w>.rival                worker → worker     Started, the answer to one
//	pulley.wk.<w>.bid.…, .gone.…                           replies to the worker, see below
//	pulley.wk.<stable id>.started      worker → workers    Started
//	pulley.drain.<w>                   operator → worker   empty; the answer is an Outcome
//	pulley.file.…, .batch.…, .result.…  gateway → stream    files and batches, see below
//	pulley.hb.<w>                      worker → gateways   Heartbeat
//	pulley.homes, .usage, .sides       gateway → gateways  AffinityReport, UsageReport, ShiftReport
//	pulley.demand                      gateway → gateways  DemandReport
//	pulley.policy                      writer → all        PolicyChanged
//	pulley.ev.<kind>                   anyone → operators  Event
//	pulley.used.<gw>.<start>.<part>    gateway → stream    UsageRecord; start is that of its period, in seconds since 1970
//	pulley.ask.requests, .ask.workers  operator → gateways empty; each answers with lists, then an empty message, that about workers with a Report in HeaderReport
//	pulley.ask.results                 operator → gateways the same; an older gateway does not answer
//	pulley.ask.request, pulley.do.…    operator → gateways see control.go
//
// The subject of what a worker sends has its id, so that the broker's permissions can bind it: a message that says it is of
// another worker is ignored. So is a message on a subject that its receiver has not subscribed to: what a bid brings is
// delivered to whichever subject the worker names, and keeps the one of the request. An answer to a question goes to its reply
// subject if that is none of Pulley's and none that begins with "$" (MayAnswer), since whoever asks chooses it.
//
// The lane is "shared" for requests that every worker of a pool may take. All other lanes are home
// lanes, named by a worker's stable id: they hold follow-ups of conversations that this worker has cached.
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
// A worker writes a bucket by publishing to the subject of the key, $KV.<bucket>.<key>, and reads a key with
// $JS.API.DIRECT.GET.KV_<bucket>.$KV.<bucket>.<key>. It needs no other API of JetStream than that and the one of bids.
//
// PULLEY_DEAD holds pulley.dead.> on file for 7 days, 10 000 messages, 1 GiB; less if the broker's store is smaller. The bucket
// PULLEY_WORKERS (memory, TTL 10 s) has each worker's Heartbeat under its id. The bucket
// PULLEY_POOLS (file) has each pool that workers serve or have served lately, under its token. Gateways remove it, and its
// consumers, when no worker has had it for 10 minutes, unless the policy mentions it or it has requests. The bucket PULLEY_LEARNED (file, TTL 90 days) has
// what a worker has measured of its engine, a Learned under LearnedKey: the worker reads it when it starts.
//
// PULLEY_USAGE holds pulley.used.> on file for 35 days, 256 MiB, the last message of each subject; less if the broker's store is smaller.
// A gateway creates it with its first record. It publishes a UsageRecord every second while there is more, each with the
// sequence of the one before it (Nats-Expected-Last-Subject-Sequence), so that a late message replaces no later one.
//
// The bucket PULLEY_POLICY (file, 64 versions) has the policy under "policy", as a policystore.Version. A writer replaces
// the revision that it read, then publishes a PolicyChanged. Every part reads the policy at its start, when a PolicyChanged
// arrives, and every 500 ms if the last sequence of the bucket has changed. A policy that does not validate is ignored: the
// last valid one stays in effect; a part that starts reads the versions before it.
//
// The bucket PULLEY_KEYS (file) has each API key under "key." and its id, as a policy.Key. Gateways and operators read it,
// workers may not. Older versions stored keys in PULLEY_POLICY, and there they count too unless PULLEY_KEYS has a record of
// them, be it of their removal. A gateway copies them, and removes them from PULLEY_POLICY with their history when no gateway
// is left whose References lack "keys".
//
// PULLEY_FILES, PULLEY_BATCH and PULLEY_BATCH_RESULTS (file, a TTL for each message) are for files and batches; package batch says how
// gateways use them, and workers have no part in it. PULLEY_FILES has one message on each pulley.file.<file id>.<n>, the n-th 256 KiB of
// its content. PULLEY_BATCH has one JSON record on each of these subjects, which is replaced only if its sequence is still the last:
//
//	pulley.batch.file.<tenant>.<id>    a file; written when its content is complete
//	pulley.batch.batch.<tenant>.<id>   a batch, with the service that owns it
//	pulley.batch.open.<id>             there while that batch has not ended
//	pulley.batch.settings              the limit of the disk, by the gateway that was started last
//
// PULLEY_BATCH_RESULTS has the results of each batch on pulley.result.<id>, in lines of text. A message is stored only if the sequence
// that its sender expects is the last on the subject. Its Pulley-Append is the mark of the owner, a dot and a number.
//
// # Request messages
//
// The data is the client's body, unchanged, or empty if the body travels by reference. Headers:
//
//	Pulley-Request   a Request, as one line of JSON
//	Nats-Msg-Id      the request's id; with ".<sequence>" if it is published again after the message with that sequence was lost
//	Nats-TTL         whole seconds until the client's deadline, such as 600s
//	Pulley-Reason    of a dead letter: why the request could not be answered
//	Pulley-History   of a dead letter, once for each attempt: its number, worker, time, and why it failed, as text
//
// A Request names the gateway that holds the client's connection, the method, the path with its query (it starts with a
// slash), the end-to-end headers for the engine, and whether the client asked for a stream. Of the headers, traceparent and
// tracestate are the context of the gateway's span, if it makes traces. Header values are bytes: in JSON each byte is the code
// point of the same number, so that "é" in UTF-8 is "Ã©". Header names are canonical (Content-Type). The deadline, by
// which the first byte of the answer has to come, is informative: the gateway enforces it.
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
// start is cached until that worker is three rungs more expensive than another, full or gone. On its own home lane a worker bids
// 8 at most, and also while it bids on no other because prompts wait in its engine (policy.MayWaitAtHome).
//
// If the contexts of a pool's workers differ (PoolStatus.Length), there is a lane long:<tokens> for each length but the least
// (PoolReference.Lengths). Requests that are estimated to need more than the least wait on the one of the smallest length that
// suffices, or of the largest if none does, and a worker bids on those up to its own length. An older worker sends no length: it
// gets none of these requests, and an older gateway makes no such lanes.
//
// In a pool with more than 64 workers that have a free slot, not all bid on the shared lanes: the reference says which ones do
// (PoolReference.Ration), the cheapest. A worker decides once for each reference, by its price then. If requests wait, or run,
// beyond what the bids allow, the gateways publish another reference at once, and all may bid.
//
// Bids expire after 8 s, those of a tier below an active one after 2 s, and those on a home lane that has brought nothing for
// 10 s after 24 s. They are never cancelled, since a cancellation
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
// A worker that has failed the request before is likely to be refused. So is one whose delivery has waited in the stream for
// more than a second, if the broker has restarted or the consumer has a new leader: these deliver requests again that run or
// have ended. And if no Reference of the gateway has come for 1.5 s, it may be gone. In all these cases the worker sets confirm
// in its Claim, and calls the engine only when the answer "go" has come, or none within a second though a Reference has. If
// there was neither, it fails the attempt as draining and hands the request back with a delay of a second.
//
// A claim is granted to a worker that, by its last heartbeat, serves the request's pool or one that spills over to it. So a
// worker does not bid on a pool before a heartbeat has announced it. A claim of any other worker is refused as not-you, with a
// delay of 100 ms, in case its heartbeat is on its way; a gateway that has just started or connected grants it. The ack subject
// must be that of a delivery of the request's own message, from the stream and the consumer on which it waits: a claim of any
// other delivery is refused as gone, and one whose ack subject is none is dropped. The gateway publishes nowhere because a claim
// says so.
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
//	a  alive   an Alive, on a direct connection: by the broker it could overtake the claim of an attempt that it lists
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
// The reply subject of one message in 200 ms is pulley.wk.<w>.gone.<gw>: status 503 there means that the broker knows no such
// gateway. If that lasts for 0.7 s, and no Reference of it comes, the gateway is gone. While something runs for the gateway and
// no message has asked for 0.4 s, the worker asks with an Alive that has no attempts. For 10 s after the worker itself has
// connected again, a gateway is gone only if it is silent, or has been heard since.
//
// # Direct connections
//
// A gateway that workers can reach takes the messages of links past the broker as well. When one comes through the broker, the
// gateway sends that worker a DirectOffer, at most one in 30 s: where it listens, and a secret. An offer holds for 10 s and can be
// used once. A worker may ignore it, as older ones do, and ignores one whose address is on loopback if its own connection to
// the broker is not. Else it connects, by TLS if the offer names a certificate (as it does if the gateway's own connection to the broker
// has TLS): then the certificate must be that one, whoever signed it. On the connection each message has four bytes with its
// length before it. The first is the worker's DirectHello, with the HMAC-SHA256 of "worker <w>" under the secret; the second
// the gateway's DirectWelcome, with that of "gateway <gw>". Then the worker sends messages of its link, as above, and the
// gateway LinkAcks. The gateway acknowledges messages on the way that the worker has last chosen.
//
// The connection changes nothing else: numbers and acknowledgments are those of the link, and both ways may be used in turn.
// When it ends, the worker sends all that is not acknowledged through the broker. Claims that come by it are granted by the same
// rules: a worker that the broker does not let in any more sends no heartbeats, and gets none granted.
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
// Frames count if they come from the worker that was granted the attempt.
//
// A gap in the sequence, a malformed frame, or bytes beyond the window fail the attempt. Header
// values are encoded as in a Request; names may have any case, and hop-by-hop headers are dropped.
//
// A Fail has a class, which says what the failure means for the request and for the worker (see FailClass), and the
// engine's own answer if there was one, it was short, and it is fit for a client. A worker sends no frame of an answer
// before a part of it shows content or an error (api.Inspector), and fails an attempt whose answer is none. An error that
// names the request is an answer like any other (api.FaultOf). Of the other errors of an engine, 429 and 503 are class
// refused; an unknown model or path, refused credentials and a context that is too short are class misfit, but class credentials if these may change; 5xx, and
// errors with status 200, are class engine. A connection to the engine that breaks is class crashed, and so is an
// error of class engine after which the engine is not well, or by which a part of it has died. An event stream
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
// that the gateway does not have the request any more, or that the worker does not run it by what
// the gateway knows: the worker asks again for 1.6 s, since its claim may be on its way.
//
// # Signs of life
//
//	Heartbeat   every 500 ms. After 1.5 s without one, all attempts of the worker are failed over; time in which the gateway
//	            itself gets no answer from its NATS server does not count. A worker whose server does not answer goes to another
//	            one within a second, if it knows one. A fenced worker says why in
//	            reason, and in fence_class, one word from a fixed set (gpu.FenceClass). One that is down because its engine refuses
//	            its credentials, has a certificate that is not trusted, or is a web page, says which in down_class (DownClass). One that chooses among data-parallel ranks has the load of each in ranks. For each pool it has what the engine's list
//	            says of the model (listed), and whether its name may be spelled otherwise (any_case); an older worker sends neither
//	            State busy means that the engine has requests and answers nothing else in time: it keeps them, and gets no new ones.
//	            Gateways take in 100 pools of a worker (MaxPools) within ten minutes, those that it had before first, and ignore the others
//	            Pools whose requests the engine does not answer have vitality hung, and those for which it is suspect vitality
//	            suspect, with the reason in failing or doubt. notes say how the worker differs from what is usual in the pool.
//	            Of a worker that is fenced with class hung or frozen, gateways fail over the attempts without a first byte as far
//	            as other workers have free slots, and the same of a pool with vitality hung
//	Alive       every second to each gateway, in as many messages as it takes: the attempts that run for it, how many items of frames each has sent, and what
//	            the last WindowUpdate said. An attempt that its gateway does not want is cancelled, and a WindowUpdate that was lost
//	            is sent again. One is marked late if its first byte takes much longer than was measured: its gateway may fail it over, once. An attempt that is not listed for 3.5 s has failed, and so has one of which fewer items have come for 10 s
//	Reference   every second, and as soon as a pool's consumers exist: the lowest price of each pool and its mean request,
//	            so that workers, which do not receive each other's messages, price alike; and what is usual among its workers (usual).
//	            It also says how many requests have stood in the broker for a second (standing): a worker without a bid on their lane
//	            hears of them by no delivery, and deals slots to them; and on which lanes none was taken for a minute (starving)
//	            More than 32 home lanes of a pool are listed when they have changed, when a worker has joined, and every 5 s; other
//	            References have an id in their place (homes_id), unless a worker's heartbeat lacks keeps_homes. After 10 s without one, and with a connection
//	            to the broker as old, a worker drops what it runs for that gateway. For a pool whose model some worker would have
//	            to load (PoolStatus.Cold), it also says how many workers have it loaded and how long requests have waited for it;
//	            and with a Shortage, which older gateways do not send, how many wait, how many these workers could start, for
//	            how long that has not sufficed, and which workers could load it without pushing out what is in use. When that
//	            has lasted for a second, a Reference is published at once. See policy.Shortage
//
// A worker publishes a Started when it starts, and when it has connected again; another one with the same stable id answers it.
// If that id is configured at both, the one that has started later serves, and the other drains and leaves: they have the same
// credentials, and two would be a mistake. Else both serve, and both say so in their logs.
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
// Each delivery is settled once, by publishing to its ack subject. The gateway knows it from the Claim. If a request that runs
// is delivered once more, it settles the last delivery of each message. Up to 250 ms later it publishes the last +ACK for each
// consumer once more, with a reply subject: the answer confirms all that it has settled there until then. Without an answer it
// looks after a second, and then again, whether the stream still has these messages: if so it settles their deliveries again,
// and deletes the messages.
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
//	no claim of it arrives within 2 s        gateway      the same; within 0.2 s while a worker of the pool is silent
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
// # Background responses
//
// Gateways store them, and workers have nothing to do with them: what runs is a request like any other. The streams and
// subjects are in BackgroundLimits and its neighbours; package background says what is in them. A core message on
// pulley.background.stop, with an id as its body, tells all gateways that this response was cancelled or deleted.
//
// # Idempotency
//
// Gateways store answers by the Idempotency-Key of their requests; workers have nothing to do with it. The streams and subjects are in
// IdempotencyLimits and its neighbours; package idempotency says what is in them. A request to IdempotencyOwner of a gateway, with the
// name of a run as its body, is answered with 1 if it runs there, else with 0.
//
// # Permissions
//
// A worker publishes
//
//	$JS.API.CONSUMER.MSG.NEXT.PULLEY_REQ_<TIER>.<consumer>                  bids
//	$JS.ACK.PULLEY_REQ_<TIER>.<consumer>.>, and with domain and account     to settle what it was delivered
//	pulley.gw.*.link.<w>, pulley.gw.*.alive.<w>, pulley.gw.*.body.<w>
//	pulley.hb.<w>, $KV.PULLEY_WORKERS.<w>
//	$JS.API.DIRECT.GET.KV_PULLEY_POLICY
//	$JS.API.DIRECT.GET.KV_PULLEY_LEARNED.$KV.PULLEY_LEARNED.<key>, $KV.PULLEY_LEARNED.<key>, with its LearnedKey; without that right it measures again after a restart
//
// and subscribes to pulley.wk.<w>.>, pulley.wk.<stable id>.started, pulley.drain.<w>, pulley.gw.*.ref, pulley.policy and an inbox.
// It creates nothing.
//
// Permissions alone do not hold a worker that means harm: whoever publishes to an API of JetStream names the subject of the
// answer, and the server publishes there with its own rights. A bid whose reply subject is $JS.API.STREAM.DELETE.<stream> deletes
// that stream when it expires. So a worker needs an account of its own, which imports these subjects from that of the
// gateways, in which answers stay: 'pulley nats-config' writes such a configuration, docs/security.md explains it. The same
// holds for monitors, which ask for the state of streams.
package subjects
