package policystore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// policyPoll is how often every part looks for a change whose announcement it missed.
	policyPoll = 500 * time.Millisecond

	// bucketPoll replaces policyPoll while there is no bucket: the first gateway creates one as soon as it runs.
	bucketPoll = 50 * time.Millisecond

	policyTimeout = 2 * time.Second
)

// Follower calls back with each new policy, and with each new set of keys if Keys is set.
type Follower struct {
	// Policy receives each valid version, the first one soon after the start.
	Policy func(Version)
	// Keys receives all keys after any of them has changed. The map is not modified afterwards. Nil: keys are not read.
	Keys func(map[string]policy.Key)
	// Trouble receives the reason why the policy may be out of date, and nil when that is over.
	// Meanwhile the last valid version stays in effect.
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
	timer := time.NewTimer(policyPoll)
	defer timer.Stop()
	state := followState{f: f, nc: nc, all: unread, policy: unread, keys: unread}
	var trouble error // the last poll's
	for {
		err := state.poll(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrNoBucket) {
			timer.Reset(bucketPoll)
		} else {
			timer.Reset(policyPoll)
		}
		if f.Trouble != nil && fmt.Sprint(err) != fmt.Sprint(trouble) {
			f.Trouble(err)
		}
		trouble = err
		select {
		case <-ctx.Done():
			return nil
		case <-news:
			for len(news) > 0 { // one poll finds all changes
				<-news
			}
		case <-timer.C:
		}
	}
}

// followState is what a follower has reported so far.
type followState struct {
	f      Follower
	nc     *nats.Conn
	all    uint64 // last sequence of the bucket when everything had been read
	policy uint64 // last revision reported; 0: the default
	keys   uint64 // last sequence of any key reported
}

// unread is no sequence: nothing has been read so far.
const unread = math.MaxUint64

// poll reads and reports what has changed.
func (s *followState) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	last, err := s.get(ctx, ">")
	if err != nil || last.Sequence == s.all {
		return err
	}
	err = s.readPolicy(ctx)
	if s.f.Keys != nil { // keys are reported even if the policy is damaged
		err = errors.Join(err, s.readKeys(ctx))
	}
	if err == nil {
		s.all = last.Sequence
	}
	return err
}

// get reads the last message of a key of the bucket, which may be a wildcard. Its sequence is 0 if there is none.
func (s *followState) get(ctx context.Context, key string) (raw jetstream.RawStreamMsg, err error) {
	m, err := s.nc.RequestWithContext(ctx, subjects.DirectGet(subjects.KVStream(subjects.PolicyBucket)),
		fmt.Appendf(nil, `{"last_by_subj":%q}`, subjects.KVSubject(subjects.PolicyBucket, key)))
	if errors.Is(err, nats.ErrNoResponders) {
		return raw, ErrNoBucket
	}
	if err != nil {
		return raw, fmt.Errorf("read the policy: %w", err)
	}
	switch m.Header.Get("Status") {
	case "":
	case "404":
		return raw, nil
	default:
		return raw, fmt.Errorf("read the policy: %s %s", m.Header.Get("Status"), m.Header.Get("Description"))
	}
	raw = jetstream.RawStreamMsg{Header: m.Header, Data: m.Data}
	if _, err := fmt.Sscan(m.Header.Get(jetstream.SequenceHeader), &raw.Sequence); err != nil {
		return raw, fmt.Errorf("read the policy: sequence: %w", err)
	}
	return raw, nil
}

func (s *followState) readPolicy(ctx context.Context) error {
	m, err := s.get(ctx, subjects.PolicyKey)
	if err != nil {
		return err
	}
	if m.Sequence == 0 || m.Header.Get("KV-Operation") != "" { // never set, or deleted
		if s.policy != 0 {
			s.policy = 0
			s.f.Policy(Version{Policy: policy.Default()})
		}
		return nil
	}
	if m.Sequence == s.policy {
		return nil
	}
	v, err := parsePolicy(m.Data, m.Sequence)
	if err != nil {
		return err
	}
	s.policy = m.Sequence
	s.f.Policy(v)
	return nil
}

func (s *followState) readKeys(ctx context.Context) error {
	last, err := s.get(ctx, subjects.AllAPIKeys)
	if err != nil || last.Sequence == s.keys {
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
	s.keys = last.Sequence
	s.f.Keys(keys)
	return nil
}
