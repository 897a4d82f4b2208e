package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/bench/suite"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// newBenchCommand is pulley bench: load on any OpenAI-compatible URL.
func newBenchCommand() *cobra.Command {
	var b benchFlags
	cmd := &cobra.Command{
		Use:   "bench --url URL --model MODEL",
		Short: "Put load on an OpenAI-compatible URL and report percentiles",
		Long: `Put load on any OpenAI-compatible URL and report what its clients would feel: time to first token, inter-token time and
end-to-end latency as percentiles, throughput, and errors by class.

A closed loop (--concurrency) has N workers that each wait for their answer; it finds throughput. An open loop (--rate,
--trace) sends each request when it is due, and counts its latency from that moment, however late it was sent: a server
that stalls shows it (no coordinated omission). A trace is CSV with the columns arrival_seconds, input_tokens and
output_tokens; its prompts are so many words.

Several URLs, given as URL or NAME=URL, are measured in turn, --rounds times over (A B A B …), and printed side by side
with ratios to the first.

Ctrl-C ends the run early and reports what was done. The exit code is 1 where every request of a target failed.`,
		Example: `  # 16 workers for 30 seconds
  pulley bench --url http://127.0.0.1:8080 --model llama --concurrency 16 --duration 30s

  # ten minutes of a recorded load at twice its speed, with a plot
  pulley bench --url http://127.0.0.1:8080 --model llama --trace azure.csv --trace-limit 10m --speedup 2 --plot cdf.png

  # two balancers side by side
  pulley bench --url pulley=http://127.0.0.1:8080 --url nginx=http://127.0.0.1:8000 --model llama --rate 20 --rounds 5`,
		RunE: func(cmd *cobra.Command, _ []string) error { return b.run(cmd) },
	}
	b.declare(cmd)
	cmd.AddCommand(newBenchSuiteCommand(), newYardstickCommand())
	return cmd
}

// benchFlags are the flags of pulley bench that are not fields of bench.Config as they are.
type benchFlags struct {
	cfg bench.Config

	urls, headers     []string
	endpoint, extra   string
	noStream          bool
	trace             string
	traceLimit        time.Duration
	warmup, apiKeyEnv string
	rounds            int
	output, plot      string
	progress          bool
}

func (b *benchFlags) declare(cmd *cobra.Command) {
	f, c := cmd.Flags(), &b.cfg
	f.StringArrayVar(&b.urls, "url", nil, "base `URL` of the API, or NAME=URL (repeatable)")
	f.StringVar(&c.Model, "model", "", "model to ask for")
	f.StringVar(&b.endpoint, "endpoint", string(api.Chat), "API: chat, completions, embeddings, responses or messages")
	f.BoolVar(&c.Stream, "stream", true, "ask for a stream")
	f.BoolVar(&b.noStream, "no-stream", false, "ask for one body, as --stream=false")
	f.BoolVar(&c.NoUsage, "no-usage", false, "do not ask for usage in streams, for servers that refuse stream_options")

	f.IntVar(&c.Concurrency, "concurrency", 0, "closed loop: number of workers (default 1 without --rate and --trace)")
	f.Float64Var(&c.Rate, "rate", 0, "open loop: mean requests per second, Poisson")
	f.StringVar(&b.trace, "trace", "", "open loop: replay a CSV `file`")
	f.Float64Var(&c.Speedup, "speedup", 1, "replay the trace so many times faster")
	f.DurationVar(&b.traceLimit, "trace-limit", 0, "replay only so much of the trace, in its own time (default all)")
	f.IntVar(&c.MaxInFlight, "max-in-flight", 10_000, "open loop: requests in flight beyond which one that is due counts as an error")

	f.IntVar(&c.Requests, "requests", 0, "end after so many requests (default no bound)")
	f.DurationVar(&c.Duration, "duration", 0, "end the sending after so long (default 10s without --requests and --trace)")
	f.StringVar(&b.warmup, "warmup", "", "do not measure the first `D|N`: a duration or a number of requests")
	f.DurationVar(&c.Timeout, "timeout", 10*time.Minute, "bound for one request")

	f.IntVar(&c.InputTokens, "input-tokens", 64, "words in a prompt; a trace brings its own")
	f.IntVar(&c.OutputTokens, "output-tokens", 64, "max_tokens to ask for; a trace brings its own")
	f.BoolVar(&c.ExactTokens, "exact-tokens", false, "count every output length other than the one asked for as an error")
	f.StringVar(&c.Tier, "tier", "", "service_tier to ask for")
	f.StringVar(&b.extra, "extra", "", "`JSON` object whose fields are added to every body, such as '{\"ignore_eos\":true}'")
	f.StringArrayVar(&b.headers, "header", nil, "header `K=V` to send (repeatable)")
	f.StringVar(&b.apiKeyEnv, "api-key-env", "OPENAI_API_KEY", "environment `variable` that has the API key")
	f.Uint64Var(&c.Seed, "seed", 0, "seed of prompts and arrivals (default a random one, which the report names)")

	f.DurationVar(&c.SLOTTFT, "slo-ttft", 0, "bound on TTFT; the share of requests within the bounds is reported as goodput")
	f.DurationVar(&c.SLOE2E, "slo-e2e", 0, "bound on end-to-end latency")
	f.IntVar(&b.rounds, "rounds", 0, "measure each URL so many times, in turn (default 1, or 3 for several URLs)")
	f.StringVarP(&b.output, "output", "o", "table", "table or json")
	f.StringVar(&b.plot, "plot", "", "draw the latency distributions into a `file`, .png or .svg")
	f.BoolVar(&b.progress, "progress", false, "report progress where stderr is no terminal, too")
}

func (b *benchFlags) run(cmd *cobra.Command) error {
	cfgs, err := b.configs(cmd)
	if err != nil {
		return cli.UsageError{Err: err}
	}
	rounds := b.rounds
	if rounds == 0 {
		rounds = map[bool]int{true: 1, false: 3}[len(cfgs) == 1]
	}
	comparison, err := bench.Compare(cmd.Context(), rounds, cfgs...)
	if err != nil {
		return cli.UsageError{Err: err} // nothing was sent
	}
	if err := writeReport(cmd, b.output, comparison); err != nil {
		return err
	}
	if b.plot != "" {
		if err := bench.Plot(b.plot, comparison.Totals()...); err != nil {
			return err
		}
	}
	if cmd.Context().Err() != nil {
		return context.Cause(cmd.Context())
	}
	for _, total := range comparison.Totals() {
		if total.Failed > 0 && total.Succeeded == 0 {
			return fmt.Errorf("every request to %s failed: %s", total.Name, total.Errors[0].Class)
		}
	}
	return nil
}

// configs are the runs that the flags ask for, one per URL.
func (b *benchFlags) configs(cmd *cobra.Command) ([]bench.Config, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	cfg, err := b.shared(cmd)
	if err != nil {
		return nil, err
	}
	report := b.reporter(cmd.ErrOrStderr())
	var cfgs []bench.Config
	for _, url := range b.urls {
		cfg.Name, cfg.URL = splitTarget(url)
		cfg.Progress = report
		cfgs = append(cfgs, cfg)
	}
	return cfgs, nil
}

func (b *benchFlags) check() error {
	switch {
	case len(b.urls) == 0:
		return errors.New("--url is required")
	case b.cfg.Model == "":
		return errors.New("--model is required")
	case b.output != "table" && b.output != "json":
		return fmt.Errorf("--output %q: want table or json", b.output)
	case b.plot != "" && !strings.HasSuffix(b.plot, ".png") && !strings.HasSuffix(b.plot, ".svg"):
		return fmt.Errorf("--plot %q: want a name that ends in .png or .svg", b.plot)
	case b.rounds < 0:
		return fmt.Errorf("--rounds %d: want a positive number", b.rounds)
	}
	return nil
}

// shared is what the runs have in common.
func (b *benchFlags) shared(cmd *cobra.Command) (bench.Config, error) {
	cfg := b.cfg
	cfg.Endpoint = api.API(b.endpoint)
	cfg.Extra = json.RawMessage(b.extra)
	cfg.APIKey = os.Getenv(b.apiKeyEnv)
	if b.noStream || (cfg.Endpoint == api.Embeddings && !cmd.Flags().Changed("stream")) {
		cfg.Stream = false
	}
	if cfg.Seed == 0 {
		cfg.Seed = 1 + rand.Uint64N(1_000_000)
	}
	var err error
	if cfg.Warmup, err = parseWarmup(b.warmup); err != nil {
		return cfg, err
	}
	if cfg.Header, err = parseHeaders(b.headers); err != nil {
		return cfg, err
	}
	if b.trace == "" {
		return cfg, nil
	}
	if cfg.Trace, err = bench.ReadTraceFile(b.trace); err != nil {
		return cfg, err
	}
	if b.traceLimit > 0 {
		cfg.Trace = cfg.Trace.Until(b.traceLimit)
	}
	if len(cfg.Trace) == 0 {
		return cfg, fmt.Errorf("--trace-limit %s: the trace has no request before it", b.traceLimit)
	}
	return cfg, nil
}

// reporter shows progress: as one line that is written over on a terminal, as lines elsewhere if asked for.
func (b *benchFlags) reporter(stderr io.Writer) func(bench.Progress) {
	terminal := term.Of(stderr).Width > 0
	if !terminal && !b.progress {
		return nil
	}
	return func(p bench.Progress) {
		if len(b.urls) == 1 {
			p.Name = ""
		}
		switch {
		case terminal && p.Final:
			fmt.Fprint(stderr, "\r\x1b[K")
		case terminal:
			fmt.Fprintf(stderr, "\r\x1b[K%s", p)
		default:
			fmt.Fprintln(stderr, p)
		}
	}
}

var namedTarget = regexp.MustCompile(`^([\w.-]+)=(https?://.*)$`)

func splitTarget(s string) (name, url string) {
	if m := namedTarget.FindStringSubmatch(s); m != nil {
		return m[1], m[2]
	}
	return s, s
}

func parseWarmup(s string) (bench.Warmup, error) {
	if s == "" {
		return bench.Warmup{}, nil
	}
	if n, err := strconv.Atoi(s); err == nil && n >= 0 {
		return bench.Warmup{Requests: n}, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return bench.Warmup{}, fmt.Errorf("--warmup %q: want a duration such as 5s, or a number of requests", s)
	}
	return bench.Warmup{Duration: d}, nil
}

func parseHeaders(pairs []string) (http.Header, error) {
	header := http.Header{}
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--header %q: want K=V", pair)
		}
		header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return header, nil
}

// writeReport writes a report to stdout, as the flag --output asks.
func writeReport(cmd *cobra.Command, output string, report interface{ WriteTable(io.Writer) error }) error {
	if output != "json" {
		return report.WriteTable(cmd.OutOrStdout())
	}
	encoder := json.NewEncoder(cmd.OutOrStdout())
	encoder.SetIndent("", "  ")
	return encoder.Encode(report)
}

// newBenchSuiteCommand is pulley bench suite: Pulley against its bars.
func newBenchSuiteCommand() *cobra.Command {
	var cfg suite.Config
	var output string
	var check, verbose bool
	cmd := &cobra.Command{
		Use:   "suite",
		Short: "Measure Pulley against a bare reverse proxy and its bars",
		Long: `Measure Pulley against its bars. It starts, as processes of their own on free loopback ports, two simulated engines that
take no time, a bare Go reverse proxy in front of them (the yardstick) and "pulley up" in front of them, and puts the
same load on each in turn. Figures are medians of interleaved rounds.

Scenarios: ` + strings.Join(suite.Scenarios(), ", "),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return cli.Usagef("--output %q: want table or json", output)
			}
			cfg.Progress = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			if verbose {
				cfg.Output = cmd.ErrOrStderr()
			}
			report, err := suite.Run(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if err := writeReport(cmd, output, report); err != nil {
				return err
			}
			if check && !report.Met() {
				return errors.New("a bar was missed")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Rounds, "rounds", 5, "rounds, in each of which the sides take turns")
	f.DurationVar(&cfg.RoundTime, "round-time", 4*time.Second, "how long each side is measured in a round")
	f.StringArrayVar(&cfg.Scenarios, "scenario", nil, "scenario to run (repeatable; default all)")
	f.IntVar(&cfg.IdleStreams, "idle-streams", 2000, "streams that the scenario idle-streams opens")
	f.StringVar(&cfg.Binary, "binary", "", "pulley `file` to measure (default this one)")
	f.BoolVar(&check, "check", false, "exit with 1 where a bar is missed")
	f.BoolVar(&verbose, "verbose", false, "show what the processes print")
	f.StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

// newYardstickCommand is pulley bench yardstick: what the suite measures Pulley against.
func newYardstickCommand() *cobra.Command {
	var listen string
	var engines []string
	cmd := &cobra.Command{
		Use:    "yardstick --engine URL",
		Short:  "Run a bare reverse proxy in front of engines",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			handler, err := bench.NewYardstick(engines...)
			if err != nil {
				return cli.UsageError{Err: err}
			}
			return serveYardstick(cmd, listen, handler)
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:0", "address to listen on; port 0 takes a free one")
	f.StringArrayVar(&engines, "engine", nil, "engine's `URL` (repeatable)")
	return cmd
}

// serveYardstick serves until the command's context ends.
func serveYardstick(cmd *cobra.Command, listen string, handler http.Handler) error {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "yardstick listening on http://%s\n", ln.Addr())
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(cmd.Context(), func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	return nil
}
