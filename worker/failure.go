package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/subjects"
)

// maxRefusal bounds an engine's error answer that is passed on. A longer one is left out, since half of a body is worse
// than none.
const maxRefusal = 64 << 10

// failure is a failed attempt, as far as presence needs to know.
type failure struct {
	pool    string
	request uint64 // hash of its content
	reason  string
	setup   bool // it is certainly the engine's, and will happen again
	blamed  bool // another worker has answered the request
}

// onErrorAnswer handles an error answer of the engine. One that the request is to blame for is an answer like any other.
// After the others another worker is tried; the answer goes to the gateway with the failure.
func (w *Worker) onErrorAnswer(a *attempt, resp *http.Response, head *subjects.Head) {
	most := min(maxRefusal, w.nc.MaxPayload()/4)
	text, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	due := api.FaultOf(resp.StatusCode, text)
	if due == api.FaultEngine && resp.Header.Get("X-Should-Retry") == "false" { // the engine knows that it would fail again
		due = api.FaultRequest
	}
	if due == api.FaultRequest {
		resp.Body = rest{io.MultiReader(bytes.NewReader(text), resp.Body), resp.Body}
		w.relay(a, resp, head)
		return
	}
	f := subjects.Fail{Class: subjects.FailEngine, Reason: fmt.Sprintf("engine %s: %s", w.cfg.Name, resp.Status)}
	if err == nil && int64(len(text)) <= most {
		f.Answer, f.Body = head, text
	}
	secs, _ := strconv.ParseFloat(resp.Header.Get("Retry-After"), 64)
	w.failAs(a, due, resp.StatusCode, time.Duration(secs*float64(time.Second)), f)
}

// failAs fails an attempt by what an error of the engine with this status is due to.
func (w *Worker) failAs(a *attempt, due api.Fault, status int, retryAfter time.Duration, f subjects.Fail) {
	said := fmt.Sprintf("%d %s", status, http.StatusText(status))
	switch due {
	case api.FaultBusy:
		f.Class = subjects.FailRefused
		w.capacity.onRefusal()
		w.presence.onRefusal(retryAfter, string(f.Class)+": "+said, time.Now())
	case api.FaultSetup:
		f.Class = subjects.FailMisfit
		reason := fmt.Sprintf("the engine does not have the model %q: %s", a.task.model, said)
		if status != http.StatusNotFound && status != http.StatusBadRequest {
			f.Answer, f.Body = nil, nil // the credentials are the worker's: its client could not do anything about that
			reason = "the engine refuses the worker's credentials: " + said
		}
		if status == http.StatusUnauthorized || status == http.StatusProxyAuthRequired {
			if w.cfg.Credentials.InFile() {
				f.Class = subjects.FailCredentials
			}
			w.scraper.Doubt()
		}
		f.Reason = fmt.Sprintf("engine %s: %s", w.cfg.Name, reason)
		if a.adapter && (status == http.StatusNotFound || status == http.StatusBadRequest) { // which says nothing about its parent
			f.Reason = fmt.Sprintf("engine %s: it does not have the adapter %q: %s", w.cfg.Name, a.req.Model, said)
			break
		}
		w.onFailure(failure{pool: a.task.source, reason: reason, setup: true}, time.Now())
	case api.FaultMisfit:
		f.Class = subjects.FailMisfit
	case api.FaultEngine:
		findDeath(a.ctx, w.scraper, &f)
	}
	w.fail(a, f)
}

// rest is a body of which a part has been read before.
type rest struct {
	io.Reader
	io.Closer
}

// noAnswer is the failure of an answer with a status of success that is none, and what it is due to. If the engine says
// why, that is as with another status: streams have begun when some engines refuse them.
func noAnswer(engine string, in *api.Inspector, head *subjects.Head) (f subjects.Fail, due api.Fault, status int) {
	reason, status, text := in.NoAnswer()
	f = subjects.Fail{Class: subjects.FailEngine, Reason: fmt.Sprintf("engine %s: %s", engine, reason)}
	due = api.FaultEngine
	if text != nil {
		due = api.FaultOf(status, text)
		h := head.Header.Clone()
		h.Del("Content-Length")
		h.Set("Content-Type", "application/json")
		f.Answer, f.Body = &subjects.Head{Status: status, Header: h, Length: int64(len(text))}, text
	}
	return f, due, status
}

// findDeath finds out whether the engine that failed a request has died of it, though its connection did not break: the
// frontends of some engines answer for those that have died, or exit only then.
func findDeath(ctx context.Context, s *engine.Scraper, f *subjects.Fail) {
	why := ""
	if api.EngineDied(f.Body) {
		why = "by what it says, it has died"
	} else if err := s.Died(ctx); err != nil {
		why = plain.Error(err)
	}
	if why != "" {
		f.Class, f.Reason = subjects.FailCrashed, f.Reason+"; "+why
		s.Look()
	}
}

// onFailure notes a failure for which the engine may be to blame. If many follow each other, the worker pauses for the
// pool.
func (w *Worker) onFailure(f failure, now time.Time) {
	if w.presence.onFailure(f, now) {
		w.log.Warn("requests fail; the worker pauses, then tries one at a time", "pool", f.pool, "reason", f.reason)
		w.presence.beat()
	}
}

// fail sends the gateway the failure of the attempt. The gateway decides what follows.
func (w *Worker) fail(a *attempt, f subjects.Fail) {
	now := time.Now()
	switch cause := context.Cause(a.ctx); {
	case errors.Is(cause, errRefused), errors.Is(cause, errGatewayGone), errors.Is(cause, errCancelled):
		return // the gateway does not wait for it any more
	case errors.Is(cause, errDraining):
		f = subjects.Fail{Class: subjects.FailDraining, Reason: "worker " + w.cfg.Name + " stops"}
	case errors.Is(cause, errStalled):
		silent := a.lastByte.since(a.started, now).Round(time.Second)
		f = subjects.Fail{Class: subjects.FailStalled, Reason: fmt.Sprintf("engine %s: silent for %v", w.cfg.Name, silent)}
	}
	if f.Class != subjects.FailDraining {
		w.attempts.fail(a.req.ID, now)
	}
	switch f.Class {
	case subjects.FailEngine, subjects.FailCrashed, subjects.FailTruncated, subjects.FailStalled:
		// An engine that could not load the model for this request will not for the next one.
		due := failure{pool: a.task.source, request: a.content(), reason: f.Reason, setup: a.timing.load.first && !a.firstByte.isSet()}
		w.attempts.remember(a.req.ID, due, now)
		w.onFailure(due, now)
	}
	if !a.firstByte.isSet() { // what is held back of an answer must not reach the client
		a.out.Drop()
	}
	a.failed = f.Class
	a.out.Fail(&f)
	a.send()
}
