package batch

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
)

const (
	// beatEvery is how often the owner of a batch writes its record; deadAfter is for how long it must not have changed until
	// another takes the batch.
	beatEvery = 2 * time.Second
	deadAfter = 8 * time.Second
)

// Why lines of a batch stop before all are finished.
var (
	errCancelled = errors.New("the batch was cancelled")
	errExpired   = errors.New("the batch has expired")
	errKeyGone   = errors.New("the API key of the batch was revoked")
)

// run is a batch that this service owns.
type run struct {
	// Fixed when it is made.
	s      *Service
	id     string
	tenant string
	hidden string // file of the input, if clients cannot see it; else empty
	do     gateway.Do
	log    *slog.Logger
	nudge  chan struct{}    // has the record read at once; holds one
	writes chan recordWrite // changes of the record, for the goroutine that owns it

	// Owned by beats.
	rec  *record
	last uint64 // sequence of rec

	mu       sync.Mutex
	progress progress
	late     int // lines that may run as ordinary calls now: see lateness
}

// recordWrite is a change of the record.
type recordWrite struct {
	change func(*record)
	done   chan error
}

// own runs a batch until it has ended, ctx is done, or another service has taken it. It returns an error if it did not end.
func (r *run) own(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	lines, stopLines := context.WithCancelCause(ctx) // ends as well when lines must not run any more
	defer stopLines(nil)
	first := *r.rec // beats owns r.rec from here on
	if first.Status == Cancelling {
		stopLines(errCancelled)
	}
	expires := time.AfterFunc(time.Until(first.Until), func() { stopLines(errExpired) })
	defer expires.Stop()
	var beats sync.WaitGroup
	defer beats.Wait()
	defer stop(nil)
	beats.Go(func() {
		if err := r.beats(ctx, func() { stopLines(errCancelled) }); err != nil {
			stop(err)
		}
	})
	err := r.work(ctx, lines, stopLines, &first)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// beats writes the record every now and then, and when it is to be changed, until ctx is done. It returns errLost when another
// service has taken the batch.
func (r *run) beats(ctx context.Context, cancelled func()) error {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		w := recordWrite{change: func(*record) {}}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-r.nudge:
		case w = <-r.writes:
		}
		err := r.write(ctx, w.change)
		if r.rec.Status == Cancelling {
			cancelled()
		}
		if w.done != nil {
			w.done <- err
		}
		if errors.Is(err, errLost) {
			return err
		}
	}
}

// write changes the record, whatever else has changed it meanwhile.
func (r *run) write(ctx context.Context, change func(*record)) error {
	return again(ctx, func() error {
		for {
			b := *r.rec
			b.Since = maps.Clone(b.Since)
			b.Errors = slices.Clone(b.Errors)
			b.Beat++
			r.mu.Lock()
			b.Progress, b.Late = r.progress, r.late
			r.mu.Unlock()
			if b.Progress != r.rec.Progress {
				b.Moved = time.Now()
			}
			change(&b)
			seq, err := r.s.store.putBatch(ctx, &b, r.last)
			if err == nil {
				r.rec, r.last = &b, seq
				return nil
			}
			if !errors.Is(err, errChanged) {
				return err
			}
			now, seq, err := r.s.store.batch(ctx, b.Tenant, b.ID)
			if errors.Is(err, errNotFound) || err == nil && now.Owner != r.s.id {
				return final{errLost}
			}
			if err != nil {
				return err
			}
			r.rec, r.last = now, seq
		}
	})
}

// change has beats change the record.
func (r *run) change(ctx context.Context, change func(*record)) error {
	w := recordWrite{change, make(chan error, 1)}
	select {
	case r.writes <- w:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// work takes a batch from where it is to its end. b is its record at the start.
func (r *run) work(ctx, lines context.Context, stopLines func(error), b *record) error {
	f, err := r.s.store.file(ctx, b.Tenant, b.Input)
	switch {
	case errors.Is(err, errNotFound) && b.Status == Validating:
		return r.fail(ctx, lineError{Code: "input_file_gone", Message: "the input file has expired", Param: "input_file_id"})
	case errors.Is(err, errNotFound): // no gateway was there at the end of the batch, nor since
		f, b.Ending = nil, cmp.Or(b.Ending, Expired)
	case err != nil:
		return err
	}
	if b.Status == Validating {
		wrong, err := r.validate(ctx, lines, b, f)
		if err != nil {
			return err
		}
		if len(wrong) > 0 {
			return r.fail(ctx, wrong...)
		}
	}
	log := &appender{
		store: r.s.store, id: b.ID, mark: newID(""), ttl: time.Until(b.Until) + 7*24*time.Hour,
		full: func(err error) { r.log.Warn("results of a batch cannot be stored; trying again", "err", err) },
	}
	finished := make([]bool, b.Lines)
	if err := log.open(ctx, func() { clear(finished); r.reset() }, func(res result) { r.count(finished, &res) }); err != nil {
		return err
	}
	if f != nil && b.Ending == "" {
		if b.Ending, err = r.lines(ctx, lines, stopLines, b, f, log, finished); err != nil {
			return err
		}
		why := context.Cause(lines)
		if err := r.change(ctx, func(now *record) {
			if now.Status == Cancelling && b.Ending == Completed {
				b.Ending = Cancelled
			}
			now.ends(b.Ending)
			if errors.Is(why, errKeyGone) {
				now.Errors = append(now.Errors, lineError{Code: "api_key_revoked", Message: "the API key with which the batch was created was revoked, or has expired"})
				now.become(Cancelling)
			}
			if now.Status != Cancelling {
				now.become(Finalizing)
			}
		}); err != nil {
			return err
		}
	}
	return r.finish(ctx, b, f, finished, log.last)
}

// validate checks the input of a batch, and whether its tenant may have so much in the queue. The batch is in progress then, unless
// lines has ended.
func (r *run) validate(ctx, lines context.Context, b *record, f *file) (wrong []lineError, err error) {
	in, err := r.s.validate(lines, f, b.Endpoint)
	if err != nil {
		if context.Cause(lines) != nil {
			err = nil
		}
		return nil, err
	}
	if len(in.wrong) > 0 {
		return in.wrong, nil
	}
	b.Lines, b.Model, b.Tokens = in.lines, in.model, in.tokens
	// The tokens are stored before those of other batches are read, so that of two that are checked at a time one sees the other.
	if err := r.change(ctx, func(now *record) { now.Lines, now.Model, now.Tokens = b.Lines, b.Model, b.Tokens }); err != nil {
		return nil, err
	}
	open, err := r.s.store.openBatches(ctx, b.Tenant)
	if err != nil {
		return nil, err
	}
	open = slices.DeleteFunc(open, func(o *record) bool { return o.ID == b.ID || o.Status == Validating && o.ID > b.ID })
	if used := loadOf(open).tokens; used+b.Tokens > r.s.cfg.TenantTokens {
		return []lineError{{Code: "token_limit_exceeded", Message: tokensExceeded(r.s.cfg.TenantTokens, used, b.Tokens)}}, nil
	}
	return nil, r.change(ctx, func(now *record) {
		if now.Status == Validating {
			now.become(InProgress)
		}
	})
}

// reset forgets the progress.
func (r *run) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress = progress{}
}

// count takes in a result that is in the log. finished is the caller's.
func (r *run) count(finished []bool, res *result) {
	if res.n < 0 || res.n >= len(finished) || finished[res.n] {
		return
	}
	finished[res.n] = true
	r.mu.Lock()
	defer r.mu.Unlock()
	if res.ok {
		r.progress.Completed++
	} else {
		r.progress.Failed++
	}
	r.progress.Tokens += res.tokens
	r.progress.Usage.add(res.usage)
}

// fail ends a batch whose input is not valid.
func (r *run) fail(ctx context.Context, why ...lineError) error {
	if err := r.change(ctx, func(b *record) { b.Errors = why; b.become(Failed) }); err != nil {
		return err
	}
	return r.close(ctx)
}

// close removes what is kept of a batch only while it runs.
func (r *run) close(ctx context.Context) error {
	return r.s.store.closeBatch(ctx, r.tenant, r.id, r.hidden)
}

// back is a line that has run.
type back struct {
	flight  *flight
	line    line
	verdict verdict
	pause   time.Duration
}

// lines runs the lines of a batch that are not finished, until all are, or until run is done. It returns what the batch becomes by
// that. ctx ends when the batch is not this service's any more.
func (r *run) lines(ctx, run context.Context, stop func(error), b *record, f *file, log *appender, finished []bool) (Status, error) {
	run, end := context.WithCancelCause(run)
	defer end(nil)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer end(nil)

	segments, fed := make(chan []line), make(chan error, 1)
	skip := slices.Clone(finished)
	parts.Go(func() {
		fed <- r.s.segments(run, f, b.Endpoint, func(n int) bool { return n >= len(skip) || skip[n] }, segments)
	})
	results := make(chan result)
	committed := make(chan error, 1)
	parts.Go(func() { committed <- r.commit(ctx, log, results, finished, end) })

	d := &dispatch{run: r, b: b, results: results, back: make(chan back, r.s.cfg.Window), kept: make(chan *flight)}
	for _, is := range finished {
		if is {
			d.done++
		}
	}
	d.all(run, segments, stop)
	close(results)
	if err := <-committed; err != nil {
		return "", err
	}
	why := context.Cause(run)
	if err := <-fed; err != nil && why == nil {
		return "", err
	}
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case why == nil && slices.Contains(finished, false):
		return "", errors.New("the input has fewer lines than it had")
	case why == nil:
		return Completed, nil
	case errors.Is(why, errCancelled), errors.Is(why, errKeyGone):
		return Cancelled, nil
	case errors.Is(why, errExpired):
		return Expired, nil
	default:
		return "", why
	}
}

// commit appends results to the log, as many at a time as have come, until there are no more. Then they count. When it cannot go on,
// it ends the run, and takes the rest in without storing it.
func (r *run) commit(ctx context.Context, log *appender, results <-chan result, finished []bool, end func(error)) (err error) {
	most := min(int(r.s.store.nc.MaxPayload())/2, 512<<10)
	for first := range results {
		group := []result{first}
		data := first.append(nil)
	more:
		for len(data) < most {
			select {
			case next, ok := <-results:
				if !ok {
					break more
				}
				group, data = append(group, next), next.append(data)
			default:
				break more
			}
		}
		for len(data) > 0 && err == nil {
			n := min(len(data), most)
			if err = log.append(ctx, data[:n]); err != nil {
				end(err)
			}
			data = data[n:]
		}
		if err != nil {
			continue
		}
		for i := range group {
			r.count(finished, &group[i])
		}
	}
	return err
}

// dispatch runs lines within a window, and more beside it while the batch is late: see lateness. Its goroutine owns it.
type dispatch struct {
	run     *run
	b       *record
	results chan<- result
	back    chan back
	kept    chan *flight // lines that could not be taken back

	window  policy.BatchWindow
	running int        // lines in the window
	ready   []line     // in order
	waiting []waitLine // for another try
	resumes time.Time  // no line of the window begins before
	late    lateness

	done    int           // lines that are finished
	flights []*flight     // lines that run, in the order in which they began
	takes   time.Duration // mean time for which a worker has a line; 0 until one is finished
}

type waitLine struct {
	line  line
	until time.Time
}

// flight is a line that runs.
type flight struct {
	late  bool // as an ordinary call
	stays bool // it was refused as one
	watch *gateway.Watch

	recalled bool // it is being taken back
}

// all runs the lines of all segments, until ctx is done. When it returns none runs.
func (d *dispatch) all(ctx context.Context, segments <-chan []line, stop func(error)) {
	defer d.allow(0)
	most := d.run.s.cfg.Window
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		for ctx.Err() == nil && d.running < d.window.Size(most) && !now.Before(d.resumes) && d.begin(ctx, now) {
		}
		if ctx.Err() == nil {
			d.look(now)
			d.runLate(ctx, now)
		}
		next := segments // nil: not now
		if len(d.ready) > 0 || len(d.waiting) >= most {
			next = nil
		}
		over := ctx.Err() != nil || segments == nil && len(d.ready) == 0 && len(d.waiting) == 0
		if over && len(d.flights) == 0 && d.late.recalled == 0 {
			return
		}
		done := ctx.Done()
		if ctx.Err() != nil {
			done, next = nil, nil
		}
		timer.Reset(d.sleeps(now))
		select {
		case <-done:
		case <-timer.C:
		case b := <-d.back:
			d.judge(ctx, b, most, stop)
		case f := <-d.kept:
			d.onKept(f)
		case segment, ok := <-next:
			if d.ready = segment; !ok {
				segments = nil
			}
		}
	}
}

// begin starts a line, if there is one.
func (d *dispatch) begin(ctx context.Context, now time.Time) bool {
	l, ok := d.next(now, false)
	if ok {
		d.running++
		d.start(ctx, l, false)
	}
	return ok
}

// next takes the next line that may begin: first those that have waited long enough. late says that it is to run as an ordinary call.
func (d *dispatch) next(now time.Time, late bool) (l line, ok bool) {
	due := slices.IndexFunc(d.waiting, func(w waitLine) bool { return !now.Before(w.until) && !(late && w.line.stays) })
	switch {
	case due >= 0:
		l = d.waiting[due].line
		d.waiting = slices.Delete(d.waiting, due, due+1)
	case len(d.ready) > 0 && len(d.waiting) < d.run.s.cfg.Window:
		l = d.ready[0]
		d.ready[0].body = nil
		d.ready = d.ready[1:]
	default:
		return l, false
	}
	return l, true
}

// start runs a line.
func (d *dispatch) start(ctx context.Context, l line, late bool) {
	ctx, watch, cancel := gateway.Watched(ctx)
	f := &flight{late: late, stays: l.stays, watch: watch}
	d.flights = append(d.flights, f)
	go func() { // ends with the request; all waits for it
		defer cancel()
		d.back <- d.line(ctx, f, l)
	}()
}

// sleeps is how long nothing can begin, if nothing else happens.
func (d *dispatch) sleeps(now time.Time) time.Duration {
	at := now.Add(time.Hour)
	until := func(t time.Time) {
		if t.After(now) && t.Before(at) {
			at = t
		}
	}
	if len(d.ready) > 0 {
		until(d.resumes)
	}
	for _, w := range d.waiting {
		until(later(w.until, d.resumes))
	}
	until(d.late.looks)
	if d.late.running < d.late.most {
		until(d.late.resumes)
	}
	return at.Sub(now)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// line runs a line once. If that finishes it, its result has been given to commit.
func (d *dispatch) line(ctx context.Context, f *flight, l line) back {
	who, tier := gateway.Caller{Tenant: d.b.Tenant, Key: d.b.Key}, d.run.s.cfg.Tier
	if f.late {
		tier = gateway.TierOfKey
	}
	a := runLine(ctx, d.run.do, who, tier, d.b.Endpoint, l.body)
	if f.watch.TakenBack() {
		return back{flight: f, line: l, verdict: takenBack}
	}
	v := a.verdict()
	if f.late && v != keyGone && !a.ok() && !f.watch.Claimed() { // an ordinary call that was refused
		l.stays = l.stays || v == answered
		return back{f, l, noRoom, a.pause()}
	}
	if v == failed && ctx.Err() == nil {
		if l.tries++; l.tries >= mostTries {
			v = answered
		}
	}
	if v == answered && (ctx.Err() == nil || a.ok()) { // what is broken off because ctx has ended is no answer
		d.results <- d.b.outcome(&l, a)
	}
	return back{f, l, v, a.pause()}
}

// judge takes in that a line has run.
func (d *dispatch) judge(ctx context.Context, b back, most int, stop func(error)) {
	now := time.Now()
	d.flights = slices.DeleteFunc(d.flights, func(f *flight) bool { return f == b.flight })
	if b.flight.late {
		d.late.running--
		d.run.s.help.end()
		d.late.useless = d.late.useless || b.flight.watch.Tier() == d.run.s.cfg.Tier
	} else {
		d.running--
	}
	switch b.verdict {
	case answered:
		d.done++
		d.took(b.flight, now)
		if !b.flight.late {
			d.window.Answered(most)
		}
	case noRoom:
		if b.flight.late {
			d.late.resumes = later(d.late.resumes, now.Add(min(b.pause, time.Second)))
		} else {
			d.window.Refused(now)
			d.resumes = later(d.resumes, now.Add(min(b.pause, time.Second)))
		}
		b.line.waits++
		wait := b.pause * time.Duration(1<<min(b.line.waits-1, 6))
		d.waiting = append(d.waiting, waitLine{b.line, now.Add(min(wait, longestPause))})
	case failed:
		d.waiting = append(d.waiting, waitLine{b.line, now.Add(time.Second << (2 * b.line.tries))})
	case keyGone:
		stop(errKeyGone)
	case takenBack:
		d.onTakenBack(ctx, b.line)
	}
}
