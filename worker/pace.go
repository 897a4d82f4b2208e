package worker

import (
	"cmp"
	"time"

	"github.com/pulley-lb/pulley/api"
)

const (
	// otherEvents of a stream carry no token: the first and the last in most APIs.
	// Where there are few altogether, they would blur what the others carry.
	otherEvents = 2
	fewEvents   = 4

	// severalTokens is from how many tokens on an event counts as one of several.
	severalTokens = 1.5
)

// pace follows the time between the tokens of one stream. Guarded by Worker.mu.
type pace struct {
	events   int       // so far
	at       time.Time // of the last; zero: the client has kept the engine waiting since
	prefills uint64    // that had begun then
	quiet    bool      // none of them was under way then
	took     time.Duration
}

// tokensLocked takes in what a stream has brought until now.
func (w *Worker) tokensLocked(p *pace, watch *api.Inspector, now time.Time) {
	r := &w.room
	events, quiet := watch.Events-p.events, len(w.prefilling) == 0
	if w.fencedSinceLocked(p.at) {
		p.at = time.Time{}
	}
	if events == 0 && !p.at.IsZero() {
		return
	}
	if !p.at.IsZero() {
		gap := now.Sub(p.at)
		p.took += gap
		switch {
		case r.perEvent == 0 || r.perEvent >= severalTokens || watch.Ended: // with the end come events that carry no token
		case quiet && p.quiet && p.prefills == r.prefills:
			r.window.Quiet(gap, events)
		default:
			r.window.Gap(gap, events)
		}
	}
	p.events, p.at, p.prefills, p.quiet = watch.Events, now, r.prefills, quiet
}

// streamedLocked takes in a stream that has ended. Where events carry several
// tokens, there is no time between two of them, but that of the whole stream.
func (w *Worker) streamedLocked(p *pace, watch *api.Inspector) {
	r := &w.room
	if !watch.Stream || watch.Events <= fewEvents {
		return
	}
	if watch.ReportedTokens() == 0 { // it does not say
		r.perEvent = cmp.Or(r.perEvent, 1)
		return
	}
	per := float64(watch.ReportedTokens()) / float64(watch.Events-otherEvents)
	r.perEvent = cmp.Or(r.perEvent, per)
	r.perEvent += (per - r.perEvent) / 20
	if r.perEvent >= severalTokens && watch.ReportedTokens() > 1 && p.took > 0 {
		r.window.Gap(p.took, watch.ReportedTokens()-1)
	}
}
