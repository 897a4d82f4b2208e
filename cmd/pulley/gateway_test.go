package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTrustedProxies(t *testing.T) {
	for list, want := range map[string]string{
		"": "[]", "10.0.0.0/8": "[10.0.0.0/8]", "10.1.2.3/8": "[10.0.0.0/8]", "192.0.2.1": "[192.0.2.1/32]",
		"fd00::/8,::1": "[fd00::/8 ::1/128]", " 10.0.0.0/8 , 192.0.2.1 ": "[10.0.0.0/8 192.0.2.1/32]",
		"proxy": "error", "10.0.0.0/33": "error", "10.0.0.0/8,": "error",
	} {
		var in []string
		if list != "" {
			in = strings.Split(list, ",")
		}
		out, err := prefixes(in)
		got := fmt.Sprint(out)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: got %s, %v, want %s", list, got, err, want)
		}
	}
}

func TestAdminToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	for token, says := range map[string]string{"": "is empty", "\n": "is empty", "secret\n": "too short"} {
		write(token)
		if _, err := adminToken(path, log); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v", token, err)
		}
	}
	if _, err := adminToken(path+"-none", log); err == nil {
		t.Error("no file")
	}
	write("0123456789abcdef\n")
	read, err := adminToken(path, log)
	if err != nil || read() != "0123456789abcdef" {
		t.Fatalf("got %q, %v", read(), err)
	}
	write("another-one-that-is-long")
	if got := read(); got != "another-one-that-is-long" {
		t.Errorf("replaced: got %q", got)
	}
	write("")
	if got := read(); got != "another-one-that-is-long" {
		t.Errorf("unreadable: got %q", got)
	}
}

func TestListenerFilesThatAreMissing(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for about, c := range map[string]struct {
		g    gatewayFlags
		says string
	}{
		"a certificate alone": {gatewayFlags{cert: none}, "must be used together"},
		"a key alone":         {gatewayFlags{key: none}, "must be used together"},
		"authorities alone":   {gatewayFlags{ca: none}, "must be used together"},
		"no such file":        {gatewayFlags{cert: none, key: none}, "no such file"},
	} {
		c.g.listen = "127.0.0.1:0"
		if _, _, err := c.g.listeners(slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %q", about, err, c.says)
		}
	}
	g := gatewayFlags{listen: "127.0.0.1:0"}
	ingress, _, err := g.listeners(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer ingress.Close()
	if url := g.url(ingress.Addr()); !strings.HasPrefix(url, "http://127.0.0.1:") {
		t.Errorf("got %s", url)
	}
}
