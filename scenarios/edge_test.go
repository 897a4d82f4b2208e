package scenarios

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// engineOf is an engine that lists models and answers with serve.
func engineOf(serve http.HandlerFunc, models ...string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) {
		var list struct {
			Data []map[string]string `json:"data"`
		}
		for _, m := range models {
			list.Data = append(list.Data, map[string]string{"id": m})
		}
		json.NewEncoder(w).Encode(list)
	})
	mux.HandleFunc("POST /", serve)
	return mux
}

// with is a gateway and a worker whose engine serves model m with serve.
func with(t *testing.T, env *Env, cfg gateway.Config, serve http.HandlerFunc) *Gateway {
	t.Helper()
	cfg.AllowPaths = append(cfg.AllowPaths, "/v1/x")
	g := env.Gateway(cfg)
	env.Worker(env.Handler("e", engineOf(serve, "m")), worker.Config{Name: "e", Slots: 4})
	g.Serves(t, "m")
	return g
}

// do sends any request to a gateway.
func do(t testing.TB, g *Gateway, method, target, body string, header ...string) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://gateway"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	begun := time.Now()
	resp, err := g.Client.Transport.RoundTrip(r) // redirects are not followed
	if err != nil {
		return reply{err: err, took: time.Since(begun)}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(b), err, time.Since(begun)}
}

// labelled adds the case to each failure: there are no subtests inside a bubble.
type labelled struct {
	testing.TB
	label string
}

func (l labelled) Errorf(format string, args ...any) {
	l.TB.Helper()
	l.TB.Errorf("%s: %s", l.label, fmt.Sprintf(format, args...))
}

// wantError checks an error answer: its status, its code, and that all four keys are present in
// every API. It returns the message.
func wantError(t testing.TB, r reply, status int, code string) string {
	t.Helper()
	if r.err != nil || r.status != status {
		t.Errorf("got %d %q, %v, want %d %s", r.status, r.body, r.err, status, code)
		return ""
	}
	if ct := r.header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("%s: content type %q", code, ct)
	}
	if _, err := subjects.ParseID(r.header.Get("X-Request-Id")); err != nil {
		t.Errorf("%s: %v", code, err)
	}
	return wantErrorBody(t, r.body, code)
}

func wantErrorBody(t testing.TB, body, code string) string {
	t.Helper()
	var v struct{ Error map[string]any }
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Errorf("%s: %q: %v", code, body, err)
		return ""
	}
	if got := slices.Sorted(maps.Keys(v.Error)); !slices.Equal(got, []string{"code", "message", "param", "type"}) {
		t.Errorf("error with %q, want all four keys: %s", got, body)
	}
	if v.Error["code"] != code || v.Error["type"] == "" {
		t.Errorf("error %s, want code %q", body, code)
	}
	message, _ := v.Error["message"].(string)
	if message == "" {
		t.Errorf("error %s: no message", body)
	}
	return message
}

func TestErrors(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"))
		good := chat("m", false, 1)
		for about, c := range map[string]struct {
			method, path, body string
			header             []string
			status             int
			code, says         string
		}{
			"no JSON":               {"POST", "/v1/chat/completions", "hello", nil, 400, "invalid_request", "not a JSON object"},
			"no JSON, Anthropic":    {"POST", "/v1/messages", "hello", nil, 400, "invalid_request", "not a JSON object"},
			"no JSON, Responses":    {"POST", "/v1/responses", "hello", nil, 400, "invalid_request", "not a JSON object"},
			"no model, KServe":      {"POST", "/v2/models//infer", "", nil, 404, "path_not_allowed", "--allow-path"},
			"cut JSON":              {"POST", "/v1/chat/completions", good[:len(good)-1], nil, 400, "invalid_request", "too early"},
			"no model":              {"POST", "/v1/embeddings", `{"input":"x"}`, nil, 400, "invalid_request", "model"},
			"model twice":           {"POST", "/v1/embeddings", `{"model":"m","model":"n"}`, nil, 400, "invalid_request", "twice"},
			"unknown model":         {"POST", "/v1/chat/completions", chat("nope", false, 1), nil, 404, "model_not_found", "m."},
			"unknown, Anthropic":    {"POST", "/v1/messages", chat("nope", false, 1), nil, 404, "model_not_found", "m."},
			"unknown model in path": {"POST", "/v2/models/nope/infer", `{}`, nil, 404, "model_not_found", "m."},
			"unknown tier":          {"POST", "/v1/chat/completions", chat("m", false, 1, `"service_tier":"gold"`), nil, 400, "invalid_request", "priority, standard, batch"},
			"a timeout of words":    {"POST", "/v1/chat/completions", good, []string{"X-Request-Timeout", "soon"}, 400, "invalid_request", "x-request-timeout"},
			"a timeout of nothing":  {"POST", "/v1/chat/completions", good, []string{"X-Request-Timeout", "0"}, 400, "invalid_request", "x-request-timeout"},
			"a negative timeout":    {"POST", "/v1/chat/completions", good, []string{"X-Request-Timeout", "-1s"}, 400, "invalid_request", "x-request-timeout"},
			"a timeout of NaN":      {"POST", "/v1/chat/completions", good, []string{"X-Request-Timeout", "NaN"}, 400, "invalid_request", "x-request-timeout"},
			"gzip":                  {"POST", "/v1/chat/completions", good, []string{"Content-Encoding", "gzip"}, 415, "unsupported_encoding", "gzip"},
			"GET of a POST":         {"GET", "/v1/chat/completions", "", nil, 405, "method_not_allowed", "POST"},
			"PUT":                   {"PUT", "/v1/chat/completions", good, nil, 405, "method_not_allowed", "PUT"},
			"PUT of the models":     {"PUT", "/v1/models", "", nil, 405, "method_not_allowed", "PUT"},
			"DELETE of a model":     {"DELETE", "/v1/models/m", "", nil, 405, "method_not_allowed", "DELETE"},
			"OPTIONS without CORS":  {"OPTIONS", "/v1/chat/completions", "", []string{"Origin", "http://x"}, 405, "method_not_allowed", "OPTIONS"},
			"GET of nothing":        {"GET", "/favicon.ico", "", nil, 404, "not_found", "/v1/"},
			"GET of the root":       {"GET", "/", "", nil, 404, "not_found", "/v1/"},
			"an unknown model's id": {"GET", "/v1/models/nope", "", nil, 404, "model_not_found", "m."},
			"the empty model's id":  {"GET", "/v1/models/", "", nil, 404, "model_not_found", "m."},
			"POST to the root":      {"POST", "/", "{}", nil, 404, "path_not_allowed", "--allow-path"},
			"POST to the models":    {"POST", "/v1/models", "", nil, 405, "method_not_allowed", "POST"},
			"management":            {"POST", "/sleep", good, nil, 404, "path_not_allowed", "/sleep"},
			"a doubled slash":       {"POST", "//v1/chat/completions", "hello", nil, 400, "invalid_request", "not a JSON object"},
			"dots in the path":      {"POST", "/v1/x/../chat/completions", "hello", nil, 400, "invalid_request", "not a JSON object"},
			"dots that are encoded": {"POST", "/v1/..%2f..%2fsleep", good, nil, 404, "path_not_allowed", "ambiguous"},
			"a WebSocket":           {"GET", "/v1/responses", "", []string{"Connection", "Upgrade", "Upgrade", "websocket"}, 426, "websocket_not_supported", "HTTP"},
			"tokens, Anthropic":     {"POST", "/v1/messages/count_tokens", "hello", nil, 400, "invalid_request", "not a JSON object"},
		} {
			t := labelled{t, about}
			r := do(t, g, c.method, c.path, c.body, c.header...)
			if m := wantError(t, r, c.status, c.code); !strings.Contains(m, c.says) {
				t.Errorf("message %q, want %q in it", m, c.says)
			}
			if strings.HasPrefix(c.path, "/v1/messages") && !strings.Contains(r.body, `"type":"error"`) {
				t.Errorf("%s: not in Anthropic's form", r.body)
			}
			if c.status == 405 && r.header.Get("Allow") == "" {
				t.Errorf("405 without Allow")
			}
		}
		if n := es[0].Stats().Received; n != 0 {
			t.Errorf("the engine saw %d of these requests", n)
		}
		for path, status := range map[string]int{"/v1/models": 200, "/v1/models/m": 200, "/healthz": 200, "/v1/models/x": 404, "/": 404, "/v1/x": 405} {
			if r := do(t, g, "HEAD", path, ""); r.status != status || r.body != "" {
				t.Errorf("HEAD %s: %d %q, want %d", path, r.status, r.body, status)
			}
		}
		if r := do(t, g, "PUT", "/v1/models", ""); r.header.Get("Allow") != "GET, HEAD" {
			t.Errorf("models allow %q", r.header.Get("Allow"))
		}
		// None of these affects a valid request.
		if r := do(t, g, "POST", "/v1/chat/completions", good); r.status != 200 {
			t.Errorf("got %d %q, want 200", r.status, r.body)
		}
	})
}

// A request line can contain what no client library writes.
func TestRawRequests(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"))
		const rest = " HTTP/1.1\r\nHost: gateway\r\nContent-Length: 13\r\n\r\n{\"model\":\"m\"}"
		for _, line := range []string{
			"POST x:@elsewhere/v1/chat/completions", "POST x:elsewhere", "POST mailto:a@b", "POST http://@elsewhere",
			"POST *", "CONNECT elsewhere:80", "POST elsewhere", "POST /\x7f", "P\x00ST /v1/chat/completions",
		} {
			c, err := g.Listener.DialContext(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			go c.Write([]byte(line + rest)) // ends at the deadline
			status, err := bufio.NewReader(c).ReadString('\n')
			if err != nil || !strings.HasPrefix(status, "HTTP/1.1 4") && !strings.HasPrefix(status, "HTTP/1.1 3") {
				t.Errorf("%q: got %q, %v, want a refusal", line, status, err)
			}
			c.Close()
		}
		if n := es[0].Stats().Received; n != 0 {
			t.Errorf("the engine saw %d of these requests", n)
		}
	})
}

func TestModelNames(t *testing.T) {
	names := []string{
		"m", "org/model:tag", "a.b", "a", "b", "*", ">", "ü ñ", "m.shared", "shared", "_2E", "hash", "=", "$JS.API.>",
		`quo"ted\`, "a\r\nb", strings.Repeat("x", 256), strings.Repeat("x", 255) + "y", strings.Repeat("é", 128), strings.Repeat(".", 256),
	}
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{PassHeaders: []string{"X-Serves"}})
		for _, name := range names {
			e := env.Handler("e", engineOf(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				w.Header().Set("X-Serves", url.QueryEscape(name))
				io.WriteString(w, `{"choices":[{"message":{"content":"yes"}}]}`)
			}, name))
			env.Worker(e, worker.Config{Name: "e", Slots: 1})
		}
		testenv.Eventually(t, "all models", 20*time.Second, func() bool {
			var list struct{ Data []struct{ ID string } }
			json.Unmarshal([]byte(do(t, g, "GET", "/v1/models", "").body), &list)
			return len(list.Data) == len(names)
		})
		time.Sleep(2 * time.Second)
		serves := func(about, name string, r reply) {
			t.Helper()
			if got := r.header.Get("X-Serves"); r.status != 200 || got != url.QueryEscape(name) {
				t.Errorf("%s: %.40q was answered by the worker of %.40q: %d %.200s", about, name, got, r.status, r.body)
			}
		}
		for _, name := range names {
			quoted, err := json.Marshal(name)
			if err != nil {
				t.Fatal(err)
			}
			serves("JSON", name, do(t, g, "POST", "/v1/chat/completions", `{"model":`+string(quoted)+`}`))
			serves("path", name, do(t, g, "POST", "/v2/models/"+url.PathEscape(name)+"/infer", "{}"))
			var form bytes.Buffer
			f := multipart.NewWriter(&form)
			f.WriteField("model", name)
			f.Close()
			serves("form", name, do(t, g, "POST", "/v1/audio/transcriptions", form.String(), "Content-Type", f.FormDataContentType()))
			if r := do(t, g, "GET", "/v1/models/"+url.PathEscape(name), ""); r.status != 200 || !strings.Contains(r.body, `"id":`) {
				t.Errorf("GET /v1/models/%.40q: %d %q", url.PathEscape(name), r.status, r.body)
			}
		}
		if r := do(t, g, "GET", "/v1/models/org/model:tag", ""); r.status != 200 {
			t.Errorf("a model's id with a slash: %d %q", r.status, r.body)
		}
		for _, name := range []string{"org", "org/model", "A", "a.", ".b", "**", "ü", "ü  ñ", "u\u0308 n\u0303", "_", "x", "m.", "_2A", "%2A", strings.Repeat("x", 254)} {
			quoted, _ := json.Marshal(name)
			wantError(t, do(t, g, "POST", "/v1/chat/completions", `{"model":`+string(quoted)+`}`), 404, "model_not_found")
		}
	})
}

func TestNoWorker(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, ws := pair(t, env, slow("a"))
		ws[0].Stop()
		synctest.Wait() // until the gateway has received what the worker sent last
		if r := do(t, g, "GET", "/v1/models", ""); strings.Contains(r.body, `"m"`) {
			t.Errorf("models after the last worker left: %s", r.body)
		}
		for about, body := range map[string]string{"plain": chat("m", false, 3), "stream": chat("m", true, 3)} {
			r := ask(t, g, body, "")
			if about == "plain" {
				wantError(t, r, 503, "no_worker")
				if after, _ := strconv.Atoi(r.header.Get("Retry-After")); after < 1 || after > 120 {
					t.Errorf("retry-after %q", r.header.Get("Retry-After"))
				}
			} else if data, ok := lastEvent(r.body); !ok || r.status != 200 {
				t.Errorf("stream: got %d %q, want an error event", r.status, r.body)
			} else {
				wantErrorBody(t, data, "no_worker")
			}
			if r.took < 30*time.Second || r.took > 32*time.Second {
				t.Errorf("%s: refused after %v, want about 30 s", about, r.took)
			}
		}
		// A worker that joins in time serves the waiting request.
		var wg sync.WaitGroup
		defer wg.Wait()
		for range 5 {
			wg.Go(func() {
				if r := ask(t, g, chat("m", false, 3), ""); r.status != 200 || r.took < 20*time.Second || r.took > 25*time.Second {
					t.Errorf("got %d %q after %v, want 200 soon after the worker came", r.status, r.body, r.took)
				}
			})
		}
		time.Sleep(20 * time.Second)
		env.Worker(es[0], worker.Config{Name: "late", Slots: 8})
	})
}

// lastEvent is the data of a stream's last event.
func lastEvent(stream string) (data string, ok bool) {
	stream, ok = strings.CutSuffix(stream, "\n\n")
	i := strings.LastIndex(stream, "data: ")
	return stream[max(i+len("data: "), 0):], ok && i >= 0
}

func TestQueueFull(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		env.SetPolicy(func(p *policy.Policy) {
			for i := range p.Tiers {
				p.Tiers[i].MaxQueue = 3
			}
		})
		cfg := slow("a")
		cfg.Slots = 1
		env.Worker(env.Engine(cfg), worker.Config{Name: "a", Slots: 1})
		g.Serves(t, "m")
		var wg sync.WaitGroup
		defer wg.Wait()
		for range 4 { // one runs, three wait
			wg.Go(func() {
				if r := ask(t, g, chat("m", false, 50), ""); r.status != 200 {
					t.Errorf("got %d %q, want 200", r.status, r.body)
				}
			})
			time.Sleep(10 * time.Millisecond)
		}
		for _, stream := range []bool{false, true} {
			r := ask(t, g, chat("m", stream, 50), "")
			wantError(t, r, 429, "queue_full")
			if after, _ := strconv.Atoi(r.header.Get("Retry-After")); after < 1 || after > 120 {
				t.Errorf("retry-after %q, want 1 to 120", r.header.Get("Retry-After"))
			}
			if r.took > 100*time.Millisecond {
				t.Errorf("refused after %v, want 100 ms at most", r.took)
			}
		}
		// Another tier has its own queue.
		wg.Go(func() {
			if r := ask(t, g, chat("m", false, 1, `"service_tier":"priority"`), ""); r.status != 200 || r.header.Get("X-Service-Tier") != "priority" {
				t.Errorf("got %d %q, want 200", r.status, r.body)
			}
		})
		time.Sleep(6 * time.Second) // one has left the queue
		if r := ask(t, g, chat("m", false, 1), ""); r.status != 200 {
			t.Errorf("after the queue drained: got %d %q, want 200", r.status, r.body)
		}
	})
}

func TestDeadlines(t *testing.T) {
	for _, header := range [][]string{
		{"X-Request-Timeout", "2"}, {"X-Request-Timeout", "2s"}, {"X-Stainless-Read-Timeout", "2.0"},
		{"X-Request-Timeout", "2", "X-Stainless-Read-Timeout", "9"}, {"X-Stainless-Timeout", "2"},
	} {
		runBoth(t, func(t *testing.T, env *Env) {
			cfg := slow("a")
			cfg.Slots = 1
			g, es, _ := pair(t, env, cfg)
			want := 2 * time.Second
			if len(header) == 2 && header[0] != "X-Request-Timeout" { // an SDK ends its call itself; the gateway waits a second longer
				want += time.Second
			}
			inTime := func(r reply) {
				t.Helper()
				if r.took < want || r.took > want+100*time.Millisecond {
					t.Errorf("%q: ended after %v, want %v", header, r.took, want)
				}
			}
			// Running, with nothing sent yet: a status.
			for _, stream := range []bool{false, true} {
				r := ask(t, g, chat("m", stream, 100), "ttft=1m", header...)
				inTime(r)
				wantError(t, r, 504, "deadline_exceeded")
				idle(t, es[0], 100*time.Millisecond)
			}
			r := ask(t, g, chat("m", false, 100), "", header...)
			inTime(r)
			wantError(t, r, 504, "deadline_exceeded")
			idle(t, es[0], 100*time.Millisecond)
			// In the middle of a stream: an event, if the header is for the whole answer.
			r = ask(t, g, chat("m", true, 100), "", header...)
			if header[0] != "X-Request-Timeout" {
				if r.status != 200 || words(content(t, r.body)) != 100 || r.took < 3*time.Second {
					t.Errorf("%q: got %d %q after %v, want the whole stream", header, r.status, r.body, r.took)
				}
				r = ask(t, g, chat("m", true, 100), "", append(header, "X-Request-Timeout", "3")...)
			}
			inTime(r)
			if data, ok := lastEvent(r.body); !ok || r.status != 200 || strings.Contains(r.body, "[DONE]") {
				t.Errorf("got %d %q, want an error event", r.status, r.body)
			} else {
				wantErrorBody(t, data, "deadline_exceeded")
			}
			idle(t, es[0], 100*time.Millisecond)
			// Queued: it never reaches the engine.
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { drain(post(ctx, g, "/v1/chat/completions", chat("m", true, 1000), "")) })
			time.Sleep(time.Second)
			before := es[0].Stats().Received
			r = ask(t, g, chat("m", false, 1), "", header...)
			inTime(r)
			wantError(t, r, 504, "deadline_exceeded")
			cancel()
			wg.Wait()
			time.Sleep(time.Minute)
			if n := es[0].Stats().Received; n != before {
				t.Errorf("the engine saw %d requests after their deadline", n-before)
			}
			emptyQueues(t, env)
		})
	}
}

func TestAnswersPass(t *testing.T) {
	large := noise(12 << 20)
	latin := "caf\xe9"
	runBoth(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{PassHeaders: []string{"x-multi", "X-Latin"}}, func(w http.ResponseWriter, r *http.Request) {
			var order struct {
				Status  int
				Type    string
				Size    int
				Chunked bool
			}
			if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
				panic(err)
			}
			h := w.Header()
			h["X-Multi"] = []string{"1", "2, 3"}
			h["Set-Cookie"] = []string{"a=1; Path=/", "b=2"}
			h["X-Other"] = []string{"1"}
			h["X-Latin"] = []string{latin}
			h["Content-Disposition"] = []string{`attachment; filename="ü.txt"`}
			h["X-Request-Id"] = []string{"the engine's"}
			h["Connection"] = []string{"X-Hop"}
			h["X-Hop"] = []string{"1"}
			h["Keep-Alive"] = []string{"timeout=5"}
			h["Content-Type"] = nil
			if order.Type != "" {
				h.Set("Content-Type", order.Type)
			}
			if !order.Chunked && order.Status != 204 {
				h.Set("Content-Length", strconv.Itoa(order.Size))
			}
			w.WriteHeader(order.Status)
			for rest := large[:order.Size]; rest != ""; {
				n := min(len(rest), 100_000)
				io.WriteString(w, rest[:n])
				rest = rest[n:]
				if order.Chunked {
					http.NewResponseController(w).Flush()
				}
			}
		})
		for _, status := range []int{200, 201, 204, 302, 304, 400, 404, 409, 422} {
			for _, ct := range []string{"application/json", "text/plain; charset=utf-8", "audio/mpeg", ""} {
				for _, size := range []int{0, 1, 5000, 12 << 20} {
					if size > 0 && (status == 204 || status == 304) || size > 5000 && (status != 200 || ct == "") {
						continue
					}
					for _, chunked := range []bool{false, true} {
						about := fmt.Sprintf("%d %s of %d bytes, chunked %t", status, ct, size, chunked)
						r := do(t, g, "POST", "/v1/x", fmt.Sprintf(`{"model":"m","status":%d,"type":%q,"size":%d,"chunked":%t}`, status, ct, size, chunked))
						if r.err != nil || r.status != status || r.body != large[:size] {
							t.Errorf("%s: got %d, %d bytes, %v", about, r.status, len(r.body), r.err)
							continue
						}
						for k, want := range map[string][]string{
							"X-Multi": {"1", "2, 3"}, "X-Latin": {latin}, "Set-Cookie": nil, "X-Other": nil,
							"Content-Disposition": {`attachment; filename="ü.txt"`}, "X-Hop": nil, "Keep-Alive": nil,
						} {
							if got := r.header[k]; !slices.Equal(got, want) {
								t.Errorf("%s: %s is %q, want %q", about, k, got, want)
							}
						}
						if got := r.header.Get("Content-Type"); got != ct && ct != "" && status != 304 {
							t.Errorf("%s: content type %q", about, got)
						}
						if _, err := subjects.ParseID(r.header.Get("X-Request-Id")); err != nil || len(r.header["X-Request-Id"]) != 1 {
							t.Errorf("%s: request id %q", about, r.header["X-Request-Id"])
						}
						if cl := r.header["Content-Length"]; status == 204 && cl != nil || !chunked && status != 204 && status != 304 && !slices.Equal(cl, []string{strconv.Itoa(size)}) {
							t.Errorf("%s: content length %q", about, cl)
						}
					}
				}
			}
		}
	})
}

func TestHeadersToEngine(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var mu sync.Mutex
		var seen http.Header
		var path string
		g := with(t, env, gateway.Config{AllowPaths: []string{"/v1/*/z"}}, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			seen, path = r.Header.Clone(), r.RequestURI
		})
		r := do(t, g, "POST", "/v1/x%2Fy/z?q=a+b&api-key=secret&c=%00&%6bey=secret&d=%C3%BC&access_token=secret", `{"model":"m"}`,
			"Content-Type", "application/json", "User-Agent", "client/1", "X-Custom", "1", "X-Custom", "2", "X-Latin", "caf\xe9", "X-Unicode", "ü",
			"Openai-Organization", "org", "Anthropic-Version", "2023-06-01", "Traceparent", "00-1-2-01",
			"Authorization", "Bearer secret", "X-Api-Key", "secret", "Api-Key", "secret", "Cookie", "secret=1", "Proxy-Authorization", "secret",
			"Connection", "X-Hop, close", "X-Hop", "secret", "Te", "trailers", "Keep-Alive", "secret", "Upgrade", "secret", "Trailer", "X-Secret",
			"Origin", "http://secret", "Referer", "http://secret/", "Nats-Msg-Id", "secret", "X-Pulley-Tenant", "secret", "X-Request-Id", "the secret",
			"Sec-Fetch-Site", "secret", "X-Request-Timeout", "60",
			"X-Goog-Api-Key", "secret", "X-Auth-Token", "secret", "X-Openai-Api-Key", "secret", "Ocp-Apim-Subscription-Key", "secret", "x_auth_token", "secret",
			"X-Original-URL", "/secret", "X-Rewrite-URL", "/secret", "X-HTTP-Method-Override", "secret", "X-Data-Parallel-Rank", "secret",
			"X-Forwarded-For", "secret", "X-Forwarded-Host", "secret", "X-Forwarded-Prefix", "/secret", "Forwarded", "for=secret", "X-Real-IP", "secret")
		if r.status != 200 {
			t.Fatalf("got %d %q", r.status, r.body)
		}
		mu.Lock()
		got, path := seen, path
		mu.Unlock()
		if want := "/v1/x%2Fy/z?q=a+b&c=%00&d=%C3%BC"; path != want {
			t.Errorf("path %q, want %q", path, want)
		}
		want := http.Header{
			"Content-Type": {"application/json"}, "User-Agent": {"client/1"}, "X-Custom": {"1", "2"}, "X-Latin": {"caf\xe9"}, "X-Unicode": {"ü"},
			"Openai-Organization": {"org"}, "Anthropic-Version": {"2023-06-01"}, "Traceparent": {"00-1-2-01"},
			"Content-Length": {"13"}, "X-Request-Id": {r.header.Get("X-Request-Id")},
		}
		for k, v := range got {
			if strings.Contains(strings.Join(v, ","), "secret") || !slices.Equal(v, want[k]) {
				t.Errorf("the engine sees %s: %q, want %q", k, v, want[k])
			}
		}
		for k := range want {
			if got[k] == nil {
				t.Errorf("the engine does not see %s", k)
			}
		}
		if r := do(t, g, "POST", "/v1/x?q=\xff\xc3\xbc", `{"model":"m"}`); r.status != 200 {
			t.Errorf("a query that is not UTF-8: got %d %q", r.status, r.body)
		}
		mu.Lock()
		if path != "/v1/x?q=%FF%C3%BC" {
			t.Errorf("a query that is not UTF-8 arrives as %q", path)
		}
		mu.Unlock()
		if r := do(t, g, "POST", "/v1/x", `{"model":"m"}`, "X-Client-Request-Id", "mine"); r.header.Get("X-Client-Request-Id") != "mine" {
			t.Errorf("the client's own id comes back as %q", r.header.Get("X-Client-Request-Id"))
		}
	})
}

func TestWorkerKey(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{AllowPaths: []string{"/v1/x"}})
		e := env.Handler("e", engineOf(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%q", r.Header["Authorization"])
		}, "m"))
		env.Worker(e, worker.Config{Name: "e", Credentials: engine.Credentials{Key: "the-engine's"}})
		g.Serves(t, "m")
		r := do(t, g, "POST", "/v1/x", `{"model":"m"}`, "Authorization", "Bearer the-client's")
		if want := `["Bearer the-engine's"]`; r.body != want {
			t.Errorf("the engine sees %s, want %s", r.body, want)
		}
	})
}

func TestCORS(t *testing.T) {
	for _, origins := range [][]string{nil, {"*"}, {"https://app.example"}} {
		run(t, func(t *testing.T, env *Env) {
			g := env.Gateway(gateway.Config{CORSOrigins: origins})
			env.Worker(env.Engine(slow("a")), worker.Config{Name: "a"})
			g.Serves(t, "m")
			for _, origin := range []string{"https://app.example", "https://evil.example"} {
				allowed := ""
				if slices.Contains(origins, "*") {
					allowed = "*"
				} else if slices.Contains(origins, origin) {
					allowed = origin
				}
				flight := do(t, g, "OPTIONS", "/v1/chat/completions", "", "Origin", origin,
					"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,content-type,x-stainless-lang")
				if got := flight.header.Get("Access-Control-Allow-Origin"); got != allowed {
					t.Errorf("origins %q, preflight from %s: allowed %q, want %q", origins, origin, got, allowed)
				}
				if allowed != "" && (flight.status != 204 || !strings.Contains(flight.header.Get("Access-Control-Allow-Headers"), "authorization")) {
					t.Errorf("preflight: %d %q", flight.status, flight.header)
				}
				for about, r := range map[string]reply{
					"answer": do(t, g, "POST", "/v1/chat/completions", chat("m", false, 1), "Origin", origin),
					"error":  do(t, g, "POST", "/v1/chat/completions", "{", "Origin", origin),
				} {
					if got := r.header["Access-Control-Allow-Origin"]; strings.Join(got, "|") != allowed {
						t.Errorf("origins %q, %s to %s: allowed %q, want %q", origins, about, origin, got, allowed)
					}
					if exposed := r.header.Get("Access-Control-Expose-Headers"); allowed != "" && !strings.Contains(exposed, "X-Request-Id") {
						t.Errorf("exposed %q", exposed)
					}
				}
			}
		})
	}
}

// The KServe path, on the simulator.
func TestInfer(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		cfg := sim.Config{Name: "a", Models: []string{"org/m"}, Slots: 1}
		g := env.Gateway(gateway.Config{})
		env.Worker(env.Engine(cfg), worker.Config{Name: "a"})
		g.Serves(t, "org/m")
		const body = `{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["hi"]}]}`
		if r := do(t, g, "POST", "/v2/models/org%2Fm/infer", body, "Content-Type", "application/json"); r.status != 200 {
			t.Errorf("got %d %q, want 200", r.status, r.body)
		}
	})
}

var _ nats.InProcessConnProvider = (*broker.Broker)(nil)
