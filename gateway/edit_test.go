package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	chatPath      = "/v1/chat/completions"
	messagesPath  = "/v1/messages"
	responsesPath = "/v1/responses"
)

// both edits, as a route with restore_model and a client that asked for a tier.
var both = edits{model: "gpt-4o", tier: "batch"}

func TestEditJSON(t *testing.T) {
	for about, c := range map[string]struct {
		path     string
		ed       edits
		in, want string
	}{
		"a chat": {chatPath, both,
			`{"id":"c1","object":"chat.completion","created":1,"model":"llama-70b","choices":[{"index":0,"message":{"role":"assistant","content":"my model is \"model\":\"llama-70b\""},"finish_reason":"stop"}],"usage":{"total_tokens":3},"service_tier":null}`,
			`{"id":"c1","object":"chat.completion","created":1,"model":"gpt-4o","choices":[{"index":0,"message":{"role":"assistant","content":"my model is \"model\":\"llama-70b\""},"finish_reason":"stop"}],"usage":{"total_tokens":3},"service_tier":"batch"}`},
		"no tier in it":            {chatPath, both, `{"model":"x","choices":[]}`, `{"model":"gpt-4o","service_tier":"batch","choices":[]}`},
		"a tier before the model":  {chatPath, both, `{"service_tier":"default","model":"x"}`, `{"service_tier":"batch","model":"gpt-4o"}`},
		"white space stays":        {chatPath, both, " { \"model\" :\t\"x\" ,\r\n\"a\" : 1 } \n", " { \"model\" :\t\"gpt-4o\",\"service_tier\":\"batch\" ,\r\n\"a\" : 1 } \n"},
		"only the model":           {chatPath, edits{model: "m"}, `{"model":"x","service_tier":"default"}`, `{"model":"m","service_tier":"default"}`},
		"only the tier":            {chatPath, edits{tier: "t"}, `{"model":"x","a":1}`, `{"model":"x","service_tier":"t","a":1}`},
		"nothing":                  {chatPath, edits{}, `{"model":"x"}`, `{"model":"x"}`},
		"an escaped name":          {chatPath, both, `{"mod\u0065l":"x","service\u005ftier":"y"}`, `{"mod\u0065l":"gpt-4o","service\u005ftier":"batch"}`},
		"an escaped value":         {chatPath, both, `{"model":"\u0078\"}","a":1}`, `{"model":"gpt-4o","service_tier":"batch","a":1}`},
		"a name to be escaped":     {chatPath, edits{model: "a\"\\\n é\xff"}, `{"model":"x"}`, `{"model":"a\"\\\n é` + "\ufffd" + `"}`},
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
		"embeddings, only a tier":  {"/v1/embeddings", edits{tier: "t"}, `{"model":"x","data":[]}`, `{"model":"x","data":[]}`},
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
			if e := newEditor(c.ed, dialectOf(c.path), c.path, false); e != nil {
				got = string(e.whole([][]byte{[]byte(c.in[:len(c.in)/2]), []byte(c.in[len(c.in)/2:])}))
			}
			if got != c.want {
				t.Errorf("got  %.400s\nwant %.400s", got, c.want)
			}
		})
	}
}

// streams are answers as engines stream them, and as they are to be passed on.
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

// edited is what a stream becomes when it comes in pieces.
func edited(e *editor, pieces ...[]byte) []byte {
	var out []byte
	for _, p := range pieces {
		out = append(out, e.lines(p)...)
	}
	return append(out, e.last()...)
}

func TestEditStreams(t *testing.T) {
	for about, c := range streams {
		t.Run(about, func(t *testing.T) {
			in := []byte(c.in)
			editor := func() *editor { return newEditor(both, dialectOf(c.path), c.path, c.jsonLines) }
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

// A complete line is passed on at once, an incomplete one not in part.
func TestEditHoldsNoLine(t *testing.T) {
	e := newEditor(both, openAI, chatPath, false)
	for _, c := range []struct{ in, want string }{
		{"event: a\nda", "event: a\n"},
		{"ta: {\"model\":", ""},
		{"\"x\"}\n", "data: {\"model\":\"gpt-4o\",\"service_tier\":\"batch\"}\n"},
		{"\n", "\n"},
		{": working\r", ": working\r"},
		{"\n\n", "\n\n"},
	} {
		if got := string(e.lines([]byte(c.in))); got != c.want {
			t.Errorf("after %q: got %q, want %q", c.in, got, c.want)
		}
	}
}

// A line passes as it is from maxLine on, however it comes, and is not kept.
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
		e := newEditor(both, openAI, chatPath, false)
		if got := string(edited(e, slices.Collect(slices.Chunk(in, size))...)); got != whole {
			t.Errorf("in pieces of %d: %d bytes come out, want %d", size, len(got), len(whole))
		}
		if cap(e.held) > 3*maxLine {
			t.Errorf("in pieces of %d: %d bytes are kept", size, cap(e.held))
		}
	}
}

// FuzzEditStream cuts a stream anywhere: what comes out is the same.
func FuzzEditStream(f *testing.F) {
	for _, c := range streams {
		f.Add([]byte(c.in), uint64(len(c.in)), c.jsonLines)
	}
	f.Fuzz(func(t *testing.T, in []byte, cuts uint64, jsonLines bool) {
		for _, path := range []string{chatPath, messagesPath, responsesPath, "/v1/embeddings"} {
			editor := func() *editor { return newEditor(both, dialectOf(path), path, jsonLines) }
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

// FuzzEditJSON holds an edited object against encoding/json's reading of both.
func FuzzEditJSON(f *testing.F) {
	for _, c := range streams {
		for line := range strings.Lines(c.in) {
			f.Add([]byte(strings.TrimPrefix(line, "data:")))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, path := range []string{chatPath, messagesPath, responsesPath, "/v1/embeddings"} {
			e := newEditor(both, dialectOf(path), path, false)
			out := e.appendJSON(nil, in)
			var was, is map[string]any
			if !jsontextTakes(in) || json.Unmarshal(in, &was) != nil {
				if !bytes.Equal(out, in) {
					t.Fatalf("%q is no object and becomes %q", in, out)
				}
				return
			}
			if jsontext.NewDecoder(bytes.NewReader(in), jsontext.AllowInvalidUTF8(true)).SkipValue() != nil {
				return // names a member twice: the reading of both would hide what became of the first
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
							u["service_tier"] = both.tier
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

// wantEdits makes the edits of one object on its parsed form.
func wantEdits(m map[string]any, tier bool) {
	_, named := m["model"].(string)
	if named {
		m["model"] = both.model
	}
	if was, there := m["service_tier"]; tier && (there && canBeTier(was) || !there && named) {
		m["service_tier"] = both.tier
	}
}

// answering begins an answer to a recorder, for a request to path.
func answering(path string, ed edits) (*answer, *httptest.ResponseRecorder) {
	g := &Gateway{cfg: Config{SlowClient: time.Minute}, queues: make(map[queueKey]*queue)}
	g.fleet = newFleet(g)
	g.metrics = newMetrics(g)
	f := newFlight(&subjects.Request{Stream: true}, place{pool: "p", tier: policy.Tier{Name: "batch"}, queue: g.queue("p", "batch")}, nil, time.Now(), time.Minute)
	f.edits = ed
	f.current = &attempt{}
	w := httptest.NewRecorder()
	return newAnswer(g, w, httptest.NewRequest("POST", path, nil), f), w
}

func head(t *testing.T, a *answer, status int, length int64, header ...string) {
	t.Helper()
	h := &subjects.Head{Status: status, Header: http.Header{}, Length: length}
	for i := 0; i+1 < len(header); i += 2 {
		h.Header.Set(header[i], header[i+1])
	}
	if err := a.head(h); err != nil {
		t.Fatal(err)
	}
}

func data(t *testing.T, a *answer, pieces ...string) {
	t.Helper()
	for _, p := range pieces {
		if err := a.data([]byte(p), true); err != nil {
			t.Fatal(err)
		}
	}
}

func end(t *testing.T, a *answer) {
	t.Helper()
	if err := a.end(new(subjects.End)); err != nil {
		t.Fatal(err)
	}
}

const (
	llama  = `{"model":"llama","choices":[]}`
	gpt    = `{"model":"gpt-4o","service_tier":"batch","choices":[]}`
	stream = "text/event-stream; charset=utf-8"
)

func TestAnswerEdited(t *testing.T) {
	big := `{"model":"llama","a":"` + strings.Repeat("a", maxHeld) + `"}`
	for about, c := range map[string]struct {
		ed       edits
		status   int
		header   []string
		in, want string
	}{
		"JSON":                       {both, 200, []string{"Content-Type", "application/json"}, llama, gpt},
		"JSON of a charset":          {both, 200, []string{"Content-Type", "application/json; charset=utf-8"}, llama, gpt},
		"JSON as it came":            {edits{}, 200, []string{"Content-Type", "application/json"}, llama, llama},
		"created":                    {both, 201, []string{"Content-Type", "application/json"}, llama, gpt},
		"an error":                   {both, 400, []string{"Content-Type", "application/json"}, llama, llama},
		"a failure":                  {both, 500, []string{"Content-Type", "application/json"}, llama, llama},
		"compressed":                 {both, 200, []string{"Content-Type", "application/json", "Content-Encoding", "gzip"}, llama, llama},
		"not compressed":             {both, 200, []string{"Content-Type", "application/json", "Content-Encoding", "identity"}, llama, gpt},
		"text":                       {both, 200, []string{"Content-Type", "text/plain"}, llama, llama},
		"no type":                    {both, 200, nil, llama, llama},
		"more than is held":          {both, 200, []string{"Content-Type", "application/json"}, big, big},
		"a stream":                   {both, 200, []string{"Content-Type", stream}, "data: " + llama + "\n\n", "data: " + gpt + "\n\n"},
		"a stream as it came":        {edits{}, 200, []string{"Content-Type", stream}, "data: " + llama + "\n\n", "data: " + llama + "\n\n"},
		"a stream that is an error":  {both, 400, []string{"Content-Type", stream}, "data: " + llama + "\n\n", "data: " + llama + "\n\n"},
		"a stream that is packed":    {both, 200, []string{"Content-Type", stream, "Content-Encoding", "br"}, "data: " + llama + "\n\n", "data: " + llama + "\n\n"},
		"a stream of JSON lines":     {both, 200, []string{"Content-Type", "application/x-ndjson"}, llama + "\n" + llama, gpt + "\n" + gpt},
		"a stream without a newline": {both, 200, []string{"Content-Type", stream}, "data: " + llama, "data: " + gpt},
		"nothing":                    {both, 200, []string{"Content-Type", "application/json"}, "", ""},
		"a stream of nothing":        {both, 200, []string{"Content-Type", stream}, "", ""},
	} {
		for _, told := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, length told %t", about, told), func(t *testing.T) {
				a, w := answering(chatPath, c.ed)
				length, header := int64(-1), c.header
				if told {
					length = int64(len(c.in))
					header = append(slices.Clip(header), "Content-Length", fmt.Sprint(len(c.in)))
				}
				head(t, a, c.status, length, header...)
				for piece := range slices.Chunk([]byte(c.in), len(c.in)/3+1) {
					data(t, a, string(piece))
				}
				if a.size != int64(len(c.in)) {
					t.Errorf("counts %d bytes, the worker sent %d", a.size, len(c.in))
				}
				end(t, a)
				if got := w.Body.String(); got != c.want || w.Code != c.status {
					t.Errorf("got %d %.100q, want %d %.100q", w.Code, got, c.status, c.want)
				}
				if got := w.Header().Get("Content-Length"); got != "" && got != fmt.Sprint(len(c.want)) {
					t.Errorf("Content-Length %s of %d bytes", got, len(c.want))
				}
				if !a.whole || w.Header().Get("X-Service-Tier") != "batch" || a.f.bytes.Load() != int64(len(c.want)) {
					t.Errorf("whole %t, header %v, %d bytes written", a.whole, w.Header(), a.f.bytes.Load())
				}
			})
		}
	}
}

// While only the begin of a line has come, nothing was sent: another attempt is
// still possible, and nothing of the first is left in it.
func TestAnswerEditedFailsOver(t *testing.T) {
	a, w := answering(chatPath, both)
	head(t, a, 200, -1, "Content-Type", stream)
	data(t, a, `data: {"model":"llama","choi`)
	if a.begun || a.f.begun || w.Flushed {
		t.Fatal("it has begun")
	}
	a.reset()
	head(t, a, 200, -1, "Content-Type", stream)
	data(t, a, "data: "+llama+"\n\n", "data: [DO", "NE]\n\n")
	end(t, a)
	if got, want := w.Body.String(), "data: "+gpt+"\n\ndata: [DONE]\n\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A line that breaks off is left out, so that the error is an event of its own.
func TestAnswerEditedBreaksOff(t *testing.T) {
	for _, before := range []string{"data: " + llama + "\n\n", "data: " + llama + "\n\nevent: a\n"} {
		a, w := answering(chatPath, both)
		head(t, a, 200, -1, "Content-Type", stream)
		data(t, a, before+`data: {"model":"llama","choi`)
		if err := a.keepAlive(1); err != nil {
			t.Fatal(err)
		}
		if err := a.refuse(&Error{Status: 502, Code: "upstream_lost", Message: "broke off"}); err != nil {
			t.Fatal(err)
		}
		got := w.Body.String()
		if strings.Contains(got, "llama") || !strings.HasPrefix(got, "data: "+gpt+"\n\n") || !strings.Contains(got, "\n\ndata: {\"error\"") {
			t.Errorf("got %q", got)
		}
	}
}

// A client that was promised a stream gets a plain answer as one event, edited.
func TestAnswerEditedInsteadOfStream(t *testing.T) {
	a, w := answering(chatPath, both)
	if err := a.keepAlive(1); err != nil {
		t.Fatal(err)
	}
	head(t, a, 200, int64(len(llama)), "Content-Type", "application/json")
	data(t, a, llama)
	end(t, a)
	if got, want := w.Body.String(), ": working\n\ndata: "+gpt+"\n\n"; got != want && got != strings.Replace(want, "working", "queued position=1", 1) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// An engine's refusal is given back as it is.
func TestAnswerRefusalNotEdited(t *testing.T) {
	a, w := answering(chatPath, both)
	head(t, a, 200, -1, "Content-Type", "application/json")
	data(t, a, llama)
	err := a.giveBack(&subjects.Fail{Answer: &subjects.Head{Status: 429, Header: http.Header{"Content-Type": {"application/json"}}}, Body: []byte(llama)})
	if err != nil || w.Code != 429 || w.Body.String() != llama {
		t.Errorf("got %d %s, %v", w.Code, w.Body, err)
	}
}

func TestAnswerEditedMalformed(t *testing.T) {
	a, _ := answering(chatPath, both)
	if err := a.data([]byte("a"), true); !errors.Is(err, errMalformed) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkEdit(b *testing.B) {
	chunk := []byte(`data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"llama-70b","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}` + "\n\n")
	whole := []byte(`{"id":"chatcmpl-1","object":"chat.completion","model":"llama-70b","choices":[{"index":0,"message":{"role":"assistant","content":"` + strings.Repeat(`lorem ipsum dolor sit amet,\n`, 150) + `"}}]}`)
	for name, in := range map[string][]byte{"chunk": chunk, "whole4KiB": whole} {
		b.Run(name, func(b *testing.B) {
			e := newEditor(both, openAI, chatPath, false)
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			for b.Loop() {
				if name == "chunk" {
					e.lines(in)
				} else {
					e.whole([][]byte{in})
				}
			}
		})
	}
}
