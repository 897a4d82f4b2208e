package main

import (
	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/background"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/gateway"
)

func addBackgroundFlags(fs *pflag.FlagSet, cfg *background.Config) {
	fs.DurationVar(&cfg.Keep, "background-keep", 0, "how long a background response is kept after its end, and each of its events after it came; at least 10m (default 1h)")
	fs.DurationVar(&cfg.Within, "background-within", 0, "how long a background response may take from its acceptance to its end (default 24h)")
	fs.IntVar(&cfg.Running, "background-running", 0, "how many background responses this gateway runs at the same time (default 256)")
	fs.Int64Var(&cfg.Pending, "background-pending", 0, "how many background responses of a tenant may wait or run; set when the first one is stored (default 1000)")
	cli.SizeVar(fs, &cfg.MaxAnswer, "background-answer", 0, "maximum size of the answer of a background response with its events (default 16MiB)")
	cli.SizeVar(fs, &cfg.Store, "background-store", 0, "maximum size of what is stored of all background responses; set when the first one is stored (default 1GiB, or what the broker has room for)")
}

// addBackground makes the services of a gateway.
func (g *gatewayFlags) addBackground(cfg *gateway.Config, nc *nats.Conn) error {
	b := g.background
	b.Replicas, b.Logger = cfg.Replicas, cfg.Logger
	s, err := background.New(b, nc)
	if err != nil {
		return cli.Usagef("--background-*: %w", err)
	}
	cfg.Services = append(cfg.Services, s)
	return nil
}
