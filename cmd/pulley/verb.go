package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// session is an operator's verb under way.
type session struct {
	cmd  *cobra.Command
	args []string
	nc   *nats.Conn
	js   jetstream.JetStream

	force bool // nobody has to be asked
}

func (s *session) ctx() context.Context { return s.cmd.Context() }

// noun is a command whose verbs reach NATS by the same flags.
func noun(name, short, long string, verbs ...func(*connectFlags) *cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Long: long}
	fs := cmd.PersistentFlags()
	fs.SortFlags = false
	c := addConnectFlags(fs)
	for _, newVerb := range verbs {
		cmd.AddCommand(newVerb(c))
	}
	return cmd
}

// act makes cmd a verb that does something.
func act(cmd *cobra.Command, c *connectFlags, do func(s *session) error) *cobra.Command {
	cmd.Flags().SortFlags = false
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "output" {
			cmd.Flags().SetAnnotation(f.Name, typedOnly, []string{})
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

// harm makes cmd a verb that does something which has to be confirmed.
func harm(cmd *cobra.Command, c *connectFlags, do func(s *session) error) *cobra.Command {
	force := cmd.Flags().Bool("force", false, "do not ask")
	return act(cmd, c, func(s *session) error {
		s.force = *force
		return do(s)
	})
}

// look makes cmd a verb that shows something.
func look(cmd *cobra.Command, c *connectFlags, read func(s *session) (view, error)) *cobra.Command {
	output := addOutputFlag(cmd)
	again := cmd.Flags().BoolP("watch", "w", false, "look again every second, until Ctrl-C")
	return act(cmd, c, func(s *session) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		if *again {
			return watch(s.ctx(), s.cmd.OutOrStdout(), "pulley "+s.words(), *output, func() (view, error) { return read(s) })
		}
		v, err := read(s)
		if err != nil {
			return err
		}
		return s.show(v, *output)
	})
}

func addOutputFlag(cmd *cobra.Command) *string {
	output := cmd.Flags().StringP("output", "o", "table", "how to print: table, wide, json or yaml")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
	return output
}

func checkOutput(format string) error {
	if !slices.Contains(outputs, format) {
		return usagef("--output %q: want table, wide, json or yaml", format)
	}
	return nil
}

// show prints a view.
func (s *session) show(v view, format string) error {
	out := s.cmd.OutOrStdout()
	b, err := v.render(format, terminalOf(out))
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}

// begin connects.
func begin(cmd *cobra.Command, args []string, c *connectFlags) (*session, error) {
	s := &session{cmd: cmd, args: args}
	var err error
	if s.nc, err = c.connect(cmd.Context(), cmd.CommandPath()); err != nil {
		return nil, err
	}
	if s.js, err = jetstream.New(s.nc); err != nil {
		s.nc.Close()
		return nil, err
	}
	return s, nil
}

// end disconnects, after what was published has gone.
func (s *session) end() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx()), time.Second)
	defer cancel()
	s.nc.FlushWithContext(ctx)
	s.nc.Close()
}

// say tells what was done.
func (s *session) say(format string, args ...any) {
	fmt.Fprintf(s.cmd.OutOrStdout(), format+"\n", args...)
}

// warn tells what may not have been meant.
func (s *session) warn(format string, args ...any) {
	p := page{terminal: terminalOf(s.cmd.ErrOrStderr())}
	fmt.Fprintf(s.cmd.ErrOrStderr(), "%s %s\n", p.paint(yellow, "warning:"), fmt.Sprintf(format, args...))
}

// canAsk says whether somebody is there to answer; a variable for tests.
var canAsk = func(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && terminalOf(f).width > 0
}

// confirm asks whether to do harm, which is a sentence without its end.
func (s *session) confirm(format string, args ...any) error {
	harm := fmt.Sprintf(format, args...)
	if s.force {
		return nil
	}
	in := s.cmd.InOrStdin()
	if !canAsk(in) {
		return refusedf("%s: there is no terminal to ask on; say --force", harm)
	}
	fmt.Fprintf(s.cmd.ErrOrStderr(), "%s? [y/N] ", harm)
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
		return refusedf("not confirmed: nothing was changed")
	case <-s.ctx().Done():
		fmt.Fprintln(s.cmd.ErrOrStderr())
		return context.Cause(s.ctx())
	}
}

// store opens the policy's bucket.
func (s *session) store() (*policystore.Store, error) {
	store, err := policystore.Open(s.ctx(), s.nc)
	if errors.Is(err, policystore.ErrNoBucket) {
		return nil, notFoundError{err}
	}
	return store, err
}

// policy is the one in force.
func (s *session) policy() (*policy.Policy, error) {
	store, err := s.store()
	if err != nil {
		return nil, err
	}
	v, err := store.Load(s.ctx())
	return v.Policy, explainDamage(err)
}

func explainDamage(err error) error {
	if _, ok := errors.AsType[policystore.DamagedError](err); ok {
		return fmt.Errorf("%w; see 'pulley policy history', and put a sound one in force with 'pulley policy rollback REVISION'", err)
	}
	return err
}

// writtenPolicy is what has become of a change of the policy.
type writtenPolicy struct {
	policystore.Version
	same bool // there was nothing to change
}

// change changes the policy; edit gets a copy of the one in force.
func (s *session) change(edit func(*policy.Policy) error) (writtenPolicy, error) {
	store, err := s.store()
	if err != nil {
		return writtenPolicy{}, err
	}
	var w writtenPolicy
	w.Version, err = store.Update(s.ctx(), s.who(), s.words(), func(p *policy.Policy) error {
		before := p.Clone()
		if err := edit(p); err != nil {
			return err
		}
		if err := p.Check(); err != nil {
			return err
		}
		w.same = reflect.DeepEqual(before, p.Clone())
		return s.checkTiers(before, p)
	})
	if err != nil || w.same {
		return w, s.explainInvalid(explainDamage(err))
	}
	return w, s.changed(w.Version)
}

// changed does what has to follow a change of the policy.
func (s *session) changed(v policystore.Version) error {
	s.tell(subjects.Event{Kind: subjects.EventPolicy, Text: fmt.Sprintf("%s, revision %d", v.Why, v.Revision)})
	return s.dropStreams(v.Policy)
}

// explainInvalid names the flags that made a policy unsound.
func (s *session) explainInvalid(err error) error {
	invalid, ok := errors.AsType[policy.Invalid](err)
	if !ok {
		return err
	}
	var lines []string
	for _, p := range invalid.Problems {
		line := p.String()
		if n := len(p.Path); n > 0 && p.Path[n-1] == "name" {
			line = p.Reason
		}
		for _, field := range slices.Backward(p.Path) {
			if f := s.cmd.Flags().Lookup(strings.ReplaceAll(field, "_", "-")); f != nil {
				line = "--" + f.Name + ": " + p.Reason
				break
			}
		}
		lines = append(lines, line)
	}
	return usageError{errors.New(strings.Join(lines, "; "))}
}

// tell publishes an event.
func (s *session) tell(e subjects.Event) {
	e.At, e.From = time.Now().UTC(), "cli "+s.who()
	publishJSON(s.nc, subjects.EventSubject(e.Kind), e)
}

// who is the one who uses this command.
func (s *session) who() string {
	name := os.Getenv("USER")
	if u, err := user.Current(); err == nil {
		name = filepath.Base(strings.ReplaceAll(u.Username, `\`, "/"))
	}
	host, _ := os.Hostname()
	return cmp.Or(name, "unknown") + "@" + cmp.Or(host, "unknown")
}

// words is the command as it was typed, but for what only says where and how.
func (s *session) words() string {
	var aside pflag.FlagSet
	addConnectFlags(&aside)
	words := strings.Fields(s.cmd.CommandPath())[1:]
	for _, a := range s.args {
		words = append(words, shellWord(a))
	}
	s.cmd.Flags().Visit(func(f *pflag.Flag) {
		if aside.Lookup(f.Name) != nil || s.cmd.Root().PersistentFlags().Lookup(f.Name) != nil {
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
			values[0] = durationInWords(d)
		}
		for _, v := range values {
			words = append(words, "--"+f.Name, shellWord(v))
		}
	})
	return strings.Join(words, " ")
}

// shellWord is s as one word for a shell.
func shellWord(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,@%+", r)
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// noSuch says that what was named does not exist, and what may have been meant.
func noSuch(kind, name string, known []string) error {
	hint := didYouMean(name, known)
	if hint == "" {
		hint = fmt.Sprintf("; see 'pulley %s ls'", kind)
	}
	return notFoundf("no %s %q%s", kind, name, hint)
}

// wantArgs wants one argument for each name. "NAME..." is one or more.
func wantArgs(names ...string) cobra.PositionalArgs {
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
