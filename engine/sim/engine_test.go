package sim_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"image/png"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
)

const prompt = "tell me  a\\n story" // four words

var promptHash = sim.PromptHash("tell me a story")

func TestChat(t *testing.T) {
	r := newRig(t, sim.Config{Name: "gpu-a"})
	status, header, body, err := r.answer("/v1/chat/completions", "", chatBody(prompt, `,"max_tokens":3`))
	if err != nil || status != 200 || header.Get("X-Sim-Name") != "gpu-a" {
		t.Fatal(status, header, err)
	}
	want := fmt.Sprintf(`"choices":[{"index":0,"message":{"role":"assistant","content":%q,"refusal":null},"logprobs":null,"finish_reason":"length"}],`+
		`"usage":{"prompt_tokens":4,"completion_tokens":3,"total_tokens":7},"system_fingerprint":"gpu-a"}`,
		sim.Text(promptHash, 3))
	if !strings.HasSuffix(body, want) {
		t.Errorf("got  %s\nwant …%s", body, want)
	}
}

func TestChatStream(t *testing.T) {
	r := newRig(t, sim.Config{})
	for usage, tail := range map[string]int{"": 2, `,"stream_options":{"include_usage":true}`: 3} {
		events, err := r.stream("/v1/chat/completions", "", chatBody(prompt, `,"stream":true`+usage))
		if err != nil || len(events) != 1+64+tail {
			t.Fatalf("%d events, %v; want a role, 64 tokens and %d more", len(events), err, tail)
		}
		var text strings.Builder
		for i, e := range events[1:65] {
			chunk := parse(t, e.data)
			delta := at(t, chunk, "choices", 0, "delta").(map[string]any)
			if len(delta) != 1 || at(t, chunk, "choices", 0, "finish_reason") != nil || at(t, chunk, "choices", 0, "logprobs") != nil {
				t.Fatalf("chunk %d is %s", i, e.data)
			}
			if u, ok := chunk["usage"]; ok != (usage != "") || u != nil {
				t.Fatalf("chunk %d has usage %v, %v", i, u, ok)
			}
			text.WriteString(delta["content"].(string))
		}
		if want := sim.Text(promptHash, 64); text.String() != want {
			t.Errorf("text %q, want %q", text.String(), want)
		}
		if role := at(t, parse(t, events[0].data), "choices", 0, "delta", "role"); role != "assistant" {
			t.Errorf("role %v", role)
		}
		if finish := at(t, parse(t, events[65].data), "choices", 0, "finish_reason"); finish != "stop" {
			t.Errorf("finish reason %v", finish)
		}
		if usage != "" {
			last := parse(t, events[66].data)
			if n := at(t, last, "usage", "total_tokens"); n != 68.0 || len(last["choices"].([]any)) != 0 {
				t.Errorf("usage chunk %v", last)
			}
		}
		if last := events[len(events)-1].data; last != "[DONE]" {
			t.Errorf("last event %s", last)
		}
	}
}

func TestRequiredToolIsCalled(t *testing.T) {
	r := newRig(t, sim.Config{})
	want := `{"text":"` + sim.Text(promptHash, 4) + `"}`
	for _, choice := range []string{`"required"`, `{"type":"function","function":{"name":"look"}}`} {
		rest := `,"max_tokens":4,"tools":[{"type":"function","function":{"name":"look","parameters":{}}}],"tool_choice":` + choice
		_, _, body, _ := r.answer("/v1/chat/completions", "", chatBody(prompt, rest))
		got := parse(t, body)
		call := at(t, got, "choices", 0, "message", "tool_calls", 0, "function")
		if at(t, call, "name") != "look" || at(t, call, "arguments") != want ||
			at(t, got, "choices", 0, "finish_reason") != "tool_calls" || at(t, got, "choices", 0, "message", "content") != nil {
			t.Errorf("got %s", body)
		}
		events, err := r.stream("/v1/chat/completions", "", chatBody(prompt, rest+`,"stream":true`))
		if err != nil || len(events) != 1+4+2 {
			t.Fatalf("%d events, %v", len(events), err)
		}
		var arguments strings.Builder
		for _, e := range events[:5] {
			arguments.WriteString(at(t, parse(t, e.data), "choices", 0, "delta", "tool_calls", 0, "function", "arguments").(string))
		}
		if arguments.String() != want {
			t.Errorf("streamed arguments %s, want %s", arguments.String(), want)
		}
	}
}

func TestEveryStreamEndsAsItsAPISays(t *testing.T) {
	r := newRig(t, sim.Config{})
	text := sim.Text(promptHash, 3)
	for path, c := range map[string]struct {
		body  string
		names []string
		piece []any // path of the text in the events that have it
	}{
		"/v1/completions": {`{"model":"m","prompt":"` + prompt + `","max_tokens":3,"stream":true}`,
			[]string{"", "", "", "", ""}, []any{"choices", 0, "text"}},
		"/v1/responses": {`{"model":"m","input":"` + prompt + `","max_output_tokens":3,"stream":true}`,
			[]string{"response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
				"response.output_text.delta", "response.output_text.delta", "response.output_text.delta",
				"response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"},
			[]any{"delta"}},
		"/v1/messages": {chatBody(prompt, `,"max_tokens":3,"stream":true`),
			[]string{"message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_delta",
				"content_block_stop", "message_delta", "message_stop"},
			[]any{"delta", "text"}},
	} {
		events, err := r.stream(path, "", c.body)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		var names []string
		var got strings.Builder
		for i, e := range events {
			names = append(names, e.name)
			if path == "/v1/completions" && i < 3 || strings.HasSuffix(e.name, ".delta") || strings.HasSuffix(e.name, "_block_delta") {
				got.WriteString(at(t, parse(t, e.data), c.piece...).(string))
			}
			if e.name != "" && at(t, parse(t, e.data), "type") != e.name {
				t.Errorf("%s: event %s with data %s", path, e.name, e.data)
			}
		}
		if fmt.Sprint(names) != fmt.Sprint(c.names) || got.String() != text {
			t.Errorf("%s: events %q with text %q\nwant %q with %q", path, names, got.String(), c.names, text)
		}
	}
}

func TestEveryWholeAnswer(t *testing.T) {
	r := newRig(t, sim.Config{Models: []string{"m", "org/m"}})
	text := sim.Text(promptHash, 3)
	for path, c := range map[string]struct {
		body string
		at   []any
		want any
	}{
		"/v1/completions":        {`{"model":"m","prompt":["tell me","a story"],"max_tokens":3}`, []any{"choices", 0, "text"}, text},
		"/v1/responses":          {`{"model":"org/m","input":[{"role":"user","content":[{"type":"input_text","text":"` + prompt + `"},{"type":"input_image","image_url":"data:,x y"}]}],"max_output_tokens":3}`, []any{"output", 0, "content", 0, "text"}, text},
		"/v1/messages":           {`{"model":"m","system":"tell me","messages":[{"role":"user","content":"a story"}],"max_tokens":3}`, []any{"content", 0, "text"}, text},
		"/v1/embeddings":         {`{"model":"m","input":[[1,2,3],[4]]}`, []any{"usage", "prompt_tokens"}, 4.0},
		"/v1/rerank":             {`{"model":"m","query":"a b","documents":["c",{"text":"d e"}],"top_n":1}`, []any{"usage", "total_tokens"}, 5.0},
		"/v1/images/generations": {`{"model":"m","prompt":"a cat"}`, []any{"usage", "input_tokens"}, 2.0},
		"/v2/models/org%2Fm/infer": {`{"inputs":[{"name":"text_input","shape":[1],"datatype":"BYTES","data":["` + prompt + `"]}]}`,
			[]any{"outputs", 0, "data", 0}, sim.Text(promptHash, 64)},
	} {
		status, _, body, err := r.answer(path, "", c.body)
		if err != nil || status != 200 {
			t.Errorf("%s: %d %s %v", path, status, body, err)
			continue
		}
		if got := at(t, parse(t, body), c.at...); got != c.want {
			t.Errorf("%s: %v is %v, want %v", path, c.at, got, c.want)
		}
	}
}

func TestEmbeddingsAreTheSameInBothEncodings(t *testing.T) {
	r := newRig(t, sim.Config{})
	_, _, floats, _ := r.answer("/v1/embeddings", "", `{"model":"m","input":"x","dimensions":5}`)
	_, _, coded, _ := r.answer("/v1/embeddings", "", `{"model":"m","input":"x","dimensions":5,"encoding_format":"base64"}`)
	vector := at(t, parse(t, floats), "data", 0, "embedding").([]any)
	raw, err := base64.StdEncoding.DecodeString(at(t, parse(t, coded), "data", 0, "embedding").(string))
	if err != nil || len(vector) != 5 || len(raw) != 20 {
		t.Errorf("%v and %x, %v", vector, raw, err)
	}
}

func TestImageIsAPicture(t *testing.T) {
	r := newRig(t, sim.Config{})
	_, _, body, _ := r.answer("/v1/images/generations", "", `{"model":"m","prompt":"a cat","n":2}`)
	raw, err := base64.StdEncoding.DecodeString(at(t, parse(t, body), "data", 1, "b64_json").(string))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := png.Decode(bytes.NewReader(raw)); err != nil {
		t.Error(err)
	}
}

func TestAudio(t *testing.T) {
	srv := httptest.NewServer(newSim(t, sim.Config{}))
	defer srv.Close()
	transcribe := func(fields map[string]string) string {
		var b bytes.Buffer
		form := multipart.NewWriter(&b)
		file, _ := form.CreateFormFile("file", "a.wav")
		_, _ = file.Write(make([]byte, 100_000))
		for k, v := range fields {
			_ = form.WriteField(k, v)
		}
		form.Close()
		resp, err := http.Post(srv.URL+"/v1/audio/transcriptions", form.FormDataContentType(), &b)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, _ := io.ReadAll(resp.Body)
		return string(got)
	}
	text := sim.Text(sim.PromptHash("names"), 64)
	if got := at(t, parse(t, transcribe(map[string]string{"model": "m", "prompt": "names"})), "text"); got != text {
		t.Errorf("transcript %v, want %q", got, text)
	}
	if got := transcribe(map[string]string{"model": "m", "prompt": "names", "response_format": "text"}); got != text+"\n" {
		t.Errorf("transcript %q", got)
	}
	if got := transcribe(map[string]string{"model": "m", "stream": "true"}); strings.Count(got, "transcript.text.delta") != 64 {
		t.Errorf("transcript %q", got)
	}
	if got := transcribe(map[string]string{"model": "nope"}); !strings.Contains(got, `"type":"NotFoundError"`) {
		t.Errorf("transcript %q", got)
	}

	resp, err := http.Post(srv.URL+"/v1/audio/speech", "application/json", strings.NewReader(`{"model":"m","input":"`+prompt+`","voice":"v"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, _ := io.ReadAll(resp.Body)
	if string(got) != sim.Text(promptHash, 64) || resp.Header.Get("Content-Type") != "audio/mpeg" {
		t.Errorf("speech %q", got)
	}
}

func TestErrorsHaveTheShapeOfTheAPI(t *testing.T) {
	for name, c := range map[string]struct {
		dialect            engine.Dialect
		path, body, orders string
		status             int
		want               string
	}{
		"unknown model": {dialect: "openai", path: "/v1/chat/completions", body: `{"model":"x","messages":[]}`, status: 404,
			want: "{\"error\":{\"code\":\"model_not_found\",\"message\":\"The model `x` does not exist. There is: m\",\"param\":\"model\",\"type\":\"invalid_request_error\"}}"},
		"unknown model, Ollama": {dialect: "ollama", path: "/v1/chat/completions", body: `{"model":"x","messages":[]}`, status: 404,
			want: `{"error":{"code":null,"message":"model 'x' not found","param":null,"type":"not_found_error"}}`},
		"unknown model, Anthropic": {dialect: "openai", path: "/v1/messages", body: `{"model":"x","messages":[]}`, status: 404,
			want: "{\"error\":{\"message\":\"The model `x` does not exist. There is: m\",\"type\":\"not_found_error\"},\"type\":\"error\"}"},
		"no JSON":     {path: "/v1/chat/completions", body: `{"model":`, status: 400},
		"no object":   {path: "/v1/completions", body: `[1]`, status: 400},
		"no model":    {path: "/v1/embeddings", body: `{"input":"x"}`, status: 400},
		"no messages": {path: "/v1/chat/completions", body: `{"model":"m","messages":null}`, status: 400},
		"too deep":    {path: "/v1/chat/completions", body: `{"model":"m","messages":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`, status: 400},
		"too long":    {path: "/v1/chat/completions", body: chatBody("x", `,"max_tokens":1000000000`), status: 400},
		"bad order":   {path: "/v1/chat/completions", body: chatBody("x", ""), orders: "hang, dance", status: 400},
		"ordered fail": {path: "/v1/chat/completions", body: chatBody("x", ""), orders: "fail", status: 500,
			want: `{"error":{"code":"internal_error","message":"this failure was requested","param":null,"type":"server_error"}}`},
		"ordered fail with a status":    {path: "/v1/messages", body: chatBody("x", ""), orders: "fail=418", status: 418},
		"ordered refusal":               {path: "/v1/chat/completions", body: chatBody("x", ""), orders: "refuse=503", status: 503},
		"order for this engine":         {path: "/v1/chat/completions", body: chatBody("x", ""), orders: "on=sim, refuse", status: 429},
		"order for another engine":      {path: "/v1/chat/completions", body: chatBody("x", ""), orders: "on=other, refuse", status: 200},
		"no such order for a refusal":   {path: "/v1/chat/completions", body: chatBody("x", ""), orders: "refuse=500", status: 400},
		"no number of tokens":           {path: "/v1/chat/completions", body: chatBody("x", ""), orders: "cut-after=-1", status: 400},
		"no duration":                   {path: "/v1/chat/completions", body: chatBody("x", ""), orders: "ttft=soon", status: 400},
		"no tokens":                     {path: "/v1/chat/completions", body: chatBody("x", `,"max_tokens":0`), status: 400},
		"no such path":                  {path: "/v1/nothing", body: `{}`, status: 404},
		"no form where one is expected": {path: "/v1/audio/transcriptions", body: `{}`, status: 400},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, sim.Config{Dialect: c.dialect})
			status, header, body, err := r.answer(c.path, c.orders, c.body)
			if err != nil || status != c.status || c.want != "" && body != c.want {
				t.Errorf("got %d %s, %v\nwant %d %s", status, body, err, c.status, c.want)
			}
			if refused := status == 429 || status == 503; refused != (header.Get("Retry-After") != "") {
				t.Errorf("%d with retry-after %q", status, header.Get("Retry-After"))
			}
		})
	}
}

func TestOllamaRepeatsTheRoleAndIgnoresMaxCompletionTokens(t *testing.T) {
	r := newRig(t, sim.Config{Dialect: engine.DialectOllama})
	events, err := r.stream("/v1/chat/completions", "", chatBody("x", `,"stream":true,"max_completion_tokens":2`))
	if err != nil || len(events) != 1+64+2 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	if role := at(t, parse(t, events[9].data), "choices", 0, "delta", "role"); role != "assistant" {
		t.Errorf("role %v", role)
	}
}

func TestCutConnectionIsNeverACleanEnd(t *testing.T) {
	for orders, c := range map[string]struct {
		events int  // events of the stream before the cut
		begun  bool // the header of a whole answer arrived
	}{
		"close":         {0, false},
		"cut-after=0":   {0, false},
		"cut-after=2":   {3, true},
		"cut-after=999": {65, true},
	} {
		t.Run(orders, func(t *testing.T) {
			r := newRig(t, sim.Config{})
			events, err := r.stream("/v1/chat/completions", orders, chatBody(prompt, `,"stream":true`))
			if err == nil || len(events) != c.events {
				t.Errorf("stream: %d events, error %v; want %d and an error", len(events), err, c.events)
			}
			status, _, body, err := r.answer("/v1/chat/completions", orders, chatBody(prompt, ""))
			if err == nil || (status == 200) != c.begun || (body != "") != c.begun {
				t.Errorf("whole: %d %q, %v", status, body, err)
			}
			if got := r.sim.Stats(); got.Failed != 2 || got.Running != 0 || got.Finished != 0 {
				t.Errorf("stats %+v", got)
			}
		})
	}
}

func TestEarlyHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{})
		resp, err := r.post(t.Context(), "/v1/chat/completions", "early-header, hang", chatBody("x", `,"stream":true`))
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
		synctest.Wait()
		if got := r.sim.Stats(); got.Aborted != 1 || got.Running != 0 {
			t.Errorf("stats %+v", got)
		}
	})
}

func TestMisbehavioursComeAsOftenAsConfigured(t *testing.T) {
	r := newRig(t, sim.Config{Fail: 0.2, Refuse: 0.3, Cut: 0.1, CutAfter: 1})
	var failed, refused, cut int
	const n = 500
	for range n {
		status, _, _, err := r.answer("/v1/chat/completions", "", chatBody("x", `,"max_tokens":2`))
		switch {
		case err != nil:
			cut++
		case status == 500:
			failed++
		case status == 429:
			refused++
		}
	}
	for what, c := range map[string][2]float64{
		"failed": {float64(failed), 0.2}, "refused": {float64(refused), 0.3}, "cut": {float64(cut), 0.1},
	} {
		if share := c[0] / n; share < c[1]-0.06 || share > c[1]+0.06 {
			t.Errorf("%s: %v of all, want about %v", what, share, c[1])
		}
	}
}

func TestModelsHealthMetricsAndStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{Slots: 2, Models: []string{"m", "org/m"}})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { _, _, _, _ = r.answer("/v1/chat/completions", "ttft=1s", chatBody("x", "")) })
		}
		synctest.Wait()
		for path, want := range map[string]string{
			"/v1/models":       `"id":"org/m","object":"model","owned_by":"vllm"`,
			"/v1/models/org/m": `"id":"org/m","object":"model","owned_by":"vllm"`,
			"/v1/models/x":     "The model `x` does not exist.",
			"/health":          "",
			"/metrics":         "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 2\n",
			"/sim/stats":       `"running":2,"waiting":1,"max_running":2,`,
		} {
			resp, err := r.client.Get("http://sim" + path)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if !strings.Contains(string(body), want) {
				t.Errorf("%s: %s\nwant %s", path, body, want)
			}
		}
		wg.Wait()
	})
}

func TestBadConfigNamesTheField(t *testing.T) {
	models := []string{"m"}
	for field, cfg := range map[string]sim.Config{
		"Models":       {},
		"Slots":        {Models: models, Slots: -1},
		"ITLBase":      {Models: models, ITLBase: -1},
		"PrefixCache":  {Models: models, PrefixCache: -1},
		"Fail":         {Models: models, Fail: 1.5},
		"Hang":         {Models: models, Fail: 0.5, Hang: 0.6},
		"RefuseStatus": {Models: models, RefuseStatus: 500},
		"Dialect":      {Models: models, Dialect: "klingon"},
		"KVTokens":     {Models: models, KVTokens: -1},
		"PrefillBatch": {Models: models, PrefillBatch: -1},
		"Name":         {Models: models, Name: "a\nb"},
	} {
		_, err := sim.New(cfg)
		if bad, ok := errors.AsType[*sim.ConfigError](err); !ok || bad.Field != field {
			t.Errorf("%+v: %v, want an error about %s", cfg, err, field)
		}
	}
}

func TestTokensAreTheirWords(t *testing.T) {
	text := sim.Text(7, 100)
	for i, word := range strings.Fields(text) {
		if word != sim.Token(7, i) {
			t.Errorf("token %d is %q in the text and %q alone", i, word, sim.Token(7, i))
		}
	}
	if sim.CountTokens(text) != 100 || sim.PromptHash("a", "b") != sim.PromptHash(" a\tb ") {
		t.Error("words are not counted as they stand")
	}
}

// FuzzPrompt checks that any JSON is answered, and counted as encoding/json understands it.
func FuzzPrompt(f *testing.F) {
	f.Add(`{"model":"m","prompt":"a b"}`)
	f.Add(`{"model":"m","prompt":["a\\","\"b", [1, 2,-3e5] , {"text":"c","x":[{}]}] }`)
	f.Add(`{"model":"m","prompt":{"content":[{"text":null},true,"\\\""]}}`)
	eng, err := sim.New(sim.Config{Models: []string{"m"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body string) {
		w := httptest.NewRecorder()
		eng.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/completions", strings.NewReader(body)))
		if w.Code != 200 && w.Code != 400 && w.Code != 404 {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	})
}
