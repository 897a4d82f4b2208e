// Package clitest has what the tests of pulley's commands share: a broker, a gateway, buffers, and a fleet to look at.
package clitest

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
)

// Run runs a command line in this process.
func Run(root *cobra.Command, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = cli.Execute(context.Background(), root, args, &out, &err)
	return code, out.String(), err.String()
}

// WriteFile writes a file into a directory of its own, and returns its path.
func WriteFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Buffer is a buffer that can be read while another goroutine writes it.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// WaitFor waits until the buffer contains a text.
func (b *Buffer) WaitFor(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(b.String(), text); {
		if time.Now().After(deadline) {
			t.Fatalf("log %q, want %q", b, text)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Broker runs a broker until the test ends, or until stop is called.
func Broker(t *testing.T, cfg broker.Config) (url string, stop func()) {
	t.Helper()
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	cfg.StoreDir = t.TempDir()
	b, err := broker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	select {
	case <-b.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	return b.ClientURL(), stop
}

// Gateway runs a gateway until the test ends, and returns the URLs of its ports.
func Gateway(t *testing.T, nc *nats.Conn) (ingress, admin string) {
	t.Helper()
	gw, err := gateway.New(gateway.Config{}, nc)
	if err != nil {
		t.Fatal(err)
	}
	var listeners [2]net.Listener
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- gw.Run(ctx, listeners[0], listeners[1]) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return "http://" + listeners[0].Addr().String(), "http://" + listeners[1].Addr().String()
}

// StandIn publishes what a gateway and a worker publish, and lists one request.
func StandIn(t *testing.T, url string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	ref := subjects.Reference{Gateway: "gw1", Pools: map[string]subjects.PoolReference{"m": {Held: map[string]int{"batch": 3}}}}
	beat := subjects.Heartbeat{Worker: "w1-000000", Name: "w1", State: subjects.Ready, Slots: 4, InFlight: 1, Pools: []subjects.PoolStatus{{Pool: "m"}}}
	if _, err := nc.Subscribe(subjects.AskRequests, func(m *nats.Msg) {
		m.Respond([]byte(`[{"id":"r1","pool":"m","tier":"standard","state":"running","worker":"w1-000000","age_ms":50}]`))
		m.Respond(nil)
	}); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var beating sync.WaitGroup
	beating.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			beat.Done++
			fleet.PublishJSON(nc, subjects.GatewayRef("gw1"), ref)
			fleet.PublishJSON(nc, subjects.Heartbeats(beat.Worker), beat)
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		beating.Wait()
		nc.Close()
	})
	return nc
}
