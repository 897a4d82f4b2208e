package ops

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// policyChange is the result of a change: the current version of the policy.
type policyChange struct {
	policystore.Version
	same bool // the policy was already so: there is no new revision
}

// changePolicy changes the policy: edit changes a copy of the current one. It refuses a policy that is not valid, or
// that would lose requests.
func changePolicy(s *cli.Session, edit func(*policy.Policy) error) (policyChange, error) {
	store, err := fleet.OpenStore(s.Context(), s.NC)
	if err != nil {
		return policyChange{}, err
	}
	var v policyChange
	v.Version, err = store.Update(s.Context(), s.User(), s.CommandLine(), func(p *policy.Policy) error {
		before := p.Clone()
		if err := edit(p); err != nil {
			return err
		}
		if err := p.Check(); err != nil {
			return err
		}
		v.same = reflect.DeepEqual(before, p.Clone())
		return checkTiers(s, before, p)
	})
	if err != nil || v.same {
		return v, explainInvalid(s, fleet.ExplainDamage(err))
	}
	return v, afterChange(s, v.Version)
}

// afterChange publishes the change of the policy as an event, and deletes streams that gateways must create again.
func afterChange(s *cli.Session, v policystore.Version) error {
	publishEvent(s, subjects.Event{Kind: subjects.EventPolicy, Text: fmt.Sprintf("%s, revision %d", v.Why, v.Revision)})
	return deleteMisplacedStreams(s, v.Policy)
}

// explainInvalid turns an error about an invalid policy into one that names the flags.
func explainInvalid(s *cli.Session, err error) error {
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
			if f := s.Cmd.Flags().Lookup(strings.ReplaceAll(field, "_", "-")); f != nil {
				line = "--" + f.Name + ": " + p.Reason
				break
			}
		}
		lines = append(lines, line)
	}
	return cli.Usagef("%s", strings.Join(lines, "; "))
}

// printChange prints what a change has done to an object.
func printChange(s *cli.Session, v policyChange, created bool, kind, name string) error {
	switch {
	case v.same:
		s.Printf("%s %s unchanged", kind, term.Printable(name))
	case created:
		s.Printf("%s %s created, policy revision %d", kind, term.Printable(name), v.Revision)
	default:
		s.Printf("%s %s changed, policy revision %d", kind, term.Printable(name), v.Revision)
	}
	return nil
}

// removeFromPolicy changes the policy after a confirmation, and prints what was done.
func removeFromPolicy(s *cli.Session, question, done string, edit func(*policy.Policy)) error {
	if err := s.Confirm("%s", question); err != nil {
		return err
	}
	v, err := changePolicy(s, func(p *policy.Policy) error { edit(p); return nil })
	if err == nil {
		s.Printf("%s, policy revision %d", done, v.Revision)
	}
	return err
}

// publishEvent publishes an event in the name of the user.
func publishEvent(s *cli.Session, e subjects.Event) {
	e.At, e.From = time.Now().UTC(), "cli "+s.User()
	fleet.PublishJSON(s.NC, subjects.EventSubject(e.Kind), e)
}

// toggle describes a verb that sets or clears one state in the policy, such as pause and resume of a pool.
type toggle struct {
	noun  string // kind of object
	on    bool   // the verb sets the state; otherwise it clears it
	done  string // what the verb has done: "paused", "resumed"
	state string // the state: "paused"

	// edit changes the policy, and returns the full name of the object.
	edit func(s *cli.Session, named string, on bool) (name string, v policyChange, err error)
}

// verb makes cmd the verb that t describes.
func (t toggle) verb(c *cli.ConnectFlags, cmd *cobra.Command) *cobra.Command {
	return cli.Action(cmd, c, func(s *cli.Session) error {
		name, v, err := t.edit(s, s.Args[0], t.on)
		if err != nil {
			return err
		}
		what := t.done
		switch {
		case v.same && t.on:
			what = "already " + t.state
		case v.same:
			what = "was not " + t.state
		}
		s.Printf("%s %s %s, policy revision %d", t.noun, term.Printable(name), what, v.Revision)
		return nil
	})
}
