package scenarios

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

// oldKeys are keys as an older version stored them: in the bucket of the policy.
type oldKeys struct {
	t  *testing.T
	js jetstream.JetStream
	kv jetstream.KeyValue
}

func keysBefore(t *testing.T, env *Env) oldKeys {
	t.Helper()
	js := env.JetStream()
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: subjects.PolicyBucket, History: 64, Storage: jetstream.FileStorage})
	if err != nil {
		t.Fatal(err)
	}
	return oldKeys{t, js, kv}
}

// put stores a key, twice so that it has a history, and returns the header that authenticates with it.
func (o oldKeys) put(id string) []string {
	o.t.Helper()
	secret := "sk-pulley-" + id + "-" + strings.Repeat("x", 43)
	for _, rpm := range []int{100, 1000} {
		k := policy.Key{ID: id, Tenant: "t", Hash: policy.HashKey(secret), Created: time.Now(), RPM: rpm}
		if _, err := o.kv.Put(o.t.Context(), subjects.APIKey(id), subjects.MustMarshal(k)); err != nil {
			o.t.Fatal(err)
		}
	}
	return []string{"Authorization", "Bearer " + secret}
}

func (o oldKeys) remove(id string) {
	o.t.Helper()
	if err := o.kv.Purge(o.t.Context(), subjects.APIKey(id)); err != nil {
		o.t.Fatal(err)
	}
}

// hashes counts the messages of the bucket of the policy that have the hash of a key: what a worker can read.
func (o oldKeys) hashes() (n int) {
	o.t.Helper()
	s, err := o.js.Stream(o.t.Context(), subjects.KVStream(subjects.PolicyBucket))
	if err != nil {
		o.t.Fatal(err)
	}
	for seq := s.CachedInfo().State.FirstSeq; seq <= s.CachedInfo().State.LastSeq; seq++ {
		if m, err := s.GetMsg(o.t.Context(), seq); err == nil && strings.Contains(string(m.Data), "hash") {
			n++
		}
	}
	return n
}

// Keys that an older version stored work at once with a gateway of this one, which moves them: the bucket of the policy,
// which workers read, has nothing of them any more. What was revoked stays so.
func TestKeysOfAnOlderVersion(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		old, body := keysBefore(t, env), chat("m", false, 1)
		good, gone, revoked := old.put("aaaaaaaaaa"), old.put("bbbbbbbbbb"), old.put("cccccccccc")
		old.remove("bbbbbbbbbb")
		g := env.Gateway(gateway.Config{})
		env.Worker(env.Handler("e", engineOf(using(1, 1, nil), "m")), worker.Config{Name: "e", Slots: 4})
		time.Sleep(2 * time.Second)
		works := func(when string, g *Gateway, header []string, want bool) {
			t.Helper()
			r := ask(t, g, body, "", header...)
			if want && r.status != 200 || !want && r.status != 401 {
				t.Errorf("%s: %d %s", when, r.status, r.body)
			}
		}
		works("at once", g, good, true)
		works("at once, removed before", g, gone, false)
		works("at once, without a key", g, nil, false)
		nc, _ := env.Connect("operator")
		store, err := policystore.Open(t.Context(), nc)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.RemoveKey(t.Context(), "cccccccccc"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(inForce)
		works("revoked before it was moved", g, revoked, false)
		time.Sleep(20 * time.Second)
		if n := old.hashes(); n > 0 {
			t.Errorf("the bucket of the policy has %d records of keys", n)
		}
		for when, g := range map[string]*Gateway{"later": g, "after a start": env.Gateway(gateway.Config{})} {
			time.Sleep(2 * time.Second)
			works(when, g, good, true)
			works(when+", removed before", g, gone, false)
			works(when+", revoked before it was moved", g, revoked, false)
		}
		if keys, err := store.Keys(t.Context()); err != nil || len(keys) != 1 || keys["aaaaaaaaaa"].RPM != 1000 {
			t.Errorf("keys %+v, %v", keys, err)
		}
	})
}

// While a gateway of the older version runs, which reads keys only where it knows them, they stay there too.
func TestKeysBesideAnOlderGateway(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		old := keysBefore(t, env)
		good := old.put("aaaaaaaaaa")
		nc, _ := env.Connect("older gateway")
		stop := make(chan struct{})
		ended := make(chan struct{})
		go older(nc, stop, ended)
		end := sync.OnceFunc(func() { close(stop); <-ended })
		defer end()
		g := env.Gateway(gateway.Config{})
		env.Worker(env.Handler("e", engineOf(using(1, 1, nil), "m")), worker.Config{Name: "e", Slots: 4})
		time.Sleep(30 * time.Second)
		if n := old.hashes(); n != 2 {
			t.Errorf("the bucket of the policy has %d records of keys, want both", n)
		}
		added := old.put("dddddddddd") // with the command of the older version
		time.Sleep(10 * time.Second)
		end()
		time.Sleep(30 * time.Second)
		if n := old.hashes(); n > 0 {
			t.Errorf("the older gateway is gone, and the bucket of the policy has %d records of keys", n)
		}
		for _, header := range [][]string{good, added} {
			if r := ask(t, g, chat("m", false, 1), "", header...); r.status != 200 {
				t.Errorf("got %d %s", r.status, r.body)
			}
		}
	})
}

// older publishes the references of a gateway of the older version.
func older(nc *nats.Conn, stop <-chan struct{}, ended chan<- struct{}) {
	defer close(ended)
	for {
		nc.Publish(subjects.GatewayRef("older"), []byte(`{"gw":"older","pools":{}}`))
		select {
		case <-stop:
			return
		case <-time.After(subjects.ReferenceEvery):
		}
	}
}
