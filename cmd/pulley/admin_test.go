package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/gateway"
)

// command runs a command until the test ends, and returns what it prints.
func command(t *testing.T, args ...string) *clitest.Buffer {
	t.Helper()
	out := new(clitest.Buffer)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(out)
	go func() { ended <- root.ExecuteContext(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return out
}

func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come true")
		}
	}
}

// get returns the status and the text of a page, asked for under a name.
func get(t *testing.T, url, host, token string) (status int, text string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		r.Host = host
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// Workers and brokers have an admin port of their own, with their own metrics, for those who may ask it.
func TestAdminPortsOfWorkersAndBrokers(t *testing.T) {
	const token = "0123456789abcdef"
	file := clitest.WriteFile(t, "token", token)
	url, _ := clitest.Broker(t, broker.Config{})
	for about, c := range map[string]struct {
		args   []string
		metric string
	}{
		"worker": {[]string{"worker", "--nats", url, "--nvml", "off", "--engine", fakeEngine(t) + ",name=w"}, `state="ready",worker="w"} 1`},
		"broker": {[]string{"broker", "--listen", "127.0.0.1:0", "--store-dir", t.TempDir()}, "\npulley_broker_ready 1\n"},
	} {
		t.Run(about, func(t *testing.T) {
			out := command(t, append(c.args, "--admin", "127.0.0.1:0", "--admin-token-file", file, "--admin-host", "inside.example")...)
			admin := regexp.MustCompile(`admin\b.*(http://127\.0\.0\.1:[1-9]\d*)`)
			eventually(t, func() bool { return admin.MatchString(out.String()) })
			at := admin.FindStringSubmatch(out.String())[1]
			eventually(t, func() bool {
				status, text := get(t, at+"/metrics", "", token)
				return status == http.StatusOK && strings.Contains(text, c.metric)
			})
			for _, p := range []struct {
				path, host, token string
				status            int
			}{
				{"/metrics", "", "", 401}, {"/metrics", "", "wrong", 401}, {"/metrics", "inside.example", token, 200}, {"/metrics", "evil.example", token, 403},
				{"/healthz", "", "", 200}, {"/livez", "", "", 200}, {"/readyz", "", "", 200}, {"/debug/pprof/", "", token, 200}, {"/", "", token, 404},
			} {
				if status, text := get(t, at+p.path, p.host, p.token); status != p.status {
					t.Errorf("%s of %s: %d %s, want %d", p.path, p.host, status, text, p.status)
				}
			}
		})
	}
}

// The default port of an admin port gives way; one that was asked for does not.
func TestAdminPortThatIsInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	open := func(args ...string) (string, error) {
		fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
		a := addAdminFlags(fs, taken.Addr().String())
		if err := fs.Parse(args); err != nil {
			t.Fatal(err)
		}
		cmd := new(cobra.Command)
		cmd.SetContext(t.Context())
		s, err := a.open(cli.Logger(cmd.Context()))
		if s == nil {
			return "", err
		}
		defer s.listener.Close()
		return s.listener.Addr().String(), err
	}
	if at, err := open(); err != nil || at == "" || at == taken.Addr().String() {
		t.Errorf("the default: %q, %v", at, err)
	}
	if at, err := open("--admin", taken.Addr().String()); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("one that was asked for: %q, %v", at, err)
	}
	if at, err := open("--admin", ""); err != nil || at != "" {
		t.Errorf("turned off: %q, %v", at, err)
	}
}

func TestMetricLabels(t *testing.T) {
	for text, want := range map[string]gateway.Labels{"": {}, "model": {Model: true}, "tenant,model": {Model: true, Tenant: true}, " tenant ": {Tenant: true}} {
		var names []string
		if text != "" {
			names = strings.Split(text, ",")
		}
		if got, err := gateway.ParseLabels(names); err != nil || got != want {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
	if _, err := gateway.ParseLabels([]string{"model", "user"}); err == nil || !strings.Contains(err.Error(), `"user"`) {
		t.Errorf("an unknown label: %v", err)
	}
}
