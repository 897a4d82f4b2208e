package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
)

func newPolicyCommand() *cobra.Command {
	return noun("policy", "The whole policy as a file: export, diff, apply, history, rollback", `The policy is everything that tier, route, pool and worker verbs set, as one
versioned document. It is in force as a whole or not at all: one that does not
validate is refused with the line and the reason, and the old one stays.

API keys are not part of it: no file has them, and no rollback brings one back.`,
		newPolicyExportCommand, newPolicyDiffCommand, newPolicyApplyCommand, newPolicyHistoryCommand, newPolicyRollbackCommand)
}

// yamlPolicy is a policy as a file. Nil is an empty one.
func yamlPolicy(p *policy.Policy) string {
	if p == nil {
		return ""
	}
	b, err := encodeYAML(p)
	if err != nil {
		panic(err) // plain fields always encode
	}
	return string(b)
}

func newPolicyExportCommand(c *connectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "export [REVISION]", Aliases: []string{"show"}, Short: "Print the policy in force, or an old one",
		Long: "Print the policy in force, or an old version of it, as YAML that apply takes.",
		Example: `  pulley policy export > policy.yaml
  pulley policy export 17`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: complete(c, 1, liveRevisions),
	}
	output := cmd.Flags().StringP("output", "o", "yaml", "how to print: yaml or json")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"yaml", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return act(cmd, c, func(s *session) error {
		v, err := s.version(s.args)
		if err != nil {
			return err
		}
		switch *output {
		case "json":
			return s.show(view{value: v.Policy}, "json")
		case "yaml":
			fmt.Fprintf(s.cmd.OutOrStdout(), "# %s\n%s", printable(versionInWords(v)), yamlPolicy(v.Policy))
			return nil
		}
		return usagef("--output %q: want yaml or json", *output)
	})
}

func versionInWords(v policystore.Version) string {
	if v.Revision == 0 {
		return "the default policy: nobody has set one"
	}
	return fmt.Sprintf("revision %d, %s by %s: %s", v.Revision, clock(v.At), v.By, v.Why)
}

// version is the policy in force, or that of the revision in args.
func (s *session) version(args []string) (policystore.Version, error) {
	store, err := s.store()
	if err != nil {
		return policystore.Version{}, err
	}
	if len(args) == 0 {
		v, err := store.Load(s.ctx())
		return v, explainDamage(err)
	}
	revision, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return policystore.Version{}, usagef("revision %q: want a number, see 'pulley policy history'", args[0])
	}
	if revision == 0 {
		return policystore.Version{Policy: policy.Default()}, nil
	}
	list, err := store.History(s.ctx())
	if err != nil {
		return policystore.Version{}, err
	}
	for _, v := range list {
		if v.Revision != revision {
			continue
		}
		if v.Policy == nil {
			return v, refusedf("revision %d is damaged: %s", revision, v.Why)
		}
		return v, nil
	}
	return policystore.Version{}, notFoundf("no revision %d of the policy: the last %s are kept, see 'pulley policy history'", revision, count(len(list), "version"))
}

func newPolicyDiffCommand(c *connectFlags) *cobra.Command {
	var file string
	var exitCode bool
	cmd := &cobra.Command{
		Use: "diff {-f FILE | REVISION [REVISION]}", Short: "Show what a file would change, or what has changed",
		Long: `Show what a file would change in the policy in force; or how the policy in force,
or a second revision, differs from a revision.`,
		Example: `  pulley policy diff -f policy.yaml
  pulley policy diff 17
  pulley policy diff 17 18`,
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: complete(c, 2, liveRevisions),
	}
	addFileFlag(cmd, &file)
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "fail if there is a difference")
	return act(cmd, c, func(s *session) error {
		var before, after *policy.Policy
		switch {
		case file != "" && len(s.args) > 0:
			return usagef("name a file or revisions: not both")
		case file != "":
			next, err := s.readPolicy(file)
			if err != nil {
				return err
			}
			v, err := s.version(nil)
			if err != nil {
				return err
			}
			before, after = v.Policy, next
		case len(s.args) == 0:
			return usagef("--file: name a file, or a revision")
		default:
			old, err := s.version(s.args[:1])
			if err != nil {
				return err
			}
			now, err := s.version(s.args[1:])
			if err != nil {
				return err
			}
			before, after = old.Policy, now.Policy
		}
		p := page{terminal: terminalOf(s.cmd.OutOrStdout())}
		differs := p.diff(before, after)
		if !differs {
			p.line("no difference")
		}
		s.cmd.OutOrStdout().Write(p.b.Bytes())
		if differs && exitCode {
			return errors.New("the policies differ")
		}
		return nil
	})
}

func addFileFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVarP(file, "file", "f", "", "YAML or JSON `file`; - is standard input")
	cmd.MarkFlagFilename("file", "yaml", "yml", "json")
}

// diff writes how policies differ. False: they do not.
func (p *page) diff(before, after *policy.Policy) bool {
	hunks := diffLines(yamlPolicy(before), yamlPolicy(after))
	for i, h := range hunks {
		if i > 0 || h.within != "" {
			p.write(p.paint(dim, printable("@@ "+h.within)))
		}
		for _, l := range h.lines {
			p.write(p.paint(map[byte]style{'+': green, '-': red}[l.op], string(l.op)+" "+printable(l.text)))
		}
	}
	return len(hunks) > 0
}

// readPolicy reads a policy from a file, or from standard input.
func (s *session) readPolicy(file string) (*policy.Policy, error) {
	read, name := os.ReadFile, file
	if file == "-" {
		read, name = func(string) ([]byte, error) { return io.ReadAll(s.cmd.InOrStdin()) }, "standard input"
	}
	b, err := read(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, notFoundf("--file %s: there is no such file", file)
	}
	if err != nil {
		return nil, fmt.Errorf("--file: %w", err)
	}
	return parsePolicy(name, b)
}

func newPolicyApplyCommand(c *connectFlags) *cobra.Command {
	var file string
	var dryRun bool
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Put a file in force",
		Long: `Put a file in force as the whole policy: what it does not have is gone. It is
refused whole, with each line and reason, if it does not validate; if it would
remove a tier that has requests or disturb a shift that runs, unless --force is
given; and if somebody else changes the policy at the same moment.`,
		Example: `  pulley policy apply -f policy.yaml --dry-run
  pulley policy apply -f policy.yaml
  pulley policy export | sed 's/share: 8/share: 16/' | pulley policy apply -f -`,
	}
	addFileFlag(cmd, &file)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change, and whether it would be refused")
	return harm(cmd, c, func(s *session) error {
		if file == "" {
			return usagef("--file: name the file, such as -f policy.yaml")
		}
		next, err := s.readPolicy(file)
		if err != nil {
			return err
		}
		return s.replacePolicy(next, dryRun)
	})
}

// replacePolicy puts a whole policy in force, also in place of a damaged one.
func (s *session) replacePolicy(next *policy.Policy, dryRun bool) error {
	store, err := s.store()
	if err != nil {
		return err
	}
	v, err := store.Load(s.ctx())
	damaged, isDamaged := errors.AsType[policystore.DamagedError](err)
	switch {
	case isDamaged:
		s.warn("%v; it is replaced", damaged)
		v = policystore.Version{Revision: damaged.Revision}
	case err != nil:
		return err
	case reflect.DeepEqual(next.Clone(), v.Policy.Clone()):
		s.say("nothing to change: %s is in force", versionName(v.Revision))
		return nil
	}
	p := page{terminal: terminalOf(s.cmd.OutOrStdout())}
	p.diff(v.Policy, next)
	s.cmd.OutOrStdout().Write(p.b.Bytes())
	if !isDamaged {
		if err := cmp.Or(s.checkTiers(v.Policy, next), s.checkShifts(v.Policy, next)); err != nil {
			return err
		}
	}
	if dryRun {
		s.say("nothing was applied: this was a dry run")
		return nil
	}
	v, err = store.Put(s.ctx(), policystore.Version{Revision: v.Revision, By: s.who(), Why: s.words(), Policy: next})
	if errors.Is(err, policystore.ErrChanged) {
		return refusedf("nothing was applied: %w; look at 'pulley policy diff' and try again", err)
	}
	if err != nil {
		return err
	}
	s.say("%s is in force", versionName(v.Revision))
	return s.changed(v)
}

func versionName(revision uint64) string {
	if revision == 0 {
		return "the default policy"
	}
	return fmt.Sprintf("revision %d", revision)
}

// checkShifts refuses what would disturb a running shift, unless it is forced.
func (s *session) checkShifts(before, after *policy.Policy) error {
	for _, model := range slices.Sorted(maps.Keys(before.Routes)) {
		r := before.Routes[model]
		if s.force || r.Shift == nil || r.Shift.State != policy.ShiftRunning {
			continue
		}
		if !reflect.DeepEqual(r, after.Clone().Routes[model]) {
			return refusedf("route %s: a shift to %s runs, which this would disturb; end it with 'pulley route promote %[1]s' or 'pulley route abort %[1]s', or say --force", model, r.Shift.To)
		}
	}
	return nil
}

func newPolicyHistoryCommand(c *connectFlags) *cobra.Command {
	var n int
	var diff bool
	cmd := &cobra.Command{
		Use: "history", Short: "List the versions of the policy",
		Long: `List the versions of the policy that are kept, the newest first: who has changed it,
and by which command.`,
		Example: `  pulley policy history
  pulley policy history -n 3 --diff`,
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().IntVarP(&n, "number", "n", 20, "how many, the newest; 0 is all")
	cmd.Flags().BoolVar(&diff, "diff", false, "show what each has changed")
	return look(cmd, c, func(s *session) (view, error) {
		if n < 0 {
			return view{}, usagef("--number %d: want 0 or more", n)
		}
		store, err := s.store()
		if err != nil {
			return view{}, err
		}
		list, err := store.History(s.ctx())
		if err != nil {
			return view{}, err
		}
		shown := list
		if n > 0 {
			shown = list[:min(n, len(list))]
		}
		if shown == nil {
			shown = []policystore.Version{}
		}
		return view{shown, func(p *page) {
			if diff {
				printChanges(p, list, len(shown))
				return
			}
			t := table{columns: []column{number("REVISION"), number("AGE"), wide(word("WHEN")), {name: "WHO", cut: 12}, {name: "WHY", cut: 20}},
				empty: "nobody has changed the policy: the default is in force"}
			for _, v := range shown {
				t.row(v.Revision, ago(v.At), clock(v.At), v.By, v.Why)
			}
			p.table(t)
			if len(shown) < len(list) {
				p.line("the newest %d of %d; -n 0 shows all", len(shown), len(list))
			}
		}}, nil
	})
}

// printChanges writes what each of the newest n versions has changed.
func printChanges(p *page, list []policystore.Version, n int) {
	for i, v := range list[:n] {
		if i > 0 {
			p.line("")
		}
		p.write(p.paint(bold, printable(versionInWords(v))))
		before := policy.Default()
		if i+1 < len(list) {
			before = list[i+1].Policy
		} else if v.Revision > 1 {
			p.line("(what was before it is not kept)")
			continue
		}
		p.diff(before, v.Policy)
	}
}

func newPolicyRollbackCommand(c *connectFlags) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use: "rollback REVISION", Short: "Put an old version in force again",
		Long: `Put an old version of the policy in force again, as a new one. 0 is the default
policy. What apply refuses, this refuses too. Keys stay as they are.`,
		Example: `  pulley policy history
  pulley policy rollback 17`,
		Args:              wantArgs("REVISION"),
		ValidArgsFunction: complete(c, 1, liveRevisions),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change, and whether it would be refused")
	return harm(cmd, c, func(s *session) error {
		v, err := s.version(s.args)
		if err != nil {
			return err
		}
		return s.replacePolicy(v.Policy, dryRun)
	})
}
