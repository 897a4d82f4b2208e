package policy

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// Check validates a policy. The error is an Invalid that lists every problem.
func (p *Policy) Check() error {
	var c checker
	c.tiers(p.Tiers)
	for name, pool := range sorted(p.Pools) {
		c.pool(name, pool)
	}
	for name, r := range sorted(p.Routes) {
		c.route(name, r)
	}
	for name, w := range sorted(p.Workers) {
		c.name([]string{"workers", name}, name)
		if w.Weight < 0 || math.IsNaN(w.Weight) || w.Weight > 1e6 {
			c.add([]string{"workers", name, "weight"}, "%g: must be 0 (as started) to 1e6", w.Weight)
		}
	}
	for i, h := range p.SessionHeaders {
		if h == "" || strings.ContainsAny(h, " \t\r\n:") {
			c.add([]string{"session_headers", fmt.Sprint(i)}, "%q: not a header name", h)
		}
	}
	return c.err()
}

// Invalid is the error of a policy or a key that does not validate.
type Invalid struct{ Problems []Problem }

// Problem is one thing that is wrong. Path is the keys and indexes that lead to it.
type Problem struct {
	Path   []string
	Reason string
}

func (p Problem) String() string {
	if len(p.Path) == 0 {
		return p.Reason
	}
	return strings.Join(p.Path, ".") + ": " + p.Reason
}

func (e Invalid) Error() string {
	var lines []string
	for _, p := range e.Problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "; ")
}

type checker struct{ problems []Problem }

func (c *checker) add(path []string, format string, args ...any) {
	c.problems = append(c.problems, Problem{Path: path, Reason: fmt.Sprintf(format, args...)})
}

// maxName equals subjects.MaxName.
func (c *checker) err() error {
	if c.problems == nil {
		return nil
	}
	return Invalid{c.problems}
}

const maxName = 256

func (c *checker) name(path []string, name string) {
	if name == "" || len(name) > maxName || !utf8.ValidString(name) {
		c.add(path, "%.40q: a name has 1 to %d bytes of UTF-8", name, maxName)
	}
}

func (c *checker) tiers(tiers []Tier) {
	seen := make(map[string]bool)
	reserved := 0
	for i, t := range tiers {
		at := func(field string) []string { return []string{"tiers", fmt.Sprint(i), field} }
		if !tierName.MatchString(t.Name) {
			c.add(at("name"), "%q: a name is 1 to 32 lower-case letters, digits and '-'", t.Name)
		}
		if seen[t.Name] {
			c.add(at("name"), "%q: named twice", t.Name)
		}
		seen[t.Name] = true
		if t.Share < 1 || t.Share > 1_000_000 {
			c.add(at("share"), "%d: must be 1 to 1000000", t.Share)
		}
		if t.Reserve < 0 || t.Reserve > 90 {
			c.add(at("reserve"), "%d: must be 0 to 90 percent", t.Reserve)
		}
		reserved += t.Reserve
		if t.MaxQueue < 1 || t.MaxQueue > MaxQueueLimit {
			c.add(at("max_queue"), "%d: must be 1 to %d", t.MaxQueue, MaxQueueLimit)
		}
		if t.Retries < 0 || t.Retries > 100 {
			c.add(at("retries"), "%d: must be 0 to 100", t.Retries)
		}
		if t.Deadline <= 0 {
			c.add(at("deadline"), "%v: must be above 0", t.Deadline)
		}
		if t.FirstByteWithin < 0 {
			c.add(at("first_byte_within"), "%v: must not be negative", t.FirstByteWithin)
		}
		if t.MaxWait < 0 {
			c.add(at("max_wait"), "%v: must not be negative", t.MaxWait)
		}
		if t.Storage != Memory && t.Storage != File {
			c.add(at("storage"), "%q: must be %s or %s", t.Storage, Memory, File)
		}
	}
	if !seen[DefaultTier] {
		c.add([]string{"tiers"}, "no tier %q: requests that ask for none need it", DefaultTier)
	}
	if reserved > 90 {
		c.add([]string{"tiers"}, "the reserves add up to %d percent: at most 90", reserved)
	}
}

func (c *checker) pool(name string, p Pool) {
	at := func(fields ...string) []string { return append([]string{"pools", name}, fields...) }
	c.name(at(), name)
	if p.Balance != "" && !slices.Contains(Balances, p.Balance) {
		c.add(at("balance"), "%q: must be one of %v", p.Balance, Balances)
	}
	switch p.Affinity {
	case "", AffinityAuto, AffinitySession, AffinityOff:
	default:
		c.add(at("affinity"), "%q: must be auto, session or off", p.Affinity)
	}
	if p.StickFor < 0 {
		c.add(at("stick_for"), "%v: must not be negative", p.StickFor)
	}
	if p.StickFor > 0 && p.Affinity == AffinityOff {
		c.add(at("stick_for"), "needs affinity")
	}
	seen := make(map[string]bool)
	for i, s := range p.Spill {
		c.name(at("spill", fmt.Sprint(i), "pool"), s.Pool)
		if seen[s.Pool] {
			c.add(at("spill", fmt.Sprint(i), "pool"), "%q: named twice", s.Pool)
		}
		seen[s.Pool] = true
		if s.Pool == name {
			c.add(at("spill", fmt.Sprint(i), "pool"), "%q: is the pool itself", s.Pool)
		}
		if s.Penalty < 0 || s.Penalty >= Rungs {
			c.add(at("spill", fmt.Sprint(i), "penalty"), "%d: must be 0 to %d", s.Penalty, Rungs-1)
		}
	}
}

// maxWeight bounds a Target's weight, so that weights can be summed.
const maxWeight = 1e9

func (c *checker) route(name string, r Route) {
	at := func(fields ...string) []string { return append([]string{"routes", name}, fields...) }
	c.name(at(), name)
	if strings.Contains(strings.TrimSuffix(name, "*"), "*") {
		c.add(at(), "%q: a * is allowed only at the end", name)
	}
	if len(r.To) == 0 {
		c.add(at("to"), "names no pool")
	}
	sum := 0.0
	seen := make(map[string]bool)
	for i, t := range r.To {
		n := fmt.Sprint(i)
		c.name(at("to", n, "pool"), t.Pool)
		if seen[t.Pool] {
			c.add(at("to", n, "pool"), "%q: named twice", t.Pool)
		}
		seen[t.Pool] = true
		if !(t.Weight >= 0 && t.Weight <= maxWeight) {
			c.add(at("to", n, "weight"), "%g: must be 0 to %g", t.Weight, maxWeight)
		}
		sum += t.Weight
	}
	if len(r.To) > 0 && sum <= 0 {
		c.add(at("to"), "the weights add up to 0: nothing would be served")
	}
	for i, m := range r.Mirror {
		n := fmt.Sprint(i)
		c.name(at("mirror", n, "pool"), m.Pool)
		if !(m.Percent > 0 && m.Percent <= 100) {
			c.add(at("mirror", n, "percent"), "%g: must be above 0 and at most 100", m.Percent)
		}
	}
	for i, f := range r.Fallback {
		c.name(at("fallback", fmt.Sprint(i)), f)
	}
	if r.FallbackAfter < 0 {
		c.add(at("fallback_after"), "%v: must not be negative", r.FallbackAfter)
	}
	if r.FallbackAfter > 0 && len(r.Fallback) == 0 {
		c.add(at("fallback_after"), "needs a fallback")
	}
	switch r.StickyBy {
	case "", StickySession, StickyTenant, StickyNone:
	default:
		c.add(at("sticky_by"), "%q: must be session, tenant or none", r.StickyBy)
	}
	if r.Shift != nil {
		for _, p := range r.Shift.check(r) {
			c.add(append(at("shift"), p.Path...), "%s", p.Reason)
		}
	}
}

func sorted[V any](m map[string]V) func(yield func(string, V) bool) {
	return func(yield func(string, V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}
