package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// A direct connection with TLS shows the certificate that the offers name, and carries messages and acks. A later one of the
// same worker takes its place.
func TestDirectConnectionWithTLS(t *testing.T) {
	cert, err := ownCertificate()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.Certificate[0])
	b := &bus{id: "g", log: slog.New(slog.DiscardHandler)}
	ls := newLinks(b)
	d := newDirectLinks(&Config{}, b, ls)
	d.ready, d.sum = true, sum[:]
	got := make(chan []byte, 1)
	dial := func(offer string) net.Conn {
		t.Helper()
		o := subjects.DirectOffer{Offer: offer, Secret: []byte("secret " + offer)}
		if !d.note(&o, "w", time.Now()) || !bytes.Equal(o.Certificate, sum[:]) {
			t.Fatalf("offer %+v", o)
		}
		client, server := net.Pipe()
		d.strange <- struct{}{}
		go d.serve(server, &tls.Config{Certificates: []tls.Certificate{cert}}, func(_ string, msg []byte) { got <- msg }) // ends with the connection
		conn := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
		if err := conn.HandshakeContext(context.Background()); err != nil {
			t.Fatal(err)
		}
		if shown := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].Raw); shown != sum {
			t.Error("another certificate than that of the offers")
		}
		conn.Write(subjects.Direct(subjects.DirectHello{Offer: offer, Worker: "w", Proof: subjects.WorkerProof(o.Secret, "w")}))
		msg, err := subjects.ReadDirect(conn, 1<<10)
		if err != nil {
			t.Fatal(err)
		}
		var welcome subjects.DirectWelcome
		if err := subjects.Unmarshal(msg, &welcome); err != nil || !bytes.Equal(welcome.Proof, subjects.GatewayProof(o.Secret, "g")) {
			t.Fatalf("welcome %s: %v", msg, err)
		}
		return conn
	}
	one := dial("1")
	msg := append(make([]byte, subjects.DirectHeader), "message"...)
	binary.BigEndian.PutUint32(msg, 7)
	one.Write(msg)
	if m := <-got; string(m) != "message" {
		t.Errorf("got %q", m)
	}
	two := dial("2")
	if _, err := subjects.ReadDirect(one, 1<<10); err == nil {
		t.Error("the older connection goes on")
	}
	go ls.acknowledgeTo("w", subjects.LinkAck{Next: 5}) // ends with the write
	var ack subjects.LinkAck
	if m, err := subjects.ReadDirect(two, 1<<10); err != nil || subjects.Unmarshal(m, &ack) != nil || ack.Next != 5 {
		t.Errorf("ack %s, %v", m, err)
	}
	if n := ls.directCount(); n != 1 {
		t.Errorf("%d direct workers, want 1", n)
	}
	two.Close()
}
