package scenarios

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

// Ollama takes a model's name in any case, and without the tag latest; through the gateway it does too.
func TestNamesOfOllama(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		env.Worker(env.Engine(sim.Config{Name: "o", Models: []string{"llama3.2:latest", "Qwen2.5:7B"}, Dialect: engine.DialectOllama}), worker.Config{Name: "o"})
		env.Worker(env.Engine(sim.Config{Name: "v", Models: []string{"mistral", "Gemma"}, Dialect: engine.DialectVLLM}), worker.Config{Name: "v"})
		g.Serves(t, "llama3.2:latest")
		g.Serves(t, "mistral")
		ks := keysOf(t, env)
		for name, want := range map[string]string{
			"llama3.2:latest": "llama3.2:latest", "llama3.2": "llama3.2:latest", "Llama3.2": "llama3.2:latest", "LLAMA3.2:Latest": "llama3.2:latest",
			"qwen2.5:7b": "Qwen2.5:7B", "Qwen2.5:7B": "Qwen2.5:7B", "mistral": "mistral", "Gemma": "Gemma",
			"qwen2.5": "", "llama3.2:1b": "", "llama3": "", "Mistral": "", "mistral:latest": "", "gemma": "",
		} {
			for _, stream := range []bool{false, true} {
				r := ask(t, g, chat(name, stream, 1), "")
				if want == "" {
					wantError(t, r, 404, "model_not_found")
				} else if r.status != 200 || !strings.Contains(r.body, fmt.Sprintf(`"model":%q`, name)) {
					t.Errorf("%s: got %d %s, want an answer of %s", name, r.status, r.body, name)
				}
			}
			r := do(t, g, "GET", "/v1/models/"+name, "")
			if want == "" && r.status != 404 || want != "" && (r.status != 200 || !strings.Contains(r.body, fmt.Sprintf(`"id":%q`, want))) {
				t.Errorf("GET %s: got %d %s, want %s", name, r.status, r.body, want)
			}
		}
		// Routes, to and from such names.
		env.SetPolicy(func(p *policy.Policy) {
			p.Routes = map[string]policy.Route{
				"gpt-4o":   {To: []policy.Target{{Pool: "llama3.2", Weight: 1}}},
				"llama3.2": {To: []policy.Target{{Pool: "mistral", Weight: 1}}},
			}
		})
		time.Sleep(time.Second)
		for name, answers := range map[string]string{"gpt-4o": "llama3.2:latest", "llama3.2": "mistral", "LLAMA3.2": "mistral", "llama3.2:latest": "mistral"} {
			if r := ask(t, g, chat(name, false, 1), ""); r.status != 200 || !strings.Contains(r.body, fmt.Sprintf(`"model":%q`, answers)) {
				t.Errorf("%s: got %d %s, want an answer of %s", name, r.status, r.body, answers)
			}
		}
		env.SetPolicy(func(p *policy.Policy) { p.Routes = nil })
		// Keys.
		header := ks.put(policy.Key{ID: "aaaaaaaaaa", Models: []string{"llama3.2"}})
		time.Sleep(inForce)
		for name, status := range map[string]int{"llama3.2": 200, "llama3.2:latest": 200, "Llama3.2": 200, "qwen2.5:7b": 403, "mistral": 403} {
			if r := ask(t, g, chat(name, false, 1), "", header...); r.status != status {
				t.Errorf("key for llama3.2, %s: got %d %s, want %d", name, r.status, r.body, status)
			}
		}
		if got := modelIDs(t, do(t, g, "GET", "/v1/models", "", header...).body); !slices.Equal(got, []string{"llama3.2:latest"}) {
			t.Errorf("the key lists %v", got)
		}
	})
}

func modelIDs(t testing.TB, body string) (ids []string) {
	t.Helper()
	var list struct{ Data []struct{ ID string } }
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Errorf("%s: %v", body, err)
	}
	for _, m := range list.Data {
		ids = append(ids, m.ID)
	}
	return ids
}

// GET /v1/models passes on what the lists of all engines say.
func TestListOfModels(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		listing := func(name, models string) {
			env.Worker(env.Handler(name, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/v1/models" {
					io.WriteString(w, `{"object":"list","data":[`+models+`]}`)
					return
				}
				http.NotFound(w, r)
			})), worker.Config{Name: name})
		}
		listing("a", `{"id":"both","created":1700000005,"owned_by":"vllm","max_model_len":32768,"root":"org/m"},
			{"id":"alone","created":1700000000,"owned_by":"me","max_model_len":250000},
			{"id":"llama","created":"yesterday","owned_by":null,"meta":{"n_ctx_train":131072,"n_params":1e9,"n_ctx":null},"max_model_len":"long"},
			{"id":"quiet","max_model_len":4096,"owned_by":"x"},{"id":"odd","max_model_len":-1,"created":1e300,"context_length":8192.5,"meta":[]}`)
		listing("b", `{"id":"both","created":1700000001,"owned_by":"vllm","max_model_len":8192},{"id":"quiet","owned_by":"y"},
			{"id":"other","context_length":8192,"max_context_length":9000,"context_window":10000}`)
		for _, m := range []string{"both", "alone", "other"} {
			g.Serves(t, m)
		}
		env.SetPolicy(func(p *policy.Policy) {
			p.Routes = map[string]policy.Route{"public": {To: []policy.Target{{Pool: "alone", Weight: 1}, {Pool: "both", Weight: 1}, {Pool: "other"}}}}
		})
		time.Sleep(time.Second)
		var list struct{ Data []map[string]any }
		if err := json.Unmarshal([]byte(do(t, g, "GET", "/v1/models", "").body), &list); err != nil {
			t.Fatal(err)
		}
		want := map[string]map[string]any{
			"both":   {"created": 1700000001., "owned_by": "vllm", "max_model_len": 8192.},
			"alone":  {"created": 1700000000., "owned_by": "me", "max_model_len": 250000.},
			"llama":  {"created": 0., "owned_by": "pulley", "meta": map[string]any{"n_ctx_train": 131072.}},
			"quiet":  {"created": 0., "owned_by": "pulley"},
			"odd":    {"created": 0., "owned_by": "pulley"},
			"other":  {"created": 0., "owned_by": "pulley", "context_length": 8192., "max_context_length": 9000., "context_window": 10000.},
			"public": {"created": 1700000000., "owned_by": "pulley", "max_model_len": 8192.},
		}
		for _, m := range list.Data {
			id, _ := m["id"].(string)
			w := maps.Clone(want[id])
			if w == nil {
				t.Errorf("lists %v", m)
				continue
			}
			w["id"], w["object"] = id, "model"
			if !reflect.DeepEqual(m, w) {
				t.Errorf("got %v, want %v", m, w)
			}
			var one map[string]any
			if err := json.Unmarshal([]byte(do(t, g, "GET", "/v1/models/"+id, "").body), &one); err != nil || !reflect.DeepEqual(one, w) {
				t.Errorf("%s alone: got %v, %v, want %v", id, one, err, w)
			}
			delete(want, id)
		}
		if len(want) > 0 {
			t.Errorf("does not list %v", want)
		}
	})
}

// A gateway may be the engine of a worker, whatever its own engines are.
func TestGatewayAsEngine(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		inner := env.Handler("inner", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/v1/models":
				io.WriteString(w, `{"object":"list","data":[{"id":"m","owned_by":"vllm","max_model_len":4096}],"served_by":"pulley"}`)
			case "/v1/chat/completions":
				w.Header().Set("Content-Type", "application/json")
				io.WriteString(w, `{"choices":[{"message":{"content":"yes"},"finish_reason":"stop"}]}`)
			default:
				http.NotFound(w, r)
			}
		}))
		g := env.Gateway(gateway.Config{})
		env.Worker(inner, worker.Config{Name: "inner"})
		g.Serves(t, "m")
		time.Sleep(10 * time.Second)
		if r := ask(t, g, chat("m", false, 1), ""); r.status != 200 {
			t.Errorf("got %d %s", r.status, r.body)
		}
	})
}
