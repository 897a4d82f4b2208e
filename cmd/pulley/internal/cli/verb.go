package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Noun is a command whose verbs reach NATS by the same flags.
func Noun(name, short, long string, verbs ...func(*ConnectFlags) *cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Long: long}
	fs := cmd.PersistentFlags()
	fs.SortFlags = false
	c := AddConnectFlags(fs)
	for _, newVerb := range verbs {
		cmd.AddCommand(newVerb(c))
	}
	return cmd
}

// Action makes cmd a verb that does something.
func Action(cmd *cobra.Command, c *ConnectFlags, do func(s *Session) error) *cobra.Command {
	cmd.Flags().SortFlags = false
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "output" {
			cmd.Flags().SetAnnotation(f.Name, CommandLineOnly, []string{})
		}
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := begin(cmd, args, c)
		if err != nil {
			return err
		}
		defer s.end()
		return do(s)
	}
	return cmd
}

// Destructive makes cmd a verb that does something which has to be confirmed.
func Destructive(cmd *cobra.Command, c *ConnectFlags, do func(s *Session) error) *cobra.Command {
	force := cmd.Flags().Bool("force", false, "do not ask")
	return Action(cmd, c, func(s *Session) error {
		s.Force = *force
		return do(s)
	})
}

// Listing makes cmd a verb that shows something.
func Listing(cmd *cobra.Command, c *ConnectFlags, read func(s *Session) (View, error)) *cobra.Command {
	output := AddOutputFlag(cmd)
	again := cmd.Flags().BoolP("watch", "w", false, "look again every second, until Ctrl-C")
	return Action(cmd, c, func(s *Session) error {
		if err := CheckOutput(*output); err != nil {
			return err
		}
		if *again {
			return Watch(s.Context(), s.Cmd.OutOrStdout(), "pulley "+s.CommandLine(), *output, func() (View, error) { return read(s) })
		}
		v, err := read(s)
		if err != nil {
			return err
		}
		return s.Show(v, *output)
	})
}

// Connected is a verb with connect flags of its own: the flags of pulley worker
// are for running one.
func Connected(newVerb func(*ConnectFlags) *cobra.Command) *cobra.Command {
	var fs pflag.FlagSet
	cmd := newVerb(AddConnectFlags(&fs))
	cmd.Flags().AddFlagSet(&fs)
	return cmd
}

// ExactArgs wants one argument for each name. "NAME..." is one or more.
func ExactArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		for i, name := range names {
			if len(args) <= i {
				return fmt.Errorf("name the %s", strings.ToLower(strings.TrimSuffix(name, "...")))
			}
			if strings.HasSuffix(name, "...") {
				return nil
			}
		}
		if len(args) > len(names) {
			return fmt.Errorf("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}
