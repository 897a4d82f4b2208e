package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/gateway"
)

// gatewayFlags are the flags that pulley gateway and pulley up have in common.
type gatewayFlags struct {
	listen, admin string
	auth          string
	explain       string
	cfg           gateway.Config
}

// config returns the configuration of the gateway. Unless --auth off is given, a gateway that is not on loopback
// requires keys.
func (g *gatewayFlags) config(ctx context.Context) (gateway.Config, error) {
	cfg := g.cfg
	cfg.Logger, cfg.Version = cli.Logger(ctx), buildVersion()
	cfg.Explain = gateway.ExplainMode(g.explain)
	host, _, err := net.SplitHostPort(g.listen)
	if err != nil {
		return cfg, cli.Usagef("--listen %q: must be host:port, such as 127.0.0.1:8080", g.listen)
	}
	switch mode := gateway.AuthMode(g.auth); {
	case mode == gateway.AuthAuto && !loopback(host): // otherwise anyone on the network could use the GPUs
		cfg.Auth = gateway.AuthRequired
	case mode == gateway.AuthAuto, mode == gateway.AuthRequired, mode == gateway.AuthOff:
		cfg.Auth = mode
	default:
		return cfg, cli.Usagef("--auth %q: must be auto, required or off", g.auth)
	}
	return cfg, nil
}

// listeners opens the ports of the API and of the admin server.
func (g *gatewayFlags) listeners() (ingress, admin net.Listener, err error) {
	if ingress, err = net.Listen("tcp", g.listen); err != nil {
		return nil, nil, fmt.Errorf("--listen %s: %w", g.listen, portError(err))
	}
	if g.admin != "" {
		if admin, err = net.Listen("tcp", g.admin); err != nil {
			ingress.Close()
			return nil, nil, fmt.Errorf("--admin %s: %w", g.admin, portError(err))
		}
	}
	return ingress, admin, nil
}

func addGatewayFlags(fs *pflag.FlagSet) *gatewayFlags {
	g := &gatewayFlags{}
	fs.StringVar(&g.listen, "listen", "127.0.0.1:8080", "`host:port` of the API; port 0 chooses a free one")
	fs.StringVar(&g.admin, "admin", "127.0.0.1:8081", "`host:port` for health checks, metrics and profiles; port 0 chooses a free one, \"\" turns it off")
	fs.StringVar(&g.auth, "auth", "auto", "whether clients need a key: required, off, or auto (once a key exists, and always if --listen is not loopback)")
	fs.StringVar(&g.explain, "explain", "keys", "which answers tell in x-pulley-* headers who served them and why: keys (on x-pulley-explain: 1, with a key that has --explain), asked (on x-pulley-explain: 1), or always")
	fs.StringVar(&g.cfg.DefaultModel, "default-model", "", "`model` of requests that name none, or only: the one that the workers serve (default: such requests are refused)")
	fs.StringArrayVar(&g.cfg.AllowPaths, "allow-path", nil, "`path` of engines that clients may use besides those of inference, such as /api/show; * is any one segment, ** at the end any rest (repeatable)")
	fs.StringArrayVar(&g.cfg.CORSOrigins, "cors-origin", nil, "`origin` of web pages that may call the API, such as https://chat.example.com; * for any (repeatable)")
	fs.DurationVar(&g.cfg.NoWorkerWait, "no-worker-wait", 0, "how long a request waits while no worker serves its model (default 30s)")
	fs.DurationVar(&g.cfg.FirstByteWithin, "first-byte-within", 0, "how long a stream may take to its first byte before it moves once to another worker with a free slot; a tier may set its own (default much longer than the worker has measured)")
	fs.DurationVar(&g.cfg.KeepAlive, "keep-alive", 0, "interval of the SSE comments that a waiting stream gets (default 10s)")
	fs.DurationVar(&g.cfg.SlowClient, "slow-client", 0, "how long a client may read nothing before its request is cancelled (default 30s)")
	fs.DurationVar(&g.cfg.MaxDeadline, "max-deadline", 0, "maximum deadline that a client may ask for (default 24h)")
	fs.Float64Var(&g.cfg.RetryBudget, "retry-budget", 0, "retries of a pool within 10s as a `share` of its first attempts; ten are always allowed (default 0.2)")
	cli.SizeVar(fs, &g.cfg.MaxBody, "max-body", 0, "maximum size of a request body (default 64MiB)")
	cli.SizeVar(fs, &g.cfg.InlineBody, "inline-body", 0, "maximum size of a body in the queue; workers fetch larger ones from the gateway (default 256KiB)")
	cli.SizeVar(fs, &g.cfg.BodyMemory, "body-memory", 0, "maximum size of all request bodies in memory (default 1GiB)")
	return g
}

func newGatewayCommand() *cobra.Command {
	var replicas int
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Run an HTTP ingress",
		Long: `Run an HTTP ingress: it accepts OpenAI-style requests, puts them into a queue, and
streams the answers of the workers back. Any number of gateways can use the same
broker; they have nothing else in common.

A gateway creates the streams and consumers that it needs. On SIGTERM /readyz fails
at once, running requests finish, and the gateway exits with 0.`,
		Example: `  pulley gateway --nats nats://broker-1:4222,nats://broker-2:4222 --listen 127.0.0.1:8080
  curl -s 127.0.0.1:8080/v1/models`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	g := addGatewayFlags(fs)
	fs.DurationVar(&g.cfg.DrainTimeout, "drain-timeout", 0, "how long running requests may continue after SIGTERM (default 10m)")
	fs.DurationVar(&g.cfg.DrainDelay, "drain-delay", 0, "how long the port stays open after /readyz fails, so that load balancers notice")
	fs.IntVar(&replicas, "replicas", 1, "replicas of each stream that the gateway creates; use 3 on a cluster of three brokers")
	c := cli.AddConnectFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := g.config(cmd.Context())
		if err != nil {
			return err
		}
		if !slices.Contains([]int{1, 3, 5}, replicas) {
			return cli.Usagef("--replicas %d: must be 1, 3 or 5", replicas)
		}
		cfg.Replicas = replicas
		ingress, admin, err := g.listeners()
		if err != nil {
			return err
		}
		nc, err := c.ConnectPatiently(cmd.Context(), "pulley gateway")
		if err != nil {
			return err
		}
		defer nc.Close()
		gw, err := gateway.New(cfg, nc)
		if err != nil {
			return cli.Usagef("%w", err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "gateway  http://%s\n", ingress.Addr())
		if admin != nil {
			fmt.Fprintf(cmd.OutOrStdout(), "admin    http://%s\n", admin.Addr())
		}
		fmt.Fprintf(cmd.OutOrStdout(), "keys     %s\n", keysText(cfg.Auth, "required once a key exists (pulley key ls)"))
		return runParts(cmd.Context(), [][]part{{{"gateway", func(ctx context.Context) error { return gw.Run(ctx, ingress, admin) }}}})
	}
	return cmd
}

// keysText says whether clients need a key; auto is the text for --auth auto.
func keysText(auth gateway.AuthMode, auto string) string {
	switch auth {
	case gateway.AuthOff:
		return "not required (--auth off)"
	case gateway.AuthRequired:
		return "required; create one with: pulley key add --tenant NAME"
	}
	return auto
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// portError adds a remedy to the error about a port that is in use.
func portError(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return errors.New("the port is in use, possibly by another pulley or an engine; choose another port, or 0 for a free one")
	}
	return err
}
