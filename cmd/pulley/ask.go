package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

const (
	// askWait bounds how long a verb waits for the gateways' answers.
	askWait = 1500 * time.Millisecond

	// askRest is how long it waits for the others after one has answered: they
	// are as quick, or gone.
	askRest = 200 * time.Millisecond

	// orderWait bounds how long gateways may take to do what they are told.
	orderWait = 30 * time.Second
)

// errNoGateway says that nobody answers the verbs.
var errNoGateway = notFoundError{errors.New("no gateway on this broker: start one with 'pulley gateway' or 'pulley up'")}

// ask collects the lists that gateways answer a question with. With all it
// waits for every gateway, else for the first.
func ask[T any](ctx context.Context, nc *nats.Conn, subject string, all bool) ([]T, error) {
	list, _, err := askEach[T](ctx, nc, subject, all)
	return list, err
}

// askEach is ask, and says how many gateways have answered.
func askEach[T any](ctx context.Context, nc *nats.Conn, subject string, all bool) (list []T, answered int, err error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, 0, err
	}
	defer sub.Unsubscribe()
	if err := nc.PublishRequest(subject, inbox, nil); err != nil {
		return nil, 0, err
	}
	list = []T{}
	waiting := ctx
	for {
		m, err := sub.NextMsgWithContext(waiting)
		switch {
		case errors.Is(err, nats.ErrNoResponders):
			return nil, 0, err
		case errors.Is(err, context.DeadlineExceeded) && answered > 0:
			return list, answered, nil
		case errors.Is(err, context.DeadlineExceeded):
			return nil, 0, fmt.Errorf("no gateway has answered within %v", askWait)
		case err != nil:
			return nil, 0, err
		}
		if len(m.Data) == 0 { // the end of one gateway's list
			if answered++; !all {
				return list, answered, nil
			}
			var rest context.CancelFunc
			waiting, rest = context.WithTimeout(ctx, askRest)
			defer rest()
			continue
		}
		var some []T
		if err := subjects.Unmarshal(m.Data, &some); err != nil {
			return nil, 0, fmt.Errorf("answer of a gateway: %w", err)
		}
		list = append(list, some...)
	}
}

// workers are those that live, by name.
func workers(ctx context.Context, nc *nats.Conn) ([]subjects.Heartbeat, error) {
	list, err := ask[subjects.Heartbeat](ctx, nc, subjects.AskWorkers, false)
	if err != nil {
		if list, err = membersInBucket(ctx, nc); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, func(a, b subjects.Heartbeat) int {
		return strings.Compare(a.Name+"\x00"+a.Worker, b.Name+"\x00"+b.Worker)
	})
	return list, nil
}

// membersInBucket reads who serves what while there is no gateway to ask.
func membersInBucket(ctx context.Context, nc *nats.Conn) ([]subjects.Heartbeat, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	kv, err := js.KeyValue(ctx, subjects.WorkersBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, notFoundError{errors.New("nothing of Pulley on this broker yet: start a gateway")}
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", subjects.WorkersBucket, err)
	}
	keys, err := kv.Keys(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, fmt.Errorf("bucket %s: %w", subjects.WorkersBucket, err)
	}
	list := []subjects.Heartbeat{}
	for _, k := range keys {
		v, err := kv.Get(ctx, k)
		if err != nil {
			continue // it left meanwhile
		}
		var h subjects.Heartbeat
		if subjects.Unmarshal(v.Value(), &h) == nil {
			list = append(list, h)
		}
	}
	slices.SortFunc(list, func(a, b subjects.Heartbeat) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// requests are those that gateways hold, by age.
func requests(ctx context.Context, nc *nats.Conn) ([]subjects.RequestInfo, error) {
	list, err := ask[subjects.RequestInfo](ctx, nc, subjects.AskRequests, true)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, errNoGateway
	}
	if err != nil {
		return nil, fmt.Errorf("ask the gateways: %w", err)
	}
	slices.SortFunc(list, func(a, b subjects.RequestInfo) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// servedPools are the pools that workers have ever served.
func servedPools(ctx context.Context, js jetstream.JetStream) ([]string, error) {
	kv, err := js.KeyValue(ctx, subjects.PoolsBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", subjects.PoolsBucket, err)
	}
	keys, err := kv.Keys(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, fmt.Errorf("bucket %s: %w", subjects.PoolsBucket, err)
	}
	var pools []string
	for _, k := range keys {
		if name, err := subjects.Untoken(k); err == nil {
			pools = append(pools, name)
		}
	}
	slices.Sort(pools)
	return pools, nil
}

// orderAll tells every gateway to do something and adds up what they did.
func orderAll(ctx context.Context, nc *nats.Conn, subject string, order any) (done int, err error) {
	_, gateways, err := askEach[subjects.Heartbeat](ctx, nc, subjects.AskWorkers, true)
	if errors.Is(err, nats.ErrNoResponders) {
		return 0, errNoGateway
	}
	if err != nil {
		return 0, fmt.Errorf("ask the gateways: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, orderWait)
	defer cancel()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return 0, err
	}
	defer sub.Unsubscribe()
	b, err := subjects.Marshal(order)
	if err != nil {
		return 0, err
	}
	if err := nc.PublishRequest(subject, inbox, b); err != nil {
		return 0, err
	}
	var errs []error
	for n := range gateways {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return done, errors.Join(append(errs, fmt.Errorf("%d of %d gateways have not answered: %w", gateways-n, gateways, err))...)
		}
		var o subjects.Outcome
		if err := subjects.Unmarshal(m.Data, &o); err != nil {
			errs = append(errs, fmt.Errorf("answer of a gateway: %w", err))
		} else if o.Error != "" {
			errs = append(errs, fmt.Errorf("gateway %s: %s", o.From, o.Error))
		}
		done += o.Count
	}
	return done, errors.Join(errs...)
}

// order tells the one who is concerned to do something. Nobody else answers, so
// that silence says that there is none: errSilence.
func order[T any](ctx context.Context, nc *nats.Conn, subject string, order any, within time.Duration) (answer T, err error) {
	b, err := subjects.Marshal(order)
	if err != nil {
		return answer, err
	}
	waiting, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	m, err := nc.RequestWithContext(waiting, subject, b)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return answer, errSilence
	}
	if err != nil {
		return answer, err
	}
	if err := subjects.Unmarshal(m.Data, &answer); err != nil {
		return answer, fmt.Errorf("answer on %s: %w", subject, err)
	}
	return answer, nil
}

var errSilence = errors.New("nobody answers")

// publishJSON is for what nobody answers.
func publishJSON(nc *nats.Conn, subject string, value any) {
	if b, err := subjects.Marshal(value); err == nil {
		nc.Publish(subject, b)
	}
}
