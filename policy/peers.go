package policy

import (
	"fmt"
	"slices"
	"time"
)

// A Peer is what a worker is compared by with the others of its pool. A zero value is not known.
type Peer struct {
	Token   float64 `json:"token,omitzero"`   // seconds for a token of a request that runs alone
	Slots   float64 `json:"slots,omitzero"`   // requests that its engine runs at once, as configured or reported
	KV      float64 `json:"kv,omitzero"`      // size of the KV cache in tokens
	Context float64 `json:"context,omitzero"` // most tokens of a prompt with its answer
}

// The kinds of notes.
const (
	NoteSlow  = "slow"  // the worker takes much longer for a token than is usual in the pool
	NoteSmall = "small" // it takes far fewer requests at once, or far shorter ones
)

// A Note says that a worker differs much from the others of its pool. Nothing is wrong with that: its price takes account of
// it. But if the machines should be alike, one of them is set up in another way, or is ill.
type Note struct {
	Kind string `json:"kind"`
	Text string `json:"text"` // how it differs, such as "2 at once, where 16 are usual"
}

// String is the note in one line.
func (n Note) String() string { return n.Kind + ": " + n.Text }

const (
	// fewPeers is how many workers of a pool it takes to say what is usual: of two unlike ones, neither is.
	fewPeers = 3

	// A card of the next class is up to three times as fast, and one with a quarter of the memory is often chosen on purpose; of a
	// third of the speed, or an eighth of the KV cache, neither is likely in a pool that is otherwise alike.
	slowFrom, slowUntil         = 3., 2.5
	smallFrom, smallUntil       = 1. / 4, 1. / 3 // of slots and context
	smallKVFrom, smallKVUntil   = 1. / 8, 1. / 6
	noteAfter, noteWithoutAfter = 1500 * time.Millisecond, 30 * time.Second
)

// Usual returns what is usual among workers: the median of each value, and zero for one that fewer than three of them have. With
// two values in the middle it is that in which fewer workers differ: the slower one, and the smaller one.
func Usual(all []Peer) (usual Peer) {
	median := func(value func(*Peer) *float64, upper bool) {
		var known []float64
		for i := range all {
			if v := *value(&all[i]); v > 0 {
				known = append(known, v)
			}
		}
		if len(known) < fewPeers {
			return
		}
		slices.Sort(known)
		at := (len(known) - 1) / 2
		if upper {
			at = len(known) / 2
		}
		*value(&usual) = known[at]
	}
	median(func(p *Peer) *float64 { return &p.Token }, true)
	median(func(p *Peer) *float64 { return &p.Slots }, false)
	median(func(p *Peer) *float64 { return &p.KV }, false)
	median(func(p *Peer) *float64 { return &p.Context }, false)
	return usual
}

// Comparison follows how a worker differs from what is usual in a pool. A difference counts once it has lasted for 1.5
// seconds, and until there has been less of it for half a minute. The zero value is ready to use.
type Comparison struct {
	noted [4]bool
	since [4]time.Time // since when the difference says otherwise than noted; zero: it does not
}

// Notes returns how the worker differs now. It is to be called every few seconds or more often.
func (c *Comparison) Notes(p, usual Peer, now time.Time) (notes []Note) {
	for i, d := range [...]struct {
		is, usual   float64
		from, until float64
		note        func() Note
	}{
		{p.Token, usual.Token, slowFrom, slowUntil, func() Note {
			return Note{NoteSlow, fmt.Sprintf("%v for a token, %.1f times the usual %v", span3(p.Token), p.Token/usual.Token, span3(usual.Token))}
		}},
		{p.Slots, usual.Slots, smallFrom, smallUntil, func() Note {
			return Note{NoteSmall, fmt.Sprintf("%.0f at once, where %.0f are usual", p.Slots, usual.Slots)}
		}},
		{p.KV, usual.KV, smallKVFrom, smallKVUntil, func() Note {
			return Note{NoteSmall, fmt.Sprintf("a KV cache of %.0f tokens, where %.0f are usual", p.KV, usual.KV)}
		}},
		{p.Context, usual.Context, smallFrom, smallUntil, func() Note {
			return Note{NoteSmall, fmt.Sprintf("a context of %.0f tokens, where %.0f are usual", p.Context, usual.Context)}
		}},
	} {
		least := d.from
		if c.noted[i] {
			least = d.until
		}
		known, differs := d.is > 0 && d.usual > 0, false
		switch {
		case !known:
			c.noted[i] = false // and nothing can be said of it
		case d.from > 1:
			differs = d.is >= least*d.usual
		default:
			differs = d.is <= least*d.usual
		}
		after := noteAfter
		if c.noted[i] {
			after = noteWithoutAfter
		}
		switch {
		case differs == c.noted[i]:
			c.since[i] = time.Time{}
		case c.since[i].IsZero():
			c.since[i] = now
		case now.Sub(c.since[i]) >= after:
			c.noted[i], c.since[i] = differs, time.Time{}
		}
		if c.noted[i] {
			notes = append(notes, d.note())
		}
	}
	return notes
}

// span3 is a time with three digits at most.
func span3(seconds float64) time.Duration {
	d := time.Duration(seconds * float64(time.Second))
	for unit := time.Second; unit >= time.Microsecond; unit /= 10 {
		if d >= 10*unit {
			return d.Round(unit / 10)
		}
	}
	return d
}
