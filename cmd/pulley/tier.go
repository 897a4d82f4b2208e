package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func newTierCommand() *cobra.Command {
	return noun("tier", "Service classes: share, reserve, bounds, deadlines", `Service classes. Freed slots go to the tiers by their shares while they are
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

func newTierListCommand(c *connectFlags) *cobra.Command {
	return look(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the tiers",
		Long: "List the tiers, the first first, and what waits and runs in each.",
		Example: `  pulley tier ls
  pulley tier ls -o yaml`,
	}, c, func(s *session) (view, error) {
		p, err := s.policy()
		if err != nil {
			return view{}, err
		}
		_, all, err := s.queues(p)
		if err != nil {
			return view{}, err
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
		return view{list, func(p *page) {
			t := table{columns: []column{text("NAME"), number("SHARE"), number("RESERVE"), number("MAX QUEUE"), ifAny(number("MAX WAIT")),
				number("DEADLINE"), wide(number("RETRIES")), wide(word("STORAGE")), number("WAITING"), number("RUNNING")}}
			for _, l := range list {
				t.row(l.Name, l.Share, percentOr(l.Reserve), l.MaxQueue, durationOr(l.MaxWait), durationOr(l.Deadline), l.Retries, l.Storage, l.Waiting, l.InFlight)
			}
			p.table(t)
		}}, nil
	})
}

// percentOr is a percentage, or nothing for 0.
func percentOr(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n) + "%"
}

// durationOr is a duration as it is written in a policy, or nothing for 0.
func durationOr(d policy.Duration) string {
	if d == 0 {
		return ""
	}
	return durationInWords(time.Duration(d))
}

func durationInWords(d time.Duration) string {
	b, _ := policy.Duration(d).MarshalText()
	return string(b)
}

func newTierSetCommand(c *connectFlags) *cobra.Command {
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
		Args:              wantArgs("TIER"),
		ValidArgsFunction: complete(c, 1, liveTiers),
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
	return act(cmd, c, func(s *session) error {
		name := s.args[0]
		given := fs.Changed
		created := false
		v, err := s.change(func(p *policy.Policy) error {
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
					return usagef("--order %d: there are %d tiers, so it must be 1 to %d", order, len(p.Tiers), len(p.Tiers))
				}
				p.Tiers = slices.Insert(slices.Delete(p.Tiers, at, at+1), order-1, next)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return s.done(v, created, "tier", name)
	})
}

// override sets a value if a flag has given another.
func override[T any](given bool, value *T, flag T) {
	if given {
		*value = flag
	}
}

// done says what a change has made of a thing.
func (s *session) done(v writtenPolicy, created bool, kind, name string) error {
	switch {
	case v.same:
		s.say("%s %s is so already", kind, printable(name))
	case created:
		s.say("%s %s created, policy revision %d", kind, printable(name), v.Revision)
	default:
		s.say("%s %s changed, policy revision %d", kind, printable(name), v.Revision)
	}
	return nil
}

func newTierRemoveCommand(c *connectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm TIER", Aliases: []string{"remove"}, Short: "Remove a tier",
		Long: `Remove a tier. It is refused while requests are in it, unless --force is given:
the gateways then move those that wait to tier standard. The tier standard,
which serves requests that ask for none, cannot be removed.`,
		Example:           `  pulley tier rm night`,
		Args:              wantArgs("TIER"),
		ValidArgsFunction: complete(c, 1, liveTiers),
	}
	return harm(cmd, c, func(s *session) error {
		name := s.args[0]
		if name == policy.DefaultTier {
			return refusedf("tier %s serves the requests that ask for none: it cannot be removed", name)
		}
		p, err := s.policy()
		if err != nil {
			return err
		}
		if _, ok := p.Tier(name); !ok {
			return noSuch("tier", name, tierNames(p))
		}
		if err := s.confirm("remove tier %s", name); err != nil {
			return err
		}
		v, err := s.change(func(p *policy.Policy) error {
			p.Tiers = slices.DeleteFunc(p.Tiers, func(t policy.Tier) bool { return t.Name == name })
			return nil
		})
		if err != nil {
			return err
		}
		s.warnOfKeys(name)
		s.say("tier %s removed, policy revision %d", name, v.Revision)
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
func (s *session) warnOfKeys(tier string) {
	store, err := s.store()
	if err != nil {
		return
	}
	keys, err := store.Keys(s.ctx())
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
		s.warn("%s still names tier %s: %s", count(len(ids), "key"), tier, shorten(joined(ids), 60))
	}
}

// checkTiers refuses what would lose requests: to remove a tier that has some,
// unless it is forced, or to move a queue that has some between memory and
// file.
func (s *session) checkTiers(before, after *policy.Policy) error {
	for _, t := range before.Tiers {
		if _, stays := after.Tier(t.Name); stays || s.force {
			continue
		}
		n, err := s.messages(t.Name)
		if err != nil {
			return err
		}
		if n > 0 {
			return refusedf("tier %s: %s in it; wait, or say --force to move those that wait to tier %s", t.Name, areIn(n), policy.DefaultTier)
		}
	}
	for _, t := range after.Tiers {
		info, err := s.otherStorage(t)
		if err != nil {
			return err
		}
		if info != nil && info.State.Msgs > 0 {
			return refusedf("tier %s: %s in it, and its queue would be made anew in %s; wait until it is empty", t.Name, areIn(info.State.Msgs), t.Storage)
		}
	}
	return nil
}

func areIn(n uint64) string {
	if n == 1 {
		return "1 request is"
	}
	return fmt.Sprintf("%d requests are", n)
}

// messages is how many requests are in a tier, waiting or running.
func (s *session) messages(tier string) (uint64, error) {
	stream, err := s.js.Stream(s.ctx(), subjects.ReqStream(tier))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("stream of tier %s: %w", tier, err)
	}
	return stream.CachedInfo().State.Msgs, nil
}

// otherStorage is the stream of a tier if it is kept elsewhere than the tier
// wants.
func (s *session) otherStorage(t policy.Tier) (*jetstream.StreamInfo, error) {
	stream, err := s.js.Stream(s.ctx(), subjects.ReqStream(t.Name))
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrInvalidStreamName) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stream of tier %s: %w", t.Name, err)
	}
	info := stream.CachedInfo()
	if (info.Config.Storage == jetstream.FileStorage) == (t.Storage == policy.File) {
		return nil, nil
	}
	return info, nil
}

// dropStreams deletes the streams that are kept elsewhere than their tier
// wants, so that gateways make them anew.
func (s *session) dropStreams(p *policy.Policy) error {
	for _, t := range p.Tiers {
		info, err := s.otherStorage(t)
		if err != nil {
			return err
		}
		if info == nil {
			continue
		}
		if info.State.Msgs > 0 {
			return fmt.Errorf("tier %s: %s in it since a moment ago, so that its queue stays in %v; run this again", t.Name, areIn(info.State.Msgs), info.Config.Storage)
		}
		if err := s.js.DeleteStream(s.ctx(), info.Config.Name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("make the queue of tier %s anew: %w", t.Name, err)
		}
	}
	return nil
}

// percentValue is a flag for a percentage, with or without its sign.
type percentValue int

func (p *percentValue) Set(text string) error {
	n, err := parsePercent(text)
	if err == nil && n != float64(int(n)) {
		err = errors.New("want a whole percentage such as 10 or 10%")
	}
	*p = percentValue(n)
	return err
}

func (p *percentValue) String() string { return strconv.Itoa(int(*p)) }
func (p *percentValue) Type() string   { return "percent" }
