package doctor

import (
	"fmt"
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

// check is one check of the examination.
type check struct {
	name string
	find func(*examination) []fleet.Finding // what is wrong
	ok   func(*examination) string          // the text if nothing is; "" if that is unknown
}

// checks are all checks, in the order in which they run and are shown: each may
// rely on the checks before it.
var checks = []check{
	{"nats", (*examination).findConnection, func(e *examination) string {
		return fmt.Sprintf("%s, version %s, max_payload %s", e.server, e.version, term.Bytes(e.maxPayload))
	}},
	{"permissions", (*examination).findDenied, func(*examination) string { return "no operation was denied" }},
	{"jetstream", (*examination).findJetStream, func(e *examination) string {
		return fmt.Sprintf("enabled; streams use %s of memory and %s of disk", term.Bytes(int64(e.account.Memory)), term.Bytes(int64(e.account.Store)))
	}},
	{"streams", (*examination).findStreams, func(e *examination) string {
		return term.Count(len(e.expected.streams), "stream") + " and " + term.Count(len(e.expected.buckets), "bucket") + " as expected"
	}},
	{"policy", (*examination).findPolicy, func(e *examination) string { return e.fleet.Revision.Text(e.fleet.At) }},
	{"gateways", ofFleet((*fleet.Snapshot).FindGateways), func(e *examination) string { return term.Count(len(e.fleet.Gateways), "gateway") + " live" }},
	{"workers", ofFleet((*fleet.Snapshot).FindWorkers), func(e *examination) string {
		t := e.fleet.Totals
		return fmt.Sprintf("%s with %s, %d in flight", term.Count(t.Live, "worker"), term.Count(t.Slots, "slot"), t.InFlight)
	}},
	{"gpus", ofFleet((*fleet.Snapshot).FindGPUs), func(e *examination) string { return e.fleet.GPUSummary() }},
	{"headroom", ofFleet((*fleet.Snapshot).FindHeadroom), func(e *examination) string { return e.fleet.HeadroomSummary() }},
	{"pools", ofFleet((*fleet.Snapshot).FindPools), func(e *examination) string {
		return fmt.Sprintf("%s, %s waiting", term.Count(len(e.fleet.Pools), "pool"), term.Count(e.fleet.Totals.Waiting, "request"))
	}},
	{"tiers", ofFleet((*fleet.Snapshot).FindTiers), func(e *examination) string {
		var names []string
		for _, t := range e.fleet.Tiers {
			names = append(names, t.Name)
		}
		return strings.Join(names, ", ")
	}},
	{"keys", (*examination).findKeys, func(e *examination) string {
		if e.policyErr != nil && e.keys == nil {
			return ""
		}
		if len(e.keys) == 0 {
			return "no API keys: gateways on loopback accept every client; all others refuse every client unless started with --auth off; create one with 'pulley key add --tenant NAME'"
		}
		return term.Count(len(e.keys), "key")
	}},
	{"dead letters", (*examination).findDead, func(e *examination) string {
		if e.streams[subjects.DeadStream] == nil {
			return ""
		}
		return "none"
	}},
}

// ofFleet makes a check of one that needs only the snapshot.
func ofFleet(find func(*fleet.Snapshot) []fleet.Finding) func(*examination) []fleet.Finding {
	return func(e *examination) []fleet.Finding { return find(&e.fleet) }
}
