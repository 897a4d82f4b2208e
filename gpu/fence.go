package gpu

import (
	"fmt"
	"time"
)

// Sick says what is wrong with a GPU now, given how it was before, and whether it
// is fatal: it must not be used. A reason that is not fatal asks for the engine's
// health to be checked at once. The reason is empty if nothing is wrong. What
// happened, an XID or an ECC error, is told once, as prev has it the next time;
// what is, such as a lost GPU, as long as it is.
//
// With a zero prev each XID counts, and no ECC error does: nobody knows when they
// were.
func Sick(prev, now Snapshot) (reason string, isFatal bool) {
	ill := illness(prev, now)
	return ill.reason, ill.fatal
}

// FenceClass is the kind of reason for which a GPU, or a worker, is fenced: one
// word, where a reason has numbers in it.
type FenceClass string

const (
	FenceLost          FenceClass = "lost"
	FenceResetRequired FenceClass = "reset_required"
	FenceRowRemap      FenceClass = "row_remap"
	FenceRecovery      FenceClass = "recovery" // the driver wants it
	FenceXID           FenceClass = "xid"
	FenceECC           FenceClass = "ecc"
)

// ResetRequired is Snapshot.Lost of a GPU that has to be reset.
const ResetRequired = "requires a reset"

// ill is what is wrong with a GPU; the zero value: nothing.
type ill struct {
	class  FenceClass
	reason string
	fatal  bool
}

func illness(prev, now Snapshot) ill {
	if i := broken(now); i.fatal {
		return i
	}
	var suspicion ill
	for _, x := range newXIDs(prev, now) {
		switch x.severity() {
		case fatal:
			return ill{FenceXID, x.String(), true}
		case suspect:
			suspicion = ill{FenceXID, x.String(), false}
		}
	}
	if n := newUncorrected(prev, now); n > 0 {
		return ill{FenceECC, fmt.Sprintf("uncorrectable ECC errors: %d more", n), true}
	}
	return suspicion
}

// broken says why a GPU cannot be used whatever happened before, if it cannot.
func broken(s Snapshot) ill {
	switch {
	case s.Lost == ResetRequired:
		return ill{FenceResetRequired, "GPU " + s.Lost, true}
	case s.Lost != "":
		return ill{FenceLost, "GPU " + s.Lost, true}
	case s.Rows != nil && s.Rows.Failed:
		return ill{FenceRowRemap, "row remapping failed", true}
	case s.Recovery != nil && *s.Recovery != RecoveryNone:
		return ill{FenceRecovery, fmt.Sprintf("the driver wants recovery: %v", *s.Recovery), true}
	}
	return ill{}
}

func newXIDs(prev, now Snapshot) []XID {
	var seen uint64
	if n := len(prev.XIDs); n > 0 {
		seen = prev.XIDs[n-1].Seq
	}
	for i, x := range now.XIDs {
		if x.Seq > seen {
			return now.XIDs[i:]
		}
	}
	return nil
}

// newUncorrected is how many ECC errors came since prev. The count begins anew
// with the driver.
func newUncorrected(prev, now Snapshot) uint64 {
	if prev.ECC == nil || now.ECC == nil || prev.ECC.Uncorrected == nil || now.ECC.Uncorrected == nil ||
		prev.Load != now.Load || *now.ECC.Uncorrected < *prev.ECC.Uncorrected {
		return 0
	}
	return *now.ECC.Uncorrected - *prev.ECC.Uncorrected
}

// cleanFor is how long nothing fatal may have happened before a GPU comes back.
const cleanFor = time.Minute

// Fence is the judgement over one GPU: whether work may run on it. It goes up as
// soon as the GPU is fatally sick, and comes down
//
//   - after an XID or an ECC error, when the engine has been started anew since,
//     nothing more has happened for a minute, and the GPU answers;
//   - after anything else, when the driver has been loaded anew and the GPU
//     answers, or when an operator says so ([Fence.Lift]).
//
// The zero Fence is down. It has no clock: all times are those of the snapshots
// and the caller. It is not safe for concurrent use.
type Fence struct {
	prev      Snapshot
	class     FenceClass
	reason    string
	since     time.Time // when it went up
	last      time.Time // when the last fatal thing happened
	newDriver bool      // the driver has to be loaded anew
	load      string    // of the driver, when it went up
}

// Verdict is what follows from a snapshot.
type Verdict struct {
	// Fenced says that the GPU must not be used, Reason and Class why, and Since when.
	Fenced bool
	Class  FenceClass
	Reason string
	Since  time.Time
	// Suspect, if not empty, is why the engine's health has to be checked now, an
	// XID. It is said once.
	Suspect string
}

// Judge looks at the GPU's newest snapshot, which may be the one it has seen. An
// unfresh one is no evidence that the GPU answers. engineStarted is when the
// engine was last seen to start, zero if it never was.
func (f *Fence) Judge(now Snapshot, engineStarted time.Time) Verdict {
	i := illness(f.prev, now)
	suspicion := ""
	switch {
	case i.fatal:
		if f.reason == "" {
			f.since, f.class, f.reason = now.At, i.class, i.reason
		}
		if broken(now).fatal {
			f.class, f.reason, f.newDriver, f.load = i.class, i.reason, true, now.Load
		}
		f.last = latest(f.last, now.At, lastFatalXID(now))
	case f.reason != "" && f.healed(now, engineStarted):
		f.Lift()
	}
	if !i.fatal {
		suspicion = i.reason
	}
	f.prev = now
	return Verdict{Fenced: f.reason != "", Class: f.class, Reason: f.reason, Since: f.since, Suspect: suspicion}
}

// healed says whether a GPU with which nothing is wrong now may come back.
func (f *Fence) healed(now Snapshot, engineStarted time.Time) bool {
	if now.State == Stale || now.State == Unknown {
		return false
	}
	if f.newDriver {
		return now.Load != "" && f.load != "" && now.Load != f.load
	}
	return engineStarted.After(f.last) && now.At.Sub(f.last) >= cleanFor
}

// Lift takes the fence down, as an operator may.
func (f *Fence) Lift() {
	*f = Fence{prev: f.prev}
}

func lastFatalXID(s Snapshot) time.Time {
	var last time.Time
	for _, x := range s.XIDs {
		if x.severity() == fatal {
			last = latest(last, x.At)
		}
	}
	return last
}

func latest(t time.Time, more ...time.Time) time.Time {
	for _, m := range more {
		if m.After(t) {
			t = m
		}
	}
	return t
}
