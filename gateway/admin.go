package gateway

import (
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// adminHandler is the admin listener's routes: health, metrics, profiles.
func (g *Gateway) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /livez", healthz)
	mux.HandleFunc("GET /readyz", g.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// readyz says whether this gateway should be sent requests.
func (g *Gateway) readyz(w http.ResponseWriter, r *http.Request) {
	status := struct {
		Ready    bool     `json:"ready"`
		Reason   string   `json:"reason,omitempty"`
		Requests int      `json:"requests"`
		Models   []string `json:"models"`
		Policy   string   `json:"policy"` // in force
		Keys     string   `json:"keys"`   // whether clients need one
	}{Requests: g.requests.count(), Models: g.fleet.models()}
	status.Policy = g.policy.state()
	status.Keys = g.keys.state()
	status.Reason = g.NotReady()
	status.Ready = status.Reason == ""
	code := http.StatusOK
	if !status.Ready {
		code = http.StatusServiceUnavailable
	}
	writeJSON(w, code, status)
}

// NotReady is why this gateway should not be sent requests; "" if it should.
func (g *Gateway) NotReady() string {
	switch {
	case g.draining.Load():
		return "draining"
	case !g.nc.IsConnected():
		return "no connection to the broker"
	case !g.streams.ready.Load():
		return "the queue is not available"
	case !g.keys.ready():
		return "the keys are not read yet"
	}
	return ""
}
