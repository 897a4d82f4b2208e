package policystore_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
)

// bucket is a broker with a policy bucket.
func bucket(t testing.TB) (*nats.Conn, jetstream.KeyValue) {
	t.Helper()
	nc := testenv.Broker(t, broker.Config{})
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := subjects.EnsureStreams(t.Context(), js, policy.DefaultTiers(), 1); err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), subjects.PolicyBucket)
	if err != nil {
		t.Fatal(err)
	}
	return nc, kv
}

var records = []string{
	"", "{", "null", "[]", "7", `"text"`, `{"policy":null}`, `{"policy":{}}`, `{"policy":{"tiers":[]}}`, `{"policy":{"tiers":[{"name":"standard","share":-1}]}}`,
	`{"policy":{"tiers":[{"name":"standard","share":1}],"routes":{"x":{"to":[]}}}}`, `{"revision":7,"revision":8}`, "\xff\xfe", `{"id":"k1k1k1k1k1","tenant":"t"}`,
	`{"id":"other","tenant":"t","hash":"AAAA"}`, `{"id":"k1k1k1k1k1","tenant":"t","hash":""}`,
}

// FuzzPolicyRecord stores damaged and foreign policies. A part that has just started follows the last valid one before.
func FuzzPolicyRecord(f *testing.F) {
	for _, r := range records {
		f.Add([]byte(r))
	}
	nc, kv := bucket(f)
	store, err := policystore.Open(f.Context(), nc)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		if err := kv.Purge(t.Context(), subjects.PolicyKey); err != nil {
			t.Fatal(err)
		}
		good := policy.Default()
		good.Routes = map[string]policy.Route{"alias": {To: []policy.Target{{Pool: "m", Weight: 1}}}}
		v, err := store.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if v, err = store.Put(t.Context(), policystore.Version{Revision: v.Revision, Policy: good}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := kv.Put(t.Context(), subjects.PolicyKey, record); err != nil {
				t.Fatal(err)
			}
		}
		now, err := store.Load(t.Context())
		damaged := err != nil
		if _, is := errors.AsType[policystore.DamagedError](err); damaged && !is {
			t.Fatal(err)
		}
		if !damaged && now.Policy.Check() != nil {
			t.Errorf("a policy that is not valid was loaded: %q", record)
		}
		if list, err := store.History(t.Context()); err != nil || len(list) < 3 {
			t.Errorf("history of %d versions, %v", len(list), err)
		}
		got, trouble := follow(t, nc)
		if damaged && (got.Revision != v.Revision || len(got.Policy.Routes) != 1 || trouble == nil) {
			t.Errorf("record %q: follows revision %d, trouble %v; want %d, the last valid one", record, got.Revision, trouble, v.Revision)
		}
	})
}

// follow returns what a part follows that starts now, and what it is told of trouble.
func follow(t *testing.T, nc *nats.Conn) (got policystore.Version, trouble error) {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	var following sync.WaitGroup
	var mu sync.Mutex
	first := make(chan struct{})
	var once sync.Once
	f := policystore.Follower{
		Policy: func(v policystore.Version) {
			mu.Lock()
			defer mu.Unlock()
			got = v
			once.Do(func() { close(first) })
		},
		Trouble: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			trouble = err
		},
	}
	following.Go(func() { f.Run(ctx, nc) })
	select {
	case <-first:
	case <-time.After(time.Minute):
		t.Error("no policy is followed")
	}
	for range 200 { // the trouble is told right after
		mu.Lock()
		told := trouble != nil
		mu.Unlock()
		if told || got.Revision == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	end()
	following.Wait()
	return got, trouble
}

// FuzzKeyRecord stores damaged and foreign records of keys, where they are and where older versions had them: only the key
// whose record it is suffers, and it can be removed.
func FuzzKeyRecord(f *testing.F) {
	for _, r := range records {
		f.Add([]byte(r))
	}
	nc, old := bucket(f)
	js, err := jetstream.New(nc)
	if err != nil {
		f.Fatal(err)
	}
	now, err := js.KeyValue(f.Context(), subjects.KeysBucket)
	if err != nil {
		f.Fatal(err)
	}
	store, err := policystore.Open(f.Context(), nc)
	if err != nil {
		f.Fatal(err)
	}
	good := policy.Key{ID: "goodgoodgo", Tenant: "t", Hash: policy.HashKey("secret"), Created: time.Now().UTC()}
	if err := store.PutKey(f.Context(), good); err != nil {
		f.Fatal(err)
	}
	turn := 0
	f.Fuzz(func(t *testing.T, record []byte) {
		turn++
		// What the bucket of today says of a key holds, also that it is removed. So the old one has another id each time.
		for id, kv := range map[string]jetstream.KeyValue{"k1k1k1k1k1": now, fmt.Sprintf("k%09d", turn): old} {
			if _, err := kv.Put(t.Context(), subjects.APIKey(id), record); err != nil {
				t.Fatal(err)
			}
			keys, err := store.Keys(t.Context())
			if err != nil || len(keys) != 2 || keys["goodgoodgo"].Damage != "" || keys["goodgoodgo"].Tenant != "t" {
				t.Fatalf("record %q of %s: keys %v, %v", record, id, keys, err)
			}
			if k := keys[id]; k.ID != id || k.Damage == "" && k.Check() != nil {
				t.Errorf("record %q: key %+v", record, k)
			}
			if err := store.RemoveKey(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if keys, err := store.Keys(t.Context()); err != nil || len(keys) != 1 {
				t.Errorf("record %q: after its removal %v, %v", record, keys, err)
			}
		}
	})
}

func TestFollowsTheDefaultIfNoVersionIsValid(t *testing.T) {
	nc, kv := bucket(t)
	for i := range 3 {
		if _, err := kv.PutString(t.Context(), subjects.PolicyKey, fmt.Sprint("damaged ", i)); err != nil {
			t.Fatal(err)
		}
	}
	if got, trouble := follow(t, nc); got.Revision != 0 || len(got.Policy.Tiers) != len(policy.DefaultTiers()) {
		t.Errorf("revision %d, %d tiers, trouble %v", got.Revision, len(got.Policy.Tiers), trouble)
	}
}
