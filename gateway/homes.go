package gateway

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/subjects"
)

// maxHomes bounds how many conversations each of the two generations remembers:
// with about 35 bytes each, 9 MB for both.
const maxHomes = 128 << 10

// homesFade is how long a conversation is remembered, at the least: longer than
// an engine keeps a prefix that nobody asks for.
const homesFade = 30 * time.Minute

// homes is where conversations went: which worker has the beginning of which in
// its cache. It is learned from claims, shared between gateways, never stored,
// and empty after a restart. What it says may be wrong, and costs a prefill
// then.
type homes struct {
	g *Gateway

	mu       sync.Mutex
	young    generation // those seen of late
	old      generation // and before
	turnedAt time.Time
	shared   bool                     // there are other gateways
	fresh    []subjects.AffinityEntry // to be told to them
}

func newHomes(g *Gateway) *homes {
	return &homes{g: g, young: newGeneration(), turnedAt: time.Now()}
}

// generation is a set of homes. Each is a number, since there are many more
// conversations than workers: entries with the names in them cost 7 % of a small
// request, for the collector's looks at them.
type generation struct {
	homes  map[uint64]uint32        // of prefixes, where in places
	places []subjects.AffinityEntry // but for the prefix
	number map[subjects.AffinityEntry]uint32
}

func newGeneration() generation {
	return generation{homes: make(map[uint64]uint32), number: make(map[subjects.AffinityEntry]uint32)}
}

func (ge *generation) put(home subjects.AffinityEntry) {
	prefix := home.Prefix
	home.Prefix = 0
	n, ok := ge.number[home]
	if !ok {
		n = uint32(len(ge.places))
		ge.places = append(ge.places, home)
		ge.number[home] = n
	}
	ge.homes[prefix] = n
}

func (ge *generation) get(prefix uint64) (subjects.AffinityEntry, bool) {
	n, ok := ge.homes[prefix]
	if !ok {
		return subjects.AffinityEntry{}, false
	}
	home := ge.places[n]
	home.Prefix = prefix
	return home, true
}

// find is the home of the conversation that a request goes on with, if there is
// one, and the hash under which its next home is to be learned; 0: not at all.
// Tenants and models do not share conversations.
func (h *homes) find(c *api.Call, tenant, session string) (home subjects.AffinityEntry, learn uint64) {
	scope := hashOf("home", tenant, c.Model)
	if session != "" {
		learn = mix(scope, hashOf(session))
		home, _ = h.get(learn)
		return home, learn
	}
	if whole := c.Learnable(); whole != 0 {
		learn = mix(scope, whole)
	}
	for prefix := range c.Follows {
		var ok bool
		if home, ok = h.get(mix(scope, prefix)); ok {
			break
		}
	}
	return home, learn
}

// mix makes one hash of two; never 0.
func mix(a, b uint64) uint64 {
	x := a ^ b*0x9e3779b97f4a7c15
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	x ^= x >> 32
	return max(x, 1)
}

func (h *homes) get(prefix uint64) (subjects.AffinityEntry, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	home, ok := h.young.get(prefix)
	if ok {
		return home, true
	}
	if home, ok = h.old.get(prefix); ok {
		h.putLocked(home)
	}
	return home, ok
}

func (h *homes) putLocked(home subjects.AffinityEntry) {
	if now := time.Now(); len(h.young.homes) >= maxHomes || now.Sub(h.turnedAt) > homesFade {
		h.old, h.young, h.turnedAt = h.young, newGeneration(), now
	}
	h.young.put(home)
}

// learn notes that a worker has taken a conversation.
func (h *homes) learn(prefix uint64, pool, worker string) {
	home := subjects.AffinityEntry{Prefix: prefix, Pool: pool, Worker: worker}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.putLocked(home)
	if h.shared && len(h.fresh) < maxHomes {
		h.fresh = append(h.fresh, home)
	}
}

// hear takes what another gateway has learned.
func (h *homes) hear(m *nats.Msg) {
	var told subjects.AffinityReport
	if subjects.Unmarshal(m.Data, &told) != nil || told.Gateway == h.g.id {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, home := range told.Entries {
		h.putLocked(home)
	}
}

// loop tells the other gateways what is new.
func (h *homes) loop(ctx context.Context) {
	tick := time.NewTicker(subjects.AffinityEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		shared := h.g.fleet.gateways(time.Now()) > 1
		h.mu.Lock()
		h.shared = shared
		fresh := h.fresh
		h.fresh = nil
		h.mu.Unlock()
		for told := range slices.Chunk(fresh, 1000) { // 100 KB
			h.g.publishJSON(subjects.AffinityReports, subjects.AffinityReport{Gateway: h.g.id, Entries: told})
		}
	}
}
