package gateway

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestAdminPort(t *testing.T) {
	const secret = "0123456789abcdef"
	loopback, public := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8081}, &net.TCPAddr{IP: net.IPv4zero, Port: 8081}
	token := func() string { return secret }
	for about, c := range map[string]struct {
		cfg    Config
		at     net.Addr
		host   string
		sent   string
		status map[string]int // by path
	}{
		"on loopback":             {Config{}, loopback, "127.0.0.1:8081", "", map[string]int{"/healthz": 200, "/livez": 200, "/readyz": 200, "/metrics": 200, "/debug/pprof/": 200, "/debug/pprof/heap": 200, "/x": 404}},
		"by name":                 {Config{}, loopback, "localhost:8081", "", map[string]int{"/metrics": 200}},
		"by name, any case":       {Config{}, loopback, "LocalHost", "", map[string]int{"/metrics": 200}},
		"by a name below it":      {Config{}, loopback, "pulley.localhost:1", "", map[string]int{"/metrics": 200}},
		"IPv6":                    {Config{}, loopback, "[::1]:8081", "", map[string]int{"/metrics": 200}},
		"IPv6 without a port":     {Config{}, loopback, "[::1]", "", map[string]int{"/metrics": 200}},
		"another of loopback":     {Config{}, loopback, "127.9.9.9", "", map[string]int{"/metrics": 200}},
		"without a name":          {Config{}, loopback, "", "", map[string]int{"/metrics": 200}},
		"a stranger's name":       {Config{}, loopback, "evil.example:8081", "", map[string]int{"/healthz": 403, "/readyz": 403, "/metrics": 403, "/debug/pprof/heap": 403, "/x": 403}},
		"one that begins so":      {Config{}, loopback, "localhost.evil.example", "", map[string]int{"/metrics": 403}},
		"one that ends so":        {Config{}, loopback, "evillocalhost", "", map[string]int{"/metrics": 403}},
		"an address in a name":    {Config{}, loopback, "127.0.0.1.evil.example", "", map[string]int{"/metrics": 403}},
		"another address":         {Config{}, loopback, "192.0.2.1", "", map[string]int{"/metrics": 403}},
		"an empty name":           {Config{}, loopback, ":8081", "", map[string]int{"/metrics": 403}},
		"a name that was added":   {Config{AdminHosts: []string{"Gateway.example"}}, loopback, "gateway.example:8081", "", map[string]int{"/metrics": 200}},
		"on a network":            {Config{}, public, "gateway-1:8081", "", map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 200, "/debug/pprof/": 403, "/debug/pprof/heap": 403, "/debug/pprof/profile": 403, "/debug/pprof/trace": 403}},
		"no token":                {Config{AdminToken: token}, public, "gateway-1", "", map[string]int{"/healthz": 200, "/livez": 200, "/readyz": 200, "/metrics": 401, "/debug/pprof/": 401, "/debug/pprof/heap": 401}},
		"no token, on loopback":   {Config{AdminToken: token}, loopback, "localhost", "", map[string]int{"/healthz": 200, "/metrics": 401, "/debug/pprof/": 401}},
		"a wrong token":           {Config{AdminToken: token}, public, "gateway-1", "Bearer 0123456789abcdeF", map[string]int{"/metrics": 401, "/debug/pprof/": 401}},
		"a part of it":            {Config{AdminToken: token}, public, "gateway-1", "Bearer 0123", map[string]int{"/metrics": 401}},
		"another scheme":          {Config{AdminToken: token}, public, "gateway-1", "Basic " + secret, map[string]int{"/metrics": 401}},
		"the token":               {Config{AdminToken: token}, public, "gateway-1", "Bearer " + secret, map[string]int{"/readyz": 200, "/metrics": 200, "/debug/pprof/": 200, "/debug/pprof/heap": 200}},
		"the token, a lower case": {Config{AdminToken: token}, public, "gateway-1", "bearer " + secret, map[string]int{"/metrics": 200}},
		"an empty one":            {Config{AdminToken: func() string { return "" }}, public, "gateway-1", "Bearer ", map[string]int{"/metrics": 401}},
		"no network":              {Config{}, &net.UnixAddr{Name: "x"}, "any", "", map[string]int{"/metrics": 200, "/debug/pprof/": 200}},
	} {
		ready := func() readiness { return readiness{Ready: true, Models: []string{"secret"}} }
		h := newAdminPort(&c.cfg, c.at).handler(prometheus.NewRegistry(), ready)
		for path, want := range c.status {
			r := httptest.NewRequest("GET", path, nil)
			if path == "/debug/pprof/profile" || path == "/debug/pprof/trace" {
				r.URL.RawQuery = "seconds=1"
			}
			if r.Host = c.host; c.sent != "" {
				r.Header.Set("Authorization", c.sent)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%s: %s: got %d %s, want %d", about, path, w.Code, w.Body, want)
			}
			if (w.Code == http.StatusUnauthorized) != (w.Header().Get("Www-Authenticate") != "") {
				t.Errorf("%s: %s: got %v", about, path, w.Header())
			}
			if path == "/readyz" && want == 200 {
				var now readiness
				if err := json.Unmarshal(w.Body.Bytes(), &now); err != nil || !now.Ready || (len(now.Models) == 1) != (c.cfg.AdminToken == nil || c.sent != "") {
					t.Errorf("%s: %s: got %s, %v", about, path, w.Body, err)
				}
			}
		}
	}
}
