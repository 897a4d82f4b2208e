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
	"slices"
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

func newBenchCommand() *cobra.Command {
	var b benchFlags
	cmd := &cobra.Command{
		Use:   "bench --url URL --model MODEL",
		Short: "Measure an OpenAI-compatible server under load",
		Long: `Put load on any OpenAI-compatible server, and report what clients experience: percentiles of time to first token,
inter-token time and end-to-end latency, throughput, and errors by class.

A closed loop (--concurrency) has N clients that each wait for their answer; it measures throughput. An open loop
(--rate, --trace) sends each request when it is due and measures its latency from that moment, even if it was sent late,
so that a server that stalls shows it (no coordinated omission). A trace is a CSV file with the columns arrival_seconds,
input_tokens and output_tokens; each prompt has that many words.

Several targets, given as URL or NAME=URL, are measured in turn, --rounds times (A B A B …), and printed side by side
with ratios to the first.

--fail-if says when a result is not good enough: error_rate, goodput (of --slo-ttft and --slo-e2e), rps, tps (output
tokens per second), or p50_, p90_, p95_, p99_, p99.9_, max_ or mean_ of ttft, itl (inter-token), gap, e2e or queue, with <
or > and a bound.

Ctrl-C ends the run early and reports the results so far. The exit code is 1 if all requests to a target failed, or if a
threshold of --fail-if was missed.`,
		Example: `  # 16 clients for 30 seconds
  pulley bench --url http://127.0.0.1:8080 --model llama --concurrency 16 --duration 30s

  # ten minutes of a recorded load at twice its speed, with a plot
  pulley bench --url http://127.0.0.1:8080 --model llama --trace azure.csv --trace-limit 10m --speedup 2 --plot cdf.png

  # in a pipeline: fail unless 99 of 100 requests get their first token within half a second
  pulley bench --url http://127.0.0.1:8080 --model llama --rate 5 --fail-if 'p99_ttft>500ms' --fail-if 'error_rate>0%' -o csv

  # two balancers side by side
  pulley bench --url pulley=http://127.0.0.1:8080 --url nginx=http://127.0.0.1:8000 --model llama --rate 20 --rounds 5`,
		RunE: func(cmd *cobra.Command, _ []string) error { return b.run(cmd) },
	}
	b.declare(cmd)
	cmd.AddCommand(newBenchSuiteCommand(), newBenchFleetCommand(), newYardstickCommand(), newFleetWorkersCommand())
	return cmd
}

// benchFlags are the flags of pulley bench, as far as they are not fields of bench.Config.
type benchFlags struct {
	cfg bench.Config

	urls, headers     []string
	endpoint, extra   string
	noStream          bool
	trace             string
	traceLimit        time.Duration
	warmup, apiKeyEnv string
	rounds            int
	output            *string
	plot, html        string
	failIf            []string
	thresholds        []bench.Threshold
	progress          bool
}

func (b *benchFlags) declare(cmd *cobra.Command) {
	f, c := cmd.Flags(), &b.cfg
	f.StringArrayVar(&b.urls, "url", nil, "base `URL` of the API, or NAME=URL (repeatable)")
	f.StringVar(&c.Model, "model", "", "model to ask for")
	f.StringVar(&b.endpoint, "endpoint", string(api.Chat), "API: chat, completions, embeddings, responses or messages")
	f.BoolVar(&c.Stream, "stream", true, "ask for a stream")
	f.BoolVar(&b.noStream, "no-stream", false, "ask for a complete answer, as --stream=false")
	f.BoolVar(&c.NoUsage, "no-usage", false, "do not ask for usage in streams; for servers that refuse stream_options")

	f.IntVar(&c.Concurrency, "concurrency", 0, "closed loop: number of clients (default 1 without --rate and --trace)")
	f.Float64Var(&c.Rate, "rate", 0, "open loop: mean requests per second (Poisson arrivals)")
	f.StringVar(&b.trace, "trace", "", "open loop: replay a CSV `file`")
	f.Float64Var(&c.Speedup, "speedup", 1, "factor by which the trace is replayed faster")
	f.DurationVar(&b.traceLimit, "trace-limit", 0, "replay only this much of the trace, in its own time (default all)")
	f.IntVar(&c.MaxInFlight, "max-in-flight", 10_000, "open loop: limit of requests in flight; a request that is due beyond it counts as an error")

	f.IntVar(&c.Requests, "requests", 0, "number of requests after which the run ends (default no limit)")
	f.DurationVar(&c.Duration, "duration", 0, "time after which no more requests are sent (default 10s without --requests and --trace)")
	f.StringVar(&b.warmup, "warmup", "", "leave out the first `D|N`: a duration or a number of requests")
	f.DurationVar(&c.Timeout, "timeout", 10*time.Minute, "time limit of a request")

	f.IntVar(&c.InputTokens, "input-tokens", 64, "words per prompt; a trace has its own")
	f.IntVar(&c.OutputTokens, "output-tokens", 64, "max_tokens of a request; a trace has its own")
	f.BoolVar(&c.ExactTokens, "exact-tokens", false, "count an output of any other length than max_tokens as an error")
	f.StringVar(&c.Tier, "tier", "", "service_tier to ask for")
	f.StringVar(&b.extra, "extra", "", "`JSON` object whose fields are added to each request body, such as '{\"ignore_eos\":true}'")
	f.StringArrayVar(&b.headers, "header", nil, "header `K=V` to send (repeatable)")
	f.StringVar(&b.apiKeyEnv, "api-key-env", "OPENAI_API_KEY", "environment `variable` with the API key")
	f.Uint64Var(&c.Seed, "seed", 0, "seed for prompts and arrivals (default random; the report contains it)")

	f.DurationVar(&c.SLOTTFT, "slo-ttft", 0, "objective for the TTFT; the fraction of requests that meet all objectives is reported as goodput")
	f.DurationVar(&c.SLOE2E, "slo-e2e", 0, "objective for the end-to-end latency")
	f.IntVar(&b.rounds, "rounds", 0, "number of rounds; each measures every URL once (default 1, or 3 for several URLs)")
	f.StringArrayVar(&b.failIf, "fail-if", nil, "`threshold` such as 'p99_ttft>500ms', 'error_rate>1%' or 'rps<20'; the exit code is 1 if a target misses it (repeatable)")
	b.output = cli.AddOutput(cmd, cli.Table, cli.JSON, cli.CSV)
	f.StringVar(&b.html, "html", "", "write the report with its plot to an .html `file`")
	f.StringVar(&b.plot, "plot", "", "plot the latency distributions to a .png or .svg `file`")
	f.BoolVar(&b.progress, "progress", false, "report progress even if stderr is not a terminal")
}

func (b *benchFlags) run(cmd *cobra.Command) error {
	cfgs, err := b.configs(cmd)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	rounds := b.rounds
	if rounds == 0 {
		rounds = map[bool]int{true: 1, false: 3}[len(cfgs) == 1]
	}
	comparison, err := bench.Compare(cmd.Context(), rounds, cfgs...)
	if err != nil {
		return cli.Usagef("%w", err) // nothing was sent
	}
	if *b.output == cli.CSV {
		err = comparison.WriteCSV(cmd.OutOrStdout())
	} else {
		err = writeReport(cmd, *b.output, comparison)
	}
	if err != nil {
		return err
	}
	if b.html != "" {
		if err := writeFile(b.html, comparison.WriteHTML); err != nil {
			return fmt.Errorf("--html: %w", err)
		}
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
	var missed []error
	for _, total := range comparison.Totals() {
		for _, t := range b.thresholds {
			if why := t.Missed(total); why != "" {
				missed = append(missed, errors.New(why))
			}
		}
	}
	return errors.Join(missed...)
}

// writeFile writes a file.
func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

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
	case b.plot != "" && !strings.HasSuffix(b.plot, ".png") && !strings.HasSuffix(b.plot, ".svg"):
		return fmt.Errorf("--plot %q: must end in .png or .svg", b.plot)
	case b.html != "" && !strings.HasSuffix(b.html, ".html"):
		return fmt.Errorf("--html %q: must end in .html", b.html)
	case b.rounds < 0:
		return fmt.Errorf("--rounds %d: must be a positive number", b.rounds)
	}
	for _, text := range b.failIf {
		t, err := bench.ParseThreshold(text)
		if err != nil {
			return fmt.Errorf("--fail-if %w", err)
		}
		b.thresholds = append(b.thresholds, t)
	}
	return nil
}

// shared returns what the runs have in common.
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
		return cfg, fmt.Errorf("--trace-limit %s: the trace has no request before that time", b.traceLimit)
	}
	return cfg, nil
}

// reporter shows progress: on a terminal as one line that is overwritten, elsewhere as lines if --progress was given.
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
		return bench.Warmup{}, fmt.Errorf("--warmup %q: must be a duration such as 5s, or a number of requests", s)
	}
	return bench.Warmup{Duration: d}, nil
}

func parseHeaders(pairs []string) (http.Header, error) {
	header := http.Header{}
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--header %q: must be K=V", pair)
		}
		header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return header, nil
}

// writeReport writes a report to standard output in a format.
func writeReport(cmd *cobra.Command, output string, report interface{ WriteTable(io.Writer) error }) error {
	if output != cli.JSON {
		return report.WriteTable(cmd.OutOrStdout())
	}
	encoder := json.NewEncoder(cmd.OutOrStdout())
	encoder.SetIndent("", "  ")
	return encoder.Encode(report)
}

func newBenchSuiteCommand() *cobra.Command {
	var cfg suite.Config
	var output *string
	var check, verbose, apart bool
	cmd := &cobra.Command{
		Use:   "suite",
		Short: "Compare Pulley with a plain reverse proxy, and with its targets",
		Long: `Measure Pulley against its performance targets. The suite starts separate processes on free loopback ports: two
simulated engines that take no time, a plain Go reverse proxy in front of them (the yardstick), and "pulley up" in front
of them. It puts the same load on each in turn. The figures are medians of interleaved rounds.

Scenarios: ` + strings.Join(suite.Scenarios(), ", ") + `

With --apart it measures what a fleet costs whose broker, gateway and workers are processes of their own, beside the
engines alone (direct), the yardstick and "pulley up" on the same engines: CPU time and context switches of each part for
each request or token, added latency, and the gaps between tokens. It does so for each of --workers, with an engine for
each worker: engines that take no time, and engines that batch as a GPU does, with 20 ms + 0.1 ms × (requests in the
batch) a step. There, a round is one answer of each stream. What the parts use while idle is shown too, and is contained
in the other figures.

Scenarios with --apart: ` + strings.Join(suite.ApartScenarios(), ", ") + `

Ctrl-C ends all processes that were started.`,
		Example: `  pulley bench suite --check
  pulley bench suite --apart
  pulley bench suite --apart --workers 4 --scenario small-16 --scenario stream-64 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Progress = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			if verbose {
				cfg.Output = cmd.ErrOrStderr()
			}
			report, err := runSuite(cmd.Context(), cfg, apart)
			if err != nil {
				return err
			}
			if err := writeReport(cmd, *output, report); err != nil {
				return err
			}
			if check && !report.Met() {
				return errors.New("a target was missed")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&apart, "apart", false, "measure broker, gateway and workers as processes of their own")
	f.IntSliceVar(&cfg.Workers, "workers", nil, "with --apart: `numbers` of workers to measure (default 1,4,16)")
	f.IntVar(&cfg.Rounds, "rounds", 0, "number of rounds; each measures all sides in turn (default 5, with --apart 3)")
	f.DurationVar(&cfg.RoundTime, "round-time", 0, "how long each side is measured in a round (default 4s, with --apart 2s)")
	f.StringArrayVar(&cfg.Scenarios, "scenario", nil, "scenario to run (repeatable; default all)")
	cmd.RegisterFlagCompletionFunc("scenario", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		names := append(suite.Scenarios(), suite.ApartScenarios()...)
		if apart {
			names = suite.ApartScenarios()
		}
		return slices.Compact(slices.Sorted(slices.Values(names))), cobra.ShellCompDirectiveNoFileComp
	})
	f.IntVar(&cfg.IdleStreams, "idle-streams", 2000, "number of streams in the scenario idle-streams")
	f.StringVar(&cfg.Binary, "binary", "", "pulley binary `file` to measure (default this one)")
	f.BoolVar(&check, "check", false, "exit with 1 if a target is missed")
	f.BoolVar(&verbose, "verbose", false, "show the output of the processes")
	output = cli.AddOutput(cmd, cli.Table, cli.JSON)
	return cmd
}

// suiteReport is a report of either kind of measurement.
type suiteReport interface {
	WriteTable(io.Writer) error
	Met() bool
}

func runSuite(ctx context.Context, cfg suite.Config, apart bool) (suiteReport, error) {
	switch {
	case cfg.Rounds < 0 || cfg.RoundTime < 0:
		return nil, cli.Usagef("--rounds and --round-time: must be positive")
	case apart:
		return suite.RunApart(ctx, cfg)
	case len(cfg.Workers) > 0:
		return nil, cli.Usagef("--workers: only with --apart")
	}
	return suite.Run(ctx, cfg)
}

// newYardstickCommand is pulley bench yardstick, the reverse proxy that the suite compares Pulley with.
func newYardstickCommand() *cobra.Command {
	var listen string
	var engines []string
	cmd := &cobra.Command{
		Use:    "yardstick --engine URL",
		Short:  "Run a plain reverse proxy in front of engines",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			handler, err := bench.NewYardstick(engines...)
			if err != nil {
				return cli.Usagef("%w", err)
			}
			return serveYardstick(cmd, listen, handler)
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:0", "address to listen on; port 0 chooses a free one")
	f.StringArrayVar(&engines, "engine", nil, "engine's `URL` (repeatable)")
	return cmd
}

// serveYardstick serves until the context of the command ends.
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
