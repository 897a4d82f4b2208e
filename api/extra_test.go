package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/api"
)

// What an engine sends after [DONE] is no part of the answer, however it is cut on its way.
func TestAfterDone(t *testing.T) {
	const chunk = `data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}`
	for about, c := range map[string]struct{ kept, extra, contentType string }{
		"an event":            {chunk + "\n\ndata: [DONE]\n\n", "data: {\"x\":1}\n\n", "text/event-stream"},
		"CR and LF":           {chunk + "\r\n\r\ndata: [DONE]\r\n\r\n", "data: x\r\n\r\n", "text/event-stream"},
		"CR":                  {chunk + "\r\rdata: [DONE]\r\r", "data: x\r\r", "text/event-stream"},
		"no empty line":       {chunk + "\n\ndata: [DONE]\n", "data: x\n\n", "text/event-stream"},
		"without a space":     {chunk + "\n\ndata:[DONE]\n\n", ": x\n\n", "text/event-stream"},
		"twice":               {chunk + "\n\ndata: [DONE]\n\n", "data: [DONE]\n\n", "text/event-stream"},
		"much":                {chunk + "\n\ndata: [DONE]\n\n", strings.Repeat("x", 10_000), "text/event-stream"},
		"not called a stream": {chunk + "\n\ndata: [DONE]\n\n", "data: x\n\n", "text/plain"},
		"nothing":             {chunk + "\n\ndata: [DONE]\n\n", "", "text/event-stream"},
		"in a text":           {chunk + "\n\n: data: [DONE]\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"[DONE]\"}}]}\n\ndata: [DONE]\n\n", "data: x\n\n", "text/event-stream"},
		"JSON lines":          {"{\"done\":true}\n[DONE]\nx\n", "", "application/x-ndjson"},
	} {
		whole := c.kept + c.extra
		for size := 1; size <= min(len(whole), 300); size++ {
			in := new(api.Inspector)
			in.Begin("/v1/chat/completions", &http.Response{StatusCode: 200, ContentLength: -1, Header: http.Header{"Content-Type": {c.contentType}}})
			var got strings.Builder
			for rest := whole; rest != ""; {
				piece := rest[:min(size, len(rest))]
				got.WriteString(piece[:in.Observe([]byte(piece))])
				rest = rest[len(piece):]
			}
			if got.String() != c.kept {
				t.Fatalf("%s, in pieces of %d: kept %q, want %q", about, size, got.String(), c.kept)
			}
			if broken := in.Broken(); broken != "" {
				t.Errorf("%s: %s", about, broken)
			}
		}
	}
}
