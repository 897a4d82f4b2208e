package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/pulley-lb/pulley/subjects"
)

// answerOf is a response with a content type.
func answerOf(contentType string) *http.Response {
	return &http.Response{
		StatusCode: 200, ProtoMajor: 1, ContentLength: -1, TransferEncoding: []string{"chunked"},
		Header: http.Header{"Content-Type": {contentType}},
	}
}

const (
	eventStream = "text/event-stream; charset=utf-8"
	jsonType    = "application/json"
)

// outcome is what an Inspector finds in an answer.
type outcome struct {
	input, output int
	broken        string
}

func inspected(path, contentType string, pieces ...string) outcome {
	var in Inspector
	in.Begin(path, answerOf(contentType))
	for _, p := range pieces {
		in.Observe([]byte(p))
	}
	broken := in.Broken() // at the end of the answer, before the counts
	return outcome{in.InputTokens(), in.OutputTokens(), broken}
}

const lost = "the stream ended without its last event"

func TestInspector(t *testing.T) {
	chat, text, messages, responses := "/v1/chat/completions", "/v1/completions", "/v1/messages?beta=true", "/v1/responses"
	token := `data: {"choices":[{"delta":{"content":"a"}}],"usage":null}` + "\n\n"
	for about, c := range map[string]struct {
		path, contentType, body string
		in, out                 int // expected counts
		broken                  string
	}{
		"chat with usage":               {chat, eventStream, token + token + `data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"completion_tokens_details":{"reasoning_tokens":3},"total_tokens":12}}` + "\n\ndata: [DONE]\n\n", 5, 7, ""},
		"chat, counted":                 {chat, eventStream, token + token + token + "data: [DONE]\n\n", 0, 3, ""},
		"DONE without a space":          {chat, eventStream, token + "data:[DONE]\n\n", 0, 1, ""},
		"DONE without a line's end":     {chat, eventStream, token + "data: [DONE]", 0, 1, ""},
		"no DONE":                       {chat, eventStream, token + token, 0, 2, lost},
		"a DONE that the model wrote":   {chat, eventStream, `data: {"choices":[{"delta":{"content":"data: [DONE]\n\n"}}]}` + "\n\n", 0, 1, lost},
		"nothing at all":                {chat, eventStream, "", 0, 0, lost},
		"CRLF":                          {chat, eventStream, strings.ReplaceAll(token+"data: [DONE]\n\n", "\n", "\r\n"), 0, 1, ""},
		"comments and other fields":     {chat, eventStream, ": ping\n\nid: 4\nretry: 10\n" + token + "data: [DONE]\n\n", 0, 1, ""},
		"an error event ends chat":      {chat, eventStream, token + `data: {"error":{"message":"m"}}` + "\n\n", 0, 2, ""},
		"text completions":              {text, eventStream, token + "data: [DONE]\n\n", 0, 1, ""},
		"text completions cut":          {text, eventStream, token, 0, 1, lost},
		"messages":                      {messages, eventStream, "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":9,\"output_tokens\":1}}}\n\nevent: message_delta\ndata: {\"usage\":{\"output_tokens\":15}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", 25, 15, ""},
		"messages cut":                  {messages, eventStream, "event: message_start\ndata: {}\n\n", 0, 1, lost},
		"messages with an error":        {messages, eventStream, "event: error\ndata: {\"type\":\"error\",\"error\":{}}\n\n", 0, 1, ""},
		"event name without a space":    {messages, eventStream, "event:message_stop\ndata:{}\n\n", 0, 1, ""},
		"responses":                     {responses, eventStream, "event: response.completed\ndata: {\"response\":{\"usage\":{\"input_tokens\": 3,\"output_tokens\" : 4}}}\n\n", 3, 4, ""},
		"responses that ran out":        {responses, eventStream, "event: response.incomplete\ndata: {}\n\n", 0, 1, ""},
		"responses that failed":         {responses, eventStream, "event: response.failed\ndata: {}\n\n", 0, 1, ""},
		"responses cut":                 {responses, eventStream, "event: response.created\ndata: {}\n\n", 0, 1, lost},
		"an unknown API":                {"/generate_stream", eventStream, "data: {}\n\n", 0, 1, ""},
		"no stream":                     {chat, jsonType, `{"choices":[{"message":{"content":"\"completion_tokens\": 99"}}],"usage":{"prompt_tokens":5,"completion_tokens":7}}`, 5, 7, ""},
		"no stream, a long answer":      {chat, jsonType, `{"c":"` + strings.Repeat("x", 100_000) + `","usage":{"prompt_tokens":5,"completion_tokens":7}}`, 5, 7, ""},
		"no stream and no usage":        {chat, jsonType, `{}`, 0, 0, ""},
		"counts that are none":          {chat, jsonType, `{"usage":{"prompt_tokens":-5,"completion_tokens":99999999999999999999}}`, 0, 0, ""},
		"lines of JSON":                 {"/api/chat", "application/x-ndjson", "{}\n{\"prompt_tokens\":2,\"completion_tokens\":6}\n", 2, 6, ""},
		"usage at the end of a line":    {responses, eventStream, "event: response.completed\ndata: {\"t\":\"" + strings.Repeat("x", 3*keepLine) + "\",\"usage\":{\"input_tokens\":3,\"output_tokens\":4}}\n\n", 3, 4, ""},
		"usage inside a long line":      {responses, eventStream, "event: response.completed\ndata: {\"t\":\"" + strings.Repeat("x", 2*keepLine) + "\",\"usage\":{\"output_tokens\":4},\"u\":\"" + strings.Repeat("x", 2*keepTail) + "\"}\n\n", 0, 1, ""},
		"a long line counts once":       {chat, eventStream, "data: {\"c\":\"" + strings.Repeat("x", 2*keepLine) + "\"}\n\n" + token + "data: [DONE]\n\n", 0, 2, ""},
		"a long comment is not a token": {chat, eventStream, ": " + strings.Repeat("x", 2*keepLine) + "\n\n" + token + "data: [DONE]\n\n", 0, 1, ""},
		"a long line that never ended":  {chat, eventStream, "data: " + strings.Repeat("x", 2*keepLine), 0, 1, lost},
	} {
		t.Run(about, func(t *testing.T) {
			want := outcome{c.in, c.out, c.broken}
			if got := inspected(c.path, c.contentType, c.body); got != want {
				t.Fatalf("in one piece: got %+v, want %+v", got, want)
			}
			step := max(len(c.body)/300, 1)
			for i := 0; i <= len(c.body); i += step {
				if got := inspected(c.path, c.contentType, c.body[:i], c.body[i:]); got != want {
					t.Fatalf("cut at %d: got %+v, want %+v", i, got, want)
				}
			}
			if got := inspected(c.path, c.contentType, strings.Split(c.body, "")...); got != want {
				t.Errorf("byte by byte: got %+v, want %+v", got, want)
			}
		})
	}
}

// An answer that ends only with its connection is checked for its last bracket.
// What an engine says of how it read the prompt, in any API, and in text that only looks like it.
func TestInspectorReadsPrompts(t *testing.T) {
	chat, messages, responses := "/v1/chat/completions", "/v1/messages", "/v1/responses"
	token := `data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}` + "\n\n"
	last := func(more string) string {
		return token + `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]` + more + "}\n\n"
	}
	done := "data: [DONE]\n\n"
	const timings = `,"timings":{"cache_n":32,"prompt_n":68,"prompt_ms":12.5,"prompt_per_token_ms":0.18,"predicted_n":3,"predicted_ms":30.1}`
	timed := PromptReport{Computed: 68, Took: 12500 * time.Microsecond}
	all := timed
	all.Counted, all.Cached, all.Tokens = true, 32, 100
	for about, c := range map[string]struct {
		path, contentType, body string
		want                    PromptReport
	}{
		"nothing":                      {chat, eventStream, last("") + done, PromptReport{}},
		"OpenAI's usage":               {chat, jsonType, `{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":64}}}`, PromptReport{Counted: true, Cached: 64, Tokens: 100}},
		"in a stream":                  {chat, eventStream, last("") + `data: {"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":0}}}` + "\n\n" + done, PromptReport{Counted: true, Tokens: 100}},
		"details that are null":        {chat, jsonType, `{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":1,"prompt_tokens_details":null}}`, PromptReport{Tokens: 100}},
		"Anthropic's, which is apart":  {messages, jsonType, `{"type":"message","content":[{"type":"text","text":"a"}],"stop_reason":"end_turn","usage":{"input_tokens":8,"cache_creation_input_tokens":4,"cache_read_input_tokens":32,"output_tokens":3}}`, PromptReport{Counted: true, Cached: 32, Tokens: 40}},
		"of Responses":                 {responses, jsonType, `{"object":"response","status":"completed","output":[{"type":"message","content":[{"type":"output_text","text":"a"}]}],"usage":{"input_tokens":100,"input_tokens_details":{"cached_tokens":16},"output_tokens":3}}`, PromptReport{Counted: true, Cached: 16, Tokens: 100}},
		"llama.cpp's last event":       {chat, eventStream, last(timings) + done, timed},
		"beside the usage":             {chat, eventStream, last("") + `data: {"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":32}}` + timings + "}\n\n" + done, all},
		"at the end of a whole answer": {chat, jsonType, `{"choices":[{"index":0,"message":{"content":"` + strings.Repeat("a ", 9000) + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":1}` + timings + `}`, PromptReport{Computed: 68, Took: 12500 * time.Microsecond, Tokens: 100}},
		"a prompt that is all cached":  {chat, eventStream, last(`,"timings":{"prompt_n":0,"prompt_ms":0.0}`) + done, PromptReport{}},
		"timings without numbers":      {chat, eventStream, last(`,"timings":{"prompt_n":"many","prompt_ms":null}`) + done, PromptReport{}},
		"numbers that cannot be":       {chat, eventStream, last(`,"timings":{"prompt_n":68,"prompt_ms":-1}`) + done, PromptReport{}},
		"timings that are cut":         {chat, jsonType, `{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}],"timings":{"prompt_n":68,"prompt_ms":1`, PromptReport{}},
		"text that looks like it":      {chat, eventStream, `data: {"choices":[{"index":0,"delta":{"content":"\"timings\":{\"prompt_n\":68,\"prompt_ms\":1}"},"finish_reason":null}]}` + "\n\n" + last("") + done, PromptReport{}},
		"text in the last event":       {chat, eventStream, `data: {"choices":[{"index":0,"delta":{"content":"\"timings\":{\"prompt_n\":68,\"prompt_ms\":1}"},"finish_reason":"stop"}]}` + "\n\n" + done, PromptReport{}},
		"timings of each token too":    {chat, eventStream, strings.ReplaceAll(token, `]}`, `],"timings":{"prompt_n":68,"prompt_ms":12.5}}`) + last(timings) + done, timed},
	} {
		for _, size := range []int{1, 7, 1 << 20} {
			var in Inspector
			in.Begin(c.path, answerOf(c.contentType))
			for piece := range slices.Chunk([]byte(c.body), size) {
				in.Observe(piece)
			}
			in.Broken()
			if got := in.Prompt(); got != c.want {
				t.Errorf("%s, %d bytes at once: %+v, want %+v", about, size, got, c.want)
			}
		}
	}
}

func TestInspectorWithoutLength(t *testing.T) {
	for body, want := range map[string]string{
		`{"a":1}`: "", "[1]\n": "", "": "", `{"a":`: "the answer broke off", `{"a":"b`: "the answer broke off",
	} {
		resp := answerOf(jsonType)
		resp.TransferEncoding = nil
		var in Inspector
		in.Begin("/v1/embeddings", resp)
		in.Observe([]byte(body))
		if got := in.Broken(); got != want {
			t.Errorf("%q: got %q, want %q", body, got, want)
		}
	}
}

// An Inspector keeps a bounded part of any answer.
func TestInspectorIsBounded(t *testing.T) {
	for _, ct := range []string{eventStream, jsonType} {
		var in Inspector
		in.Begin("/v1/chat/completions", answerOf(ct))
		piece := []byte(strings.Repeat("x", 64<<10))
		in.Observe([]byte("data: "))
		for range 1000 {
			in.Observe(piece)
		}
		if held := cap(in.line) + cap(in.tail); held > 4*keepLine {
			t.Errorf("%s: holds %d bytes of 64 MB", ct, held)
		}
	}
}

func FuzzInspector(f *testing.F) {
	f.Add("/v1/chat/completions", true, "data: {}\n\ndata: [DONE]\n\n", uint64(1))
	f.Add("/v1/messages", true, "event: message_stop\r\ndata: {\"output_tokens\":5}\r\n\r\n", uint64(2))
	f.Add("/v1/responses", true, "event: response.completed\ndata: {\"input_tokens\":5}", uint64(3))
	f.Add("/v1/completions", false, `{"usage":{"prompt_tokens":5}}`, uint64(4))
	f.Fuzz(func(t *testing.T, path string, stream bool, body string, seed uint64) {
		ct := jsonType
		if stream {
			ct = eventStream
		}
		draw := rand.New(rand.NewPCG(seed, 1))
		if draw.IntN(4) == 0 { // make a line long
			body = strings.Replace(body, "{", `{"x":"`+strings.Repeat("y", keepLine-10+draw.IntN(20))+`",`, 1)
		}
		want := inspected(path, ct, body)
		var pieces []string
		for rest := body; rest != ""; {
			n := min(draw.IntN(1+draw.IntN(1+len(rest)))+1, len(rest))
			pieces = append(pieces, rest[:n])
			rest = rest[n:]
		}
		if got := inspected(path, ct, pieces...); got != want {
			t.Errorf("in %d pieces %+v, in one %+v", len(pieces), got, want)
		}
	})
}

func BenchmarkInspector(b *testing.B) {
	token := []byte(`data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}` + "\n\n")
	var in Inspector
	in.Begin("/v1/chat/completions", answerOf(eventStream))
	b.SetBytes(int64(len(token)))
	b.ReportAllocs()
	for b.Loop() {
		in.Observe(token)
	}
	if in.Events != b.N {
		b.Fatal(fmt.Sprint(in.Events, " events of ", b.N))
	}
}

const (
	chatPath      = "/v1/chat/completions"
	messagesPath  = "/v1/messages"
	responsesPath = "/v1/responses"
)

// both edits, as for a route with restore_model and a client that asked for a tier.
var both = Edits{Model: "gpt-4o", Tier: "batch"}

func TestEditJSON(t *testing.T) {
	for about, c := range map[string]struct {
		path     string
		ed       Edits
		in, want string
	}{
		"a chat": {chatPath, both,
			`{"id":"c1","object":"chat.completion","created":1,"model":"llama-70b","choices":[{"index":0,"message":{"role":"assistant","content":"my model is \"model\":\"llama-70b\""},"finish_reason":"stop"}],"usage":{"total_tokens":3},"service_tier":null}`,
			`{"id":"c1","object":"chat.completion","created":1,"model":"gpt-4o","choices":[{"index":0,"message":{"role":"assistant","content":"my model is \"model\":\"llama-70b\""},"finish_reason":"stop"}],"usage":{"total_tokens":3},"service_tier":"batch"}`},
		"no tier in it":            {chatPath, both, `{"model":"x","choices":[]}`, `{"model":"gpt-4o","service_tier":"batch","choices":[]}`},
		"a tier before the model":  {chatPath, both, `{"service_tier":"default","model":"x"}`, `{"service_tier":"batch","model":"gpt-4o"}`},
		"white space stays":        {chatPath, both, " { \"model\" :\t\"x\" ,\r\n\"a\" : 1 } \n", " { \"model\" :\t\"gpt-4o\",\"service_tier\":\"batch\" ,\r\n\"a\" : 1 } \n"},
		"only the model":           {chatPath, Edits{Model: "m"}, `{"model":"x","service_tier":"default"}`, `{"model":"m","service_tier":"default"}`},
		"only the tier":            {chatPath, Edits{Tier: "t"}, `{"model":"x","a":1}`, `{"model":"x","service_tier":"t","a":1}`},
		"nothing":                  {chatPath, Edits{}, `{"model":"x"}`, `{"model":"x"}`},
		"an escaped name":          {chatPath, both, `{"mod\u0065l":"x","service\u005ftier":"y"}`, `{"mod\u0065l":"gpt-4o","service\u005ftier":"batch"}`},
		"an escaped value":         {chatPath, both, `{"model":"\u0078\"}","a":1}`, `{"model":"gpt-4o","service_tier":"batch","a":1}`},
		"a name to be escaped":     {chatPath, Edits{Model: "a\"\\\n é\xff"}, `{"model":"x"}`, `{"model":"a\"\\\n é` + "\ufffd" + `"}`},
		"UTF-8":                    {chatPath, both, `{"a":"héllo 😀","model":"模型","b":"ü"}`, `{"a":"héllo 😀","model":"gpt-4o","service_tier":"batch","b":"ü"}`},
		"invalid UTF-8":            {chatPath, both, "{\"a\":\"\xff\xfe\",\"model\":\"x\"}", "{\"a\":\"\xff\xfe\",\"model\":\"gpt-4o\",\"service_tier\":\"batch\"}"},
		"named twice":              {chatPath, both, `{"model":"x","model":"y"}`, `{"model":"gpt-4o","model":"gpt-4o","service_tier":"batch"}`},
		"other cases":              {chatPath, both, `{"Model":"x","MODEL":"y"}`, `{"Model":"x","MODEL":"y"}`},
		"a model further in":       {chatPath, both, `{"choices":[{"model":"x"}],"message":{"model":"x"},"response":{"model":"x"},"":{"model":"x"}}`, `{"choices":[{"model":"x"}],"message":{"model":"x"},"response":{"model":"x"},"":{"model":"x"}}`},
		"a model that is none":     {chatPath, both, `{"model":{"model":"x"},"service_tier":{"service_tier":"x"}}`, `{"model":{"model":"x"},"service_tier":{"service_tier":"x"}}`},
		"null for a model":         {chatPath, both, `{"model":null}`, `{"model":null}`},
		"an error":                 {chatPath, both, `{"error":{"message":"m","type":"t","param":null,"code":null}}`, `{"error":{"message":"m","type":"t","param":null,"code":null}}`},
		"an empty object":          {chatPath, both, `{}`, `{}`},
		"a list":                   {chatPath, both, `[{"model":"x"}]`, `[{"model":"x"}]`},
		"two objects":              {chatPath, both, `{"model":"x"}{"model":"x"}`, `{"model":"x"}{"model":"x"}`},
		"damage behind the model":  {chatPath, both, `{"model":"x","a":[}`, `{"model":"x","a":[}`},
		"cut":                      {chatPath, both, `{"model":"x","a":1`, `{"model":"x","a":1`},
		"cut in the model":         {chatPath, both, `{"model":"x`, `{"model":"x`},
		"nothing at all":           {chatPath, both, ``, ``},
		"text":                     {chatPath, both, `model`, `model`},
		"100 000 lists deep":       {chatPath, both, `{"model":"x","a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`, `{"model":"x","a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`},
		"a text completion":        {"/v1/completions", both, `{"model":"x","choices":[]}`, `{"model":"gpt-4o","service_tier":"batch","choices":[]}`},
		"embeddings have no tier":  {"/v1/embeddings", both, `{"model":"x","data":[]}`, `{"model":"gpt-4o","data":[]}`},
		"embeddings, only a tier":  {"/v1/embeddings", Edits{Tier: "t"}, `{"model":"x","data":[]}`, `{"model":"x","data":[]}`},
		"KServe's model_name":      {"/v2/models/m/infer", both, `{"model_name":"x","outputs":[]}`, `{"model_name":"x","outputs":[]}`},
		"Anthropic":                {messagesPath, both, `{"id":"msg_1","type":"message","model":"x","content":[{"type":"text","text":"a"}],"usage":{"input_tokens":1,"service_tier":"standard"}}`, `{"id":"msg_1","type":"message","model":"gpt-4o","content":[{"type":"text","text":"a"}],"usage":{"input_tokens":1,"service_tier":"batch"}}`},
		"Anthropic, null":          {messagesPath, both, `{"usage":{"service_tier":null},"model":"x"}`, `{"usage":{"service_tier":"batch"},"model":"gpt-4o"}`},
		"Anthropic without a tier": {messagesPath, both, `{"model":"x","usage":{"input_tokens":1}}`, `{"model":"gpt-4o","usage":{"input_tokens":1}}`},
		"Anthropic's tier is in usage": {messagesPath, both, `{"model":"x","service_tier":"a","b":{"usage":{"service_tier":"a"}}}`,
			`{"model":"gpt-4o","service_tier":"a","b":{"usage":{"service_tier":"a"}}}`},
		"Responses": {responsesPath, both, `{"id":"resp_1","object":"response","model":"x","output":[{"model":"y"}],"service_tier":"auto","usage":{"service_tier":"z"}}`,
			`{"id":"resp_1","object":"response","model":"gpt-4o","output":[{"model":"y"}],"service_tier":"batch","usage":{"service_tier":"z"}}`},
	} {
		t.Run(about, func(t *testing.T) {
			got := c.in
			if e := NewEditor(c.ed, Of(c.path), false); e != nil {
				got = string(e.Whole([][]byte{[]byte(c.in[:len(c.in)/2]), []byte(c.in[len(c.in)/2:])}))
			}
			if got != c.want {
				t.Errorf("got  %.400s\nwant %.400s", got, c.want)
			}
		})
	}
}

// streams are answers as engines stream them, and as they must be sent on.
var streams = map[string]struct {
	path      string
	jsonLines bool
	in, want  string
}{
	"chat": {chatPath, false, `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"llama-70b","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"llama-70b","service_tier":"default","choices":[{"index":0,"delta":{"content":"\n\ndata: {\"model\":\"llama-70b\"}"},"finish_reason":null}]}

: a comment with "model":"llama-70b"

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"llama-70b","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}

data: [DONE]

`, `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o","service_tier":"batch","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o","service_tier":"batch","choices":[{"index":0,"delta":{"content":"\n\ndata: {\"model\":\"llama-70b\"}"},"finish_reason":null}]}

: a comment with "model":"llama-70b"

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o","service_tier":"batch","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}

data: [DONE]

`},
	"chat with an error": {chatPath, false, `data: {"model":"llama-70b","choices":[{"delta":{"content":"a"}}]}

data: {"error":{"message":"the model llama-70b broke","type":"server_error","param":null,"code":null}}

`, `data: {"model":"gpt-4o","service_tier":"batch","choices":[{"delta":{"content":"a"}}]}

data: {"error":{"message":"the model llama-70b broke","type":"server_error","param":null,"code":null}}

`},
	"Anthropic": {messagesPath, false, `event: message_start
data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"llama-70b","content":[],"stop_reason":null,"usage":{"input_tokens":25,"output_tokens":1,"service_tier":"standard"}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: ping
data: {"type":"ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\"model\":\"llama-70b\"}"}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","model":"llama-70b"},"usage":{"output_tokens":15}}

event: message_stop
data: {"type":"message_stop"}

`, `event: message_start
data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"gpt-4o","content":[],"stop_reason":null,"usage":{"input_tokens":25,"output_tokens":1,"service_tier":"batch"}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: ping
data: {"type":"ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\"model\":\"llama-70b\"}"}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","model":"llama-70b"},"usage":{"output_tokens":15}}

event: message_stop
data: {"type":"message_stop"}

`},
	"Responses": {responsesPath, false, `event: response.created
data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","status":"in_progress","model":"llama-70b","output":[],"service_tier":"auto"}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":1,"item_id":"msg_1","output_index":0,"delta":"as the model llama-70b"}

event: response.completed
data: {"type":"response.completed","sequence_number":2,"response":{"id":"resp_1","object":"response","status":"completed","model":"llama-70b","output":[{"type":"message","model":"llama-70b","response":{"model":"llama-70b"}}]}}

`, `event: response.created
data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","status":"in_progress","model":"gpt-4o","output":[],"service_tier":"batch"}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":1,"item_id":"msg_1","output_index":0,"delta":"as the model llama-70b"}

event: response.completed
data: {"type":"response.completed","sequence_number":2,"response":{"id":"resp_1","object":"response","status":"completed","model":"gpt-4o","service_tier":"batch","output":[{"type":"message","model":"llama-70b","response":{"model":"llama-70b"}}]}}

`},
	"Ollama's lines": {"/api/chat", true,
		"{\"model\":\"llama-70b\",\"message\":{\"content\":\"a\",\"model\":\"b\"},\"done\":false}\n\n{\"model\":\"llama-70b\",\"done\":true}",
		"{\"model\":\"gpt-4o\",\"message\":{\"content\":\"a\",\"model\":\"b\"},\"done\":false}\n\n{\"model\":\"gpt-4o\",\"done\":true}"},
	"carriage returns": {chatPath, false,
		"data: {\"model\":\"x\"}\r\n\r\ndata:{\"model\":\"x\"}\r\rdata:\t{\"model\":\"x\"} \n\n",
		"data: {\"model\":\"gpt-4o\",\"service_tier\":\"batch\"}\r\n\r\ndata:{\"model\":\"gpt-4o\",\"service_tier\":\"batch\"}\r\rdata:\t{\"model\":\"gpt-4o\",\"service_tier\":\"batch\"} \n\n"},
	"not JSON": {chatPath, false,
		"data: {\"model\":\"x\"\ndata: ,\"a\":1}\n\ndata\ndata:\nid: 1\n{\"model\":\"x\"}\nDATA: {\"model\":\"x\"}\n data: {\"model\":\"x\"}\nevent: {\"model\":\"x\"}\ndata: \xff\x00\ndata: {\"model\":\"x\"}}\n\n",
		"data: {\"model\":\"x\"\ndata: ,\"a\":1}\n\ndata\ndata:\nid: 1\n{\"model\":\"x\"}\nDATA: {\"model\":\"x\"}\n data: {\"model\":\"x\"}\nevent: {\"model\":\"x\"}\ndata: \xff\x00\ndata: {\"model\":\"x\"}}\n\n"},
	"no end": {chatPath, false, "data: {\"model\":\"x\"}", "data: {\"model\":\"gpt-4o\",\"service_tier\":\"batch\"}"},
	"cut":    {chatPath, false, "data: {\"model\":\"x\"", "data: {\"model\":\"x\""},
	"empty":  {chatPath, false, "", ""},
}

// edited is the result of a stream that arrives in pieces.
func edited(e *Editor, pieces ...[]byte) []byte {
	var out []byte
	for _, p := range pieces {
		out = append(out, e.Lines(p)...)
	}
	return append(out, e.Last()...)
}

func TestEditStreams(t *testing.T) {
	for about, c := range streams {
		t.Run(about, func(t *testing.T) {
			in := []byte(c.in)
			editor := func() *Editor { return NewEditor(both, Of(c.path), c.jsonLines) }
			if got := string(edited(editor(), in)); got != c.want {
				t.Fatalf("got\n%s\nwant\n%s", got, c.want)
			}
			for at := range in {
				if got := string(edited(editor(), in[:at], in[at:])); got != c.want {
					t.Fatalf("cut at %d: got\n%s\nwant\n%s", at, got, c.want)
				}
			}
			if got := string(edited(editor(), slices.Collect(slices.Chunk(in, 1))...)); got != c.want {
				t.Errorf("byte by byte: got\n%s\nwant\n%s", got, c.want)
			}
			if !bytes.Equal(in, []byte(c.in)) {
				t.Error("it changed what came")
			}
		})
	}
}

// A complete line is sent on at once, an incomplete one not at all.
func TestEditHoldsNoLine(t *testing.T) {
	e := NewEditor(both, Chat, false)
	for _, c := range []struct{ in, want string }{
		{"event: a\nda", "event: a\n"},
		{"ta: {\"model\":", ""},
		{"\"x\"}\n", "data: {\"model\":\"gpt-4o\",\"service_tier\":\"batch\"}\n"},
		{"\n", "\n"},
		{": working\r", ": working\r"},
		{"\n\n", "\n\n"},
	} {
		if got := string(e.Lines([]byte(c.in))); got != c.want {
			t.Errorf("after %q: got %q, want %q", c.in, got, c.want)
		}
	}
}

// A line longer than maxLine passes unchanged, however it is cut, and is not kept.
func TestEditLongLines(t *testing.T) {
	line := func(size int) string {
		const head, tail = `data: {"model":"x","a":"`, `"}`
		return head + strings.Repeat("a", size-len(head)-len(tail)) + tail
	}
	short, long := line(maxLine), line(maxLine+1)
	want := strings.Replace(short, `"x"`, `"gpt-4o","service_tier":"batch"`, 1)
	in := []byte(short + "\n\n" + long + "\n\n" + line(50) + "\n" + line(3*maxLine) + "\n" + short)
	whole := want + "\n\n" + long + "\n\n" + strings.Replace(line(50), `"x"`, `"gpt-4o","service_tier":"batch"`, 1) + "\n" + line(3*maxLine) + "\n" + want
	for _, size := range []int{1000, maxLine - 1, maxLine, maxLine + 1, 2 * maxLine, len(in)} {
		e := NewEditor(both, Chat, false)
		if got := string(edited(e, slices.Collect(slices.Chunk(in, size))...)); got != whole {
			t.Errorf("in pieces of %d: %d bytes come out, want %d", size, len(got), len(whole))
		}
		if cap(e.held) > 3*maxLine {
			t.Errorf("in pieces of %d: %d bytes are kept", size, cap(e.held))
		}
	}
}

// FuzzEditStream cuts a stream anywhere: the result is the same.
func FuzzEditStream(f *testing.F) {
	for _, c := range streams {
		f.Add([]byte(c.in), uint64(len(c.in)), c.jsonLines)
	}
	f.Fuzz(func(t *testing.T, in []byte, cuts uint64, jsonLines bool) {
		for _, path := range []string{chatPath, messagesPath, responsesPath, "/v1/embeddings"} {
			editor := func() *Editor { return NewEditor(both, Of(path), jsonLines) }
			want := edited(editor(), in)
			var pieces [][]byte
			for rest := in; len(rest) > 0; {
				cuts = cuts*6364136223846793005 + 1442695040888963407
				n := min(int(cuts>>33)%23, len(rest))
				pieces = append(pieces, rest[:n])
				rest = rest[n:]
			}
			if got := edited(editor(), pieces...); !bytes.Equal(got, want) {
				t.Fatalf("%s: %q in pieces becomes %q, in one %q", path, in, got, want)
			}
			if path == "/v1/embeddings" && !bytes.Contains(in, []byte("mod")) && !bytes.Contains(in, []byte(`\u`)) && !bytes.Equal(want, in) {
				t.Fatalf("%q without a model becomes %q", in, want)
			}
			if bytes.Count(want, []byte("\n")) != bytes.Count(in, []byte("\n")) {
				t.Fatalf("%q has other lines: %q", in, want)
			}
		}
	})
}

// FuzzEditJSON compares an edited object with encoding/json's reading of both.
func FuzzEditJSON(f *testing.F) {
	for _, c := range streams {
		for line := range strings.Lines(c.in) {
			f.Add([]byte(strings.TrimPrefix(line, "data:")))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, path := range []string{chatPath, messagesPath, responsesPath, "/v1/embeddings"} {
			e := NewEditor(both, Of(path), false)
			out := e.appendJSON(nil, in)
			var was, is map[string]any
			if !jsontextTakes(in) || json.Unmarshal(in, &was) != nil {
				if !bytes.Equal(out, in) {
					t.Fatalf("%q is not an object and becomes %q", in, out)
				}
				return
			}
			if jsontext.NewDecoder(bytes.NewReader(in), jsontext.AllowInvalidUTF8(true)).SkipValue() != nil {
				return // a repeated member: reading both would hide what became of the first
			}
			if err := json.Unmarshal(out, &is); err != nil {
				t.Fatalf("%q becomes %q: %v", in, out, err)
			}
			switch path {
			case chatPath:
				wantEdits(was, true)
			case responsesPath:
				wantEdits(was, true)
				inner, _ := was["response"].(map[string]any)
				wantEdits(inner, true)
			case messagesPath:
				wantEdits(was, false)
				inner, _ := was["message"].(map[string]any)
				wantEdits(inner, false)
				for _, m := range []map[string]any{was, inner} {
					if u, ok := m["usage"].(map[string]any); ok {
						if tier, there := u["service_tier"]; there && canBeTier(tier) {
							u["service_tier"] = both.Tier
						}
					}
				}
			default:
				wantEdits(was, false)
			}
			if !reflect.DeepEqual(is, was) {
				t.Fatalf("%s: %q becomes %q, want %v", path, in, out, was)
			}
		}
	})
}

func canBeTier(v any) bool {
	_, str := v.(string)
	return str || v == nil
}

// wantEdits applies the edits to the parsed form of an object.
func wantEdits(m map[string]any, tier bool) {
	_, named := m["model"].(string)
	if named {
		m["model"] = both.Model
	}
	if was, there := m["service_tier"]; tier && (there && canBeTier(was) || !there && named) {
		m["service_tier"] = both.Tier
	}
}

func BenchmarkEdit(b *testing.B) {
	chunk := []byte(`data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"llama-70b","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}` + "\n\n")
	whole := []byte(`{"id":"chatcmpl-1","object":"chat.completion","model":"llama-70b","choices":[{"index":0,"message":{"role":"assistant","content":"` + strings.Repeat(`lorem ipsum dolor sit amet,\n`, 150) + `"}}]}`)
	for name, in := range map[string][]byte{"chunk": chunk, "whole4KiB": whole} {
		b.Run(name, func(b *testing.B) {
			e := NewEditor(both, Chat, false)
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			for b.Loop() {
				if name == "chunk" {
					e.Lines(in)
				} else {
					e.Whole([][]byte{in})
				}
			}
		})
	}
}

func TestRename(t *testing.T) {
	at := func(in subjects.ModelIn, s, name string) subjects.ModelAt {
		i := strings.Index(s, name)
		return subjects.ModelAt{In: in, From: i, To: i + len(name)}
	}
	const (
		chat = `{"temperature":1.0e0, "model" : "gpt-4o" ,"messages":[{"role":"user","content":"gpt-4o?"}]}`
		form = "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ngpt-4o\r\n--x--\r\n"
		path = "/v2/models/gpt-4o/versions/1/infer?a=b"
	)
	for what, c := range map[string]struct {
		body, path string
		at         subjects.ModelAt
		model      string
		wantBody   string
		wantPath   string
	}{
		"in JSON":                        {chat, "/v1/chat/completions", at(subjects.ModelInJSON, chat, `"gpt-4o"`), "llama", strings.Replace(chat, `"gpt-4o"`, `"llama"`, 1), "/v1/chat/completions"},
		"in JSON, with what JSON quotes": {chat, "/", at(subjects.ModelInJSON, chat, `"gpt-4o"`), "a\"b\\c\x01é", strings.Replace(chat, `"gpt-4o"`, `"a\"b\\c\u0001é"`, 1), "/"},
		"in a form":                      {form, "/v1/audio/transcriptions", at(subjects.ModelInForm, form, "gpt-4o"), `whisper "x"`, strings.Replace(form, "gpt-4o", `whisper "x"`, 1), "/v1/audio/transcriptions"},
		"in the path":                    {chat, path, at(subjects.ModelInPath, path, "gpt-4o"), "org/m 1", chat, "/v2/models/org%2Fm%201/versions/1/infer?a=b"},
		"nowhere":                        {chat, path, subjects.ModelAt{}, "llama", chat, path},
		"the engine calls it the same":   {chat, path, subjects.ModelAt{In: "json", From: -1, To: 1 << 40}, "gpt-4o", chat, path},
	} {
		body := []byte(c.body)
		gotPath, got, err := RenameModel(&subjects.Request{Model: "gpt-4o", ModelAt: c.at, Path: c.path}, body, c.model)
		if err != nil || string(got) != c.wantBody || gotPath != c.wantPath {
			t.Errorf("%s:\ngot  %s %s %v\nwant %s %s", what, gotPath, got, err, c.wantPath, c.wantBody)
		}
		if string(body) != c.body {
			t.Errorf("%s: the body itself was changed", what)
		}
	}
}

func TestRenameRefusesWhatCannotBe(t *testing.T) {
	const body, path = `{"model":"gpt-4o"}`, "/v2/models/gpt-4o/infer"
	for what, c := range map[string]struct {
		at    subjects.ModelAt
		model string
	}{
		"before the body":            {subjects.ModelAt{In: "json", From: -1, To: 3}, "m"},
		"after the body":             {subjects.ModelAt{In: "json", From: 9, To: 19}, "m"},
		"backwards":                  {subjects.ModelAt{In: "json", From: 9, To: 3}, "m"},
		"an overflow":                {subjects.ModelAt{In: "form", From: 1 << 62, To: -1 << 62}, "m"},
		"no string":                  {subjects.ModelAt{In: "json", From: 10, To: 16}, "m"},
		"half a string":              {subjects.ModelAt{In: "json", From: 9, To: 10}, "m"},
		"after the path":             {subjects.ModelAt{In: "path", From: 11, To: 30}, "m"},
		"more than a segment":        {subjects.ModelAt{In: "path", From: 4, To: 17}, "m"},
		"an unknown place":           {subjects.ModelAt{In: "header", From: 0, To: 1}, "m"},
		"a name that ends its field": {subjects.ModelAt{In: "form", From: 10, To: 16}, "m\r\n--x"},
	} {
		if path, got, err := RenameModel(&subjects.Request{Model: "gpt-4o", ModelAt: c.at, Path: path}, []byte(body), c.model); err == nil {
			t.Errorf("%s: got %s %s, want an error", what, path, got)
		}
	}
}

func FuzzRename(f *testing.F) {
	f.Add("json", 9, 17, "m", `{"model":"gpt-4o"}`, "/")
	f.Add("path", 11, 17, "m", "", "/v2/models/gpt-4o/infer")
	f.Fuzz(func(t *testing.T, in string, from, to int, model, body, path string) {
		gotPath, got, err := RenameModel(&subjects.Request{Model: "gpt-4o", ModelAt: subjects.ModelAt{In: subjects.ModelIn(in), From: from, To: to}, Path: path}, []byte(body), model)
		if err != nil || in == "" || model == "gpt-4o" {
			return
		}
		whole, was := string(got), body
		if in == "path" {
			whole, was = gotPath, path
		}
		if !strings.HasPrefix(whole, was[:from]) || !strings.HasSuffix(whole, was[to:]) {
			t.Errorf("%q became %q: more than %d to %d has changed", was, whole, from, to)
		}
	})
}
