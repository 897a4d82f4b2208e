package policy_test

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// full is a valid policy that uses every feature.
func full() *policy.Policy {
	p := policy.Default()
	p.Pools = map[string]policy.Pool{
		"llama": {Balance: policy.LeastLoaded, Affinity: policy.AffinitySession, StickFor: policy.Duration(time.Second),
			Spill: []policy.Spill{{Pool: "llama-eu", Penalty: 3}}},
	}
	p.Routes = map[string]policy.Route{
		"gpt-4o": {
			To:            []policy.Target{{Pool: "llama", Weight: 90}, {Pool: "llama-new", Weight: 10}},
			Mirror:        []policy.Mirror{{Pool: "shadow", Percent: 5}},
			Fallback:      []string{"small"},
			FallbackAfter: policy.Duration(10 * time.Second),
			StickyBy:      policy.StickyTenant,
			RestoreModel:  true,
			Shift: &policy.Shift{To: "llama-new", By: 10, Every: policy.Duration(2 * time.Minute),
				Abort: []policy.Condition{"error_rate>1%"}, Since: noon, Before: []policy.Target{{Pool: "llama", Weight: 1}, {Pool: "llama-new"}}},
		},
		"gpt-*": {To: []policy.Target{{Pool: "llama", Weight: 1}}},
	}
	p.Workers = map[string]policy.Worker{"a100-0": {Cordoned: true, Weight: 1.5}}
	p.SessionHeaders = []string{"X-Session-Id"}
	return p
}

func TestCheckSaysWhatIsWrongAndWhere(t *testing.T) {
	tier := func(i int, change func(*policy.Tier)) func(*policy.Policy) {
		return func(p *policy.Policy) { change(&p.Tiers[i]) }
	}
	pool := func(change func(*policy.Pool)) func(*policy.Policy) {
		return func(p *policy.Policy) { v := p.Pools["llama"]; change(&v); p.Pools["llama"] = v }
	}
	route := func(change func(*policy.Route)) func(*policy.Policy) {
		return func(p *policy.Policy) { v := p.Routes["gpt-4o"]; change(&v); p.Routes["gpt-4o"] = v }
	}
	shift := func(change func(*policy.Shift)) func(*policy.Policy) {
		return route(func(r *policy.Route) { change(r.Shift) })
	}
	for what, c := range map[string]struct {
		spoil func(*policy.Policy)
		want  string // prefix of the error; empty: none
	}{
		"sound":                 {func(*policy.Policy) {}, ""},
		"the default":           {func(p *policy.Policy) { *p = *policy.Default() }, ""},
		"no tiers":              {func(p *policy.Policy) { p.Tiers = nil }, `tiers: no tier "standard"`},
		"two tiers of a name":   {tier(2, func(t *policy.Tier) { t.Name = "priority" }), `tiers.2.name: "priority": named twice`},
		"a tier without a name": {tier(2, func(t *policy.Tier) { t.Name = "" }), `tiers.2.name: "": a name is`},
		"a tier in upper case":  {tier(2, func(t *policy.Tier) { t.Name = "Gold" }), `tiers.2.name: "Gold": a name is`},
		"a tier with a dot":     {tier(2, func(t *policy.Tier) { t.Name = "a.b" }), `tiers.2.name: "a.b": a name is`},
		"no share":              {tier(0, func(t *policy.Tier) { t.Share = 0 }), "tiers.0.share: 0: must be 1"},
		"a reserve above 90 %":  {tier(0, func(t *policy.Tier) { t.Reserve = 91 }), "tiers.0.reserve: 91: must be 0"},
		"reserves above 90 %":   {tier(0, func(t *policy.Tier) { t.Reserve = 85 }), "tiers: the reserves add up to 95 percent"},
		"no storage":            {tier(1, func(t *policy.Tier) { t.Storage = "" }), `tiers.1.storage: "": must be memory or file`},
		"no queue":              {tier(1, func(t *policy.Tier) { t.MaxQueue = 0 }), "tiers.1.max_queue: 0: must be 1"},
		"a queue beyond bounds": {tier(1, func(t *policy.Tier) { t.MaxQueue = policy.MaxQueueLimit + 1 }), "tiers.1.max_queue: 90001: must be 1"},
		"fewer than no retries": {tier(1, func(t *policy.Tier) { t.Retries = -1 }), "tiers.1.retries: -1: must be 0"},
		"no deadline":           {tier(1, func(t *policy.Tier) { t.Deadline = 0 }), "tiers.1.deadline: 0s: must be above 0"},
		"a wait below none":     {tier(1, func(t *policy.Tier) { t.MaxWait = -1 }), "tiers.1.max_wait: -1ns: must not be negative"},

		"a method that is none":         {pool(func(p *policy.Pool) { p.Balance = "fast" }), `pools.llama.balance: "fast": must be one of [price least-loaded`},
		"an affinity that is none":      {pool(func(p *policy.Pool) { p.Affinity = "on" }), `pools.llama.affinity: "on": must be auto`},
		"a stick below none":            {pool(func(p *policy.Pool) { p.StickFor = -1 }), "pools.llama.stick_for: -1ns: must not"},
		"a stick without affinity":      {pool(func(p *policy.Pool) { p.Affinity = policy.AffinityOff }), "pools.llama.stick_for: needs affinity"},
		"a pool that helps itself":      {pool(func(p *policy.Pool) { p.Spill[0].Pool = "llama" }), `pools.llama.spill.0.pool: "llama": is the pool itself`},
		"a pool that helps twice":       {pool(func(p *policy.Pool) { p.Spill = append(p.Spill, p.Spill[0]) }), `pools.llama.spill.1.pool: "llama-eu": named twice`},
		"a penalty of 10 rungs":         {pool(func(p *policy.Pool) { p.Spill[0].Penalty = 10 }), "pools.llama.spill.0.penalty: 10: must be 0 to 9"},
		"a pool with a long name":       {func(p *policy.Policy) { p.Pools[strings.Repeat("a", 257)] = policy.Pool{} }, "pools.aaa"},
		"a pool with a broken name":     {func(p *policy.Policy) { p.Pools["\xff"] = policy.Pool{} }, "pools.\xff: \"\\xff\": a name has 1 to 256 bytes of UTF-8"},
		"a worker with a bad weight":    {func(p *policy.Policy) { p.Workers["w"] = policy.Worker{Weight: -1} }, "workers.w.weight: -1: must be 0"},
		"a worker with no weight":       {func(p *policy.Policy) { p.Workers["w"] = policy.Worker{Weight: math.NaN()} }, "workers.w.weight: NaN: must be 0"},
		"a header with a blank":         {func(p *policy.Policy) { p.SessionHeaders[0] = "X Session" }, `session_headers.0: "X Session": not a header name`},
		"a route to nowhere":            {route(func(r *policy.Route) { r.To, r.Shift = nil, nil }), "routes.gpt-4o.to: names no pool"},
		"a route to nothing":            {route(func(r *policy.Route) { r.To[0].Weight, r.To[1].Weight = 0, 0 }), "routes.gpt-4o.to: the weights add up to 0"},
		"a weight below none":           {route(func(r *policy.Route) { r.To[1].Weight = -1 }), "routes.gpt-4o.to.1.weight: -1: must be 0"},
		"a weight that is not a number": {route(func(r *policy.Route) { r.To[1].Weight = math.NaN() }), "routes.gpt-4o.to.1.weight: NaN: must be 0"},
		"a weight without end":          {route(func(r *policy.Route) { r.To[1].Weight = math.Inf(1) }), "routes.gpt-4o.to.1.weight: +Inf: must be 0"},
		"a target twice":                {route(func(r *policy.Route) { r.To[1].Pool, r.Shift = "llama", nil }), `routes.gpt-4o.to.1.pool: "llama": named twice`},
		"a target without a name":       {route(func(r *policy.Route) { r.To[1].Pool, r.Shift = "", nil }), `routes.gpt-4o.to.1.pool: "": a name`},
		"a * in the middle":             {func(p *policy.Policy) { p.Routes["gpt-*-mini"] = p.Routes["gpt-*"] }, `routes.gpt-*-mini: "gpt-*-mini": a * is allowed only at the end`},
		"a mirror of nothing":           {route(func(r *policy.Route) { r.Mirror[0].Percent = 0 }), "routes.gpt-4o.mirror.0.percent: 0: must be above 0"},
		"a mirror of more than all":     {route(func(r *policy.Route) { r.Mirror[0].Percent = 101 }), "routes.gpt-4o.mirror.0.percent: 101: must be above 0"},
		"a fallback without a name":     {route(func(r *policy.Route) { r.Fallback[0] = "" }), `routes.gpt-4o.fallback.0: "": a name`},
		"a bound without a fallback":    {route(func(r *policy.Route) { r.Fallback = nil }), "routes.gpt-4o.fallback_after: needs a fallback"},
		"a bound below none":            {route(func(r *policy.Route) { r.FallbackAfter = -1 }), "routes.gpt-4o.fallback_after: -1ns: must not"},
		"sticky by chance":              {route(func(r *policy.Route) { r.StickyBy = "chance" }), `routes.gpt-4o.sticky_by: "chance": must be session`},
		"a shift to elsewhere":          {shift(func(s *policy.Shift) { s.To = "other" }), `routes.gpt-4o.shift.to: "other": not a pool of the route`},
		"a shift by nothing":            {shift(func(s *policy.Shift) { s.By = 0 }), "routes.gpt-4o.shift.by: 0: must be 0.01 to 100"},
		"a shift by more than all":      {shift(func(s *policy.Shift) { s.By = 101 }), "routes.gpt-4o.shift.by: 101: must be"},
		"a shift without time":          {shift(func(s *policy.Shift) { s.Every = 0 }), "routes.gpt-4o.shift.every: 0s: must be above 0"},
		"a sample below none":           {shift(func(s *policy.Shift) { s.MinSample = -1 }), "routes.gpt-4o.shift.min_sample: -1: must not"},
		"a condition that is none":      {shift(func(s *policy.Shift) { s.Abort = append(s.Abort, "slow") }), `routes.gpt-4o.shift.abort.1: "slow": must be METRIC>NUMBER`},
		"a state that is none":          {shift(func(s *policy.Shift) { s.State = "paused" }), `routes.gpt-4o.shift.state: "paused": must be empty`},
		"nothing to go back to":         {shift(func(s *policy.Shift) { s.Before[0].Weight = 0 }), "routes.gpt-4o.shift.before: the weights add up to 0"},
		"a bad weight to go back to":    {shift(func(s *policy.Shift) { s.Before[1].Weight = -1 }), "routes.gpt-4o.shift.before.1.weight: -1: must be 0"},
		"a shift that ended long ago":   {shift(func(s *policy.Shift) { s.State, s.To = policy.ShiftAborted, "gone" }), ""},
	} {
		p := full()
		c.spoil(p)
		switch err := p.Check(); {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", what, err)
		case c.want != "" && err == nil:
			t.Errorf("%s: no error, want %q", what, c.want)
		case c.want != "" && !strings.HasPrefix(err.Error(), c.want):
			t.Errorf("%s: got %q, want %q", what, err, c.want)
		}
	}
}

func TestCheckSaysEverything(t *testing.T) {
	p := full()
	p.Tiers[0].Share = 0
	p.Pools["llama"] = policy.Pool{Balance: "fast", StickFor: -1}
	err, ok := p.Check().(policy.Invalid)
	if !ok || len(err.Problems) != 3 {
		t.Fatalf("got %v, want three problems", err)
	}
	if got, want := err.Problems[1].Path, []string{"pools", "llama", "balance"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got the path %q, want %q", got, want)
	}
}

func TestCloneIsDeep(t *testing.T) {
	p := full()
	c := p.Clone()
	if !reflect.DeepEqual(c, p) {
		t.Fatalf("got %+v, want %+v", c, p)
	}
	c.Tiers[0].Share = 99
	c.Pools["other"] = policy.Pool{}
	c.Routes["gpt-4o"].To[0].Weight = 99
	c.Routes["gpt-4o"].Shift.By = 99
	c.Routes["gpt-4o"].Shift.Before[0].Weight = 99
	c.SessionHeaders[0] = "X-Other"
	if !reflect.DeepEqual(p, full()) {
		t.Errorf("the original has changed: %+v", p)
	}
}

func TestPolicyDefaults(t *testing.T) {
	p := policy.Default()
	if got := p.BalanceOf("any"); got != policy.Price {
		t.Errorf("balance %q, want %q", got, policy.Price)
	}
	if got := p.AffinityOf("any"); got != policy.AffinityAuto {
		t.Errorf("affinity %q, want %q", got, policy.AffinityAuto)
	}
	if got := p.Lowest().Name; got != "batch" {
		t.Errorf("lowest tier %q, want batch", got)
	}
	if _, ok := p.Tier("gold"); ok {
		t.Error("there is a tier gold")
	}
}

func TestDurationIsText(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                                     "0s",
		30 * time.Second:                      "30s",
		90 * time.Second:                      "1m30s",
		10 * time.Minute:                      "10m",
		time.Hour:                             "1h",
		time.Hour + 10*time.Minute:            "1h10m",
		10 * time.Hour:                        "10h",
		time.Hour + time.Second:               "1h0m1s",
		250 * time.Millisecond:                "250ms",
		-time.Minute:                          "-1m",
		24*time.Hour + 1500*time.Millisecond:  "24h0m1.5s",
		time.Duration(math.MaxInt64):          "2562047h47m16.854775807s",
		100*time.Hour + 100*time.Minute + 100: "101h40m0.0000001s",
	} {
		b, err := json.Marshal(policy.Duration(d))
		if err != nil || string(b) != `"`+want+`"` {
			t.Errorf("%v: got %s, %v; want %q", d, b, err, want)
		}
		var back policy.Duration
		if err := json.Unmarshal(b, &back); err != nil || time.Duration(back) != d {
			t.Errorf("%s: got %v, %v; want %v", b, back, err, d)
		}
	}
	for _, bad := range []string{`""`, `"10"`, `"soon"`, `10`, `"1d"`} {
		var d policy.Duration
		if err := json.Unmarshal([]byte(bad), &d); err == nil {
			t.Errorf("%s: got %v, want an error", bad, d)
		}
	}
}

func TestKeyCheck(t *testing.T) {
	for what, c := range map[string]struct {
		spoil func(*policy.Key)
		want  string
	}{
		"sound":                     {func(*policy.Key) {}, ""},
		"no id":                     {func(k *policy.Key) { k.ID = "" }, `id: "": must be 10 lower-case letters`},
		"an id with a dot":          {func(k *policy.Key) { k.ID = "01234.6789" }, `id: "01234.6789": must be`},
		"no tenant":                 {func(k *policy.Key) { k.Tenant = "" }, `tenant: "": a name`},
		"no hash":                   {func(k *policy.Key) { k.Hash = "" }, "hash: must be 64 hex digits"},
		"a hash that is none":       {func(k *policy.Key) { k.Hash = strings.Repeat("x", 64) }, "hash: must be 64 hex digits"},
		"an old hash that is none":  {func(k *policy.Key) { k.OldHash = "0a" }, "old_hash: must be 64 hex digits"},
		"fewer than no requests":    {func(k *policy.Key) { k.RPM = -1 }, "rpm: -1: must be 0"},
		"fewer than no tokens":      {func(k *policy.Key) { k.TPM = -1 }, "tpm: -1: must be 0"},
		"fewer than none at once":   {func(k *policy.Key) { k.Concurrency = -1 }, "concurrency: -1: must be 0"},
		"more than the whole queue": {func(k *policy.Key) { k.MaxQueueShare = 101 }, "max_queue_share: 101: must be 0 to 100"},
		"a tier that cannot be":     {func(k *policy.Key) { k.Tiers = []string{"Gold"} }, `tiers: "Gold": not a tier name`},
		"a model without a name":    {func(k *policy.Key) { k.Models = []string{""} }, `models: "": a name`},
	} {
		k := policy.Key{ID: "0123456789", Tenant: "acme", Hash: strings.Repeat("0a", 32), Tiers: []string{"batch"}, Models: []string{"gpt-*"}}
		c.spoil(&k)
		switch err := k.Check(); {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", what, err)
		case c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %q", what, err, c.want)
		}
	}
}

func TestKeyAllows(t *testing.T) {
	tiers := policy.DefaultTiers()
	for what, c := range map[string]struct {
		key     policy.Key
		models  map[string]bool
		tiers   map[string]bool
		unasked string
	}{
		"an open key": {policy.Key{},
			map[string]bool{"gpt-4o": true, "": true},
			map[string]bool{"priority": false, "standard": true, "batch": true, "gold": false}, "standard"},
		"a key with a list": {policy.Key{Models: []string{"gpt-*", "llama"}, Tiers: []string{"batch", "priority"}},
			map[string]bool{"gpt-4o": true, "gpt-": true, "gpt": false, "llama": true, "llama-2": false, "xgpt-4o": false},
			map[string]bool{"priority": true, "standard": false, "batch": true, "gold": false}, "batch"},
	} {
		for model, want := range c.models {
			if got := c.key.AllowsModel(model); got != want {
				t.Errorf("%s: model %q: got %v, want %v", what, model, got, want)
			}
		}
		for tier, want := range c.tiers {
			if got := c.key.AllowsTier(tier, tiers); got != want {
				t.Errorf("%s: tier %q: got %v, want %v", what, tier, got, want)
			}
		}
		if got := c.key.DefaultTier(); got != c.unasked {
			t.Errorf("%s: default tier %q, want %q", what, got, c.unasked)
		}
	}
}

func TestKeyID(t *testing.T) {
	for key, want := range map[string]string{
		"sk-pulley-0123456789-secret": "0123456789",
		"sk-pulley-0123456789-a-b":    "0123456789",
		"sk-pulley-0123456789-":       "",
		"sk-pulley-0123456789":        "",
		"sk-pulley-012345678-secret":  "",
		"sk-pulley-01234.6789-secret": "",
		"sk-other-0123456789-secret":  "",
		"":                            "",
	} {
		if got, ok := policy.KeyID(key); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v; want %q", key, got, ok, want)
		}
	}
}
