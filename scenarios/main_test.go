package scenarios

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// reply is a complete HTTP answer.
type reply struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
	took   time.Duration
}

// chat is a chat request's body.
func chat(model string, stream bool, tokens int, more ...string) string {
	extra := ""
	if len(more) > 0 {
		extra = "," + strings.Join(more, ",")
	}
	return fmt.Sprintf(`{"model":%q,"stream":%t,"max_tokens":%d,"messages":[{"role":"user","content":"one two three"}]%s}`, model, stream, tokens, extra)
}

// post sends a request to a gateway; orders is the simulator's x-sim header.
func post(ctx context.Context, g *Gateway, path, body, orders string, header ...string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, "POST", "http://gateway"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	if orders != "" {
		r.Header.Set("x-sim", orders)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return g.Client.Do(r)
}

func ask(t testing.TB, g *Gateway, body, orders string, header ...string) reply {
	t.Helper()
	return askAt(t, g, "/v1/chat/completions", body, orders, header...)
}

func askAt(t testing.TB, g *Gateway, path, body, orders string, header ...string) reply {
	t.Helper()
	begun := time.Now()
	resp, err := post(t.Context(), g, path, body, orders, header...)
	if err != nil {
		return reply{err: err, took: time.Since(begun)}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(b), err, time.Since(begun)}
}

// content joins the text of a chat answer, streamed or not.
func content(t testing.TB, body string) string {
	t.Helper()
	type choice struct {
		Delta, Message struct{ Content string }
	}
	var text strings.Builder
	if !strings.HasPrefix(body, "data:") && !strings.HasPrefix(body, ":") {
		var v struct{ Choices []choice }
		if err := json.Unmarshal([]byte(body), &v); err != nil {
			t.Fatalf("%v in %q", err, body)
		}
		return v.Choices[0].Message.Content
	}
	for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var v struct{ Choices []choice }
		if err := json.Unmarshal([]byte(data), &v); err != nil {
			t.Fatalf("%v in %q", err, data)
		}
		if len(v.Choices) > 0 {
			text.WriteString(v.Choices[0].Delta.Content)
		}
	}
	return text.String()
}

func words(s string) int { return len(strings.Fields(s)) }

// slow is an engine that produces 10 tokens a second.
func slow(name string) sim.Config {
	return sim.Config{Name: name, Models: []string{"m"}, Slots: 4, PrefillRate: 1000, ITLBase: 100 * time.Millisecond}
}

// pair starts a gateway, and a worker for each engine.
func pair(t *testing.T, env *Env, engines ...sim.Config) (*Gateway, []*testenv.Engine, []*Worker) {
	t.Helper()
	return pairWith(t, env, func(cfg sim.Config) worker.Config { return worker.Config{Slots: cfg.Slots} }, engines...)
}

// pairWith starts a gateway, and a worker for each engine, configured by like.
func pairWith(t *testing.T, env *Env, like func(sim.Config) worker.Config, engines ...sim.Config) (*Gateway, []*testenv.Engine, []*Worker) {
	t.Helper()
	g := env.Gateway(gateway.Config{})
	var es []*testenv.Engine
	var ws []*Worker
	for _, cfg := range engines {
		e := env.Engine(cfg)
		es = append(es, e)
		c := like(cfg)
		c.Name = cfg.Name
		ws = append(ws, env.Worker(e, c))
	}
	g.Serves(t, "m")
	return g, es, ws
}
