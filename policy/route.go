package policy

import (
	"slices"
	"strings"
	"sync/atomic"
)

// Router finds the route of a model. It is built once per policy and is safe for concurrent use.
type Router struct {
	exact    map[string]*Route
	prefixes []string  // the patterns without their *, sorted
	patterns []pattern // in the order of prefixes
}

type pattern struct {
	name    string
	route   *Route
	shorter int // index of the longest other prefix that this prefix starts with; -1: none
}

// NewRouter indexes the routes of a policy, which must not change afterwards.
func NewRouter(p *Policy) *Router {
	r := &Router{exact: make(map[string]*Route, len(p.Routes))}
	for name, route := range p.Routes {
		if prefix, ok := strings.CutSuffix(name, "*"); ok {
			r.prefixes = append(r.prefixes, prefix)
		} else {
			r.exact[name] = &route
		}
	}
	slices.Sort(r.prefixes)
	for i, prefix := range r.prefixes {
		route := p.Routes[prefix+"*"]
		r.patterns = append(r.patterns, pattern{prefix + "*", &route, r.longest(i-1, prefix)})
	}
	return r
}

// Find returns the route of a model and the route's name in the policy: the model's own name, otherwise the pattern
// with the longest prefix. The route is nil if there is none. It belongs to the router and must not be changed.
func (r *Router) Find(model string) (name string, route *Route) {
	if route, ok := r.exact[model]; ok {
		return model, route
	}
	i, found := slices.BinarySearch(r.prefixes, model)
	if !found {
		i--
	}
	if i = r.longest(i, model); i < 0 {
		return "", nil
	}
	return r.patterns[i].name, r.patterns[i].route
}

// longest is the index of the longest prefix of s, or -1. last is the index of the last entry that
// sorts before s or equals it. Every entry between s and a prefix of s starts with that prefix too,
// so every prefix of s is the last entry itself or a prefix of it.
func (r *Router) longest(last int, s string) int {
	if last < 0 {
		return -1
	}
	same := 0
	for prefix := r.prefixes[last]; same < len(s) && same < len(prefix) && s[same] == prefix[same]; {
		same++
	}
	i := last
	for i >= 0 && len(r.prefixes[i]) > same {
		i = r.patterns[i].shorter
	}
	return i
}

// Pick returns the pool at a point in [0, 1) of a route's weights, laid side by side in order. A
// pool of weight 0 is never picked; the result is "" if all weights are 0.
//
// A pool whose part grows keeps all its points while the others keep their order and their proportions to each other,
// so sessions on a canary stay there while its weight grows. With more than two pools, points may move between the
// other pools meanwhile; pools on different sides of the growing one exchange none.
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

// PointOf maps a hash to a point in [0, 1), for requests that must stay on one side of a split. Mix
// the route's name into the hash, so that the same tenants do not try every canary.
func PointOf(hash uint64) float64 {
	// These are the last steps of SplitMix64: similar hashes get distant points.
	hash ^= hash >> 30
	hash *= 0xbf58476d1ce4e5b9
	hash ^= hash >> 27
	hash *= 0x94d049bb133111eb
	hash ^= hash >> 31
	return unit(hash)
}

// Spread deals points in [0, 1) that fill every part of the range evenly, for requests that need not stay on one side:
// n requests split by their weights to within a few, where random points would be off by about √n. The zero value is
// ready to use. It is safe for concurrent use. Two decisions about the same requests need one Spread each.
type Spread struct{ n atomic.Uint64 }

// Next returns the next point. The fractional parts of the multiples of the golden ratio fill the
// range more evenly than those of any other number.
func (s *Spread) Next() float64 { return unit(s.n.Add(1) * golden) }

const golden = 0x9e3779b97f4a7c15 // 2⁶⁴ over the golden ratio

// unit is the number in [0, 1) given by the upper 53 bits.
func unit(bits uint64) float64 { return float64(bits>>11) / (1 << 53) }
