package ops

import (
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

func newRequestCommand() *cobra.Command {
	return cli.Noun("request", "Requests in progress: list, describe, cancel", `The requests that gateways hold now: queued, running on a worker, or answering.
A request is named by its id (x-pulley-request-id), by a unique beginning or end of
it, or by the x-request-id that its client sent.`,
		newRequestListCommand, newRequestInfoCommand, newRequestCancelCommand)
}

var requestStates = []string{"queued", "running", "answering"}

func newRequestListCommand(c *cli.ConnectFlags) *cobra.Command {
	var pool, tier, tenant, worker, state string
	var older time.Duration
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the requests in progress",
		Long: "List the requests in progress, the oldest first.",
		Example: `  pulley request ls
  pulley request ls --state queued --older 30s --watch
  pulley request ls --tenant acme -o json`,
	}
	fs := cmd.Flags()
	cli.NameFlag(cmd, c, &pool, "pool", "only this `pool`", livePools)
	cli.NameFlag(cmd, c, &tier, "tier", "only this `tier`", liveTiers)
	fs.StringVar(&tenant, "tenant", "", "only this `tenant`")
	cli.NameFlag(cmd, c, &worker, "worker", "only on this `worker`", liveWorkers)
	fs.StringVar(&state, "state", "", "only this `state`: queued, running or answering")
	fs.DurationVar(&older, "older", 0, "only requests that are at least this old")
	cli.CompleteFixed(cmd, "state", requestStates...)
	return cli.Listing(cmd, c, func(s *cli.Session) (cli.View, error) {
		if state != "" && !slices.Contains(requestStates, state) {
			return cli.View{}, cli.Usagef("--state %q: must be queued, running or answering", state)
		}
		list, err := fleet.Requests(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		all := len(list)
		list = slices.DeleteFunc(list, func(r subjects.RequestInfo) bool {
			return pool != "" && r.Pool != pool || tier != "" && r.Tier != tier || tenant != "" && r.Tenant != tenant ||
				worker != "" && r.Worker != worker || state != "" && r.State != state || r.AgeMS < older.Milliseconds()
		})
		return cli.View{Value: list, Print: func(p *term.Page) {
			t := term.Table{
				Columns: []term.Column{{Name: "ID", MinWidth: 13, KeepEnd: true}, term.Text("POOL"), term.Wide(term.Text("MODEL")), term.Text("TIER"), term.NonEmpty(term.Text("TENANT")), term.Styled(term.Fixed("STATE"), fleet.StateStyle),
					term.Text("WORKER"), term.Number("ATTEMPT"), term.Number("QUEUED"), term.Number("AGE"), term.Number("BYTES OUT"), term.Wide(term.NonEmpty(term.Text("CLIENT ID"))), term.Wide(term.Text("PATH")), term.Wide(term.Text("GATEWAY"))},
				Empty: "no requests",
			}
			if all > 0 {
				t.Empty = fmt.Sprintf("none of %s matches", term.Count(all, "request"))
			}
			for _, r := range list {
				t.Row(r.ID, r.Pool, r.Model, r.Tier, r.Tenant, r.State, r.Worker, r.Attempt, fleet.Millis(r.QueueMS), fleet.Millis(r.AgeMS), term.Bytes(r.BytesOut), r.ClientID, r.Path, r.Gateway)
			}
			p.Table(t)
		}}, nil
	})
}

func newRequestInfoCommand(c *cli.ConnectFlags) *cobra.Command {
	var showBody bool
	cmd := &cobra.Command{
		Use: "info ID...", Short: "Describe requests", Long: "Describe a request in progress. Its prompt is shown only with --show-body.",
		Example: `  pulley request info 0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a901
  pulley request info 3f1c5be2a901 --show-body
  pulley request info my-own-x-request-id`,
		ValidArgsFunction: cli.Complete(c, 0, liveRequests),
	}
	cmd.Flags().BoolVar(&showBody, "show-body", false, showBodyHelp)
	return cli.Describing(cmd, c, func(s *cli.Session, named string) (cli.View, error) {
		id, err := fleet.FindRequest(s.Context(), s.NC, named)
		if err != nil {
			return cli.View{}, err
		}
		r, err := fleet.CallRequest[subjects.RequestDetail](s.Context(), s.NC, subjects.AskRequest, subjects.RequestQuery{ID: id, By: s.User(), Body: showBody})
		if err != nil {
			return cli.View{}, err
		}
		r.Header = fleet.WithoutSecrets(r.Header)
		return cli.View{Value: detail{r, string(r.Body)}, Print: func(p *term.Page) { printRequest(p, r, showBody) }}, nil
	})
}

// detail is a request whose JSON has the body as text.
type detail struct {
	subjects.RequestDetail
	Body string `json:"body,omitempty"`
}

func printRequest(p *term.Page, r subjects.RequestDetail, showBody bool) {
	kind := "complete answer"
	if r.Stream {
		kind = "stream"
	}
	p.Fields(
		term.KV("request", r.ID, term.Bold),
		term.KV("client's id", r.ClientID),
		term.KV("state", r.State, fleet.StateStyle(r.State)),
		term.KV("model", r.Model),
		term.KV("pool", r.Pool),
		term.KV("tier", r.Tier),
		term.KV("lane", r.Lane),
		term.KV("tenant", r.Tenant),
		term.KV("worker", r.Worker),
		term.KV("attempt", fmt.Sprintf("%d (%d failed, %d refused)", r.Attempt, r.Failures, r.Refusals)),
		term.KV("arrived", fmt.Sprintf("%s, %s ago", term.Clock(r.Arrived), term.Age(fleet.Millis(r.AgeMS)))),
		term.KV("queued for", term.Age(fleet.Millis(r.QueueMS))),
		term.KV("deadline", fmt.Sprintf("%s, in %s", term.Clock(r.Deadline), term.Age(time.Until(r.Deadline)))),
		term.KV("path", r.Path),
		term.KV("response", kind),
		term.KV("body", fmt.Sprintf("%s, about %d tokens", term.Bytes(r.BodySize), r.InputTokens)),
		term.KV("bytes out", term.Bytes(r.BytesOut)),
		term.KV("gateway", r.Gateway),
	)
	printHeaders(p, r.Header)
	if showBody {
		printBody(p, string(r.Body), r.BodySize)
		if int64(len(r.Body)) < r.BodySize {
			p.Line("(the first %s of %s)", term.Bytes(int64(len(r.Body))), term.Bytes(r.BodySize))
		}
	}
}

func newRequestCancelCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "cancel ID...", Short: "Cancel requests",
		Long: `Cancel requests: remove each from its queue, or stop it on its worker. Its client
gets an error. Nothing is cancelled if one of them does not exist.`,
		Example:           `  pulley request cancel 0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a901`,
		ValidArgsFunction: cli.Complete(c, 0, liveRequests),
	}
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		var ids []string
		for _, named := range s.Args {
			id, err := fleet.FindRequest(s.Context(), s.NC, named)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		if err := s.Confirm("cancel %s", counted("request", ids)); err != nil {
			return err
		}
		return eachOf(ids, func(id string) error {
			o, err := fleet.CallRequest[subjects.Outcome](s.Context(), s.NC, subjects.DoCancel, subjects.RequestQuery{ID: id, By: s.User()})
			if err != nil {
				return err
			}
			if o.Error != "" {
				return cli.Refusedf("request %s: %s", id, o.Error)
			}
			s.Printf("request %s cancelled", id)
			return nil
		})
	})
}
