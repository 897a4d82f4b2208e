package api

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Fault is what an engine's error answer is due to. It decides whether another worker is asked.
type Fault int

const (
	FaultRequest Fault = iota // the request: the answer goes to the client, and no other worker is asked
	FaultEngine               // the engine
	FaultBusy                 // nothing but the load: the engine has no slot
	FaultSetup                // the engine's configuration: it refuses the worker's credentials, or does not have the model that the worker serves
	FaultMisfit               // the engine cannot serve this request, and another one might: it lacks the path, or its context is too short
)

// FaultOf finds out what an error answer is due to: by its status, and by what engines say in its body.
func FaultOf(status int, body []byte) Fault {
	e, _ := readError(body)
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return FaultBusy
	case http.StatusUnauthorized, http.StatusProxyAuthRequired: // clients' credentials do not reach engines
		return FaultSetup
	case http.StatusForbidden:
		if !e.namesRequest() {
			return FaultSetup
		}
		return FaultRequest
	case http.StatusNotImplemented:
		return FaultRequest
	case http.StatusMethodNotAllowed:
		return FaultMisfit
	}
	switch {
	case e.missesModel(status):
		return FaultSetup
	case e.tooLong():
		return FaultMisfit
	case status == http.StatusNotFound && (e.message == "" || e.message == "Not Found"): // FastAPI's answer for an unknown path
		return FaultMisfit
	case (status >= 500 || status == http.StatusFailedDependency) && !e.namesRequest(): // 424: TGI's generation failed
		return FaultEngine
	}
	return FaultRequest
}

// deathWords are in the errors of engines that answer for a part of them that has died.
var deathWords = [][]byte{
	[]byte("EngineCore encountered an issue"), []byte("EngineDeadError"), // vLLM
	[]byte("Background loop has errored already"), []byte("Background loop is not running"), // vLLM before version 1
	[]byte("model runner has unexpectedly stopped"), // Ollama
}

// EngineDied says whether an engine's error tells that the engine, or the part of it that runs the model, has died.
func EngineDied(body []byte) bool {
	return slices.ContainsFunc(deathWords, func(words []byte) bool { return bytes.Contains(body, words) })
}

// engineError is an engine's error, whichever form it has. Text fields that an engine does not send are empty.
type engineError struct {
	message string
	kind    string // "type" or "error_type"
	param   string
	code    string
	status  int // an HTTP error status that the error contains; 0: none
}

// readError reads an error of OpenAI's form, Anthropic's, vLLM's, FastAPI's, TGI's or Ollama's, or an event that reports one.
// ok is false if the text is no JSON object with an error.
func readError(body []byte) (e engineError, ok bool) {
	var outer map[string]json.RawMessage
	if json.Unmarshal(body, &outer) != nil || outer == nil {
		return e, false
	}
	fields := outer
	if inner := objectIn(outer, "response"); inner != nil { // Responses: the error of response.failed
		fields = inner
	}
	if inner := objectIn(fields, "error"); inner != nil {
		fields = inner
	} else if s := textIn(fields, "error"); s != "" {
		e.message, ok = s, true
	}
	if s := textIn(fields, "message"); s != "" {
		e.message, ok = s, true
	}
	if e.message == "" {
		if s := textIn(fields, "detail"); s != "" {
			e.message, ok = s, true
		} else if d := fields["detail"]; len(d) > 0 && d[0] == '[' { // FastAPI: what is wrong with the fields of the body
			e.message, e.kind, ok = string(d), "validation_error", true
		}
	}
	e.kind = firstOf(e.kind, textIn(fields, "type"), textIn(fields, "error_type"), textIn(outer, "error_type"))
	e.param, e.code = textIn(fields, "param"), textIn(fields, "code")
	for _, v := range []string{e.code, textIn(fields, "status")} {
		if n, err := strconv.Atoi(v); err == nil && n >= 400 && n < 600 && e.status == 0 {
			e.status = n
		}
	}
	return e, ok
}

func objectIn(of map[string]json.RawMessage, name string) (o map[string]json.RawMessage) {
	json.Unmarshal(of[name], &o) // nil if it is no object
	return o
}

// textIn is a member that is a string or a number.
func textIn(of map[string]json.RawMessage, name string) string {
	var s string
	var n json.Number
	switch {
	case json.Unmarshal(of[name], &s) == nil:
		return s
	case json.Unmarshal(of[name], &n) == nil:
		return n.String()
	}
	return ""
}

func firstOf(texts ...string) string {
	for _, s := range texts {
		if s != "" {
			return s
		}
	}
	return ""
}

// namesRequest reports whether the error says that the request is wrong, whatever the status is.
func (e *engineError) namesRequest() bool {
	switch e.status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return true
	}
	if e.param != "" && e.param != "model" {
		return true
	}
	return containsAny(e.kind+" "+e.code, "invalid_request", "bad_request", "badrequest", "validation", "unprocessable", "invalid_prompt")
}

// missesModel reports whether the error says that the engine does not have the model.
func (e *engineError) missesModel(status int) bool {
	if strings.EqualFold(e.code, "model_not_found") || e.lacksModel() {
		return true
	}
	if status != http.StatusNotFound && e.param != "model" {
		return false
	}
	return containsAny(e.message, "model") && containsAny(e.message, "not found", "not exist", "unknown", "no such", "could not find", "invalid model", "not loaded", "no router", "no local server")
}

// lacksModel reports whether the error begins with the words in which engines say, with any status, that they do not have
// or cannot load the model: a llama.cpp that is a router, Triton, LM Studio.
func (e *engineError) lacksModel() bool {
	text := strings.ToLower(e.message)
	for _, begin := range []string{"unknown model: ", "no models loaded", "failed to load model", "model is not loaded"} {
		if strings.HasPrefix(text, begin) {
			return true
		}
	}
	quoted, ok := strings.CutPrefix(text, "model '")
	return ok && strings.HasSuffix(quoted, "' not found")
}

// tooLong reports whether the error says that the prompt, with the answer, does not fit into the engine's context.
func (e *engineError) tooLong() bool {
	return containsAny(e.code+" "+e.kind, "context_length_exceeded", "exceed_context_size") ||
		containsAny(e.message, "context length", "context window", "context size", "max_model_len", "max_seq_len", "max_num_tokens", "maximum input length",
			"max_input_length", "max_total_tokens", "`max_new_tokens` must be <=", "`inputs` must have less than", "prompt is too long")
}

// containsAny reports whether s contains one of the texts, in any case. The texts are in lower case.
func containsAny(s string, texts ...string) bool {
	s = strings.ToLower(s)
	return slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(s, t) })
}
