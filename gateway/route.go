package gateway

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// router finds the pool and the lane of a request.
type router struct {
	bus      *bus
	affinity *affinity
	fleet    *fleet
	lanes    *lanes
	queues   *queues
	spreads  sync.Map // *policy.Spread by route name, or by mirror: the point in its sequence
}

// destination is where a request goes.
type destination struct {
	routeName string        // empty if the model has no route
	route     *policy.Route // nil if the model has no route
	pool      string
	lane      string
	pin       string // the id of the live worker whose engine has the response that the call continues; empty if there is none
	home      string // the id of the live worker that has the conversation cached; empty if none is known
	adapterOf string // the model of which the call's is an adapter; empty if it is none
	affinity  uint64 // the key under which the worker that takes the request is remembered; 0: it is not
}

// named is what a model's name means now.
type named struct {
	routeName string        // empty if the model has no route
	route     *policy.Route // nil if the model has no route
	pool      string        // without a route: the pool that serves it
	known     bool          // that pool has ever had a worker, or has settings in the policy
	names     []string      // other names of the model, as its engine sees it
}

// find finds out what a model's name means: a route, or a pool.
func (ro *router) find(r *rules, model string) (n named) {
	n.routeName, n.route = r.router.Find(model)
	if n.route != nil {
		return n
	}
	pool, state, known := ro.fleet.find(model)
	_, set := r.Policy.Pools[model]
	n.pool, n.known = pool, known || set
	if !state.anyCase {
		return n
	}
	n.names = []string{pool, strings.TrimSuffix(pool, latest)}
	for _, name := range n.names {
		if n.routeName, n.route = r.router.Find(name); n.route != nil {
			break
		}
	}
	return n
}

// poolOf is the pool that a name in a route means.
func (ro *router) poolOf(name string) string {
	pool, _, _ := ro.fleet.find(name)
	return pool
}

// route follows the route of a call's model. A call of a session, or one that continues a conversation, stays where that
// was; the others are spread by the weights.
func (ro *router) route(r *rules, model named, call *api.Call, tenant string, h http.Header, now time.Time) destination {
	to := destination{routeName: model.routeName, route: model.route}
	session := call.CacheKey
	if session == "" {
		session = sessionOf(h, r.sessions)
	}
	home, key := ro.affinity.find(call, tenant, session)
	to.affinity = key
	if call.Previous != "" {
		if made, ok := ro.affinity.get(responseKey(tenant, call.Previous)); ok {
			home = made
			if ro.fleet.live(made.Worker) {
				to.pin = made.Worker
			}
		}
	}
	if to.route == nil {
		to.pool = model.pool
	} else {
		to.pool = ro.side(to.routeName, to.route, tenant, session, home)
		to.pool = ro.poolOf(ro.withFallback(to.route, to.pool, now))
		at := ""
		if to.adapterOf, at = ro.fleet.adapterOf(to.pool, call.Model); at != "" && to.pin == "" {
			to.pin = at
		}
	}
	if to.lane = ro.lane(r.Policy, to.pool, session != "", home); to.lane != subjects.Shared {
		to.home = home.Worker
	}
	if ro.laneOfPin(r.Policy, to.pool, to.pin) {
		to.lane, to.home = subjects.StableID(to.pin), to.pin
	}
	return to
}

// unknown is the error of a request for a model that nothing leads to. A gateway that has just started does not know.
func (ro *router) unknown(model string) *api.Error {
	if ro.fleet.starting() {
		return api.Unavailable("starting", time.Second, "the gateway is starting and does not know yet which models there are")
	}
	models := ro.models()
	e := &api.Error{Status: http.StatusNotFound, Code: "model_not_found", Param: "model"}
	switch {
	case len(models) == 0:
		e.Message = fmt.Sprintf("The model %s does not exist; no worker serves any model now.", api.Quote(model))
	case len(models) > 20:
		e.Message = fmt.Sprintf("The model %s does not exist; there are %s.", api.Quote(model), listed(models))
	default:
		e.Message = fmt.Sprintf("The model %s does not exist; there are: %s.", api.Quote(model), listed(models))
	}
	return e
}

// responseKey is the key under which the worker is remembered whose engine has a response of a tenant.
func responseKey(tenant, id string) uint64 { return mix(hashOf("response", tenant), hashOf(id)) }

// side picks one of a route's pools.
func (ro *router) side(name string, r *policy.Route, tenant, session string, home subjects.AffinityEntry) string {
	if len(r.To) == 1 {
		return r.To[0].Pool
	}
	switch {
	case r.StickyBy == policy.StickyTenant && tenant != "":
		return policy.Pick(r.To, policy.PointOf(hashOf("side", name, tenant)))
	case r.StickyBy == policy.StickyTenant, r.StickyBy == policy.StickyNone:
	default:
		for _, t := range r.To {
			if t.Weight > 0 && home.Pool != "" && home.Pool == ro.poolOf(t.Pool) {
				return t.Pool
			}
		}
		if session != "" {
			return policy.Pick(r.To, policy.PointOf(hashOf("side", name, tenant, session)))
		}
	}
	return policy.Pick(r.To, ro.spread(name).Next())
}

// spread is the sequence of points of a route or a mirror.
func (ro *router) spread(name string) *policy.Spread {
	s, ok := ro.spreads.Load(name)
	if !ok {
		s, _ = ro.spreads.LoadOrStore(name, new(policy.Spread))
	}
	return s.(*policy.Spread)
}

// withFallback returns the pool, or the first fallback that serves if the pool does not.
func (ro *router) withFallback(r *policy.Route, pool string, now time.Time) string {
	if len(r.Fallback) == 0 {
		return pool
	}
	for _, p := range append([]string{pool}, r.Fallback...) {
		if ro.serves(r, p, now) {
			return p
		}
	}
	return pool
}

// serves says whether a pool has a live worker, and no longer an expected wait than its route allows.
func (ro *router) serves(r *policy.Route, pool string, now time.Time) bool {
	pool, p, _ := ro.fleet.find(pool)
	if p.slots == 0 {
		return false
	}
	if r.FallbackAfter == 0 {
		return true
	}
	t := ro.bus.rules.Load().tiers[policy.DefaultTier]
	return ro.queues.get(pool, t.Name).view(t, p.slots, p.free, now).Wait() <= time.Duration(r.FallbackAfter)
}

// fallback is the pool that a waiting request should move to; empty if it should stay.
func (ro *router) fallback(r *request, now time.Time) string {
	if r.route == nil || len(r.route.Fallback) == 0 {
		return ""
	}
	at := r.target.Load().queue.pool
	after := time.Duration(r.route.FallbackAfter)
	if p, _ := ro.fleet.pool(at); p.slots > 0 && (after == 0 || now.Sub(r.arrived) < after) {
		return ""
	}
	for _, pool := range r.route.Fallback {
		if pool = ro.poolOf(pool); pool == at {
			return "" // the others come after it
		}
		if ro.serves(r.route, pool, now) {
			return pool
		}
	}
	return ""
}

// lane is the home lane of the worker that has the conversation cached, if that serves the pool, else the shared lane.
func (ro *router) lane(p *policy.Policy, pool string, session bool, home subjects.AffinityEntry) string {
	if home.Worker == "" {
		return subjects.Shared
	}
	switch p.AffinityOf(pool) {
	case policy.AffinityOff:
		return subjects.Shared
	case policy.AffinitySession:
		if !session {
			return subjects.Shared
		}
	}
	if w := ro.fleet.worker(home.Worker); w == nil || !w.Live() || !w.Serves(pool) || !ro.lanes.exists(pool, subjects.StableID(home.Worker)) {
		return subjects.Shared
	}
	return subjects.StableID(home.Worker)
}

// laneOfPin says whether a request that only one worker should take can wait on the home lane of that.
func (ro *router) laneOfPin(p *policy.Policy, pool, pin string) bool {
	return pin != "" && p.AffinityOf(pool) != policy.AffinityOff && ro.fleet.live(pin) && ro.lanes.exists(pool, subjects.StableID(pin))
}

// sessionOf is the session that a request's headers of these names tell; empty if there is none.
func sessionOf(h http.Header, names []string) string {
	for _, n := range names {
		if vs := h[n]; len(vs) > 0 && vs[0] != "" && len(vs[0]) <= api.MaxField {
			return vs[0]
		}
	}
	return ""
}

// listed is what the lists of engines say of the models of these names: for a route, of all pools that it may lead to.
func (ro *router) listed(models []string) map[string]subjects.ListedModel {
	byPool, rules := ro.fleet.listed(), ro.bus.rules.Load()
	all := make(map[string]subjects.ListedModel, len(models))
	for _, name := range models {
		pools := []string{name}
		if _, route := rules.router.Find(name); route != nil {
			pools = pools[:0]
			for _, t := range route.To {
				if t.Weight > 0 {
					pools = append(pools, ro.poolOf(t.Pool))
				}
			}
		}
		first := true
		var so subjects.ListedModel
		for _, pool := range pools {
			said := byPool[pool]
			switch {
			case said == nil: // no worker serves it now
			case first:
				so, first = *said, false
			default:
				so.Agree(said)
			}
		}
		all[name] = so
	}
	return all
}

// models are the names that calls may ask for now: the pools that live workers serve, and the routes that lead there.
func (ro *router) models() []string {
	live := ro.fleet.models()
	names := slices.Clone(live)
	for name, r := range ro.bus.rules.Load().Policy.Routes {
		if strings.Contains(name, "*") {
			continue
		}
		for _, t := range r.To {
			if _, there := slices.BinarySearch(live, ro.poolOf(t.Pool)); there && t.Weight > 0 {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

const (
	// maxConversations bounds each of the two generations: with about 35 bytes for each conversation, 9 MB for both.
	maxConversations = 128 << 10

	// minAffinityAge is the shortest time for which a conversation is remembered: longer than an engine keeps a prefix
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

// forget forgets where a conversation is, if it is at that worker.
func (a *affinity) forget(key uint64, worker string) {
	if key == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, g := range []*generation{&a.young, &a.old} {
		if entry, ok := g.get(key); ok && entry.Worker == worker {
			delete(g.entries, key)
		}
	}
}

func (a *affinity) putLocked(entry subjects.AffinityEntry) {
	if now := time.Now(); len(a.young.entries) >= maxConversations || now.Sub(a.rotatedAt) > minAffinityAge {
		a.old, a.young, a.rotatedAt = a.young, newGeneration(), now
	}
	a.young.put(entry)
}

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
	every(ctx, subjects.AffinityEvery, func() {
		fresh := a.takeFresh(gateways(time.Now()) > 1)
		for part := range slices.Chunk(fresh, 1000) { // 100 KB
			a.bus.publish(subjects.AffinityReports, subjects.AffinityReport{Gateway: a.bus.id, Entries: part})
		}
	})
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
