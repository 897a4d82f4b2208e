package ops

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

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/policyfile"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
)

func newPolicyCommand() *cobra.Command {
	return cli.Noun("policy", "The whole policy as a file: export, validate, diff, apply, history", `The policy is one versioned document with everything that the verbs of tier, route,
pool and worker set. It changes as a whole or not at all: a policy that is not valid
is refused, with the line and the reason of each mistake.

API keys are not part of the policy: files do not contain them, and a rollback does
not restore them.`,
		newPolicyExportCommand, newPolicyValidateCommand, newPolicyDiffCommand, newPolicyApplyCommand, newPolicyHistoryCommand, newPolicyRollbackCommand)
}

func newPolicyExportCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "export [REVISION]", Aliases: []string{"show"}, Short: "Print the current policy, or an old one",
		Long: `Print the current policy, or an old revision, as YAML for 'pulley policy apply'. The
progress of shifts is not part of it: a route that is shifted is printed as it was
before. 'pulley route shift MODEL' shows the progress.`,
		Example: `  pulley policy export > policy.yaml
  pulley policy export 17`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cli.Complete(c, 1, liveRevisions),
	}
	output := cli.AddOutput(cmd, cli.YAML, cli.JSON)
	return cli.Action(cmd, c, func(s *cli.Session) error {
		v, err := policyVersion(s, s.Args)
		if err != nil {
			return err
		}
		p := v.Policy.Settings()
		if *output == cli.JSON {
			return cli.Show(s.Cmd, cli.View{Value: p}, cli.JSON)
		}
		fmt.Fprintf(s.Cmd.OutOrStdout(), "# %s\n%s", term.Printable(versionText(v)), policyfile.Format(p))
		return nil
	})
}

func versionText(v policystore.Version) string {
	if v.Revision == 0 {
		return "the default policy: it has not been changed"
	}
	return fmt.Sprintf("revision %d, %s by %s: %s", v.Revision, term.Clock(v.At), v.By, v.Why)
}

// policyVersion returns the current policy, or that of the revision in args.
func policyVersion(s *cli.Session, args []string) (policystore.Version, error) {
	store, err := fleet.OpenStore(s.Context(), s.NC)
	if err != nil {
		return policystore.Version{}, err
	}
	if len(args) == 0 {
		v, err := store.Load(s.Context())
		return v, fleet.ExplainDamage(err)
	}
	revision, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return policystore.Version{}, cli.Usagef("revision %q: not a number (see 'pulley policy history')", args[0])
	}
	if revision == 0 {
		return policystore.Version{Policy: policy.Default()}, nil
	}
	list, err := store.History(s.Context())
	if err != nil {
		return policystore.Version{}, err
	}
	for _, v := range list {
		if v.Revision != revision {
			continue
		}
		if v.Policy == nil {
			return v, cli.Refusedf("revision %d is damaged: %s", revision, v.Why)
		}
		return v, nil
	}
	return policystore.Version{}, cli.NotFoundf("no revision %d of the policy: the last %s are kept; see 'pulley policy history'", revision, term.Count(len(list), "revision"))
}

func newPolicyDiffCommand(c *cli.ConnectFlags) *cobra.Command {
	var file string
	var exitCode bool
	cmd := &cobra.Command{
		Use: "diff {-f FILE | REVISION [REVISION]}", Short: "Compare a file or a revision with the current policy",
		Long: `Show what a file would change in the current policy, or what has changed since a
revision, up to the current policy or to a second revision.`,
		Example: `  pulley policy diff -f policy.yaml
  pulley policy diff 17
  pulley policy diff 17 18`,
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: cli.Complete(c, 2, liveRevisions),
	}
	addFileFlag(cmd, &file)
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 1 if there is a difference")
	return cli.Action(cmd, c, func(s *cli.Session) error {
		var before, after *policy.Policy
		switch {
		case file != "" && len(s.Args) > 0:
			return cli.Usagef("--file and REVISION exclude each other")
		case file != "":
			next, err := readPolicyFile(s.Cmd, file)
			if err != nil {
				return err
			}
			v, err := policyVersion(s, nil)
			if err != nil {
				return err
			}
			next.Adopt(v.Policy)
			before, after = v.Policy, next
		case len(s.Args) == 0:
			return cli.Usagef("missing argument: REVISION or --file (see 'pulley policy history')")
		default:
			from, err := policyVersion(s, s.Args[:1])
			if err != nil {
				return err
			}
			to, err := policyVersion(s, s.Args[1:])
			if err != nil {
				return err
			}
			before, after = from.Policy, to.Policy
		}
		p := term.Page{Terminal: term.Of(s.Cmd.OutOrStdout())}
		differs := printDiff(&p, before, after)
		if !differs {
			p.Line("no difference")
		}
		s.Cmd.OutOrStdout().Write(p.Bytes())
		if differs && exitCode {
			return errors.New("the policies differ")
		}
		return nil
	})
}

func addFileFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", "", "YAML or JSON `file`; - for standard input")
	cmd.MarkFlagFilename("file", "yaml", "yml", "json")
}

// printDiff writes the difference of two policies; false if there is none.
func printDiff(p *term.Page, before, after *policy.Policy) bool {
	hunks := policyfile.Diff(before, after)
	for i, h := range hunks {
		if i > 0 || h.Within != "" {
			p.Write(p.Paint(term.Dim, term.Printable("@@ "+h.Within)))
		}
		for _, l := range h.Lines {
			p.Write(p.Paint(map[byte]term.Style{'+': term.Green, '-': term.Red}[l.Op], string(l.Op)+" "+term.Printable(l.Text)))
		}
	}
	return len(hunks) > 0
}

func newPolicyHistoryCommand(c *cli.ConnectFlags) *cobra.Command {
	var n int
	var diff bool
	cmd := &cobra.Command{
		Use: "history", Short: "List the revisions of the policy",
		Long: `List the revisions of the policy that are kept, the newest first: when it was
changed, by whom and by which command.`,
		Example: `  pulley policy history
  pulley policy history -n 3 --diff`,
	}
	cmd.Flags().IntVarP(&n, "number", "n", 20, "show the newest n revisions; 0: all")
	cmd.Flags().BoolVar(&diff, "diff", false, "show what each revision has changed")
	return cli.Listing(cmd, c, func(s *cli.Session) (cli.View, error) {
		if n < 0 {
			return cli.View{}, cli.Usagef("--number %d: must be 0 or more", n)
		}
		store, err := fleet.OpenStore(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		list, err := store.History(s.Context())
		if err != nil {
			return cli.View{}, err
		}
		shown := list
		if n > 0 {
			shown = list[:min(n, len(list))]
		}
		if shown == nil {
			shown = []policystore.Version{}
		}
		return cli.View{Value: shown, Print: func(p *term.Page) {
			if diff {
				printChanges(p, list, len(shown))
				return
			}
			t := term.Table{Columns: []term.Column{term.Number("REVISION"), term.Number("AGE"), term.Wide(term.Fixed("AT")), {Name: "BY", MinWidth: 12}, {Name: "WHY", MinWidth: 20}},
				Empty: "no revisions: the policy is the default"}
			for _, v := range shown {
				t.Row(v.Revision, term.Ago(v.At), term.Clock(v.At), v.By, v.Why)
			}
			p.Table(t)
			if len(shown) < len(list) {
				p.Line("the newest %d of %d; -n 0 shows all", len(shown), len(list))
			}
		}}, nil
	})
}

// printChanges writes what each of the newest n revisions has changed.
func printChanges(p *term.Page, list []policystore.Version, n int) {
	for i, v := range list[:n] {
		if i > 0 {
			p.Line("")
		}
		p.Write(p.Paint(term.Bold, term.Printable(versionText(v))))
		before := policy.Default()
		if i+1 < len(list) {
			before = list[i+1].Policy
		} else if v.Revision > 1 {
			p.Line("(the revision before this one is no longer kept)")
			continue
		}
		printDiff(p, before, v.Policy)
	}
}

func newPolicyApplyCommand(c *cli.ConnectFlags) *cobra.Command {
	var file string
	var dryRun bool
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Replace the policy with a file",
		Long: `Replace the whole policy with a file. Routes, pools and workers that the file does
not contain are removed. Tiers, and single settings of one, that are left out have the
defaults. Nothing is applied if the file is not valid, or if the policy changes at the
same time. A shift goes on unless the file changes its route. A file that would do so,
or remove a tier with requests, is applied only with --force, which ends the shifts of
all routes in the file.`,
		Example: `  pulley policy apply -f policy.yaml --dry-run
  pulley policy apply -f policy.yaml
  pulley policy export | sed 's/share: 8/share: 16/' | pulley policy apply -f -`,
	}
	addFileFlag(cmd, &file)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change, and whether it would be refused")
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		if file == "" {
			return cli.Usagef("missing flag: --file FILE")
		}
		next, err := readPolicyFile(s.Cmd, file)
		if err != nil {
			return err
		}
		return replacePolicy(s, next, !s.Force, dryRun)
	})
}

func newPolicyRollbackCommand(c *cli.ConnectFlags) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use: "rollback REVISION", Short: "Restore an old revision",
		Long: `Restore an old revision of the policy, as a new revision. Revision 0 is the default
policy. It is refused where 'pulley policy apply' would be. Keys do not change.`,
		Example: `  pulley policy history
  pulley policy rollback 17`,
		ValidArgsFunction: cli.Complete(c, 1, liveRevisions),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change, and whether it would be refused")
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		v, err := policyVersion(s, s.Args)
		if err != nil {
			return err
		}
		return replacePolicy(s, v.Policy, false, dryRun)
	})
}

// readPolicyFile reads a policy from a file, or from standard input.
func readPolicyFile(cmd *cobra.Command, file string) (*policy.Policy, error) {
	read, name := os.ReadFile, file
	if file == "-" {
		read, name = func(string) ([]byte, error) { return io.ReadAll(cmd.InOrStdin()) }, "standard input"
	}
	b, err := read(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, cli.NotFoundf("--file %s: no such file", file)
	}
	if err != nil {
		return nil, cli.Usagef("--file: %w", err)
	}
	return policyfile.Parse(name, b)
}

func newPolicyValidateCommand(*cli.ConnectFlags) *cobra.Command {
	return &cobra.Command{
		Use: "validate FILE...", Short: "Check policy files, without a broker",
		Long: `Check policy files without a broker, as 'pulley policy apply' would: every mistake is
printed with its line, and the exit code is 2. - is standard input.

Editors check a file while it is written if it begins with this line (the schema is in
the directory docs of the repository):

  # yaml-language-server: $schema=docs/policy.schema.json`,
		Example: `  pulley policy validate policy.yaml
  pulley policy export | pulley policy validate -`,
		Args: cli.RequiredArgs("FILE..."),
		RunE: func(cmd *cobra.Command, args []string) error {
			return eachOf(args, func(file string) error {
				p, err := readPolicyFile(cmd, file)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is valid: %s, %s, %s\n", term.Printable(file), term.Count(len(p.Tiers), "tier"), term.Count(len(p.Routes), "route"), term.Count(len(p.Pools), "pool"))
				return nil
			})
		},
	}
}

// replacePolicy replaces the whole policy, even a damaged one. With adopt, shifts go on whose routes do not change.
func replacePolicy(s *cli.Session, next *policy.Policy, adopt, dryRun bool) error {
	store, err := fleet.OpenStore(s.Context(), s.NC)
	if err != nil {
		return err
	}
	v, err := store.Load(s.Context())
	if err == nil && adopt {
		next.Adopt(v.Policy)
	}
	damaged, isDamaged := errors.AsType[policystore.DamagedError](err)
	switch {
	case isDamaged:
		s.Warnf("%v; replacing it", damaged)
		v = policystore.Version{Revision: damaged.Revision}
	case err != nil:
		return err
	case reflect.DeepEqual(next.Clone(), v.Policy.Clone()):
		s.Printf("nothing to change: %s is current", versionName(v.Revision))
		return nil
	}
	cli.Show(s.Cmd, cli.View{Print: func(p *term.Page) { printDiff(p, v.Policy, next) }}, cli.Table)
	if !isDamaged {
		if err := cmp.Or(checkTiers(s, v.Policy, next), checkShifts(s, v.Policy, next)); err != nil {
			return err
		}
	}
	if dryRun {
		s.Printf("dry run: nothing was applied")
		return nil
	}
	v, err = store.Put(s.Context(), policystore.Version{Revision: v.Revision, By: s.User(), Why: s.CommandLine(), Policy: next})
	if errors.Is(err, policystore.ErrChanged) {
		return cli.Refusedf("nothing was applied: %w; see 'pulley policy diff', and try again", err)
	}
	if err != nil {
		return err
	}
	s.Printf("%s is current", versionName(v.Revision))
	return afterChange(s, v)
}

func versionName(revision uint64) string {
	if revision == 0 {
		return "the default policy"
	}
	return fmt.Sprintf("revision %d", revision)
}

// checkShifts refuses a change of a route with a running shift, unless --force was given.
func checkShifts(s *cli.Session, before, after *policy.Policy) error {
	for _, model := range slices.Sorted(maps.Keys(before.Routes)) {
		r := before.Routes[model]
		if s.Force || r.Shift == nil || r.Shift.State != policy.ShiftRunning {
			continue
		}
		if !reflect.DeepEqual(r, after.Clone().Routes[model]) {
			return cli.Refusedf("route %s: a shift to %s is running; end it with 'pulley route promote %[1]s' or 'pulley route abort %[1]s', or use --force", model, r.Shift.To)
		}
	}
	return nil
}
