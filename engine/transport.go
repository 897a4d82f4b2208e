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

// maxShort is the longest request body, in bytes, that Transport writes itself. That much, with a header, fits into the
// buffers of the two sockets, so the write ends even if an engine answers without reading.
const maxShort = 32 << 10

// earlyAnswer is how long to wait for an answer from an engine that accepts no more of the request.
const earlyAnswer = 50 * time.Millisecond

// Transport calls one engine like the [http.Transport] that it wraps, but on the calling goroutine: a connection of
// http.Transport has two goroutines of its own, and handing each request and answer over to them takes a tenth of what
// a small request costs a worker. Messages are still written and parsed by net/http.
//
// All other calls use the http.Transport: https, proxies, other hosts, long request bodies, and
// every call where the system cannot report whether an idle connection is still open.
type Transport struct {
	std       *http.Transport
	addr      string // the engine's address to dial; empty: std makes all calls
	host      string // host of the engine's URL
	maxHeader int64  // bound on the bytes of an answer's header
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)

	mu   sync.Mutex
	idle []*conn // most recently used last
}

// NewTransport returns a Transport for the engine at a URL. It uses std's DialContext, Proxy, MaxIdleConnsPerHost,
// IdleConnTimeout and MaxResponseHeaderBytes; the other settings apply only to calls that std makes.
func NewTransport(engine string, std *http.Transport) *Transport {
	t := &Transport{std: std, maxHeader: std.MaxResponseHeaderBytes, dial: std.DialContext}
	if t.maxHeader == 0 {
		t.maxHeader = http.DefaultMaxHeaderBytes
	}
	if t.dial == nil {
		t.dial = new(net.Dialer).DialContext
	}
	u, err := url.Parse(engine)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" || !canAsk {
		return t
	}
	if strings.ContainsFunc(u.Host, func(r rune) bool { return r >= utf8.RuneSelf }) { // the name needs IDNA encoding
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

// RoundTrip implements [http.RoundTripper]. The connection of a cancelled request is closed. A request with a body is
// written once: if the engine closes the connection, it is unknown what it has done with the request.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	bare := r.Body == nil || r.Body == http.NoBody
	long := r.ContentLength > maxShort || r.ContentLength < 0 || r.ContentLength == 0 && !bare
	if t.addr == "" || long || r.URL.Scheme != "http" || r.URL.Host != t.host {
		return t.std.RoundTrip(r)
	}
	if r.Context().Err() != nil {
		return nil, refuse(r, nil)
	}
	if c := t.takeIdle(); c != nil {
		resp, err := t.call(c, r)
		// An engine may close a connection at the moment when it is used again.
		unreceived := err != nil && c.left == t.maxHeader && r.Context().Err() == nil
		if !unreceived || !bare || r.Method != http.MethodGet && r.Method != http.MethodHead {
			return resp, err
		}
	}
	c, err := t.dial(r.Context(), "tcp", t.addr)
	if err != nil {
		return nil, refuse(r, err)
	}
	return t.call(newConn(c), r)
}

func refuse(r *http.Request, err error) error {
	if r.Body != nil {
		r.Body.Close()
	}
	return callError(r.Context(), err)
}

func (t *Transport) call(c *conn, r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	stop := context.AfterFunc(ctx, c.abort)
	resp, err := c.roundTrip(r, t.maxHeader)
	if err != nil {
		stop()
		c.Close()
		return nil, callError(ctx, err)
	}
	b := &answerBody{of: resp.Body, ctx: ctx, t: t, c: c, stop: stop, close: resp.Close || r.Close}
	if resp.Body == http.NoBody {
		b.end(io.EOF)
	} else {
		resp.Body = b
	}
	return resp, nil
}

// callError returns the error of a call, given the error of its connection: if the call was cancelled, the cause.
func callError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// takeIdle removes and returns the most recently used idle connection that is still open, or nil.
func (t *Transport) takeIdle() *conn {
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

func (t *Transport) expired(c *conn) bool {
	return t.std.IdleConnTimeout > 0 && time.Since(c.since) > t.std.IdleConnTimeout
}

// keep returns a connection to the pool, and closes connections that have been idle for too long or are too many.
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
	raw   syscall.RawConn // nil: its state cannot be queried, so it is used once
	peek  peek
	abort func()
	left  int64        // bytes that may still be read
	full  bool         // the last read filled its buffer, so that more is likely to be there
	burst *[burst]byte // nil most of the time
	ahead []byte       // what is unread of burst
	br    *bufio.Reader
	bw    *bufio.Writer
	since time.Time // when it became idle
}

// burst is how much is read at once of an answer that comes faster than it is read: one that is whole, or an engine's that was
// slow. An open stream whose engine writes a token at a time holds no such buffer.
const burst = 32 << 10

var bursts = sync.Pool{New: func() any { return new([burst]byte) }}

func newConn(nc net.Conn) *conn {
	c := &conn{Conn: nc}
	c.abort = func() { nc.Close() }
	c.br, c.bw = bufio.NewReaderSize(c, 4<<10), bufio.NewWriterSize(nc, 4<<10) // each open stream has them; larger reads go past them
	if s, ok := nc.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn()
	}
	return c
}

func (c *conn) Read(p []byte) (int, error) {
	switch {
	case len(c.ahead) > 0:
		n := copy(p, c.ahead)
		if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
			bursts.Put(c.burst)
			c.burst, c.ahead = nil, nil
		}
		return n, nil
	case c.left <= 0:
		return 0, errLongHeader
	case c.full && c.left == math.MaxInt64 && len(p) < burst:
		return c.readBurst(p)
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	c.full = n == len(p)
	if c.left < math.MaxInt64 {
		c.left -= int64(n)
	}
	return n, err
}

// readBurst reads more than p takes, and keeps it for the next reads.
func (c *conn) readBurst(p []byte) (int, error) {
	c.burst = bursts.Get().(*[burst]byte)
	n, err := c.Conn.Read(c.burst[:])
	c.full = n == burst
	taken := copy(p, c.burst[:n])
	if c.ahead = c.burst[taken:n]; len(c.ahead) == 0 {
		bursts.Put(c.burst)
		c.burst, c.ahead = nil, nil
	}
	if n > 0 { // the next read of the connection returns it again
		err = nil
	}
	return taken, err
}

var errLongHeader = errors.New("the header of the answer is too long")

// roundTrip writes a request and reads the header of its answer, of at most so many bytes.
func (c *conn) roundTrip(r *http.Request, most int64) (*http.Response, error) {
	c.left = most
	unsent := r.Write(c.bw)
	if unsent == nil {
		unsent = c.bw.Flush()
	}
	if unsent != nil { // the engine may have answered before it closed the connection
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

func (c *conn) answer(r *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(c.br, r)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			return nil, errors.New("unexpected switch of protocols")
		}
		if resp.StatusCode < 100 || resp.StatusCode > 199 { // informational answers come before the final one
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
	err error // why it ended; io.EOF after a complete answer
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
			err = callError(b.ctx, err)
		}
		b.end(err)
	}
	return n, err
}

// end releases the connection, once. err is io.EOF after a complete answer.
func (b *answerBody) end(err error) {
	b.mu.Lock()
	ended := b.err != nil
	if !ended {
		b.err = err
	}
	b.mu.Unlock()
	switch {
	case ended:
	case b.stop() && err == io.EOF && !b.close && b.c.raw != nil && b.c.br.Buffered() == 0 && len(b.c.ahead) == 0:
		b.t.keep(b.c)
	default:
		b.c.Close()
	}
}

// Close closes the connection of an answer that has not ended. The engine notices at once.
func (b *answerBody) Close() error {
	b.end(http.ErrBodyReadAfterClose)
	return nil
}
