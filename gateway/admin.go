package gateway

import (
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pulley-lb/pulley/adminport"
)

// readiness is the body of /readyz.
type readiness struct {
	Ready    bool     `json:"ready"`
	Reason   string   `json:"reason,omitempty"`  // why it is not ready
	Trouble  string   `json:"trouble,omitempty"` // why it cannot queue all requests, though it is ready
	Requests int      `json:"requests"`
	Models   []string `json:"models"`
	Policy   string   `json:"policy"` // the revision in force, or why it may be out of date
	Keys     string   `json:"keys"`   // whether clients need one
}

// adminPort has the routes of the admin port; adminport.Port says who may ask them.
type adminPort struct {
	*adminport.Port
	page AdminPage
}

func newAdminPort(cfg *Config, at net.Addr) adminPort {
	return adminPort{adminport.New(cfg.AdminToken, cfg.AdminHosts, at), cfg.Page}
}

// handler is the admin port's routes: health, metrics, profiles, the page. Health needs no token, but says little without.
func (p adminPort) handler(registry *prometheus.Registry, ready func() readiness) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /livez", healthz)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		now := ready()
		code := http.StatusOK
		if !now.Ready {
			code = http.StatusServiceUnavailable
		}
		if p.Knows(r) {
			writeJSON(w, code, now)
			return
		}
		writeJSON(w, code, struct {
			Ready   bool   `json:"ready"`
			Reason  string `json:"reason,omitempty"`
			Trouble string `json:"trouble,omitempty"`
		}{now.Ready, now.Reason, now.Trouble})
	})
	if p.page.Files != nil {
		mux.Handle("GET /{$}", p.page.Files)
		mux.Handle("GET /page/", p.page.Files)
		mux.Handle("GET /page/live", p.Guarded(p.page.Live))
		mux.Handle("POST /page/do", p.Changing(p.page.Do))
	}
	return p.Handle(mux, registry)
}
