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
	state := followState{f: f, nc: nc, all: unread, policy: unread, keys: [2]uint64{unread, unread}}
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
	all    uint64    // last sequence of the policy's bucket when everything had been read
	policy uint64    // last revision reported; 0: the default
	keys   [2]uint64 // last sequences in the buckets of keys and of the policy when the keys were reported
}

// unread is no sequence: nothing has been read so far.
const unread = math.MaxUint64

// poll reads and reports what has changed.
func (s *followState) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	last, err := s.get(ctx, subjects.PolicyBucket, ">")
	if err != nil {
		return err
	}
	if s.f.Keys == nil && last.Sequence == s.all {
		return nil
	}
	if last.Sequence != s.all {
		if err = s.readPolicy(ctx); err == nil {
			s.all = last.Sequence
		}
	}
	if s.f.Keys != nil { // keys are reported even if the policy is damaged
		err = errors.Join(err, s.readKeys(ctx, last.Sequence))
	}
	return err
}

// get reads the last message of a key of a bucket, which may be a wildcard. Its sequence is 0 if there is none.
func (s *followState) get(ctx context.Context, bucket, key string) (raw jetstream.RawStreamMsg, err error) {
	return s.ask(ctx, bucket, fmt.Appendf(nil, `{"last_by_subj":%q,`+subjects.DirectGetBound+`}`, subjects.KVSubject(bucket, key)))
}

// ask returns the message of a bucket that a query is about; its sequence is 0 if there is none.
func (s *followState) ask(ctx context.Context, bucket string, query []byte) (raw jetstream.RawStreamMsg, err error) {
	m, err := s.nc.RequestWithContext(ctx, subjects.DirectGet(subjects.KVStream(bucket)), query)
	if errors.Is(err, nats.ErrNoResponders) {
		return raw, ErrNoBucket
	}
	what := "read the policy"
	if bucket == subjects.KeysBucket {
		what = "read the keys"
	}
	if err != nil {
		return raw, fmt.Errorf("%s: %w", what, err)
	}
	switch m.Header.Get("Status") {
	case "":
	case "404":
		return raw, nil
	default:
		return raw, fmt.Errorf("%s: %s %s", what, m.Header.Get("Status"), m.Header.Get("Description"))
	}
	raw = jetstream.RawStreamMsg{Header: m.Header, Data: m.Data}
	if _, err := fmt.Sscan(m.Header.Get(jetstream.SequenceHeader), &raw.Sequence); err != nil {
		return raw, fmt.Errorf("%s: sequence: %w", what, err)
	}
	return raw, nil
}

func (s *followState) readPolicy(ctx context.Context) error {
	m, err := s.get(ctx, subjects.PolicyBucket, subjects.PolicyKey)
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
		if s.policy == unread {
			s.recall(ctx, m.Sequence)
		}
		return err
	}
	s.policy = m.Sequence
	s.f.Policy(v)
	return nil
}

// recall reports the last valid version before a damaged one. A part that has just started has none in effect.
func (s *followState) recall(ctx context.Context, damaged uint64) {
	last := Version{Policy: policy.Default()}
	for seq := uint64(1); ; {
		m, err := s.ask(ctx, subjects.PolicyBucket, fmt.Appendf(nil, `{"seq":%d,"next_by_subj":%q,`+subjects.DirectGetBound+`}`, seq, subjects.KVSubject(subjects.PolicyBucket, subjects.PolicyKey)))
		if err != nil {
			return // the next poll tries again
		}
		if m.Sequence == 0 || m.Sequence >= damaged {
			break
		}
		if v, err := parsePolicy(m.Data, m.Sequence); err == nil && m.Header.Get("KV-Operation") == "" {
			last = v
		} else if m.Header.Get("KV-Operation") != "" {
			last = Version{Policy: policy.Default()}
		}
		seq = m.Sequence + 1
	}
	s.policy = last.Revision
	s.f.Policy(last)
}

// readKeys reads and reports the keys if one of the two buckets has changed that may have some; old is the last sequence of
// that of the policy.
func (s *followState) readKeys(ctx context.Context, old uint64) error {
	last, err := s.get(ctx, subjects.KeysBucket, ">")
	if err != nil {
		return err
	}
	at := [2]uint64{last.Sequence, old}
	if at == s.keys {
		return nil
	}
	store, err := Open(ctx, s.nc)
	if err != nil {
		return err
	}
	keys, err := store.Keys(ctx)
	if err != nil {
		return err
	}
	s.keys = at
	s.f.Keys(keys)
	return nil
}
