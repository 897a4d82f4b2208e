package engine

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"
)

// maxShort is the longest request body, in bytes, that Transport writes itself. So much, and a header, fits into the
// buffers of the two sockets, and so the write ends even where an engine answers without reading.
const maxShort = 32 << 10

// earlyAnswer is how long an answer is awaited from an engine that takes no more of the request.
const earlyAnswer = 50 * time.Millisecond

// Transport calls one engine, as the [http.Transport] that it is made of would, but on the goroutine that asks: a
// connection of http.Transport has two goroutines of its own, and passing each request and each answer on to them and back
// is a tenth of what a small request costs a worker. Messages are written and parsed by net/http all the same.
//
// What this is not for goes by the http.Transport: https, a proxy, other hosts, long request bodies, and all of it where
// the system cannot tell whether an idle connection is still open.
type Transport struct {
	std  *http.Transport
	addr string // the engine's, to dial; empty: std makes all calls
	host string // of its URL
	most int64  // bytes of an answer's header
	dial func(ctx context.Context, network, addr string) (net.Conn, error)

	mu   sync.Mutex
	idle []*conn // the last one was used last
}

// NewTransport is a Transport for the engine at a URL. Of std's settings it keeps DialContext, Proxy, MaxIdleConnsPerHost,
// IdleConnTimeout and MaxResponseHeaderBytes; the others hold for what goes by std alone.
func NewTransport(engine string, std *http.Transport) *Transport {
	t := &Transport{std: std, most: std.MaxResponseHeaderBytes, dial: std.DialContext}
	if t.most == 0 {
		t.most = http.DefaultMaxHeaderBytes
	}
	if t.dial == nil {
		t.dial = new(net.Dialer).DialContext
	}
	u, err := url.Parse(engine)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" || !canAsk {
		return t
	}
	if strings.ContainsFunc(u.Host, func(r rune) bool { return r >= utf8.RuneSelf }) { // a name that IDNA encodes
		return t
	}
	if std.Proxy != nil {
		if proxy, err := std.Proxy(&http.Request{URL: u}); proxy != nil || err != nil {
			return t
		}
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	t.addr, t.host = net.JoinHostPort(u.Hostname(), port), u.Host
	return t
}

// RoundTrip does what [http.RoundTripper] says. The connection of a request that is cancelled is closed. A request with a
// body is written once: what an engine that closed the connection has made of it is not known.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	bare := r.Body == nil || r.Body == http.NoBody
	long := r.ContentLength > maxShort || r.ContentLength < 0 || r.ContentLength == 0 && !bare
	if t.addr == "" || long || r.URL.Scheme != "http" || r.URL.Host != t.host {
		return t.std.RoundTrip(r)
	}
	if r.Context().Err() != nil {
		return nil, refuse(r, nil)
	}
	if c := t.kept(); c != nil {
		resp, err := t.call(c, r)
		// An engine may close a connection just when it is used again.
		unheard := err != nil && c.left == t.most && r.Context().Err() == nil
		if !unheard || !bare || r.Method != http.MethodGet && r.Method != http.MethodHead {
			return resp, err
		}
	}
	c, err := t.open(r.Context())
	if err != nil {
		return nil, refuse(r, err)
	}
	return t.call(c, r)
}

// refuse is the error of a call that does not reach the engine.
func refuse(r *http.Request, err error) error {
	if r.Body != nil {
		r.Body.Close()
	}
	return because(r.Context(), err)
}

// call makes one call on a connection that is free.
func (t *Transport) call(c *conn, r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	stop := context.AfterFunc(ctx, c.abort)
	resp, err := c.roundTrip(r, t.most)
	if err != nil {
		stop()
		c.Close()
		return nil, because(ctx, err)
	}
	b := &answerBody{of: resp.Body, ctx: ctx, t: t, c: c, stop: stop, close: resp.Close || r.Close}
	if resp.Body == http.NoBody {
		b.end(io.EOF)
	} else {
		resp.Body = b
	}
	return resp, nil
}

// because is the error of a call that came of its connection.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// kept is the idle connection used last that is still open; nil: there is none.
func (t *Transport) kept() *conn {
	for {
		t.mu.Lock()
		n := len(t.idle)
		if n == 0 {
			t.mu.Unlock()
			return nil
		}
		c := t.idle[n-1]
		t.idle[n-1] = nil
		t.idle = t.idle[:n-1]
		t.mu.Unlock()
		if !t.expired(c) && c.quiet() {
			return c
		}
		c.Close()
	}
}

func (t *Transport) open(ctx context.Context) (*conn, error) {
	nc, err := t.dial(ctx, "tcp", t.addr)
	if err != nil {
		return nil, err
	}
	return newConn(nc), nil
}

func (t *Transport) expired(c *conn) bool {
	return t.std.IdleConnTimeout > 0 && time.Since(c.since) > t.std.IdleConnTimeout
}

// keep takes a connection back, and closes those that have been idle for too long or are too many.
func (t *Transport) keep(c *conn) {
	c.since = time.Now()
	var old []*conn
	t.mu.Lock()
	t.idle = append(t.idle, c)
	most := t.std.MaxIdleConnsPerHost
	if most == 0 {
		most = http.DefaultMaxIdleConnsPerHost
	}
	n := 0
	for n < len(t.idle) && (len(t.idle)-n > most || t.expired(t.idle[n])) {
		n++
	}
	if n > 0 {
		old = append(old, t.idle[:n]...)
		t.idle = slices.Delete(t.idle, 0, n)
	}
	t.mu.Unlock()
	for _, c := range old {
		c.Close()
	}
}

// CloseIdleConnections closes the connections that no call uses.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	idle := t.idle
	t.idle = nil
	t.mu.Unlock()
	for _, c := range idle {
		c.Close()
	}
	t.std.CloseIdleConnections()
}

// conn is a connection to the engine, with one call at a time.
type conn struct {
	net.Conn
	raw   syscall.RawConn // nil: it cannot be asked, and is used once
	peek  peek
	abort func()
	left  int64 // bytes that may yet be read
	br    *bufio.Reader
	bw    *bufio.Writer
	since time.Time // when it became idle
}

func newConn(nc net.Conn) *conn {
	c := &conn{Conn: nc}
	c.abort = func() { nc.Close() }
	c.br, c.bw = bufio.NewReaderSize(c, 16<<10), bufio.NewWriterSize(nc, 8<<10)
	if s, ok := nc.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn()
	}
	return c
}

func (c *conn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errLongHeader
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

var errLongHeader = errors.New("the header of its answer is too long")

// roundTrip writes a request and reads the header of its answer, of at most so many bytes.
func (c *conn) roundTrip(r *http.Request, most int64) (*http.Response, error) {
	c.left = most
	unsent := r.Write(c.bw)
	if unsent == nil {
		unsent = c.bw.Flush()
	}
	if unsent != nil { // it may have answered before it closed the connection
		c.SetReadDeadline(time.Now().Add(earlyAnswer))
		resp, err := c.answer(r)
		if err != nil {
			return nil, unsent
		}
		c.SetReadDeadline(time.Time{})
		resp.Close = true
		return resp, nil
	}
	return c.answer(r)
}

// answer reads the header of an answer.
func (c *conn) answer(r *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(c.br, r)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			return nil, errors.New("it switches protocols, unasked")
		}
		if resp.StatusCode < 100 || resp.StatusCode > 199 { // others come before the answer
			c.left = math.MaxInt64
			return resp, nil
		}
	}
}

// answerBody is the body of an answer. Its end frees the connection.
type answerBody struct {
	of    io.Reader
	ctx   context.Context
	t     *Transport
	c     *conn
	stop  func() bool
	close bool // the connection cannot be used again

	mu  sync.Mutex
	err error // how it ended
}

func (b *answerBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	err := b.err
	b.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := b.of.Read(p)
	if err != nil {
		if err != io.EOF {
			err = because(b.ctx, err)
		}
		b.end(err)
	}
	return n, err
}

// end lets go of the connection, once; io.EOF is the good end.
func (b *answerBody) end(err error) {
	b.mu.Lock()
	ended := b.err != nil
	if !ended {
		b.err = err
	}
	b.mu.Unlock()
	switch {
	case ended:
	case b.stop() && err == io.EOF && !b.close && b.c.raw != nil && b.c.br.Buffered() == 0:
		b.t.keep(b.c)
	default:
		b.c.Close()
	}
}

// Close closes the connection of an answer that has not ended. The engine hears of it at once.
func (b *answerBody) Close() error {
	b.end(http.ErrBodyReadAfterClose)
	return nil
}
