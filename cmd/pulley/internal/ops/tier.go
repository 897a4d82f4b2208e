package ops

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func newTierCommand() *cobra.Command {
	return cli.Noun("tier", "Service classes: shares, reserves, limits, deadlines", `Tiers are service classes. While several tiers have a backlog, freed slots are
shared out by their shares, the first tier first. A reserve keeps a part of each
worker's slots free for a tier and the tiers before it. A change takes effect
within a second.

Terms: docs/concepts.md`,
		newTierListCommand, newTierInfoCommand, newTierSetCommand, newTierRemoveCommand)
}

// tierLine is a line of pulley tier ls.
type tierLine struct {
	policy.Tier
	Waiting  uint64 `json:"waiting"`
	InFlight int    `json:"in_flight"`
}

func newTierListCommand(c *cli.ConnectFlags) *cobra.Command {
	return cli.Listing(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the tiers",
		Long: "List the tiers in order of priority, with their waiting and running requests.",
		Example: `  pulley tier ls
  pulley tier ls -o yaml`,
	}, c, func(s *cli.Session) (cli.View, error) {
		list, _, err := tiers(s)
		if err != nil {
			return cli.View{}, err
		}
		return cli.View{Value: list, Print: func(p *term.Page) {
			t := term.Table{Columns: []term.Column{term.Text("NAME"), term.Number("SHARE"), term.Number("RESERVE"), term.Number("MAX QUEUE"), term.NonEmpty(term.Number("MAX WAIT")),
				term.Number("DEADLINE"), term.NonEmpty(term.Number("FIRST BYTE")), term.Wide(term.Number("RETRIES")), term.Wide(term.Fixed("STORAGE")), term.Number("WAITING"), term.Number("IN FLIGHT")}}
			for _, l := range list {
				t.Row(l.Name, l.Share, percentOr(l.Reserve), l.MaxQueue, durationOr(l.MaxWait), durationOr(l.Deadline), durationOr(l.FirstByteWithin), l.Retries, l.Storage, l.Waiting, l.InFlight)
			}
			p.Table(t)
		}}, nil
	})
}

// tiers returns the tiers in order of priority, and all queues.
func tiers(s *cli.Session) ([]tierLine, []fleet.Queue, error) {
	p, err := fleet.LoadPolicy(s.Context(), s.NC)
	if err != nil {
		return nil, nil, err
	}
	_, all, err := fleet.Queues(s.Context(), s.NC, p)
	if err != nil {
		return nil, nil, err
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
	return list, all, nil
}

func newTierInfoCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "info TIER...", Short: "Describe tiers",
		Long:              "Describe a tier: its settings, its queues, and the keys that name it.",
		Example:           `  pulley tier info batch`,
		ValidArgsFunction: cli.Complete(c, 0, liveTiers),
	}
	return cli.Describing(cmd, c, func(s *cli.Session, name string) (cli.View, error) {
		list, all, err := tiers(s)
		if err != nil {
			return cli.View{}, err
		}
		names := fleet.NamesOf(list, func(l tierLine) string { return l.Name })
		i := slices.Index(names, name)
		if i < 0 {
			return cli.View{}, cli.NoSuch("tier", name, names)
		}
		l := list[i]
		queues := slices.DeleteFunc(all, func(q fleet.Queue) bool { return q.Tier != name })
		keys := keysWithTier(s, name)
		value := struct {
			tierLine
			Order  int           `json:"order"` // from 1, the first
			Queues []fleet.Queue `json:"queues"`
			Keys   []string      `json:"keys,omitempty"`
		}{l, i + 1, queues, keys}
		return cli.View{Value: value, Print: func(p *term.Page) {
			reserve := ""
			if l.Reserve > 0 && i < len(list)-1 {
				reserve = fmt.Sprintf("%d%% of each worker's slots are left free by %s", l.Reserve, term.Join(names[i+1:]))
			}
			until := "its deadline"
			if l.MaxWait > 0 {
				until = durationOr(l.MaxWait)
			}
			p.Fields(
				term.KV("tier", l.Name, term.Bold),
				term.KV("order", fmt.Sprintf("%d of %d", i+1, len(list))),
				term.KV("share", fmt.Sprintf("%d of freed slots while tiers have a backlog", l.Share)),
				term.KV("reserve", reserve),
				term.KV("storage", string(l.Storage)),
				term.KV("max queue", fmt.Sprintf("%d requests of a pool", l.MaxQueue)),
				term.KV("max wait", until),
				term.KV("deadline", durationOr(l.Deadline)+" if the client sets none"),
				term.KV("first byte", durationOr(l.FirstByteWithin)),
				term.KV("retries", fmt.Sprint(l.Retries)),
				term.KV("waiting", fmt.Sprint(l.Waiting)),
				term.KV("in flight", fmt.Sprint(l.InFlight)),
				term.KV("keys", strings.Join(keys, ", ")),
			)
			p.Heading("queues")
			t := term.Table{Columns: []term.Column{term.Text("POOL"), term.Number("WAITING"), term.Number("OLDEST"), term.Number("MAX QUEUE"), term.Number("IN FLIGHT"), term.Number("BIDS")}, Empty: "none"}
			for _, q := range queues {
				t.Row(q.Pool, q.Waiting, q.Oldest(), q.MaxQueue, q.InFlight, q.Bids)
			}
			p.Table(t)
		}}, nil
	})
}

// keysWithTier returns the ids of the keys that name a tier.
func keysWithTier(s *cli.Session, tier string) (ids []string) {
	keys, _ := fleet.Keys(s.Context(), s.NC)
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		if slices.Contains(keys[id].Tiers, tier) {
			ids = append(ids, id)
		}
	}
	return ids
}

func newTierSetCommand(c *cli.ConnectFlags) *cobra.Command {
	var t policy.Tier
	var maxWait, deadline, firstByte time.Duration
	var storage string
	var order int
	cmd := &cobra.Command{
		Use: "set TIER", Short: "Create or change a tier",
		Long: `Create or change a tier. Settings without a flag stay unchanged; a new tier is the
last one, and has the defaults below.

The storage of an existing tier can only be changed while the tier is empty,
because its queue is created again.`,
		Example: `  pulley tier set priority --share 16 --reserve 10
  pulley tier set night --share 1 --max-wait 8h --deadline 12h --storage file
  pulley tier set night --order 2      # before the tier that was second`,
		ValidArgsFunction: cli.Complete(c, 1, liveTiers),
	}
	usual := policy.TierDefaults("")
	fs := cmd.Flags()
	fs.IntVar(&t.Share, "share", usual.Share, "`weight` of the tier while several tiers have a backlog")
	fs.Var((*percentValue)(&t.Reserve), "reserve", "`percent` of each worker's slots that later tiers leave free (default 0)")
	fs.IntVar(&t.MaxQueue, "max-queue", usual.MaxQueue, "requests that may have to wait in each pool's queue, beyond those that free slots take")
	fs.DurationVar(&maxWait, "max-wait", 0, "how long a request may wait for a worker before it is refused; 0: until its deadline")
	fs.DurationVar(&deadline, "deadline", time.Duration(usual.Deadline), "how long a request may take if the client sets no deadline")
	fs.DurationVar(&firstByte, "first-byte-within", 0, "how long a stream may take to its first byte before it moves to another worker; 0: as the gateway says")
	fs.IntVar(&t.Retries, "retries", usual.Retries, "further attempts after a failed one, before the request becomes a dead letter")
	fs.StringVar(&storage, "storage", string(usual.Storage), "storage of the queue: memory or file")
	fs.IntVar(&order, "order", 0, "position among the tiers; 1 is the first (default last)")
	cli.CompleteFixed(cmd, "storage", "memory", "file")
	return cli.Action(cmd, c, func(s *cli.Session) error {
		name := s.Args[0]
		given := fs.Changed
		created := false
		v, err := changePolicy(s, func(p *policy.Policy) error {
			next := policy.Tier{Name: name, Share: t.Share, Reserve: t.Reserve, MaxQueue: t.MaxQueue, MaxWait: policy.Duration(maxWait),
				Deadline: policy.Duration(deadline), FirstByteWithin: policy.Duration(firstByte), Retries: t.Retries, Storage: policy.Storage(storage)}
			at := slices.IndexFunc(p.Tiers, func(t policy.Tier) bool { return t.Name == name })
			if created = at < 0; created {
				at = len(p.Tiers)
				p.Tiers = append(p.Tiers, next)
			} else {
				flags := next
				next = p.Tiers[at]
				override(given("share"), &next.Share, flags.Share)
				override(given("reserve"), &next.Reserve, flags.Reserve)
				override(given("max-queue"), &next.MaxQueue, flags.MaxQueue)
				override(given("max-wait"), &next.MaxWait, flags.MaxWait)
				override(given("deadline"), &next.Deadline, flags.Deadline)
				override(given("first-byte-within"), &next.FirstByteWithin, flags.FirstByteWithin)
				override(given("retries"), &next.Retries, flags.Retries)
				override(given("storage"), &next.Storage, flags.Storage)
				p.Tiers[at] = next
			}
			if given("order") {
				if order < 1 || order > len(p.Tiers) {
					return cli.Usagef("--order %d: must be 1 to %d", order, len(p.Tiers))
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
		Use: "rm TIER...", Aliases: []string{"remove"}, Short: "Remove tiers",
		Long: `Remove tiers. A tier with requests is only removed with --force: gateways then
move its waiting requests to tier standard. Its stream is removed too, once it is
empty. The tier standard itself, which serves requests that ask for no tier, cannot
be removed.`,
		Example:           `  pulley tier rm night`,
		ValidArgsFunction: cli.Complete(c, 0, liveTiers),
	}
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		p, err := fleet.LoadPolicy(s.Context(), s.NC)
		if err != nil {
			return err
		}
		for _, name := range s.Args {
			if name == policy.DefaultTier {
				return cli.Refusedf("tier %s cannot be removed: it serves the requests that ask for no tier", name)
			}
			if _, ok := p.Tier(name); !ok && len(s.Args) == 1 {
				return removeUnknownTier(s, p, name)
			} else if !ok {
				return cli.NoSuch("tier", name, tierNames(p))
			}
		}
		err = removeFromPolicy(s, removal{"tier", "remove %s", "removed"}, func(p *policy.Policy, name string) {
			p.Tiers = slices.DeleteFunc(p.Tiers, func(t policy.Tier) bool { return t.Name == name })
		})
		if err != nil {
			return err
		}
		for _, name := range s.Args {
			warnOfKeys(s, name)
		}
		return eachOf(s.Args, func(name string) error { return removeTierStream(s, name) })
	})
}

// removeUnknownTier deletes the stream of a tier that is not in the policy, such as one that an older version has left.
func removeUnknownTier(s *cli.Session, p *policy.Policy, tier string) error {
	stream, err := tierStream(s, tier)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrInvalidStreamName):
		return cli.NoSuch("tier", tier, tierNames(p))
	case err != nil:
		return err
	}
	if n := stream.CachedInfo().State.Msgs; n > 0 && !s.Force {
		return cli.Refusedf("tier %s is not in the policy, but has %s: 'pulley tier set %s' serves them, --force deletes them", tier, term.Count(n, "request"), tier)
	}
	if err := s.JS.DeleteStream(s.Context(), subjects.ReqStream(tier)); err != nil {
		return fmt.Errorf("delete stream %s: %w", subjects.ReqStream(tier), err)
	}
	s.Printf("stream %s removed", subjects.ReqStream(tier))
	return nil
}

const (
	// policyTakes is how long gateways take to follow the policy: until then they may publish to the stream, or make it again.
	policyTakes = time.Second

	// movingTakes bounds the wait until gateways have moved what waits in the stream.
	movingTakes = 3 * time.Second
)

// removeTierStream deletes the stream of a tier that is no longer in the policy, as soon as it is empty. If it does not become
// empty, since requests of it run or no gateway moves them, it warns.
func removeTierStream(s *cli.Session, tier string) error {
	end := time.Now().Add(movingTakes)
	for wait := policyTakes; ; wait = policyTakes / 4 {
		select {
		case <-s.Context().Done():
			return context.Cause(s.Context())
		case <-time.After(wait):
		}
		n, err := tierMessages(s, tier)
		if err == nil && n == 0 {
			err = s.JS.DeleteStream(s.Context(), subjects.ReqStream(tier))
		}
		switch {
		case err == nil && n == 0, errors.Is(err, jetstream.ErrStreamNotFound):
			return nil
		case err != nil:
			s.Warnf("the stream %s remains: %v", subjects.ReqStream(tier), err)
			return nil
		case time.Now().After(end):
			s.Warnf("the stream %s remains, since it has %s: 'pulley doctor' says when it can be removed", subjects.ReqStream(tier), term.Count(n, "request"))
			return nil
		}
	}
}

func tierNames(p *policy.Policy) []string {
	return fleet.NamesOf(p.Tiers, func(t policy.Tier) string { return t.Name })
}

// warnOfKeys warns about keys that still allow a removed tier.
func warnOfKeys(s *cli.Session, tier string) {
	if ids := keysWithTier(s, tier); len(ids) > 0 {
		s.Warnf("tier %s is still allowed by %s: %s", tier, term.Count(len(ids), "key"), term.Shorten(term.Join(ids), 60))
	}
}

// checkTiers refuses changes that would lose requests: removing a tier that has requests, unless --force was given, and
// moving the queue of such a tier between memory and file.
func checkTiers(s *cli.Session, before, after *policy.Policy) error {
	for _, t := range before.Tiers {
		if _, stays := after.Tier(t.Name); stays || s.Force {
			continue
		}
		n, err := tierMessages(s, t.Name)
		if err != nil {
			return err
		}
		if n > 0 {
			return cli.Refusedf("tier %s has %s: wait until it is empty, or use --force to move the waiting ones to tier %s", t.Name, term.Count(n, "request"), policy.DefaultTier)
		}
	}
	for _, t := range after.Tiers {
		info, err := misplacedStream(s, t)
		if err != nil {
			return err
		}
		if info != nil && info.State.Msgs > 0 {
			return cli.Refusedf("tier %s has %s, and moving its queue to %s would lose them: wait until it is empty", t.Name, term.Count(info.State.Msgs, "request"), t.Storage)
		}
	}
	return nil
}

func tierStream(s *cli.Session, tier string) (jetstream.Stream, error) {
	stream, err := s.JS.Stream(s.Context(), subjects.ReqStream(tier))
	if err != nil {
		return nil, fmt.Errorf("stream of tier %s: %w", tier, err)
	}
	return stream, nil
}

// tierMessages counts the requests in the stream of a tier, waiting and running.
func tierMessages(s *cli.Session, tier string) (uint64, error) {
	stream, err := tierStream(s, tier)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return stream.CachedInfo().State.Msgs, nil
}

// misplacedStream returns the stream of a tier if its storage is not the one that the tier should have; otherwise nil.
func misplacedStream(s *cli.Session, t policy.Tier) (*jetstream.StreamInfo, error) {
	stream, err := tierStream(s, t.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrInvalidStreamName) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	info := stream.CachedInfo()
	if (info.Config.Storage == jetstream.FileStorage) == (t.Storage == policy.File) {
		return nil, nil
	}
	return info, nil
}

// deleteMisplacedStreams deletes the empty streams whose storage must change. Gateways create them again.
func deleteMisplacedStreams(s *cli.Session, p *policy.Policy) error {
	for _, t := range p.Tiers {
		info, err := misplacedStream(s, t)
		if err != nil {
			return err
		}
		if info == nil {
			continue
		}
		if info.State.Msgs > 0 {
			return fmt.Errorf("tier %s has received %s just now: its queue stays in %v; run the command again", t.Name, term.Count(info.State.Msgs, "request"), info.Config.Storage)
		}
		if err := s.JS.DeleteStream(s.Context(), info.Config.Name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("move the queue of tier %s: %w", t.Name, err)
		}
	}
	return nil
}
