package gateway

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/metric"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// AuthMode says whether clients need a key.
type AuthMode string

const (
	AuthAuto     AuthMode = "auto"     // as soon as one exists
	AuthRequired AuthMode = "required" // always
	AuthOff      AuthMode = "off"      // never
)

// keyring knows the API keys in force and how much of their limits was used: by this gateway, and by the others as their
// reports say. See policy.KeyLimits for what that guarantees.
type keyring struct {
	// Fixed after newKeyring.
	bus     *bus
	auth    AuthMode
	refused *prometheus.CounterVec
	limited *prometheus.CounterVec

	keys     atomic.Pointer[map[string]*activeKey] // by id; nil: not read yet
	hadKeys  atomic.Bool                           // a key has existed since the gateway started
	peers    atomic.Int64                          // the other gateways that live
	synced   chan struct{}                         // closed by run when the other gateways had the time to report
	syncedAt time.Time                             // fixed once synced is closed

	mu     sync.Mutex
	others map[string]*peerUsage // the other gateways, by id

	changedMu sync.Mutex
	changed   []*activeKey // used since the last report
	asking    []*activeKey // of claims about which the other gateways are to be asked
	question  uint64       // the number of the next question, from 1

	ask chan struct{} // wakes run: see asking. Its capacity is 1
}

// activeKey is a key in force. It does not change; its usage does.
type activeKey struct {
	policy.Key
	hash, oldHash [sha256.Size]byte
	usage         *keyUsage
}

// limits says whether the key has any limit.
func (k *activeKey) limits() bool { return k.RPM > 0 || k.TPM > 0 || k.Concurrency > 0 }

type keyUsage struct {
	changed atomic.Bool // since the last report: the key is in keyring.changed

	mu        sync.Mutex
	limits    policy.KeyLimits
	inherited bool            // the key existed before this gateway, which has not used it yet
	claims    []chan struct{} // wake requests that wait as claims; the capacity of each is 1
}

func (u *keyUsage) own() policy.Used {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.limits.Own()
}

// addOther counts what another gateway has used.
func (u *keyUsage) addOther(key *policy.Key, used policy.Used, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.limits.AddRemote(key, used, now)
	u.wakeLocked()
}

// caller is who sent a request. Each request has a caller of its own, except those that need no key: they share one.
type caller struct {
	key    *activeKey // nil if no key was needed, and for a request that no client waits for
	tenant string
	tier   string // that a service runs the request in; empty: what the request and the key ask for
	quiet  bool   // a service runs the request: see Do
	watch  *Watch // of that service; nil if it does not watch the request

	// Owned by the request's handler.
	tokens int  // counted against the key's limits when the request began
	began  bool // the request counts against them
}

// quietly says whether a stream that waits gets no comments.
func (c *caller) quietly() bool { return c != nil && c.quiet }

// keyID is the id of the caller's key; empty if none was needed.
func (c *caller) keyID() string {
	if c.key == nil {
		return ""
	}
	return c.key.ID
}

// limited says whether the caller's key has any limit.
func (c *caller) limited() bool { return c != nil && c.key != nil && c.key.limits() }

func newKeyring(b *bus, auth AuthMode) *keyring {
	return &keyring{
		bus: b, auth: auth,
		question: 1, ask: make(chan struct{}, 1),
		synced:  make(chan struct{}),
		others:  make(map[string]*peerUsage),
		refused: zeroed(metric.AuthRefused.CounterVec(), metric.KeyRefusals),
		limited: zeroed(metric.RateLimited.CounterVec(), metric.KeyLimits),
	}
}

// required says whether clients need a key. They do until the keys are read, since any answer would let them in. And they
// do once a key has existed: revoking the last one must not open the gateway to everyone.
func (k *keyring) required() bool {
	switch k.auth {
	case AuthOff:
		return false
	case AuthRequired:
		return true
	}
	return k.keys.Load() == nil || k.hadKeys.Load()
}

// ready says whether the keys are read, or not needed.
func (k *keyring) ready() bool { return k.auth == AuthOff || k.keys.Load() != nil }

// state describes whether clients need a key, for /readyz.
func (k *keyring) state() string {
	keys := k.keys.Load()
	switch {
	case !k.required():
		return "not required"
	case keys == nil:
		return "not read yet"
	}
	return fmt.Sprintf("required (%d keys)", len(*keys))
}

// anonymous is the caller of all requests that need no key.
var anonymous = new(caller)

// noKey stands in for a key that does not exist, so that the comparison takes as long.
var noKey = new(activeKey)

// authenticate returns who sends a request: the tenant of the key in its Authorization, x-api-key or api-key header. Where
// no key is needed these headers are ignored: the SDKs always send something.
func (k *keyring) authenticate(h http.Header, now time.Time) (*caller, error) {
	if !k.required() {
		return anonymous, nil
	}
	keys := k.keys.Load()
	if keys == nil {
		k.refused.WithLabelValues("starting").Inc()
		return nil, errKeysStarting
	}
	sent := sentKey(h)
	if sent == "" {
		return nil, k.refuse("missing", "no API key was sent: send it as Authorization: Bearer, or as x-api-key")
	}
	id, _ := policy.KeyID(sent)
	key := (*keys)[id]
	if key == nil {
		key = noKey
	}
	sum := sha256.Sum256([]byte(sent))
	present := subtle.ConstantTimeCompare(sum[:], key.hash[:])
	past := subtle.ConstantTimeCompare(sum[:], key.oldHash[:])
	switch {
	case key == noKey || present|past == 0:
		k.refused.WithLabelValues("wrong").Inc()
		return nil, errWrongKey
	case present == 0 && !now.Before(key.OldUntil):
		return nil, k.refuse("rotated", "the API key has been replaced by a new one")
	case !key.Expires.IsZero() && !now.Before(key.Expires):
		return nil, k.refuse("expired", "the API key expired on "+key.Expires.UTC().Format(time.RFC3339))
	}
	return &caller{key: key, tenant: key.Tenant}, nil
}

// errWrongKey refuses a key that does not exist.
var errWrongKey error = &api.Error{Status: http.StatusUnauthorized, Code: "invalid_api_key", Message: "the API key is wrong, or has been revoked"}

// errKeysStarting keeps clients out until the keys are read.
var errKeysStarting = api.Unavailable("starting", time.Second, "the gateway is starting and has not read the API keys yet")

func (k *keyring) refuse(reason, message string) error {
	k.refused.WithLabelValues(reason).Inc()
	return &api.Error{Status: http.StatusUnauthorized, Code: "invalid_api_key", Message: message}
}

// sentKey returns the first of a request's credentials that looks like a key of Pulley's, else the first.
func sentKey(h http.Header) string {
	first := ""
	for _, v := range h["Authorization"] {
		scheme, token, _ := strings.Cut(v, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			continue
		}
		token = strings.TrimSpace(token)
		if _, ours := policy.KeyID(token); ours {
			return token
		}
		first = cmp.Or(first, token)
	}
	for _, name := range [...]string{"X-Api-Key", "Api-Key"} {
		for _, v := range h[name] {
			if _, ours := policy.KeyID(v); ours {
				return v
			}
			first = cmp.Or(first, v)
		}
	}
	return first
}

// begin counts a request against its key's limits, or returns which limit it exceeds. It reports the state of the limits
// in the header of the answer.
func (k *keyring) begin(c *caller, inputTokens int, header http.Header, now time.Time) error {
	if !c.limited() {
		return nil
	}
	if !k.waitSynced() {
		return api.Unavailable("starting", time.Second, "the gateway is starting and does not know yet how much of the API key's limits was used")
	}
	gateways, key, u := int(k.peers.Load())+1, &c.key.Key, c.key.usage
	u.mu.Lock()
	if u.inherited {
		u.inherited = false
		u.limits.Join(key, gateways, k.syncedAt, now)
	}
	over, ok := u.limits.Begin(key, inputTokens, gateways, now)
	u.mu.Unlock()
	if !ok && over.Unsure && k.claim(c.key, inputTokens) {
		over, ok = policy.Excess{}, true
	}
	requests, tokens := u.standing(key, now)
	if ok {
		c.tokens, c.began = inputTokens, true
		k.markChanged(c.key)
	}
	switch over.Limit { // empty if ok
	case policy.LimitRequests:
		requests.Left = 0
	case policy.LimitTokens:
		tokens.Left = 0
	}
	requestsHeader.set(header, requests)
	tokensHeader.set(header, tokens)
	if !ok {
		k.limited.WithLabelValues(string(over.Limit)).Inc()
		retry := min(over.RetryAfter, policy.MaxRetryAfter)
		header["Retry-After-Ms"] = []string{strconv.FormatInt(ceilMillis(retry).Milliseconds(), 10)}
		return &api.Error{Status: http.StatusTooManyRequests, Code: "rate_limit_exceeded", Message: limitMessage(key, over, gateways), RetryAfter: retry}
	}
	return nil
}

func (u *keyUsage) standing(key *policy.Key, now time.Time) (requests, tokens policy.Standing) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.limits.Requests(key, now), u.limits.Tokens(key, now)
}

// waitSynced waits, for a second at most, until the other gateways had the time to report: a client cannot know that the
// gateway has just started.
func (k *keyring) waitSynced() bool {
	select {
	case <-k.synced:
		return true
	default:
	}
	select {
	case <-k.synced:
		return true
	case <-time.After(time.Second):
		return false
	}
}

// end gives back what a request counted while it ran, and counts the tokens that the engine reported instead of the
// estimate. 0 means not reported: then the estimate of the input stays, and no output counts.
func (k *keyring) end(c *caller, inputTokens, outputTokens int, now time.Time) {
	if c == nil || !c.began {
		return
	}
	c.began = false
	more := cmp.Or(inputTokens, c.tokens) + outputTokens - c.tokens
	u := c.key.usage
	u.mu.Lock()
	u.limits.End(&c.key.Key, more, now)
	u.wakeLocked()
	u.mu.Unlock()
	k.markChanged(c.key)
}

// markChanged makes the next report include a key.
func (k *keyring) markChanged(key *activeKey) {
	if key.usage.changed.Swap(true) {
		return
	}
	k.changedMu.Lock()
	defer k.changedMu.Unlock()
	k.changed = append(k.changed, key)
}

// queueShare is how many requests of the caller's tenant may be held in a queue that takes maxQueue.
func (k *keyring) queueShare(c *caller, maxQueue int) int {
	if c.key == nil || c.key.MaxQueueShare == 0 {
		return maxQueue
	}
	return max(maxQueue*c.key.MaxQueueShare/100, 1)
}

// set replaces the keys. The usage of those that stay is kept.
func (k *keyring) set(keys map[string]policy.Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	before := k.keys.Load()
	active := make(map[string]*activeKey, len(keys))
	for id, key := range keys {
		a := &activeKey{Key: key, hash: hashBytes(key.Hash), oldHash: hashBytes(key.OldHash)}
		switch {
		case before == nil:
			a.usage = &keyUsage{inherited: true}
			k.catchUpLocked(a, false, now)
		case (*before)[id] == nil:
			a.usage = new(keyUsage)
			k.catchUpLocked(a, true, now)
		default:
			a.usage = (*before)[id].usage
		}
		active[id] = a
	}
	for _, p := range k.others {
		for id := range p.keys {
			if active[id] == nil {
				delete(p.keys, id)
			}
		}
	}
	if len(active) > 0 {
		k.hadKeys.Store(true)
	}
	k.keys.Store(&active)
}

// catchUpLocked counts for a key what the other gateways reported of it before it was known here. When they used a key
// that is not new is unknown: of such a key only the running requests count. No other goroutine has the key yet.
func (k *keyring) catchUpLocked(a *activeKey, isNew bool, now time.Time) {
	for gateway, p := range k.others {
		u, ok := p.keys[a.ID]
		if !ok {
			continue
		}
		used := k.running(gateway, u, subjects.KeyUsage{})
		if isNew {
			used.Requests, used.Tokens = firstUsed(&a.Key, u)
		}
		a.usage.limits.AddRemote(&a.Key, used, now)
	}
}

// hashBytes decodes a stored hash. What is none becomes a value that no key hashes to.
func hashBytes(s string) (sum [sha256.Size]byte) {
	if b, err := hex.DecodeString(s); err == nil && len(b) == len(sum) {
		copy(sum[:], b)
	}
	return sum
}

// limitMessage uses OpenAI's wording, which clients are known to parse.
func limitMessage(key *policy.Key, over policy.Excess, gateways int) string {
	what := map[policy.LimitName]string{
		policy.LimitRequests:    "requests per min (RPM)",
		policy.LimitTokens:      "tokens per min (TPM)",
		policy.LimitConcurrency: "requests at once",
	}[over.Limit]
	m := fmt.Sprintf("Rate limit reached for key %s of tenant %s on %s: Limit %d, Used %d, Requested %d. Please try again in %v.",
		key.ID, api.Quote(key.Tenant), what, over.Max, over.Used, over.Asks, ceilMillis(over.RetryAfter))
	if over.Shared {
		m += fmt.Sprintf(" What is left may be in use at one of the %d gateways.", gateways)
	}
	return m
}

func ceilMillis(d time.Duration) time.Duration {
	return (d + time.Millisecond - 1).Truncate(time.Millisecond)
}

// limitHeader names the headers that report the state of a limit, in the spelling that http.Header uses.
type limitHeader struct{ limit, remaining, reset string }

var (
	requestsHeader = limitHeader{"X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests"}
	tokensHeader   = limitHeader{"X-Ratelimit-Limit-Tokens", "X-Ratelimit-Remaining-Tokens", "X-Ratelimit-Reset-Tokens"}
)

func (l *limitHeader) set(h http.Header, s policy.Standing) {
	if s.Limit == 0 {
		return
	}
	v := [...]string{strconv.Itoa(s.Limit), strconv.Itoa(s.Left), ceilMillis(s.Reset).String()}
	h[l.limit], h[l.remaining], h[l.reset] = v[0:1:1], v[1:2:2], v[2:3:3]
}
