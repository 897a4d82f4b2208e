package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

func newKeyCommand() *cobra.Command {
	return noun("key", "API keys: add, list, change, rotate, remove", `API keys. A key belongs to a tenant and carries its limits and its tiers; clients
send it as 'Authorization: Bearer KEY'. As soon as there is one, every request
needs one. A key is printed once, when it is made: only its hash is stored.

Keys are not part of the policy: no rollback brings a removed one back.`,
		newKeyAddCommand, newKeyListCommand, newKeySetCommand, newKeyRotateCommand, newKeyRemoveCommand)
}

const keyPrefix = "sk-pulley-"

// newKey makes the text of a key with an id, from 256 random bits, and its hash.
func newKey(id string) (text, hash string) {
	var secret [32]byte
	rand.Read(secret[:])
	// Its alphabet has '-', which the id before it has not.
	text = keyPrefix + id + "-" + base64.RawURLEncoding.EncodeToString(secret[:])
	sum := sha256.Sum256([]byte(text))
	return text, hex.EncodeToString(sum[:])
}

// newKeyID makes a key's public part.
func newKeyID() string {
	return strings.ToLower(rand.Text()[:10])
}

// limitFlags are what a key may do.
type limitFlags struct {
	key     policy.Key
	expires time.Duration
}

func addLimitFlags(cmd *cobra.Command, c *connectFlags) *limitFlags {
	l := &limitFlags{}
	fs := cmd.Flags()
	fs.StringSliceVar(&l.key.Tiers, "tier", nil, "`tiers` that it may ask for, separated by commas; the first serves requests that ask for none (default standard and those after it)")
	fs.StringSliceVar(&l.key.Models, "models", nil, "`models` that it may ask for, separated by commas; a trailing * is any ending (default all)")
	fs.IntVar(&l.key.RPM, "rpm", 0, "requests per minute; 0 is no limit")
	fs.IntVar(&l.key.TPM, "tpm", 0, "tokens per minute, in and out; 0 is no limit")
	fs.IntVar(&l.key.Concurrency, "concurrency", 0, "requests at once; 0 is no limit")
	fs.Var((*percentValue)(&l.key.MaxQueueShare), "max-queue-share", "`percent` of a queue that the tenant's requests may take; 0 is all of it")
	fs.DurationVar(&l.expires, "expires", 0, "how long from now on it is good; 0 is for ever")
	cmd.RegisterFlagCompletionFunc("tier", completeFlag(c, liveTiers))
	cmd.RegisterFlagCompletionFunc("models", completeFlag(c, livePools))
	return l
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

// checkKey refuses a key that is unsound, or names tiers that do not exist.
func (s *session) checkKey(k *policy.Key) error {
	if err := k.Check(); err != nil {
		return s.explainInvalid(err)
	}
	if !k.Expires.IsZero() && k.Expires.Before(time.Now()) {
		return usagef("--expires: must be above 0, or 0 for ever")
	}
	p, err := s.policy()
	if err != nil {
		return err
	}
	for _, t := range k.Tiers {
		if _, ok := p.Tier(t); !ok {
			return noSuch("tier", t, tierNames(p))
		}
	}
	return nil
}

// made is a key that is shown the one time.
type madeKey struct {
	ID     string `json:"id"`
	Tenant string `json:"tenant"`
	Key    string `json:"key"`
}

// showKey prints a key: on standard output nothing else, for scripts.
func (s *session) showKey(k policy.Key, text, format string) error {
	made := madeKey{k.ID, k.Tenant, text}
	if format == "json" || format == "yaml" {
		b, err := view{value: made}.render(format, terminal{})
		if err == nil {
			_, err = s.cmd.OutOrStdout().Write(b)
		}
		return err
	}
	fmt.Fprintf(s.cmd.ErrOrStderr(), "key %s of tenant %s; it is not shown again:\n", k.ID, printable(k.Tenant))
	s.say("%s", text)
	return nil
}

func addKeyOutput(cmd *cobra.Command) *string {
	output := cmd.Flags().StringP("output", "o", "text", "how to print the key: text, json or yaml")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return output
}

func checkKeyOutput(format string) error {
	if !slices.Contains([]string{"text", "json", "yaml"}, format) {
		return usagef("--output %q: want text, json or yaml", format)
	}
	return nil
}

func newKeyAddCommand(c *connectFlags) *cobra.Command {
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
	cmd.RegisterFlagCompletionFunc("tenant", completeFlag(c, liveTenants))
	return act(cmd, c, func(s *session) error {
		if tenant == "" {
			return usagef("--tenant: say whose key it is, such as --tenant acme")
		}
		if err := checkKeyOutput(*output); err != nil {
			return err
		}
		store, err := s.store()
		if err != nil {
			return err
		}
		k := policy.Key{ID: newKeyID(), Tenant: tenant, Created: time.Now().UTC().Truncate(time.Second)}
		var text string
		text, k.Hash = newKey(k.ID)
		limits.set(&k, fs)
		if err := s.checkKey(&k); err != nil {
			return err
		}
		before, err := store.Keys(s.ctx())
		if err != nil {
			return err
		}
		if err := store.PutKey(s.ctx(), k); err != nil {
			return err
		}
		s.tell(subjects.Event{Kind: subjects.EventKey, Tenant: k.Tenant, Text: "key " + k.ID + " added"})
		if len(before) == 0 {
			s.warn("this is the first key: from now on every request needs one")
		}
		return s.showKey(k, text, *output)
	})
}

// keyLine is one line of pulley key ls: a key without its hashes.
type keyLine struct {
	ID            string    `json:"id"`
	Tenant        string    `json:"tenant"`
	State         string    `json:"state"` // active, rotating, expired
	Tiers         []string  `json:"tiers,omitempty"`
	Models        []string  `json:"models,omitempty"`
	RPM           int       `json:"rpm,omitempty"`
	TPM           int       `json:"tpm,omitempty"`
	Concurrency   int       `json:"concurrency,omitempty"`
	MaxQueueShare int       `json:"max_queue_share,omitempty"`
	Created       time.Time `json:"created"`
	Expires       time.Time `json:"expires,omitzero"`
	OldUntil      time.Time `json:"old_until,omitzero"`
}

func keyLineOf(k policy.Key, now time.Time) keyLine {
	l := keyLine{ID: k.ID, Tenant: k.Tenant, State: "active", Tiers: k.Tiers, Models: k.Models, RPM: k.RPM, TPM: k.TPM,
		Concurrency: k.Concurrency, MaxQueueShare: k.MaxQueueShare, Created: k.Created, Expires: k.Expires}
	if k.OldHash != "" && k.OldUntil.After(now) {
		l.State, l.OldUntil = "rotating", k.OldUntil
	}
	if !k.Expires.IsZero() && !k.Expires.After(now) {
		l.State = "expired"
	}
	return l
}

func newKeyListCommand(c *connectFlags) *cobra.Command {
	var tenant string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the keys",
		Long: "List the keys, by tenant. The keys themselves cannot be shown: nobody has them.",
		Example: `  pulley key ls
  pulley key ls --tenant acme -o wide`,
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&tenant, "tenant", "", "only of this `tenant`")
	cmd.RegisterFlagCompletionFunc("tenant", completeFlag(c, liveTenants))
	return look(cmd, c, func(s *session) (view, error) {
		store, err := s.store()
		if err != nil {
			return view{}, err
		}
		keys, err := store.Keys(s.ctx())
		if err != nil {
			return view{}, err
		}
		now := time.Now()
		list := []keyLine{}
		for _, k := range keys {
			if tenant == "" || k.Tenant == tenant {
				list = append(list, keyLineOf(k, now))
			}
		}
		slices.SortFunc(list, func(a, b keyLine) int {
			return cmp.Or(strings.Compare(a.Tenant, b.Tenant), a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
		})
		return view{list, func(p *page) {
			t := table{
				columns: []column{word("ID"), text("TENANT"), painted(word("STATE"), paintState), text("TIERS"), text("MODELS"), number("RPM"), number("TPM"),
					number("AT ONCE"), wide(number("QUEUE SHARE")), wide(word("CREATED")), number("EXPIRES"), wide(word("OLD ONE UNTIL"))},
				empty: "no keys; make one with 'pulley key add --tenant NAME'",
			}
			if len(keys) > 0 {
				t.empty = fmt.Sprintf("no keys of tenant %s", printable(tenant))
			}
			for _, k := range list {
				expires := ""
				if !k.Expires.IsZero() {
					expires = age(k.Expires.Sub(now))
				}
				t.row(k.ID, k.Tenant, k.State, joined(k.Tiers), joined(k.Models), limit(k.RPM), limit(k.TPM), limit(k.Concurrency),
					percentOr(k.MaxQueueShare), clock(k.Created), expires, clock(k.OldUntil))
			}
			p.table(t)
		}}, nil
	})
}

// limit is a limit, or nothing for 0.
func limit(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// findKey reads the key with an id, or a unique beginning of one.
func (s *session) findKey(named string) (*policystore.Store, policy.Key, error) {
	store, err := s.store()
	if err != nil {
		return nil, policy.Key{}, err
	}
	keys, err := store.Keys(s.ctx())
	if err != nil {
		return nil, policy.Key{}, err
	}
	if k, ok := keys[named]; ok {
		return store, k, nil
	}
	if strings.HasPrefix(named, keyPrefix) {
		return nil, policy.Key{}, usagef("name the key by its id, the part after %s: a key itself belongs on no command line", keyPrefix)
	}
	ids := slices.Sorted(maps.Keys(keys))
	found := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return named == "" || !strings.HasPrefix(id, named) })
	switch len(found) {
	case 0:
		return nil, policy.Key{}, noSuch("key", named, ids)
	case 1:
		return store, keys[found[0]], nil
	}
	return nil, policy.Key{}, usagef("key %s: which of %s?", named, shorten(joined(found), 100))
}

func newKeySetCommand(c *connectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "set ID", Short: "Change what a key may do",
		Long: "Change what a key may do. What no flag names stays as it is.",
		Example: `  pulley key set 4k7qz2m9xa --rpm 1200
  pulley key set 4k7qz2m9xa --models '' --expires 0`,
		Args:              wantArgs("ID"),
		ValidArgsFunction: complete(c, 1, liveKeys),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	limits := addLimitFlags(cmd, c)
	return act(cmd, c, func(s *session) error {
		store, k, err := s.findKey(s.args[0])
		if err != nil {
			return err
		}
		before := k
		limits.set(&k, fs)
		if err := s.checkKey(&k); err != nil {
			return err
		}
		if reflect.DeepEqual(k, before) {
			fmt.Fprintf(s.cmd.ErrOrStderr(), "key %s of tenant %s is so already\n", k.ID, printable(k.Tenant))
			return nil
		}
		return s.putKey(store, k, "changed")
	})
}

// putKey stores a key and tells what has become of it.
func (s *session) putKey(store *policystore.Store, k policy.Key, what string) error {
	if err := store.PutKey(s.ctx(), k); err != nil {
		return err
	}
	s.tell(subjects.Event{Kind: subjects.EventKey, Tenant: k.Tenant, Text: "key " + k.ID + " " + what})
	fmt.Fprintf(s.cmd.ErrOrStderr(), "key %s of tenant %s %s\n", k.ID, printable(k.Tenant), what)
	return nil
}

func newKeyRotateCommand(c *connectFlags) *cobra.Command {
	var overlap time.Duration
	cmd := &cobra.Command{
		Use: "rotate ID", Short: "Give a key a new secret",
		Long: `Give a key a new secret and print the new key, this once. Its id and limits stay.
The old one works for as long as --overlap says, and without it no longer.`,
		Example: `  pulley key rotate 4k7qz2m9xa --overlap 24h
  pulley key rotate 4k7qz2m9xa --force      # the old one has leaked`,
		Args:              wantArgs("ID"),
		ValidArgsFunction: complete(c, 1, liveKeys),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.DurationVar(&overlap, "overlap", 0, "how long the old one stays good")
	output := addKeyOutput(cmd)
	return harm(cmd, c, func(s *session) error {
		if overlap < 0 {
			return usagef("--overlap %v: must not be negative", overlap)
		}
		if err := checkKeyOutput(*output); err != nil {
			return err
		}
		store, k, err := s.findKey(s.args[0])
		if err != nil {
			return err
		}
		what := "rotated"
		if overlap == 0 {
			if err := s.confirm("end the old key %s of tenant %s at once", k.ID, printable(k.Tenant)); err != nil {
				return err
			}
			k.OldHash, k.OldUntil = "", time.Time{}
		} else {
			k.OldHash, k.OldUntil = k.Hash, time.Now().UTC().Add(overlap).Truncate(time.Second)
			what += ", the old one is good until " + clock(k.OldUntil)
		}
		var text string
		text, k.Hash = newKey(k.ID)
		if err := s.putKey(store, k, what); err != nil {
			return err
		}
		return s.showKey(k, text, *output)
	})
}

func newKeyRemoveCommand(c *connectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm ID...", Aliases: []string{"remove", "revoke"}, Short: "Revoke keys",
		Long: `Revoke keys: within a second no gateway takes them any more. Requests under way
go on. Nothing brings a key back.`,
		Example:           `  pulley key rm 4k7qz2m9xa`,
		Args:              wantArgs("ID..."),
		ValidArgsFunction: complete(c, 0, liveKeys),
	}
	return harm(cmd, c, func(s *session) error {
		var found []policy.Key
		var store *policystore.Store
		for _, named := range s.args {
			st, k, err := s.findKey(named)
			if err != nil {
				return err
			}
			store, found = st, append(found, k)
		}
		for _, k := range found {
			if err := s.confirm("revoke key %s of tenant %s", k.ID, printable(k.Tenant)); err != nil {
				return err
			}
			if err := store.RemoveKey(s.ctx(), k.ID); err != nil {
				return err
			}
			s.tell(subjects.Event{Kind: subjects.EventKey, Tenant: k.Tenant, Text: "key " + k.ID + " removed"})
			s.say("key %s of tenant %s revoked", k.ID, printable(k.Tenant))
		}
		left, err := store.Keys(s.ctx())
		if err == nil && len(left) == 0 {
			s.warn("that was the last key: gateways that run refuse everybody until there is another")
		}
		return nil
	})
}

// tenants are those that have keys.
func tenants(ctx context.Context, store *policystore.Store) ([]string, error) {
	keys, err := store.Keys(ctx)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool)
	for _, k := range keys {
		seen[k.Tenant] = true
	}
	return slices.Sorted(maps.Keys(seen)), nil
}
