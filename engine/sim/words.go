package sim

import (
	"fmt"
	"maps"
	"net/http"
	"strings"

	"github.com/pulley-lb/pulley/engine"
)

// An apiError that the engine's dialect has words for is written in these, and not as OpenAI's specification has it. The
// forms and words are those of engine/testdata/answers. Misbehaviour that a client orders keeps OpenAI's form.

// said makes an error of the engine's own form from its status, kind and text.
func (s *Engine) said(status int, kind, text string) *apiError {
	e := errorOf(status, text)
	switch s.cfg.Dialect {
	case engine.DialectVLLM:
		e.body = object{"error": object{"message": text, "type": kind, "param": nil, "code": status}}
	case engine.DialectSGLang, engine.DialectTRTLLM:
		e.body = object{"object": "error", "message": text, "type": kind, "param": nil, "code": status}
	case engine.DialectTGI:
		e.body = object{"error": text, "error_type": kind}
	case engine.DialectLlamaCpp:
		e.body = object{"error": object{"code": status, "message": text, "type": kind}}
	case engine.DialectOllama:
		e.body = object{"error": object{"message": text, "type": kind, "param": nil, "code": nil}}
	case engine.DialectTriton:
		e.body = object{"detail": text}
	default:
		e.kind = kind
	}
	return e
}

// swapSaid is an error of llama-swap itself, and not of the model's server behind it.
func swapSaid(status int, kind, code, text string) *apiError {
	e := errorOf(status, text)
	e.body = object{"src": "llama-swap", "error": object{"message": text, "type": kind, "param": nil, "code": code}}
	return e
}

// behind says whether the errors about a request are those of a llama.cpp, possibly behind a llama-swap.
func (s *Engine) behind() bool {
	return s.cfg.Dialect == engine.DialectLlamaCpp || s.cfg.Dialect == engine.DialectLlamaSwap
}

// llamacppSaid is said in the form of llama.cpp.
func llamacppSaid(status int, kind, text string, more object) *apiError {
	e := errorOf(status, text)
	inner := object{"code": status, "message": text, "type": kind}
	maps.Copy(inner, more)
	e.body = object{"error": inner}
	return e
}

// unknownModel refuses a model that the engine does not have.
func (s *Engine) unknownModel(model, path string) *apiError {
	switch s.cfg.Dialect {
	case engine.DialectVLLM:
		e := s.said(http.StatusNotFound, "NotFoundError", fmt.Sprintf("The model `%s` does not exist.", model))
		e.body["error"].(object)["param"] = "model"
		return e
	case engine.DialectLlamaCpp:
		return llamacppSaid(http.StatusBadRequest, "invalid_request_error", fmt.Sprintf("model '%s' not found", model), nil)
	case engine.DialectOllama:
		return s.said(http.StatusNotFound, "not_found_error", fmt.Sprintf("model '%s' not found", model))
	case engine.DialectLMStudio:
		e := errorOf(http.StatusBadRequest, fmt.Sprintf("Invalid model identifier %q. Please specify a valid downloaded model (e.g., %s).",
			model, strings.Join(s.cfg.Models, ", ")))
		e.code, e.param = new("model_not_found"), new("model")
		return e
	case engine.DialectTriton:
		if strings.HasPrefix(path, "/v2/") {
			e := errorOf(http.StatusNotFound, fmt.Sprintf("Request for unknown model: '%s' is not found", model))
			e.body = object{"error": e.message}
			return e
		}
		return s.said(http.StatusBadRequest, "", "Unknown model: "+model)
	case engine.DialectLlamaSwap:
		return swapSaid(http.StatusNotFound, "invalid_request_error", "not_found", "no router for requested model")
	}
	e := errorOf(http.StatusNotFound, fmt.Sprintf("The model `%s` does not exist. There is: %s", model, strings.Join(s.cfg.Models, ", ")))
	e.code, e.param = new("model_not_found"), new("model")
	return e
}

// fit applies Config.Context to a request: an error, or as much of it as the engine does.
func (s *Engine) fit(wk *work) error {
	limit := s.cfg.Context
	if limit == 0 {
		return nil
	}
	switch d := s.cfg.Dialect; {
	case d == engine.DialectOllama: // cuts the beginning of a prompt, and moves the context on while it generates
		wk.in = min(wk.in, limit)
		return nil
	case s.behind() || d == engine.DialectLMStudio || d == engine.DialectTRTLLM: // the output ends where the context does
		if wk.in >= limit {
			return s.tooLong(wk)
		}
	case !wk.capped: // the output is as long as there is room
		if wk.in >= limit {
			return s.tooLong(wk)
		}
	case wk.in+wk.out > limit:
		return s.tooLong(wk)
	}
	if wk.in+wk.out > limit {
		wk.out, wk.capped = limit-wk.in, true
	}
	return nil
}

func (s *Engine) tooLong(wk *work) *apiError {
	limit := s.cfg.Context
	asked := 0
	if wk.capped {
		asked = wk.out
	}
	switch d := s.cfg.Dialect; {
	case d == engine.DialectVLLM: // it counts no further than it has to
		least := limit - asked + 1
		e := s.said(http.StatusBadRequest, "BadRequestError", fmt.Sprintf("This model's maximum context length is %d tokens. However, you requested %d "+
			"output tokens and your prompt contains at least %d input tokens, for a total of at least %d tokens. Please reduce the length of "+
			"the input prompt or the number of requested output tokens. (parameter=input_tokens, value=%[3]d)", limit, asked, least, limit+1))
		e.body["error"].(object)["param"] = "input_tokens"
		return e
	case d == engine.DialectSGLang && wk.in < limit:
		return s.said(http.StatusBadRequest, "BadRequestError", fmt.Sprintf("Requested token count exceeds the model's maximum context length of %d tokens. "+
			"You requested a total of %d tokens: %d tokens from the input messages and %d tokens for the completion.", limit, wk.in+asked, wk.in, asked))
	case d == engine.DialectSGLang:
		return s.said(http.StatusBadRequest, "BadRequestError", fmt.Sprintf("The input (%d tokens) is longer than the model's context length (%d tokens).", wk.in, limit))
	case d == engine.DialectTGI:
		return s.said(http.StatusUnprocessableEntity, "validation", fmt.Sprintf("Input validation error: `inputs` tokens + `max_new_tokens` must be <= %d. "+
			"Given: %d `inputs` tokens and %d `max_new_tokens`", limit, wk.in, wk.out))
	case s.behind():
		text := fmt.Sprintf("request (%d tokens) exceeds the available context size (%d tokens), try increasing it", wk.in, limit)
		return llamacppSaid(http.StatusBadRequest, "exceed_context_size_error", text, object{"n_prompt_tokens": wk.in, "n_ctx": limit})
	case d == engine.DialectLMStudio:
		e := errorOf(http.StatusBadRequest, fmt.Sprintf("The number of tokens to keep from the initial prompt is greater than the context length "+
			"(n_keep: %d>= n_ctx: %d). Try to load the model with a larger context length, or provide a shorter input.", wk.in, limit))
		e.body = object{"error": e.message}
		if wk.stream {
			e.events = []string{"event: error\ndata: " + string(jsonOf(object{"error": object{"message": e.message}})) + "\n\n"}
		}
		return e
	case d == engine.DialectTRTLLM:
		return s.said(http.StatusBadRequest, "BadRequestError",
			fmt.Sprintf("The sum of prompt length (%d.0), query length (0) should not exceed max_num_tokens (%d)", wk.in, limit))
	case d == engine.DialectTriton:
		return s.said(http.StatusBadRequest, "", fmt.Sprintf("the prompt (%d tokens) with %d output tokens exceeds max_seq_len (%d)", wk.in, asked, limit))
	}
	e := errorOf(http.StatusBadRequest, fmt.Sprintf("This model's maximum context length is %d tokens. However, you requested %d tokens.", limit, wk.in+asked))
	e.code, e.param = new("context_length_exceeded"), new("messages")
	return e
}

// full refuses a request because the engine's queue is full. Engines whose queues have no bound have no words for it.
func (s *Engine) full(wk *work) *apiError {
	refusal := s.refusal(s.cfg.RefuseStatus)
	switch s.cfg.Dialect {
	case engine.DialectSGLang:
		const text = "The request queue is full."
		e := s.said(http.StatusServiceUnavailable, "503", text)
		if wk.stream {
			inner := object{"object": "error", "message": text, "type": "SERVICE_UNAVAILABLE", "param": nil, "code": http.StatusServiceUnavailable}
			e.events = []string{"data: " + string(jsonOf(object{"error": inner})) + "\n\n", "data: [DONE]\n\n"}
		}
		return e
	case engine.DialectTGI:
		return s.said(http.StatusTooManyRequests, "overloaded", "Model is overloaded")
	case engine.DialectOllama:
		return s.said(http.StatusServiceUnavailable, "api_error", "server busy, please try again.  maximum pending requests exceeded")
	case engine.DialectLlamaSwap:
		e := swapSaid(http.StatusTooManyRequests, "rate_limit_error", "concurrency_limit", "Too many requests")
		e.retryAfter = "1"
		return e
	}
	return refusal
}

// missing refuses a body that lacks a field.
func (s *Engine) missing(field, model string) *apiError {
	const pydantic = "1 validation error:\n  {'type': 'missing', 'loc': ('body', '%s'), 'msg': 'Field required'}"
	switch s.cfg.Dialect {
	case engine.DialectVLLM, engine.DialectSGLang, engine.DialectTRTLLM:
		return s.said(http.StatusBadRequest, "Bad Request", fmt.Sprintf(pydantic, field))
	case engine.DialectTGI:
		return plain(http.StatusUnprocessableEntity, fmt.Sprintf("Failed to deserialize the JSON body into the target type: missing field `%s` at line 1 column 1", field))
	case engine.DialectLlamaCpp, engine.DialectLlamaSwap:
		return llamacppSaid(http.StatusBadRequest, "invalid_request_error", fmt.Sprintf("'%s' is required", field), nil)
	case engine.DialectOllama:
		return s.said(http.StatusBadRequest, "invalid_request_error", fmt.Sprintf("[] is too short - '%s'", field))
	case engine.DialectTriton:
		e := errorOf(http.StatusUnprocessableEntity, "Field required")
		e.body = object{"detail": []any{object{"type": "missing", "loc": []string{"body", field}, "msg": "Field required", "input": object{"model": model}}}}
		return e
	}
	return badRequest(field, "missing required parameter: '%s'", field)
}

// unreadable refuses a body, or a field of it, that has no meaning.
func (s *Engine) unreadable(e *apiError) *apiError {
	switch s.cfg.Dialect {
	case engine.DialectVLLM, engine.DialectSGLang, engine.DialectTRTLLM:
		return s.said(e.status, "BadRequestError", e.message)
	case engine.DialectTGI:
		return s.said(http.StatusUnprocessableEntity, "validation", "Input validation error: "+e.message)
	case engine.DialectLlamaCpp, engine.DialectLlamaSwap:
		return llamacppSaid(e.status, "invalid_request_error", e.message, nil)
	case engine.DialectOllama:
		return s.said(e.status, "invalid_request_error", e.message)
	case engine.DialectTriton:
		return s.said(e.status, "", e.message)
	}
	return e
}

// plain is an error in text, or without a body.
func plain(status int, text string) *apiError {
	e := errorOf(status, text)
	e.text = true
	return e
}

// nothingThere answers a path that the engine does not have.
func (s *Engine) nothingThere(w http.ResponseWriter, r *http.Request) {
	other := s.methods[r.URL.Path] // another method has this path
	e := plain(http.StatusNotFound, "404 page not found\n")
	switch s.cfg.Dialect {
	case engine.DialectVLLM, engine.DialectSGLang, engine.DialectTRTLLM, engine.DialectTriton: // FastAPI
		e.text, e.body = false, object{"detail": "Not Found"}
		if other {
			e.status, e.body = http.StatusMethodNotAllowed, object{"detail": "Method Not Allowed"}
		}
	case engine.DialectTGI:
		e.message = ""
		if other {
			e.status = http.StatusMethodNotAllowed
		}
	case engine.DialectLlamaCpp:
		e = llamacppSaid(http.StatusNotFound, "not_found_error", "File Not Found", nil)
	case engine.DialectOllama:
		e.message = "404 page not found"
	case engine.DialectLMStudio:
		e = errorOf(http.StatusOK, "")
		e.body = object{"error": fmt.Sprintf("Unexpected endpoint or method. (%s %s)", r.Method, r.URL.Path)}
	default:
		if other {
			e = plain(http.StatusMethodNotAllowed, "Method Not Allowed\n")
		}
	}
	e.write(w, false)
}
