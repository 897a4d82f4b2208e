package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

type upFlags struct {
	gateway    *gatewayFlags
	natsListen string
	storeDir   string
	engines    []string
	capacity   *capacityFlags
	traces     *traceFlags
	drain      time.Duration
}

func (u *upFlags) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	if !cmd.Flag("log-level").Changed { // the banner shows what has started
		log, err := cli.NewLogger(cmd.ErrOrStderr(), "warn", cmd.Flag("log-format").Value.String())
		if err != nil {
			return err
		}
		ctx = cli.WithLogger(ctx, log)
	}
	cfg, err := u.gateway.config(ctx)
	if err != nil {
		return err
	}
	cfg.DrainTimeout = u.drain
	if cfg.AccessLog, err = u.gateway.access.open(cmd); err != nil {
		return err
	}

	provider, endTraces, err := u.traces.open(cmd, "pulley")
	if err != nil {
		return err
	}
	defer endTraces()
	cfg.TracerProvider = provider

	engines, simulated, err := u.findEngines(ctx, cmd.Flag("listen").Changed)
	if err != nil {
		return err
	}
	defer simulated.close()
	if len(simulated) > 0 {
		u.capacity.nvml = "off" // they use no GPU
	}
	if err := u.capacity.equip(ctx, engines); err != nil {
		return err
	}

	moved := u.makeWay(cmd.Flags(), engines)
	ingress, admin, err := u.gateway.listeners(cfg.Logger)
	if err != nil {
		return err
	}
	b, stopBroker, err := u.startBroker(ctx)
	if err != nil {
		ingress.Close()
		return err
	}
	defer stopBroker()
	connect := func(name string) (*nats.Conn, error) {
		return nats.Connect("", append(cli.ConnOptions(cli.Logger(ctx), name), nats.InProcessServer(b))...)
	}

	nc, err := connect("pulley gateway")
	if err != nil {
		return err
	}
	defer nc.Close()
	local := new(subjects.Local)
	cfg.Local = local
	if err := u.gateway.openDirect(&cfg, nc); err != nil {
		return err
	}
	metrics := worker.NewMetrics()
	cfg.Collectors = append(metrics.Own(), b.Collector())
	if err := u.gateway.addServices(&cfg, nc); err != nil {
		return err
	}
	gw, err := newGateway(cfg, nc, ingress, admin, &u.gateway.access)
	if err != nil {
		return err
	}
	var workers []part
	for _, cfg := range engines {
		cfg.Metrics = metrics
		cfg.DrainTimeout, cfg.Logger, cfg.Version, cfg.Local, cfg.TracerProvider = u.drain, cli.Logger(ctx), buildVersion(), local, provider
		wnc, err := connect("pulley worker " + cfg.Name)
		if err != nil {
			return err
		}
		defer wnc.Close()
		w, err := worker.New(cfg, wnc)
		if err != nil {
			return cli.Usagef("%w", err)
		}
		workers = append(workers, part{"worker " + cfg.Name, w.Run})
	}
	ban := &banner{out: cmd.OutOrStdout(), gateway: gw.Gateway, auth: cfg.Auth, url: u.gateway.url(ingress.Addr()), broker: b.ClientURL(), store: u.storeDir, engines: engines, simulated: len(simulated) > 0, moved: moved}
	if admin != nil {
		ban.admin = admin.Addr()
	}
	return u.capacity.during(ctx, func() error {
		return runParts(ctx, [][]part{
			append(append(workers, part{"banner", ban.run}), gw.page...),
			{gw.run},
		})
	})
}

// startBroker runs the embedded broker. stop ends it; that must be last.
func (u *upFlags) startBroker(ctx context.Context) (b *broker.Broker, stop func(), err error) {
	b, err = broker.New(broker.Config{Listen: u.natsListen, StoreDir: u.storeDir, Logger: cli.Logger(ctx)})
	if err != nil {
		return nil, nil, cli.Usagef("%w", err)
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- b.Run(running) }() // stop waits for it
	select {
	case <-b.Ready():
		return b, func() { cancel(); <-ended }, nil
	case err := <-ended:
		cancel()
		return nil, nil, fmt.Errorf("broker: %w", err)
	}
}

// makeWay moves the ports of the gateway that the user has not chosen, if something else has them, such as llama.cpp on
// 8080: to the next port that is free. Another Pulley does not count, since a second one is rarely meant. It returns what to
// tell the user.
func (u *upFlags) makeWay(fs *pflag.FlagSet, engines []worker.Config) (moved []string) {
	const tries = 20
	taken := func(address string) bool {
		if slices.ContainsFunc(engines, func(e worker.Config) bool { return isAt(e.Engine, address) }) {
			return true
		}
		l, err := net.Listen("tcp", address)
		if err == nil {
			l.Close()
		}
		return errors.Is(err, syscall.EADDRINUSE)
	}
	move := func(flag string, address *string, first int, but string) {
		if fs.Changed(flag) || !taken(*address) || isPulley(*address) {
			return
		}
		host, _, _ := net.SplitHostPort(*address)
		for port := range tries {
			next := net.JoinHostPort(host, strconv.Itoa(first+port))
			if next != but && !taken(next) {
				moved = append(moved, fmt.Sprintf("%s is taken: --%s is %s", *address, flag, next))
				*address = next
				return
			}
		}
	}
	move("listen", &u.gateway.listen, 8090, u.gateway.admin)
	move("admin", &u.gateway.admin, 8091, u.gateway.listen)
	return moved
}

// isAt says whether a URL of an engine leads to an address of this machine.
func isAt(engine, address string) bool {
	u, err := url.Parse(engine)
	if err != nil {
		return false
	}
	_, port, _ := net.SplitHostPort(address)
	return loopback(u.Hostname()) && u.Port() == port
}

// findEngines returns the engines of --engine, else those on this machine, else simulated ones. On the port of the gateway
// it looks only if that is not the user's choice.
func (u *upFlags) findEngines(ctx context.Context, chosen bool) ([]worker.Config, simulations, error) {
	if len(u.engines) > 0 {
		cfgs, err := workerConfigs(ctx, u.engines)
		return cfgs, nil, err
	}
	var specs []string
	for _, found := range engine.Local(ctx, func(addr string) bool { return chosen && addr == u.gateway.listen || isPulley(addr) }) {
		specs = append(specs, found.URL)
	}
	if len(specs) > 0 {
		cfgs, err := workerConfigs(ctx, specs)
		return cfgs, nil, err
	}
	return simulate()
}

func newUpCommand() *cobra.Command {
	u := &upFlags{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything in one process",
		Long: `Run everything in one process: a broker, a gateway, and a worker for each engine.

Without --engine, Pulley looks for engines on the usual ports of this machine:
Ollama 11434, vLLM 8000, llama.cpp 8080, SGLang 30000, LM Studio 1234. If it finds
none, it starts two simulated engines of different speed. If another program has port
8080 or 8081, such as llama.cpp, the API and the admin port move to the next free ones
from 8090 on, unless --listen or --admin say where they must be.

'pulley worker --help' describes the keys of --engine and the capacity of workers.

Workers on other machines can join with 'pulley worker --nats …' if they can reach
the address of --nats-listen. The broker has no users: whoever reaches it can read and
answer every request, so it listens on loopback unless you say otherwise. For machines
that you trust less use 'pulley broker' with 'pulley nats-config'. Ctrl-C lets running requests finish, then exits; a
second Ctrl-C exits at once.`,
		Example: `  pulley up
  pulley up --engine http://127.0.0.1:11434 --engine http://10.0.0.7:8000,slots=64,name=big`,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			_, err := parseEngines(u.engines)
			return errors.Join(u.capacity.check(), u.gateway.check(cmd.Context()), err)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return u.run(cmd) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVar(&u.engines, "engine", nil, engineHelp)
	cmd.RegisterFlagCompletionFunc("engine", completeEngine)
	u.capacity = addCapacityFlags(cmd)
	u.gateway = addGatewayFlags(fs)
	cli.CompleteFixed(cmd, "access-log-format", "text", "json")
	u.traces = addTraceFlags(cmd)
	fs.StringVar(&u.natsListen, "nats-listen", "127.0.0.1:4222", "`host:port` of the broker; port 0 chooses a free one")
	fs.StringVar(&u.storeDir, "store-dir", cli.DefaultStoreDir(), "`directory` for the streams of the broker")
	fs.DurationVar(&u.drain, "drain-timeout", 30*time.Second, "how long running requests may continue after Ctrl-C")
	return cmd
}

// banner prints what was started and how to try it.
type banner struct {
	out           io.Writer
	gateway       *gateway.Gateway
	auth          gateway.AuthMode
	url           string // of the API
	admin         net.Addr
	broker, store string
	engines       []worker.Config
	simulated     bool
	moved         []string // ports that are not the usual ones, and why
}

// run prints the banner once there is a model, or after a few seconds without one. Then it waits for ctx, since it is
// one of the parts.
func (b *banner) run(ctx context.Context) error {
	url := b.url
	models := b.waitForModels(ctx, 5*time.Second)
	var s strings.Builder
	fmt.Fprintf(&s, "\nPulley %s\n\n", buildVersion())
	fmt.Fprintf(&s, "  gateway  %-28s  OpenAI-compatible API\n", url)
	if b.admin != nil {
		fmt.Fprintf(&s, "  admin    %-28s  live page; /readyz /metrics\n", "http://"+b.admin.String())
	}
	fmt.Fprintf(&s, "  broker   %-28s  store %s; no users: open to whoever reaches it\n", b.broker, b.store)
	auto := "none: every client on this machine may use the API (pulley key add --tenant NAME)"
	if b.gateway.KeysRequired() {
		auto = "required"
	}
	fmt.Fprintf(&s, "  keys     %s\n", keysText(b.auth, auto))
	for _, e := range b.engines {
		kind := e.EngineName
		if kind == "" {
			kind = "not answering yet"
		}
		fmt.Fprintf(&s, "  engine   %-28s  %s (%s)\n", e.Engine, e.Name, kind)
	}
	for _, m := range b.moved {
		fmt.Fprintf(&s, "  note     %s\n", m)
	}
	if b.simulated {
		s.WriteString("\n  No engine was found on this machine: two simulated engines were started.\n  To use your own: pulley up --engine http://127.0.0.1:8000\n")
	}
	if len(models) == 0 {
		s.WriteString("\n  No model yet: the workers are waiting for their engines.\n\n")
	} else {
		fmt.Fprintf(&s, "\n  models   %s\n\n", strings.Join(models, ", "))
		key := ""
		if b.gateway.KeysRequired() {
			key = ` -H "authorization: Bearer $KEY"`
		}
		fmt.Fprintf(&s, "Try it:\n\n  curl -N %s/v1/chat/completions%s -H 'content-type: application/json' \\\n    -d '{\"model\":\"%s\",\"stream\":true,\"max_tokens\":20,\"messages\":[{\"role\":\"user\",\"content\":\"Hello!\"}]}'\n\n", url, key, models[0])
	}
	if ctx.Err() == nil {
		io.WriteString(b.out, s.String())
	}
	<-ctx.Done()
	return nil
}

func (b *banner) waitForModels(ctx context.Context, within time.Duration) []string {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if models := b.gateway.Models(); len(models) > 0 && b.gateway.NotReady() == "" {
			return models
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// simulations are the servers of the simulated engines inside pulley up.
type simulations []*http.Server

func (s simulations) close() {
	for _, server := range s {
		server.Close()
	}
}

// simulate starts a fast and a slow engine that serve the same model.
func simulate() ([]worker.Config, simulations, error) {
	var cfgs []worker.Config
	var servers simulations
	for _, c := range []sim.Config{
		{Name: "sim-fast", Models: []string{"sim"}, Slots: 16, PrefillRate: 8000, ITLBase: 15 * time.Millisecond, ITLPerRequest: 300 * time.Microsecond},
		{Name: "sim-slow", Models: []string{"sim"}, Slots: 4, PrefillRate: 2000, ITLBase: 45 * time.Millisecond, ITLPerRequest: 2 * time.Millisecond},
	} {
		eng, err := sim.New(c)
		if err != nil {
			return nil, servers, err
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, servers, fmt.Errorf("simulated engine: %w", err)
		}
		server := &http.Server{Handler: eng, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
		go server.Serve(l) // close ends it
		servers = append(servers, server)
		cfgs = append(cfgs, worker.Config{Engine: "http://" + l.Addr().String(), Name: c.Name, EngineName: "sim", Slots: c.Slots})
	}
	return cfgs, servers, nil
}
