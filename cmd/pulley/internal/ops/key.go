package ops

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
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
	return cli.Noun("key", "API keys: add, list, change, rotate, remove", `An API key belongs to a tenant, and has its limits, models and tiers. Clients send
it as 'Authorization: Bearer KEY'. Once a key exists, every request needs one. A key
is printed only when it is created: Pulley stores nothing but its hash.

Keys are not part of the policy: a rollback does not restore a removed key.`,
		newKeyAddCommand, newKeyListCommand, newKeyInfoCommand, newKeySetCommand, newKeyRotateCommand, newKeyRemoveCommand)
}

func newKeyAddCommand(c *cli.ConnectFlags) *cobra.Command {
	var tenant string
	cmd := &cobra.Command{
		Use: "add", Short: "Create a key",
		Long: `Create a key and print it, this once. Standard output has the key alone. It works
within a second. With the first key, gateways that were open to every client start
to require keys.`,
		Example: `  pulley key add --tenant acme --tier standard,batch --rpm 600 --tpm 200000
  KEY=$(pulley key add --tenant ci --models 'llama-*' --concurrency 4 --expires 720h)`,
	}
	fs := cmd.Flags()
	cli.NameFlag(cmd, c, &tenant, "tenant", "tenant that the key belongs to (required)", liveTenants)
	limits := addLimitFlags(cmd, c)
	output := cli.AddOutput(cmd, cli.Text, cli.JSON, cli.YAML)
	return cli.Action(cmd, c, func(s *cli.Session) error {
		if tenant == "" {
			return cli.Usagef("missing flag: --tenant NAME")
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
			s.Warnf("this is the first key: from now on every request needs a key")
		}
		return printKey(s, k, text, *output)
	})
}

func newKeySetCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "set ID", Short: "Change the limits of a key",
		Long: "Change the limits, models and tiers of a key. Settings without a flag stay unchanged.",
		Example: `  pulley key set 4k7qz2m9xa --rpm 1200
  pulley key set 4k7qz2m9xa --models '' --expires 0`,
		ValidArgsFunction: cli.Complete(c, 1, liveKeys),
	}
	fs := cmd.Flags()
	limits := addLimitFlags(cmd, c)
	return cli.Action(cmd, c, func(s *cli.Session) error {
		store, k, err := findUsableKey(s, s.Args[0])
		if err != nil {
			return err
		}
		before := k
		limits.set(&k, fs)
		if err := checkKey(s, &k); err != nil {
			return err
		}
		if reflect.DeepEqual(k, before) {
			fmt.Fprintf(s.Cmd.ErrOrStderr(), "key %s of tenant %s unchanged\n", k.ID, term.Printable(k.Tenant))
			return nil
		}
		return putKey(s, store, k, "changed")
	})
}

func newKeyRotateCommand(c *cli.ConnectFlags) *cobra.Command {
	var overlap time.Duration
	cmd := &cobra.Command{
		Use: "rotate ID", Short: "Give a key a new secret",
		Long: `Give a key a new secret and print the new key, this once. Its id and limits stay the
same. The old secret works for the time of --overlap; without --overlap it stops
working at once.`,
		Example: `  pulley key rotate 4k7qz2m9xa --overlap 24h
  pulley key rotate 4k7qz2m9xa --force      # the old secret has leaked`,
		ValidArgsFunction: cli.Complete(c, 1, liveKeys),
	}
	fs := cmd.Flags()
	fs.DurationVar(&overlap, "overlap", 0, "how long the old secret keeps working")
	output := cli.AddOutput(cmd, cli.Text, cli.JSON, cli.YAML)
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		if overlap < 0 {
			return cli.Usagef("--overlap %v: must not be negative", overlap)
		}
		store, k, err := findUsableKey(s, s.Args[0])
		if err != nil {
			return err
		}
		event := "rotated"
		if overlap == 0 {
			if err := s.Confirm("rotate key %s of tenant %s; its old secret stops working at once", k.ID, term.Printable(k.Tenant)); err != nil {
				return err
			}
			k.OldHash, k.OldUntil = "", time.Time{}
		} else {
			k.OldHash, k.OldUntil = k.Hash, time.Now().UTC().Add(overlap).Truncate(time.Second)
			event += ", the old secret works until " + term.Clock(k.OldUntil)
		}
		var text string
		text, k.Hash = newKey(k.ID)
		if err := putKey(s, store, k, event); err != nil {
			return err
		}
		return printKey(s, k, text, *output)
	})
}

func newKeyRemoveCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm ID...", Aliases: []string{"remove", "revoke"}, Short: "Revoke keys",
		Long: `Revoke keys: within a second no gateway accepts them. Running requests continue. A
revoked key cannot be restored.`,
		Example:           `  pulley key rm 4k7qz2m9xa`,
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
			what := fmt.Sprintf("key %s of tenant %s", k.ID, term.Printable(k.Tenant))
			if k.Damage != "" {
				what = "damaged key " + k.ID
			}
			if err := s.Confirm("revoke %s", what); err != nil {
				return err
			}
			if err := store.RemoveKey(s.Context(), k.ID); err != nil {
				return err
			}
			publishEvent(s, subjects.Event{Kind: subjects.EventKey, Tenant: k.Tenant, Text: "key " + k.ID + " removed"})
			s.Printf("%s revoked", what)
		}
		left, err := store.Keys(s.Context())
		if err == nil && len(left) == 0 {
			s.Warnf("that was the last key: running gateways refuse every client until there is another key, or until they are restarted")
		}
		return nil
	})
}

type limitFlags struct {
	key     policy.Key
	expires time.Duration
}

// set changes the limits of k for which flags were given.
func (l *limitFlags) set(k *policy.Key, fs *pflag.FlagSet) {
	override(fs.Changed("tier"), &k.Tiers, l.key.Tiers)
	override(fs.Changed("models"), &k.Models, l.key.Models)
	override(fs.Changed("rpm"), &k.RPM, l.key.RPM)
	override(fs.Changed("tpm"), &k.TPM, l.key.TPM)
	override(fs.Changed("concurrency"), &k.Concurrency, l.key.Concurrency)
	override(fs.Changed("max-queue-share"), &k.MaxQueueShare, l.key.MaxQueueShare)
	override(fs.Changed("explain"), &k.Explain, l.key.Explain)
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
	fs.StringSliceVar(&l.key.Tiers, "tier", nil, "`tiers` that requests may ask for, separated by commas; the first serves requests that ask for none (default standard and the tiers after it)")
	fs.StringSliceVar(&l.key.Models, "models", nil, "`models` that requests may ask for, separated by commas; a trailing * matches any ending (default all)")
	fs.IntVar(&l.key.RPM, "rpm", 0, "requests per minute; 0: no limit")
	fs.IntVar(&l.key.TPM, "tpm", 0, "tokens per minute, input and output; 0: no limit")
	fs.IntVar(&l.key.Concurrency, "concurrency", 0, "requests in flight at the same time; 0: no limit")
	fs.Var((*percentValue)(&l.key.MaxQueueShare), "max-queue-share", "`percent` of a queue that the tenant's requests may fill; 0: all of it")
	fs.BoolVar(&l.key.Explain, "explain", false, "clients may ask with x-pulley-explain: 1 which worker served a request, and why")
	fs.DurationVar(&l.expires, "expires", 0, "how long from now the key works; 0: forever")
	cmd.RegisterFlagCompletionFunc("tier", cli.CompleteFlag(c, liveTiers))
	cmd.RegisterFlagCompletionFunc("models", cli.CompleteFlag(c, livePools))
	return l
}

// checkKey refuses a key that is not valid, or that names tiers which do not exist.
func checkKey(s *cli.Session, k *policy.Key) error {
	if err := k.Check(); err != nil {
		return explainInvalid(s, err)
	}
	if !k.Expires.IsZero() && k.Expires.Before(time.Now()) {
		return cli.Usagef("--expires: must be more than 0, or 0 for a key that does not expire")
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

// findKey returns the key with an id, or with the only id that begins so.
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
		return nil, policy.Key{}, cli.Usagef("use the id of the key, the part after %s: keys must not appear on a command line", keyPrefix)
	}
	ids := slices.Sorted(maps.Keys(keys))
	found := fleet.FirstMatches(ids, func(id string) bool { return named != "" && strings.HasPrefix(id, named) })
	switch len(found) {
	case 0:
		return nil, policy.Key{}, cli.NoSuch("key", named, ids)
	case 1:
		return store, keys[found[0]], nil
	}
	return nil, policy.Key{}, cli.Ambiguous("key", named, found)
}

// findUsableKey is findKey for keys that are to be changed.
func findUsableKey(s *cli.Session, named string) (*policystore.Store, policy.Key, error) {
	store, k, err := findKey(s, named)
	if err == nil && k.Damage != "" {
		err = cli.Refusedf("key %s is damaged: %s; remove it with 'pulley key rm %s'", k.ID, k.Damage, k.ID)
	}
	return store, k, err
}

// putKey stores a key, and publishes and prints what has happened to it.
func putKey(s *cli.Session, store *policystore.Store, k policy.Key, event string) error {
	if err := store.PutKey(s.Context(), k); err != nil {
		return err
	}
	publishEvent(s, subjects.Event{Kind: subjects.EventKey, Tenant: k.Tenant, Text: "key " + k.ID + " " + event})
	fmt.Fprintf(s.Cmd.ErrOrStderr(), "key %s of tenant %s %s\n", k.ID, term.Printable(k.Tenant), event)
	return nil
}

// keyLine is a line of pulley key ls: a key without its hashes.
type keyLine struct {
	ID            string    `json:"id"`
	Tenant        string    `json:"tenant"`
	State         string    `json:"state"` // active, rotating, expired or damaged
	Tiers         []string  `json:"tiers,omitempty"`
	Models        []string  `json:"models,omitempty"`
	RPM           int       `json:"rpm,omitempty"`
	TPM           int       `json:"tpm,omitempty"`
	Concurrency   int       `json:"concurrency,omitempty"`
	MaxQueueShare int       `json:"max_queue_share,omitempty"`
	Explain       bool      `json:"explain,omitempty"`
	Created       time.Time `json:"created"`
	Expires       time.Time `json:"expires,omitzero"`
	OldUntil      time.Time `json:"old_until,omitzero"`
}

func keyLineOf(k policy.Key, now time.Time) keyLine {
	l := keyLine{ID: k.ID, Tenant: k.Tenant, State: "active", Tiers: k.Tiers, Models: k.Models, RPM: k.RPM, TPM: k.TPM,
		Concurrency: k.Concurrency, MaxQueueShare: k.MaxQueueShare, Explain: k.Explain, Created: k.Created, Expires: k.Expires}
	if k.OldHash != "" && k.OldUntil.After(now) {
		l.State, l.OldUntil = "rotating", k.OldUntil
	}
	if !k.Expires.IsZero() && !k.Expires.After(now) {
		l.State = "expired"
	}
	if k.Damage != "" {
		l.State = "damaged"
	}
	return l
}

func newKeyListCommand(c *cli.ConnectFlags) *cobra.Command {
	var tenant string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the keys",
		Long: "List the keys by tenant. Secrets cannot be shown: only their hashes are stored.",
		Example: `  pulley key ls
  pulley key ls --tenant acme -o wide`,
	}
	cli.NameFlag(cmd, c, &tenant, "tenant", "only this `tenant`", liveTenants)
	return cli.Listing(cmd, c, func(s *cli.Session) (cli.View, error) {
		keys, err := fleet.Keys(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
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
		return cli.View{Value: list, Print: func(p *term.Page) {
			t := term.Table{
				Columns: []term.Column{term.Fixed("ID"), term.Text("TENANT"), term.Styled(term.Fixed("STATE"), fleet.StateStyle), term.Text("TIERS"), term.Text("MODELS"), term.Number("RPM"), term.Number("TPM"),
					term.Number("CONCURRENCY"), term.Wide(term.Number("MAX QUEUE SHARE")), term.Wide(term.Fixed("CREATED")), term.Number("EXPIRES"), term.Wide(term.Fixed("OLD UNTIL"))},
				Empty: "no keys: create one with 'pulley key add --tenant NAME'",
			}
			if len(keys) > 0 {
				t.Empty = fmt.Sprintf("no keys of tenant %s", term.Printable(tenant))
			}
			for _, k := range list {
				expires := ""
				if !k.Expires.IsZero() {
					expires = term.Age(k.Expires.Sub(now))
				}
				t.Row(k.ID, k.Tenant, k.State, term.Join(k.Tiers), term.Join(k.Models), term.NonZero(k.RPM), term.NonZero(k.TPM), term.NonZero(k.Concurrency),
					percentOr(k.MaxQueueShare), term.Clock(k.Created), expires, term.Clock(k.OldUntil))
			}
			p.Table(t)
		}}, nil
	})
}

func newKeyInfoCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "info ID...", Short: "Describe keys",
		Long:              "Describe a key: its limits, and what its tenant has in progress. Secrets are not kept.",
		Example:           `  pulley key info 4k7qz2m9xa`,
		ValidArgsFunction: cli.Complete(c, 0, liveKeys),
	}
	return cli.Describing(cmd, c, func(s *cli.Session, named string) (cli.View, error) {
		_, k, err := findKey(s, named)
		if err != nil {
			return cli.View{}, err
		}
		requests, err := fleet.Requests(s.Context(), s.NC)
		if err != nil && !errors.Is(err, fleet.ErrNoGateway) {
			return cli.View{}, err
		}
		waiting, running := 0, 0
		for _, r := range requests {
			switch {
			case r.Tenant != k.Tenant:
			case r.State == "queued":
				waiting++
			default:
				running++
			}
		}
		l := keyLineOf(k, time.Now())
		value := struct {
			keyLine
			Damage   string `json:"damage,omitempty"`
			Waiting  int    `json:"tenant_waiting"`
			InFlight int    `json:"tenant_in_flight"`
		}{l, k.Damage, waiting, running}
		return cli.View{Value: value, Print: func(p *term.Page) {
			none := func(n int, unit string) string {
				if n == 0 {
					return "no limit"
				}
				return fmt.Sprintf("%d %s", n, unit)
			}
			expires := "never"
			if !l.Expires.IsZero() {
				expires = fmt.Sprintf("%s, in %s", term.Clock(l.Expires), term.Age(time.Until(l.Expires)))
			}
			old := ""
			if !l.OldUntil.IsZero() {
				old = "works until " + term.Clock(l.OldUntil)
			}
			p.Fields(
				term.KV("key", l.ID, term.Bold),
				term.KV("tenant", l.Tenant),
				term.KV("state", l.State, fleet.StateStyle(l.State)),
				term.KV("damage", k.Damage),
				term.KV("tiers", cmp.Or(strings.Join(l.Tiers, ", "), "standard and the tiers after it")),
				term.KV("models", cmp.Or(strings.Join(l.Models, ", "), "all")),
				term.KV("requests", none(l.RPM, "per minute")),
				term.KV("tokens", none(l.TPM, "per minute")),
				term.KV("concurrency", none(l.Concurrency, "requests in flight")),
				term.KV("max queue share", percentOr(l.MaxQueueShare)),
				term.KV("explain", map[bool]string{true: "on x-pulley-explain: 1"}[l.Explain]),
				term.KV("created", term.Clock(l.Created)),
				term.KV("expires", expires),
				term.KV("old secret", old),
				term.KV("tenant has now", fmt.Sprintf("%d waiting, %d in flight", waiting, running)),
			)
		}}, nil
	})
}

// keyPrefix begins every key.
const keyPrefix = "sk-pulley-"

// newKey creates the text of a key with an id, from 256 random bits, and its hash.
func newKey(id string) (text, hash string) {
	var secret [32]byte
	rand.Read(secret[:])
	// The secret may contain '-', so it follows the id, which does not.
	text = keyPrefix + id + "-" + base64.RawURLEncoding.EncodeToString(secret[:])
	sum := sha256.Sum256([]byte(text))
	return text, hex.EncodeToString(sum[:])
}

// newKeyID creates the id of a key, its public part.
func newKeyID() string {
	return strings.ToLower(rand.Text()[:10])
}

// madeKey is a new key, as it is printed once.
type madeKey struct {
	ID     string `json:"id"`
	Tenant string `json:"tenant"`
	Key    string `json:"key"`
}

// printKey prints a new key. Standard output has the key alone, for scripts.
func printKey(s *cli.Session, k policy.Key, text, format string) error {
	made := madeKey{k.ID, k.Tenant, text}
	if format != cli.Text {
		return cli.Show(s.Cmd, cli.View{Value: made}, format)
	}
	fmt.Fprintf(s.Cmd.ErrOrStderr(), "key %s of tenant %s; it is not shown again:\n", k.ID, term.Printable(k.Tenant))
	s.Printf("%s", text)
	return nil
}
