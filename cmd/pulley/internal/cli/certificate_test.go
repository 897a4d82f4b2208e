package cli_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
)

// authority issues certificates for 127.0.0.1, in files.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{cert: &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}}
	a.pem, a.key = a.sign(t, a.cert)
	return a
}

// sign returns a certificate in PEM with its key; the authority's own before it has one.
func (a *authority) sign(t *testing.T, c *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := a.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key
}

// issue returns a certificate and its key in PEM.
func (a *authority) issue(t *testing.T, name string) (cert, key []byte) {
	t.Helper()
	cert, k := a.sign(t, &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (a *authority) pair(t *testing.T, name string) tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(a.issue(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// folder holds the files of a test.
type folder struct {
	t   *testing.T
	dir string
}

func (f folder) path(name string) string { return filepath.Join(f.dir, name) }

// write replaces a file as a whole, with a time of its own.
func (f folder) write(name string, text []byte) string {
	f.t.Helper()
	if err := os.WriteFile(f.path(name+".new"), text, 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path(name+".new"), f.path(name)); err != nil {
		f.t.Fatal(err)
	}
	return f.path(name)
}

// A listener has the certificates and authorities that are in the files, for each connection.
func TestListenerCertificatesAreReplaced(t *testing.T) {
	var log clitest.Buffer
	dir, first, second := folder{t, t.TempDir()}, newAuthority(t, "first"), newAuthority(t, "second")
	put := func(a *authority, name string) {
		cert, key := a.issue(t, name)
		dir.write("cert", cert)
		dir.write("key", key)
	}
	put(first, "one")
	dir.write("ca", first.pem)
	cfg, err := cli.ServerTLS(dir.path("cert"), dir.path("key"), dir.path("ca"), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if c.(*tls.Conn).Handshake() == nil {
				c.Write([]byte("x"))
			}
			c.Close()
		}
	}()
	defer func() {
		l.Close()
		<-served
	}()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(first.pem)
	pool.AppendCertsFromPEM(second.pem)
	sessions := tls.NewLRUClientSessionCache(10)
	dial := func(own ...tls.Certificate) (name string, err error) {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: pool, Certificates: own, ClientSessionCache: sessions})
		if err != nil {
			return "", err
		}
		defer c.Close()
		if _, err := c.Read(make([]byte, 1)); err != nil {
			return "", err
		}
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
	}
	ours, theirs := first.pair(t, "client"), second.pair(t, "client")
	if name, err := dial(ours); err != nil || name != "one" {
		t.Errorf("got %q, %v", name, err)
	}
	if _, err := dial(theirs); err == nil {
		t.Error("a client of another authority is let in")
	}
	own := sessions
	sessions = tls.NewLRUClientSessionCache(10)
	if _, err := dial(); err == nil {
		t.Error("a client without a certificate is let in")
	}
	sessions = own // what could be resumed

	put(second, "two")
	dir.write("ca", second.pem)
	if _, err := dial(ours); err == nil {
		t.Error("a client of the authority of before is let in")
	}
	if name, err := dial(theirs); err != nil || name != "two" {
		t.Errorf("replaced: got %q, %v", name, err)
	}
	cert, key := second.issue(t, "three")
	dir.write("cert", cert) // without its key yet
	if name, err := dial(theirs); err != nil || name != "two" {
		t.Errorf("half replaced: got %q, %v", name, err)
	}
	log.WaitFor(t, "certificates of the listener not read")
	dir.write("key", key)
	if name, err := dial(theirs); err != nil || name != "three" {
		t.Errorf("replaced as a whole: got %q, %v", name, err)
	}
	os.Remove(dir.path("ca"))
	if name, err := dial(theirs); err != nil || name != "three" {
		t.Errorf("without a file: got %q, %v", name, err)
	}
	if n := strings.Count(log.String(), "not read"); n != 2 {
		t.Errorf("%d warnings:\n%s", n, log.String())
	}
}

func TestListenerCertificatesThatAreWrong(t *testing.T) {
	dir, a := folder{t, t.TempDir()}, newAuthority(t, "first")
	cert, key := a.issue(t, "one")
	_, other := a.issue(t, "two")
	dir.write("cert", cert)
	dir.write("key", key)
	dir.write("other", other)
	for about, files := range map[string][3]string{
		"no certificate":     {"none", "key", ""},
		"no key":             {"cert", "none", ""},
		"another key":        {"cert", "other", ""},
		"no authorities":     {"cert", "key", "none"},
		"authorities in DER": {"cert", "key", "key"},
	} {
		ca := ""
		if files[2] != "" {
			ca = dir.path(files[2])
		}
		if _, err := cli.ServerTLS(dir.path(files[0]), dir.path(files[1]), ca, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: no error", about)
		}
	}
}

// A broker that gets new certificates of a new authority, and wants new ones of its clients, has them back.
func TestCertificatesForNATSChange(t *testing.T) {
	dir, first, second := folder{t, t.TempDir()}, newAuthority(t, "first"), newAuthority(t, "second")
	brokerOf := func(a *authority, listen string) broker.Config {
		cert, key := a.issue(t, "broker")
		name := a.cert.Subject.CommonName
		return broker.Config{Listen: listen, TLSCert: dir.write(name+".cert", cert), TLSKey: dir.write(name+".key", key), TLSCA: dir.write(name+".ca", a.pem), TLSVerify: true}
	}
	client := func(a *authority) {
		cert, key := a.issue(t, "client")
		dir.write("cert", cert)
		dir.write("key", key)
		dir.write("ca", a.pem)
	}
	client(first)
	url, stop := clitest.Broker(t, brokerOf(first, ""))
	var log clitest.Buffer
	ctx := cli.WithLogger(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
	nc, err := parseConnect(t, "--nats", url, "--tls-ca", dir.path("ca"), "--tls-cert", dir.path("cert"), "--tls-key", dir.path("key")).ConnectPatiently(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	stop()
	_, host, _ := strings.Cut(url, "://")
	clitest.Broker(t, brokerOf(second, host))
	log.WaitFor(t, "disconnected from NATS")
	time.Sleep(500 * time.Millisecond) // it tries, and is refused
	if nc.IsConnected() {
		t.Error("connected to a broker of another authority")
	}
	client(second)
	log.WaitFor(t, "reconnected to NATS")
	if err := nc.Flush(); err != nil {
		t.Error(err)
	}
}
