package doctor

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
)

// readUnheard asks the admin port of a gateway why no gateway is heard through NATS: one whose credentials are wrong can say
// nothing there.
func (e *examination) readUnheard(ctx context.Context, admin string) {
	if admin == "" || e.unreachable != nil || len(e.fleet.Gateways) > 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	ask, err := http.NewRequestWithContext(ctx, "GET", "http://"+admin+"/readyz", nil)
	if err != nil {
		return
	}
	resp, err := http.DefaultClient.Do(ask)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var said struct {
		Ready  *bool  `json:"ready"`
		Reason string `json:"reason"`
	}
	switch err := json.Unmarshal(body, &said); {
	case err != nil || said.Ready == nil: // something else listens there
	case *said.Ready:
		e.unheard = "the gateway at " + admin + " is ready, but not heard here"
	default:
		e.unheard = "the gateway at " + admin + " is not ready: " + said.Reason
	}
}

func (e *examination) findGateways() []fleet.Finding {
	found := e.fleet.FindGateways()
	if e.unheard == "" {
		return found
	}
	return append(found, fleet.NewProblem(e.unheard, "check that its --nats and its credentials lead to the same NATS account as those of this command, and that they are a gateway's"))
}
