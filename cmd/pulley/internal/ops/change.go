package ops

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// policyChange is what has become of a change of the policy.
type policyChange struct {
	policystore.Version
	same bool // there was nothing to change
}

// changePolicy changes the policy; edit gets a copy of the one in force.
func changePolicy(s *cli.Session, edit func(*policy.Policy) error) (policyChange, error) {
	store, err := fleet.OpenStore(s.Context(), s.NC)
	if err != nil {
		return policyChange{}, err
	}
	var w policyChange
	w.Version, err = store.Update(s.Context(), s.User(), s.CommandLine(), func(p *policy.Policy) error {
		before := p.Clone()
		if err := edit(p); err != nil {
			return err
		}
		if err := p.Check(); err != nil {
			return err
		}
		w.same = reflect.DeepEqual(before, p.Clone())
		return checkTiers(s, before, p)
	})
	if err != nil || w.same {
		return w, explainInvalid(s, fleet.ExplainDamage(err))
	}
	return w, afterChange(s, w.Version)
}

// afterChange does what has to follow a change of the policy.
func afterChange(s *cli.Session, v policystore.Version) error {
	publishEvent(s, subjects.Event{Kind: subjects.EventPolicy, Text: fmt.Sprintf("%s, revision %d", v.Why, v.Revision)})
	return deleteMisplacedStreams(s, v.Policy)
}

// explainInvalid names the flags that made a policy unsound.
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
	return cli.UsageError{Err: errors.New(strings.Join(lines, "; "))}
}

// printChange says what a change has made of a thing.
func printChange(s *cli.Session, v policyChange, created bool, kind, name string) error {
	switch {
	case v.same:
		s.Printf("%s %s is so already", kind, term.Printable(name))
	case created:
		s.Printf("%s %s created, policy revision %d", kind, term.Printable(name), v.Revision)
	default:
		s.Printf("%s %s changed, policy revision %d", kind, term.Printable(name), v.Revision)
	}
	return nil
}

// publishEvent publishes an event.
func publishEvent(s *cli.Session, e subjects.Event) {
	e.At, e.From = time.Now().UTC(), "cli "+s.User()
	fleet.PublishJSON(s.NC, subjects.EventSubject(e.Kind), e)
}
