package batch

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// help is what late batches of a service share: how many lines run as ordinary calls, in the tiers of their keys.
type help struct {
	most int // of all batches; fixed

	mu      sync.Mutex
	granted map[*run]int // how many a batch may have; batches that are not late have no entry
	running int
}

// grant changes how many lines of a batch may run as ordinary calls, as near to want as its share allows. It returns how many.
func (h *help) grant(r *run, want int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.granted, r)
	if want == 0 || h.most == 0 {
		return 0
	}
	free, share := h.most, max(h.most/(len(h.granted)+1), 1)
	for _, n := range h.granted {
		free -= n
	}
	h.granted[r] = min(want, free, share) // if it is none, the others leave some when they are looked at
	return h.granted[r]
}

// begin takes a place for a line, if there is one.
func (h *help) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running >= h.most {
		return false
	}
	h.running++
	return true
}

// end gives a place back.
func (h *help) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running--
}

// lateness is how a batch is helped that would miss its window: some of its lines run as ordinary calls, beside those of the window.
type lateness struct {
	pace     policy.BatchPace
	looks    time.Time // when to look at the pace next
	most     int       // lines that may run as ordinary calls now
	running  int       // those that do
	recalled int       // lines that were taken back from the queue for that, and have not come yet
	resumes  time.Time // none begins before
	useless  bool      // the tier of the key is that of batches
}

// look decides how many lines may run as ordinary calls, now and then.
func (d *dispatch) look(now time.Time) {
	l := &d.late
	if d.run.s.help.most == 0 || now.Before(l.looks) {
		return
	}
	window := d.b.Until.Sub(d.b.Since[Validating])
	l.looks = now.Add(policy.BatchLooks(window))
	done, known := d.progress(now)
	if !known {
		return
	}
	want, rate, judged := l.pace.Look(policy.BatchProgress{Now: now, Until: d.b.Until, Window: window, Lines: d.b.Lines, Done: done, Late: l.most})
	if !judged {
		return
	}
	want = min(want, d.b.Lines-d.done)
	if l.useless {
		want = 0
	}
	was := l.most
	d.allow(want)
	log := d.run.log.With("requests_left", d.b.Lines-d.done, "per_minute", rate*60, "time_left", d.b.Until.Sub(now).Round(time.Second))
	switch {
	case was == 0 && l.most > 0:
		log.Info("the batch would miss its window: some of its requests run as ordinary calls", "late", l.most)
	case was > 0 && l.most == 0:
		log.Info("the batch is in time without ordinary calls")
	case was != l.most:
		log.Debug("other number of requests of a late batch as ordinary calls", "late", l.most)
	}
}

// progress is how many lines are finished, with parts of those that run. It is not known while the first lines run.
func (d *dispatch) progress(now time.Time) (done float64, known bool) {
	done = float64(d.done)
	for _, f := range d.flights {
		since := f.watch.Running()
		switch {
		case since.IsZero():
		case d.takes == 0:
			return 0, false
		default:
			done += min(now.Sub(since).Seconds()/d.takes.Seconds(), 1)
		}
	}
	return done, true
}

// took notes for how long a worker had a line that is finished.
func (d *dispatch) took(f *flight, now time.Time) {
	since := f.watch.Running()
	switch {
	case since.IsZero():
	case d.takes == 0:
		d.takes = max(now.Sub(since), time.Millisecond)
	default:
		d.takes = max(d.takes+(now.Sub(since)-d.takes)/8, time.Millisecond)
	}
}

// allow changes how many lines may run as ordinary calls.
func (d *dispatch) allow(want int) {
	d.late.most = d.run.s.help.grant(d.run, want)
	d.run.mu.Lock()
	defer d.run.mu.Unlock()
	d.run.late = d.late.most
}

// runLate has lines run as ordinary calls, as many as may. They are lines that are not in the queue yet; if there are none, those of the
// window that came to it last, if no worker has had them.
func (d *dispatch) runLate(ctx context.Context, now time.Time) {
	for l := &d.late; l.running+l.recalled < l.most && !now.Before(l.resumes) && d.run.s.help.begin(); {
		if next, ok := d.next(now, true); ok {
			l.running++
			d.start(ctx, next, true)
			continue
		}
		if !d.takeBack(ctx) {
			d.run.s.help.end()
			return
		}
		l.recalled++
	}
}

// takeBack begins to take back a line that waits in the queue, if there is one. It comes with the verdict takenBack; if it stays after
// all, onKept is next.
func (d *dispatch) takeBack(ctx context.Context) bool {
	for _, f := range slices.Backward(d.flights) {
		if f.late || f.stays || f.recalled || !f.watch.Waits() {
			continue
		}
		f.recalled = true
		go func() { // all waits for it
			if !f.watch.TakeBack(ctx) {
				d.kept <- f
			}
		}()
		return true
	}
	return false
}

// onKept notes that a line could not be taken back.
func (d *dispatch) onKept(f *flight) {
	f.recalled = false
	d.late.recalled--
	d.run.s.help.end()
}

// onTakenBack has a line run as an ordinary call that was taken back from the queue for that.
func (d *dispatch) onTakenBack(ctx context.Context, b line) {
	d.late.recalled--
	if ctx.Err() != nil {
		d.run.s.help.end()
		return
	}
	d.late.running++
	d.start(ctx, b, true)
}
