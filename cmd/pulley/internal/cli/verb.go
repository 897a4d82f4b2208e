package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Noun makes a command whose verbs share the flags for the connection to NATS.
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

// Connected makes a verb with its own flags for the connection to NATS. The verbs of
// pulley worker need it: the flags of that command are for running a worker.
func Connected(newVerb func(*ConnectFlags) *cobra.Command) *cobra.Command {
	var fs pflag.FlagSet
	cmd := newVerb(AddConnectFlags(&fs))
	cmd.Flags().AddFlagSet(&fs)
	return cmd
}

// Action makes cmd a verb: it connects, and calls do. The flags that cmd has by now,
// but for --output, can only be given on the command line.
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

// Destructive makes cmd a verb with the flag --force, for changes that need a
// confirmation: do calls Session.Confirm.
func Destructive(cmd *cobra.Command, c *ConnectFlags, do func(s *Session) error) *cobra.Command {
	force := cmd.Flags().Bool("force", false, "skip the confirmation")
	return Action(cmd, c, func(s *Session) error {
		s.Force = *force
		return do(s)
	})
}

// Listing makes cmd a verb that prints a view, with the flags --output and --watch.
func Listing(cmd *cobra.Command, c *ConnectFlags, read func(s *Session) (View, error)) *cobra.Command {
	AddOutput(cmd, listingFormats...)
	cmd.Flags().BoolP("watch", "w", false, "refresh every second, until Ctrl-C")
	return Action(cmd, c, func(s *Session) error {
		return ShowListing(s.Context(), cmd, "pulley "+s.CommandLine(), func() (View, error) { return read(s) })
	})
}

var listingFormats = []string{Table, Wide, JSON, YAML}

// ShowListing prints a view as the flags --output and --watch of a Listing say. The
// title is for --watch.
func ShowListing(ctx context.Context, cmd *cobra.Command, title string, read func() (View, error)) error {
	output := Output{Format: cmd.Flag("output").Value.String(), formats: listingFormats}
	if err := output.Check(); err != nil {
		return err
	}
	if cmd.Flag("watch").Value.String() == "true" {
		return watch(ctx, cmd.OutOrStdout(), title, output.Format, read)
	}
	v, err := read()
	if err != nil {
		return err
	}
	return Show(cmd, v, output.Format)
}

// ExactArgs requires one argument for each name; "NAME..." is one or more. The error
// about a missing first argument names the command that lists what there is.
func ExactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		for i, name := range names {
			if len(args) <= i {
				text := "missing argument: " + strings.TrimSuffix(name, "...")
				if list := listingBeside(cmd); list != "" && i == 0 {
					text += fmt.Sprintf(" (see '%s')", list)
				}
				return fmt.Errorf("%s", text)
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

// listingBeside returns the command that lists the objects of cmd's noun, or "".
func listingBeside(cmd *cobra.Command) string {
	for _, verb := range cmd.Parent().Commands() {
		if verb.Name() == "ls" || verb.Name() == "history" {
			return verb.CommandPath()
		}
	}
	return ""
}
