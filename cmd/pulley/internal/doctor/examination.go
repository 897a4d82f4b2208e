package doctor

import (
	"context"
	"errors"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
)

// examination is everything that the checks look at.
type examination struct {
	unreachable error // no connection; nothing else is known then
	server      string
	version     string
	maxPayload  int64
	denied      []string // what NATS did not allow

	account    *jetstream.AccountInfo
	accountErr error
	streams    map[string]*jetstream.StreamInfo // ours, and all that take our subjects
	streamsErr error
	expected   blueprint
	history    []policystore.Version
	policyErr  error
	keys       map[string]policy.Key
	keysErr    error
	fleet      fleet.Snapshot

	askedLocally bool // this machine's NVML was asked
	localGPUs    gpu.Reading
	localFailure *gpu.Failure
}

// examine looks at everything. Its error says that it could not begin.
func examine(ctx context.Context, c *cli.ConnectFlags) (*examination, error) {
	e := &examination{}
	var denied deniedList
	quiet := cli.WithLogger(ctx, nil) // the findings say it all
	nc, err := c.Connect(quiet, "pulley doctor", nats.ErrorHandler(denied.note))
	if _, ok := errors.AsType[cli.UsageError](err); ok || ctx.Err() != nil {
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

	var parts sync.WaitGroup
	var fleetErr error
	for _, part := range []func(context.Context){
		func(ctx context.Context) { e.account, e.accountErr = js.AccountInfo(ctx) },
		func(ctx context.Context) { e.streams, e.streamsErr = readStreams(ctx, js) },
		func(ctx context.Context) { e.readPolicy(ctx, nc) },
	} {
		parts.Go(func() {
			within, cancel := context.WithTimeout(ctx, fleet.ReadTimeout)
			defer cancel()
			part(within)
		})
	}
	parts.Go(func() { e.fleet, fleetErr = fleet.ReadSnapshot(ctx, nc) })
	parts.Wait()
	if fleetErr != nil {
		return nil, fleetErr
	}
	if e.expected, err = draw(e.fleet.Policy); err != nil {
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
		e.history, _ = store.History(ctx) // for the remedy; without it there is another
	}
	e.keys, e.keysErr = store.Keys(ctx)
}

// findings asks all checks.
func (e *examination) findings() []fleet.Finding {
	all := e.checkLocally()
	for _, c := range checks {
		found := c.find(e)
		if len(found) == 0 {
			found = []fleet.Finding{{Verdict: fleet.OK, Text: c.fine(e)}}
			if found[0].Text == "" {
				found[0] = fleet.Finding{Verdict: fleet.Unknown, Text: "could not be read: see above"}
			}
		}
		for _, d := range found {
			d.Check = c.name
			all = append(all, d)
		}
		if e.unreachable != nil {
			break
		}
	}
	return all
}
