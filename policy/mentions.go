package policy

import (
	"iter"
	"slices"
)

// Mentions says whether the policy names a pool: it has settings of its own, or a route or another pool leads there.
func (p *Policy) Mentions(pool string) bool {
	for name := range p.mentioned() {
		if name == pool {
			return true
		}
	}
	return false
}

// PoolNames returns the pools that the policy names, each once, in alphabetical order.
func (p *Policy) PoolNames() []string { return slices.Compact(slices.Sorted(p.mentioned())) }

func (p *Policy) mentioned() iter.Seq[string] {
	return func(yield func(string) bool) {
		for name, set := range p.Pools {
			if !yield(name) {
				return
			}
			for _, s := range set.Spill {
				if !yield(s.Pool) {
					return
				}
			}
		}
		for _, r := range p.Routes {
			for _, name := range r.pools() {
				if !yield(name) {
					return
				}
			}
		}
	}
}

// pools are those to which a route leads, or may lead.
func (r *Route) pools() (names []string) {
	targets := r.To
	if r.Shift != nil {
		names = append(names, r.Shift.To)
		targets = slices.Concat(targets, r.Shift.Before)
	}
	for _, t := range targets {
		names = append(names, t.Pool)
	}
	for _, m := range r.Mirror {
		names = append(names, m.Pool)
	}
	return append(names, r.Fallback...)
}
