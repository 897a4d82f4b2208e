package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// diedWithin bounds how long an engine may take to show whether it is alive. One that takes longer is busy.
const diedWithin = 500 * time.Millisecond

// Died asks the engine whether it is alive, after it failed a request. It returns why it is not: it accepts no connection or
// closes it, or its health page says that it is not well. If that is not certain, it returns nil.
func (s *Scraper) Died(ctx context.Context) error {
	s.mu.Lock()
	health := s.healthPage
	s.mu.Unlock()
	if health.url == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, diedWithin)
	defer cancel()
	var body bytes.Buffer
	_, err := s.ask(ctx, health.method, health.url, &body)
	status, answered := errors.AsType[*statusError](err)
	_, network := errors.AsType[*net.OpError](err)
	switch {
	case err == nil, ctx.Err() != nil, outOfTime(err):
		return nil
	case answered && status.code >= http.StatusInternalServerError, network, Broke(err):
		return err
	}
	return nil
}

// Broke reports whether a call failed because the engine, which had the request, closed the connection or is no longer there.
// An engine that could not be connected to never had it.
func Broke(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return false
	}
	for _, e := range []error{
		io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE,
		syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH, // the host of the engine is gone
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	// net/http does not export the errors of its HTTP/2 client.
	text := err.Error()
	return strings.Contains(text, "http2: client connection lost") || strings.Contains(text, "http2: server sent GOAWAY and closed the connection")
}

// healthPage is where an engine says whether it is well; empty until its dialect is known.
type healthPage struct{ method, url string }
