package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/worker"
)

const engineHelp = "`URL[,KEY=VALUE]...` of an engine (repeatable); keys: " + engineKeys

const engineKeys = "name, model, pool, slots, profile, weight, gpus, dialect, metrics, baseline-itl, swap-after, key-env"

// parseEngine reads an --engine flag. model may be given several times.
func parseEngine(spec string) (worker.Config, error) {
	var cfg worker.Config
	bad := func(format string, args ...any) (worker.Config, error) {
		return cfg, usagef("--engine %q: %s", spec, fmt.Sprintf(format, args...))
	}
	parts := strings.Split(spec, ",")
	cfg.Engine = parts[0]
	if name, rest, ok := strings.Cut(parts[0], "="); ok && strings.Contains(rest, "://") && !strings.Contains(name, "://") {
		cfg.Name, cfg.Engine = name, rest // name=URL
	}
	u, err := url.Parse(cfg.Engine)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return bad("%q is no URL such as http://127.0.0.1:8000", cfg.Engine)
	}
	for _, p := range parts[1:] {
		k, v, _ := strings.Cut(p, "=")
		if v == "" {
			return bad("%q has no value; want URL[,KEY=VALUE]..., such as http://127.0.0.1:8000,slots=64", p)
		}
		switch k {
		case "model":
			cfg.Models = append(cfg.Models, v)
		case "pool":
			cfg.Pool = v
		case "slots":
			if cfg.Slots, err = strconv.Atoi(v); err != nil || cfg.Slots < 1 {
				return bad("slots=%s: want 1 or more", v)
			}
		case "name":
			cfg.Name = v
		case "weight":
			if cfg.Weight, err = strconv.ParseFloat(v, 64); err != nil || !(cfg.Weight > 0) || cfg.Weight > 1e6 {
				return bad("weight=%s: want a number above 0", v)
			}
		case "profile":
			if cfg.Profile, err = parseProfile(v); err != nil {
				return bad("profile %v", err)
			}
		case "gpus":
			if cfg.GPUs, err = parseGPUs(v); err != nil {
				return bad("%v", err)
			}
		case "dialect":
			if cfg.Dialect, err = engine.ParseDialect(v); err != nil {
				return bad("dialect %v", err)
			}
		case "metrics":
			if cfg.MetricsURL, err = parseMetricsURL(v); err != nil {
				return bad("%v", err)
			}
		case "baseline-itl":
			if cfg.Baseline, err = time.ParseDuration(v); err != nil || cfg.Baseline <= 0 {
				return bad("baseline-itl=%s: want the time between two tokens of a request alone, such as 12ms", v)
			}
		case "swap-after":
			if cfg.SwapAfter, err = time.ParseDuration(v); err != nil || cfg.SwapAfter <= 0 {
				return bad("swap-after=%s: want a time such as 10s", v)
			}
		case "key-env":
			if cfg.APIKey = os.Getenv(v); cfg.APIKey == "" {
				return bad("the environment variable %s is empty", v)
			}
		default:
			return bad("there is no %q%s; keys: %s", k, didYouMean(k, strings.Split(engineKeys, ", ")), engineKeys)
		}
	}
	if cfg.Pool != "" && len(cfg.Models) > 1 {
		return bad("a pool takes one model, and %d are named", len(cfg.Models))
	}
	return cfg, nil
}

// learnEngine asks an engine what the flag left open. An engine that is not
// there yet is no error: its worker waits for it, and finds out its slots.
func learnEngine(ctx context.Context, cfg *worker.Config) {
	info, err := engine.ProbeWithKey(ctx, http.DefaultClient, cfg.Engine, cfg.APIKey)
	if err != nil {
		logger(ctx).Warn("engine does not answer yet", "engine", cfg.Engine, "err", err)
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
			return nil, usagef("--engine %q: the name %q is taken by another engine", s, cfg.Name)
		}
		names[cfg.Name] = true
		cfgs = append(cfgs, cfg)
	}
	return cfgs, nil
}

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

` + roomHelp + `

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
	room := addRoomFlags(cmd)
	fs.DurationVar(&drain, "drain-timeout", 10*time.Minute, "how long running requests may go on after SIGTERM")
	fs.DurationVar(&stall, "stall-timeout", 2*time.Minute, "how long a streaming engine may be silent before another worker takes over")
	c := addConnectFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(engines) == 0 {
			return usagef("--engine: name at least one engine, such as --engine http://127.0.0.1:8000")
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
			cfg.Logger, cfg.Version = logger(ctx), buildVersion()
			nc, err := c.connectPatiently(ctx, "pulley worker "+cfg.Name)
			if err != nil {
				return err
			}
			defer nc.Close()
			w, err := worker.New(cfg, nc)
			if err != nil {
				return usageError{err}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "worker   %s  %s\n", w.ID(), cfg.Engine)
			parts = append(parts, part{"worker " + cfg.Name, w.Run})
		}
		return room.during(ctx, func() error { return runParts(ctx, [][]part{parts}) })
	}
	cmd.AddCommand(newWorkerListCommand())
	return cmd
}
