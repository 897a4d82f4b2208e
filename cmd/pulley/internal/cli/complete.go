package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
)

// CompletionTimeout bounds how long a shell waits for names from the broker.
const CompletionTimeout = time.Second

// Lister reads names from the broker. A name may be followed by a tab and a description.
type Lister func(ctx context.Context, nc *nats.Conn) ([]string, error)

// Complete completes the first n arguments, or all of them if n is 0, with the names that list reads. Without a broker
// it completes nothing and prints nothing.
func Complete(c *ConnectFlags, n int, list Lister) cobra.CompletionFunc {
	flag := CompleteFlag(c, list)
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n > 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names, directive := flag(cmd, args, toComplete)
		return slices.DeleteFunc(names, func(n string) bool {
			name, _, _ := strings.Cut(n, "\t")
			return slices.Contains(args, name)
		}), directive
	}
}

// NameFlag declares a flag for a name, which is completed with the names that list reads.
func NameFlag(cmd *cobra.Command, c *ConnectFlags, p *string, flag, usage string, list Lister) {
	cmd.Flags().StringVar(p, flag, "", usage)
	cmd.RegisterFlagCompletionFunc(flag, CompleteFlag(c, list))
}

// CompleteFlag completes the value of a flag with the names that list reads.
func CompleteFlag(c *ConnectFlags, list Lister) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		names, err := c.readNames(cmd, list)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// CompleteFixed completes the value of a flag of cmd with fixed values.
func CompleteFixed(cmd *cobra.Command, flag string, values ...string) {
	cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// readNames connects for as long as list takes.
func (c *ConnectFlags) readNames(cmd *cobra.Command, list Lister) ([]string, error) {
	if err := configure(cmd); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), CompletionTimeout)
	defer cancel()
	nc, err := c.dial(ctx, "pulley completion", []nats.Option{nats.Timeout(CompletionTimeout / 2), nats.NoReconnect()})
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	return list(ctx, nc)
}
