package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/spf13/cobra"
)

// version is set by the linker; see the Makefile.
var version string

// buildVersion returns the version of this binary, or "(devel)".
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "pulley %s (%s %s/%s, nats-server %s)\n",
				buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH, natsserver.VERSION)
			return err
		},
	}
}
