package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/ops"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

func newWorkerCommand() *cobra.Command {
	var engines []string
	var id string
	var drain, stall time.Duration
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Run the agent beside an engine, or manage running workers",
		Long: `Run the agent beside an engine: it pulls requests while the engine has capacity, at
a price that is the latency it expects, and streams the answers back. The verbs
below are for workers that are running.

Each --engine gets its own worker. Its models are those of the engine's /v1/models,
unless model= names them. The URL may have a base path, which comes before /v1.

` + capacityHelp + `

dp=N is the number of data-parallel ranks of a vLLM at one address: the worker sends each
request to the least loaded rank, with the header X-data-parallel-rank, and slots= are
those of each rank.

slots= is the maximum number of requests in flight. It can be omitted: the worker
then finds out how many requests the engine runs at once, from the requests that
wait in it; without metrics, from the first tokens of streams. It tries one more
now and then. An engine without metrics gets 8 requests at first, Ollama one, because
its OLLAMA_NUM_PARALLEL is 1 by default. profile= sets the profile of one engine.
gpus=0+1 names its GPUs, by NVML's index or UUID, on a machine with several engines
(default all visible GPUs). dialect= and metrics=URL say how and where the engine
publishes its load, if Pulley does not find out; docs/engines.md says for each engine
what it tells and which settings help. baseline-itl= is the time per token
of a request that runs alone, for an engine that always shares its GPU. weight=
prefers an engine; without it the memory bandwidth of its GPUs is the initial
estimate of its speed.

key-env= names the environment variable with the API key of the engine; key-file= names
a file with it, which is read again when it changes or the engine refuses the key.
username= with password-env= or password-file=, or the user in the URL, is for engines
with basic authentication; what is in the URL shows in the process list. tls-ca= names a
PEM file with the certificate authorities of an engine with https, tls-cert= and tls-key=
a client certificate. With tls-verify=off any certificate is accepted.

For an engine that swaps models, such as Ollama and llama-swap, the worker first
accepts requests for loaded models. It accepts requests for another model when a
loaded one has no requests, or when one of them has waited for --swap-after
(swap-after= for one engine). A model then stays loaded at least for that time, and
for twice the time that loading takes.

When the workers that have a model loaded cannot start all the requests for it for a
second, another one loads it too, if that pushes out nothing that is in use. No
request waits for that load. With --preload, or preload=MODEL for one engine, models
are loaded when the worker starts.

With NVML the worker detects GPUs that are lost, failing, hot or short of memory, and
accepts fewer requests, or none. Without an NVIDIA driver it works without GPU data.
With --nvml required it accepts no requests until all its GPUs have been read.

The requests for a model are in the pool of the same name. With pool= the worker
joins another pool, whatever the name of its model is: two pools can then serve the
same model, and a route can split requests between them. Such an engine must have
only that model when the worker starts, or name it with model=. Adapters (LoRA) that
vLLM lists with their parent do not count; a route may send them to the same pool, and
the engine is asked for the adapter.

A worker has an id that stays when it is started again: --id, or id= for one engine. By
default it follows from the name, the host and the engine. With an id that is set, a
second process that starts with it takes over: the first one finishes what it has,
and leaves with an error. 'pulley nats-config' gives a worker of an id the right to its
own messages, and to no others.

Stop a worker with SIGTERM, or from anywhere with 'pulley worker drain': it accepts
no new requests, finishes the running ones, and leaves. Requests that still run
after --drain-timeout continue on other workers. The command ends when all its
workers have left.

Terms: docs/concepts.md`,
		Example: `  pulley worker --nats nats://broker-1:4222 --engine http://127.0.0.1:8000,slots=64
  pulley worker --engine http://127.0.0.1:11434,model=llama3.2,slots=4,name=desk
  pulley worker --engine http://127.0.0.1:8000,gpus=0+1 --engine http://127.0.0.1:8001,gpus=2,profile=latency
  pulley worker --engine http://127.0.0.1:8001,pool=llama-70b-canary,name=canary-1
  pulley worker --nats tls://broker-1:4222 --tls-ca ca.pem --nkey worker-gpu-1.nk --id gpu-1 \
    --engine http://127.0.0.1:8000`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVar(&engines, "engine", nil, engineHelp)
	cmd.RegisterFlagCompletionFunc("engine", completeEngine)
	fs.StringVar(&id, "id", "", "stable `id` of the worker, as 'pulley nats-config --worker' names it; a second engine gets the id with -2, and so on (default from the name, the host and the engine)")
	cmd.RegisterFlagCompletionFunc("id", cobra.NoFileCompletions)
	capacity := addCapacityFlags(cmd)
	admin := addAdminFlags(fs, "127.0.0.1:8083")
	fs.DurationVar(&drain, "drain-timeout", 10*time.Minute, "how long running requests may continue after SIGTERM")
	fs.DurationVar(&stall, "stall-timeout", 2*time.Minute, "how long a streaming engine may send nothing before the attempt fails")
	traces := addTraceFlags(cmd)
	c := cli.AddConnectFlags(fs)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if len(engines) == 0 {
			return cli.Usagef("missing flag: --engine URL, such as --engine http://127.0.0.1:8000")
		}
		cfgs, err := parseEngines(engines)
		if err == nil {
			err = nameWorkers(cfgs, id)
		}
		return errors.Join(capacity.check(), err, c.Check(cmd.Context()))
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		cfgs, err := workerConfigs(ctx, engines)
		if err == nil {
			err = nameWorkers(cfgs, id)
		}
		if err != nil {
			return err
		}
		if err := capacity.equip(ctx, cfgs); err != nil {
			return err
		}
		provider, endTraces, err := traces.open(cmd, "pulley-worker")
		if err != nil {
			return err
		}
		defer endTraces()
		port, err := admin.open(cli.Logger(ctx))
		if err != nil {
			return err
		}
		var parts []part
		metrics := worker.NewMetrics()
		for _, cfg := range cfgs {
			cfg.Metrics = metrics
			cfg.DrainTimeout, cfg.StallTimeout = drain, stall
			cfg.Logger, cfg.Version, cfg.TracerProvider = cli.Logger(ctx), buildVersion(), provider
			nc, err := c.ConnectPatiently(ctx, "pulley worker "+cfg.Name)
			if err != nil {
				return err
			}
			defer nc.Close()
			w, err := worker.New(cfg, nc)
			if err != nil {
				return cli.Usagef("%w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "worker   %s  %s\n", w.ID(), cfg.Engine)
			parts = append(parts, part{"worker " + cmp.Or(cfg.Name, w.ID()), w.Run})
		}
		if port != nil {
			fmt.Fprintf(cmd.OutOrStdout(), "admin    %s\n", port.url())
		}
		return port.during(ctx, metrics.Collectors(), metrics.NotReady, func() error {
			return capacity.during(ctx, func() error { return runParts(ctx, [][]part{parts}) })
		})
	}
	cmd.AddCommand(ops.WorkerVerbs()...)
	return cmd
}

// parseEngines parses the values of --engine, and returns what is wrong with any of them.
func parseEngines(specs []string) (cfgs []worker.Config, err error) {
	var errs []error
	for _, s := range specs {
		cfg, err := parseEngine(s)
		if err != nil {
			errs = append(errs, err)
		}
		cfgs = append(cfgs, cfg)
	}
	return cfgs, errors.Join(errs...)
}

// workerConfigs parses the values of --engine, and asks the engines for the rest.
func workerConfigs(ctx context.Context, specs []string) ([]worker.Config, error) {
	parsed, err := parseEngines(specs)
	if err != nil {
		return nil, err
	}
	var cfgs []worker.Config
	names := make(map[string]bool)
	for i, s := range specs {
		cfg := parsed[i]
		learnEngine(ctx, &cfg)
		if cfg.Name != "" && names[cfg.Name] {
			return nil, cli.Usagef("--engine %q: another engine has the name %q", s, cfg.Name)
		}
		names[cfg.Name] = true
		cfgs = append(cfgs, cfg)
	}
	return cfgs, nil
}

// nameWorkers gives ids to the workers of one process: id to the first, and id-2, id-3 and so on to the others. An id that
// the flag of an engine names stays.
func nameWorkers(cfgs []worker.Config, id string) error {
	if id != "" {
		if err := worker.CheckID(id); err != nil {
			return cli.Usagef("--id: %w", err)
		}
	}
	used := make(map[string]bool)
	for i := range cfgs {
		if c := &cfgs[i]; c.ID == "" && id != "" {
			if c.ID = subjects.EngineID(id, i+1); worker.CheckID(c.ID) != nil {
				return cli.Usagef("--id %s: too long for %d engines", id, len(cfgs))
			}
		}
		if used[cfgs[i].ID] {
			return cli.Usagef("--id, id=: two engines have the id %s", cfgs[i].ID)
		}
		used[cfgs[i].ID] = cfgs[i].ID != ""
	}
	return nil
}

// engineName returns a name for the engine at a URL, such as vllm-8000, of what people call such an engine.
func engineName(kind string, u *url.URL) string {
	name := kind + "-" + cmp.Or(u.Port(), u.Hostname())
	if path := strings.Trim(u.Path, "/"); path != "" {
		name += "-" + path
	}
	return strings.ToValidUTF8(name[:min(len(name), 64)], "")
}

// learnEngine asks an engine for what its flag leaves open. An engine that does not answer yet is not an error: its
// worker waits for it.
func learnEngine(ctx context.Context, cfg *worker.Config) {
	client, err := engineClient(*cfg)
	if err != nil {
		return // worker.New says so
	}
	defer client.CloseIdleConnections()
	info, err := engine.Probe(ctx, client, cfg.Engine, "")
	if err != nil {
		text := "engine does not answer yet"
		if engine.TroubleOf(err) != "" {
			text = "engine cannot be used yet"
		}
		cli.Logger(ctx).Warn(text, "engine", cfg.Engine, "err", err)
		return
	}
	cfg.EngineName = info.Name()
	if cfg.Name == "" {
		if u, err := url.Parse(cfg.Engine); err == nil {
			cfg.Name = engineName(info.Name(), u)
		}
	}
}
