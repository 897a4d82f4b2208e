package background

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// maxBroken is how many runs of a response may break off in the middle.
	maxBroken = 10

	// maxUnknown is how many runs may find that no gateway knows the model of a response, if none has known it before: they come
	// within half a minute.
	maxUnknown = 6

	// coalesced is how long an event may wait for others that are stored with it.
	coalesced = 50 * time.Millisecond

	// stateless is how old a job without a state becomes: the gateway that accepted it may not have written the state yet.
	stateless = 10 * time.Second

	// whenLost is when a job is delivered again whose state could not be written. Either another gateway runs it, or it has ended,
	// which the next delivery finds out.
	whenLost = time.Second

	// whenFull is when a job is delivered again, at the earliest, whose tenant has as many that run here as it may. Not much later,
	// so that what is free again is used soon.
	whenFull = time.Second

	longestError = 1 << 10 // bytes of Response.Error

	writeWithin = 20 * time.Second // what a run writes when it has ended
)

var (
	errStopped  = errors.New("the response was cancelled or deleted")
	errFull     = errors.New("the store for background responses is full")
	errTooLarge = errors.New("the answer is larger than background responses may be")
)

// runner runs responses.
type runner struct {
	cfg   *Config
	store *Store
	do    gateway.Do

	mu      sync.Mutex
	running map[string]context.CancelCauseFunc // by id
	tenants map[string]int                     // how many of them each tenant has
}

// begin notes that a job runs. known: it did already; full: its tenant has as many as it may.
func (r *runner) begin(j *job, cancel context.CancelCauseFunc) (known, full bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known = r.running[j.ID]; known {
		return true, false
	}
	if !policy.MayRun(r.tenants[j.Tenant], r.cfg.Running-len(r.running)) {
		return false, true
	}
	r.running[j.ID] = cancel
	r.tenants[j.Tenant]++
	return false, false
}

func (r *runner) end(j *job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, j.ID)
	if r.tenants[j.Tenant]--; r.tenants[j.Tenant] == 0 {
		delete(r.tenants, j.Tenant)
	}
}

// stop ends the run of a response, if it is here.
func (r *runner) stop(id string, why error) {
	r.mu.Lock()
	cancel := r.running[id]
	r.mu.Unlock()
	if cancel != nil {
		cancel(why)
	}
}

// pull takes jobs, at most cfg.Running at a time, until ctx ends. It waits for those that it has taken.
func (r *runner) pull(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, r.cfg.Running)
	for ctx.Err() == nil {
		consumer, err := r.consumer(ctx)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-r.store.there:
			case <-time.After(5 * time.Second):
			}
			continue
		}
		for err == nil && ctx.Err() == nil {
			select {
			case <-ctx.Done():
				return
			case slots <- struct{}{}:
			}
			var m jetstream.Msg
			if m, err = one(ctx, consumer); m == nil {
				<-slots
				continue
			}
			wg.Go(func() {
				defer func() { <-slots }()
				r.serve(ctx, m)
			})
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// consumer finds the consumer of jobs; an error if there are none yet.
func (r *runner) consumer(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := r.store.open(ctx, false); err != nil {
		return nil, err
	}
	return subjects.BackgroundConsumer(ctx, r.store.js)
}

// one waits a while for a job; nil: there was none.
func one(ctx context.Context, c jetstream.Consumer) (jetstream.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	batch, err := c.Fetch(1, jetstream.FetchContext(ctx))
	if err != nil {
		return nil, err
	}
	m := <-batch.Messages()
	if err := batch.Error(); err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return m, err
	}
	return m, nil
}

// serve runs the job of a delivery, and settles it.
func (r *runner) serve(ctx context.Context, m jetstream.Msg) {
	var j job
	if err := subjects.Unmarshal(m.Data(), &j); err != nil {
		m.TermWithReason("cannot be read")
		return
	}
	run, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	switch known, full := r.begin(&j, cancel); {
	case known: // its lease was not renewed in time; its end settles this delivery too
		return
	case full:
		m.NakWithDelay(whenFull + rand.N(whenFull))
		return
	}
	defer r.end(&j)
	var lease sync.WaitGroup
	lease.Go(func() { r.renew(run, m, &j) })
	again := r.run(run, &j)
	cancel(nil)
	lease.Wait()
	switch {
	case ctx.Err() != nil: // another gateway takes it
		m.Nak()
	case again > 0:
		m.NakWithDelay(again)
	default:
		m.Ack()
	}
	r.store.nc.FlushTimeout(time.Second)
}

// renew renews the lease of a job until ctx ends, and stops its run if that is not wanted any more: the message about it may have
// been lost.
func (r *runner) renew(ctx context.Context, m jetstream.Msg, j *job) {
	tick := time.NewTicker(subjects.BackgroundLease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m.InProgress()
		resp, err := r.store.Get(ctx, j.Tenant, j.ID)
		if errors.Is(err, ErrNotFound) && time.Since(j.Created) > stateless || err == nil && (resp.Status.Final() || resp.Gateway != "" && resp.Gateway != r.cfg.id) {
			r.stop(j.ID, errStopped)
		}
	}
}

// run runs a job. It returns when it is to be delivered again; 0: not at all.
func (r *runner) run(ctx context.Context, j *job) (again time.Duration) {
	log := r.cfg.Logger.With("response", j.ID)
	resp, err := r.state(ctx, j)
	switch {
	case errors.Is(err, ErrNotFound) && time.Since(j.Created) > stateless:
		if r.store.forget(ctx, j) != nil {
			return time.Second
		}
		return 0
	case err != nil:
		return time.Second
	}
	for {
		if resp.Status.Final() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeWithin)
			defer cancel()
			err := r.store.end(ctx, resp)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return time.Second
			}
			return 0
		}
		if resp.Gateway != "" { // it is gone, or has lost its lease
			resp.Broken++
		}
		resp.Runs++
		resp.Gateway = r.cfg.id
		if !resp.isResponses() { // nothing tells when the engine begins
			resp.Status = InProgress
		}
		var out outcome
		switch {
		case time.Now().After(j.Deadline):
			out = outcome{err: fmt.Errorf("it had not ended %v after it was accepted", j.Deadline.Sub(j.Created))}
		case resp.Broken > maxBroken:
			out = outcome{err: fmt.Errorf("%d runs broke off before they had ended", resp.Broken)}
		default:
			if err := r.store.put(ctx, resp); err != nil {
				return whenLost
			}
			out = r.attempt(ctx, j, resp)
		}
		switch {
		case errors.Is(out.err, errChanged), context.Cause(ctx) == errStopped:
			return whenLost
		case ctx.Err() != nil && !out.ended:
			return r.release(ctx, resp, 100*time.Millisecond)
		case out.again > 0:
			log.Info("background response waits", "why", out.err, "again", out.again)
			return r.release(ctx, resp, out.again)
		case out.broken && resp.Broken < maxBroken:
			log.Warn("background response broke off and runs again", "runs", resp.Runs, "why", out.err)
			select {
			case <-ctx.Done():
			case <-time.After(min(time.Duration(resp.Broken+1)*250*time.Millisecond, 2*time.Second)):
			}
			continue // Broken counts this run, since Gateway is set
		}
		if err := r.finish(ctx, resp, &out); err != nil {
			return whenLost
		}
		log.Info("background response ended", "status", resp.Status, "runs", resp.Runs, "err", out.err)
	}
}

// state reads the state of a job's response. That may be written a moment after the job.
func (r *runner) state(ctx context.Context, j *job) (*Response, error) {
	for wait := 5 * time.Millisecond; ; wait *= 2 {
		resp, err := r.store.Load(ctx, j.Tenant, j.ID)
		if !errors.Is(err, ErrNotFound) || wait > 500*time.Millisecond || time.Since(j.Created) > stateless {
			return resp, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// release writes that no gateway runs a response, so that this run does not count as broken off.
func (r *runner) release(ctx context.Context, resp *Response, again time.Duration) time.Duration {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	resp.Gateway = ""
	if !resp.isResponses() {
		resp.Status = Queued
	}
	r.store.put(ctx, resp)
	return again
}

// outcome is how a run ended.
type outcome struct {
	ended  bool          // with an answer that counts
	again  time.Duration // it is to run again, later: nothing could take it
	broken bool          // it broke off
	err    error         // why it failed or broke off

	status Status
	object []byte // nil: that of before
}

// attempt has the gateway run a job once.
func (r *runner) attempt(ctx context.Context, j *job, resp *Response) outcome {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, j.Path, nil)
	if err != nil {
		return outcome{err: err}
	}
	req.RequestURI, req.RemoteAddr = j.Path, "background"
	maps.Copy(req.Header, j.Header)
	req.Body = &reader{ctx: ctx, store: r.store, subject: subjects.BackgroundPart(j.Tenant, j.ID, "body"), left: j.Size}
	req.ContentLength = int64(j.Size)
	var log *log
	if resp.isResponses() {
		if log, err = r.store.logOf(ctx, resp); err != nil {
			return outcome{again: time.Second, err: err}
		}
	}
	a := newAnswer(r.cfg, resp, log, cancel)
	var appending sync.WaitGroup
	appending.Go(func() { a.appendLoop(ctx) })
	whole := r.call(a, req, gateway.Caller{Tenant: j.Tenant, Key: j.Key})
	a.close()
	appending.Wait()
	if log != nil {
		resp.Next = log.next
	}
	switch cause := context.Cause(ctx); {
	case cause == nil:
		return a.outcome(whole)
	case errors.Is(cause, errStopped), errors.Is(cause, errChanged), errors.Is(cause, errTooLarge):
		return outcome{err: cause}
	case isRefused(cause):
		return outcome{err: errFull}
	default:
		return outcome{again: time.Second, err: cause}
	}
}

// call runs a request, and says whether its answer is whole.
func (r *runner) call(w http.ResponseWriter, req *http.Request, who gateway.Caller) (whole bool) {
	defer func() {
		if v := recover(); v != nil && v != http.ErrAbortHandler { // as net/http does with a request of a client
			r.cfg.Logger.Error("panic in a background response", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	r.do(w, req, who, "")
	return true
}

// finish writes how a response has ended.
func (r *runner) finish(ctx context.Context, resp *Response, out *outcome) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeWithin)
	defer cancel()
	resp.Status, resp.Ended, resp.Gateway = out.status, time.Now(), ""
	if out.status == "" {
		resp.Status = Failed
	}
	if out.err != nil {
		resp.Error = clipped(out.err.Error())
	}
	if out.object != nil {
		resp.object = out.object
	}
	for {
		err := r.store.put(ctx, resp)
		switch {
		case err == nil || errors.Is(err, errChanged) || ctx.Err() != nil:
			return err
		case isRefused(err): // a large answer, and no room for it
			resp.Status, resp.Error = Failed, errFull.Error()
			resp.object, _ = with(resp.object, member{"output", []byte("[]")}, member{"answer", null})
			if len(resp.object) > inState {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// clipped bounds an error of an engine, which is in the header of the state as a whole.
func clipped(s string) string {
	if len(s) <= longestError {
		return s
	}
	return strings.ToValidUTF8(s[:longestError], "") + "…"
}

// laterAfter is when a call that got an error is to be tried again; 0: the error is the answer.
func laterAfter(status int, h http.Header, tries int) time.Duration {
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return later(h, tries)
	}
	return 0
}

// later is when a call is to be tried again: as its answer says, else the later the more often it was tried.
func later(h http.Header, tries int) time.Duration {
	wait := 250 * time.Millisecond << min(tries, 6)
	if d, err := time.ParseDuration(h.Get("Retry-After") + "s"); err == nil && d > 0 {
		wait = d
	}
	return min(wait, 15*time.Second)
}

// madeByGateway says whether the last event of a stream is one by which the gateway reports that an answer broke off.
func madeByGateway(event []byte) bool {
	return string(get(event, "sequence_number")) == fmt.Sprint(math.MaxInt32) && getText(event, "type") == "response.failed"
}
