package background

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	followKeepAlive = 10 * time.Second
	slowClient      = 30 * time.Second

	// lookEvery is how often a follower looks without being woken: a message that wakes it may be lost.
	lookEvery = time.Second
)

// follow streams the events of a response whose number is above after, until the last.
func (s *Service) follow(w http.ResponseWriter, r *http.Request, resp *Response, after int) error {
	f := &follower{store: s.store, ctx: r.Context(), w: w, rc: http.NewResponseController(w), resp: resp, after: after, wake: make(chan struct{}, 1)}
	f.log = log{store: s.store, response: resp}
	sub, err := s.store.nc.Subscribe(f.log.subject(), func(*nats.Msg) {
		select {
		case f.wake <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return s.store.unavailable(err)
	}
	defer sub.Unsubscribe()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	if f.rc.Flush() != nil || f.run() {
		return nil
	}
	panic(http.ErrAbortHandler)
}

// follower writes events to a client.
type follower struct {
	store *Store
	ctx   context.Context // of the client
	w     http.ResponseWriter
	rc    *http.ResponseController
	resp  *Response
	log   log
	after int
	wake  chan struct{} // the broker may have more

	from   uint64 // sequence from which the next message is looked for
	part   []byte // an event whose end has not come
	number int    // of that event, or the next
}

// run follows until the last event, and says whether that was written, or the client is gone.
func (f *follower) run() bool {
	keepAlive := time.Now().Add(followKeepAlive)
	look := time.Now().Add(lookEvery)
	patience := time.Duration(0)
	for f.ctx.Err() == nil {
		m, err := f.store.next(f.ctx, f.log.subject(), f.from)
		if err == nil {
			f.from = m.Sequence + 1
			if !f.write(f.read(m.Header, m.Data)) {
				return true
			}
			if m.Header.Get(endHeader) != "" {
				return true
			}
			keepAlive, look, patience = time.Now().Add(followKeepAlive), time.Now().Add(lookEvery), 0
			continue
		}
		if now := time.Now(); errors.Is(err, ErrNotFound) && (f.resp.Status.Final() || now.After(look)) {
			if done, whole := f.fromState(); done {
				return whole
			}
			look = now.Add(lookEvery)
		}
		if time.Now().After(keepAlive) {
			keepAlive = time.Now().Add(followKeepAlive)
			if !f.write([]byte(": working\n\n")) {
				return true
			}
		}
		wait := lookEvery
		if patience > 0 { // woken: the message is being stored
			wait, patience = patience, min(2*patience, lookEvery)
		}
		timer := time.NewTimer(wait)
		select {
		case <-f.ctx.Done():
		case <-timer.C:
		case <-f.wake:
			patience = time.Millisecond
		}
		timer.Stop()
	}
	return true
}

// read returns the events of a message that the client wants and that are whole.
func (f *follower) read(h nats.Header, data []byte) (out []byte) {
	if h.Get(restHeader) == "" {
		f.part = nil // what is not whole is of a run that broke off
		f.number, _ = strconv.Atoi(h.Get(firstHeader))
	} else if f.part == nil { // the beginning of the event has expired
		_, rest, _ := bytes.Cut(data, []byte("\n\n"))
		first, _ := strconv.Atoi(h.Get(firstHeader))
		f.number = first + 1
		data = rest
	}
	f.part = append(f.part, data...)
	for {
		end := bytes.Index(f.part, []byte("\n\n"))
		if end < 0 {
			return out
		}
		if f.number > f.after {
			out = append(out, f.part[:end+2]...)
		}
		f.part = f.part[end+2:]
		f.number++
	}
}

// write writes to the client; false: it is gone.
func (f *follower) write(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	f.rc.SetWriteDeadline(time.Now().Add(slowClient))
	if _, err := f.w.Write(b); err != nil {
		return false
	}
	return f.rc.Flush() == nil
}

// fromState ends a stream whose last event is missing, by what the state says. done: there is nothing to wait for; whole: the
// client got a last event.
func (f *follower) fromState() (done, whole bool) {
	resp, err := f.store.Load(f.ctx, f.resp.Tenant, f.resp.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		return true, false
	case err != nil || !resp.Status.Final():
		return false, false
	}
	if m, err := f.store.next(f.ctx, f.log.subject(), f.from); err == nil && m != nil { // it came meanwhile
		return false, false
	}
	if time.Since(resp.Ended) < 2*time.Second { // it is being written
		return false, false
	}
	if number := max(f.number, resp.Next); number > f.after {
		f.write(numbered(resp.event("response."+string(resp.Status)), number))
	}
	return true, true
}
