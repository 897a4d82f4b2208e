package worker

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
)

// greeter answers the hello on a connection as a gateway that knows the secret, or claims to, and keeps the connection until the
// worker closes it.
func greeter(t *testing.T, conn net.Conn, gateway string, secret []byte) {
	t.Helper()
	defer conn.Close()
	msg, err := subjects.ReadDirect(conn, maxAck)
	if err != nil {
		return
	}
	var hello subjects.DirectHello
	if err := subjects.Unmarshal(msg, &hello); err != nil {
		t.Error(err)
	}
	conn.Write(subjects.Direct(subjects.DirectWelcome{Proof: subjects.GatewayProof(secret, gateway)}))
	io.Copy(io.Discard, conn)
}

// A worker sends answers only to the gateway that made the offer: one that knows its secret, and has its certificate.
func TestDirectConnectionIsOfTheGateway(t *testing.T) {
	cert, sum := certificate(t)
	_, other := certificate(t)
	secret := []byte("0123456789abcdef")
	for about, c := range map[string]struct {
		certificate []byte // of the offer
		tls         bool
		gateway     string // that answers
		secret      []byte
		good        bool
	}{
		"without TLS":                            {gateway: "g", secret: secret, good: true},
		"with TLS":                               {certificate: sum, tls: true, gateway: "g", secret: secret, good: true},
		"another certificate":                    {certificate: other, tls: true, gateway: "g", secret: secret},
		"TLS was offered, and there is none":     {certificate: sum, gateway: "g", secret: secret},
		"another secret":                         {gateway: "g", secret: []byte("fedcba9876543210")},
		"another gateway with the same secret":   {gateway: "h", secret: secret},
		"another secret, in the name of TLS too": {certificate: sum, tls: true, gateway: "g", secret: []byte("x")},
	} {
		t.Run(about, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var greeting sync.WaitGroup
				defer greeting.Wait()
				ls := &links{worker: "w", log: slog.New(slog.DiscardHandler), dial: func(context.Context, string, string) (net.Conn, error) {
					client, server := net.Pipe()
					if c.tls {
						server = tls.Server(server, &tls.Config{Certificates: []tls.Certificate{cert}})
					}
					greeting.Go(func() { greeter(t, server, c.gateway, c.secret) }) // ends with the connection
					return client, nil
				}}
				conn, err := ls.connect(&subjects.DirectOffer{Gateway: "g", Address: "x:1", Offer: "1", Secret: secret, Certificate: c.certificate})
				if (err == nil) != c.good {
					t.Errorf("%v, want a connection: %t", err, c.good)
				}
				if err == nil {
					conn.Close()
				}
			})
		})
	}
}

func certificate(t *testing.T) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, sum[:]
}

// A worker whose broker is on another machine does not look for a gateway on its own.
func TestLoopbackAddresses(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:80": true, "127.9.9.9:80": true, "[::1]:80": true, "[::ffff:127.0.0.1]:80": true, "localhost:80": true, "pipe": true,
		"10.0.0.1:80": false, "[fe80::1%eth0]:80": false, "gateway-1:80": false, "0.0.0.0:80": false,
	} {
		if got := onLoopback(address); got != want {
			t.Errorf("%s: %t, want %t", address, got, want)
		}
	}
}

// BenchmarkLink is an item of a stream alone, through a link with a direct connection.
func BenchmarkLink(b *testing.B) {
	client, server := net.Pipe()
	defer client.Close()
	go func() { // ends with the connection
		for {
			if _, err := subjects.ReadDirect(server, subjects.MaxDirect); err != nil {
				return
			}
		}
	}()
	l := newLink(new(nats.Conn), "to", "gone")
	l.most = subjects.MaxFrame
	l.use(&direct{conn: client})
	token := make([]byte, 300)
	b.ReportAllocs()
	for b.Loop() {
		l.add(subjects.ItemFrames, token, only)
		l.acknowledge(subjects.LinkAck{Next: l.last + 1})
	}
}
