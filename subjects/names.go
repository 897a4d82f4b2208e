package subjects

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
)

// Shared is the lane of a pool that all its workers bid on.
const Shared = "shared"

// LongLane is the lane of a pool for requests that not all of its workers can serve: those bid on it whose engine takes so many
// tokens, of a prompt with its answer. It is no worker's id, since these are tokens.
func LongLane(tokens int64) string { return "long:" + strconv.FormatInt(tokens, 10) }

// IsLongLane reports whether a lane is a LongLane.
func IsLongLane(lane string) bool { return strings.HasPrefix(lane, "long:") }

// MaxName is the longest model, tenant or lane name, in bytes, that becomes a subject token. Longer
// names are refused when they arrive.
const MaxName = 256

const hexDigits = "0123456789ABCDEF"

// Token escapes a string into one subject token: letters, digits and '-' are unchanged, every other
// byte becomes "_XX" in upper-case hex, and the empty string becomes "_". The result has no dot,
// wildcard or white space, so no name can reach another name's subject. Untoken reverses it.
func Token(name string) string {
	if name == "" {
		return "_"
	}
	n := 0
	for i := range len(name) {
		if !plain(name[i]) {
			n++
		}
	}
	if n == 0 {
		return name
	}
	b := make([]byte, 0, len(name)+2*n)
	for i := range len(name) {
		if c := name[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '_', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(b)
}

func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-'
}

// Untoken reverses Token. It refuses everything that Token does not produce.
func Untoken(token string) (string, error) {
	if token == "_" {
		return "", nil
	}
	name, err := url.PathUnescape(strings.ReplaceAll(token, "_", "%"))
	if err != nil || name == "" || Token(name) != token {
		return "", fmt.Errorf("subject token %q: not an escaped name", token)
	}
	return name, nil
}

// The core NATS subjects. Gateway and worker ids are already tokens.
const (
	AllGateways   = "pulley.gw.*.ref"     // the References of all gateways
	AllHeld       = "pulley.gw.*.told"    // the HeldReports of all gateways
	AllHeartbeats = "pulley.hb.>"         // the heartbeats of all workers
	AskRequests   = "pulley.ask.requests" // every gateway answers with RequestInfos
	AskWorkers    = "pulley.ask.workers"  // every gateway answers with the Heartbeats that it has
	AskResults    = "pulley.ask.results"  // every gateway answers with PoolResults
)

func Gateway(gw string) string        { return "pulley.gw." + gw }
func GatewayRef(gw string) string     { return "pulley.gw." + gw + ".ref" }
func GatewayHeld(gw string) string    { return "pulley.gw." + gw + ".told" }
func GatewayRelease(gw string) string { return "pulley.gw." + gw + ".turn" }

// What a worker sends to a gateway has the worker's id in the subject, so that the permissions of the broker can bind it:
// GatewayLink is for claims and frames, GatewayAlive for its list of attempts, GatewayBody for questions for a body.
func GatewayLink(gw, w string) string  { return "pulley.gw." + gw + ".link." + w }
func GatewayAlive(gw, w string) string { return "pulley.gw." + gw + ".alive." + w }
func GatewayBody(gw, w string) string  { return "pulley.gw." + gw + ".body." + w }

// GatewayAck is where the broker acknowledges the n-th message of a gateway.
func GatewayAck(gw string, n uint64) string {
	return "pulley.gw." + gw + ".stored." + strconv.FormatUint(n, 16)
}

// GatewaySettled is where the broker confirms the n-th batch of deliveries that a gateway has settled.
func GatewaySettled(gw string, n uint64) string {
	return "pulley.gw." + gw + ".settled." + strconv.FormatUint(n, 16)
}

// GatewayThere is where a gateway answers that it is there, with an empty message.
func GatewayThere(gw string) string { return "pulley.gw." + gw + ".there" }

// GatewayLeft is where a gateway sends itself a message when a worker has left: it arrives behind the worker's last frames.
func GatewayLeft(gw, w string) string { return "pulley.gw." + gw + ".left." + w }

// GatewayUncalled is where the broker reports that no worker received the call of an attempt.
func GatewayUncalled(gw string, id ID, attempt uint64) string {
	return "pulley.gw." + gw + ".uncalled." + id.String() + "." + strconv.FormatUint(attempt, 16)
}

// ParseUncalled parses what follows "uncalled." in such a subject.
func ParseUncalled(arg string) (id ID, attempt uint64, err error) {
	text, mark, _ := strings.Cut(arg, ".")
	if id, err = ParseID(text); err == nil {
		attempt, err = strconv.ParseUint(mark, 16, 64)
	}
	return id, attempt, err
}

// Worker is the common prefix of the subjects on which a worker receives messages.
func Worker(w string) string       { return "pulley.wk." + w }
func WorkerCancel(w string) string { return "pulley.wk." + w + ".cancel" }
func WorkerWindow(w string) string { return "pulley.wk." + w + ".credit" }
func WorkerBlame(w string) string  { return "pulley.wk." + w + ".blame" }
func WorkerCall(w string) string   { return "pulley.wk." + w + ".call" }
func WorkerDirect(w string) string { return "pulley.wk." + w + ".direct" }
func WorkerBids(w string) string   { return "pulley.wk." + w + ".bid" }
func Heartbeats(w string) string   { return "pulley.hb." + w }

// StableID is the first token of a worker's id. It stays when the worker is started again, so that permissions can name it. It
// is also the name of the worker's home lane.
func StableID(w string) string {
	id, _, _ := strings.Cut(w, ".")
	return id
}

// EngineID is the stable id of the worker of the n-th engine, from 1, of a process that was given an id.
func EngineID(id string, n int) string {
	if n == 1 {
		return id
	}
	return id + "-" + strconv.Itoa(n)
}

// WorkerStarted is where a worker says that it has started with a stable id, to others that have the same. WorkerRival is
// where such another one answers.
func WorkerStarted(id string) string { return "pulley.wk." + id + ".started" }
func WorkerRival(w string) string    { return "pulley.wk." + w + ".rival" }

// WorkerRefused is where the refusal of an attempt's claim is sent.
func WorkerRefused(w string, attempt uint64) string {
	return "pulley.wk." + w + ".refused." + strconv.FormatUint(attempt, 16)
}

// WorkerGone is where the broker reports that no gateway received a message to gw.
func WorkerGone(w, gw string) string { return "pulley.wk." + w + ".gone." + gw }

// WorkerGot is where gateway gw acknowledges messages of a worker's link.
func WorkerGot(w, gw string) string { return "pulley.wk." + w + ".got." + gw }

// MayAnswer reports whether a party may publish an answer to the reply subject of a question. Whoever asks chooses that
// subject, and may not be allowed to publish there itself: so it must be none of Pulley's, and none of the broker's APIs.
func MayAnswer(reply string) bool {
	return reply != "" && literal(reply) && !strings.HasPrefix(reply, "$") && !strings.HasPrefix(reply, "pulley.")
}

// GatewayOf is the gateway that a subject belongs to.
func GatewayOf(subject string) (gw string, ok bool) {
	rest, ok := strings.CutPrefix(subject, "pulley.gw.")
	gw, _, cut := strings.Cut(rest, ".")
	return gw, ok && cut
}

// Match reports whether a subject is one that a pattern with wildcards matches, or is the pattern itself.
func Match(pattern, subject string) bool {
	for {
		want, wants, more := strings.Cut(pattern, ".")
		if want == ">" {
			return subject != ""
		}
		is, rest, has := strings.Cut(subject, ".")
		if want != "*" && want != is || more != has {
			return false
		}
		if !more {
			return is != ""
		}
		pattern, subject = wants, rest
	}
}

// LastToken is the part of a subject after its last dot.
func LastToken(subject string) string {
	return subject[strings.LastIndexByte(subject, '.')+1:]
}

// Req is the subject on which a request waits.
func Req(tier, pool, lane string) string {
	return "pulley.req." + Token(tier) + "." + Token(pool) + "." + Token(lane)
}

// PoolRequests is the subject of all requests of a pool in a tier.
func PoolRequests(tier, pool string) string {
	return "pulley.req." + Token(tier) + "." + Token(pool) + ".>"
}

// Subjects of streams and permissions: the requests of all tiers, all dead letters, and every subject of Pulley.
const (
	AllReqs     = "pulley.req.>"
	allDead     = "pulley.dead.>"
	AllSubjects = "pulley.>"
)

// DirectGetBound is a member of each query by DirectGet: the most bytes of the answer. Without it nats-server 2.15.2 takes what its
// options say, and reads them while a reload may write them.
const DirectGetBound = `"max_bytes":67108864`

// DirectGet is the API subject that reads a message of a stream without a consumer.
func DirectGet(stream string) string { return "$JS.API.DIRECT.GET." + stream }

// GetMsg is the API subject at which the leader of a stream answers with a message.
func GetMsg(stream string) string { return "$JS.API.STREAM.MSG.GET." + stream }

// DirectGetKey is the API subject that reads the last message of a key of a bucket.
func DirectGetKey(bucket, key string) string {
	return DirectGet(KVStream(bucket)) + "." + KVSubject(bucket, key)
}

// DeleteMsg is the API subject that deletes a message of a stream.
func DeleteMsg(stream string) string { return "$JS.API.STREAM.MSG.DELETE." + stream }

// KVStream is the stream of a bucket; KVSubject is the subject of one of its keys, which may be a wildcard.
func KVStream(bucket string) string       { return "KV_" + bucket }
func KVSubject(bucket, key string) string { return "$KV." + bucket + "." + key }

// Purge is the message that removes a key of a bucket with its history, and leaves a marker.
func Purge(bucket, key string) *nats.Msg {
	return &nats.Msg{Subject: KVSubject(bucket, key), Header: nats.Header{"KV-Operation": {"PURGE"}, "Nats-Rollup": {"sub"}}}
}

// Dead is the subject of a pool's dead letters.
func Dead(tier, pool string) string { return "pulley.dead." + Token(tier) + "." + Token(pool) }

// DeadFilter matches the dead letters of a tier and a pool; an empty name matches all.
func DeadFilter(tier, pool string) string {
	token := func(name string) string {
		if name == "" {
			return "*"
		}
		return Token(name)
	}
	return "pulley.dead." + token(tier) + "." + token(pool)
}

// ReqStream is the stream of a tier's requests. Tier names are lower case (policy checks that), so
// no two tiers share a stream.
func ReqStream(tier string) string { return "PULLEY_REQ_" + strings.ToUpper(Token(tier)) }

// The other streams and buckets.
const (
	DeadStream    = "PULLEY_DEAD"
	PolicyBucket  = "PULLEY_POLICY"
	KeysBucket    = "PULLEY_KEYS"
	WorkersBucket = "PULLEY_WORKERS"
	PoolsBucket   = "PULLEY_POOLS"
	LearnedBucket = "PULLEY_LEARNED"
)

// LearnedKey is the key of LearnedBucket for the worker of a name on a host. For a worker with an id of its own that is the
// name, and the host is empty.
func LearnedKey(host, name string) string { return Token(host) + "." + Token(name) }

// ReqConsumer is the durable consumer of one lane of a pool in its tier's stream. A name that is too long for a
// consumer is replaced by a hash. Names are never parsed from a consumer's name; its metadata has them.
func ReqConsumer(pool, lane string) string {
	name := Token(pool) + "=" + Token(lane)
	if len(name) <= 200 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "=" + hex.EncodeToString(sum[:]) // no token is empty, so no other consumer's name starts with "="
}

// TierOf is the tier of a ReqStream.
func TierOf(stream string) string {
	return strings.ToLower(strings.TrimPrefix(stream, "PULLEY_REQ_"))
}

// PolicyKey is the key of PolicyBucket for the policy.
const PolicyKey = "policy"

// AllAPIKeys matches the keys of KeysBucket, and those of PolicyBucket, where older versions kept API keys.
const AllAPIKeys = keyPrefix + "*"

const keyPrefix = "key."

// APIKey is the key of KeysBucket for an API key.
func APIKey(id string) string { return keyPrefix + id }

// PolicyChanges is the subject on which changes of the policy and of API keys are announced.
const PolicyChanges = "pulley.policy"
