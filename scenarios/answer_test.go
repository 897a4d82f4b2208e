package scenarios

import (
	"strings"
	"testing"
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
