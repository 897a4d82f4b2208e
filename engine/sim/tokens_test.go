package sim

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/engine"
)

// Tokens are counted at once, also while the only slot is taken, and not as requests.
func TestTokensAreCounted(t *testing.T) {
	for _, c := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/tokenize", `{"model":"m","prompt":"one two three"}`, 200, `"count":3`},
		{"/tokenize", `{"model":"m","prompt":"one two"}`, 200, `"tokens":[0,1]`},
		{"/v1/messages/count_tokens", `{"model":"m","system":"a b","messages":[{"role":"user","content":"c"}]}`, 200, `{"input_tokens":3}`},
		{"/v1/responses/input_tokens", `{"model":"m","input":"a b"}`, 200, `"input_tokens":2`},
		{"/tokenize", `{"model":"n","prompt":"a"}`, 404, `NotFoundError`},
		{"/v1/messages/count_tokens", `{"model":"n"}`, 404, `"type":"error"`},
		{"/tokenize", `{`, 400, `cannot read`},
	} {
		e, err := New(Config{Models: []string{"m"}, Slots: 1})
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		e.ServeHTTP(w, httptest.NewRequest("POST", c.path, strings.NewReader(c.body)))
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s %s: %d %s, want %d %s", c.path, c.body, w.Code, w.Body, c.status, c.want)
		}
		if s := e.Stats(); s.Received != 0 || s.Started != 0 {
			t.Errorf("%s: counted as %+v", c.path, s)
		}
	}
	e, err := New(Config{Models: []string{"m"}, Dialect: engine.DialectOllama})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	if e.ServeHTTP(w, httptest.NewRequest("POST", "/tokenize", strings.NewReader(`{"model":"m"}`))); w.Code != 404 {
		t.Errorf("Ollama's /tokenize: %d", w.Code)
	}
}
