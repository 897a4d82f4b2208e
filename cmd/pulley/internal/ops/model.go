package ops

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
)

func newModelCommand() *cobra.Command {
	return cli.Noun("model", "What clients may ask for: list, describe", `A model is the name that a client puts into "model". A route says which pools serve
it; without a route that is the pool of the same name.

Terms: docs/concepts.md`,
		newModelListCommand, newModelInfoCommand)
}

// model is what serves the requests for a model. Its JSON is what pulley model ls -o json prints.
type model struct {
	Model    string          `json:"model"`
	State    string          `json:"state"` // ready, paused or no worker
	Route    string          `json:"route,omitempty"`
	To       []policy.Target `json:"to"`
	Fallback []string        `json:"fallback,omitempty"`
	Workers  int             `json:"workers"` // that accept requests
	Slots    int             `json:"slots"`
	InFlight int             `json:"in_flight"` // of its pools, for other models too
	Waiting  uint64          `json:"waiting"`   // of its pools
	Context  int64           `json:"context,omitempty"`

	applies *policy.Route
	pools   []fleet.Pool
}

// modelOf returns what serves a model.
func modelOf(name string, r *policy.Router, pools map[string]fleet.Pool) model {
	m := model{Model: name, State: "no worker", To: []policy.Target{{Pool: name, Weight: 100}}}
	if pattern, route := r.Find(name); route != nil {
		m.Route, m.applies, m.Fallback = pattern, route, route.Fallback
		m.To = slices.DeleteFunc(slices.Clone(route.To), func(t policy.Target) bool { return t.Weight == 0 })
	}
	for _, t := range m.To {
		p, known := pools[t.Pool]
		if !known {
			continue
		}
		m.pools = append(m.pools, p)
		m.Workers += p.Live
		m.Slots += p.Slots
		m.InFlight += p.InFlight
		m.Waiting += p.Waiting
		if p.State != "no worker" && m.State != "ready" {
			m.State = p.State
		}
		for _, h := range p.Members {
			if n := statusOf(h, p.Pool).Length; n > 0 && n < policy.AnyLength {
				m.Context = max(m.Context, n)
			}
		}
	}
	return m
}

// models returns all models by name: those that have a route, and those that are pools of their own.
func models(s *cli.Session) (list []model, find func(name string) model, err error) {
	all, p, err := fleet.Pools(s.Context(), s.NC)
	if err != nil {
		return nil, nil, err
	}
	pools, names := make(map[string]fleet.Pool), make(map[string]bool)
	for _, pool := range all {
		pools[pool.Pool] = pool
		names[pool.Pool] = true
	}
	for name := range p.Routes {
		if !strings.HasSuffix(name, "*") {
			names[name] = true
		}
	}
	router := policy.NewRouter(p)
	find = func(name string) model { return modelOf(name, router, pools) }
	list = []model{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		list = append(list, find(name))
	}
	return list, find, nil
}

func newModelListCommand(c *cli.ConnectFlags) *cobra.Command {
	return cli.Listing(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the models",
		Long: `List the models: those that have a route, and the pools, each of which serves the
model of its name. Workers, slots and requests are those of the pools that serve it.
Models that match only a pattern such as gpt-* are not listed.`,
		Example: `  pulley model ls
  pulley model ls -o json | jq -r '.[] | select(.state == "ready").model'`,
	}, c, func(s *cli.Session) (cli.View, error) {
		list, _, err := models(s)
		if err != nil {
			return cli.View{}, err
		}
		return cli.View{Value: list, Print: func(p *term.Page) {
			t := term.Table{
				Columns: []term.Column{term.Text("MODEL"), term.Styled(term.Fixed("STATE"), fleet.StateStyle), {Name: "SERVED BY", MinWidth: 20}, term.Number("WORKERS"), term.Number("SLOTS"), term.Number("IN FLIGHT"), term.Number("WAITING"),
					term.NonEmpty(term.Number("CONTEXT")), term.Wide(term.Text("ROUTE"))},
				Empty: "no models: they appear with the first worker",
			}
			for _, m := range list {
				t.Row(m.Model, m.State, targets(m.To), m.Workers, m.Slots, m.InFlight, m.Waiting, term.NonZero(int(m.Context)), m.Route)
			}
			p.Table(t)
		}}, nil
	})
}

func newModelInfoCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "info MODEL...", Short: "Describe models",
		Long: `Describe a model as a client would ask for it: the route that applies, the pools and
the workers that serve it now, and what happens if none does.`,
		Example:           `  pulley model info gpt-4o`,
		ValidArgsFunction: cli.Complete(c, 0, liveModels),
	}
	return cli.Describing(cmd, c, func(s *cli.Session, name string) (cli.View, error) {
		list, find, err := models(s)
		if err != nil {
			return cli.View{}, err
		}
		m := find(name)
		if m.Route == "" && len(m.pools) == 0 {
			return cli.View{}, cli.NoSuch("model", name, fleet.NamesOf(list, func(m model) string { return m.Model }))
		}
		return cli.View{Value: m, Print: func(p *term.Page) { printModel(p, m) }}, nil
	})
}

func printModel(p *term.Page, m model) {
	route := "none: it is served by the pool of its name"
	if m.Route != "" {
		route = m.Route
	}
	context := ""
	if m.Context > 0 {
		context = fmt.Sprintf("%d tokens of a prompt with its answer, at most", m.Context)
	}
	fields := []term.Field{
		term.KV("model", m.Model, term.Bold),
		term.KV("state", m.State, fleet.StateStyle(m.State)),
		term.KV("route", route),
		term.KV("served by", cmp.Or(targets(m.To), "no pool")),
		term.KV("fallback", strings.Join(m.Fallback, ", ")),
		term.KV("context", context),
	}
	if m.applies != nil {
		fields = append(fields, routeFields(*m.applies)...)
	}
	p.Fields(fields...)
	p.Heading("workers")
	t := term.Table{Columns: []term.Column{term.Text("POOL"), term.Text("NAME"), term.Styled(term.Fixed("STATE"), fleet.StateStyle), term.Number("IN FLIGHT"), term.Number("SLOTS"), term.NonEmpty(term.Text("ENGINE'S MODEL")), term.NonEmpty(term.Column{Name: "REASON", MinWidth: 12})},
		Empty: "none: requests wait for --no-worker-wait of the gateway, then get 503"}
	for _, pool := range m.pools {
		for _, h := range pool.Members {
			own := statusOf(h, pool.Pool).Model
			if own == m.Model {
				own = ""
			}
			t.Row(pool.Pool, h.Name, h.State, h.InFlight, h.Slots, own, h.Reason)
		}
	}
	p.Table(t)
}
