package api

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
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
