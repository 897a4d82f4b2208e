package gateway

import (
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readiness is the body of /readyz.
type readiness struct {
	Ready    bool     `json:"ready"`
	Reason   string   `json:"reason,omitempty"` // why it is not ready
	Requests int      `json:"requests"`
	Models   []string `json:"models"`
	Policy   string   `json:"policy"` // the revision in force, or why it may be out of date
	Keys     string   `json:"keys"`   // whether clients need one
}

// adminHandler is the admin listener's routes: health, metrics, profiles.
func adminHandler(registry *prometheus.Registry, ready func() readiness) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /livez", healthz)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		now := ready()
		code := http.StatusOK
		if !now.Ready {
			code = http.StatusServiceUnavailable
		}
		writeJSON(w, code, now)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
