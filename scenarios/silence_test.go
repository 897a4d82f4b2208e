package scenarios

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
)

// comments are the SSE comments in a stream.
func comments(stream string) []string {
	var list []string
	for line := range strings.Lines(stream) {
		if strings.HasPrefix(line, ":") {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return list
}

func TestCommentsWhileQueued(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		cfg := slow("a")
		cfg.Slots = 1
		g, _, _ := pair(t, env, cfg)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { ask(t, g, chat("m", false, 350), "") }) // 35 s
		time.Sleep(time.Second)
		wg.Go(func() {
			r := ask(t, g, chat("m", false, 3), "")
			if r.status != 200 || comments(r.body) != nil || r.header.Get("Content-Type") != "application/json" {
				t.Errorf("plain: got %d %q", r.status, r.body)
			}
		})
		wg.Go(func() { // Ollama's own API streams lines of JSON: a comment would break it
			r := askAt(t, g, "/api/chat", chat("m", true, 3), "")
			if comments(r.body) != nil || r.header.Get("Content-Type") == "text/event-stream" {
				t.Errorf("another API: got %d %q", r.status, r.body)
			}
		})
		r := ask(t, g, chat("m", true, 3), "")
		cs := comments(r.body)
		if r.status != 200 || len(cs) != 3 || !strings.HasPrefix(cs[0], ": queued position=") {
			t.Errorf("got %d, comments %q, want one for each 10 s in the queue", r.status, cs)
		}
		if words(content(t, r.body)) != 3 || !strings.HasSuffix(r.body, "data: [DONE]\n\n") {
			t.Errorf("got %q, want the whole answer after the comments", r.body)
		}
		if r.header.Get("Content-Type") != "text/event-stream" {
			t.Errorf("content type %q", r.header.Get("Content-Type"))
		}
	})
}

// The comments report a client's own position, which later requests do not change.
func TestPlaceInTheQueue(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		cfg := slow("a")
		cfg.Slots = 1
		g, _, _ := pair(t, env, cfg)
		var wg sync.WaitGroup
		defer wg.Wait()
		for i, want := range [][]string{
			nil, // 25 s
			{": queued position=1", ": queued position=1"},
			{": queued position=2", ": queued position=2", ": queued position=1", ": queued position=1"},
			{": queued position=3", ": queued position=3", ": queued position=2", ": queued position=2", ": queued position=1", ": queued position=1", ": queued position=1"},
		} {
			wg.Go(func() {
				r := ask(t, g, chat("m", true, 250), "")
				if got := comments(r.body); r.status != 200 || !slices.Equal(got, want) {
					t.Errorf("request %d: got %d, comments %q, want %q", i, r.status, got, want)
				}
			})
			time.Sleep(100 * time.Millisecond)
		}
	})
}

// token is an event of a chat stream, without its end.
const token = `data: {"choices":[{"index":0,"delta":{"content":"a"}}]}`

func TestCommentsWhileSilent(t *testing.T) {
	for about, end := range map[string]string{"LF": "\n", "CRLF": "\r\n"} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Type", "text/event-stream")
					for _, event := range []string{token, token, "data: [DONE]"} {
						io.WriteString(w, event+end+end)
						http.NewResponseController(w).Flush()
						if event != "data: [DONE]" {
							time.Sleep(25 * time.Second)
						}
					}
				})
				r := ask(t, g, chat("m", true, 3), "")
				event := token + end + end
				want := event + ": working\n\n: working\n\n" + event + ": working\n\n: working\n\n" + "data: [DONE]" + end + end
				if r.body != want {
					t.Errorf("got %q, want %q", r.body, want)
				}
			})
		})
	}
}

// No comment splits an event that the engine has partly written: while a line's end is missing, the client has none of
// it, and comments; between its lines there are none.
func TestNoCommentInsideAnEvent(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		pieces := []string{token + "\n\ndata: {", "}\n", "\ndata: [DONE]\n\n"}
		g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for _, p := range pieces {
				io.WriteString(w, p)
				http.NewResponseController(w).Flush()
				time.Sleep(25 * time.Second)
			}
		})
		r := ask(t, g, chat("m", true, 3), "")
		const comments = ": working\n\n: working\n\n"
		if want := token + "\n\n" + comments + "data: {}\n\ndata: [DONE]\n\n" + comments; r.body != want {
			t.Errorf("got %q, want %q", r.body, want)
		}
	})
}

func TestErrorAfterComments(t *testing.T) {
	const inOpenAI = `{"error": {"message": "too long", "type": "invalid_request_error", "param": null, "code": "context_length_exceeded"}}`
	for about, c := range map[string]struct{ path, body, want string }{
		"chat, its own words":       {"/v1/chat/completions", inOpenAI, `data: {"error":{"message":"too long","type":"invalid_request_error","param":null,"code":"context_length_exceeded"}}`},
		"chat, FastAPI's words":     {"/v1/chat/completions", `{"detail":"too long"}`, `data: {"error":{"message":"too long","type":"invalid_request_error","param":null,"code":"upstream_error"}}`},
		"chat, TGI's words":         {"/v1/chat/completions", `{"error":"too long","error_type":"validation"}`, `data: {"error":{"message":"too long","type":"invalid_request_error","param":null,"code":"upstream_error"}}`},
		"chat, old vLLM's words":    {"/v1/chat/completions", `{"object":"error","message":"too long"}`, `data: {"error":{"message":"too long","type":"invalid_request_error","param":null,"code":"upstream_error"}}`},
		"chat, no JSON":             {"/v1/chat/completions", "<html>", `data: {"error":{"message":"the engine answered 400","type":"invalid_request_error","param":null,"code":"upstream_error"}}`},
		"messages, its own words":   {"/v1/messages", `{"type":"error","error":{"type":"invalid_request_error","message":"too long"}}`, "event: error\n" + `data: {"type":"error","error":{"type":"invalid_request_error","message":"too long"}}`},
		"messages, OpenAI's words":  {"/v1/messages", inOpenAI, "event: error\n" + `data: {"error":{"message":"too long","type":"invalid_request_error","param":null,"code":"context_length_exceeded"},"request_id":"ID","type":"error"}`},
		"responses, OpenAI's words": {"/v1/responses", inOpenAI, "event: response.failed\n" + `data: {"response":{"created_at":TIME,"error":{"code":"server_error","message":"too long (context_length_exceeded)"},"id":"resp_ID","incomplete_details":null,"instructions":null,"metadata":{},"model":"m","object":"response","output":[],"parallel_tool_calls":true,"status":"failed","temperature":null,"tool_choice":"auto","tools":[],"top_p":null},"sequence_number":2147483647,"type":"response.failed"}`},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(15 * time.Second)
					w.Header().Set("Content-Type", "application/json")
					w.WriteHeader(400)
					io.WriteString(w, c.body)
				})
				r := askAt(t, g, c.path, chat("m", true, 3), "")
				got := strings.ReplaceAll(r.body, r.header.Get("X-Request-Id"), "ID")
				want := ": working\n\n" + c.want + "\n\n"
				if _, after, ok := strings.Cut(got, `"created_at":`); ok {
					created, _, _ := strings.Cut(after, ",")
					want = strings.Replace(want, "TIME", created, 1)
				}
				if r.status != 200 || got != want {
					t.Errorf("got %d %q, want %q", r.status, got, want)
				}
			})
		})
	}
}

// An answer that was announced as a stream and is something else is not held without bound.
func TestNoStreamAfterComments(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(15 * time.Second)
			w.Header().Set("Content-Type", "application/json")
			size, _ := strconv.Atoi(r.Header.Get("X-Size"))
			fmt.Fprintf(w, `{"choices":[{"text":"%s"}]}`, strings.Repeat("x", size))
		})
		if r := ask(t, g, chat("m", true, 3), "", "X-Size", "3"); r.body != ": working\n\ndata: {\"choices\":[{\"text\":\"xxx\"}]}\n\n" {
			t.Errorf("got %q, want the whole answer as an event", r.body)
		}
		r := ask(t, g, chat("m", true, 3), "", "X-Size", "20000000")
		data, _ := lastEvent(r.body)
		if len(r.body) > 1000 {
			t.Fatalf("got %d bytes", len(r.body))
		}
		wantErrorBody(t, data, "upstream_invalid")
	})
}

func TestSlowClient(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		var sent atomic.Int64
		gone := make(chan time.Time, 1)
		g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			if r.Header.Get("X-Flood") == "" {
				io.WriteString(w, token+"\n\ndata: [DONE]\n\n")
				return
			}
			event := []byte(`data: {"choices":[{"index":0,"delta":{"content":"` + strings.Repeat("x", 1000) + "\"}}]}\n\n")
			for {
				n, err := w.Write(event)
				if err != nil {
					gone <- time.Now()
					return
				}
				sent.Add(int64(n))
			}
		})
		begun := time.Now()
		resp, err := post(t.Context(), g, "/v1/chat/completions", chat("m", true, 1), "", "X-Flood", "1")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.ReadFull(resp.Body, make([]byte, 1<<20)); err != nil { // more than one window
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		stalled := sent.Load()
		for range 20 {
			if r := ask(t, g, chat("m", true, 1), ""); r.status != 200 || r.took > 100*time.Millisecond {
				t.Errorf("with a slow client: %d after %v", r.status, r.took)
			}
		}
		// The data in transit: what the window and the buffers on the way hold.
		if sent.Load() != stalled || stalled > 1<<20+2*subjects.Window {
			t.Errorf("the engine wrote %d bytes to a client that took 1 MiB, then stopped", sent.Load())
		}
		select {
		case at := <-gone:
			if after := at.Sub(begun); after < 29*time.Second || after > 31*time.Second {
				t.Errorf("given up after %v, want 30 s", after)
			}
		case <-time.After(time.Minute):
			t.Fatal("a client that does not read is never given up")
		}
		emptyQueues(t, env)
	})
}
