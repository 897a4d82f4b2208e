package policystore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// policyPoll is how often everybody looks for a change that was not heard of.
	policyPoll = 500 * time.Millisecond

	// bucketPoll is the same while there is no bucket yet: the first gateway makes
	// one as soon as it runs.
	bucketPoll = 50 * time.Millisecond

	policyTimeout = 2 * time.Second
)

// Follower calls back with each new policy, and each new set of keys if
// it wants them.
type Follower struct {
	// Policy gets each version that is sound, the first soon after the start.
	Policy func(Version)
	// Keys gets all keys after each change of any; the map is never written
	// again. Nil: not wanted.
	Keys func(map[string]policy.Key)
	// Trouble gets the reason why the policy may be out of date; nil when that is
	// over. What was good before stays in force.
	Trouble func(error)
}

// Run follows until ctx is done. The callbacks run one at a time.
func (f Follower) Run(ctx context.Context, nc *nats.Conn) error {
	news := make(chan *nats.Msg, 1024)
	sub, err := nc.ChanSubscribe(subjects.PolicyChanges, news)
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", subjects.PolicyChanges, err)
	}
	defer sub.Unsubscribe()
	poll := time.NewTimer(policyPoll)
	defer poll.Stop()
	state := followed{f: f, nc: nc}
	for {
		err := state.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrNoBucket) {
			poll.Reset(bucketPoll)
		} else {
			poll.Reset(policyPoll)
		}
		if text := errText(err); text != state.trouble {
			state.trouble = text
			if f.Trouble != nil {
				f.Trouble(err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-news:
			for len(news) > 0 { // one look finds all of them
				<-news
			}
		case <-poll.C:
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// followed is what a follower has told so far.
type followed struct {
	f       Follower
	nc      *nats.Conn
	all     uint64 // last sequence of the bucket when all of it was read
	allTold bool
	policy  uint64 // revision told; 0: the default
	told    bool
	keys    uint64 // last sequence of any key told
	keyTold bool
	trouble string
}

// look reads what has changed.
func (s *followed) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	last, err := s.last(ctx, ">")
	if err != nil {
		return err
	}
	if s.allTold && last == s.all {
		return nil
	}
	err = s.lookAtPolicy(ctx)
	if s.f.Keys != nil { // they hold, even where the policy is damaged
		err = errors.Join(err, s.lookAtKeys(ctx))
	}
	if err == nil {
		s.all, s.allTold = last, true
	}
	return err
}

// last is the sequence of the last message on a subject of the bucket; 0 if
// there is none.
func (s *followed) last(ctx context.Context, key string) (uint64, error) {
	m, err := s.get(ctx, key)
	if err != nil || m == nil {
		return 0, err
	}
	return m.Sequence, nil
}

// get reads the last message on a subject of the bucket; nil if there is none.
func (s *followed) get(ctx context.Context, key string) (*jetstream.RawStreamMsg, error) {
	m, err := s.nc.RequestWithContext(ctx, subjects.DirectGet(subjects.KVStream(subjects.PolicyBucket)),
		fmt.Appendf(nil, `{"last_by_subj":%q}`, subjects.KVSubject(subjects.PolicyBucket, key)))
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, ErrNoBucket
	}
	if err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	switch m.Header.Get("Status") {
	case "":
	case "404":
		return nil, nil
	default:
		return nil, fmt.Errorf("read the policy: %s %s", m.Header.Get("Status"), m.Header.Get("Description"))
	}
	raw := &jetstream.RawStreamMsg{Subject: m.Header.Get(jetstream.SubjectHeader), Header: m.Header, Data: m.Data}
	if _, err := fmt.Sscan(m.Header.Get(jetstream.SequenceHeader), &raw.Sequence); err != nil {
		return nil, fmt.Errorf("read the policy: sequence: %w", err)
	}
	return raw, nil
}

func (s *followed) lookAtPolicy(ctx context.Context) error {
	m, err := s.get(ctx, subjects.PolicyKey)
	if err != nil {
		return err
	}
	if m == nil || m.Header.Get("KV-Operation") != "" { // never set, or deleted
		if !s.told || s.policy != 0 {
			s.policy, s.told = 0, true
			s.f.Policy(Version{Policy: policy.Default()})
		}
		return nil
	}
	if s.told && m.Sequence == s.policy {
		return nil
	}
	v, err := parsePolicy(m.Data, m.Sequence)
	if err != nil {
		return err
	}
	s.policy, s.told = m.Sequence, true
	s.f.Policy(v)
	return nil
}

func (s *followed) lookAtKeys(ctx context.Context) error {
	last, err := s.last(ctx, subjects.AllAPIKeys)
	if err != nil || s.keyTold && last == s.keys {
		return err
	}
	store, err := Open(ctx, s.nc)
	if err != nil {
		return err
	}
	keys, err := store.Keys(ctx)
	if err != nil {
		return err
	}
	s.keys, s.keyTold = last, true
	s.f.Keys(keys)
	return nil
}
