// Package adminport is what the admin ports of all parts have in common: who may ask them what, and the pages that each of
// them has.
package adminport

import (
	"context"
	"crypto/subtle"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Port is who may ask an admin port what. It does not change.
type Port struct {
	token func() string // what the token is now; nil: none is needed
	hosts []string      // names under which the port may be asked, if it is on loopback
	local bool          // it is on loopback, or no network at all
	names bool          // it is on loopback: names are checked
}

// New makes the port of a listener at an address. token returns what clients must send as a bearer token, for all but health;
// nil means nothing. hosts are names under which a port on loopback may be asked, beside localhost.
func New(token func() string, hosts []string, at net.Addr) *Port {
	p := &Port{token: token, hosts: hosts, local: true}
	if tcp, ok := at.(*net.TCPAddr); ok {
		p.local = tcp.IP.IsLoopback()
		p.names = p.local
	}
	return p
}

// Handle adds metrics and profiles to a mux, and returns the handler of the port.
func (p *Port) Handle(mux *http.ServeMux, metrics prometheus.Gatherer) http.Handler {
	mux.Handle("GET /metrics", p.Guarded(promhttp.HandlerFor(metrics, promhttp.HandlerOpts{EnableOpenMetrics: true})))
	for path, serve := range map[string]http.HandlerFunc{
		"/debug/pprof/": pprof.Index, "/debug/pprof/profile": pprof.Profile, "/debug/pprof/symbol": pprof.Symbol, "/debug/pprof/trace": pprof.Trace,
	} {
		mux.Handle(path, p.Guarded(p.profiles(serve)))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.named(r.Host) { // a page whose name was made to lead here, for example
			http.Error(w, "the admin port is not served under this name: use localhost or the address, or add the name with --admin-host", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// named says whether the port may be asked under a name.
func (p *Port) named(host string) bool {
	if !p.names || host == "" { // HTTP/1.0, which no browser speaks
		return true
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback() || slices.Contains(p.hosts, host)
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || slices.ContainsFunc(p.hosts, func(h string) bool { return strings.EqualFold(h, host) })
}

// Knows says whether a request has the token, if one is needed.
func (p *Port) Knows(r *http.Request) bool {
	if p.token == nil {
		return true
	}
	scheme, sent, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	want := p.token()
	return want != "" && strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare([]byte(strings.TrimSpace(sent)), []byte(want)) == 1
}

// Guarded serves those who know the token.
func (p *Port) Guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.Knows(r) {
			w.Header().Set("Www-Authenticate", "Bearer")
			http.Error(w, "the admin port needs its token: Authorization: Bearer, with what is in --admin-token-file", http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Changing serves those who know the token, and nobody if there is none: so that no other program of the machine can change the
// fleet.
func (p *Port) Changing(h http.Handler) http.Handler {
	return p.Guarded(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.token == nil {
			http.Error(w, "actions need a token: start the gateway with --admin-token-file", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	}))
}

// profiles are not for everybody on a network: they cost time, and show what the process does.
func (p *Port) profiles(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.local && p.token == nil {
			http.Error(w, "profiles need a token (--admin-token-file), or an admin port on loopback", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Serve serves health, metrics and profiles of a part on a listener until ctx is done, and closes it. notReady is why the part
// does not work; empty if it does.
func (p *Port) Serve(ctx context.Context, at net.Listener, metrics prometheus.Gatherer, notReady func() string) error {
	mux := http.NewServeMux()
	healthy := func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) }
	mux.HandleFunc("GET /healthz", healthy)
	mux.HandleFunc("GET /livez", healthy)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if why := notReady(); why != "" {
			if !p.Knows(r) {
				why = "not ready"
			}
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		w.Write([]byte("ready\n"))
	})
	s := &http.Server{Handler: p.Handle(mux, metrics), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(at); err != http.ErrServerClosed {
		return err
	}
	return nil
}
