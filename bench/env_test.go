package bench_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/testenv"
)

// inBubble runs a test in virtual time.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// serve runs a real HTTP server on in-memory connections, which virtual time can wait for, and
// returns a transport to it.
func serve(t *testing.T, handler http.HandlerFunc) http.RoundTripper {
	t.Helper()
	listener := testenv.NewListener()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // only then does the server notice a disconnecting client
		r.Body = io.NopCloser(bytes.NewReader(body))
		handler(w, r)
	})}
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	transport := bench.NewTransport()
	transport.DialContext = listener.DialContext
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Close()
		running.Wait()
	})
	return transport
}

// run runs a config that must be valid.
func run(t *testing.T, cfg bench.Config) *bench.Result {
	t.Helper()
	if cfg.URL == "" {
		cfg.URL = "http://engine"
	}
	cfg.Model = "m"
	result, err := bench.Run(t.Context(), cfg)
	if err != nil {
		t.Fatalf("Run(%+v): %v", cfg, err)
	}
	return result
}

// request is the part of a body that the tests check.
type request struct {
	Model     string `json:"model"`
	MaxTokens int    `json:"max_tokens"`
	Messages  []struct {
		Content string `json:"content"`
	} `json:"messages"`
}

func decode(t *testing.T, r *http.Request) request {
	t.Helper()
	var body request
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		t.Errorf("body of a request: %v", err)
	}
	return body
}

func (r request) words() int { return len(strings.Fields(r.Messages[0].Content)) }

// answer writes a chat completion of the requested length.
func answer(w http.ResponseWriter, tokens int) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"choices":[{"message":{"content":"x"},"finish_reason":"length"}],"usage":{"completion_tokens":%d}}`, tokens)
}

// near fails unless got is within a permille of want, which is the histogram's precision.
func near(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if diff := (got - want).Abs(); diff > want/1000+time.Microsecond {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}
