package scenarios

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
)

func TestAnswer(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, _, _ := pair(t, env, slow("a"))
		r := ask(t, g, chat("m", false, 10), "")
		if r.status != 200 || words(content(t, r.body)) != 10 {
			t.Fatalf("got %d %q, want 200 with 10 words", r.status, r.body)
		}
		s := ask(t, g, chat("m", true, 10), "")
		if got, want := content(t, s.body), content(t, r.body); got != want {
			t.Errorf("streamed %q, want what the plain answer says: %q", got, want)
		}
		if !strings.HasSuffix(s.body, "data: [DONE]\n\n") {
			t.Errorf("stream ends with %q", s.body[max(0, len(s.body)-30):])
		}
		for _, h := range []string{"X-Request-Id", "Openai-Processing-Ms", "Server-Timing", "X-Sim-Name"} {
			if s.header.Get(h) == "" || r.header.Get(h) == "" {
				t.Errorf("header %s is missing", h)
			}
		}
	})
}

// Events after [DONE] do not reach the client, and the answer is whole.
func TestEventsAfterDone(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		const answer = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"
		g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "text/event-stream")
			switch r.Header.Get("X-How") {
			case "at once":
				io.WriteString(w, answer+"data: {\"injected\":1}\n\n")
			case "later":
				io.WriteString(w, answer)
				for range 3 {
					http.NewResponseController(w).Flush()
					time.Sleep(time.Second)
					io.WriteString(w, "event: x\ndata: {\"injected\":1}\n\n")
				}
			}
		})
		for _, how := range []string{"at once", "later"} {
			for _, path := range []string{"/v1/chat/completions", "/v1/completions", "/v1/x"} {
				r := do(t, g, "POST", path, `{"model":"m","stream":true,"messages":[]}`, "X-How", how)
				if r.status != 200 || r.body != answer || r.err != nil {
					t.Errorf("%s %s: got %d %q, %v", how, path, r.status, r.body, r.err)
				}
			}
		}
	})
}
