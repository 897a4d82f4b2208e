package scenarios

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/worker"
)

// Executions are the calls of engines that one call of a client causes. At the engine alone it is always one. Through a
// gateway it is one too, but for the retries before the first byte that docs/clients.md lists, with these numbers.
func TestExecutions(t *testing.T) {
	const (
		event = `data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}` + "\n\n"
		last  = `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\ndata: [DONE]\n\n"
		plain = `{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}]}`
	)
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	breakOff := func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }
	hang := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	begins := func(stream bool) func(w http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			text, ct := event, "text/event-stream"
			if !stream {
				text, ct = plain[:20], "application/json"
				w.Header().Set("Content-Length", "1000")
			}
			w.Header().Set("Content-Type", ct)
			io.WriteString(w, text)
			w.(http.Flusher).Flush()
		}
	}
	type executions struct{ one, two int } // with one worker, and with two
	for _, c := range []struct {
		about  string
		serve  func(stream bool) http.HandlerFunc
		plain  executions
		stream executions
		leave  time.Duration // after which the client goes away; 0: it does not
		header []string
		body   string
	}{
		{about: "success", plain: executions{1, 1}, stream: executions{1, 1}, serve: func(stream bool) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if stream {
					w.Header().Set("Content-Type", "text/event-stream")
					io.WriteString(w, event+last)
				} else {
					io.WriteString(w, plain)
				}
			}
		}},
		{about: "400", plain: executions{1, 1}, stream: executions{1, 1}, serve: func(bool) http.HandlerFunc {
			return answer(400, `{"error":{"message":"bad","type":"invalid_request_error","param":"messages"}}`)
		}},
		{about: "400, too long", plain: executions{1, 2}, stream: executions{1, 2}, serve: func(bool) http.HandlerFunc {
			return answer(400, `{"error":{"message":"This model's maximum context length is 10 tokens","code":"context_length_exceeded"}}`)
		}},
		{about: "401", plain: executions{1, 2}, stream: executions{1, 2}, serve: func(bool) http.HandlerFunc { return answer(401, `{"error":"Unauthorized"}`) }},
		{about: "404 of the model", plain: executions{1, 2}, stream: executions{1, 2}, serve: func(bool) http.HandlerFunc {
			return answer(404, `{"error":{"message":"The model m does not exist.","code":"model_not_found"}}`)
		}},
		{about: "404 of the path", plain: executions{1, 2}, stream: executions{1, 2}, serve: func(bool) http.HandlerFunc { return answer(404, `{"detail":"Not Found"}`) }},
		{about: "404 of the request", plain: executions{1, 1}, stream: executions{1, 1}, serve: func(bool) http.HandlerFunc {
			return answer(404, `{"error":{"message":"Response with id 'resp_1' not found.","param":"response_id"}}`)
		}},
		{about: "422", plain: executions{1, 1}, stream: executions{1, 1}, serve: func(bool) http.HandlerFunc { return answer(422, `{"detail":[{"loc":["body"],"msg":"x"}]}`) }},
		{about: "429", plain: executions{1, 2}, stream: executions{1, 2}, serve: func(bool) http.HandlerFunc { return answer(429, `{"error":{"message":"busy"}}`) }},
		{about: "500", plain: executions{3, 3}, stream: executions{3, 3}, serve: func(bool) http.HandlerFunc { return answer(500, `{"error":{"message":"dead"}}`) }},
		{about: "500 of the request", plain: executions{1, 1}, stream: executions{1, 1}, serve: func(bool) http.HandlerFunc {
			return answer(500, `{"error":{"message":"bad","type":"invalid_request_error"}}`)
		}},
		{about: "501", plain: executions{1, 1}, stream: executions{1, 1}, serve: func(bool) http.HandlerFunc { return answer(501, `{"error":{"message":"no"}}`) }},
		{about: "503", plain: executions{1, 2}, stream: executions{1, 2}, serve: func(bool) http.HandlerFunc { return answer(503, `{"error":{"message":"loading"}}`) }},
		{about: "an error with status 200", plain: executions{3, 3}, stream: executions{3, 3}, serve: func(bool) http.HandlerFunc { return answer(200, `{"error":{"message":"dead"}}`) }},
		{about: "nothing with status 200", plain: executions{3, 3}, stream: executions{3, 3}, serve: func(bool) http.HandlerFunc { return answer(200, "") }},
		{about: "broken before the first byte", plain: executions{2, 2}, stream: executions{2, 2}, serve: func(bool) http.HandlerFunc { return breakOff }},
		{about: "broken before the first byte, with a key to repeat it by", plain: executions{2, 2}, stream: executions{2, 2},
			header: []string{"Idempotency-Key", "a"}, serve: func(bool) http.HandlerFunc { return breakOff }},
		{about: "broken after the first bytes", plain: executions{2, 2}, stream: executions{1, 1}, serve: func(stream bool) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { begins(stream)(w); panic(http.ErrAbortHandler) }
		}},
		{about: "client gone before the first byte", plain: executions{1, 1}, stream: executions{1, 1}, leave: 2 * time.Second, serve: func(bool) http.HandlerFunc { return hang }},
		{about: "client gone after the first bytes", plain: executions{1, 1}, stream: executions{1, 1}, leave: 2 * time.Second, serve: func(stream bool) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { begins(stream)(w); <-r.Context().Done() }
		}},
		{about: "x-request-timeout", plain: executions{1, 1}, stream: executions{1, 1}, header: []string{"X-Request-Timeout", "3"}, serve: func(bool) http.HandlerFunc { return hang }},
		{about: "an SDK's timeout", plain: executions{1, 1}, stream: executions{1, 1}, header: []string{"X-Stainless-Timeout", "3"}, serve: func(bool) http.HandlerFunc { return hang }},
		{about: "silence after the first bytes", plain: executions{1, 1}, stream: executions{1, 1}, header: []string{"X-Stainless-Read-Timeout", "3"}, serve: func(stream bool) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { begins(stream)(w); <-r.Context().Done() }
		}},
		{about: "a body that is not JSON", body: `{"model":"m"`, serve: func(bool) http.HandlerFunc { return answer(200, plain) }},
		{about: "an unknown model", body: `{"model":"n"}`, serve: func(bool) http.HandlerFunc { return answer(200, plain) }},
	} {
		for _, stream := range []bool{false, true} {
			for workers := 1; workers <= 2; workers++ {
				if stream && workers == 1 || raceEnabled && !stream {
					continue
				}
				t.Run(fmt.Sprintf("%s, stream %t, %d workers", c.about, stream, workers), func(t *testing.T) {
					run(t, func(t *testing.T, env *Env) {
						var calls atomic.Int64
						g := env.Gateway(gateway.Config{})
						serve := c.serve(stream)
						for _, name := range []string{"a", "b"}[:workers] {
							env.Worker(env.Handler(name, engineOf(func(w http.ResponseWriter, r *http.Request) {
								b, _ := io.ReadAll(r.Body)
								if strings.Contains(string(b), "warm up") { // so that the next call is on a connection that was used
									answer(200, plain)(w, r)
									return
								}
								if r.Header.Get("X-Request-Id") != "" { // else it is the worker itself, which tries whether the engine works
									calls.Add(1)
								}
								serve(w, r)
							}, "m")), worker.Config{Name: name, Slots: 4})
						}
						g.Serves(t, "m")
						for range 4 {
							do(t, g, "POST", "/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"warm up"}]}`)
						}
						ctx, cancel := context.WithCancel(t.Context())
						defer cancel()
						if c.leave > 0 {
							time.AfterFunc(c.leave, cancel)
						}
						body := c.body
						if body == "" {
							body = chat("m", stream, 10)
						}
						text, err := drain(post(ctx, g, "/v1/chat/completions", body, "", c.header...))
						if errs := err != nil; errs != (c.leave > 0) && !strings.Contains(c.about, "after") {
							t.Errorf("got %q, %v", text, err)
						}
						time.Sleep(65 * time.Second) // nothing happens any more: the broker delivers again after 30 s
						of := c.plain
						if stream {
							of = c.stream
						}
						want := of.one
						if workers == 2 {
							want = of.two
						}
						if n := int(calls.Load()); n != want {
							t.Errorf("%d executions, want %d; the client got %q", n, want, text)
						}
					})
				})
			}
		}
	}
}
