package testenv

import (
	"context"
	"net"
	"sync"
	"time"
)

// Listener is an in-memory net.Listener. A net.Pipe blocks durably, which a
// loopback socket does not; only so does the bubble's time go on.
type Listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once

	mu   sync.Mutex
	open map[net.Conn]bool
}

// NewListener makes a listener that nobody dials yet.
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

// Link is a party's connections to the broker, which can be frozen and cut.
type Link struct {
	dial func() (net.Conn, error)

	mu     sync.Mutex
	frozen chan struct{} // closed while traffic flows
	down   bool
	conns  []net.Conn
}

func newLink(dial func() (net.Conn, error)) *Link {
	open := make(chan struct{})
	close(open)
	return &Link{dial: dial, frozen: open}
}

// InProcessConn is what nats.InProcessServer asks for.
func (l *Link) InProcessConn() (net.Conn, error) {
	l.mu.Lock()
	down := l.down
	l.mu.Unlock()
	if down {
		return nil, net.ErrClosed
	}
	c, err := l.dial()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.conns = append(l.conns, c)
	l.mu.Unlock()
	return &linkConn{Conn: c, link: l}, nil
}

// Freeze holds all traffic, as if the party were stopped (SIGSTOP): its
// connections stay open and nothing passes.
func (l *Link) Freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.frozen = make(chan struct{})
}

// Thaw lets traffic flow again.
func (l *Link) Thaw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.frozen:
	default:
		close(l.frozen)
	}
}

// Cut breaks the connections; with stay, new ones fail until Mend.
func (l *Link) Cut(stay bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = stay
	for _, c := range l.conns {
		c.Close()
	}
	l.conns = nil
}

// Mend lets new connections be made again.
func (l *Link) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = false
}

func (l *Link) wait() {
	l.mu.Lock()
	frozen := l.frozen
	l.mu.Unlock()
	<-frozen
}

type linkConn struct {
	net.Conn
	link *Link
}

func (c *linkConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.link.wait()
	return n, err
}

func (c *linkConn) Write(b []byte) (int, error) {
	c.link.wait()
	return c.Conn.Write(b)
}

// Write deadlines would fire while frozen; a stopped process has none.
func (c *linkConn) SetWriteDeadline(time.Time) error { return nil }
