package policy

import (
	"regexp"
	"time"
)

// Storage is where a tier's queue is kept.
type Storage string

const (
	Memory Storage = "memory" // the gateway keeps the request too and publishes it again if the broker loses it
	File   Storage = "file"
)

// Tier is a service class.
type Tier struct {
	Name string `json:"name" yaml:"name"`
	// Share is the tier's part of the freed slots while several tiers have a backlog.
	Share int `json:"share" yaml:"share"`
	// Reserve is the percentage of each worker's slots that stays free for this tier and those
	// above it; the tiers below do not bid on them. On a worker with few slots the reserve grows up
	// to five times while it is needed (see Ceiling).
	Reserve  int     `json:"reserve,omitempty" yaml:"reserve,omitempty"`
	Storage  Storage `json:"storage" yaml:"storage"`
	MaxQueue int     `json:"max_queue" yaml:"max_queue"` // requests of one pool that may have to wait in the tier, beyond those that free slots take
	// MaxWait is how long a request may wait for a worker before it is refused. One that is expected to wait longer is refused
	// at once, and workers leave requests in the queue while their engines need longer for the prompts that wait there. Default
	// 0: until its deadline.
	MaxWait Duration `json:"max_wait,omitempty" yaml:"max_wait,omitempty"`
	// FirstByteWithin is how long a stream may take to its first byte before it moves to another worker. Default 0: as the
	// gateway is set, and else by what its worker has measured.
	FirstByteWithin Duration `json:"first_byte_within,omitempty" yaml:"first_byte_within,omitempty"`
	Deadline        Duration `json:"deadline" yaml:"deadline"` // used where the client sets none
	Retries         int      `json:"retries" yaml:"retries"`   // attempts after a failed first one, before the request becomes a dead letter
}

// MaxQueueLimit bounds Tier.MaxQueue. The broker's own bound is above it.
const MaxQueueLimit = 90_000

// DefaultTier serves requests that ask for no tier.
const DefaultTier = "standard"

// DefaultTiers are the tiers of a new installation, in order of priority. The reserve is kept from batch alone: most
// installations serve everyone at standard, where slots reserved for priority would stay idle.
func DefaultTiers() []Tier {
	return []Tier{
		{Name: "priority", Share: 8, Storage: Memory, MaxQueue: 2000, Retries: 2, Deadline: Duration(10 * time.Minute)},
		{Name: "standard", Share: 4, Reserve: 10, Storage: Memory, MaxQueue: 2000, Retries: 2, Deadline: Duration(10 * time.Minute)},
		{Name: "batch", Share: 1, Storage: File, MaxQueue: 10000, Retries: 2, Deadline: Duration(time.Hour)},
	}
}

// TierDefaults is a new tier of that name: the settings that a policy may leave out.
func TierDefaults(name string) Tier {
	for _, t := range DefaultTiers() {
		if t.Name == name {
			return t
		}
	}
	return Tier{Name: name, Share: 1, Storage: Memory, MaxQueue: 2000, Retries: 2, Deadline: Duration(10 * time.Minute)}
}

// IsTierName reports whether a tier can have that name.
func IsTierName(name string) bool { return tierName.MatchString(name) }

var tierName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// TierFor maps a client's service_tier to a tier. It knows Pulley's own names and those of OpenAI
// and Anthropic: "auto", "default" and "standard_only" mean standard, "flex" means batch, and
// "scale", "fast" and "ultrafast" mean priority. It returns false for anything else.
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

// Wheel distributes freed slots over tiers by their shares. It is a smooth weighted round robin: a
// tier with a small share is served in between and not at the end.
type Wheel struct{ deficit []int }

// Next picks one of the tiers with a share above 0 and charges it. It returns -1 if there is none.
// A tier that is left out neither gains nor loses.
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

const (
	// maxMissRate is the part of the requests with a reserve that may find all slots taken.
	maxMissRate = 0.01

	// maxReserveFactor is how many times its percentage the reserve may grow to. So at 10 % the
	// tiers below keep half of a worker with few slots, and an operator who sets 2 % says that
	// those tiers matter more than the time to the first token.
	maxReserveFactor = 5
)

// Ceiling is how many of a worker's slots the i-th tier may fill: all except the reserve of the tiers above it, and
// always at least one. So a request of a tier with a reserve finds a slot at once, however long the backlog below it.
//
// A percentage of few slots is zero, or too small for requests that arrive at random. So while the tiers with a reserve
// have requests in flight (loads is their mean over the last minute), the reserve is at least one slot and large enough
// that 99 in 100 of their requests find one, up to five times the percentage.
func Ceiling(tiers []Tier, loads []float64, i, slots int) int {
	percent, load, sum := 0, 0.0, 0.0
	for j, t := range tiers[:i] {
		sum += loads[j]
		if t.Reserve > 0 {
			percent += t.Reserve
			load = sum
		}
	}
	reserve := slots * percent / 100
	if load > 0 {
		reserve = reserveFor(load, slots, reserve, slots*min(maxReserveFactor*percent, 100)/100)
	}
	return max(slots-reserve, 1)
}

// reserveFor is the smallest reserve between two bounds at which at most maxMissRate of the
// requests that it is for find all of it taken, while others keep the remaining slots full. This is
// Erlang's loss formula over the reserve alone; with all slots in reserve it is Erlang B.
func reserveFor(load float64, slots, least, most int) int {
	term, sum := 1.0, 1.0 // terms of 1/(miss rate)
	for reserve := 0; ; reserve++ {
		if reserve >= most || reserve >= least && 1/sum <= maxMissRate {
			return reserve
		}
		term *= float64(slots-reserve) / load
		sum += term
	}
}

// MayBid reports whether a worker may bid for one more request of a tier, given its requests in
// flight and the prefills that wait on it. While any prefill waits, a tier with an active tier
// above it does not bid (the prefill gate): an engine prefills one prompt after the other, and a
// request of the tier above, which finds a slot at once, would queue behind that prefill.
func MayBid(ceiling, inFlight, prefills int, activeAbove bool) bool {
	return inFlight < ceiling && (prefills == 0 || !activeAbove)
}

// SoonestWait is the expected wait from which on a request is refused at once that may wait for maxWait: a wait is known only to
// about a quarter, and whoever waits in vain has lost time.
func SoonestWait(maxWait time.Duration) time.Duration { return maxWait * 3 / 4 }

// leastWork is the work in seconds that a worker always takes, so that its engine does not idle until the next prompt comes.
const leastWork = 0.25

// HoldsBack reports whether a worker leaves requests that may wait for maxWait in the queue because its engine needs work seconds
// for the prompts that wait in it. There they could not be refused any more, and no other worker could take them.
func HoldsBack(maxWait time.Duration, work float64) bool {
	return maxWait > 0 && work > max(maxWait.Seconds(), leastWork)
}
