package policy

import (
	"slices"
	"strings"
	"sync/atomic"
)

// Router finds the route of a model. It is built once for each policy, and is
// safe for concurrent use.
type Router struct {
	exact    map[string]*Route
	heads    []string  // the patterns' texts before their *, sorted
	patterns []pattern // as heads
}

type pattern struct {
	name    string
	route   *Route
	shorter int // index of the longest head that this one's begins with; -1: none
}

// NewRouter prepares the routes of a policy, which must not change after that.
func NewRouter(p *Policy) *Router {
	r := &Router{exact: make(map[string]*Route, len(p.Routes))}
	for name, route := range p.Routes {
		if head, ok := strings.CutSuffix(name, "*"); ok {
			r.heads = append(r.heads, head)
		} else {
			r.exact[name] = &route
		}
	}
	slices.Sort(r.heads)
	for i, head := range r.heads {
		route := p.Routes[head+"*"]
		r.patterns = append(r.patterns, pattern{head + "*", &route, r.longest(i-1, head)})
	}
	return r
}

// Find is the route of a model and the name that it has in the policy: the
// model's own, else the pattern with the longest head. The route is nil if there
// is none; it belongs to the router and must not be changed.
func (r *Router) Find(model string) (name string, route *Route) {
	if route, ok := r.exact[model]; ok {
		return model, route
	}
	i, found := slices.BinarySearch(r.heads, model)
	if !found {
		i--
	}
	if i = r.longest(i, model); i < 0 {
		return "", nil
	}
	return r.patterns[i].name, r.patterns[i].route
}

// longest is the index of the longest head that s begins with; -1 if there is
// none. last is that of the last head that sorts before s or equals it. Whatever
// lies between s and a head of s begins with that head too, so that all heads of
// s are last itself or begin it.
func (r *Router) longest(last int, s string) int {
	if last < 0 {
		return -1
	}
	same := 0
	for head := r.heads[last]; same < len(s) && same < len(head) && s[same] == head[same]; {
		same++
	}
	i := last
	for i >= 0 && len(r.heads[i]) > same {
		i = r.patterns[i].shorter
	}
	return i
}

// Pick is the pool at a point from 0 up to 1 of a route's weights, laid side by
// side in their order. A pool of weight 0 is never picked; it is "" if all are.
//
// A pool whose part grows keeps all its points while the others keep their
// order and their proportions to each other, so that sessions on a canary stay
// there while its weight goes up. With more than two pools, points may move
// between the others meanwhile; pools that lie on different sides of the one
// that grows exchange none.
func Pick(to []Target, point float64) string {
	at := point * sumOf(to)
	pick := ""
	for _, t := range to {
		if t.Weight <= 0 {
			continue
		}
		pick = t.Pool
		if at < t.Weight {
			break
		}
		at -= t.Weight
	}
	return pick
}

func sumOf(to []Target) float64 {
	sum := 0.0
	for _, t := range to {
		sum += t.Weight
	}
	return sum
}

// PointOf is the point from 0 up to 1 for a hash of what shall stay on one side
// of a split. Mix the route's name into the hash, so that it is not the same
// tenants that try every canary.
func PointOf(hash uint64) float64 {
	// The last steps of SplitMix64: near hashes get unlike points.
	hash ^= hash >> 30
	hash *= 0xbf58476d1ce4e5b9
	hash ^= hash >> 27
	hash *= 0x94d049bb133111eb
	hash ^= hash >> 31
	return unit(hash)
}

// Spread deals points from 0 up to 1 that fill every part of the range evenly,
// for requests that need not stay on one side: n requests split by their weights
// to within a few, where random points would be off by about √n. The zero value
// is ready; it is safe for concurrent use. Two decisions about the same requests
// need a Spread each.
type Spread struct{ n atomic.Uint64 }

// Next is the next point: the multiples of the golden ratio, without their whole
// part, fill the range more evenly than those of any other number.
func (s *Spread) Next() float64 { return unit(s.n.Add(1) * golden) }

const golden = 0x9e3779b97f4a7c15 // 2⁶⁴ over the golden ratio

// unit is the number from 0 up to 1 that the upper 53 bits say.
func unit(bits uint64) float64 { return float64(bits>>11) / (1 << 53) }
