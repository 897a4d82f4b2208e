package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/bench/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
)

func newBenchFleetCommand() *cobra.Command {
	var cfg fleet.Config
	var output *string
	var check, verbose bool
	var body int64
	cmd := &cobra.Command{
		Use:   "fleet",
		Short: "Measure how brokers and gateways scale with workers, streams and long prompts",
		Long: `Measure what a broker and gateways cost with many workers, pools, gateways, open streams and long prompts, and how fast
a request finds a worker. Broker, gateways and workers are separate processes on free loopback ports. The workers are real
ones, each with a connection of its own to the broker, but all in one process, with simulated engines that they call
without a network; what the workers use contains these engines.

For each case it reports the cores that each part uses while the fleet is idle and under load, its memory (RSS), its CPU
time for each request, the pickup (from the arrival of a request at its gateway until a worker has claimed it), and the
latency of the clients. An answer of an engine takes 50 ms.

Cases: ` + strings.Join(fleet.Cases(), ", ") + `
Without --case: ` + strings.Join(fleet.DefaultCases(), ", ") + `

--workers, --pools, --gateways and --brokers replace those of each case. 10 000 open streams need as many file descriptors
in the gateway and here: see ulimit -n. With three brokers all streams have three replicas.

Ctrl-C ends all processes that were started.`,
		Example: `  pulley bench fleet
  pulley bench fleet --case workers-10 --case workers-1000 --check
  pulley bench fleet --case streams --streams 10000
  pulley bench fleet --case workers-100 --workers 300 --gateways 2 --rate 500 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Progress = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			if verbose {
				cfg.Output = cmd.ErrOrStderr()
			}
			cfg.BodyBytes = int(body)
			report, err := fleet.Run(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if err := writeReport(cmd, *output, report); err != nil {
				return err
			}
			if check && !report.Met() {
				return errors.New("a target was missed, or a request failed")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&cfg.Cases, "case", nil, "case to measure, or all (repeatable)")
	cmd.RegisterFlagCompletionFunc("case", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return append(fleet.Cases(), fleet.All), cobra.ShellCompDirectiveNoFileComp
	})
	f.IntVar(&cfg.Workers, "workers", 0, "number of workers (default that of the case)")
	f.IntVar(&cfg.Pools, "pools", 0, "number of pools that the workers are divided among (default that of the case)")
	f.IntVar(&cfg.Gateways, "gateways", 0, "number of gateways (default that of the case)")
	f.IntVar(&cfg.Brokers, "brokers", 0, "number of brokers, 1 or 3 (default that of the case)")
	f.Float64Var(&cfg.Rate, "rate", 200, "mean requests per second; at most half of what the workers can do. The case burst has a quarter of it, and ten times as many for a second")
	f.DurationVar(&cfg.Duration, "duration", 8*time.Second, "how long requests arrive")
	f.DurationVar(&cfg.IdleTime, "idle-time", 5*time.Second, "how long the idle fleet is measured")
	f.IntVar(&cfg.Streams, "streams", 1000, "open streams in the case streams")
	cli.SizeVar(f, &body, "body", 500_000, "size of a request in the case bodies")
	f.Float64Var(&cfg.BodyRate, "body-rate", 10, "mean requests per second in the case bodies")
	f.StringVar(&cfg.Binary, "binary", "", "pulley binary `file` to measure (default this one)")
	f.BoolVar(&check, "check", false, "exit with 1 if a target is missed or a request fails")
	f.BoolVar(&verbose, "verbose", false, "show the output of the processes")
	output = cli.AddOutput(cmd, cli.Table, cli.JSON)
	return cmd
}

// newFleetWorkersCommand is pulley bench fleet-workers, the process with the workers that pulley bench fleet measures.
func newFleetWorkersCommand() *cobra.Command {
	var cfg fleet.WorkersConfig
	cmd := &cobra.Command{
		Use:    "fleet-workers",
		Short:  "Run many workers with simulated engines in one process",
		Hidden: true,
		Args:   cobra.NoArgs,
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Workers, "workers", 1, "number of workers")
	f.IntVar(&cfg.Pools, "pools", 1, "number of pools that they are divided among")
	f.IntVar(&cfg.Slots, "slots", 16, "slots of each worker")
	f.DurationVar(&cfg.First, "first", 0, "time until the first token of an answer")
	f.DurationVar(&cfg.Token, "token", 0, "time between two tokens")
	c := cli.AddConnectFlags(f)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg.Logger = cli.Logger(cmd.Context())
		cfg.Connect = func(ctx context.Context, name string) (*nats.Conn, error) {
			return c.ConnectPatiently(ctx, "pulley worker "+name)
		}
		return runParts(cmd.Context(), [][]part{{{"workers", func(ctx context.Context) error {
			return fleet.RunWorkers(ctx, cfg, func() {
				fmt.Fprintf(cmd.OutOrStdout(), "%d %s\n", cfg.Workers, fleet.WorkersReady)
			})
		}}}})
	}
	return cmd
}
