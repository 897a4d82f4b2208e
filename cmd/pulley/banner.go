package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/worker"
)

// banner prints what was started and how to try it.
type banner struct {
	out            io.Writer
	gateway        *gateway.Gateway
	auth           gateway.AuthMode
	ingress, admin net.Addr
	broker, store  string
	engines        []worker.Config
	simulated      bool
}

// run prints the banner once there is a model, or after a few seconds without one. Then
// it waits for ctx, since it is one of the parts.
func (b *banner) run(ctx context.Context) error {
	url := "http://" + b.ingress.String()
	models := b.waitForModels(ctx, 5*time.Second)
	var s strings.Builder
	fmt.Fprintf(&s, "\nPulley %s\n\n", buildVersion())
	fmt.Fprintf(&s, "  gateway  %-28s  OpenAI-compatible API\n", url)
	if b.admin != nil {
		fmt.Fprintf(&s, "  admin    %-28s  /readyz /metrics\n", "http://"+b.admin.String())
	}
	fmt.Fprintf(&s, "  broker   %-28s  store %s\n", b.broker, b.store)
	auto := "none: every client on this machine may use the API (pulley key add --tenant NAME)"
	if b.gateway.KeysRequired() {
		auto = "required"
	}
	fmt.Fprintf(&s, "  keys     %s\n", keysText(b.auth, auto))
	for _, e := range b.engines {
		kind := e.EngineName
		if kind == "" {
			kind = "not answering yet"
		}
		fmt.Fprintf(&s, "  engine   %-28s  %s (%s)\n", e.Engine, e.Name, kind)
	}
	if b.simulated {
		s.WriteString("\n  No engine was found on this machine: two simulated engines were started.\n  To use your own: pulley up --engine http://127.0.0.1:8000\n")
	}
	if len(models) == 0 {
		s.WriteString("\n  No model yet: the workers are waiting for their engines.\n\n")
	} else {
		fmt.Fprintf(&s, "\n  models   %s\n\n", strings.Join(models, ", "))
		key := ""
		if b.gateway.KeysRequired() {
			key = ` -H "authorization: Bearer $KEY"`
		}
		fmt.Fprintf(&s, "Try it:\n\n  curl -N %s/v1/chat/completions%s -H 'content-type: application/json' \\\n    -d '{\"model\":\"%s\",\"stream\":true,\"max_tokens\":20,\"messages\":[{\"role\":\"user\",\"content\":\"Hello!\"}]}'\n\n", url, key, models[0])
	}
	if ctx.Err() == nil {
		io.WriteString(b.out, s.String())
	}
	<-ctx.Done()
	return nil
}

// waitForModels waits until the gateway is ready and has models.
func (b *banner) waitForModels(ctx context.Context, within time.Duration) []string {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if models := b.gateway.Models(); len(models) > 0 && b.gateway.NotReady() == "" {
			return models
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
