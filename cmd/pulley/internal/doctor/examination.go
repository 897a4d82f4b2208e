package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// examination is everything that the checks look at.
type examination struct {
	unreachable error // why there is no connection; the rest is then empty
	server      string
	version     string
	maxPayload  int64
	denied      []string // operations that NATS denied

	account    *jetstream.AccountInfo
	accountErr error
	streams    map[string]*jetstream.StreamInfo // Pulley's, and all others that capture its subjects
	streamsErr error
	expected   streamRecorder
	history    []policystore.Version
	policyErr  error
	keys       map[string]policy.Key
	keysErr    error
	fleet      fleet.Snapshot
	stored     stored

	local   *localGPUs // nil without --local
	unheard string     // what a gateway says that is not heard through NATS; empty: none was found
}

// examine reads everything. It fails only if it cannot begin.
func examine(ctx context.Context, c *cli.ConnectFlags) (*examination, error) {
	e := &examination{}
	var denied deniedList
	quiet := cli.WithLogger(ctx, nil) // errors of the connection become findings
	nc, err := c.Connect(quiet, "pulley doctor", nats.ErrorHandler(denied.onError))
	if usage, ok := errors.AsType[cli.Error](err); ok && usage.Code == cli.ExitUsage || ctx.Err() != nil {
		return nil, err
	}
	if err != nil {
		e.unreachable = err
		return e, nil
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	e.server, e.version, e.maxPayload = nc.ConnectedUrlRedacted(), nc.ConnectedServerVersion(), nc.MaxPayload()

	var reads sync.WaitGroup
	var fleetErr error
	for _, read := range []func(context.Context){
		func(ctx context.Context) { e.account, e.accountErr = js.AccountInfo(ctx) },
		func(ctx context.Context) { e.streams, e.streamsErr = readStreams(ctx, js) },
		func(ctx context.Context) { e.readPolicy(ctx, nc) },
		func(ctx context.Context) { e.stored = readStored(ctx, nc) },
	} {
		reads.Go(func() {
			within, cancel := context.WithTimeout(ctx, fleet.ReadTimeout)
			defer cancel()
			read(within)
		})
	}
	reads.Go(func() { e.fleet, fleetErr = fleet.ReadSnapshot(ctx, nc) })
	reads.Wait()
	if fleetErr != nil {
		return nil, fleetErr
	}
	if e.expected, err = expectedStreams(e.fleet.Policy); err != nil {
		return nil, err
	}
	e.denied = denied.sorted()
	return e, nil
}

func (e *examination) readPolicy(ctx context.Context, nc *nats.Conn) {
	store, err := policystore.Open(ctx, nc)
	if err != nil {
		e.policyErr = err
		return
	}
	if _, e.policyErr = store.Load(ctx); e.policyErr != nil {
		e.history, _ = store.History(ctx) // the remedy names a revision of it
	}
	e.keys, e.keysErr = store.Keys(ctx)
}

func (e *examination) findings() []fleet.Finding {
	all := e.local.findings()
	for _, c := range checks {
		found := c.find(e)
		if len(found) == 0 {
			found = []fleet.Finding{{Verdict: fleet.OK, Text: c.ok(e)}}
			if found[0].Text == "" {
				found[0] = fleet.Finding{Verdict: fleet.Unknown, Text: "could not be read, see above"}
			}
		}
		for _, f := range found {
			f.Check = c.name
			all = append(all, f)
		}
		if e.unreachable != nil {
			break
		}
	}
	return all
}

// check is one check of the examination.
type check struct {
	name string
	find func(*examination) []fleet.Finding // what is wrong
	ok   func(*examination) string          // the text if nothing is; "" if that is unknown
}

// checks are all checks, in the order in which they run and are shown: each may rely on the checks before it.
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
	{"gateways", (*examination).findGateways, func(e *examination) string { return term.Count(len(e.fleet.Gateways), "gateway") + " live" }},
	{"workers", ofFleet((*fleet.Snapshot).FindWorkers), func(e *examination) string {
		t := e.fleet.Totals
		return fmt.Sprintf("%s with %s, %d in flight", term.Count(t.Live, "worker"), term.Count(t.Slots, "slot"), t.InFlight)
	}},
	{"peers", ofFleet((*fleet.Snapshot).FindPeers), func(*examination) string { return "no worker is much slower or smaller than is usual in its pool" }},
	{"gpus", ofFleet((*fleet.Snapshot).FindGPUs), func(e *examination) string { return e.fleet.GPUSummary() }},
	{"headroom", ofFleet((*fleet.Snapshot).FindHeadroom), func(e *examination) string { return e.fleet.HeadroomSummary() }},
	{"pools", ofFleet((*fleet.Snapshot).FindPools), func(e *examination) string {
		return fmt.Sprintf("%s, %s waiting", term.Count(len(e.fleet.Pools), "pool"), term.Count(e.fleet.Totals.Waiting, "request"))
	}},
	{"tiers", ofFleet((*fleet.Snapshot).FindTiers), func(e *examination) string {
		return strings.Join(fleet.NamesOf(e.fleet.Tiers, func(t fleet.TierStatus) string { return t.Name }), ", ")
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
	{"batches", (*examination).findBatches, (*examination).batchesText},
	{"background", (*examination).findBackground, (*examination).backgroundText},
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
