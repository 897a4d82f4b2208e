package gateway

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

const (
	// offerEvery is how often a worker is offered a direct connection again that has not made use of the last offer.
	offerEvery = 30 * time.Second

	// offerTime is how long an offer holds.
	offerTime = 10 * time.Second

	// greetTime bounds how long a connection takes until it is known whose it is.
	greetTime = 5 * time.Second

	// maxStrangers bounds the connections of which that is not known yet.
	maxStrangers = 256

	// maxHello bounds a DirectHello.
	maxHello = 1 << 10

	// ackTime bounds how long a worker may take no ack: meanwhile its other messages wait, and those of others that the broker
	// brings. One that reads has room for thousands.
	ackTime = 100 * time.Millisecond
)

// directLinks are the connections on which workers of other processes send the messages of their links past the broker.
// Which worker a connection is of is known by the secret of an offer, which only that worker received: the broker delivers
// what is published to a worker to nobody else. The connection has TLS if the gateway's own to the broker has.
type directLinks struct {
	// Fixed after New.
	bus      *bus
	links    *links
	listener net.Listener // nil: there are none
	address  string
	strange  chan struct{} // has an element for each connection of which it is not known whose it is

	mu     sync.Mutex
	sum    []byte
	ready  bool
	offers map[string]directOffer
	open   map[net.Conn]bool
	closed bool
}

// directOffer is an offer that was made to a worker, and not used yet.
type directOffer struct {
	worker string
	secret []byte
	at     time.Time
}

// directConn is the connection of one worker.
type directConn struct{ net.Conn }

// acknowledge sends an ack. A worker that takes none for too long loses the connection.
func (c *directConn) acknowledge(ack subjects.LinkAck) {
	c.SetWriteDeadline(time.Now().Add(ackTime))
	if _, err := c.Write(subjects.Direct(ack)); err != nil {
		c.Close()
	}
}

func newDirectLinks(cfg *Config, b *bus, ls *links) *directLinks {
	d := &directLinks{
		bus: b, links: ls, listener: cfg.Direct, address: cfg.DirectAddress, strange: make(chan struct{}, maxStrangers),
		offers: make(map[string]directOffer), open: make(map[net.Conn]bool),
	}
	if d.address == "" && d.listener != nil {
		d.address = d.listener.Addr().String()
	}
	return d
}

// offer offers a worker a direct connection, if that is due.
func (d *directLinks) offer(worker string) {
	now := time.Now()
	if d.listener == nil || !d.links.offerDue(worker, now) {
		return
	}
	var id [8]byte
	o := subjects.DirectOffer{Gateway: d.bus.id, Address: d.address, Secret: make([]byte, 32)}
	rand.Read(id[:])
	rand.Read(o.Secret)
	o.Offer = hex.EncodeToString(id[:])
	if d.note(&o, worker, now) {
		d.bus.publish(subjects.WorkerDirect(worker), o)
	}
}

// note remembers an offer, and adds the certificate to it. It reports false if connections are not accepted.
func (d *directLinks) note(o *subjects.DirectOffer, worker string, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.ready || d.closed {
		return false
	}
	for id, old := range d.offers {
		if now.Sub(old.at) > offerTime {
			delete(d.offers, id)
		}
	}
	d.offers[o.Offer] = directOffer{worker, o.Secret, now}
	o.Certificate = d.sum
	return true
}

// take returns an offer, once.
func (d *directLinks) take(id string, now time.Time) (o directOffer, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	o, ok = d.offers[id]
	delete(d.offers, id)
	return o, ok && now.Sub(o.at) <= offerTime
}

// run accepts connections until ctx is done, and hands on each message.
func (d *directLinks) run(ctx context.Context, onLink func(worker string, msg []byte)) {
	if d.listener == nil {
		return
	}
	secure, err := d.tls()
	if err != nil {
		d.bus.log.Error("no direct connections of workers", "err", err)
		d.listener.Close()
		return
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	stop := context.AfterFunc(ctx, d.close)
	defer stop()
	for {
		conn, err := d.listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			select { // too many files are open
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case d.strange <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		if !d.keep(conn) {
			conn.Close()
			<-d.strange
			continue
		}
		serving.Go(func() { // until the connection ends; close closes it
			d.serve(conn, secure, onLink)
			d.forget(conn)
			conn.Close()
		})
	}
}

// tls returns how connections are secured; nil if they are not, as the gateway's own to the broker is not.
func (d *directLinks) tls() (*tls.Config, error) {
	var cfg *tls.Config
	var sum []byte
	if _, err := d.bus.nc.TLSConnectionState(); err == nil {
		cert, err := ownCertificate()
		if err != nil {
			return nil, err
		}
		of := sha256.Sum256(cert.Certificate[0])
		cfg, sum = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, of[:]
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sum, d.ready = sum, true
	return cfg, nil
}

// ownCertificate makes a certificate that nobody has signed: the offers say which one it is.
func ownCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// serve takes in the messages of one connection until it ends.
func (d *directLinks) serve(raw net.Conn, secure *tls.Config, onLink func(worker string, msg []byte)) {
	raw.SetDeadline(time.Now().Add(greetTime))
	c := &directConn{raw}
	if secure != nil {
		c.Conn = tls.Server(raw, secure)
	}
	in := bufio.NewReaderSize(c, 16<<10)
	worker, err := d.greet(c, in)
	<-d.strange
	if err != nil {
		d.bus.log.Debug("direct connection refused", "from", raw.RemoteAddr(), "err", err)
		return
	}
	raw.SetDeadline(time.Time{})
	if before := d.links.use(worker, c); before != nil {
		before.Close()
	}
	d.bus.log.Debug("direct connection", "worker", worker)
	defer func() { d.links.unuse(worker, c, time.Now()) }()
	for {
		msg, err := subjects.ReadDirect(in, subjects.MaxDirect)
		if err != nil {
			return
		}
		onLink(worker, msg)
	}
}

// greet finds out whose connection it is.
func (d *directLinks) greet(c *directConn, in *bufio.Reader) (worker string, err error) {
	msg, err := subjects.ReadDirect(in, maxHello)
	if err != nil {
		return "", err
	}
	var hello subjects.DirectHello
	if err := subjects.Unmarshal(msg, &hello); err != nil {
		return "", fmt.Errorf("hello: %w", err)
	}
	o, ok := d.take(hello.Offer, time.Now())
	if !ok || o.worker != hello.Worker || !hmac.Equal(hello.Proof, subjects.WorkerProof(o.secret, o.worker)) {
		return "", errors.New("hello: there is no such offer to that worker")
	}
	_, err = c.Write(subjects.Direct(subjects.DirectWelcome{Proof: subjects.GatewayProof(o.secret, d.bus.id)}))
	return o.worker, err
}

// keep notes an open connection. It reports false if the gateway stops.
func (d *directLinks) keep(conn net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.open[conn] = true
	}
	return !d.closed
}

func (d *directLinks) forget(conn net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.open, conn)
}

// close ends all connections.
func (d *directLinks) close() {
	d.listener.Close()
	d.mu.Lock()
	d.closed = true
	open := make([]net.Conn, 0, len(d.open))
	for conn := range d.open {
		open = append(open, conn)
	}
	d.mu.Unlock()
	for _, conn := range open {
		conn.Close()
	}
}
