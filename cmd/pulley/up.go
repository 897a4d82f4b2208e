package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/broker"
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
	room       *roomFlags
	drain      time.Duration
}

func newUpCommand() *cobra.Command {
	u := &upFlags{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything in one process",
		Long: `Run everything in one process: a broker, a gateway, and a worker for each engine.

Without --engine it looks for engines on this machine where they usually listen:
Ollama 11434, vLLM 8000, llama.cpp 8080, SGLang 30000, LM Studio 1234. With none
there it starts two simulated engines of unlike speed.

Keys of --engine, and how much the workers take: see 'pulley worker --help'.

More workers can join from other machines (pulley worker --nats …) if
--nats-listen is an address that they reach. Ctrl-C finishes what runs, then
exits; a second one exits at once.`,
		Example: `  pulley up
  pulley up --engine http://127.0.0.1:11434 --engine http://10.0.0.7:8000,slots=64,name=big`,
		RunE: func(cmd *cobra.Command, _ []string) error { return u.run(cmd) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVar(&u.engines, "engine", nil, engineHelp)
	u.room = addRoomFlags(cmd)
	u.gateway = addGatewayFlags(fs)
	fs.StringVar(&u.natsListen, "nats-listen", "127.0.0.1:4222", "`host:port` of the broker; port 0 takes a free one")
	fs.StringVar(&u.storeDir, "store-dir", defaultStoreDir(), "`directory` for the broker's streams")
	fs.DurationVar(&u.drain, "drain-timeout", 30*time.Second, "how long running requests may go on after Ctrl-C")
	return cmd
}

func (u *upFlags) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	if !cmd.Flag("log-level").Changed { // the banner says what started
		log, err := newLogger(cmd.ErrOrStderr(), "warn", cmd.Flag("log-format").Value.String())
		if err != nil {
			return err
		}
		ctx = context.WithValue(ctx, loggerKey{}, log)
	}
	if err := u.room.check(); err != nil {
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
		u.room.nvml = "off" // they run on no GPU
	}
	if err := u.room.equip(ctx, engines); err != nil {
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
		return nats.Connect("", append(connOptions(logger(ctx), name), nats.InProcessServer(b))...)
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
		return usageError{err}
	}
	var workers []part
	for _, cfg := range engines {
		cfg.DrainTimeout, cfg.Logger, cfg.Version, cfg.Local = u.drain, logger(ctx), buildVersion(), local
		wnc, err := connect("pulley worker " + cfg.Name)
		if err != nil {
			return err
		}
		defer wnc.Close()
		w, err := worker.New(cfg, wnc)
		if err != nil {
			return usageError{err}
		}
		workers = append(workers, part{"worker " + cfg.Name, w.Run})
	}
	ban := &banner{out: cmd.OutOrStdout(), gateway: gw, auth: cfg.Auth, ingress: ingress.Addr(), broker: b.ClientURL(), store: u.storeDir, engines: engines, simulated: len(simulated) > 0}
	if admin != nil {
		ban.admin = admin.Addr()
	}
	return u.room.during(ctx, func() error {
		return runParts(ctx, [][]part{
			append(workers, part{"banner", ban.run}),
			{{"gateway", func(ctx context.Context) error { return gw.Run(ctx, ingress, admin) }}},
		})
	})
}

// startBroker runs the embedded broker; stop ends it, after everything else.
func (u *upFlags) startBroker(ctx context.Context) (b *broker.Broker, stop func(), err error) {
	b, err = broker.New(broker.Config{Listen: u.natsListen, StoreDir: u.storeDir, Logger: logger(ctx)})
	if err != nil {
		return nil, nil, usageError{err}
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- b.Run(life) }() // stop waits for it
	select {
	case <-b.Ready():
		return b, func() { cancel(); <-ended }, nil
	case err := <-ended:
		cancel()
		return nil, nil, fmt.Errorf("broker: %w", err)
	}
}

// findEngines are the engines named, else those found here, else simulated
// ones.
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

// simulations are the engines that run inside pulley up.
type simulations []*http.Server

func (s simulations) close() {
	for _, server := range s {
		server.Close()
	}
}

// simulate starts a fast and a slow engine with the same model.
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
		go server.Serve(l) // ends with close
		servers = append(servers, server)
		cfgs = append(cfgs, worker.Config{Engine: "http://" + l.Addr().String(), Name: c.Name, EngineName: "sim", Slots: c.Slots})
	}
	return cfgs, servers, nil
}

// banner says, once everything is there, what was started and how to try it.
type banner struct {
	out            io.Writer
	gateway        *gateway.Gateway
	auth           gateway.AuthMode
	ingress, admin net.Addr
	broker, store  string
	engines        []worker.Config
	simulated      bool
}

// run prints the banner when the models are there, or after a few seconds
// without them, and then waits: it is one of the parts.
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
	auto := "none yet: open to everybody on this machine (pulley key add --tenant NAME)"
	if b.gateway.KeysRequired() {
		auto = "needed, since there are some"
	}
	fmt.Fprintf(&s, "  keys     %s\n", keysInWords(b.auth, auto))
	for _, e := range b.engines {
		kind := e.EngineName
		if kind == "" {
			kind = "does not answer yet"
		}
		fmt.Fprintf(&s, "  engine   %-28s  %s (%s)\n", e.Engine, e.Name, kind)
	}
	if b.simulated {
		s.WriteString("\n  No engine was found on this machine, so two simulated ones answer.\n  Name yours: pulley up --engine http://127.0.0.1:8000\n")
	}
	if len(models) == 0 {
		s.WriteString("\n  No model yet. The workers wait for their engines.\n\n")
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

// waitForModels waits until the gateway is ready and knows of some.
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

// portError says what to do about a port that cannot be had.
func portError(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return errors.New("the port is in use, maybe by another pulley or an engine; choose another, or 0 for a free one")
	}
	return err
}
