package tracing

import (
	"context"
	"net/http"
	"testing"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

func TestOperation(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/chat/completions": "chat", "/v1/chat/completions?api-version=1": "chat", "/chat/completions": "chat", "/api/chat": "chat", "/api/v1/chat": "chat",
		"/v1/responses": "chat", "/v1/messages": "chat", "/v1/messages?beta=true": "chat",
		"/v1/completions": "text_completion", "/completion": "text_completion", "/api/generate": "text_completion", "/v2/models/m/generate_stream": "text_completion",
		"/v1/embeddings": "embeddings", "/api/embed": "embeddings", "/embedding": "embeddings",
		"/v1/rerank": "", "/v1/audio/speech": "", "/v2/models/m/infer": "", "/tokenize": "", "/v1/messages/count_tokens": "", "/v1/responses/input_tokens": "",
		"/v1/chat/completions/render": "",
	} {
		if got := Operation(path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
}

func TestContextInHeaders(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for about, c := range map[string]struct {
		in         http.Header
		want, then string // traceparent and tracestate afterwards
	}{
		"a valid one":             {http.Header{"Traceparent": {good}, "Tracestate": {"a=1,b=2"}}, good, "a=1,b=2"},
		"without a state":         {http.Header{"Traceparent": {good}}, good, ""},
		"a damaged one":           {http.Header{"Traceparent": {"00-xyz-1-01"}, "Tracestate": {"a=1"}}, "00-xyz-1-01", "a=1"},
		"zeros":                   {http.Header{"Traceparent": {"00-00000000000000000000000000000000-0000000000000000-01"}}, "00-00000000000000000000000000000000-0000000000000000-01", ""},
		"none":                    {http.Header{}, "", ""},
		"a state that is damaged": {http.Header{"Traceparent": {good}, "Tracestate": {"====,,"}}, good, ""},
	} {
		out := c.in.Clone()
		Inject(trace.SpanFromContext(Extract(context.Background(), c.in)), out)
		if got, then := out.Get("Traceparent"), out.Get("Tracestate"); got != c.want || then != c.then {
			t.Errorf("%s: got %q, %q", about, got, then)
		}
	}
	h := http.Header{"Traceparent": {good}}
	Inject(noop.Span{}, h)
	if h.Get("Traceparent") != good {
		t.Error("a span without context replaced one")
	}
}
