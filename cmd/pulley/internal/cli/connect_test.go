package cli_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
)

func TestConnectCredentials(t *testing.T) {
	kp, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, _ := kp.Seed()
	pub, _ := kp.PublicKey()
	secret := clitest.WriteFile(t, "secret", "s3cret\n")
	wrong := clitest.WriteFile(t, "wrong", "wrong\n")
	user, _ := clitest.Broker(t, broker.Config{Username: "ann", Password: "s3cret"})
	token, _ := clitest.Broker(t, broker.Config{Token: "s3cret"})
	nkey, _ := clitest.Broker(t, broker.Config{ConfigFile: clitest.WriteFile(t, "nats.conf", "authorization { users: [ {nkey: "+pub+"} ] }")})

	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	t.Setenv("NATS_URL", "")
	t.Setenv("NATS_CONTEXT", "")
	contexts := filepath.Join(config, "nats", "context")
	if err := os.MkdirAll(contexts, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(contexts, "prod.json"), []byte(`{"url":"`+user+`","user":"ann","password":"s3cret"}`), 0o600); err != nil {
		t.Fatal(err)
	}

	tests := map[string]struct {
		args []string
		env  map[string]string
		want string // of the error; empty for success
	}{
		"user":                      {args: []string{"--nats", user, "--nats-user", "ann", "--nats-password-file", secret}},
		"server is an alias":        {args: []string{"--server", user, "--nats-user", "ann", "--nats-password-file", secret}},
		"token":                     {args: []string{"--nats", token, "--nats-token-file", secret}},
		"nkey":                      {args: []string{"--nats", nkey, "--nkey", clitest.WriteFile(t, "nkey", string(seed))}},
		"one server of two is up":   {args: []string{"--nats", "nats://127.0.0.1:1," + token, "--nats-token-file", secret}},
		"context":                   {args: []string{"--context", "prod"}},
		"context in environment":    {env: map[string]string{"NATS_CONTEXT": "prod"}},
		"URL in environment":        {args: []string{"--nats-token-file", secret}, env: map[string]string{"NATS_URL": token}},
		"flag over environment":     {args: []string{"--nats", token, "--nats-token-file", secret}, env: map[string]string{"NATS_URL": user, "NATS_CONTEXT": "prod"}},
		"server over the context's": {args: []string{"--context", "prod", "--nats", "nats://127.0.0.1:1"}, want: "cannot reach NATS at nats://127.0.0.1:1: connection refused; is 'pulley up' or 'pulley broker' running?"},
		"wrong password":            {args: []string{"--nats", user, "--nats-user", "ann", "--nats-password-file", wrong}, want: "refuses the credentials: nats: Authorization Violation"},
		"unknown context":           {args: []string{"--context", "dev"}, want: `--context dev: unknown context "dev"`},
		"no server":                 {args: []string{"--nats", "nats://u:s3cret@127.0.0.1:1"}, want: "cannot reach NATS at nats://u:xxxxx@127.0.0.1:1: connection refused; is 'pulley up'"},
		"not a URL":                 {args: []string{"--nats", "nats://"}, want: `--nats "nats://": must be a URL such as nats://127.0.0.1:4222`},
		"no password":               {args: []string{"--nats-user", "ann"}, want: "--nats-user and --nats-password-file must be used together"},
		"no such secret":            {args: []string{"--nats-token-file", "/nowhere"}, want: "--nats-token-file: open /nowhere: no such file"},
		"no such credentials":       {args: []string{"--creds", "/nowhere"}, want: "--creds: stat /nowhere: no such file"},
		"no such authority":         {args: []string{"--tls-ca", "/nowhere"}, want: "NATS settings: "},
		"two kinds":                 {args: []string{"--creds", secret, "--nkey", secret}, want: "exclude each other"},
		"certificate without key":   {args: []string{"--tls-cert", secret}, want: "--tls-cert and --tls-key must be used together"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			nc, err := parseConnect(t, tt.args...).Connect(t.Context(), "test")
			if err == nil {
				nc.Close()
			}
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("connect: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("connect: %v, want %q", err, tt.want)
			}
		})
	}
}

func TestConnectPatientlyWaitsForTheBroker(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	c := parseConnect(t, "--nats", addr)

	var log clitest.Buffer
	ctx := cli.WithLogger(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
	connected := make(chan *nats.Conn)
	go func() {
		nc, err := c.ConnectPatiently(ctx, "test")
		if err != nil {
			t.Error(err)
		}
		connected <- nc
	}()
	log.WaitFor(t, "waiting for NATS")
	_, stop := clitest.Broker(t, broker.Config{Listen: addr})
	nc := <-connected
	if nc == nil {
		t.FailNow()
	}
	defer nc.Close()

	stop()
	log.WaitFor(t, "disconnected from NATS")
	clitest.Broker(t, broker.Config{Listen: addr})
	log.WaitFor(t, "reconnected to NATS")
}

// A secret that changes in its file, and at the broker, is used for the next connection. What the broker refuses meanwhile is
// logged once.
func TestCredentialsChange(t *testing.T) {
	for about, c := range map[string]struct {
		flags  func(file string) []string
		broker func(secret string) broker.Config
	}{
		"a token":    {func(file string) []string { return []string{"--nats-token-file", file} }, func(s string) broker.Config { return broker.Config{Token: s} }},
		"a password": {func(file string) []string { return []string{"--nats-user", "ann", "--nats-password-file", file} }, func(s string) broker.Config { return broker.Config{Username: "ann", Password: s} }},
	} {
		t.Run(about, func(t *testing.T) {
			file := clitest.WriteFile(t, "secret", "one\n")
			url, stop := clitest.Broker(t, c.broker("one"))
			cfg := c.broker("two")
			cfg.Listen = strings.TrimPrefix(url, "nats://")
			var log clitest.Buffer
			ctx := cli.WithLogger(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
			nc, err := parseConnect(t, append(c.flags(file), "--nats", url)...).ConnectPatiently(ctx, "test")
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			stop()
			clitest.Broker(t, cfg)
			log.WaitFor(t, "authorization violation")
			if err := os.Remove(file); err != nil { // it is replaced in two steps
				t.Fatal(err)
			}
			log.WaitFor(t, "credentials for NATS not read")
			if err := os.WriteFile(file, []byte("two"), 0o600); err != nil {
				t.Fatal(err)
			}
			log.WaitFor(t, "reconnected to NATS")
			if n := strings.Count(strings.ToLower(log.String()), "authorization violation"); n > 4 {
				t.Errorf("the refusal was logged %d times:\n%s", n, log.String())
			}
		})
	}
}

func TestConnectPatientlyEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(cli.ErrInterrupted) })
	if _, err := parseConnect(t, "--nats", "127.0.0.1:1").ConnectPatiently(ctx, "test"); !errors.Is(err, cli.ErrInterrupted) {
		t.Errorf("connectPatiently: %v, want %v", err, cli.ErrInterrupted)
	}
}

func TestPermissionViolationIsLogged(t *testing.T) {
	url, _ := clitest.Broker(t, broker.Config{ConfigFile: clitest.WriteFile(t, "nats.conf",
		`authorization { users: [ {user: ann, password: s3cret, permissions: {publish: "a"}} ] }`)})
	var log clitest.Buffer
	ctx := cli.WithLogger(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
	nc, err := parseConnect(t, "--nats", url, "--nats-user", "ann", "--nats-password-file", clitest.WriteFile(t, "p", "s3cret")).Connect(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.Publish("b", nil)
	log.WaitFor(t, "Permissions Violation for Publish")
}

// parseConnect parses the flags for a connection.
func parseConnect(t *testing.T, args ...string) *cli.ConnectFlags {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	c := cli.AddConnectFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return c
}
