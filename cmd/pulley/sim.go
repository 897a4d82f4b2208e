package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
)

const simGrace = 2 * time.Second // for requests in flight; those that hang never end

// newSimCommand is pulley sim: a simulated engine.
func newSimCommand() *cobra.Command {
	var cfg sim.Config
	var listen string
	var itl itlFlag
	cmd := &cobra.Command{
		Use:   "sim",
		Short: "Run a simulated engine",
		Long: `Run a simulated engine: an OpenAI-compatible server that makes words instead of sense, with exact token counts and
exact timing. It takes no GPU, and serves as the engine in tests, benchmarks and demos.

A prompt has as many tokens as words. Prompts are prefilled one after the other at --prefill-rate; then every request in
the batch makes a token per A + B × (requests in the batch), as --itl says. All times are zero unless given. With
--prefix-cache a prompt that begins like an earlier one is prefilled only from where they part. A prompt waits until
--kv-tokens has room for it; when those that run outgrow it, the last of them is preempted: it waits again, and then has
its prompt and what it had made prefilled anew.

POST /sim/clock?factor=0.5 makes it compute half as fast from then on, as a GPU whose clocks are throttled; 1 is as
configured, and 0.000001 as good as a standstill.

It answers chat, completions, embeddings, responses, messages, rerank, images, audio and /v2/models/M/infer, /v1/models,
/sim/stats, and what an engine of its --dialect tells of itself, such as vLLM's /health and /metrics.

Any request may order a misbehaviour in the header x-sim, as a comma-separated list of
  fail[=STATUS]  refuse[=429|503]  close  hang  hang-after=N  cut-after=N  ttft=DURATION  early-header  on=NAME`,
		Example: `  # 16 slots of a mid-range GPU
  pulley sim --model llama --slots 16 --prefill-rate 3000 --itl 35ms,1.2ms

  # what SGLang says of itself
  pulley sim --model llama --dialect sglang

  # as Ollama with three models, of which the GPU holds one
  pulley sim --model a --model b --model c --loaded 1 --load-time 8s --dialect ollama

  # one request in ten loses its connection after 20 tokens, one in fifty is refused
  pulley sim --model llama --cut-after 20 --cut 0.1 --refuse 0.02

  # an L4 with an 8B model: memory for about 20 requests at once
  pulley sim --model llama --slots 256 --prefill-rate 2500 --itl 55ms,700us --kv-tokens 30000

  # its GPU gets hot
  curl -d factor=0.5 localhost:9000/sim/clock

  # misbehave for one request only
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
					return fmt.Errorf("--%s: want 1 or more", required)
				}
			}
			return runSim(cmd, listen, cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:9000", "address to listen on; port 0 takes a free one")
	f.StringVar(&cfg.Name, "name", "sim", "name of the engine, told in the header x-sim-name of every answer")
	f.StringArrayVar(&cfg.Models, "model", []string{"sim"}, "model to serve (repeatable)")
	f.IntVar(&cfg.Slots, "slots", 8, "requests that run at once")
	f.IntVar(&cfg.MaxQueue, "max-queue", 0, "requests that may wait for a slot before more are refused; 0 is no limit")
	f.Float64Var(&cfg.PrefillRate, "prefill-rate", 0, "prompt tokens per second; 0 is infinitely fast")
	f.IntVar(&cfg.PrefillBatch, "prefill-batch", 0, "prompt tokens taken for prefill together, while other prompts wait in the queue; 0 is 8192")
	f.Var(&itl, "itl", "inter-token time as `A,B`: A + B × (requests in the batch), such as 20ms,500us; B may be left out")
	f.IntVar(&cfg.PrefixCache, "prefix-cache", 0, "prompt tokens to keep for prompts that begin alike; 0 keeps none")
	f.DurationVar(&cfg.TTFT, "ttft", 0, "time before the first token, on top of the prefill")
	f.IntVar(&cfg.TokensPerEvent, "tokens-per-event", 1, "tokens in each event of a stream but the first")
	f.Float64Var(&cfg.Fail, "fail", 0, "probability of an answer 500")
	f.Float64Var(&cfg.Hang, "hang", 0, "probability of no answer at all")
	f.IntVar(&cfg.CutAfter, "cut-after", 0, "cut the connection after so many tokens, with the probability --cut")
	f.Float64Var(&cfg.Cut, "cut", 0, "probability of a cut connection (default 1 where --cut-after is given, else 0)")
	f.Float64Var(&cfg.Refuse, "refuse", 0, "probability of a refusal with retry-after")
	f.IntVar(&cfg.RefuseStatus, "refuse-status", http.StatusTooManyRequests, "status of a refusal, 429 or 503")
	f.StringVar((*string)(&cfg.Dialect), "dialect", string(engine.DialectVLLM), "whose metrics, health and model pages to have: "+simDialects())
	f.IntVar(&cfg.KVTokens, "kv-tokens", 0, "size of the KV cache in tokens; 0 is 65536 for each slot")
	f.IntVar(&cfg.Loaded, "loaded", 0, "how many of its models it holds at once; 0 is all of them")
	f.DurationVar(&cfg.LoadTime, "load-time", 0, "time to load a model, where it does not hold all of them")
	f.Uint64Var(&cfg.Seed, "seed", 1, "seed of the misbehaviours' probabilities")
	return cmd
}

// runSim serves until the command's context ends.
func runSim(cmd *cobra.Command, listen string, cfg sim.Config) error {
	eng, err := sim.New(cfg)
	if bad, ok := errors.AsType[*sim.ConfigError](err); ok {
		return fmt.Errorf("--%s: %s", simFlags[bad.Field], bad.Reason)
	}
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
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
		_ = srv.Close() // ends what hangs
	}
	<-served
	return nil
}

// simFlags are the flags that set the fields of sim.Config.
var simFlags = map[string]string{
	"Name": "name", "Models": "model", "Slots": "slots", "MaxQueue": "max-queue", "PrefillRate": "prefill-rate", "PrefillBatch": "prefill-batch",
	"PrefixCache": "prefix-cache", "ITLBase": "itl", "ITLPerRequest": "itl", "TTFT": "ttft", "TokensPerEvent": "tokens-per-event",
	"Fail": "fail", "Hang": "hang", "Cut": "cut", "CutAfter": "cut-after", "Refuse": "refuse",
	"RefuseStatus": "refuse-status", "Dialect": "dialect", "KVTokens": "kv-tokens",
	"Loaded": "loaded", "LoadTime": "load-time",
}

func simDialects() string {
	var names []string
	for _, d := range sim.Dialects() {
		names = append(names, string(d))
	}
	return strings.Join(names, ", ")
}

// itlFlag is an inter-token time, A + B × batch.
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
		return fmt.Errorf("want one or two durations such as 20ms,500us: %w", err)
	}
	var perRequest time.Duration
	if hasB {
		if perRequest, err = time.ParseDuration(strings.TrimSpace(b)); err != nil {
			return fmt.Errorf("want one or two durations such as 20ms,500us: %w", err)
		}
	}
	f.base, f.perRequest = base, perRequest
	return nil
}
