package main

import (
	"context"
	"log/slog"
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/adminport"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
)

// adminFlags are those of the admin port of a worker or a broker. A gateway has the same ones.
type adminFlags struct {
	listen    *pflag.Flag
	tokenFile string
	hosts     []string
}

// addAdminFlags adds them. at is the default address; if it is in use, another port is taken.
func addAdminFlags(fs *pflag.FlagSet, at string) *adminFlags {
	a := &adminFlags{}
	fs.String("admin", at, "`host:port` for health checks, metrics and profiles; port 0 chooses a free one, as does the default if it is in use; \"\" turns it off")
	a.listen = fs.Lookup("admin")
	fs.StringVar(&a.tokenFile, "admin-token-file", "", "`file` with a token that clients of --admin must send as Authorization: Bearer, for all but health checks; read again for each request")
	fs.StringSliceVar(&a.hosts, "admin-host", nil, "`name`s under which --admin on loopback is served besides localhost, separated by commas")
	return a
}

// adminServer is an open admin port, which does not serve yet. Nil is one that is turned off.
type adminServer struct {
	listener net.Listener
	port     *adminport.Port
	log      *slog.Logger
}

func (a *adminFlags) open(log *slog.Logger) (*adminServer, error) {
	at := a.listen.Value.String()
	if at == "" {
		return nil, nil
	}
	var token func() string
	var err error
	if a.tokenFile != "" {
		if token, err = adminToken(a.tokenFile, log); err != nil {
			return nil, cli.Usagef("--admin-token-file: %w", err)
		}
	}
	l, err := openPort("admin", at)
	if err != nil && !a.listen.Changed { // another part on this machine may have it
		host, _, _ := net.SplitHostPort(at)
		l, err = openPort("admin", net.JoinHostPort(host, "0"))
	}
	if err != nil {
		return nil, err
	}
	return &adminServer{l, adminport.New(token, a.hosts, l.Addr()), log}, nil
}

// during serves metrics while run runs.
func (a *adminServer) during(ctx context.Context, metrics []prometheus.Collector, notReady func() string, run func() error) error {
	if a == nil {
		return run()
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(append(metrics, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))...)
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	var serves sync.WaitGroup
	serves.Go(func() {
		if err := a.port.Serve(serving, a.listener, registry, notReady); err != nil {
			a.log.Error("admin port closed", "err", err)
		}
	})
	defer serves.Wait()
	defer stop()
	return run()
}

func (a *adminServer) url() string { return "http://" + a.listener.Addr().String() }
