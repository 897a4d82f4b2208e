package bench

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/pulley-lb/pulley/api"
)

func TestReadTraceSaysWhatIsWrong(t *testing.T) {
	tests := map[string]struct{ csv, want string }{
		"no file":          {"", "header"},
		"no such column":   {"arrival_seconds,input_tokens\n", "output_tokens"},
		"nothing in it":    {"arrival_seconds,input_tokens,output_tokens\n", "no requests"},
		"not a number":     {"arrival_seconds,input_tokens,output_tokens\n0,1,1\nx,1,1\n", "line 3: arrival_seconds"},
		"time runs back":   {"arrival_seconds,input_tokens,output_tokens\n2,1,1\n1,1,1\n", "line 3: arrives before"},
		"negative tokens":  {"arrival_seconds,input_tokens,output_tokens\n2,-1,1\n", "line 2: input_tokens"},
		"a row of another": {"arrival_seconds,input_tokens,output_tokens\n2,1\n", "line 2"},
	}
	for name, test := range tests {
		if _, err := ReadTrace(strings.NewReader(test.csv)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, test.want)
		}
	}
}

func FuzzReadTrace(f *testing.F) {
	f.Add("arrival_seconds,input_tokens,output_tokens\n0.5,1,2\n0.5,3,4\n")
	f.Add("output_tokens,x,arrival_seconds,input_tokens\n1,\"a\nb\",0,1e9\n")
	f.Fuzz(func(t *testing.T, text string) {
		trace, err := ReadTrace(strings.NewReader(text))
		if err != nil {
			return
		}
		for i, arrival := range trace {
			if arrival.At < 0 || arrival.InputTokens < 1 || arrival.OutputTokens < 1 || i > 0 && arrival.At < trace[i-1].At {
				t.Fatalf("%q: request %d is %+v", text, i, arrival)
			}
		}
	})
}

// FuzzEvents checks that the way in which a stream is cut into reads does not change its events.
func FuzzEvents(f *testing.F) {
	f.Add("data: a\n\n: comment\n\nevent: x\ndata: b\r\ndata: c\r\n\r\ndata: [DONE]")
	f.Add("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n\n\ndata\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		whole := collect(strings.NewReader(text))
		bytewise := collect(iotest.OneByteReader(strings.NewReader(text)))
		if whole != bytewise {
			t.Fatalf("%q: %q at once, %q byte by byte", text, whole, bytewise)
		}
		for endpoint := range map[api.API]bool{api.Chat: true, api.Responses: true, api.Messages: true} {
			judge(endpoint, nil, []byte(text))
		}
		var u usage
		u.merge([]byte(text))
		endedByModel([]byte(text))
		parseError([]byte(text))
		isErrorBody([]byte(text))
	})
}

func collect(r io.Reader) string {
	var all strings.Builder
	ev := newEvents()
	ev.reset(r)
	for ev.next() {
		all.WriteString(string(ev.name) + "|" + string(ev.data) + "||")
	}
	return all.String()
}

func TestServerTiming(t *testing.T) {
	tests := map[string]struct {
		want time.Duration
		ok   bool
	}{
		"queue;dur=1.5": {1500 * time.Microsecond, true},
		`cache;dur=2, queue ; desc="x" ; dur="250"`: {250 * time.Millisecond, true},
		"queue":         {0, false},
		"queue;dur=-1":  {0, false},
		"queue;dur=NaN": {0, false},
		"queued;dur=1":  {0, false},
		"":              {0, false},
	}
	for value, test := range tests {
		if got, ok := timing(value, "queue"); got != test.want || ok != test.ok {
			t.Errorf("timing(%q) = %v, %v, want %v, %v", value, got, ok, test.want, test.ok)
		}
	}
}

func TestJudge(t *testing.T) {
	tests := map[string]struct {
		endpoint   api.API
		name, data string
		want       eventKind
	}{
		"role":                      {api.Chat, "", `{"choices":[{"delta":{"role":"assistant","content":""}}]}`, eventOther},
		"a token":                   {api.Chat, "", `{"choices":[{"delta":{"content":"a"}}]}`, eventContent},
		"a token with spaces":       {api.Chat, "", `{"choices": [{"delta": {"content": "\n"}}]}`, eventContent},
		"null content":              {api.Chat, "", `{"choices":[{"delta":{"content":null,"tool_calls":[]}}]}`, eventOther},
		"reasoning":                 {api.Chat, "", `{"choices":[{"delta":{"content":null,"reasoning_content":"hm"}}]}`, eventContent},
		"a tool call":               {api.Chat, "", `{"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":""}}]}}]}`, eventContent},
		"logprobs, no text":         {api.Chat, "", `{"choices":[{"delta":{},"logprobs":{"content":[]}}]}`, eventOther},
		"an error":                  {api.Chat, "", `{"error":{"message":"x"}}`, eventError},
		"an error of null":          {api.Chat, "", `{"error":null,"choices":[]}`, eventOther},
		"the end":                   {api.Chat, "", `[DONE]`, eventDone},
		"text":                      {api.Completions, "", `{"choices":[{"text":"a"}]}`, eventContent},
		"a delta":                   {api.Responses, "response.output_text.delta", `{"delta":"a"}`, eventContent},
		"a delta without a name":    {api.Responses, "", `{"type":"response.output_text.delta","delta":"a"}`, eventContent},
		"the response's end":        {api.Responses, "", `{"type":"response.completed","response":{"error":null}}`, eventDone},
		"the response's other end":  {api.Responses, "response.incomplete", `{}`, eventDone},
		"the response's failure":    {api.Responses, "response.failed", `{}`, eventError},
		"a block's delta":           {api.Messages, "content_block_delta", `{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}`, eventContent},
		"a block's start":           {api.Messages, "content_block_start", `{"content_block":{"type":"text","text":""}}`, eventOther},
		"the message's end":         {api.Messages, "", `{"type":"message_stop"}`, eventDone},
		"the message's error":       {api.Messages, "error", `{"type":"error","error":{"type":"overloaded_error"}}`, eventError},
		"a key at the very end":     {api.Chat, "", `"content"`, eventOther},
		"a key without a value":     {api.Chat, "", `"content":`, eventOther},
		"an escaped key in a value": {api.Completions, "", `{"x":"\"text\":\"y\"","text":""}`, eventOther},
	}
	for name, test := range tests {
		if got := judge(test.endpoint, []byte(test.name), []byte(test.data)); got != test.want {
			t.Errorf("%s: judge(%s) = %d, want %d", name, test.data, got, test.want)
		}
	}
}

func BenchmarkReadStream(b *testing.B) {
	stream := strings.Repeat("data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\","+
		"\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n", 100) +
		"data: [DONE]\n\n"
	c := &client{endpoint: api.Chat}
	x := &exchange{events: newEvents()}
	for b.Loop() {
		x.reset(order{})
		x.readStream(b.Context(), c, strings.NewReader(stream), func(error) {})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/token")
}
