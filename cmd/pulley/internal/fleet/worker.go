package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

// Workers are those that live, by name.
func Workers(ctx context.Context, nc *nats.Conn) ([]subjects.Heartbeat, error) {
	list, err := Ask[subjects.Heartbeat](ctx, nc, subjects.AskWorkers, false)
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
		return nil, cli.NotFoundError{Err: errors.New("nothing of Pulley on this broker yet: start a gateway")}
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

// FindWorker is the worker of a name or an id, or of a beginning of one that no
// other has.
func FindWorker(ctx context.Context, nc *nats.Conn, named string) (subjects.Heartbeat, error) {
	list, err := Workers(ctx, nc)
	if err != nil {
		return subjects.Heartbeat{}, err
	}
	is := []func(h subjects.Heartbeat) bool{
		func(h subjects.Heartbeat) bool { return h.Worker == named },
		func(h subjects.Heartbeat) bool { return h.Name == named },
		func(h subjects.Heartbeat) bool {
			return named != "" && (strings.HasPrefix(h.Name, named) || strings.HasPrefix(h.Worker, named))
		},
	}
	for _, is := range is {
		var found []subjects.Heartbeat
		var ids []string
		for _, h := range list {
			if is(h) {
				found, ids = append(found, h), append(ids, h.Worker)
			}
		}
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return subjects.Heartbeat{}, cli.Usagef("worker %s: which of %s?", named, term.Shorten(term.Join(ids), 160))
		}
	}
	var names []string
	for _, h := range list {
		names = append(names, h.Name)
	}
	return subjects.Heartbeat{}, cli.NoSuch("worker", named, names)
}
