package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/background"
	"github.com/pulley-lb/pulley/batch"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/keda"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/page"
	"github.com/pulley-lb/pulley/gateway"
)

// gatewayFlags are the flags that pulley gateway and pulley up have in common.
type gatewayFlags struct {
	listen, admin string
	auth          string
	explain       string
	proxies       []string
	tokenFile     string
	cert, key, ca string // PEM files of the listener
	labels        []string
	direct        string
	access        accessFlags
	background    background.Config
	idempotency   idempotencyFlags
	cfg           gateway.Config
	noBatches     bool
	batches       batch.Config
	batchLate     int
}

// config returns the configuration of the gateway. Unless --auth off is given, a gateway that is not on loopback
// requires keys.
func (g *gatewayFlags) config(ctx context.Context) (gateway.Config, error) {
	cfg := g.cfg
	cfg.Logger, cfg.Version = cli.Logger(ctx), buildVersion()
	cfg.Explain = gateway.ExplainMode(g.explain)
	var err error
	if cfg.TrustedProxies, err = prefixes(g.proxies); err != nil {
		return cfg, cli.Usagef("--trusted-proxies %w", err)
	}
	if cfg.MetricLabels, err = gateway.ParseLabels(g.labels); err != nil {
		return cfg, cli.Usagef("--metric-labels %w", err)
	}
	if g.tokenFile != "" {
		if cfg.AdminToken, err = adminToken(g.tokenFile, cfg.Logger); err != nil {
			return cfg, cli.Usagef("--admin-token-file: %w", err)
		}
	}
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

// check checks the flags.
func (g *gatewayFlags) check(ctx context.Context) error {
	if _, err := g.config(ctx); err != nil {
		return err
	}
	_, err := g.tls(cli.Logger(ctx))
	return err
}

// adminToken returns a function that reads the token of the admin port.
func adminToken(path string, log *slog.Logger) (func() string, error) {
	const shortest = 16
	read, err := cli.Secret(path, "credentials of the admin port", log)
	if err != nil {
		return nil, err
	}
	if n := len(read()); n < shortest {
		return nil, fmt.Errorf("%s: a token of %d bytes is too short; use %d or more, such as from: openssl rand -hex 32", path, n, shortest)
	}
	return read, nil
}

// prefixes parses networks; an address is one of its own.
func prefixes(list []string) (out []netip.Prefix, err error) {
	for _, s := range list {
		s = strings.TrimSpace(s)
		p, err := netip.ParsePrefix(s)
		if addr, alone := netip.ParseAddr(s); alone == nil {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q: must be a network such as 10.0.0.0/8, or an address", s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// listeners opens the ports of the API and of the admin server.
func (g *gatewayFlags) listeners(log *slog.Logger) (ingress, admin net.Listener, err error) {
	secure, err := g.tls(log)
	if err != nil {
		return nil, nil, err
	}
	if ingress, err = openPort("listen", g.listen); err != nil {
		return nil, nil, err
	}
	if g.admin != "" {
		if admin, err = openPort("admin", g.admin); err != nil {
			ingress.Close()
			return nil, nil, err
		}
	}
	if secure != nil {
		ingress = tls.NewListener(ingress, secure)
	}
	return ingress, admin, nil
}

// tls returns the TLS settings of the API; nil if it has none.
func (g *gatewayFlags) tls(log *slog.Logger) (*tls.Config, error) {
	switch {
	case g.cert == "" && g.key == "" && g.ca == "":
		return nil, nil
	case g.cert == "" || g.key == "":
		return nil, cli.Usagef("--listen-tls-cert and --listen-tls-key must be used together; --listen-tls-client-ca needs them")
	}
	cfg, err := cli.ServerTLS(g.cert, g.key, g.ca, log)
	if err != nil {
		return nil, cli.Usagef("--listen-tls-cert, --listen-tls-key, --listen-tls-client-ca: %w", err)
	}
	return cfg, nil
}

// openDirect opens the port for answers that do not go through the broker. Unless one is given, that is one on loopback, if
// the broker is reached there: then so are workers.
func (g *gatewayFlags) openDirect(cfg *gateway.Config, nc *nats.Conn) (err error) {
	ours, _, notNetwork := net.SplitHostPort(nc.LocalAddr())
	at := g.direct
	switch {
	case at == "off":
		return nil
	case at == "auto" && notNetwork != nil: // the broker is in this process
		at = "127.0.0.1:0"
	case at == "auto" && !loopback(ours):
		return nil
	case at == "auto":
		at = net.JoinHostPort(ours, "0")
	}
	host, _, err := net.SplitHostPort(at)
	if err != nil {
		return cli.Usagef("--direct %q: must be auto, off or host:port, such as 10.0.0.5:8082", g.direct)
	}
	if cfg.Direct, err = openPort("direct", at); err != nil {
		return err
	}
	if ip := net.ParseIP(host); (host == "" || ip != nil && ip.IsUnspecified()) && notNetwork == nil {
		host = ours // workers reach the broker's network
	}
	_, port, err := net.SplitHostPort(cfg.Direct.Addr().String())
	cfg.DirectAddress = net.JoinHostPort(host, port)
	return err
}

// url is that of the API at an address.
func (g *gatewayFlags) url(at net.Addr) string {
	if g.cert != "" {
		return "https://" + at.String()
	}
	return "http://" + at.String()
}

func addGatewayFlags(fs *pflag.FlagSet) *gatewayFlags {
	g := &gatewayFlags{}
	fs.StringVar(&g.listen, "listen", "127.0.0.1:8080", "`host:port` of the API; port 0 chooses a free one")
	fs.StringVar(&g.cert, "listen-tls-cert", "", "PEM `file` with the certificate of the API, which is served with TLS then; read again when it changes")
	fs.StringVar(&g.key, "listen-tls-key", "", "PEM `file` with the key of --listen-tls-cert")
	fs.StringVar(&g.ca, "listen-tls-client-ca", "", "PEM `file` with certificate authorities; clients of the API need a certificate of one of them")
	fs.StringVar(&g.admin, "admin", "127.0.0.1:8081", "`host:port` for the live page, health checks, metrics and profiles; port 0 chooses a free one, \"\" turns it off")
	fs.StringVar(&g.direct, "direct", "auto", "`host:port` that workers can reach, so that answers need not go through the broker; auto (a free port on loopback, if the broker is there) or off")
	fs.StringVar(&g.tokenFile, "admin-token-file", "", "`file` with a token that clients of --admin must send as Authorization: Bearer, for all but health checks; read again for each request")
	fs.StringSliceVar(&g.cfg.AdminHosts, "admin-host", nil, "`name`s under which --admin on loopback is served besides localhost, separated by commas")
	fs.StringSliceVar(&g.labels, "metric-labels", nil, "`labels` of metrics whose values clients choose: model, tenant or both, separated by commas; each has 1000 values at most, then other (default none)")
	fs.StringVar(&g.auth, "auth", "auto", "whether clients need a key: required, off, or auto (once a key exists, and always if --listen is not loopback)")
	fs.StringVar(&g.explain, "explain", "keys", "which answers tell in x-pulley-* headers who served them and why: keys (on x-pulley-explain: 1, with a key that has --explain), asked (on x-pulley-explain: 1), or always")
	fs.StringVar(&g.cfg.DefaultModel, "default-model", "", "`model` of requests that name none, or only: the one that the workers serve (default: such requests are refused)")
	fs.StringArrayVar(&g.cfg.AllowPaths, "allow-path", nil, "`path` of engines that clients may use besides those of inference, such as /api/show; * is any one segment, ** at the end any rest (repeatable)")
	fs.StringSliceVar(&g.cfg.PassHeaders, "pass-response-header", nil, "`name`s of headers that clients get from engines besides the usual ones, separated by commas; a * at the end stands for any rest")
	fs.StringArrayVar(&g.cfg.CORSOrigins, "cors-origin", nil, "`origin` of web pages that may call the API, such as https://chat.example.com; * for any (repeatable)")
	fs.DurationVar(&g.cfg.NoWorkerWait, "no-worker-wait", 0, "how long a request waits while no worker serves its model (default 30s)")
	fs.DurationVar(&g.cfg.ForgetPools, "forget-pools", 0, "how long no worker may serve a model until its queue is removed, unless the policy names it or it has requests (default 10m)")
	fs.DurationVar(&g.cfg.FirstByteWithin, "first-byte-within", 0, "how long a stream may take to its first byte before it moves once to another worker with a free slot; a tier may set its own (default much longer than the worker has measured)")
	fs.DurationVar(&g.cfg.KeepAlive, "keep-alive", 0, "interval of the SSE comments that a waiting stream gets (default 10s)")
	fs.DurationVar(&g.cfg.SlowClient, "slow-client", 0, "how long a client may read nothing before its request is cancelled (default 30s)")
	fs.DurationVar(&g.cfg.MaxDeadline, "max-deadline", 0, "maximum deadline that a client may ask for (default 24h)")
	fs.Float64Var(&g.cfg.RetryBudget, "retry-budget", 0, "retries of a pool within 10s as a `share` of its first attempts; ten are always allowed (default 0.2)")
	cli.SizeVar(fs, &g.cfg.MaxBody, "max-body", 0, "maximum size of a request body (default 64MiB)")
	cli.SizeVar(fs, &g.cfg.InlineBody, "inline-body", 0, "maximum size of a body in the queue; workers fetch larger ones from the gateway (default 256KiB)")
	cli.SizeVar(fs, &g.cfg.BodyMemory, "body-memory", 0, "maximum size of all request bodies in memory (default 1GiB)")
	fs.Float64Var(&g.cfg.BodyShare, "body-share", 0, "`share` of --body-memory for the bodies of one API key, and for those on their way from one client address (default 0.5)")
	cli.SizeVar(fs, &g.cfg.BodyRate, "body-rate", 0, "minimum size of what comes of a request body in a second, on average, after its first 5s (default 1KiB)")
	fs.DurationVar(&g.cfg.BodyTime, "body-time", 0, "how long a request body may take, and a second more for each 16KiB of it (default 1m)")
	addIdempotencyFlags(fs, &g.idempotency)
	addBackgroundFlags(fs, &g.background)
	addAccessFlags(fs, &g.access)
	addBatchFlags(fs, g)
	fs.IntVar(&g.cfg.WrongKeys, "wrong-keys", 0, "how many wrong API keys may come from one address in a minute before they get 429 (default 30)")
	fs.StringSliceVar(&g.proxies, "trusted-proxies", nil, "`CIDR`s of the proxies whose x-forwarded-for says where a request comes from, separated by commas")
	return g
}

// addBatchFlags adds the flags of files and batches.
func addBatchFlags(fs *pflag.FlagSet, g *gatewayFlags) {
	b := &g.batches
	fs.BoolVar(&g.noBatches, "no-batches", false, "serve neither files nor batches")
	cli.SizeVar(fs, &b.Disk, "batch-disk", 0, "maximum size of all files and results on the broker's disk (default 10GiB)")
	cli.SizeVar(fs, &b.MaxFile, "batch-max-file", 0, "maximum size of the input of a batch (default 200MiB, and 256MiB for a batch of messages)")
	fs.IntVar(&b.MaxLines, "batch-max-requests", 0, "maximum number of requests of a batch (default 50000, and 100000 for a batch of messages)")
	fs.IntVar(&b.Window, "batch-window", 0, "how many requests of a batch run at once, at most (default 256)")
	fs.IntVar(&g.batchLate, "batch-late", 16, "how many requests of batches that would miss their windows run as ordinary calls of their keys at once, at most; 0: none")
	fs.IntVar(&b.Running, "batch-running", 0, "how many batches this gateway runs at once (default 16)")
	cli.SizeVar(fs, &b.TenantDisk, "batch-tenant-disk", 0, "maximum size of the files of a tenant (default half of --batch-disk)")
	fs.IntVar(&b.TenantFiles, "batch-tenant-files", 0, "maximum number of files of a tenant (default 1000)")
	fs.IntVar(&b.TenantBatches, "batch-tenant-batches", 0, "maximum number of a tenant's batches that have not ended (default 100)")
	fs.IntVar(&b.TenantLines, "batch-tenant-requests", 0, "maximum number of requests in a tenant's batches that are not answered yet (default 1000000)")
	fs.Int64Var(&b.TenantTokens, "batch-tenant-tokens", 0, "maximum number of tokens of these requests, estimated from their inputs and longest answers (default 10000000000)")
}

// addServices adds what the gateway serves besides inference.
func (g *gatewayFlags) addServices(cfg *gateway.Config, nc *nats.Conn) error {
	if err := g.addIdempotency(cfg, nc); err != nil {
		return err
	}
	if err := g.addBackground(cfg, nc); err != nil || g.noBatches {
		return err
	}
	if g.batchLate < 0 {
		return cli.Usagef("--batch-late: must not be negative")
	}
	b := g.batches
	b.Late = cmp.Or(g.batchLate, -1)
	b.Replicas, b.Logger = cfg.Replicas, cfg.Logger
	s, err := batch.New(b, nc)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	cfg.Services = append(cfg.Services, s)
	return nil
}

func newGatewayCommand() *cobra.Command {
	var replicas int
	var kedaListen string
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
	fs.StringVar(&kedaListen, "keda-listen", "", "`host:port` of an external scaler for KEDA, with the TLS settings of --listen; see docs/autoscaling.md (default: none)")
	fs.IntVar(&replicas, "replicas", 1, "replicas of each stream that the gateway creates; use 3 on a cluster of three brokers")
	cli.CompleteFixed(cmd, "access-log-format", "text", "json")
	traces := addTraceFlags(cmd)
	c := cli.AddConnectFlags(fs)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains([]int{1, 3, 5}, replicas) {
			return cli.Usagef("--replicas %d: must be 1, 3 or 5", replicas)
		}
		return errors.Join(g.check(cmd.Context()), c.Check(cmd.Context()))
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := g.config(cmd.Context())
		if err != nil {
			return err
		}
		cfg.Replicas = replicas
		if cfg.AccessLog, err = g.access.open(cmd); err != nil {
			return err
		}
		provider, endTraces, err := traces.open(cmd, "pulley-gateway")
		if err != nil {
			return err
		}
		defer endTraces()
		cfg.TracerProvider = provider
		ingress, admin, err := g.listeners(cfg.Logger)
		if err != nil {
			return err
		}
		var scaler net.Listener
		if kedaListen != "" {
			if scaler, err = openPort("keda-listen", kedaListen); err != nil {
				return err
			}
		}
		nc, err := c.ConnectPatiently(cmd.Context(), "pulley gateway")
		if err != nil {
			return err
		}
		defer nc.Close()
		if err := g.openDirect(&cfg, nc); err != nil {
			return err
		}
		if err := g.addServices(&cfg, nc); err != nil {
			return err
		}
		gw, err := newGateway(cfg, nc, ingress, admin, &g.access)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "gateway  %s\n", g.url(ingress.Addr()))
		if admin != nil {
			fmt.Fprintf(cmd.OutOrStdout(), "admin    http://%s\n", admin.Addr())
		}
		fmt.Fprintf(cmd.OutOrStdout(), "keys     %s\n", keysText(cfg.Auth, "required once a key exists (pulley key ls)"))
		beside := gw.page
		if scaler != nil {
			secure, err := g.tls(cfg.Logger)
			if err != nil {
				return err
			}
			beside = append(beside, part{"keda scaler", func(ctx context.Context) error { return keda.New(gw.Demand, cfg.Logger).Run(ctx, scaler, secure) }})
			fmt.Fprintf(cmd.OutOrStdout(), "keda     %s\n", scaler.Addr())
		}
		return runParts(cmd.Context(), [][]part{beside, {gw.run}})
	}
	return cmd
}

// gatewayParts is a gateway with its page, if it has one. The page is stopped after the gateway, whose last requests it shows.
type gatewayParts struct {
	*gateway.Gateway
	run  part
	page []part
}

// newGateway makes a gateway, with a page if it has an admin port.
func newGateway(cfg gateway.Config, nc *nats.Conn, ingress, admin net.Listener, access *accessFlags) (*gatewayParts, error) {
	var live *page.Page
	if admin != nil {
		var err error
		if live, err = page.New(nc, cfg.Version, cfg.AdminToken != nil, cfg.Logger); err != nil {
			return nil, err
		}
		cfg.Page = live.Admin()
	}
	gw, err := gateway.New(cfg, nc)
	if err != nil {
		return nil, cli.Usagef("%w", err)
	}
	g := &gatewayParts{Gateway: gw, run: part{"gateway", func(ctx context.Context) error {
		return access.during(cfg.Logger, func() error { return gw.Run(ctx, ingress, admin) })
	}}}
	if live != nil {
		g.page = append(g.page, part{"page", func(ctx context.Context) error { return live.Run(ctx, page.Source{View: gw.View, Hour: gw.Hour}) }})
	}
	return g, nil
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

// openPort opens the port that a flag names. A port or an address that cannot be is a usage error.
func openPort(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch _, wrong := errors.AsType[*net.AddrError](err); {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("--%s %s: the port is in use, %s; choose another port, or 0 for a free one", flag, address, occupant(address))
	case wrong, errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, cli.Usagef("--%s %s: %w", flag, address, errors.Unwrap(err))
	}
	return nil, fmt.Errorf("--%s %s: %w", flag, address, err)
}

// occupant says who may have a port of this machine.
func occupant(address string) string {
	if isPulley(address) {
		return "by another Pulley"
	}
	return "possibly by another pulley or an engine"
}

// isPulley says whether a gateway of Pulley answers at an address.
func isPulley(address string) bool {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}} // no proxy
	resp, err := client.Get("http://" + address + "/v1/models")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.Header.Get("X-Pulley-Request-Id") != ""
}
