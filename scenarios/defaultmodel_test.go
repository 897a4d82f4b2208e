package scenarios

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// Requests without a model get the gateway's default, written into the body that the engine sees.
func TestDefaultModel(t *testing.T) {
	const messages = `"messages":[{"role":"user","content":"hi"}]`
	for about, c := range map[string]struct {
		setting string
		models  []string // of the engines, one each
		body    string
		want    string // what the engine sees; empty: it sees nothing
		status  int
		says    string // in the error
	}{
		"not set":                  {"", []string{"a"}, `{` + messages + `}`, "", 400, "--default-model"},
		"a name":                   {"b", []string{"a", "b"}, `{` + messages + `}`, `{"model":"b",` + messages + `}`, 200, ""},
		"a name, the client's own": {"b", []string{"a", "b"}, `{"model":"a",` + messages + `}`, `{"model":"a",` + messages + `}`, 200, ""},
		"a name, null":             {"a", []string{"a"}, `{` + messages + `,"model":null}`, `{` + messages + `,"model":"a"}`, 200, ""},
		"a name that is unknown":   {"c", []string{"a"}, `{` + messages + `}`, "", 404, `\"c\" does not exist`},
		"only":                     {gateway.DefaultOnly, []string{"a"}, `{` + messages + `}`, `{"model":"a",` + messages + `}`, 200, ""},
		"only, of two":             {gateway.DefaultOnly, []string{"a", "b"}, `{` + messages + `}`, "", 400, "there are a, b"},
		"only, of none":            {gateway.DefaultOnly, nil, `{` + messages + `}`, "", 503, "no worker serves one"},
		"only, another spelling":   {gateway.DefaultOnly, []string{"a"}, `{"Model":"x",` + messages + `}`, "", 400, "cannot write its default"},
		"only, a wrong type":       {gateway.DefaultOnly, []string{"a"}, `{"model":7}`, "", 400, "must be a string"},
	} {
		run(t, func(t *testing.T, env *Env) {
			var saw atomic.Pointer[string]
			g := env.Gateway(gateway.Config{DefaultModel: c.setting})
			for _, m := range c.models {
				env.Worker(env.Handler(m, engineOf(func(w http.ResponseWriter, r *http.Request) {
					b, _ := io.ReadAll(r.Body)
					s := string(b)
					saw.Store(&s)
					w.Header().Set("Content-Type", "application/json")
					io.WriteString(w, `{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}`)
				}, m)), worker.Config{Name: m, Slots: 4})
				g.Serves(t, m)
			}
			r := do(t, g, "POST", "/v1/chat/completions", c.body)
			if r.status != c.status || !strings.Contains(r.body, c.says) {
				t.Errorf("%s: got %d %q, want %d %q", about, r.status, r.body, c.status, c.says)
			}
			if got := saw.Load(); (got == nil) != (c.want == "") || got != nil && *got != c.want {
				t.Errorf("%s: the engine saw %v, want %q", about, got, c.want)
			}
		})
	}
}

// What is the only model depends on what the key allows; a route's name counts if nothing else does; a worker whose engine
// has another name for the model puts that in place; a form gets a part.
func TestOnlyModel(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{DefaultModel: gateway.DefaultOnly})
		var saw atomic.Pointer[string]
		see := func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			s := string(b)
			saw.Store(&s)
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"model":"engine-name","text":"a","choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"count":1}`)
		}
		env.Worker(env.Handler("a", engineOf(see, "engine-name")), worker.Config{Name: "a", Pool: "p", Slots: 2})
		testenv.Eventually(t, "worker", 10*time.Second, func() bool { return len(g.Models()) > 0 })
		time.Sleep(2 * time.Second)
		ask := func(path, contentType, body, want string, header ...string) {
			t.Helper()
			saw.Store(nil)
			r := do(t, g, "POST", path, body, append(header, "Content-Type", contentType)...)
			if got := saw.Load(); r.status != 200 || got == nil || *got != want {
				t.Errorf("%s: %d %q, the engine saw %v, want %q", path, r.status, r.body, got, want)
			}
		}
		const form = "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--B--\r\n"
		ask("/v1/chat/completions", "application/json", `{"messages":[]}`, `{"model":"engine-name","messages":[]}`)
		ask("/tokenize", "application/json", `{"prompt":"a"}`, `{"model":"engine-name","prompt":"a"}`)
		ask("/v1/audio/transcriptions", "multipart/form-data; boundary=B", form,
			"--B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nengine-name\r\n"+form)
		env.SetPolicy(func(p *policy.Policy) {
			p.Routes = map[string]policy.Route{"gpt": {To: []policy.Target{{Pool: "p", Weight: 1}}}}
		})
		ask("/v1/chat/completions", "application/json", `{"messages":[]}`, `{"model":"engine-name","messages":[]}`)
		key := env.AddKey("acme", func(k *policy.Key) { k.Models = []string{"gpt"} })
		other := env.AddKey("other", func(k *policy.Key) { k.Models = []string{"x"} })
		ask("/v1/chat/completions", "application/json", `{"messages":[]}`, `{"model":"engine-name","messages":[]}`, "X-Api-Key", key)
		wantError(t, do(t, g, "POST", "/v1/chat/completions", `{"messages":[]}`, "X-Api-Key", other), 503, "no_worker")
	})
}
