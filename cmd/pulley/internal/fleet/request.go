package fleet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

// Requests returns the requests in progress at all gateways, the oldest first.
func Requests(ctx context.Context, nc *nats.Conn) ([]subjects.RequestInfo, error) {
	list, err := AskAll[subjects.RequestInfo](ctx, nc, subjects.AskRequests)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, ErrNoGateway
	}
	if err != nil {
		return nil, fmt.Errorf("ask the gateways: %w", err)
	}
	slices.SortFunc(list, func(a, b subjects.RequestInfo) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// FindRequest returns the id of a request, which may be given by the beginning or the end of it, or by the client's own
// x-request-id.
func FindRequest(ctx context.Context, nc *nats.Conn, named string) (string, error) {
	part := strings.ToLower(strings.TrimPrefix(named, "…"))
	list, err := Requests(ctx, nc)
	if err != nil {
		return "", err
	}
	ids := NamesOf(list, func(r subjects.RequestInfo) string { return r.ID })
	if slices.Contains(ids, named) {
		return named, nil
	}
	var found []string
	for _, r := range list {
		if r.ClientID == named && named != "" {
			found = append(found, r.ID)
		}
	}
	if len(found) == 0 {
		found = FirstMatches(ids, func(id string) bool {
			return part != "" && (strings.HasPrefix(id, part) || strings.HasSuffix(id, part))
		})
	}
	switch len(found) {
	case 0:
		return "", noRequest(named)
	case 1:
		return found[0], nil
	}
	return "", cli.Ambiguous("request", named, found)
}

// CallRequest sends a command about a request to the gateway that has it, and returns its answer.
func CallRequest[T any](ctx context.Context, nc *nats.Conn, subject string, query subjects.RequestQuery) (T, error) {
	answer, err := Call[T](ctx, nc, subject, query, AskTimeout)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		err = ErrNoGateway
	case errors.Is(err, ErrNoAnswer):
		err = noRequest(query.ID)
	case err != nil:
		err = fmt.Errorf("request %s: %w", query.ID, err)
	}
	return answer, err
}

func noRequest(id string) error {
	return cli.NotFoundf("no request %s in progress: it has ended, or went to another broker; see 'pulley request ls' and 'pulley dead ls'", term.Printable(id))
}

// WithoutSecrets returns a copy of h in which credentials are hidden.
func WithoutSecrets(h http.Header) http.Header {
	h = h.Clone()
	for _, k := range []string{"Authorization", "X-Api-Key", "Api-Key", "Cookie", "Proxy-Authorization"} {
		if h[k] != nil {
			h[k] = []string{"(hidden)"}
		}
	}
	return h
}

// Millis converts a number of milliseconds, as messages have them.
func Millis(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
