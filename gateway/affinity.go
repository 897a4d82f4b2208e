package gateway

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// maxConversations bounds each of the two generations: with about 35 bytes for each conversation, 9 MB for both.
	maxConversations = 128 << 10

	// minAffinityAge is for how long a conversation is remembered at the least: longer than an engine keeps a prefix
	// that no request uses.
	minAffinityAge = 30 * time.Minute
)

// affinity remembers which worker has the beginning of which conversation in its cache. It learns that from claims and
// shares it with the other gateways; nothing is stored, and after a restart it is empty. A wrong entry costs one prefill.
type affinity struct {
	bus *bus

	mu        sync.Mutex
	young     generation // entries that were used since rotatedAt
	old       generation // the generation before
	rotatedAt time.Time
	shared    bool                     // there are other gateways
	fresh     []subjects.AffinityEntry // learned since the last report to them
}

func newAffinity(b *bus) *affinity {
	return &affinity{bus: b, young: newGeneration(), rotatedAt: time.Now()}
}

// find returns the entry of the conversation that a call continues, the zero entry if there is none, and the key under
// which the worker that takes the call is to be remembered; 0: not at all. Tenants and models do not share conversations.
func (a *affinity) find(c *api.Call, tenant, session string) (entry subjects.AffinityEntry, key uint64) {
	scope := hashOf("home", tenant, c.Model)
	if session != "" {
		key = mix(scope, hashOf(session))
		entry, _ = a.get(key)
		return entry, key
	}
	if whole := c.ConversationHash(); whole != 0 {
		key = mix(scope, whole)
	}
	for prefix := range c.PrefixHashes {
		var ok bool
		if entry, ok = a.get(mix(scope, prefix)); ok {
			break
		}
	}
	return entry, key
}

func (a *affinity) get(key uint64) (subjects.AffinityEntry, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	entry, ok := a.young.get(key)
	if ok {
		return entry, true
	}
	if entry, ok = a.old.get(key); ok {
		a.putLocked(entry)
	}
	return entry, ok
}

// learn remembers that a worker of a pool has taken a conversation.
func (a *affinity) learn(key uint64, pool, worker string) {
	entry := subjects.AffinityEntry{Prefix: key, Pool: pool, Worker: worker}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.putLocked(entry)
	if a.shared && len(a.fresh) < maxConversations {
		a.fresh = append(a.fresh, entry)
	}
}

func (a *affinity) putLocked(entry subjects.AffinityEntry) {
	if now := time.Now(); len(a.young.entries) >= maxConversations || now.Sub(a.rotatedAt) > minAffinityAge {
		a.old, a.young, a.rotatedAt = a.young, newGeneration(), now
	}
	a.young.put(entry)
}

// onReport takes in what another gateway has learned.
func (a *affinity) onReport(m *nats.Msg) {
	var report subjects.AffinityReport
	if subjects.Unmarshal(m.Data, &report) != nil || report.Gateway == a.bus.id {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, entry := range report.Entries {
		a.putLocked(entry)
	}
}

// run reports to the other gateways what is new, until ctx is done. gateways is how many there are, this one included.
func (a *affinity) run(ctx context.Context, gateways func(now time.Time) int) {
	tick := time.NewTicker(subjects.AffinityEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		fresh := a.takeFresh(gateways(time.Now()) > 1)
		for part := range slices.Chunk(fresh, 1000) { // 100 KB
			a.bus.publish(subjects.AffinityReports, subjects.AffinityReport{Gateway: a.bus.id, Entries: part})
		}
	}
}

func (a *affinity) takeFresh(shared bool) []subjects.AffinityEntry {
	a.mu.Lock()
	defer a.mu.Unlock()
	fresh := a.fresh
	a.fresh, a.shared = nil, shared
	return fresh
}

// generation is a set of entries. Each conversation is a number, since there are many more conversations than workers:
// a map of entries with the names in them cost 7 % of a small request, for the collector that follows the pointers.
type generation struct {
	entries map[uint64]uint32        // by key: index in places
	places  []subjects.AffinityEntry // without the key
	index   map[subjects.AffinityEntry]uint32
}

func newGeneration() generation {
	return generation{entries: make(map[uint64]uint32), index: make(map[subjects.AffinityEntry]uint32)}
}

func (g *generation) put(entry subjects.AffinityEntry) {
	key := entry.Prefix
	entry.Prefix = 0
	n, ok := g.index[entry]
	if !ok {
		n = uint32(len(g.places))
		g.places = append(g.places, entry)
		g.index[entry] = n
	}
	g.entries[key] = n
}

func (g *generation) get(key uint64) (subjects.AffinityEntry, bool) {
	n, ok := g.entries[key]
	if !ok {
		return subjects.AffinityEntry{}, false
	}
	entry := g.places[n]
	entry.Prefix = key
	return entry, true
}

// hashOf hashes strings, each kept apart from the next.
func hashOf(parts ...string) uint64 {
	var d xxhash.Digest
	d.Reset()
	for _, p := range parts {
		d.WriteString(p)
		d.Write([]byte{0xff}) // occurs in no UTF-8 text
	}
	return d.Sum64()
}

// mix makes one hash of two; it is never 0.
func mix(a, b uint64) uint64 {
	x := a ^ b*0x9e3779b97f4a7c15
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	x ^= x >> 32
	return max(x, 1)
}
