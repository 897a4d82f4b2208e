package gateway

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// ExplainMode says which answers explain in their headers who gave them, and why: see receipt.
type ExplainMode string

const (
	ExplainKeys   ExplainMode = "keys"   // those to clients that ask for it, with a key that may
	ExplainAsked  ExplainMode = "asked"  // those to all clients that ask for it
	ExplainAlways ExplainMode = "always" // all
)

// check returns an error for a mode that does not exist.
func (m ExplainMode) check() error {
	switch m {
	case ExplainKeys, ExplainAsked, ExplainAlways:
		return nil
	}
	return fmt.Errorf("explain %q: must be keys, asked or always", m)
}

// wanted says whether the answer to a request with such a header explains itself.
func (m ExplainMode) wanted(h http.Header, who *caller) bool {
	if m == ExplainAlways {
		return true
	}
	v := h["X-Pulley-Explain"]
	if len(v) == 0 || v[0] != "1" && v[0] != "true" {
		return false
	}
	return m == ExplainAsked || who.key != nil && who.key.Explain
}

// receipt explains an answer: headers with the worker, the pool, the number of attempts, the time until the last one began,
// the rung of the bid that it answered, and whether the worker has the beginning of the conversation cached.
func (r *request) receipt(h http.Header) {
	at := r.target.Load()
	r.mu.Lock()
	defer r.mu.Unlock()
	h.Set("X-Pulley-Pool", at.queue.pool)
	h.Set("X-Pulley-Attempts", strconv.Itoa(r.attempts))
	if r.attempt == nil {
		h.Set("X-Pulley-Queue-Ms", strconv.FormatInt(time.Since(r.arrived).Milliseconds(), 10))
		return
	}
	h.Set("X-Pulley-Queue-Ms", strconv.FormatInt(r.claimed.Sub(r.arrived).Milliseconds(), 10))
	h.Set("X-Pulley-Worker", r.attempt.name)
	if r.cheap { // it was no matter of price or cache
		return
	}
	h.Set("X-Pulley-Rung", strconv.Itoa(r.attempt.rung))
	affinity := "miss" // no live worker is known to have it
	switch r.home {
	case "":
	case r.attempt.worker:
		affinity = "hit"
	default:
		affinity = "moved"
	}
	h.Set("X-Pulley-Affinity", affinity)
}
