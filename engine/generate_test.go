package engine_test

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
)

// A request for one token is in the API of the path, and one that engines answer.
func TestOneToken(t *testing.T) {
	e := newSim(t, sim.Config{Models: []string{"m"}})
	for _, stream := range []bool{false, true} {
		for path, want := range map[string]struct{ at, field string }{
			"/v1/chat/completions":           {"/v1/chat/completions", "messages"},
			"/v1/chat/completions?api=1":     {"/v1/chat/completions", "messages"},
			"/v1/completions":                {"/v1/completions", "prompt"},
			"/v1/messages":                   {"/v1/messages", "messages"},
			"/v1/responses":                  {"/v1/responses", "input"},
			"/v1/embeddings":                 {"/v1/embeddings", "input"},
			"/v1/rerank":                     {"/v1/rerank", "query"},
			"/api/chat":                      {"/api/chat", "messages"},
			"/api/generate":                  {"/api/generate", "prompt"},
			"/v1/audio/speech":               {"/v1/chat/completions", "messages"},
			"/v2/models/m/infer":             {"/v1/chat/completions", "messages"},
			"":                               {"/v1/chat/completions", "messages"},
			"/openai/v1/chat/completions?x=": {"/openai/v1/chat/completions", "messages"},
		} {
			at, body := engine.OneToken(path, "m", stream)
			var fields map[string]any
			if err := json.Unmarshal(body, &fields); err != nil || at != want.at || fields[want.field] == nil || fields["model"] != "m" {
				t.Errorf("%s: %s %s, want %s with %s", path, at, body, want.at, want.field)
			}
			if !strings.HasPrefix(at, "/v1/") {
				continue
			}
			w := httptest.NewRecorder()
			e.ServeHTTP(w, httptest.NewRequest("POST", "http://engine"+at, strings.NewReader(string(body))))
			if w.Code != 200 {
				t.Errorf("%s: %d %s", at, w.Code, w.Body)
			}
			if streams := strings.HasPrefix(w.Header().Get("Content-Type"), "text/event-stream"); streams != (stream && fields["stream"] == true) {
				t.Errorf("%s: %s", at, w.Header().Get("Content-Type"))
			}
		}
	}
}
