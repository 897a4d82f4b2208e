package doctor

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

const (
	// minPayload is enough for the headers of a request, and for frames of a useful
	// size.
	minPayload = 64 << 10

	// nearlyFull is the fraction of an account's storage from which on there is a
	// warning.
	nearlyFull = 0.9
)

// minServer is the first version of nats-server with prioritized pull consumers.
var minServer = []int{2, 12}

func (e *examination) findConnection() []fleet.Finding {
	if e.unreachable != nil {
		return []fleet.Finding{fleet.NewProblem(e.unreachable.Error(), "check the server and the credentials: --nats, --context, --creds")}
	}
	var found []fleet.Finding
	if !atLeast(e.version, minServer) {
		found = append(found, fleet.NewProblem(fmt.Sprintf("%s has version %s: bids need prioritized pull consumers", e.server, e.version),
			"upgrade nats-server to 2.12 or later"))
	}
	if e.maxPayload < minPayload {
		found = append(found, fleet.NewProblem(fmt.Sprintf("max_payload is %s: too small for requests and answers", term.Bytes(e.maxPayload)),
			"set max_payload in the configuration of the server to 1MB, its default"))
	}
	return found
}

// atLeast compares a version such as 2.12.3-RC.1 with a minimum. An unknown version
// passes.
func atLeast(version string, minimum []int) bool {
	var major, minor int
	if _, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor); err != nil {
		return true // missing, or a development build
	}
	return slices.Compare([]int{major, minor}, minimum) >= 0
}

func (e *examination) findDenied() []fleet.Finding {
	if len(e.denied) == 0 {
		return nil
	}
	return []fleet.Finding{fleet.NewProblem("NATS denies this user to "+strings.Join(e.denied, ", "),
		"connect as an operator (--creds, --context), or allow it in the permissions of the account; the results below are incomplete")}
}

func (e *examination) findJetStream() []fleet.Finding {
	switch {
	case errors.Is(e.accountErr, jetstream.ErrJetStreamNotEnabled), errors.Is(e.accountErr, nats.ErrNoResponders):
		return []fleet.Finding{fleet.NewProblem("JetStream is off: requests cannot be queued", "start nats-server with -js, or use 'pulley broker'")}
	case errors.Is(e.accountErr, jetstream.ErrJetStreamNotEnabledForAccount):
		return []fleet.Finding{fleet.NewProblem("JetStream is off for this account", "enable it in the configuration of the account, or connect to another account")}
	case e.accountErr != nil && len(e.denied) > 0:
		return []fleet.Finding{{Verdict: fleet.Unknown, Text: "could not be read, see permissions"}}
	case e.accountErr != nil:
		return []fleet.Finding{fleet.NewProblem(fmt.Sprintf("JetStream does not answer: %v", e.accountErr),
			"check that a majority of the cluster's servers is up; see the log of "+e.server)}
	}
	var found []fleet.Finding
	for _, s := range []struct {
		name string
		used uint64
		max  int64
	}{{"memory", e.account.Memory, e.account.Limits.MaxMemory}, {"disk", e.account.Store, e.account.Limits.MaxStore}} {
		if s.max > 0 && float64(s.used) >= nearlyFull*float64(s.max) {
			found = append(found, fleet.NewWarning(fmt.Sprintf("streams use %s of the account's %s of %s", term.Bytes(int64(s.used)), term.Bytes(s.max), s.name),
				"raise the limit of the account; new requests are refused when it is reached"))
		}
	}
	return found
}

// deniedList collects the operations that NATS denies. NATS reports them
// asynchronously.
type deniedList struct {
	mu   sync.Mutex
	what map[string]bool
}

func (l *deniedList) onError(_ *nats.Conn, _ *nats.Subscription, err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	// The text is: Permissions Violation for Publish to "$JS.API.INFO"
	_, what, found := strings.Cut(err.Error(), "Violation for ")
	if !found {
		what = err.Error()
	}
	what, _, _ = strings.Cut(what, " using queue")
	what = strings.Replace(what, "Subscription to", "subscribe to", 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.what == nil {
		l.what = make(map[string]bool)
	}
	l.what[lowerFirst(what)] = true
}

func (l *deniedList) sorted() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.what))
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }
