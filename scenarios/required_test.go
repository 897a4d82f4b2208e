package scenarios

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// errorOf is the name of the errors of a path.
func errorOf(path string) string {
	if strings.HasPrefix(path, "/v1/messages") {
		return "Anthropic ErrorResponse"
	}
	return "ErrorResponse"
}

// wantObject checks that a body has what its API requires of such an object.
func wantObject(t *testing.T, about, object, body string) {
	t.Helper()
	if err := testenv.CheckObject(object, []byte(body)); err != nil {
		t.Errorf("%s: %v in %q", about, err, body)
	}
}

// What a gateway answers itself has what the API's reference requires: its lists of models, and its errors of each code on each
// kind of path, as answers and as the last event of a stream.
func TestGatewayMadeAnswersHaveWhatIsRequired(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{MaxBody: 100 << 10, NoWorkerWait: time.Second, BodyMemory: 1 << 20})
		wantObject(t, "no models", "ListModelsResponse", do(t, g, "GET", "/v1/models", "").body)
		env.Worker(env.Handler("e", engineOf(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			switch {
			case r.Header.Get("X-Break") != "":
				panic(http.ErrAbortHandler)
			case r.Header.Get("X-Unauthorized") != "":
				w.WriteHeader(401)
			case r.Header.Get("X-Late-Break") != "":
				time.Sleep(15 * time.Second) // until its client has got a comment
				panic(http.ErrAbortHandler)
			default:
				<-r.Context().Done()
			}
		}, "m")), worker.Config{Name: "e", Slots: 2})
		g.Serves(t, "m")
		wantObject(t, "models", "ListModelsResponse", do(t, g, "GET", "/v1/models", "").body)
		wantObject(t, "a model", "Model", do(t, g, "GET", "/v1/models/m", "").body)

		env.SetPolicy(func(p *policy.Policy) {
			p.Routes = map[string]policy.Route{"gone": {To: []policy.Target{{Pool: "gone", Weight: 1}}}}
		})
		const messages = `"messages":[{"role":"user","content":"hi"}]`
		codes := make(map[string]bool)
		for _, path := range []string{
			"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/rerank", "/v1/audio/speech",
			"/tokenize", "/api/chat", "/v2/models/m/infer",
		} {
			for _, c := range []struct {
				method, path, body string
				header             []string
			}{
				{"POST", path, `{`, nil}, {"POST", path, `[]`, nil}, {"POST", path, `{"messages":[]}`, nil}, {"POST", path, `{"model":"m","model":"n"}`, nil},
				{"POST", path, `{"model":"nosuch"}`, nil}, {"POST", path, `{"model":"m","service_tier":"gold"}`, nil},
				{"POST", path, `{"model":"` + strings.Repeat("m", 1000) + `"}`, nil}, {"POST", path, strings.Repeat(" ", 101<<10), nil},
				{"POST", path, `{"model":"m"}`, []string{"Content-Encoding", "gzip"}}, {"POST", path, `{"model":"m"}`, []string{"X-Request-Timeout", "soon"}},
				{"POST", path, `{"model":"m",` + messages + `}`, []string{"X-Request-Timeout", "1"}}, {"POST", path, `{"model":"gone"}`, nil},
				{"POST", path, `{"model":"m",` + messages + `}`, []string{"X-Break", "1"}}, {"POST", path, `{"model":"m",` + messages + `}`, []string{"X-Unauthorized", "1"}},
				{"GET", path, ``, nil}, {"PUT", path, `{}`, nil}, {"GET", path, ``, []string{"Upgrade", "websocket", "Connection", "Upgrade"}},
				{"POST", path + "/nosuch", `{"model":"m"}`, nil}, {"POST", path + "%00", `{"model":"m"}`, nil}, {"POST", "/v1/models", `{}`, nil}, {"GET", "/v1/models/nosuch", ``, nil},
			} {
				r := do(t, g, c.method, c.path, c.body, c.header...)
				if r.status < 400 || r.err != nil {
					continue // path in which the model is, for example
				}
				wantObject(t, c.method+" "+c.path, errorOf(c.path), r.body)
				var v struct{ Error struct{ Code string } }
				json.Unmarshal([]byte(r.body), &v)
				codes[v.Error.Code] = true
			}
		}
		for _, code := range []string{
			"invalid_request", "path_not_allowed", "model_not_found", "request_too_large", "unsupported_encoding", "websocket_not_supported", "method_not_allowed",
			"deadline_exceeded", "dead_lettered", "upstream_misconfigured", "no_worker",
		} {
			if !codes[code] {
				t.Errorf("no answer had the code %s; there were %v", code, codes)
			}
		}

		// As the last event of a stream.
		var streams sync.WaitGroup
		for path, object := range map[string]string{
			"/v1/chat/completions": "ErrorResponse", "/v1/completions": "ErrorResponse", "/v1/messages": "Anthropic ErrorResponse", "/v1/responses": "ResponseFailedEvent",
		} {
			streams.Go(func() {
				body := `{"model":"m","stream":true,` + messages + `,"input":"x","prompt":"x"}`
				text, err := drain(post(context.WithoutCancel(t.Context()), g, path, body, "", "X-Late-Break", "1"))
				_, data, _ := strings.Cut(text[max(strings.LastIndex(text, "\n\nevent:"), strings.LastIndex(text, "\n\ndata:")):], "data: ")
				if err != nil || data == "" {
					t.Errorf("%s: %q, %v", path, text, err)
					return
				}
				wantObject(t, path+", event", object, strings.TrimSpace(data))
			})
		}
		streams.Wait()
	})
}
