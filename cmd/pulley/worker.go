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

const engineHelp = "`URL[,model=NAME][,pool=NAME][,slots=N][,name=NAME][,weight=W][,key-env=VAR]` of an engine (repeatable)"

// parseEngine reads an --engine flag. model may be given several times.
func parseEngine(spec string) (worker.Config, error) {
	var cfg worker.Config
	bad := func(format string, args ...any) (worker.Config, error) {
		return cfg, usagef("--engine %q: %s; want URL[,model=NAME][,pool=NAME][,slots=N][,name=NAME][,weight=W][,key-env=VAR]", spec, fmt.Sprintf(format, args...))
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
			return bad("%q has no value", p)
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
		case "key-env":
			if cfg.APIKey = os.Getenv(v); cfg.APIKey == "" {
				return bad("the environment variable %s is empty", v)
			}
		default:
			return bad("there is no %q", k)
		}
	}
	if cfg.Pool != "" && len(cfg.Models) > 1 {
		return bad("a pool takes one model, and %d are named", len(cfg.Models))
	}
	return cfg, nil
}

// learnEngine asks an engine what the flag left open. An engine that is not
// there yet is no error: its worker waits for it.
func learnEngine(ctx context.Context, cfg *worker.Config) {
	info, err := engine.ProbeWithKey(ctx, http.DefaultClient, cfg.Engine, cfg.APIKey)
	if err != nil {
		logger(ctx).Warn("engine does not answer yet", "engine", cfg.Engine, "err", err)
		return
	}
	cfg.Kind = info.Kind
	if cfg.Slots == 0 {
		cfg.Slots = info.Slots
	}
	if cfg.Slots == 0 && info.Kind == engine.KindOllama {
		cfg.Slots = 4 // its default for OLLAMA_NUM_PARALLEL, which it does not tell
	}
	if cfg.Name == "" {
		if u, err := url.Parse(cfg.Engine); err == nil {
			cfg.Name = info.Kind + "-" + u.Port()
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
/v1/models says, unless model= names them; slots= is how many requests may run
at once (default what the engine says, else 8, Ollama 4); key-env= names the environment
variable that holds the engine's API key.

A model's requests are in the pool of its name. With pool= the worker joins that
one instead, whatever its engine calls the model: so two pools can serve one
model, and a route can split its requests between them. The engine must have that
one model alone, or model= names it.

Stop it with SIGTERM, or from anywhere with pulley worker drain: it takes nothing
new, finishes what runs, and leaves; what still runs after --drain-timeout goes on
elsewhere. The command ends when all of its workers have left.`,
		Example: `  pulley worker --nats nats://broker-1:4222 --engine http://127.0.0.1:8000,slots=64
  pulley worker --engine http://127.0.0.1:11434,model=llama3.2,slots=4,name=desk
  pulley worker --engine http://127.0.0.1:8001,pool=llama-70b-canary,name=canary-1`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVar(&engines, "engine", nil, engineHelp)
	fs.DurationVar(&drain, "drain-timeout", 10*time.Minute, "how long running requests may go on after SIGTERM")
	fs.DurationVar(&stall, "stall-timeout", 2*time.Minute, "how long a streaming engine may be silent before another worker takes over")
	c := addConnectFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(engines) == 0 {
			return usagef("--engine: name at least one engine, such as --engine http://127.0.0.1:8000")
		}
		ctx := cmd.Context()
		cfgs, err := workerConfigs(ctx, engines)
		if err != nil {
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
		return runParts(ctx, [][]part{parts})
	}
	cmd.AddCommand(newWorkerListCommand())
	return cmd
}
