package worker

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"

	"github.com/pulley-lb/pulley/api"
)

// mostIdle bounds the runners that wait for an attempt.
const mostIdle = 64

// runners run attempts. A goroutine that has run one waits for the next, with its
// stack and with what else is in runner. Without that, a small request takes 11 % more
// CPU, and a stream of 100 tokens 3 to 8 % (pulley up, 16 clients, engines that take no
// time). 7 % of the 11 are for the stack alone: calling an engine takes a deep one,
// which a new goroutine grows step by step, copying it each time.
type runners struct {
	run     func(*attempt)
	waiting chan *attempt // to a runner that waits; closed by close
	idle    atomic.Int32  // number of runners that wait
	all     sync.WaitGroup
}

// runner is what a goroutine keeps from one attempt to the next.
type runner struct {
	call      call // the last one of the engine
	inspector api.Inspector
	local     local
}

// call is a call of the engine that later ones are copied from.
type call struct {
	method, path string
	request      *http.Request // without header and body
}

func newRunners(run func(*attempt)) *runners {
	return &runners{run: run, waiting: make(chan *attempt)}
}

// start runs an attempt.
func (rs *runners) start(a *attempt) {
	select {
	case rs.waiting <- a:
	default:
		rs.all.Go(func() { rs.loop(a) }) // ends when mostIdle others wait, or with close
	}
}

func (rs *runners) loop(a *attempt) {
	r := new(runner)
	for ok := true; ok; {
		a.runner = r
		rs.run(a)
		if rs.idle.Add(1) <= mostIdle {
			a, ok = <-rs.waiting
		} else {
			ok = false
		}
		rs.idle.Add(-1)
	}
}

// close ends the runners, and returns when the attempts that they run have ended. start
// must not be called any more.
func (rs *runners) close() {
	close(rs.waiting)
	rs.all.Wait()
}

// engineCalls makes the calls of the engine.
type engineCalls struct {
	base string // of its URLs
	key  string // API key; empty: none
}

// request returns the call for an attempt. Most calls have the same path as the one
// before, so that its URL need not be parsed again. The header of the attempt's request
// is not changed.
func (e *engineCalls) request(a *attempt, path string, body []byte) (*http.Request, error) {
	last := &a.runner.call
	if last.request == nil || last.method != a.req.Method || last.path != path {
		r, err := http.NewRequest(a.req.Method, e.base+path, nil)
		if err != nil {
			return nil, err
		}
		*last = call{a.req.Method, path, r}
	}
	r := last.request.WithContext(a.ctx)
	r.Body, r.ContentLength = http.NoBody, int64(len(body))
	if len(body) > 0 {
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		r.Body, _ = r.GetBody()
	}
	r.Header = e.header(r.URL.User, a.req.Header)
	return r, nil
}

// header returns a request's header with the worker's credentials for the engine.
func (e *engineCalls) header(user *url.Userinfo, h http.Header) http.Header {
	if h == nil {
		h = make(http.Header)
	}
	switch {
	case e.key != "":
		h = h.Clone()
		h.Set("Authorization", "Bearer "+e.key)
	case user != nil:
		h = h.Clone()
		password, _ := user.Password()
		(&http.Request{Header: h}).SetBasicAuth(user.Username(), password)
	}
	return h
}
