package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
)

// simGrace is how long requests in flight may continue after an interrupt. A request with the fault hang never ends.
const simGrace = 2 * time.Second

func newSimCommand() *cobra.Command {
	var cfg sim.Config
	var listen string
	var itl itlFlag
	cmd := &cobra.Command{
		Use:   "sim",
		Short: "Run a simulated engine",
		Long: `Run a simulated engine: an OpenAI-compatible server that generates random words, with exact token counts and exact
timing. It needs no GPU, and is the engine of tests, benchmarks and demos.

A prompt has one token per word. Prompts are prefilled one after the other at --prefill-rate. After that each request in
the batch generates a token every A + B × (requests in the batch), see --itl. All times are zero by default. With
--prefix-cache, a prompt that begins like an earlier one is prefilled only from the first difference on. A prompt waits
until the KV cache (--kv-tokens) has space for it. When the running requests fill the cache, the last one is preempted:
it waits again, and its prompt and its output so far are prefilled again.

POST /sim/clock?factor=0.5 halves the speed from then on, like a GPU that is throttled. Factor 1 is the configured
speed; 0.000001 is practically a standstill.

The API has chat, completions, embeddings, responses, messages, rerank, images, audio, /v2/models/M/infer, /v1/models,
/sim/stats, and the health and metrics pages of an engine of its --dialect, such as vLLM's /health and /metrics.

It behaves as the engine of its --dialect does: which names of models it takes (Ollama's in any case and without :latest,
llama.cpp's any), what it tells about itself and what not (Ollama and LM Studio have no metrics), and the status and the
words with which it refuses an unknown model, a prompt longer than --context, a request beyond --max-queue, a wrong
--api-key, or anything while it starts (--start-time). docs/engines.md describes the engines.

The header x-sim of a request orders faults, as a comma-separated list of
  fail[=STATUS]  refuse[=429|503]  close  hang  hang-after=N  cut-after=N  ttft=DURATION  early-header  on=NAME`,
		Example: `  # 16 slots of a mid-range GPU
  pulley sim --model llama --slots 16 --prefill-rate 3000 --itl 35ms,1.2ms

  # with the metrics of SGLang
  pulley sim --model llama --dialect sglang

  # as Ollama with three models, of which the GPU can hold one
  pulley sim --model a --model b --model c --loaded 1 --load-time 8s --dialect ollama

  # as a llama.cpp with a context of 8192 tokens that answers 503 for 20 seconds, until its model is loaded
  pulley sim --model llama --dialect llama.cpp --slots 4 --context 8192 --start-time 20s

  # as Ollama that has loaded nothing yet, and unloads a model after 5 minutes without a request
  pulley sim --model llama --slots 1 --dialect ollama --cold --load-time 8s --keep-alive 5m

  # one of ten requests loses its connection after 20 tokens, one of fifty is refused
  pulley sim --model llama --cut-after 20 --cut 0.1 --refuse 0.02

  # an L4 with an 8B model: memory for about 20 requests at the same time
  pulley sim --model llama --slots 256 --prefill-rate 2500 --itl 55ms,700us --kv-tokens 30000

  # its GPU is throttled
  curl -d factor=0.5 localhost:9000/sim/clock

  # faults for one request only
  curl -H 'x-sim: cut-after=5, ttft=2s' localhost:9000/v1/chat/completions \
    -d '{"model":"sim","stream":true,"messages":[{"role":"user","content":"hello"}]}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.ITLBase, cfg.ITLPerRequest = itl.base, itl.perRequest
			flags := cmd.Flags()
			if flags.Changed("cut-after") && !flags.Changed("cut") {
				cfg.Cut = 1
			}
			for _, required := range []string{"slots", "tokens-per-event"} {
				if f := flags.Lookup(required); f.Value.String() == "0" {
					return fmt.Errorf("--%s: must be 1 or more", required)
				}
			}
			return runSim(cmd, listen, cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:9000", "address to listen on; port 0 chooses a free one")
	f.StringVar(&cfg.Name, "name", "sim", "name of the engine, in the header x-sim-name of every answer")
	f.StringArrayVar(&cfg.Models, "model", []string{"sim"}, "model to serve (repeatable)")
	f.IntVar(&cfg.Slots, "slots", 8, "requests that run at the same time")
	f.IntVar(&cfg.MaxQueue, "max-queue", 0, "requests that may wait for a slot; more are refused; 0: no limit")
	f.Float64Var(&cfg.PrefillRate, "prefill-rate", 0, "prompt tokens per second; 0: infinitely fast")
	f.IntVar(&cfg.PrefillBatch, "prefill-batch", 0, "prompt tokens that are prefilled together while other prompts wait; 0: 8192")
	f.Var(&itl, "itl", "inter-token time as `A,B`: A + B × (requests in the batch), such as 20ms,500us; B may be omitted")
	f.IntVar(&cfg.PrefixCache, "prefix-cache", 0, "size of the prefix cache in tokens; 0: no cache")
	f.DurationVar(&cfg.TTFT, "ttft", 0, "time before the first token, in addition to the prefill")
	f.IntVar(&cfg.TokensPerEvent, "tokens-per-event", 1, "tokens in each event of a stream except the first")
	f.Float64Var(&cfg.Fail, "fail", 0, "probability of status 500")
	f.Float64Var(&cfg.Hang, "hang", 0, "probability of no answer at all")
	f.IntVar(&cfg.CutAfter, "cut-after", 0, "number of tokens after which the connection is cut, with the probability of --cut")
	f.Float64Var(&cfg.Cut, "cut", 0, "probability of a cut connection (default 1 with --cut-after, otherwise 0)")
	f.Float64Var(&cfg.Refuse, "refuse", 0, "probability of a refusal with a retry-after header")
	f.IntVar(&cfg.RefuseStatus, "refuse-status", http.StatusTooManyRequests, "status of a refusal, 429 or 503")
	f.StringVar((*string)(&cfg.Dialect), "dialect", string(engine.DialectVLLM), "engine to behave like: "+simDialects())
	cmd.RegisterFlagCompletionFunc("dialect", cobra.FixedCompletions(strings.Split(simDialects(), ", "), cobra.ShellCompDirectiveNoFileComp))
	f.IntVar(&cfg.KVTokens, "kv-tokens", 0, "size of the KV cache in tokens; 0: 65536 per slot")
	f.IntVar(&cfg.Loaded, "loaded", 0, "number of models that are loaded at the same time; 0: all")
	f.BoolVar(&cfg.Cold, "cold", false, "start without any model loaded")
	f.DurationVar(&cfg.LoadTime, "load-time", 0, "time to load a model, if not all of them are loaded")
	f.DurationVar(&cfg.KeepAlive, "keep-alive", 0, "time without a request after which a model is unloaded; 0: never")
	f.IntVar(&cfg.Context, "context", 0, "length of a prompt with its answer in tokens; what is longer is refused or cut, as the dialect does; 0: no limit")
	f.StringVar(&cfg.APIKey, "api-key", "", "key that requests need, in the way of the dialect")
	f.DurationVar(&cfg.StartTime, "start-time", 0, "time until the engine has started; before, it answers as the dialect does")
	f.Uint64Var(&cfg.Seed, "seed", 1, "seed for the random faults")
	return cmd
}

// runSim serves until the context of the command ends.
func runSim(cmd *cobra.Command, listen string, cfg sim.Config) error {
	eng, err := sim.New(cfg)
	if bad, ok := errors.AsType[*sim.ConfigError](err); ok {
		return fmt.Errorf("--%s: %s", simFlags[bad.Field], bad.Reason)
	}
	if err != nil {
		return err
	}
	ln, err := openPort("listen", listen)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: eng, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	fmt.Fprintf(cmd.OutOrStdout(), "simulated engine %s listening on http://%s serving %s\n",
		eng.Stats().Name, ln.Addr(), strings.Join(cfg.Models, ", "))

	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	case <-cmd.Context().Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), simGrace)
	defer cancel()
	if srv.Shutdown(ctx) != nil {
		_ = srv.Close() // also ends requests that hang
	}
	<-served
	return nil
}

// simFlags maps the fields of sim.Config to their flags.
var simFlags = map[string]string{
	"Name": "name", "Models": "model", "Slots": "slots", "MaxQueue": "max-queue", "PrefillRate": "prefill-rate", "PrefillBatch": "prefill-batch",
	"PrefixCache": "prefix-cache", "ITLBase": "itl", "ITLPerRequest": "itl", "TTFT": "ttft", "TokensPerEvent": "tokens-per-event",
	"Fail": "fail", "Hang": "hang", "Cut": "cut", "CutAfter": "cut-after", "Refuse": "refuse",
	"RefuseStatus": "refuse-status", "Dialect": "dialect", "KVTokens": "kv-tokens",
	"Loaded": "loaded", "LoadTime": "load-time", "KeepAlive": "keep-alive",
	"Context": "context", "APIKey": "api-key", "StartTime": "start-time",
}

func simDialects() string {
	var names []string
	for _, d := range sim.Dialects() {
		names = append(names, string(d))
	}
	return strings.Join(names, ", ")
}

// itlFlag is the value of --itl: an inter-token time of A + B × (requests in the batch).
type itlFlag struct {
	base, perRequest time.Duration
}

func (f *itlFlag) Type() string { return "A,B" }

func (f *itlFlag) String() string {
	if *f == (itlFlag{}) {
		return ""
	}
	return f.base.String() + "," + f.perRequest.String()
}

func (f *itlFlag) Set(s string) error {
	a, b, hasB := strings.Cut(s, ",")
	base, err := time.ParseDuration(strings.TrimSpace(a))
	if err != nil {
		return errors.New("must be one or two durations such as 20ms,500us")
	}
	var perRequest time.Duration
	if hasB {
		if perRequest, err = time.ParseDuration(strings.TrimSpace(b)); err != nil {
			return errors.New("must be one or two durations such as 20ms,500us")
		}
	}
	f.base, f.perRequest = base, perRequest
	return nil
}
