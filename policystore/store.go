package policystore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// Version is a policy as it is stored.
type Version struct {
	Revision uint64         `json:"revision"` // 0: none has been stored, this is the default
	At       time.Time      `json:"at"`
	By       string         `json:"by"`  // who changed it
	Why      string         `json:"why"` // the command that changed it
	Policy   *policy.Policy `json:"policy"`
}

// DamagedError says that the stored policy is not valid.
type DamagedError struct {
	Revision uint64
	Err      error
}

func (e DamagedError) Error() string {
	return fmt.Sprintf("policy revision %d is damaged: %v", e.Revision, e.Err)
}
func (e DamagedError) Unwrap() error { return e.Err }

// ErrNoBucket means that no gateway has used this broker yet.
var ErrNoBucket = errors.New("no policy bucket on this broker: start a gateway")

// Store reads and changes the policy and the keys.
type Store struct {
	nc *nats.Conn
	js jetstream.JetStream
	kv jetstream.KeyValue // of the policy
}

// Open opens the bucket. It returns ErrNoBucket if there is none.
func Open(ctx context.Context, nc *nats.Conn) (*Store, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	kv, err := js.KeyValue(ctx, subjects.PolicyBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, ErrNoBucket
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", subjects.PolicyBucket, err)
	}
	return &Store{nc: nc, js: js, kv: kv}, nil
}

// Load reads the current policy. It returns a DamagedError if the stored policy is not valid.
func (s *Store) Load(ctx context.Context) (Version, error) {
	e, err := s.kv.Get(ctx, subjects.PolicyKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Version{Policy: policy.Default()}, nil
	}
	if err != nil {
		return Version{}, fmt.Errorf("read policy: %w", err)
	}
	return parsePolicy(e.Value(), e.Revision())
}

func parsePolicy(b []byte, revision uint64) (Version, error) {
	var v Version
	if err := subjects.Unmarshal(b, &v); err != nil {
		return v, DamagedError{revision, err}
	}
	v.Revision = revision
	if v.Policy == nil {
		return v, DamagedError{revision, errors.New("it is empty")}
	}
	if err := v.Policy.Check(); err != nil {
		return v, DamagedError{revision, err}
	}
	return v, nil
}

// Update changes the policy. change gets a copy of the current one; it is called again if another writer was faster. A
// result that is not valid is refused with a policy.Invalid. A change without an effect is not stored.
func (s *Store) Update(ctx context.Context, by, why string, change func(*policy.Policy) error) (Version, error) {
	for {
		v, err := s.Load(ctx)
		if err != nil {
			return v, err
		}
		before, err := subjects.Marshal(v.Policy)
		if err != nil {
			return v, err
		}
		next := v.Policy.Clone()
		if err := change(next); err != nil {
			return v, err
		}
		if err := next.Check(); err != nil {
			return v, err
		}
		if after, err := subjects.Marshal(next); err != nil || string(after) == string(before) {
			return v, err
		}
		written, err := s.Put(ctx, Version{Revision: v.Revision, By: by, Why: why, Policy: next})
		if errors.Is(err, ErrChanged) {
			continue
		}
		return written, err
	}
}

// unstored is the error of a write. nats-server does not answer a message that it cannot write to its disk.
func unstored(what string, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: the broker does not confirm it (%w): its disk may be full or read-only, or the bucket has no leader; see the broker's log", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Note stores a revision that changes nothing, so that the history has what was done, and by whom.
func (s *Store) Note(ctx context.Context, by, why string) (Version, error) {
	for {
		v, err := s.Load(ctx)
		if err != nil {
			return v, err
		}
		written, err := s.Put(ctx, Version{Revision: v.Revision, By: by, Why: why, Policy: v.Policy})
		if !errors.Is(err, ErrChanged) {
			return written, err
		}
	}
}

// ErrChanged means that another writer has changed the policy in the meantime.
var ErrChanged = errors.New("the policy has changed meanwhile")

// Put stores a policy that replaces revision v.Revision. It returns ErrChanged if a newer one exists.
func (s *Store) Put(ctx context.Context, v Version) (Version, error) {
	if err := v.Policy.Check(); err != nil {
		return v, err
	}
	v.At = time.Now().UTC()
	b, err := subjects.Marshal(v)
	if err != nil {
		return v, err
	}
	if most := s.nc.MaxPayload() - 1024; int64(len(b)) > most {
		return v, fmt.Errorf("the policy has %d bytes: the broker takes at most %d in one message", len(b), most)
	}
	var revision uint64
	if v.Revision == 0 { // never stored, or deleted by hand
		revision, err = s.kv.Create(ctx, subjects.PolicyKey, b)
	} else {
		revision, err = s.kv.Update(ctx, subjects.PolicyKey, b, v.Revision)
	}
	if err != nil && wrongRevision(err) {
		return v, ErrChanged
	}
	if err != nil {
		return v, unstored("store policy", err)
	}
	v.Revision = revision
	s.announce(subjects.PolicyKey, revision)
	return v, nil
}

func (s *Store) announce(key string, revision uint64) {
	s.nc.Publish(subjects.PolicyChanges, subjects.MustMarshal(subjects.PolicyChanged{Key: key, Revision: revision}))
}

// History returns the versions that are kept, the newest first. A damaged one has no Policy; its
// Why describes the damage.
func (s *Store) History(ctx context.Context) ([]Version, error) {
	entries, err := s.kv.History(ctx, subjects.PolicyKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the policy's history: %w", err)
	}
	var list []Version
	for _, e := range entries {
		v, err := parsePolicy(e.Value(), e.Revision())
		if err != nil {
			v = Version{Revision: e.Revision(), At: e.Created(), Why: err.Error()}
		}
		list = append(list, v)
	}
	slices.Reverse(list)
	return list, nil
}
