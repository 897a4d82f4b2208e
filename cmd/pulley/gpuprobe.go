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

// newGPUProbeCommand is pulley gpu-probe, the child process that calls NVML.
func newGPUProbeCommand() *cobra.Command {
	var cfg probe.Config
	cmd := &cobra.Command{
		Use:    "gpu-probe",
		Hidden: true,
		Short:  "Print samples of this machine's GPUs as lines of JSON",
		Long: `Read the GPUs of this machine with NVML, and print a line of JSON at each interval,
until standard input ends. Workers run it as a child process, so that a crash or a
hang of NVML does not affect them.`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.DurationVar(&cfg.Interval, "interval", time.Second, "interval between two samples")
	fleet.AddLibraryFlag(fs, &cfg.Library)
	fs.BoolVar(&cfg.All, "all", false, "also read GPUs that the environment hides")
	fs.VisitAll(func(f *pflag.Flag) { fs.SetAnnotation(f.Name, cli.CommandLineOnly, []string{}) }) // the parent process passes all settings
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if cfg.Interval < 10*time.Millisecond {
			return cli.Usagef("--interval %v: must be 10ms or more", cfg.Interval)
		}
		ctx := cmd.Context()
		if term.Of(os.Stdin).Width == 0 {
			// A service manager signals all processes of a service. The worker handles the signal, and closes this
			// process's input when it no longer needs it.
			ctx = context.WithoutCancel(ctx)
		}
		return probe.Run(ctx, cmd.InOrStdin(), cmd.OutOrStdout(), cfg)
	}
	return cmd
}
