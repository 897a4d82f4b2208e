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

// keyring knows the API keys, and what was used of their limits: by this
// gateway, and by the others as they tell. See policy.Limits for what that
// promises.
type keyring struct {
	// Fixed after newKeyring.
	g       *Gateway
	refused *prometheus.CounterVec
	limited *prometheus.CounterVec

	keys    atomic.Pointer[map[string]*heldKey] // by id; nil: not read yet
	hadKeys atomic.Bool                         // there was one since the gateway started
	peers   atomic.Int64                        // the other gateways that live
	hearing chan struct{}                       // closed when the others had the time to be heard, by run
	started time.Time                           // when that was; fixed by then

	mu    sync.Mutex
	heard map[string]*peerUsage // the other gateways, by id

	changedMu sync.Mutex
	changed   []*heldKey // used since it was told
}

// heldKey is a key as it is in force. It is never changed; its usage is.
type heldKey struct {
	policy.Key
	hash, old [sha256.Size]byte
	usage     *keyUsage
}

// limits says whether there is anything to count.
func (k *heldKey) limits() bool { return k.RPM > 0 || k.TPM > 0 || k.Concurrency > 0 }

type keyUsage struct {
	changed atomic.Bool // since it was told: it is in keyring.changed

	mu     sync.Mutex
	limits policy.Limits
	before bool // the key was there before this gateway, and was not used here yet
}

// peerUsage is what another gateway told last.
type peerUsage struct {
	at   time.Time
	live bool
	keys map[string]subjects.KeyUsage
}

// caller is who sent a request. One caller is for one request.
type caller struct {
	key    *policy.Key // nil where no key is needed
	tenant string

	held   *heldKey
	tokens int // that were taken when it began
	began  bool
}

func newKeyring(g *Gateway) *keyring {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "pulley", Name: name, Help: help}, []string{label})
	}
	return &keyring{
		g:       g,
		hearing: make(chan struct{}),
		heard:   make(map[string]*peerUsage),
		refused: counter("auth_refused_total", "Requests without a good key: missing, wrong, expired, rotated, or starting.", "reason"),
		limited: counter("rate_limited_total", "Requests that a key's limit did not let in, by limit.", "limit"),
	}
}

// required says whether clients need a key. Until the keys are read they do: an
// answer would let anybody in. And once there was one they do: revoking the last
// key must not open the gateway to everybody.
func (k *keyring) required() bool {
	switch k.g.cfg.Auth {
	case AuthOff:
		return false
	case AuthRequired:
		return true
	}
	return k.keys.Load() == nil || k.hadKeys.Load()
}

// read says whether it is known which keys there are, or of no consequence.
func (k *keyring) read() bool { return k.g.cfg.Auth == AuthOff || k.keys.Load() != nil }

// state says in words whether clients need a key.
func (k *keyring) state() string {
	keys := k.keys.Load()
	switch {
	case !k.required():
		return "not required"
	case keys == nil:
		return "not read yet"
	}
	return fmt.Sprintf("required, there are %d", len(*keys))
}

// set replaces the keys. What was used of those that stay is kept.
func (k *keyring) set(keys map[string]policy.Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	before := k.keys.Load()
	held := make(map[string]*heldKey, len(keys))
	for id, key := range keys {
		h := &heldKey{Key: key, hash: hashBytes(key.Hash), old: hashBytes(key.OldHash)}
		switch {
		case before == nil:
			h.usage = &keyUsage{before: true}
			k.catchUpLocked(h, false, now)
		case (*before)[id] == nil:
			h.usage = new(keyUsage)
			k.catchUpLocked(h, true, now)
		default:
			h.usage = (*before)[id].usage
		}
		held[id] = h
	}
	for _, p := range k.heard {
		for id := range p.keys {
			if held[id] == nil {
				delete(p.keys, id)
			}
		}
	}
	if len(held) > 0 {
		k.hadKeys.Store(true)
	}
	k.keys.Store(&held)
}

// catchUpLocked gives a key what the others told of it before it was known
// here. What they used of one that is not fresh, nobody knows when.
func (k *keyring) catchUpLocked(h *heldKey, fresh bool, now time.Time) {
	for _, p := range k.heard {
		u, ok := p.keys[h.ID]
		if !ok {
			continue
		}
		used := policy.Used{Running: u.Running}
		if fresh {
			used.Requests, used.Tokens = firstUsed(&h.Key, u)
		}
		h.usage.limits.Heard(&h.Key, used, now)
	}
}

func hashBytes(s string) (sum [sha256.Size]byte) {
	if b, err := hex.DecodeString(s); err == nil && len(b) == len(sum) {
		copy(sum[:], b)
	}
	return sum // else what no key hashes to
}

// anybody is who sends requests where no key is needed.
var anybody = new(caller)

// nobody is compared with where there is no such key, so that it takes as long.
var nobody = new(heldKey)

// authenticate says who sends a request: the tenant of the key in its
// Authorization, x-api-key or api-key header. Where no key is needed, what these
// headers say does not matter: the SDKs always send something.
func (k *keyring) authenticate(h http.Header, now time.Time) (*caller, error) {
	if !k.required() {
		return anybody, nil
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
	held := (*keys)[id]
	if held == nil {
		held = nobody
	}
	sum := sha256.Sum256([]byte(sent))
	present := subtle.ConstantTimeCompare(sum[:], held.hash[:])
	past := subtle.ConstantTimeCompare(sum[:], held.old[:])
	switch {
	case held == nobody || present|past == 0:
		return nil, k.refuse("wrong", "the API key is wrong, or has been revoked")
	case present == 0 && !now.Before(held.OldUntil):
		return nil, k.refuse("rotated", "the API key has been replaced by a new one")
	case !held.Expires.IsZero() && !now.Before(held.Expires):
		return nil, k.refuse("expired", "the API key expired on "+held.Expires.UTC().Format(time.RFC3339))
	}
	return &caller{key: &held.Key, tenant: held.Tenant, held: held}, nil
}

// errKeysStarting: nobody may slip through before the keys are known.
var errKeysStarting = api.Unavailable("starting", time.Second, "the gateway starts and has not read the API keys yet")

func (k *keyring) refuse(reason, message string) error {
	k.refused.WithLabelValues(reason).Inc()
	return &api.Error{Status: http.StatusUnauthorized, Code: "invalid_api_key", Message: message}
}

// sentKey is the first of a request's credentials that looks like a key of
// ours, else the first.
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

// begin takes what a request needs of its key's limits, or says which one has no
// room, and tells in the answer's header how they stand.
func (k *keyring) begin(c *caller, inputTokens int, header http.Header, now time.Time) error {
	if c.held == nil || !c.held.limits() {
		return nil
	}
	if !k.knows() {
		return api.Unavailable("starting", time.Second, "the gateway starts and does not know yet what was used of the API key's limits")
	}
	gateways, key, u := int(k.peers.Load())+1, c.key, c.held.usage
	u.mu.Lock()
	if u.before {
		u.before = false
		u.limits.Join(key, gateways, k.started, now)
	}
	over, ok := u.limits.Begin(key, inputTokens, gateways, now)
	requests, tokens := u.limits.Requests(key, now), u.limits.Tokens(key, now)
	u.mu.Unlock()
	if ok {
		c.tokens, c.began = inputTokens, true
		k.used(c.held)
	} else {
		switch over.Limit {
		case policy.LimitRequests:
			requests.Left = 0
		case policy.LimitTokens:
			tokens.Left = 0
		}
	}
	requestsHeader.set(header, requests)
	tokensHeader.set(header, tokens)
	if !ok {
		k.limited.WithLabelValues(string(over.Limit)).Inc()
		retry := min(over.Again, policy.MaxRetryAfter)
		header["Retry-After-Ms"] = []string{strconv.FormatInt(ceilMillis(retry).Milliseconds(), 10)}
		return &api.Error{Status: http.StatusTooManyRequests, Code: "rate_limit_exceeded", Message: limitMessage(key, over, gateways), RetryAfter: retry}
	}
	return nil
}

// knows says whether the other gateways were heard. In a gateway's first moments
// it waits for that: a client cannot know that it came too early.
func (k *keyring) knows() bool {
	select {
	case <-k.hearing:
		return true
	default:
	}
	select {
	case <-k.hearing:
		return true
	case <-time.After(time.Second):
		return false
	}
}

// limitMessage is in the words of OpenAI's, which clients are known to parse.
func limitMessage(key *policy.Key, over policy.Excess, gateways int) string {
	what := map[policy.LimitName]string{
		policy.LimitRequests:    "requests per min (RPM)",
		policy.LimitTokens:      "tokens per min (TPM)",
		policy.LimitConcurrency: "requests at once",
	}[over.Limit]
	m := fmt.Sprintf("Rate limit reached for key %s of tenant %s on %s: Limit %d, Used %d, Requested %d. Please try again in %v.",
		key.ID, api.Quote(key.Tenant), what, over.Max, over.Used, over.Asks, ceilMillis(over.Again))
	if over.Shared {
		m += fmt.Sprintf(" What is left may be in use at one of the %d gateways.", gateways)
	}
	return m
}

func ceilMillis(d time.Duration) time.Duration {
	return (d + time.Millisecond - 1).Truncate(time.Millisecond)
}

// limitHeader names the headers that tell how a limit stands.
type limitHeader struct{ limit, remaining, reset string }

// In the form in which http.Header keeps them.
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

// end gives back what a request took while it ran, and counts the tokens that
// the engine reported instead of the estimate. 0 is not reported: then the
// estimate of the input stays, and no output counts.
func (k *keyring) end(c *caller, inputTokens, outputTokens int, now time.Time) {
	if c == nil || !c.began {
		return
	}
	c.began = false
	more := cmp.Or(inputTokens, c.tokens) + outputTokens - c.tokens
	u := c.held.usage
	u.mu.Lock()
	u.limits.End(c.key, more, now)
	u.mu.Unlock()
	k.used(c.held)
}

// used notes that there is something to tell of a key.
func (k *keyring) used(h *heldKey) {
	if h.usage.changed.Swap(true) {
		return
	}
	k.changedMu.Lock()
	defer k.changedMu.Unlock()
	k.changed = append(k.changed, h)
}

// queueShare is how many of the caller's tenant's requests may wait in a queue
// for maxQueue.
func (k *keyring) queueShare(c *caller, maxQueue int) int {
	if c.key == nil || c.key.MaxQueueShare == 0 {
		return maxQueue
	}
	return max(maxQueue*c.key.MaxQueueShare/100, 1)
}

const (
	// usageAlive is how often a gateway tells that it lives, where it has
	// nothing else to tell.
	usageAlive = time.Second

	// usageSilent is after how much silence a gateway is taken for dead.
	usageSilent = 3 * time.Second

	// usageAll is how often a gateway tells of every key.
	usageAll = 5 * time.Second

	// usageKept is how long a silent gateway is remembered, should it come back.
	usageKept = time.Minute

	// usageInMessage is how many keys fit well into a message.
	usageInMessage = 2000
)
