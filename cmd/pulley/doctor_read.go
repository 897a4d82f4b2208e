package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// readStreams reads our streams, those of our buckets, and all others that take
// our subjects.
func readStreams(ctx context.Context, js jetstream.JetStream) (map[string]*jetstream.StreamInfo, error) {
	streams := make(map[string]*jetstream.StreamInfo)
	list := js.ListStreams(ctx, jetstream.WithStreamListSubject(subjects.AllSubjects))
	for info := range list.Info() {
		streams[info.Config.Name] = info
	}
	if err := list.Err(); err != nil {
		return nil, err
	}
	usual, err := draw(nil)
	if err != nil {
		return nil, err
	}
	for _, b := range usual.buckets {
		s, err := js.Stream(ctx, "KV_"+b.Bucket)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("bucket %s: %w", b.Bucket, err)
		}
		streams["KV_"+b.Bucket] = s.CachedInfo()
	}
	return streams, nil
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

// blueprint writes down what gateways would create where nothing exists: it is
// a JetStream as far as subjects.EnsureStreams needs one.
type blueprint struct {
	jetstream.JetStream
	streams []jetstream.StreamConfig
	buckets []jetstream.KeyValueConfig
}

// draw is the streams and buckets that a policy needs; nil: the default.
func draw(v *policystore.Version) (blueprint, error) {
	tiers := policy.DefaultTiers()
	if v != nil {
		tiers = v.Policy.Tiers
	}
	var b blueprint
	if err := subjects.EnsureStreams(context.Background(), &b, tiers, 1); err != nil {
		return b, fmt.Errorf("draw up the streams: %w", err)
	}
	return b, nil
}

func (b *blueprint) Stream(context.Context, string) (jetstream.Stream, error) {
	return nil, jetstream.ErrStreamNotFound
}

func (b *blueprint) CreateStream(_ context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	b.streams = append(b.streams, cfg)
	return nil, nil
}

func (b *blueprint) CreateKeyValue(_ context.Context, cfg jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	b.buckets = append(b.buckets, cfg)
	return nil, nil
}

// all is every stream, with those that buckets are made of.
func (b *blueprint) all() []jetstream.StreamConfig {
	list := slices.Clone(b.streams)
	for _, kv := range b.buckets {
		list = append(list, jetstream.StreamConfig{
			Name: subjects.KVStream(kv.Bucket), Subjects: []string{subjects.KVSubject(kv.Bucket, ">")}, Storage: kv.Storage, MaxAge: kv.TTL,
			MaxMsgsPerSubject: int64(max(kv.History, 1)), Discard: jetstream.DiscardNew, AllowDirect: true,
		})
	}
	return list
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
	return sortedNames(l.what)
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// sortedPairs is m in the order of its keys.
func sortedPairs[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, k := range sortedNames(m) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}
