package fleet

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
)

// direct calls a handler without a network, on a goroutine for each request. The answer's body has what the handler writes,
// as it writes it.
type direct struct{ handler http.Handler }

func (d direct) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	call := req.Clone(ctx)
	call.RequestURI, call.RemoteAddr, call.Proto = req.URL.RequestURI(), "in-process", "HTTP/1.1"
	if call.Host == "" {
		call.Host = req.URL.Host
	}
	if call.Body == nil {
		call.Body = http.NoBody
	}
	read, write := io.Pipe()
	w := &responseWriter{header: make(http.Header), body: write, begun: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { read.CloseWithError(context.Cause(ctx)) })
	go func() { // ends with the handler, whose context ends with the request's or when the body is closed
		defer call.Body.Close()
		var broken error
		defer func() {
			if p := recover(); p != nil { // http.ErrAbortHandler: the connection is cut
				broken = io.ErrUnexpectedEOF
				if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
					panic(p)
				}
			}
			if broken == nil && ctx.Err() != nil { // what a cancelled handler wrote is not all
				broken = context.Cause(ctx)
			}
			if broken == nil {
				w.begin(http.StatusOK)
			}
			w.once.Do(func() { close(w.begun) })
			write.CloseWithError(broken)
		}()
		d.handler.ServeHTTP(w, call)
	}()
	err := io.ErrUnexpectedEOF
	select {
	case <-w.begun:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if ctx.Err() != nil || w.status == 0 {
		cancel(nil)
		return nil, err
	}
	return &http.Response{
		Status: http.StatusText(w.status), StatusCode: w.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Body: &responseBody{ctx, read, func() { stop(); cancel(nil); read.Close() }}, ContentLength: -1, Request: req,
	}, nil
}

// responseWriter is the handler's side. Only the handler's goroutine uses it, and the caller after begun.
type responseWriter struct {
	header http.Header
	body   *io.PipeWriter
	begun  chan struct{} // closed when status and sent are set
	once   sync.Once
	status int // 0: the handler was aborted before it had answered
	sent   http.Header
}

func (w *responseWriter) Header() http.Header { return w.header }

func (w *responseWriter) WriteHeader(status int) {
	if status >= 200 { // the others are followed by the real one
		w.begin(status)
	}
}

func (w *responseWriter) begin(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.begun)
	})
}

func (w *responseWriter) Write(p []byte) (int, error) {
	w.begin(http.StatusOK)
	if len(p) == 0 {
		return 0, nil
	}
	return w.body.Write(p)
}

// FlushError sends the head; the body needs no flush.
func (w *responseWriter) FlushError() error { w.begin(http.StatusOK); return nil }

// responseBody is what the caller reads of the answer.
type responseBody struct {
	ctx   context.Context // of the call; why it ended is the error of a read
	pipe  *io.PipeReader
	close func()
}

func (b *responseBody) Read(p []byte) (int, error) {
	n, err := b.pipe.Read(p)
	if errors.Is(err, io.ErrClosedPipe) && b.ctx.Err() != nil {
		err = context.Cause(b.ctx)
	}
	return n, err
}

func (b *responseBody) Close() error { b.close(); return nil }
