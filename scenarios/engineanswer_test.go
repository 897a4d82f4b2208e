package scenarios

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// says is an engine that gives one answer to every request, and counts them.
func says(status int, contentType, body string, calls *atomic.Int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		calls.Add(1)
		if contentType != "" {
			w.Header().Set("Content-Type", contentType)
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

// besides starts a gateway, a worker whose engine serves with serve at once, and one whose engine takes a while.
func besides(t *testing.T, env *Env, serve http.HandlerFunc) *Gateway {
	t.Helper()
	g := env.Gateway(gateway.Config{})
	env.Worker(env.Handler("bad", engineOf(serve, "m")), worker.Config{Name: "bad", Slots: 4})
	good := slow("good")
	good.ITLBase = 10 * time.Millisecond
	env.Worker(env.Engine(good), worker.Config{Name: "good", Slots: 4})
	g.Serves(t, "m")
	return g
}

// An answer that is none does not reach the client, and does not attract requests.
func TestNoAnswer(t *testing.T) {
	const events, plain = "text/event-stream", "application/json"
	role := `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}` + "\n\n"
	for about, c := range map[string]struct {
		contentType, body string
		stream            bool
	}{
		"an error as JSON":                  {plain, `{"error":{"message":"CUDA out of memory","type":"server_error","code":500}}`, false},
		"an error as JSON for a stream":     {plain, `{"error":{"message":"CUDA out of memory","type":"server_error","code":500}}`, true},
		"an error that is text":             {plain, `{"error": "llama runner process has terminated"}`, false},
		"old vLLM's error":                  {plain, `{"object":"error","message":"internal","type":"InternalServerError","code":500}`, false},
		"an empty answer":                   {plain, "", false},
		"white space":                       {plain, " \n", false},
		"no choices":                        {plain, `{"id":"x","object":"chat.completion","choices":[],"usage":{}}`, false},
		"choices that are null":             {plain, `{"id":"x","choices":null}`, false},
		"another object":                    {plain, `{"status":"ok"}`, false},
		"given up":                          {plain, `{"choices":[{"index":0,"message":{"role":"assistant","content":""},"finish_reason":"abort"}]}`, false},
		"HTML":                              {"text/html", "<html><body>502 Bad Gateway</body></html>", false},
		"HTML for a stream":                 {"text/html; charset=utf-8", "<html><body>login</body></html>", true},
		"text":                              {"text/plain", "upstream connect error", false},
		"text that claims to be JSON":       {plain, "upstream connect error", false},
		"half of an answer":                 {plain, `{"choices":[{"message":{"content":"a`, false},
		"an error event":                    {events, `data: {"error":{"message":"EngineCore encountered an issue","code":500}}` + "\n\ndata: [DONE]\n\n", true},
		"an error event with spaces":        {events, `data: { "error" : "dead" }` + "\n\n", true},
		"a named error event":               {events, "event: error\ndata: {\"message\":\"dead\"}\n\n", true},
		"an error after the role":           {events, role + `data: {"error":{"message":"dead"}}` + "\n\n", true},
		"DONE alone":                        {events, "data: [DONE]\n\n", true},
		"a role, then DONE":                 {events, role + "data: [DONE]\n\n", true},
		"usage, then DONE":                  {events, `data: {"choices":[],"usage":{"prompt_tokens":1}}` + "\n\ndata: [DONE]\n\n", true},
		"a stream that was given up":        {events, `data: {"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}` + "\n\ndata: [DONE]\n\n", true},
		"an empty stream":                   {events, "", true},
		"comments":                          {events, ": hello\n\n: still here\n\n", true},
		"a role, and its end":               {events, role, true},
		"a stream without a content type":   {plain, "data: [DONE]\n\n", true},
		"events that end in CR":             {events, "data: {\"error\":{\"message\":\"dead\"}}\r\rdata: [DONE]\r\r", true},
		"events that are not JSON":          {events, "data: dead\n\n", true},
		"JSON lines of another API's error": {"application/x-ndjson", `{"error":"dead"}` + "\n", true},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				var calls atomic.Int64
				g := besides(t, env, says(200, c.contentType, c.body, &calls))
				beats := recordBeats(t, env)
				for range 30 {
					if r := ask(t, g, chat("m", c.stream, 3), ""); r.status != 200 || words(content(t, r.body)) != 3 || strings.Contains(r.body, "error") {
						t.Fatalf("got %d %q", r.status, r.body)
					}
				}
				if n := calls.Load(); n > 10 {
					t.Errorf("the engine was asked for %d of 30 requests", n)
				}
				h := beats.of("bad")
				if why := h.Failing(); !strings.HasPrefix(why, "m: engine bad: ") || !strings.Contains(h.Reason, why) {
					t.Errorf("its worker gives as reason %q, and of its pool %q", h.Reason, why)
				}
				if h.Done > 0 || h.Pools[0].Curve != nil {
					t.Errorf("%d answers count, and the price is %v", h.Done, h.Pools[0].Curve)
				}
			})
		})
	}
}

// Where there is no other worker, the client gets the engine's own words.
func TestNoAnswerAnywhere(t *testing.T) {
	for about, c := range map[string]struct {
		contentType, body string
		stream            bool
		status            int
		want              string
	}{
		"an error as JSON":                {"application/json", `{"error":{"message":"CUDA out of memory","code":507}}`, false, 507, "CUDA out of memory"},
		"an error without a code":         {"application/json", `{"error":"no memory"}`, false, 502, "no memory"},
		"an error event":                  {"text/event-stream", "data: {\"error\":{\"message\":\"EngineCore died\"}}\n\n", true, 502, "EngineCore died"},
		"HTML":                            {"text/html", "<html>", false, 502, "HTML"},
		"nothing":                         {"application/json", "", false, 502, "an empty answer"},
		"an error of the request's":       {"application/json", `{"error":{"message":"bad tool","type":"invalid_request_error","code":400}}`, false, 200, "bad tool"},
		"an error event of the request's": {"text/event-stream", "data: {\"error\":{\"message\":\"bad tool\",\"type\":\"BadRequestError\",\"code\":400}}\n\ndata: [DONE]\n\n", true, 200, "bad tool"},
	} {
		t.Run(about, func(t *testing.T) {
			runBoth(t, func(t *testing.T, env *Env) {
				var calls atomic.Int64
				g := with(t, env, gateway.Config{}, says(200, c.contentType, c.body, &calls))
				r := ask(t, g, chat("m", c.stream, 3), "")
				if r.status != c.status || !strings.Contains(r.body, c.want) {
					t.Errorf("got %d %q, want %d with %q", r.status, r.body, c.status, c.want)
				}
				want, attempts, retry := int64(3), "3", "false"
				if c.status == 200 {
					want, attempts, retry = 1, "", ""
				}
				if n := calls.Load(); n != want || r.header.Get("X-Pulley-Attempts") != attempts || r.header.Get("X-Should-Retry") != retry {
					t.Errorf("%d calls, want %d; headers %v", n, want, r.header)
				}
			})
		})
	}
}

// What one engine refuses for its own reasons, another one answers.
func TestRefusedByOneEngine(t *testing.T) {
	const model = `{"error":{"message":"The model 'm' does not exist.","type":"NotFoundError","param":"model","code":404}}`
	for about, c := range map[string]struct {
		status int
		body   string
		alone  int // the status that the client gets if there is no other engine
		pauses bool
	}{
		"a wrong key":                     {401, `{"error":{"message":"Unauthorized"}}`, 502, true},
		"a key without rights":            {403, `{"detail":"Forbidden"}`, 502, true},
		"a proxy that wants a password":   {401, "<html>", 502, true},
		"an unknown model":                {404, model, 404, true},
		"an unknown model, Ollama":        {404, `{"error":"model \"m\" not found, try pulling it first"}`, 404, true},
		"an unknown model, LM Studio":     {400, `{"error":{"message":"Invalid model identifier","type":"invalid_request_error","param":"model","code":"model_not_found"}}`, 400, true},
		"an unknown path, FastAPI":        {404, `{"detail":"Not Found"}`, 404, false},
		"an unknown path, Go":             {404, "404 page not found\n", 404, false},
		"another method":                  {405, `{"detail":"Method Not Allowed"}`, 405, false},
		"a short context, vLLM":           {400, `{"error":{"message":"This model's maximum context length is 4096 tokens. However, your request has 6000 input tokens.","type":"BadRequestError","param":"input_tokens","code":400}}`, 400, false},
		"a short context, llama.cpp":      {400, `{"error":{"code":400,"message":"the request exceeds the available context size, try increasing it","type":"exceed_context_size_error"}}`, 400, false},
		"a short context, TGI":            {422, "{\"error\":\"Input validation error: `inputs` must have less than 1024 tokens. Given: 2000\",\"error_type\":\"validation\"}", 422, false},
		"a short context, SGLang":         {400, `{"object":"error","message":"The input (9000 tokens) is longer than the model's context length (4096 tokens).","type":"BadRequestError","code":400}`, 400, false},
		"a short context, with code 500":  {500, `{"error":{"message":"context length exceeded","code":"context_length_exceeded"}}`, 500, false},
		"an error of the engine":          {500, `{"error":{"message":"CUDA error"}}`, 500, true},
		"out of memory":                   {507, `{"error":"insufficient memory"}`, 507, true},
		"an error page":                   {502, "<html>", 502, true},
		"overloaded, as Anthropic has it": {529, `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`, 529, true},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				var calls atomic.Int64
				g := besides(t, env, says(c.status, "application/json", c.body, &calls))
				beats := recordBeats(t, env)
				for i := range 20 {
					if r := ask(t, g, chat("m", i%2 == 0, 3), ""); r.status != 200 || words(content(t, r.body)) != 3 {
						t.Fatalf("got %d %q", r.status, r.body)
					}
				}
				if n := calls.Load(); n == 0 || c.pauses && n > 10 {
					t.Errorf("the engine was asked %d times", n)
				}
				h := beats.of("bad")
				if why := h.Failing(); (why != "") != c.pauses {
					t.Errorf("its worker gives as reason %q", why)
				}
			})
			run(t, func(t *testing.T, env *Env) {
				var calls atomic.Int64
				g := with(t, env, gateway.Config{}, says(c.status, "application/json", c.body, &calls))
				r := ask(t, g, chat("m", false, 3), "")
				if r.status != c.alone || c.alone == c.status && r.body != c.body {
					t.Errorf("alone: got %d %q, want %d", r.status, r.body, c.alone)
				}
				if c.alone != c.status {
					wantErrorBody(t, r.body, "upstream_misconfigured")
				}
				if retry := r.header.Get("X-Should-Retry"); (retry == "false") != (r.status >= 500) {
					t.Errorf("alone: %d with x-should-retry %q", r.status, retry)
				}
			})
		})
	}
}

// An error that names the request is its client's, after one call.
func TestRefusedForTheRequest(t *testing.T) {
	for about, c := range map[string]struct {
		status int
		body   string
	}{
		"a bad request":               {400, `{"error":{"message":"temperature must be non-negative","type":"BadRequestError","param":"temperature","code":400}}`},
		"a body without a form":       {400, "no"},
		"unprocessable, FastAPI":      {422, `{"detail":[{"loc":["body","messages"],"msg":"field required"}]}`},
		"not found":                   {404, `{"error":{"message":"Response with id 'resp_1' not found.","type":"invalid_request_error"}}`},
		"not implemented":             {501, `{"error":{"message":"This server does not support embeddings","code":501}}`},
		"an invalid request with 500": {500, `{"error":{"code":500,"message":"Failed to parse tools","type":"invalid_request_error"}}`},
		"a parameter with 500":        {500, `{"error":{"message":"unknown","type":"server_error","param":"tools"}}`},
		"a code of 400 with 500":      {500, `{"object":"error","message":"bad","code":400}`},
		"a forbidden parameter":       {403, `{"error":{"message":"no","type":"invalid_request_error","param":"logprobs"}}`},
	} {
		t.Run(about, func(t *testing.T) {
			runBoth(t, func(t *testing.T, env *Env) {
				var calls atomic.Int64
				g := env.Gateway(gateway.Config{})
				for _, name := range []string{"a", "b"} {
					env.Worker(env.Handler(name, engineOf(says(c.status, "application/json", c.body, &calls), "m")), worker.Config{Name: name, Slots: 4})
				}
				g.Serves(t, "m")
				beats := recordBeats(t, env)
				for range 8 {
					r := ask(t, g, chat("m", false, 3), "")
					if r.status != c.status || r.body != c.body || r.took > 100*time.Millisecond {
						t.Errorf("got %d %q after %v", r.status, r.body, r.took)
					}
					if retry := r.header.Get("X-Should-Retry"); (retry == "false") != (r.status >= 500) {
						t.Errorf("%d with x-should-retry %q", r.status, retry)
					}
				}
				if n := calls.Load(); n != 8 {
					t.Errorf("%d calls for 8 requests", n)
				}
				time.Sleep(time.Second)
				if a, b := beats.of("a"), beats.of("b"); a.Failing()+b.Failing() != "" {
					t.Errorf("a worker is blamed: %q %q", a.Failing(), b.Failing())
				}
			})
		})
	}
}

// A client whose requests always fail slows no other model and no other client.
func TestFailuresOfOneClient(t *testing.T) {
	for _, bad := range []string{"m2", "m1"} { // the others ask for m1
		t.Run(bad, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				e := env.Handler("e", engineOf(func(w http.ResponseWriter, r *http.Request) {
					b, _ := io.ReadAll(r.Body)
					if strings.Contains(string(b), "BAD") {
						w.WriteHeader(500)
						io.WriteString(w, `{"error":{"message":"model requires more system memory"}}`)
						return
					}
					io.WriteString(w, `{"choices":[{"message":{"content":"hello"}}]}`)
				}, "m1", "m2"))
				env.Worker(e, worker.Config{Name: "e", Slots: 8})
				g.Serves(t, "m1")
				g.Serves(t, "m2")
				end := time.Now().Add(20 * time.Second)
				var wg sync.WaitGroup
				for range 6 {
					wg.Go(func() {
						for time.Now().Before(end) {
							if r := ask(t, g, chat(bad, false, 1, `"user":"BAD"`), ""); r.status != 500 || !strings.Contains(r.body, "more system memory") {
								t.Errorf("got %d %q, want the engine's words", r.status, r.body)
							}
							time.Sleep(500 * time.Millisecond)
						}
					})
				}
				for time.Now().Before(end) {
					if r := ask(t, g, chat("m1", false, 1), ""); r.status != 200 || r.took > 50*time.Millisecond {
						t.Errorf("another client: %d after %v", r.status, r.took)
					}
					time.Sleep(300 * time.Millisecond)
				}
				wg.Wait()
			})
		})
	}
}

// A request that crashes its engine takes two of them down, and no more.
func TestRequestThatCrashesEngines(t *testing.T) {
	for _, stream := range []bool{true, false} {
		runBoth(t, func(t *testing.T, env *Env) {
			g := env.Gateway(gateway.Config{})
			var dead atomic.Int64
			var es [4]*testenv.Engine
			for i := range es {
				name := fmt.Sprint(i)
				es[i] = env.Handler(name, engineOf(func(w http.ResponseWriter, r *http.Request) {
					b, _ := io.ReadAll(r.Body)
					if strings.Contains(string(b), "POISON") {
						time.Sleep(100 * time.Millisecond)
						dead.Add(1)
						go es[i].Kill() // ends by itself
						<-r.Context().Done()
						return
					}
					io.WriteString(w, `{"choices":[{"message":{"content":"hello"}}]}`)
				}, "m"))
				env.Worker(es[i], worker.Config{Name: name, Slots: 4})
			}
			g.Serves(t, "m")
			r := ask(t, g, chat("m", stream, 1, `"user":"POISON"`), "")
			if r.status != 502 || !strings.Contains(r.body, "dead_lettered") || r.header.Get("X-Should-Retry") != "false" {
				t.Errorf("got %d %q %v", r.status, r.body, r.header)
			}
			if n := dead.Load(); n != 2 {
				t.Errorf("%d engines crashed, want 2", n)
			}
			for range 10 {
				if r := ask(t, g, chat("m", false, 1), ""); r.status != 200 || r.took > time.Second {
					t.Errorf("afterwards: %d %q after %v", r.status, r.body, r.took)
				}
			}
		})
	}
}

// A pool that fails is not given a multiple of its load.
func TestRetriesAreBounded(t *testing.T) {
	for share, most := range map[float64]int64{0: 300*12/10 + 10, 0.5: 300*15/10 + 10, 0.0001: 300 + 10, 10: 900} {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{RetryBudget: share})
				var calls atomic.Int64
				for _, name := range []string{"a", "b", "c"} {
					env.Worker(env.Handler(name, engineOf(says(500, "application/json", `{"error":{"message":"dead"}}`, &calls), "m")), worker.Config{Name: name, Slots: 16})
				}
				g.Serves(t, "m")
				var wg sync.WaitGroup
				for range 300 { // within 9 s
					wg.Go(func() {
						if r := ask(t, g, chat("m", false, 1), ""); r.status != 500 {
							t.Errorf("got %d %q", r.status, r.body)
						}
					})
					time.Sleep(30 * time.Millisecond)
				}
				wg.Wait()
				if n := calls.Load(); n > most || n < most-30 {
					t.Errorf("%d calls for 300 requests, want up to %d", n, most)
				}
			})
		})
	}
}

// A model that a worker is configured for is known before its engine answers.
func TestConfiguredModelIsKnown(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		e := env.Handler("e", http.NotFoundHandler())
		e.Kill()
		env.Worker(e, worker.Config{Name: "e", Models: []string{"big"}})
		time.Sleep(3 * time.Second)
		r := ask(t, g, chat("big", false, 1), "")
		wantError(t, r, 503, "no_worker")
		if r.took < 25*time.Second || r.header.Get("Retry-After") == "" {
			t.Errorf("after %v, retry-after %q", r.took, r.header.Get("Retry-After"))
		}
		wantError(t, ask(t, g, chat("small", false, 1), ""), 404, "model_not_found")
	})
}

// A stream that its engine ended well passes as it is, however the API's end is spelt.
func TestEndsOfStreams(t *testing.T) {
	chunk := func(index int, text, finish string) string {
		return fmt.Sprintf(`data: {"choices":[{"index":%d,"delta":{"content":%q},"finish_reason":%s}]}`+"\n\n", index, text, finish)
	}
	const broken = "upstream_lost"
	for about, c := range map[string]struct {
		path, contentType string
		pieces            []string
		broken            bool
	}{
		"chat without DONE":           {"/v1/chat/completions", "", []string{chunk(0, "Hel", "null"), chunk(0, "lo", "null"), chunk(0, "", `"stop"`)}, false},
		"chat with an empty reason":   {"/v1/chat/completions", "", []string{chunk(0, "Hel", `""`), chunk(0, "lo", `"length"`)}, false},
		"two choices":                 {"/v1/chat/completions", "", []string{chunk(0, "a", "null"), chunk(1, "b", "null"), chunk(1, "", `"stop"`), chunk(0, "", `"stop"`)}, false},
		"one of two choices":          {"/v1/chat/completions", "", []string{chunk(0, "a", "null"), chunk(1, "b", "null"), chunk(1, "", `"stop"`)}, true},
		"cut":                         {"/v1/chat/completions", "", []string{chunk(0, "a", "null"), chunk(0, "b", "null")}, true},
		"a reason inside the text":    {"/v1/chat/completions", "", []string{chunk(0, `"finish_reason":"stop"`, "null")}, true},
		"an error with a space":       {"/v1/chat/completions", "", []string{chunk(0, "a", "null"), `data: { "error": {"message": "OOM"}}` + "\n\n"}, false},
		"old vLLM's error":            {"/v1/chat/completions", "", []string{chunk(0, "a", "null"), `data: {"object":"error","message":"OOM"}` + "\n\n"}, false},
		"lines that end in CR":        {"/v1/chat/completions", "", []string{strings.ReplaceAll(chunk(0, "a", "null"), "\n", "\r"), "data: [DONE]\r\r"}, false},
		"lines that end in CRLF":      {"/v1/chat/completions", "", []string{strings.ReplaceAll(chunk(0, "a", `"stop"`), "\n", "\r\n")}, false},
		"as text":                     {"/v1/chat/completions", "text/plain", []string{chunk(0, "a", "null"), "data: [DONE]\n\n"}, false},
		"as JSON":                     {"/v1/chat/completions", "application/json", []string{chunk(0, "a", "null"), "data: [DONE]\n\n"}, false},
		"as JSON, cut":                {"/v1/chat/completions", "application/json", []string{chunk(0, "a", "null")}, true},
		"responses":                   {"/v1/responses", "", []string{`data: {"type":"response.created","response":{}}` + "\n\n", `data: {"type":"response.output_text.delta","delta":"hi"}` + "\n\n", `data: {"type":"response.completed","response":{"status":"completed"}}` + "\n\n"}, false},
		"responses, incomplete":       {"/v1/responses", "", []string{`data: {"delta":"hi","type":"response.output_text.delta"}` + "\n\n", `data: {"response":{}, "type" : "response.incomplete"}` + "\n\n"}, false},
		"responses, cut":              {"/v1/responses", "", []string{`data: {"type":"response.output_text.delta","delta":"response.completed"}` + "\n\n"}, true},
		"messages":                    {"/v1/messages", "", []string{`data: {"type":"message_start","message":{}}` + "\n\n", `data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hi"}}` + "\n\n", `data: {"type":"message_stop"}` + "\n\n"}, false},
		"messages, an error":          {"/v1/messages", "", []string{`data: {"type":"content_block_delta","delta":{"text":"hi"}}` + "\n\n", `data: {"type":"error","error":{"type":"overloaded_error"}}` + "\n\n"}, false},
		"messages, cut":               {"/v1/messages", "", []string{`data: {"type":"content_block_delta","delta":{"text":"message_stop"}}` + "\n\n"}, true},
		"text completions":            {"/v1/completions", "", []string{`data: {"choices":[{"index":0,"text":"a","finish_reason":null}]}` + "\n\n", `data: {"choices":[{"index":0,"text":"","finish_reason":"length"}]}` + "\n\n"}, false},
		"llama.cpp's own completions": {"/completions", "", []string{`data: {"index":0,"content":"a","stop":false}` + "\n\n", `data: {"index":0,"content":"","stop":true}` + "\n\n"}, false},
		"Ollama's own":                {"/api/chat", "application/x-ndjson", []string{`{"message":{"content":"a"},"done":false}` + "\n", `{"message":{"content":""},"done":true}` + "\n"}, false},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					ct := c.contentType
					if ct == "" {
						ct = "text/event-stream"
					}
					w.Header().Set("Content-Type", ct)
					for _, p := range c.pieces {
						io.WriteString(w, p)
						http.NewResponseController(w).Flush()
						time.Sleep(time.Second)
					}
				})
				begun := time.Now()
				resp, err := post(t.Context(), g, c.path, chat("m", true, 3), "")
				if err != nil {
					t.Fatal(err)
				}
				if wait := time.Since(begun); wait > time.Duration(len(c.pieces)-1)*time.Second {
					t.Errorf("it does not stream: nothing came for %v", wait)
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				got, want := string(b), strings.Join(c.pieces, "")
				switch {
				case err != nil, !strings.HasPrefix(got, want):
					t.Errorf("got %q, %v, want %q", got, err, want)
				case c.broken != strings.Contains(got[len(want):], broken), !c.broken && got != want:
					t.Errorf("the gateway adds %q; broken %v", got[len(want):], c.broken)
				}
			})
		})
	}
}

// A client that would come back sooner than it is told to is told not to.
func TestRetryAdvice(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{NoWorkerWait: time.Second})
		full := env.Handler("full", engineOf(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", r.Header.Get("X-Wait"))
			w.WriteHeader(429)
		}, "full"))
		env.Worker(full, worker.Config{Name: "full"})
		gone := env.Worker(env.Engine(slow("gone")), worker.Config{Name: "gone"})
		g.Serves(t, "full")
		g.Serves(t, "m")
		gone.Stop()
		for _, c := range []struct {
			lang, model, wait string
			status            int
			final             bool
		}{
			{"go", "m", "", 503, true}, // to be retried after 10 s
			{"js", "m", "", 503, false},
			{"python", "m", "", 503, false},
			{"", "m", "", 503, false},
			{"go", "full", "5", 429, false},
			{"go", "full", "9", 429, true},
			{"js", "full", "60", 429, false},
			{"js", "full", "61", 429, true},
			{"python", "full", "61", 429, false},
			{"python", "full", "3600", 429, true},
			{"", "full", "30", 429, false},
		} {
			header := []string{"X-Wait", c.wait}
			if c.lang != "" {
				header = append(header, "X-Stainless-Lang", c.lang)
			}
			r := ask(t, g, chat(c.model, false, 1), "", header...)
			if r.status != c.status || r.header.Get("Retry-After") == "" || (r.header.Get("X-Should-Retry") == "false") != c.final {
				t.Errorf("%+v: got %d with retry-after %q, x-should-retry %q", c, r.status, r.header.Get("Retry-After"), r.header.Get("X-Should-Retry"))
			}
		}
	})
}

// A conversation is not at home where it failed.
func TestNoHomeWhereItFailed(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var calls atomic.Int64
		g := besides(t, env, says(200, "application/json", `{"error":"dead"}`, &calls))
		failed := ""
		for i := 0; failed == "" && i < 20; i++ { // until a session began on the failing worker
			before, session := calls.Load(), fmt.Sprint(i)
			if r := ask(t, g, chat("m", false, 1), "", "X-Session-Id", session); r.status != 200 {
				t.Fatalf("got %d %q", r.status, r.body)
			}
			if calls.Load() > before {
				failed = session
			}
		}
		before := calls.Load()
		time.Sleep(10 * time.Second) // longer than a pause
		for range 5 {
			if r := ask(t, g, chat("m", false, 1), "", "X-Session-Id", failed); r.status != 200 || r.header.Get("X-Sim-Name") != "good" {
				t.Errorf("got %d by %q", r.status, r.header.Get("X-Sim-Name"))
			}
		}
		if n := calls.Load() - before; failed == "" || n > 0 {
			t.Errorf("session %q: the failing engine was asked %d times after the session had a home", failed, n)
		}
	})
}
