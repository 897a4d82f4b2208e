// Package broker runs a NATS server with JetStream inside this process: alone, or as a member of a cluster of such
// processes. Gateways and workers need nothing from it that a stock nats-server of version 2.12 or later does not
// offer. It exists so that one binary is enough to start with, and so that tests have a real broker without a socket.
package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Broker is one NATS server. Make it with [New], then call [Broker.Run] once.
type Broker struct {
	// Fixed after New.
	cfg Config
	log *logBridge

	ready   chan struct{}                  // closed by Run when the server has accepted connections for the first time
	server  atomic.Pointer[server.Server]  // the server that runs; Run replaces it after a write error
	options atomic.Pointer[server.Options] // of the next one; Run completes them, Reload replaces them. What it points to is not changed
}

// New checks cfg, reading the files that it names, and starts nothing.
func New(cfg Config) (*Broker, error) {
	options, err := cfg.options()
	if err != nil {
		return nil, err
	}
	b := &Broker{
		cfg:   cfg,
		log:   newLogBridge(cfg.Logger),
		ready: make(chan struct{}),
	}
	b.options.Store(options)
	return b, nil
}

// Run serves until ctx ends, and returns when the server has stopped and its store is closed. It returns nil if ctx
// ended it. A broker runs once.
//
// A single server stops at once: finish what is in flight before. A member of a cluster first hands its leaderships
// over to the other members, which takes about a second, and then asks its clients to reconnect elsewhere.
//
// A write to the store that fails, because the disk is full or read-only, makes the server give up the stream, or all of
// JetStream, for good. Then Run waits until the store can be written, and starts the server again: see [recovery].
func (b *Broker) Run(ctx context.Context) error {
	r := recovery{dir: b.cfg.StoreDir, log: b.log}
	for {
		err := b.serve(ctx, &r)
		switch {
		case errors.Is(err, errStoreWritable):
		case err == nil || !r.restarted:
			return err
		default: // it has started before
			r.say("the server does not start again; trying again", err)
			r.wait(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// serve runs one server until ctx ends, or until it has to be started again: errStoreWritable.
func (b *Broker) serve(ctx context.Context, r *recovery) error {
	store, err := openStore(b.cfg.StoreDir)
	if err != nil {
		return err
	}
	defer store.close()
	options := b.options.Load().Clone() // the server writes to it
	if options.ServerName == "" {
		if options.ServerName, err = store.serverName(); err != nil {
			return err
		}
	}

	b.log.forget()
	s, err := server.NewServer(options)
	if err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	s.SetLogger(b.log, false, false)
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if err := b.waitReady(ctx, s); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	b.server.Store(s)
	if r.restarted {
		r.restarted, r.said = false, ""
		b.log.Warn("the server has started again: the streams on disk can be written")
	} else {
		b.keep(s, options.ServerName)
		b.warnIfOpen()
		close(b.ready)
	}

	select {
	case <-ctx.Done():
	case err := <-b.log.fatal:
		return b.explain(err)
	case why := <-b.log.gaveUp:
		if b.clustered() {
			handOver(s, b.cfg.StoreDir)
		}
		if r.untilWritable(ctx, why) {
			err = errStoreWritable
		}
	}
	if b.clustered() {
		s.LameDuckShutdown()
	}
	return err
}

// keep makes a server that is started again have the name of s, and listen where s does, if s chose a port.
func (b *Broker) keep(s *server.Server, name string) {
	options := b.options.Load().Clone()
	options.ServerName = name
	if addr, ok := s.Addr().(*net.TCPAddr); ok {
		options.Port = addr.Port
	}
	if addr := s.ClusterAddr(); addr != nil && b.clustered() {
		options.Cluster.Port = addr.Port
	}
	b.options.Store(options)
}

// Reload reads the configuration again, with the files that it names, and puts in force what has changed: accounts, users,
// permissions and certificates above all. A change that needs a restart, such as another address, is an error, and so is a
// file that is not valid; then nothing changes. It may be called when the broker is ready.
func (b *Broker) Reload() error {
	select {
	case <-b.ready:
	default:
		return errors.New("broker is not ready")
	}
	was := b.options.Load()
	for range 2 { // nats-server 2.15.2 lets a new account use what it imports only from the second time on
		options, err := b.cfg.options()
		if err != nil {
			return err
		}
		options.ServerName = cmp.Or(options.ServerName, was.ServerName)
		if options.Port == server.RANDOM_PORT {
			options.Port = was.Port
		}
		if options.Cluster.Port == server.RANDOM_PORT {
			options.Cluster.Port = was.Cluster.Port
		}
		b.options.Store(options.Clone())
		if err := b.server.Load().ReloadOptions(options); err != nil {
			b.options.Store(was)
			return fmt.Errorf("broker: %w", err)
		}
	}
	return nil
}

// waitReady returns when s accepts connections, when ctx ends, or with the reason why s never will. After Start
// returns, only the listener for a cluster's routes may still be opening.
func (b *Broker) waitReady(ctx context.Context, s *server.Server) error {
	for ctx.Err() == nil {
		select {
		case err := <-b.log.fatal:
			return b.explain(err)
		default:
		}
		if s.ReadyForConnections(100 * time.Millisecond) {
			return nil
		}
	}
	return nil
}

// explain names the invalid setting in an error that the server reported only in its log.
func (b *Broker) explain(err error) error {
	text := err.Error()
	reason := strings.Trim(text[strings.LastIndex(text, ": ")+1:], ` "`)
	switch {
	case strings.Contains(text, "listening on port"):
		return fmt.Errorf("listen on %s: %s", b.cfg.Listen, reason)
	case strings.Contains(text, "listening on router port"):
		return fmt.Errorf("cluster listen on %s: %s", b.cfg.ClusterListen, reason)
	}
	return fmt.Errorf("broker: %w", err)
}

// warnIfOpen logs a warning if the broker can be reached from other machines without credentials.
func (b *Broker) warnIfOpen() {
	o := b.options.Load()
	open := o.Username == "" && o.Authorization == "" && len(o.Users) == 0 && len(o.Nkeys) == 0 &&
		len(o.TrustedOperators) == 0 && o.AuthCallout == nil && !o.TLSVerify
	if !o.DontListen && open && !isLoopback(o.Host) {
		b.log.Warn("broker listens beyond this machine and asks for no credentials: anyone who reaches it can read and write every request", "listen", b.cfg.Listen)
	}
	if b.clustered() && o.Cluster.Username == "" && o.Cluster.TLSConfig == nil && !isLoopback(o.Cluster.Host) {
		b.log.Warn("broker takes routes from beyond this machine without credentials: anyone who reaches it can join the cluster", "cluster_listen", b.cfg.ClusterListen)
	}
}

func (b *Broker) clustered() bool { return b.options.Load().Cluster.Port != 0 }

// Ready is closed when the broker accepts connections. It is never closed if Run fails before that, so wait for the end
// of Run as well. A member of a cluster is ready before the cluster has a leader: JetStream requests may still time out
// for a few seconds.
func (b *Broker) Ready() <-chan struct{} { return b.ready }

// ClientURL is the URL for clients on this machine, with the actual port. It is empty before [Broker.Ready] and for a
// broker that serves this process only.
func (b *Broker) ClientURL() string {
	addr := b.addr((*server.Server).Addr)
	if addr == "" {
		return ""
	}
	u := url.URL{Scheme: "nats", Host: addr}
	if b.options.Load().TLSConfig != nil {
		u.Scheme = "tls"
	}
	return u.String()
}

// ClusterAddr is the host:port on which this member accepts routes; empty before [Broker.Ready] and outside a cluster.
func (b *Broker) ClusterAddr() string {
	return b.addr(func(s *server.Server) net.Addr {
		if a := s.ClusterAddr(); a != nil {
			return a
		}
		return nil
	})
}

// addr is an address of the running server in the form that a client on this machine dials.
func (b *Broker) addr(of func(*server.Server) net.Addr) string {
	select {
	case <-b.ready:
	default:
		return ""
	}
	tcp, ok := of(b.server.Load()).(*net.TCPAddr)
	if !ok {
		return ""
	}
	host := tcp.IP.String()
	if tcp.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}

// InProcessConn opens a client connection without a socket, so that nats.InProcessServer(b) is all that a client in
// this process needs. It requires credentials like any other connection.
func (b *Broker) InProcessConn() (net.Conn, error) {
	select {
	case <-b.ready:
		return b.server.Load().InProcessConn()
	default:
		return nil, errors.New("broker is not ready")
	}
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
