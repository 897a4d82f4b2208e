package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Error is an error for a client. Body and Event write it in the form of the client's API.
type Error struct {
	Status     int
	Code       string // stable identifier
	Message    string
	Param      string        // the field at fault; "" is sent as null
	RetryAfter time.Duration // 0: not sent
	NoRetry    bool          // tells the SDKs not to retry
	Response   string        // for Event: the id of the response that the stream has begun; "" if there is none
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// LongestRetry is the longest Retry-After that a client obeys, by the headers of its request. An SDK that is told to wait
// longer comes back after a time of its own choice, within seconds.
func LongestRetry(h http.Header) time.Duration {
	switch h.Get("X-Stainless-Lang") {
	case "python":
		return 2 * time.Minute
	case "go":
		return 8 * time.Second
	}
	return time.Minute
}

// Errorf is an error without further fields.
func Errorf(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// BadRequest is a 400. param is the field at fault; "" names none.
func BadRequest(param, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Code: "invalid_request", Param: param, Message: fmt.Sprintf(format, args...)}
}

// Unavailable is a 503. retry is how long the client should wait; 0 sends no advice.
func Unavailable(code string, retry time.Duration, format string, args ...any) *Error {
	return &Error{Status: http.StatusServiceUnavailable, Code: code, RetryAfter: retry, Message: fmt.Sprintf(format, args...)}
}

// AsError returns the Error in err. Any other error is a bug and becomes a 500.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Status: http.StatusInternalServerError, Code: "internal_error", Message: "internal error"}
}

// kind is OpenAI's error type.
func (e *Error) kind() string {
	switch {
	case e.Status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case e.Status == http.StatusUnauthorized, e.Status == http.StatusForbidden:
		return "authentication_error"
	case e.Status < 500:
		return "invalid_request_error"
	}
	return "server_error"
}

// anthropicKind is Anthropic's error type.
func (e *Error) anthropicKind() string {
	kind := anthropicKinds[e.Status]
	switch {
	case kind != "":
		return kind
	case e.Status < 500:
		return "invalid_request_error"
	}
	return "api_error"
}

var anthropicKinds = map[int]string{
	http.StatusUnauthorized:          "authentication_error",
	http.StatusForbidden:             "permission_error",
	http.StatusNotFound:              "not_found_error",
	http.StatusRequestEntityTooLarge: "request_too_large",
	http.StatusTooManyRequests:       "rate_limit_error",
	http.StatusServiceUnavailable:    "overloaded_error",
	http.StatusGatewayTimeout:        "timeout_error",
}

type errorBody struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    string  `json:"code"`
}

// text is the message for a client. That of a failure may quote what a worker says of its engine, from which addresses
// are left out: they are the operator's.
func (e *Error) text() string {
	if e.Status < 500 {
		return e.Message
	}
	return withoutAddresses(e.Message)
}

// addresses finds URLs, IP addresses, and hosts with a port or as the errors of Go's network packages name them.
var addresses = regexp.MustCompile(strings.Join([]string{
	`[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"'<>]+`,
	`\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(%[0-9A-Za-z._~-]+)?\](:[0-9]{1,5})?`,
	`\b[0-9]{1,3}(\.[0-9]{1,3}){3}(:[0-9]{1,5})?\b`,
	`\b[0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4})*::([0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4})*)?|::1\b`,
	`\b([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}\b`,
	`\b[a-zA-Z0-9]([a-zA-Z0-9_.-]*[a-zA-Z0-9])?:[0-9]{2,5}\b`,
	`\blookup [^\s:]+`,
	`\bvalid for [^:;]*, not \S+`,
}, "|"))

// hostNames finds the name of a worker that is that of its engine's host.
var hostNames = regexp.MustCompile(`\bengine [a-zA-Z0-9-]+(\.[a-zA-Z0-9-]+)+\b`)

// plainHosts finds the host names in the texts of package plain.
var plainHosts = regexp.MustCompile(`\b(no such host:|look up host|certificate is not for) [^\s:;,]+`)

func withoutAddresses(s string) string {
	s = addresses.ReplaceAllString(s, "[address]")
	return plainHosts.ReplaceAllString(hostNames.ReplaceAllString(s, "engine [address]"), "$1 [address]")
}

// Body is the error as JSON. Anthropic's form contains OpenAI's fields, so that all four keys are always present.
func (e *Error) Body(a API, id string) []byte {
	inner := errorBody{Message: e.text(), Type: e.kind(), Code: e.Code}
	if e.Param != "" {
		inner.Param = &e.Param
	}
	var v any = map[string]any{"error": inner}
	if a == Messages {
		inner.Type = e.anthropicKind()
		v = map[string]any{"type": "error", "error": inner, "request_id": id}
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings always encode
	}
	return b
}

// Event is the error as the last event of a stream that has started, for a request with that id and model.
func (e *Error) Event(a API, id, model string) []byte {
	switch a {
	case Messages:
		return fmt.Appendf(nil, "event: error\ndata: %s\n\n", e.Body(a, id))
	case Responses:
		b, err := json.Marshal(map[string]any{
			"type":            "response.failed",
			"sequence_number": math.MaxInt32, // above all sequence numbers before it
			"response": map[string]any{
				"id": cmp.Or(e.Response, "resp_"+id), "object": "response", "created_at": time.Now().Unix(), "status": "failed",
				"error":              map[string]any{"code": "server_error", "message": e.text() + " (" + e.Code + ")"},
				"incomplete_details": nil, "output": []any{}, "model": model,
				"instructions": nil, "metadata": map[string]any{}, "parallel_tool_calls": true, "tools": []any{}, "tool_choice": "auto",
				"temperature": nil, "top_p": nil, // OpenAI's Response always has all of these
			},
		})
		if err != nil {
			panic(err)
		}
		return fmt.Appendf(nil, "event: response.failed\ndata: %s\n\n", b)
	}
	return fmt.Appendf(nil, "data: %s\n\n", e.Body(a, id))
}

// Write sends the error as the answer.
func (e *Error) Write(w http.ResponseWriter, a API, id string) {
	h := w.Header()
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
		if e.RetryAfter%time.Second != 0 {
			h.Set("Retry-After-Ms", strconv.FormatInt(int64(math.Ceil(float64(e.RetryAfter)/float64(time.Millisecond))), 10))
		}
	}
	if e.Status == http.StatusUnauthorized {
		h.Set("Www-Authenticate", "Bearer")
	}
	if e.NoRetry {
		h.Set("X-Should-Retry", "false")
	}
	b := e.Body(a, id)
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(e.Status)
	w.Write(b)
}

// EngineError returns an engine's error answer as the last event of a stream: unchanged if it is in the API's form.
func EngineError(status int, body []byte, a API, id, model string) []byte {
	var said struct {
		Type    string          `json:"type"`
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
		Detail  json.RawMessage `json:"detail"` // FastAPI's
	}
	var inner struct {
		Message string          `json:"message"`
		Code    json.RawMessage `json:"code"`
	}
	e := &Error{Status: status, Code: "upstream_error"}
	var line bytes.Buffer
	if json.Unmarshal(body, &said) == nil {
		json.Compact(&line, body)
		if json.Unmarshal(said.Error, &inner) == nil && inner.Message != "" {
			switch {
			case a.openAIErrors():
				return fmt.Appendf(nil, "data: %s\n\n", &line)
			case a == Messages && said.Type == "error":
				return fmt.Appendf(nil, "event: error\ndata: %s\n\n", &line)
			}
		}
		json.Unmarshal(inner.Code, &e.Code) // if it is a string
		json.Unmarshal(said.Error, &e.Message)
		json.Unmarshal(said.Detail, &e.Message)
	}
	e.Message = cmp.Or(inner.Message, said.Message, e.Message, fmt.Sprintf("the engine answered %d", status))
	e.Code = cmp.Or(e.Code, "upstream_error")
	return e.Event(a, id, model)
}
