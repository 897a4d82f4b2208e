package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/pulley-lb/pulley/api"
)

// bodyIdle is how long a client may take for the next piece of its body.
const bodyIdle = 30 * time.Second

// budget bounds the memory of all bodies that the gateway holds.
type budget struct {
	max  int64
	held atomic.Int64
}

func (b *budget) take(n int64) bool {
	if b.held.Add(n) <= b.max {
		return true
	}
	b.held.Add(-n)
	return false
}

func (b *budget) give(n int64) { b.held.Add(-n) }

// readBody reads a whole body within bounds: a request is sent on only when all
// of it is here, since a transport that still reads one cuts the answer
// (golang/go#40747). The caller gives the returned hold back to the budget.
func (g *Gateway) readBody(w http.ResponseWriter, r *http.Request) (body []byte, hold int64, err error) {
	tooLarge := func() *api.Error {
		return &api.Error{Status: http.StatusRequestEntityTooLarge, Code: "request_too_large",
			Message: fmt.Sprintf("the body is larger than %d bytes", g.cfg.MaxBody)}
	}
	if r.ContentLength > g.cfg.MaxBody {
		return nil, 0, tooLarge()
	}
	if r.ContentLength == 0 { // a read deadline would end the server's watch over the connection
		return nil, 0, nil
	}
	size := max(r.ContentLength, 512)
	defer func() {
		if err != nil && hold > 0 {
			g.bodies.give(hold)
			hold = 0
		}
	}()
	grow := func(n int64) error {
		if !g.bodies.take(n) {
			return &api.Error{Status: http.StatusTooManyRequests, Code: "gateway_memory_full", RetryAfter: time.Second,
				Message: "the gateway holds as many request bodies as it may; try again"}
		}
		hold += n
		return nil
	}
	// A length that a client claims costs no memory before its bytes are there.
	first := min(size, 64<<10)
	if err := grow(first); err != nil {
		return nil, hold, err
	}
	body = make([]byte, 0, first)
	rc := http.NewResponseController(w)
	for {
		if r.ContentLength >= 0 && int64(len(body)) == r.ContentLength && len(body) == cap(body) {
			// All is here; the end must be read too, or the server would not
			// notice a client that goes away.
			var end [1]byte
			if _, err := r.Body.Read(end[:]); err != io.EOF {
				return nil, hold, api.BadRequest("", "the body could not be read: %v", err)
			}
			return body, hold, nil // with its end, the server has taken the deadline back
		}
		if len(body) == cap(body) {
			more := min(int64(cap(body)), g.cfg.MaxBody+1-int64(cap(body)))
			if r.ContentLength >= 0 {
				more = min(more, r.ContentLength-int64(cap(body)))
			}
			if err := grow(more); err != nil {
				return nil, hold, err
			}
			bigger := make([]byte, len(body), int64(cap(body))+more)
			copy(bigger, body)
			body = bigger
		}
		rc.SetReadDeadline(time.Now().Add(bodyIdle))
		n, err := r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > g.cfg.MaxBody:
			return nil, hold, tooLarge()
		case err == io.EOF:
			return body, hold, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, hold, &api.Error{Status: http.StatusRequestTimeout, Code: "body_timeout",
				Message: fmt.Sprintf("no byte of the body came for %v", bodyIdle)}
		case err != nil:
			return nil, hold, api.BadRequest("", "the body could not be read: %v", err)
		}
	}
}
