package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/worker"
)

// The gateway of pulley up makes way for other programs on its usual ports, but for nobody on ports that its user has chosen.
func TestUpMakesWay(t *testing.T) {
	program := httptest.NewServer(http.NotFoundHandler())
	defer program.Close()
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Pulley-Request-Id", "1") }))
	defer gateway.Close()
	spare, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	spare.Close()
	free := spare.Addr().String()
	address := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	for about, tt := range map[string]struct {
		listen, admin string
		chosen        string // flags that the user has given
		engine        string
		moved         []string
	}{
		"nothing there":                {listen: free, admin: "127.0.0.1:0"},
		"a program":                    {listen: address(program), admin: "127.0.0.1:0", moved: []string{"--listen"}},
		"a program on both":            {listen: address(program), admin: address(program), moved: []string{"--listen", "--admin"}},
		"another Pulley":               {listen: address(gateway), admin: "127.0.0.1:0"},
		"the user's choice":            {listen: address(program), admin: address(program), chosen: "listen admin"},
		"no admin port":                {listen: free, admin: ""},
		"an engine that is down":       {listen: free, admin: "127.0.0.1:0", engine: "http://" + strings.Replace(free, "127.0.0.1", "localhost", 1), moved: []string{"--listen"}},
		"an engine on another machine": {listen: free, admin: "127.0.0.1:0", engine: "http://" + strings.Replace(free, "127.0.0.1", "10.0.0.9", 1)},
	} {
		fs := pflag.NewFlagSet("up", pflag.ContinueOnError)
		u := &upFlags{gateway: addGatewayFlags(fs)}
		for flag := range strings.FieldsSeq(tt.chosen) {
			fs.Lookup(flag).Changed = true
		}
		u.gateway.listen, u.gateway.admin = tt.listen, tt.admin
		var engines []worker.Config
		if tt.engine != "" {
			engines = append(engines, worker.Config{Engine: tt.engine})
		}
		moved := u.makeWay(fs, engines)
		if len(moved) != len(tt.moved) {
			t.Errorf("%s: moved %q, want %q", about, moved, tt.moved)
			continue
		}
		for i, flag := range tt.moved {
			if !strings.Contains(moved[i], flag) {
				t.Errorf("%s: moved %q, want %q", about, moved, tt.moved)
			}
		}
		if (u.gateway.listen != tt.listen) != (len(tt.moved) > 0) || (u.gateway.admin != tt.admin) != (len(tt.moved) > 1) || len(tt.moved) > 1 && u.gateway.listen == u.gateway.admin {
			t.Errorf("%s: listen %s, admin %s", about, u.gateway.listen, u.gateway.admin)
		}
	}
}

// A gateway of Pulley is no engine, and a port that it has is said to be so.
func TestPortsThatCannotBe(t *testing.T) {
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Pulley-Request-Id", "1") }))
	defer gateway.Close()
	program := httptest.NewServer(http.NotFoundHandler())
	defer program.Close()
	for address, want := range map[string]string{
		gateway.Listener.Addr().String(): "the port is in use, by another Pulley; choose another port, or 0 for a free one",
		program.Listener.Addr().String(): "the port is in use, possibly by another pulley or an engine; choose",
		"127.0.0.1:99999":                "invalid port",
		"192.0.2.1:8080":                 "cannot assign requested address",
	} {
		l, err := openPort("listen", address)
		if err == nil {
			l.Close()
			t.Errorf("%s: no error", address)
		} else if !strings.HasPrefix(err.Error(), "--listen "+address+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
}
