package policystore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// API keys have a bucket of their own, which workers may not read. Older versions kept them in the bucket of the policy,
// which every worker reads. A gateway moves them; until it has, both buckets count, and a record in the new one, also that of
// a removal, comes before one in the old.

// keyBucket opens the bucket of keys. It returns ErrNoBucket if there is none.
func (s *Store) keyBucket(ctx context.Context) (jetstream.KeyValue, error) {
	kv, err := s.js.KeyValue(ctx, subjects.KeysBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, ErrNoBucket
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", subjects.KeysBucket, err)
	}
	return kv, nil
}

// keyRecords reads the records of all keys in a bucket, by id; also of those that were removed.
func keyRecords(ctx context.Context, kv jetstream.KeyValue) (map[string]jetstream.KeyValueEntry, error) {
	records := make(map[string]jetstream.KeyValueEntry)
	w, err := kv.Watch(ctx, subjects.AllAPIKeys)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	defer w.Stop()
	for {
		select {
		case e := <-w.Updates():
			if e == nil { // all current values have been delivered
				return records, nil
			}
			records[strings.TrimPrefix(e.Key(), subjects.APIKey(""))] = e
		case <-ctx.Done():
			return nil, fmt.Errorf("read keys: %w", ctx.Err())
		}
	}
}

// Keys reads all API keys, by id. A record that cannot be read is a key with the reason as its Damage.
func (s *Store) Keys(ctx context.Context) (map[string]policy.Key, error) {
	kv, err := s.keyBucket(ctx)
	if err != nil {
		return nil, err
	}
	old, err := keyRecords(ctx, s.kv) // first: what is moved meanwhile is then in both
	if err != nil {
		return nil, err
	}
	records, err := keyRecords(ctx, kv)
	if err != nil {
		return nil, err
	}
	for id, e := range old {
		if records[id] == nil {
			records[id] = e
		}
	}
	keys := make(map[string]policy.Key, len(records))
	for id, e := range records {
		if e.Operation() == jetstream.KeyValuePut {
			keys[id] = parseKey(id, e)
		}
	}
	return keys, nil
}

func parseKey(id string, e jetstream.KeyValueEntry) policy.Key {
	var k policy.Key
	err := subjects.Unmarshal(e.Value(), &k)
	switch {
	case err != nil:
	case k.ID != id:
		err = fmt.Errorf("it is the record of key %.20q", k.ID)
	default:
		err = k.Check()
	}
	if err != nil {
		return policy.Key{ID: id, Created: e.Created(), Damage: err.Error()}
	}
	return k
}

// PutKey stores an API key.
func (s *Store) PutKey(ctx context.Context, k policy.Key) error {
	if err := k.Check(); err != nil {
		return err
	}
	b, err := subjects.Marshal(k)
	if err != nil {
		return err
	}
	kv, err := s.keyBucket(ctx)
	if err != nil {
		return err
	}
	revision, err := kv.Put(ctx, subjects.APIKey(k.ID), b)
	if err != nil {
		return unstored("store key "+k.ID, err)
	}
	s.announce(subjects.APIKey(k.ID), revision)
	return nil
}

// RemoveKey revokes an API key. All gateways reject it within a second.
func (s *Store) RemoveKey(ctx context.Context, id string) error {
	kv, err := s.keyBucket(ctx)
	if err != nil {
		return err
	}
	// Purge leaves a message, so that a follower that was disconnected sees that something changed, and a record in the old
	// bucket no longer counts.
	if err := kv.Purge(ctx, subjects.APIKey(id)); err != nil {
		return unstored("remove key "+id, err)
	}
	s.announce(subjects.APIKey(id), 0)
	return nil
}

// OldKeys returns the last sequence of any API key in the bucket of the policy, also of one that was removed there; 0 if there
// never was one.
func OldKeys(ctx context.Context, nc *nats.Conn) (last uint64, err error) {
	s := followState{nc: nc}
	m, err := s.get(ctx, subjects.PolicyBucket, subjects.AllAPIKeys)
	return m.Sequence, err
}

// CopyKeys copies to their bucket the API keys that are in that of the policy and have no record in their own. With remove
// it then removes all of them, with their history, from the bucket of the policy: gateways of older versions, which read
// only that one, refuse all keys from then on. It returns how many there were.
func (s *Store) CopyKeys(ctx context.Context, remove bool) (found int, err error) {
	old, err := keyRecords(ctx, s.kv)
	if err != nil || len(old) == 0 {
		return 0, err
	}
	kv, err := s.keyBucket(ctx)
	if err != nil {
		return 0, err
	}
	for id, e := range old {
		if e.Operation() != jetstream.KeyValuePut {
			continue
		}
		found++
		name := subjects.APIKey(id)
		if _, err := kv.Update(ctx, name, e.Value(), 0); err != nil && !wrongRevision(err) { // else it has a record, or had one
			return found, fmt.Errorf("copy key %s: %w", id, err)
		}
		if !remove {
			continue
		}
		if err := s.kv.Purge(ctx, name, jetstream.LastRevision(e.Revision())); err != nil && !wrongRevision(err) { // else it was changed just now
			return found, fmt.Errorf("move key %s: %w", id, err)
		}
	}
	return found, nil
}

func wrongRevision(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || errors.Is(err, jetstream.ErrKeyExists)
}
