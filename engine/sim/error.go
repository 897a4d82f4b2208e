package sim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// An apiError is an error answer in the shape of OpenAI's API or of Anthropic's.
type apiError struct {
	status     int
	kind       string
	code       *string
	param      *string
	message    string
	retryAfter string
	body       object   // the answer in the engine's own form; nil: OpenAI's
	text       bool     // the answer is the message, as text
	events     []string // the answer is a stream of these
}

func (e *apiError) Error() string { return strconv.Itoa(e.status) + ": " + e.message }

func errorOf(status int, message string) *apiError {
	e := &apiError{status: status, message: message}
	switch {
	case status == http.StatusTooManyRequests:
		e.kind, e.code = "rate_limit_error", new("rate_limit_exceeded")
	case status == http.StatusServiceUnavailable:
		e.kind, e.code = "server_error", new("overloaded")
	case status >= 500:
		e.kind, e.code = "server_error", new("internal_error")
	default:
		e.kind = "invalid_request_error"
	}
	return e
}

// badRequest is a 400 about a parameter, or about none.
func badRequest(param, format string, args ...any) *apiError {
	e := errorOf(http.StatusBadRequest, fmt.Sprintf(format, args...))
	if param != "" {
		e.param = &param
	}
	return e
}

func (e *apiError) write(w http.ResponseWriter, anthropic bool) {
	if e.retryAfter != "" {
		w.Header().Set("Retry-After", e.retryAfter)
	}
	switch {
	case e.events != nil:
		st := newStream(w, "text/event-stream; charset=utf-8")
		for _, event := range e.events {
			st.write([]byte(event))
		}
		return
	case e.text && e.message == "":
		w.WriteHeader(e.status)
		return
	case e.text:
		writeBody(w, e.status, "text/plain; charset=utf-8", []byte(e.message))
		return
	case e.body != nil && !anthropic:
		writeJSON(w, e.status, e.body)
		return
	}
	if anthropic {
		writeJSON(w, e.status, map[string]any{
			"type":  "error",
			"error": map[string]any{"type": anthropicKind(e.status), "message": e.message},
		})
		return
	}
	writeJSON(w, e.status, map[string]any{
		"error": map[string]any{"message": e.message, "type": e.kind, "param": e.param, "code": e.code},
	})
}

func anthropicKind(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusNotFound:
		return "not_found_error"
	case http.StatusRequestEntityTooLarge:
		return "request_too_large"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case http.StatusServiceUnavailable:
		return "overloaded_error"
	}
	if status >= 500 {
		return "api_error"
	}
	return "invalid_request_error"
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	writeBody(w, status, "application/json", jsonOf(v))
}

// jsonOf encodes a value of this package, which cannot fail.
func jsonOf(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// writeBody sets the content length, so that a client can detect a cut. Write errors are ignored:
// the client has disconnected.
func writeBody(w http.ResponseWriter, status int, contentType string, body []byte) {
	h := w.Header()
	h["Content-Type"] = []string{contentType}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
