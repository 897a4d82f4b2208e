package policy

import (
	"cmp"
	"time"
)

// Profile says how far a worker's adaptive limit may slow its requests down in exchange for running more of them.
type Profile struct {
	Name string
	// Stretch is how many times the inter-token time of a request alone the inter-token time of
	// many may be. A step of an engine takes about t0 + a·n for n requests, so a stretch of τ gives
	// about 1 − 1/τ of the most tokens per second that it can produce. 0: there is no bound.
	Stretch float64
	// ITL and TTFT are objectives for the mean inter-token time and for the 90th percentile of the
	// time to the first token. Default 0: none.
	ITL, TTFT time.Duration
	// Fixed uses the configured slots as they are: there is no adaptive limit, and only a fence
	// binds. It is for slots that are known to be right.
	Fixed bool
}

// The profiles, named by what they favour. On a simulated H100 with an 8B model and an endless queue they reach 42, 75
// and 93 % of the tokens per second of 256 slots, at 16, 22 and 37 % of the inter-token time.
var (
	Latency    = Profile{Name: "latency", Stretch: 1.5}
	Balanced   = Profile{Name: "balanced", Stretch: 3}
	Throughput = Profile{Name: "throughput", Stretch: 6}
	// GivenSlots is for configured slots: fewer are used only while the engine is overloaded.
	GivenSlots = Profile{Name: "slots"}
	FixedSlots = Profile{Name: "fixed", Fixed: true}
)

// Profiles lists all profiles. The default is Balanced, or GivenSlots if slots are configured.
var Profiles = []Profile{Latency, Balanced, Throughput, GivenSlots, FixedSlots}

// ProfileNamed finds a profile. The empty name is Balanced.
func ProfileNamed(name string) (Profile, bool) {
	for _, p := range Profiles {
		if p.Name == cmp.Or(name, Balanced.Name) {
			return p, true
		}
	}
	return Profile{}, false
}
