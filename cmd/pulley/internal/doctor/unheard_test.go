package doctor

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
)

// A gateway that NATS does not show is asked at its admin port.
func TestDoctorAsksAGatewayThatIsNotHeard(t *testing.T) {
	t.Parallel()
	url, _ := clitest.Broker(t, broker.Config{})
	for about, c := range map[string]struct {
		status       int
		says         string
		want, absent string
	}{
		"denied":         {503, `{"ready":false,"reason":"NATS denies this user to subscribe to pulley.gw.1.>"}`, "is not ready: NATS denies this user to subscribe to pulley.gw.1.>", ""},
		"refused":        {503, `{"ready":false,"reason":"no connection to the broker: the server refuses the credentials"}`, "refuses the credentials", ""},
		"elsewhere":      {200, `{"ready":true,"requests":0}`, "is ready, but not heard here", ""},
		"something else": {200, `<html>`, "", "the gateway at"},
		"another JSON":   {200, `{"a":1}`, "", "the gateway at"},
	} {
		t.Run(about, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/readyz" {
					t.Errorf("asks for %s", r.URL.Path)
				}
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.says)
			}))
			defer s.Close()
			_, found := runDoctor(t, "--nats", url, "--admin", strings.TrimPrefix(s.URL, "http://"))
			wantFinding(t, found, fleet.Problem, "gateways", c.want)
			for _, f := range found {
				if c.absent != "" && strings.Contains(f.Text, c.absent) {
					t.Errorf("says %q", f.Text)
				}
			}
		})
	}
}
