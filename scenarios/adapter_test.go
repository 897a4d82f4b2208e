package scenarios

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// listedAs is a model in the list of an engine like vLLM.
type listedAs struct {
	ID      string `json:"id"`
	OwnedBy string `json:"owned_by"`
	Root    string `json:"root,omitempty"`
	Parent  string `json:"parent,omitempty"`
}

func base(id string) listedAs            { return listedAs{ID: id, OwnedBy: "vllm", Root: "/models/" + id} }
func adapter(id, parent string) listedAs { return listedAs{id, "vllm", "/adapters/" + id, parent} }

// adapterEngine answers like vLLM: it takes the names that it lists, and no others. Its answers say which name it was asked for.
type adapterEngine struct {
	name string

	mu    sync.Mutex
	list  []listedAs
	asked []string
}

func (e *adapterEngine) set(list ...listedAs) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = list
}

func (e *adapterEngine) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	asked := e.asked
	e.asked = nil
	return asked
}

func (e *adapterEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch r.URL.Path {
	case "/v1/models":
		json.NewEncoder(w).Encode(map[string]any{"object": "list", "data": e.list})
	case "/v1/chat/completions":
		var body struct{ Model string }
		json.NewDecoder(r.Body).Decode(&body)
		e.asked = append(e.asked, body.Model)
		if !slices.ContainsFunc(e.list, func(l listedAs) bool { return l.ID == body.Model }) {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"error":{"message":"The model %s does not exist.","type":"NotFoundError","param":"model","code":404}}`, body.Model)
			return
		}
		fmt.Fprintf(w, `{"id":"x","object":"chat.completion","model":%q,"choices":[{"index":0,"message":{"role":"assistant","content":%q},"finish_reason":"stop"}]}`, body.Model, e.name+" "+body.Model)
	case "/health":
	default:
		http.NotFound(w, r)
	}
}

func routeTo(env *Env, routes map[string]string) {
	env.SetPolicy(func(p *policy.Policy) {
		p.Routes = make(map[string]policy.Route)
		for model, pool := range routes {
			p.Routes[model] = policy.Route{To: []policy.Target{{Pool: pool, Weight: 1}}}
		}
	})
}

// An engine with adapters beside its model stays in its pool, and a route may send their requests there, by their own names.
func TestAdaptersInAPool(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		beats := recordBeats(t, env)
		e := &adapterEngine{name: "e"}
		e.set(base("llama"))
		env.Worker(env.Handler("e", e), worker.Config{Name: "e", Pool: "canary"})
		g.Serves(t, "canary")
		routeTo(env, map[string]string{"llama": "canary", "sql": "canary", "chat": "canary"})
		time.Sleep(2 * time.Second)
		want := func(model, said string) {
			t.Helper()
			if r := ask(t, g, chat(model, false, 3), ""); r.status != 200 || content(t, r.body) != said {
				t.Errorf("%s: got %d %q, want %q", model, r.status, r.body, said)
			}
		}
		want("llama", "e llama")
		want("chat", "e llama") // a route to another name is a rename
		e.set(base("llama"), adapter("sql", "llama"))
		time.Sleep(6 * time.Second)
		want("sql", "e sql")
		want("llama", "e llama")
		want("chat", "e llama")
		h := beats.of("e")
		if h.State != subjects.Ready || len(h.Pools) != 1 || h.Pools[0].Model != "llama" || !slices.Equal(h.Pools[0].Adapters, []string{"sql"}) {
			t.Errorf("the worker: %+v", h)
		}

		e.set(base("llama"), adapter("chat", "llama")) // one is unloaded, one loaded
		time.Sleep(6 * time.Second)
		want("chat", "e chat")
		r := ask(t, g, chat("sql", false, 3), "")
		if r.status != 404 || !strings.Contains(r.body, "model sql does not exist") {
			t.Errorf("unloaded: %d %s", r.status, r.body)
		}
		want("llama", "e llama") // the worker is not to blame for that
		if h := beats.of("e"); h.State != subjects.Ready || h.Failing() != "" {
			t.Errorf("the worker is %s: %q", h.State, h.Failing())
		}
	})
}

// Where only one engine of a pool has the adapter, its requests go there, and never to the model itself.
func TestAdapterOnOneOfMany(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		var engines []*adapterEngine
		for i := range 5 {
			e := &adapterEngine{name: fmt.Sprint("e", i)}
			e.set(base("llama"))
			if i == 3 {
				e.set(base("llama"), adapter("sql", "llama"))
			}
			engines = append(engines, e)
			env.Worker(env.Handler(e.name, e), worker.Config{Name: e.name, Pool: "p", Slots: 2})
		}
		g.Serves(t, "p")
		routeTo(env, map[string]string{"sql": "p", "llama": "p"})
		time.Sleep(2 * time.Second)
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				time.Sleep(time.Duration(i/4) * 50 * time.Millisecond)
				if r := ask(t, g, chat("sql", false, 3), ""); r.status != 200 || content(t, r.body) != "e3 sql" || r.took > 3*time.Second {
					t.Errorf("got %d %q after %v", r.status, r.body, r.took)
				}
			})
		}
		all.Wait()
		for i, e := range engines {
			if asked := e.take(); i != 3 && len(asked) > 0 {
				t.Errorf("engine %d was asked for %q", i, asked)
			}
		}
	})
}

// Without pool=, adapters are models of their own that come and go with the engine's list.
func TestAdaptersComeAndGo(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		e := &adapterEngine{name: "e"}
		e.set(base("llama"))
		env.Worker(env.Handler("e", e), worker.Config{Name: "e"})
		g.Serves(t, "llama")
		models := func() string {
			resp, err := g.Client.Get("http://gateway/v1/models")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			return string(text)
		}
		e.set(base("llama"), adapter("sql", "llama"))
		testenv.Eventually(t, "the adapter is listed", 7*time.Second, func() bool {
			return strings.Contains(models(), `"id":"sql"`) && strings.Contains(models(), `"parent":"llama"`)
		})
		time.Sleep(2 * time.Second)
		if r := ask(t, g, chat("sql", false, 3), ""); r.status != 200 || content(t, r.body) != "e sql" {
			t.Errorf("got %d %q", r.status, r.body)
		}
		e.set(base("llama"))
		testenv.Eventually(t, "the adapter is gone", 7*time.Second, func() bool { return !strings.Contains(models(), "sql") })
		if r := ask(t, g, chat("llama", false, 3), ""); r.status != 200 {
			t.Errorf("got %d %q", r.status, r.body)
		}
	})
}

// A pool goes on with the model that it had, whatever else its engine loads.
func TestPoolKeepsItsModel(t *testing.T) {
	for about, c := range map[string]struct{ first, then []listedAs }{
		"another model":                   {[]listedAs{base("b")}, []listedAs{base("a"), base("b")}},
		"an adapter without a parent":     {[]listedAs{base("b")}, []listedAs{base("b"), {ID: "lora"}}},
		"many adapters":                   {[]listedAs{adapter("x", "b"), base("b")}, []listedAs{adapter("a", "b"), adapter("c", "b"), base("b"), adapter("x", "b")}},
		"more names of it":                {[]listedAs{base("b"), {"also", "vllm", "/models/b", ""}}, []listedAs{{"also", "vllm", "/models/b", ""}, base("b")}},
		"an adapter whose parent is gone": {[]listedAs{base("b")}, []listedAs{base("b"), adapter("x", "gone")}},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				beats := recordBeats(t, env)
				e := &adapterEngine{name: "e"}
				e.set(c.first...)
				env.Worker(env.Handler("e", e), worker.Config{Name: "e", Pool: "p"})
				g.Serves(t, "p")
				for _, list := range [][]listedAs{c.first, c.then, c.first, c.then} {
					e.set(list...)
					time.Sleep(6 * time.Second)
					if r := ask(t, g, chat("p", false, 3), ""); r.status != 200 || content(t, r.body) != "e b" {
						t.Errorf("got %d %q", r.status, r.body)
					}
					if h := beats.of("e"); h.State != subjects.Ready {
						t.Errorf("the worker is %s: %s", h.State, h.Reason)
					}
				}
			})
		})
	}
}

// A pool is known before the engine of its worker answers, as a configured model is.
func TestConfiguredPoolIsKnown(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		l := env.Handler("e", http.NotFoundHandler())
		l.Kill()
		env.Worker(l, worker.Config{Name: "e", Pool: "canary"})
		routeTo(env, map[string]string{"gpt": "canary"})
		time.Sleep(3 * time.Second)
		for _, model := range []string{"canary", "gpt"} {
			r := ask(t, g, chat(model, false, 1), "")
			wantError(t, r, 503, "no_worker")
			if r.took < 25*time.Second {
				t.Errorf("%s: after %v", model, r.took)
			}
		}
	})
}
