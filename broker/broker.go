// Package broker runs a NATS server with JetStream inside this process: alone, or as a member of a cluster of such
// processes. Gateways and workers need nothing from it that a stock nats-server of version 2.12 or later does not
// offer. It exists so that one binary is enough to start with, and so that tests have a real broker without a socket.
package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Broker is one NATS server. Make it with [New], then call [Broker.Run] once.
type Broker struct {
	// Fixed after New.
	cfg     Config
	options *server.Options
	log     *logBridge

	// Closed by Run. The fields below are written before that and only read afterwards.
	ready  chan struct{}
	server *server.Server
}

// New checks cfg, reading the files that it names, and starts nothing.
func New(cfg Config) (*Broker, error) {
	options, err := cfg.options()
	if err != nil {
		return nil, err
	}
	return &Broker{
		cfg:     cfg,
		options: options,
		log:     newLogBridge(cfg.Logger),
		ready:   make(chan struct{}),
	}, nil
}

// Run serves until ctx ends, and returns when the server has stopped and its store is closed. It returns nil if ctx
// ended it. A broker runs once.
//
// A single server stops at once: finish what is in flight before. A member of a cluster first hands its leaderships
// over to the other members, which takes about a second, and then asks its clients to reconnect elsewhere.
func (b *Broker) Run(ctx context.Context) error {
	store, err := openStore(b.cfg.StoreDir)
	if err != nil {
		return err
	}
	defer store.close()
	if b.options.ServerName == "" {
		if b.options.ServerName, err = store.serverName(); err != nil {
			return err
		}
	}

	s, err := server.NewServer(b.options)
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
	b.warnIfOpen()
	b.server = s
	close(b.ready)

	select {
	case <-ctx.Done():
	case err := <-b.log.fatal:
		return b.explain(err)
	}
	if b.clustered() {
		s.LameDuckShutdown()
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
	o := b.options
	open := o.Username == "" && o.Authorization == "" && len(o.Users) == 0 && len(o.Nkeys) == 0 &&
		len(o.TrustedOperators) == 0 && o.AuthCallout == nil && !o.TLSVerify
	if !o.DontListen && open && !isLoopback(o.Host) {
		b.log.Warn("broker listens beyond this machine and asks for no credentials: anyone who reaches it can read and write every request", "listen", b.cfg.Listen)
	}
	if b.clustered() && o.Cluster.Username == "" && o.Cluster.TLSConfig == nil && !isLoopback(o.Cluster.Host) {
		b.log.Warn("broker takes routes from beyond this machine without credentials: anyone who reaches it can join the cluster", "cluster_listen", b.cfg.ClusterListen)
	}
}

func (b *Broker) clustered() bool { return b.options.Cluster.Port != 0 }

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
	if b.options.TLSConfig != nil {
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
	tcp, ok := of(b.server).(*net.TCPAddr)
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
		return b.server.InProcessConn()
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
