package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Policy is everything that an operator decides, as one document that takes effect as a whole or
// not at all. API keys are not part of it: undoing a change must never restore a revoked key.
type Policy struct {
	Tiers   []Tier            `json:"tiers" yaml:"tiers"` // in order of priority
	Pools   map[string]Pool   `json:"pools,omitempty" yaml:"pools,omitempty"`
	Routes  map[string]Route  `json:"routes,omitempty" yaml:"routes,omitempty"`   // by model, or by a pattern such as gpt-*
	Workers map[string]Worker `json:"workers,omitempty" yaml:"workers,omitempty"` // by name
	// SessionHeaders are the request headers that name a session; the first one present counts.
	// Default DefaultSessionHeaders.
	SessionHeaders []string `json:"session_headers,omitempty" yaml:"session_headers,omitempty"`
}

// Default is the policy of a new installation.
func Default() *Policy { return &Policy{Tiers: DefaultTiers()} }

// DefaultSessionHeaders are those that common clients and similar gateways use.
var DefaultSessionHeaders = []string{
	"X-Session-Id", "X-Claude-Code-Session-Id", "X-Dynamo-Session-Id", "X-Multi-Turn-Session-Id", "X-Smg-Routing-Key",
	"X-Litellm-Session-Id", "X-Session-Token", "X-Session-Affinity", "X-Openwebui-Chat-Id", "Helicone-Session-Id", "X-Grok-Conv-Id",
	"Session_id", "Session-Id", "Conversation_id", "X-Conversation-Id",
}

// Duration is a time.Duration whose text form is like 1m30s.
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
		return fmt.Errorf("%q: must be a duration such as 30s or 1m30s", b)
	}
	*d = Duration(v)
	return nil
}

// Pool says how the workers of a pool share its requests. The zero value is the default.
type Pool struct {
	// Balance is the method by which workers price their bids. Default Price.
	Balance Balance `json:"balance,omitempty" yaml:"balance,omitempty"`
	// Affinity says which requests go to the worker that has their start cached. Default AffinityAuto.
	Affinity Affinity `json:"affinity,omitempty" yaml:"affinity,omitempty"`
	// StickFor is how long a session waits for its worker before another may take it, for engines
	// that keep a session's state. Default 0: it does not wait.
	StickFor Duration `json:"stick_for,omitempty" yaml:"stick_for,omitempty"`
	// Paused holds the pool's requests in their queues.
	Paused bool `json:"paused,omitempty" yaml:"paused,omitempty"`
	// Spill names pools whose workers also bid on this pool's queues, at a penalty.
	Spill []Spill `json:"spill,omitempty" yaml:"spill,omitempty"`
}

// Balance is how a worker prices its bids.
type Balance string

const (
	Price       Balance = "price"        // expected latency, see Curve.Price
	LeastLoaded Balance = "least-loaded" // requests in flight over slots
	Weighted    Balance = "weighted"     // requests in flight over weight
	RoundRobin  Balance = "round-robin"  // the bid that has waited longest
)

// Balances lists the methods. What other systems call "sticky" is any of them with affinity by session.
var Balances = []Balance{Price, LeastLoaded, Weighted, RoundRobin}

// Affinity says what ties a request to a worker.
type Affinity string

const (
	AffinityAuto    Affinity = "auto"    // a session if one is named, otherwise the conversation so far
	AffinitySession Affinity = "session" // a session if one is named
	AffinityOff     Affinity = "off"
)

// SpillPenalty is the usual penalty of a Spill. A bid on another worker's home lane has a penalty of 3.
const SpillPenalty = 2

// Spill names another pool whose workers help.
type Spill struct {
	Pool    string `json:"pool" yaml:"pool"`       // whose workers help
	Penalty int    `json:"penalty" yaml:"penalty"` // rungs, 0 to 9
}

// Worker is an operator's setting for one worker, by its name.
type Worker struct {
	Cordoned bool    `json:"cordoned,omitempty" yaml:"cordoned,omitempty"` // the worker takes no new requests
	Weight   float64 `json:"weight,omitempty" yaml:"weight,omitempty"`     // 0: as configured on the worker
}

// Route says where the requests for a model go. Without a route they go to the pool of the model's name.
type Route struct {
	To       []Target `json:"to" yaml:"to"`
	Mirror   []Mirror `json:"mirror,omitempty" yaml:"mirror,omitempty"`
	Fallback []string `json:"fallback,omitempty" yaml:"fallback,omitempty"` // pools, tried in this order
	// FallbackAfter is the wait, expected or actual, after which a request goes to the fallback.
	// Default 0: only when the pool has no live worker.
	FallbackAfter Duration `json:"fallback_after,omitempty" yaml:"fallback_after,omitempty"`
	// StickyBy says what stays on one side of a split. Default StickySession.
	StickyBy StickyBy `json:"sticky_by,omitempty" yaml:"sticky_by,omitempty"`
	// RestoreModel replaces the model name in answers with the one that the client asked for.
	RestoreModel bool   `json:"restore_model,omitempty" yaml:"restore_model,omitempty"`
	Shift        *Shift `json:"shift,omitempty" yaml:"shift,omitempty"`
}

// Target is a pool and its part of a route's requests.
type Target struct {
	Pool   string  `json:"pool" yaml:"pool"`
	Weight float64 `json:"weight" yaml:"weight"` // 0 or more, relative to the other weights
}

// Mirror is a pool that receives copies of a percentage of a route's requests.
type Mirror struct {
	Pool    string  `json:"pool" yaml:"pool"`
	Percent float64 `json:"percent" yaml:"percent"`
}

// StickyBy says what stays on one side of a split route.
type StickyBy string

const (
	StickySession StickyBy = "session" // a named session, otherwise a conversation
	StickyTenant  StickyBy = "tenant"
	StickyNone    StickyBy = "none"
)

// Clone returns a deep copy.
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

// Settings returns a copy without what Pulley itself has written: the progress of shifts, and the pools without weight that
// shifts leave behind. A route with a running shift is as it was before.
func (p *Policy) Settings() *Policy {
	c := p.Clone()
	for model, r := range c.Routes {
		c.Routes[model] = r.settings()
	}
	return c
}

func (r Route) settings() Route {
	if s := r.Shift; s != nil && s.State == ShiftRunning && len(s.Before) > 0 {
		r.To = s.Before
	}
	if weighted := slices.DeleteFunc(slices.Clone(r.To), func(t Target) bool { return t.Weight == 0 }); len(weighted) > 0 {
		r.To = weighted
	}
	r.Shift = nil
	return r
}

// Adopt leaves the routes as they are in now whose settings p does not change, so that a shift goes on. A route of p that has
// a shift is left as it is in p.
func (p *Policy) Adopt(now *Policy) {
	current := now.Clone().Routes
	for model, r := range p.Routes {
		if is, ok := current[model]; ok && r.Shift == nil && reflect.DeepEqual(r.clone().settings(), is.settings()) {
			p.Routes[model] = is
		}
	}
}

// clone returns a deep copy, in which an empty list is as in any other that was stored.
func (r Route) clone() Route {
	return (&Policy{Routes: map[string]Route{"": r}}).Clone().Routes[""]
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

// Lowest is the last tier.
func (p *Policy) Lowest() Tier { return p.Tiers[len(p.Tiers)-1] }

// BalanceOf is a pool's balancing method.
func (p *Policy) BalanceOf(pool string) Balance { return cmp.Or(p.Pools[pool].Balance, Price) }

// AffinityOf is a pool's affinity.
func (p *Policy) AffinityOf(pool string) Affinity {
	return cmp.Or(p.Pools[pool].Affinity, AffinityAuto)
}
