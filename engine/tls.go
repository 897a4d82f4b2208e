package engine

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"
)

// TLS says how to call an engine whose URL has https. The zero value trusts the system's certificate authorities.
type TLS struct {
	// CA is a PEM file with the certificate authorities to trust in place of the system's. Default "".
	CA string
	// Cert and Key are PEM files with a client certificate and its key, for an engine that wants one. Default "".
	Cert, Key string
	// Insecure accepts any certificate: whoever can get between the worker and the engine reads and changes everything,
	// the key included. Default false.
	Insecure bool
}

// Given reports whether anything differs from the default.
func (t TLS) Given() bool { return t != TLS{} }

func (t TLS) check() error {
	if (t.Cert == "") != (t.Key == "") {
		return errors.New("a client certificate and its key are given together")
	}
	if t.CA != "" && t.Insecure {
		return errors.New("certificate authorities are of no use if certificates are not verified")
	}
	return nil
}

// read reads the files. content is all that they have.
func (t TLS) read() (content []byte, cfg *tls.Config, err error) {
	cfg = &tls.Config{InsecureSkipVerify: t.Insecure}
	var all bytes.Buffer
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, nil, fmt.Errorf("%s has no certificate in PEM", t.CA)
		}
		all.Write(pem)
	}
	if t.Cert != "" {
		cert, err := os.ReadFile(t.Cert)
		if err != nil {
			return nil, nil, err
		}
		key, err := os.ReadFile(t.Key)
		if err != nil {
			return nil, nil, err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, nil, fmt.Errorf("client certificate %s: %w", t.Cert, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
		all.Write(cert)
		all.Write(key)
	}
	return all.Bytes(), cfg, nil
}

// recheckTLS is how often the files of TLS are read again at most.
const recheckTLS = 10 * time.Second

// tlsTransport is a transport whose files of TLS are read again. Connections that are in use keep what they began with.
type tlsTransport struct {
	cfg TLS             // fixed
	std *http.Transport // fixed; the settings of each transport

	mu      sync.Mutex
	read    time.Time // when the files were last read, or begun to be
	content []byte    // what they had
	now     *http.Transport
	failing string // why they could not be used the last time; empty: they could
}

func newTLSTransport(cfg TLS, std *http.Transport) (*tlsTransport, error) {
	t := &tlsTransport{cfg: cfg, std: std, read: time.Now()}
	content, config, err := cfg.read()
	if err != nil {
		return nil, err
	}
	t.content, t.now = content, t.with(config)
	return t, nil
}

func (t *tlsTransport) with(config *tls.Config) *http.Transport {
	std := t.std.Clone()
	std.TLSClientConfig, std.ForceAttemptHTTP2 = config, true
	return std
}

// refresh reads the files again if it is time to, or if the caller must know.
func (t *tlsTransport) refresh(must bool, at time.Time) (news reread) {
	t.mu.Lock()
	due := t.cfg.CA+t.cfg.Cert != "" && (must || at.Sub(t.read) >= recheckTLS)
	if due {
		t.read = at
	}
	t.mu.Unlock()
	if !due {
		return news
	}
	content, config, err := t.cfg.read()
	t.mu.Lock()
	if err != nil {
		if t.failing != err.Error() {
			t.failing = err.Error()
			news.failed = t.failing
		}
		t.mu.Unlock()
		return news
	}
	t.failing = ""
	if bytes.Equal(content, t.content) {
		t.mu.Unlock()
		return news
	}
	old := t.now
	t.content, t.now = content, t.with(config)
	t.mu.Unlock()
	old.CloseIdleConnections()
	return reread{changed: true}
}

func (t *tlsTransport) current() *http.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.now
}

// untrusted reports whether a call failed because the engine's certificate is not accepted.
func untrusted(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}
