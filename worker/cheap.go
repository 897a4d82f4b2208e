package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/subjects"
)

// maxCheap is how many cheap calls a worker runs at once. They are work for the processors of the engine's HTTP server: a
// few milliseconds for a prompt, 50 for one of 100 000 tokens. So 32 are thousands a second, more than clients that
// generate ask for, and few enough that the same server is not kept for long from the streams that it writes.
const maxCheap = 32

// cheapCalls runs the calls that gateways send straight to this worker, because no slot is needed for them: see
// api.Cheap. They are attempts like others for what a gateway sees of them, and for nothing else here: no slot, price,
// estimate, limit or failure of the worker depends on them.
type cheapCalls struct {
	// Fixed after New.
	cfg      *Config
	engine   *engineCalls
	nc       *nats.Conn
	log      *slog.Logger
	attempts *attempts
	links    *links
	look     func()                                     // has the engine's health checked now
	accepts  func(pool string) (string, subjects.State) // the engine's name of the model, and the worker's state
	runners  *runners
}

// onCall starts the attempt that a message is, or refuses it. It never blocks.
func (c *cheapCalls) onCall(m *nats.Msg) {
	mark, err := subjects.CallAttempt(m)
	var req *subjects.Request
	if err == nil {
		req, err = requestOf(c.cfg.Local, m)
	}
	if err != nil {
		c.log.Warn("call dropped", "err", err)
		return
	}
	a := newAttempt(m, req, task{pool: req.Pool, source: req.Pool}, time.Now())
	a.mark, a.cheap = mark, true
	a.claimed.Store(true) // by the gateway itself
	model, state := c.accepts(req.Pool)
	a.task.model = model
	class, refusal := subjects.FailDraining, ""
	switch {
	case state != subjects.Ready && state != subjects.Paused:
		refusal = fmt.Sprintf("worker %s is %s", c.cfg.Name, state)
	case model == "":
		refusal = fmt.Sprintf("worker %s does not serve %s", c.cfg.Name, api.Quote(req.Pool))
	case !c.attempts.beginCheap(a):
		class, refusal = subjects.FailRefused, fmt.Sprintf("worker %s runs as many calls of this kind as it may", c.cfg.Name)
	}
	if refusal == "" {
		c.runners.start(a)
		return
	}
	a.runner = new(runner)
	a.out = a.newResponder(c.cfg.Local, c.links)
	defer a.out.Free()
	a.out.Fail(&subjects.Fail{Class: class, Reason: refusal})
	a.send()
}

// run carries out an attempt.
func (c *cheapCalls) run(a *attempt) {
	defer c.attempts.endCheap(a)
	defer a.stop(nil)
	a.out = a.newResponder(c.cfg.Local, c.links)
	defer a.out.Free()
	c.engine.tracer.begin(a)
	defer func() { c.engine.tracer.end(a, time.Now()) }()
	fail := c.call(a)
	if fail == nil {
		return
	}
	a.failed = fail.Class
	switch cause := context.Cause(a.ctx); {
	case errors.Is(cause, errGatewayGone), errors.Is(cause, errCancelled):
		return
	case errors.Is(cause, errDraining):
		*fail = subjects.Fail{Class: subjects.FailDraining, Reason: "worker " + c.cfg.Name + " stops"}
	case errors.Is(cause, errStalled):
		silent := a.lastByte.since(a.started, time.Now()).Round(time.Second)
		*fail = subjects.Fail{Class: subjects.FailStalled, Reason: fmt.Sprintf("engine %s: silent for %v", c.cfg.Name, silent)}
	}
	if !a.firstByte.isSet() { // what is held back of an answer must not reach the client
		a.out.Drop()
	}
	c.attempts.freeCheap(a)
	a.out.Fail(fail)
	a.send()
}

// call calls the engine and passes its answer on. It returns why the attempt failed; nil if it did not.
func (c *cheapCalls) call(a *attempt) *subjects.Fail {
	failed := func(class subjects.FailClass, err error) *subjects.Fail {
		return &subjects.Fail{Class: class, Reason: fmt.Sprintf("engine %s: %s", c.cfg.Name, plain.Error(err))}
	}
	body, err := fetchBody(c.nc, c.links.worker, a)
	path := a.req.Path
	if err == nil {
		path, body, err = api.RenameModel(a.req, body, a.task.model)
	}
	if err != nil {
		return &subjects.Fail{Class: subjects.FailBody, Reason: plain.Error(err)}
	}
	r, err := c.engine.request(a, path, body)
	if err != nil {
		return failed(subjects.FailEngine, err)
	}
	resp, err := c.engine.send(c.cfg.Transport, r)
	if err != nil {
		c.look()
		if engine.Broke(err) {
			return failed(subjects.FailCrashed, err)
		}
		return failed(subjects.FailEngine, err)
	}
	defer resp.Body.Close()
	subjects.EndToEnd(resp.Header)
	head := &subjects.Head{Status: resp.StatusCode, Header: resp.Header, Length: resp.ContentLength}
	if resp.StatusCode >= 400 {
		if fail := c.errorAnswer(resp, head); fail != nil {
			return fail
		}
	}
	return c.relay(a, resp, head)
}

// errorAnswer is the failure that an error answer of the engine is; nil if the request is to blame, so that it is an answer
// like any other.
func (c *cheapCalls) errorAnswer(resp *http.Response, head *subjects.Head) *subjects.Fail {
	most := min(maxRefusal, c.nc.MaxPayload()/4)
	text, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	f := &subjects.Fail{Class: subjects.FailEngine, Reason: fmt.Sprintf("engine %s: %s", c.cfg.Name, resp.Status)}
	if err == nil && int64(len(text)) <= most {
		f.Answer, f.Body = head, text
	}
	switch api.FaultOf(resp.StatusCode, text) {
	case api.FaultRequest:
		resp.Body = rest{io.MultiReader(bytes.NewReader(text), resp.Body), resp.Body}
		return nil
	case api.FaultBusy:
		f.Class = subjects.FailRefused
	case api.FaultSetup:
		f.Class = subjects.FailMisfit
		if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusBadRequest {
			f.Answer, f.Body = nil, nil // the credentials are the worker's: its client could not do anything about that
			f.Reason = fmt.Sprintf("engine %s: the engine refuses the worker's credentials: %s", c.cfg.Name, resp.Status)
		}
	case api.FaultMisfit:
		f.Class = subjects.FailMisfit
	}
	return f
}

// relay passes the engine's answer on as it comes, no faster than the client takes it.
func (c *cheapCalls) relay(a *attempt, resp *http.Response, head *subjects.Head) *subjects.Fail {
	in := &a.runner.inspector
	in.Begin(a.req.Path, resp)
	a.out.Head(head)
	size := min(32<<10, int(c.nc.MaxPayload()/2))
	var sent int64
	for {
		buf := a.out.Grow(size)
		n, err := resp.Body.Read(buf)
		now := time.Now()
		if n > 0 {
			if n = in.Observe(buf[:n]); n > 0 {
				a.out.Commit(n)
			}
			sent += int64(n)
			a.lastByte.set(a.started, now)
		}
		broken := ""
		if err == io.EOF {
			broken = in.Broken()
		}
		switch verdict := in.Verdict(); {
		case verdict == api.Failed && !a.firstByte.isSet() && (err == nil || err == io.EOF):
			f, _, _ := noAnswer(c.cfg.Name, in, head)
			return &f
		case broken != "":
			return &subjects.Fail{Class: subjects.FailTruncated, Reason: fmt.Sprintf("engine %s: %s", c.cfg.Name, broken)}
		case err == io.EOF:
			c.attempts.freeCheap(a)
			a.out.End(&subjects.End{})
			a.send()
			return nil
		case err != nil:
			return &subjects.Fail{Class: subjects.FailTruncated, Reason: fmt.Sprintf("engine %s: answer broke off: %s", c.cfg.Name, plain.Error(err))}
		case n > 0 && verdict != api.Undecided:
			a.firstByte.set(a.started, now)
			a.send()
		}
		if sent-a.taken.Load() > subjects.Window && !a.awaitWindow(sent) {
			return &subjects.Fail{}
		}
	}
}
