package worker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/tracing"
)

// responder sends the answer of an attempt to its gateway. Frames are gathered until
// send, which sends them as one message. It is not safe for concurrent use.
type responder interface {
	Head(h *subjects.Head) // h belongs to the gateway from then on
	Grow(n int) []byte     // returns a buffer for n bytes of data
	Commit(n int)          // adds the first n bytes of that buffer as a frame
	Drop()                 // removes the frames that were not sent
	End(e *subjects.End)
	Fail(f *subjects.Fail)
	Sent() uint32 // number of messages so far
	Free()        // releases its memory; the responder must not be used after

	// send sends the gathered frames. It reports false if the gateway is gone.
	send() bool
}

// newResponder returns a local responder if the gateway is in this process, and else a remote one.
func (a *attempt) newResponder(gateways *subjects.Local, links *links) responder {
	gateway := a.req.Gateway
	if _, ok := gateways.Gateway(gateway); ok {
		l := &a.runner.local
		l.gateways, l.gateway, l.prefix = gateways, gateway, subjects.Prefix{ID: a.req.ID, Attempt: a.mark}
		return l
	}
	return &remote{Writer: subjects.NewWriter(a.req.ID, a.mark), link: links.get(gateway)}
}

// remote responds through the broker.
type remote struct {
	*subjects.Writer
	link  *link
	ended bool
}

func (r *remote) End(e *subjects.End) {
	r.Writer.End(e)
	r.ended = true
}

func (r *remote) Fail(f *subjects.Fail) {
	r.Writer.Fail(f)
	r.ended = true
}

func (r *remote) send() bool {
	w := during
	switch begins := r.Sent() == 0; {
	case begins && r.ended:
		w = only
	case begins:
		w = first
	case r.ended:
		w = last
	}
	return r.link.add(subjects.ItemFrames, r.Take(), w)
}

// Free may come without an end, if the gateway no longer wants the answer.
func (r *remote) Free() {
	if r.Sent() > 0 && !r.ended {
		r.link.abandon()
	}
	r.Writer.Free()
}

// local responds to a gateway of this process. A runner owns it and uses it again for each attempt.
type local struct {
	gateways *subjects.Local
	gateway  string
	prefix   subjects.Prefix
	frames   []subjects.Frame
	buf      []byte
}

func (l *local) Head(h *subjects.Head) {
	l.frames = append(l.frames, subjects.Frame{Kind: subjects.KindHead, Head: h})
}

func (l *local) Grow(size int) []byte {
	if cap(l.buf) < size {
		l.buf = make([]byte, size)
	}
	return l.buf[:size]
}

func (l *local) Commit(size int) {
	l.frames = append(l.frames, subjects.Frame{Kind: subjects.KindData, Data: bytes.Clone(l.buf[:size])})
}

func (l *local) End(e *subjects.End) {
	l.frames = append(l.frames, subjects.Frame{Kind: subjects.KindEnd, End: e})
}

func (l *local) Fail(f *subjects.Fail) {
	f.Reason = strings.ToValidUTF8(f.Reason, "\ufffd") // it may quote an engine
	l.frames = append(l.frames, subjects.Frame{Kind: subjects.KindFail, Fail: f})
}

func (l *local) Drop() {
	clear(l.frames)
	l.frames = l.frames[:0]
}

func (l *local) Sent() uint32 { return l.prefix.Seq }

// Free prepares it for the next attempt of the runner.
func (l *local) Free() {
	clear(l.frames)
	*l = local{frames: l.frames[:0], buf: l.buf}
}

func (l *local) send() bool {
	gw, ok := l.gateways.Gateway(l.gateway)
	if ok {
		l.prefix.Seq++
		gw.Frames(l.prefix, l.frames)
	}
	clear(l.frames)
	l.frames = l.frames[:0]
	return ok
}

func (a *attempt) send() {
	if !a.out.send() {
		a.stop(errGatewayGone)
	}
	a.sent.Store(a.out.Sent()) // after the message: an Alive that counts it must come behind it
}

// awaitWindow waits until the client has taken enough of the bytes sent. It reports false if the attempt was stopped.
func (a *attempt) awaitWindow(sent int64) bool {
	for {
		a.lastByte.set(a.started, time.Now()) // waiting for the client is no silence of the engine
		if sent-a.taken.Load() <= subjects.Window {
			a.held.Store(false)
			return true
		}
		a.held.Store(true)
		select {
		case <-a.grown:
		case <-a.ctx.Done():
			return false
		}
	}
}

// relay passes the engine's answer on as it comes, from the first part on that shows content or an error: until then
// nothing is sent, and another worker can be tried.
func (w *Worker) relay(a *attempt, resp *http.Response, head *subjects.Head) {
	in := &a.runner.inspector
	in.Begin(a.req.Path, resp)
	a.out.Head(head)
	size := 8 << 10
	if resp.ContentLength < 0 { // most likely a stream: it keeps the buffer
		size = 2 << 10
	}
	var sent int64
	var p pace
	for {
		buf := a.out.Grow(size)
		n, err := resp.Body.Read(buf)
		now := time.Now()
		if n > 0 {
			if n = in.Observe(buf[:n]); n > 0 {
				a.out.Commit(n)
			}
			sent += int64(n)
			if n == len(buf) {
				size = int(min(2*int64(size), 64<<10, w.nc.MaxPayload()/2))
			}
			w.onRead(a, resp.StatusCode, in, &p, now)
		}
		ended := err == io.EOF
		broken := ""
		if ended {
			broken = in.Broken()
		}
		switch verdict := in.Verdict(); {
		case verdict == api.Failed && !a.firstByte.isSet() && (err == nil || ended):
			f, due, status := noAnswer(w.cfg.Name, in, head)
			w.failAs(a, due, status, 0, f)
			return
		case broken != "":
			w.fail(a, subjects.Fail{Class: subjects.FailTruncated, Reason: fmt.Sprintf("engine %s: %s", w.cfg.Name, broken)})
			return
		case ended:
			w.finish(a, head.Status, in, &p, now)
			return
		case err != nil:
			class := subjects.FailTruncated
			if engine.Broke(err) && a.ctx.Err() == nil {
				class = subjects.FailCrashed
				w.scraper.Look()
			}
			w.fail(a, subjects.Fail{Class: class, Reason: fmt.Sprintf("engine %s: answer broke off: %s", w.cfg.Name, plain.Error(err))})
			return
		case n > 0 && verdict != api.Undecided && sent != head.Length: // with its last byte, the end goes along
			a.send()
		}
		if sent-a.taken.Load() > subjects.Window {
			if !a.awaitWindow(sent) {
				w.fail(a, subjects.Fail{})
				return
			}
			p.at = time.Time{}
		}
	}
}

// onRead handles a read of the engine's answer. Except for the first one with content, it takes one lock.
func (w *Worker) onRead(a *attempt, status int, in *api.Inspector, p *pace, now time.Time) {
	switch {
	case a.firstByte.isSet():
	case in.Verdict() != api.Answered:
		a.lastByte.set(a.started, now)
		return
	default:
		a.streamed = in.Stream
		w.onFirstByte(a, status < 300, now)
		if a.streamed {
			w.cfg.meters.firstToken.Observe(now.Sub(a.started).Seconds())
		}
		w.presence.endTrial(a.task.source)
		if a.streamed {
			w.bid() // one prompt less waits, so the price has fallen
		}
	}
	if a.streamed {
		last, events := p.at, p.events
		w.capacity.onTokens(p, in.Events, in.Ended, w.estimates.mark(), now)
		if more := in.Events - events; more > 0 && !last.IsZero() {
			w.cfg.meters.interToken.Observe(now.Sub(last)/time.Duration(more), more)
		}
	} else {
		w.capacity.onBytes(now)
	}
	a.lastByte.set(a.started, now)
}

// probe asks the engine for one token. It reports whether there was a whole answer, of whatever kind: a refusal for lack of
// a slot and an error of the engine are none.
func (e *engineCalls) probe(ctx context.Context, transport http.RoundTripper, path, model string, stream bool) (answered bool) {
	at, body := engine.OneToken(path, model, stream)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, e.base+at, bytes.NewReader(body))
	if err != nil {
		return false
	}
	r.Header = http.Header{"Content-Type": {"application/json"}, "User-Agent": {"pulley"}}
	resp, err := transport.RoundTrip(r)
	if err == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxRefusal))
		resp.Body.Close()
	}
	return err == nil && resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests
}

// engineCalls makes the calls of the engine. Its transport adds the credentials.
type engineCalls struct {
	base   string // of its URLs
	tracer *tracer
}

// request returns the call for an attempt. Most calls have the same path as the one before, so that its URL need not be
// parsed again. The header of the attempt's request is not changed.
func (e *engineCalls) request(a *attempt, path string, body []byte) (*http.Request, error) {
	last := a.runner.call
	if last == nil || last.Method != a.req.Method || a.runner.path != path {
		var err error
		if last, err = http.NewRequest(a.req.Method, e.base+path, nil); err != nil {
			return nil, err
		}
		a.runner.call, a.runner.path = last, path
	}
	r := last.WithContext(a.ctx)
	r.Body, r.ContentLength = http.NoBody, int64(len(body))
	if len(body) > 0 {
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		r.Body, _ = r.GetBody()
	}
	if r.Header = a.req.Header; r.Header == nil {
		r.Header = make(http.Header)
	}
	if a.rank >= 0 || a.span != nil {
		r.Header = r.Header.Clone()
	}
	if a.rank >= 0 {
		r.Header.Set(headerRank, strconv.Itoa(a.rank))
	}
	if a.span != nil {
		tracing.Inject(a.span, r.Header)
	}
	return r, nil
}
