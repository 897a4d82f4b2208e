package gateway

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// router finds the pool and the lane of a request.
type router struct {
	rules    *atomic.Pointer[rules]
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
	affinity  uint64 // the key under which the worker that takes the request is remembered; 0: it is not
}

// route follows the route of a call's model. A call of a session, or one that continues a conversation, stays where that
// was; the others are spread by the weights.
func (ro *router) route(r *rules, call *api.Call, tenant string, h http.Header, now time.Time) destination {
	var to destination
	to.routeName, to.route = r.router.Find(call.Model)
	session := call.CacheKey
	if session == "" {
		session = sessionOf(h, r.Policy)
	}
	home, key := ro.affinity.find(call, tenant, session)
	to.affinity = key
	if to.route == nil {
		to.pool = call.Model
	} else {
		to.pool = ro.side(to.routeName, to.route, tenant, session, home)
		to.pool = ro.withFallback(to.route, to.pool, now)
	}
	to.lane = ro.lane(r.Policy, to.pool, session != "", home)
	return to
}

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
			if t.Weight > 0 && home.Pool == t.Pool {
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

// withFallback returns the pool, or if it does not serve the first of the fallbacks that does.
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
	p, _ := ro.fleet.pool(pool)
	if p.slots == 0 {
		return false
	}
	if r.FallbackAfter == 0 {
		return true
	}
	t := ro.rules.Load().tiers[policy.DefaultTier]
	return ro.queues.get(pool, t.Name).expectedWait(t, p.slots, now) <= time.Duration(r.FallbackAfter)
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
		if pool == at {
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
	if w := ro.fleet.worker(home.Worker); w == nil || !w.Live() || !w.Serves(pool) || !ro.lanes.exists(pool, home.Worker) {
		return subjects.Shared
	}
	return home.Worker
}

// sessionOf is the session that a request's headers name; empty if they name none.
func sessionOf(h http.Header, p *policy.Policy) string {
	names := p.SessionHeaders
	if names == nil {
		names = policy.DefaultSessionHeaders
	}
	for _, n := range names {
		if v := h.Get(n); v != "" && len(v) <= api.MaxField {
			return v
		}
	}
	return ""
}

// models are the names that calls may ask for now: the pools that live workers serve, and the routes that lead there.
func (ro *router) models() []string {
	live := ro.fleet.models()
	names := make(map[string]bool)
	for _, m := range live {
		names[m] = true
	}
	for name, r := range ro.rules.Load().Policy.Routes {
		if strings.Contains(name, "*") {
			continue
		}
		for _, t := range r.To {
			if _, there := slices.BinarySearch(live, t.Pool); there && t.Weight > 0 {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}
