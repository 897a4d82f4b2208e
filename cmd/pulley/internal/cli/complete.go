package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
)

// CompletionTimeout bounds how long a shell waits for names that live.
const CompletionTimeout = time.Second

// Lister is how names are learnt from a broker, each with a description after a
// tab if it has one.
type Lister func(ctx context.Context, nc *nats.Conn) ([]string, error)

// Complete completes the first most arguments with what list knows; all of them
// if most is 0. Where nobody answers it completes nothing, and says nothing.
func Complete(c *ConnectFlags, most int, list Lister) cobra.CompletionFunc {
	flag := CompleteFlag(c, list)
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names, directive := flag(cmd, args, toComplete)
		return slices.DeleteFunc(names, func(n string) bool {
			name, _, _ := strings.Cut(n, "\t")
			return slices.Contains(args, name)
		}), directive
	}
}

// CompleteFlag is complete for a flag's value.
func CompleteFlag(c *ConnectFlags, list Lister) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		names, err := c.liveNames(cmd, list)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

func (c *ConnectFlags) liveNames(cmd *cobra.Command, list Lister) ([]string, error) {
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
