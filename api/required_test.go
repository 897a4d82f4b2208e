package api_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/testenv"
)

// Every error has what the API's own errors always have, as a body and as the event of a stream, whatever its status; so
// has an engine's error, in whichever form it came, once it is an event.
func TestErrorsHaveWhatTheirAPIRequires(t *testing.T) {
	engines := []string{
		`{"error":{"message":"bad","type":"x","param":null,"code":null}}`, `{"error":{"message":"bad"}}`, `{"error":"bad"}`, `{"detail":"bad"}`,
		`{"object":"error","message":"bad","type":"x","param":null,"code":400}`, `{"type":"error","error":{"type":"invalid_request_error","message":"bad"}}`, `<html>`, ``, `[]`, `null`,
	}
	for _, a := range []api.API{api.Chat, api.Completions, api.Embeddings, api.Responses, api.Messages, api.OpenAI, api.Other} {
		object := "ErrorResponse"
		if a == api.Messages {
			object = "Anthropic ErrorResponse"
		}
		event := object
		if a == api.Responses {
			event = "ResponseFailedEvent"
		}
		for status := 400; status < 600; status++ {
			if http.StatusText(status) == "" {
				continue
			}
			for _, e := range []*api.Error{
				api.Errorf(status, "some_code", "a message"), {Status: status, Code: "x", Param: "model", Message: "quotes \" and \xff"}, {Status: status, RetryAfter: 1e9, NoRetry: true},
			} {
				if err := testenv.CheckObject(object, e.Body(a, "id")); err != nil {
					t.Errorf("%s, %d: %v", a, status, err)
				}
				if err := testenv.CheckObject(event, dataOf(t, e.Event(a, "id", "m"))); err != nil {
					t.Errorf("%s, %d, event: %v", a, status, err)
				}
			}
			for _, said := range engines {
				b := api.EngineError(status, []byte(said), a, "id", "m")
				err := testenv.CheckObject(event, dataOf(t, b))
				if err != nil && !strings.Contains(string(b), said) { // what the engine says in the API's form stays as it is
					t.Errorf("%s, %d, an engine's %s: %v", a, status, said, err)
				}
			}
		}
	}
}

// dataOf is the data of an event; the name before it must be that of its type.
func dataOf(t *testing.T, event []byte) []byte {
	t.Helper()
	name, data, ok := bytes.Cut(bytes.TrimSuffix(event, []byte("\n\n")), []byte("data: "))
	if !ok || bytes.Contains(data, []byte("\n")) {
		t.Errorf("%q is no event", event)
	}
	if n, ok := bytes.CutPrefix(name, []byte("event: ")); ok && !bytes.Contains(data, fmt.Appendf(nil, `"type":"%s"`, bytes.TrimSpace(n))) {
		t.Errorf("the event %q has another type", event)
	}
	return data
}
