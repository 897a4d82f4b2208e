package policy

import (
	"fmt"
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
	Name        string
	Share       int // of the freed slots while tiers are backlogged
	Storage     Storage
	MaxQueue    int           // requests of a pool that may wait in it
	MaxAttempts int           // workers that may fail a request before it is a dead letter
	Deadline    time.Duration // where the client gives none
}

// DefaultTier serves requests that ask for none.
const DefaultTier = "standard"

// DefaultTiers are the tiers of a new installation, the first first.
func DefaultTiers() []Tier {
	return []Tier{
		{Name: "priority", Share: 8, Storage: Memory, MaxQueue: 2000, MaxAttempts: 3, Deadline: 10 * time.Minute},
		{Name: "standard", Share: 4, Storage: Memory, MaxQueue: 2000, MaxAttempts: 3, Deadline: 10 * time.Minute},
		{Name: "batch", Share: 1, Storage: File, MaxQueue: 10000, MaxAttempts: 3, Deadline: time.Hour},
	}
}

var tierName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// CheckTiers says what is wrong with a set of tiers.
func CheckTiers(tiers []Tier) error {
	seen := make(map[string]bool)
	for _, t := range tiers {
		switch {
		case !tierName.MatchString(t.Name):
			return fmt.Errorf("tier %q: a name is 1 to 32 lower-case letters, digits and '-'", t.Name)
		case seen[t.Name]:
			return fmt.Errorf("tier %q: named twice", t.Name)
		case t.Share < 1:
			return fmt.Errorf("tier %q: share %d: must be at least 1", t.Name, t.Share)
		case t.MaxQueue < 1:
			return fmt.Errorf("tier %q: max queue %d: must be at least 1", t.Name, t.MaxQueue)
		case t.MaxAttempts < 1:
			return fmt.Errorf("tier %q: max attempts %d: must be at least 1", t.Name, t.MaxAttempts)
		case t.Deadline <= 0:
			return fmt.Errorf("tier %q: deadline %v: must be above 0", t.Name, t.Deadline)
		}
		seen[t.Name] = true
	}
	if !seen[DefaultTier] {
		return fmt.Errorf("no tier %q: requests that ask for none need it", DefaultTier)
	}
	return nil
}

// TierFor is the tier that a client's service_tier asks for: Pulley's names,
// and OpenAI's: "auto" and "default" are standard, "flex" is batch, "scale" is
// priority. It says false for anything else.
func TierFor(asked string, tiers []Tier) (Tier, bool) {
	switch asked {
	case "", "auto", "default":
		asked = DefaultTier
	case "flex":
		asked = "batch"
	case "scale":
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
type Wheel struct{ credit []int }

// Next picks among the tiers with a share above 0 and charges the pick. It is
// -1 if there is none. Tiers that are left out neither gain nor lose.
func (w *Wheel) Next(shares []int) int {
	if len(w.credit) != len(shares) {
		w.credit = make([]int, len(shares))
	}
	pick, sum := -1, 0
	for i, s := range shares {
		if s <= 0 {
			continue
		}
		w.credit[i] += s
		sum += s
		if pick < 0 || w.credit[i] > w.credit[pick] {
			pick = i
		}
	}
	if pick >= 0 {
		w.credit[pick] -= sum
	}
	return pick
}
