package gateway

import (
	"net/http"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// way is where a request goes.
type way struct {
	name  string        // of its route; "" without one
	route *policy.Route // nil without one
	pool  string
	lane  string
	learn uint64 // the conversation's home is learned under it
}

// findWay follows the route of a request's model. Who is in a session, or goes on
// with a conversation, stays where it was; the others are spread by the weights.
func (g *Gateway) findWay(r *rules, c *api.Call, who *caller, h http.Header, now time.Time) way {
	var w way
	w.name, w.route = r.router.Find(c.Model)
	session := c.CacheKey
	if session == "" {
		session = sessionOf(h, r.Policy)
	}
	home, learn := g.affinity.find(c, who.tenant, session)
	w.learn = learn
	if w.route == nil {
		w.pool = c.Model
	} else {
		w.pool = g.side(w.name, w.route, who.tenant, session, home)
		w.pool = g.withFallback(w.route, w.pool, now)
	}
	w.lane = g.laneFor(r.Policy, w.pool, session != "", home)
	return w
}

// side picks one of a route's pools.
func (g *Gateway) side(name string, r *policy.Route, tenant, session string, home subjects.AffinityEntry) string {
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
	return policy.Pick(r.To, g.spread(name).Next())
}

// spread is a route's sequence of points.
func (g *Gateway) spread(name string) *policy.Spread {
	s, ok := g.spreads.Load(name)
	if !ok {
		s, _ = g.spreads.LoadOrStore(name, new(policy.Spread))
	}
	return s.(*policy.Spread)
}

// withFallback is the pool, or the first of the fallbacks that is better off.
func (g *Gateway) withFallback(r *policy.Route, pool string, now time.Time) string {
	if len(r.Fallback) == 0 {
		return pool
	}
	for _, p := range append([]string{pool}, r.Fallback...) {
		if g.serves(r, p, now) {
			return p
		}
	}
	return pool
}

// serves says whether a pool has a worker, and no longer a wait than its route
// allows.
func (g *Gateway) serves(r *policy.Route, pool string, now time.Time) bool {
	p, _ := g.fleet.pool(pool)
	if p.slots == 0 {
		return false
	}
	if r.FallbackAfter == 0 {
		return true
	}
	t := g.rules.Load().tiers[policy.DefaultTier]
	return g.queues.get(pool, t.Name).expectedWait(t, p.slots, now) <= time.Duration(r.FallbackAfter)
}

// laneFor is the home lane of the worker that has the conversation's beginning,
// if it lives and serves the pool, else the shared one.
func (g *Gateway) laneFor(p *policy.Policy, pool string, session bool, home subjects.AffinityEntry) string {
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
	if w := g.fleet.worker(home.Worker); w == nil || !w.Live() || !w.Serves(pool) || !g.lanes.exists(pool, home.Worker) {
		return subjects.Shared
	}
	return home.Worker
}

// sessionOf is the session that a request's headers name.
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
