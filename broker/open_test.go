package broker

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// These brokers do not listen: a test must not open ports beyond loopback.
func TestWarnsWhenOpenToOthers(t *testing.T) {
	cluster := Config{Listen: "127.0.0.1:0", ClusterName: "c", ClusterListen: "0.0.0.0:0", Routes: []string{"127.0.0.1:1"}}
	guarded := cluster
	guarded.Username, guarded.Password = "u", "p"
	tests := map[string]struct {
		cfg  Config
		want string // in the log; empty for silence
	}{
		"in process":               {Config{}, ""},
		"loopback":                 {Config{Listen: "127.0.0.1:0"}, ""},
		"localhost":                {Config{Listen: "localhost:0"}, ""},
		"loopback of IPv6":         {Config{Listen: "[::1]:0"}, ""},
		"everywhere":               {Config{Listen: "0.0.0.0:0"}, "asks for no credentials"},
		"everywhere, in short":     {Config{Listen: ":0"}, "asks for no credentials"},
		"everywhere, with a token": {Config{Listen: ":0", Token: "s3cret"}, ""},
		"routes from everywhere":   {cluster, "takes routes from beyond this machine"},
		"routes, with a password":  {guarded, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			tt.cfg.StoreDir = t.TempDir()
			tt.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
			b, err := New(tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			b.warnIfOpen()
			if got := log.String(); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("log %q, want %q", got, tt.want)
			}
		})
	}
}
