package ops

import (
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
)

func newTierCommand() *cobra.Command {
	return cli.Noun("tier", "Service classes: share, reserve, bounds, deadlines", `Service classes. Freed slots go to the tiers by their shares while they are
backlogged, the first tier first; a reserve keeps a part of each worker's slots
free for a tier and those before it. A change is in force within a second.`,
		newTierListCommand, newTierSetCommand, newTierRemoveCommand)
}

// tierLine is one line of pulley tier ls.
type tierLine struct {
	policy.Tier
	Waiting  uint64 `json:"waiting"`
	InFlight int    `json:"in_flight"`
}

func newTierListCommand(c *cli.ConnectFlags) *cobra.Command {
	return cli.Listing(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the tiers",
		Long: "List the tiers, the first first, and what waits and runs in each.",
		Example: `  pulley tier ls
  pulley tier ls -o yaml`,
	}, c, func(s *cli.Session) (cli.View, error) {
		p, err := fleet.LoadPolicy(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		_, all, err := fleet.Queues(s.Context(), s.NC, p)
		if err != nil {
			return cli.View{}, err
		}
		list := make([]tierLine, len(p.Tiers))
		for i, t := range p.Tiers {
			list[i].Tier = t
			for _, q := range all {
				if q.Tier == t.Name {
					list[i].Waiting += q.Waiting
					list[i].InFlight += q.InFlight
				}
			}
		}
		return cli.View{Value: list, Print: func(p *term.Page) {
			t := term.Table{Columns: []term.Column{term.Text("NAME"), term.Number("SHARE"), term.Number("RESERVE"), term.Number("MAX QUEUE"), term.IfAny(term.Number("MAX WAIT")),
				term.Number("DEADLINE"), term.Wide(term.Number("RETRIES")), term.Wide(term.Word("STORAGE")), term.Number("WAITING"), term.Number("RUNNING")}}
			for _, l := range list {
				t.Row(l.Name, l.Share, percentOr(l.Reserve), l.MaxQueue, durationOr(l.MaxWait), durationOr(l.Deadline), l.Retries, l.Storage, l.Waiting, l.InFlight)
			}
			p.Table(t)
		}}, nil
	})
}

func newTierSetCommand(c *cli.ConnectFlags) *cobra.Command {
	var t policy.Tier
	var maxWait, deadline time.Duration
	var storage string
	var order int
	cmd := &cobra.Command{
		Use: "set TIER", Short: "Create or change a tier",
		Long: `Create or change a tier. What no flag names stays as it is; a new tier goes last
and begins with the defaults below.

--storage of a tier that exists can only change while nothing is in it: its
queue is made anew.`,
		Example: `  pulley tier set priority --share 16 --reserve 10
  pulley tier set night --share 1 --max-wait 8h --deadline 12h --storage file
  pulley tier set night --order 2      # before what was the second`,
		Args:              cli.ExactArgs("TIER"),
		ValidArgsFunction: cli.Complete(c, 1, liveTiers),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.IntVar(&t.Share, "share", 1, "its `weight` while tiers are backlogged")
	fs.Var((*percentValue)(&t.Reserve), "reserve", "`percent` of each worker's slots that the tiers after it leave free (default 0)")
	fs.IntVar(&t.MaxQueue, "max-queue", 2000, "how many requests of a pool may wait in it")
	fs.DurationVar(&maxWait, "max-wait", 0, "how long a request may wait for a worker before it is refused; 0 is until its deadline")
	fs.DurationVar(&deadline, "deadline", 10*time.Minute, "how long a request may take if the client does not say")
	fs.IntVar(&t.Retries, "retries", 2, "further attempts after one that failed, before it is a dead letter")
	fs.StringVar(&storage, "storage", string(policy.Memory), "where its queue is kept: memory or file")
	fs.IntVar(&order, "order", 0, "its place among the tiers, 1 is the first (default last)")
	cmd.RegisterFlagCompletionFunc("storage", cobra.FixedCompletions([]string{"memory", "file"}, cobra.ShellCompDirectiveNoFileComp))
	return cli.Action(cmd, c, func(s *cli.Session) error {
		name := s.Args[0]
		given := fs.Changed
		created := false
		v, err := changePolicy(s, func(p *policy.Policy) error {
			next := policy.Tier{Name: name, Share: t.Share, Reserve: t.Reserve, MaxQueue: t.MaxQueue, MaxWait: policy.Duration(maxWait),
				Deadline: policy.Duration(deadline), Retries: t.Retries, Storage: policy.Storage(storage)}
			at := slices.IndexFunc(p.Tiers, func(t policy.Tier) bool { return t.Name == name })
			if created = at < 0; created {
				at = len(p.Tiers)
				p.Tiers = append(p.Tiers, next)
			} else {
				asGiven := next
				next = p.Tiers[at]
				override(given("share"), &next.Share, asGiven.Share)
				override(given("reserve"), &next.Reserve, asGiven.Reserve)
				override(given("max-queue"), &next.MaxQueue, asGiven.MaxQueue)
				override(given("max-wait"), &next.MaxWait, asGiven.MaxWait)
				override(given("deadline"), &next.Deadline, asGiven.Deadline)
				override(given("retries"), &next.Retries, asGiven.Retries)
				override(given("storage"), &next.Storage, asGiven.Storage)
				p.Tiers[at] = next
			}
			if given("order") {
				if order < 1 || order > len(p.Tiers) {
					return cli.Usagef("--order %d: there are %d tiers, so it must be 1 to %d", order, len(p.Tiers), len(p.Tiers))
				}
				p.Tiers = slices.Insert(slices.Delete(p.Tiers, at, at+1), order-1, next)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return printChange(s, v, created, "tier", name)
	})
}

func newTierRemoveCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm TIER", Aliases: []string{"remove"}, Short: "Remove a tier",
		Long: `Remove a tier. It is refused while requests are in it, unless --force is given:
the gateways then move those that wait to tier standard. The tier standard,
which serves requests that ask for none, cannot be removed.`,
		Example:           `  pulley tier rm night`,
		Args:              cli.ExactArgs("TIER"),
		ValidArgsFunction: cli.Complete(c, 1, liveTiers),
	}
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		name := s.Args[0]
		if name == policy.DefaultTier {
			return cli.Refusedf("tier %s serves the requests that ask for none: it cannot be removed", name)
		}
		p, err := fleet.LoadPolicy(s.Context(), s.NC)
		if err != nil {
			return err
		}
		if _, ok := p.Tier(name); !ok {
			return cli.NoSuch("tier", name, tierNames(p))
		}
		if err := s.Confirm("remove tier %s", name); err != nil {
			return err
		}
		v, err := changePolicy(s, func(p *policy.Policy) error {
			p.Tiers = slices.DeleteFunc(p.Tiers, func(t policy.Tier) bool { return t.Name == name })
			return nil
		})
		if err != nil {
			return err
		}
		warnOfKeys(s, name)
		s.Printf("tier %s removed, policy revision %d", name, v.Revision)
		return nil
	})
}

func tierNames(p *policy.Policy) (names []string) {
	for _, t := range p.Tiers {
		names = append(names, t.Name)
	}
	return names
}

// warnOfKeys names the keys that ask for a tier which is gone.
func warnOfKeys(s *cli.Session, tier string) {
	store, err := fleet.OpenStore(s.Context(), s.NC)
	if err != nil {
		return
	}
	keys, err := store.Keys(s.Context())
	if err != nil {
		return
	}
	var ids []string
	for id, k := range keys {
		if slices.Contains(k.Tiers, tier) {
			ids = append(ids, id)
		}
	}
	if slices.Sort(ids); len(ids) > 0 {
		s.Warnf("%s still names tier %s: %s", term.Count(len(ids), "key"), tier, term.Shorten(term.Join(ids), 60))
	}
}
