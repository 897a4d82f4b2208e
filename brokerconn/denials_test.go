package brokerconn

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// What the server denies is named while it matters: of this connection, and of late.
func TestDenials(t *testing.T) {
	var d denials
	now := time.Now()
	denied := func(text string) error { return fmt.Errorf("%w: %s", nats.ErrPermissionViolation, text) }
	d.note(denied(`Permissions Violation for Subscription to "pulley.do.retry" using queue "pulley"`), 0, now)
	d.note(denied(`Permissions Violation for Publish to "$JS.API.INFO"`), 0, now)
	d.note(denied(`something new`), 0, now)
	d.note(nats.ErrSlowConsumer, 0, now)
	if got, want := d.text(nil, 0, now), "subscribe to pulley.do.retry, publish to $JS.API.INFO"; got != want {
		t.Errorf("denied is %q, want %q", got, want)
	}
	if got := d.text(func(o Operation) bool { return !o.Subscribe && strings.HasPrefix(o.Subject, "$JS.") }, 0, now); got != "publish to $JS.API.INFO" {
		t.Errorf("of JetStream, denied is %q", got)
	}
	if got := d.text(nil, 0, now.Add(deniedFor+1)); got != "subscribe to pulley.do.retry" {
		t.Errorf("later, denied is %q", got)
	}
	if got := d.text(nil, 1, now); got != "" {
		t.Errorf("after a new connection, denied is %q", got)
	}
	for i := range 10*maxDenials + 50 {
		d.note(denied(fmt.Sprintf(`Permissions Violation for Publish to "s.%d"`, i)), 2, now)
	}
	if got := d.text(nil, 2, now); len(d.at) > maxDenials || strings.Count(got, ",") != mostNamed || !strings.HasSuffix(got, " more") {
		t.Errorf("of many, %d are kept and %q is named", len(d.at), got)
	}

	for _, err := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, fmt.Errorf("%w: account", nats.ErrAuthorization)} {
		d.note(err, 2, now)
		if got := d.refusal(now); !strings.Contains(got, "refuses the credentials: auth") && !strings.Contains(got, "refuses the credentials: user auth") {
			t.Errorf("%v: %q", err, got)
		}
	}
	if got := d.refusal(now.Add(deniedFor + 1)); got != "" {
		t.Errorf("long after it was refused: %q", got)
	}
}
