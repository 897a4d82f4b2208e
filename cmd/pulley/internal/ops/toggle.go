package ops

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// toggle describes a verb that sets or clears one state in the policy, such as
// pause and resume of a pool.
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
	cmd.Args = cli.ExactArgs(strings.ToUpper(t.noun))
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
