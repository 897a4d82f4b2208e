package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
)

// loading is an engine that answers what a test says, and keeps the calls that load a model.
type loading struct {
	answers map[string]func(body map[string]any) (status int, answer string) // by method and path

	mu    sync.Mutex
	calls []string
}

func (l *loading) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body map[string]any
	json.NewDecoder(r.Body).Decode(&body)
	key := r.Method + " " + r.URL.EscapedPath()
	if answer := l.answers[key]; answer != nil {
		l.mu.Lock()
		l.calls = append(l.calls, key)
		l.mu.Unlock()
		status, text := answer(body)
		w.WriteHeader(status)
		fmt.Fprint(w, text)
		return
	}
	switch key {
	case "GET /v1/models", "GET /api/tags", "GET /running", "GET /api/ps":
		fmt.Fprint(w, `{"data":[{"id":"m"}],"models":[],"running":[]}`)
	case "GET /health", "GET /api/version":
		fmt.Fprint(w, `{}`)
	default:
		http.Error(w, `{"error":"no such page"}`, http.StatusNotFound)
	}
}

func TestWarmUp(t *testing.T) {
	ok := func(map[string]any) (int, string) { return 200, `{}` }
	says := func(status int, text string) func(map[string]any) (int, string) {
		return func(map[string]any) (int, string) { return status, text }
	}
	type answers = map[string]func(map[string]any) (int, string)
	const model = "org/m:7b q4"
	for what, test := range map[string]struct {
		dialect engine.Dialect
		answers answers
		calls   string // that are expected, in order
		fails   string // part of the error
	}{
		"ollama": {engine.DialectOllama, answers{"POST /api/generate": func(b map[string]any) (int, string) {
			if b["model"] != model || b["prompt"] != nil || b["stream"] != false {
				return 500, fmt.Sprint(b)
			}
			return 200, `{"done":true,"done_reason":"load"}`
		}}, "POST /api/generate", ""},
		"ollama, a model of embeddings": {engine.DialectOllama, answers{
			"POST /api/generate": says(400, `{"error":"\"m\" does not support generate"}`), "POST /api/embed": ok}, "POST /api/generate, POST /api/embed", ""},
		"ollama, no memory": {engine.DialectOllama, answers{
			"POST /api/generate": says(500, `{"error":"model requires more system memory"}`)}, "POST /api/generate", "requires more system memory"},
		"ollama, no such model": {engine.DialectOllama, answers{
			"POST /api/generate": says(404, `{"error":"model 'm' not found"}`)}, "POST /api/generate", "not found"},
		"llama-swap": {engine.DialectLlamaSwap, answers{"GET /upstream/org/m:7b%20q4/health": ok}, "GET /upstream/org/m:7b%20q4/health", ""},
		"llama-swap, a server without a health page": {engine.DialectLlamaSwap, answers{
			"GET /upstream/org/m:7b%20q4/health": says(404, "not found"), "POST /v1/chat/completions": ok,
		}, "GET /upstream/org/m:7b%20q4/health, POST /v1/chat/completions", ""},
		"ollama behind a proxy that lets only the API pass": {engine.DialectOllama, answers{
			"POST /api/generate": says(403, "forbidden"), "POST /v1/chat/completions": ok,
		}, "POST /api/generate, POST /v1/chat/completions", ""},
		"llama-swap, the server does not start": {engine.DialectLlamaSwap, answers{
			"GET /upstream/org/m:7b%20q4/health": says(502, "exit status 1")}, "GET /upstream/org/m:7b%20q4/health", "exit status 1"},
		"llama.cpp with one model": {engine.DialectLlamaCpp, answers{"POST /v1/chat/completions": ok}, "POST /v1/chat/completions", ""},
		"another": {engine.DialectOpenAI, answers{"POST /v1/chat/completions": func(b map[string]any) (int, string) {
			if b["model"] != model || b["max_tokens"] != 1.0 {
				return 500, fmt.Sprint(b)
			}
			return 200, `{}`
		}}, "POST /v1/chat/completions", ""},
		"another, a model of embeddings": {engine.DialectOpenAI, answers{
			"POST /v1/chat/completions": says(400, "no chat template"), "POST /v1/embeddings": ok}, "POST /v1/chat/completions, POST /v1/embeddings", ""},
		"another, that refuses": {engine.DialectOpenAI, answers{
			"POST /v1/chat/completions": says(401, "who are you")}, "POST /v1/chat/completions", "who are you"},
	} {
		t.Run(what, func(t *testing.T) {
			l := &loading{answers: test.answers}
			server := httptest.NewServer(l)
			defer server.Close()
			s := scraperOf(t, server.URL, test.dialect)
			err := s.WarmUp(t.Context(), model)
			if (err != nil) != (test.fails != "") || err != nil && !strings.Contains(err.Error(), test.fails) {
				t.Errorf("error %v, want %q", err, test.fails)
			}
			if got := strings.Join(l.calls, ", "); got != test.calls {
				t.Errorf("calls %s, want %s", got, test.calls)
			}
		})
	}
}

// scraperOf returns a scraper that has read an engine of this dialect once.
func scraperOf(t *testing.T, url string, d engine.Dialect) *engine.Scraper {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	s, err := engine.NewScraper(engine.ScraperConfig{URL: url, Dialect: d, OnStatus: func(engine.Status) { stop() }})
	if err != nil {
		t.Fatal(err)
	}
	if s.Run(ctx); s.Latest().Dialect != d {
		t.Fatalf("dialect %q, want %q", s.Latest().Dialect, d)
	}
	return s
}

// A router of llama.cpp answers at once, and loads then.
func TestWarmUpOfALlamaCppRouter(t *testing.T) {
	for what, test := range map[string]struct {
		load   int // status of the answer to the order
		states []string
		fails  bool
	}{
		"it loads":               {200, []string{"unloaded", "loading", "loading", "loaded"}, false},
		"it is loaded":           {400, []string{"loaded"}, false},
		"it is being loaded":     {400, []string{"loading", "loaded"}, false},
		"it cannot be loaded":    {200, []string{"loading", "unloaded"}, true},
		"it refuses":             {500, nil, true},
		"it knows no such state": {200, []string{""}, false},
	} {
		t.Run(what, func(t *testing.T) {
			left := slices.Clone(test.states)
			l := &loading{answers: map[string]func(map[string]any) (int, string){
				"POST /models/load": func(b map[string]any) (int, string) { return test.load, `{"success":true}` },
				"GET /models": func(map[string]any) (int, string) {
					state := left[0]
					left = left[1:]
					return 200, fmt.Sprintf(`{"data":[{"id":"other","status":{"value":"loaded"}},{"id":"m","status":{"value":%q}}]}`, state)
				},
			}}
			server := httptest.NewServer(l)
			defer server.Close()
			err := scraperOf(t, server.URL, engine.DialectLlamaCpp).WarmUp(t.Context(), "m")
			if (err != nil) != test.fails || len(left) > 0 {
				t.Errorf("error %v, %d states not read", err, len(left))
			}
		})
	}
}

func TestWarmUpEndsWithItsContext(t *testing.T) {
	held := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/generate" {
			select {
			case <-held:
			case <-r.Context().Done():
			}
		}
		fmt.Fprint(w, `{"data":[],"models":[]}`)
	}))
	defer server.Close()
	defer close(held)
	s := scraperOf(t, server.URL, engine.DialectOllama)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.WarmUp(ctx, "m"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
