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
)

// Session is an operator's verb under way.
type Session struct {
	Cmd  *cobra.Command
	Args []string
	NC   *nats.Conn
	JS   jetstream.JetStream

	Force bool // nobody has to be asked
}

// begin connects.
func begin(cmd *cobra.Command, args []string, c *ConnectFlags) (*Session, error) {
	s := &Session{Cmd: cmd, Args: args}
	var err error
	if s.NC, err = c.Connect(cmd.Context(), cmd.CommandPath()); err != nil {
		return nil, err
	}
	if s.JS, err = jetstream.New(s.NC); err != nil {
		s.NC.Close()
		return nil, err
	}
	return s, nil
}

func (s *Session) Context() context.Context { return s.Cmd.Context() }

// Show prints a view.
func (s *Session) Show(v View, format string) error {
	out := s.Cmd.OutOrStdout()
	b, err := v.Render(format, term.Of(out))
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}

// Printf tells what was done.
func (s *Session) Printf(format string, args ...any) {
	fmt.Fprintf(s.Cmd.OutOrStdout(), format+"\n", args...)
}

// Warnf tells what may not have been meant.
func (s *Session) Warnf(format string, args ...any) {
	p := term.Page{Terminal: term.Of(s.Cmd.ErrOrStderr())}
	fmt.Fprintf(s.Cmd.ErrOrStderr(), "%s %s\n", p.Paint(term.Yellow, "warning:"), fmt.Sprintf(format, args...))
}

// Confirm asks whether to do harm, which is a sentence without its end.
func (s *Session) Confirm(format string, args ...any) error {
	harm := fmt.Sprintf(format, args...)
	if s.Force {
		return nil
	}
	in := s.Cmd.InOrStdin()
	if !Interactive(in) {
		return Refusedf("%s: there is no terminal to ask on; say --force", harm)
	}
	fmt.Fprintf(s.Cmd.ErrOrStderr(), "%s? [y/N] ", harm)
	answer := make(chan string, 1)
	go func() { // ends with the process, if nobody answers
		line, _ := bufio.NewReader(in).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case a := <-answer:
		if a == "y" || a == "yes" {
			return nil
		}
		return Refusedf("not confirmed: nothing was changed")
	case <-s.Context().Done():
		fmt.Fprintln(s.Cmd.ErrOrStderr())
		return context.Cause(s.Context())
	}
}

// Interactive says whether somebody is there to answer; a variable for tests.
var Interactive = func(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && term.Of(f).Width > 0
}

// User is the one who uses this command.
func (s *Session) User() string {
	name := os.Getenv("USER")
	if u, err := user.Current(); err == nil {
		name = filepath.Base(strings.ReplaceAll(u.Username, `\`, "/"))
	}
	host, _ := os.Hostname()
	return cmp.Or(name, "unknown") + "@" + cmp.Or(host, "unknown")
}

// CommandLine is the command as it was typed, but for what only says where and how.
func (s *Session) CommandLine() string {
	var aside pflag.FlagSet
	AddConnectFlags(&aside)
	words := strings.Fields(s.Cmd.CommandPath())[1:]
	for _, a := range s.Args {
		words = append(words, ShellWord(a))
	}
	s.Cmd.Flags().Visit(func(f *pflag.Flag) {
		if aside.Lookup(f.Name) != nil || s.Cmd.Root().PersistentFlags().Lookup(f.Name) != nil {
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

// end disconnects, after what was published has gone.
func (s *Session) end() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.Context()), time.Second)
	defer cancel()
	s.NC.FlushWithContext(ctx)
	s.NC.Close()
}
