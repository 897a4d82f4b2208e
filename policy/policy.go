package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Policy is everything that an operator decides, as one document: it is in
// force as a whole, or not at all. Keys are not in it: undoing a change must
// never bring a revoked key back.
type Policy struct {
	Tiers   []Tier            `json:"tiers" yaml:"tiers"` // the first first
	Pools   map[string]Pool   `json:"pools,omitempty" yaml:"pools,omitempty"`
	Routes  map[string]Route  `json:"routes,omitempty" yaml:"routes,omitempty"`   // by model, or by pattern: gpt-*
	Workers map[string]Worker `json:"workers,omitempty" yaml:"workers,omitempty"` // by name
	// SessionHeaders are the request headers that name a session, the first that
	// is there. Default DefaultSessionHeaders.
	SessionHeaders []string `json:"session_headers,omitempty" yaml:"session_headers,omitempty"`
}

// Default is the policy of a new installation.
func Default() *Policy { return &Policy{Tiers: DefaultTiers()} }

// DefaultSessionHeaders are those that clients and peers of ours use.
var DefaultSessionHeaders = []string{
	"X-Session-Id", "X-Claude-Code-Session-Id", "X-Dynamo-Session-Id", "X-Multi-Turn-Session-Id", "X-Smg-Routing-Key",
}

// Duration is a time.Duration that reads and writes as 1m30s.
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

func (d Duration) MarshalText() ([]byte, error) {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return []byte(s), nil
}

func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q: want a duration such as 30s or 1m30s", b)
	}
	*d = Duration(v)
	return nil
}

// Pool is how the workers of a pool share its requests. The zero value is the
// default.
type Pool struct {
	// Balance is the method by which workers price their bids. Default Price.
	Balance Balance `json:"balance,omitempty" yaml:"balance,omitempty"`
	// Affinity says which requests go to the worker that has their beginning
	// cached. Default AffinityAuto.
	Affinity Affinity `json:"affinity,omitempty" yaml:"affinity,omitempty"`
	// StickFor makes a session wait for its worker so long before another may
	// take it: for engines that keep a session's state. Default 0: not at all.
	StickFor Duration `json:"stick_for,omitempty" yaml:"stick_for,omitempty"`
	// Paused holds the pool's requests in their queues.
	Paused bool `json:"paused,omitempty" yaml:"paused,omitempty"`
	// Spill names pools whose workers bid on this pool's queues too, so many
	// rungs dearer.
	Spill []Spill `json:"spill,omitempty" yaml:"spill,omitempty"`
}

// Balance is how a worker prices its bids.
type Balance string

const (
	Price       Balance = "price"        // expected latency: see Curve.Price
	LeastLoaded Balance = "least-loaded" // requests in flight over slots
	Weighted    Balance = "weighted"     // requests in flight over weight
	RoundRobin  Balance = "round-robin"  // all alike: who has waited longest
)

// Balances are all there are. "sticky" is one of these with affinity by session.
var Balances = []Balance{Price, LeastLoaded, Weighted, RoundRobin}

// Affinity says what ties a request to a worker.
type Affinity string

const (
	AffinityAuto    Affinity = "auto"    // a session if one is named, else the conversation so far
	AffinitySession Affinity = "session" // a session if one is named
	AffinityOff     Affinity = "off"
)

// Spill is another pool's help.
type Spill struct {
	Pool    string `json:"pool" yaml:"pool"`       // whose workers help
	Penalty int    `json:"penalty" yaml:"penalty"` // rungs, 0 to 9
}

// Worker is what an operator says of one worker, by its name.
type Worker struct {
	Cordoned bool    `json:"cordoned,omitempty" yaml:"cordoned,omitempty"` // it takes nothing new
	Weight   float64 `json:"weight,omitempty" yaml:"weight,omitempty"`     // 0: as the worker was started
}

// Route is where the requests for a model go. Without one they go to the pool
// of the same name.
type Route struct {
	To       []Target `json:"to" yaml:"to"`
	Mirror   []Mirror `json:"mirror,omitempty" yaml:"mirror,omitempty"`
	Fallback []string `json:"fallback,omitempty" yaml:"fallback,omitempty"` // pools, tried in this order
	// FallbackAfter is the wait, expected or had, after which a request goes to
	// the fallback. Default 0: only when the pool has no live worker.
	FallbackAfter Duration `json:"fallback_after,omitempty" yaml:"fallback_after,omitempty"`
	// StickyBy says what stays on one side of a split. Default StickySession.
	StickyBy StickyBy `json:"sticky_by,omitempty" yaml:"sticky_by,omitempty"`
	// RestoreModel makes answers name the model that the client asked for.
	RestoreModel bool   `json:"restore_model,omitempty" yaml:"restore_model,omitempty"`
	Shift        *Shift `json:"shift,omitempty" yaml:"shift,omitempty"`
}

// Target is a pool and its part of a route's requests.
type Target struct {
	Pool   string  `json:"pool" yaml:"pool"`
	Weight float64 `json:"weight" yaml:"weight"` // 0 or more; the parts are in proportion
}

// Mirror is a pool that gets copies of a part of a route's requests.
type Mirror struct {
	Pool    string  `json:"pool" yaml:"pool"`
	Percent float64 `json:"percent" yaml:"percent"`
}

// StickyBy is what stays on one side of a split route.
type StickyBy string

const (
	StickySession StickyBy = "session" // a named session, or a conversation
	StickyTenant  StickyBy = "tenant"
	StickyNone    StickyBy = "none"
)

// Check says everything that is wrong with a policy; nil if it is sound.
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
	if c.problems == nil {
		return nil
	}
	return Invalid{c.problems}
}

// Invalid is the error of a policy that does not validate.
type Invalid struct{ Problems []Problem }

// Problem is one thing that is wrong, and where: the keys and indexes that lead
// to it.
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

// maxName is subjects.MaxName.
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

// maxWeight bounds a Target's weight, so that weights add up.
const maxWeight = 1e9

func (c *checker) route(name string, r Route) {
	at := func(fields ...string) []string { return append([]string{"routes", name}, fields...) }
	c.name(at(), name)
	if strings.Contains(strings.TrimSuffix(name, "*"), "*") {
		c.add(at(), "%q: a * is any ending, and stands only there", name)
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

// Clone is a deep copy.
func (p *Policy) Clone() *Policy {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // plain fields always encode
	}
	c := new(Policy)
	if err := json.Unmarshal(b, c); err != nil {
		panic(err)
	}
	return c
}

// Tier finds a tier by name.
func (p *Policy) Tier(name string) (Tier, bool) {
	for _, t := range p.Tiers {
		if t.Name == name {
			return t, true
		}
	}
	return Tier{}, false
}

// Lowest is the tier that comes last.
func (p *Policy) Lowest() Tier { return p.Tiers[len(p.Tiers)-1] }

// BalanceOf is a pool's method.
func (p *Policy) BalanceOf(pool string) Balance { return cmp.Or(p.Pools[pool].Balance, Price) }

// AffinityOf is a pool's affinity.
func (p *Policy) AffinityOf(pool string) Affinity {
	return cmp.Or(p.Pools[pool].Affinity, AffinityAuto)
}
