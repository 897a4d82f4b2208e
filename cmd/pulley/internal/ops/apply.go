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

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/policyfile"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
)

func newPolicyApplyCommand(c *cli.ConnectFlags) *cobra.Command {
	var file string
	var dryRun bool
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Replace the policy with a file",
		Long: `Replace the whole policy with a file. Everything that the file does not contain is
removed. Nothing is applied if the file is not valid, or if the policy changes at the
same time. A file that would remove a tier with requests, or change a route with a
running shift, is applied only with --force.`,
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
		next, err := readPolicyFile(s, file)
		if err != nil {
			return err
		}
		return replacePolicy(s, next, dryRun)
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
		Args:              cli.ExactArgs("REVISION"),
		ValidArgsFunction: cli.Complete(c, 1, liveRevisions),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change, and whether it would be refused")
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		v, err := policyVersion(s, s.Args)
		if err != nil {
			return err
		}
		return replacePolicy(s, v.Policy, dryRun)
	})
}

// readPolicyFile reads a policy from a file, or from standard input.
func readPolicyFile(s *cli.Session, file string) (*policy.Policy, error) {
	read, name := os.ReadFile, file
	if file == "-" {
		read, name = func(string) ([]byte, error) { return io.ReadAll(s.Cmd.InOrStdin()) }, "standard input"
	}
	b, err := read(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, cli.NotFoundf("--file %s: no such file", file)
	}
	if err != nil {
		return nil, fmt.Errorf("--file: %w", err)
	}
	return policyfile.Parse(name, b)
}

// replacePolicy replaces the whole policy, even a damaged one.
func replacePolicy(s *cli.Session, next *policy.Policy, dryRun bool) error {
	store, err := fleet.OpenStore(s.Context(), s.NC)
	if err != nil {
		return err
	}
	v, err := store.Load(s.Context())
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
	p := term.Page{Terminal: term.Of(s.Cmd.OutOrStdout())}
	printDiff(&p, v.Policy, next)
	s.Cmd.OutOrStdout().Write(p.Bytes())
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
