//go:build linux

package broker_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/broker"
)

// logLines keeps what is logged.
type logLines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logLines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logLines) has(s string) bool { return strings.Contains(l.all(), s) }

// await returns when ok does, and fails the test after a minute.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// fillDisk makes the next blocks of a stream's messages writes to a full disk.
func fillDisk(t *testing.T, store, stream string) (free func()) {
	t.Helper()
	var full []string
	for i := 2; i < 10; i++ {
		block := filepath.Join(store, "jetstream", "$G", "streams", stream, "msgs", fmt.Sprint(i, ".blk"))
		if err := os.Symlink("/dev/full", block); err == nil {
			full = append(full, block)
		}
	}
	if len(full) == 0 {
		t.Fatal("no block of the stream can be made full")
	}
	return func() {
		for _, block := range full {
			os.Remove(block)
		}
	}
}

// publishUntil publishes until a condition holds, and returns how many messages were acknowledged.
func publishUntil(t *testing.T, js jetstream.JetStream, what string, holds func(stored bool) bool) (acked int) {
	t.Helper()
	await(t, what, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := js.Publish(ctx, "disk", make([]byte, 32<<10), jetstream.WithRetryAttempts(0))
		if err == nil {
			acked++
		}
		return holds(err == nil)
	})
	return acked
}

func stored(stored bool) bool { return stored }

// nats-server never writes again to a stream after a write error. The broker starts it again when the store can be written, on the
// same port and with the same name; what was acknowledged is still there.
func TestFullDiskRecovers(t *testing.T) {
	for name, cfg := range map[string]broker.Config{
		"a port that was chosen": {Listen: "127.0.0.1:0"},
		"in process":             {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := t.TempDir()
			log := new(logLines)
			cfg.StoreDir, cfg.Logger = store, slog.New(slog.NewTextHandler(log, nil))
			b, _ := start(t, cfg)
			js := connect(t, b.ClientURL(), nats.InProcessServer(inProcess(cfg, b)), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
			url, server := b.ClientURL(), js.Conn().ConnectedServerName()
			for _, s := range []jetstream.StreamConfig{
				{Name: "DISK", Subjects: []string{"disk"}, MaxBytes: 16 << 20}, // in several blocks
				{Name: "MEMORY", Subjects: []string{"memory"}, Storage: jetstream.MemoryStorage},
			} {
				if _, err := js.CreateStream(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() {
				if t.Failed() {
					t.Log(log.all())
				}
			})
			acked := publishUntil(t, js, "a message is stored", stored)
			free := fillDisk(t, store, "DISK")
			probe := filepath.Join(store, "jetstream", "probe") // what the broker tries to write
			if err := os.MkdirAll(filepath.Join(probe, "x"), 0o700); err != nil {
				t.Fatal(err)
			}
			acked += publishUntil(t, js, "the log names the store and the reason", func(bool) bool {
				return log.has("critical write error") && log.has("the store cannot be written") && log.has(store)
			})
			if _, err := js.Publish(t.Context(), "memory", nil); err != nil {
				t.Errorf("a stream in memory, while the disk is full: %v", err)
			}
			if log.has("has started again") {
				t.Error("the server was started again though the store cannot be written")
			}

			free()
			if err := os.RemoveAll(probe); err != nil {
				t.Fatal(err)
			}
			await(t, "the server is started again", func() bool { return log.has("has started again") })
			publishUntil(t, js, "a message is stored", stored)
			if got := js.Conn().ConnectedServerName(); got != server || b.ClientURL() != url {
				t.Errorf("afterwards the server is %s at %s, want %s at %s", got, b.ClientURL(), server, url)
			}
			s, err := js.Stream(t.Context(), "DISK")
			if err != nil {
				t.Fatal(err)
			}
			if got := int(s.CachedInfo().State.Msgs); got < acked+1 {
				t.Errorf("%d messages afterwards, but %d were acknowledged before", got, acked)
			}
		})
	}
}

func inProcess(cfg broker.Config, b *broker.Broker) nats.InProcessConnProvider {
	if cfg.Listen == "" {
		return b
	}
	return nil
}

// A broker that waits for its store ends when it is told to.
func TestEndWhileDiskIsFull(t *testing.T) {
	store := t.TempDir()
	log := new(logLines)
	b, stop := start(t, broker.Config{Listen: "127.0.0.1:0", StoreDir: store, Logger: slog.New(slog.NewTextHandler(log, nil))})
	js := connect(t, b.ClientURL())
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "DISK", Subjects: []string{"disk"}, MaxBytes: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	publishUntil(t, js, "a message is stored", stored)
	fillDisk(t, store, "DISK")
	if err := os.MkdirAll(filepath.Join(store, "jetstream", "probe", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	publishUntil(t, js, "the log says so", func(bool) bool { return log.has("the store cannot be written") })
	stop()
}
