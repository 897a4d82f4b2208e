package testenv

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Listener is an in-memory net.Listener. A net.Pipe blocks durably, which a loopback socket does
// not, and the bubble's clock advances only when all goroutines block durably.
type Listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once

	mu   sync.Mutex
	open map[net.Conn]bool
}

// NewListener makes a listener without connections.
func NewListener() *Listener {
	return &Listener{conns: make(chan net.Conn), done: make(chan struct{}), open: make(map[net.Conn]bool)}
}

func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *Listener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// DialContext connects; a closed listener refuses.
func (l *Listener) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	server, client := net.Pipe()
	return l.connect(ctx, server, client)
}

// From returns a function that connects as DialContext does, from an IP address.
func (l *Listener) From(addr netip.Addr) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		server, client := net.Pipe()
		return l.connect(ctx, &connFrom{server, net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 40_000))}, client)
	}
}

// connFrom is a connection from an address.
type connFrom struct {
	net.Conn
	addr net.Addr
}

func (c *connFrom) RemoteAddr() net.Addr { return c.addr }

func (l *Listener) connect(ctx context.Context, server, client net.Conn) (net.Conn, error) {
	select {
	case l.conns <- server:
		l.mu.Lock()
		l.open[server] = true
		l.mu.Unlock()
		return client, nil
	case <-l.done:
		return nil, &net.OpError{Op: "dial", Net: "pipe", Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Cut closes every connection that was made.
func (l *Listener) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		c.Close()
	}
	clear(l.open)
}

// Link is the broker connections of one part, which can be delayed, frozen and cut.
type Link struct {
	dial func() (net.Conn, error)
	lag  atomic.Int64 // nanoseconds

	mu     sync.Mutex
	frozen bool
	down   bool
	conns  []*linkConn
}

// InProcessConn implements nats.InProcessConnProvider.
func (l *Link) InProcessConn() (net.Conn, error) {
	l.mu.Lock()
	down, frozen := l.down, l.frozen
	l.mu.Unlock()
	if down {
		return nil, net.ErrClosed
	}
	inner, err := l.dial()
	if err != nil {
		return nil, err
	}
	c := &linkConn{Conn: inner, lag: &l.lag, frozen: frozen, in: make(chan struct{}, 1)}
	go c.pump() // ends with the connection
	l.mu.Lock()
	l.conns = append(l.conns, c)
	l.mu.Unlock()
	return c, nil
}

// Delay lets what the broker sends arrive so much later, as over a network.
func (l *Link) Delay(by time.Duration) { l.lag.Store(int64(by)) }

// Freeze holds all traffic, as if the process were stopped (SIGSTOP): its connections stay open,
// data sent to it is buffered as a kernel would do, and nothing passes.
func (l *Link) Freeze() { l.set(true) }

// Thaw lets traffic flow again, starting with the buffered data.
func (l *Link) Thaw() { l.set(false) }

func (l *Link) set(frozen bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.frozen = frozen
	for _, c := range l.conns {
		c.freeze(frozen)
	}
}

// Cut closes the connections; if stay is set, new ones fail until Mend.
func (l *Link) Cut(stay bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = stay
	for _, c := range l.conns {
		c.Close()
	}
	l.conns = nil
}

// Mend allows new connections again.
func (l *Link) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = false
}

// linkConn buffers what arrives and, while frozen, what is sent. Writers never wait: in a bubble, a
// writer that waits while it holds a lock stops the clock.
type linkConn struct {
	net.Conn
	lag *atomic.Int64
	in  chan struct{} // signals that there may be something to read

	mu     sync.Mutex
	frozen bool
	closed bool   // by the part
	got    []byte // arrived, not read yet
	unsent []byte // written while frozen
	err    error  // of the underlying connection, returned after got
}

func (c *linkConn) pump() {
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Conn.Read(buf)
		time.Sleep(time.Duration(c.lag.Load()))
		c.mu.Lock()
		c.got = append(c.got, buf[:n]...)
		c.err = err
		c.mu.Unlock()
		c.wake()
		if err != nil {
			return
		}
	}
}

func (c *linkConn) wake() {
	select {
	case c.in <- struct{}{}:
	default:
	}
}

func (c *linkConn) freeze(frozen bool) {
	c.mu.Lock()
	c.frozen = frozen
	unsent := c.unsent
	if !frozen {
		c.unsent = nil
	}
	c.mu.Unlock()
	if !frozen {
		if len(unsent) > 0 {
			c.Conn.Write(unsent)
		}
		c.wake()
	}
}

func (c *linkConn) Read(b []byte) (int, error) {
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return 0, net.ErrClosed
		}
		if !c.frozen && len(c.got) > 0 {
			n := copy(b, c.got)
			c.got = c.got[n:]
			c.mu.Unlock()
			return n, nil
		}
		if !c.frozen && c.err != nil {
			defer c.mu.Unlock()
			return 0, c.err
		}
		c.mu.Unlock()
		<-c.in
	}
}

// Close also ends a Read that waits, frozen or not.
func (c *linkConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	defer c.wake()
	return c.Conn.Close()
}

func (c *linkConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	if c.frozen {
		c.unsent = append(c.unsent, b...)
		c.mu.Unlock()
		return len(b), nil
	}
	c.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *linkConn) SetReadDeadline(time.Time) error { return nil } // nats.go sets it only while it connects
