package scenarios

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
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

// No spelling of a management path reaches an engine, on a raw connection that normalizes nothing, nor does another method.
func TestManagementOfEngines(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var mu sync.Mutex
		seen := make(map[string]bool)
		g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			seen[r.Method+" "+r.RequestURI] = true
		})
		conn := func() net.Conn {
			c, err := g.Listener.DialContext(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		paths := strings.Fields(`
			/v1/load_lora_adapter /v1/unload_lora_adapter /load_lora_adapter /unload_lora_adapter /sleep /sleep?level=2 /wake_up /pause /resume
			/reset_prefix_cache /reset_mm_cache /collective_rpc /update_weights /abort_requests /scale_elastic_ep /start_profile /stop_profile
			/abort_request /flush_cache /update_weights_from_disk /update_weights_from_tensor /release_memory_occupation /resume_memory_occupation
			/set_internal_state /configure_logging /server_info /clear_hicache_storage_backend
			/api/pull /api/push /api/create /api/copy /api/delete /api/blobs/sha256:0 /api/show /api/ps
			/slots/0?action=erase /slots/0?action=save /props /models/load /models/unload /lora-adapters
			/v2/repository/models/m/unload /v2/repository/models/m/load /v2/repository/index /v2/logging /v2/models/m/trace/setting /v2/cudasharedmemory/register
			/api/v1/models/unload /api/v1/models/download /admin/x /metrics /debug/pprof/ /v1/models /v1/files /v1/fine_tuning/jobs /v1/batches`)
		const far = "/v1/chat/completions"
		spell := map[string]func(path string) string{
			"as it is":            func(p string) string { return p },
			"doubled":             func(p string) string { return "/" + strings.ReplaceAll(p, "/", "//") },
			"a slash at the end":  func(p string) string { return p + "/" },
			"upper case":          strings.ToUpper,
			"dots":                func(p string) string { return "/v1/.." + p },
			"encoded dots":        func(p string) string { return "/v1/%2e%2E" + p },
			"double encoded dots": func(p string) string { return "/v1/%252e%252e" + p },
			"from an allowed one": func(p string) string { return far + "/../../.." + p },
			"encoded slashes":     func(p string) string { return far + strings.ReplaceAll("/../../.."+p, "/", "%2f") },
			"only some encoded":   func(p string) string { return far + "/..%2f..%2f.." + p },
			"backslashes":         func(p string) string { return far + `\..\..\..` + strings.ReplaceAll(p, "/", `\`) },
			"encoded backslashes": func(p string) string { return far + `/..%5c..%5c..` + p },
			"parameters":          func(p string) string { return far + "/..;/..;/..;" + p },
			"a parameter":         func(p string) string { return p + ";x" },
			"an infix":            func(p string) string { return "/v2/models/..%2f.." + strings.ReplaceAll(p, "/", "%2f") + "/infer" },
			"an absolute form":    func(p string) string { return "http://elsewhere" + p },
			"another scheme":      func(p string) string { return "x://elsewhere" + p },
			"an opaque form":      func(p string) string { return "x:" + p },
			"a user":              func(p string) string { return "http://u:p@elsewhere" + p },
			"a NUL":               func(p string) string { return p + "%00" },
			"an encoded letter":   func(p string) string { return fmt.Sprintf("/%%%02x%s", p[1], p[2:]) },
			"an overlong slash":   func(p string) string { return far + "/..%c0%af..%c0%af.." + p },
			"a fragment":          func(p string) string { return p + "#" + far },
			"a query":             func(p string) string { return p + "?" + far },
			"no slash":            func(p string) string { return p[1:] },
		}
		for how, spelled := range spell {
			c := conn()
			answers := bufio.NewReader(c)
			for _, path := range paths {
				for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "GET", "post", "OPTIONS"} {
					if method != "POST" && how != "as it is" {
						continue
					}
					go fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nContent-Length: 23\r\n\r\n{\"model\":\"m\",\"name\":\"\"}", method, spelled(path))
					c.SetReadDeadline(time.Now().Add(time.Minute))
					r, err := http.ReadResponse(answers, &http.Request{Method: method})
					if err != nil {
						t.Fatalf("%s: %s %s: %v", how, method, spelled(path), err)
					}
					io.Copy(io.Discard, r.Body)
					r.Body.Close()
					ours := method == "GET" && (strings.HasPrefix(path, "/v1/models") || path == "/metrics") // the gateway's own
					if r.StatusCode < 300 && !ours || r.StatusCode >= 500 {
						t.Errorf("%s: %s %s: got %s", how, method, spelled(path), r.Status)
					}
					if r.Close {
						c.Close()
						c = conn()
						answers = bufio.NewReader(c)
					}
				}
			}
			c.Close()
		}
		mu.Lock()
		defer mu.Unlock()
		for call := range seen {
			t.Errorf("the engine saw %s", call)
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

// The gateway decides which web pages may read answers, the engine does not.
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
			if r := do(t, open, "POST", "/v1/x", `{"model":"m"}`, "Origin", page); r.header["Access-Control-Allow-Origin"] != nil || r.header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("without CORS the engine allows: %v", r.header)
			}
		})
	}
}

// A redirect of an engine to itself is followed, with the same body; no client gets one.
func TestRedirectsOfEngines(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var seen atomic.Pointer[[]string]
		engine := func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			for old := seen.Load(); ; old = seen.Load() {
				now := append(slices.Clone(*old), r.RequestURI+" "+string(b))
				if seen.CompareAndSwap(old, &now) {
					break
				}
			}
			to, status := r.Header.Get("X-To"), 307
			if s, err := strconv.Atoi(r.Header.Get("X-Status")); err == nil {
				status = s
			}
			w.Header().Set("Content-Type", "application/json")
			if to == "" || r.RequestURI == to || strings.HasSuffix(to, r.RequestURI) && strings.Contains(to, r.Host) {
				io.WriteString(w, `{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"data":[{"embedding":[1]}],"count":1}`)
				return
			}
			w.Header().Set("Location", to)
			w.Header().Set("Content-Location", to)
			w.WriteHeader(status)
		}
		g := with(t, env, gateway.Config{}, engine)
		for _, c := range []struct {
			path, to string
			status   string
			want     []string // what the engine sees after the first call
		}{
			{"/v1/embeddings", "/v1/embeddings/", "", []string{"/v1/embeddings/"}},
			{"/v1/embeddings", "/v1/embeddings/", "308", []string{"/v1/embeddings/"}},
			{"/v1/embeddings", "http://HOST/v1/embeddings/", "", []string{"/v1/embeddings/"}},
			{"/v1/x", "/v1/x/", "", []string{"/v1/x/"}},
			{"/v1/x", "/v1/chat/completions?a=b", "", []string{"/v1/chat/completions?a=b"}},
			{"/tokenize", "/tokenize/", "", []string{"/tokenize/"}},
			{"/v1/x", "/v1/x?again", "301", nil}, // would become a GET
			{"/v1/x", "/v1/x?again", "302", nil},
			{"/v1/x", "/sleep", "", nil},
			{"/v1/x", "/v1/../sleep", "", nil},
			{"/v1/x", "/v1/chat/completions/../../../sleep", "", nil},
			{"/v1/x", "/v1/%2e%2e/sleep", "", nil},
			{"/v1/x", "http://10.0.0.7:8000/v1/embeddings", "", nil},
			{"/v1/x", "https://HOST/v1/embeddings", "", nil},
			{"/v1/x", "//gpu-7/v1/embeddings", "", nil},
			{"/v1/x", "///gpu-7/v1/embeddings", "", nil},
			{"/v1/x", `/\gpu-7/v1/embeddings`, "", nil},
			{"/v1/x", "http://u:p@HOST/v1/embeddings", "", nil},
			{"/v1/x", "javascript:alert(1)", "", nil},
		} {
			seen.Store(new([]string))
			host := "e"
			const body = `{"model":"m","x":[1,2]}`
			r := do(t, g, "POST", c.path, body, "X-To", strings.ReplaceAll(c.to, "HOST", host), "X-Status", c.status)
			status := 200
			if c.want == nil {
				if status = 307; c.status != "" {
					status, _ = strconv.Atoi(c.status)
				}
			}
			if r.status != status || r.header["Location"] != nil || r.header["Content-Location"] != nil {
				t.Errorf("%s to %s: got %d %v %q, want %d", c.path, c.to, r.status, r.header, r.body, status)
			}
			want := []string{c.path + " " + body}
			for _, w := range c.want {
				want = append(want, w+" "+body)
			}
			if got := *seen.Load(); !slices.Equal(got, want) {
				t.Errorf("%s to %s: the engine saw %q, want %q", c.path, c.to, got, want)
			}
		}
		// One that never ends.
		seen.Store(new([]string))
		if r := do(t, g, "POST", "/v1/x", `{"model":"m"}`, "X-To", "/v1/x?round"); r.status != 200 && r.status != 307 || len(*seen.Load()) > 4 {
			t.Errorf("got %d after %q", r.status, *seen.Load())
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
