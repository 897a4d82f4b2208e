package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"
)

// A key reads sk-pulley-, its id, a dash, and its secret.
const (
	keyPrefix   = "sk-pulley-"
	keyIDLength = 10
)

// KeyID returns the id in an API key, or false if the key is not one of Pulley's. It checks that
// there is a secret, but not which.
func KeyID(key string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(key, keyPrefix)
	if !ok || len(rest) < keyIDLength+2 || rest[keyIDLength] != '-' || !isKeyID(rest[:keyIDLength]) {
		return "", false
	}
	return rest[:keyIDLength], true
}

func isKeyID(id string) bool {
	return len(id) == keyIDLength && !strings.ContainsFunc(id, func(r rune) bool { return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z') })
}

// HashKey returns what is stored of an API key.
func HashKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size
}

// Key is an API key as it is stored: its rights, and a hash of its secret.
type Key struct {
	ID     string `json:"id"` // public; part of the key itself
	Tenant string `json:"tenant"`
	// Hash is the SHA-256 of the whole key, in hex. A key has 256 random bits, so a slow hash would add nothing.
	Hash string `json:"hash"`
	// OldHash is the hash of the key before a rotation. It is valid until OldUntil.
	OldHash  string    `json:"old_hash,omitempty"`
	OldUntil time.Time `json:"old_until,omitzero"`

	// Tiers are those that the key may ask for; the first one serves requests that ask for none.
	// Default: DefaultTier and the tiers below it.
	Tiers []string `json:"tiers,omitempty"`
	// Models are those that the key may ask for; a trailing * matches any ending. Default: all.
	Models []string `json:"models,omitempty"`

	RPM         int `json:"rpm,omitempty"`         // requests per minute; 0: no limit
	TPM         int `json:"tpm,omitempty"`         // tokens per minute, in and out; 0: no limit
	Concurrency int `json:"concurrency,omitempty"` // concurrent requests; 0: no limit
	// MaxQueueShare is the percentage of a queue that the tenant's requests may occupy. Default 0: all of it.
	MaxQueueShare int `json:"max_queue_share,omitempty"`
	// Explain lets clients ask who served a request, and why, with x-pulley-explain. Default false.
	Explain bool `json:"explain,omitempty"`

	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`

	// Damage is why the stored record cannot be read; such a key has nothing else but its id, and no client can use it. It is
	// not stored.
	Damage string `json:"-"`
}

// Check validates a key. The error is an Invalid that lists every problem.
func (k *Key) Check() error {
	var c checker
	if !isKeyID(k.ID) {
		c.add([]string{"id"}, "%q: must be %d lower-case letters and digits", k.ID, keyIDLength)
	}
	c.name([]string{"tenant"}, k.Tenant)
	if !isHash(k.Hash) {
		c.add([]string{"hash"}, "must be 64 hex digits")
	}
	if k.OldHash != "" && !isHash(k.OldHash) {
		c.add([]string{"old_hash"}, "must be 64 hex digits")
	}
	for _, n := range []struct {
		name  string
		value int
	}{{"rpm", k.RPM}, {"tpm", k.TPM}, {"concurrency", k.Concurrency}} {
		if n.value < 0 || n.value > 1_000_000_000 {
			c.add([]string{n.name}, "%d: must be 0 (no limit) to 1000000000", n.value)
		}
	}
	if k.MaxQueueShare < 0 || k.MaxQueueShare > 100 {
		c.add([]string{"max_queue_share"}, "%d: must be 0 to 100 percent", k.MaxQueueShare)
	}
	for _, t := range k.Tiers {
		if !tierName.MatchString(t) {
			c.add([]string{"tiers"}, "%q: not a tier name", t)
		}
	}
	for _, m := range k.Models {
		c.name([]string{"models"}, m)
	}
	return c.err()
}

// AllowsModel reports whether the key may ask for a model.
func (k *Key) AllowsModel(model string) bool {
	return len(k.Models) == 0 || slices.ContainsFunc(k.Models, func(pattern string) bool { return Matches(pattern, model) })
}

// AllowsTier reports whether the key may ask for one of a policy's tiers.
func (k *Key) AllowsTier(tier string, tiers []Tier) bool {
	if len(k.Tiers) > 0 {
		return slices.Contains(k.Tiers, tier)
	}
	after := false
	for _, t := range tiers {
		if after = after || t.Name == DefaultTier; t.Name == tier {
			return after
		}
	}
	return false
}

// DefaultTier is the tier of requests that ask for none.
func (k *Key) DefaultTier() string {
	if len(k.Tiers) > 0 {
		return k.Tiers[0]
	}
	return DefaultTier
}

// Matches reports whether a pattern matches a name: equal, or equal up to a trailing *.
func Matches(pattern, name string) bool {
	if head, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, head)
	}
	return pattern == name
}
