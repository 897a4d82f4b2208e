package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/background"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

func newResponseCommand() *cobra.Command {
	return cli.Noun("response", "Background responses: list, describe, cancel", `Background responses are requests whose clients do not wait: they were sent with
"background": true, or with the header Prefer: respond-async. A response is named by
its id, or by a unique beginning or end of it.`,
		newResponseListCommand, newResponseInfoCommand, newResponseCancelCommand)
}

var responseStatuses = []string{"queued", "in_progress", "completed", "failed", "cancelled", "incomplete"}

func newResponseListCommand(c *cli.ConnectFlags) *cobra.Command {
	var tenant, status string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the background responses",
		Long: "List the background responses that are stored, the oldest first.",
		Example: `  pulley response ls
  pulley response ls --status in_progress --watch
  pulley response ls --tenant acme -o json`,
	}
	fs := cmd.Flags()
	cli.NameFlag(cmd, c, &tenant, "tenant", "only this `tenant`", liveTenants)
	fs.StringVar(&status, "status", "", "only this `status`: "+strings.Join(responseStatuses, ", "))
	cli.CompleteFixed(cmd, "status", responseStatuses...)
	return cli.Listing(cmd, c, func(s *cli.Session) (cli.View, error) {
		if status != "" && !slices.Contains(responseStatuses, status) {
			return cli.View{}, cli.Usagef("--status %q: must be one of %s", status, strings.Join(responseStatuses, ", "))
		}
		list, err := allResponses(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		all := len(list)
		list = slices.DeleteFunc(list, func(r *background.Response) bool {
			return tenant != "" && r.Tenant != tenant || status != "" && string(r.Status) != status
		})
		return cli.View{Value: list, Print: func(p *term.Page) {
			t := term.Table{
				Columns: []term.Column{{Name: "ID", MinWidth: 13, KeepEnd: true}, term.Styled(term.Fixed("STATUS"), fleet.StateStyle), term.Text("MODEL"), term.NonEmpty(term.Text("TENANT")), term.Number("AGE"), term.Number("RUNS"),
					term.Wide(term.Text("PATH")), term.Wide(term.NonEmpty(term.Text("KEY"))), term.NonEmpty(term.Text("ERROR"))},
				Empty: "no background responses",
			}
			if all > 0 {
				t.Empty = fmt.Sprintf("none of %s matches", term.Count(all, "background response"))
			}
			for _, r := range list {
				t.Row(r.ID, string(r.Status), r.Model, r.Tenant, term.Ago(r.Created), r.Runs, r.Path, r.Key, r.Error)
			}
			p.Table(t)
		}}, nil
	})
}

func allResponses(ctx context.Context, nc *nats.Conn) ([]*background.Response, error) {
	store, err := background.OpenStore(nc)
	if err != nil {
		return nil, err
	}
	return store.List(ctx, "", true)
}

// liveResponses lists the background responses that have not ended.
func liveResponses(ctx context.Context, nc *nats.Conn) (names []string, err error) {
	list, err := allResponses(ctx, nc)
	for _, r := range list {
		if !r.Status.Final() {
			names = append(names, described(r.ID, "%s, %s", r.Status, r.Model))
		}
	}
	return names, err
}

// findResponse finds a background response by its id, or by a unique beginning or end of it.
func findResponse(s *cli.Session, named string) (*background.Response, error) {
	list, err := allResponses(s.Context(), s.NC)
	if err != nil {
		return nil, err
	}
	var found []*background.Response
	for _, r := range list {
		if r.ID == named {
			return r, nil
		}
		if strings.HasPrefix(r.ID, named) || strings.HasSuffix(r.ID, named) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return nil, noResponse(named)
	case 1:
		return found[0], nil
	}
	return nil, cli.Usagef("%q: %d background responses begin or end with it", named, len(found))
}

func noResponse(named string) error {
	return cli.NotFoundf("no background response %s; see 'pulley response ls'", named)
}

// storedResponse is a response whose JSON has its content, if that was asked for.
type storedResponse struct {
	*background.Response
	Content json.RawMessage `json:"content,omitempty"`
}

func newResponseInfoCommand(c *cli.ConnectFlags) *cobra.Command {
	var showBody bool
	cmd := &cobra.Command{
		Use: "info ID...", Short: "Describe background responses", Long: "Describe a background response. Its content is shown only with --show-body.",
		Example: `  pulley response info resp_5f0c
  pulley response info resp_5f0c --show-body`,
		ValidArgsFunction: cli.Complete(c, 0, liveResponses),
	}
	cmd.Flags().BoolVar(&showBody, "show-body", false, "also show what its client gets")
	return cli.Describing(cmd, c, func(s *cli.Session, named string) (cli.View, error) {
		r, err := findResponse(s, named)
		if err != nil {
			return cli.View{}, err
		}
		v := storedResponse{Response: r}
		if showBody {
			store, err := background.OpenStore(s.NC)
			if err != nil {
				return cli.View{}, err
			}
			if r, err = store.Load(s.Context(), r.Tenant, r.ID); errors.Is(err, background.ErrNotFound) {
				return cli.View{}, noResponse(named)
			} else if err != nil {
				return cli.View{}, err
			}
			object, err := store.Object(s.Context(), r)
			if err != nil {
				return cli.View{}, err
			}
			v = storedResponse{r, object}
		}
		return cli.View{Value: v, Print: func(p *term.Page) {
			ended := ""
			if !r.Ended.IsZero() {
				ended = fmt.Sprintf("%s, %s ago", term.Clock(r.Ended), term.Ago(r.Ended))
			}
			p.Fields(
				term.KV("response", r.ID, term.Bold),
				term.KV("status", string(r.Status), fleet.StateStyle(string(r.Status))),
				term.KV("error", r.Error, term.Red),
				term.KV("model", r.Model),
				term.KV("path", r.Path),
				term.KV("tenant", r.Tenant),
				term.KV("key", r.Key),
				term.KV("accepted", fmt.Sprintf("%s, %s ago", term.Clock(r.Created), term.Ago(r.Created))),
				term.KV("runs", fmt.Sprintf("%d (%d broke off)", r.Runs, r.Broken)),
				term.KV("ended", ended),
			)
			if showBody {
				printBody(p, string(v.Content), int64(len(v.Content)))
			}
		}}, nil
	})
}

func newResponseCancelCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "cancel ID...", Short: "Cancel background responses",
		Long: `Cancel background responses: each that has not ended does not run, or stops on its
worker. Nothing is cancelled if one of them does not exist.`,
		Example:           `  pulley response cancel resp_5f0c`,
		ValidArgsFunction: cli.Complete(c, 0, liveResponses),
	}
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		var list []*background.Response
		var ids []string
		for _, named := range s.Args {
			r, err := findResponse(s, named)
			if err != nil {
				return err
			}
			list, ids = append(list, r), append(ids, r.ID)
		}
		if err := s.Confirm("cancel %s", counted("background response", ids)); err != nil {
			return err
		}
		store, err := background.OpenStore(s.NC)
		if err != nil {
			return err
		}
		for _, r := range list {
			now, err := store.Cancel(s.Context(), r.Tenant, r.ID)
			switch {
			case errors.Is(err, background.ErrNotFound):
				return noResponse(r.ID)
			case err != nil:
				return fmt.Errorf("cancel background response %s: %w", r.ID, err)
			case now.Status != background.Cancelled:
				s.Printf("background response %s has ended: %s", r.ID, now.Status)
			default:
				s.Printf("background response %s cancelled", r.ID)
			}
		}
		return nil
	})
}
