package api

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
)

// judged returns an Inspector that has seen all of an answer.
func judged(path, contentType string, pieces ...string) *Inspector {
	in := new(Inspector)
	in.Begin(path, answerOf(contentType))
	for _, p := range pieces {
		in.Observe([]byte(p))
	}
	in.Broken()
	return in
}

const embeddings = "/v1/embeddings"

func TestVerdict(t *testing.T) {
	for about, c := range map[string]struct {
		path, contentType, body string
		want                    Verdict
	}{
		"a chat":                         {chatPath, jsonType, `{"choices":[{"message":{"content":"a"}}]}`, Answered},
		"an empty message":               {chatPath, jsonType, `{"choices":[{"message":{"content":""},"finish_reason":"stop"}]}`, Answered},
		"a tool call":                    {chatPath, jsonType, `{"choices":[{"message":{"content":null,"tool_calls":[{}]},"finish_reason":"tool_calls"}]}`, Answered},
		"an error that is null":          {chatPath, jsonType, `{"error":null,"choices":[{"message":{"content":"a"}}]}`, Answered},
		"a long answer":                  {chatPath, jsonType, `{"x":"` + strings.Repeat("x", 2*keepLine) + `"}`, Answered},
		"a part that was given up":       {chatPath, jsonType, `{"choices":[{"message":{"content":"half"},"finish_reason":"abort"}]}`, Answered},
		"all choices given up":           {chatPath, jsonType, `{"choices":[{"message":{"content":""},"finish_reason":"error"},{"message":{},"finish_reason":"abort"}]}`, Failed},
		"one of two choices given up":    {chatPath, jsonType, `{"choices":[{"message":{"content":""},"finish_reason":"stop"},{"message":{},"finish_reason":"abort"}]}`, Answered},
		"an escaped name":                {chatPath, jsonType, `{"\u0065rror":{"message":"x"}}`, Failed},
		"a list":                         {chatPath, jsonType, `[]`, Failed},
		"text completions":               {"/v1/completions", jsonType, `{"choices":[{"text":"a"}]}`, Answered},
		"llama.cpp's completions":        {"/completions", jsonType, `{"content":"a","stop":true}`, Answered},
		"embeddings":                     {embeddings, jsonType, `{"data":[{"embedding":[0.1]}]}`, Answered},
		"embeddings without any":         {embeddings, jsonType, `{"data":[]}`, Failed},
		"Ollama's embeddings":            {"/api/embeddings", jsonType, `{"embedding":[0.1]}`, Answered},
		"embeddings as bytes":            {embeddings, "application/octet-stream", "\x00\x01", Answered},
		"a message":                      {messagesPath, jsonType, `{"type":"message","content":[],"stop_reason":"end_turn"}`, Answered},
		"a message's error":              {messagesPath, jsonType, `{"type":"error","error":{"type":"api_error","message":"x"}}`, Failed},
		"no message":                     {messagesPath, jsonType, `{}`, Failed},
		"a response":                     {responsesPath, jsonType, `{"status":"completed","error":null,"output":[]}`, Answered},
		"a response that failed":         {responsesPath, jsonType, `{"status":"failed","error":{"code":"server_error","message":"x"},"output":[]}`, Failed},
		"no response":                    {responsesPath, jsonType, `{"id":"x","object":"response"}`, Failed},
		"an answer of a form of its own": {chatPath, jsonType, `{"model":"m"}`, Answered},
		"no choices":                     {chatPath, jsonType, `{"id":"x","choices":[]}`, Failed},
		"a completion without choices":   {chatPath, jsonType, `{"object":"chat.completion"}`, Failed},
		"an error without an error":      {chatPath, jsonType, `{"detail":"model is loading"}`, Failed},
		"an empty object":                {chatPath, jsonType, `{}`, Failed},
		"a status":                       {chatPath, jsonType, `{"status":"ok"}`, Failed},
		"speech":                         {"/v1/audio/speech", "audio/mpeg", "\xff\xfb", Answered},
		"speech that is an error":        {"/v1/audio/speech", jsonType, `{"error":{"message":"x"}}`, Failed},
		"a transcription":                {"/v1/audio/transcriptions", "text/plain", "data: it begins so", Answered},
		"an API that is not known":       {"/v2/models/m/infer", jsonType, `{"outputs":[]}`, Answered},
		"an API that is not known, HTML": {"/v2/models/m/infer", "text/html", "<html>", Failed},
		"its empty answer":               {"/generate", "", "", Answered},
		"its error":                      {"/generate", jsonType, `{"error":"x","error_type":"generation"}`, Failed},
		"its error is the request's":     {"/generate", jsonType, `{"error":"x","error_type":"validation"}`, Answered},

		"a word":                             {chatPath, eventStream, `data: {"choices":[{"delta":{"content":"a"}}]}` + "\n\n", Answered},
		"reasoning":                          {chatPath, eventStream, `data: {"choices":[{"delta":{"role":"assistant","reasoning_content":"a"}}]}` + "\n\n", Answered},
		"a tool call's start":                {chatPath, eventStream, `data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}` + "\n\n", Answered},
		"an empty answer that ends":          {chatPath, eventStream, `data: {"choices":[{"delta":{},"finish_reason":"stop"}]}` + "\n\ndata: [DONE]\n\n", Answered},
		"a byte order mark":                  {chatPath, eventStream, "\ufeffdata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n", Answered},
		"a long first event":                 {chatPath, eventStream, `data: {"choices":[{"delta":{"content":"` + strings.Repeat("x", 2*keepLine) + `"}}]}` + "\n\n", Answered},
		"a stream that is not called one":    {chatPath, jsonType, `data: {"choices":[{"delta":{"content":"a"}}]}` + "\n\ndata: [DONE]\n\n", Answered},
		"one without a type":                 {chatPath, "", `event: x` + "\n" + `data: {"choices":[{"delta":{"content":"a"}}]}` + "\n\ndata: [DONE]\n\n", Answered},
		"a message that begins":              {messagesPath, eventStream, "event: message_start\ndata: {\"type\":\"message_start\"}\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\n", Failed},
		"a message that says something":      {messagesPath, eventStream, "event: content_block_start\ndata: {\"type\":\"content_block_start\"}\n\n", Answered},
		"an empty message that stops":        {messagesPath, eventStream, "data: {\"type\":\"message_start\"}\n\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\ndata: {\"type\":\"message_stop\"}\n\n", Answered},
		"an overloaded message":              {messagesPath, eventStream, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n", Failed},
		"a response that begins":             {responsesPath, eventStream, "data: {\"type\":\"response.created\"}\n\ndata: {\"type\":\"response.in_progress\"}\n\n", Failed},
		"a response that fails at once":      {responsesPath, eventStream, "data: {\"type\":\"response.created\"}\n\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"server_error\",\"message\":\"x\"}}}\n\n", Failed},
		"a response to an invalid prompt":    {responsesPath, eventStream, "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"invalid_prompt\",\"message\":\"x\"}}}\n\n", Answered},
		"JSON lines":                         {"/api/chat", "application/x-ndjson", `{"message":{"content":"a"}}` + "\n", Answered},
		"an error in JSON lines":             {"/api/chat", "application/x-ndjson", `{"error":"x"}` + "\n", Failed},
		"no JSON lines at all":               {"/api/chat", "application/x-ndjson", "", Failed},
		"TGI's stream":                       {"/generate_stream", eventStream, `data:{"token":{"text":"a"}}` + "\n\n", Answered},
		"TGI's error in a stream":            {"/generate_stream", eventStream, `data:{"error":"CUDA","error_type":"generation"}` + "\n\n", Failed},
		"an error of the request's, as vLLM": {chatPath, eventStream, `data: {"error":{"message":"x","type":"BadRequestError","code":400}}` + "\n\n", Answered},
		"a short context":                    {chatPath, eventStream, `data: {"error":{"message":"maximum context length is 10","type":"BadRequestError","code":400}}` + "\n\n", Failed},
	} {
		t.Run(about, func(t *testing.T) {
			in := judged(c.path, c.contentType, c.body)
			reason, _, _ := in.NoAnswer()
			if got := in.Verdict(); got != c.want || (got == Failed) != (reason != "") {
				t.Fatalf("got %d, %q; want %d", got, reason, c.want)
			}
			if len(c.body) < 2000 {
				if got := judged(c.path, c.contentType, strings.Split(c.body, "")...).Verdict(); got != c.want {
					t.Errorf("byte by byte: got %d, want %d", got, c.want)
				}
			}
		})
	}
}

// A stream is decided about with its first event that says something, and not before.
func TestVerdictOfABeginning(t *testing.T) {
	role := `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}` + "\n\n"
	in := new(Inspector)
	in.Begin(chatPath, answerOf(eventStream))
	for _, step := range []struct {
		piece string
		want  Verdict
	}{
		{": hello\n\n", Undecided}, {role, Undecided}, {"data: {\"choices\":[{\"index\":0,", Undecided},
		{`"delta":{"content":"a"}}]}`, Undecided}, {"\n", Answered}, {"\ndata: {\"error\":{\"message\":\"x\"}}\n\n", Answered},
	} {
		if in.Observe([]byte(step.piece)); in.Verdict() != step.want {
			t.Errorf("after %q: %d, want %d", step.piece, in.Verdict(), step.want)
		}
	}
	if !in.Errored() || !in.Ended {
		t.Errorf("the engine's error: errored %v, ended %v", in.Errored(), in.Ended)
	}
	for contentType, begin := range map[string]string{eventStream: ": ", jsonType: `{"x":"`} { // no end of it
		in.Begin(chatPath, answerOf(contentType))
		in.Observe([]byte(begin))
		for range 64 {
			in.Observe([]byte(strings.Repeat("x", 1024)))
		}
		if in.Observe([]byte("x")); in.Verdict() != Answered {
			t.Errorf("%s: 64 KiB decide nothing", contentType)
		}
	}
	for _, resp := range []*http.Response{{StatusCode: 204}, {StatusCode: 304}, {StatusCode: 404}, {StatusCode: 200, Header: http.Header{"Content-Encoding": {"gzip"}}}} {
		if in.Begin(chatPath, resp); in.Verdict() != Answered {
			t.Errorf("%d %v is judged", resp.StatusCode, resp.Header)
		}
	}
}

// The engine's own error is kept, with a status.
func TestNoAnswerKeepsTheError(t *testing.T) {
	for body, want := range map[string]int{
		`{"error":{"message":"x","code":507}}`:            507,
		`{"error":{"message":"x","code":"503"}}`:          503,
		`{"error":{"message":"x","code":"server_error"}}`: 502,
		`{"error":"x"}`: 502,
		`{"object":"error","message":"x","code":500}`:                 500,
		`{"error":{"message":"x","status":529}}`:                      529,
		`{"error":{"message":"x","code":7},"detail":"y"}`:             502,
		`{"type":"error","error":{"type":"api_error","message":"x"}}`: 502,
	} {
		for _, pieces := range [][]string{{body}, {"data: " + body + "\n\n"}} {
			reason, status, text := judged(chatPath, jsonType, pieces...).NoAnswer()
			if status != want || string(text) != body || !strings.Contains(reason, "x") {
				t.Errorf("%q: got %d %q %q, want %d", pieces, status, text, reason, want)
			}
		}
	}
}

// endOf is a slow reference of when a chat stream has ended: with [DONE], with an error, or when every choice has.
func endOf(stream string) bool {
	open := make(map[int]bool)
	for line := range strings.SplitSeq(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(stream), "\n") {
		data, ok := strings.CutPrefix(line, "data:")
		if !ok {
			continue
		}
		data = strings.TrimSpace(data)
		if data == "[DONE]" {
			return true
		}
		var event struct {
			Error   any
			Choices []struct {
				Index        int
				FinishReason *string `json:"finish_reason"`
			}
		}
		if json.Unmarshal([]byte(data), &event) != nil {
			continue
		}
		if event.Error != nil {
			return true
		}
		for _, c := range event.Choices {
			open[c.Index] = open[c.Index] || false
			if c.FinishReason != nil && *c.FinishReason != "" {
				open[c.Index] = true
			}
		}
	}
	ended := len(open) > 0
	for _, e := range open {
		ended = ended && e
	}
	return ended
}

// The end of a stream is found as a slow reader finds it, however the stream is spelt and cut.
func FuzzEndOfStream(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		draw := rand.New(rand.NewPCG(seed, 2))
		pick := func(of ...string) string { return of[draw.IntN(len(of))] }
		end := pick("\n", "\r\n", "\r")
		var b strings.Builder
		for range draw.IntN(12) {
			sp := pick("", " ")
			switch draw.IntN(8) {
			case 0:
				b.WriteString(": comment" + end + end)
				continue
			case 1:
				if draw.IntN(4) == 0 {
					b.WriteString("data:" + sp + pick("[DONE]", `{`+sp+`"error":`+sp+`{"message":"x"}}`) + end + end)
				}
				continue
			}
			b.WriteString("data:" + sp + "{" + sp + `"choices":` + sp + "[")
			for i := range 1 + draw.IntN(2) {
				if i > 0 {
					b.WriteString(",")
				}
				text := pick("a", `\"finish_reason\":\"stop\"`, `\"index\":0`, `[DONE]`, `\"error\":1`, "é\\n")
				index, reason := fmt.Sprint(draw.IntN(3)), pick("null", "null", "null", `"stop"`, `""`, `"length"`)
				members := []string{`"index":` + sp + index, `"delta":{"content":"` + text + `","tool_calls":[{"index":1}]}`, `"finish_reason"` + sp + ":" + sp + reason}
				draw.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
				b.WriteString("{" + strings.Join(members, ","+sp) + "}")
			}
			b.WriteString("]}" + end + end)
		}
		stream := b.String()
		in := new(Inspector)
		in.Begin(chatPath, answerOf(pick(eventStream, eventStream, jsonType)))
		for rest := stream; rest != ""; {
			n := min(1+draw.IntN(1+draw.IntN(40)), len(rest))
			in.Observe([]byte(rest[:n]))
			rest = rest[n:]
		}
		broken := in.Broken()
		if want := endOf(stream); in.Stream && (broken == "") != want {
			t.Errorf("%q: broken %q, want ended %v", stream, broken, want)
		}
	})
}

func TestFaultOf(t *testing.T) {
	for about, c := range map[string]struct {
		status int
		body   string
		want   Fault
	}{
		"429":                              {429, "", FaultBusy},
		"503":                              {503, `{"error":{"message":"Loading model"}}`, FaultBusy},
		"401":                              {401, "", FaultSetup},
		"403":                              {403, "", FaultSetup},
		"407":                              {407, "", FaultSetup},
		"501":                              {501, `{"error":{"message":"no"}}`, FaultRequest},
		"500":                              {500, "", FaultEngine},
		"500 in plain words":               {500, "Internal Server Error", FaultEngine},
		"500 for want of a model's memory": {500, `{"error":{"message":"model requires more system memory","param":null}}`, FaultEngine},
		"504":                              {504, "<html>", FaultEngine},
		"400":                              {400, `{"error":{"message":"bad"}}`, FaultRequest},
		"400 of an unknown model":          {400, `{"error":{"message":"model 'x' not found","param":"model"}}`, FaultSetup},
		"409":                              {409, "", FaultRequest},
		"404 of another thing":             {404, `{"error":{"message":"no such response"}}`, FaultRequest},
		"404 of a model":                   {404, `{"error":"model 'x' not found"}`, FaultSetup},
		"404 of llama-swap":                {404, `{"error":"could not find real modelID for model x"}`, FaultSetup},
		"404 of a path":                    {404, `{"detail":"Not Found"}`, FaultMisfit},
		"404 without a body":               {404, "", FaultMisfit},
		"413 with a context":               {413, `{"error":{"message":"prompt is too long: 300000 tokens > 200000 maximum"}}`, FaultMisfit},
		"numbers where texts are expected": {500, `{"error":{"message":1,"type":2,"param":3,"code":4}}`, FaultRequest},
		"null":                             {500, `null`, FaultEngine},
		"a list":                           {400, `[1]`, FaultRequest},
	} {
		if got := FaultOf(c.status, []byte(c.body)); got != c.want {
			t.Errorf("%s: got %d, want %d", about, got, c.want)
		}
	}
}

func TestLongestRetry(t *testing.T) {
	for lang, want := range map[string]float64{"python": 120, "js": 60, "go": 8, "": 60} {
		h := http.Header{}
		if lang != "" {
			h.Set("X-Stainless-Lang", lang)
		}
		if got := LongestRetry(h).Seconds(); got != want {
			t.Errorf("%q: %v s, want %v s", lang, got, want)
		}
	}
}
