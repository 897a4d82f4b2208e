package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/subjects"
)

func newRequestCommand() *cobra.Command {
	return noun("request", "Requests under way: list, describe, cancel", `The requests that gateways hold now: queued, running on a worker, or already
answering. A request is named by its x-request-id, or by the beginning or end of
that if no other has the same.`,
		newRequestListCommand, newRequestInfoCommand, newRequestCancelCommand)
}

// requestStates are all there are.
var requestStates = []string{"queued", "running", "answering"}

func newRequestListCommand(c *connectFlags) *cobra.Command {
	var pool, tier, tenant, worker, state string
	var older time.Duration
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the requests under way",
		Long: "List the requests under way, the oldest first.",
		Example: `  pulley request ls
  pulley request ls --state queued --older 30s --watch
  pulley request ls --tenant acme -o json`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&pool, "pool", "", "only of this `pool`")
	fs.StringVar(&tier, "tier", "", "only of this `tier`")
	fs.StringVar(&tenant, "tenant", "", "only of this `tenant`")
	fs.StringVar(&worker, "worker", "", "only those that this `worker` has")
	fs.StringVar(&state, "state", "", "only queued, running or answering ones")
	fs.DurationVar(&older, "older", 0, "only those that came so long ago")
	cmd.RegisterFlagCompletionFunc("pool", completeFlag(c, livePools))
	cmd.RegisterFlagCompletionFunc("tier", completeFlag(c, liveTiers))
	cmd.RegisterFlagCompletionFunc("worker", completeFlag(c, liveWorkers))
	cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(requestStates, cobra.ShellCompDirectiveNoFileComp))
	return look(cmd, c, func(s *session) (view, error) {
		if state != "" && !slices.Contains(requestStates, state) {
			return view{}, usagef("--state %q: want queued, running or answering", state)
		}
		list, err := requests(s.ctx(), s.nc)
		if err != nil {
			return view{}, err
		}
		all := len(list)
		list = slices.DeleteFunc(list, func(r subjects.RequestInfo) bool {
			return pool != "" && r.Pool != pool || tier != "" && r.Tier != tier || tenant != "" && r.Tenant != tenant ||
				worker != "" && r.Worker != worker || state != "" && r.State != state || r.AgeMS < older.Milliseconds()
		})
		return view{list, func(p *page) {
			t := table{
				columns: []column{{name: "ID", cut: 13, tail: true}, text("POOL"), wide(text("MODEL")), text("TIER"), ifAny(text("TENANT")), painted(word("STATE"), paintState),
					text("WORKER"), number("ATTEMPT"), number("QUEUED"), number("AGE"), number("OUT"), wide(text("PATH")), wide(text("GATEWAY"))},
				empty: "no requests",
			}
			if all > 0 {
				t.empty = fmt.Sprintf("no such requests, of %d", all)
			}
			for _, r := range list {
				t.row(r.ID, r.Pool, r.Model, r.Tier, r.Tenant, r.State, r.Worker, r.Attempt, ms(r.QueueMS), ms(r.AgeMS), byteCount(r.BytesOut), r.Path, r.Gateway)
			}
			p.table(t)
		}}, nil
	})
}

func ms(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

// findRequest is the id of the request that was named.
func (s *session) findRequest(named string) (string, error) {
	if _, err := subjects.ParseID(named); err == nil {
		return named, nil
	}
	part := strings.ToLower(strings.TrimPrefix(named, "…"))
	list, err := requests(s.ctx(), s.nc)
	if err != nil {
		return "", err
	}
	var found []string
	for _, r := range list {
		if part != "" && (strings.HasPrefix(r.ID, part) || strings.HasSuffix(r.ID, part)) {
			found = append(found, r.ID)
		}
	}
	switch len(found) {
	case 0:
		return "", noRequest(named)
	case 1:
		return found[0], nil
	}
	return "", usagef("request %s: which of %s?", named, shorten(joined(found), 160))
}

func noRequest(id string) error {
	return notFoundf("no request %s under way: it is over, or was never here; see 'pulley request ls' and 'pulley dead ls'", printable(id))
}

func newRequestInfoCommand(c *connectFlags) *cobra.Command {
	var showBody bool
	cmd := &cobra.Command{
		Use: "info ID", Short: "Describe a request", Long: "Describe a request under way. Its prompt is shown with --show-body only.",
		Example: `  pulley request info 0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a901
  pulley request info 3f1c5be2a901 --show-body`,
		Args:              wantArgs("ID"),
		ValidArgsFunction: complete(c, 1, liveRequests),
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().BoolVar(&showBody, "show-body", false, showBodyHelp)
	return look(cmd, c, func(s *session) (view, error) {
		id, err := s.findRequest(s.args[0])
		if err != nil {
			return view{}, err
		}
		r, err := order[subjects.RequestDetail](s.ctx(), s.nc, subjects.AskRequest, subjects.RequestQuery{ID: id, By: s.who(), Body: showBody}, askWait)
		switch {
		case errors.Is(err, nats.ErrNoResponders):
			return view{}, errNoGateway
		case errors.Is(err, errSilence):
			return view{}, noRequest(id)
		case err != nil:
			return view{}, fmt.Errorf("ask for request %s: %w", id, err)
		}
		r.Header = withoutSecrets(r.Header)
		return view{detail{r, string(r.Body)}, func(p *page) { printRequest(p, r, showBody) }}, nil
	})
}

// detail shows a body as text.
type detail struct {
	subjects.RequestDetail
	Body string `json:"body,omitempty"`
}

func printRequest(p *page, r subjects.RequestDetail, showBody bool) {
	kind := "one answer"
	if r.Stream {
		kind = "a stream"
	}
	p.fields(
		field{"request", r.ID, bold},
		field{"state", r.State, paintState(r.State)},
		field{"model", r.Model, ""},
		field{"pool", r.Pool, ""},
		field{"tier", r.Tier, ""},
		field{"lane", r.Lane, ""},
		field{"tenant", r.Tenant, ""},
		field{"worker", r.Worker, ""},
		field{"attempt", fmt.Sprintf("%d (%d failed, %d refused)", r.Attempt, r.Failures, r.Refusals), ""},
		field{"arrived", fmt.Sprintf("%s, %s ago", clock(r.Arrived), age(ms(r.AgeMS))), ""},
		field{"queued for", age(ms(r.QueueMS)), ""},
		field{"deadline", fmt.Sprintf("%s, in %s", clock(r.Deadline), age(time.Until(r.Deadline))), ""},
		field{"path", r.Path, ""},
		field{"wants", kind, ""},
		field{"body", fmt.Sprintf("%s, about %d tokens", byteCount(r.BodySize), r.InputTokens), ""},
		field{"answered", byteCount(r.BytesOut), ""},
		field{"gateway", r.Gateway, ""},
	)
	p.headers(r.Header)
	if showBody {
		p.body(string(r.Body), r.BodySize)
		if int64(len(r.Body)) < r.BodySize {
			p.line("(the first %s of %s)", byteCount(int64(len(r.Body))), byteCount(r.BodySize))
		}
	}
}

// withoutSecrets is h without what opens doors.
func withoutSecrets(h http.Header) http.Header {
	h = h.Clone()
	for _, k := range []string{"Authorization", "X-Api-Key", "Api-Key", "Cookie", "Proxy-Authorization"} {
		if h[k] != nil {
			h[k] = []string{"(hidden)"}
		}
	}
	return h
}

// headers writes the headers that an engine gets.
func (p *page) headers(h http.Header) {
	if len(h) == 0 {
		return
	}
	p.heading("headers")
	var list []field
	for _, k := range slices.Sorted(maps.Keys(h)) {
		list = append(list, field{k, cmp.Or(strings.Join(h[k], ", "), "(empty)"), ""})
	}
	p.fields(list...)
}

func newRequestCancelCommand(c *connectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "cancel ID", Short: "Cancel a request",
		Long: `Cancel a request: taken out of its queue, or stopped on its worker. Its client is
told so.`,
		Example:           `  pulley request cancel 0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a901`,
		Args:              wantArgs("ID"),
		ValidArgsFunction: complete(c, 1, liveRequests),
	}
	return harm(cmd, c, func(s *session) error {
		id, err := s.findRequest(s.args[0])
		if err != nil {
			return err
		}
		if err := s.confirm("cancel request %s", id); err != nil {
			return err
		}
		o, err := order[subjects.Outcome](s.ctx(), s.nc, subjects.DoCancel, subjects.RequestQuery{ID: id, By: s.who()}, askWait)
		switch {
		case errors.Is(err, nats.ErrNoResponders):
			return errNoGateway
		case errors.Is(err, errSilence):
			return noRequest(id)
		case err != nil:
			return fmt.Errorf("cancel request %s: %w", id, err)
		case o.Error != "":
			return refusedf("request %s: %s", id, o.Error)
		}
		s.say("request %s cancelled", id)
		return nil
	})
}
