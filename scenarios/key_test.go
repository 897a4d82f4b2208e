package scenarios

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// keys changes API keys, as an operator does.
type keys struct {
	t     testing.TB
	store *policystore.Store
	ctx   context.Context
}

func keysOf(t testing.TB, env *Env) keys {
	t.Helper()
	nc, _ := env.Connect("operator")
	store, err := policystore.Open(t.Context(), nc)
	if err != nil {
		t.Fatal(err)
	}
	return keys{t, store, t.Context()}
}

// keyText is the key with an id.
func keyText(id string) string { return "sk-pulley-" + id + "-" + strings.Repeat("s", 43) }

// put stores a key under its id. It takes effect within a second.
func (k keys) put(key policy.Key) (header []string) {
	k.t.Helper()
	if key.Hash == "" {
		key.Hash = policy.HashKey(keyText(key.ID))
	}
	if key.Tenant == "" {
		key.Tenant = "acme"
	}
	if err := k.store.PutKey(k.ctx, key); err != nil {
		k.t.Fatal(err)
	}
	return []string{"Authorization", "Bearer " + keyText(key.ID)}
}

func (k keys) remove(id string) {
	k.t.Helper()
	if err := k.store.RemoveKey(k.ctx, id); err != nil {
		k.t.Fatal(err)
	}
}

// inForce is how long a change may take.
const inForce = time.Second

// using is an engine that answers at once, or when wait returns, and reports its token usage.
func using(input, output int, wait func(ctx context.Context)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if wait != nil {
			wait(r.Context())
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"id":"x","object":"chat.completion","choices":[{"message":{"content":"yes"}}],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}`, input, output, input+output)
	}
}

// threeGateways are in front of one worker with many slots.
func threeGateways(t *testing.T, env *Env, serve http.HandlerFunc) []*Gateway {
	t.Helper()
	var gs []*Gateway
	for range 3 {
		gs = append(gs, env.Gateway(gateway.Config{}))
	}
	env.Worker(env.Handler("e", engineOf(serve, "m")), worker.Config{Name: "e", Slots: 1000})
	for _, g := range gs {
		g.Serves(t, "m")
	}
	return gs
}

func TestKeysAreRequiredAsSoonAsOneExists(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, using(1, 1, nil))
		required := env.Gateway(gateway.Config{Auth: gateway.AuthRequired})
		off := env.Gateway(gateway.Config{Auth: gateway.AuthOff})
		off.Serves(t, "m")
		body := chat("m", false, 1)
		for _, header := range [][]string{nil, {"Authorization", "Bearer x"}, {"X-Api-Key", "x"}, {"Authorization", "Basic x"}} {
			if r := ask(t, g, body, "", header...); r.status != 200 {
				t.Errorf("%v without any key: %d %s", header, r.status, r.body)
			}
			wantError(t, ask(t, required, body, "", header...), 401, "invalid_api_key")
		}
		k := keysOf(t, env)
		header := k.put(policy.Key{ID: "aaaaaaaaaa"})
		time.Sleep(inForce)
		wantError(t, ask(t, g, body, ""), 401, "invalid_api_key")
		wantError(t, do(t, g, "GET", "/v1/models", ""), 401, "invalid_api_key")
		wantError(t, do(t, g, "GET", "/v1/models/m", ""), 401, "invalid_api_key")
		for _, g := range []*Gateway{g, required, off} {
			if r := ask(t, g, body, "", header...); r.status != 200 {
				t.Errorf("with the key: %d %s", r.status, r.body)
			}
		}
		if r := ask(t, off, body, ""); r.status != 200 {
			t.Errorf("keys are off: %d %s", r.status, r.body)
		}
		if r := do(t, g, "GET", "/healthz", ""); r.status != 200 {
			t.Errorf("health asks for a key: %d", r.status)
		}
		late := env.Gateway(gateway.Config{})
		wantError(t, ask(t, late, body, ""), 401, "invalid_api_key")
	})
}

// A record that cannot be read costs the key that it is of, and nothing else: other keys work, can be revoked and added, and
// gateways that start accept them. It does not open the gateway to everybody.
func TestDamagedKey(t *testing.T) {
	for about, record := range map[string]string{
		"no JSON": "{", "nothing": "", "another type": "[]", "the record of another key": `{"id":"bbbbbbbbbb","tenant":"t"}`, "no hash": `{"id":"aaaaaaaaaa","tenant":"t"}`,
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := with(t, env, gateway.Config{}, using(1, 1, nil))
				k, body := keysOf(t, env), chat("m", false, 1)
				damaged, other := k.put(policy.Key{ID: "aaaaaaaaaa"}), k.put(policy.Key{ID: "cccccccccc"})
				kv, err := env.JetStream().KeyValue(t.Context(), subjects.KeysBucket)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := kv.Put(t.Context(), subjects.APIKey("aaaaaaaaaa"), []byte(record)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(inForce)
				late := env.Gateway(gateway.Config{})
				time.Sleep(2 * time.Second) // until the worker knows it
				added := k.put(policy.Key{ID: "dddddddddd"})
				time.Sleep(inForce)
				for _, g := range []*Gateway{g, late} {
					wantError(t, ask(t, g, body, "", damaged...), 401, "invalid_api_key")
					for _, header := range [][]string{other, added} {
						if r := ask(t, g, body, "", header...); r.status != 200 {
							t.Errorf("another key: %d %s", r.status, r.body)
						}
					}
				}
				k.remove("cccccccccc")
				k.remove("dddddddddd")
				time.Sleep(inForce)
				for _, g := range []*Gateway{g, late, env.Gateway(gateway.Config{})} {
					wantError(t, ask(t, g, body, "", other...), 401, "invalid_api_key")
					wantError(t, ask(t, g, body, ""), 401, "invalid_api_key")
				}
				keys, err := k.store.Keys(k.ctx)
				if err != nil || len(keys) != 1 || keys["aaaaaaaaaa"].Damage == "" {
					t.Errorf("keys %+v, %v", keys, err)
				}
			})
		})
	}
}

func TestAKeyIsCheckedHoweverItIsSent(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, using(1, 1, nil))
		k := keysOf(t, env)
		k.put(policy.Key{ID: "aaaaaaaaaa"})
		k.put(policy.Key{ID: "bbbbbbbbbb", Expires: time.Now().Add(-time.Hour)})
		time.Sleep(inForce)
		good, expired := keyText("aaaaaaaaaa"), keyText("bbbbbbbbbb")
		const missing, wrong = "no API key was sent", "the API key is wrong, or has been revoked"
		for about, c := range map[string]struct {
			header []string
			says   string // "" is accepted
		}{
			"OpenAI":                   {[]string{"Authorization", "Bearer " + good}, ""},
			"Anthropic":                {[]string{"X-Api-Key", good}, ""},
			"Azure":                    {[]string{"Api-Key", good}, ""},
			"lower case":               {[]string{"Authorization", "bearer " + good}, ""},
			"spaces":                   {[]string{"Authorization", "Bearer   " + good + " "}, ""},
			"with another's":           {[]string{"Authorization", "Bearer sk-proj-1", "X-Api-Key", good}, ""},
			"with a password":          {[]string{"Authorization", "Basic eDp5", "Api-Key", good}, ""},
			"the good one comes first": {[]string{"Authorization", "Bearer " + good, "X-Api-Key", keyText("cccccccccc")}, ""},
			"none":                     {nil, missing},
			"an empty one":             {[]string{"Authorization", "Bearer "}, missing},
			"no scheme":                {[]string{"Authorization", good}, missing},
			"another scheme":           {[]string{"Authorization", "Basic " + good}, missing},
			"another service's":        {[]string{"Authorization", "Bearer sk-proj-abc"}, wrong},
			"an unknown id":            {[]string{"Authorization", "Bearer " + keyText("cccccccccc")}, wrong},
			"another secret":           {[]string{"Authorization", "Bearer " + good[:len(good)-1] + "t"}, wrong},
			"a shorter secret":         {[]string{"Authorization", "Bearer " + good[:len(good)-1]}, wrong},
			"a longer secret":          {[]string{"Authorization", "Bearer " + good + "s"}, wrong},
			"no secret":                {[]string{"Authorization", "Bearer sk-pulley-aaaaaaaaaa-"}, wrong},
			"the hash for a secret":    {[]string{"Authorization", "Bearer " + policy.HashKey(good)}, wrong},
			"one that expired":         {[]string{"Authorization", "Bearer " + expired}, "expired on 19"},
			"one wrong, expired":       {[]string{"Authorization", "Bearer " + expired + "s"}, wrong},
		} {
			t := labelled{t, about}
			r := ask(t, g, chat("m", false, 1), "", c.header...)
			if c.says == "" {
				if r.status != 200 {
					t.Errorf("%d %s", r.status, r.body)
				}
				continue
			}
			if m := wantError(t, r, 401, "invalid_api_key"); !strings.Contains(m, c.says) {
				t.Errorf("message %q, want %q in it", m, c.says)
			}
			if strings.Contains(r.body, "ssss") {
				t.Errorf("the secret is in the answer: %s", r.body)
			}
		}
		wantMetrics(t, g, `pulley_auth_refused_total{reason="missing"} 4`, `pulley_auth_refused_total{reason="wrong"} 8`, `pulley_auth_refused_total{reason="expired"} 1`)
		r := askAt(t, g, "/v1/messages", chat("m", false, 1), "")
		wantError(t, r, 401, "invalid_api_key")
		if !strings.Contains(r.body, `"type":"authentication_error"`) {
			t.Errorf("not in Anthropic's form: %s", r.body)
		}
	})
}

func wantMetrics(t testing.TB, g *Gateway, lines ...string) {
	t.Helper()
	resp, err := g.Client.Get("http://admin/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		if !strings.Contains(string(b), line+"\n") {
			t.Errorf("no %s in the metrics", line)
		}
	}
}

func TestAKeyAllowsModelsAndTiers(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		env.Worker(env.Handler("e", engineOf(using(1, 1, nil), "gpt-4o", "llama")), worker.Config{Name: "e", Slots: 4})
		g.Serves(t, "llama")
		k := keysOf(t, env)
		some := k.put(policy.Key{ID: "aaaaaaaaaa", Models: []string{"gpt-*"}, Tiers: []string{"batch", "priority"}})
		any := k.put(policy.Key{ID: "bbbbbbbbbb"})
		time.Sleep(inForce)
		for _, c := range []struct {
			header      []string
			model, tier string
			status      int
			code, want  string // code of an error, or the tier that served
		}{
			{some, "gpt-4o", "", 200, "", "batch"},
			{some, "gpt-4o", "priority", 200, "", "priority"},
			{some, "gpt-4o", "standard", 403, "tier_not_allowed", ""},
			{some, "gpt-4o", "gold", 400, "invalid_request", ""},
			{some, "llama", "", 403, "model_not_allowed", ""},
			{some, "nope", "", 403, "model_not_allowed", ""}, // the answer does not reveal which models exist
			{any, "llama", "", 200, "", "standard"},
			{any, "llama", "flex", 200, "", "batch"},
			{any, "llama", "priority", 403, "tier_not_allowed", ""},
			{any, "nope", "", 404, "model_not_found", ""},
		} {
			t := labelled{t, fmt.Sprintf("model %q, tier %q", c.model, c.tier)}
			var more []string
			if c.tier != "" {
				more = append(more, fmt.Sprintf(`"service_tier":%q`, c.tier))
			}
			r := ask(t, g, chat(c.model, false, 1, more...), "", c.header...)
			if c.code != "" {
				wantError(t, r, c.status, c.code)
			} else if r.status != 200 || r.header.Get("X-Service-Tier") != c.want {
				t.Errorf("%d by tier %q, want 200 by %q: %s", r.status, r.header.Get("X-Service-Tier"), c.want, r.body)
			}
		}
		if r := do(t, g, "GET", "/v1/models", "", some...); !strings.Contains(r.body, "gpt-4o") || strings.Contains(r.body, "llama") {
			t.Errorf("models that the key may ask for: %s", r.body)
		}
	})
}

// Keys are added, changed and removed while clients ask, everywhere within a second.
func TestKeysChangeEverywhereWithinASecond(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		gs := threeGateways(t, env, using(1, 1, nil))
		k := keysOf(t, env)
		k.put(policy.Key{ID: "zzzzzzzzzz"}) // so that a key is required
		// status is the answer of all gateways, once they agree.
		settle := func(what string, want int, header []string) {
			t.Helper()
			began := time.Now()
			testenv.Eventually(t, what, inForce, func() bool {
				for _, g := range gs {
					if r := ask(t, g, chat("m", false, 1), "", header...); r.status != want {
						return false
					}
				}
				return true
			})
			t.Logf("%s: after %v", what, time.Since(began))
		}
		header := k.put(policy.Key{ID: "aaaaaaaaaa"})
		settle("added", 200, header)
		k.remove("aaaaaaaaaa")
		settle("revoked", 401, header)

		k.put(policy.Key{ID: "aaaaaaaaaa"})
		settle("added again", 200, header)
		fresh := keyText("aaaaaaaaaa") + "-fresh"
		until := time.Now().Add(time.Minute)
		k.put(policy.Key{ID: "aaaaaaaaaa", Hash: policy.HashKey(fresh), OldHash: policy.HashKey(keyText("aaaaaaaaaa")), OldUntil: until})
		settle("rotated: the new one", 200, []string{"X-Api-Key", fresh})
		settle("rotated: the old one", 200, header)
		time.Sleep(time.Until(until) - time.Millisecond)
		settle("just before the overlap ends", 200, header)
		time.Sleep(time.Until(until))
		settle("after the overlap", 401, header)
		if r := ask(t, gs[0], chat("m", false, 1), "", header...); !strings.Contains(r.body, "replaced") {
			t.Errorf("a rotated key: %s", r.body)
		}
		settle("the new one after the overlap", 200, []string{"X-Api-Key", fresh})

		expires := time.Now().Add(30 * time.Second)
		header = k.put(policy.Key{ID: "bbbbbbbbbb", Expires: expires})
		settle("added for 30 s", 200, header)
		time.Sleep(time.Until(expires) - time.Millisecond)
		if r := ask(t, gs[0], chat("m", false, 1), "", header...); r.status != 200 {
			t.Errorf("just before it expires: %d", r.status)
		}
		time.Sleep(time.Until(expires))
		for _, g := range gs {
			wantError(t, ask(t, g, chat("m", false, 1), "", header...), 401, "invalid_api_key")
		}
	})
}
