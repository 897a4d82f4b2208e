package scenarios

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

// Clients reach the inference paths of engines, and what the operator adds. No spelling of another path gets around that.
func TestDoorsOfEngines(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var seen atomic.Pointer[string]
		g := with(t, env, gateway.Config{AllowPaths: []string{"/api/show", "/custom/**"}}, func(w http.ResponseWriter, r *http.Request) {
			seen.Store(&r.RequestURI)
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"data":[{}],"type":"message","content":[{"type":"text","text":"a"}],"input_tokens":1}`)
		})
		const body = `{"model":"m","name":"m","messages":[]}`
		for path, want := range map[string]string{
			"/v1/chat/completions": "/v1/chat/completions", "/v1//chat/completions": "/v1/chat/completions", "//v1/chat/completions?a=//b": "/v1/chat/completions?a=//b",
			"/v1/chat/completions/": "/v1/chat/completions", "/v1/./x/../embeddings": "/v1/embeddings", "/%761/messages": "/v1/messages",
			"/v1/messages/count_tokens?beta=true": "/v1/messages/count_tokens?beta=true", "/tokenize": "/tokenize", "/api/chat": "/api/chat",
			"/api/show": "/api/show", "/custom/a/b": "/custom/a/b", "/v2/models/m/infer": "/v2/models/m/infer",
		} {
			seen.Store(nil)
			if r := do(t, g, "POST", path, body); r.status != 200 || seen.Load() == nil || *seen.Load() != want {
				t.Errorf("POST %s: got %d %q, the engine saw %v, want %s", path, r.status, r.body, seen.Load(), want)
			}
		}
		seen.Store(nil)
		for _, path := range []string{
			"/sleep", "/update_weights", "/v1/load_lora_adapter", "/api/pull", "/api/delete", "/models/unload", "/slots/0?action=erase", "/pause", "/flush_cache",
			"/v2/repository/models/m/unload", "/v1/..%2f..%2fsleep", "/v1/%2e%2e/sleep", "/v1/chat/completions/../../../sleep", "/v1/chat/completions/..%2f..%2f..%2fsleep",
			"/v1/%252e%252e%252fsleep", "/v1/..%5csleep", "/v1/chat/completions/..;/..;/..;/sleep", "/v2/models/..%2f..%2f..%2fsleep/infer", "/custom/..%2fsleep",
			"/custom/../sleep", "/api/show/x", "/v1/x/y", "/v1/chat/completions%00",
		} {
			if r := do(t, g, "POST", path, body); r.status != 404 || !strings.Contains(r.body, "path_not_allowed") {
				t.Errorf("POST %s: got %d %q, want 404 path_not_allowed", path, r.status, r.body)
			}
		}
		if path := seen.Load(); path != nil {
			t.Errorf("the engine saw %s", *path)
		}
	})
}

// A path is looked at after the key, and normalized before both.
func TestDoorsAndKeys(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{Auth: gateway.AuthRequired})
		for _, path := range []string{"/v1/chat/completions", "//v1/chat/completions", "/sleep"} {
			wantError(t, do(t, g, "POST", path, `{"model":"m"}`), 401, "invalid_api_key")
		}
		wantError(t, do(t, g, "POST", "/v1/..%2fsleep", `{"model":"m"}`), 404, "path_not_allowed")
	})
}

// A client that goes on sending a body after it was refused is cut off at last.
func TestRefusalOfEndlessBody(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{MaxBody: 1 << 20})
		for about, pause := range map[string]time.Duration{"slow": 100 * time.Millisecond, "fast": 100 * time.Microsecond} {
			conn, err := g.Listener.DialContext(t.Context(), "tcp", "gateway:80")
			if err != nil {
				t.Fatal(err)
			}
			status := make(chan string, 1)
			go func() {
				r := bufio.NewReader(conn)
				line, _ := r.ReadString('\n')
				status <- line
				io.Copy(io.Discard, r)
			}()
			fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: 2000000000\r\n\r\n")
			begun, sent := time.Now(), 0
			for err == nil && time.Since(begun) < 2*time.Minute {
				var n int
				n, err = conn.Write(make([]byte, 10_000))
				sent += n
				time.Sleep(pause)
			}
			if took := time.Since(begun); err == nil || took > time.Minute || sent > 80<<20 || took < 20*time.Second && sent < 60<<20 {
				t.Errorf("%s: cut off after %v and %d bytes, %v", about, took, sent, err)
			}
			if line := <-status; !strings.Contains(line, " 413 ") {
				t.Errorf("%s: got %q", about, line)
			}
			conn.Close()
		}
	})
}

// Where the gateway decides which web pages may read answers, the engine does not.
func TestOneAllowedOrigin(t *testing.T) {
	const page = "https://chat.example"
	for _, sent := range []string{"", "*", "null", page, "https://other.example"} {
		run(t, func(t *testing.T, env *Env) {
			engine := func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Access-Control-Allow-Origin"] = []string{sent}
				w.Header().Set("Access-Control-Allow-Credentials", "true")
				w.Header().Set("Access-Control-Expose-Headers", "x-other")
				w.Header().Set("Content-Type", "application/json")
				if r.Header.Get("X-Refuse") != "" {
					w.WriteHeader(429)
				}
				io.WriteString(w, "{}")
			}
			g := with(t, env, gateway.Config{CORSOrigins: []string{page}}, engine)
			for _, refuse := range [][]string{nil, {"X-Refuse", "1"}} {
				for origin, want := range map[string][]string{page: {page}, "https://evil.example": nil} {
					r := do(t, g, "POST", "/v1/x", `{"model":"m"}`, append([]string{"Origin", origin}, refuse...)...)
					if got := r.header["Access-Control-Allow-Origin"]; !slices.Equal(got, want) {
						t.Errorf("the engine allows %q, page of %s: allowed %q, want %q", sent, origin, got, want)
					}
					if r.header.Get("Access-Control-Allow-Credentials") != "" || strings.Contains(r.header.Get("Access-Control-Expose-Headers"), "x-other") {
						t.Errorf("headers %v", r.header)
					}
				}
			}
			open := with(t, env, gateway.Config{}, engine)
			if r := do(t, open, "POST", "/v1/x", `{"model":"m"}`, "Origin", page); !slices.Equal(r.header["Access-Control-Allow-Origin"], []string{sent}) {
				t.Errorf("without CORS: %q, want %q", r.header["Access-Control-Allow-Origin"], sent)
			}
		})
	}
}

// A redirect of an engine leads to the gateway.
func TestRedirectsOfEngines(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", r.Header.Get("X-To"))
			w.Header().Set("Content-Location", r.Header.Get("X-To"))
			w.WriteHeader(307)
		})
		for to, want := range map[string]string{
			"http://10.0.0.7:8000/v1/embeddings?a=b": "/v1/embeddings?a=b", "https://gpu-7/v1/x/": "/v1/x/", "//gpu-7:80/a%2Fb": "/a%2Fb",
			"http://gpu-7": "/", "/v1/embeddings": "/v1/embeddings", "http://u:p@gpu-7//x": "/x", "http://gpu-7:x/": "",
		} {
			r := do(t, g, "POST", "/v1/x", `{"model":"m"}`, "X-To", to)
			if r.status != 307 || r.header.Get("Location") != want || r.header.Get("Content-Location") != want {
				t.Errorf("to %s: got %d, %q, %q, want %q", to, r.status, r.header["Location"], r.header["Content-Location"], want)
			}
		}
	})
}

// A sane id of the client goes to the engine and comes back; the gateway's own is always there.
func TestRequestIDs(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Request-Id", "the engine's")
			w.Header().Set("X-Pulley-Worker", "the engine's")
			fmt.Fprintf(w, "%s", strings.Join(r.Header["X-Request-Id"], "|"))
		})
		for about, c := range map[string]struct {
			sent []string
			kept bool
		}{
			"none":             {nil, false},
			"a word":           {[]string{"order-4711"}, true},
			"a UUID":           {[]string{"01a228f5-8369-7d79-9ba1-e32bb02083be"}, true},
			"signs":            {[]string{`a/b:c=d;"e"{f}`}, true},
			"128 bytes":        {[]string{strings.Repeat("x", 128)}, true},
			"129 bytes":        {[]string{strings.Repeat("x", 129)}, false},
			"empty":            {[]string{""}, false},
			"a space":          {[]string{"a b"}, false},
			"two":              {[]string{"a", "b"}, false},
			"not ASCII":        {[]string{"ü"}, false},
			"a tab in between": {[]string{"a\tb"}, false},
		} {
			var header []string
			for _, id := range c.sent {
				header = append(header, "X-Request-Id", id)
			}
			for _, path := range []string{"/v1/x", "/v1/messages", "/sleep"} {
				r := do(t, g, "POST", path, `{"model":"m"}`, header...)
				ours := r.header.Get("X-Pulley-Request-Id")
				if _, err := subjects.ParseID(ours); err != nil {
					t.Errorf("%s: the gateway's id: %v", about, err)
				}
				want := ours
				if c.kept {
					want = c.sent[0]
				}
				if got := r.header["X-Request-Id"]; !slices.Equal(got, []string{want}) {
					t.Errorf("%s: answered with %q, want %q", about, got, want)
				}
				if r.status == 200 && r.body != want {
					t.Errorf("%s: the engine saw %q, want %q", about, r.body, want)
				}
				if r.header.Get("X-Pulley-Worker") != "" {
					t.Errorf("%s: a header of the gateway from the engine: %v", about, r.header)
				}
			}
			r := do(t, g, "POST", "/v1/messages", `{"model":"nope"}`, header...)
			if id := r.header.Get("X-Request-Id"); !strings.Contains(r.body, `"request_id":`) || c.kept && !strings.Contains(r.body, `"request_id":"`) || id == "" {
				t.Errorf("%s: got %s with id %q", about, r.body, id)
			}
		}
	})
}

// No error tells where an engine is.
func TestErrorsTellNoAddress(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		e := env.Handler("gpu-7.internal", engineOf(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			if r.Header.Get("X-Begin") != "" {
				w.Header().Set("Content-Type", "text/event-stream")
				io.WriteString(w, "data: {}\n\n")
				http.NewResponseController(w).Flush()
			}
			panic(http.ErrAbortHandler)
		}, "m"))
		u, err := url.Parse(e.URL)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"", "10.0.0.7:8000", "e"} {
			w := env.Worker(e, worker.Config{Name: name})
			g.Serves(t, "m")
			for _, path := range []string{"/v1/chat/completions", "/v1/messages", "/v1/responses"} {
				for _, begin := range []string{"", "1"} {
					r := do(t, g, "POST", path, chat("m", true, 1), "X-Begin", begin)
					if !strings.Contains(r.body, "error") || strings.Contains(r.body, u.Host) || strings.Contains(r.body, "10.0.0.7") || strings.Contains(r.body, "://") {
						t.Errorf("worker %q: got %d %s", name, r.status, r.body)
					}
				}
			}
			w.Stop()
		}
	})
}

// Comments are sent only where the answer will be server-sent events.
func TestKeepAliveOnlyInEventStreams(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		const sound = "\xff\xfb\x90 not text"
		g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			time.Sleep(35 * time.Second)
			w.Header().Set("Content-Type", "audio/mpeg")
			io.WriteString(w, sound)
		})
		for path, comments := range map[string]bool{
			"/v1/audio/speech": false, "/v1/audio/transcriptions": false, "/v1/images/generations": false, "/v1/embeddings": false, "/v1/rerank": false, "/api/chat": false,
			"/v1/chat/completions": true, "/v1/completions": true, "/v1/responses": true, "/v1/messages": true,
		} {
			r := do(t, g, "POST", path, `{"model":"m","stream":true,"input":"hello"}`)
			if got := strings.HasPrefix(r.body, ": "); r.status != 200 || got != comments {
				t.Errorf("%s: got %d %q, want comments %t", path, r.status, r.body, comments)
			}
			if !comments && (r.body != sound || r.header.Get("Content-Type") != "audio/mpeg") {
				t.Errorf("%s: got %v %q", path, r.header, r.body)
			}
		}
	})
}

// What most engines accept passes as it is.
func TestLaxBodies(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
		for _, body := range []string{
			"\ufeff" + `{"model":"m"}`, `{"model":"m","stream":"true"}`, `{"model":"m","stream":1}`, `{"model":"m","stream":"off"}`,
			`{"model":"m","temperature":NaN,"a":[-Infinity,Infinity]}`, "\ufeff\n" + `{"stream":"True","model":"m","b":NaN}`,
		} {
			if r := do(t, g, "POST", "/v1/x", body); r.status != 200 || r.body != body {
				t.Errorf("%q: got %d %q", body, r.status, r.body)
			}
		}
		for body, says := range map[string]string{
			"\xff\xfe{\x00\"\x00": "UTF-16", "{\x00\"\x00m\x00\"\x00:\x001\x00}\x00": "UTF-16", "\x1f\x8b\x08\x00": "compressed", `{"model":"m","stream":"maybe"}`: "true or false",
		} {
			if m := wantError(t, do(t, g, "POST", "/v1/x", body), 400, "invalid_request"); !strings.Contains(m, says) {
				t.Errorf("%q: message %q, want %q in it", body, m, says)
			}
		}
	})
}

func TestFastIsPriority(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, _ := pair(t, env, slow("a"))
		for asked, answered := range map[string]string{"fast": "priority", "priority": "priority", "flex": "flex", "default": "default", "auto": "default"} {
			for _, stream := range []bool{false, true} {
				r := ask(t, g, chat("m", stream, 2, fmt.Sprintf(`"service_tier":%q`, asked)), "")
				if r.status != 200 || !strings.Contains(r.body, fmt.Sprintf(`"service_tier":%q`, answered)) {
					t.Errorf("%s: got %d %s, want %s", asked, r.status, r.body, answered)
				}
			}
		}
	})
}
