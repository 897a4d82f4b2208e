package api

import (
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
)

func parsePath(t testing.TB, p string) *url.URL {
	t.Helper()
	u, err := url.ParseRequestURI(p) // as net/http does
	if err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	return u
}

func TestNormalURL(t *testing.T) {
	for p, want := range map[string]string{
		"/v1/chat/completions":               "/v1/chat/completions",
		"/v1//chat/completions":              "/v1/chat/completions",
		"//v1/chat/completions":              "/v1/chat/completions",
		"///v1///chat//completions":          "/v1/chat/completions",
		"/v1/./chat/completions":             "/v1/chat/completions",
		"/v1/x/../chat/completions":          "/v1/chat/completions",
		"/v1/%2e/chat/completions":           "/v1/chat/completions",
		"/v1/%2E%2e/sleep":                   "/sleep",
		"/../../sleep":                       "/sleep",
		"/v1/chat/completions/..":            "/v1/chat",
		"/%76%31/%63hat/completions":         "/v1/chat/completions",
		"/v1/chat/completions/":              "/v1/chat/completions/",
		"/v1/models/":                        "/v1/models/",
		"/v1/models/org/m":                   "/v1/models/org/m",
		"/v1/models/org%2fm":                 "/v1/models/org%2Fm",
		"/v2/models/org%2Fm%3Atag/infer":     "/v2/models/org%2Fm:tag/infer",
		"/v2/models/%C3%BC%20%C3%B1/infer":   "/v2/models/%C3%BC%20%C3%B1/infer",
		"/v2/models/100%25/infer":            "/v2/models/100%25/infer",
		"/v2/models/a..b/infer":              "/v2/models/a..b/infer",
		"/v2/models/.hidden/infer":           "/v2/models/.hidden/infer",
		"/v2/models/quo%22ted%5c/infer":      "/v2/models/quo%22ted%5C/infer",
		"/v2/models/a%0d%0ab/infer":          "/v2/models/a%0D%0Ab/infer",
		"/v1/models/%5c":                     "/v1/models/%5C",
		"/v2/models/m;v=1/infer":             "/v2/models/m%3Bv=1/infer",
		"/":                                  "/",
		"//":                                 "/",
		"/v1/chat/completions?a=%2e%2e&b=//": "/v1/chat/completions",
	} {
		u, err := NormalURL(parsePath(t, p))
		if err != nil || u.EscapedPath() != want {
			t.Errorf("%s: got %v, %v, want %s", p, u, err, want)
			continue
		}
		if _, query, _ := strings.Cut(p, "?"); u.RawQuery != query {
			t.Errorf("%s: query %q", p, u.RawQuery)
		}
	}
	for _, p := range []string{
		"/v1/..%2f..%2fsleep", "/v1/..%2Fsleep", "/v1/%2e%2e%2fsleep", "/v1/%2e%2e%2f%2e%2e%2fsleep", "/v1/x%2f..%2fsleep",
		"/v1/.%2fsleep", "/v1/%2fsleep", "/v1/x%2f", "/v1/x%2f%2fy", "/v1/..%5csleep", "/v1/..%5c..%5csleep", `/v1/..\sleep`, "/v1/%2e%2e%255csleep",
		"/v1/%252e%252e%252fsleep", "/v1/%25252e%25252e%25252fsleep", "/v1/..%252fsleep", "/v1/x%252f..%252fsleep", "/v1/%252e%252e",
		"/v1/..;/sleep", "/v1/..;a=b/sleep", "/v1/.;/sleep", "/v1/;/sleep", "/v1/%2e%2e;/sleep",
		"/v1/chat/completions%00", "/v2/models/m%00/infer", "/v2/models/..%2f..%2fsleep/infer", "/v2/models/..%5c..%5csleep/infer",
	} {
		if u, err := NormalURL(parsePath(t, p)); err == nil {
			t.Errorf("%s becomes %s, want an error", p, u.EscapedPath())
		} else {
			wantRefusal(t, err, 404, "")
		}
	}
}

// management are paths of engines with which a client could harm others.
var management = []string{
	// vLLM
	"/sleep", "/wake_up", "/reset_prefix_cache", "/reset_mm_cache", "/collective_rpc", "/start_profile", "/stop_profile", "/pause", "/resume",
	"/abort_requests", "/scale_elastic_ep", "/update_weights", "/init_weight_transfer_engine", "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
	// SGLang
	"/flush_cache", "/update_weights_from_disk", "/update_weights_from_tensor", "/release_memory_occupation", "/resume_memory_occupation",
	"/pause_generation", "/continue_generation", "/abort_request", "/set_internal_state", "/load_lora_adapter", "/unload_lora_adapter", "/configure_logging",
	// llama.cpp
	"/slots/0", "/slots/0?action=erase", "/props", "/lora-adapters", "/models/load", "/models/unload",
	// Ollama
	"/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/show", "/api/blobs/sha256:0", "/api/me", "/api/signout",
	// llama-swap, LM Studio
	"/api/models/unload", "/api/models/unload/m", "/upstream/m/sleep", "/unload", "/api/v1/models/load", "/api/v1/models/unload", "/api/v1/models/download",
	// Triton
	"/v2/repository/models/m/unload", "/v2/repository/models/m/load", "/v2/repository/index", "/v2/models/m/trace/setting", "/v2/trace/setting",
	"/v2/logging", "/v2/systemsharedmemory/region/x/register", "/v2/cudasharedmemory/unregister",
	// what is not served at all
	"/", "/v1", "/v1/", "/v1/files", "/v1/batches", "/v1/fine_tuning/jobs", "/v1/x", "/metrics", "/health", "/docs",
	"/v2/models/m", "/v2/models/infer", "/v2/models/m/infer/x", "/v2/models/m/versions/infer", "/v2/models/m/n/infer",
}

func TestDoors(t *testing.T) {
	d, err := NewDoors([]string{"/sleepy", "/v1/x/*/y", "/custom/**"})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{
		"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/audio/transcriptions",
		"/tokenize", "/detokenize", "/generate", "/api/chat", "/api/generate", "/infill", "/v2/models/m/infer", "/v2/models/org%2fm/infer",
		"/v2/models/m/versions/3/infer", "/v2/models/m/generate_stream", "/v1//chat//completions", "/sleepy", "/v1/x/a/y", "/v1/x/a%2Fb/y",
		"/custom/a", "/custom/a/b/c",
	} {
		if u, err := NormalURL(parsePath(t, p)); err != nil || !d.Allows(u) {
			t.Errorf("%s: not allowed, %v", p, err)
		}
	}
	for _, p := range append(slices.Clone(management), "/sleepy/x", "/sleep/", "/v1/x/y", "/v1/x/a/b/y", "/custom", "/custom/", "/customs", "/v1/chat/completions/", "/custom/a%2fsleep", "/custom/a%5csleep", "/custom/a%0asleep", "/v1/%5csleep", "/v1/chat%0a/completions", "/v1/a%0d%0ab", "/v1/%7f", "/Sleepy", "/V1/chat/completions") {
		if u, err := NormalURL(parsePath(t, p)); err == nil && d.Allows(u) {
			t.Errorf("%s: allowed", p)
		}
	}
	for _, p := range []string{"", "x", "v1/x", "/", "/*", "/**", "*", "/v1/x/", "/v1//x", "/v1/../x", "/v1/x?a=b", "/v1/x*", "/v1/***", "/**/x", "/v1/%2e%2e/x", "/v1/x y"} {
		if _, err := NewDoors([]string{p}); err == nil {
			t.Errorf("pattern %q passes", p)
		}
	}
}

// Routes are as many as there are patterns, however many paths clients send.
func TestRoutes(t *testing.T) {
	d, err := NewDoors([]string{"/custom/**"})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/v1/chat/completions": "/v1/chat/completions", "/v2/models/a/infer": "/v2/models/*/infer", "/v2/models/org%2Fb/infer": "/v2/models/*/infer",
		"/v2/models/a/versions/3/infer": "/v2/models/*/versions/*/infer", "/custom/x": "/custom/**", "/custom/x/y": "/custom/**",
		"/custom": "", "/v1/chat/completions/": "", "/nosuch": "", "": "", "/": "",
	} {
		if got := d.Route(path); got != want {
			t.Errorf("%q: got %q, want %q", path, got, want)
		}
	}
}

// FuzzDoors compares the rules with a slow reader of paths: however often that decodes what passes the doors, it arrives at
// a path that the doors allow.
func FuzzDoors(f *testing.F) {
	for _, p := range management {
		f.Add(p)
		f.Add("/v1/.." + p)
		f.Add("/v1/chat/completions/%2e%2e/%2E%2E/.." + p)
		f.Add("/v2/models/" + url.PathEscape("../.."+p) + "/infer")
		f.Add("/v2/models/" + url.PathEscape(url.PathEscape("../.."+p)) + "/infer")
		f.Add("/custom/" + strings.ReplaceAll("../.."+p, "/", "%2f"))
		f.Add("/v1/chat/completions;" + p)
	}
	d, err := NewDoors([]string{"/custom/**"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, p string) {
		u, err := url.ParseRequestURI(p)
		if err != nil || u.Host != "" || u.Opaque != "" {
			return
		}
		n, err := NormalURL(u)
		if err != nil {
			return
		}
		again, err := NormalURL(n)
		if err != nil || again.EscapedPath() != n.EscapedPath() {
			t.Fatalf("%q becomes %q and then %v, %v", p, n.EscapedPath(), again, err)
		}
		if parsed, err := url.ParseRequestURI(n.EscapedPath()); err != nil || parsed.Path != n.Path {
			t.Fatalf("%q: %q is read as %v, %v; want %q", p, n.EscapedPath(), parsed, err, n.Path)
		}
		if !d.Allows(n) {
			return
		}
		for reader, rounds := n.EscapedPath(), 0; rounds < 10; rounds++ {
			cleaned := path.Clean(strings.ReplaceAll(strings.ReplaceAll(reader, `\`, "/"), "//", "/"))
			bare := strings.ToLower(cleaned)
			custom := strings.HasPrefix(cleaned, "/custom/")
			if !custom && slices.ContainsFunc(management, func(m string) bool { return bare == m && m != "/" || bare == "/" }) {
				t.Fatalf("%q passes as %q, which can be read as %q", p, n.EscapedPath(), cleaned)
			}
			switch first, _, _ := strings.Cut(strings.TrimPrefix(cleaned, "/"), "/"); {
			case custom:
			case strings.HasPrefix(cleaned, "/v2/models/"):
			case !d.exact[cleaned]:
				t.Fatalf("%q passes as %q, which can be read as %q under %q", p, n.EscapedPath(), cleaned, first)
			}
			next, err := url.PathUnescape(reader)
			if err != nil || next == reader {
				return
			}
			reader = next
		}
	})
}
