package main

import (
	"context"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/worker"
)

// within waits until a condition holds, for so long at most.
func within(d time.Duration, holds func() bool) bool {
	for end := time.Now().Add(d); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// A part with the credentials of another role, or of another worker, says so within seconds.
func TestCredentialsOfAnotherRole(t *testing.T) {
	t.Parallel()
	s := secure(t, "--worker", "w1", "--worker", "w2")
	_, right := s.gateway()
	if !within(time.Minute, func() bool { return right.NotReady() == "" }) {
		t.Fatal(right.NotReady())
	}
	for _, user := range []string{"worker-w1", "monitor", "operator"} {
		t.Run("a gateway as "+user, func(t *testing.T) {
			t.Parallel()
			log := new(clitest.Buffer)
			gw, err := gateway.New(gateway.Config{Auth: gateway.AuthOff, Logger: slog.New(slog.NewTextHandler(log, nil))}, s.connect(user))
			if err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s.run(func(ctx context.Context) error { return gw.Run(ctx, l, nil) })
			const why = "credentials may be those of another role"
			if !within(time.Minute, func() bool { return strings.Contains(gw.NotReady(), why) && strings.Contains(log.String(), why) }) {
				t.Errorf("it is not ready because %q, and its log has %s", gw.NotReady(), log.String())
			}
		})
	}
	for _, user := range []string{"gateway", "operator", "monitor", "worker-w2"} {
		t.Run("worker w1 as "+user, func(t *testing.T) {
			t.Parallel()
			engine, err := sim.New(sim.Config{Name: "e", Models: []string{"m"}, Slots: 8})
			if err != nil {
				t.Fatal(err)
			}
			server := httptest.NewServer(engine)
			t.Cleanup(server.Close)
			log := new(clitest.Buffer)
			w, err := worker.New(worker.Config{ID: "w1", Engine: server.URL, Logger: slog.New(slog.NewTextHandler(log, nil))}, s.connect(user))
			if err != nil {
				t.Fatal(err)
			}
			s.run(w.Run)
			if !within(8*time.Second, func() bool { return strings.Contains(log.String(), "credentials may be those of another role") }) {
				t.Errorf("its log has %s", log.String())
			}
		})
	}
}

// A gateway whose credentials are refused while it runs says so, and is ready again when they are not.
func TestCredentialsThatAreRevoked(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "nats.conf")
	write := func(password string) {
		t.Helper()
		if err := os.WriteFile(config, []byte("authorization { users: [ { user: g, password: "+password+" } ] }\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	b, err := broker.New(broker.Config{Listen: "127.0.0.1:0", StoreDir: t.TempDir(), ConfigFile: config})
	if err != nil {
		t.Fatal(err)
	}
	s := &secured{t: t}
	s.run(b.Run)
	<-b.Ready()
	nc, err := nats.Connect(b.ClientURL(), nats.UserInfo("g", "first"), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.IgnoreAuthErrorAbort())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	gw, err := gateway.New(gateway.Config{Auth: gateway.AuthOff}, nc)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.run(func(ctx context.Context) error { return gw.Run(ctx, l, nil) })
	if !within(time.Minute, func() bool { return gw.NotReady() == "" }) {
		t.Fatal(gw.NotReady())
	}
	write("second")
	if err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	if !within(time.Minute, func() bool { return strings.Contains(gw.NotReady(), "the server refuses the credentials") }) {
		t.Errorf("not ready: %q", gw.NotReady())
	}
	write("first")
	if err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	if !within(time.Minute, func() bool { return gw.NotReady() == "" }) {
		t.Errorf("not ready: %q", gw.NotReady())
	}
}
