package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

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
	if err := u.capacity.check(); err != nil {
		return err
	}
	cfg, err := u.gateway.config(ctx)
	if err != nil {
		return err
	}
	cfg.DrainTimeout = u.drain

	engines, simulated, err := u.findEngines(ctx)
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

	ingress, admin, err := u.gateway.listeners()
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
	gw, err := gateway.New(cfg, nc)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	var workers []part
	for _, cfg := range engines {
		cfg.DrainTimeout, cfg.Logger, cfg.Version, cfg.Local = u.drain, cli.Logger(ctx), buildVersion(), local
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
	ban := &banner{out: cmd.OutOrStdout(), gateway: gw, auth: cfg.Auth, ingress: ingress.Addr(), broker: b.ClientURL(), store: u.storeDir, engines: engines, simulated: len(simulated) > 0}
	if admin != nil {
		ban.admin = admin.Addr()
	}
	return u.capacity.during(ctx, func() error {
		return runParts(ctx, [][]part{
			append(workers, part{"banner", ban.run}),
			{{"gateway", func(ctx context.Context) error { return gw.Run(ctx, ingress, admin) }}},
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

// findEngines returns the engines of --engine, else those on this machine, else simulated ones.
func (u *upFlags) findEngines(ctx context.Context) ([]worker.Config, simulations, error) {
	if len(u.engines) > 0 {
		cfgs, err := workerConfigs(ctx, u.engines)
		return cfgs, nil, err
	}
	var specs []string
	for _, found := range engine.Local(ctx, func(addr string) bool { return addr == u.gateway.listen }) {
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
none, it starts two simulated engines of different speed.

'pulley worker --help' describes the keys of --engine and the capacity of workers.

Workers on other machines can join with 'pulley worker --nats …' if they can reach
the address of --nats-listen. Ctrl-C lets running requests finish, then exits; a
second Ctrl-C exits at once.`,
		Example: `  pulley up
  pulley up --engine http://127.0.0.1:11434 --engine http://10.0.0.7:8000,slots=64,name=big`,
		RunE: func(cmd *cobra.Command, _ []string) error { return u.run(cmd) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVar(&u.engines, "engine", nil, engineHelp)
	cmd.RegisterFlagCompletionFunc("engine", completeEngine)
	u.capacity = addCapacityFlags(cmd)
	u.gateway = addGatewayFlags(fs)
	fs.StringVar(&u.natsListen, "nats-listen", "127.0.0.1:4222", "`host:port` of the broker; port 0 chooses a free one")
	fs.StringVar(&u.storeDir, "store-dir", cli.DefaultStoreDir(), "`directory` for the streams of the broker")
	fs.DurationVar(&u.drain, "drain-timeout", 30*time.Second, "how long running requests may continue after Ctrl-C")
	return cmd
}

// banner prints what was started and how to try it.
type banner struct {
	out            io.Writer
	gateway        *gateway.Gateway
	auth           gateway.AuthMode
	ingress, admin net.Addr
	broker, store  string
	engines        []worker.Config
	simulated      bool
}

// run prints the banner once there is a model, or after a few seconds without one. Then it waits for ctx, since it is
// one of the parts.
func (b *banner) run(ctx context.Context) error {
	url := "http://" + b.ingress.String()
	models := b.waitForModels(ctx, 5*time.Second)
	var s strings.Builder
	fmt.Fprintf(&s, "\nPulley %s\n\n", buildVersion())
	fmt.Fprintf(&s, "  gateway  %-28s  OpenAI-compatible API\n", url)
	if b.admin != nil {
		fmt.Fprintf(&s, "  admin    %-28s  /readyz /metrics\n", "http://"+b.admin.String())
	}
	fmt.Fprintf(&s, "  broker   %-28s  store %s\n", b.broker, b.store)
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
