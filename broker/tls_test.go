package broker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/broker"
)

func TestTLS(t *testing.T) {
	cert, key := selfSigned(t)
	b, _ := start(t, broker.Config{
		Listen: "127.0.0.1:0", StoreDir: t.TempDir(),
		TLSCert: cert, TLSKey: key, TLSCA: cert, TLSVerify: true,
	})
	connect(t, b.ClientURL(), nats.RootCAs(cert), nats.ClientCert(cert, key))
	connect(t, "", nats.InProcessServer(b))
	if nc, err := nats.Connect(b.ClientURL(), nats.RootCAs(cert)); err == nil {
		nc.Close()
		t.Error("connected without a client certificate, want a failed handshake")
	}
}

// selfSigned makes a self-signed certificate for 127.0.0.1.
func selfSigned(t testing.TB) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:         true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: cert},
		keyFile:  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}
