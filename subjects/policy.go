package subjects

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
)

const (
	// PolicyBucket holds the policy under policyKey and each API key under
	// keyPrefix and its id.
	PolicyBucket = "PULLEY_POLICY"

	policyKey = "policy"
	keyPrefix = "key."

	// policyHistory is how many versions of the policy are kept: all that a
	// bucket can.
	policyHistory = 64
)

// PolicyVersion is a policy as it is stored.
type PolicyVersion struct {
	Revision uint64         `json:"revision"` // 0: nobody has set one, this is the default
	At       time.Time      `json:"at"`
	By       string         `json:"by"`  // who changed it
	Why      string         `json:"why"` // in words: the command
	Policy   *policy.Policy `json:"policy"`
}

// PolicyChanged is what a writer publishes on PolicyNews when a change is
// stored. Who misses it finds out within policyPoll.
type PolicyChanged struct {
	Key      string `json:"key"` // of the bucket
	Revision uint64 `json:"revision"`
}

// PolicyNews is where changes are told.
const PolicyNews = "pulley.policy"

// DamagedError says that what is stored is no sound policy.
type DamagedError struct {
	Revision uint64
	Err      error
}

func (e DamagedError) Error() string {
	return fmt.Sprintf("policy revision %d is damaged: %v", e.Revision, e.Err)
}
func (e DamagedError) Unwrap() error { return e.Err }

// ErrNoPolicyBucket says that no gateway has been here yet.
var ErrNoPolicyBucket = errors.New("no policy bucket on this broker: start a gateway")

// PolicyStore reads and changes the policy and the keys.
type PolicyStore struct {
	nc *nats.Conn
	js jetstream.JetStream
	kv jetstream.KeyValue
}

// OpenPolicyStore finds the bucket.
func OpenPolicyStore(ctx context.Context, nc *nats.Conn) (*PolicyStore, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	kv, err := js.KeyValue(ctx, PolicyBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, ErrNoPolicyBucket
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", PolicyBucket, err)
	}
	return &PolicyStore{nc: nc, js: js, kv: kv}, nil
}

// Load reads the policy in force. It is a DamagedError if what is stored is not
// sound.
func (s *PolicyStore) Load(ctx context.Context) (PolicyVersion, error) {
	e, err := s.kv.Get(ctx, policyKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return PolicyVersion{Policy: policy.Default()}, nil
	}
	if err != nil {
		return PolicyVersion{}, fmt.Errorf("read policy: %w", err)
	}
	return parsePolicy(e.Value(), e.Revision())
}

func parsePolicy(b []byte, revision uint64) (PolicyVersion, error) {
	var v PolicyVersion
	if err := json.Unmarshal(b, &v); err != nil {
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

// Update changes the policy: change gets a copy of the one in force, and is
// called again if somebody else was quicker. A result that does not Check is
// refused with a policy.Invalid and nothing changes. A change that changes
// nothing stores nothing.
func (s *PolicyStore) Update(ctx context.Context, by, why string, change func(*policy.Policy) error) (PolicyVersion, error) {
	for {
		v, err := s.Load(ctx)
		if err != nil {
			return v, err
		}
		before, err := json.Marshal(v.Policy)
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
		if after, err := json.Marshal(next); err != nil || string(after) == string(before) {
			return v, err
		}
		written, err := s.Put(ctx, PolicyVersion{Revision: v.Revision, By: by, Why: why, Policy: next})
		if errors.Is(err, ErrPolicyMoved) {
			continue
		}
		return written, err
	}
}

// ErrPolicyMoved says that the policy was changed by somebody else meanwhile.
var ErrPolicyMoved = errors.New("the policy has changed meanwhile")

// Put stores a policy that replaces revision v.Revision, and nothing newer.
func (s *PolicyStore) Put(ctx context.Context, v PolicyVersion) (PolicyVersion, error) {
	if err := v.Policy.Check(); err != nil {
		return v, err
	}
	v.At = time.Now().UTC()
	b, err := json.Marshal(v)
	if err != nil {
		return v, err
	}
	if most := s.nc.MaxPayload() - 1024; int64(len(b)) > most {
		return v, fmt.Errorf("the policy has %d bytes: the broker takes at most %d in one message", len(b), most)
	}
	revision, err := s.kv.Update(ctx, policyKey, b, v.Revision)
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || errors.Is(err, jetstream.ErrKeyExists) {
		return v, ErrPolicyMoved
	}
	if err != nil {
		return v, fmt.Errorf("store policy: %w", err)
	}
	v.Revision = revision
	s.tell(policyKey, revision)
	return v, nil
}

func (s *PolicyStore) tell(key string, revision uint64) {
	b, err := json.Marshal(PolicyChanged{Key: key, Revision: revision})
	if err != nil {
		panic(err) // plain fields always encode
	}
	s.nc.Publish(PolicyNews, b)
}

// History is the versions that are kept, the newest first. Damaged ones are
// there without a Policy, with the damage as Why.
func (s *PolicyStore) History(ctx context.Context) ([]PolicyVersion, error) {
	entries, err := s.kv.History(ctx, policyKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the policy's history: %w", err)
	}
	var list []PolicyVersion
	for _, e := range entries {
		v, err := parsePolicy(e.Value(), e.Revision())
		if err != nil {
			v = PolicyVersion{Revision: e.Revision(), At: e.Created(), Why: err.Error()}
		}
		list = append(list, v)
	}
	slices.Reverse(list)
	return list, nil
}

// Keys reads all API keys, by id.
func (s *PolicyStore) Keys(ctx context.Context) (map[string]policy.Key, error) {
	keys := make(map[string]policy.Key)
	w, err := s.kv.Watch(ctx, keyPrefix+"*", jetstream.IgnoreDeletes())
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	defer w.Stop()
	for {
		select {
		case e := <-w.Updates():
			if e == nil { // that was all
				return keys, nil
			}
			var k policy.Key
			if err := json.Unmarshal(e.Value(), &k); err != nil {
				return nil, fmt.Errorf("key %s is damaged: %w", e.Key(), err)
			}
			keys[k.ID] = k
		case <-ctx.Done():
			return nil, fmt.Errorf("read keys: %w", ctx.Err())
		}
	}
}

// Key reads one API key. False: there is none.
func (s *PolicyStore) Key(ctx context.Context, id string) (policy.Key, bool, error) {
	var k policy.Key
	e, err := s.kv.Get(ctx, keyPrefix+id)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return k, false, nil
	}
	if err != nil {
		return k, false, fmt.Errorf("read key %s: %w", id, err)
	}
	if err := json.Unmarshal(e.Value(), &k); err != nil {
		return k, false, fmt.Errorf("key %s is damaged: %w", id, err)
	}
	return k, true, nil
}

// PutKey stores an API key.
func (s *PolicyStore) PutKey(ctx context.Context, k policy.Key) error {
	if err := k.Check(); err != nil {
		return err
	}
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	revision, err := s.kv.Put(ctx, keyPrefix+k.ID, b)
	if err != nil {
		return fmt.Errorf("store key %s: %w", k.ID, err)
	}
	s.tell(keyPrefix+k.ID, revision)
	return nil
}

// RemoveKey revokes an API key: everywhere within a second.
func (s *PolicyStore) RemoveKey(ctx context.Context, id string) error {
	// A message of its own, so that whoever was away sees that something changed.
	if err := s.kv.Purge(ctx, keyPrefix+id); err != nil {
		return fmt.Errorf("remove key %s: %w", id, err)
	}
	s.tell(keyPrefix+id, 0)
	return nil
}

const (
	// policyPoll is how often everybody looks for a change that was not heard of.
	policyPoll = 500 * time.Millisecond

	// bucketPoll is the same while there is no bucket yet: the first gateway makes
	// one as soon as it runs.
	bucketPoll = 50 * time.Millisecond

	policyTimeout = 2 * time.Second
)

// PolicyFollower calls back with each new policy, and each new set of keys if
// it wants them.
type PolicyFollower struct {
	// Policy gets each version that is sound, the first soon after the start.
	Policy func(PolicyVersion)
	// Keys gets all keys after each change of any; the map is never written
	// again. Nil: not wanted.
	Keys func(map[string]policy.Key)
	// Trouble gets the reason why the policy may be out of date; nil when that is
	// over. What was good before stays in force.
	Trouble func(error)
}

// Run follows until ctx is done. The callbacks run one at a time.
func (f PolicyFollower) Run(ctx context.Context, nc *nats.Conn) error {
	news := make(chan *nats.Msg, 1024)
	sub, err := nc.ChanSubscribe(PolicyNews, news)
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", PolicyNews, err)
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
		if errors.Is(err, ErrNoPolicyBucket) {
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
	f       PolicyFollower
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
	m, err := s.nc.RequestWithContext(ctx, "$JS.API.DIRECT.GET.KV_"+PolicyBucket, fmt.Appendf(nil, `{"last_by_subj":"$KV.%s.%s"}`, PolicyBucket, key))
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, ErrNoPolicyBucket
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
	m, err := s.get(ctx, policyKey)
	if err != nil {
		return err
	}
	if m == nil || m.Header.Get("KV-Operation") != "" { // never set, or deleted
		if !s.told || s.policy != 0 {
			s.policy, s.told = 0, true
			s.f.Policy(PolicyVersion{Policy: policy.Default()})
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
	last, err := s.last(ctx, keyPrefix+"*")
	if err != nil || s.keyTold && last == s.keys {
		return err
	}
	store, err := OpenPolicyStore(ctx, s.nc)
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
