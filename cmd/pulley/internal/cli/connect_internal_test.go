package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"
)

// The context that the nats command has selected is not used.
func TestSelectedContextIsNotUsed(t *testing.T) {
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	t.Setenv("NATS_URL", "")
	t.Setenv("NATS_CONTEXT", "")
	if err := os.MkdirAll(filepath.Join(config, "nats"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(config, "nats", "context.txt"), []byte("prod"), 0o600); err != nil {
		t.Fatal(err)
	}
	if urls, natsContext := AddConnectFlags(pflag.NewFlagSet("test", pflag.ContinueOnError)).target(); urls != nats.DefaultURL || natsContext != "" {
		t.Errorf("target() = %q, %q; want %q and no context", urls, natsContext, nats.DefaultURL)
	}
}
