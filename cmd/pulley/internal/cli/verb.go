package cli

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/plain"
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

// Connected makes a verb with its own flags for the connection to NATS. The verbs of pulley worker need it: the flags
// of that command are for running a worker.
func Connected(newVerb func(*ConnectFlags) *cobra.Command) *cobra.Command {
	var fs pflag.FlagSet
	cmd := newVerb(AddConnectFlags(&fs))
	cmd.Flags().AddFlagSet(&fs)
	return cmd
}

// Action makes cmd a verb: it connects, and calls do. The flags that cmd has by now, but for --output, can only be
// given on the command line.
func Action(cmd *cobra.Command, c *ConnectFlags, do func(s *Session) error) *cobra.Command {
	cmd.Flags().SortFlags = false
	if cmd.Args == nil {
		cmd.Args = requiredArgs(cmd)
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "output" {
			cmd.Flags().SetAnnotation(f.Name, CommandLineOnly, []string{})
		}
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		nc, err := c.Connect(cmd.Context(), cmd.CommandPath())
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			return err
		}
		s := &Session{Cmd: cmd, Args: args, NC: nc, JS: js}
		defer s.flush()
		return do(s)
	}
	return cmd
}

// Destructive makes cmd a verb with the flag --force, for changes that need a confirmation: do calls Session.Confirm.
func Destructive(cmd *cobra.Command, c *ConnectFlags, do func(s *Session) error) *cobra.Command {
	force := cmd.Flags().Bool("force", false, "skip the confirmation")
	return Action(cmd, c, func(s *Session) error {
		s.Force = *force
		return do(s)
	})
}

// Listing makes cmd a verb that prints a view, with the flags --output and --watch.
func Listing(cmd *cobra.Command, c *ConnectFlags, read func(s *Session) (View, error)) *cobra.Command {
	AddOutput(cmd, Table, Wide, JSON, YAML)
	cmd.Flags().BoolP("watch", "w", false, "refresh every second, until Ctrl-C")
	return Action(cmd, c, func(s *Session) error {
		return ShowListing(s.Context(), cmd, "pulley "+s.CommandLine(), func() (View, error) { return read(s) })
	})
}

// Describing makes cmd a verb that prints a view of each object that its arguments name, with the flags of a Listing. The
// value of one object is its own, that of several is a list.
func Describing(cmd *cobra.Command, c *ConnectFlags, read func(s *Session, name string) (View, error)) *cobra.Command {
	return Listing(cmd, c, func(s *Session) (View, error) {
		var views []View
		var values []any
		for _, name := range s.Args {
			v, err := read(s, name)
			if err != nil {
				return View{}, err
			}
			views, values = append(views, v), append(values, v.Value)
		}
		if len(views) == 1 {
			return views[0], nil
		}
		return View{Value: values, Print: func(p *term.Page) {
			for i, v := range views {
				if i > 0 {
					p.Line("")
				}
				v.Print(p)
			}
		}}, nil
	})
}

// ShowListing prints a view as the flags --output and --watch of a Listing say. The title is for --watch.
func ShowListing(ctx context.Context, cmd *cobra.Command, title string, read func() (View, error)) error {
	format := cmd.Flag("output").Value.String()
	if cmd.Flag("watch").Value.String() == "true" {
		return watch(ctx, cmd.OutOrStdout(), title, format, read)
	}
	v, err := read()
	if err != nil {
		return err
	}
	return Show(cmd, v, format)
}

// requiredArgs requires the arguments that the usage line of cmd names, such as "set POOL"; "NAME..." is one or more. The
// error about a missing first argument names the command that lists what there is.
func requiredArgs(cmd *cobra.Command) cobra.PositionalArgs {
	var names []string
	for _, word := range strings.Fields(cmd.Use)[1:] {
		if strings.HasPrefix(word, "-") {
			break
		}
		names = append(names, word)
	}
	return RequiredArgs(names...)
}

// RequiredArgs requires arguments with these names, and no others; "NAME..." is one or more.
func RequiredArgs(names ...string) cobra.PositionalArgs {
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

// Session is one run of an operator's verb: its command line and its connection.
type Session struct {
	Cmd  *cobra.Command
	Args []string
	NC   *nats.Conn
	JS   jetstream.JetStream

	Force bool // --force was given
}

// flush waits until the broker has what was published.
func (s *Session) flush() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.Context()), time.Second)
	defer cancel()
	s.NC.FlushWithContext(ctx)
}

// Context returns the context of the command; it ends when the command is interrupted.
func (s *Session) Context() context.Context { return s.Cmd.Context() }

// Printf prints a line on standard output: what the verb has done.
func (s *Session) Printf(format string, args ...any) {
	fmt.Fprintf(s.Cmd.OutOrStdout(), format+"\n", args...)
}

// Warnf prints a warning on standard error.
func (s *Session) Warnf(format string, args ...any) {
	for i, arg := range args {
		if err, ok := arg.(error); ok {
			args[i] = plain.Error(err)
		}
	}
	p := term.Page{Terminal: term.Of(s.Cmd.ErrOrStderr())}
	fmt.Fprintf(s.Cmd.ErrOrStderr(), "%s %s\n", p.Paint(term.Yellow, "warning:"), fmt.Sprintf(format, args...))
}

// Confirm asks for a confirmation of an action, such as "remove tier night", unless --force was given. It is refused
// without a terminal.
func (s *Session) Confirm(format string, args ...any) error {
	action := fmt.Sprintf(format, args...)
	if s.Force {
		return nil
	}
	in := s.Cmd.InOrStdin()
	if !Interactive(in) {
		return Refusedf("%s: needs a confirmation, and standard input is not a terminal; use --force to skip it", action)
	}
	fmt.Fprintf(s.Cmd.ErrOrStderr(), "%s? [y/N] ", action)
	answer := make(chan string, 1)
	go func() { // without an answer it ends with the process
		line, _ := bufio.NewReader(in).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case a := <-answer:
		if a == "y" || a == "yes" {
			return nil
		}
		return Refusedf("not confirmed; nothing was changed")
	case <-s.Context().Done():
		fmt.Fprintln(s.Cmd.ErrOrStderr())
		return context.Cause(s.Context())
	}
}

// Interactive says whether a person can answer a question on in. Tests replace it.
var Interactive = func(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && term.Of(f).Width > 0
}

// User returns who runs the command, as name@host.
func (s *Session) User() string {
	name := os.Getenv("USER")
	if u, err := user.Current(); err == nil {
		name = filepath.Base(strings.ReplaceAll(u.Username, `\`, "/"))
	}
	host, _ := os.Hostname()
	return cmp.Or(name, "unknown") + "@" + cmp.Or(host, "unknown")
}

// CommandLine returns the command as it was typed, without the flags for the connection, the output and the
// confirmation. It is what the policy's history shows.
func (s *Session) CommandLine() string {
	var connection pflag.FlagSet
	AddConnectFlags(&connection)
	words := strings.Fields(s.Cmd.CommandPath())[1:]
	for _, a := range s.Args {
		words = append(words, ShellWord(a))
	}
	s.Cmd.Flags().Visit(func(f *pflag.Flag) {
		if connection.Lookup(f.Name) != nil || s.Cmd.Root().PersistentFlags().Lookup(f.Name) != nil {
			return
		}
		switch f.Name {
		case "output", "watch", "force", "follow":
			return
		}
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		switch d, err := time.ParseDuration(values[0]); {
		case f.Value.Type() == "bool" && values[0] == "true":
			words = append(words, "--"+f.Name)
			return
		case f.Value.Type() == "duration" && err == nil:
			values[0] = FormatDuration(d)
		}
		for _, v := range values {
			words = append(words, "--"+f.Name, ShellWord(v))
		}
	})
	return strings.Join(words, " ")
}
