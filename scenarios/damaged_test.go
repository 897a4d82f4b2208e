package scenarios

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

// Whatever stands in the broker that is damaged or of someone else, gateways and workers that start serve, by the last valid
// policy; and what is mended takes effect.
func TestDamagedState(t *testing.T) {
	for about, bad := range map[string]string{
		"nothing": "", "no JSON": "\x00\xff{", "other JSON": `{"policy":7,"id":[],"loads":"x","w":{}}`, "null": "null", "large": strings.Repeat("x", 100_000),
	} {
		if raceEnabled && about != "other JSON" {
			continue
		}
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				first := env.Gateway(gateway.Config{})
				e := env.Engine(slow("a"))
				w := env.Worker(e, worker.Config{Name: "a", Slots: 4})
				first.Serves(t, "m")
				env.SetPolicy(func(p *policy.Policy) {
					p.Routes = map[string]policy.Route{"alias": {To: []policy.Target{{Pool: "m", Weight: 1}}}}
				})
				key := env.AddKey("acme")
				w.Stop()

				js := env.JetStream()
				for _, bucket := range []string{subjects.PolicyBucket, subjects.KeysBucket, subjects.PoolsBucket, subjects.WorkersBucket, subjects.LearnedBucket} {
					kv, err := js.KeyValue(t.Context(), bucket)
					if err != nil {
						t.Fatal(err)
					}
					keys, err := kv.Keys(t.Context())
					if err != nil && err != jetstream.ErrNoKeysFound {
						t.Fatal(err)
					}
					for _, k := range append(keys, "foreign", "_GG", "_FF_FE", strings.Repeat("x", 400), "a.b") {
						if strings.HasPrefix(k, "key.") {
							continue
						}
						if _, err := kv.PutString(t.Context(), k, bad); err != nil {
							t.Fatal(err)
						}
					}
				}
				damaged := map[string]string{"abcdefghij": subjects.KeysBucket, "bcdefghijk": subjects.PolicyBucket} // where older versions had keys
				for id, bucket := range damaged {
					kv, err := js.KeyValue(t.Context(), bucket)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := kv.PutString(t.Context(), subjects.APIKey(id), bad); err != nil {
						t.Fatal(err)
					}
				}
				for _, subject := range []string{subjects.Req("standard", "m", subjects.Shared), subjects.Req("batch", "m", "foreign"), subjects.Dead("standard", "m")} {
					if _, err := js.Publish(t.Context(), subject, []byte(bad)); err != nil {
						t.Fatal(err)
					}
				}

				g := env.Gateway(gateway.Config{})
				env.Worker(e, worker.Config{Name: "a", Slots: 4})
				for _, g := range []*Gateway{first, g} {
					testServes(t, g, key)
					if r := ask(t, g, chat("alias", false, 3), "", "Authorization", "Bearer "+key); r.status != 200 {
						t.Errorf("by the last valid policy: %d %q", r.status, r.body)
					}
					for id := range damaged {
						if r := ask(t, g, chat("m", false, 3), "", "Authorization", "Bearer sk-pulley-"+id+"-x"); r.status != 401 {
							t.Errorf("with the damaged key %s: %d %q", id, r.status, r.body)
						}
					}
				}
				if list := kept(t, js, "xxx"); len(list) > 0 {
					t.Errorf("entries of no pool have %v", list)
				}
				nc, _ := env.Connect("operator")
				store, err := policystore.Open(t.Context(), nc)
				if err != nil {
					t.Fatal(err)
				}
				for id := range damaged {
					if err := store.RemoveKey(t.Context(), id); err != nil {
						t.Error(err)
					}
				}
				history, err := store.History(t.Context())
				if err != nil || len(history) < 2 {
					t.Fatalf("history %v, %v", history, err)
				}
				v := history[1] // as policy rollback does
				v.Revision = history[0].Revision
				v.Policy.Routes["other"] = policy.Route{To: []policy.Target{{Pool: "m", Weight: 1}}}
				if _, err := store.Put(t.Context(), v); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				for _, g := range []*Gateway{first, g} {
					if r := ask(t, g, chat("other", false, 3), "", "Authorization", "Bearer "+key); r.status != 200 {
						t.Errorf("by the mended policy: %d %q", r.status, r.body)
					}
				}
			})
		})
	}
}

// testServes waits until a gateway serves the model m to a client with a key.
func testServes(t *testing.T, g *Gateway, key string) {
	t.Helper()
	var r reply
	for range 100 {
		if r = ask(t, g, chat("m", false, 3), "", "Authorization", "Bearer "+key); r.status == 200 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("not served: %d %q", r.status, r.body)
}
