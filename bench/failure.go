package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
)

// connectFailure classifies a request that got no response.
func connectFailure(ctx context.Context, err error) failure {
	if f, ok := endedByUs(ctx); ok {
		return f
	}
	var dial *net.OpError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return failure{"connection refused", err.Error()}
	case errors.As(err, &dial) && dial.Op == "dial":
		return failure{"connect", err.Error()}
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return failure{"connection reset", err.Error()}
	}
	return failure{"transport", err.Error()}
}

// endFailure classifies an answer that ended too early. err is what ended the reading; io.EOF is a clean end, which
// common clients take for success.
func endFailure(ctx context.Context, err error) failure {
	if f, ok := endedByUs(ctx); ok {
		return f
	}
	if errors.Is(err, io.EOF) {
		return failure{"truncated", "the stream ended cleanly without its terminal event"}
	}
	return failure{"cut", err.Error()}
}

func endedByUs(ctx context.Context) (failure, bool) {
	cause := context.Cause(ctx)
	switch {
	case cause == nil:
		return failure{}, false
	case errors.Is(cause, errTimeout):
		return failure{"timeout", "no complete answer within --timeout"}, true
	default:
		return failure{classCancelled, cause.Error()}, true
	}
}

// statusFailure classifies an answer by its status and the error code in its body.
func statusFailure(status int, body []byte) failure {
	code, message := parseError(body)
	return failure{strings.TrimSpace(fmt.Sprintf("http %d %s", status, code)), message}
}

// eventFailure classifies an error that came with status 200: as an event of a stream, or as the whole body.
func eventFailure(data []byte) failure {
	code, message := parseError(data)
	return failure{strings.TrimSpace("error event " + code), message}
}

// parseError finds the code and message in the error bodies and events of OpenAI, Anthropic and FastAPI.
func parseError(data []byte) (code, message string) {
	type apiError struct {
		Code    any    `json:"code"`
		Type    string `json:"type"`
		Message string `json:"message"`
	}
	var body struct {
		apiError
		Error    json.RawMessage `json:"error"`
		Response struct {
			Error *apiError `json:"error"`
		} `json:"response"`
		Detail any `json:"detail"`
	}
	if json.Unmarshal(data, &body) != nil {
		return "", clip(string(data), 200)
	}
	found := body.apiError
	var text string
	switch {
	case body.Response.Error != nil:
		found = *body.Response.Error
	case json.Unmarshal(body.Error, &found) == nil:
	case json.Unmarshal(body.Error, &text) == nil:
		found = apiError{Message: text}
	case body.Detail != nil:
		found = apiError{Message: fmt.Sprint(body.Detail)}
	}
	code = found.Type
	if found.Code != nil && found.Code != "" {
		code = fmt.Sprint(found.Code)
	}
	return clip(code, 64), clip(found.Message, 200)
}

// clip shortens a server's text to one line of a terminal.
func clip(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > limit {
		return string(runes[:limit]) + "…"
	}
	return strings.TrimSpace(s)
}
