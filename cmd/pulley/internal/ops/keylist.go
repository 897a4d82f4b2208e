package ops

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
)

// keyLine is a line of pulley key ls: a key without its hashes.
type keyLine struct {
	ID            string    `json:"id"`
	Tenant        string    `json:"tenant"`
	State         string    `json:"state"` // active, rotating or expired
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

func newKeyListCommand(c *cli.ConnectFlags) *cobra.Command {
	var tenant string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the keys",
		Long: "List the keys by tenant. Secrets cannot be shown: only their hashes are stored.",
		Example: `  pulley key ls
  pulley key ls --tenant acme -o wide`,
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&tenant, "tenant", "", "only this `tenant`")
	cmd.RegisterFlagCompletionFunc("tenant", cli.CompleteFlag(c, liveTenants))
	return cli.Listing(cmd, c, func(s *cli.Session) (cli.View, error) {
		store, err := fleet.OpenStore(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		keys, err := store.Keys(s.Context())
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
