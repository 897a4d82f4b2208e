package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
)

// firstPiece is the memory of a body of which nothing has come, at most.
const firstPiece = 4 << 10

// bodies is the memory of the request bodies that the gateway holds, and who has how much of it.
type bodies struct {
	// Fixed after newBodies.
	cfg  *Config
	most int64 // bytes of one key, and of one address while they are coming
	pace policy.BodyPace

	held atomic.Int64 // bytes of all

	mu     sync.Mutex
	keys   map[string]int64     // by key id
	coming map[netip.Addr]int64 // of bodies that have not come as a whole, by the client's address
}

func newBodies(cfg *Config) *bodies {
	return &bodies{
		cfg:  cfg,
		most: max(int64(cfg.BodyShare*float64(cfg.BodyMemory)), cfg.MaxBody+1), // the largest body always has room
		pace: policy.BodyPace{Rate: cfg.BodyRate, Total: cfg.BodyTime},
		keys: make(map[string]int64), coming: make(map[netip.Addr]int64),
	}
}

// hold is the memory of one body. Its owner gives it back.
type hold struct {
	of   *bodies
	key  string     // id of the caller's key; "" if it has none
	from netip.Addr // the client's address, until the body has come; zero if it is not known
	n    int64
}

// grow takes n bytes more, or returns whose share is used up.
func (h *hold) grow(n int64) error {
	share, ok := h.take(n)
	switch {
	case share != "":
		return &api.Error{Status: http.StatusTooManyRequests, Code: "body_share_full", RetryAfter: time.Second,
			Message: fmt.Sprintf("the request bodies of %s have their share of the gateway's memory, %d bytes; try again", share, h.of.most)}
	case !ok:
		return &api.Error{Status: http.StatusTooManyRequests, Code: "gateway_memory_full", RetryAfter: time.Second,
			Message: "the gateway's memory for request bodies is full; try again"}
	}
	return nil
}

func (h *hold) take(n int64) (share string, ok bool) {
	b := h.of
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case h.from.IsValid() && b.coming[h.from]+n > b.most:
		return "this address that are on their way", false
	case h.key != "" && b.keys[h.key]+n > b.most:
		return "this API key", false
	case b.held.Add(n) > b.cfg.BodyMemory:
		b.held.Add(-n)
		return "", false
	}
	if h.from.IsValid() {
		b.coming[h.from] += n
	}
	if h.key != "" {
		b.keys[h.key] += n
	}
	h.n += n
	return "", true
}

// arrived notes that the body has come as a whole.
func (h *hold) arrived() {
	if !h.from.IsValid() {
		return
	}
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	h.arrivedLocked()
}

func (h *hold) arrivedLocked() {
	subtract(h.of.coming, h.from, h.n)
	h.from = netip.Addr{}
}

// give gives the memory back, once. A nil hold has none.
func (h *hold) give() {
	if h == nil || h.n == 0 {
		return
	}
	b := h.of
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held.Add(-h.n)
	if h.from.IsValid() {
		h.arrivedLocked()
	}
	if h.key != "" {
		subtract(b.keys, h.key, h.n)
	}
	h.n = 0
}

func subtract[K comparable](m map[K]int64, key K, n int64) {
	if left := m[key] - n; left > 0 {
		m[key] = left
	} else {
		delete(m, key)
	}
}

// read reads a whole body within bounds. A request is published only when all of its body is here, since a transport that
// still reads a body cuts the answer (golang/go#40747). The caller gives the hold back, also after an error.
func (b *bodies) read(w http.ResponseWriter, r *http.Request, h *hold) (body []byte, err error) {
	largest := b.cfg.MaxBody
	tooLarge := func() *api.Error {
		return api.Errorf(http.StatusRequestEntityTooLarge, "request_too_large", "the body is larger than %d bytes", largest)
	}
	if r.ContentLength > largest {
		return nil, tooLarge()
	}
	if r.ContentLength == 0 { // a read deadline would end the server's watch over the connection
		return nil, nil
	}
	// Memory grows with the bytes that have come, not with the length that a client claims.
	first := min(max(r.ContentLength, 512), firstPiece)
	if err := h.grow(first); err != nil {
		return nil, err
	}
	body = make([]byte, 0, first)
	rc, began, last := http.NewResponseController(w), time.Now(), time.Duration(0)
	for {
		if r.ContentLength >= 0 && int64(len(body)) == r.ContentLength && len(body) == cap(body) {
			// All is here; the end must be read too, or the server would not notice a client that goes away.
			var end [1]byte
			if _, err := r.Body.Read(end[:]); err != io.EOF {
				return nil, api.BadRequest("", "the body could not be read: %v", err)
			}
			h.arrived()
			return body, nil // at the body's end the server has removed the deadline
		}
		if len(body) == cap(body) {
			more := int64(cap(body))
			if more < 64<<10 {
				more *= 3
			}
			more = min(more, largest+1-int64(cap(body)))
			if r.ContentLength >= 0 {
				more = min(more, r.ContentLength-int64(cap(body)))
			}
			if err := h.grow(more); err != nil {
				return nil, err
			}
			body = append(make([]byte, 0, int64(cap(body))+more), body...)
		}
		rc.SetReadDeadline(began.Add(b.pace.Until(int64(len(body)), last)))
		n, err := r.Body.Read(body[len(body):cap(body)])
		if body = body[:len(body)+n]; n > 0 {
			last = time.Since(began)
		}
		switch {
		case int64(len(body)) > largest:
			return nil, tooLarge()
		case err == io.EOF:
			h.arrived()
			return body, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, api.Errorf(http.StatusRequestTimeout, "body_timeout", "%s", b.pace.Broken(int64(len(body)), last))
		case err != nil:
			return nil, api.BadRequest("", "the body could not be read: %v", err)
		}
	}
}
