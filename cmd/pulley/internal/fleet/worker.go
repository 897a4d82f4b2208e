package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/subjects"
)

// Workers returns the live workers by name: what a gateway knows of them, or what the bucket of workers says while
// there is no gateway.
func Workers(ctx context.Context, nc *nats.Conn) ([]subjects.Heartbeat, error) {
	list, err := AskAny[subjects.Heartbeat](ctx, nc, subjects.AskWorkers)
	if err != nil {
		if list, err = membersInBucket(ctx, nc); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, func(a, b subjects.Heartbeat) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Worker, b.Worker))
	})
	return list, nil
}

func membersInBucket(ctx context.Context, nc *nats.Conn) ([]subjects.Heartbeat, error) {
	kv, keys, err := readBucket(ctx, nc, subjects.WorkersBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, cli.NotFoundf("no bucket %s on this broker: start a gateway", subjects.WorkersBucket)
	}
	if err != nil {
		return nil, err
	}
	list := []subjects.Heartbeat{}
	for _, k := range keys {
		v, err := kv.Get(ctx, k)
		if err != nil {
			continue // it has left in the meantime
		}
		var h subjects.Heartbeat
		if subjects.Unmarshal(v.Value(), &h) == nil {
			list = append(list, h)
		}
	}
	return list, nil
}

func readBucket(ctx context.Context, nc *nats.Conn, bucket string) (kv jetstream.KeyValue, keys []string, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, nil, err
	}
	if kv, err = js.KeyValue(ctx, bucket); err == nil {
		keys, err = kv.Keys(ctx)
	}
	if (errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, nats.ErrJetStreamNotEnabled)) && kv != nil { // a monitor may not create the consumer that lists them
		keys, err = keysByName(ctx, js, kv)
	}
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, nil, fmt.Errorf("bucket %s: %w", bucket, err)
	}
	slices.Sort(keys)
	return kv, slices.Compact(keys), nil // a key that is written meanwhile is listed twice
}

// keysByName lists the keys of a bucket without a consumer.
func keysByName(ctx context.Context, js jetstream.JetStream, kv jetstream.KeyValue) (keys []string, err error) {
	stream, err := js.Stream(ctx, subjects.KVStream(kv.Bucket()))
	if err != nil {
		return nil, err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(">"))
	if err != nil {
		return nil, err
	}
	for subject := range info.State.Subjects {
		key := strings.TrimPrefix(subject, subjects.KVSubject(kv.Bucket(), ""))
		if _, err := kv.Get(ctx, key); err == nil { // else it was deleted
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// FindWorker returns the worker with a name or an id, or with the only name or id that begins so.
func FindWorker(ctx context.Context, nc *nats.Conn, named string) (subjects.Heartbeat, error) {
	list, err := Workers(ctx, nc)
	if err != nil {
		return subjects.Heartbeat{}, err
	}
	found := FirstMatches(list,
		func(h subjects.Heartbeat) bool { return h.Worker == named },
		func(h subjects.Heartbeat) bool { return h.Name == named },
		func(h subjects.Heartbeat) bool {
			return named != "" && (strings.HasPrefix(h.Name, named) || strings.HasPrefix(h.Worker, named))
		})
	switch len(found) {
	case 0:
		return subjects.Heartbeat{}, cli.NoSuch("worker", named, NamesOf(list, func(h subjects.Heartbeat) string { return h.Name }))
	case 1:
		return found[0], nil
	}
	return subjects.Heartbeat{}, cli.Ambiguous("worker", named, NamesOf(found, func(h subjects.Heartbeat) string { return h.Worker }))
}

// Rungs returns the lowest and the highest rung of a worker's next bids; false if it serves no pool.
func Rungs(h *subjects.Heartbeat) (low, high int, ok bool) {
	if len(h.Pools) == 0 {
		return 0, 0, false
	}
	low, high = h.Pools[0].Rung, h.Pools[0].Rung
	for _, p := range h.Pools {
		low, high = min(low, p.Rung), max(high, p.Rung)
	}
	return low, high, true
}

// FirstMatches tries conditions one after the other, and returns the elements that match the first condition which any
// element matches. So a full name is preferred to a prefix of several names.
func FirstMatches[T any](list []T, conditions ...func(T) bool) (found []T) {
	for _, matches := range conditions {
		for _, e := range list {
			if matches(e) {
				found = append(found, e)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	return found
}

// NamesOf returns the name of each element of a list.
func NamesOf[T any](list []T, name func(T) string) (names []string) {
	for _, e := range list {
		names = append(names, name(e))
	}
	return names
}
