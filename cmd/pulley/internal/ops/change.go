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

// removal says what a verb removes from the policy.
type removal struct {
	noun     string // kind of object
	question string // %s stands for the objects
	done     string // what the verb has done: "removed"
}

// removeFromPolicy removes each object that the arguments name from the policy, after one confirmation and in one revision,
// and prints what was done.
func removeFromPolicy(s *cli.Session, r removal, edit func(p *policy.Policy, name string)) error {
	if err := s.Confirm("%s", strings.Replace(r.question, "%s", counted(r.noun, s.Args), 1)); err != nil {
		return err
	}
	v, err := changePolicy(s, func(p *policy.Policy) error {
		for _, name := range s.Args {
			edit(p, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range s.Args {
		s.Printf("%s %s %s, policy revision %d", r.noun, term.Printable(name), r.done, v.Revision)
	}
	return nil
}

// counted names objects for a question, such as "pool a" or "3 pools: a, b and c".
func counted(noun string, names []string) string {
	shown := make([]string, len(names))
	for i, name := range names {
		shown[i] = term.Printable(name)
	}
	if len(names) == 1 {
		return noun + " " + shown[0]
	}
	return fmt.Sprintf("%s: %s", term.Count(len(names), noun), term.Shorten(strings.Join(shown, ", "), 160))
}

// eachOf does something to each object, and goes on after an error. It returns the errors, each with the object that it is
// about, joined.
func eachOf(names []string, do func(name string) error) error {
	var errs []error
	for _, name := range names {
		if err := do(name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
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

	// edit changes the policy for all objects that the arguments name, in one revision.
	edit func(s *cli.Session, on bool) ([]toggled, policyChange, error)
}

// toggled is what a verb has done to one object.
type toggled struct {
	name string // in full
	same bool   // it was so already
}

// verb makes cmd the verb that t describes.
func (t toggle) verb(c *cli.ConnectFlags, cmd *cobra.Command) *cobra.Command {
	return cli.Action(cmd, c, func(s *cli.Session) error {
		list, v, err := t.edit(s, t.on)
		if err != nil {
			return err
		}
		for _, o := range list {
			what := t.done
			switch {
			case o.same && t.on:
				what = "already " + t.state
			case o.same:
				what = "was not " + t.state
			}
			s.Printf("%s %s %s, policy revision %d", t.noun, term.Printable(o.name), what, v.Revision)
		}
		return nil
	})
}
