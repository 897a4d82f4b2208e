package engine_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
)

func TestParseAddress(t *testing.T) {
	for raw, want := range map[string]engine.Address{
		"http://h:8000":               {URL: "http://h:8000"},
		"http://h:8000/":              {URL: "http://h:8000"},
		"http://h:8000/v1":            {URL: "http://h:8000"},
		"http://h:8000/v1/":           {URL: "http://h:8000"},
		"HTTP://h:8000//":             {URL: "http://h:8000"},
		"https://h/a/b":               {URL: "https://h/a/b"},
		"https://h/a/b/":              {URL: "https://h/a/b"},
		"https://h/a/b/v1":            {URL: "https://h/a/b"},
		"https://h/a/b/v1///":         {URL: "https://h/a/b"},
		"https://h/v1/models":         {URL: "https://h/v1/models"},
		"https://h/a%20b/v1":          {URL: "https://h/a%20b"},
		"https://h/v1x":               {URL: "https://h/v1x"},
		"http://[::1]:8000/x/":        {URL: "http://[::1]:8000/x"},
		"http://ann:s3%40cret@h/x/v1": {URL: "http://h/x", User: "ann", Password: "s3@cret"},
		"http://ann@h":                {URL: "http://h", User: "ann"},
	} {
		if got, err := engine.ParseAddress(raw); err != nil || got != want {
			t.Errorf("%s: got %q %q %v, want %q", raw, got.URL, got.User, err, want.URL)
		}
	}
	for _, raw := range []string{"", "h:8000", "ftp://h", "http://", "http:///x", "http://:80", "http://h?", "http://h?k=s3cret", "http://h/#", "http://h#s3cret", "http://:s3cret@h", "http://ann:s3cret@h:x"} {
		if got, err := engine.ParseAddress(raw); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: got %q %v", raw, got.URL, err)
		}
	}
}

func TestSecretIsNotShown(t *testing.T) {
	cfg := struct{ Credentials engine.Credentials }{engine.Credentials{Key: "s3cret", Password: "s3cret"}}
	asJSON, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "cfg", cfg, "key", cfg.Credentials.Key)
	for _, text := range []string{fmt.Sprint(cfg), fmt.Sprintf("%v %+v %#v %s %q", cfg, cfg, cfg, cfg.Credentials.Key, cfg.Credentials.Key), string(asJSON), logged.String()} {
		if strings.Contains(text, "s3cret") || !strings.Contains(text, "(secret)") {
			t.Error(text)
		}
	}
}

// gate is an engine that lets in who has one of its keys. What it answers to POST is the header Authorization.
type gate struct {
	mu     sync.Mutex
	keys   []string
	public []string // paths that everybody may ask for
	status int      // of a refusal; 0: 401
	asked  []string // "POST /path" and the header, of each call
}

func (g *gate) set(keys ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keys = keys
}

func (g *gate) take() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	asked := g.asked
	g.asked = nil
	return asked
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	auth := r.Header.Get("Authorization")
	g.mu.Lock()
	in := slices.Contains(g.keys, strings.TrimPrefix(auth, "Bearer ")) || slices.Contains(g.public, r.URL.Path)
	g.asked = append(g.asked, r.Method+" "+auth)
	g.mu.Unlock()
	if !in {
		http.Error(w, `{"error":"Unauthorized"}`, cmp.Or(g.status, http.StatusUnauthorized))
		return
	}
	fmt.Fprintf(w, "%s %s", auth, body)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	// As most tools do: a new file in place of the old one.
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func client(t testing.TB, cfg engine.ClientConfig) *engine.Client {
	t.Helper()
	c, err := engine.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func post(t testing.TB, c *engine.Client, url, body string) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.RoundTrip(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// A key in a file may be changed before or after the engine begins to want the new one: no call fails that could succeed.
func TestKeyInAFileChanges(t *testing.T) {
	for _, refusal := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		synctest.Test(t, func(t *testing.T) { keyInAFileChanges(t, refusal) })
	}
}

func keyInAFileChanges(t *testing.T, refusal int) {
	file := filepath.Join(t.TempDir(), "key")
	g := &gate{keys: []string{"one"}, status: refusal}
	write(t, file, "one\n")
	c := client(t, engine.ClientConfig{URL: "http://engine", Credentials: engine.Credentials{KeyFile: file}, RoundTripper: clientOf(g).Transport})
	want := func(about string, status int, answer string, calls ...string) {
		t.Helper()
		s, a := post(t, c, "http://engine"+"/v1/x", "body")
		if asked := g.take(); s != status || a != answer || !slices.Equal(asked, calls) {
			t.Errorf("%s: %d %q after %q, want %d %q after %q", about, s, a, asked, status, answer, calls)
		}
	}
	want("at first", 200, "Bearer one body", "POST Bearer one")

	g.set("two")
	want("the engine first", refusal, "{\"error\":\"Unauthorized\"}\n", "POST Bearer one")
	write(t, file, "  two  \n\n")
	want("then the file", 200, "Bearer two body", "POST Bearer one", "POST Bearer two")
	want("from then on", 200, "Bearer two body", "POST Bearer two")

	write(t, file, "three")
	time.Sleep(1100 * time.Millisecond) // the file is read again once a second
	want("the file first", 200, "Bearer two body", "POST Bearer three", "POST Bearer two")
	want("meanwhile", 200, "Bearer two body", "POST Bearer two")
	g.set("three")
	want("then the engine", 200, "Bearer three body", "POST Bearer two", "POST Bearer three")
	want("from then on", 200, "Bearer three body", "POST Bearer three")

	write(t, file, "four")
	write(t, file, "five")
	g.set("four", "three")
	if err := os.Remove(file); err != nil { // a file that is gone for a moment
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond)
	want("without a file", 200, "Bearer three body", "POST Bearer three")
	g.set()
	want("nothing fits", refusal, "{\"error\":\"Unauthorized\"}\n", "POST Bearer three")
}

// A page for everybody does not show that the engine accepts a new key: the old one is kept.
func TestPublicPageProvesNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "key")
		g := &gate{keys: []string{"one"}, public: []string{"/health"}}
		write(t, file, "one")
		c := client(t, engine.ClientConfig{URL: "http://engine", Credentials: engine.Credentials{KeyFile: file}, RoundTripper: clientOf(g).Transport})
		post(t, c, "http://engine"+"/v1/x", "")
		write(t, file, "two")
		time.Sleep(1100 * time.Millisecond)
		for range 3 {
			resp, err := (&http.Client{Transport: c}).Get("http://engine" + "/health")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		if status, _ := post(t, c, "http://engine"+"/v1/x", ""); status != 200 {
			t.Errorf("status %d", status)
		}
	})
}

// Under load no call fails, whichever changes first, and whatever the key becomes.
func TestKeyChangesUnderLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	g := &gate{keys: []string{"k0"}}
	srv := httptest.NewServer(g)
	defer srv.Close()
	write(t, file, "k0")
	c := client(t, engine.ClientConfig{URL: srv.URL, Credentials: engine.Credentials{KeyFile: file}, Transport: &http.Transport{MaxIdleConnsPerHost: 16}})
	ctx, cancel := context.WithCancel(t.Context())
	var calls, failed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				calls.Add(1)
				if status, answer := post(t, c, srv.URL+"/v1/x", "body"); status != 200 || !strings.HasSuffix(answer, " body") {
					failed.Add(1)
				}
			}
		})
	}
	for n := 1; n <= 4; n++ {
		is, was := fmt.Sprintf("k%d", n), fmt.Sprintf("k%d", n-1)
		time.Sleep(200 * time.Millisecond)
		if n%2 == 0 {
			g.set(was, is) // an engine that takes both for a while
			write(t, file, is)
		} else {
			write(t, file, is)
			time.Sleep(1200 * time.Millisecond)
		}
		g.set(is)
	}
	time.Sleep(200 * time.Millisecond)
	cancel()
	wg.Wait()
	if failed.Load() > 0 || calls.Load() < 100 {
		t.Errorf("%d of %d calls failed", failed.Load(), calls.Load())
	}
}

func TestBasicAuthentication(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	write(t, file, "s3:cret\n")
	for about, cfg := range map[string]engine.ClientConfig{
		"in the URL":         {URL: "http://ann:s3%3Acret@HOST/"},
		"apart":              {URL: "http://HOST", Credentials: engine.Credentials{User: "ann", Password: "s3:cret"}},
		"user and file":      {URL: "http://HOST", Credentials: engine.Credentials{User: "ann", PasswordFile: file}},
		"URL and file":       {URL: "http://ann@HOST", Credentials: engine.Credentials{PasswordFile: file}},
		"under a base path":  {URL: "http://ann:s3%3Acret@HOST/base/v1"},
		"URL and a password": {URL: "http://ann@HOST", Credentials: engine.Credentials{Password: "s3:cret"}},
	} {
		var user, password string
		srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { user, password, _ = r.BasicAuth() }))
		cfg.URL = strings.Replace(cfg.URL, "HOST", strings.TrimPrefix(srv.URL, "http://"), 1)
		post(t, client(t, cfg), srv.URL+"/v1/x", "")
		if user != "ann" || password != "s3:cret" {
			t.Errorf("%s: user %q, password %q", about, user, password)
		}
		srv.Close()
	}
}

// Other addresses, such as that of the metrics, get no credentials.
func TestCredentialsGoNowhereElse(t *testing.T) {
	var seen string
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r.Header.Get("Authorization") }))
	defer other.Close()
	c := client(t, engine.ClientConfig{URL: "http://127.0.0.1:1", Credentials: engine.Credentials{Key: "s3cret"}})
	if status, answer := post(t, c, other.URL+"/metrics", ""); status != 200 || seen != "" {
		t.Errorf("%d %q: sent %q", status, answer, seen)
	}
}

// authority issues certificates for 127.0.0.1.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{cert: &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}}
	a.key = newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue returns a certificate and its key in PEM.
func (a *authority) issue(t testing.TB, hosts ...string) (cert, key string) {
	t.Helper()
	k := newKey(t)
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, k.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

// tlsServer serves h over TLS with a certificate that can be replaced.
func tlsServer(t testing.TB, h http.Handler, clients *authority) (url string, use func(cert, key string)) {
	t.Helper()
	var pair atomic.Pointer[tls.Certificate]
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cfg := &tls.Config{Certificates: []tls.Certificate{*pair.Load()}}
		if clients != nil {
			cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
			cfg.ClientCAs.AppendCertsFromPEM([]byte(clients.pem))
		}
		return cfg, nil
	}}
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	use = func(cert, key string) {
		p, err := tls.X509KeyPair([]byte(cert), []byte(key))
		if err != nil {
			t.Fatal(err)
		}
		pair.Store(&p)
		srv.CloseClientConnections()
	}
	use(newAuthority(t).issue(t, "127.0.0.1"))
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL, use
}

func TestOwnCertificateAuthority(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	file := filepath.Join(t.TempDir(), "ca.pem")
	write(t, file, ca.pem)
	url, use := tlsServer(t, &gate{public: []string{"/v1/x"}}, nil)
	use(ca.issue(t, "127.0.0.1"))

	plain := client(t, engine.ClientConfig{URL: url})
	if status, err := post(t, plain, url+"/v1/x", ""); status != 0 || !strings.Contains(err, "unknown authority") {
		t.Errorf("with the system's authorities: %d %s", status, err)
	}
	if status, err := post(t, client(t, engine.ClientConfig{URL: url, TLS: engine.TLS{Insecure: true}}), url+"/v1/x", ""); status != 200 {
		t.Errorf("without verification: %d %s", status, err)
	}
	c := client(t, engine.ClientConfig{URL: url, TLS: engine.TLS{CA: file}})
	if status, err := post(t, c, url+"/v1/x", "body"); status != 200 {
		t.Errorf("with its authority: %d %s", status, err)
	}
	// The engine's certificate comes from another authority; the file says so already, or will do.
	use(other.issue(t, "127.0.0.1"))
	c.CloseIdleConnections()
	if status, err := post(t, c, url+"/v1/x", "body"); status != 0 || !strings.Contains(err, "unknown authority") {
		t.Errorf("of another authority: %d %s", status, err)
	}
	write(t, file, ca.pem+other.pem)
	if status, answer := post(t, c, url+"/v1/x", "body"); status != 200 || !strings.HasSuffix(answer, "body") {
		t.Errorf("after the file has changed: %d %s", status, answer)
	}
	use(other.issue(t, "elsewhere.example"))
	c.CloseIdleConnections()
	if status, err := post(t, c, url+"/v1/x", ""); status != 0 || !strings.Contains(err, "127.0.0.1") {
		t.Errorf("for another host: %d %s", status, err)
	}
}

func TestClientCertificate(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	cfg := engine.TLS{CA: filepath.Join(dir, "ca"), Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	write(t, cfg.CA, ca.pem)
	cert, key := ca.issue(t)
	write(t, cfg.Cert, cert)
	write(t, cfg.Key, key)
	url, use := tlsServer(t, &gate{public: []string{"/v1/x"}}, ca)
	use(ca.issue(t, "127.0.0.1"))
	if status, err := post(t, client(t, engine.ClientConfig{URL: url, TLS: cfg}), url+"/v1/x", ""); status != 200 {
		t.Errorf("with a certificate: %d %s", status, err)
	}
	if status, err := post(t, client(t, engine.ClientConfig{URL: url, TLS: engine.TLS{CA: cfg.CA}}), url+"/v1/x", ""); status != 0 {
		t.Errorf("without one: %d %s", status, err)
	}
}

// Everything that is asked of an engine passes its doors: detection, models, metrics, health, warm-up.
func TestProbeBehindDoors(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ca"), ca.pem)
	write(t, filepath.Join(dir, "key"), "s3cret")
	for _, base := range []string{"", "/", "/v1", "/v1/", "/gpu/a", "/gpu/a/", "/gpu/a/v1", "/gpu/a/v1/"} {
		prefix := strings.TrimSuffix(strings.TrimRight(base, "/"), "/v1")
		eng, err := sim.New(sim.Config{Models: []string{"m"}, Slots: 7})
		if err != nil {
			t.Fatal(err)
		}
		var outside atomic.Int64
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer s3cret" || !strings.HasPrefix(r.URL.Path, prefix+"/") {
				outside.Add(1)
				http.Error(w, "", http.StatusUnauthorized)
				return
			}
			http.StripPrefix(prefix, eng).ServeHTTP(w, r)
		})
		url, use := tlsServer(t, h, nil)
		use(ca.issue(t, "127.0.0.1"))
		c := client(t, engine.ClientConfig{URL: url + base, TLS: engine.TLS{CA: filepath.Join(dir, "ca")}, Credentials: engine.Credentials{KeyFile: filepath.Join(dir, "key")}})
		hc := &http.Client{Transport: c}
		info, err := engine.Probe(t.Context(), hc, url+base, "")
		if err != nil || info.Dialect != engine.DialectVLLM || !slices.Equal(info.Models, []string{"m"}) {
			t.Errorf("%s: %+v %v", base, info, err)
		}
		listed := make(chan engine.Listing, 1)
		healthy := make(chan engine.Status, 1)
		s, err := engine.NewScraper(engine.ScraperConfig{URL: url + base, Client: hc,
			OnListing: func(l engine.Listing) bool {
				select {
				case listed <- l:
				default:
				}
				return true
			},
			OnStatus: func(st engine.Status) {
				if !st.Healthy { // a machine under load answers late
					return
				}
				select {
				case healthy <- st:
				default:
				}
			}})
		if err != nil {
			t.Fatal(err)
		}
		s.Doubt()
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { s.Run(ctx) })
		if l := <-listed; l.Err != nil || !slices.Equal(l.Models, []string{"m"}) {
			t.Errorf("%s: %+v", base, l)
		}
		select {
		case st := <-healthy:
			if st.Running == nil {
				t.Errorf("%s: %+v", base, st)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s: never healthy: %+v", base, s.Latest())
		}
		if err := s.WarmUp(t.Context(), "m"); err != nil {
			t.Errorf("%s: %v", base, err)
		}
		cancel()
		running.Wait()
		if n := outside.Load(); n > 0 {
			t.Errorf("%s: %d calls missed a door", base, n)
		}
	}
}

// An engine that answers /v1/models to everybody is called good only after it has accepted the key.
func TestDoubtedKey(t *testing.T) {
	g := &gate{keys: []string{"one"}, public: []string{"/v1/models", "/health"}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/models" {
			io.WriteString(w, `{"data":[{"id":"m"}]}`)
			return
		}
		g.ServeHTTP(w, r)
	}))
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "key")
	write(t, file, "wrong")
	c := client(t, engine.ClientConfig{URL: srv.URL, Credentials: engine.Credentials{KeyFile: file}})
	listings := make(chan engine.Listing)
	s, err := engine.NewScraper(engine.ScraperConfig{URL: srv.URL, Client: &http.Client{Transport: c}, Dialect: engine.DialectOpenAI,
		OnListing: func(l engine.Listing) bool {
			select {
			case listings <- l:
			case <-t.Context().Done():
			}
			return l.Err == nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	s.Doubt()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	for range 2 {
		if l := <-listings; l.Trouble != engine.TroubleCredentials || l.Status != 200 || len(l.Models) != 1 {
			t.Fatalf("with a wrong key: %+v", l)
		}
	}
	write(t, file, "one")
	for l := range listings {
		if l.Err == nil {
			break
		}
		if l.Trouble != engine.TroubleCredentials {
			t.Fatalf("%+v", l)
		}
	}
	cancel()
	go func() { // the one that may be under way
		for range listings {
		}
	}()
	running.Wait()
	close(listings)
}

func TestTroubles(t *testing.T) {
	page := func(status int, contentType, body string, header ...string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
		})
	}
	secure, _ := tlsServer(t, page(200, "application/json", `{"data":[]}`), nil)
	for about, tt := range map[string]struct {
		h    http.Handler
		url  string
		want engine.Trouble
		text string
	}{
		"a web page":    {page(200, "text/html", "\n<!DOCTYPE html>\n<html><title>Open WebUI &amp; more</title>"), "", engine.TroublePage, `an HTML page ("Open WebUI & more")`},
		"a login":       {page(302, "text/html", "", "Location", "https://ann:pw@sso.example.com/login?token=s3cret"), "", engine.TroublePage, "302 Found, to https://sso.example.com/login"},
		"another path":  {page(404, "application/json", `{"detail":"Not Found"}`), "", engine.TroublePage, "404 Not Found"},
		"a wrong key":   {page(401, "application/json", `{}`), "", engine.TroubleCredentials, "401 Unauthorized"},
		"forbidden":     {page(403, "text/html", `<html>`), "", engine.TroubleCredentials, "403 Forbidden"},
		"starting":      {page(503, "application/json", `{}`), "", "", "503 Service Unavailable"},
		"not JSON":      {page(200, "text/plain", `hello`), "", "", "invalid character"},
		"another CA":    {nil, secure, engine.TroubleCertificate, "unknown authority"},
		"TLS expected":  {nil, strings.Replace(secure, "https:", "http:", 1), "", "400 Bad Request"},
		"nobody there":  {nil, "http://127.0.0.1:1", "", "connection refused"},
		"TLS not there": {page(200, "", ""), "https", "", "HTTP response to HTTPS client"},
	} {
		url := tt.url
		if tt.h != nil {
			srv := httptest.NewServer(tt.h)
			defer srv.Close()
			url = srv.URL
			if tt.url == "https" {
				url = strings.Replace(url, "http:", "https:", 1)
			}
		}
		hc := &http.Client{Transport: client(t, engine.ClientConfig{URL: url}), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		_, err := engine.Probe(t.Context(), hc, url, "")
		if err == nil || engine.TroubleOf(err) != tt.want || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %q %v, want %q with %q", about, engine.TroubleOf(err), err, tt.want, tt.text)
		}
	}
}

// An engine that repeats the key that it refuses does not get it into a log.
func TestErrorsShowNoKey(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"error":{"message":%q}}`, "bad key: "+r.Header.Get("Authorization")+" for "+r.URL.String())
	}))
	defer srv.Close()
	at := "http://ann:s3cret@" + strings.TrimPrefix(srv.URL, "http://")
	for about, cfg := range map[string]engine.ScraperConfig{
		"a key":                  {URL: srv.URL, APIKey: "s3cret"},
		"a password":             {URL: at},
		"a password for metrics": {URL: srv.URL, MetricsURL: at + "/metrics?token=s3cret"},
		"nobody there":           {URL: "http://ann:s3cret@127.0.0.1:1", MetricsURL: "http://ann:s3cret@127.0.0.1:1/m?token=s3cret"},
	} {
		cfg.Dialect = engine.DialectVLLM
		statuses := make(chan engine.Status, 1)
		cfg.OnStatus = func(st engine.Status) {
			select {
			case statuses <- st:
			default:
			}
		}
		listings := make(chan engine.Listing, 1)
		cfg.OnListing = func(l engine.Listing) bool {
			select {
			case listings <- l:
			default:
			}
			return true
		}
		s, err := engine.NewScraper(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { s.Run(ctx) })
		st, l := <-statuses, <-listings
		cancel()
		running.Wait()
		err = s.WarmUp(t.Context(), "m")
		for _, text := range []string{st.Reason, fmt.Sprint(err), fmt.Sprint(l.Err)} {
			if text == "" || strings.Contains(text, "s3cret") || strings.Contains(text, "YW5uOnMzY3JldA") {
				t.Errorf("%s: %q", about, text)
			}
		}
	}
}
