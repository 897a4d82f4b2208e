package main

import (
	"context"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu/probe"
)

// newGPUProbeCommand is the child process that calls NVML.
func newGPUProbeCommand() *cobra.Command {
	var cfg probe.Config
	cmd := &cobra.Command{
		Use:    "gpu-probe",
		Hidden: true,
		Short:  "Print what NVML says of this machine's GPUs, as lines of JSON",
		Long: `Print what NVML says of this machine's GPUs, as a line of JSON each interval,
until the standard input ends. Workers run it beside them: what NVML does, dying
and hanging included, then happens to a process of its own.`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.DurationVar(&cfg.Interval, "interval", time.Second, "how often to read the GPUs")
	fleet.AddLibraryFlag(fs, &cfg.Library)
	fs.BoolVar(&cfg.All, "all", false, "the GPUs too that the environment hides")
	fs.VisitAll(func(f *pflag.Flag) { fs.SetAnnotation(f.Name, cli.CommandLineOnly, []string{}) }) // its parent tells it all
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if cfg.Interval < 10*time.Millisecond {
			return cli.Usagef("--interval %v: want 10ms or more", cfg.Interval)
		}
		ctx := cmd.Context()
		if term.Of(os.Stdin).Width == 0 {
			// A signal for all of a service is for its worker to hear: that closes our
			// input when it needs us no longer.
			ctx = context.WithoutCancel(ctx)
		}
		return probe.Run(ctx, cmd.InOrStdin(), cmd.OutOrStdout(), cfg)
	}
	return cmd
}
