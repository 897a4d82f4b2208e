package brokerconn

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// deniedFor is how long it counts that something was denied, or that the credentials were refused. What a part needs it
	// tries again within that time; subscriptions it tries once for each connection.
	deniedFor = 30 * time.Second

	// maxDenials bounds what is remembered, and mostNamed what is named.
	maxDenials = 100
	mostNamed  = 3
)

// Operation is something that a user may be denied.
type Operation struct {
	Subscribe bool // else it is to publish
	Subject   string
}

func (o Operation) String() string {
	if o.Subscribe {
		return "subscribe to " + o.Subject
	}
	return "publish to " + o.Subject
}

// denials are what the server has denied to a connection. NATS reports that asynchronously.
type denials struct {
	mu        sync.Mutex
	at        map[Operation]denial
	refused   string // why the server refused the credentials last
	refusedAt time.Time
}

type denial struct {
	at         time.Time
	connection uint64 // how many there were before
}

// violation is what the server says, as in: Permissions Violation for Subscription to "pulley.hb.>" using queue "q"
var violation = regexp.MustCompile(`(?i)violation for (publish|subscription) to "([^"]+)"`)

// note takes in an error of the connection.
func (d *denials) note(err error, connection uint64, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked), errors.Is(err, nats.ErrAccountAuthExpired):
		d.refused, d.refusedAt = strings.TrimPrefix(err.Error(), "nats: "), now
	case errors.Is(err, nats.ErrPermissionViolation):
		m := violation.FindStringSubmatch(err.Error())
		if m == nil {
			return
		}
		if d.at == nil || len(d.at) >= maxDenials {
			d.at = make(map[Operation]denial)
		}
		d.at[Operation{strings.EqualFold(m[1], "subscription"), m[2]}] = denial{now, connection}
	}
}

// text is what was denied of that for which needs is true; nil: all.
func (d *denials) text(needs func(Operation) bool, connection uint64, now time.Time) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []string
	for o, of := range d.at {
		if of.connection != connection || !o.Subscribe && now.Sub(of.at) > deniedFor || needs != nil && !needs(o) {
			continue
		}
		list = append(list, o.String())
	}
	slices.Sort(list)
	slices.Reverse(list) // subscriptions first: they are few
	if more := len(list) - mostNamed; more > 0 {
		list = append(list[:mostNamed], fmt.Sprintf("%d more", more))
	}
	return strings.Join(list, ", ")
}

func (d *denials) refusal(now time.Time) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refused == "" || now.Sub(d.refusedAt) > deniedFor {
		return ""
	}
	return "the server refuses the credentials: " + d.refused
}
