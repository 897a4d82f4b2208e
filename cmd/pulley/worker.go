package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/ops"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/worker"
)

func newWorkerCommand() *cobra.Command {
	var engines []string
	var drain, stall time.Duration
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Run the agent beside an engine",
		Long: `Run the agent beside an engine: it pulls requests while the engine has room, at
a price that says how fast it expects to be, and streams the answers back.

Each --engine gets a worker of its own. The models are what the engine's
/v1/models says, unless model= names them; key-env= names the environment
variable that holds the engine's API key.

` + capacityHelp + `

slots= is how many requests may run at once at most; it need not be said where the
engine tells its load. Ollama tells nothing: without slots= it gets one request at a
time, as its OLLAMA_NUM_PARALLEL is 1 unless you set it. profile= is one engine's
own. gpus=0+1 are the GPUs that it runs on, by NVML's index or UUID, for a machine
with several engines (default all that are visible). dialect= and metrics=URL say
how and where it tells its load, if that is not found out; baseline-itl= is the
time between two tokens of a request alone, for an engine that never has its GPU
for itself. weight= prefers an engine; without it the GPUs' memory bandwidth is
the first guess of its speed.

Of an engine that swaps models, such as Ollama and llama-swap, the worker takes
requests for what is loaded first; those for another model when that has nothing
to do, or when one of them has waited for --swap-after (swap-after= for one
engine). A model that was loaded then stays for as long, and for twice the time
that a load takes.

NVML tells of a GPU that is lost, ill, hot or short of memory; the worker then
takes nothing, or less. A machine without NVIDIA's driver does without. With
--nvml required the worker takes nothing until it has word of all its GPUs.

A model's requests are in the pool of its name. With pool= the worker joins that
one instead, whatever its engine calls the model: so two pools can serve one
model, and a route can split its requests between them. The engine must have that
one model alone, or model= names it.

Stop it with SIGTERM, or from anywhere with pulley worker drain: it takes nothing
new, finishes what runs, and leaves; what still runs after --drain-timeout goes on
elsewhere. The command ends when all of its workers have left.`,
		Example: `  pulley worker --nats nats://broker-1:4222 --engine http://127.0.0.1:8000,slots=64
  pulley worker --engine http://127.0.0.1:11434,model=llama3.2,slots=4,name=desk
  pulley worker --engine http://127.0.0.1:8000,gpus=0+1 --engine http://127.0.0.1:8001,gpus=2,profile=latency
  pulley worker --engine http://127.0.0.1:8001,pool=llama-70b-canary,name=canary-1`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVar(&engines, "engine", nil, engineHelp)
	room := addCapacityFlags(cmd)
	fs.DurationVar(&drain, "drain-timeout", 10*time.Minute, "how long running requests may go on after SIGTERM")
	fs.DurationVar(&stall, "stall-timeout", 2*time.Minute, "how long a streaming engine may be silent before another worker takes over")
	c := cli.AddConnectFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(engines) == 0 {
			return cli.Usagef("--engine: name at least one engine, such as --engine http://127.0.0.1:8000")
		}
		if err := room.check(); err != nil {
			return err
		}
		ctx := cmd.Context()
		cfgs, err := workerConfigs(ctx, engines)
		if err != nil {
			return err
		}
		if err := room.equip(ctx, cfgs); err != nil {
			return err
		}
		var parts []part
		for _, cfg := range cfgs {
			cfg.DrainTimeout, cfg.StallTimeout = drain, stall
			cfg.Logger, cfg.Version = cli.Logger(ctx), buildVersion()
			nc, err := c.ConnectPatiently(ctx, "pulley worker "+cfg.Name)
			if err != nil {
				return err
			}
			defer nc.Close()
			w, err := worker.New(cfg, nc)
			if err != nil {
				return cli.UsageError{Err: err}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "worker   %s  %s\n", w.ID(), cfg.Engine)
			parts = append(parts, part{"worker " + cfg.Name, w.Run})
		}
		return room.during(ctx, func() error { return runParts(ctx, [][]part{parts}) })
	}
	cmd.AddCommand(ops.WorkerVerbs()...)
	return cmd
}

// workerConfigs reads the --engine flags.
func workerConfigs(ctx context.Context, specs []string) ([]worker.Config, error) {
	var cfgs []worker.Config
	names := make(map[string]bool)
	for _, s := range specs {
		cfg, err := parseEngine(s)
		if err != nil {
			return nil, err
		}
		learnEngine(ctx, &cfg)
		if cfg.Name != "" && names[cfg.Name] {
			return nil, cli.Usagef("--engine %q: the name %q is taken by another engine", s, cfg.Name)
		}
		names[cfg.Name] = true
		cfgs = append(cfgs, cfg)
	}
	return cfgs, nil
}

// learnEngine asks an engine what the flag left open. An engine that is not
// there yet is no error: its worker waits for it, and finds out its slots.
func learnEngine(ctx context.Context, cfg *worker.Config) {
	info, err := engine.ProbeWithKey(ctx, http.DefaultClient, cfg.Engine, cfg.APIKey)
	if err != nil {
		cli.Logger(ctx).Warn("engine does not answer yet", "engine", cfg.Engine, "err", err)
		return
	}
	cfg.EngineName = info.Name()
	if cfg.Slots == 0 && info.Dialect == engine.DialectOllama && !info.Simulated {
		cfg.Slots = 1 // its default for OLLAMA_NUM_PARALLEL, which it does not tell
	}
	if cfg.Name == "" {
		if u, err := url.Parse(cfg.Engine); err == nil {
			cfg.Name = info.Name() + "-" + u.Port()
		}
	}
}
