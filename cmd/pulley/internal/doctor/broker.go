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
	// leastPayload lets a request's headers, and frames of a useful size, through.
	leastPayload = 64 << 10

	// nearlyFull is the part of an account's storage that is worth a warning.
	nearlyFull = 0.9
)

// leastServer is the first nats-server with prioritized pull consumers.
var leastServer = []int{2, 12}

func (e *examination) findConnection() []fleet.Finding {
	if e.unreachable != nil {
		return []fleet.Finding{{Verdict: fleet.Problem, Text: e.unreachable.Error(), Remedy: "name the right server and credentials: --nats, --context, --creds"}}
	}
	var found []fleet.Finding
	if !atLeast(e.version, leastServer) {
		found = append(found, fleet.Finding{Verdict: fleet.Problem, Text: fmt.Sprintf("%s has version %s: bids need prioritized pull consumers", e.server, e.version),
			Remedy: "upgrade nats-server to 2.12 or later"})
	}
	if e.maxPayload < leastPayload {
		found = append(found, fleet.Finding{Verdict: fleet.Problem, Text: fmt.Sprintf("max_payload is %s: requests and answers do not fit", term.Bytes(e.maxPayload)),
			Remedy: "set max_payload in the server's configuration to 1MB, its default"})
	}
	return found
}

// atLeast compares versions such as 2.12.3-RC.1.
func atLeast(version string, least []int) bool {
	var major, minor int
	if _, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor); err != nil {
		return true // not said, or a build of one's own
	}
	return slices.Compare([]int{major, minor}, least) >= 0
}

func (e *examination) findDenied() []fleet.Finding {
	if len(e.denied) == 0 {
		return nil
	}
	return []fleet.Finding{{Verdict: fleet.Problem, Text: "NATS does not let this user " + strings.Join(e.denied, ", "),
		Remedy: "connect as an operator (--creds, --context), or allow it in the account's permissions; what follows is incomplete"}}
}

func (e *examination) findJetStream() []fleet.Finding {
	switch {
	case errors.Is(e.accountErr, jetstream.ErrJetStreamNotEnabled), errors.Is(e.accountErr, nats.ErrNoResponders):
		return []fleet.Finding{{Verdict: fleet.Problem, Text: "JetStream is off: there is nowhere to queue", Remedy: "start nats-server with -js, or use 'pulley broker'"}}
	case errors.Is(e.accountErr, jetstream.ErrJetStreamNotEnabledForAccount):
		return []fleet.Finding{{Verdict: fleet.Problem, Text: "JetStream is off for this account", Remedy: "enable it in the account's configuration, or connect to another account"}}
	case e.accountErr != nil && len(e.denied) > 0:
		return []fleet.Finding{{Verdict: fleet.Unknown, Text: "could not be asked: see permissions"}}
	case e.accountErr != nil:
		return []fleet.Finding{{Verdict: fleet.Problem, Text: fmt.Sprintf("JetStream does not answer: %v", e.accountErr),
			Remedy: "is a majority of the cluster's servers up? See the log of " + e.server}}
	}
	var found []fleet.Finding
	for _, s := range []struct {
		name string
		used uint64
		most int64
	}{{"memory", e.account.Memory, e.account.Limits.MaxMemory}, {"disk", e.account.Store, e.account.Limits.MaxStore}} {
		if s.most > 0 && float64(s.used) >= nearlyFull*float64(s.most) {
			found = append(found, fleet.Finding{Verdict: fleet.Warning, Text: fmt.Sprintf("streams take %s of the account's %s of %s", term.Bytes(int64(s.used)), term.Bytes(s.most), s.name),
				Remedy: "raise the account's limit; new requests are refused when it is reached"})
		}
	}
	return found
}

// deniedList collects what NATS does not allow, which it says at any time.
type deniedList struct {
	mu   sync.Mutex
	what map[string]bool
}

func (l *deniedList) note(_ *nats.Conn, _ *nats.Subscription, err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	// … Permissions Violation for Publish to "$JS.API.INFO"
	_, what, found := strings.Cut(err.Error(), "Violation for ")
	if !found {
		what = err.Error()
	}
	what, _, _ = strings.Cut(what, ` using queue`)
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
