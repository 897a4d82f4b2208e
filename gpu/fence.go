package gpu

import (
	"fmt"
	"time"
)

// Sick returns what is wrong with a GPU now, given how it was before, and whether that is fatal: the GPU must not be
// used. A reason that is not fatal asks for an immediate check of the engine's health. The reason is empty if nothing
// is wrong. An event, such as an XID or an ECC error, is reported once, because prev contains it the next time. A
// condition, such as a lost GPU, is reported as long as it lasts.
//
// With a zero prev each XID counts, and no ECC error does: it is unknown when they happened.
func Sick(prev, now Snapshot) (reason string, isFatal bool) {
	f := faultOf(prev, now)
	return f.reason, f.fatal
}

// FenceClass classifies the reason for which a GPU or a worker is fenced. It is one word, where a
// reason may contain numbers.
type FenceClass string

const (
	FenceLost          FenceClass = "lost"
	FenceResetRequired FenceClass = "reset_required"
	FenceRowRemap      FenceClass = "row_remap"
	FenceRecovery      FenceClass = "recovery" // the driver requests it
	FenceXID           FenceClass = "xid"
	FenceECC           FenceClass = "ecc"
)

// ResetRequired is Snapshot.Lost of a GPU that has to be reset.
const ResetRequired = "requires a reset"

// fault is what is wrong with a GPU. The zero value means nothing.
type fault struct {
	class  FenceClass
	reason string
	fatal  bool
}

func faultOf(prev, now Snapshot) fault {
	if i := broken(now); i.fatal {
		return i
	}
	var suspicion fault
	for _, x := range newXIDs(prev, now) {
		switch x.severity() {
		case fatal:
			return fault{FenceXID, x.String(), true}
		case suspect:
			suspicion = fault{FenceXID, x.String(), false}
		}
	}
	if n := newUncorrected(prev, now); n > 0 {
		return fault{FenceECC, fmt.Sprintf("uncorrectable ECC errors: %d more", n), true}
	}
	return suspicion
}

// broken returns why a GPU cannot be used whatever happened before, or the zero value.
func broken(s Snapshot) fault {
	switch {
	case s.Lost == ResetRequired:
		return fault{FenceResetRequired, "GPU " + s.Lost, true}
	case s.Lost != "":
		return fault{FenceLost, "GPU " + s.Lost, true}
	case s.Rows != nil && s.Rows.Failed:
		return fault{FenceRowRemap, "row remapping failed", true}
	case s.Recovery != nil && *s.Recovery != RecoveryNone:
		return fault{FenceRecovery, fmt.Sprintf("the driver requests recovery: %v", *s.Recovery), true}
	}
	return fault{}
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

// newUncorrected is the number of ECC errors since prev. The driver counts from 0 after each load.
func newUncorrected(prev, now Snapshot) uint64 {
	if prev.ECC == nil || now.ECC == nil || prev.ECC.Uncorrected == nil || now.ECC.Uncorrected == nil ||
		prev.Load != now.Load || *now.ECC.Uncorrected < *prev.ECC.Uncorrected {
		return 0
	}
	return *now.ECC.Uncorrected - *prev.ECC.Uncorrected
}

// cleanFor is how long a GPU must be without a fatal fault before it is used again.
const cleanFor = time.Minute

// Fence decides whether work may run on one GPU. It is raised as soon as the GPU has a fatal fault, and lowered
//
//   - after an XID or an ECC error, when the engine has been restarted since, nothing more has
//     happened for a minute, and the GPU answers;
//   - after anything else, when the driver has been reloaded and the GPU answers, or when an
//     operator says so ([Fence.Lift]).
//
// The zero Fence is down. It has no clock: all times are those of the snapshots and the caller. It
// is not safe for concurrent use.
type Fence struct {
	prev      Snapshot
	class     FenceClass
	reason    string
	since     time.Time // when it was raised
	last      time.Time // time of the last fatal fault
	newDriver bool      // only a reloaded driver lowers it
	load      string    // the driver's load when it was raised
}

// Verdict is the result of judging a snapshot.
type Verdict struct {
	// Fenced says that the GPU must not be used, Reason and Class why, and Since since when.
	Fenced bool
	Class  FenceClass
	Reason string
	Since  time.Time
	// Suspect, if not empty, is why the engine's health has to be checked now: an XID. It is reported once.
	Suspect string
}

// Judge judges the GPU's newest snapshot, which may be the same as before. A snapshot that is not fresh is no evidence
// that the GPU answers. engineStarted is when the engine was last seen to start, zero if it never was.
func (f *Fence) Judge(now Snapshot, engineStarted time.Time) Verdict {
	i := faultOf(f.prev, now)
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

// healed reports whether a GPU without a present fault may be used again.
func (f *Fence) healed(now Snapshot, engineStarted time.Time) bool {
	if now.State == Stale || now.State == Unknown {
		return false
	}
	if f.newDriver {
		return now.Load != "" && f.load != "" && now.Load != f.load
	}
	return engineStarted.After(f.last) && now.At.Sub(f.last) >= cleanFor
}

// Lift lowers the fence, as an operator may do.
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
