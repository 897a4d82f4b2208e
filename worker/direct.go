package worker

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
)

const (
	// directTime bounds how long it takes to open a direct connection.
	directTime = 2 * time.Second

	// directWrite bounds how long a gateway may take nothing from a direct connection. Meanwhile the answers for it wait.
	directWrite = 2 * time.Second

	// maxAck bounds a message of a gateway on a direct connection.
	maxAck = 4 << 10
)

// dialer opens a connection.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// direct is a connection to a gateway past the broker, on which the messages of a link go. It is no other way to lose or to
// reorder them: they keep their numbers, and what was not acknowledged when it breaks is sent again through the broker.
type direct struct {
	conn     net.Conn
	extended time.Time // when the time to write was last extended; owned by the holder of link.turn
}

// write sends a message that has its header.
func (d *direct) write(msg []byte) error {
	if now := time.Now(); now.Sub(d.extended) > directWrite/4 { // not for each message: setting a deadline has a cost
		d.extended = now
		d.conn.SetWriteDeadline(now.Add(directWrite))
	}
	_, err := d.conn.Write(msg)
	return err
}

// onOffer takes up a gateway's offer of a direct connection, if this worker sends it anything and has none.
func (ls *links) onOffer(m *nats.Msg) {
	var o subjects.DirectOffer
	if subjects.Unmarshal(m.Data, &o) != nil || !ls.reaches(o.Address) {
		return
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.byGateway[o.Gateway]; l != nil && !ls.closed {
		ls.directs.Go(func() { ls.follow(l, &o) }) // until the connection ends; the link closes it
	}
}

// reaches reports whether an address may be that of the gateway. One on loopback is on this machine only if the broker is.
func (ls *links) reaches(address string) bool {
	return !onLoopback(address) || onLoopback(ls.nc.LocalAddr())
}

// onLoopback reports whether an address is on loopback. One that is no address is: it is of this process.
func onLoopback(address string) bool {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		host, _, err := net.SplitHostPort(address)
		return err != nil || host == "localhost"
	}
	return at.Addr().Unmap().IsLoopback()
}

// follow opens a direct connection, has the link use it, and takes in the acks until it ends.
func (ls *links) follow(l *link, o *subjects.DirectOffer) {
	if l.current() != nil {
		return
	}
	conn, err := ls.connect(o)
	if err != nil {
		ls.log.Debug("no direct connection to a gateway; its answers go through the broker", "gateway", o.Gateway, "address", o.Address, "err", err)
		return
	}
	d := &direct{conn: conn}
	if !l.use(d) {
		conn.Close()
		return
	}
	ls.log.Info("answers go directly to a gateway", "gateway", o.Gateway, "address", o.Address)
	for {
		msg, err := subjects.ReadDirect(conn, maxAck)
		if err != nil {
			break
		}
		var ack subjects.LinkAck
		if subjects.Unmarshal(msg, &ack) == nil && l.acknowledge(ack) {
			l.timer.Reset(0) // not here: while nobody reads, the gateway may take nothing
		}
	}
	if l.onDirectLost(d) {
		ls.log.Info("answers go to a gateway through the broker", "gateway", o.Gateway)
		l.resend(false, time.Now())
	}
}

// connect opens the connection of an offer. Both sides prove that they know its secret.
func (ls *links) connect(o *subjects.DirectOffer) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), directTime)
	defer cancel()
	conn, err := ls.dial(ctx, "tcp", o.Address)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(directTime))
	if len(o.Certificate) > 0 {
		conn = tls.Client(conn, &tls.Config{
			InsecureSkipVerify: true, // the offer says which certificate it is
			VerifyConnection: func(cs tls.ConnectionState) error {
				if len(cs.PeerCertificates) == 0 {
					return errors.New("no certificate")
				}
				if sum := sha256.Sum256(cs.PeerCertificates[0].Raw); !bytes.Equal(sum[:], o.Certificate) {
					return errors.New("not the certificate of the offer")
				}
				return nil
			},
		})
	}
	if err := greet(conn, o, ls.worker); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, conn.SetDeadline(time.Time{})
}

func greet(conn net.Conn, o *subjects.DirectOffer, worker string) error {
	hello := subjects.DirectHello{Offer: o.Offer, Worker: worker, Proof: subjects.WorkerProof(o.Secret, worker)}
	if _, err := conn.Write(subjects.Direct(hello)); err != nil {
		return err
	}
	msg, err := subjects.ReadDirect(conn, maxAck)
	if err != nil {
		return err
	}
	var welcome subjects.DirectWelcome
	if err := subjects.Unmarshal(msg, &welcome); err != nil {
		return fmt.Errorf("welcome: %w", err)
	}
	if !hmac.Equal(welcome.Proof, subjects.GatewayProof(o.Secret, o.Gateway)) {
		return errors.New("welcome: not of the gateway that made the offer")
	}
	return nil
}

// close ends all links, and returns when their direct connections have ended.
func (ls *links) close() {
	ls.mu.Lock()
	ls.closed = true
	ls.mu.Unlock()
	for _, l := range ls.all() {
		l.close()
	}
	ls.directs.Wait()
}

func (l *link) current() *direct {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.direct
}

// use has messages go by a direct connection from now on. It reports false if the link is closed or has one.
func (l *link) use(d *direct) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.direct != nil {
		return false
	}
	l.direct = d
	return true
}

// onDirectLost has messages go through the broker again, beginning with those that are not acknowledged. It reports false if
// the connection was not in use any more.
func (l *link) onDirectLost(d *direct) bool {
	d.conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.direct != d {
		return false
	}
	l.direct, l.next = nil, 0
	return !l.closed
}
