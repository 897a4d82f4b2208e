package policy

import (
	"regexp"
	"time"
)

// Storage is where a tier's queue is kept.
type Storage string

const (
	Memory Storage = "memory" // the gateway holds the request too and publishes it again if the broker lost it
	File   Storage = "file"
)

// Tier is a service class.
type Tier struct {
	Name string `json:"name" yaml:"name"`
	// Share of the freed slots while tiers are backlogged.
	Share int `json:"share" yaml:"share"`
	// Reserve is the percentage of each worker's slots that stay free for this
	// tier and those before it: the tiers after it do not bid on them. On a worker
	// of few slots it is up to five times as much while it is needed (see Ceiling).
	Reserve  int     `json:"reserve,omitempty" yaml:"reserve,omitempty"`
	Storage  Storage `json:"storage" yaml:"storage"`
	MaxQueue int     `json:"max_queue" yaml:"max_queue"` // requests of a pool that may wait in it
	// MaxWait is how long a request may wait for a worker before it is refused.
	// Default 0: until its deadline.
	MaxWait  Duration `json:"max_wait,omitempty" yaml:"max_wait,omitempty"`
	Deadline Duration `json:"deadline" yaml:"deadline"` // where the client gives none
	Retries  int      `json:"retries" yaml:"retries"`   // after a first attempt that failed, before it is a dead letter
}

// MaxQueueLimit bounds Tier.MaxQueue: the broker's own bound is above it.
const MaxQueueLimit = 90_000

// DefaultTier serves requests that ask for none.
const DefaultTier = "standard"

// DefaultTiers are the tiers of a new installation, the first first. The
// reserve is kept from batch alone: most installations serve everybody at
// standard, and slots kept from standard would be idle there.
func DefaultTiers() []Tier {
	return []Tier{
		{Name: "priority", Share: 8, Storage: Memory, MaxQueue: 2000, Retries: 2, Deadline: Duration(10 * time.Minute)},
		{Name: "standard", Share: 4, Reserve: 10, Storage: Memory, MaxQueue: 2000, Retries: 2, Deadline: Duration(10 * time.Minute)},
		{Name: "batch", Share: 1, Storage: File, MaxQueue: 10000, Retries: 2, Deadline: Duration(time.Hour)},
	}
}

var tierName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// TierFor is the tier that a client's service_tier asks for: Pulley's names,
// OpenAI's and Anthropic's: "auto", "default" and "standard_only" are standard,
// "flex" is batch, "scale", "fast" and "ultrafast" are priority. It says false
// for anything else.
func TierFor(asked string, tiers []Tier) (Tier, bool) {
	switch asked {
	case "", "auto", "default", "standard_only":
		asked = DefaultTier
	case "flex":
		asked = "batch"
	case "scale", "fast", "ultrafast":
		asked = "priority"
	}
	for _, t := range tiers {
		if t.Name == asked {
			return t, true
		}
	}
	return Tier{}, false
}

// Wheel deals freed slots to tiers by their shares: smooth weighted round
// robin, so that a small share is served in between and not at the end.
type Wheel struct{ deficit []int }

// Next picks among the tiers with a share above 0 and charges the pick. It is
// -1 if there is none. Tiers that are left out neither gain nor lose.
func (w *Wheel) Next(shares []int) int {
	if len(w.deficit) != len(shares) {
		w.deficit = make([]int, len(shares))
	}
	pick, sum := -1, 0
	for i, s := range shares {
		if s <= 0 {
			continue
		}
		w.deficit[i] += s
		sum += s
		if pick < 0 || w.deficit[i] > w.deficit[pick] {
			pick = i
		}
	}
	if pick >= 0 {
		w.deficit[pick] -= sum
	}
	return pick
}
