package ops

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

func newKeyCommand() *cobra.Command {
	return cli.Noun("key", "API keys: add, list, change, rotate, remove", `API keys. A key belongs to a tenant and carries its limits and its tiers; clients
send it as 'Authorization: Bearer KEY'. As soon as there is one, every request
needs one. A key is printed once, when it is made: only its hash is stored.

Keys are not part of the policy: no rollback brings a removed one back.`,
		newKeyAddCommand, newKeyListCommand, newKeySetCommand, newKeyRotateCommand, newKeyRemoveCommand)
}

func newKeyAddCommand(c *cli.ConnectFlags) *cobra.Command {
	var tenant string
	cmd := &cobra.Command{
		Use: "add", Short: "Make a key",
		Long: `Make a key and print it, this once: on standard output is the key alone. It works
within a second. The first key closes gateways that were open to anybody.`,
		Example: `  pulley key add --tenant acme --tier standard,batch --rpm 600 --tpm 200000
  KEY=$(pulley key add --tenant ci --models 'llama-*' --concurrency 4 --expires 720h)`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&tenant, "tenant", "", "whose key it is (required)")
	limits := addLimitFlags(cmd, c)
	output := addKeyOutput(cmd)
	cmd.RegisterFlagCompletionFunc("tenant", cli.CompleteFlag(c, liveTenants))
	return cli.Action(cmd, c, func(s *cli.Session) error {
		if tenant == "" {
			return cli.Usagef("--tenant: say whose key it is, such as --tenant acme")
		}
		if err := checkKeyOutput(*output); err != nil {
			return err
		}
		store, err := fleet.OpenStore(s.Context(), s.NC)
		if err != nil {
			return err
		}
		k := policy.Key{ID: newKeyID(), Tenant: tenant, Created: time.Now().UTC().Truncate(time.Second)}
		var text string
		text, k.Hash = newKey(k.ID)
		limits.set(&k, fs)
		if err := checkKey(s, &k); err != nil {
			return err
		}
		before, err := store.Keys(s.Context())
		if err != nil {
			return err
		}
		if err := store.PutKey(s.Context(), k); err != nil {
			return err
		}
		publishEvent(s, subjects.Event{Kind: subjects.EventKey, Tenant: k.Tenant, Text: "key " + k.ID + " added"})
		if len(before) == 0 {
			s.Warnf("this is the first key: from now on every request needs one")
		}
		return printKey(s, k, text, *output)
	})
}

func newKeySetCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "set ID", Short: "Change what a key may do",
		Long: "Change what a key may do. What no flag names stays as it is.",
		Example: `  pulley key set 4k7qz2m9xa --rpm 1200
  pulley key set 4k7qz2m9xa --models '' --expires 0`,
		Args:              cli.ExactArgs("ID"),
		ValidArgsFunction: cli.Complete(c, 1, liveKeys),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	limits := addLimitFlags(cmd, c)
	return cli.Action(cmd, c, func(s *cli.Session) error {
		store, k, err := findKey(s, s.Args[0])
		if err != nil {
			return err
		}
		before := k
		limits.set(&k, fs)
		if err := checkKey(s, &k); err != nil {
			return err
		}
		if reflect.DeepEqual(k, before) {
			fmt.Fprintf(s.Cmd.ErrOrStderr(), "key %s of tenant %s is so already\n", k.ID, term.Printable(k.Tenant))
			return nil
		}
		return putKey(s, store, k, "changed")
	})
}

func newKeyRotateCommand(c *cli.ConnectFlags) *cobra.Command {
	var overlap time.Duration
	cmd := &cobra.Command{
		Use: "rotate ID", Short: "Give a key a new secret",
		Long: `Give a key a new secret and print the new key, this once. Its id and limits stay.
The old one works for as long as --overlap says, and without it no longer.`,
		Example: `  pulley key rotate 4k7qz2m9xa --overlap 24h
  pulley key rotate 4k7qz2m9xa --force      # the old one has leaked`,
		Args:              cli.ExactArgs("ID"),
		ValidArgsFunction: cli.Complete(c, 1, liveKeys),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.DurationVar(&overlap, "overlap", 0, "how long the old one stays good")
	output := addKeyOutput(cmd)
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		if overlap < 0 {
			return cli.Usagef("--overlap %v: must not be negative", overlap)
		}
		if err := checkKeyOutput(*output); err != nil {
			return err
		}
		store, k, err := findKey(s, s.Args[0])
		if err != nil {
			return err
		}
		what := "rotated"
		if overlap == 0 {
			if err := s.Confirm("end the old key %s of tenant %s at once", k.ID, term.Printable(k.Tenant)); err != nil {
				return err
			}
			k.OldHash, k.OldUntil = "", time.Time{}
		} else {
			k.OldHash, k.OldUntil = k.Hash, time.Now().UTC().Add(overlap).Truncate(time.Second)
			what += ", the old one is good until " + term.Clock(k.OldUntil)
		}
		var text string
		text, k.Hash = newKey(k.ID)
		if err := putKey(s, store, k, what); err != nil {
			return err
		}
		return printKey(s, k, text, *output)
	})
}

func newKeyRemoveCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm ID...", Aliases: []string{"remove", "revoke"}, Short: "Revoke keys",
		Long: `Revoke keys: within a second no gateway takes them any more. Requests under way
go on. Nothing brings a key back.`,
		Example:           `  pulley key rm 4k7qz2m9xa`,
		Args:              cli.ExactArgs("ID..."),
		ValidArgsFunction: cli.Complete(c, 0, liveKeys),
	}
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		var found []policy.Key
		var store *policystore.Store
		for _, named := range s.Args {
			st, k, err := findKey(s, named)
			if err != nil {
				return err
			}
			store, found = st, append(found, k)
		}
		for _, k := range found {
			if err := s.Confirm("revoke key %s of tenant %s", k.ID, term.Printable(k.Tenant)); err != nil {
				return err
			}
			if err := store.RemoveKey(s.Context(), k.ID); err != nil {
				return err
			}
			publishEvent(s, subjects.Event{Kind: subjects.EventKey, Tenant: k.Tenant, Text: "key " + k.ID + " removed"})
			s.Printf("key %s of tenant %s revoked", k.ID, term.Printable(k.Tenant))
		}
		left, err := store.Keys(s.Context())
		if err == nil && len(left) == 0 {
			s.Warnf("that was the last key: gateways that run refuse everybody until there is another")
		}
		return nil
	})
}

// limitFlags are what a key may do.
type limitFlags struct {
	key     policy.Key
	expires time.Duration
}

// set puts into k what the flags give.
func (l *limitFlags) set(k *policy.Key, fs *pflag.FlagSet) {
	override(fs.Changed("tier"), &k.Tiers, l.key.Tiers)
	override(fs.Changed("models"), &k.Models, l.key.Models)
	override(fs.Changed("rpm"), &k.RPM, l.key.RPM)
	override(fs.Changed("tpm"), &k.TPM, l.key.TPM)
	override(fs.Changed("concurrency"), &k.Concurrency, l.key.Concurrency)
	override(fs.Changed("max-queue-share"), &k.MaxQueueShare, l.key.MaxQueueShare)
	if fs.Changed("expires") {
		k.Expires = time.Time{}
		if l.expires != 0 {
			k.Expires = time.Now().UTC().Add(l.expires).Truncate(time.Second)
		}
	}
}

func addLimitFlags(cmd *cobra.Command, c *cli.ConnectFlags) *limitFlags {
	l := &limitFlags{}
	fs := cmd.Flags()
	fs.StringSliceVar(&l.key.Tiers, "tier", nil, "`tiers` that it may ask for, separated by commas; the first serves requests that ask for none (default standard and those after it)")
	fs.StringSliceVar(&l.key.Models, "models", nil, "`models` that it may ask for, separated by commas; a trailing * is any ending (default all)")
	fs.IntVar(&l.key.RPM, "rpm", 0, "requests per minute; 0 is no limit")
	fs.IntVar(&l.key.TPM, "tpm", 0, "tokens per minute, in and out; 0 is no limit")
	fs.IntVar(&l.key.Concurrency, "concurrency", 0, "requests at once; 0 is no limit")
	fs.Var((*percentValue)(&l.key.MaxQueueShare), "max-queue-share", "`percent` of a queue that the tenant's requests may take; 0 is all of it")
	fs.DurationVar(&l.expires, "expires", 0, "how long from now on it is good; 0 is for ever")
	cmd.RegisterFlagCompletionFunc("tier", cli.CompleteFlag(c, liveTiers))
	cmd.RegisterFlagCompletionFunc("models", cli.CompleteFlag(c, livePools))
	return l
}

// checkKey refuses a key that is unsound, or names tiers that do not exist.
func checkKey(s *cli.Session, k *policy.Key) error {
	if err := k.Check(); err != nil {
		return explainInvalid(s, err)
	}
	if !k.Expires.IsZero() && k.Expires.Before(time.Now()) {
		return cli.Usagef("--expires: must be above 0, or 0 for ever")
	}
	p, err := fleet.LoadPolicy(s.Context(), s.NC)
	if err != nil {
		return err
	}
	for _, t := range k.Tiers {
		if _, ok := p.Tier(t); !ok {
			return cli.NoSuch("tier", t, tierNames(p))
		}
	}
	return nil
}

// findKey reads the key with an id, or a unique beginning of one.
func findKey(s *cli.Session, named string) (*policystore.Store, policy.Key, error) {
	store, err := fleet.OpenStore(s.Context(), s.NC)
	if err != nil {
		return nil, policy.Key{}, err
	}
	keys, err := store.Keys(s.Context())
	if err != nil {
		return nil, policy.Key{}, err
	}
	if k, ok := keys[named]; ok {
		return store, k, nil
	}
	if strings.HasPrefix(named, keyPrefix) {
		return nil, policy.Key{}, cli.Usagef("name the key by its id, the part after %s: a key itself belongs on no command line", keyPrefix)
	}
	ids := slices.Sorted(maps.Keys(keys))
	found := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return named == "" || !strings.HasPrefix(id, named) })
	switch len(found) {
	case 0:
		return nil, policy.Key{}, cli.NoSuch("key", named, ids)
	case 1:
		return store, keys[found[0]], nil
	}
	return nil, policy.Key{}, cli.Usagef("key %s: which of %s?", named, term.Shorten(term.Join(found), 100))
}

// putKey stores a key and tells what has become of it.
func putKey(s *cli.Session, store *policystore.Store, k policy.Key, what string) error {
	if err := store.PutKey(s.Context(), k); err != nil {
		return err
	}
	publishEvent(s, subjects.Event{Kind: subjects.EventKey, Tenant: k.Tenant, Text: "key " + k.ID + " " + what})
	fmt.Fprintf(s.Cmd.ErrOrStderr(), "key %s of tenant %s %s\n", k.ID, term.Printable(k.Tenant), what)
	return nil
}
