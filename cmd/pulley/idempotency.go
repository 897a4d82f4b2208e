package main

import (
	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/idempotency"
)

type idempotencyFlags struct {
	idempotency.Config
	off bool
}

func addIdempotencyFlags(fs *pflag.FlagSet, f *idempotencyFlags) {
	fs.BoolVar(&f.off, "no-idempotency", false, "ignore Idempotency-Key in requests")
	fs.DurationVar(&f.Keep, "idempotency-keep", 0, "how long an Idempotency-Key and its answer are kept after the first request with it came; at least 1m (default 24h)")
	fs.DurationVar(&f.Grace, "idempotency-grace", 0, "how long a request with an Idempotency-Key runs on when no client waits for it any more (default 10s)")
	cli.SizeVar(fs, &f.MaxAnswer, "idempotency-answer", 0, "maximum size of an answer to a request with an Idempotency-Key (default 16MiB)")
	cli.SizeVar(fs, &f.Store, "idempotency-store", 0, "maximum size of all answers that are kept by Idempotency-Key; set when the first one is stored (default 1GiB, or what the broker has room for)")
	cli.SizeVar(fs, &f.Tenant, "idempotency-tenant-store", 0, "maximum size of those of a tenant, of which each counts for 4KiB at least; set when the first one is stored (default half of --idempotency-store)")
	fs.BoolVar(&f.Retries, "join-retries", false, "retries of an SDK (x-stainless-retry-count) without a key get the answer of the first request of the tenant with the same path and body, if that still runs; see docs/idempotency.md")
}

// addIdempotency must come before other services that take calls of inference: what they answer is kept too.
func (g *gatewayFlags) addIdempotency(cfg *gateway.Config, nc *nats.Conn) error {
	if g.idempotency.off {
		return nil
	}
	c := g.idempotency.Config
	c.Replicas, c.Logger = cfg.Replicas, cfg.Logger
	s, err := idempotency.New(c, nc)
	if err != nil {
		return cli.Usagef("--idempotency-*: %w", err)
	}
	cfg.Services = append(cfg.Services, s)
	return nil
}
