package chaos

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Proxy is the network between two parts: TCP connections that can be held, delayed and refused. Bytes that are held or
// delayed keep their order, as on a network that sends again what it lost.
type Proxy struct {
	addr string // where it listens

	passed  atomic.Int64 // bytes
	held    atomic.Int64 // bytes that came while the network was cut
	delayed atomic.Int64 // bytes that were delayed
	cuts    atomic.Int64 // connections that were broken or refused

	mu       sync.Mutex
	to       string        // where it connects to
	open     chan struct{} // closed while bytes pass
	delay    time.Duration
	listener net.Listener
	conns    map[net.Conn]bool
	closed   bool
	wg       sync.WaitGroup
}

// NewProxy listens on a free port of loopback, and connects to an address for each connection that it gets.
func NewProxy(to string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{addr: l.Addr().String(), to: to, open: make(chan struct{}), conns: make(map[net.Conn]bool)}
	close(p.open)
	p.serve(l)
	return p, nil
}

// Addr is the address on which it listens.
func (p *Proxy) Addr() string { return p.addr }

// Passed, Held and Delayed count the bytes that passed, that came while the network was cut, and that were delayed.
func (p *Proxy) Passed() int64  { return p.passed.Load() }
func (p *Proxy) Held() int64    { return p.held.Load() }
func (p *Proxy) Delayed() int64 { return p.delayed.Load() }

func (p *Proxy) serve(l net.Listener) {
	p.mu.Lock()
	p.listener = l
	p.mu.Unlock()
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.relay(c) })
		}
	})
}

func (p *Proxy) relay(from net.Conn) {
	defer p.drop(from)
	if !p.keep(from) {
		return
	}
	p.pass() // a cut network does not connect either
	p.mu.Lock()
	addr := p.to
	p.mu.Unlock()
	to, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		reset(from)
		return
	}
	defer p.drop(to)
	if !p.keep(to) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.pump(to, from) })
	both.Go(func() { p.pump(from, to) })
	both.Wait()
}

type chunk struct {
	bytes []byte
	due   time.Time
}

// pump copies what one end sends to the other, later if the network is slow, and not while it is cut.
func (p *Proxy) pump(to, from net.Conn) {
	chunks := make(chan chunk, 1024)
	var writing sync.WaitGroup
	writing.Go(func() {
		for c := range chunks {
			if wait := time.Until(c.due); wait > 0 {
				time.Sleep(wait)
			}
			p.pass()
			if _, err := to.Write(c.bytes); err != nil {
				from.Close()
				for range chunks { // until the reader notices
				}
				return
			}
			p.passed.Add(int64(len(c.bytes)))
		}
		if c, ok := to.(*net.TCPConn); ok {
			c.CloseWrite()
		}
	})
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			delay, open := p.state()
			if delay > 0 {
				p.delayed.Add(int64(n))
			}
			if !open {
				p.held.Add(int64(n))
			}
			chunks <- chunk{append([]byte(nil), buf[:n]...), time.Now().Add(delay)}
		}
		if err != nil {
			if err != io.EOF {
				reset(to)
			}
			break
		}
	}
	close(chunks)
	writing.Wait()
}

func (p *Proxy) state() (delay time.Duration, open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
		return p.delay, true
	default:
		return p.delay, false
	}
}

// pass returns when bytes may pass.
func (p *Proxy) pass() {
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	<-open
}

func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.conns[c] = true
	return true
}

func (p *Proxy) drop(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// SetTo changes where new connections lead to.
func (p *Proxy) SetTo(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = addr
}

// Cut lets nothing pass until Heal. The connections stay, as they do when a network is cut.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
		p.open = make(chan struct{})
	default:
	}
}

// Delay makes each byte take this much longer until Heal.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Refuse breaks all connections, and refuses new ones until Heal, as a host whose process has crashed.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	p.listener.Close()
	conns := p.conns
	p.conns = make(map[net.Conn]bool)
	p.mu.Unlock()
	for c := range conns {
		p.cuts.Add(1)
		reset(c)
	}
}

// Heal ends a cut, a delay and a refusal.
func (p *Proxy) Heal() error {
	p.mu.Lock()
	p.delay = 0
	select {
	case <-p.open:
	default:
		close(p.open)
	}
	listener, closed := p.listener, p.closed
	p.mu.Unlock()
	if closed || !isClosed(listener) {
		return nil
	}
	var err error
	for range 50 { // another process may have got the port for a moment
		var l net.Listener
		if l, err = net.Listen("tcp", p.addr); err == nil {
			p.serve(l)
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("listen on %s again: %w", p.addr, err)
}

func isClosed(l net.Listener) bool {
	err := l.(*net.TCPListener).SetDeadline(time.Time{})
	return err != nil
}

// Close breaks everything and returns when nothing is left.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Heal()
	p.Refuse()
	p.wg.Wait()
}

// reset closes a connection so that the other end notices that it broke.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}
